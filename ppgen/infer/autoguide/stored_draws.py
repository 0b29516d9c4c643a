"""A guide that has draws of the posterior in the place of a distribution with parameters."""

from collections.abc import Callable
from typing import Any

from pyro.infer.autoguide import init_to_median
from torch import Tensor

from ppgen.infer.autoguide.supports import SequentialSupports
from ppgen.tracing.sites import Program
from ppgen.tracing.stored_draws import StoredDraws

__all__ = ["AutoDraws"]


class AutoDraws(SequentialSupports):
    """Draws of all latents together, on the real line, such as those of a sampler.

    Args:
        model: a Pyro program whose latents are continuous.
        count: the number of draws.
        init_loc_fn: the initial value of each latent, as for Pyro's autoguides.

    Attributes:
        draws: the draws, (count, dim); those of the initial values at first.
    """

    draws: Tensor

    def __init__(self, model: Program, *, count: int, init_loc_fn: Callable = init_to_median) -> None:
        super().__init__(model, init_loc_fn=init_loc_fn)
        self.count = count

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.register_buffer("draws", self._init_loc().expand(self.count, -1).clone())

    def get_posterior(self, *args: Any, **kwargs: Any) -> StoredDraws:
        """The distribution of u.

        Args:
            *args: the arguments of the model, which it does not depend on.
            **kwargs: its keyword arguments.
        """
        return StoredDraws(self.draws)
