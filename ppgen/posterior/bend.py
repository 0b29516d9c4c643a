"""A flow after a Gaussian: u = c + R T(e), e ~ N(0, I), with T a normalizing flow that starts as the identity.

The gradient sticks the landing: the slopes of log p(u) - log q(u), with q's parameters held still, go back through the
draw alone. A whole step is recorded once, and run without Python after.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.draws import validation
from ppgen.flows import Flow
from ppgen.posterior.precision import in_double
from ppgen.posterior.unconstrained import Unconstrained

__all__ = ["Bend"]

DRAWS = 64
RATE = 3e-3
MEMORY = 0.98  # of the average of weights


class Bend:
    """A flow under way to the posterior in the coordinates of a Gaussian N(center, root root')."""

    def __init__(self, target: Unconstrained, flow: Flow, center: Tensor, root: Tensor, steps: int):
        self.target, self.flow, self.center, self.root = target, flow.double(), center, root
        self.weights = list(flow.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        self.optim = torch.optim.Adam(self.weights, lr=RATE, betas=(0.9, 0.99))
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optim, steps, eta_min=RATE / 30)
        self.evidence: list[float] = []
        with in_double(), validation(False):
            self._step = make_fx(self._gradients)(*self.weights)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            evidence, gradients = self._step(*self.weights)
            self.evidence.append(float(evidence))
            if not all(bool(gradient.isfinite().all()) for gradient in gradients):
                continue
            for weight, gradient in zip(self.weights, gradients, strict=True):
                weight.grad = gradient
            nn.utils.clip_grad_norm_(self.weights, 10.0 * self.target.dim**0.5)
            self.optim.step()
            self.schedule.step()
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.weights, 1 - MEMORY)

    def rsample(self, count: int) -> tuple[Tensor, Tensor]:
        """Points (count, dim) of the flow with its averaged weights, and log q there."""
        live = [weight.detach().clone() for weight in self.weights]
        self.hold(self.average)
        with torch.no_grad(), validation(False):
            y, log_q = self.flow().rsample_and_log_prob((count,))
        self.hold(live)
        return self.center + y @ self.root.mT, log_q - torch.linalg.slogdet(self.root).logabsdet

    @torch.no_grad()
    def hold(self, values: Sequence[Tensor]) -> None:
        """Gives the flow these weights."""
        for weight, value in zip(self.weights, values, strict=True):
            weight.copy_(value)

    def _gradients(self, *weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        weights = [weight.detach().requires_grad_() for weight in weights]
        names = [f"flow.{name}" for name, _ in self.flow.named_parameters()]
        value, loss = functional_call(_Loss(self.flow, self.log_p), dict(zip(names, weights)), ())
        return value, torch.autograd.grad(loss, weights)

    def log_p(self, y: Tensor) -> Tensor:
        return vmap(self.target._one)(self.center + y @ self.root.mT)


class _Loss(nn.Module):
    """A module, so that the flow's weights can be handed to a whole step."""

    def __init__(self, flow, log_p):
        super().__init__()
        self.flow, self.log_p = flow, log_p

    def forward(self):
        y, log_q = self.flow().rsample_and_log_prob((DRAWS,))
        still = y.detach().requires_grad_()
        log_p = self.log_p(still)
        (up,) = torch.autograd.grad(log_p.sum(), still)
        (down,) = torch.autograd.grad(self.flow().log_prob(still).sum(), still)
        return (log_p - log_q).mean().detach(), -((up - down).detach() * y).sum() / DRAWS
