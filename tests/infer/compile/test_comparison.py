"""The comparison with the eager step: a wrong compiled step is never used."""

import math
from collections.abc import Callable

import pytest
import torch
from compiled_runs import SMALL, assert_same, compiled_shapes, run, run_with_warnings
from support import interpret, known_as
from torch import Tensor

from ppgen.infer.compile.building import Build


def scaled_updates(of: Callable[[Tensor], bool], by: float, *, first: bool = False) -> Callable:
    """Scales the updates of the chosen inputs, or of the first of them."""

    def wrap(call: Callable) -> Callable:
        def wrong(tensors: list[Tensor]) -> list[Tensor]:
            before = [tensor.detach().clone() for tensor in tensors]
            outputs = call(tensors)
            with torch.no_grad():
                updated = [(t, b) for t, b in zip(tensors, before, strict=True) if of(t) and not torch.equal(t, b)]
                assert updated
                for tensor, old in updated[: 1 if first else None]:
                    tensor.copy_(old + by * (tensor - old))
            return outputs

        return wrong

    return wrap


def trained(tensor: Tensor) -> bool:
    return tensor.requires_grad


WRONG: dict[str, Callable[[Callable], Callable]] = {
    "all parameters": scaled_updates(trained, 1.3),
    "one parameter": scaled_updates(trained, 1.3, first=True),
    "one parameter, not updated": scaled_updates(trained, 0.0, first=True),
    "one parameter, backward": scaled_updates(trained, -1.0, first=True),
    "moments": scaled_updates(lambda t: not t.requires_grad and t.dim() > 0, 1.3),
    "counts": scaled_updates(lambda t: not t.requires_grad and t.dim() == 0, 2.0),
    "loss": lambda call: lambda tensors: [1.01 * output for output in call(tensors)],
    "nan": lambda call: lambda tensors: [math.nan * output for output in call(tensors)],
    "too few values": lambda call: lambda tensors: call(tensors)[:-1],
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_compiled_step_is_never_used(monkeypatch, kind):
    monkeypatch.setattr(Build, "known", known_as(lambda build: WRONG[kind](interpret(build))))
    compiled, messages = run_with_warnings(SMALL, steps=12)
    assert compiled_shapes(compiled.svi) == 0
    assert len(messages) == 1
    assert messages[0].startswith("the step is not compiled, and runs eagerly")
    assert_same(compiled, run(SMALL, False, steps=12), 1e-5)
