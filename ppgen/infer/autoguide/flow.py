"""Guides that Pyro lacks: a normalizing flow over all latents of a program.

With u the latents, each mapped to the real line by `biject_to` of its support, flattened and put side by side,

    u = loc + L y,    L = diag(scale) C, C unit lower triangular,    y = T(e),    e ~ N(0, I)

an affine map as of Pyro's AutoMultivariateNormal after a flow T. T starts as the identity, so that the guide starts as
N(init_loc, init_scale^2) and is never less than a full Gaussian. Amortized, the latents are those of a row x_i of a
plate, with a flow of their own given a context: loc and scale are then those of the row too,

    c_i = encoder(x_i),    T = T(. ; c_i),    loc_i = loc + a(c_i),    scale_i = scale exp(b(c_i))

A restart of `ppgen.fit` draws its networks again, and it starts as such a Gaussian again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide import AutoContinuous, init_to_median
from pyro.nn import PyroParam
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import biject_to, transform_to

from ppgen.flows import FLOWS, Flow, FlowDistribution
from ppgen.flows.zuko import networks
from ppgen.nets import Dense
from ppgen.tracing.programs import signature
from ppgen.tracing.sites import Program, did_you_mean

__all__ = ["AutoFlow"]


class AutoFlow(AutoContinuous):
    """A flow as the law of all latents of a model together, or of each row's, given the row.

    Against Pyro's AutoNormalizingFlow: it starts at a Gaussian around `init_loc_fn`, may depend on data, and scores
    what it has not drawn; its steps can be compiled.

    Args:
        model: a Pyro program whose latents are continuous.
        flow: a row of `ppgen.flows.FLOWS`; or a `Flow` over as many numbers as there are latents, which starts where it
            is, its base a standard one.
        layers: how many maps the flow is made of; None for its own number.
        hidden: the widths of its networks, and of the encoder.
        amortized: the names of those arguments of the model whose rows the context is a function of, for a model whose
            latents all lie in one plate. ``"x"`` of ``model(x)``. None for a guide that does not look at data.
        encoder: a network from the rows of those arguments, one argument each, to contexts: (n, ...) to (n, width). If
            left out, a linear map of the rows plus a dense network of them, brought to unit scale by those of the first
            batch.
        init_loc_fn: where each latent starts, as of Pyro's autoguides.
        init_scale: the standard deviation of each latent at the start, on the real line.

    Raises:
        ValueError: for options that are out of range or unknown; when it first runs, for discrete latents, for latents
            in other plates than the rows', and for an argument that is missing or of another number of rows.
        RuntimeError: when it first runs, if the model has no latents.
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
            raise ValueError(f"AutoFlow: init_scale is more than 0, got {init_scale}")
        if isinstance(flow, str) and flow not in FLOWS:
            raise ValueError(f"AutoFlow: no flow {flow!r}; {did_you_mean(flow, FLOWS)}")
        super().__init__(model, init_loc_fn=init_loc_fn)
        if amortized and not hidden:
            raise ValueError("AutoFlow: hidden has the width of contexts for its last, got none")
        self._signature = signature(model)
        self._rows_of = (amortized,) if isinstance(amortized, str) else tuple(amortized or ())
        for name in self._rows_of:
            if name not in self._signature.parameters:
                known = did_you_mean(name, self._signature.parameters)
                raise ValueError(f"AutoFlow: amortized={name!r} is no argument of the model; {known}")
        if encoder is not None and not self._rows_of:
            raise ValueError("AutoFlow: an encoder needs the names of the arguments that it reads: amortized=")
        self._made_of = flow, layers, tuple(hidden), float(init_scale)
        self.encoder = encoder
        self._frames: dict[int, CondIndepStackFrame] = {}

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        flow, layers, hidden, _ = self._made_of
        start, context_dim = self._init_loc(), 0
        if self._rows_of:
            rows, start = self._rows(args, kwargs), self._start_of_rows()
            if self.encoder is None:
                self.encoder = Encoder(rows, hidden).to(start)
            with torch.no_grad():
                context_dim = self.encoder(*rows).shape[-1]
            self.head = nn.Linear(context_dim, 2 * len(start)).to(start)
            (self._frames[len(rows[0])],) = self._prototype_frames.values()
        dim = len(start)
        if isinstance(flow, str):
            options: dict[str, Any] = {} if flow == "lu_linear" else {"hidden": hidden}
            options |= {} if layers is None else {"layers": layers}
            try:
                flow = FLOWS[flow](dim, context_dim=context_dim, **options)
            except TypeError as error:
                raise ValueError(f"AutoFlow: flow={flow!r} has no such option: {error}") from error
        elif (tuple(flow.event_shape), flow.context_dim) != ((dim,), context_dim):
            raise ValueError(
                f"AutoFlow: expected a flow over events of shape ({dim},) with a context of width {context_dim}, got "
                f"one of shape {tuple(flow.event_shape)} with {flow.context_dim}"
            )
        self.flow = flow.to(start)
        self._begin = start
        begin = self._gaussian()
        self.scale = PyroParam(begin["scale"], self.scale_constraint)
        self.loc = nn.Parameter(begin["loc"])
        self.scale_tril = PyroParam(begin["scale_tril"], self.scale_tril_constraint)

    @torch.no_grad()
    def _gaussian(self) -> dict[str, Tensor]:
        """Lets networks give out nothing; returns the affine map by which u then is N(start, init_scale^2)."""
        flow, *_, init_scale = self._made_of
        start = self._begin.to(self.flow.zero)
        loc, scale = torch.zeros_like(start), torch.ones_like(start)
        if self._rows_of:
            for parameter in self.head.parameters():
                parameter.zero_()
        if isinstance(flow, str):
            _zero_last_layers(self.flow)
            loc, scale = _moments(self.flow)
        scale = init_scale / scale
        return {"loc": start - scale * loc, "scale": scale, "scale_tril": torch.eye(len(start)).to(start)}

    @torch.no_grad()
    def after_restart(self) -> None:
        """After a restart has moved all parameters: a Gaussian of `init_scale` again, where it was if amortized.

        Not amortized, its mean keeps the move. In scales and correlations of many latents it would lead far off, and a
        guide of rows begins where their latents lie.
        """
        begin = self._gaussian()
        if self._rows_of:
            self.loc.copy_(begin["loc"])
        self.scale_unconstrained.copy_(transform_to(self.scale_constraint).inv(begin["scale"]))
        self.scale_tril_unconstrained.copy_(transform_to(self.scale_tril_constraint).inv(begin["scale_tril"]))

    def get_posterior(self, *args: Any, **kwargs: Any) -> "Affine":
        """The law of u: of all latents, or amortized, of the latents of each row of the arguments."""
        return self._law(self._rows(args, kwargs)) if self._rows_of else self._law(())

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        if not self._rows_of:
            return super().forward(*args, **kwargs)
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        rows = self._rows(args, kwargs)
        (name,) = self._prototype_frames
        plate = self._create_plates(*args, **kwargs)[name]
        with plate as index:
            if len(rows[0]) not in (plate.size, len(index)):
                raise ValueError(
                    f"AutoFlow: expected {plate.size} rows of {self._rows_of[0]!r}, as many as the plate {name!r} has, "
                    f"or {len(index)}, as it draws, got {len(rows[0])}"
                )
            if len(rows[0]) != len(index):
                rows = tuple(part[index] for part in rows)
            infer = {"is_auxiliary": True, "pulled_back": (tuple(self._supports), self._pulled_back)}
            u = pyro.sample(f"_{self._pyro_name}_latent", self._law(rows, plate.dim), infer=infer)
            return {name: pyro.sample(name, point) for name, point in self._points(u)}

    def _law(self, rows: tuple[Tensor, ...], dim: int = -1) -> "Affine":
        """The law of u; of rows, those along the batch dimension `dim`."""
        if not rows:
            return Affine(self.flow(), self.loc, self.scale, self.scale_tril)
        assert self.encoder is not None
        context = self.encoder(*rows)
        context = context.reshape(len(context), *(1,) * (-dim - 1), context.shape[-1])
        shift, log_ratio = self.head(context).chunk(2, -1)
        return Affine(self.flow(context), self.loc + shift, self.scale * log_ratio.exp(), self.scale_tril)

    def _points(self, u: Tensor) -> Iterator[tuple[str, dist.Delta]]:
        """Each latent of the rows at u, with the log density that the map to its support adds."""
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
    def _supports(self) -> dict[str, TorchDistribution]:
        return {name: site["fn"] for name, site in self.prototype_trace.iter_stochastic_nodes()}

    def _pulled_back(self, latents: Mapping[str, Tensor]) -> Tensor:
        """The u that latents of the rows follow from."""
        parts = []
        for name, distribution in self._supports.items():
            unconstrained = biject_to(distribution.support).inv(latents[name])
            batch = latents[name].shape[: latents[name].dim() - distribution.event_dim]
            parts.append(unconstrained.reshape(*batch, -1))
        return torch.cat(parts, -1)

    def _rows(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        """The arguments that the context is a function of."""
        given = self._signature.bind_partial(*args, **kwargs)
        given.apply_defaults()
        rows: tuple[Any, ...] = tuple(given.arguments.get(name) for name in self._rows_of)
        for name, part in zip(self._rows_of, rows, strict=True):
            if not isinstance(part, Tensor) or part.dim() == 0 or len(part) != len(rows[0]):
                got = f"a tensor of shape {tuple(part.shape)}" if isinstance(part, Tensor) else f"{part!r}"
                raise ValueError(
                    f"AutoFlow: expected the argument {name!r}, which the guide is amortized over, to be a tensor of "
                    f"rows, as many in all such arguments; got {got}"
                )
        return rows

    def _start_of_rows(self) -> Tensor:
        """Where a row's latents start, on the real line: the mean over rows.

        Raises:
            ValueError: if they do not all lie in one plate.
        """
        plates = {name: [frame.name for frame in stack] for name, stack in self._cond_indep_stacks.items()}
        if len(self._prototype_frames) != 1 or not all(len(stack) == 1 for stack in plates.values()):
            where = ", ".join(f"{name!r} in {stack or 'none'}" for name, stack in plates.items())
            raise ValueError(
                f"AutoFlow: amortized, it is a guide of latents that lie in one plate, that of the rows; here {where}. "
                "Give each group a guide of its own, by poutine.block and AutoGuideList, or leave out amortized"
            )
        (frame,) = self._prototype_frames.values()
        values = [
            biject_to(site["fn"].support).inv(site["value"].detach()).expand(self._unconstrained_shapes[name])
            for name, site in self.prototype_trace.iter_stochastic_nodes()
        ]
        return torch.cat([value.reshape(frame.size, -1) for value in values], -1).mean(0)

    def _create_plates(self, *args: Any, **kwargs: Any) -> dict[str, pyro.plate]:
        """Amortized, the plate is as large as the model makes it for so many rows."""
        if not self._rows_of or self.master is not None:
            return super()._create_plates(*args, **kwargs)
        (name,) = self._prototype_frames
        count = len(self._rows(args, kwargs)[0])
        if count not in self._frames:
            with torch.no_grad(), torch.random.fork_rng(), poutine.block(), _Frames() as seen:
                self.model(*args, **kwargs)
            self._frames[count] = seen.frames[name]
        frame = self._frames[count]
        full_size = frame.full_size or frame.size
        rows = torch.arange(count) if count == frame.size < full_size else None  # they are the subsample
        self.plates = {name: pyro.plate(name, full_size, subsample_size=frame.size, subsample=rows, dim=frame.dim)}
        return self.plates


class Affine(TorchDistribution):
    """The law of loc + diag(scale) C y, y ~ a flow. A draw of it is scored without going back through the flow."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: FlowDistribution, loc: Tensor, scale: Tensor, scale_tril: Tensor) -> None:
        self.flow, self.loc, self.scale, self.scale_tril = flow, loc, scale, scale_tril
        self._drawn: tuple[Tensor, Tensor] | None = None
        batch_shape = torch.broadcast_shapes(flow.batch_shape, loc.shape[:-1])
        super().__init__(batch_shape, flow.event_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "Affine":
        return Affine(self.flow.expand(batch_shape), self.loc, self.scale, self.scale_tril)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        y, log_prob = self.flow.rsample_and_log_prob(sample_shape)
        u = self.loc + self.scale * (y @ self.scale_tril.mT)
        self._drawn = u, log_prob - self._log_det
        return u

    def log_prob(self, value: Tensor) -> Tensor:
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        scaled = (value - self.loc) / self.scale
        columns = scaled.reshape(-1, scaled.shape[-1]).T
        y = torch.linalg.solve_triangular(self.scale_tril, columns, upper=False, unitriangular=True).T
        return self.flow.log_prob(y.reshape(scaled.shape)) - self._log_det

    @property
    def _log_det(self) -> Tensor:
        return self.scale.log().sum(-1)


class Encoder(nn.Module):
    """Rows to contexts: W x + network(x), x the parts of a row side by side, brought to unit scale by example rows.

    A mean that is linear in the rows, or nearly, need not be learned by a network, which takes many of them.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, rows: tuple[Tensor, ...], hidden: Sequence[int]) -> None:
        super().__init__()
        flat = _side_by_side(rows)
        spread = flat.std(0, correction=0)
        self.register_buffer("center", flat.mean(0))
        self.register_buffer("spread", torch.where(spread > 0, spread, 1.0))
        self.linear = nn.Linear(flat.shape[-1], hidden[-1], bias=False)
        self.network = Dense(flat.shape[-1], hidden[-1], hidden=hidden)

    def forward(self, *rows: Tensor) -> Tensor:
        x = (_side_by_side(rows).to(self.center.dtype) - self.center) / self.spread
        return self.linear(x) + self.network(x)


