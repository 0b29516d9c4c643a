"""Flow matching: the velocity of a path from a base distribution to data, learned by regression.

With rows e of a base and x of data, coupled (see `ppgen.diffusion.coupling`), and u ~ U(0, 1), the path of a pair and
its velocity are

    z_u = (1 - u) x + u e,        dz/du = e - x.

Least squares learn F(z, u) = E[e - x | z_u = z]. The ODE dz/du = F(z, u) transports the base at u = 1 to the data
at u = 0, and its distribution at u is that of z_u (Lipman et al., https://arxiv.org/abs/2210.02747; Liu et al.,
https://arxiv.org/abs/2209.03003; Tong et al., https://arxiv.org/abs/2302.00482). With the base N(0, I) it is diffusion
on the linear path, with the denoiser E[x | z] = z - u F.

The better the coupling, the straighter are the paths. The Schrodinger bridge from the base to the data under Brownian
motion of standard deviation s consists of Brownian bridges between the pairs of an entropic coupling with eps = 2 s^2:

    z_u = (1 - u) x + u e + s sqrt(u (1 - u)) n,    n ~ N(0, I),
    F(z, u) = E[e - x + (1 - 2 u) / (2 u (1 - u)) (z_u - (1 - u) x - u e) | z_u = z]     (Tong et al., section 3.3)

so that the ODE has the distribution of the bridge at each u.
"""

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from ppgen.diffusion import TIMES, NoiseLevel, couple, linear_interpolation, make_schedule
from ppgen.diffusion.coupling import check_coupling
from ppgen.models.denoising import DenoiserOptions
from ppgen.models.options import constructed_from
from ppgen.models.sampling import DEQUANTIZATIONS, DenoisingSampler
from ppgen.nets import lookup

__all__ = ["FlowMatching", "FlowMatchingOptions"]

SIGMA_MIN = 1e-4  # the u at which densities and the adaptive sampler end: data with noise of this scale
BRIDGE_MARGIN = 1e-3  # distance of a bridge's times from 0 and 1, where its velocity is unbounded


@dataclass(frozen=True, kw_only=True)
class FlowMatchingOptions(DenoiserOptions):
    """Options of :class:`FlowMatching`.

    With ``levels``, uniform noise is added to v; the base should have the scale of v, [-1, 1], too.

    Attributes:
        base: the distribution of e: None for N(0, I), a Pyro distribution of one event, or rows (m, *event_shape), of
            which each is drawn with the same probability.
        coupling: a row of `ppgen.diffusion.COUPLINGS`; None for "exact", or "sinkhorn" of a bridge.
        epsilon: the regularization of "sinkhorn"; None for 2 s^2 of a bridge, else the default of
            `ppgen.diffusion.couple`.
        label_weight: the cost of a pair with different labels, see `ppgen.diffusion.couple`.
        bridge: s, the standard deviation of a Schrodinger bridge; 0 for straight paths.
        times: the distribution of u, a row of `ppgen.diffusion.TIMES`.
    """

    base: Distribution | Tensor | None = None
    coupling: str | None = None
    epsilon: float | None = None
    label_weight: float = 1000.0
    bridge: float = 0.0
    times: str = "stratified"

    def coupling_options(self) -> dict[str, Any]:
        """Keyword arguments of `ppgen.diffusion.couple`.

        Raises:
            ValueError: if the bridge or an option of the coupling is out of range.
        """
        if not self.bridge >= 0:
            raise ValueError(f"expected bridge of at least 0, got {self.bridge}")
        coupling, epsilon = self.coupling, self.epsilon
        if coupling is None:
            coupling = "sinkhorn" if self.bridge else "exact"
        if self.bridge and coupling == "sinkhorn" and epsilon is None:
            epsilon = 2 * self.bridge**2
        options: dict[str, Any] = {"coupling": coupling, "epsilon": epsilon, "label_weight": self.label_weight}
        check_coupling(**options)
        return options


