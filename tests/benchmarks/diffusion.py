"""Diffusion beside other models of scikit-learn's digits (1 x 8 x 8, 17 levels), and its sampler beside azula's.

Digits: as many steps of Adam for each; held out are 20%, another split by each seed. As many draws as held-out rows.
C2ST: held-out accuracy of a multilayer perceptron between draws and held-out rows, 0.5 where they cannot be told apart.
Precision and recall by 5 nearest neighbors (Kynkäänniemi et al. 2019). Bits per dimension of held-out rows: of levels,
an upper bound; of a diffusion by its probability-flow ODE (a draw of z_0 a row), of the VAE by 500 importance samples
of its categorical likelihood. Data beside data are the first line. Mean (standard error) over seeds.

Sampling: 10,000 points of the plane by Heun's method with 18 levels, the same trained network in ppgen and in azula.

    python tests/benchmarks/diffusion.py [--seeds 3] [--first 0] [--only edm ...] [--steps 3000] [--jobs 1]
        [--no-sampling]
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ppgen
from ppgen import recipes
from ppgen.data import Data, load
from ppgen.evaluation import classifier_test, coverage
from ppgen.models import VAE, Diffusion, FlowMatching, FlowModel, Generator

BATCH, LEVELS = 128, 17
STEPS = (5, 18, 100)
UNET = {"hidden": (32, 64)}


def of_levels(data: Data, split: str) -> Tensor:
    return torch.as_tensor(getattr(data, split).x)


def trained(model: Any, loss: Any, data: Data, options: argparse.Namespace, seed: int, **how: Any) -> Any:
    """The model, trained, its averaged weights in place."""
    adam = partial(torch.optim.Adam, lr=how.pop("lr", 1e-3), betas=how.pop("betas", (0.9, 0.999)))
    ppgen.fit(
        *(model.model, model.guide, how.pop("rows", of_levels(data, "train"))),
        loss=loss,
        optim=adam,
        steps=options.steps,
        batch_size=BATCH,
        lr_scheduler="cosine",
        seed=seed,
        progress=False,
        **how,
    )
    return model.eval()


Drawn = Iterator[tuple[str, Tensor, Tensor | None]]  # how, draws as levels, log P of held-out rows


def by_diffusion(make: Callable[[], Any], loss: Callable[[], Any], data: Data, options: Any, seed: int) -> Drawn:
    model, held_out = trained(make(), loss(), data, options, seed, ema=0.999), of_levels(data, "test")
    log_prob = model.log_prob(held_out)
    for steps in STEPS:
        yield f"{steps} steps", model.sample(len(held_out), steps=steps), log_prob if steps == STEPS[0] else None


def by_flow(data: Data, options: Any, seed: int) -> Drawn:
    model = FlowModel((1, 8, 8), flow="nsf", layers=4, levels=LEVELS)
    validation = {"validation": of_levels(data, "validation"), "patience": 100}
    model = trained(model, recipes.flow_kl(), data, options, seed, lr=5e-3, **validation)
    held_out = of_levels(data, "test")
    yield "", model.sample(len(held_out)), model.log_prob(held_out)


def by_vae(data: Data, options: Any, seed: int) -> Drawn:
    model = VAE((1, 8, 8), network="convolutional", likelihood="categorical", levels=LEVELS, latent_dim=16)
    validation = {"validation": of_levels(data, "validation"), "patience": 100}
    model = trained(model, recipes.vae(), data, options, seed, **validation)
    held_out = of_levels(data, "test")
    with torch.no_grad():
        log_prob = model.log_evidence(held_out, particles=500)
    yield "", model.sample(len(held_out)), log_prob


def by_gan(data: Data, options: Any, seed: int) -> Drawn:
    model = Generator((1, 8, 8), network="convolutional", latent_dim=32)
    rows = 2 * of_levels(data, "train") / (LEVELS - 1) - 1.0
    how = {"rows": rows, "lr": 5e-4, "betas": (0.5, 0.99), "ema": 0.999}
    model = trained(model, recipes.r3_gan(lr=5e-4, betas=(0.5, 0.99)), data, options, seed, **how)
    x = model.sample(len(data.test.x))
    yield "", ((x + 1) / 2 * (LEVELS - 1)).round().clamp(0, LEVELS - 1).long(), None


def by_data(data: Data, options: Any, seed: int) -> Drawn:
    yield "", of_levels(data, "train")[: len(data.test.x)], None


def chain(**options: Any) -> Callable[[], Diffusion]:
    return partial(Diffusion, (1, 8, 8), levels=LEVELS, **UNET, **options)


WAYS: dict[str, Callable[[Data, Any, int], Drawn]] = {
    "data": by_data,
    "vae": by_vae,
    "r3_gan": by_gan,
    "nsf": by_flow,
    "ddpm": partial(by_diffusion, chain(schedule="linear", prediction_type="noise"), recipes.ddpm),
    "edm": partial(by_diffusion, chain(schedule="karras"), recipes.edm),
    "vdm": partial(by_diffusion, chain(variance="learned"), recipes.vdm),
    "ot_fm": partial(by_diffusion, partial(FlowMatching, (1, 8, 8), levels=LEVELS, **UNET), recipes.flow_matching),
}


def one(way: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data, start, records = load("digits", form="levels", seed=seed), time.perf_counter(), []
    held_out = np.asarray(data.test.x, dtype=float)
    scale = held_out.std()
    for how, draws, log_prob in WAYS[way](data, options, seed):
        x, y = held_out / scale, draws.numpy().astype(float) / scale
        found = coverage(x, y)
        records.append(
            {
                "way": f"{way}, {how}" if how else way,
                "C2ST": classifier_test(x, y, classifier="mlp", seed=seed).statistic,
                "precision": found.precision,
                "recall": found.recall,
                "bits": math.nan if log_prob is None else -float(log_prob.double().mean()) / (64 * math.log(2)),
                "seconds": time.perf_counter() - start,
            }
        )
    return records


def sampling(repeats: int = 5) -> None:
    """The time of 10,000 points by 18 levels, here and in azula, with one network."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VPSchedule
    from azula.sample import HeunSampler

    torch.manual_seed(0)
    x = torch.as_tensor(load("moons").train.x, dtype=torch.float32)
    model = Diffusion((2,), hidden=(128, 128, 128))
    ppgen.fit(model.model, model.guide, x, loss=recipes.edm(), steps=500, batch_size=256, progress=False, compile=False)
    model.eval()

    class Theirs(Denoiser):
        """The same network behind azula's interface."""

        def __init__(self) -> None:
            super().__init__()
            self.schedule = VPSchedule()

        def forward(self, z: Tensor, t: Tensor, **_: Any) -> DiracPosterior:
            a, s = self.schedule(t)
            level = ppgen.diffusion.NoiseLevel(a, s, 2 * (a / s).log())
            return DiracPosterior(model.denoiser(z, level))

    sampler = HeunSampler(Theirs(), steps=18, silent=True)
    z = torch.randn(10_000, 2)
    ways = {"ppgen": lambda: model.sample(10_000, sampler="heun", steps=18), "azula": lambda: sampler(z)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, draw in ways.items():
            start = time.perf_counter()
            with torch.no_grad():
                draw()
            times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(of_way)) for name, of_way in times.items()}
    print(f"\n10,000 points of the plane, Heun, 18 levels, one core: median of {repeats}")
    for name, median in medians.items():
        print(f"{name:8}{1000 * median:8.0f} ms{median / medians['ppgen']:8.2f} x")


