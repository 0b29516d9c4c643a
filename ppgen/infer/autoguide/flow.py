"""A normalizing flow over all latents of a program, as a guide.

Let u hold the latents, each mapped to the real line by `biject_to` of its support, flattened and concatenated:

    u = loc + L y,    L = diag(scale) C, C unit lower triangular,    y = T(e),    e ~ N(0, I)

This is the affine map of Pyro's AutoMultivariateNormal after a flow T. T starts as the identity, so that the guide
starts as N(init_loc, init_scale^2) and can represent any full-rank Gaussian. An amortized guide is over the latents of
a row x_i of a plate. Its flow is conditioned on a context, on which loc and scale depend as well:

    c_i = encoder(x_i),    T = T(. ; c_i),    loc_i = loc + a(c_i),    scale_i = scale exp(b(c_i))

After a restart of `ppgen.fit`, its networks are drawn again and it starts as a Gaussian again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide import init_to_median
from pyro.nn import PyroParam
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import biject_to, transform_to

from ppgen.flows import FLOWS, Flow
from ppgen.flows.build import build_flow
from ppgen.flows.zuko import networks
from ppgen.infer.autoguide.affine_flow import AffineFlow
from ppgen.infer.autoguide.row_encoder import RowEncoder
from ppgen.infer.autoguide.supports import SequentialSupports
from ppgen.tracing.programs import signature
from ppgen.tracing.sites import Program, did_you_mean, quote_names

__all__ = ["AutoFlow"]


class AutoFlow(SequentialSupports):
    """A normalizing flow as the distribution of all latents of a model, or amortized, of each row's latents.

    In contrast to Pyro's AutoNormalizingFlow it starts as a Gaussian around `init_loc_fn`, can depend on data, has a
    density at any point, and its steps can be compiled.

    Args:
        model: a Pyro program whose latents are continuous.
        flow: a name in `ppgen.flows.FLOWS`; or a `Flow` over as many numbers as there are latents, which keeps its
            initial weights. Its base should be a standard one.
        layers: the number of maps in the flow; None for the default of that flow.
        hidden: the widths of its networks, and of the encoder.
        amortized: the names of those arguments of the model whose rows the guide is conditioned on, such as ``"x"`` of
            ``model(x)``; all latents of the model must lie in one plate. None for a guide that does not depend on data.
        encoder: a network from the rows of those arguments, one input each, to contexts: (n, ...) to (n, width). By
            default, a linear map plus a dense network of the rows, standardized by those of the first batch.
        init_loc_fn: the initial value of each latent, as for Pyro's autoguides.
        init_scale: the initial standard deviation of each latent, on the real line.

    Raises:
        ValueError: for options that are out of range or unknown; when it first runs, for discrete latents, for latents
            in other plates than the rows', and for an argument that is missing or has another number of rows.
        RuntimeError: when it first runs, if the model has no latents.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> import ppgen
        >>> def model():
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     pyro.sample("count", dist.Poisson(rate), obs=torch.tensor(3.0))
        >>> fit = ppgen.fit(model, ppgen.AutoFlow(model), None, steps=2, compile=False, progress=False)
        >>> bool(fit.guide()["rate"] > 0)
        True
    """

    scale_constraint: ClassVar[constraints.Constraint] = constraints.softplus_positive
    scale_tril_constraint: ClassVar[constraints.Constraint] = constraints.unit_lower_cholesky

    def __init__(
        self,
        model: Program,
        *,
        flow: str | Flow = "nsf_autoregressive",
        layers: int | None = None,
        hidden: Sequence[int] = (64, 64),
        amortized: str | Sequence[str] | None = None,
        encoder: nn.Module | None = None,
        init_loc_fn: Callable = init_to_median,
        init_scale: float = 0.1,
    ) -> None:
        if not init_scale > 0:
            raise ValueError(f"AutoFlow: init_scale must be above 0, got {init_scale}")
        if isinstance(flow, str) and flow not in FLOWS:
            raise ValueError(f"AutoFlow: no flow {flow!r}; {did_you_mean(flow, FLOWS)}")
        super().__init__(model, init_loc_fn=init_loc_fn)
        if amortized and not hidden:
            raise ValueError("AutoFlow: the last of hidden is the width of contexts, but hidden is empty")
        self._signature = signature(model)
        self._amortized = (amortized,) if isinstance(amortized, str) else tuple(amortized or ())
        for name in self._amortized:
            if name not in self._signature.parameters:
                known = did_you_mean(name, self._signature.parameters)
                raise ValueError(f"AutoFlow: amortized={name!r} is no argument of the model; {known}")
        if encoder is not None and not self._amortized:
            raise ValueError("AutoFlow: an encoder needs the names of the arguments that it reads: amortized=")
        self._flow_options = flow, layers, tuple(hidden)
        self._init_scale: float | Tensor = float(init_scale)
        self._init_values: Mapping[str, Tensor] | None = None
        self.encoder = encoder
        self._frames: dict[int, CondIndepStackFrame] = {}  # of the rows' plate, by the number of rows

    def start_from(self, values: Mapping[str, Tensor]) -> None:
        """Makes an amortized guide start with the means and standard deviations of draws, in the place of `init_scale`.

        Args:
            values: draws (n, *shape) of each latent, such as a table of simulations.
        """
        self._init_values = values

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        flow, layers, hidden = self._flow_options
        start, context_dim = self._init_loc(), 0
        if self._amortized and self.dependent_supports:
            raise ValueError(
                f"AutoFlow: the support of {quote_names(self.dependent_supports)} depends on other latents, which an "
                "amortized guide cannot follow: sample a latent on (0, 1), say, and scale it (b = a * fraction)"
            )
        if self._amortized:
            rows, start = self._rows(args, kwargs), self._mean_over_rows()
            if self.encoder is None:
                self.encoder = RowEncoder(rows, hidden).to(start)
            if self._init_values is not None:
                start, self._init_scale = self._moments(self._init_values)
            with torch.no_grad():
                context_dim = self.encoder(*rows).shape[-1]
            self.head = nn.Linear(context_dim, 2 * len(start)).to(start)
            (self._frames[len(rows[0])],) = self._prototype_frames.values()
        dim = len(start)
        if isinstance(flow, str):
            flow = build_flow(flow, dim, hidden=hidden, layers=layers, context_dim=context_dim, option="AutoFlow: flow")
        elif (tuple(flow.event_shape), flow.context_dim) != ((dim,), context_dim):
            raise ValueError(
                f"AutoFlow: expected a flow over events of shape ({dim},) with a context of width {context_dim}, got "
                f"one of shape {tuple(flow.event_shape)} with {flow.context_dim}"
            )
        self.flow = flow.to(start)
        self._start = start
        initial = self._initial_affine_map()
        self.scale = PyroParam(initial["scale"], self.scale_constraint)
        self.loc = nn.Parameter(initial["loc"])
        self.scale_tril = PyroParam(initial["scale_tril"], self.scale_tril_constraint)

    @torch.no_grad()
    def _moments(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The means and standard deviations of draws on the real line, of those that are finite there."""
        parts = []
        for name in self._unconstrained_shapes:
            u = biject_to(self.prototype_trace.nodes[name]["fn"].support).inv(values[name])
            parts.append(u.reshape(len(u), -1))
        u = torch.cat(parts, -1)
        u = u[u.isfinite().all(-1)]
        return u.mean(0), u.std(0).clamp(min=1e-6)

    @torch.no_grad()
    def _initial_affine_map(self) -> dict[str, Tensor]:
        """Sets the networks' outputs to zero; returns the affine map that makes u ~ N(start, init_scale^2)."""
        start = self._start.to(self.flow.zero)
        loc, scale = torch.zeros_like(start), torch.ones_like(start)
        if self._amortized:
            for parameter in self.head.parameters():
                parameter.zero_()
        if isinstance(self._flow_options[0], str):
            _zero_last_layers(self.flow)
            loc, scale = _mean_and_std(self.flow)
        scale = self._init_scale / scale
        return {"loc": start - scale * loc, "scale": scale, "scale_tril": torch.eye(len(start)).to(start)}

    @torch.no_grad()
    def after_restart(self) -> None:
        """Makes the guide a Gaussian of `init_scale` again, after a restart has moved all parameters.

        Without amortization its mean keeps the move. Scales and correlations of many latents would move it far away,
        and a guide of rows starts at their mean.
        """
        initial = self._initial_affine_map()
        if self._amortized:
            self.loc.copy_(initial["loc"])
        self.scale_unconstrained.copy_(transform_to(self.scale_constraint).inv(initial["scale"]))
        self.scale_tril_unconstrained.copy_(transform_to(self.scale_tril_constraint).inv(initial["scale_tril"]))

    def get_posterior(self, *args: Any, **kwargs: Any) -> AffineFlow:
        """The distribution of u: of all latents, or amortized, of the latents of each row.

        Args:
            *args: the arguments of the model.
            **kwargs: its keyword arguments.
        """
        return self._distribution(self._rows(args, kwargs) if self._amortized else ())

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Samples the latents; amortized, in the plate of the rows.

        Args:
            *args: the arguments of the model.
            **kwargs: its keyword arguments.

        Returns:
            The latents by name.

        Raises:
            ValueError: if the rows of an argument do not match the plate.
        """
        if not self._amortized:
            return super().forward(*args, **kwargs)
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        rows = self._rows(args, kwargs)
        (name,) = self._prototype_frames
        plate = self._create_plates(*args, **kwargs)[name]
        with plate as index:
            if len(rows[0]) not in (plate.size, len(index)):
                raise ValueError(
                    f"AutoFlow: expected {plate.size} rows of {self._amortized[0]!r}, as many as the plate {name!r} "
                    f"has, or {len(index)}, as many as it subsamples, got {len(rows[0])}"
                )
            if len(rows[0]) != len(index):
                rows = tuple(part[index] for part in rows)
            infer = {"is_auxiliary": True, "from_latents": (tuple(self._latent_sites), self._unconstrained)}
            u = pyro.sample(f"_{self._pyro_name}_latent", self._distribution(rows, plate.dim), infer=infer)
            return {name: pyro.sample(name, point) for name, point in self._points(u)}

    def _distribution(self, rows: tuple[Tensor, ...], dim: int = -1) -> AffineFlow:
        """The distribution of u; amortized, with the rows along the batch dimension `dim`."""
        if not rows:
            return AffineFlow(self.flow(), self.loc, self.scale, self.scale_tril)
        assert self.encoder is not None
        context = self.encoder(*rows)
        context = context.reshape(len(context), *(1,) * (-dim - 1), context.shape[-1])
        shift, log_ratio = self.head(context).chunk(2, -1)
        return AffineFlow(self.flow(context), self.loc + shift, self.scale * log_ratio.exp(), self.scale_tril)

    def _points(self, u: Tensor) -> Iterator[tuple[str, dist.Delta]]:
        """Each latent of the rows at u, with the log-determinant of the map to its support as log density."""
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            event_shape = self._unconstrained_shapes[name][len(site["fn"].batch_shape) :]
            part, u = u[..., : event_shape.numel()], u[..., event_shape.numel() :]
            transform = biject_to(site["fn"].support)
            unconstrained = part.reshape(*part.shape[:-1], *event_shape)
            value = transform(unconstrained)
            log_density = transform.inv.log_abs_det_jacobian(value, unconstrained)
            event_dim = site["fn"].event_dim
            log_density = sum_rightmost(log_density, log_density.dim() - value.dim() + event_dim)
            yield name, dist.Delta(value, log_density=log_density, event_dim=event_dim)

    @property
    def _latent_sites(self) -> dict[str, TorchDistribution]:
        """The distributions that the model gave the latents, by name."""
        return {name: site["fn"] for name, site in self.prototype_trace.iter_stochastic_nodes()}

    def _unconstrained(self, latents: Mapping[str, Tensor]) -> Tensor:
        """The u of given latents of the rows."""
        parts = []
        for name, distribution in self._latent_sites.items():
            unconstrained = biject_to(distribution.support).inv(latents[name])
            batch = latents[name].shape[: latents[name].dim() - distribution.event_dim]
            parts.append(unconstrained.reshape(*batch, -1))
        return torch.cat(parts, -1)

    def _rows(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        """The arguments that the guide is conditioned on."""
        bound = self._signature.bind_partial(*args, **kwargs)
        bound.apply_defaults()
        rows: tuple[Any, ...] = tuple(bound.arguments.get(name) for name in self._amortized)
        for name, part in zip(self._amortized, rows, strict=True):
            if not isinstance(part, Tensor) or part.dim() == 0 or len(part) != len(rows[0]):
                got = f"a tensor of shape {tuple(part.shape)}" if isinstance(part, Tensor) else f"{part!r}"
                raise ValueError(
                    f"AutoFlow: expected the argument {name!r}, which the guide is amortized over, to be a tensor of "
                    f"rows, as many in all such arguments; got {got}"
                )
        return rows

    def _mean_over_rows(self) -> Tensor:
        """The initial value of a row's latents, on the real line: the mean over rows.

        Raises:
            ValueError: if they do not all lie in one plate.
        """
        plates = {name: [frame.name for frame in stack] for name, stack in self._cond_indep_stacks.items()}
        if len(self._prototype_frames) != 1 or not all(len(stack) == 1 for stack in plates.values()):
            where = ", ".join(f"{name!r} in {stack or 'none'}" for name, stack in plates.items())
            raise ValueError(
                f"AutoFlow: an amortized guide needs latents that all lie in one plate, the rows'; here {where}. "
                "Give each group a guide of its own, by poutine.block and AutoGuideList, or leave out amortized"
            )
        (frame,) = self._prototype_frames.values()
        values = [
            biject_to(site["fn"].support).inv(site["value"].detach()).expand(self._unconstrained_shapes[name])
            for name, site in self.prototype_trace.iter_stochastic_nodes()
        ]
        return torch.cat([value.reshape(frame.size, -1) for value in values], -1).mean(0)

    def _create_plates(self, *args: Any, **kwargs: Any) -> dict[str, pyro.plate]:
        """The plates of the model; amortized, the plate of the rows has the size that the model gives it for them."""
        if not self._amortized or self.master is not None:
            return super()._create_plates(*args, **kwargs)
        (name,) = self._prototype_frames
        count = len(self._rows(args, kwargs)[0])
        if count not in self._frames:
            with torch.no_grad(), torch.random.fork_rng(), poutine.block(), _PlateFrames() as seen:
                self.model(*args, **kwargs)
            self._frames[count] = seen.frames[name]
        frame = self._frames[count]
        full_size = frame.full_size or frame.size
        rows = torch.arange(count) if count == frame.size < full_size else None  # the arguments are the subsample
        self.plates = {name: pyro.plate(name, full_size, subsample_size=frame.size, subsample=rows, dim=frame.dim)}
        return self.plates


class _PlateFrames(Messenger):
    """Collects the frames of the plates around sample sites, by name."""

    def __enter__(self) -> "_PlateFrames":
        self.frames: dict[str, CondIndepStackFrame] = {}
        return super().__enter__()

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        self.frames |= {frame.name: frame for frame in msg["cond_indep_stack"]}


def _zero_last_layers(flow: Flow) -> None:
    """Sets the last layers of a flow's networks to zero, where most of its maps are the identity."""
    for part in flow.modules():
        if isinstance(part, nn.Sequential) and not isinstance(part, networks.MonotonicMLP):
            *_, last = [layer for layer in part if isinstance(getattr(layer, "weight", None), nn.Parameter)]
            for parameter in last.parameters():
                nn.init.zeros_(parameter)


def _mean_and_std(flow: Flow) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of an untrained flow: exactly 0 and 1 if it is the identity."""
    with torch.no_grad():
        z = torch.randn(2000, *flow.event_shape, generator=torch.Generator().manual_seed(0)).to(flow.zero)
        context = flow.zero.expand(len(z), flow.context_dim) if flow.context_dim else None
        x = flow(context).transform(z)
    if torch.allclose(x, z, atol=1e-3):
        return torch.zeros_like(x[0]), torch.ones_like(x[0])
    return x.mean(0), x.std(0)
