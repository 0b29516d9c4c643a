"""Held-out log-likelihood, in nats per datum, and time a step: our spline flow beside zuko's, nflows' and normflows'.

All are three autoregressions of rational quadratic splines, 8 bins on [-5, 5], networks of two hidden layers of 64, an
order that is turned round between them, under Adam at one rate for as many steps on the same batches. Tables are
cross-validated in tenths, toy laws drawn anew for each fold, 2000 rows to learn from and 2000 to judge by; columns are
brought to mean 0 and deviation 1 by the rows learned from. What is held out is scored at the end of the run, and no
weights are picked. Mean (standard error) over folds; milliseconds a step are medians, ours compiled or not.

    pip install nflows normflows
    python tests/benchmarks/flows.py [--data moons ...] [--folds 10] [--steps 1000] [--only ppgen zuko ...]
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
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


PEERS = {"zuko": zuko, "nflows": nflows, "normflows": normflows}


def by_hand(make: Callable[[int], tuple[nn.Module, Score]], x: Tensor, steps: int, seed: int) -> tuple[Score, float]:
    """A loop of torch; returns the score and the median milliseconds of a step."""
    flow, score = make(x.shape[1])
    optim, seconds = torch.optim.Adam(flow.parameters(), lr=RATE), []
    for rows in batches(len(x), steps, seed):
        start = time.perf_counter()
        optim.zero_grad(set_to_none=True)
        (-score(x[rows]).mean()).backward()
        optim.step()
        seconds.append(time.perf_counter() - start)
    return score, 1e3 * statistics.median(seconds)


def by_ppgen(x: Tensor, steps: int, seed: int, *, compile: bool) -> tuple[Score, float]:
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
    """Rows to learn from and rows to judge by, brought to one scale."""
    if name in TABLES:
        x = TABLES[name]().data
        pairs = [(x[a], x[b]) for a, b in KFold(10, shuffle=True, random_state=0).split(x)][:folds]
    else:
        draw = getattr(toy, name)
        pairs = [tuple(np.split(draw(2 * ROWS, seed=seed)[0], 2)) for seed in range(folds)]
    made = []
    for learned, judged in pairs:
        mean, scale = learned.mean(0), learned.std(0)
        parts = ((rows - mean) / scale for rows in (learned, judged))
        made.append(tuple(torch.as_tensor(part, dtype=torch.float32) for part in parts))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[*TOYS, *TABLES], choices=[*TOYS, *TABLES])
    parser.add_argument("--only", nargs="+", default=["ppgen", "ppgen eager", *PEERS])
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=1000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{given.steps} steps of batch {BATCH}, Adam at {RATE}, {given.folds} folds, {torch.get_num_threads()} thread"
    )
    print("| data | flow | log-likelihood | less zuko's | ms a step |\n|---|---|---|---|---|")
    for name in given.data:
        pairs, found = splits(name, given.folds), {}
        for which in given.only:
            scores, times = [], []
            for fold, (learned, judged) in enumerate(pairs):
                torch.manual_seed(fold)
                if which in PEERS:
                    score, ms = by_hand(PEERS[which], learned, given.steps, fold)
                else:
                    score, ms = by_ppgen(learned, given.steps, fold, compile=which == "ppgen")
                with torch.no_grad():
                    scores.append(float(score(judged).mean()))
                times.append(ms)
            found[which] = np.array(scores), statistics.median(times)
        for which, (scores, ms) in found.items():
            beside = told(scores - found["zuko"][0]) if "zuko" in found else ""
            print(f"| {name} | {which} | {told(scores)} | {beside} | {ms:.2f} |", flush=True)


def told(values: np.ndarray) -> str:
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{values.mean():.3f} ({error:.3f})"


if __name__ == "__main__":
    main()
