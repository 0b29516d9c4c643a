"""Two and more players: critics and programs take turns, in stock SVI, in ppgen's, compiled, and in fit."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import bits, no_program
from pyro import infer
from support import gaussian_pair
from torch import Tensor, nn

import ppgen
from ppgen import metrics as m
from ppgen import nets, recipes
from ppgen import views as v
from ppgen.infer.adversarial import CriticTrainer, build_critics
from ppgen.losses.recipes import RECIPES
from ppgen.models import Generator

# chains are tested here, not which of them is best
pytestmark = pytest.mark.filterwarnings("ignore:the best of restarts goes by the loss:UserWarning")

SMALL = functools.partial(nets.Critic, hidden=(5,))
OPTIONS: dict[str, Any] = {"hidden": (5,), "lr": 0.01}


def normed(shape: torch.Size) -> nn.Module:
    """With batch norm, whose moments move, and dropout."""
    return nn.Sequential(
        nn.Linear(shape[0], 5), nn.Tanh(), nn.BatchNorm1d(5, affine=False), nn.Dropout(0.3), nn.Linear(5, 1)
    )


def with_several() -> ppgen.Objective:
    """Three critics that take one, three and two steps, one of them in two terms, beside a term that has none."""
    shared = m.LeastSquares(SMALL, steps=2, optim=functools.partial(torch.optim.SGD, lr=0.01))
    terms = recipes.aae(**OPTIONS) + recipes.gan(**OPTIONS, steps=3, packing=2, noise=0.1, smoothing=0.1)
    terms = terms + ppgen.Ramp(0.5, steps=5) * ppgen.match(v.data("x"), v.generated("x"), shared)
    return terms + ppgen.match(v.data("x"), v.reconstructed("x"), shared)


GAMES: dict[str, Callable[[], ppgen.Objective]] = {
    name: functools.partial(make, **OPTIONS)
    for name, make in RECIPES.items()
    if make().critics and name not in ("dann", "progan")  # of domains and of images: see test_dann, test_growing
}
GAMES["several"] = with_several
# plain descent where the gradient of some bias is rounding alone, of which Adam would make a whole step
DESCENT = functools.partial(torch.optim.SGD, lr=0.05)
GAMES["r3_gan"] = lambda: recipes.r3_gan(hidden=(5,), optim=DESCENT)
GAMES["normed"] = lambda: recipes.gan(normed, saturating=True, lr=0.01)
GAMES["pyro's optimizer"] = lambda: recipes.gan(hidden=(5,), optim=pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.99}))

every = pytest.mark.parametrize("game", GAMES)


def critics_of(loss: Any) -> list[nn.Module]:
    return [terms[0].critic.network for terms in loss.critics.values()]


class Played(NamedTuple):
    svi: Any
    losses: Tensor
    weights: Tensor
    adversarial_metrics: Tensor


def play(make: Callable[[], Any], game: str, *, steps: int = 8, between: Callable = lambda svi, t: None) -> Played:
    """A run from one start; `make` takes (model, guide, optim, loss)."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    pair, loss = gaussian_pair(), GAMES[game]()
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
    return Played(svi, torch.tensor(losses), weights, torch.stack(adversarial_metrics))


def assert_same(one: Played, other: Played, rtol: float = 1e-4) -> None:
    """Equal but for the order of float32 sums."""
    torch.testing.assert_close(one.losses, other.losses, rtol=rtol, atol=rtol)
    torch.testing.assert_close(one.weights, other.weights, rtol=rtol, atol=rtol)


eager = functools.partial(ppgen.SVI, compile=False)
compiled = functools.partial(ppgen.SVI, compile=True)


# One trajectory


@every
def test_a_game_in_stock_svi_is_the_game_in_ours(game):
    ours = play(eager, game)
    assert len(set(ours.losses.tolist())) == len(ours.losses)
    assert_same(ours, play(infer.SVI, game), 1e-5)


