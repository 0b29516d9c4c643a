"""Held-out log-likelihood and time of a step: our spline flow beside those of zuko, nflows and normflows.

Each flow has three autoregressive layers of rational quadratic splines, with 8 bins on [-5, 5] and networks of two
hidden layers of 64; the order of the columns is reversed between layers. All train by Adam with one learning rate, for
the same number of steps, on the same batches. Tables are split by ten-fold cross-validation. Toy distributions are
sampled again for each fold, 2000 rows for training and 2000 for evaluation. Columns are standardized by the mean and
standard deviation of the training rows. Held-out rows are scored at the end of training; no weights are selected.

Log-likelihoods are in nats per datum: mean (standard error) over folds. Milliseconds a step are medians, of ppgen
compiled and eager.

    pip install nflows normflows
    python tests/benchmarks/flows.py [--data moons ...] [--folds 10] [--steps 1000] [--only ppgen zuko ...]
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyro
import torch
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.model_selection import KFold
from torch import Tensor, nn

import ppgen
from ppgen.data import toy
from ppgen.flows.zuko import flows as zuko_flows
from ppgen.models import FlowModel

LAYERS, HIDDEN, BINS, BOUND = 3, 64, 8, 5.0
BATCH, RATE, ROWS = 256, 1e-3, 2000
TABLES: dict[str, Callable[..., Any]] = {"wine": load_wine, "cancer": load_breast_cancer}
TOYS = ("moons", "checkerboard", "pinwheel")

Score = Callable[[Tensor], Tensor]


def zuko(dim: int) -> tuple[nn.Module, Score]:
    flow = zuko_flows.NSF(dim, transforms=LAYERS, bins=BINS, hidden_features=(HIDDEN, HIDDEN), activation=nn.SiLU)
    return flow, lambda x: flow().log_prob(x)


def nflows(dim: int) -> tuple[nn.Module, Score]:
    from nflows import distributions, flows, transforms

    maps: list[nn.Module] = []
    for layer in range(LAYERS):
        maps += [transforms.ReversePermutation(dim)] if layer else []
        maps.append(
            transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                features=dim,
                hidden_features=HIDDEN,
                num_bins=BINS,
                tails="linear",
                tail_bound=BOUND,
                num_blocks=2,
                use_residual_blocks=False,
                activation=nn.functional.silu,
            )
        )
    flow = flows.Flow(transforms.CompositeTransform(maps), distributions.StandardNormal([dim]))
    return flow, flow.log_prob


def normflows(dim: int) -> tuple[nn.Module, Score]:
    import normflows as nf

    maps: list[nn.Module] = []
    for layer in range(LAYERS):
        maps += [nf.flows.Permute(dim, mode="swap")] if layer else []
        maps.append(nf.flows.AutoregressiveRationalQuadraticSpline(dim, 2, HIDDEN, num_bins=BINS, tail_bound=BOUND))
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(dim, trainable=False), maps)
    return flow, flow.log_prob


Peer = Callable[[int], tuple[nn.Module, Score]]
PEERS: dict[str, Peer] = {"zuko": zuko, "nflows": nflows, "normflows": normflows}
FLOWS = ["ppgen", "ppgen eager", *PEERS]


def train_torch(make: Peer, x: Tensor, steps: int, seed: int) -> tuple[Score, float]:
    """Trains in a plain torch loop; returns the score and the median milliseconds of a step."""
    flow, score = make(x.shape[1])
    optim, seconds = torch.optim.Adam(flow.parameters(), lr=RATE), []
    for rows in batches(len(x), steps, seed):
        start = time.perf_counter()
        optim.zero_grad(set_to_none=True)
        (-score(x[rows]).mean()).backward()
        optim.step()
        seconds.append(time.perf_counter() - start)
    return score, 1e3 * statistics.median(seconds)


def train_ppgen(x: Tensor, steps: int, seed: int, *, compile: bool) -> tuple[Score, float]:
    pyro.clear_param_store()
    model = FlowModel(x.shape[1:], flow="nsf_autoregressive", layers=LAYERS, hidden=(HIDDEN, HIDDEN))
    optim = partial(torch.optim.Adam, lr=RATE)
    svi = ppgen.SVI(model.model, model.guide, optim, ppgen.ELBO(), compile=compile)
    seconds = []
    for rows in batches(len(x), steps, seed):
        start = time.perf_counter()
        svi.step(x[rows])
        seconds.append(time.perf_counter() - start)
    return model.log_prob, 1e3 * statistics.median(seconds)


def batches(rows: int, steps: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.choice(rows, min(BATCH, rows), replace=False) for _ in range(steps)]


def splits(name: str, folds: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs of training rows and held-out rows, standardized by the training rows."""
    if name in TABLES:
        x = TABLES[name]().data
        pairs = [(x[train], x[test]) for train, test in KFold(10, shuffle=True, random_state=0).split(x)][:folds]
    else:
        draw = getattr(toy, name)
        pairs = [tuple(np.split(draw(2 * ROWS, seed=seed)[0], 2)) for seed in range(folds)]
    standardized = []
    for train, test in pairs:
        mean, scale = train.mean(0), train.std(0)
        parts = ((rows - mean) / scale for rows in (train, test))
        standardized.append(tuple(torch.as_tensor(part, dtype=torch.float32) for part in parts))
    return standardized


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[*TOYS, *TABLES], choices=[*TOYS, *TABLES])
    parser.add_argument("--only", nargs="+", default=FLOWS, choices=FLOWS)
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.steps} steps of batch {BATCH}, Adam at {RATE}, {options.folds} folds, one thread")
    installed = [flow for flow in options.only if flow not in PEERS or find_spec(flow)]
    for flow in set(options.only) - set(installed):
        print(f"left out: {flow} (not installed)")
    print("| data | flow | log-likelihood | minus zuko's | ms a step |\n|---|---|---|---|---|")
    for name in options.data:
        pairs, found = splits(name, options.folds), {}
        for flow in installed:
            scores, times = [], []
            for fold, (train, test) in enumerate(pairs):
                torch.manual_seed(fold)
                if flow in PEERS:
                    score, ms = train_torch(PEERS[flow], train, options.steps, fold)
                else:
                    score, ms = train_ppgen(train, options.steps, fold, compile=flow == "ppgen")
                with torch.no_grad():
                    scores.append(float(score(test).mean()))
                times.append(ms)
            found[flow] = np.array(scores), statistics.median(times)
        for flow, (scores, ms) in found.items():
            difference = mean_and_error(scores - found["zuko"][0]) if "zuko" in found else ""
            print(f"| {name} | {flow} | {mean_and_error(scores)} | {difference} | {ms:.2f} |", flush=True)


def mean_and_error(values: np.ndarray) -> str:
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{values.mean():.3f} ({error:.3f})"


if __name__ == "__main__":
    main()
