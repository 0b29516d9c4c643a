"""Flow matching from 8 Gaussians to two moons, with independent pairs or pairs by optimal transport, over seeds.

Both distributions are those of torchcfm, which the published numbers use. The Gaussians have covariance .1^(1/2) I and
means at a distance of 5 from the origin. The moons are torchdyn's, times 3, minus 1; their angles are evenly spaced,
and their noise is one number of U(0, .2) for both coordinates. Results are the squared 2-Wasserstein distance (POT,
exact) between 10,000 points of the moons and as many transported Gaussian draws, by one Euler step and by dopri5 at a
tolerance of 1e-4. Two samples of the moons are at a distance of .001.

Pairs are coupled --pairs at a time and then split into batches. The published runs have a residual network of width
128 and depth 3, four times as wide inside its blocks, and 20,000 steps of Adam at 3e-4 on batches of 256, with 1024
pairs coupled at a time. Ours is `ppgen.nets.ResidualDense` with 3 blocks of width 128. Milliseconds a step are printed
for coupling and for training separately.

    python tests/benchmarks/flow_matching.py [--seeds 10] [--first 1] [--only independent exact] [--steps 20000]
        [--batch 256] [--pairs 1024] [--schedule cosine]
"""

import argparse
import math
import sys
import time
from functools import partial

import numpy as np
import ot
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

import ppgen
from ppgen.diffusion import couple
from ppgen.models import FlowMatching

POINTS = 10_000
WARM_UP = 10  # steps that are not timed, since one of them compiles
PUBLISHED = {"independent": (6.232, 0.120), "exact": (0.072, 0.050)}  # Cheng & Schwing 2025


def eight_gaussians() -> dist.TorchDistribution:
    angle = torch.arange(8) * (math.pi / 4)
    modes = dist.Normal(5 * torch.stack([angle.cos(), angle.sin()], 1), 0.1**0.25).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(8)), modes)


def moons(n: int) -> Tensor:
    outer, inner = (torch.linspace(0, math.pi, half) for half in (n // 2, n - n // 2))
    arcs = [torch.stack([outer.cos(), outer.sin()], 1), torch.stack([1 - inner.cos(), 0.5 - inner.sin()], 1)]
    return 3 * (torch.cat(arcs) + 0.2 * torch.rand(n, 1))[torch.randperm(n)] - 1


def distance(x: Tensor, y: Tensor) -> float:
    """The squared 2-Wasserstein distance of two samples of equal size."""
    return float(ot.emd2([], [], ot.dist(x.double().numpy(), y.double().numpy()), numItermax=10**8))


def one(coupling: str, seed: int, options: argparse.Namespace) -> tuple[float, ...]:
    """Returns W_2^2 by one Euler step and by dopri5, and the milliseconds a step of coupling and of training."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    base = eight_gaussians()
    flow = FlowMatching((2,), base=base, hidden=(128,) * 3)
    decay = partial(CosineAnnealingLR, T_max=options.steps) if options.schedule == "cosine" else None
    adam = partial(torch.optim.Adam, lr=3e-4)
    svi = ppgen.SVI(flow.model, flow.guide, adam, ppgen.ELBO(), lr_scheduler=decay, compile=True, steps=options.steps)
    coupling_seconds = training_seconds = 0.0
    for step in range(options.steps):
        part = step % (options.pairs // options.batch)
        start = time.perf_counter()
        if part == 0:
            x, e = moons(options.pairs), base.sample((options.pairs,))
            e = e[couple(e, x, coupling=coupling)]
        rows = slice(part * options.batch, (part + 1) * options.batch)
        ready = time.perf_counter()
        svi.step(x[rows], None, e[rows])
        coupling_seconds += ready - start
        if step >= WARM_UP:
            training_seconds += time.perf_counter() - ready
    target = moons(POINTS)
    short = flow.sample(POINTS, sampler="euler", steps=1)
    full = flow.sample(POINTS, sampler="adaptive", tolerance=1e-4)
    ms = (1000 * seconds / options.steps for seconds in (coupling_seconds, training_seconds))
    return distance(target, short), distance(target, full), *ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED))
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--schedule", choices=["constant", "cosine"], default="constant")
    options = parser.parse_args()
    if options.pairs % options.batch:
        parser.error(f"--pairs: expected a multiple of --batch, {options.batch}, got {options.pairs}")
    torch.set_num_threads(1)
    print(
        f"{options.steps} steps of Adam at 3e-4, {options.schedule}, batches of {options.batch}, "
        f"coupled {options.pairs} at a time; {options.seeds} seeds from {options.first}: mean (standard deviation)\n"
    )
    print("| coupling | W2^2, one Euler step | published | W2^2, dopri5 | published | coupling, ms | training, ms |")
    print("|---|---|---|---|---|---|---|")
    for name in options.only:
        runs = []
        for seed in range(options.first, options.first + options.seeds):
            runs.append(one(name, seed, options))
            print(f"{name}, seed {seed}: {runs[-1][0]:.3f}, {runs[-1][1]:.3f}", file=sys.stderr)
        mean, std = np.mean(runs, 0), np.std(runs, 0)
        short, full = (f"{mean[i]:.3f} ({std[i]:.3f})" for i in (0, 1))
        published = PUBLISHED[name]
        print(
            f"| {name} | {short} | {published[0]:.3f} | {full} | {published[1]:.3f} | {mean[2]:.1f} | {mean[3]:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
