"""The invariants of a model and guide pair."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.infer import SVI
from ppgen.losses.elbo import ELBO
from ppgen.tracing.sites import latent_sites, sample_sites
from ppgen.tracing.traces import Traces

__all__ = ["check_model"]


def check_model(module: nn.Module, *data: Tensor, loss: Any = None, seed: int = 0) -> None:
    """Checks a module whose methods `model` and `guide` are Pyro programs, called with data (rows first).

    * The guide draws every latent of the model, of the same shape, and nothing else.
    * Every random site lies in the plate "data", whose size is the number of rows, or is global.
    * The loss is a finite number, the same for the same seed.
    * Three steps of SVI change every trainable parameter and keep it finite (three, since behind a layer of zeros the
      first step passes no gradient).
    * If there is a method `sample`, `sample(n)` gives n events of the shape of the first part of the data, and `check`,
      if there is one, accepts the data and the draws.
    * A copy with the same `state_dict` has the same loss.

    Args:
        module: the pair; a copy is trained.
        data: a batch, as the programs take it.
        loss: the loss that it is trained under, `ppgen.ELBO()` if left out.
        seed: seed of the programs' draws.

    Raises:
        AssertionError: naming the invariant that does not hold.

    Example:
        >>> import torch
        >>> import ppgen
        >>> ppgen.testing.check_model(ppgen.models.VAE((3,), latent_dim=2, hidden=(8,)), torch.randn(20, 3))
    """
    loss = ELBO() if loss is None else loss
    trained: Any = copy.deepcopy(module)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _check_sites(trained, data)
        values = [_value(loss, trained, data, seed) for _ in range(2)]
        assert values[0] == values[1], f"the loss of one seed is {values[0]} and then {values[1]}"
        assert abs(values[0]) < float("inf"), f"the loss is {values[0]}"
        twin: Any = copy.deepcopy(module)
        twin.load_state_dict(trained.state_dict())
        assert _value(loss, twin, data, seed) == values[0], "a copy with the same state has another loss"

        before = {name: p.detach().clone() for name, p in trained.named_parameters() if p.requires_grad}
        svi = SVI(trained.model, trained.guide, torch.optim.Adam, loss, compile=False)
        for _ in range(3):
            svi.step(*data)
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                assert parameter.isfinite().all(), f"{name} is not finite after three steps"
                assert not torch.equal(parameter, before[name]), f"no gradient reaches {name}"
        if hasattr(trained, "check"):
            trained.check(*data)
        if hasattr(trained, "sample"):
            labels = (data[1][:3],) if len(data) > 1 else ()
            drawn = trained.sample(3, *labels)
            assert drawn.shape == (3, *data[0].shape[1:]), f"sample(3) has the shape {tuple(drawn.shape)}"
            if hasattr(trained, "check"):
                trained.check(drawn, *labels)


def _value(loss: Any, module: Any, data: tuple[Tensor, ...], seed: int) -> float:
    torch.manual_seed(seed)
    return float(loss.loss(module.model, module.guide, *data))


def _check_sites(module: Any, data: tuple[Tensor, ...]) -> None:
    traces = Traces(module.model, module.guide, data)
    model_trace, guide_trace = traces.model_trace, traces.guide_trace
    latent, drawn = latent_sites(model_trace), latent_sites(guide_trace)
    for name, site in latent.items():
        assert name in drawn, f"the guide does not draw the latent {name!r}"
        got, expected = drawn[name]["value"].shape, site["fn"].shape()
        assert got == expected, f"the guide draws {name!r} of shape {tuple(got)}, the model has {tuple(expected)}"
    for name, site in sample_sites(model_trace).items():
        frames = {frame.name: frame.size for frame in site["cond_indep_stack"]}
        size = frames.get("data", len(data[0]))
        assert size == len(data[0]), f"{name!r}: the plate 'data' has {size} rows, the data {len(data[0])}"
