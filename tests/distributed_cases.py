"""What several processes compute, for `tests/infer/test_distributed.py`: one pool of processes runs all cases.

One process and many get equal numbers only if their random numbers are equal. `noise_of_rows` therefore replaces the
random functions of torch: they draw for the global batch, on each rank the same, and return the rows of its share.
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyro
import pyro.distributions as pd
import torch
import torch.distributed as dist
from pyro.infer.autoguide import AutoNormal
from support import known_as
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

import ppgen
from ppgen import models, recipes
from ppgen import views as v
from ppgen.diffusion.times import TIMES
from ppgen.infer.compile.building import Build
from ppgen.infer.distributed import Ranks, shares
from ppgen.metrics import MMD
from ppgen.training import chain as chain_trainer
from ppgen.training.callbacks import TrainingStep

STEPS = 50
RANDOM = ("normal", "rand_like", "randn_like", "rand", "randn", "bernoulli")
SECONDS = 240  # after which processes are taken for dead


@contextlib.contextmanager
def noise_of_rows() -> Iterator[None]:
    """Each step draws the numbers of its global batch, the same in all processes; a rank gets those of its rows."""
    ranks: list[Ranks] = []
    steps = itertools.count()
    begin_step = Ranks.begin_step

    def begin(self: Ranks, rows: int | None, whole: int | None) -> None:
        begin_step(self, rows, whole)
        ranks[:] = [self]
        torch.manual_seed(next(steps))

    def drawn(draw: Callable, *args: Any, **kwargs: Any) -> Tensor:
        first = args[0] if args else None
        here = ranks[0] if ranks else None
        shape = first.shape if isinstance(first, Tensor) else (first,) if isinstance(first, int) else first
        length = shape[0] if shape else None
        if here is None or here.size == 1 or length != here.rows:
            return draw(*args, **kwargs)
        start, stop = shares(here.whole, here.size)[here.rank]
        longer = [arg[:1].expand(here.whole, *arg.shape[1:]) if isinstance(arg, Tensor) else arg for arg in args]
        longer[0] = longer[0] if isinstance(first, Tensor) else torch.Size([here.whole, *shape[1:]])
        return draw(*longer, **kwargs)[start:stop]

    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(Ranks, "begin_step", begin))
        for name in RANDOM:
            stack.enter_context(patch.object(torch, name, functools.partial(drawn, getattr(torch, name))))
        stack.enter_context(patch.dict(TIMES, independent=torch.rand_like))
        for module in (torch.distributions.normal, torch.distributions.multivariate_normal):
            substitute = functools.partial(drawn, module._standard_normal)
            stack.enter_context(patch.object(module, "_standard_normal", substitute))
        yield


# Programs


def data(rows: int = 48) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def vae(rows: int = 48) -> dict:
    vae = models.VAE((3,), latent_dim=2, hidden=(5,))
    loss = ppgen.Reconstruction() + ppgen.Anneal(1.0, steps=20) * ppgen.Rate()
    return {"programs": vae, "data": data(rows), "loss": loss, "clip_norm": 1.0, "lr_scheduler": "cosine", "ema": 0.9}


def wgan_gp() -> dict:
    gan = models.Generator((3,), latent_dim=2, hidden=(5,))
    return {"programs": gan, "data": data(), "loss": recipes.wgan_gp(hidden=(6,), steps=2)}


def dann() -> dict:
    """Without a batch size, so that each share has as many rows of one domain as of the other."""
    x, d = data(), torch.arange(48) % 2
    dann = models.DANN((3,), 2, latent_dim=4, hidden=(5,))
    y = torch.where(d == 0, (x[:, 0] > 0).long(), models.UNKNOWN)
    return {"programs": dann, "data": (x, y, d), "loss": recipes.dann(hidden=(6,)), "whole": True}


def flow() -> dict:
    return {"programs": models.FlowModel((3,), flow="realnvp", layers=2, hidden=(6,)), "data": data()}


def diffusion() -> dict:
    diffusion = models.Diffusion((3,), steps=10, hidden=(8,))
    return {"programs": diffusion, "data": data(), "loss": ppgen.DiffusionELBO("simple", times="independent")}


class Programs:
    def __init__(self, model: Callable, guide: Callable) -> None:
        self.model, self.guide = model, guide


def global_latents(plate: Callable = lambda x: pyro.plate("data", len(x))) -> dict:
    """A mean of all rows, and a latent of each of them."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", pd.Normal(x.new_zeros(3), 2.0).to_event(1))
        with plate(x):
            z = pyro.sample("z", pd.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", pd.Normal(w + z[:, None], 0.7).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: x.new_zeros(3))
        scale = pyro.param("scale", lambda: x.new_full((3,), 0.3), constraint=pd.constraints.positive)
        slope = pyro.param("slope", lambda: x.new_full((3,), 0.1))
        pyro.sample("w", pd.Normal(loc, scale).to_event(1))
        with plate(x):
            pyro.sample("z", pd.Normal(x @ slope, 0.6))

    return {"programs": Programs(model, guide), "data": data(), "whole": True}


def subsampled() -> dict:
    return global_latents(lambda x: pyro.plate("data", 48, subsample=x)) | {"whole": False}


def renamed() -> dict:
    """A plate of another name, and Pyro's own ELBO, which is a sum over data."""
    return global_latents(lambda x: pyro.plate("rows", len(x))) | {"loss": pyro.infer.Trace_ELBO()}


def growing() -> dict:
    gan = models.Generator((1, 8, 8), latent_dim=2, hidden=(4, 6), network="growing", norm="pixel")
    loss = recipes.progan(hidden=(4, 6), minibatch_std=False)
    x = torch.rand(48, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return {"programs": gan, "data": x, "loss": loss, "growth": ppgen.ProgressiveGrowing(), "steps": 12}


CASES = {
    "vae": vae,
    "wgan_gp": wgan_gp,
    "dann": dann,
    "flow": flow,
    "diffusion": diffusion,
    "global_latents": global_latents,
    "subsampled": subsampled,
    "renamed": renamed,
    "growing": growing,
    "uneven": functools.partial(vae, 50),  # batches of 24, 24 and 2 rows
}


def run(
    name: str, *, compile: bool = False, batch: int = 24, gradient: bool = False, by_rows: bool = True, **options: Any
) -> dict:
    """Trains a case; returns weights, losses and what was decided about compiling.

    Args:
        name: the case.
        compile: whether to compile steps.
        batch: the rows of a global batch.
        gradient: whether to take one step of gradient descent instead, which shows the gradient.
        by_rows: whether noise is drawn by `noise_of_rows`, instead of by each rank from its own stream.
        **options: other arguments of `ppgen.fit`.
    """
    torch.manual_seed(0)
    pyro.clear_param_store()
    case = CASES[name]() if name in CASES else globals()[name]()
    size = dist.get_world_size() if dist.is_initialized() else 1
    programs = case.pop("programs")
    batch_size = None if case.pop("whole", False) else batch // size
    short = {"optim": functools.partial(torch.optim.SGD, lr=1.0), "steps": 1, "ema": None, "growth": None}
    chosen = {"steps": STEPS, "compile": compile}
    rows = case.pop("data")
    args = {"batch_size": batch_size, "progress": False} | chosen | case | (short if gradient else {}) | options
    with noise_of_rows() if by_rows else contextlib.nullcontext():
        fit = ppgen.fit(programs.model, programs.guide, rows, **args)
    if fit.checkpoint is not None:
        fit.save(f"{fit.checkpoint.path}.fit")  # which deletes it
    chain = fit.chains[-1]
    return {
        "weights": {k: t.clone() for k, t in chain.weights.items()},
        "history": chain.history,
        "adversarial": chain.adversarial_metrics,
        "validation": chain.validation,
        "compiled": chain.compiled,
        "stop": chain.stop_reason,
        "chains": [c.history["loss"] for c in fit.chains],
    }


def steps_that_fail(rank: int, how: str, **options: Any) -> dict:
    """A run among several ranks in which rank 1 alone fails for its numbers.

    Args:
        rank: the number of this process.
        how: "data" for rows of NaN in its share, "error" for an error of a matrix in its program, "weights" for weights
            of NaN, from which all ranks go back.
        **options: arguments of `ppgen.fit`.
    """
    torch.manual_seed(0)
    pyro.clear_param_store()
    vae, failing = models.VAE((3,), latent_dim=2, hidden=(5,)), [False]
    vae.register_buffer("counts", torch.zeros(()))

    def model(x: Tensor) -> None:
        vae.counts.add_(1.0)
        if failing[0]:
            torch.linalg.cholesky(x.new_zeros(2, 2))
        vae.model(x)

    def begin(step: Any) -> None:
        bad = rank == 1 and step.number + 1 in (4, 8)
        failing[0] = bad and how == "error"
        if bad and how == "data":
            svi, update = step.svi, step.svi.update
            svi.update = lambda x: (update(x.index_fill(0, torch.tensor([1]), torch.nan)), delattr(svi, "update"))[0]
        if how == "weights" and step.number == 5:
            next(iter(step.svi.optimizer.parameters.values())).data.fill_(torch.nan)
        seen.append((bool(step.svi.taken), float(vae.counts)))

    seen: list[tuple[bool, float]] = []
    chosen = {"steps": 16, "progress": False, "callbacks": [begin]} | options
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (chain,) = ppgen.fit(model, vae.guide, data(), **chosen).chains
    messages = [str(warning.message) for warning in caught]
    return {"weights": chain.weights, "skipped": chain.skipped, "seen": seen, "told": messages, "by": chain.compiled}


# Processes


def interpreted() -> contextlib.AbstractContextManager:
    """Compiles by an interpreter, which is faster."""
    return patch.object(Build, "known", known_as())


def _process(rank: int, size: int, folder: str, function: Callable, args: tuple) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    try:
        with contextlib.nullcontext() if function is compiled_by_inductor else interpreted():
            result = function(rank, size, Path(folder), *args)
    except BaseException:
        result = traceback.format_exc()
    torch.save(result, f"{folder}/result.{rank}")
    if isinstance(result, str):
        raise SystemExit(1)


@contextlib.contextmanager
def group(path: Path, rank: int, size: int, seconds: float = SECONDS) -> Iterator[None]:
    """A process group, for processes that were started with `start`; its ranks wait so many seconds for each other."""
    store, timeout = dist.FileStore(str(path), size), timedelta(seconds=seconds)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def start(function: Callable, size: int, *args: Any, until: int | None = None) -> list[Any]:
    """Runs ``function(rank, size, folder, *args)`` in processes of its own; returns their results.

    The processes are forked from one that has imported ppgen, which takes seconds.

    Args:
        function: a function of a module.
        size: the number of processes.
        *args: further arguments.
        until: how many of the first processes have to end, and have results; the others are killed. All if left out.

    Raises:
        RuntimeError: if one of those fails or does not end.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ppgen.fitting", "ppgen.models", "ppgen.losses.recipes"])
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=_process, args=(r, size, folder, function, args)) for r in range(size)]
        for process in processes:
            process.start()
        alive = watched = processes[:until]
        while alive and not any(process.exitcode for process in watched):
            if not wait([process.sentinel for process in alive], SECONDS):
                break
            alive = [process for process in alive if process.is_alive()]
        for process in processes:  # a failed process leaves the others waiting
            process.kill()
        paths = [Path(folder) / f"result.{rank}" for rank in range(len(watched))]
        results = [torch.load(p, weights_only=False) if p.exists() else "the process ended" for p in paths]
    if failed := list(dict.fromkeys(result for result in results if isinstance(result, str))):
        raise RuntimeError("\n".join(failed))
    return results


def normed() -> dict:
    """A network with batch norm, whose output is its input, normalized."""
    norm = nn.BatchNorm1d(3)

    def model(x: Tensor) -> None:
        pyro.module("norm", norm)
        with pyro.plate("data", len(x)):
            pyro.sample("x", pd.Normal(norm(x), 1.0).to_event(1), obs=x)

    return {"programs": Programs(model, lambda x: None), "data": data(), "whole": True, "steps": 1}


def mmd() -> dict:
    """Of data with themselves, shifted, without noise."""
    loss = ppgen.match(v.data("x"), v.generated("x"), MMD())

    def model(x: Tensor) -> None:
        shift = pyro.param("shift", lambda: x.new_zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", pd.Delta(x.flip(0) * 0.5 + shift).to_event(1), obs=x)

    return {"programs": Programs(model, lambda x: None), "data": data(), "whole": True, "loss": loss, "steps": 1}


class Items(Dataset):
    """Rows with numbers, of which it notes those that are read."""

    def __init__(self, rows: int) -> None:
        self.x, self.read = data(rows), []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Tensor:
        self.read.append(i)
        return self.x[i]


class Records(IterableDataset):
    """Rows without numbers."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(data(50))


def items() -> dict:
    return vae() | {"data": Items(50)}


def records() -> dict:
    return vae() | {"data": ppgen.data.Stream(Records(), buffer=10)}


def rows_of_an_epoch() -> list[int]:
    """The rows that this rank reads in the second epoch, whose batches have 24, 24 and 2 rows."""
    case, read = items(), []

    def note(step: TrainingStep) -> None:
        if step.number == 3:
            case["data"].read.clear()
        if step.number == 6:
            read.extend(case["data"].read)

    programs = case["programs"]
    options = {"steps": 7, "batch_size": 24 // dist.get_world_size(), "compile": False, "progress": False}
    ppgen.fit(programs.model, programs.guide, case["data"], callbacks=[note], **options)
    return read


def refused() -> dict[str, dict]:
    """What ranks cannot share, by what the error says."""

    def without_plate(x: Tensor) -> None:
        pyro.sample("x", pd.Normal(pyro.param("loc", torch.zeros(3)), 1.0).expand([len(x), 3]).to_event(2), obs=x)

    def entry_a_row(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(len(x), 1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", pd.Normal(loc.expand(-1, 3), 1.0).to_event(1), obs=x)

    def doubled(x: Tensor) -> None:
        with pyro.plate("data", 2 * len(x)):
            pyro.sample("x", pd.Normal(pyro.param("loc", torch.zeros(3)), 1.0).to_event(1), obs=torch.cat([x, x]))

    local = global_latents()["programs"].model
    nothing = lambda x: None  # noqa: E731
    return {
        "site 'x' has rows and is in no plate": {"model": without_plate, "guide": nothing},
        "parameters loc have an entry for each row": {"model": entry_a_row, "guide": nothing},
        "plate 'data' has 96 rows for 48 rows of data and 48 for 24": {"model": doubled, "guide": nothing},
        "AutoNormal has parameters for each row of z": {"model": local, "guide": AutoNormal(local)},
        'guide="auto" finds a posterior in one process': {"model": local, "guide": "auto"},
    }


def streams(name: str) -> dict[Any, dict]:
    """Twelve steps on numbered rows, eager and compiled, and on rows without numbers."""
    numbered = {compile: run(name, steps=12, compile=compile) for compile in (False, True)}
    return numbered | {"records": run("records", steps=12)}


def behaviors(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """What two processes do besides equal numbers; and the same on one."""
    results: dict[str, Any] = {}
    path = folder / "checkpoint"
    alone = {
        "flow": run("flow", validation=data(30)),
        "short": run("flow", steps=10),
        "vae": run("vae", steps=10),
        "chains": run("vae", steps=5, restarts=3, by_rows=False),
        "mmd": run("mmd"),
        "streams": streams("uneven"),
    }
    stop = lambda step: step.stop("enough") if step.number == 4 and rank == 1 else None  # noqa: E731
    with group(folder / "two", rank, size):
        results["validation"] = run("flow", validation=data(30)), alone["flow"]
        with patch.object(chain_trainer, "FLAT_STEPS", 8), patch.object(chain_trainer, "CHECK_STEPS", (2, 1000)):
            results["converges"] = run("flow", steps=None, epochs=None, max_steps=200, validation=data(30))
        results["streams"] = streams("items"), alone["streams"]
        results["read"] = rows_of_an_epoch()
        results["normed"] = run("normed")
        results["mmd"] = run("mmd"), alone["mmd"]
        results["chains"] = (
            run("vae", steps=5, restarts=3, distribute="chains", batch=48, by_rows=False),
            alone["chains"],
        )
        results["alone"] = run("vae", steps=10, distribute=None, batch=48), alone["vae"]
        results["stopped"] = run("vae", steps=10, checkpoint=path, callbacks=[stop], by_rows=False)
        results["resumed"] = [run("vae", steps=10, by_rows=False, checkpoint=file) for file in (path, None)]
        results["removed"] = not path.exists()
        third = lambda step: step.stop("enough") if step.number == 3 and rank == 0 else None  # noqa: E731
        results["validated"] = run("flow", steps=10, validation=data(30), callbacks=[third])
        try:  # rank 0 has the file of the run before, rank 1 does not
            run("vae", steps=10, checkpoint=folder / f"of rank {rank}", callbacks=[stop])
            run("vae", steps=10, checkpoint=folder / "of rank 0" if rank == 0 else folder / "nothing")
        except ValueError as error:
            results["checkpoint"] = str(error)
        seen: list[float] = []
        run("vae", steps=3, by_rows=False, callbacks=[lambda step: seen.append(float(torch.rand(())))])
        results["stream"] = seen
        run("flow", steps=10, checkpoint=folder / "flow", callbacks=[stop])
        results["failing"] = {
            (how, compile): steps_that_fail(rank, how, compile=compile)
            for how, compile in itertools.product(("data", "error", "weights"), (False, True))
        }
        for message, programs in refused().items():
            try:
                ppgen.fit(**programs, data=data(), progress=False)
            except ValueError as error:
                results[message] = str(error)
        try:
            ppgen.fit(**refused_data(), data=data() + rank, progress=False, steps=1)
        except ValueError as error:
            results["data"] = str(error)
    if rank == 0:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            one = run("flow", steps=10, checkpoint=folder / "flow", batch=12)
        results["on one"] = one, alone["short"], [str(warning.message) for warning in caught]
    return results


def compiled_by_inductor(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """A VAE on two ranks, and on one, by functions that inductor compiles."""
    with group(folder / "two", rank, size):
        many = run("vae", compile=True)
    return {"many": many, "one": run("vae", compile=True)}


def deserted(rank: int, size: int, folder: Path, number: int) -> dict[str, Any]:
    """The error of rank 0 after the other one got a signal in its third step."""
    taken: list[int] = []

    def leave(step: TrainingStep) -> None:
        taken.append(step.number)
        if rank == 1 and step.number == 3:
            os.kill(os.getpid(), number)

    with group(folder / "two", rank, size, seconds=15):
        try:
            run("vae", steps=10, callbacks=[leave])
        except RuntimeError as error:
            return {"error": str(error), "steps": len(taken)}
    return {}


def refused_data() -> dict:
    programs = global_latents()["programs"]
    return {"model": programs.model, "guide": programs.guide}


ON_FOUR = ("uneven", "wgan_gp", "global_latents")


def all_cases(rank: int, size: int, folder: Path, names: list[str]) -> dict[Any, Any]:
    """Each case on one rank and on two, eager and compiled, and some on four, by (name, compiled, ranks).

    There are four processes: the first two train together, while the others do so alone.
    """
    results: dict[Any, Any] = {}
    if rank < 2:
        with group(folder / "two", rank, 2):
            for name in names:
                results |= {(name, compile, 2): run(name, compile=compile) for compile in (False, True)}
                results[name, "gradient", 2] = run(name, gradient=True)
    for name in names if rank >= 2 else ():
        if rank == 2:
            results[name, False, 1] = run(name)
            results[name, "gradient", 1] = run(name, gradient=True)
        else:
            results[name, True, 1] = run(name, compile=True)
    with group(folder / "four", rank, size):
        results |= {(name, False, 4): run(name) for name in names if name in ON_FOUR}
    return results
