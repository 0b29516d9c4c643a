"""Modes captured by GANs, beside the table of PacGAN: a ring of 8 Gaussians and a grid of 25, over seeds.

2500 rows are generated. A row belongs to the nearest mean and is of high quality within 3 sigma of it. A mode is
captured if it has one row of high quality. Reverse KL is KL(frequencies of modes among all rows, uniform), in nats.
Exact samples have 98.9 % of high quality and, by their finite number alone, a reverse KL of about (K - 1) / 5000 nats:
.0014 on the ring, .0048 on the grid.

All recipes have the same generator, data and budget. They differ in the loss, its learning rates and the critic. The
critic of r1_gan and r3_gan sees the data and random Fourier features of them (Rahimi & Recht 2007; Tancik et al. 2020),
since under their penalty a plain dense network learns 25 narrow modes very slowly. The others have the plain network,
which is better there: with Fourier features the GAN fell to four modes or fewer. The data are scaled to a standard
deviation of one, as `ppgen.data.load` does, and the generated rows are scaled back. Settings were chosen on seeds from
100 on, except for the learning rate of r3_gan, which was chosen on seed 22 of the grid; its seeds from 30 on had not
been looked at before.

    python tests/benchmarks/modes.py [--seeds 10] [--only r3_gan gan] [--distributions ring grid] [--jobs 2]
        [--steps 20000] [--first 0] [--compile auto] [--out FILE]

Each run is a line of FILE. Runs that are in the file are not repeated, so an interrupted table can be resumed. A file
is for one setting: name another one after a change.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import gather
from torch import nn

import ppgen
from ppgen import data, models, nets, recipes
from ppgen.evaluation import mode_coverage

DISTRIBUTIONS = {"ring": "gaussians_ring", "grid": "gaussians_grid"}
BATCH, ROWS = 128, 2500
SIZE = 781 * BATCH
LATENT, HIDDEN = 2, (64, 64, 64)
FREQUENCIES, SPREAD = 64, 5.0  # Fourier features: their number; the standard deviation of frequencies, in radians
AVERAGE = 0.999

# Lin et al. 2018, Table 1, means: modes, high quality %, reverse KL on the ring, then on the grid
PUBLISHED = {
    "GAN": ("6.3", "98.2", ".45", "17.3", "94.8", ".70"),
    "ALI": ("6.6", "97.6", ".36", "24.1", "95.7", ".14"),
    "PacGAN 2": ("7.9", "95.6", ".07", "23.8", "91.3", ".13"),
    "PacGAN 4": ("7.8", "95.9", ".07", "24.8", "93.6", ".04"),
}
PUBLISHED_BUDGET = "400,000 steps of batch 100, generator 4 x 400, critic 3 x 200 maxout, z in the plane"

PLAIN = partial(nets.Critic, hidden=HIDDEN, activation="relu")
FOURIER = partial(PLAIN, frequencies=FREQUENCIES, spread=SPREAD)


@dataclass(frozen=True)
class Setting:
    """A recipe with its options, the learning rate and betas of both networks, the critic and the model."""

    recipe: Callable[..., ppgen.Objective]
    lr: float
    options: dict[str, Any] = field(default_factory=dict)
    betas: tuple[float, float] = (0.5, 0.99)
    critic: Callable[..., nn.Module] = PLAIN
    model: Callable[..., Any] = models.Generator


RECIPES = {
    "gan": Setting(recipes.gan, lr=1e-3),
    "pacgan_2": Setting(recipes.gan, lr=1e-3, options={"packing": 2}),
    "pacgan_4": Setting(recipes.gan, lr=1e-3, options={"packing": 4}),
    "ali": Setting(recipes.ali, lr=1e-3, model=models.ALI),
    "wgan_gp": Setting(recipes.wgan_gp, lr=1e-3, options={"weight": 0.1}),
    "r1_gan": Setting(recipes.r1_gan, lr=2e-3, options={"weight": 0.1}, betas=(0.0, 0.999), critic=FOURIER),
    "r3_gan": Setting(recipes.r3_gan, lr=2e-3, options={"weight": 0.1}, betas=(0.0, 0.999), critic=FOURIER),
}


def one(name: str, distribution: str, seed: int, steps: int, compile: Any) -> dict[str, Any]:
    """One run, as a record."""
    torch.set_num_threads(1)
    setting = RECIPES[name]
    known = data.modes(DISTRIBUTIONS[distribution])
    assert known is not None
    sample = data.load(DISTRIBUTIONS[distribution], size=SIZE, scale="standard", validation=0, test=0, seed=seed)
    torch.manual_seed(seed)
    program = setting.model((2,), latent_dim=LATENT, hidden=HIDDEN, activation="relu")
    start = time.perf_counter()
    ppgen.fit(
        program.model,
        program.guide,
        sample.train.x,
        loss=setting.recipe(setting.critic, lr=setting.lr, betas=setting.betas, **setting.options),
        optim=partial(torch.optim.Adam, lr=setting.lr, betas=setting.betas),
        steps=steps,
        batch_size=BATCH,
        ema=AVERAGE,
        lr_scheduler="cosine",
        seed=seed,
        compile=compile,
        progress=False,
    )
    seconds = time.perf_counter() - start
    torch.manual_seed(seed)
    generated = sample.scaler.inverse(program.sample(ROWS).numpy())
    found = mode_coverage(generated, known[0], sigma=known[1])
    return {
        "recipe": name,
        "distribution": distribution,
        "seed": seed,
        "steps": steps,
        "modes": found.captured,
        "high_quality": 100 * found.high_quality,
        "reverse_kl": found.reverse_kl,
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
    print(f"\n{'':20}" + "".join(f"{head:>18}" for head in heads) + f"{'seconds a run':>15}")
    for label, numbers in PUBLISHED.items():
        print(f"{label + ', published':20}" + "".join(f"{number:>18}" for number in numbers))
    for name in RECIPES:
        if found := [record for record in records if record["recipe"] == name]:
            columns = (("modes", 1), ("high_quality", 1), ("reverse_kl", 4))
            cells = [cell(found, where, key, digits) for where in DISTRIBUTIONS for key, digits in columns]
            seconds = np.mean([record["seconds"] for record in found])
            print(f"{name:20}" + "".join(f"{text:>18}" for text in cells) + f"{seconds:15.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=["r3_gan", "gan"])
    parser.add_argument("--distributions", nargs="+", choices=DISTRIBUTIONS, default=list(DISTRIBUTIONS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--compile", choices=("auto", "yes", "no"), default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    compile = {"auto": "auto", "yes": True, "no": False}[options.compile]
    seeds = range(options.first, options.first + options.seeds)
    runs = [
        (name, distribution, seed, options.steps)
        for name in options.only
        for distribution in options.distributions
        for seed in seeds
    ]
    network = f"3 x {HIDDEN[0]} ReLU"
    print(f"{options.steps} steps of the generator, batch {BATCH}; {network} generator, z in the plane")
    print(f"{network} critic; that of r1_gan and r3_gan sees {FREQUENCIES} Fourier features")
    print(f"weights averaged at {AVERAGE}; learning rates fall to zero as a cosine")
    print(f"published: {PUBLISHED_BUDGET}")
    print(f"mean (standard error) over {options.seeds} seeds from {options.first} on", flush=True)
    line = (
        "{recipe:9} {distribution} seed {seed:3}: {modes:2} modes, {high_quality:5.1f} %, reverse KL {reverse_kl:.4f}, "
        "{seconds:.0f} s"
    )
    key = ("recipe", "distribution", "seed", "steps")
    run = partial(one, compile=compile)
    table(gather(run, runs, key, jobs=options.jobs, out=options.out, describe=line.format_map))


if __name__ == "__main__":
    main()
