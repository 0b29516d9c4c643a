"""A step that memory is not enough for: what the error says, and what is in the checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support import gaussian_pair
from torch import Tensor

import ppgen
from ppgen import models
from ppgen.losses import recipes
from ppgen.training.checkpoint import read_position
from ppgen.training.memory import is_out_of_memory

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(7))
GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error 12")


def vae() -> tuple[Any, Any]:
    return gaussian_pair(), ppgen.ELBO()


def gan() -> tuple[Any, Any]:
    return models.Generator((3,), latent_dim=2, hidden=(4,)), recipes.r3_gan(hidden=(6,))


def fit(build: Callable = vae, error: Exception | None = None, *, step: int = 7, **options: Any) -> ppgen.Fit:
    """A run in one of whose steps the model fails, after its guide and its critics have drawn random numbers."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    programs, loss = build()
    failing = False

    def model(x: Tensor) -> None:
        programs.model(x)
        if failing and error is not None:
            raise error

    def begin(at: Any) -> None:
        nonlocal failing
        failing = at.number == step - 1

    defaults = {"steps": 12, "batch_size": 6, "compile": False, "progress": False, "callbacks": [begin]}
    return ppgen.fit(model, programs.guide, X, loss=loss, **defaults | options)


def test_what_torch_says_on_this_machine_is_known():
    for request in (lambda: torch.empty(2**58), lambda: bytearray(2**62)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            request()
        assert is_out_of_memory(caught.value)
    assert is_out_of_memory(GPU)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize("error", [GPU, CPU, MemoryError()], ids=lambda error: type(error).__name__)
def test_the_error_names_the_batch_and_what_needs_half_of_it(error):
    with pytest.raises(
        type(error), match=r"^fit: step 7 needs more memory.* a batch of 6 rows; half of it, batch_size=3,"
    ):
        fit(error=error)


def test_a_batch_of_one_row_cannot_be_halved():
    with pytest.raises(
        MemoryError, match="with a batch of 1 row; give the loss fewer particles, or the programs small"
    ):
        fit(error=MemoryError(), batch_size=1)


def test_programs_without_data_have_no_batch():
    def model() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    def loss(*_: Any) -> Tensor:
        raise GPU

    with pytest.raises(
        torch.OutOfMemoryError, match=r"^fit: step 1 needs more memory than there is; give the loss fewer"
    ):
        ppgen.fit(model, guide, None, loss=loss, steps=3, compile=False, progress=False)


@pytest.mark.parametrize("build", [vae, gan])
def test_the_steps_before_are_in_the_checkpoint_as_if_it_had_been_written_then(build, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(torch.OutOfMemoryError, match="and is another run; the steps before it are in the checkpoint"):
        fit(build, GPU, checkpoint=path)
    assert read_position(path) == (0, 6)
    resumed, whole = fit(build, checkpoint=path), fit(build)
    assert all(torch.equal(resumed.chains[0].weights[name], w) for name, w in whole.chains[0].weights.items())


def test_a_set_that_continues_in_its_own_order_loses_no_batch(tmp_path):
    class Rows(torch.utils.data.IterableDataset):
        """Rows of which a checkpoint holds the position."""

        at = 0

        def __iter__(self) -> Any:
            while self.at < 1000:
                self.at += 1
                yield X[self.at % 20]

        def state_dict(self) -> dict[str, int]:
            return {"at": self.at}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.at = state["at"]

    def run(error: Exception | None = None, checkpoint: Path | None = None) -> ppgen.Fit:
        torch.manual_seed(0)
        pair, failing = gaussian_pair(), [False]

        def model(x: Tensor) -> None:
            pair.model(x)
            if failing[0] and error is not None:
                raise error

        def begin(at: Any) -> None:
            failing[0] = at.number == 7

        options = {"steps": 12, "batch_size": 6, "compile": False, "progress": False, "callbacks": [begin]}
        return ppgen.fit(model, pair.guide, Rows(), checkpoint=checkpoint, **options)

    whole = run()
    with pytest.raises(torch.OutOfMemoryError):
        run(GPU, tmp_path / "run")
    resumed = run(checkpoint=tmp_path / "run")
    assert resumed.history["loss"].tolist() == whole.history["loss"].tolist()


def test_validation_and_the_first_run_are_named_as_such():
    pair = gaussian_pair()

    def model(x: Tensor) -> None:
        if len(x) == 5:
            raise GPU
        pair.model(x)

    options = {"steps": 2, "compile": False, "progress": False}
    text = (
        "^fit: validation after step 2 needs more memory than there is with a batch of 5 rows; give fewer rows of val"
    )
    with pytest.raises(torch.OutOfMemoryError, match=text):
        ppgen.fit(model, pair.guide, X, validation=X[:5], batch_size=10, **options)
    text = (
        "^fit: a first run of the programs needs more memory than there is with a batch of 5 rows; half of it, batch_si"
    )
    with pytest.raises(torch.OutOfMemoryError, match=text):
        ppgen.fit(model, pair.guide, X, batch_size=5, **options)
