"""`ppgen.fit` of losses with critics: metrics, weights, restarts, schedules, files."""

import functools
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from adversarial_losses import ADVERSARIAL_LOSSES, SMALL, X, critics_of, generator, nothing
from programs import bits
from support import gaussian_pair
from torch import Tensor

import ppgen
from ppgen import metrics as m
from ppgen import recipes
from ppgen.infer.adversarial import build_critics
from ppgen.training import chain as chain_trainer

# these tests are of chains, not of which one is best
pytestmark = pytest.mark.filterwarnings("ignore:the best of restarts goes by the loss:UserWarning")


def fit(name: str | ppgen.Objective = "gan", programs: Any = None, **options: Any) -> ppgen.Fit:
    module = generator()
    model, guide = programs or (module.model, module.guide)
    loss = ADVERSARIAL_LOSSES[name]() if isinstance(name, str) else name
    given = {"progress": False, "steps": 6, "optim": functools.partial(torch.optim.Adam, lr=0.01), **options}
    return ppgen.fit(model, guide, X, loss=loss, **given)


def of_critics(weights: dict[str, Tensor]) -> list[Tensor]:
    return [tensor for name, tensor in weights.items() if name.startswith("critic ")]


def same(one: ppgen.Fit, other: ppgen.Fit) -> bool:
    """Whether two fits ran alike, bit for bit."""
    a, b = (
        [
            [
                np.asarray(values)
                for kind in (c.history, c.adversarial_metrics, c.weights)
                for _, values in sorted(kind.items())
            ]
            for c in f.chains
        ]
        for f in (one, other)
    )
    return len(a) == len(b) and all(
        len(p) == len(q) and all(map(np.array_equal, p, q)) for p, q in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("name", ["gan", "several"])
def test_adversarial_metrics_have_one_number_per_step(name):
    pair = gaussian_pair()
    loss = ADVERSARIAL_LOSSES[name]()
    result = fit(loss, (pair.model, pair.guide), batch_size=7, steps=9)
    (chain,) = result.chains
    names = {f"{what}critic {name}" for name in loss.critics for what in ("", "gradient of ")}
    assert set(chain.adversarial_metrics) == names | {"gradient of the programs"}
    assert all(signal.shape == (9,) and np.isfinite(signal).all() for signal in chain.adversarial_metrics.values())
    assert not set(chain.adversarial_metrics) & set(chain.history)
    assert {name for name in chain.history if name.startswith("gradient")} == set()


def test_fit_without_critics_has_no_adversarial_metrics():
    assert fit(recipes.mmd_generator()).chains[0].adversarial_metrics == {}


@pytest.mark.parametrize("kept", [True, False], ids=["with the loss", "without"])
def test_fit_is_saved_and_loaded(tmp_path, kept):
    first = fit("hinge_gan", steps=5, restarts=2)
    first.save(tmp_path / "fit.safetensors")
    noise = torch.random.get_rng_state()
    module, loss = generator(), ADVERSARIAL_LOSSES["hinge_gan"]() if kept else None
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    again = ppgen.Fit.load(tmp_path / "fit.safetensors", module.model, module.guide, loss=loss)
    assert torch.equal(torch.random.get_rng_state(), noise)
    assert same(first, again)
    decoder = [t for name, t in first.chains[first.best].weights.items() if name.startswith("decoder")]
    assert sorted(bits(module.parameters())) == sorted(bits(decoder))
    again.select_chain(1)
    if kept:
        (critic,) = critics_of(loss)
        stored = of_critics(again.chains[1].weights)
        assert sorted(bits([*critic.parameters(), *critic.buffers()])) == sorted(bits(stored))
        again.select_chain(again.best)
        pyro.set_rng_seed(3)
        value = again.breakdown(X)
        pyro.set_rng_seed(3)
        assert value == first.breakdown(X)
    else:
        with pytest.raises(TypeError, match="breakdown"):
            again.breakdown(X)


@pytest.mark.parametrize("name", ["gan", "hinge_gan", "normed"])
def test_restarts_resample_critics(name):
    """As torch initializes layers: weights of a layer of width k lie within 1 / sqrt(k)."""
    fixed = functools.partial(torch.optim.SGD, lr=0.0)
    loss = ADVERSARIAL_LOSSES[name]()
    (terms,) = loss.critics.values()
    terms[0].critic.optim = fixed
    result = fit(loss, restarts=3, steps=1, optim=fixed)
    starts = [{k: t for k, t in c.weights.items() if k.startswith("critic ") and "0." in k} for c in result.chains]
    for name in starts[0]:
        if name.endswith(("weight", "original", "bias")):
            assert len(set(bits([start[name] for start in starts]))) == 3
            assert all(start[name].abs().max() <= 3**-0.5 for start in starts)
    assert any(name.endswith(("weight", "original")) for name in starts[0])


def test_critics_are_averaged_too():
    critic = SMALL((3,))
    path = [[p.detach().clone() for p in critic.parameters()]]

    def record(step: Any) -> None:
        path.append([p.detach().clone() for p in critic.parameters()])

    fit(recipes.gan(critic, lr=0.01), ema=0.5, steps=5, callbacks=[record])
    average = path[0]
    for step, weights in enumerate(path[1:], start=1):
        rate = min(0.5, (1 + step) / (10 + step))
        average = [rate * old + (1 - rate) * new for old, new in zip(average, weights, strict=True)]
    torch.testing.assert_close([p.detach() for p in critic.parameters()], average)
    assert not torch.allclose(average[0], path[-1][0], atol=1e-3)


@pytest.mark.parametrize("lr_scheduler", ["linear", "cosine"])
def test_all_learning_rates_decay_to_zero(lr_scheduler):
    rates: list[list[float]] = []

    def record(step: Any) -> None:
        optimizers = [step.svi.optimizer, *step.svi.critics.optimizers.values()]
        rates.append([optimizer.torch_optimizer.param_groups[0]["lr"] for optimizer in optimizers])

    result = fit("gan", lr_scheduler=lr_scheduler, steps=10, callbacks=[record], restarts=2)
    assert len(result.chains) == 2
    for chain in (rates[:10], rates[10:]):
        assert chain[4] == pytest.approx([0.005] * 2)
        assert chain[9] == pytest.approx([0.0] * 2, abs=1e-12)
        assert chain[0] != chain[1]
    first = {"linear": 0.9, "cosine": (1 + np.cos(np.pi / 10)) / 2}[lr_scheduler]
    assert rates[0] == pytest.approx([0.01 * first] * 2)


def test_unknown_scheduler_is_an_error():
    with pytest.raises(
        ValueError, match="fit: lr_scheduler must be 'linear', 'cosine', a function or None, got 'step'"
    ):
        fit("gan", lr_scheduler="step")


@pytest.mark.parametrize("name", ["gan", "hinge_gan", "several"])
def test_fit_is_determined_by_its_seed(name):
    def run(callers: int, seed: int) -> ppgen.Fit:
        pyro.clear_param_store()
        torch.manual_seed(0)
        pair = gaussian_pair()
        torch.manual_seed(callers)
        before = torch.random.get_rng_state()
        result = fit(name, (pair.model, pair.guide), seed=seed, batch_size=8, restarts=2)
        assert torch.equal(torch.random.get_rng_state(), before)
        return result

    first = run(1, 3)
    assert same(first, run(2, 3))
    assert not same(first, run(1, 4))


@pytest.mark.parametrize("name", ["gan", "hinge_gan", "normed"])
def test_validation_and_breakdown_change_no_critic(name):
    module = generator()
    loss = ADVERSARIAL_LOSSES[name]()
    validated = fit(loss, (module.model, module.guide), validation=X[:8])
    plain = fit(name)
    assert same(validated, plain)
    assert len(validated.chains[0].validation["loss"]) == 6
    (critic,) = critics_of(loss)
    tensors = [*critic.parameters(), *critic.buffers()]
    before, mode = bits(tensors), critic.training
    parts = validated.breakdown(X)
    assert list(parts) == list(loss.critics)
    assert (bits(tensors), critic.training) == (before, mode)


def test_selection_by_the_loss_warns():
    with pytest.warns(UserWarning, match="restarts goes by the loss, which in adversarial training need not fall"):
        fit("gan", steps=2, restarts=2)


def test_early_stopping_restores_the_best_critic_too(monkeypatch):
    monkeypatch.setattr(chain_trainer, "PATIENCE_STEPS", 1)
    seen: list[list[bytes]] = []
    loss = ADVERSARIAL_LOSSES["gan"]()
    result = fit(
        loss,
        validation=X[:8],
        patience=2,
        steps=40,
        optim=functools.partial(torch.optim.Adam, lr=0.1),
        callbacks=[lambda step: seen.append(bits(critics_of(loss)[0].parameters()))],
    )
    (chain,) = result.chains
    assert bits(critics_of(loss)[0].parameters()) == seen[chain.best_step - 1]
    assert bits(of_critics(chain.weights)) == seen[chain.best_step - 1]
    assert chain.best_step < len(seen)


def test_critics_have_their_own_learning_rate():
    """Adam's first step moves every weight by its rate."""
    loss, module = recipes.gan(hidden=(5,), lr=0.1), generator()

    def weights() -> dict[str, Tensor]:
        tensors = [*module.parameters(), *critics_of(loss)[0].parameters()]
        return {name: t.detach().clone() for name, t in zip("abcdefgh", tensors, strict=True)}

    build_critics(loss, module.model, module.guide, (X,))
    starts = weights()
    fit(loss, (module.model, module.guide), steps=1, optim=functools.partial(torch.optim.Adam, lr=1e-3))
    moved = {name: float((t - starts[name]).abs().max()) for name, t in weights().items()}
    assert [moved[name] for name in "abcd"] == pytest.approx([1e-3] * 4, rel=0.02)
    assert [moved[name] for name in "efgh"] == pytest.approx([0.1] * 4, rel=0.02)


def test_guide_may_infer_nothing():
    module = generator()
    result = fit("gan", (module.model, nothing))
    assert len(result.history["loss"]) == 6
    assert result.breakdown(X).keys() == {"JensenShannon(x)"}
    result.select_chain(0)


def test_compiled_fit_equals_the_eager_one_and_compiles_once(builds):
    options: dict[str, Any] = {
        "batch_size": 8,
        "steps": 12,
        "restarts": 2,
        "ema": 0.9,
        "validation": X[:6],
    }
    slow, fast = (fit("wgan_gp", compile=compile, lr_scheduler="linear", **options) for compile in (False, True))
    assert len(builds) == 2  # a step of the programs and one of the critic, in both chains
    for eagerly, quickly in zip(slow.chains, fast.chains, strict=True):
        assert quickly.compiled.startswith("compiled at step 3")
        assert "critics: compiled at step 3" in quickly.compiled
        for name, values in (eagerly.history | eagerly.adversarial_metrics | eagerly.validation).items():
            got = (quickly.history | quickly.adversarial_metrics | quickly.validation)[name]
            np.testing.assert_allclose(got, values, rtol=1e-3, atol=1e-4)
        for name, weight in eagerly.weights.items():
            torch.testing.assert_close(quickly.weights[name], weight, rtol=1e-3, atol=1e-4)


def test_fit_learns_the_distribution_of_the_data():
    """Draws come closer to the data: the energy distance falls to a tenth of what it was."""
    module, energy = generator(), m.EnergyDistance()
    far = float(energy(X, module.sample(500)))
    fit(recipes.r1_gan(hidden=(16,), lr=0.01), (module.model, module.guide), steps=250)
    assert float(energy(X, module.sample(500))) < 0.1 * far
