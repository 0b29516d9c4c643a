"""The values of a program's latents on the real line, while it runs."""

from collections.abc import Sequence

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from ppgen.tracing.sites import Site

__all__ = ["NotedLatents"]


class NotedLatents(Messenger):
    """A handler that notes the values of latents on the real line.

    Args:
        names: the latents, in the order of a point.

    Attributes:
        parts: their values, by name.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names
        self.parts: dict[str, Tensor] = {}

    @property
    def point(self) -> Tensor:
        """All values in one vector."""
        return torch.cat([self.parts[name].reshape(-1) for name in self.names])

    def _pyro_post_sample(self, msg: Site) -> None:
        if msg["name"] in self.names:
            self._note(msg)

    def _note(self, msg: Site) -> None:
        self.parts[msg["name"]] = biject_to(msg["fn"].support).inv(msg["value"])
