"""Many processes: one of W x B rows equals W of B rows, replicas are equal, and what cannot be shared is refused."""

import os
import re
import signal
from typing import Any

import distributed_cases
import numpy as np
import pyro
import pytest
import torch

import ppgen
from ppgen.infer import distributed
from ppgen.infer.distributed import shares
from ppgen.tracing.plates import sharded_plates
from ppgen.tracing.programs import get_trace

pytestmark = pytest.mark.slow  # they start processes
QUICK = ["uneven", "global_latents"]
NAMES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow, id=name) for name in distributed_cases.CASES
]


@pytest.fixture(scope="module")
def results(request) -> list[dict[Any, Any]]:
    """The results of four processes, of those cases that the selected tests ask for."""
    asked = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    names = [name for name in distributed_cases.CASES if name in asked]
    return distributed_cases.start(distributed_cases.all_cases, 4, names)


def assert_equal_numbers(many: dict, one: dict, tolerance: float = 1e-10) -> None:
    assert many["weights"].keys() == one["weights"].keys()
    for kind in ("weights", "history", "adversarial"):
        for name, value in one[kind].items():
            other = torch.as_tensor(many[kind][name], dtype=torch.float64)
            expected = torch.as_tensor(value, dtype=torch.float64)
            torch.testing.assert_close(
                other, expected, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
            )


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one_with_twice_the_rows(results, name, compile):
    one = results[3 if compile else 2][name, compile, 1]
    assert_equal_numbers(results[0][name, compile, 2], one)
    if compile:
        assert "compiled at" in results[0][name, True, 2]["compiled"]
        assert "compiled at" in one["compiled"]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_global_batch(results, name):
    assert_equal_numbers(results[0][name, "gradient", 2], results[2][name, "gradient", 1])


@pytest.mark.parametrize("name", QUICK)
def test_four_processes_equal_one(results, name):
    assert_equal_numbers(results[0][name, False, 4], results[2][name, False, 1])


