"""The invariants of a model and guide pair."""

import copy
import math
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppgen.infer import SVI
from ppgen.losses.elbo import ELBO
from ppgen.tracing.sites import DATA, latent_sites, sample_sites
from ppgen.tracing.traces import Traces

__all__ = ["check_model"]


def check_model(module: nn.Module, *data: Tensor, loss: Any = None, seed: int = 0) -> None:
    """Checks a module whose methods `model` and `guide` are Pyro programs, called with data (rows first).

    * The guide draws every latent of the model, with the same shape, and no other site unless it is auxiliary.
    * The plate "data" has as many rows as the data, in the model and in the guide.
    * The loss is finite, and the same for the same seed.
    * Three steps of SVI change every trainable parameter and keep it finite. (One step is not enough: no gradient
      reaches the parameters in front of a layer that is initialized to zero.)
    * After training, a copy with the same `state_dict` has the same loss.
    * If there is a method `check`, it accepts the data.
    * If there is a method `sample`, ``sample(3)`` (or ``sample(3, labels)`` if there are labels) returns 3 events of
      the shape of the data's, which `check` accepts.

    Args:
        module: the module; a copy is trained, and Pyro's parameter store is left as it is.
        data: a batch of at least three rows, as arguments of the programs: rows first, then labels if there are any.
        loss: the loss to train with; `ppgen.ELBO()` by default.
        seed: the seed of the programs' draws.

    Raises:
        AssertionError: if an invariant does not hold; the message names it.

    Example:
        >>> import torch
        >>> import ppgen
        >>> ppgen.testing.check_model(ppgen.models.VAE((3,), latent_dim=2, hidden=(8,)), torch.randn(20, 3))
    """
    loss = ELBO() if loss is None else loss
    trained: Any = copy.deepcopy(module)
    store = pyro.get_param_store()
    with torch.random.fork_rng(), store.scope():
        torch.manual_seed(seed)
        _check_sites(trained, data)
        value, repeated = (_loss_value(loss, trained, data, seed) for _ in range(2))
        assert math.isfinite(value), f"the loss is {value}"
        assert value == repeated, f"the loss is {value} and then {repeated} with the same seed"
        _check_training(trained, data, loss)
        value, twin = _loss_value(loss, trained, data, seed), copy.deepcopy(module)
        twin.load_state_dict(trained.state_dict())
        with store.scope():  # as in a new process
            restored = _loss_value(loss, twin, data, seed)
        assert restored == value, f"the loss is {value}, but {restored} for a copy with the same state_dict"
        _check_data(trained, data, "the data")
        if hasattr(trained, "sample"):
            labels = tuple(part[:3] for part in data[1:2])
            drawn = trained.sample(3, *labels)
            expected = (3, *data[0].shape[1:])
            assert drawn.shape == expected, f"expected sample(3) of shape {expected}, got {tuple(drawn.shape)}"
            _check_data(trained, (drawn, *labels), "draws")


def _check_sites(module: Any, data: tuple[Tensor, ...]) -> None:
    traces = Traces(module.model, module.guide, data)
    try:
        model_trace, guide_trace = traces.model_trace, traces.guide_trace
    except LookupError as error:
        raise AssertionError(f"the guide does not fit the model: {error}") from error
    latents, draws = latent_sites(model_trace), latent_sites(guide_trace)
    for name, site in latents.items():
        assert name in draws, f"the guide does not draw the latent {name!r}"
        actual, expected = draws[name]["value"].shape, site["fn"].shape()
        assert actual == expected, f"the guide draws {name!r} of shape {tuple(actual)}, expected {tuple(expected)}"
    for program, trace in (("model", model_trace), ("guide", guide_trace)):
        for name, site in sample_sites(trace).items():
            size = next((frame.size for frame in site["cond_indep_stack"] if frame.name == DATA), len(data[0]))
            assert size == len(data[0]), (
                f"the plate {DATA!r} around {name!r} in the {program} has {size} rows, the data have {len(data[0])}"
            )


def _check_training(module: Any, data: tuple[Tensor, ...], loss: Any) -> None:
    before = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    svi = SVI(module.model, module.guide, torch.optim.Adam, loss, compile=False)
    for _ in range(3):
        svi.step(*data)
    for name, parameter in module.named_parameters():
        if name in before:
            assert parameter.isfinite().all(), f"the parameter {name} is not finite after three steps"
            assert not torch.equal(parameter, before[name]), f"no gradient reaches the parameter {name}"


def _check_data(module: Any, data: tuple[Tensor, ...], description: str) -> None:
    if hasattr(module, "check"):
        try:
            module.check(*data)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"the module's own check refuses {description}: {error}") from error


def _loss_value(loss: Any, module: Any, data: tuple[Tensor, ...], seed: int) -> float:
    torch.manual_seed(seed)
    return float(loss.loss(module.model, module.guide, *data))
