"""Diffusion beside other models of scikit-learn's digits (1 x 8 x 8, 17 levels), and its sampler beside azula's.

Digits: each model gets the same number of Adam steps; 20% of the rows are held out, in a different split for each seed,
and compared with as many draws. C2ST is the held-out accuracy of a multilayer perceptron that separates draws from
held-out rows, 0.5 if they cannot be distinguished. Precision and recall are those by 5 nearest neighbors (Kynkäänniemi
et al. 2019). Bits per dimension are of held-out rows. They bound those of the levels from above: a diffusion's are from
its probability-flow ODE (with one draw of z_0 for each row), the VAE's from 500 importance samples of its categorical
likelihood. The first line compares training rows with held-out rows. Mean (standard error) over seeds.

Sampling: 10,000 points of the plane by Heun's method with 18 levels, from the same trained network in ppgen and azula.

    python tests/benchmarks/diffusion.py [--seeds 3] [--first 0] [--only edm ...] [--steps 3000] [--jobs 1]
        [--no-sampling]

`--only` without a name runs the sampling alone.
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


def levels_of(data: Data, split: str) -> Tensor:
    return torch.as_tensor(getattr(data, split).x)


def train(model: Any, loss: Any, data: Data, options: argparse.Namespace, seed: int, **settings: Any) -> Any:
    """Trains the model and returns it with its final (averaged) weights."""
    adam = partial(torch.optim.Adam, lr=settings.pop("lr", 1e-3), betas=settings.pop("betas", (0.9, 0.999)))
    ppgen.fit(
        *(model.model, model.guide, settings.pop("rows", levels_of(data, "train"))),
        loss=loss,
        optim=adam,
        steps=options.steps,
        batch_size=BATCH,
        lr_scheduler="cosine",
        seed=seed,
        progress=False,
        **settings,
    )
    return model.eval()


Draws = Iterator[tuple[str, Tensor, Tensor | None]]  # the sampler, draws as levels, log P of held-out rows


def by_diffusion(make: Callable[[], Any], loss: Callable[[], Any], data: Data, options: Any, seed: int) -> Draws:
    model, held_out = train(make(), loss(), data, options, seed, ema=0.999), levels_of(data, "test")
    log_prob = model.log_prob(held_out)
    for steps in STEPS:
        yield f"{steps} steps", model.sample(len(held_out), steps=steps), log_prob if steps == STEPS[0] else None


def by_flow(data: Data, options: Any, seed: int) -> Draws:
    model = FlowModel((1, 8, 8), flow="nsf", layers=4, levels=LEVELS)
    validation = {"validation": levels_of(data, "validation"), "patience": 100}
    model = train(model, recipes.flow_kl(), data, options, seed, lr=5e-3, **validation)
    held_out = levels_of(data, "test")
    yield "", model.sample(len(held_out)), model.log_prob(held_out)


def by_vae(data: Data, options: Any, seed: int) -> Draws:
    model = VAE((1, 8, 8), network="convolutional", likelihood="categorical", levels=LEVELS, latent_dim=16)
    validation = {"validation": levels_of(data, "validation"), "patience": 100}
    model = train(model, recipes.vae(), data, options, seed, **validation)
    held_out = levels_of(data, "test")
    with torch.no_grad():
        log_prob = model.log_evidence(held_out, particles=500)
    yield "", model.sample(len(held_out)), log_prob


def by_gan(data: Data, options: Any, seed: int) -> Draws:
    model = Generator((1, 8, 8), network="convolutional", latent_dim=32)
    rows = 2 * levels_of(data, "train") / (LEVELS - 1) - 1.0
    settings = {"rows": rows, "lr": 5e-4, "betas": (0.5, 0.99), "ema": 0.999}
    model = train(model, recipes.r3_gan(lr=5e-4, betas=(0.5, 0.99)), data, options, seed, **settings)
    x = model.sample(len(data.test.x))
    yield "", ((x + 1) / 2 * (LEVELS - 1)).round().clamp(0, LEVELS - 1).long(), None


def by_data(data: Data, options: Any, seed: int) -> Draws:
    yield "", levels_of(data, "train")[: len(data.test.x)], None


def diffusion(**options: Any) -> Callable[[], Diffusion]:
    return partial(Diffusion, (1, 8, 8), levels=LEVELS, **UNET, **options)


METHODS: dict[str, Callable[[Data, Any, int], Draws]] = {
    "data": by_data,
    "vae": by_vae,
    "r3_gan": by_gan,
    "nsf": by_flow,
    "ddpm": partial(by_diffusion, diffusion(schedule="linear", prediction_type="noise"), recipes.ddpm),
    "edm": partial(by_diffusion, diffusion(schedule="karras"), recipes.edm),
    "vdm": partial(by_diffusion, diffusion(variance="learned"), recipes.vdm),
    "ot_fm": partial(by_diffusion, partial(FlowMatching, (1, 8, 8), levels=LEVELS, **UNET), recipes.flow_matching),
}


def one(method: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data, start, records = load("digits", form="levels", seed=seed), time.perf_counter(), []
    held_out = np.asarray(data.test.x, dtype=float)
    scale = held_out.std()
    for sampler, draws, log_prob in METHODS[method](data, options, seed):
        x, y = held_out / scale, draws.numpy().astype(float) / scale
        found = coverage(x, y)
        records.append(
            {
                "method": f"{method}, {sampler}" if sampler else method,
                "C2ST": classifier_test(x, y, classifier="mlp", seed=seed).statistic,
                "precision": found.precision,
                "recall": found.recall,
                "bits": math.nan if log_prob is None else -float(log_prob.double().mean()) / (64 * math.log(2)),
                "seconds": time.perf_counter() - start,
            }
        )
    return records


def sampling(repeats: int = 5) -> None:
    """Prints the time of 10,000 draws with 18 levels in ppgen and in azula, from one network."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VPSchedule
    from azula.sample import HeunSampler

    torch.manual_seed(0)
    x = torch.as_tensor(load("moons").train.x, dtype=torch.float32)
    model = Diffusion((2,), hidden=(128, 128, 128))
    ppgen.fit(model.model, model.guide, x, loss=recipes.edm(), steps=500, batch_size=256, progress=False, compile=False)
    model.eval()

    class AzulaDenoiser(Denoiser):
        """The same network with azula's interface."""

        def __init__(self) -> None:
            super().__init__()
            self.schedule = VPSchedule()

        def forward(self, z: Tensor, t: Tensor, **_: Any) -> DiracPosterior:
            a, s = self.schedule(t)
            level = ppgen.diffusion.NoiseLevel(a, s, 2 * (a / s).log())
            return DiracPosterior(model.denoiser(z, level))

    sampler = HeunSampler(AzulaDenoiser(), steps=18, silent=True)
    z = torch.randn(10_000, 2)
    samplers = {"ppgen": lambda: model.sample(10_000, sampler="heun", steps=18), "azula": lambda: sampler(z)}
    times: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(repeats):
        for name, draw in samplers.items():
            start = time.perf_counter()
            with torch.no_grad():
                draw()
            times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(seconds)) for name, seconds in times.items()}
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
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--sampling", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.sampling:
        try:
            sampling()
        except ImportError as error:
            print(f"left out: sampling beside azula ({error})")
    seeds, records = range(options.first, options.first + options.seeds), []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(one, method, seed, options) for method in options.only for seed in seeds]
        for run in as_completed(runs):
            for record in run.result():
                print("{method:18} C2ST {C2ST:.3f}, bits {bits:.3f}, {seconds:.0f} s".format(**record), flush=True)
                records.append(record)
    if not records:
        return
    print(f"\ndigits: {options.steps} steps of {BATCH} rows, seeds {seeds[0]} to {seeds[-1]}, one core a run\n")
    columns = ("C2ST", "precision", "recall", "bits", "seconds")
    print("| | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    order = sorted(
        {record["method"] for record in records},
        key=lambda method: (list(METHODS).index(method.split(",")[0]), len(method), method),
    )
    for method in order:
        rows = np.array([[record[column] for column in columns] for record in records if record["method"] == method])
        errors = rows.std(0, ddof=1) / math.sqrt(len(rows)) if len(rows) > 1 else np.full(len(columns), math.nan)
        cells = [cell(name, mean, error) for name, mean, error in zip(columns, rows.mean(0), errors, strict=True)]
        print(f"| {method} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
