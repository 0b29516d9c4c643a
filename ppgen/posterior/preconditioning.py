"""A program's log density in the coordinates of a guide, where the posterior is closer to a standard Gaussian.

    u = T(y) = c + R F(y),    log p(y) = log p(u) + log |det dT / dy|        in nats

with a flow F, or without one, F(y) = y. A guide by which y ~ N(0, I) is exact makes p(y) that Gaussian; Hoffman et al.
(2019, https://arxiv.org/abs/1903.03704) run Hamiltonian Monte Carlo in such coordinates. T is a bijection, so that
draws in y are draws of the posterior however good or bad the guide is.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ppgen.flows import Flow
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.tracing.double_precision import double_precision
from ppgen.tracing.programs import validation
from ppgen.tracing.vmap import permissive_vmap
from ppgen.utils.torch_private import record_function

__all__ = ["Preconditioned"]

INVERTED = 1e-4  # relative and absolute difference of points that are the same
MAX_NUMBERS, LEAST, MOST = 2**19, 16, 1024  # data times points, that are computed at once; bounds on the points


class Preconditioned:
    """Log p(y) of a program on data (see the module's docstring).

    Args:
        target: log p(u).
        center: c, (dim,).
        root: R, (dim, dim).
        flow: F, in double precision.

    Attributes:
        dim: the dimension of y.
    """

    def __init__(self, target: UnconstrainedLogDensity, center: Tensor, root: Tensor, flow: Flow | None = None) -> None:
        self.target, self.center, self.root, self.flow, self.dim = target, center, root, flow, target.dim
        self.log_det = torch.linalg.slogdet(root).logabsdet
        numbers = sum(part.numel() for part in target.args if isinstance(part, Tensor))
        self.batch = min(MOST, max(LEAST, MAX_NUMBERS // max(1, numbers)))

    def points(self, y: Tensor) -> Tensor:
        """The points u = T(y): (n, dim)."""
        with torch.no_grad(), validation(False):
            return torch.cat([self._map(part)[0] for part in y.split(self.batch)])

    def inverse(self, u: Tensor) -> Tensor:
        """The y of points u = T(y): (n, dim). They are not exact where a flow loses digits."""
        y = torch.linalg.solve(self.root, (u - self.center).mT).mT
        if self.flow is None:
            return y
        with torch.no_grad(), validation(False):
            return self.flow().inverse(y)

    def is_at(self, y: Tensor, u: Tensor) -> Tensor:
        """Whether the points T(y) are u, to rounding: (n,)."""
        return torch.isclose(self.points(y), u, rtol=INVERTED, atol=INVERTED).all(-1)

    def without_flow(self) -> "Preconditioned":
        """The same density in the coordinates of the program, y = u."""
        return Preconditioned(self.target, torch.zeros_like(self.center), torch.eye(self.dim).to(self.root))

    def log_prob_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The values of log p(y) (n,) and its gradients (n, dim); -inf and 0 where they are not finite."""
        parts = [self._evaluate(part) for part in y.split(self.batch)]
        value, gradient = (torch.cat(each) for each in zip(*parts, strict=True))
        finite = value.isfinite() & gradient.isfinite().all(-1)
        return torch.where(finite, value, -torch.inf), torch.where(finite[:, None], gradient, 0.0)

    def _map(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The points u = T(y), and log |det dT / dy|: (n,)."""
        log_det = self.log_det.expand(len(y))
        if self.flow is not None:
            y, of_flow = self.flow().transform_and_log_det(y)
            log_det = log_det + of_flow
        return self.center + y @ self.root.mT, log_det

    def _evaluate(self, y: Tensor) -> tuple[Tensor, Tensor]:
        if not self.target.vectorized:
            return self._by_chain_rule(y)
        self.target.evaluations["gradients"] += len(y)
        padded = torch.cat([y, y[:1].expand(self.batch - len(y), -1)])
        with torch.no_grad():
            value, gradient = self._recorded(padded)
        return value[: len(y)], gradient[: len(y)]

    def _by_chain_rule(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The same for a program that runs once for each point."""
        with torch.enable_grad(), validation(False):
            y = y.detach().requires_grad_()
            u, log_det = self._map(y)
            value, outer = self.target.log_prob_and_grad(u.detach())
            (gradient,) = torch.autograd.grad((u * outer.nan_to_num()).sum() + log_det.sum(), y)
        return value + log_det.detach(), torch.where(outer.isfinite(), gradient, torch.nan)

    @cached_property
    def _recorded(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The function of a batch of points as a graph, or as it is if it cannot be recorded."""

        def evaluate(y: Tensor) -> tuple[Tensor, Tensor]:
            y = y.detach().requires_grad_()
            with torch.enable_grad(), double_precision(), validation(False), permissive_vmap():
                u, log_det = self._map(y)
                value = self.target.batched_log_prob(u) + log_det
                return value.detach(), torch.autograd.grad(value.sum(), y)[0]

        try:
            return record_function(evaluate, torch.zeros(self.batch, self.dim, dtype=torch.float64))
        except Exception:  # the function can be called, so this is due to the recording
            return evaluate
