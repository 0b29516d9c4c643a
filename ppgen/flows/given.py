"""Parameters of a map: learned as they are, or made of the context by a network."""

from collections.abc import Mapping, Sequence
from math import prod

from torch import Tensor, nn

from ppgen.flows.zuko import networks

__all__ = ["Given"]


class Given(nn.Module):
    """Tensors by name, ``given(context)["w"]`` of shape (*batch, *shape): constants, plus a network of the context.

    Args:
        start: by name what each starts from, of one dimension at least.
        hidden: the network's hidden widths.
        context_dim: the width of a context, 0 for none, and then no network.
    """

    def __init__(self, start: Mapping[str, Tensor], *, hidden: Sequence[int] = (), context_dim: int = 0) -> None:
        super().__init__()
        self.constants = nn.ParameterDict({name: nn.Parameter(value.clone()) for name, value in start.items()})
        self.network: nn.Module | None = None
        if context_dim:
            total = sum(prod(value.shape) for value in start.values())
            options = {"hidden_features": list(hidden), "activation": nn.SiLU}
            self.network = networks.MLP(context_dim, total, **options)

    def forward(self, context: Tensor | None) -> dict[str, Tensor]:
        constants = dict(self.constants.items())
        if self.network is None or context is None:
            return constants
        parts = self.network(context).split([value.numel() for value in constants.values()], -1)
        made = zip(constants.items(), parts, strict=True)
        return {name: value + part.unflatten(-1, value.shape) for (name, value), part in made}
