"""Critics that the tests of metrics and constraints share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def two_samples(n: int = 7, m: int = 5, width: int = 2) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(n, width), torch.randn(m, width) + 0.5
    return x.double(), y.double()


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def smooth_critic(width: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def module_from(function: Callable[..., Any]) -> nn.Module:
    """A module whose forward pass is a function."""
    module = nn.Module()
    module.forward = function
    return module


class RecordingCritic(nn.Module):
    """A critic with constant scores that records its arguments."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.calls: list[tuple[Tensor, ...]] = []

    def forward(self, *sites: Tensor) -> Tensor:
        self.calls.append(sites)
        return self.value.expand(len(sites[0]))
