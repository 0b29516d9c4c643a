"""Fused optimizers: one kernel after the compiled graph updates all parameters."""

import pytest
import torch
from compiled_runs import assert_same, run
from programs import PROGRAMS, Row, networks, torch_optim

from ppgen import recipes
from ppgen.infer import learning_rates

FUSED = {
    "adam": torch_optim(torch.optim.Adam, lr=0.01, weight_decay=0.1),
    "adamw": torch_optim(torch.optim.AdamW, lr=0.01, amsgrad=True),
    "sgd": torch_optim(torch.optim.SGD, lr=0.01, momentum=0.9),
    "adagrad": torch_optim(torch.optim.Adagrad, lr=0.1),
}


@pytest.mark.parametrize("optim", FUSED)
def test_one_kernel_after_the_graph_updates_many_parameters(builds, monkeypatch, optim):
    monkeypatch.setattr(learning_rates, "FUSE_FROM", 0)
    row = Row(
        networks,
        recipes.vae,
        FUSED[optim],
        {"lr_scheduler": PROGRAMS["networks"].options["lr_scheduler"], "clip_norm": 1.0},
    )
    compiled, eager = run(row, True), run(row, False)
    (shape,) = compiled.svi.compiled_step.policy.shapes.values()
    assert len(shape.compiled.step.fused_updates) == 1
    assert_same(compiled, eager, row.rtol)
