"""How training draws the times of a batch: each time is uniform on [0, 1]; the joint distributions differ."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["TIMES"]


def _stratified(like: Tensor) -> Tensor:
    rows = torch.arange(len(like), dtype=like.dtype, device=like.device)
    return (rows / len(like) + torch.rand_like(like[:1])) % 1


def _antithetic(like: Tensor) -> Tensor:
    half = torch.rand_like(like[: (len(like) + 1) // 2])
    return torch.cat([half, 1 - half])[: len(like)]


# Each maps a tensor (n,) to n uniform times of its dtype and device. "antithetic": pairs u and 1 - u. "stratified": one
# time in each of n equal intervals, Kingma et al. 2021, appendix I.1 (https://arxiv.org/abs/2107.00630).
TIMES: dict[str, Callable[[Tensor], Tensor]] = {
    "independent": torch.rand_like,
    "antithetic": _antithetic,
    "stratified": _stratified,
}
