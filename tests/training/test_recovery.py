"""After several bad steps all networks go back together, and learn at smaller rates."""

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from support import gaussian_pair
from torch import Tensor

import ppgen
from ppgen import models
from ppgen.losses import recipes
from ppgen.training import recovery
from ppgen.training.callbacks import TrainingStep
from ppgen.training.recovery import IN_A_ROW, RATE_FACTOR, RETURNS

pytestmark = pytest.mark.filterwarnings("ignore:.*(skipped|goes back|weights are those):UserWarning")

X = torch.randn(16, 3, generator=torch.Generator().manual_seed(7))


def spoil(svi: ppgen.SVI) -> None:
    next(iter(svi.optimizer.parameters.values())).data.fill_(torch.nan)


def tensors(svi: ppgen.SVI) -> list[Tensor]:
    return [tensor.clone() for optimizer in svi.optimizers for tensor in optimizer.tensors()]


def dann() -> tuple[Any, Any, Any]:
    d = torch.arange(16) % 2
    y = torch.where(d == 0, (X[:, 0] > 0).long(), models.UNKNOWN)
    return models.DANN((3,), 2, latent_dim=4, hidden=(5,)), (X, y, d), recipes.dann(hidden=(6,))


def flow() -> tuple[Any, Any, Any]:
    return models.FlowModel((3,), flow="realnvp", layers=2, hidden=(6,)), X, ppgen.ELBO()


def gan() -> tuple[Any, Any, Any]:
    return models.Generator((3,), latent_dim=2, hidden=(4,)), X, recipes.r3_gan(hidden=(6,))


@pytest.mark.parametrize("ema", [None, 0.5])
@pytest.mark.parametrize("build", [dann, flow, gan])
def test_programs_critics_and_optimizers_go_back_to_one_step(build, ema):
    """All steps from the fifth on are bad, so that the run ends as it was after its first, the last that is kept."""
    first: list[Tensor] = []
    svi: list[ppgen.SVI] = []

    def note(step: TrainingStep) -> None:
        if step.number == 1:
            svi.append(step.svi)
            first.extend(tensors(step.svi))
            averages.update({k: t.clone() for k, t in (step.monitor._average or {}).items()})
        if step.number >= 4:
            spoil(step.svi)

    averages: dict[str, Tensor] = {}
    torch.manual_seed(0)
    programs, data, loss = build()
    options = {"steps": 60, "compile": False, "progress": False, "callbacks": [note], "ema": ema}
    (chain,) = ppgen.fit(programs.model, programs.guide, data, loss=loss, **options).chains
    assert (chain.failed, chain.best_step, chain.skipped) == (True, 1, (RETURNS + 1) * IN_A_ROW)
    last = tensors(svi[0])
    if ema is not None:  # the programs hold the average in the place of their weights
        assert all(torch.equal(chain.weights[name], average) for name, average in averages.items())
        weights = {id(leaf) for optimizer in svi[0].optimizers for leaf in optimizer.parameters.values()}
        kept = [id(t) not in weights for optimizer in svi[0].optimizers for t in optimizer.tensors()]
        first, last = ([t for t, state in zip(part, kept, strict=True) if state] for part in (first, last))
    assert len(first) == len(last) > 0
    assert all(map(torch.equal, first, last))


@pytest.mark.parametrize("compile", [False, True])
def test_rates_are_halved_after_each_return_whatever_the_scheduler_does(compile, builds):
    """With a gradient of one, w falls by the rate of each step: 1 / t in step t, halved after a return."""

    def model(x: Tensor) -> Tensor:
        return pyro.param("w", torch.tensor(0.0, dtype=torch.float64))

    seen: dict[int, float] = {}

    def note(step: TrainingStep) -> None:
        seen[step.number] = pyro.param("w").item()
        if step.number in (10, 20):
            spoil(step.svi)

    scheduler = functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (1 + step))
    fit = ppgen.fit(
        model,
        lambda x: None,
        X,
        loss=lambda model, guide, x: model(x) + 0 * x.sum(),
        optim=functools.partial(torch.optim.SGD, lr=1.0),
        lr_scheduler=scheduler,
        steps=30,
        compile=compile,
        progress=False,
        callbacks=[note],
    )
    assert ("compiled at" in fit.chains[0].compiled) == compile
    falls = {t: seen[t - 1] - seen[t] for t in seen if t > 1}
    for start, stop, factor in ((2, 10, 1), (17, 20, RATE_FACTOR), (27, 30, RATE_FACTOR**2)):
        for t in range(start, stop + 1):
            assert falls[t] == pytest.approx(factor / t, rel=1e-6), t
    for after, factor in ((16, RATE_FACTOR), (26, RATE_FACTOR**2)):  # from the weights of step 1
        assert seen[after] == pytest.approx(-1 - factor / after, rel=1e-6)


def test_a_step_that_fails_in_a_way_that_does_not_repeat_is_named_by_its_error():
    pair, failing = gaussian_pair(), [False]

    def model(x: Tensor) -> None:
        pair.model(x)
        if failing[0]:
            torch.linalg.cholesky(x.new_zeros(2, 2))

    def note(step: TrainingStep) -> None:
        failing[0] = step.number == 3

    with pytest.warns(UserWarning, match=r"at step 4, and the step is skipped: LinAlgError: linalg.cholesky: "):
        fit = ppgen.fit(model, pair.guide, X, steps=6, compile=False, progress=False, callbacks=[note])
    assert (fit.chains[0].skipped, fit.chains[0].failed) == (1, False)


