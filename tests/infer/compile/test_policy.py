"""When a step is compiled."""

from typing import Any

import pytest
import torch
from compiled_runs import SMALL, compiled_shapes, run
from programs import no_program

import ppgen
from ppgen.infer.compile import policy


def test_auto_compiles_when_that_saves_time(builds, monkeypatch):
    def compiled(steps: int | None) -> bool:
        row = SMALL._replace(options={"steps": steps})
        return compiled_shapes(run(row, "auto", steps=6).svi) == 1

    assert not compiled(6)
    assert not compiled(None)
    assert compiled(10**9)
    monkeypatch.setattr(policy, "RECORDING_SECONDS", 0.0)
    assert compiled(1000)
    assert compiled(None)
    assert compiled(2)  # there have been more than were expected


def test_options_out_of_range_are_errors():
    def make(**options: Any) -> ppgen.SVI:
        return ppgen.SVI(no_program, no_program, torch.optim.Adam, lambda *programs: torch.zeros(()), **options)

    with pytest.raises(ValueError, match='compile must be True, False, "auto" or "cuda_graph", got \'yes\''):
        make(compile="yes")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        make(steps=0)
