"""Small programs, what trains them, and what the tests of training share.

A row of `PROGRAMS` carries as many features of programs, losses and optimizers as it can, and is built again for each
run, under the seed of the run.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer, poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam
from support import gaussian_pair
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR

import ppgen
from ppgen import models, recipes

Built = tuple[Callable, Callable, tuple]
constraints = dist.constraints
SCHOOLS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
frozen_in_training = pytest.mark.filterwarnings("ignore:.*was not registered in the param store")


def bits(tensors: Any) -> list[bytes]:
    return [tensor.detach().numpy().tobytes() for tensor in tensors]


class Row(NamedTuple):
    """A program with what trains it.

    Attributes:
        build: makes (model, guide, args).
        loss, optim: make a loss and an optimizer, as `ppgen.SVI` takes them.
        options: further arguments of `ppgen.SVI`.
        rtol: within which two runs of 50 steps agree that differ in the order of floating-point sums.
    """

    build: Callable[[], Built]
    loss: Callable[[], Any]
    optim: Callable[[], Any]
    options: Mapping[str, Any] = MappingProxyType({})
    rtol: float = 1e-4


def networks(rows: int = 6) -> Built:
    pair = gaussian_pair(rows)
    return pair.model, pair.guide, pair.args


def constrained() -> Built:
    """Parameters of many constraints, a global latent, and parameters per datum in a plate that draws its rows."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
        scale = pyro.param("scale", lambda: torch.tensor(0.8), constraint=constraints.positive)
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", 6, subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(weights @ w + z, scale), obs=x[rows])

    def guide(x: Tensor) -> None:
        tril = pyro.param("tril", 0.5 * torch.eye(2), constraint=constraints.lower_cholesky)
        pyro.sample("w", dist.MultivariateNormal(torch.zeros(2), scale_tril=tril))
        slope = pyro.param("slope", torch.tensor(0.4), constraint=constraints.unit_interval)
        with pyro.plate("data", 6, subsample_size=4) as rows:
            scales = pyro.param("scales", torch.full((6,), 0.5), constraint=constraints.positive, event_dim=0)
            pyro.sample("z", dist.Normal(slope * x[rows], scales))

    return model, guide, (torch.randn(6),)


class Decoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.decode = nn.Linear(2, 3)
        self.offset = nn.Parameter(torch.zeros(3))
        self.scale = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z) + self.offset, self.scale).to_event(1), obs=x)


class Encoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encode = PyroModule[nn.Linear](3, 2)
        self.spread = PyroParam(torch.tensor(0.6), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encode(x), self.spread).to_event(1))


def modules() -> tuple[Decoder, Encoder, tuple]:
    return Decoder(), Encoder(), (torch.randn(6, 3),)


class Normed(nn.Module):
    """Batch norm and dropout; without a bias before batch norm, whose gradient is rounding alone."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, out)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def normed() -> Built:
    decoder, encoder = Normed(2, 3), Normed(3, 4)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, (torch.randn(8, 3),)


def schools(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * theta, 10.0), obs=y)


def automatic(make: Callable) -> Callable[[], Built]:
    return lambda: (schools, make(schools), (SCHOOLS,))


def list_of_guides(model: Callable) -> AutoGuideList:
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, hide=["tau"])))
    guide.append(AutoDelta(poutine.block(model, expose=["tau"])))
    return guide


def handled() -> Built:
    """A batch of a larger data set, part of it masked, one site scaled, and a factor."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.factor("prefer", -0.1 * w**2)
        with pyro.plate("data", 20, subsample=x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=x > 0), poutine.scale(scale=0.7):
                pyro.sample("x", dist.Normal(w * z, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        loc, slope = pyro.param("loc", torch.tensor(0.5)), pyro.param("slope", torch.tensor(0.8))
        scale = pyro.param("scale", torch.tensor(0.4), constraint=constraints.positive)
        pyro.sample("w", dist.Normal(loc, scale))
        with pyro.plate("data", 20, subsample=x):
            pyro.sample("z", dist.Normal(slope * x, scale))

    return model, guide, (torch.randn(4),)


def mixture() -> Built:
    """The component is left to enumeration."""

    def model(x: Tensor) -> None:
        logits = pyro.param("logits", torch.tensor([0.3, -0.2]))
        loc = pyro.param("loc", torch.tensor([-1.0, 2.0]))
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[c] + shift, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("shift", dist.Normal(pyro.param("shift_loc", torch.tensor(0.1)), 0.3))

    return model, guide, (torch.randn(7) * 2,)


def doubles() -> Built:
    """In float64, with a covariance from a learned low-rank factor."""
    x = torch.randn(5, 4, dtype=torch.float64)

    def model(x: Tensor) -> None:
        weight = pyro.param("weight", lambda: torch.randn(4, 2, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T, 0.3).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", lambda: 0.1 * torch.randn(4, 2, dtype=torch.float64))
        tril = pyro.param("tril", torch.eye(2, dtype=torch.float64), constraint=constraints.lower_cholesky)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x @ slope, scale_tril=tril))

    return model, guide, (x,)


def learned_laws() -> Built:
    """Draws from a learned distribution, which nothing can draw ahead, with ordinary noise before and after."""

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z + shares @ torch.tensor([0.0, 1.0, 3.0]), rate), obs=x)

    def guide(x: Tensor) -> None:
        positive = functools.partial(pyro.param, constraint=constraints.positive)
        pyro.sample("loc", dist.Normal(pyro.param("loc_loc", torch.tensor(0.2)), 0.5))
        pyro.sample("rate", dist.Gamma(positive("a", torch.tensor(3.0)), positive("b", torch.tensor(2.0))))
        pyro.sample("shares", dist.Dirichlet(positive("concentration", torch.tensor([1.0, 2.0, 0.5]))))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.3)) * x, 0.8))

    return model, guide, (torch.randn(6),)


