"""Pairs of rows in blocks, for samples whose pairs do not fit in memory."""

import pytest
import torch
from metrics.helpers import close, metric_and_gradients, normal, saved_numbers, uniform
from metrics.registry import ROWS
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.metrics import MMD, EnergyDistance, pairs
from ppgen.metrics.kernel import PairMetric

PAIR_METRICS = [row.metric for row in ROWS if isinstance(row.metric, PairMetric)]


@pytest.mark.parametrize("metric", PAIR_METRICS, ids=repr)
def test_blocks_change_neither_value_nor_derivatives(metric, monkeypatch, generator):
    x, y, wx, wy = normal(generator, 6, 2), normal(generator, 5, 2) + 1, *uniform(generator, 2, 6)
    wx[4] = 0

    def derivatives(*inputs: Tensor) -> tuple[Tensor, ...]:
        inputs = tuple(part.detach().requires_grad_() for part in inputs)
        value = metric(*inputs)
        first = torch.autograd.grad(value, inputs, create_graph=True)
        return value, *first, *torch.autograd.grad(torch.cat(first[:2]).square().sum(), inputs[:2])

    inputs = (x, y, wx, wy[:5])
    at_once = derivatives(*inputs)
    monkeypatch.setattr(pairs, "MAX_PAIRS", 18)
    assert len(pairs.pair_blocks(*inputs)) == 2 + 2 + 2
    for expected, actual in zip(at_once, derivatives(*inputs), strict=True):
        close(actual, expected)
    alone = x.clone().requires_grad_()
    close(*torch.autograd.grad(metric(alone, *inputs[1:]), alone), at_once[1])


def test_blocks_refuse_a_kernel_with_parameters(monkeypatch):
    scale = torch.ones((), requires_grad=True)
    learned = MMD(kernel=lambda u: torch.exp(-scale * u), bandwidth=1.0)
    x, y = torch.zeros(6, 2), torch.ones(5, 2)
    assert torch.autograd.grad(learned(x, y), scale)[0] != 0
    monkeypatch.setattr(pairs, "MAX_PAIRS", 18)
    with pytest.raises(ValueError, match=r"MMD: .*got 6 rows of x and 5 of y"):
        learned(x, y)


@pytest.mark.parametrize("metric", [MMD(scales=(1.0,)), EnergyDistance()], ids=repr)
def test_blocks_can_be_traced(metric, monkeypatch, generator):
    x, y = normal(generator, 6, 2), normal(generator, 5, 2) + 1
    monkeypatch.setattr(pairs, "MAX_PAIRS", 29)
    traced = make_fx(lambda x, y: metric_and_gradients(metric, x, y))(x, y)
    for actual, expected in zip(traced(2 * x, y), metric_and_gradients(metric, 2 * x, y), strict=True):
        close(actual, expected)


@pytest.mark.parametrize("metric", PAIR_METRICS, ids=repr)
def test_blocks_save_rows_but_no_pairs_for_the_backward_pass(metric, monkeypatch, generator):
    def saved(n: int) -> int:
        return saved_numbers(metric, normal(generator, n, 2).requires_grad_(), normal(generator, n, 2))

    monkeypatch.setattr(pairs, "MAX_PAIRS", 40**2 - 1)
    assert saved(39) > 39**2
    assert saved(160) < 50 * 160
