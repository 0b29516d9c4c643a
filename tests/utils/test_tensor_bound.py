"""A bound on the memory of tensors that are made."""

import resource

import pytest
import torch
from torch import nn

from ppgen.utils.tensor_bound import LEAST, TensorBound


def test_tensors_count_once_and_those_that_are_changed_in_place_do_not():
    x = torch.ones(1000, 1000)
    with TensorBound(3 * 4_000_000, "this"):
        a = torch.zeros(1000, 1000)
        for _ in range(100):
            a.add_(1).uniform_()
            nn.init.zeros_(a)
            nn.init.kaiming_uniform_(x)
        torch.ones_like(a) + x
        with pytest.raises(ValueError, match="this takes more than 12,000,000 bytes"):
            torch.empty(1)
    torch.empty(10_000_000)  # afterwards there is no bound


def test_layers_are_refused_before_they_are_filled():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with TensorBound(10**6, "this"), pytest.raises(ValueError, match="this takes"):
        nn.Linear(40_000, 40_000)  # 6.4 GB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000  # kB


def test_many_small_tensors_are_bounded_too():
    with TensorBound(100 * LEAST, "this"), pytest.raises(ValueError, match="this takes"):
        nn.Sequential(*(nn.Linear(1, 1) for _ in range(10**9)))
