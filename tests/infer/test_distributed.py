"""Many processes: one of W x B rows equals W of B rows, replicas are equal, and what cannot be shared is refused."""

from typing import Any

import distributed_cases
import numpy as np
import pytest
import torch

QUICK = ["uneven", "wgan_gp", "global_latents"]
NAMES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow, id=name) for name in distributed_cases.CASES
]


@pytest.fixture(scope="module")
def results(request) -> list[dict[Any, Any]]:
    """The results of four processes, of those cases that the selected tests ask for."""
    asked = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    names = [name for name in distributed_cases.CASES if name in asked]
    return distributed_cases.start(distributed_cases.all_cases, 4, names)


def assert_equal_numbers(many: dict, one: dict, tolerance: float = 1e-10) -> None:
    assert many["weights"].keys() == one["weights"].keys()
    for kind in ("weights", "history", "adversarial"):
        for name, value in one[kind].items():
            other = torch.as_tensor(many[kind][name], dtype=torch.float64)
            expected = torch.as_tensor(value, dtype=torch.float64)
            torch.testing.assert_close(
                other, expected, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
            )


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one_with_twice_the_rows(results, name, compile):
    one = results[3 if compile else 2][name, compile, 1]
    assert_equal_numbers(results[0][name, compile, 2], one)
    if compile:
        assert "compiled at" in results[0][name, True, 2]["compiled"]
        assert "compiled at" in one["compiled"]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_global_batch(results, name):
    assert_equal_numbers(results[0][name, "gradient", 2], results[2][name, "gradient", 1])


@pytest.mark.parametrize("name", QUICK)
def test_four_processes_equal_one(results, name):
    assert_equal_numbers(results[0][name, False, 4], results[2][name, False, 1])


def test_replicas_are_bitwise_equal(results):
    for key, run in results[0].items():
        for other in (result for result in results[1:] if key[2] > 1 and key in result):
            for name, tensor in run["weights"].items():
                assert torch.equal(other[key]["weights"][name], tensor), (key, name)
            assert all(np.array_equal(other[key]["history"][k], v) for k, v in run["history"].items())