def test_replicas_are_bitwise_equal(results):
    for key, run in results[0].items():
        for other in (result for result in results[1:] if key[2] > 1 and key in result):
            for name, tensor in run["weights"].items():
                assert torch.equal(other[key]["weights"][name], tensor), (key, name)
            assert all(np.array_equal(other[key]["history"][k], v) for k, v in run["history"].items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_steps_that_inductor_compiles_equal_those_of_one_process():
    first, second = distributed_cases.start(distributed_cases.compiled_by_inductor, 2)
    assert "gradient: compiled at" in first["many"]["compiled"]
    assert "update: compiled at" in first["many"]["compiled"]
    assert_equal_numbers(first["many"], first["one"])
    assert all(torch.equal(second["many"]["weights"][k], w) for k, w in first["many"]["weights"].items())


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_gone_ends_the_others_within_the_time_out(number):
    """Without a launcher: at once if it has died, and after the group's 15 seconds if it has stopped."""
    (result,) = distributed_cases.start(distributed_cases.deserted, 2, number, until=1)
    assert result["steps"] == 3
    assert re.search("[Cc]onnection|[Tt]imed out|[Tt]imeout", result["error"])


# What two processes do besides


@pytest.fixture(scope="module")
def behaviors() -> list[dict[str, Any]]:
    return distributed_cases.start(distributed_cases.behaviors, 2)


def test_validation_is_sharded_and_merged(behaviors):
    for many, one in (result["validation"] for result in behaviors):
        np.testing.assert_allclose(many["validation"]["loss"], one["validation"]["loss"], rtol=1e-10)
        assert len(many["validation"]["loss"])


@pytest.mark.parametrize("how", [False, True, "records"])
def test_streamed_rows_are_those_of_one_process(behaviors, how):
    """Eager and compiled, and of data without row numbers."""
    for many, one in (result["streams"] for result in behaviors):
        assert_equal_numbers(many[how], one[how])
        if how is True:
            assert "compiled at" in many[how]["compiled"]


def test_each_rank_reads_its_share_alone(behaviors):
    """Of batches of 24, 24 and 2 rows, the last of which is left to one rank."""
    first, second = (result["read"] for result in behaviors)
    assert sorted([len(first), len(second)]) == [24, 26]
    assert sorted(first + second) == list(range(50))


def test_buffers_are_the_mean_over_ranks(behaviors):
    """Batch norm normalizes by each share's own moments; its running mean is then that of the global batch."""
    x = distributed_cases.data()
    for result in behaviors:
        weights = {name.rpartition(".")[2]: tensor for name, tensor in result["normed"]["weights"].items()}
        torch.testing.assert_close(weights["running_mean"], 0.1 * x.mean(0), rtol=1e-12, atol=1e-12)
        within = (x[:24].var(0) + x[24:].var(0)) / 2
        torch.testing.assert_close(weights["running_var"], 0.9 + 0.1 * within, rtol=1e-12, atol=1e-12)
        assert weights["num_batches_tracked"] == 1


def test_metrics_of_samples_are_computed_within_shares_and_averaged(behaviors):
    """An MMD is no mean over rows: the value is the mean of those of the two halves, not that of the whole."""
    x = distributed_cases.data()
    halves = [float(ppgen.metrics.MMD()(part, part.flip(0) * 0.5)) for part in (x[:24], x[24:])]
    for many, one in (result["mmd"] for result in behaviors):
        np.testing.assert_allclose(many["history"]["loss"], np.mean(halves), rtol=1e-10)
        np.testing.assert_allclose(one["history"]["loss"], float(ppgen.metrics.MMD()(x, x.flip(0) * 0.5)), rtol=1e-10)


def test_chains_are_spread_over_ranks_and_gathered(behaviors):
    for many, one in (result["chains"] for result in behaviors):
        assert len(many["chains"]) == 3
        assert all(np.array_equal(a, b) for a, b in zip(many["chains"], one["chains"], strict=True))


def test_each_process_may_train_by_itself(behaviors):
    for many, one in (result["alone"] for result in behaviors):
        assert np.array_equal(many["history"]["loss"], one["history"]["loss"])


def test_a_rank_that_stops_stops_all_one_step_later(behaviors):
    stopped = [result["stopped"] for result in behaviors]
    assert [len(run["history"]["loss"]) for run in stopped] == [5, 5]
    assert [run["stop"] for run in stopped] == ["stopped by another rank, at step 5"] * 2


def test_ranks_converge_at_the_same_step_with_the_same_weights(behaviors):
    one, other = (result["converges"] for result in behaviors)
    assert one["stop"] == other["stop"]
    assert one["stop"].startswith("converged: the held-out loss has not improved since step")
    assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])


def test_a_stop_is_not_lost_in_a_validation(behaviors):
    """Of step 4, with two batches in an epoch."""
    assert [len(result["validated"]["history"]["loss"]) for result in behaviors] == [4, 4]


def test_ranks_that_read_different_checkpoints_are_refused(behaviors):
    for result in behaviors:
        assert (
            "ranks read different checkpoints (chain 1, step 5 on rank 0, chain 1, step 0 on rank 1)"
            in result["checkpoint"]
        )


def test_a_run_that_was_stopped_resumes_bit_for_bit(behaviors):
    for result in behaviors:
        resumed, uninterrupted = result["resumed"]
        assert np.array_equal(resumed["history"]["loss"], uninterrupted["history"]["loss"])
        assert all(torch.equal(resumed["weights"][k], w) for k, w in uninterrupted["weights"].items())
        assert result["removed"]


def test_a_run_resumes_on_another_number_of_ranks_and_says_so(behaviors):
    """Its global batches stay the same, and so do the numbers of a program without noise."""
    resumed, one, messages = behaviors[0]["on one"]
    assert_equal_numbers(resumed, one)
    assert any("written by 2 ranks, and resumed by 1: global batches stay the same" in text for text in messages)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(("how", "bad"), [("data", [4, 8]), ("error", [4, 8]), ("weights", [6, 7, 8, 9, 10])])
