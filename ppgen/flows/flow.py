"""A normalizing flow: x = T(z), z ~ base, T a bijection with a Jacobian that is known.

    log p(x) = log p_base(T^-1(x)) + log |det d T^-1(x) / dx|

The maps themselves are modules context -> torch transform, from x to z, as zuko has them; here they become Pyro
distributions, which can be sampled, scored, conditioned and replayed in any program. Nothing is cached, so that a
tensor that is fed twice is worked out twice.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from ppgen.flows.layers import ActNorm

__all__ = ["Base", "Flow", "FlowDistribution"]

Base: TypeAlias = TorchDistribution | Callable[[Tensor], TorchDistribution] | None


class Flow(nn.Module):
    """A law over events with a learned bijection; calling it gives the law, ``flow()`` or ``flow(context)``.

    Args:
        maps: a module that is called with a context (*batch, context_dim), or None, and returns a torch transform from
            events to events of the base.
        event_shape: of an event.
        context_dim: the width of a context, 0 for none.
        base: the law of z, of event shape `event_shape`, or a function that makes it; such a function is given a zero
            of the flow's device and type, which a law itself would not follow to. N(0, I) if left out.
        support: where each number of an event lies.

    In a program, register it by ``pyro.module("flow", flow)``. ``pyro.sample("x", flow(), obs=x)`` in a plate is
    maximum likelihood under `ppgen.ELBO`, the forward KL; in a guide it is a posterior, the reverse KL.
    """

    zero: Tensor

    def __init__(
        self,
        maps: nn.Module,
        event_shape: Sequence[int],
        *,
        context_dim: int = 0,
        base: Base = None,
        support: constraints.Constraint = constraints.real,
    ) -> None:
        super().__init__()
        self.support = support
        self.maps, self.event_shape, self.context_dim = maps, torch.Size(event_shape), context_dim
        self._base = base
        self.register_buffer("zero", torch.zeros(()))  # says where the flow is, and in what type
        shape = self.base.event_shape
        if shape != self.event_shape:
            raise ValueError(f"expected a base of event shape {tuple(self.event_shape)}, got {tuple(shape)}")

    @property
    def base(self) -> TorchDistribution:
        """The law of z."""
        if isinstance(self._base, torch.distributions.Distribution):
            return self._base
        if self._base is not None:
            return self._base(self.zero)
        return dist.Normal(self.zero, 1.0).expand(self.event_shape).to_event(len(self.event_shape))

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Lets the `ActNorm` layers that were not measured yet take their start from a batch x; others stay.

        `ppgen.fit` does so by a model's method ``initialize``. Elsewhere, call it before training; no step does it, so
        that steps are all the same.
        """
        norms = [part for part in self.modules() if isinstance(part, ActNorm) and not part.measured]
        if not norms:
            return
        for norm in norms:
            norm.measuring = True
        try:
            with torch.no_grad():
                self(context).inverse(x)
        finally:
            for norm in norms:
                norm.measuring = False

    def forward(self, context: Tensor | None = None) -> "FlowDistribution":
        """The law, of batch shape (*batch,) for a context (*batch, context_dim).

        Raises:
            ValueError: for a context that is missing, not wanted, or of another width.
        """
        if (0 if context is None else context.shape[-1]) != self.context_dim:
            got = "none" if context is None else f"one of shape {tuple(context.shape)}"
            raise ValueError(f"expected a context of width {self.context_dim} (0 for none), got {got}")
        return FlowDistribution(self, context, torch.Size() if context is None else context.shape[:-1])


class FlowDistribution(TorchDistribution):
    """The law of a flow at a context."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, flow: Flow, context: Tensor | None, batch_shape: torch.Size) -> None:
        self.flow, self.context = flow, context
        super().__init__(batch_shape, flow.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.flow.support, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "FlowDistribution":
        batch_shape = torch.Size(batch_shape)
        context = None if self.context is None else self.context.expand(*batch_shape, self.context.shape[-1])
        return FlowDistribution(self.flow, context, batch_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.transform(self._base(sample_shape).rsample())

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """A draw and its log density, without going back from x to z."""
        base = self._base(sample_shape)
        z = base.rsample()
        x, log_det = _forth(self._map.inv, z)
        return x, base.log_prob(z) - log_det

    def log_prob(self, value: Tensor) -> Tensor:
        z, log_det = self.inverse_and_log_det(value)
        return self.flow.base.log_prob(z) + log_det

    def transform(self, z: Tensor) -> Tensor:
        """x = T(z)."""
        return self._map.inv(self._broad(z))

    def inverse(self, x: Tensor) -> Tensor:
        """z = T^-1(x)."""
        return self._map(self._broad(x))

    def kinetic_energy(self, x: Tensor) -> Tensor:
        """Of a flow in continuous time, the integral of |dx / dt|^2 / dim along the path from x to z.

        Raises:
            TypeError: for any other flow.
        """
        x, whole = self._broad(x), self._map
        for part in getattr(whole, "transforms", [whole]):
            if hasattr(part, "energy"):
                return part.energy(x)
            x = part(x)
        raise TypeError("kinetic_energy: only the paths of a flow in continuous time have one; take `continuous`")

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z = T^-1(x), and log |det dz / dx|, in nats."""
        return _forth(self._map, self._broad(x))

    @property
    def _map(self) -> Any:
        return self.flow.maps(self.context)

    def _base(self, sample_shape: Sequence[int]) -> TorchDistribution:
        return self.flow.base.expand(torch.Size(sample_shape) + self.batch_shape)

    def _broad(self, value: Tensor) -> Tensor:
        """Events, their batch broadcast against the law's."""
        rank = value.dim() - len(self.event_shape)
        batch = torch.broadcast_shapes(value.shape[:rank], self.batch_shape)
        return value.expand(*batch, *self.event_shape)


def _forth(transform: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """What a transform makes of a value, and its log det; in one go where it can."""
    if hasattr(transform, "call_and_ladj"):
        return transform.call_and_ladj(value)
    image = transform(value)
    return image, transform.log_abs_det_jacobian(value, image)