def assert_compiled_is_eager(game: str) -> None:
    run = play(compiled, game, steps=12)
    steps = [run.svi.compiled_step, *run.svi.critic_steps]
    assert all(step.compiled_shapes for step in steps)
    assert run.svi.compile_status.count("compiled at step") == len(set(map(id, steps)))
    still = play(eager, game, steps=12)
    assert_same(run, still)
    torch.testing.assert_close(run.adversarial_metrics, still.adversarial_metrics, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("game", GAMES)
def test_a_recorded_game_is_the_eager_one(builds, game):
    assert_compiled_is_eager(game)


@pytest.mark.slow
@pytest.mark.parametrize("game", ["gan", "wgan_gp"])
def test_a_compiled_game_is_the_eager_one(game):
    assert_compiled_is_eager(game)


def test_a_schedule_is_everybodys_and_a_clip_the_programs_alone(builds):
    decay = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)
    make = functools.partial(ppgen.SVI, lr_scheduler=decay, clip_norm=1e-6)
    runs = [play(functools.partial(make, compile=compile), "several", steps=10) for compile in (True, False)]
    assert_same(*runs)
    optimizers = [runs[0].svi.optimizer, *runs[0].svi.critics.optimizers.values()]
    rates = [optimizer.torch_optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    assert rates == pytest.approx([0.01 * 0.9**10] * 4)
    assert [optimizer.clip_norm for optimizer in optimizers] == [1e-6, None, None, None]


# The game of one number against one number, by hand (Mescheder et al. 2018, section 2): data at 0, draws at theta, the
# critic psi x. V = -psi theta; with h the rate and w the weight of R1, a critic's step is
# psi <- (1 - h w) psi - h theta and the programs' theta <- theta + h psi.


class Slope(nn.Module):
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


def duel(*, weight: float, steps: int = 1, critic: nn.Module | None = None) -> ppgen.Objective:
    metric = m.WassersteinDual(
        critic or Slope(0.5),
        penalty=m.ZeroCenteredGradientPenalty(weight),
        steps=steps,
        optim=functools.partial(torch.optim.SGD, lr=0.1),
    )
    return ppgen.match(v.data("x"), v.generated("x"), metric)


@pytest.mark.parametrize("make", [infer.SVI, eager, compiled], ids=["stock", "eager", "compiled"])
@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("weight", [1e-6, 2.0])
def test_the_duel_is_as_by_hand(builds, make, turns, weight):
    loss = duel(weight=weight, steps=turns)
    svi = make(dirac(), no_program, pyro.optim.SGD({"lr": 0.1}), loss)
    psi, theta = 0.5, 1.0
    for _ in range(60):
        for _ in range(turns):
            psi = (1 - 0.1 * weight) * psi - 0.1 * theta
        assert svi.step(torch.zeros(4)) == pytest.approx(-psi * theta, abs=1e-5)
        theta = theta + 0.1 * psi
        assert pyro.param("theta").item() == pytest.approx(theta, abs=1e-5)
    assert critics_of(loss)[0].psi.item() == pytest.approx(psi, abs=1e-5)
    if weight == 2.0:  # it converges with the penalty, and circles without
        assert abs(theta) < 0.1
    elif turns == 1:
        assert 0.8 < theta**2 + psi**2 < 1.6


# Nobody moves another


@every
def test_each_side_moves_itself_alone(game):
    pair, loss = gaussian_pair(), GAMES[game]()
    critics = build_critics(loss, pair.model, pair.guide, pair.args).values()
    loss.loss(pair.model, pair.guide, *pair.args)  # registers the programs' parameters
    programs = [leaf for _, leaf in sorted(pyro.get_param_store().named_parameters())]

    before, judges = bits(programs), [bits(critic.parameters()) for critic in critics]
    seen = CriticTrainer(loss).step(0, pair.model, pair.guide, pair.args, {})
    assert bits(programs) == before
    assert all(bits(critic.parameters()) != old for critic, old in zip(critics, judges, strict=True))
    assert set(seen) == {f"{what}critic {name}" for name in loss.critics for what in ("", "gradient of ")}
    assert not any(signal.requires_grad for signal in seen.values())

    judges = [bits(critic.parameters()) for critic in critics]
    loss.differentiable_loss(pair.model, pair.guide, *pair.args).backward()
    assert [bits(critic.parameters()) for critic in critics] == judges
    assert all(p.grad is None and p.requires_grad for critic in critics for p in critic.parameters())
    assert any((leaf.grad != 0).any() for leaf in programs if leaf.grad is not None)


@every
def test_looking_moves_no_critic(game):
    pair, loss = gaussian_pair(), GAMES[game]()
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


# Turns


class Counting(torch.optim.SGD):
    """Notes the name of its critic at each step."""

    def __init__(self, parameters: Any, name: str, taken: list[str]) -> None:
        super().__init__(parameters, lr=0.01)
        self.name, self.taken = name, taken

    def step(self, closure: Any = None) -> None:
        self.taken.append(self.name)
        super().step()


@pytest.mark.parametrize("make", [infer.SVI, eager], ids=["stock", "eager"])
def test_critics_take_as_many_steps_as_they_are_told(make):
    taken: list[str] = []
    pair, x, drawn = gaussian_pair(), v.data("x"), v.generated("x")
    many, few = (
        m.JensenShannon(SMALL, name=name, steps=steps, optim=functools.partial(Counting, name=name, taken=taken))
        for name, steps in (("many", 3), ("few", 1))
    )
    loss = ppgen.match(x, drawn, many) + ppgen.match(x, drawn, few) + ppgen.match(x, v.reconstructed("x"), many)
    assert {name: len(terms) for name, terms in loss.critics.items()} == {"many(x)": 2, "few(x)": 1}
    svi = make(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), loss)
    for _ in range(2):
        svi.step(*pair.args)
    assert taken == ["many", "few", "many", "many"] * 2  # once a turn, also in two terms


