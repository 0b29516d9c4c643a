"""Does progressive growing pay? GANs of images that all get the same time of one core.

growing      trained at 4 x 4 (7 x 7) pixels first, with each further scale faded in: Karras et al. 2018
fixed        the same networks at full size from the first step
multi-scale  fixed, with a critic that sees the image at all scales at once
pyramid      multi-scale, with a generator whose scales add up to the image, a Laplacian pyramid

All have the same widths, loss (Jensen-Shannon under R1, one critic step for each generator step), learning rates and
batches. The number of steps is what the time allows, computed from a few timed steps of each stage. All run eagerly,
since compiling takes a different share of each. Learning rates are constant and weights are averaged. The time is
processor time on one thread, so other work on the machine does not count.

The measure is that of the paper, section 5: the sliced Wasserstein-1 distance between patches of 7 x 7 pixels, at each
level of the Laplacian pyramids of draws and of held-out data, normalized by the data's own statistics, times 1000, with
as many draws as held-out images. The table also has precision and recall in pixels, and the same distance between two
halves of the data. Mean (standard error) over seeds. The settings are those of the recipe, with widths and a batch that
suit two cores.

    python tests/benchmarks/growing.py [--data digits fashion] [--minutes 3] [--seeds 3] [--first 0]
        [--only growing fixed ...] [--jobs 2] [--out FILE]

Fashion-MNIST's IDX files are looked for where `ppgen.data.load("fashion")` looks for them.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import gather

import ppgen
from ppgen import data as datasets
from ppgen import recipes
from ppgen.evaluation import coverage, pyramid_distance, pyramid_noise
from ppgen.fitting import TrainingStep
from ppgen.models import Generator
from ppgen.nets import growing_parts

DATA: dict[str, dict[str, Any]] = {
    "digits": {"source": "digits", "form": "unit", "validation": 0.0, "test": 0.5},
    "fashion": {"source": "fashion", "form": "unit", "validation": 0.0, "test": 0.1, "size": 20_000, "side": 32},
}
STAGES = {"digits": (1.0, 2.0), "fashion": (1.0, 1.0, 1.0, 2.0)}  # relative numbers of steps, as in the paper
DISTANCE = "jensen_shannon"
LATENTS, BATCH, RATE, EMA = 32, 16, 1e-3, 0.999
WIDTHS = {"digits": (32, 64), "fashion": (8, 16, 32, 64)}  # channels, the largest scale first
# the generator's network, whether the critic sees all scales, whether both networks grow
METHODS: dict[str, tuple[str, bool, bool]] = {
    "growing": ("growing", False, True),
    "fixed": ("growing", False, False),
    "multi-scale": ("growing", True, False),
    "pyramid": ("pyramid", True, False),
}
TIMED = 8  # steps of each stage that are timed before training


def build(name: str, event_shape: tuple[int, ...], method: str, seed: int) -> tuple[Generator, ppgen.Objective]:
    network, multi_scale, _ = METHODS[method]
    torch.manual_seed(seed)
    options = {"norm": "pixel", "activation": "leaky_relu", "network": network}
    model = Generator(event_shape, latent_dim=LATENTS, hidden=WIDTHS[name], **options)
    return model, recipes.progan(distance=DISTANCE, multi_scale=multi_scale, hidden=WIDTHS[name], lr=RATE)


def optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=RATE, betas=(0.0, 0.99))


def seconds_a_step(name: str, x: torch.Tensor, method: str) -> list[float]:
    """The seconds of a step at each stage of the method; those that fade in a scale are timed, as they cost more."""
    model, loss = build(name, tuple(x.shape[1:]), method, 0)
    svi = ppgen.SVI(model.model, model.guide, optimizer, loss, compile=False)
    svi.step(x[:BATCH])
    parts = growing_parts([model, *(terms[0].critic.network for terms in svi.critics.terms.values())])
    seconds = []
    for stage in range(parts[0].top + 1) if METHODS[method][2] else [parts[0].top]:
        for part in parts:
            part.grow(stage, fading=METHODS[method][2])
        svi.step(x[:BATCH])
        start = time.process_time()
        for _ in range(TIMED):
            svi.step(x[:BATCH])
        seconds.append((time.process_time() - start) / TIMED)
    return seconds


def time_limit(seconds: float) -> Callable[[TrainingStep], None]:
    """A callback that stops training after some seconds of processor time."""
    start = time.process_time()

    def callback(step: TrainingStep) -> None:
        if time.process_time() - start > seconds:
            step.stop("the time limit was reached")

    return callback


def one(name: str, method: str, seed: int, minutes: float) -> dict[str, Any]:
    torch.set_num_threads(1)
    data = datasets.load(seed=0, **DATA[name])
    x = torch.as_tensor(data.train.x)
    seconds = seconds_a_step(name, x, method)
    steps = int(60 * minutes / float(np.average(seconds, weights=STAGES[name] if METHODS[method][2] else None)))
    model, loss = build(name, data.event_shape, method, seed)
    start = time.process_time()
    fit = ppgen.fit(
        model.model,
        model.guide,
        x,
        loss=loss,
        optim=optimizer,
        steps=steps,
        batch_size=BATCH,
        ema=EMA,
        seed=seed,
        compile=False,
        growth=ppgen.ProgressiveGrowing(stages=STAGES[name]) if METHODS[method][2] else None,
        callbacks=[time_limit(63 * minutes)],
        progress=False,
    )
    spent = time.process_time() - start
    torch.manual_seed(seed)
    held_out = data.test.x
    draws = torch.cat([model.sample(500) for _ in range(math.ceil(len(held_out) / 500))])[: len(held_out)].numpy()
    distance = pyramid_distance(draws, held_out)
    levels = {level: 1e3 * value for level, value in distance.levels.items()}
    covered = coverage(held_out[:1000], draws[:1000])
    return {
        **{"data": name, "method": method, "seed": seed, "minutes": minutes},
        **{"steps": len(fit.history["loss"]), "planned": steps, "spent": spent / 60},
        **{"levels": levels, "mean": 1e3 * distance.mean, "precision": covered.precision, "recall": covered.recall},
    }


def table(records: list[dict[str, Any]], name: str) -> None:
    data = datasets.load(seed=0, **DATA[name])
    noise = pyramid_noise(data.test.x)
    levels = list(noise.levels)
    columns = [*levels, "mean", "precision", "recall"]
    print(f"\n{name:14}" + "".join(f"{column:>14}" for column in columns) + f"{'steps':>8}{'minutes':>9}")
    for method in METHODS:
        found = [record for record in records if record["method"] == method and record["data"] == name]
        if not found:
            continue
        cells = []
        for column in columns:
            values = np.array([record["levels"].get(column, record.get(column)) for record in found])
            places = 3 if column in ("precision", "recall") else 1
            error = f" ({values.std(ddof=1) / math.sqrt(len(values)):.{places}f})" if len(values) > 1 else ""
            cells.append(f"{values.mean():.{places}f}{error}")
        steps, minutes = (np.mean([record[key] for record in found]) for key in ("steps", "spent"))
        print(f"{method:14}" + "".join(f"{cell:>14}" for cell in cells) + f"{steps:8.0f}{minutes:9.1f}")
    halves = [*(1e3 * noise.levels[level] for level in levels), 1e3 * noise.mean]
    print(f"{'data, halves':14}" + "".join(f"{value:14.1f}" for value in halves))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runs = [
        (name, method, seed, options.minutes)
        for seed in range(options.first, options.first + options.seeds)
        for name in options.data
        for method in options.only
    ]
    line = "{data:8} {method:12} seed {seed:3}: {mean:6.1f}, {steps} of {planned} steps, {spent:.1f} min"
    key = ("data", "method", "seed", "minutes")
    records = gather(one, runs, key, jobs=options.jobs, out=options.out, describe=line.format_map)
    for name in options.data:
        table(records, name)


if __name__ == "__main__":
    main()
