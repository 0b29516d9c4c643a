"""Variational inference with a normalizing flow T on top of a Gaussian.

    u = c + R y,    y = T(e),    e ~ N(0, I),    T starts as the identity

    maximize ELBO = E[log p(u) - log q(u)]        over T's weights, by Adam with a cosine learning rate

A draw and its density come from one pass, so flows that are slow in the other direction can be used. A step is recorded
once as a graph and then runs without Python. The result is an exponential moving average of the weights.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ppgen.flows import FLOWS, Flow
from ppgen.posterior.gaussian_vi import OUTSIDE_PULL
from ppgen.posterior.importance import Importance, importance_summary
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.tracing.double_precision import double_precision
from ppgen.tracing.programs import validation
from ppgen.utils.budget import Budget
from ppgen.utils.torch_private import record_function

__all__ = ["HIDDEN", "FlowVI", "fit_flow", "flow_name"]

MIN_DRAWS, MAX_DRAWS = 64, 256  # per step
TERMS = 60_000  # terms of log p per step: draws times data, within these bounds
LEARNING_RATE, FINAL_LEARNING_RATE = 5e-3, 1e-4
BETAS = (0.9, 0.99)  # of Adam
EMA_DECAY = 0.98  # of the average of weights
CLIP_NORM = 10.0  # of the gradient, times the square root of the dimension
STEPS_PER_ROUND, MAX_ROUNDS = 300, 4  # importance weights are computed after each round
HIDDEN = (32, 32)  # widths of the flow's networks


def fit_flow(
    target: UnconstrainedLogDensity,
    center: Tensor,
    root: Tensor,
    *,
    draws: int,
    seed: int,
    budget: Budget | None = None,
) -> tuple["FlowVI", Tensor, np.ndarray, Importance]:
    """Fits an autoregressive flow on top of a Gaussian, until its importance weights are good twice in a row.

    The flow's order is that in which the program samples its latents, so that parents come first.

    Args:
        target: log p.
        center: c, (dim,).
        root: R, (dim, dim).
        draws: how many draws to compute importance weights from.
        seed: of all random numbers; the caller's random state is preserved.
        budget: the time, after which the fit ends with what it has reached.

    Returns:
        the fit, with averaged weights in its flow; draws (draws, dim); their log importance weights (draws, 1); the
        summary of these.
    """
    budget = budget or Budget()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with double_precision():
            flow = FLOWS[flow_name(target.dim)](target.dim, hidden=HIDDEN)
        fit, khat, good = FlowVI(target, flow, center, root, STEPS_PER_ROUND * MAX_ROUNDS), "", False
        for number in range(MAX_ROUNDS):
            budget.show(f"flow, round {number + 1} of at most {MAX_ROUNDS}{khat}")
            fit.run(STEPS_PER_ROUND, budget)
            u, log_q = fit.rsample(draws)
            log_weights = (target.log_prob(u) - log_q)[:, None].numpy()
            weights = importance_summary(log_weights)
            khat = f"; k-hat is {weights.pareto_k[0]:.2f}"
            good_before, good = good, bool(weights.good_without_weights[0])
            if (good_before and good) or not budget.left:  # once may be chance
                break
        fit.use_average()
    return fit, u, log_weights, weights


def flow_name(dim: int) -> str:
    """The name of the flow of so many latents, in `ppgen.flows.FLOWS`."""
    return "iaf_tails" if dim > 1 else "nsf_autoregressive"


class FlowVI:
    """The fit of a flow in the coordinates of a Gaussian N(center, root root').

    Args:
        target: log p.
        flow: a flow in double precision.
        center: c, (dim,).
        root: R, (dim, dim).
        steps: the number of steps of the learning rate's schedule.

    Attributes:
        elbo: the estimated ELBO of each step, in nats.
        skipped: how many steps were skipped because the gradient was not finite.
    """

    def __init__(self, target: UnconstrainedLogDensity, flow: Flow, center: Tensor, root: Tensor, steps: int) -> None:
        self.target, self.flow, self.center, self.root = target, flow, center, root
        self.weights: list[Tensor] = list(flow.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        self.optimizer = torch.optim.Adam(self.weights, lr=LEARNING_RATE, betas=BETAS)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR
        self.scheduler = cosine(self.optimizer, steps, eta_min=FINAL_LEARNING_RATE)
        most = MAX_DRAWS if target.vectorized else MIN_DRAWS
        self.draws = min(most, max(MIN_DRAWS, TERMS // target.num_data))
        self.elbo: list[float] = []
        self.skipped = 0
        self.log_det = torch.linalg.slogdet(root).logabsdet
        step = self._elbo_and_gradients
        self._step = record_function(step, *self.weights) if target.vectorized else step

    def run(self, steps: int, budget: Budget) -> None:
        """Makes some steps, while there is time; a step whose gradient is not finite leaves the weights alone."""
        for _ in range(steps):
            if not budget.left:
                break
            self.target.evaluations["gradients"] += self.draws
            elbo, *gradients = self._step(*self.weights)
            self.elbo.append(float(elbo.detach()))
            if not all(bool(gradient.isfinite().all()) for gradient in gradients):
                self.skipped += 1
                continue
            for weight, gradient in zip(self.weights, gradients, strict=True):
                weight.grad = gradient
            nn.utils.clip_grad_norm_(self.weights, CLIP_NORM * math.sqrt(self.target.dim))
            self.optimizer.step()
            self.scheduler.step()
            with torch.no_grad():
                for mean, weight in zip(self.average, self.weights, strict=True):
                    mean.lerp_(weight, 1 - EMA_DECAY)

    def rsample(self, count: int) -> tuple[Tensor, Tensor]:
        """Points (count, dim) of the flow with averaged weights, and log q at these points (count,)."""
        current = [weight.detach().clone() for weight in self.weights]
        self.use_average()
        with torch.no_grad(), validation(False):
            y, log_q = self.flow().rsample_and_log_prob((count,))
        self._set_weights(current)
        return self.center + y @ self.root.mT, log_q - self.log_det

    def use_average(self) -> None:
        """Sets the flow's weights to their moving average."""
        self._set_weights(self.average)

    @torch.no_grad()
    def _set_weights(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self.weights, values, strict=True):
            weight.copy_(value)

    def _elbo_and_gradients(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The ELBO, and the gradients of the loss in each weight, at these weights."""
        weights = [weight.detach().requires_grad_() for weight in values]
        names = (f"flow.{name}" for name, _ in self.flow.named_parameters())
        with double_precision(), validation(False):
            elbo, loss = functional_call(_Loss(self), dict(zip(names, weights, strict=True)), ())
            return elbo, *torch.autograd.grad(loss, weights)


class _Loss(nn.Module):
    """The ELBO and the loss of one step, as a module, so that it can be called at any weights of the flow."""

    def __init__(self, fit: FlowVI) -> None:
        super().__init__()
        self.flow, self.fit = fit.flow, fit

    def forward(self) -> tuple[Tensor, Tensor]:
        """The ELBO, without gradient, and the loss."""
        fit = self.fit
        y, log_q = self.flow().rsample_and_log_prob((fit.draws,))
        difference = fit.target.batched_log_prob(fit.center + y @ fit.root.mT) - log_q
        values = difference.detach()
        finite = values.isfinite()  # q is restricted to where p has a density: these draws, plus log of their share
        elbo = torch.where(finite, values, 0.0).sum() / finite.sum().clamp(min=1) + finite.double().mean().log()
        outside = -0.5 * OUTSIDE_PULL * y.square().sum(-1)
        return elbo + fit.log_det, -torch.where(finite, difference, outside).mean()