def test_a_critic_of_two_terms_goes_down_the_sum_of_their_losses():
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


def test_every_turn_has_draws_of_its_own_on_one_batch():
    seen: list[Tensor] = []

    class Noting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return super().forward(x)

    pair = gaussian_pair()
    svi = eager(pair.model, pair.guide, torch.optim.Adam, recipes.gan(Noting(3, 1), steps=2))
    svi.step(*pair.args)
    data, drawn = seen[::2], seen[1::2]
    assert len(data) == 3  # two turns of the critic, and the programs' own
    assert all(torch.equal(x, pair.args[0]) for x in data)
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


@pytest.mark.parametrize("make", [infer.SVI, eager, compiled], ids=["stock", "eager", "compiled"])
def test_a_critic_is_clipped_after_each_step(builds, make):
    pair, critic = gaussian_pair(), nn.Linear(3, 1)
    loss = recipes.wgan_clip(critic, bound=0.02, steps=2, lr=0.1)
    svi = make(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), loss)
    for _ in range(6):
        svi.step(*pair.args)
        assert max(float(p.detach().abs().max()) for p in critic.parameters()) == pytest.approx(0.02)


# Critics that are given, and frozen ones


@pytest.mark.parametrize("make", [infer.SVI, eager, compiled], ids=["stock", "eager", "compiled"])
def test_frozen_weights_of_a_critic_stay(builds, make):
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
def test_a_critic_that_is_frozen_whole_judges_and_stays(builds, make):
    critic = SMALL((3,)).requires_grad_(False)
    pair, before = gaussian_pair(), bits(critic.parameters())
    loss = recipes.gan(critic, lr=0.01) + recipes.lsgan(**OPTIONS)
    svi = make(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), loss)
    losses = [svi.step(*pair.args) for _ in range(6)]
    assert bits(critic.parameters()) == before
    assert len(set(losses)) == 6


@pytest.mark.parametrize("make", [infer.SVI, eager, compiled], ids=["stock", "eager", "compiled"])
def test_a_critic_freezes_and_thaws_between_steps(builds, make):
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


def test_a_loss_that_the_programs_cannot_serve_says_so():
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


def generator() -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Generator((3,), latent_dim=2, hidden=(8,))


def nothing(x: Tensor) -> None:
    pass


X = torch.randn(24, 3, generator=torch.Generator().manual_seed(7)) + 2


