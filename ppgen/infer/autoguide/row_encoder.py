"""The default encoder of an amortized guide: rows of data to contexts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppgen.nets import Dense

__all__ = ["RowEncoder"]


class RowEncoder(nn.Module):
    """Maps rows to contexts W x + network(x), where x is the standardized row, all its parts side by side.

    The linear part learns a posterior mean that is nearly linear in the data from few rows.

    Args:
        rows: example rows, from which mean and standard deviation are computed; one tensor (n, ...) for each argument.
        hidden: widths of the network's layers; the last one is the width of the contexts.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, rows: tuple[Tensor, ...], hidden: Sequence[int]) -> None:
        super().__init__()
        flat = _side_by_side(rows)
        scale = flat.std(0, correction=0)
        self.register_buffer("mean", flat.mean(0))
        self.register_buffer("scale", torch.where(scale > 0, scale, 1.0))
        self.linear = nn.Linear(flat.shape[-1], hidden[-1], bias=False)
        self.network = Dense(flat.shape[-1], hidden[-1], hidden=hidden)

    def forward(self, *rows: Tensor) -> Tensor:
        """The contexts (n, width) of rows."""
        x = (_side_by_side(rows).to(self.mean.dtype) - self.mean) / self.scale
        return self.linear(x) + self.network(x)


def _side_by_side(rows: Sequence[Tensor]) -> Tensor:
    floating = next((part.dtype for part in rows if part.is_floating_point()), torch.get_default_dtype())
    return torch.cat([part.reshape(len(part), -1).to(floating) for part in rows], -1)
