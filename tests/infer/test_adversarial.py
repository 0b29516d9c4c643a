"""Adversarial training: critics and programs take steps in turn, by Pyro's SVI, by ppgen's, and compiled."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from adversarial_losses import ADVERSARIAL_LOSSES, OPTIONS, SMALL, X, critics_of, generator, nothing
from programs import bits, no_program
from pyro import infer
from support import gaussian_pair
from torch import Tensor, nn

import ppgen
from ppgen import metrics as m
from ppgen import recipes
from ppgen import views as v
from ppgen.infer.adversarial import CriticTrainer, build_critics
from ppgen.models import Generator

every = pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)


class Run(NamedTuple):
    """A run of SVI: its losses, all weights at the end, and the adversarial metrics of each step."""

    svi: Any
    losses: Tensor
    weights: Tensor
    adversarial_metrics: Tensor


def run(make: Callable[[], Any], name: str, *, steps: int = 8, between: Callable = lambda svi, t: None) -> Run:
    """Runs a loss from a fixed start; `make` is called with (model, guide, optim, loss)."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    pair, loss = gaussian_pair(), ADVERSARIAL_LOSSES[name]()
    svi = make(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), loss)
    losses, adversarial_metrics = [], []
    for t in range(steps):
        between(svi, t)
        losses.append(svi.step(*pair.args))
        adversarial_metrics.append(
            torch.tensor([float(signal) for signal in getattr(svi, "adversarial_metrics", {}).values()])
        )
    parameters = [leaf for _, leaf in sorted(pyro.get_param_store().named_parameters())]
    parameters += [tensor for critic in critics_of(loss) for tensor in (*critic.parameters(), *critic.buffers())]
    weights = torch.cat([leaf.detach().flatten() for leaf in parameters])
    return Run(svi, torch.tensor(losses), weights, torch.stack(adversarial_metrics))


def assert_same(one: Run, other: Run, rtol: float = 1e-4) -> None:
    """Equal but for the order of float32 sums."""
    torch.testing.assert_close(one.losses, other.losses, rtol=rtol, atol=rtol)
    torch.testing.assert_close(one.weights, other.weights, rtol=rtol, atol=rtol)


eager = functools.partial(ppgen.SVI, compile=False)
compiled = functools.partial(ppgen.SVI, compile=True)


# The trajectory


@every
def test_trajectory_equals_that_of_pyro(name):
    ours = run(eager, name)
    assert len(set(ours.losses.tolist())) == len(ours.losses)
    assert_same(ours, run(infer.SVI, name), 1e-5)


