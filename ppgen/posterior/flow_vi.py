"""A flow after a Gaussian: u = c + R y, y = T(e), e ~ N(0, I), T a normalizing flow that starts as the identity.

    maximize E[log p(u) - log q(u)]        over T's weights, by Adam, its rate falling along a cosine

A draw and its density are one pass, so that flows serve that are dear to score. A whole step is recorded once, and run
without Python after; the result is a moving average of the weights.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ppgen.flows import Flow
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.tracing.double_precision import double_precision
from ppgen.tracing.programs import validation
from ppgen.utils.torch_private import record_function

__all__ = ["FlowVI"]

MOST, LEAST, WORK = 256, 64, 60_000  # draws a step: as many as make so many terms of log p, within bounds
RATE, LOWEST = 5e-3, 1e-4
MEMORY = 0.98  # of the average of weights
BOUND = 10.0  # of a gradient's norm, for each square root of the dimension


class FlowVI:
    """A flow on its way, in the coordinates of a Gaussian N(center, root root').

    Args:
        flow: in double precision.
        steps: how many there will be at most.

    Attributes:
        evidence: the estimated evidence bound of each step, in nats.
        passed: how many steps were passed over, their gradient not being finite.
        average: the averaged weights.
    """

    def __init__(self, target: UnconstrainedLogDensity, flow: Flow, center: Tensor, root: Tensor, steps: int):
        self.target, self.flow, self.center, self.root = target, flow, center, root
        self.weights: list[Tensor] = list(flow.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        self.optim = torch.optim.Adam(self.weights, lr=RATE, betas=(0.9, 0.99))
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optim, steps, eta_min=LOWEST)
        self.draws = min(MOST, max(LEAST, WORK // target.num_data))
        self.evidence: list[float] = []
        self.passed = 0
        self._log_det = torch.linalg.slogdet(root).logabsdet
        self._step = record_function(self._gradients, *self.weights)

    def run(self, steps: int) -> None:
        """Steps; one whose gradient is not finite is passed over."""
        for _ in range(steps):
            evidence, *gradients = self._step(*self.weights)
            self.evidence.append(float(evidence))
            if not all(bool(gradient.isfinite().all()) for gradient in gradients):
                self.passed += 1
                continue
            for weight, gradient in zip(self.weights, gradients, strict=True):
                weight.grad = gradient
            nn.utils.clip_grad_norm_(self.weights, BOUND * math.sqrt(self.target.dim))
            self.optim.step()
            self.schedule.step()
            with torch.no_grad():
                for mean, weight in zip(self.average, self.weights, strict=True):
                    mean.lerp_(weight, 1 - MEMORY)

    def rsample(self, count: int) -> tuple[Tensor, Tensor]:
        """Points (count, dim) of the flow with its averaged weights, and log q there."""
        live = [weight.detach().clone() for weight in self.weights]
        self.hold(self.average)
        with torch.no_grad(), validation(False):
            y, log_q = self.flow().rsample_and_log_prob((count,))
        self.hold(live)
        return self.center + y @ self.root.mT, log_q - self._log_det

    @torch.no_grad()
    def hold(self, values: Sequence[Tensor]) -> None:
        """Gives the flow these weights."""
        for weight, value in zip(self.weights, values, strict=True):
            weight.copy_(value)

    def _gradients(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The evidence, and the gradients of its negative by each weight."""
        weights = [weight.detach().requires_grad_() for weight in given]
        names = (f"flow.{name}" for name, _ in self.flow.named_parameters())
        with double_precision(), validation(False):
            evidence, loss = functional_call(_Loss(self), dict(zip(names, weights, strict=True)), ())
            return evidence, *torch.autograd.grad(loss, weights)


class _Loss(nn.Module):
    """One step's evidence and what to descend, a module so that it can be called at any weights of its flow."""

    def __init__(self, bend: FlowVI):
        super().__init__()
        self.flow, self.bend = bend.flow, bend

    def forward(self) -> tuple[Tensor, Tensor]:
        y, log_q = self.flow().rsample_and_log_prob((self.bend.draws,))
        log_p = self.bend.target.batched_log_prob(self.bend.center + y @ self.bend.root.mT)
        gain = log_p - log_q
        kept = gain.detach().isfinite()  # of q where there is a density, its evidence has these draws alone
        evidence = torch.where(kept, gain.detach(), 0.0).sum() / kept.sum().clamp(min=1) + kept.double().mean().log()
        return evidence + self.bend._log_det, -gain.mean()