def _side_by_side(rows: Sequence[Tensor]) -> Tensor:
    floating = next((part.dtype for part in rows if part.is_floating_point()), torch.get_default_dtype())
    return torch.cat([part.reshape(len(part), -1).to(floating) for part in rows], -1)


class _Frames(Messenger):
    """Notes the plates around sites."""

    def __enter__(self) -> "_Frames":
        self.frames: dict[str, CondIndepStackFrame] = {}
        return super().__enter__()

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        self.frames |= {frame.name: frame for frame in msg["cond_indep_stack"]}


def _zero_last_layers(flow: Flow) -> None:
    """Sets to zero what the networks of a flow give out at first, where most of its maps are the identity."""
    for part in flow.modules():
        if isinstance(part, nn.Sequential) and not isinstance(part, networks.MonotonicMLP):
            *_, last = [layer for layer in part if isinstance(getattr(layer, "weight", None), nn.Parameter)]
            for parameter in last.parameters():
                nn.init.zeros_(parameter)


def _moments(flow: Flow) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a flow at its start: exactly 0 and 1 where it is the identity."""
    with torch.no_grad():
        z = torch.randn(2000, *flow.event_shape, generator=torch.Generator().manual_seed(0)).to(flow.zero)
        context = flow.zero.expand(len(z), flow.context_dim) if flow.context_dim else None
        x = flow(context).transform(z)
    if torch.allclose(x, z, atol=1e-3):
        return torch.zeros_like(x[0]), torch.ones_like(x[0])
    return x.mean(0), x.std(0)