def test_a_run_whose_last_weights_are_not_finite_has_failed_and_says_so():
    pair = gaussian_pair()

    def note(step: TrainingStep) -> None:
        if step.number == 12:
            spoil(step.svi)

    with pytest.warns(UserWarning, match=r"not finite after step 12; the weights are those of step 1$"):
        fit = ppgen.fit(pair.model, pair.guide, X, steps=12, compile=False, progress=False, callbacks=[note])
    (chain,) = fit.chains
    assert (chain.failed, chain.best_step, chain.skipped) == (True, 1, 0)
    assert all(weight.isfinite().all() for weight in chain.weights.values())


# A run of which something is missing.


def nan_from(step: int, chains: tuple[int, ...]) -> Callable[[TrainingStep], None]:
    def note(at: TrainingStep) -> None:
        if at.chain in chains and at.number >= step:
            spoil(at.svi)

    return note


@pytest.mark.parametrize("chains", [(0,), (1,), ()])
def test_a_run_is_complete_if_none_of_its_chains_failed_and_keeps_its_checkpoint_otherwise(chains, tmp_path):
    pair = gaussian_pair()
    options = {"steps": 40, "compile": False, "progress": False, "restarts": 2, "checkpoint": tmp_path / "run"}
    fit = ppgen.fit(pair.model, pair.guide, X, callbacks=[nan_from(4, chains)], **options)
    assert [chain.failed for chain in fit.chains] == [number in chains for number in (0, 1)]
    assert fit.complete == (not chains)
    fit.save(tmp_path / "fit")
    assert (tmp_path / "run").exists() == (not fit.complete)
    assert ppgen.Fit.load(tmp_path / "fit", pair.model, pair.guide).complete == fit.complete


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the chain that is left out, and of NaN
def test_a_run_without_one_of_its_chains_is_not_complete(tmp_path):
    pair, chains = gaussian_pair(), []

    def loss(model: Any, guide: Any, x: Tensor) -> Tensor:
        value = pyro.infer.Trace_ELBO().differentiable_loss(model, guide, x)
        return value * torch.nan if chains == [0] * 3 else value

    note = [lambda step: chains.append(step.chain)]
    options = {"steps": 3, "compile": False, "progress": False, "restarts": 2, "checkpoint": tmp_path / "run"}
    fit = ppgen.fit(pair.model, pair.guide, X, loss=loss, callbacks=note, **options)
    assert (len(fit.chains), fit.missing_chains, fit.complete) == (1, 1, False)
    fit.save(tmp_path / "fit")
    assert (tmp_path / "run").exists()
    assert not ppgen.Fit.load(tmp_path / "fit", pair.model, pair.guide).complete


# A growing network whose second level begins after the step to which it goes back.

STAGES = (7, 13)  # weights are kept every 6 steps


@pytest.fixture
def _often(monkeypatch):
    monkeypatch.setattr(recovery, "KEEP_EVERY", 6)


def growing(callback: Callable[[TrainingStep], None]) -> tuple[Any, ppgen.Fit]:
    torch.manual_seed(0)
    gan = models.Generator((1, 8, 8), latent_dim=2, hidden=(4, 6), network="growing", norm="pixel")
    x, loss = torch.rand(8, 1, 8, 8), recipes.progan(hidden=(4, 6), minibatch_std=False)
    growth = ppgen.ProgressiveGrowing(stages=STAGES)
    options = {"growth": growth, "steps": sum(STAGES), "compile": False, "progress": False, "callbacks": [callback]}
    return gan, ppgen.fit(gan.model, gan.guide, x, loss=loss, **options)


@pytest.mark.usefixtures("_often")
def test_a_growing_network_goes_back_across_a_change_of_level_and_grows_on():
    """Layers that were not trained at that step have no states of optimizers then, and begin again with new ones."""
    counts: dict[int, list[float]] = {}
    levels: dict[int, float] = {}

    def note(step: TrainingStep) -> None:
        levels[step.number] = float(step.growth.parts[0].level)
        states = [state for optimizer in step.svi.optimizers for state in optimizer.torch_optimizer.state.values()]
        counts[step.number] = sorted({float(state["step"]) for state in states})
        if step.number == STAGES[0] + 4:
            spoil(step.svi)

    _, fit = growing(note)
    assert (fit.chains[0].failed, fit.chains[0].skipped) == (False, IN_A_ROW)
    assert counts[STAGES[0]] == [STAGES[0]]
    assert counts[STAGES[0] + 4] == [4, STAGES[0] + 4]
    first = STAGES[0] + 4 + IN_A_ROW + 1  # the first step after the return
    assert counts[first] == [1, STAGES[0] + 1]
    schedule = ppgen.ProgressiveGrowing(stages=STAGES)
    assert levels == pytest.approx({step: schedule.level(step, [STAGES[0], sum(STAGES)]) for step in levels}, abs=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("_often")
def test_a_growing_network_that_fails_ends_at_the_level_of_its_weights():
    def note(step: TrainingStep) -> None:
        if step.number >= STAGES[0] + 4:
            spoil(step.svi)

    gan, fit = growing(note)
    assert fit.chains[0].best_step == STAGES[0]
    assert float(gan.decoder.network.level) == 0
    assert gan.sample(2).isfinite().all()
