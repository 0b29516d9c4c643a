"""The run whose files of each format are stored in tests/training/stored; it was stopped after step 7 of 12."""

import functools
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import ppgen

STORED = Path(__file__).parent / "training/stored"
X = torch.linspace(-1.0, 2.0, 20)


def model(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(X), subsample=x):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def guide(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.3), constraint=dist.constraints.positive)
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.5)), scale))


def fit(checkpoint: Path | None = None) -> ppgen.Fit:
    """Takes the steps of the run, from a checkpoint if it exists."""
    pyro.clear_param_store()
    options = {"optim": functools.partial(torch.optim.Adam, lr=0.05), "ema": 0.9, "validation": 0.2, "compile": False}
    return ppgen.fit(model, guide, X, steps=12, batch_size=6, progress=False, checkpoint=checkpoint, **options)
