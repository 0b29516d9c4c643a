"""What all tests and doctests share: a seed, an empty parameter store, and one thread in each of several processes."""

import os

import pyro
import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several test processes, which would wait for each other's threads
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _clean(request):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    if isinstance(request.node, pytest.DoctestItem):  # examples import what they use, as their readers have to
        request.node.dtest.globs = {"__name__": "__main__"}
