"""Checkpoints: a run that is stopped and continued equals the run that was never stopped."""

import functools
import json
import signal
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from programs import bits, frozen_in_training
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from support import gaussian_pair
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, MultiStepLR, SequentialLR

import ppgen
from ppgen import recipes
from ppgen.infer.checkpoint_file import CheckpointError, read, write
from ppgen.infer.compile.policy import CompilePolicy
from ppgen.models import Generator
from ppgen.training.callbacks import TrainingStep
from ppgen.training.checkpoint import Checkpoint, read_position

pytestmark = frozen_in_training

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(7)) + 1
STEPS = 16  # in batches of 6, so that epochs end elsewhere; a checkpoint is written after steps 1 and 10


class Row(NamedTuple):
    """A run: functions that make its programs and its loss, and options of `fit`."""

    build: Callable[[], tuple[Callable, Callable]]
    loss: Callable[[], Any] = ppgen.ELBO
    options: Mapping[str, Any] = MappingProxyType({})


def networks() -> tuple[Callable, Callable]:
    pair = gaussian_pair()
    return pair.model, pair.guide


def frozen() -> tuple[Callable, Callable]:
    decoder, (model, guide) = nn.Linear(2, 3).requires_grad_(False), networks()

    def loaded(x: Tensor) -> None:
        pyro.module("frozen", decoder)
        decoder(torch.zeros(1, 2))
        model(x)

    return loaded, guide


def schools(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(X), subsample=x):
        pyro.sample("x", dist.Normal(mu, tau).expand([3]).to_event(1), obs=x)


def random_start() -> tuple[Callable, Callable]:
    """A guide whose parameters have random initial values."""

    def guide(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(pyro.param("loc", lambda: torch.randn(())), 1.0))
        pyro.sample("tau", dist.LogNormal(pyro.param("log_tau", lambda: torch.randn(())), 1.0))

    return schools, guide