def assert_compiled_is_eager(name: str) -> None:
    result = run(compiled, name, steps=12)
    steps = [result.svi.compiled_step, *result.svi.critic_steps]
    assert all(step.compiled_shapes for step in steps)
    assert result.svi.compile_status.count("compiled at step") == len(set(map(id, steps)))
    uncompiled = run(eager, name, steps=12)
    assert_same(result, uncompiled)
    torch.testing.assert_close(result.adversarial_metrics, uncompiled.adversarial_metrics, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_recorded_trajectory_equals_eager_one(builds, name):
    assert_compiled_is_eager(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gan", "wgan_gp"])
def test_compiled_trajectory_equals_eager_one(name):
    assert_compiled_is_eager(name)


def test_scheduler_applies_to_all_and_clip_norm_to_the_programs_alone(builds):
    decay = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)
    make = functools.partial(ppgen.SVI, lr_scheduler=decay, clip_norm=1e-6)
    runs = [run(functools.partial(make, compile=compile), "several", steps=10) for compile in (True, False)]
    assert_same(*runs)
    optimizers = [runs[0].svi.optimizer, *runs[0].svi.critics.optimizers.values()]
    rates = [optimizer.torch_optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    assert rates == pytest.approx([0.01 * 0.9**10] * 4)
    assert [optimizer.clip_norm for optimizer in optimizers] == [1e-6, None, None, None]


# The Dirac GAN in closed form (Mescheder et al. 2018, https://arxiv.org/abs/1801.04406): data at 0, draws at theta, the
# critic psi x, V = -psi theta. With learning rate h and weight w of the R1 penalty, a step of the critic is
# psi <- (1 - h w) psi - h theta, and one of the programs is theta <- theta + h psi.


class LinearCritic(nn.Module):
    def __init__(self, start: float) -> None:
        super().__init__()
        self.psi = nn.Parameter(torch.tensor(start))

    def forward(self, x: Tensor) -> Tensor:
        return self.psi * x


def dirac(start: float = 1.0) -> Callable:
    def model(x: Tensor) -> None:
        theta = pyro.param("theta", torch.tensor(start))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Delta(theta), obs=x)

    return model


def dirac_gan(*, weight: float, steps: int = 1, critic: nn.Module | None = None) -> ppgen.Objective:
    metric = m.WassersteinDual(
        critic or LinearCritic(0.5),
        penalty=m.ZeroCenteredGradientPenalty(weight),
        steps=steps,
        optim=functools.partial(torch.optim.SGD, lr=0.1),
    )
    return ppgen.match(v.data("x"), v.generated("x"), metric)


@pytest.mark.parametrize("make", [infer.SVI, eager, compiled], ids=["stock", "eager", "compiled"])
@pytest.mark.parametrize("critic_steps", [1, 3])
@pytest.mark.parametrize("weight", [1e-6, 2.0])
def test_dirac_gan_follows_its_recursion(builds, make, critic_steps, weight):
    loss = dirac_gan(weight=weight, steps=critic_steps)
    svi = make(dirac(), no_program, pyro.optim.SGD({"lr": 0.1}), loss)
    psi, theta = 0.5, 1.0
    for _ in range(60):
        for _ in range(critic_steps):
            psi = (1 - 0.1 * weight) * psi - 0.1 * theta
        assert svi.step(torch.zeros(4)) == pytest.approx(-psi * theta, abs=1e-5)
        theta = theta + 0.1 * psi
        assert pyro.param("theta").item() == pytest.approx(theta, abs=1e-5)
    assert critics_of(loss)[0].psi.item() == pytest.approx(psi, abs=1e-5)
    if weight == 2.0:  # it converges with the penalty, and cycles without
        assert abs(theta) < 0.1
    elif critic_steps == 1:
        assert 0.8 < theta**2 + psi**2 < 1.6


# Each side updates its own parameters only


@every
def test_each_side_updates_its_own_parameters_only(name):
    pair, loss = gaussian_pair(), ADVERSARIAL_LOSSES[name]()
    critics = build_critics(loss, pair.model, pair.guide, pair.args).values()
    loss.loss(pair.model, pair.guide, *pair.args)  # registers the programs' parameters
    programs = [leaf for _, leaf in sorted(pyro.get_param_store().named_parameters())]

    before, critic_weights = bits(programs), [bits(critic.parameters()) for critic in critics]
    seen = CriticTrainer(loss).step(0, pair.model, pair.guide, pair.args, {})
    assert bits(programs) == before
    assert all(bits(critic.parameters()) != old for critic, old in zip(critics, critic_weights, strict=True))
    assert set(seen) == {f"{what}critic {name}" for name in loss.critics for what in ("", "gradient of ")}
    assert not any(signal.requires_grad for signal in seen.values())

    critic_weights = [bits(critic.parameters()) for critic in critics]
    loss.differentiable_loss(pair.model, pair.guide, *pair.args).backward()
    assert [bits(critic.parameters()) for critic in critics] == critic_weights
    assert all(p.grad is None and p.requires_grad for critic in critics for p in critic.parameters())
    assert any((leaf.grad != 0).any() for leaf in programs if leaf.grad is not None)


@every
def test_evaluation_changes_no_critic(name):
    pair, loss = gaussian_pair(), ADVERSARIAL_LOSSES[name]()
    svi = eager(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), loss)
    svi.step(*pair.args)
    tensors = [t for critic in critics_of(loss) for t in (*critic.parameters(), *critic.buffers())]
    modes = [part.training for critic in critics_of(loss) for part in critic.modules()]
    before = bits(tensors)
    svi.evaluate_loss(*pair.args)
    parts = loss.breakdown(pair.model, pair.guide, *pair.args)
    loss.loss(pair.model, pair.guide, *pair.args)
    assert bits(tensors) == before
    assert modes == [part.training for critic in critics_of(loss) for part in critic.modules()]
    assert all(modes)
    assert list(parts) == list(svi.update(*pair.args))


# Critic steps


class RecordingSGD(torch.optim.SGD):
    """Records the name of its critic at each step."""

    def __init__(self, parameters: Any, name: str, taken: list[str]) -> None:
        super().__init__(parameters, lr=0.01)
        self.name, self.taken = name, taken

    def step(self, closure: Any = None) -> None:
        self.taken.append(self.name)
        super().step()


@pytest.mark.parametrize("make", [infer.SVI, eager], ids=["stock", "eager"])
def test_critics_take_their_number_of_steps(make):
    taken: list[str] = []
    pair, x, drawn = gaussian_pair(), v.data("x"), v.generated("x")
    many, few = (
        m.JensenShannon(SMALL, name=name, steps=steps, optim=functools.partial(RecordingSGD, name=name, taken=taken))
        for name, steps in (("many", 3), ("few", 1))
    )
    loss = ppgen.match(x, drawn, many) + ppgen.match(x, drawn, few) + ppgen.match(x, v.reconstructed("x"), many)
    assert {name: len(terms) for name, terms in loss.critics.items()} == {"many(x)": 2, "few(x)": 1}
    svi = make(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), loss)
    for _ in range(2):
        svi.step(*pair.args)
    assert taken == ["many", "few", "many", "many"] * 2  # once per iteration, also with two terms


