"""Bits per dimension of scikit-learn's digits (1 x 8 x 8, 17 levels) that were held out: flows beside a Gaussian.

gaussian   one N(m, S) on k + u, u ~ U[0, 1)^64, in closed form: m the mean of the rows + 1/2, S their covariance + I/12
zuko nsf   zuko's autoregressive spline flow, a loop of torch by hand
others     `ppgen.models.FlowModel(levels=17)` under `ppgen.fit`

Flows see logit(alpha + (1 - 2 alpha) (k + u) / 17) with new noise in every step. All learn by Adam at a rate that goes
down a cosine, for as many steps, and end with the weights of their best loss on the validation rows (10%), taken a
hundred times; held out are 20%, another split by each seed. Bits are -E_u log2 p(k + u) / 64, by one draw u a datum,
which bounds those of P(k) from above. Mean (standard error) over seeds.

    python tests/benchmarks/flows_digits.py [--seeds 3] [--first 0] [--only glow ...] [--steps 600] [--jobs 1]
"""

import argparse
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ppgen
from ppgen.data import Data, load
from ppgen.flows.interval import Logit
from ppgen.flows.zuko import flows as zuko_flows
from ppgen.models import FlowModel

LEVELS, ALPHA = 17, 0.05
BATCH = 128
CHECKS = 100  # validations in a run
SPLINES = {"transforms": 4, "hidden_features": (64, 64)}  # zuko's

RATE = 5e-3
HIDDEN = {"maf": (64, 64), "nsf": (64, 64), "nsf_autoregressive": (64, 64), "glow": (32, 32)}

Scored = tuple[Tensor, int]  # log p(k + u) of held-out rows, and how many parameters the law has


def rows(data: Data, split: str) -> Tensor:
    return torch.as_tensor(getattr(data, split).x)


def gaussian(data: Data, steps: int, seed: int) -> Scored:
    k = rows(data, "train").flatten(1).double()
    covariance = k.T.cov(correction=0) + torch.eye(64) / 12
    distribution = torch.distributions.MultivariateNormal(k.mean(0) + 0.5, covariance)
    held_out = rows(data, "test").flatten(1)
    return distribution.log_prob(held_out + torch.rand(held_out.shape).double()), 64 + 64 * 65 // 2


class ByHand(nn.Module):
    """zuko's flow behind the logarithmic odds of k + u."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = zuko_flows.NSF(64, **SPLINES)
        self.logit = Logit(0, LEVELS, alpha=ALPHA, rank=1)

    def forward(self, k: Tensor) -> Tensor:
        k = k.flatten(1).float()
        z, log_det = self.logit.forward_and_log_det(k + torch.rand_like(k), None)
        return self.flow().log_prob(z) + log_det


def by_hand(data: Data, steps: int, seed: int) -> Scored:
    model, train, validation = ByHand(), rows(data, "train"), rows(data, "validation")
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, kept = math.inf, model.state_dict()
    for step in range(1, steps + 1):
        loss = -model(train[torch.randint(len(train), (BATCH,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // CHECKS) == 0:
            with torch.no_grad():
                found = -float(model(validation).mean())
            if found < best:
                best, kept = found, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    with torch.no_grad():
        return model(rows(data, "test")), parameters(model)


def by_fit(flow: str, data: Data, steps: int, seed: int) -> Scored:
    model = FlowModel(data.event_shape, flow=flow, layers=4, hidden=HIDDEN[flow], levels=LEVELS, alpha=ALPHA)
    ppgen.fit(
        model.model,
        model.guide,
        rows(data, "train"),
        validation=rows(data, "validation"),
        optim=partial(torch.optim.Adam, lr=RATE),
        steps=steps,
        batch_size=BATCH,
        patience=CHECKS,
        lr_scheduler="cosine",
        seed=seed,
        progress=False,
    )
    return model.log_prob(rows(data, "test")), parameters(model)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


WAYS: dict[str, Callable[[Data, int, int], Scored]] = {
    "gaussian": gaussian,
    "zuko nsf": by_hand,
    **{name: partial(by_fit, name) for name in HIDDEN},
}


def one(way: str, seed: int, steps: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data = load("digits", form="levels", seed=seed)
    start = time.perf_counter()
    log_prob, size = WAYS[way](data, steps, seed)
    bits = -float(log_prob.double().mean()) / (64 * math.log(2))
    return {"way": way, "seed": seed, "bits": bits, "size": size, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    seeds, records = range(options.first, options.first + options.seeds), []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for run in as_completed([pool.submit(one, way, seed, options.steps) for way in options.only for seed in seeds]):
            records.append(record := run.result())
            print("{way:18} seed {seed}: {bits:.3f} bits, {seconds:.0f} s".format(**record), flush=True)
    budget = f"{options.steps} steps of {BATCH} rows at a rate of {RATE}"
    print(f"\n{budget}, seeds {seeds[0]} to {seeds[-1]}, one core a run\n")
    print(f"{'digits':20}{'bits a pixel':>16}{'parameters':>12}{'seconds':>9}")
    for way in options.only:
        of_way = [record for record in records if record["way"] == way]
        bits, seconds = (np.array([record[key] for record in of_way]) for key in ("bits", "seconds"))
        error = f" ({bits.std(ddof=1) / math.sqrt(len(bits)):.3f})" if len(bits) > 1 else ""
        print(f"{way:20}{f'{bits.mean():.3f}{error}':>16}{of_way[0]['size']:12}{seconds.mean():9.0f}")


if __name__ == "__main__":
    main()
