"""The law of data that the probability-flow ODE makes of a law of noise, with its density.

On the straight path w = (1 - u) v + u e, of which every path is a rescaling (`ppgen.diffusion.schedule`), the ODE and
what it does to a density along it are (Song et al. 2021, section 4.3)

    dw/du = (w - E[v | w]) / u,        d log p(w) / du = -(D - tr dE/dw) / u,

D the numbers of an event. From the noisy end u_1, where w has a law that is known, to the data end u_0 > 0 and
x = w / (1 - u_0), which is data with noise of deviation u_0 / (1 - u_0),

    log p(x) = log p(w_1) + int (D - tr dE/dw) / u du + D log(1 - u_0).

Steps are even in tau = u^(1/rho), so that they are finer where there is little noise; d/dtau is rho u / tau d/du.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ppgen.diffusion.sampler import Denoise
from ppgen.diffusion.schedule import straight
from ppgen.nets import choose
from ppgen.utils.ode import SOLVERS, State, solve

__all__ = ["ProbabilityFlow"]

RHO = 2.0


class ProbabilityFlow(TorchDistribution):
    """The law of x, as a Pyro distribution: draws by the ODE one way, densities by the ODE the other.

    Args:
        denoise: E[v | z] of z (*sample, *batch, *event) and of rates of shape ().
        start: the law of w at `sigma_max`, of the same batch and event.
        least: u_0.
        most: u_1; 1 is noise alone.
        solver: one of `ppgen.utils.ode.SOLVERS`.
        steps: of a solver of fixed steps.
        tolerance: absolute and relative, of a solver that chooses its steps.
        probes: None for the exact trace, by D derivatives of E a time; otherwise Hutchinson's estimate, the mean of
            p' (dE/dw) p over so many vectors p of random signs, drawn anew for each density (Grathwohl et al. 2019). It
            is right in the mean, and each density is one draw.

    Raises:
        ValueError: an option is out of range or unknown, or `start` is a law of numbers rather than of events.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        denoise: Denoise,
        start: TorchDistribution,
        *,
        sigma_min: float,
        sigma_max: float = 1.0,
        solver: str = "rk4",
        steps: int = 20,
        tolerance: float = 1e-5,
        probes: int | None = None,
    ) -> None:
        if not start.event_shape:
            raise ValueError("expected a start with events, such as Normal(0, 1).expand([2]).to_event(1), got numbers")
        if not 0 < sigma_min < sigma_max <= 1:
            raise ValueError(
                f"expected 0 < sigma_min < sigma_max <= 1, got sigma_min={sigma_min} and sigma_max={sigma_max}"
            )
        choose(dict.fromkeys(SOLVERS), solver, option="solver")
        if steps < 1 or not tolerance > 0:
            raise ValueError(f"expected steps of at least 1 and tolerance above 0, got {steps} and {tolerance}")
        if probes is not None and probes < 1:
            raise ValueError(f"expected probes of at least 1, or None for the exact trace, got {probes}")
        self.denoise, self.start, self.sigma_min, self.sigma_max, self.probes = (
            denoise,
            start,
            sigma_min,
            sigma_max,
            probes,
        )
        self.has_rsample = start.has_rsample
        self.options: dict[str, Any] = {"solver": solver, "steps": steps, "tolerance": tolerance}
        super().__init__(start.batch_shape, start.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "ProbabilityFlow":
        start = self.start.expand(torch.Size(batch_shape))
        return ProbabilityFlow(
            self.denoise, start, sigma_min=self.sigma_min, sigma_max=self.sigma_max, probes=self.probes, **self.options
        )

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        w = self._started(sample_shape)

        def motion(tau: Tensor, state: State) -> State:
            return (self._velocity(tau, state[0])[0],)

        return solve(motion, (w,), self._ends[::-1], **self.options)[0] / (1 - self.sigma_min)

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """A draw and its log density, on one way."""
        w = self._started(sample_shape)
        end, spread = self._carried(w, back=True)
        return end / (1 - self.sigma_min), self.start.log_prob(w) - spread + self._log_scale

    def _started(self, sample_shape: Sequence[int]) -> Tensor:
        """Draws at the noisy end; a law of one that has no `rsample`, a mixture say, has none itself."""
        draw = self.start.rsample if self.has_rsample else self.start.sample
        return draw(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        rank = value.dim() - len(self.event_shape)
        batch = torch.broadcast_shapes(value.shape[:rank], self.batch_shape)
        w, spread = self._carried(value.expand(*batch, *self.event_shape) * (1 - self.sigma_min), back=False)
        return self.start.log_prob(w) + spread + self._log_scale

    def _carried(self, w: Tensor, *, back: bool) -> tuple[Tensor, Tensor]:
        """w at the other end of the path, and the integral of the divergence on the way there."""
        dims = tuple(range(w.dim() - len(self.event_shape), w.dim()))
        along = self._directions(w)
        track = torch.is_grad_enabled()

        def motion(tau: Tensor, state: State) -> State:
            with torch.enable_grad():  # the trace is made of derivatives, whether or not it is to have some
                w = state[0] if track and state[0].requires_grad else state[0].detach().requires_grad_()
                velocity, mean, rate = self._velocity(tau, w)
                turned = [
                    (p * torch.autograd.grad(mean, w, p, create_graph=track, retain_graph=True)[0]).sum(dims)
                    for p in along
                ]
                trace = sum(turned) if self.probes is None else sum(turned) / self.probes
                spread = rate * (self.event_shape.numel() - trace)
            return (velocity, spread) if track else (velocity.detach(), spread.detach())

        ends = self._ends[::-1] if back else self._ends
        w, spread = solve(motion, (w, w.new_zeros(w.shape[: dims[0]])), ends, **self.options)
        return w, spread

    def _directions(self, w: Tensor) -> list[Tensor]:
        """Vectors p (*event or like w): their p' J p add up to the trace, or are an estimate of it each."""
        if self.probes is not None:
            return [torch.where(torch.rand_like(w) < 0.5, -1.0, 1.0).to(w.dtype) for _ in range(self.probes)]
        size = self.event_shape.numel()
        basis = torch.eye(size, dtype=w.dtype, device=w.device).reshape(size, *self.event_shape)
        return [p.expand(w.shape) for p in basis]

    def _velocity(self, tau: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dw/dtau = (rho / tau) (w - E), E, and rho / tau."""
        mean, rate = self.denoise(w, straight(tau**RHO)), RHO / tau
        return rate * (w - mean), mean, rate

    @property
    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / RHO), self.sigma_max ** (1 / RHO)

    @property
    def _log_scale(self) -> float:
        return self.event_shape.numel() * math.log1p(-self.sigma_min)