def discrete() -> Built:
    """A discrete latent: its gradient is the score's."""

    def model(x: Tensor) -> None:
        effect = pyro.param("effect", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(effect * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        logit, slope = pyro.param("logit", torch.tensor(0.1)), pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logit + slope * x))

    return model, guide, (torch.randn(8),)


def vae() -> Built:
    vae = models.VAE((4,), latent_dim=2, hidden=(5,), num_classes=3, dropout=0.2)
    return vae.model, vae.guide, (torch.randn(8, 4), torch.arange(8) % 3)


def autoencoder() -> Built:
    auto = models.Autoencoder((4,), latent_dim=2, hidden=(5,), likelihood="bernoulli", norm="layer")
    return auto.model, auto.guide, (torch.rand(8, 4).round(),)


def no_program(*args: Any) -> None:
    pass


def plain() -> Built:
    return no_program, no_program, (torch.randn(5, 2),)


def regression(model: Callable, guide: Callable, x: Tensor) -> Tensor:
    """A loss that is a function of its own, with noise of its own."""
    w = pyro.param("w", torch.tensor([3.0, 4.0]))
    return (x @ w - torch.randn(5)).pow(2).mean() + 0.1 * w.abs().sum()


def torch_optim(kind: type, **options: Any) -> Callable:
    return lambda: functools.partial(kind, **options)


adam = torch_optim(torch.optim.Adam, lr=0.01)
Decay = functools.partial(ExponentialLR, gamma=0.97)
Cosine = functools.partial(CosineAnnealingLR, T_max=50)


PROGRAMS: dict[str, Row] = {
    "networks": Row(
        networks,
        lambda: ppgen.Reconstruction() + ppgen.Anneal(1.0, steps=40) * ppgen.Rate(),
        adam,
        {"clip_norm": 1.0, "lr_scheduler": Decay},
    ),
    "constrained": Row(
        constrained,
        infer.Trace_ELBO,
        lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.97, "clip_norm": 0.5}),
    ),
    "modules": Row(
        modules,
        infer.TraceMeanField_ELBO,
        lambda: pyro.optim.Adam(lambda name: {"lr": 0.002 * len(name)}),
    ),
    "auto_normal": Row(
        automatic(AutoNormal),
        lambda: ppgen.ELBO(elbo=infer.TraceMeanField_ELBO()),
        torch_optim(torch.optim.AdamW, lr=0.02, weight_decay=0.1),
        {"lr_scheduler": Cosine},
    ),
    "auto_multivariate": Row(automatic(AutoMultivariateNormal), ppgen.ELBO, torch_optim(torch.optim.RMSprop, lr=0.01)),
    "auto_low_rank": Row(
        automatic(AutoLowRankMultivariateNormal),
        ppgen.ELBO,
        torch_optim(torch.optim.SGD, lr=0.01, momentum=0.9),
        {"clip_norm": 5.0},
    ),
    "auto_iaf": Row(
        automatic(functools.partial(AutoIAFNormal, hidden_dim=[12])),
        lambda: infer.RenyiELBO(alpha=0.5, num_particles=2),
        lambda: pyro.optim.AdagradRMSProp({"eta": 0.05}),
    ),
    "auto_list": Row(automatic(list_of_guides), ppgen.ELBO, lambda: pyro.optim.Adam({"lr": 0.02})),
    "normed": Row(normed, lambda: ppgen.Reconstruction() + 0.5 * ppgen.Rate(), adam, {}, 1e-3),
    "handled": Row(
        handled,
        lambda: infer.Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        lambda: pyro.optim.SGD({"lr": 0.01}, {"clip_norm": 1.0, "clip_value": 0.4}),
    ),
    "mixture": Row(
        mixture, lambda: infer.TraceEnum_ELBO(max_plate_nesting=1), torch_optim(torch.optim.Adamax, lr=0.02)
    ),
    "mixture_evidence": Row(
        mixture, lambda: ppgen.ELBO(elbo=infer.TraceEnum_ELBO(max_plate_nesting=1)), adam, {"lr_scheduler": Decay}
    ),
    "doubles": Row(doubles, ppgen.ELBO, adam, {"clip_norm": 10.0}, 1e-9),
    "doubles_renyi": Row(
        doubles,
        lambda: ppgen.ELBO(elbo=infer.RenyiELBO(alpha=0.3, num_particles=3, vectorize_particles=True)),
        lambda: pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.99}),
        {},
        1e-9,
    ),
    "learned_laws": Row(learned_laws, infer.Trace_ELBO, adam),
    "discrete": Row(discrete, infer.Trace_ELBO, lambda: pyro.optim.Adam({"lr": 0.02})),
    "graph": Row(discrete, infer.TraceGraph_ELBO, lambda: pyro.optim.Adam({"lr": 0.02})),
    "wake_sleep": Row(
        networks,
        lambda: infer.ReweightedWakeSleep(num_particles=2, vectorize_particles=False, max_plate_nesting=1),
        lambda: pyro.optim.Adam(lambda module, name: {"lr": 1e-3 * len(module) + 1e-4 * len(name)}),
    ),
    "wae": Row(networks, recipes.wae, torch_optim(torch.optim.NAdam, lr=0.01)),
    "iwae": Row(networks, lambda: recipes.iwae(3), adam),
    "vae": Row(
        vae, lambda: recipes.vae(beta=ppgen.Ramp(1.0, steps=30)), adam, {"clip_norm": 1.0, "lr_scheduler": Cosine}
    ),
    "autoencoder": Row(autoencoder, recipes.ae, adam),
    "plain": Row(plain, lambda: regression, torch_optim(torch.optim.Adagrad, lr=0.1)),
}
