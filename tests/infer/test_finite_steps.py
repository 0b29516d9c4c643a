"""A step that is not finite changes nothing, bit for bit, whoever trains, eager and compiled."""

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from adversarial_losses import ADVERSARIAL_LOSSES, X, generator
from pyro.infer.autoguide import AutoNormal
from support import gaussian_pair
from torch import Tensor, nn

import ppgen
from ppgen.infer.adversarial import build_critics

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pyro's, of NaN

ADAM = functools.partial(torch.optim.Adam, lr=0.01)


def vae() -> tuple:
    module = ppgen.models.VAE((3,), latent_dim=2, hidden=(8,))
    return module.model, module.guide, ppgen.ELBO(), torch.randn(16, 3)


def global_latents() -> tuple:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0).expand([3]).to_event(1), obs=x)

    return model, AutoNormal(model), ppgen.ELBO(), torch.randn(16, 3)


def batch_norm() -> tuple:
    network = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 3))  # no gradient of rounding

    def model(x: Tensor) -> None:
        pyro.module("network", network)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(network(x), 1.0).to_event(1), obs=x)

    return model, lambda x: None, ppgen.ELBO(), torch.randn(16, 3)


def flow() -> tuple:
    module = ppgen.models.FlowModel((3,), flow="realnvp", layers=2, hidden=(6,))
    return module.model, module.guide, ppgen.ELBO(), torch.randn(16, 3)


def dann() -> tuple:
    """A loss with a critic of a latent, of a program with labels and domains."""
    module, x, d = ppgen.models.DANN((3,), 2, latent_dim=4, hidden=(5,)), torch.randn(16, 3), torch.arange(16) % 2
    y = torch.where(d == 0, (x[:, 0] > 0).long(), ppgen.models.UNKNOWN)
    return module.model, module.guide, ppgen.losses.recipes.dann(hidden=(6,), alpha=1.0), x, y, d


def adversarial(name: str) -> tuple:
    if name in ("aae", "vae_gan", "several"):  # their reconstructions need a density
        pair = gaussian_pair()
        return pair.model, pair.guide, ADVERSARIAL_LOSSES[name](), X
    module = generator()
    return module.model, module.guide, ADVERSARIAL_LOSSES[name](), X


PROGRAMS: dict[str, Callable[[], tuple]] = {
    "VAE": vae,
    "global latents": global_latents,
    "batch norm": batch_norm,
    "flow": flow,
    "DANN": dann,
    **{name: functools.partial(adversarial, name) for name in ADVERSARIAL_LOSSES},
}


def tensors(svi: ppgen.SVI) -> list[Tensor]:
    """All that a step may change."""
    of_optimizers = [tensor for optimizer in svi.optimizers for tensor in optimizer.tensors()]
    step = [svi.objective.step] if isinstance(svi.objective, ppgen.losses.Objective) else []
    return [tensor.clone() for tensor in (*of_optimizers, *(svi.buffers or []), *step)]


def same(before: list[Tensor], after: list[Tensor]) -> bool:
    return len(before) == len(after) and all(map(torch.equal, before, after))


def check(build: Callable[[], tuple], compile: bool) -> Any:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide, loss, x, *others = build()
    build_critics(loss, model, guide, (x, *others))
    svi = ppgen.SVI(model, guide, ADAM, loss, compile=compile, skip_nonfinite=True)
    for _ in range(5):
        svi.update(x, *others)
    before = tensors(svi)
    svi.update(x.clone().index_fill(0, torch.tensor([1]), torch.nan), *others)
    assert not svi.taken
    assert same(before, tensors(svi))
    svi.update(x, *others)
    assert svi.taken
    after = tensors(svi)
    assert not same(before, after)
    return svi, after, torch.get_rng_state()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_step_that_is_not_finite_changes_nothing(builds, name):
    _, eager, eager_state = check(PROGRAMS[name], False)
    svi, compiled, compiled_state = check(PROGRAMS[name], True)
    if svi.compile_status.startswith("compiled at step 3"):
        assert torch.equal(eager_state, compiled_state)
        for one, other in zip(compiled, eager, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, check_dtype=False)


def test_a_step_that_inductor_compiled_changes_nothing_either():
    svi, *_ = check(global_latents, True)
    assert svi.compile_status.startswith("compiled at step 3")