def cell(name: str, mean: float, error: float) -> str:
    if math.isnan(mean):
        return ""
    digits = f"{mean:.0f}" if name == "seconds" else f"{mean:.3f}"
    return digits if math.isnan(error) or name == "seconds" else f"{digits} ({error:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--sampling", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.sampling:
        sampling()
    seeds, records = range(options.first, options.first + options.seeds), []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(one, way, seed, options) for way in options.only for seed in seeds]
        for run in as_completed(runs):
            for record in run.result():
                print("{way:18} C2ST {C2ST:.3f}, bits {bits:.3f}, {seconds:.0f} s".format(**record), flush=True)
                records.append(record)
    if not records:
        return
    print(f"\ndigits: {options.steps} steps of {BATCH} rows, seeds {seeds[0]} to {seeds[-1]}, one core a run\n")
    columns = ("C2ST", "precision", "recall", "bits", "seconds")
    print("| | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    order = sorted(
        {record["way"] for record in records}, key=lambda way: (list(WAYS).index(way.split(",")[0]), len(way), way)
    )
    for way in order:
        rows = np.array([[record[column] for column in columns] for record in records if record["way"] == way])
        errors = rows.std(0, ddof=1) / math.sqrt(len(rows)) if len(rows) > 1 else np.full(len(columns), math.nan)
        cells = [cell(name, mean, error) for name, mean, error in zip(columns, rows.mean(0), errors, strict=True)]
        print(f"| {way} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
