"""Continuous flows beside hand-written torchdiffeq, on two moons: evaluations of f, time of a step, log-likelihood.

All rows train the same network (two hidden layers of 64) with the exact trace, by Adam at 1e-3 on 256 data a step. The
hand-written flows compute the trace by automatic differentiation, one column at a time, as in torchdiffeq's own
example. Evaluations are counted in the forward solution of the last step. Milliseconds are medians of whole steps on
one thread. Log-likelihoods are of 2000 held-out data, in nats, all computed by dopri5 at a tolerance of 1e-5.

    python tests/benchmarks/continuous.py [--steps 300] [--seed 0]
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

import ppgen
from ppgen.data import toy
from ppgen.flows.smooth_mlp import SmoothMLP
from ppgen.models import FlowModel

BATCH, RATE, TOLERANCE, FIXED = 256, 1e-3, 1e-5, 10


class HandWritten(nn.Module):
    """dx/dt = f(t, x) with d log p / dt = - tr df/dx by automatic differentiation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.evaluations = network, 0

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.evaluations += 1
        with torch.enable_grad():
            x = state[0] + 0.0 if state[0].requires_grad else state[0].detach().requires_grad_()
            velocity, _ = self.network(x, t.expand(len(x), 1))
            columns = range(x.shape[1])
            trace = sum(torch.autograd.grad(velocity[:, i].sum(), x, create_graph=True)[0][:, i] for i in columns)
        return velocity, trace

    def log_prob(self, x: Tensor, *, method: str, adjoint: bool = False) -> Tensor:
        fixed = {"options": {"step_size": 1 / FIXED}} if method == "rk4" else {"rtol": TOLERANCE, "atol": TOLERANCE}
        x = x.clone().requires_grad_()  # the trace is computed from its graph
        solve = odeint_adjoint if adjoint else odeint
        z, trace = solve(self, (x, x.new_zeros(len(x))), torch.tensor([0.0, 1.0]), method=method, **fixed)
        return -0.5 * (z[-1].square() + math.log(2 * math.pi)).sum(-1) + trace[-1]


def network() -> SmoothMLP:
    mlp = SmoothMLP(2, hidden=(64, 64), extra=1)
    for parameter in mlp.layers[-1].parameters():
        nn.init.zeros_(parameter)
    return mlp


def batches(rows: int, steps: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.choice(rows, BATCH, replace=False) for _ in range(steps)]


def median_ms(step: Callable[[Tensor], object], x: Tensor, steps: int, seed: int) -> float:
    seconds = []
    for rows in batches(len(x), steps, seed):
        start = time.perf_counter()
        step(x[rows])
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def train_hand_written(
    x: Tensor, held_out: Tensor, steps: int, seed: int, *, method: str, adjoint: bool = False
) -> tuple[int, float, float]:
    flow = HandWritten(network())
    optim = torch.optim.Adam(flow.parameters(), lr=RATE)
    evaluations = 0

    def step(rows: Tensor) -> None:
        nonlocal evaluations
        flow.evaluations = 0
        optim.zero_grad(set_to_none=True)
        loss = -flow.log_prob(rows, method=method, adjoint=adjoint).mean()
        evaluations = flow.evaluations
        loss.backward()
        optim.step()

    ms = median_ms(step, x, steps, seed)
    return evaluations, ms, float(flow.log_prob(held_out, method="dopri5").detach().mean())


def train_ppgen(
    x: Tensor, held_out: Tensor, steps: int, seed: int, *, solver: str, compile: bool, adjoint: bool = False
) -> tuple[int, float, float]:
    pyro.clear_param_store()
    solver_options = {"solver": solver, "steps": FIXED, "tolerance": TOLERANCE, "adjoint": adjoint}
    model = FlowModel((2,), flow="continuous", hidden=(64, 64), options=solver_options)
    optim = partial(torch.optim.Adam, lr=RATE)
    svi = ppgen.SVI(model.model, model.guide, optim, ppgen.ELBO(), compile=compile)
    ms = median_ms(svi.step, x, steps, seed)
    field = next(part for part in model.modules() if isinstance(part, SmoothMLP))
    count = [0]
    hook = field.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    with torch.no_grad():
        model.log_prob(x[:BATCH])
    hook.remove()
    score = HandWritten(field).log_prob(held_out, method="dopri5").detach().mean()
    return count[0], ms, float(score)


ROWS: dict[str, Callable[..., tuple[int, float, float]]] = {
    "ppgen rk4, compiled": partial(train_ppgen, solver="rk4", compile=True),
    "ppgen rk4, eager": partial(train_ppgen, solver="rk4", compile=False),
    "torchdiffeq rk4": partial(train_hand_written, method="rk4"),
    "ppgen dopri5": partial(train_ppgen, solver="dopri5", compile=False),
    "torchdiffeq dopri5": partial(train_hand_written, method="dopri5"),
    "ppgen dopri5, adjoint": partial(train_ppgen, solver="dopri5", compile=False, adjoint=True),
    "torchdiffeq dopri5, adjoint": partial(train_hand_written, method="dopri5", adjoint=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = toy.moons(4000, seed=options.seed)[0]
    x = torch.as_tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
    print(f"{options.steps} steps, {BATCH} rows, Adam at {RATE}\n")
    print("| flow | evaluations | ms a step | log-likelihood |\n|---|---|---|---|")
    for name, row in ROWS.items():
        torch.manual_seed(options.seed)
        evaluations, ms, score = row(x[:2000], x[2000:], options.steps, options.seed)
        print(f"| {name} | {evaluations} | {ms:.1f} | {score:.3f} |", flush=True)


if __name__ == "__main__":
    main()
