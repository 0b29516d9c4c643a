"""Bits per dimension of held-out digits (scikit-learn's, 1 x 8 x 8, 17 levels): flows beside a Gaussian.

gaussian   one N(m, S) on k + u, u ~ U[0, 1)^64, in closed form: m is the rows' mean + 1/2, S their covariance + I/12
zuko nsf   zuko's autoregressive spline flow in a plain torch loop
others     `ppgen.models.FlowModel(levels=17)` under `ppgen.fit`

Flows see logit(alpha + (1 - 2 alpha) (k + u) / 17) with new noise in every step. All train by Adam for the same number
of steps, with a learning rate that decays as a cosine, and keep the weights of their lowest loss on the validation rows
(10%), which is evaluated a hundred times. 20% of the rows are held out, in a different split for each seed. Bits are
-E_u log2 p(k + u) / 64, estimated by one draw of u for each datum; they are an upper bound on the bits of P(k). Mean
(standard error) over seeds.

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
VALIDATIONS = 100  # in a run
SPLINES = {"transforms": 4, "hidden_features": (64, 64)}  # zuko's

RATE = 5e-3
HIDDEN = {"maf": (64, 64), "nsf": (64, 64), "nsf_autoregressive": (64, 64), "glow": (32, 32)}

Scored = tuple[Tensor, int]  # log p(k + u) of held-out rows, and the number of parameters


def rows(data: Data, split: str) -> Tensor:
    return torch.as_tensor(getattr(data, split).x)


def gaussian(data: Data, steps: int, seed: int) -> Scored:
    k = rows(data, "train").flatten(1).double()
    covariance = k.T.cov(correction=0) + torch.eye(64) / 12
    distribution = torch.distributions.MultivariateNormal(k.mean(0) + 0.5, covariance)
    held_out = rows(data, "test").flatten(1)
    return distribution.log_prob(held_out + torch.rand(held_out.shape).double()), 64 + 64 * 65 // 2


class ZukoNSF(nn.Module):
    """zuko's flow of the log odds of k + u."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = zuko_flows.NSF(64, **SPLINES)
        self.logit = Logit(0, LEVELS, alpha=ALPHA, rank=1)

    def forward(self, k: Tensor) -> Tensor:
        k = k.flatten(1).float()
        z, log_det = self.logit.forward_and_log_det(k + torch.rand_like(k), None)
        return self.flow().log_prob(z) + log_det


def train_zuko(data: Data, steps: int, seed: int) -> Scored:
    model, train, validation = ZukoNSF(), rows(data, "train"), rows(data, "validation")
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best_loss, best_weights = math.inf, model.state_dict()
    for step in range(1, steps + 1):
        loss = -model(train[torch.randint(len(train), (BATCH,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lr_scheduler.step()
        if step % max(1, steps // VALIDATIONS) == 0:
            with torch.no_grad():
                validation_loss = -float(model(validation).mean())
            if validation_loss < best_loss:
                best_loss = validation_loss
                best_weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best_weights)
    with torch.no_grad():
        return model(rows(data, "test")), parameters(model)


def train_ppgen(flow: str, data: Data, steps: int, seed: int) -> Scored:
    model = FlowModel(data.event_shape, flow=flow, layers=4, hidden=HIDDEN[flow], levels=LEVELS, alpha=ALPHA)
    ppgen.fit(
        model.model,
        model.guide,
        rows(data, "train"),
        validation=rows(data, "validation"),
        optim=partial(torch.optim.Adam, lr=RATE),
        steps=steps,
        batch_size=BATCH,
        patience=VALIDATIONS,
        lr_scheduler="cosine",
        seed=seed,
        progress=False,
    )
    return model.log_prob(rows(data, "test")), parameters(model)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


METHODS: dict[str, Callable[[Data, int, int], Scored]] = {
    "gaussian": gaussian,
    "zuko nsf": train_zuko,
    **{name: partial(train_ppgen, name) for name in HIDDEN},
}


def one(method: str, seed: int, steps: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data = load("digits", form="levels", seed=seed)
    start = time.perf_counter()
    log_prob, size = METHODS[method](data, steps, seed)
    bits = -float(log_prob.double().mean()) / (64 * math.log(2))
    return {"method": method, "seed": seed, "bits": bits, "size": size, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    seeds, records = range(options.first, options.first + options.seeds), []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(one, method, seed, options.steps) for method in options.only for seed in seeds]
        for run in as_completed(runs):
            records.append(record := run.result())
            print("{method:18} seed {seed}: {bits:.3f} bits, {seconds:.0f} s".format(**record), flush=True)
    budget = f"{options.steps} steps of {BATCH} rows at a rate of {RATE}"
    print(f"\n{budget}, seeds {seeds[0]} to {seeds[-1]}, one core a run\n")
    print(f"{'digits':20}{'bits a pixel':>16}{'parameters':>12}{'seconds':>9}")
    for method in options.only:
        of_method = [record for record in records if record["method"] == method]
        bits, seconds = (np.array([record[key] for record in of_method]) for key in ("bits", "seconds"))
        error = f" ({bits.std(ddof=1) / math.sqrt(len(bits)):.3f})" if len(bits) > 1 else ""
        print(f"{method:20}{f'{bits.mean():.3f}{error}':>16}{of_method[0]['size']:12}{seconds.mean():9.0f}")


if __name__ == "__main__":
    main()
