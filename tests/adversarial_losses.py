"""Losses with critics, one of each kind, and a generator, which tests of adversarial training share."""

import functools
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor, nn

import ppgen
from ppgen import metrics as m
from ppgen import nets, recipes
from ppgen import views as v
from ppgen.losses.recipes import RECIPES
from ppgen.models import Generator

SMALL = functools.partial(nets.Critic, hidden=(5,))
OPTIONS: dict[str, Any] = {"hidden": (5,), "lr": 0.01}


def normed(shape: torch.Size) -> nn.Module:
    """A critic with batch norm, whose statistics are updated, and dropout."""
    return nn.Sequential(
        nn.Linear(shape[0], 5), nn.Tanh(), nn.BatchNorm1d(5, affine=False), nn.Dropout(0.3), nn.Linear(5, 1)
    )


def with_several() -> ppgen.Objective:
    """Three critics that take one, three and two steps, one of them in two terms, beside a term that has none."""
    shared = m.LeastSquares(SMALL, steps=2, optim=functools.partial(torch.optim.SGD, lr=0.01))
    terms = recipes.aae(**OPTIONS) + recipes.gan(**OPTIONS, steps=3, packing=2, noise=0.1, smoothing=0.1)
    terms = terms + ppgen.Ramp(0.5, steps=5) * ppgen.match(v.data("x"), v.generated("x"), shared)
    return terms + ppgen.match(v.data("x"), v.reconstructed("x"), shared)


# plain descent where the gradient of some bias is rounding error alone, of which Adam would make a whole step
DESCENT = functools.partial(torch.optim.SGD, lr=0.05)
ADVERSARIAL_LOSSES: dict[str, Callable[[], ppgen.Objective]] = {
    name: functools.partial(make, **OPTIONS)
    for name, make in RECIPES.items()
    if make().critics and name not in ("dann", "progan")  # of domains and of images, which have tests of their own
} | {
    "several": with_several,
    "r3_gan": lambda: recipes.r3_gan(hidden=(5,), optim=DESCENT),
    "normed": lambda: recipes.gan(normed, saturating=True, lr=0.01),
    "pyro_optimizer": lambda: recipes.gan(hidden=(5,), optim=pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.99})),
}


def critics_of(loss: Any) -> list[nn.Module]:
    """The networks of a loss's critics."""
    return [terms[0].critic.network for terms in loss.critics.values()]


def generator() -> Generator:
    """A small generator, the same in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Generator((3,), latent_dim=2, hidden=(8,))


def nothing(x: Tensor) -> None:
    """A guide that infers nothing."""


X = torch.randn(24, 3, generator=torch.Generator().manual_seed(7)) + 2