def test_a_step_that_fails_for_the_numbers_of_one_rank_is_skipped_by_all(behaviors, how, bad, compile):
    """The model counts its runs in a buffer, which goes back with the step."""
    first, second = (result["failing"][how, compile] for result in behaviors)
    for run in (first, second):
        assert [number for number, (taken, _) in enumerate(run["seen"], 1) if not taken] == bad
        assert run["skipped"] == len(bad)
        assert ("compiled at" in run["by"]) == compile
    assert first["weights"].keys() == second["weights"].keys()
    assert all(torch.equal(second["weights"][name], weight) for name, weight in first["weights"].items())
    assert all(weight.isfinite().all() for weight in first["weights"].values())
    if how != "weights":
        assert "all sites and gradients are finite on this rank" in first["told"][0]
    if how == "error":
        assert "the step is skipped: LinAlgError: linalg.cholesky: " in second["told"][0]


def test_each_rank_has_a_random_stream_of_its_own(behaviors):
    first, second = (result["stream"] for result in behaviors)
    assert not set(first) & set(second)


@pytest.mark.parametrize("message", list(distributed_cases.refused()))
def test_what_ranks_cannot_share_is_refused(behaviors, message):
    for result in behaviors:
        assert message in result[message]


def test_ranks_with_other_data_are_refused(behaviors):
    for result in behaviors:
        assert "rank 1 differs from rank 0: rows of data[0]" in result["data"]


# Without processes


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 29])
def test_shares_are_contiguous_and_of_at_least_two_rows(rows, ranks):
    parts = shares(rows, ranks)
    assert [row for start, stop in parts for row in range(start, stop)] == list(range(rows))
    sizes = [stop - start for start, stop in parts]
    assert len(sizes) == ranks
    assert rows == 1 or 1 not in sizes
    used = [size for size in sizes if size]
    assert max(used) - min(used) <= 1
    assert max(stop - start for start, stop in shares(rows, ranks, single=True)) == -(-rows // min(rows, ranks))


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("gpu[03-05,07],cpu1", "gpu03"), ("node7", "node7"), ("a,b", "a"), ("n[1,4]-ib,m2", "n1-ib")],
)
def test_the_first_of_the_hosts_that_slurm_lists(hosts, first):
    assert distributed._first_host(hosts) == first


def test_a_step_of_slurm_sets_the_environment_of_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that it is removed afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_PROCID", "5")
    assert distributed.launched_ranks() == 1  # a batch script, which is no step
    for name, value in {"STEP_NUM_TASKS": "8", "LOCALID": "1", "STEP_NODELIST": "gpu[2-3]", "JOB_ID": "71"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert distributed.launched_ranks() == 8
    distributed._environment_from_slurm()
    found = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")]
    assert found == ["5", "8", "1", "gpu2", "15071"]


def test_processes_without_a_group_do_not_train_copies(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    case = distributed_cases.refused_data() | {"data": torch.randn(8, 3), "steps": 1, "progress": False}
    with pytest.raises(ValueError, match=r"one of 2 processes that have no process group.*initialize\(\)"):
        ppgen.fit(**case)
    assert len(ppgen.fit(**case, distribute=None).history["loss"]) == 1
    with pytest.raises(ValueError, match='distribute must be "rows", "chains" or None'):
        ppgen.fit(**case, distribute="data")


def test_a_share_of_a_plate_is_scaled_to_the_whole():
    """log p of 4 of 10 rows counts 10 / 4 times; a plate of another name or size is as it was."""

    def model(x: torch.Tensor) -> None:
        for name, size in (("data", len(x)), ("other", len(x))):
            with pyro.plate(name, size):
                pyro.sample(f"x in {name}", pyro.distributions.Normal(0.0, 1.0), obs=x)
        with pyro.plate("all", 100, subsample=x):
            pyro.sample("x of 100", pyro.distributions.Normal(0.0, 1.0), obs=x)

    with sharded_plates(["data", "all"], 4, 10):
        trace = get_trace(model, torch.zeros(4))
    scales = {name: site["scale"] for name, site in trace.nodes.items() if name.startswith("x")}
    assert scales == {"x in data": 2.5, "x in other": 1.0, "x of 100": 25.0}
    with sharded_plates(["data"], 4, 10):
        pass
    assert get_trace(model, torch.zeros(4)).nodes["x in data"]["scale"] == 1.0
