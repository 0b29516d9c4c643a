"""Batch normalization of rows from two domains, each by its own statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["DomainNorm", "rows_of"]

MIN_ROWS = 2  # of a domain in a batch, from which its statistics are computed
TARGET = 1


class DomainNorm(nn.Module):
    """z = a (h - mu_d) / (v_d + eps)^1/2 + b, channel by channel, for a row of domain d.

    The mean mu and the variance v are those of the domain's rows in the batch and all their pixels, in eval mode their
    running averages; a and b are common. So each channel has the same mean and variance in both domains, which aligns
    them without a term in the loss. The target is d = 1, and all other domains together are the source. Rows belong to
    the target unless :func:`rows_of` says otherwise. A domain with fewer than two rows in a batch is normalized by the
    running averages. References: Li et al. 2016, https://arxiv.org/abs/1603.04779, and Chang et al. 2019,
    https://arxiv.org/abs/1906.03950.

    Args:
        width: The number of channels.
        momentum: The share of a batch in the running averages.
        eps: What is added to the variance.
        affine: Whether a and b are learned; otherwise they are 1 and 0.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor

    def __init__(self, width: int, *, momentum: float = 0.1, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.width, self.momentum, self.eps = width, momentum, eps
        for name, value in (("weight", torch.ones(width)), ("bias", torch.zeros(width))):
            if affine:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.register_buffer("mean", torch.zeros(2, width))
        self.register_buffer("var", torch.ones(2, width))
        self.domains: Tensor | None = None

    def reset_parameters(self) -> None:
        """Sets scale, shift and running averages to their initial values."""
        for one, zero in ((self.weight, self.bias), (self.var, self.mean)):
            nn.init.ones_(one)
            nn.init.zeros_(zero)

    def forward(self, value: Tensor) -> Tensor:
        """Normalizes the channels.

        Args:
            value: (batch, channels, ...), where batch is a multiple of the number of domains that `rows_of` gives.
        """
        if self.domains is None:
            target = torch.ones(len(value), dtype=torch.long, device=value.device)
        else:
            target = (self.domains == TARGET).long().repeat(len(value) // max(len(self.domains), 1))
        mean, var = self._batch_statistics(value, target) if self.training else (self.mean, self.var)
        scale = self.weight * (var + self.eps).rsqrt()
        pixels = (1,) * (value.dim() - 2)
        scale, shift = (part[target].unflatten(1, (-1, *pixels)) for part in (scale, self.bias - mean * scale))
        return value * scale + shift

    def _batch_statistics(self, value: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the variance (2, channels) of each domain, of which running averages are kept."""
        if value.dim() > 2:  # of the pixels of each row, and then of rows
            var_of_row, mean_of_row = torch.var_mean(value.flatten(2), 2, correction=0)
        else:
            var_of_row, mean_of_row = torch.zeros_like(value), value
        member = torch.stack([1 - target, target]).to(value)  # (2, batch)
        count = member.sum(1, keepdim=True)
        share = member / count.clamp(min=1)
        mean = share @ mean_of_row
        var = share @ (var_of_row + (mean_of_row - mean[target]).square())
        enough = count >= MIN_ROWS
        with torch.no_grad():
            n = count * value[:1, 0].numel()
            for running, now in ((self.mean, mean), (self.var, var * n / (n - 1).clamp(min=1))):
                running.add_(self.momentum * enough * (now - running))
        return torch.where(enough, mean, self.mean.clone()), torch.where(enough, var, self.var.clone())

    def extra_repr(self) -> str:
        """The number of channels."""
        return str(self.width)


@contextmanager
def rows_of(module: nn.Module, d: Tensor | None) -> Iterator[None]:
    """Inside, the rows that a module is called with belong to these domains.

    Args:
        module: A network with any number of `DomainNorm` layers.
        d: The domains (n,) of the rows; None if all are of the target.
    """
    layers = [part for part in module.modules() if isinstance(part, DomainNorm)]
    for layer in layers:
        layer.domains = d
    try:
        yield
    finally:
        for layer in layers:
            layer.domains = None