class FlowMatching(DenoisingSampler):
    """A flow from a base to data, learned from pairs; its guide is empty.

    Under `ppgen.ELBO` or `ppgen.Reconstruction` the loss is E |F(z_u, u) - dz/du|^2 / 2 + D / 2 log 2 pi, with one u
    for each row: a regression, in nats of its Gaussian, and no bound of log p(x).

    The arguments are the fields of :class:`FlowMatchingOptions`.

    Raises:
        TypeError: if the base is neither a distribution nor a tensor.
        ValueError: if an option is unknown or out of range, or the base has another shape.
    """

    rows: Tensor | None

    @constructed_from(FlowMatchingOptions)
    def __init__(self, options: FlowMatchingOptions) -> None:
        super().__init__(options, prediction_type="velocity", by_noise_fraction=True)
        self.coupling = options.coupling_options()
        self.bridge, self.times = options.bridge, lookup(TIMES, options.times, option="times")
        self.schedule = make_schedule("straight", sigma_min=SIGMA_MIN)
        self._check_base(options.base)
        self.base = options.base if isinstance(options.base, Distribution) else None
        rows = options.base.detach() if isinstance(options.base, Tensor) else None
        self.register_buffer("rows", rows, persistent=False)

    def model(self, x: Tensor, y: Tensor | None = None, e: Tensor | None = None) -> None:
        """The program velocity_i ~ N(F(z_u, u, y_i), I), observed, over the plate "data" of the rows of x.

        Args:
            x: data (n, *event_shape).
            y: labels (n,) or contexts (n, context_dim) of a conditional model.
            e: rows of the base that are coupled with those of x already, (n, *event_shape): by `couple` in larger
                batches, or as starts of the paths of another flow that end in x, which straightens them (Liu et al.).
        """
        pyro.module("denoiser", self.denoiser)
        u, z, velocity = self.path(x, y, e)
        predicted = self.denoiser.raw(z, linear_interpolation(u), self._drop_context(self._context(y)))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("velocity", dist.Normal(predicted, 1.0).to_event(len(self.event_shape)), obs=velocity)

    def guide(self, x: Tensor, y: Tensor | None = None, e: Tensor | None = None) -> None:
        """The empty program: nothing is inferred."""

    def density_model(self, x: Tensor, y: Tensor | None = None, e: Tensor | None = None) -> None:
        """The program x_i ~ `distribution`, which diagnostics run because `model` is a regression; arguments as there.

        Raises:
            ValueError: for a base of rows, which has no density.
        """
        self._density_program(x, y)

    def check(self, x: Tensor, y: Tensor | None = None, e: Tensor | None = None) -> None:
        """Checks the data. This reads every value, so call it once for a data set.

        Args:
            x: as in `model`.
            y: as in `model`.
            e: as in `model`.

        Raises:
            TypeError: as `DenoisingModel.check` does.
            ValueError: as `DenoisingModel.check` does, and for rows e of another shape than x.
        """
        super().check(x, y)
        if e is not None and (e.shape != x.shape or not bool(e.isfinite().all())):
            raise ValueError(f"expected finite rows e of shape {tuple(x.shape)}, like x, got {tuple(e.shape)}")

    @torch.no_grad()
    def path(self, x: Tensor, y: Tensor | None = None, e: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Draws of points on paths.

        Args:
            x: as in `model`.
            y: as in `model`.
            e: as in `model`.

        Returns:
            The times u (n,), and z_u and its velocity (n, *event_shape).
        """
        v = self._scale(x) if self.levels is None else DEQUANTIZATIONS["uniform"](self, x)[0]
        e, u = self._couple(v, y) if e is None else e.to(v), self.times(v.flatten(1)[:, 0])
        if self.bridge:
            u = BRIDGE_MARGIN + (1 - 2 * BRIDGE_MARGIN) * u
        a, s, _ = linear_interpolation(u).unsqueeze_like(v)
        z, velocity = a * v + s * e, e - v
        if self.bridge:
            noise = self.bridge * (a * s).sqrt() * torch.randn_like(v)
            z, velocity = z + noise, velocity + (a - s) / (2 * a * s) * noise
        return u, z, velocity

    def _couple(self, v: Tensor, y: Tensor | None) -> Tensor:
        """Draws of the base, coupled with v."""
        e, labels = self._sample_base(len(v)), None if y is None else y[torch.randperm(len(y), device=y.device)]
        return e.index_select(0, couple(e, v, **self.coupling, labels_z=labels, labels_x=y))

    def _sample_base(self, n: int) -> Tensor:
        """Draws n rows of the base."""
        parameter = next(self.denoiser.parameters())
        if self.rows is not None:
            return self.rows[torch.randint(len(self.rows), (n,), device=self.rows.device)].to(parameter.dtype)
        if self.base is not None:
            return self.base.sample(torch.Size([n])).to(parameter)
        return torch.randn(n, *self.event_shape, dtype=parameter.dtype, device=parameter.device)

    def _terminal_distribution(self, level: NoiseLevel, batch: torch.Size) -> Distribution:
        """The base."""
        if self.rows is not None:
            raise ValueError("a base of rows has no density: build the model with a Pyro distribution for its base")
        distribution = self.base
        if distribution is None:
            distribution = dist.Normal(torch.zeros_like(level.noise), 1.0).expand(self.event_shape).to_event()
        return distribution.expand(batch)

    def _initial_noise(self, levels: NoiseLevel, batch: torch.Size) -> Tensor:
        return self._sample_base(batch.numel()).reshape(*batch, *self.event_shape)

    def _noise_levels(self, steps: int, sampler: str) -> NoiseLevel:
        """Equally spaced u from 1 to 1 / steps, since the last step is an Euler step to u = 0; to ~0 for "adaptive"."""
        last, count = (SIGMA_MIN, max(steps, 2)) if sampler == "adaptive" else (1 / steps, steps)
        like = next(self.denoiser.parameters())
        return linear_interpolation(torch.linspace(1, last, count, dtype=like.dtype, device=like.device))

    def _sampler_options(self, sampler: str, context: Tensor | None, options: dict[str, Any]) -> dict[str, Any]:
        """Refuses samplers that add noise, unless the noise of the path is Gaussian and independent of the data."""
        added = {"ancestral": 1.0, "ddim": options.get("eta", 0.0), "edm": options.get("churn", 40.0)}
        gaussian = self.rows is None and self.base is None and not self.bridge
        if added.get(sampler) and not (gaussian and self.coupling["coupling"] == "independent"):
            raise ValueError(
                f"sampler={sampler!r} adds Gaussian noise, which preserves the distribution of a path from N(0, I) "
                "alone, with coupling='independent' and no bridge: choose 'euler', 'heun', 'dpm++2m' or 'adaptive', "
                "'ddim' with eta=0, or 'edm' with churn=0"
            )
        return options

    def _check_base(self, base: Distribution | Tensor | None) -> None:
        if isinstance(base, Tensor):
            if len(base) == 0 or tuple(base.shape[1:]) != self.event_shape or not bool(base.isfinite().all()):
                expected = f"(m, {', '.join(map(str, self.event_shape))})"
                raise ValueError(f"expected finite rows of shape {expected} as the base, got {tuple(base.shape)}")
        elif isinstance(base, Distribution):
            if base.batch_shape or tuple(base.event_shape) != self.event_shape:
                raise ValueError(
                    f"expected a base of one event of shape {self.event_shape}, got batch shape "
                    f"{tuple(base.batch_shape)} and event shape {tuple(base.event_shape)}: Normal(...).to_event(k) "
                    "makes its last k dimensions one event"
                )
        elif base is not None:
            raise TypeError(f"expected a Pyro distribution, a tensor of rows or None as the base, got {base!r}")
