"""Modes captured by GANs, beside the table of PacGAN: a ring of 8 Gaussians and a grid of 25, over seeds.

2500 rows are generated. A row belongs to the nearest mean and is of high quality within 3 sigma of it. A mode is
captured if it has one row of high quality. Reverse KL is KL(frequencies of modes among all rows, uniform), in nats.
Exact samples have 98.9 % of high quality and, by their finite number alone, a reverse KL of about (K - 1) / 5000 nats:
.0014 on the ring, .0048 on the grid.

All recipes have the same generator, data, steps and widths of the critic. A setting is a learning rate (that of both
networks), whether the critic sees random Fourier features of the data beside them (Rahimi & Recht 2007; Tancik et al.
2020), and the weight of a gradient penalty. `--search` runs each setting of the same list once for each recipe, on seed
100, and ranks them by the share of high quality times exp(-reverse KL). The table is on other seeds, at `CHOSEN` or
`--setting`. The data are scaled to a standard deviation of one, as `ppgen.data.load` does, and the generated rows are
scaled back.

    python tests/benchmarks/modes.py --search [--steps 6000] [--only r3_gan gan] [--out FILE]
    python tests/benchmarks/modes.py [--seeds 3] [--first 40] [--only r3_gan gan] [--distributions ring grid]
        [--setting 0.002 Fourier 1] [--steps 20000] [--compile auto] [--jobs 1] [--out FILE]

Each run is a line of FILE. Runs that are in the file are not repeated, so an interrupted table can be resumed. Times
are of the processor, on one thread.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import gather

import ppgen
from ppgen import data, metrics, models, nets, recipes, views
from ppgen.evaluation import mode_coverage

DISTRIBUTIONS = {"ring": "gaussians_ring", "grid": "gaussians_grid"}
BATCH, ROWS = 128, 2500
SIZE = 781 * BATCH
LATENT, HIDDEN = 2, (64, 64, 64)
FREQUENCIES, SPREAD = 64, 5.0  # Fourier features: their number; the standard deviation of frequencies, in radians
AVERAGE = 0.999
SEARCH_SEED = 100

# Lin et al. 2018, Table 1, means: modes, high quality %, reverse KL on the ring, then on the grid
PUBLISHED = {
    "GAN": ("6.3", "98.2", ".45", "17.3", "94.8", ".70"),
    "ALI": ("6.6", "97.6", ".36", "24.1", "95.7", ".14"),
    "PacGAN 2": ("7.9", "95.6", ".07", "23.8", "91.3", ".13"),
    "PacGAN 4": ("7.8", "95.9", ".07", "24.8", "93.6", ".04"),
}
PUBLISHED_BUDGET = "400,000 steps of batch 100, generator 4 x 400, critic 3 x 200 maxout, z in the plane"


def with_penalty(recipe: Callable[..., ppgen.Objective], **options: Any) -> Callable[..., ppgen.Objective]:
    """A recipe without a penalty of its own, with a zero-centered one of a weight."""

    def objective(critic: Any, *, weight: float, **more: Any) -> ppgen.Objective:
        penalty = metrics.ZeroCenteredGradientPenalty(weight, at="both") if weight else None
        return recipe(critic, penalty=penalty, **options, **more)

    return objective


def hinge(critic: Any, **options: Any) -> ppgen.Objective:
    """The hinge loss with another penalty than the spectral norms of `ppgen.recipes.hinge_gan`."""
    return ppgen.match(views.data("x"), views.generated("x"), metrics.Hinge(critic, **options))


RECIPES: dict[str, Callable[..., ppgen.Objective]] = {
    "gan": with_penalty(recipes.gan),
    "pacgan_2": with_penalty(recipes.gan, packing=2),
    "pacgan_4": with_penalty(recipes.gan, packing=4),
    "ali": with_penalty(recipes.ali),
    "lsgan": with_penalty(recipes.lsgan),
    "hinge": with_penalty(hinge),
    "wgan_gp": recipes.wgan_gp,
    "r1_gan": recipes.r1_gan,
    "r3_gan": recipes.r3_gan,
}


@dataclass(frozen=True)
class Setting:
    """The learning rate of both networks, whether the critic sees Fourier features, and the weight of the penalty."""

    lr: float
    fourier: bool
    weight: float

    def __str__(self) -> str:
        return f"{self.lr:g}, {'Fourier' if self.fourier else 'plain'}, {self.weight:g}"


# what is searched, for every recipe
SEARCHED = [Setting(lr, fourier, weight) for lr in (4e-3, 2e-3) for fourier, weight in ((False, 0.1), (True, 1.0))]

CHOSEN = {
    "gan": Setting(1e-3, False, 0.0),
    "pacgan_2": Setting(1e-3, False, 0.0),
    "pacgan_4": Setting(1e-3, False, 0.0),
    "ali": Setting(1e-3, False, 0.0),
    "lsgan": Setting(2e-3, True, 0.1),
    "hinge": Setting(2e-3, True, 0.1),
    "wgan_gp": Setting(1e-3, False, 0.1),
    "r1_gan": Setting(2e-3, True, 0.1),
    "r3_gan": Setting(2e-3, True, 0.1),
}


def one(
    name: str, distribution: str, seed: int, steps: int, setting: str, *, settings: dict[str, Setting], compile: Any
) -> dict[str, Any]:
    """One run, as a record."""
    torch.set_num_threads(1)
    known = data.modes(DISTRIBUTIONS[distribution])
    assert known is not None
    sample = data.load(DISTRIBUTIONS[distribution], size=SIZE, scale="standard", validation=0, test=0, seed=seed)
    chosen = settings[setting]
    # a penalty centered at zero makes the game converge without damped momentum (Huang et al. 2024)
    centered = chosen.weight > 0 and name != "wgan_gp"
    betas = (0.0, 0.999) if centered else (0.5, 0.99)
    critic = partial(
        nets.Critic,
        hidden=HIDDEN,
        activation="relu",
        frequencies=FREQUENCIES if chosen.fourier else 0,
        spread=SPREAD,
    )
    torch.manual_seed(seed)
    kind = models.ALI if name == "ali" else models.Generator
    program = kind((2,), latent_dim=LATENT, hidden=HIDDEN, activation="relu")
    start = time.process_time()
    ppgen.fit(
        program.model,
        program.guide,
        sample.train.x,
        loss=RECIPES[name](critic, lr=chosen.lr, betas=betas, weight=chosen.weight),
        optim=partial(torch.optim.Adam, lr=chosen.lr, betas=betas),
        steps=steps,
        batch_size=BATCH,
        ema=AVERAGE,
        lr_scheduler="cosine",
        seed=seed,
        compile=compile,
        progress=False,
    )
    seconds = time.process_time() - start
    torch.manual_seed(seed)
    generated = sample.scaler.inverse(program.sample(ROWS).numpy())
    found = mode_coverage(generated, known[0], sigma=known[1])
    return {
        "recipe": name,
        "distribution": distribution,
        "seed": seed,
        "steps": steps,
        "setting": setting,
        "modes": found.captured,
        "high_quality": 100 * found.high_quality,
        "reverse_kl": found.reverse_kl,
        "score": found.high_quality * math.exp(-found.reverse_kl),
        "seconds": seconds,
    }


def cell(records: list[dict[str, Any]], distribution: str, key: str, digits: int) -> str:
    """The mean (standard error) of a number over the runs on a distribution."""
    numbers = np.array([record[key] for record in records if record["distribution"] == distribution])
    if len(numbers) == 0:
        return ""
    text = f"{numbers.mean():.{digits}f}"
    return text if len(numbers) == 1 else f"{text} ({numbers.std(ddof=1) / math.sqrt(len(numbers)):.{digits}f})"


def table(records: list[dict[str, Any]]) -> None:
    heads = ("ring, modes of 8", "high quality %", "reverse KL", "grid, modes of 25", "high quality %", "reverse KL")
    print(f"\n{'':20}{'setting':22}" + "".join(f"{head:>18}" for head in heads) + f"{'seconds a run':>15}")
    for label, numbers in PUBLISHED.items():
        print(f"{label + ', published':20}{'':22}" + "".join(f"{number:>18}" for number in numbers))
    for name in RECIPES:
        if found := [record for record in records if record["recipe"] == name]:
            columns = (("modes", 1), ("high_quality", 1), ("reverse_kl", 4))
            cells = [cell(found, where, key, digits) for where in DISTRIBUTIONS for key, digits in columns]
            seconds = np.mean([record["seconds"] for record in found])
            print(f"{name:20}{found[0]['setting']:22}" + "".join(f"{text:>18}" for text in cells) + f"{seconds:15.0f}")


def ranking(records: list[dict[str, Any]]) -> None:
    """Prints the score of each setting of each recipe, the best first."""
    for name in RECIPES:
        scores: dict[str, list[float]] = {}
        for record in records:
            if record["recipe"] == name:
                scores.setdefault(record["setting"], []).append(record["score"])
        for setting in sorted(scores, key=lambda s: -float(np.mean(scores[s]))):
            numbers = "  ".join(f"{score:.3f}" for score in scores[setting])
            print(f"{name:10} {setting:20} {np.mean(scores[setting]):.3f}   {numbers}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=40, help="the first seed")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--distributions", nargs="+", choices=DISTRIBUTIONS, default=list(DISTRIBUTIONS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--compile", choices=("auto", "yes", "no"), default="auto")
    parser.add_argument("--search", action="store_true", help="run all settings, on one seed")
    parser.add_argument(
        "--setting", nargs=3, metavar=("LR", "CRITIC", "WEIGHT"), help="one for all, in place of CHOSEN"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    compile = {"auto": "auto", "yes": True, "no": False}[options.compile]
    seeds = [SEARCH_SEED] if options.search else range(options.first, options.first + options.seeds)
    steps = options.steps or (6000 if options.search else 20_000)
    tried = [(name, setting) for setting in SEARCHED for name in options.only]
    if not options.search:
        given = options.setting and Setting(
            float(options.setting[0]), options.setting[1] == "Fourier", float(options.setting[2])
        )
        tried = [(name, given or CHOSEN[name]) for name in options.only]
    runs = [
        (name, distribution, seed, steps, str(setting))
        for name, setting in tried
        for distribution in options.distributions
        for seed in seeds
    ]
    network = f"3 x {HIDDEN[0]} ReLU"
    print(f"{steps} steps of the generator, batch {BATCH}; {network} generator, z in the plane, {network} critic")
    print(f"a setting: learning rate, critic ({FREQUENCIES} Fourier features or plain), weight of the penalty")
    print(f"weights averaged at {AVERAGE}; learning rates fall to zero as a cosine")
    print(f"published: {PUBLISHED_BUDGET}", flush=True)
    line = (
        "{recipe:9} {setting:20} {distribution} seed {seed:3}: {modes:2} modes, {high_quality:5.1f} %, "
        "reverse KL {reverse_kl:.4f}, {seconds:.0f} s"
    )
    key = ("recipe", "distribution", "seed", "steps", "setting")
    run = partial(one, settings={str(setting): setting for _, setting in tried}, compile=compile)
    records = gather(run, runs, key, jobs=options.jobs, out=options.out, describe=line.format_map)
    ranking(records) if options.search else table(records)


if __name__ == "__main__":
    main()
