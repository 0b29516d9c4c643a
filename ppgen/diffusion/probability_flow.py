"""The distribution of data that the probability-flow ODE makes of a distribution of noise, with its density.

On the linear path w = (1 - u) v + u e, of which every path is a rescaling (`ppgen.diffusion.schedule`), the ODE and the
change of the log density along its solutions are (Song et al. 2021, section 4.3, https://arxiv.org/abs/2011.13456)

    dw/du = (w - E[v | w]) / u,        d log p(w) / du = -(D - tr dE/dw) / u,

where D is the number of dimensions. It is solved from the noisy end u_1, where the distribution of w is known, to the
data end u_0 > 0. The result x = w / (1 - u_0) is data with noise of standard deviation u_0 / (1 - u_0), and

    log p(x) = log p(w_1) + int (D - tr dE/dw) / u du + D log(1 - u_0).

Steps are equal in tau = u^(1/rho), so they are finer where there is little noise; d/dtau = (rho u / tau) d/du.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ppgen.diffusion.sampler import Denoise
from ppgen.diffusion.schedule import linear_interpolation
from ppgen.nets import lookup
from ppgen.utils.ode import SOLVERS, State, solve

__all__ = ["ProbabilityFlow"]

RHO = 2.0


class ProbabilityFlow(TorchDistribution):
    """The distribution of x as a Pyro distribution: the ODE is solved one way to sample, the other way to score.

    Args:
        denoise: E[v | z] as a function of z (*sample, *batch, *event) and a noise level of shape ().
        base: The distribution of w at `sigma_max`, with the same batch and event shapes.
        sigma_min: u_0, the scale of the noise at the data end of the linear path.
        sigma_max: u_1, the scale of the noise at the noisy end; 1 is pure noise.
        solver: One of `ppgen.utils.ode.SOLVERS`.
        steps: The number of steps of a fixed-step solver.
        tolerance: The absolute and relative tolerance of an adaptive solver.
        probes: None for the exact trace, which takes D derivatives of E per evaluation. Otherwise the number of random
            sign vectors p in Hutchinson's estimate of it, the mean of p' (dE/dw) p (Grathwohl et al. 2019,
            https://arxiv.org/abs/1810.01367). They are sampled once per evaluation; the estimate of the log
            density is unbiased.

    Raises:
        ValueError: If an option is unknown or out of range, or `base` has no event dimensions.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        denoise: Denoise,
        base: TorchDistribution,
        *,
        sigma_min: float,
        sigma_max: float = 1.0,
        solver: str = "rk4",
        steps: int = 20,
        tolerance: float = 1e-5,
        probes: int | None = None,
    ) -> None:
        if not base.event_shape:
            raise ValueError(
                "expected a base with event dimensions, such as Normal(0, 1).expand([2]).to_event(1), got one without"
            )
        if not 0 < sigma_min < sigma_max <= 1:
            raise ValueError(
                f"expected 0 < sigma_min < sigma_max <= 1, got sigma_min={sigma_min} and sigma_max={sigma_max}"
            )
        lookup(dict.fromkeys(SOLVERS), solver, option="solver")
        if steps < 1 or not tolerance > 0:
            raise ValueError(f"expected steps of at least 1 and tolerance above 0, got {steps} and {tolerance}")
        if probes is not None and probes < 1:
            raise ValueError(f"expected probes of at least 1, or None for the exact trace, got {probes}")
        self.denoise, self.base, self.probes = denoise, base, probes
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.has_rsample = base.has_rsample
        self.options: dict[str, Any] = {"solver": solver, "steps": steps, "tolerance": tolerance}
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """All real events."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "ProbabilityFlow":
        """Returns the distribution with the given batch shape."""
        base = self.base.expand(torch.Size(batch_shape))
        return ProbabilityFlow(
            self.denoise, base, sigma_min=self.sigma_min, sigma_max=self.sigma_max, probes=self.probes, **self.options
        )

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Samples x (*sample, *batch, *event), with gradients if the base has them."""

        def velocity(tau: Tensor, state: State) -> State:
            return (self._velocity(tau, state[0])[0],)

        w = self._sample_base(sample_shape)
        return solve(velocity, (w,), self._interval[::-1], **self.options)[0] / (1 - self.sigma_min)

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Samples x and returns its log density too, in nats, by one solution of the ODE."""
        w = self._sample_base(sample_shape)
        end, divergence = self._transport(w, to_data=True)
        return end / (1 - self.sigma_min), self.base.log_prob(w) - divergence + self._log_scale

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density (*sample, *batch), in nats."""
        rank = value.dim() - len(self.event_shape)
        batch = torch.broadcast_shapes(value.shape[:rank], self.batch_shape)
        x = value.expand(*batch, *self.event_shape)
        w, divergence = self._transport(x * (1 - self.sigma_min), to_data=False)
        return self.base.log_prob(w) + divergence + self._log_scale

    def _sample_base(self, sample_shape: Sequence[int]) -> Tensor:
        """Samples w at the noisy end, without gradients if the base has no `rsample`, as a mixture has none."""
        sample = self.base.rsample if self.has_rsample else self.base.sample
        return sample(torch.Size(sample_shape))

    def _transport(self, w: Tensor, *, to_data: bool) -> tuple[Tensor, Tensor]:
        """Returns w at the other end of the path and the integral of the divergence from here to there."""
        dims = tuple(range(w.dim() - len(self.event_shape), w.dim()))
        probes = self._probes(w)
        track = torch.is_grad_enabled()

        def velocity_and_divergence(tau: Tensor, state: State) -> State:
            with torch.enable_grad():  # the trace consists of derivatives, even if the result needs no gradient
                w = state[0] if track and state[0].requires_grad else state[0].detach().requires_grad_()
                velocity, mean, rate = self._velocity(tau, w)
                products = [
                    (p * torch.autograd.grad(mean, w, p, create_graph=track, retain_graph=True)[0]).sum(dims)
                    for p in probes
                ]
                trace = sum(products) if self.probes is None else sum(products) / self.probes
                divergence = rate * (self.event_shape.numel() - trace)
            return (velocity, divergence) if track else (velocity.detach(), divergence.detach())

        interval = self._interval[::-1] if to_data else self._interval
        w, divergence = solve(velocity_and_divergence, (w, w.new_zeros(w.shape[: dims[0]])), interval, **self.options)
        return w, divergence

    def _probes(self, w: Tensor) -> list[Tensor]:
        """Vectors p like w; the trace of J is the sum of p' J p over unit vectors, or its mean over random signs."""
        if self.probes is not None:
            return [torch.where(torch.rand_like(w) < 0.5, -1.0, 1.0).to(w.dtype) for _ in range(self.probes)]
        size = self.event_shape.numel()
        basis = torch.eye(size, dtype=w.dtype, device=w.device).reshape(size, *self.event_shape)
        return [p.expand(w.shape) for p in basis]

    def _velocity(self, tau: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dw/dtau = (rho / tau) (w - E), E, and rho / tau."""
        mean, rate = self.denoise(w, linear_interpolation(tau**RHO)), RHO / tau
        return rate * (w - mean), mean, rate

    @property
    def _interval(self) -> tuple[float, float]:
        """The values of tau at the data end and at the noisy end."""
        return self.sigma_min ** (1 / RHO), self.sigma_max ** (1 / RHO)

    @property
    def _log_scale(self) -> float:
        """D log(1 - u_0)."""
        return self.event_shape.numel() * math.log1p(-self.sigma_min)
