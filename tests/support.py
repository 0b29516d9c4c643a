"""Helpers of several test files: a pair of programs with its closed forms, and a substitute for inductor."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.fitting import Fit
from ppgen.training.result import Chain


class Pair(NamedTuple):
    model: Callable
    guide: Callable
    args: tuple
    n: int
    exact: Any = None
    """What is known in closed form about the program, where something is."""


def gaussian_pair(rows: int = 6, width: int = 3, size: int = 2) -> Pair:
    """A Gaussian VAE on `rows` data of `width` numbers, with linear networks."""
    decoder, encoder = nn.Linear(size, width), nn.Linear(width, 2 * size)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Pair(model, guide, (torch.randn(rows, width),), rows)


def interpret(build: Any) -> Callable:
    """Runs the recorded operations one by one, in place of the function that inductor compiles."""

    def call(tensors: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(build.module(*tensors))

    return call


def known_as(make: Callable = interpret) -> Callable:
    """Takes the place of `Build.known`: each graph is there at once, made by a function of its build."""
    made: dict[str, Callable] = {}

    def known(build: Any) -> Callable:
        if build.key not in made:
            made[build.key] = make(build)
        return made[build.key]

    return known


def untrained_fit(
    model: Callable, guide: Callable, *data: Any, chains: int = 1, loss: Any = None, losses=(0.0,)
) -> Fit:
    """A fit of programs as they are, with a history of these losses in each of the chains."""
    nothing = {"step": np.zeros(0), "loss": np.zeros(0)}
    chain = Chain({}, {"loss": np.asarray(losses)}, nothing, "as given", len(losses), 0.0)
    return Fit(model, guide, loss, [chain] * chains, data)
