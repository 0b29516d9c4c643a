"""The peers of the benchmarks: a training step of each program, as users of each library would write it.

Each hand-written program is a module whose forward pass returns the loss, so the same eager step and the same two
compiled steps work for all of them. The optimizer is Adam at 1e-3 everywhere.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pyro
import torch
from programs import FEATURES, LAYERS, PROGRAMS, Program, ddpm_network, nsf_flow, vae_networks
from torch import Tensor, nn
from torch.distributions import Distribution, HalfCauchy, Normal
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import ppgen

# zuko asserts that a tuple is not empty, which by dynamo's default would break the graph at its start
torch._dynamo.config.rewrite_assert_with_torch_assert = False

RATE = 1e-3
PPGEN, PPGEN_EAGER = "ppgen, compiled", "ppgen, eager"
STOCK_PYRO = "stock Pyro SVI"
JITTED, SCANNED = "NumPyro, jitted step", "NumPyro, lax.scan"


@dataclass(frozen=True)
class Peer:
    """One way to train a program.

    Attributes:
        name: The name in the tables.
        step: Takes `steps` steps and returns their losses as floats.
        rows: The divisor that turns its loss into nats per datum.
        aim: The ratio of its time to that of ppgen's compiled step that was set as the aim; None without an aim.
        steps: The number of training steps in one call of `step`.
    """

    name: str
    step: Callable[[], float | Sequence[float]]
    rows: int = 1
    aim: float | None = None
    steps: int = 1


class TorchSchools(nn.Module):
    zero: Tensor
    five: Tensor

    def __init__(self, device: str):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(10, device=device))
        self.raw = nn.Parameter(torch.full((10,), 0.1, device=device).expm1().log())  # softplus(raw) = 0.1
        self.register_buffer("zero", torch.tensor(0.0, device=device))
        self.register_buffer("five", torch.tensor(5.0, device=device))

    def forward(self, y: Tensor, s: Tensor) -> Tensor:
        normal = partial(Normal, validate_args=False)
        q = normal(self.loc, softplus(self.raw))
        z = q.rsample()
        mu, tau, theta = z[0], z[1].exp(), z[2:]
        log_p = normal(self.zero, self.five).log_prob(mu)
        log_p = log_p + HalfCauchy(self.five, validate_args=False).log_prob(tau) + z[1]
        log_p = log_p + normal(self.zero, 1.0).log_prob(theta).sum()
        log_p = log_p + normal(mu + tau * theta, s).log_prob(y).sum()
        return q.log_prob(z).sum() - log_p


class TorchVAE(nn.Module):
    def __init__(self, device: str):
        super().__init__()
        self.encoder, self.decoder = vae_networks(device)

    def forward(self, x: Tensor) -> Tensor:
        loc, log_scale = self.encoder(x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        return binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum") + kl


class TorchRealNVP(nn.Module):
    def __init__(self, device: str):
        super().__init__()
        torch.manual_seed(0)
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
            for _ in range(LAYERS)
        ).to(device)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.split(1, -1)
        log_scales = torch.zeros_like(first)
        for network in reversed(self.networks):  # from x to z
            mean, log_scale = network(first).split(1, -1)
            log_scale = log_scale.clamp(-5.0, 3.0)
            first, second = (second - mean) * torch.exp(-log_scale), first
            log_scales = log_scales + log_scale
        log_base = Normal(0.0, 1.0, validate_args=False).log_prob(torch.cat([first, second], -1)).sum(-1)
        return -(log_base - log_scales.squeeze(-1)).sum()


class ZukoNSF(nn.Module):
    def __init__(self, device: str):
        super().__init__()
        self.flow = nsf_flow(device)

    def forward(self, x: Tensor) -> Tensor:
        return -self.flow().log_prob(x).mean()


class TorchDDPM(nn.Module):
    frequencies: Tensor

    def __init__(self, device: str):
        super().__init__()
        self.network = ddpm_network(device)
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(FEATURES // 2, device=device))

    def forward(self, x: Tensor) -> Tensor:
        t = torch.rand(len(x), 1, device=x.device)
        angle = 0.005 + t * (math.pi / 2 - 0.015)  # the cosine schedule
        noise = torch.randn_like(x)
        z = angle.cos() * x + angle.sin() * noise
        phase = t * self.frequencies
        predicted = self.network(torch.cat([z, phase.sin(), phase.cos()], -1))
        return 0.5 * (noise - predicted).square().sum()


@dataclass(frozen=True)
class HandWritten:
    """A hand-written module, and the aims for the ratios of its eager and its compiled step to ppgen's."""

    module: Callable[[str], nn.Module]
    name: str = "hand-written torch"
    eager: float | None = None
    compiled: float | None = None
    zuko: bool = False


