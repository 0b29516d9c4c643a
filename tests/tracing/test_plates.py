"""`all_rows`: nested, recursive, in threads, whatever the order in which contexts close."""

import threading
from contextlib import ExitStack

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.subsample_messenger import SubsampleMessenger

from ppgen.tracing.plates import all_rows
from ppgen.tracing.programs import get_trace

N, B = 20, 4
ORIGINAL = SubsampleMessenger._subsample


def model():
    with pyro.plate("data", N, subsample_size=B):
        return pyro.sample("z", dist.Normal(0.0, 1.0))


def rows() -> int:
    """How many rows the plate uses; the scale and the frame have to agree."""
    trace = get_trace(model)
    site = trace.nodes["z"]
    (frame,) = site["cond_indep_stack"]
    count = len(site["value"])
    assert frame.size == count
    assert frame.full_size == N
    assert site["scale"] == N / count
    if count == N:
        assert torch.equal(trace.nodes["data"]["value"], torch.arange(N))
    return count


@pytest.fixture(autouse=True)
def plates_are_as_before():
    yield
    assert rows() == B
    assert SubsampleMessenger._subsample is ORIGINAL


def test_contexts_nest():
    assert rows() == B
    with all_rows():
        assert rows() == N
        with all_rows():
            assert rows() == N
        assert rows() == N
    assert rows() == B


def test_contexts_may_close_in_any_order():
    first, second = ExitStack(), ExitStack()
    first.enter_context(all_rows())
    second.enter_context(all_rows())
    first.close()
    assert rows() == N
    second.close()
    assert rows() == B


def test_an_error_closes_the_context():
    with pytest.raises(ZeroDivisionError), all_rows(), all_rows():
        raise ZeroDivisionError


def test_a_recursive_function_may_open_it():
    @all_rows()
    def run(depth: int) -> list[int]:
        return [rows(), *(run(depth - 1) if depth else []), rows()]

    assert run(3) == [N] * 8


def test_a_plate_keeps_the_rows_that_it_is_given():
    chosen = torch.tensor([3, 1])

    def program():
        with pyro.plate("data", N, subsample=chosen) as index:
            assert torch.equal(index, chosen)
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with all_rows():
        trace = get_trace(program)
    assert trace.nodes["z"]["scale"] == N / 2


def test_a_plate_without_a_size_and_a_sequential_plate():
    with all_rows():
        with pyro.plate("any"):
            assert pyro.sample("z", dist.Normal(torch.zeros(3), 1.0)).shape == (3,)
        assert list(pyro.plate("loop", 5, subsample_size=2)) == list(range(5))


def test_other_threads_are_not_affected_and_may_outlive_the_context():
    """Pyro runs one program at a time, so the threads take turns: each opens or closes, then both count their rows."""
    turns, counts = threading.Barrier(2, timeout=20), {"main": [], "other": []}

    def other():
        for context in (opened := ExitStack(), None):
            turns.wait()  # main has opened its context; later, has closed it
            counts["other"].append(rows())
            if context is not None:
                context.enter_context(all_rows())
                counts["other"].append(rows())
            turns.wait()
        opened.close()
        counts["other"].append(rows())

    thread = threading.Thread(target=other)
    with all_rows():
        thread.start()
        turns.wait()
        turns.wait()
        counts["main"].append(rows())
    counts["main"].append(rows())
    turns.wait()
    turns.wait()
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert counts == {"main": [N, B], "other": [B, N, N, B]}


def test_threads_that_open_and_close_at_random_leave_nothing_behind():
    def open_and_close():
        for _ in range(200):
            with all_rows(), all_rows():
                pass

    threads = [threading.Thread(target=open_and_close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
