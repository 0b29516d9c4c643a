"""A flow as a model of data: p(x) itself, without latents, by the exact likelihood."""

import math
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppgen.flows import FLOWS, FlowDistribution
from ppgen.models.generative import check_rows
from ppgen.nets import choose, evaluation

__all__ = ["FlowModel"]


class FlowModel(nn.Module):
    """x_i ~ flow, or flow given the label y_i. Its guide is empty: under `ppgen.Evidence` it learns by the forward KL.

    Args:
        event_shape: of a row; events of more than one dimension are flattened.
        flow: a row of `ppgen.flows.FLOWS`.
        layers: how many maps it is made of; None for its own number.
        hidden: the widths of its networks.
        num_classes: the number of labels when the model is conditioned on them, None when it is not.

    Raises:
        ValueError: an option is out of range, unknown, or not one of this flow.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        flow: str = "maf",
        layers: int | None = None,
        hidden: Sequence[int] = (64, 64),
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.event_shape, self.num_classes = tuple(event_shape), num_classes
        make = choose(FLOWS, flow, option="flow")
        options: dict[str, Any] = {} if flow == "lu_linear" else {"hidden": tuple(hidden)}
        if layers is not None:
            options["layers"] = layers
        try:
            self.flow = make(math.prod(self.event_shape), context_dim=num_classes or 0, **options)
        except TypeError as error:
            raise ValueError(f"flow={flow!r} has no such option: {error}") from error

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """x_i ~ flow(y_i), over the plate "data" of x's rows (n, *event_shape)."""
        pyro.module("flow", self.flow)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self.flow(self._context(y)), obs=x.flatten(1).to(self.flow.zero.dtype))

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """Nothing is inferred."""

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Whether the data are what this model expects; looks at every value, so call it once a data set.

        Raises:
            TypeError: x is no tensor.
            ValueError: x is not (n, *event_shape), a feature of it has one value alone, or y is missing or not wanted.
        """
        check_rows(x, self.event_shape)
        self._context(y)
        flat = x.flatten(1)
        constant = (flat == flat[:1]).all(0).nonzero().flatten().tolist() if len(x) > 1 else []
        if constant:
            which = f"{', '.join(map(str, constant[:8]))}{' and more' if len(constant) > 8 else ''}"
            raise ValueError(
                f"features {which} have one value in all {len(x)} rows, where a flow's density has no bound; leave "
                "them out, or add noise"
            )

    def sample(self, n: int, y: Tensor | None = None, *, mean: bool = False) -> Tensor:
        """n draws (n, *event_shape); a flow has no noise of its own, so there are no means.

        Raises:
            ValueError: for means, and labels that are missing or not wanted.
        """
        if mean:
            raise ValueError("a flow's draws have no means: it has no noise beside its base")
        with evaluation(self):
            law = self.flow(self._context(y))
            return law.sample((n,) if y is None else ()).reshape(n, *self.event_shape)

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x_i), or log p(x_i | y_i), in nats: (n,)."""
        with evaluation(self):
            return self.flow(self._context(y)).log_prob(x.flatten(1).to(self.flow.zero.dtype))

    def law(self, y: Tensor | None = None) -> FlowDistribution:
        """p(x), or p(x | y) for labels y of any shape: a law of events in the flow's own shape."""
        return self.flow(self._context(y))

    def pull_back(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z_i = T^-1(x_i), in the flow's own shape, and log |det dz_i / dx_i| (n,), in nats."""
        with evaluation(self):
            return self.law(y).inverse_and_log_det(x.flatten(1).to(self.flow.zero.dtype))

    def _context(self, y: Tensor | None) -> Tensor | None:
        if y is None and self.num_classes is None:
            return None
        if y is None or self.num_classes is None:
            wanted = "no labels y" if y is not None else f"labels y of {self.num_classes} classes"
            raise ValueError(f"expected {wanted}, as the model was built")
        return (y.unsqueeze(-1) == torch.arange(self.num_classes, device=y.device)).to(self.flow.zero.dtype)