class Normed(PyroModule):
    """With batch norm, whose statistics are buffers, and dropout, which is random."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


def centered(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def generator() -> tuple[Callable, Callable]:
    module = Generator((3,), latent_dim=2, hidden=(4,))
    return module.model, module.guide


def adam(**options: Any) -> Callable:
    return functools.partial(torch.optim.Adam, **{"lr": 0.01, **options})


def milestones(optimizer: Any) -> Any:
    """A scheduler that contains schedulers and a table with integer keys, neither of which is JSON."""
    parts = [ExponentialLR(optimizer, 0.9), MultiStepLR(optimizer, [3, 9], 0.5)]
    return SequentialLR(optimizer, parts, [8])


def in_groups(parameters: Any) -> torch.optim.Optimizer:
    first, *others = parameters
    return torch.optim.SGD([{"params": [first], "lr": 0.02}, {"params": others}], lr=0.01, momentum=0.9)


def by_name(name: str) -> dict[str, Any]:
    return {"lr": 0.02 if "loc" in name else 0.01, "betas": (0.8, 0.99)}


ROWS: dict[str, Row] = {
    "VAE": Row(networks, lambda: recipes.vae(beta=ppgen.Ramp(1.0)), {"validation": 0.2, "clip_norm": 0.5}),
    "adversarial": Row(
        generator, lambda: recipes.r3_gan(hidden=(8,), steps=2, noise=0.1), {"ema": 0.9, "lr_scheduler": "cosine"}
    ),
    "clipped critic": Row(generator, lambda: recipes.wgan_clip(hidden=(8,)), {"validation": X[:5], "ema": 0.5}),
    "critic of spectral norm": Row(generator, lambda: recipes.hinge_gan(hidden=(8,))),
    "Pyro's optimizer": Row(lambda: (schools, AutoNormal(schools)), options={"optim": pyro.optim.Adam({"lr": 0.05})}),
    "Pyro's decaying rate": Row(
        random_start, options={"optim": pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.9}), "restarts": 2}
    ),
    "Pyro's arguments by name": Row(random_start, options={"optim": pyro.optim.Adam(by_name)}),
    "restarts": Row(networks, options={"restarts": 2, "ema": 0.9, "validation": 0.2}),
    "batch norm": Row(lambda: (Normed(), centered), options={"restarts": 2, "lr_scheduler": "linear"}),
    "patience": Row(networks, options={"optim": adam(lr=0.5), "validation": X[:6], "patience": 2, "restarts": 2}),
    "milestones": Row(networks, options={"lr_scheduler": milestones, "optim": in_groups}),
    "AMSGrad": Row(networks, options={"optim": adam(amsgrad=True, weight_decay=0.1), "batch_size": None}),
    "frozen": Row(frozen, options={"optim": functools.partial(torch.optim.Rprop, lr=0.01), "restarts": 2}),
    "a function as loss": Row(networks, lambda: pyro.infer.Trace_ELBO().differentiable_loss),
    "wake-sleep": Row(
        networks,
        lambda: pyro.infer.ReweightedWakeSleep(num_particles=2, vectorize_particles=False, max_plate_nesting=1),
    ),
}


def fit(row: Row | str, *, built: int = 0, **options: Any) -> ppgen.Fit:
    """A run with new programs, built from a seed in an empty parameter store, as in a new process."""
    row = ROWS[row] if isinstance(row, str) else row
    pyro.clear_param_store()
    torch.manual_seed(built)
    programs = row.build()
    defaults = {"steps": STEPS, "batch_size": 6, "optim": adam(), "compile": False, "checkpoint_seconds": 10}
    options = defaults | dict(row.options) | options
    torch.manual_seed(built + 1)  # the random state of the caller must not matter either
    result = ppgen.fit(*programs, X, loss=row.loss(), progress=False, **options)
    if result.checkpoint is not None:  # of a complete run
        assert options["checkpoint"].exists()
        saved = options["checkpoint"].with_name("saved")
        result.save(saved)
        saved.unlink()
    return result


class Clock:
    """A clock that advances by some seconds each time it is read: once a step, and twice for each checkpoint."""

    now = 0

    def __init__(self, seconds: float = 1) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


@pytest.fixture(autouse=True)
def _ticking(monkeypatch):
    monkeypatch.setattr(Checkpoint, "clock", Clock())


def same(one: ppgen.Fit, other: ppgen.Fit) -> None:
    """Two fits are equal, bit for bit, but for how long they took."""
    assert len(one.chains) == len(other.chains)
    for a, b in zip(one.chains, other.chains, strict=True):
        assert (a.stop_reason, a.best_step, a.interrupted) == (b.stop_reason, b.best_step, b.interrupted)
        for kind in ("history", "validation", "adversarial_metrics", "weights"):
            mine, others = getattr(a, kind), getattr(b, kind)
            assert mine.keys() == others.keys(), kind
            for name, values in mine.items():
                assert np.array_equal(values, others[name], equal_nan=kind != "weights"), (kind, name)


class Crash(Exception):
    pass


def at(number: int, how: str = "stop", chain: int = 0) -> Callable[[TrainingStep], None]:
    """A callback that ends a run at a step."""

    def end(step: TrainingStep) -> None:
        if (step.chain, step.number) == (chain, number):
            if how == "stop":
                step.stop("enough")
            elif how == "Ctrl-C":
                raise KeyboardInterrupt
            else:
                raise Crash

    return end


@functools.cache
def whole(row: str) -> ppgen.Fit:
    """The uninterrupted run."""
    return fit(row)


@pytest.mark.parametrize("row", ROWS)
def test_writing_checkpoints_changes_nothing_and_a_complete_run_that_is_saved_deletes_them(row, tmp_path):
    same(fit(row, checkpoint=tmp_path / "run"), whole(row))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["Ctrl-C", "crash"])
@pytest.mark.parametrize("row", ROWS)
def test_a_continued_run_equals_the_uninterrupted_run(row, how, tmp_path):
    """Stopped in the middle of an epoch, where the checkpoint is written, or 3 steps after it was written."""
    path, last = tmp_path / "run", ROWS[row].options.get("restarts", 1) - 1
    step = min(13, len(whole(row).chains[last].history["loss"]) - 1)
    stop = at(step, how, last)
    if how == "crash":
        with pytest.raises(Crash):
            fit(row, checkpoint=path, callbacks=[stop])
    else:
        stopped = fit(row, checkpoint=path, callbacks=[stop])
        assert stopped.chains[-1].stop_reason == f"interrupted at step {step}"
    assert read_position(path) == (last, step if how == "Ctrl-C" else (10 if step >= 10 else 1))
    continued: list[tuple[int, int]] = []
    resumed = fit(row, built=1, checkpoint=path, callbacks=[lambda step: continued.append((step.chain, step.number))])
    assert continued[0] == (last, (step if how == "Ctrl-C" else (10 if step >= 10 else 1)) + 1)
    same(resumed, whole(row))
    assert not path.exists()


@pytest.mark.parametrize("row", ["adversarial", "patience"])
def test_a_run_stopped_at_every_step_equals_the_uninterrupted_run(row, tmp_path):
    """Each step in a new process; the first chain of "patience" ends by itself."""
    path, steps = tmp_path / "run", sum(len(chain.history["loss"]) for chain in whole(row).chains)
    result = None
    for built in range(steps + 2):
        if result is None or path.exists():
            result = fit(row, built=built, checkpoint=path, callbacks=[stop_now])
    assert result is not None
    assert not path.exists()
    same(result, whole(row))


def stop_now(step: TrainingStep) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["Ctrl-C", "crash"])
@pytest.mark.parametrize("row", [name for name, row in ROWS.items() if "restarts" in row.options])
def test_restarts_after_a_continued_chain_start_at_the_same_points(row, how, tmp_path):
    path = tmp_path / "run"
    try:
        assert len(fit(row, checkpoint=path, callbacks=[at(4, how)]).chains) == 1
    except Crash:
        assert how == "crash"
    same(fit(row, built=1, checkpoint=path), whole(row))


def test_learning_rates_set_by_a_callback_are_restored(tmp_path):
    def slower(step: TrainingStep) -> None:
        if step.number == 5:
            for group in step.svi.optimizer.torch_optimizer.param_groups:
                group["lr"] /= 3

    expected = fit("VAE", callbacks=[slower])
    fit("VAE", checkpoint=tmp_path / "run", callbacks=[slower, at(7, "Ctrl-C")])
    same(fit("VAE", built=1, checkpoint=tmp_path / "run", callbacks=[slower]), expected)


def test_a_run_that_goes_back_after_continuing_equals_the_uninterrupted_one(tmp_path):
    """Stopped before the first bad step, among bad steps, and after training has gone back."""

    def spoil(step: TrainingStep) -> None:
        if step.number in (8, 14):
            next(iter(step.svi.optimizer.parameters.values())).data.fill_(float("nan"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which other tests read
        expected = fit("VAE", callbacks=[spoil])
        assert expected.chains[0].skipped == 7
        for stop in (7, 10, 13, 15):
            path = tmp_path / str(stop)
            fit("VAE", checkpoint=path, callbacks=[spoil, at(stop, "Ctrl-C")])
            same(fit("VAE", built=1, checkpoint=path, callbacks=[spoil]), expected)


def test_a_run_stopped_by_a_callback_continues_when_called_again(tmp_path):
    path = tmp_path / "run"
    first = fit("VAE", checkpoint=path, callbacks=[at(7)])
    assert first.chains[0].stop_reason == "enough, at step 7"
    second = fit("VAE", checkpoint=path, callbacks=[at(12)])
    assert second.chains[0].stop_reason == "enough, at step 12"
    assert len(second.history["loss"]) == 12
    same(fit("VAE", checkpoint=path), whole("VAE"))


def test_a_chain_stopped_by_a_callback_before_the_last_chain_does_not_continue(tmp_path):
    path = tmp_path / "run"
    expected = fit("restarts", callbacks=[at(7)])
    same(fit("restarts", checkpoint=path, callbacks=[at(7)]), expected)
    assert not path.exists()
    with pytest.raises(Crash):
        fit("restarts", checkpoint=path, callbacks=[at(7), at(12, "crash", 1)])
    same(fit("restarts", built=1, checkpoint=path), expected)


def test_a_run_stopped_after_its_last_step_has_no_steps_left(tmp_path):
    path = tmp_path / "run"
    fit("VAE", checkpoint=path, callbacks=[at(STEPS, "Ctrl-C")])
    assert read_position(path) == (0, STEPS)
    same(fit("VAE", built=1, checkpoint=path), whole("VAE"))


def test_a_callback_with_flush_is_called_before_each_writing(tmp_path):
    class Notes:
        seen: list[int]

        def __init__(self) -> None:
            self.seen, self.flushed = [], []

        def __call__(self, step: TrainingStep) -> None:
            self.seen.append(step.number)

        def flush(self) -> None:
            self.flushed.append(self.seen[-1])

    notes = Notes()
    fit("VAE", checkpoint=tmp_path / "run", callbacks=[notes, at(15, "Ctrl-C")])
    assert notes.flushed == [1, 10, 15]
    fit("VAE", callbacks=[notes := Notes()])
    assert notes.flushed == []


# Ctrl-C itself.


def pressed(times: int) -> Row:
    """A program in the middle of whose tenth step Ctrl-C is pressed."""

    def build() -> tuple[Callable, Callable]:
        model, guide = networks()
        steps = 0

        def counted(x: Tensor) -> None:
            nonlocal steps
            steps += torch.is_grad_enabled()
            if steps == 10:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            model(x)

        return counted, guide

    return Row(build)


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal: a process in the background is started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_lets_the_current_step_finish(tmp_path):
    path = tmp_path / "run"
    stopped = fit(pressed(1), checkpoint=path)
    assert stopped.chains[0].stop_reason == "interrupted at step 10"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    same(fit(pressed(0), checkpoint=path), fit(pressed(0)))


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_twice_ends_the_step_and_keeps_the_last_checkpoint(tmp_path):
    path = tmp_path / "run"
    stopped = fit(pressed(2), checkpoint=path)
    assert stopped.chains[0].stop_reason == "interrupted at step 9"
    assert read_position(path) == (0, 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    same(fit(pressed(0), checkpoint=path), fit(pressed(0)))


# The compiled step.


def close(one: ppgen.Fit, other: ppgen.Fit) -> None:
    for a, b in zip(one.chains, other.chains, strict=True):
        np.testing.assert_allclose(a.history["loss"], b.history["loss"], rtol=1e-4, atol=1e-4)
        for name, weight in a.weights.items():
            np.testing.assert_allclose(weight, b.weights[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("row", "first", "then"),
    [("VAE", True, False), ("VAE", False, True), ("adversarial", True, True), ("Pyro's decaying rate", False, True)],
)
def test_a_compiled_run_continues_compiled_or_eagerly(row, first, then, builds, tmp_path):
    path, last = tmp_path / "run", ROWS[row].options.get("restarts", 1) - 1
    fit(row, compile=first, checkpoint=path, callbacks=[at(4, "Ctrl-C", last)])
    resumed = fit(row, built=1, compile=then, checkpoint=path)
    assert resumed.chains[-1].compiled.count("compiled at step") == (then and (1 if row != "adversarial" else 2))
    assert builds
    close(resumed, whole(row))


@pytest.mark.parametrize("row", ["VAE", "adversarial"])
def test_a_resumed_run_compiles_where_the_stopped_one_had(row, builds, tmp_path, monkeypatch):
    """The first run has slow steps by its clock, so that it compiles; by the clock of the second none would pay."""
    path = tmp_path / "run"
    monkeypatch.setattr(CompilePolicy, "clock", Clock(10))
    options = {"compile": "auto", "optim": adam(), "batch_size": 10}
    expected = fit(row, **options)
    assert "compiled at step" in expected.chains[0].compiled
    fit(row, checkpoint=path, callbacks=[at(12, "Ctrl-C")], **options)
    assert {tuple(about["compiled"].values()) != () for about in read(path)[1]["compiled"]} == {True}
    monkeypatch.setattr(CompilePolicy, "clock", Clock(0))
    resumed = fit(row, built=1, checkpoint=path, **options)
    assert "compiled at step 1" in resumed.chains[0].compiled
    same(resumed, expected)  # bit for bit, since the step after the checkpoint is taken compiled again
    assert fit(row, **options).chains[0].compiled == ""


@pytest.mark.slow
def test_a_run_compiled_by_inductor_continues(tmp_path):
    path = tmp_path / "run"
    fit("VAE", compile=True, checkpoint=path, callbacks=[at(13, "Ctrl-C")])
    close(fit("VAE", built=1, compile=True, checkpoint=path), whole("VAE"))


# Refused checkpoints.


@pytest.fixture
def stopped(tmp_path) -> Path:
    fit("restarts", checkpoint=tmp_path / "run", callbacks=[at(4)])
    fit("restarts", checkpoint=tmp_path / "run", callbacks=[at(4, "Ctrl-C", 1)])
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 17}, "steps: 16 then, 17 now"),
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"restarts": 3}, "restarts: 2 then, 3 now"),
        ({"batch_size": 7}, "batch_size: 6 then, 7 now"),
        ({"ema": None}, r"ema: 0\.9 then, None now"),
        ({"clip_norm": 1.0}, r"clip_norm: None then, 1\.0 now"),
        ({"patience": 3}, "patience: None then, 3 now"),
        ({"lr_scheduler": "cosine"}, "lr_scheduler: None then, cosine now"),
        ({"validation": None}, r"data: .*\(16, 3\).* then, .*\(20, 3\)"),
        ({"optim": adam(lr=0.02)}, r"its optimizer is Adam\(lr=0\.01.*, this run's is Adam\(lr=0\.02"),
        ({"optim": functools.partial(torch.optim.SGD, lr=0.01)}, r"this run's is SGD"),
        ({"optim": pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.01}, "gamma": 0.9})},
         "give an optimizer and fit's lr_scheduler="),
    ],
)  # fmt: skip
def test_a_checkpoint_of_other_options_is_refused_and_unchanged(options, message, stopped):
    before = stopped.read_bytes()
    with pytest.raises(ValueError, match=message):
        fit("restarts", checkpoint=stopped, **options)
    assert stopped.read_bytes() == before
    same(fit("restarts", checkpoint=stopped), whole("restarts"))


def test_a_checkpoint_of_other_programs_is_refused_and_the_programs_do_not_change(stopped):
    before = stopped.read_bytes()
    others = gaussian_pair(width=3, size=4)
    held = [p for pair in (others.model, others.guide) for p in pair.__closure__[0].cell_contents.parameters()]
    weights = bits(held)
    with pytest.raises(ValueError, match=r"parameter encoder\$\$\$weight: torch\.float32 \(4, 3\) then, .* \(8, 3\)"):
        ppgen.fit(others.model, others.guide, X, **FULL, checkpoint=stopped)
    assert bits(held) == weights
    with pytest.raises(ValueError, match=r"parameter frozen\$\$\$weight: none then, .*frozen now"):
        fit(Row(frozen, options=ROWS["restarts"].options), checkpoint=stopped)
    with pytest.raises(ValueError, match=r"loss: ELBO then, Reconstruction \+ Rate now"):
        fit(Row(networks, recipes.vae, ROWS["restarts"].options), checkpoint=stopped)
    assert stopped.read_bytes() == before


FULL: dict[str, Any] = {
    **{"steps": STEPS, "batch_size": 6, "compile": False, "progress": False},
    **ROWS["restarts"].options,
}


def test_a_checkpoint_of_other_rows_is_refused(stopped):
    pair = gaussian_pair()
    with pytest.raises(ValueError, match="data: array 0 has other rows"):
        ppgen.fit(pair.model, pair.guide, X + 0.01, optim=adam(), **FULL, checkpoint=stopped)


def test_a_single_value_that_changed_is_noticed_by_the_digest_of_all_rows(tmp_path):
    pair, x, path = gaussian_pair(), torch.randn(103, *X.shape[1:]), tmp_path / "run.safetensors"
    options = {"optim": adam(), "steps": 4, "batch_size": 10, "compile": False, "progress": False, "checkpoint": path}
    ppgen.fit(pair.model, pair.guide, x, **options, callbacks=[lambda step: step.stop("enough")])
    changed = x.clone()
    changed.view(-1)[-1] += 1e-6
    with pytest.raises(ValueError, match="data: other rows, or in another order"):
        ppgen.fit(pair.model, pair.guide, changed, **options)
    ppgen.fit(pair.model, pair.guide, x, **options)


def test_a_checkpoint_of_other_validation_data_is_refused(tmp_path):
    path = tmp_path / "run"
    fit("clipped critic", checkpoint=path, callbacks=[at(4)])
    with pytest.raises(ValueError, match=r"validation: \['torch\.float32 \(5, 3\)'\] then, .*\(4, 3\)'\] now"):
        fit("clipped critic", checkpoint=path, validation=X[:4])


def test_a_checkpoint_of_programs_with_other_buffers_is_refused(tmp_path):
    def row(width: int) -> Row:
        def build() -> tuple[Callable, Callable]:
            model = Normed()
            model.net.register_buffer("constants", torch.zeros(width))
            return model, centered

        return Row(build)

    path = tmp_path / "run"
    fit(row(2), checkpoint=path, callbacks=[at(4)])
    with pytest.raises(ValueError, match=r"buffer buffers\.\d+\.constants: torch\.float32 \(2,\) then, .*\(3,\) now"):
        fit(row(3), checkpoint=path)


def damage(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    return bytes(content)


def test_a_damaged_checkpoint_without_another_is_an_error_and_is_kept(stopped):
    previous = stopped.with_name("run.previous")
    content, _ = damage(stopped), damage(previous)
    with pytest.raises(CheckpointError, match=r"run: .*altered or damaged"):
        fit("restarts", checkpoint=stopped)
    assert stopped.read_bytes() == content
    previous.unlink()
    stopped.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        fit("restarts", checkpoint=stopped)


def test_a_run_continues_from_the_checkpoint_before_a_damaged_one_with_a_warning(stopped):
    content = damage(stopped)
    warned = pytest.warns(UserWarning, match=r"run: .* damaged; .* continues from .*run\.previous, of step 1$")
    with warned as caught, pytest.raises(Crash):
        fit("restarts", checkpoint=stopped, callbacks=[at(3, "crash", 1)])
    assert len(caught) == 1
    assert stopped.read_bytes() == content
    same(fit("restarts", checkpoint=stopped), whole("restarts"))


def test_a_saved_fit_is_refused_as_a_checkpoint(tmp_path):
    whole("VAE").save(tmp_path / "fit")
    with pytest.raises(CheckpointError, match="not a checkpoint of a run"):
        fit("VAE", checkpoint=tmp_path / "fit")


def test_a_checkpoint_of_an_earlier_development_version_is_refused_and_kept(tmp_path):
    path = tmp_path / "run"
    old = {"format": "run 1", "asked": {"steps": STEPS}, "number": 0, "chains": [], "watch": {"steps": 10}}
    tensors = {"live/w": torch.zeros(1), "watch/history/loss": torch.zeros(10)}
    safetensors.torch.save_file(tensors, path, {"facts": json.dumps(old), "digest": "0" * 64})
    content = path.read_bytes()
    for read_it in (lambda: fit("VAE", checkpoint=path), lambda: read_position(path)):
        with pytest.raises(CheckpointError, match=r"run: an earlier development version .*delete the file if it is a"):
            read_it()
    assert path.read_bytes() == content
    write(path, tensors, old)
    with pytest.raises(CheckpointError, match=r"another version of ppgen .format 'run 1'; .* start a new run"):
        fit("VAE", checkpoint=path)


def test_state_that_cannot_be_stored_is_an_error_at_the_first_step(tmp_path):
    class Odd(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["memory"] = [p]
            return super().step(closure)

    def with_own(*args: Any) -> Tensor:
        own = pyro.param("own", torch.tensor(0.0))
        return pyro.infer.Trace_ELBO().differentiable_loss(*args) + own**2

    seen: list[int] = []
    note = [lambda step: seen.append(step.number)]
    with pytest.raises(TypeError, match="Odd holds 'memory', a list"):
        fit("VAE", optim=functools.partial(Odd, lr=0.1), checkpoint=tmp_path / "run", callbacks=note)
    with pytest.raises(ValueError, match="the parameters own on the first batch"):
        fit(Row(networks, lambda: with_own), checkpoint=tmp_path / "run", callbacks=note)
    assert seen == [1, 1]
    assert not list(tmp_path.iterdir())


def test_the_file_consists_of_tensors_and_json(stopped):
    tensors, facts = read(stopped)
    assert {key.split("/")[0] for key in tensors} == {
        *("current", "monitor", "chains", "random", "data", "initial", "optimizers"),
    }
    write(stopped, tensors, facts)
    same(fit("restarts", checkpoint=stopped), whole("restarts"))


def test_a_parameter_frozen_during_training_stays_constant(tmp_path):
    """Frozen after step 5, by a callback that the continued run does not have; its program is frozen already."""
    encoder = nn.Linear(3, 4)

    def build() -> tuple[Callable, Callable]:
        model, _ = networks()
        torch.manual_seed(3)
        encoder.reset_parameters()
        encoder.bias.requires_grad_(not build.frozen)

        def guide(x: Tensor) -> None:
            pyro.module("encoder", encoder)
            with pyro.plate("data", x.shape[0]):
                loc, log_scale = encoder(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

        return model, guide

    def freeze(step: TrainingStep) -> None:
        if step.number == 5:
            encoder.bias.requires_grad_(False)

    build.frozen = False
    expected = fit(Row(build), callbacks=[freeze])
    fit(Row(build), checkpoint=tmp_path / "run", callbacks=[freeze, at(8, "Ctrl-C")])
    with pytest.raises(ValueError, match=r"encoder\$\$\$bias: torch\.float32 \(4,\), frozen then"):
        fit(Row(build), checkpoint=tmp_path / "run")
    build.frozen = True
    same(fit(Row(build), checkpoint=tmp_path / "run"), expected)
