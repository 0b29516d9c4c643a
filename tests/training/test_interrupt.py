"""SIGTERM, SIGHUP and Ctrl-C: the step ends, the checkpoint is written, and then the signal acts as it would have."""

import os
import signal
from pathlib import Path

import pytest
import torch
from kills import assert_equal, run, train, whole
from support import gaussian_pair

import ppgen
from ppgen.infer.checkpoint_file import read
from ppgen.training.checkpoint import read_position
from ppgen.training.interrupt import InterruptHandler

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGHUP")

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(7))


@pytest.mark.usefixtures("sighup_ends_processes")
@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGHUP", marks=pytest.mark.slow)])
def test_a_signal_saves_the_run_and_then_ends_the_process(name, tmp_path):
    assert run(train, "flow", tmp_path, False, (name, 9)) == -getattr(signal, name)
    assert read_position(tmp_path / "run") == (0, 9)
    assert run(train, "flow", tmp_path, False, None) == 0
    assert_equal(read(tmp_path / "fit")[0], whole("flow", False), False)


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(tmp_path):
    assert run(train, "flow", tmp_path, False, ("SIGTERM twice", 9)) == -signal.SIGTERM
    assert read_position(tmp_path / "run") == (0, 5)


@pytest.fixture
def received():
    """The signals that a handler of the user's received, with the checkpoint at that moment."""
    signals: list[tuple[int, tuple[int, int] | None]] = []
    signals_path: list[Path] = []

    def handler(number: int, _: object) -> None:
        signals.append((number, read_position(signals_path[0]) if signals_path else None))

    before = signal.signal(signal.SIGTERM, handler)
    yield signals, signals_path
    assert signal.getsignal(signal.SIGTERM) is handler
    signal.signal(signal.SIGTERM, before)


def fit(**options) -> ppgen.Fit:
    pair = gaussian_pair()
    at = lambda step: signal.raise_signal(signal.SIGTERM) if step.number == 5 else None  # noqa: E731
    options = {"steps": 8, "compile": False, "progress": False, "callbacks": [at]} | options
    return ppgen.fit(pair.model, pair.guide, X, **options)


def test_a_handler_of_the_users_own_runs_after_the_checkpoint_is_written(received, tmp_path):
    signals, path = received
    path.append(tmp_path / "run")
    stopped = fit(checkpoint=tmp_path / "run")
    assert signals == [(signal.SIGTERM, (0, 5))]
    assert stopped.chains[0].stop_reason == "interrupted by SIGTERM at step 5"
    assert not stopped.complete
    stopped.save(tmp_path / "partial")
    assert (tmp_path / "run").exists()  # from which the run still continues
    assert fit(checkpoint=tmp_path / "run", callbacks=[]).complete


def test_without_a_checkpoint_signals_act_at_once(received):
    signals, _ = received
    assert fit().complete
    assert signals == [(signal.SIGTERM, None)]


def test_ignored_signals_stay_ignored():
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with InterruptHandler(saves=True) as interrupt:
            signal.raise_signal(signal.SIGHUP)
        assert not interrupt.requested
    finally:
        signal.signal(signal.SIGHUP, before)
