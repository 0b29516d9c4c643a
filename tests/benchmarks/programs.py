"""The programs that the benchmarks train, as Pyro programs: data, networks, model, guide and loss of each.

Networks are seeded, so all peers start from the same weights.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import Permute, affine_coupling
from pyro.infer import ELBO as PyroELBO
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_feasible
from torch import Tensor, nn

import ppgen
from ppgen.models import Diffusion

LATENT, HIDDEN, PIXELS, LAYERS = 20, 400, 784, 8


@dataclass(frozen=True)
class Program:
    """A training problem.

    Attributes:
        title: The title of its tables.
        batch: The tensors of one step.
        pyro: Returns (model, guide) with new networks of the same weights, for a name. Pyro's parameter store is keyed
            by name: two programs with one name would share their networks.
        loss: Returns ppgen's objective, in nats per datum.
        elbo: Returns stock Pyro's loss, a sum over data.
        rows: The number of data in the batch.
    """

    title: str
    batch: tuple[Tensor, ...]
    pyro: Callable[[str], tuple[Callable, Callable]]
    loss: Callable[[], ppgen.Objective]
    elbo: Callable[[], PyroELBO]
    rows: int


def empty_guide(*batch: Tensor) -> None:
    """The guide of a model without latents."""


def schools(device: str) -> Program:
    """Eight schools (Rubin 1981): mu, tau and the standardized effects, with a mean-field Gaussian guide."""
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], device=device)
    s = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], device=device)
    zero, one, five = (torch.tensor(value, device=device) for value in (0.0, 1.0, 5.0))

    def model(y, s):
        mu = pyro.sample("mu", dist.Normal(zero, five))
        tau = pyro.sample("tau", dist.HalfCauchy(five))
        with pyro.plate("data", 8):
            theta = pyro.sample("theta", dist.Normal(zero, one))
            pyro.sample("y", dist.Normal(mu + tau * theta, s), obs=y)

    def programs(name):
        holder: Any = pyro.nn.PyroModule(name)  # names the guide's parameters
        holder.guide = AutoNormal(model, init_loc_fn=init_to_feasible)
        return model, holder.guide

    return Program("eight schools, AutoNormal", (y, s), programs, ppgen.ELBO, Trace_ELBO, 8)


def vae_networks(device: str) -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS))
    return encoder.to(device), decoder.to(device)


def vae(device: str) -> Program:
    """The VAE of Kingma & Welling 2014 on binary images, with the KL divergence in closed form."""
    torch.manual_seed(1)
    x = (torch.rand(128, PIXELS) > 0.5).float().to(device)

    def programs(name):
        encoder, decoder = vae_networks(device)

        def model(x):
            pyro.module(f"{name} decoder", decoder)
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0], LATENT), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

        def guide(x):
            pyro.module(f"{name} encoder", encoder)
            with pyro.plate("data", x.shape[0]):
                loc, log_scale = encoder(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

        return model, guide

    return Program(
        f"VAE {PIXELS}-{HIDDEN}-{LATENT}, batch 128",
        (x,),
        programs,
        lambda: ppgen.Reconstruction() + ppgen.Rate(),
        TraceMeanField_ELBO,
        128,
    )


def rings(device: str) -> Tensor:
    """256 points near two rings in the plane."""
    torch.manual_seed(1)
    angle, radius = 2 * math.pi * torch.rand(256), 1.0 + torch.randint(2, (256,)) + 0.1 * torch.randn(256)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).to(device)


def realnvp(device: str) -> Program:
    """RealNVP (Dinh et al. 2017): Pyro's affine couplings, with the coordinates swapped between them."""
    x, swap = rings(device), torch.tensor([1, 0], device=device)

    def programs(name):
        torch.manual_seed(0)
        couplings = nn.ModuleList(affine_coupling(2, [64, 64]) for _ in range(LAYERS)).to(device)
        transforms = [t for coupling in couplings for t in (coupling, Permute(swap))][:-1]
        base = dist.Normal(torch.zeros(2, device=device), torch.ones(2, device=device)).to_event(1)

        def model(x):
            pyro.module(name, couplings)
            with pyro.plate("data", x.shape[0]):
                # Pyro's transforms cache by identity: the tensor of the last step would return its freed graph
                pyro.sample("x", dist.TransformedDistribution(base, transforms), obs=x.view_as(x))

        return model, empty_guide

    return Program(f"RealNVP, {LAYERS} affine couplings, batch 256", (x,), programs, ppgen.ELBO, Trace_ELBO, x.shape[0])


def nsf_flow(device: str) -> nn.Module:
    import zuko  # a peer

    torch.manual_seed(0)
    return zuko.flows.NSF(2, transforms=5, hidden_features=[64, 64]).to(device)


class PyroDistribution(dist.TorchDistribution):
    """A torch distribution as a Pyro distribution."""

    def __init__(self, distribution: torch.distributions.Distribution):
        self.distribution = distribution
        super().__init__(distribution.batch_shape, distribution.event_shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return PyroDistribution(self.distribution.expand(batch_shape))

    def log_prob(self, value):
        return self.distribution.log_prob(value)

    def sample(self, sample_shape=()):
        return self.distribution.sample(sample_shape)


def nsf(device: str) -> Program:
    """A neural spline flow (Durkan et al. 2019): zuko's flow in a Pyro model."""
    x = rings(device)
    nsf_flow(device)  # raises an ImportError before the first step if zuko is not installed

    def programs(name):
        flow = nsf_flow(device)

        def model(x):
            pyro.module(name, flow)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("x", PyroDistribution(flow()), obs=x)

        return model, empty_guide

    return Program("NSF, 5 spline layers, batch 256", (x,), programs, ppgen.ELBO, Trace_ELBO, x.shape[0])


FEATURES = 14  # the number of features of a noise level


def ddpm_network(device: str) -> nn.Sequential:
    torch.manual_seed(0)
    widths = [2 + FEATURES, 128, 128, 128]
    hidden = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*hidden, nn.Linear(128, 2)).to(device)


class ConcatenatedInputs(nn.Module):
    """A network whose input is z and the features of its noise level, concatenated."""

    def __init__(self, layers: nn.Module):
        super().__init__()
        self.layers = layers

    def forward(self, z: Tensor, context: Tensor) -> Tensor:
        return self.layers(torch.cat([z, context], -1))


def ddpm(device: str) -> Program:
    """DDPM (Ho et al. 2020) on points: the squared error of the noise, at one random level for each point."""
    x = rings(device)

    def programs(name):
        network = ConcatenatedInputs(ddpm_network(device))
        diffusion = Diffusion((2,), network=network, prediction_type="noise", steps=10).to(device)
        return diffusion.model, diffusion.guide

    return Program("DDPM, 3 x 128 network, batch 256", (x,), programs, ppgen.recipes.ddpm, Trace_ELBO, x.shape[0])


PROGRAMS: dict[str, Callable[[str], Program]] = {
    "schools": schools,
    "vae": vae,
    "realnvp": realnvp,
    "nsf": nsf,
    "ddpm": ddpm,
}
