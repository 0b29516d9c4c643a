"""Laws of the times at which a path is looked at in training: uniform each, and together more or less spread out."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["TIMES"]


def _stratified(x: Tensor) -> Tensor:
    rows = torch.arange(len(x), dtype=x.dtype, device=x.device)
    return (rows / len(x) + torch.rand_like(x[:1])) % 1


def _antithetic(x: Tensor) -> Tensor:
    half = torch.rand_like(x[: (len(x) + 1) // 2])
    return torch.cat([half, 1 - half])[: len(x)]


# laws of uniform times (n,): independent; u and 1 - u in pairs; one in each of n equal parts (Kingma et al. 2021, I.1)
TIMES: dict[str, Callable[[Tensor], Tensor]] = {
    "independent": torch.rand_like,
    "antithetic": _antithetic,
    "stratified": _stratified,
}
