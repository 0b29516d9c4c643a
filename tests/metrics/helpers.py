"""What the tests of metrics share: samples, tolerances, values with their gradients."""

import math
from typing import Any

import torch
from torch import Tensor

from ppgen.metrics import Metric


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=dtype)


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def random_weights(generator: torch.Generator, n: int) -> Tensor:
    weights = uniform(generator, n)
    return weights / weights.sum()


def close(actual: Tensor, expected: Tensor | float, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def value_and_gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return (value.detach(), *torch.autograd.grad(value, inputs))


def mean_and_error(metric: Metric, x: Tensor, y: Tensor) -> tuple[float, float]:
    """The mean of the metric over a leading dimension of repeats, and its standard error."""
    values = torch.vmap(metric)(x, y)
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def saved_numbers(function: Any, *arguments: Any) -> int:
    """How many numbers a call saves for the backward pass."""
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        function(*arguments)
    return sum(sizes)


def metric_and_gradients(metric: Metric, x: Tensor, y: Tensor, *weights: Tensor | None) -> tuple[Tensor, ...]:
    """The value, and its gradients in both samples."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    return value_and_gradients(metric(x, y, *weights), x, y)