HAND_WRITTEN = {
    "schools": HandWritten(TorchSchools),
    "vae": HandWritten(TorchVAE, compiled=1.15),
    "realnvp": HandWritten(TorchRealNVP, compiled=1.3),
    "nsf": HandWritten(ZukoNSF, name="zuko", eager=4.0, compiled=1.5, zuko=True),
    "ddpm": HandWritten(TorchDDPM, eager=2.0, compiled=1.1),
}
STOCK_AIMS = {"schools": 40.0, "vae": 1.8, "realnvp": 10.0}


def by_autograd(
    loss: Callable[..., Tensor], optimizer: torch.optim.Optimizer, batch: tuple[Tensor, ...]
) -> Callable[[], float]:
    def step() -> float:
        optimizer.zero_grad()
        value = loss(*batch)
        value.backward()
        optimizer.step()
        return value.item()

    return step


def eager(loss: nn.Module, batch: tuple[Tensor, ...]) -> Callable[[], float]:
    return by_autograd(loss, torch.optim.Adam(loss.parameters(), lr=RATE), batch)


def compiled(loss: nn.Module, batch: tuple[Tensor, ...]) -> Callable[[], float]:
    """The loss is compiled, autograd runs the backward pass, and the optimizer is fused."""
    optimizer = torch.optim.Adam(loss.parameters(), lr=RATE, fused=True)
    return by_autograd(torch.compile(loss), optimizer, batch)


def compiled_gradients(loss: nn.Module, batch: tuple[Tensor, ...]) -> Callable[[], float]:
    """Loss and gradients are compiled as one function, and the optimizer is fused."""
    parameters = dict(loss.named_parameters())
    optimizer = torch.optim.Adam(parameters.values(), lr=RATE, fused=True)

    def functional(parameters: dict[str, Tensor], *batch: Tensor) -> Tensor:
        return torch.func.functional_call(loss, parameters, batch)

    value_and_gradients = torch.compile(torch.func.grad_and_value(functional))
    values = {name: p.detach() for name, p in parameters.items()}  # parameters would compile second derivatives too

    def step() -> float:
        gradients, value = value_and_gradients(values, *batch)
        for name, gradient in gradients.items():
            parameters[name].grad = gradient
        optimizer.step()
        return value.item()

    return step


def without_validation(step: Callable[[], float]) -> Callable[[], float]:
    """The step without torch's validation, which importing zuko turns off and Pyro's programs turn on again."""

    def run() -> float:
        before = Distribution._validate_args
        Distribution.set_default_validate_args(False)
        try:
            return step()
        finally:
            Distribution.set_default_validate_args(before)

    return run


STEPS = {", eager": eager, ", loss compiled": compiled, ", loss and gradients compiled": compiled_gradients}


def ppgen_svi(key: str, device: str, *, compile: bool, skip_nonfinite: bool = False) -> ppgen.SVI:
    """ppgen's SVI on a program."""
    program = PROGRAMS[key](device)
    model, guide = program.pyro(f"{key} ppgen {compile} {skip_nonfinite}")
    optimizer = partial(torch.optim.Adam, lr=RATE)
    return ppgen.SVI(model, guide, optimizer, program.loss(), compile=compile, skip_nonfinite=skip_nonfinite)


def make(key: str, name: str, device: str) -> Peer:
    """Makes a peer of a program.

    Args:
        key: The name of the program.
        name: The name of the peer, one of `names`.
        device: The torch device.

    Raises:
        ImportError: If the peer is not installed.
    """
    program: Program = PROGRAMS[key](device)
    hand = HAND_WRITTEN[key]
    if name in (PPGEN, PPGEN_EAGER):
        svi = ppgen_svi(key, device, compile=name == PPGEN)
        return Peer(name, lambda: svi.step(*program.batch))
    if name == STOCK_PYRO:
        model, guide = program.pyro(f"{key} stock")
        stock = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": RATE}), program.elbo())
        return Peer(name, lambda: stock.step(*program.batch), program.rows, STOCK_AIMS[key])
    if name in (JITTED, SCANNED):
        import peers_numpyro

        return peers_numpyro.make(key, name, program)
    make_step = STEPS[name.removeprefix(hand.name)]
    aim = hand.eager if make_step is eager else hand.compiled
    step = make_step(hand.module(device), program.batch)
    return Peer(name, without_validation(step), 1, aim) if hand.zuko else Peer(name, step, program.rows, aim)


def names(key: str, device: str) -> list[str]:
    """The names of a program's peers, installed or not; NumPyro is a peer on CPU only."""
    found = [PPGEN, PPGEN_EAGER] + ([STOCK_PYRO] if key in STOCK_AIMS else [])
    found += [HAND_WRITTEN[key].name + kind for kind in STEPS]
    numpyro = {"schools": [JITTED, SCANNED], "vae": [JITTED]}
    return found + (numpyro.get(key, []) if device == "cpu" else [])
