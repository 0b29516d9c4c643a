"""Parameters of a transform, which may depend on a context."""

from collections.abc import Mapping, Sequence
from math import prod

from torch import Tensor, nn

from ppgen.flows.zuko import networks

__all__ = ["ConditionalParameters"]


class ConditionalParameters(nn.Module):
    """Named tensors: learned constants, plus the output of a network if there is a context.

    Args:
        initial: The initial values by name, each with at least one dimension.
        hidden: The hidden widths of the network.
        context_dim: The width of the context; 0 for none, and then no network.
    """

    def __init__(self, initial: Mapping[str, Tensor], *, hidden: Sequence[int] = (), context_dim: int = 0) -> None:
        super().__init__()
        self.constants = nn.ParameterDict({name: nn.Parameter(value.clone()) for name, value in initial.items()})
        self.network: nn.Module | None = None
        if context_dim:
            total = sum(prod(value.shape) for value in initial.values())
            options = {"hidden_features": list(hidden), "activation": nn.SiLU}
            self.network = networks.MLP(context_dim, total, **options)

    def forward(self, context: Tensor | None) -> dict[str, Tensor]:
        """Maps a context (*batch, context_dim) to tensors (*batch, *shape); without a context, to the constants."""
        constants = dict(self.constants.items())
        if self.network is None or context is None:
            return constants
        parts = self.network(context).split([value.numel() for value in constants.values()], -1)
        pairs = zip(constants.items(), parts, strict=True)
        return {name: value + part.unflatten(-1, value.shape) for (name, value), part in pairs}