@pytest.mark.parametrize("make", [infer.SVI, eager, compiled], ids=["stock", "eager", "compiled"])
def test_a_guide_may_infer_nothing(builds, make):
    runs = []
    for empty in (True, False):
        pyro.clear_param_store()
        module = generator()
        pyro.set_rng_seed(1)
        svi = make(module.model, nothing if empty else module.guide, pyro.optim.Adam({"lr": 0.01}), GAMES["gan"]())
        runs.append([svi.step(X) for _ in range(6)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 6


# fit


def fit(game: str | ppgen.Objective = "gan", programs: Any = None, **options: Any) -> ppgen.Fit:
    module = generator()
    model, guide = programs or (module.model, module.guide)
    loss = GAMES[game]() if isinstance(game, str) else game
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


@pytest.mark.parametrize("game", ["gan", "several"])
def test_signals_are_a_number_a_step(game):
    pair = gaussian_pair()
    loss = GAMES[game]()
    result = fit(loss, (pair.model, pair.guide), batch_size=7, steps=9)
    (chain,) = result.chains
    names = {f"{what}critic {name}" for name in loss.critics for what in ("", "gradient of ")}
    assert set(chain.adversarial_metrics) == names | {"gradient of the programs"}
    assert all(signal.shape == (9,) and np.isfinite(signal).all() for signal in chain.adversarial_metrics.values())
    assert not set(chain.adversarial_metrics) & set(chain.history)
    assert {name for name in chain.history if name.startswith("gradient")} == set()


def test_a_fit_without_critics_has_no_signals():
    assert fit(recipes.mmd_generator()).chains[0].adversarial_metrics == {}


@pytest.mark.parametrize("kept", [True, False], ids=["with the loss", "without"])
def test_a_fit_of_a_game_is_saved_and_loaded(tmp_path, kept):
    first = fit("hinge_gan", steps=5, restarts=2)
    first.save(tmp_path / "fit.safetensors")
    noise = torch.random.get_rng_state()
    module, loss = generator(), GAMES["hinge_gan"]() if kept else None
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


@pytest.mark.parametrize("game", ["gan", "hinge_gan", "normed"])
def test_restarts_draw_critics_anew(game):
    """As layers draw their weights: those of a layer of width k within 1 / sqrt(k)."""
    still = functools.partial(torch.optim.SGD, lr=0.0)
    loss = GAMES[game]()
    (terms,) = loss.critics.values()
    terms[0].critic.optim = still
    result = fit(loss, restarts=3, steps=1, optim=still)
    starts = [{k: t for k, t in c.weights.items() if k.startswith("critic ") and "0." in k} for c in result.chains]
    for name in starts[0]:
        if name.endswith(("weight", "original", "bias")):
            assert len(set(bits([start[name] for start in starts]))) == 3
            assert all(start[name].abs().max() <= 3**-0.5 for start in starts)
    assert any(name.endswith(("weight", "original")) for name in starts[0])


def test_the_average_is_of_critics_too():
    critic = SMALL((3,))
    path = [[p.detach().clone() for p in critic.parameters()]]

    def note(step: Any) -> None:
        path.append([p.detach().clone() for p in critic.parameters()])

    fit(recipes.gan(critic, lr=0.01), ema=0.5, steps=5, callbacks=[note])
    average = path[0]
    for step, weights in enumerate(path[1:], start=1):
        rate = min(0.5, (1 + step) / (10 + step))
        average = [rate * old + (1 - rate) * new for old, new in zip(average, weights, strict=True)]
    torch.testing.assert_close([p.detach() for p in critic.parameters()], average)
    assert not torch.allclose(average[0], path[-1][0], atol=1e-3)


@pytest.mark.parametrize("lr_scheduler", ["linear", "cosine"])
def test_all_rates_fall_to_zero(lr_scheduler):
    rates: list[list[float]] = []

    def note(step: Any) -> None:
        optimizers = [step.svi.optimizer, *step.svi.critics.optimizers.values()]
        rates.append([optimizer.torch_optimizer.param_groups[0]["lr"] for optimizer in optimizers])

    result = fit("gan", lr_scheduler=lr_scheduler, steps=10, callbacks=[note], restarts=2)
    assert len(result.chains) == 2
    for chain in (rates[:10], rates[10:]):
        assert chain[4] == pytest.approx([0.005] * 2)
        assert chain[9] == pytest.approx([0.0] * 2, abs=1e-12)
        assert chain[0] != chain[1]
    first = {"linear": 0.9, "cosine": (1 + np.cos(np.pi / 10)) / 2}[lr_scheduler]
    assert rates[0] == pytest.approx([0.01 * first] * 2)


def test_a_schedule_of_another_name_is_an_error():
    with pytest.raises(
        ValueError, match="fit: lr_scheduler must be 'linear', 'cosine', a function or None, got 'step'"
    ):
        fit("gan", lr_scheduler="step")


@pytest.mark.parametrize("game", ["gan", "hinge_gan", "several"])
def test_a_game_is_a_function_of_its_seed(game):
    def run(callers: int, seed: int) -> ppgen.Fit:
        pyro.clear_param_store()
        torch.manual_seed(0)
        pair = gaussian_pair()
        torch.manual_seed(callers)
        before = torch.random.get_rng_state()
        result = fit(game, (pair.model, pair.guide), seed=seed, batch_size=8, restarts=2)
        assert torch.equal(torch.random.get_rng_state(), before)
        return result

    first = run(1, 3)
    assert same(first, run(2, 3))
    assert not same(first, run(1, 4))


@pytest.mark.parametrize("game", ["gan", "hinge_gan", "normed"])
def test_validation_and_breakdown_move_no_critic(game):
    module = generator()
    loss = GAMES[game]()
    watched = fit(loss, (module.model, module.guide), validation=X[:8])
    plain = fit(game)
    assert same(watched, plain)
    assert len(watched.chains[0].validation["loss"]) == 6
    (critic,) = critics_of(loss)
    tensors = [*critic.parameters(), *critic.buffers()]
    before, mode = bits(tensors), critic.training
    parts = watched.breakdown(X)
    assert list(parts) == list(loss.critics)
    assert (bits(tensors), critic.training) == (before, mode)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"patience": 1, "validation": X[:8]}, "patience goes"), ({"restarts": 2}, "the best of restarts goes")],
    ids=["patience", "restarts"],
)
def test_what_goes_by_the_loss_of_a_game_warns(options, named):
    with pytest.warns(UserWarning, match=f"{named} by the loss, which in adversarial training need not fall"):
        fit("gan", steps=2, **options)


