"""Arguments of a compiled step: each shape and each other value has its own compiled function."""

import functools
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pytest
import torch
from compiled_runs import compiled_shapes
from programs import no_program
from torch import Tensor

import ppgen
from ppgen.infer.compile import policy
from ppgen.infer.compile.arguments import argument_key, leaves, map_tensors


def run_calls(compile: bool, args: Callable, *, loss: Callable, steps: int = 24) -> tuple[ppgen.SVI, Tensor]:
    """A run whose t-th step is called with args(t) = (args, kwargs): losses, then parameters."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    svi = ppgen.SVI(no_program, no_program, functools.partial(torch.optim.Adam, lr=0.05), loss, compile=compile)
    losses = []
    for t in range(steps):
        given, named = args(t)
        losses.append(svi.step(*given, **named))
    return svi, torch.cat(
        [torch.tensor(losses), *(leaf.detach().flatten() for leaf in svi.optimizer.parameters.values())]
    )


def assert_compiled_is_eager(args: Callable, *, loss: Callable, steps: int = 24) -> ppgen.SVI:
    svi, compiled = run_calls(True, args, loss=loss, steps=steps)
    torch.testing.assert_close(compiled, run_calls(False, args, loss=loss, steps=steps)[1], rtol=1e-5, atol=1e-6)
    return svi


def fitted(model: Callable, guide: Callable, x: Tensor, y: Any = None, *, beta: Any = 1.0, kind: str = "l1") -> Tensor:
    w = pyro.param("w", torch.tensor([3.0, 4.0]))
    error = x @ w + torch.randn(len(x)) - (0.0 if y is None else torch.as_tensor(y).sum(-1))
    penalty = w.abs() if kind == "l1" else w.pow(2)
    return error.pow(2).mean() + (7.0 if beta is True else beta) * penalty.sum()


DATA = torch.randn(24, 6, 2, generator=torch.Generator().manual_seed(5))


def test_smaller_last_batch_is_compiled_separately(builds):
    svi = assert_compiled_is_eager(lambda t: ((DATA[t][: 2 if t % 4 == 3 else 6],), {}), loss=fitted)
    assert (compiled_shapes(svi), len(builds)) == (2, 2)


def test_further_shapes_stay_eager_when_the_limit_is_reached(builds, monkeypatch):
    monkeypatch.setattr(policy, "MAX_COMPILED", 2)
    svi = assert_compiled_is_eager(lambda t: ((DATA[t][: 2 + t % 4],), {}), loss=fitted)
    assert (compiled_shapes(svi), len(builds)) == (2, 2)


def test_values_of_other_arguments_are_compiled_separately(builds):
    def args(t: int) -> tuple:
        return (DATA[t],), {"beta": (0.5, 2.0)[t % 2], "kind": ("l1", "l2")[t // 2 % 2]}

    assert (compiled_shapes(assert_compiled_is_eager(args, loss=fitted)), len(builds)) == (4, 4)


def test_equal_arguments_of_different_types_are_distinguished(builds):
    assert_compiled_is_eager(lambda t: ((DATA[t],), {"beta": 1 if t < 12 else True}), loss=fitted)


def test_steps_with_numpy_arrays_stay_eager(builds):
    svi = assert_compiled_is_eager(lambda t: ((DATA[t], DATA[-1 - t].numpy()), {}), loss=fitted)
    assert compiled_shapes(svi) == 0


def test_one_tensor_may_be_two_arguments(builds):
    assert_compiled_is_eager(lambda t: ((DATA[t], DATA[t] if t % 2 else DATA[0]), {}), loss=fitted)


def test_argument_may_be_a_tensor_that_a_closure_holds(builds):
    def loss(model: Callable, guide: Callable, x: Tensor) -> Tensor:
        return fitted(model, guide, x - DATA[0]) + held.mean()

    held = DATA[0]
    assert_compiled_is_eager(lambda t: ((held if t < 12 else DATA[t],), {}), loss=loss)


def test_arguments_may_be_views_of_one_batch(builds):
    svi = assert_compiled_is_eager(lambda t: ((DATA[t], DATA[t].flip(0)[:, :1].expand(-1, 2)), {}), loss=fitted)
    assert compiled_shapes(svi) == 1


def test_compiled_loss_that_is_nan_warns(builds):
    svi, _ = run_calls(True, lambda t: ((DATA[t],), {}), loss=fitted, steps=6)
    with pytest.warns(UserWarning, match="the loss is NaN"):
        assert math.isnan(svi.step(DATA[0] * math.nan))


# The functions themselves.


class Pair(NamedTuple):
    first: Any
    second: Any


X, Y = torch.zeros(2), torch.ones(3)
TREES: dict[str, tuple[Any, list]] = {
    "leaf": (X, [X]),
    "tuple and list": ((X, [1, Y], None), [X, 1, Y, None]),
    "dict": ({"a": X, "b": {"c": Y}}, [X, Y]),
    "ordered": (OrderedDict(b=X, a=Y), [X, Y]),
    "default": (defaultdict(list, a=[X]), [X]),
    "named tuple": (Pair(X, (Y, 2)), [X, Y, 2]),
    "shape": (X.shape, [X.shape]),
}


@pytest.mark.parametrize("kind", TREES)
def test_leaves_and_containers_survive_a_map(kind):
    tree, expected = TREES[kind]
    found = list(leaves(tree))
    assert all(a is b or a == b for a, b in zip(found, expected, strict=True))
    mapped = map_tensors(lambda tensor: tensor.numel(), tree)
    assert type(mapped) is (int if isinstance(tree, Tensor) else type(tree))
    assert list(leaves(mapped)) == [part.numel() if isinstance(part, Tensor) else part for part in expected]


def test_key_tells_containers_and_values_apart():
    calls = [((X,), {}), ((Y,), {}), ((X, 1), {}), ((X, 1.0), {}), (((X,),), {}), (([X],), {}), ((), {"x": X})]
    calls += [(({key: X},), {}) for key in (1, 1.0, True)]
    keys = [argument_key(*call)[1] for call in calls]
    assert len(set(keys)) == len(calls)
    assert argument_key((X + 1,), {})[1] == keys[0]
    assert argument_key((np.zeros(2),), {}) == ([], None)
