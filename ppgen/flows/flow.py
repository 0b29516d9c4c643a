"""Normalizing flows: x = T(z), z ~ base, where T is a bijection with a tractable Jacobian.

    log p(x) = log p_base(T^-1(x)) + log |det dT^-1(x) / dx|

The maps T^-1, from x to z, are modules that map a context to a torch transform, as in zuko. A `Flow` makes them Pyro
distributions, which can be sampled, scored, conditioned and replayed in any program. Nothing is cached: a tensor that
is passed twice is evaluated twice.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from ppgen.flows.image_layers import ActNorm
from ppgen.flows.marginals import Gaussianization
from ppgen.flows.whitening import Whitening

__all__ = ["Base", "Flow", "FlowDistribution"]

Base: TypeAlias = TorchDistribution | Callable[[Tensor], TorchDistribution] | None


class Flow(nn.Module):
    """A distribution given by a learned bijection: ``flow()`` or ``flow(context)`` returns it.

    In a program, register the flow by ``pyro.module("flow", flow)``. ``pyro.sample("x", flow(), obs=x)`` in a plate is
    maximum likelihood under `ppgen.ELBO`, the forward KL divergence; a flow in a guide is a posterior, fitted by the
    reverse KL divergence.

    Args:
        maps: T^-1: a module that is called with a context (*batch, context_dim), or None, and returns a torch transform
            from x to z.
        event_shape: The shape of x.
        context_dim: The width of the context, 0 for none.
        base: The distribution of z, with event shape `event_shape`; None for N(0, I). A function of a zero tensor
            returns the distribution on the zero's device and with its dtype; a distribution itself cannot be moved.
        support: The support of each number of x.

    Raises:
        ValueError: If the base has another event shape.

    Example:
        >>> import torch
        >>> from ppgen import flows
        >>> p = flows.realnvp(2, hidden=(8,))()
        >>> z = torch.randn(5, 2)
        >>> x = p.transform(z)
        >>> torch.allclose(p.inverse(x), z, atol=1e-4)
        True
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
        self.register_buffer("zero", torch.zeros(()))  # carries the flow's device and dtype
        shape = self.base.event_shape
        if shape != self.event_shape:
            raise ValueError(f"expected a base of event shape {tuple(self.event_shape)}, got {tuple(shape)}")

    @property
    def base(self) -> TorchDistribution:
        """The distribution of z."""
        if isinstance(self._base, torch.distributions.Distribution):
            return self._base
        if self._base is not None:
            return self._base(self.zero)
        return dist.Normal(self.zero, 1.0).expand(self.event_shape).to_event(len(self.event_shape))

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Initializes the layers `ActNorm`, `Whitening`, `Gaussianization` that are not initialized yet from a batch.

        `ppgen.fit` does so by the method ``initialize`` of a model. Elsewhere, call it before training. Training steps
        never do it, so that all steps are the same.

        Args:
            x: The batch (*batch, *event).
            context: The context (*batch, context_dim), or None.
        """
        kinds = ActNorm | Whitening | Gaussianization
        norms = [part for part in self.modules() if isinstance(part, kinds) and not part.initialized]
        if not norms:
            return
        for norm in norms:
            norm.initializing = True
        try:
            with torch.no_grad():
                self(context).inverse(x)
        finally:
            for norm in norms:
                norm.initializing = False

    def forward(self, context: Tensor | None = None) -> "FlowDistribution":
        """Returns the distribution, of batch shape (*batch,) for a context (*batch, context_dim).

        Raises:
            ValueError: If the context is missing, not expected, or of the wrong width.
        """
        if (0 if context is None else context.shape[-1]) != self.context_dim:
            got = "none" if context is None else f"one of shape {tuple(context.shape)}"
            raise ValueError(f"expected a context of width {self.context_dim} (0 for none), got {got}")
        return FlowDistribution(self, context, torch.Size() if context is None else context.shape[:-1])


class FlowDistribution(TorchDistribution):
    """The distribution of a flow, given a context.

    Args:
        flow: The flow.
        context: The context (*batch, context_dim), or None.
        batch_shape: The batch shape.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, flow: Flow, context: Tensor | None, batch_shape: torch.Size) -> None:
        self.flow, self.context = flow, context
        super().__init__(batch_shape, flow.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The support of events."""
        return constraints.independent(self.flow.support, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "FlowDistribution":
        """Returns the distribution with the given batch shape."""
        batch_shape = torch.Size(batch_shape)
        context = None if self.context is None else self.context.expand(*batch_shape, self.context.shape[-1])
        return FlowDistribution(self.flow, context, batch_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Samples x (*sample, *batch, *event), with gradients."""
        return self.transform(self._expanded_base(sample_shape).rsample())

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Samples x and returns its log density too, in nats, without evaluating T^-1."""
        base = self._expanded_base(sample_shape)
        z = base.rsample()
        x, log_det = self.transform_and_log_det(z)
        return x, base.log_prob(z) - log_det

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density (*sample, *batch), in nats."""
        z, log_det = self.inverse_and_log_det(value)
        return self.flow.base.log_prob(z) + log_det

    def transform(self, z: Tensor) -> Tensor:
        """Returns x = T(z)."""
        return self._transform.inv(self._broadcast(z))

    def inverse(self, x: Tensor) -> Tensor:
        """Returns z = T^-1(x)."""
        return self._transform(self._broadcast(x))

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns z = T^-1(x) and log |det dz / dx|, in nats."""
        return _call_and_log_det(self._transform, self._broadcast(x))

    def transform_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns x = T(z) and log |det dx / dz|, in nats."""
        return _call_and_log_det(self._transform.inv, self._broadcast(z))

    def kinetic_energy(self, x: Tensor) -> Tensor:
        """The integral of |dx / dt|^2 / dim along the path from x to z of a continuous-time flow.

        Raises:
            TypeError: If the flow has no continuous-time map.
        """
        x, transform = self._broadcast(x), self._transform
        for part in getattr(transform, "transforms", [transform]):
            if hasattr(part, "kinetic_energy"):
                return part.kinetic_energy(x)
            x = part(x)
        raise TypeError("kinetic_energy: only a continuous-time flow has paths; use `continuous`")

    @property
    def _transform(self) -> Any:
        """T^-1 as a torch transform."""
        return self.flow.maps(self.context)

    def _expanded_base(self, sample_shape: Sequence[int]) -> TorchDistribution:
        return self.flow.base.expand(torch.Size(sample_shape) + self.batch_shape)

    def _broadcast(self, value: Tensor) -> Tensor:
        """Events, with their batch dimensions broadcast against the distribution's."""
        rank = value.dim() - len(self.event_shape)
        batch = torch.broadcast_shapes(value.shape[:rank], self.batch_shape)
        return value.expand(*batch, *self.event_shape)


def _call_and_log_det(transform: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """A transform's value and log determinant, by one evaluation where it supports that."""
    if hasattr(transform, "call_and_ladj"):
        return transform.call_and_ladj(value)
    image = transform(value)
    return image, transform.log_abs_det_jacobian(value, image)