def test_critic_of_two_terms_minimizes_the_sum_of_their_losses():
    pair, critic = gaussian_pair(), nn.Linear(3, 1)
    metric = m.JensenShannon(critic, optim=functools.partial(torch.optim.SGD, lr=1.0))
    terms = [
        ppgen.match(v.data("x"), drawn, metric) for drawn in (v.reconstructed("x"), v.reconstructed("x", of="mean"))
    ]
    before = critic.weight.detach().clone()
    moves = []
    for loss in (*terms, terms[0] + 5.0 * terms[1]):
        with torch.no_grad():
            critic.weight.copy_(before)
            critic.bias.fill_(0.3)
        pyro.set_rng_seed(2)
        CriticTrainer(loss).step(0, pair.model, pair.guide, pair.args, {})
        moves.append(critic.weight.detach() - before)
    torch.testing.assert_close(moves[2], moves[0] + moves[1])
    assert (moves[0] != 0).any()


def test_each_critic_step_has_new_draws_on_the_same_batch():
    seen: list[Tensor] = []

    class RecordingCritic(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return super().forward(x)

    pair = gaussian_pair()
    svi = eager(pair.model, pair.guide, torch.optim.Adam, recipes.gan(RecordingCritic(3, 1), steps=2))
    svi.step(*pair.args)
    data, drawn = seen[::2], seen[1::2]
    assert len(data) == 3  # two steps of the critic, one of the programs
    assert all(torch.equal(x, pair.args[0]) for x in data)
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


@pytest.mark.parametrize("make", [infer.SVI, eager, compiled], ids=["stock", "eager", "compiled"])
def test_weights_of_a_critic_are_clipped_after_each_step(builds, make):
    pair, critic = gaussian_pair(), nn.Linear(3, 1)
    loss = recipes.wgan_clip(critic, bound=0.02, steps=2, lr=0.1)
    svi = make(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), loss)
    for _ in range(6):
        svi.step(*pair.args)
        assert max(float(p.detach().abs().max()) for p in critic.parameters()) == pytest.approx(0.02)


# Given critics, and frozen ones


@pytest.mark.parametrize("make", [infer.SVI, eager, compiled], ids=["stock", "eager", "compiled"])
def test_frozen_weights_of_a_critic_do_not_change(builds, make):
    critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    critic[0].requires_grad_(False)
    pair, before = gaussian_pair(), bits(critic.parameters())
    svi = make(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), recipes.gan(critic, lr=0.01))
    for _ in range(6):
        svi.step(*pair.args)
    after = bits(critic.parameters())
    assert after[:2] == before[:2]
    assert after[2] != before[2]
    assert [p.requires_grad for p in critic.parameters()] == [False, False, True, True]


@pytest.mark.parametrize("make", [infer.SVI, eager, compiled], ids=["stock", "eager", "compiled"])
def test_frozen_critic_still_gives_a_loss(builds, make):
    critic = SMALL((3,)).requires_grad_(False)
    pair, before = gaussian_pair(), bits(critic.parameters())
    loss = recipes.gan(critic, lr=0.01) + recipes.lsgan(**OPTIONS)
    svi = make(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), loss)
    losses = [svi.step(*pair.args) for _ in range(6)]
    assert bits(critic.parameters()) == before
    assert len(set(losses)) == 6


@pytest.mark.parametrize("make", [infer.SVI, eager, compiled], ids=["stock", "eager", "compiled"])
def test_critic_can_be_frozen_and_unfrozen_between_steps(builds, make):
    critic = SMALL((3,))
    pair = gaussian_pair()
    svi = make(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), recipes.gan(critic, lr=0.01))
    states = [bits(critic.parameters())]
    for t in range(18):
        critic.requires_grad_(not 6 <= t < 12)
        svi.step(*pair.args)
        states.append(bits(critic.parameters()))
    still = [a == b for a, b in itertools.pairwise(states)]
    assert still == [False] * 6 + [True] * 6 + [False] * 6


def test_loss_that_does_not_fit_the_programs_is_an_error():
    def model(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r'generated\(\'x\'\).*has no rsample.*generated\(\'x\', of="mean"\)'):
        eager(model, no_program, torch.optim.Adam, recipes.gan(**OPTIONS)).step(torch.ones(4, 2))
    module = Generator((3,), latent_dim=2, hidden=(4,))
    with pytest.raises(LookupError, match="the guide does not draw 'z'"):
        eager(module.model, lambda x: None, torch.optim.Adam, recipes.ali(**OPTIONS)).step(torch.ones(4, 3))


# A guide that infers nothing


@pytest.mark.parametrize("make", [infer.SVI, eager, compiled], ids=["stock", "eager", "compiled"])
def test_guide_may_infer_nothing(builds, make):
    runs = []
    for empty in (True, False):
        pyro.clear_param_store()
        module = generator()
        pyro.set_rng_seed(1)
        guide, loss = nothing if empty else module.guide, ADVERSARIAL_LOSSES["gan"]()
        svi = make(module.model, guide, pyro.optim.Adam({"lr": 0.01}), loss)
        runs.append([svi.step(X) for _ in range(6)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 6
