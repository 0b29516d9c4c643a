"""Modes captured by games, beside the table of PacGAN: a ring of 8 Gaussians and a grid of 25, over seeds.

2500 rows are generated. A row belongs to the nearest mean and is of high quality within 3 sigma of it; a mode counts
with one row of high quality; reverse KL = KL(frequencies of modes among all rows, uniform), in nats. Exact samples have
98.9 % and, by their finite number alone, about (K - 1) / 5000 nats: .0014 on the ring, .0048 on the grid.

All games have the same generator, data and budget. They differ in the recipe, its rates and the critic: in r1_gan and
r3_gan it sees, beside the data, the sines and cosines of random directions of the data (Rahimi & Recht 2007; Tancik et
al. 2020), since under their penalty a plain dense network learns 25 narrow modes very slowly. In the others it is the
plain one: with waves the GAN fell to four modes or fewer, and it does better without. The data are scaled to a standard
deviation of one, as `ppgen.data.load` does, and the generated rows scaled back. Settings were chosen on seeds from 100
on and, the rate of r3_gan, on seed 22 of the grid; its seeds from 30 on were not looked at before.

    python tests/benchmarks/modes.py [--seeds 10] [--only r3_gan gan] [--laws ring grid] [--jobs 2] [--steps 20000]
        [--first 0] [--compile auto] [--out FILE]

Each run is a line of FILE; runs that it holds already are not run again, so a broken-off table can be completed. It is
of one setting: give another FILE after a change.
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

LAWS = {"ring": "gaussians_ring", "grid": "gaussians_grid"}
BATCH, ROWS = 128, 2500
SIZE = 781 * BATCH
LATENT, HIDDEN = 2, (64, 64, 64)
FREQUENCIES, SPREAD = 64, 5.0  # of the critic's waves: how many, and their standard deviation in radians a unit
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
WAVES = partial(PLAIN, frequencies=FREQUENCIES, spread=SPREAD)


@dataclass(frozen=True)
class Row:
    """A game: its recipe and options, the rate and betas of both players, its critic, and the model where another."""

    recipe: Callable[..., ppgen.Objective]
    lr: float
    options: dict[str, Any] = field(default_factory=dict)
    betas: tuple[float, float] = (0.5, 0.99)
    critic: Callable[..., nn.Module] = PLAIN
    model: Callable[..., Any] = models.Generator


GAMES = {
    "gan": Row(recipes.gan, lr=1e-3),
    "pacgan_2": Row(recipes.gan, lr=1e-3, options={"packing": 2}),
    "pacgan_4": Row(recipes.gan, lr=1e-3, options={"packing": 4}),
    "ali": Row(recipes.ali, lr=1e-3, model=models.ALI),
    "wgan_gp": Row(recipes.wgan_gp, lr=1e-3, options={"weight": 0.1}),
    "r1_gan": Row(recipes.r1_gan, lr=2e-3, options={"weight": 0.1}, betas=(0.0, 0.999), critic=WAVES),
    "r3_gan": Row(recipes.r3_gan, lr=2e-3, options={"weight": 0.1}, betas=(0.0, 0.999), critic=WAVES),
}


def one(name: str, distribution: str, seed: int, steps: int, compile: Any) -> dict[str, Any]:
    """One run, as a record."""
    torch.set_num_threads(1)
    game = GAMES[name]
    known = data.modes(LAWS[distribution])
    assert known is not None
    sample = data.load(LAWS[distribution], size=SIZE, scale="standard", validation=0, test=0, seed=seed)
    torch.manual_seed(seed)
    program = game.model((2,), latent_dim=LATENT, hidden=HIDDEN, activation="relu")
    start = time.perf_counter()
    ppgen.fit(
        program.model,
        program.guide,
        sample.train.x,
        loss=game.recipe(game.critic, lr=game.lr, betas=game.betas, **game.options),
        optim=partial(torch.optim.Adam, lr=game.lr, betas=game.betas),
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
        "game": name,
        "distribution": distribution,
        "seed": seed,
        "steps": steps,
        "modes": found.captured,
        "high_quality": 100 * found.high_quality,
        "reverse_kl": found.reverse_kl,
        "seconds": seconds,
    }


def cell(records: list[dict[str, Any]], distribution: str, what: str, digits: int) -> str:
    """Mean (standard error)."""
    numbers = np.array([record[what] for record in records if record["distribution"] == distribution])
    if len(numbers) == 0:
        return ""
    text = f"{numbers.mean():.{digits}f}"
    return text if len(numbers) == 1 else f"{text} ({numbers.std(ddof=1) / math.sqrt(len(numbers)):.{digits}f})"


def table(records: list[dict[str, Any]]) -> None:
    heads = (
        f"{distribution} {what}"
        for distribution, total in (("ring", 8), ("grid", 25))
        for what in (f"of {total}", "hq %", "rev KL")
    )
    print(f"\n{'':16}" + "".join(f"{head:>17}" for head in heads) + f"{'seconds a run':>15}")
    for label, numbers in PUBLISHED.items():
        print(f"{label + ', theirs':16}" + "".join(f"{number:>17}" for number in numbers))
    for name in GAMES:
        if of_game := [record for record in records if record["game"] == name]:
            columns = (("modes", 1), ("high_quality", 1), ("reverse_kl", 4))
            cells = [cell(of_game, distribution, what, digits) for distribution in LAWS for what, digits in columns]
            seconds = np.mean([record["seconds"] for record in of_game])
            print(f"{name:16}" + "".join(f"{text:>17}" for text in cells) + f"{seconds:15.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", nargs="+", choices=GAMES, default=["r3_gan", "gan"])
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=list(LAWS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--compile", choices=("auto", "yes", "no"), default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    compile = {"auto": "auto", "yes": True, "no": False}[options.compile]
    seeds = range(options.first, options.first + options.seeds)
    wanted = [
        (name, distribution, seed, options.steps)
        for name in options.only
        for distribution in options.distributions
        for seed in seeds
    ]
    network = f"3 x {HIDDEN[0]} ReLU"
    print(f"{options.steps} steps of the generator, batch {BATCH}; {network} generator, z in the plane")
    print(f"{network} critic, of r1_gan and r3_gan on {FREQUENCIES} waves")
    print(f"weights averaged at {AVERAGE}; rates fall to zero as a cosine")
    print(f"theirs: {PUBLISHED_BUDGET}")
    print(f"mean (standard error) over {options.seeds} seeds from {options.first} on", flush=True)
    told = (
        "{game:9} {law} seed {seed:3}: {modes:2} modes, {high_quality:5.1f} %, reverse KL {reverse_kl:.4f}, "
        "{seconds:.0f} s"
    ).format_map
    key = ("game", "distribution", "seed", "steps")
    table(gather(partial(one, compile=compile), wanted, key, jobs=options.jobs, out=options.out, told=told))


if __name__ == "__main__":
    main()
