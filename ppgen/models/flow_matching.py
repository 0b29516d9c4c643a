"""Flow matching: the velocity of a path from a base to data, learned by regression.

With rows e of a base and x of data, coupled (see `ppgen.diffusion.coupling`), and u ~ U(0, 1), the path of a pair and
its velocity are

    z_u = (1 - u) x + u e,        dz/du = e - x,

and F(z, u) = E[e - x | z_u = z], which least squares learn, moves the base at u = 1 to the data at u = 0 by dz/du =
F(z, u): its law at u is that of z_u (Lipman et al. 2023; Liu et al. 2023; Tong et al. 2024). With N(0, I) for
the base it is diffusion on the straight path, with a denoiser E[x | z] = z - u F.

The better rows go together, the straighter are the paths. The Schrodinger bridge from the base to the data under
Brownian motion of deviation s has Brownian bridges between the pairs of an entropic coupling, eps = 2 s^2, and

    z_u = (1 - u) x + u e + s sqrt(u (1 - u)) n,    n ~ N(0, I),
    F(z, u) = E[e - x + (1 - 2 u) / (2 u (1 - u)) (z_u - (1 - u) x - u e) | z_u = z]     Tong et al. 2024, section 3.3

so that the equation has the bridge's law at each u.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen.diffusion import TIMES, NoiseLevel, couple, linear_interpolation, make_schedule
from ppgen.diffusion.coupling import check_coupling
from ppgen.models.sampling import NOISES, Drawing
from ppgen.nets import lookup

__all__ = ["FlowMatching"]

END = 1e-4  # the u at which densities and adaptive draws end: data with noise of so much
MARGIN = 1e-3  # how far a bridge's times keep from both ends, where its velocity has no bound


class FlowMatching(Drawing):
    """A flow from a base to data, learned from pairs; its guide is empty.

    Under `ppgen.ELBO` or `ppgen.Reconstruction` the loss is E |F(z_u, u) - dz/du|^2 / 2 + D / 2 log 2 pi, by one u
    for each row: a regression, in nats of its Gaussian, and no bound of log p(x).

    Args:
        event_shape: (features,) of a table or (channels, height, width) of images.
        base: of e: None for N(0, I), a Pyro law of one event, or rows (m, *event_shape) to draw from, each as likely.
        coupling: a row of `ppgen.diffusion.COUPLINGS`; None for "exact", or "sinkhorn" of a bridge.
        epsilon: of the coupling "sinkhorn"; None for 2 s^2 of a bridge, else as `ppgen.diffusion.couple` has it.
        label_weight: what it costs to couple rows of two labels, see `ppgen.diffusion.couple`.
        bridge: s, the deviation of a Schrodinger bridge; 0 for straight paths.
        times: a row of `ppgen.diffusion.TIMES`: how u is drawn.
        network: "dense", "unet", or a module as `ppgen.diffusion.Denoiser` takes it; None for "unet" of images and
            "dense" of the rest.
        hidden: widths of the network, see `ppgen.nets.ResidualDense` and `ppgen.nets.UNet`; None for its own.
        data_scale: the deviation of a number of the data, by which the network's input is scaled.
        levels: K, of data that are integers 0 .. K - 1, which are spread over [-1, 1], with noise in the gaps; a base
            belongs there too.
        num_classes: the number of labels when the model is conditioned on them.
        context_dim: the width of contexts (n, context_dim) that take the place of labels.
        label_dropout: how often a label, or a context, is left out in training, so that draws can be guided.
        options: further ones of the network, such as ``{"attention": True}``.

    Raises:
        TypeError: the base is neither law nor tensor.
        ValueError: an option is out of range or unknown, or the base has another shape.
    """

    noises: ClassVar[dict[str, Any]] = {"uniform": NOISES["uniform"]}
    rows: Tensor | None

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        base: Distribution | Tensor | None = None,
        coupling: str | None = None,
        epsilon: float | None = None,
        label_weight: float = 1000.0,
        bridge: float = 0.0,
        times: str = "stratified",
        network: str | nn.Module | None = None,
        hidden: Sequence[int] | None = None,
        sigma_data: float = 1.0,
        levels: int | None = None,
        num_classes: int | None = None,
        context_dim: int = 0,
        label_dropout: float = 0.1,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            event_shape,
            network=network,
            hidden=hidden,
            prediction_type="velocity",
            by_noise_fraction=True,
            sigma_data=sigma_data,
            levels=levels,
            num_classes=num_classes,
            context_dim=context_dim,
            label_dropout=label_dropout,
            options=options,
        )
        if not bridge >= 0:
            raise ValueError(f"expected bridge of at least 0, got {bridge}")
        coupling = ("sinkhorn" if bridge else "exact") if coupling is None else coupling
        if bridge and coupling == "sinkhorn" and epsilon is None:
            epsilon = 2 * bridge**2
        self.coupling: dict[str, Any] = {"coupling": coupling, "epsilon": epsilon, "label_weight": label_weight}
        check_coupling(**self.coupling)
        self.bridge, self.times = bridge, lookup(TIMES, times, option="times")
        self.schedule = make_schedule("straight", sigma_min=END)
        self.base = base if isinstance(base, Distribution) else None
        self.register_buffer("rows", self._checked(base), persistent=False)

    def model(self, x: Tensor, y: Tensor | None = None, e: Tensor | None = None) -> None:
        """velocity_i ~ N(F(z_u, u, y_i), I), observed, over the plate "data" of x's rows.

        Args:
            e: rows of the base that go with x, like x, if they are coupled already: by `couple` in larger batches, or
                as starts and ends of another flow's paths, which straightens them (Liu et al. 2023).
        """
        pyro.module("denoiser", self.denoiser)
        u, z, velocity = self.path(x, y, e)
        predicted = self.denoiser.raw(z, linear_interpolation(u), self._dropped(self._context(y)))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("velocity", dist.Normal(predicted, 1.0).to_event(len(self.event_shape)), obs=velocity)

    def guide(self, x: Tensor, y: Tensor | None = None, e: Tensor | None = None) -> None:
        """Nothing is inferred."""

    def density_model(self, x: Tensor, y: Tensor | None = None, e: Tensor | None = None) -> None:
        """x_i of the law that the velocities make, `distribution`: what diagnostics run, where `model` is a regression.

        Raises:
            ValueError: for a base of rows, which has no density.
        """
        self._marginal(x, y)

    def check(self, x: Tensor, y: Tensor | None = None, e: Tensor | None = None) -> None:
        """As `ppgen.models.Diffusion` does; ValueError too for rows e that are not like x."""
        super().check(x, y)
        if e is not None and (e.shape != x.shape or not bool(e.isfinite().all())):
            raise ValueError(f"expected finite rows e of shape {tuple(x.shape)}, like x, got {tuple(e.shape)}")

    @torch.no_grad()
    def path(self, x: Tensor, y: Tensor | None = None, e: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Draws of times u (n,), and z_u and its velocity there (n, *event_shape); arguments as `model` has them."""
        v = self._scaled(x) if self.levels is None else NOISES["uniform"](self, x)[0]
        e, u = self._coupled(v, y) if e is None else e.to(v), self.times(v.flatten(1)[:, 0])
        if self.bridge:
            u = MARGIN + (1 - 2 * MARGIN) * u
        a, s, _ = linear_interpolation(u).unsqueeze_like(v)
        z, velocity = a * v + s * e, e - v
        if self.bridge:
            noise = self.bridge * (a * s).sqrt() * torch.randn_like(v)
            z, velocity = z + noise, velocity + (a - s) / (2 * a * s) * noise
        return u, z, velocity

    def _coupled(self, v: Tensor, y: Tensor | None) -> Tensor:
        """Rows of the base that go with v."""
        e, labels = self._draw(len(v)), None if y is None else y[torch.randperm(len(y), device=y.device)]
        return e.index_select(0, couple(e, v, **self.coupling, labels_z=labels, labels_x=y))

    def _draw(self, n: int) -> Tensor:
        """n rows of the base."""
        parameter = next(self.denoiser.parameters())
        if self.rows is not None:
            return self.rows[torch.randint(len(self.rows), (n,), device=self.rows.device)].to(parameter.dtype)
        if self.base is not None:
            return self.base.sample(torch.Size([n])).to(parameter)
        return torch.randn(n, *self.event_shape, dtype=parameter.dtype, device=parameter.device)

    def _last(self, level: NoiseLevel, batch: torch.Size) -> Distribution:
        """The base."""
        if self.rows is not None:
            raise ValueError("a base of rows has no density: build the model with a Pyro law for its base")
        distribution = self.base
        if distribution is None:
            distribution = dist.Normal(torch.zeros_like(level.noise), 1.0).expand(self.event_shape).to_event()
        return distribution.expand(batch)

    def _start(self, levels: NoiseLevel, batch: torch.Size) -> Tensor:
        return self._draw(batch.numel()).reshape(*batch, *self.event_shape)

    def _grid(self, steps: int, sampler: str) -> NoiseLevel:
        """Even from u = 1 to 1 / steps, since the last step is one of Euler's to u = 0; that of "adaptive" is small."""
        last, count = (END, max(steps, 2)) if sampler == "adaptive" else (1 / steps, steps)
        like = next(self.denoiser.parameters())
        return linear_interpolation(torch.linspace(1, last, count, dtype=like.dtype, device=like.device))

    def _options(self, sampler: str, context: Tensor | None, options: dict[str, Any]) -> dict[str, Any]:
        """Refuses samplers that add noise where that of a path is not Gaussian and independent of the data."""
        added = {"ancestral": 1.0, "ddim": options.get("eta", 0.0), "edm": options.get("churn", 40.0)}
        diffusion = self.rows is None and self.base is None and not self.bridge
        if added.get(sampler) and not (diffusion and self.coupling["coupling"] == "independent"):
            raise ValueError(
                f"sampler={sampler!r} adds Gaussian noise, which keeps the law of a path from N(0, I) alone, with "
                "coupling='independent' and no bridge: take 'euler', 'heun', 'dpm++2m' or 'adaptive', 'ddim' with "
                "eta=0, or 'edm' with churn=0"
            )
        return options

    def _checked(self, base: Distribution | Tensor | None) -> Tensor | None:
        """The rows of a base that is made of rows."""
        if isinstance(base, Tensor):
            if len(base) == 0 or tuple(base.shape[1:]) != self.event_shape or not bool(base.isfinite().all()):
                expected = f"(m, {', '.join(map(str, self.event_shape))})"
                raise ValueError(f"expected finite rows of shape {expected} as the base, got {tuple(base.shape)}")
            return base.detach()
        if isinstance(base, Distribution):
            if base.batch_shape or tuple(base.event_shape) != self.event_shape:
                raise ValueError(
                    f"expected a base of one event of shape {self.event_shape}, got batch shape "
                    f"{tuple(base.batch_shape)} and event shape {tuple(base.event_shape)}: Normal(...).to_event(k) "
                    "joins its last k dimensions to an event"
                )
        elif base is not None:
            raise TypeError(f"expected a Pyro distribution, a tensor of rows or None as the base, got {base!r}")
        return None
