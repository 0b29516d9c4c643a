"""The state of Pyro's optimizers, saved and loaded: runs continue as those of stock Pyro, in either direction."""

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from programs import no_program
from pyro import infer, optim
from torch import Tensor

import ppgen

START = {"a": [3.0, -4.0], "b": [1.0]}
OPTIMIZERS: dict[str, Callable[[], optim.PyroOptim]] = {
    "adam": lambda: optim.Adam({"lr": 0.1}),
    "adam_by_name": lambda: optim.Adam(lambda name: {"lr": 0.1 if name == "a" else 0.2}),
    "sgd": lambda: optim.SGD({"lr": 0.05, "momentum": 0.9}),
    "clipped_adam": lambda: optim.ClippedAdam({"lr": 0.1, "lrd": 0.8}),
    "adagrad": lambda: optim.AdagradRMSProp({"eta": 0.5}),
    "schedule": lambda: optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.7}),
}
SVIS: dict[str, Callable[..., Any]] = {"stock": infer.SVI, "ppgen": ppgen.SVI}
PAIRS = [(before, after) for before in SVIS for after in SVIS if (before, after) != ("stock", "stock")]


def loss(model: Callable, guide: Callable) -> Tensor:
    """Of two parameters, in closed form."""
    a, b = (pyro.param(name, torch.tensor(start)) for name, start in START.items())
    return (a.square() * torch.tensor([1.0, 3.0])).sum() + (b - a.sum()).square().sum()


def advance(optimizer: optim.PyroOptim, kind: str, steps: int) -> list[Tensor]:
    """Takes steps with a new SVI, and returns the parameters after each."""
    svi = SVIS[kind](no_program, no_program, optimizer, loss)
    values = []
    for _ in range(steps):
        svi.step()
        if isinstance(optimizer, optim.lr_scheduler.PyroLRScheduler):
            optimizer.step()
        values.append(torch.cat([pyro.param(name).detach() for name in START]).clone())
    return values


@pytest.mark.parametrize(("before", "after"), PAIRS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_saved_state_continues_a_run_as_stock_pyro_does(name, before, after, tmp_path):
    expected = advance(OPTIMIZERS[name](), "stock", 7)
    pyro.clear_param_store()
    first = OPTIMIZERS[name]()
    values = advance(first, before, 4)
    first.save(tmp_path / "optimizer")
    pyro.get_param_store().save(tmp_path / "parameters")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "parameters")
    second = OPTIMIZERS[name]()
    second.load(tmp_path / "optimizer")
    values += advance(second, after, 3)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_another_svi_with_the_same_optimizer_continues(name):
    expected = advance(OPTIMIZERS[name](), "stock", 6)
    pyro.clear_param_store()
    optimizer = OPTIMIZERS[name]()
    values = [value for _ in range(3) for value in advance(optimizer, "ppgen", 2)]
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


def test_a_state_is_a_copy_for_each_parameter():
    optimizer = OPTIMIZERS["adam"]()
    advance(optimizer, "ppgen", 2)
    state = copy.deepcopy(optimizer.get_state())
    assert state.keys() == START.keys()
    assert state["b"]["state"][0]["exp_avg"].shape == (1,)
    pyro.clear_param_store()
    stock = OPTIMIZERS["adam"]()
    advance(stock, "stock", 2)
    for name, one in stock.get_state().items():
        assert state[name]["param_groups"] == one["param_groups"]
        for key, value in one["state"][0].items():
            torch.testing.assert_close(state[name]["state"][0][key], value)


def test_learning_rates_of_a_pyro_optimizer_can_be_read_and_set():
    optimizer = OPTIMIZERS["sgd"]()
    svi = ppgen.SVI(no_program, no_program, optimizer, loss)
    svi.step()
    groups = [view.param_groups[0] for view in optimizer.optim_objs.values()]
    assert [group["lr"] for group in groups] == [0.05, 0.05]
    for group in groups:
        group["lr"] = 0.0
    before = pyro.param("a").detach().clone()
    svi.step()
    assert torch.equal(pyro.param("a"), before)