def test_early_stopping_goes_back_to_the_best_critic_too():
    seen: list[list[bytes]] = []
    loss = GAMES["gan"]()
    with pytest.warns(UserWarning, match="in adversarial training need not fall"):
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


def test_two_time_scales():
    """Adam's first step moves every weight by its rate."""
    loss, module = recipes.gan(hidden=(5,), lr=0.1), generator()

    def held() -> dict[str, Tensor]:
        tensors = [*module.parameters(), *critics_of(loss)[0].parameters()]
        return {name: t.detach().clone() for name, t in zip("abcdefgh", tensors, strict=True)}

    build_critics(loss, module.model, module.guide, (X,))
    starts = held()
    fit(loss, (module.model, module.guide), steps=1, optim=functools.partial(torch.optim.Adam, lr=1e-3))
    moved = {name: float((t - starts[name]).abs().max()) for name, t in held().items()}
    assert [moved[name] for name in "abcd"] == pytest.approx([1e-3] * 4, rel=0.02)
    assert [moved[name] for name in "efgh"] == pytest.approx([0.1] * 4, rel=0.02)


def test_a_fit_may_have_a_guide_that_infers_nothing():
    module = generator()
    result = fit("gan", (module.model, nothing))
    assert len(result.history["loss"]) == 6
    assert result.breakdown(X).keys() == {"JensenShannon(x)"}
    result.select_chain(0)


def test_a_compiled_fit_of_a_game_is_the_eager_one_and_compiles_once(builds):
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


def test_a_game_learns_the_law_of_the_data():
    """Draws come closer to the data: the energy distance falls to a tenth of what it was."""
    module, energy = generator(), m.EnergyDistance()
    far = float(energy(X, module.sample(500)))
    fit(recipes.r1_gan(hidden=(16,), lr=0.01), (module.model, module.guide), steps=250)
    assert float(energy(X, module.sample(500))) < 0.1 * far
