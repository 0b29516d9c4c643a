"""`fit`: programs and data in, a `Fit` out. It runs SVI over mini-batches, watches, and keeps what was learned."""

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pyro.infer import ELBO as PyroELBO
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from ppgen.infer.adversarial import networks
from ppgen.infer.compile.step import Compile
from ppgen.infer.optimizers import OptimizerFactory
from ppgen.infer.parameters import State, owner, restore
from ppgen.infer.svi import SVI
from ppgen.losses.elbo import ELBO
from ppgen.losses.objective import Objective
from ppgen.posterior.auto import find
from ppgen.tracing.sites import Program
from ppgen.training.batches import Batches, as_tensors
from ppgen.training.checkpoint import Checkpoint
from ppgen.training.loop import Training, TrainingStep
from ppgen.training.progressive import Grower, ProgressiveGrowing
from ppgen.training.result import Fitted

if TYPE_CHECKING:
    from ppgen.diagnostics import Calibration, Verdict

__all__ = ["Fit", "TrainingStep", "fit"]

# learning rates by progress, from 0 to 1
DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}


@dataclass
class Fit(Fitted):
    """A model and a guide with the weights that `fit` left, one set a chain; the posterior, its verdict, a report."""

    def to_arviz(
        self,
        *data: Any,
        draws: int = 500,
        predictive: bool = True,
        resampled: Literal["with", "without"] | None = "with",
        integrate: int = 0,
        dims: Mapping[str, Sequence[str]] | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
        chunk: int = 50,
        seed: int = 0,
    ) -> Any:
        """The posterior on data as ArviZ reads it; see `ppgen.diagnostics.to_arviz`, which documents the options."""
        from ppgen.diagnostics.arviz import to_arviz  # late: ArviZ is slow to import

        options: dict[str, Any] = {"draws": draws, "predictive": predictive, "resampled": resampled}
        options |= {"integrate": integrate, "dims": dims, "coords": coords, "chunk": chunk, "seed": seed}
        return to_arviz(self, *self.tensors(data), **options)

    def diagnose(
        self, *data: Any, draws: int | None = None, starts: int = 4, idata: Any = None, seed: int = 0
    ) -> "Verdict":
        """Whether the posterior on data can be trusted; see `ppgen.diagnostics.diagnose`, which documents the options."""
        from ppgen.diagnostics.verdict import diagnose  # late: ArviZ is slow to import

        return diagnose(self, *self.tensors(data), draws=draws, starts=starts, idata=idata, seed=seed)

    def report(
        self,
        path: str | os.PathLike[str],
        *data: Any,
        title: str = "",
        draws: int | None = None,
        starts: int = 4,
        dims: Mapping[str, Sequence[str]] | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
        calibration: "Calibration | None" = None,
        seed: int = 0,
    ) -> Path:
        """Writes one HTML page: the posterior on data, the verdict and its statistics, training. Returns its path.

        See `ppgen.report.report_of_fit`, which documents the options.
        """
        from ppgen.report import report_of_fit, write_report  # late: ArviZ and matplotlib are slow to import

        options: dict[str, Any] = {"title": title, "draws": draws, "starts": starts, "dims": dims, "coords": coords}
        options |= {"calibration": calibration, "seed": seed}
        return write_report(path, report_of_fit(self, *self.tensors(data), **options))


def fit(
    model: Program,
    guide: Program | Literal["auto"],
    data: Any,
    *,
    loss: PyroELBO | Callable[..., Tensor] | None = None,
    optim: PyroOptim | OptimizerFactory | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    validation: Any = None,
    patience: int | None = None,
    callbacks: Sequence[Callable[[TrainingStep], None]] = (),
    seed: int = 0,
    restarts: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
    ema: float | None = None,
    clip_norm: float | None = None,
    lr_scheduler: Literal["linear", "cosine"] | Callable | None = None,
    compile: Compile = "auto",
    growth: ProgressiveGrowing | None = None,
) -> Fit:
    """Fits a model and a guide to data, by SVI.

    Args:
        model, guide: Pyro programs, called with a batch of each part of `data`: ``model(x)`` or ``model(x, y)``. With
            ``guide="auto"`` the posterior of the model's global latents is found without a guide (below).
        data: a tensor, array, frame, a tuple of those, a torch Dataset (see `ppgen.training.batches.as_tensors`), or None for
            programs that take none. A model that is a module, or a method of one, and has a method ``check`` sees all
            of it first, and one with a method ``initialize`` a batch before each chain.
        loss: a ppgen objective, a Pyro ELBO or a function (model, guide, *batch) -> scalar; `ELBO()` if left out.
        optim: a Pyro optimizer or a function parameters -> torch optimizer; Adam at 1e-3 if left out. As in Pyro,
            one of its schedulers advances when ``optim.step()`` is called, here by a callback.
        steps, epochs: the length of the run, one of the two; 1000 steps if neither.
        batch_size: rows a step; the whole data set if left out (right for models with global latents and no
            subsampling plate).
        validation: data held out, or a fraction of `data` to hold out: the loss there is taken about once an epoch,
            in eval mode.
        patience: stop after so many validations without a new best, and go back to the best. Needs `validation`, and a
            loss that falls as the fit gets better, which that of a game need not do.
        callbacks: called with a `TrainingStep` after every step.
        seed: of batches, starts and random draws; the caller's random state is left as it was.
        restarts: chains, each from a new start, one if left out: networks draw their weights anew, other parameters
            move by U(-2, 2) in unconstrained space, and an `AutoFlow` is a Gaussian again. The best is that of the
            lowest loss, which in a game says little: compare the chains' draws.
        device: where batches and module programs go; unchanged if left out.
        progress: a progress bar, on a terminal.
        checkpoint: a file that holds the whole run while it trains, from which a run that was stopped goes on (below).
        ema: decay of an exponential moving average of the weights, which then are the result (warmed up:
            min(ema, (1 + step) / (10 + step))).
        clip: bound on the norm of all gradients together.
        schedule: of all learning rates, critics' too: "linear" or "cosine", down to zero over the run, or a function
            optimizer -> torch learning-rate schedule, advanced every step.
        compile: whether steps are compiled, once for each shape of a batch: True; False; or "auto", once the steps
            still to come make it pay. Restarts share what is compiled. A progress bar says what was decided.
        growth: takes the growing networks (`ppgen.nets.Growing`) of programs and critics through their scales, in the
            course of the run; weights and optimizers' states go along, and each stage is compiled for itself. Without
            it they stay where they are, at their last scale unless they were taken elsewhere.

    Returns:
        A `Fit`. The live programs hold the weights of its best chain.

    Raises:
        TypeError, ValueError, LookupError: for bad options or data, before the first step.
        FloatingPointError: if the loss is not finite at the first step. Later, the run stops there with a warning
            and the last good weights; a restart that begins so is left out, with a warning.
        ppgen.infer.checkpoint_file.CheckpointError: if the checkpoint is damaged. ValueError: if it is of another run; the
            message says in what they differ, and nothing is written over.

    **guide="auto"** climbs from `restarts` (4 if left out) starts that lie wide apart to modes, fits a Gaussian to each
    in coordinates whitened by the curvature there, mixes those of several modes, and, if importance weights ask for
    it, fits a flow after the best, all in double precision, on all data, and until it has converged (`ppgen.posterior.auto`). It
    takes no loss, optimizer, batches or lengths. ``fit.diagnose(...)`` says whether the result can be trusted.

    Ctrl-C ends the run cleanly after the step it is at, with what was learned; pressed twice, at once.

    **Going on.** With ``checkpoint="run.safetensors"`` the file is written after the first step, about ten times a
    chain, and when Ctrl-C or a callback's `stop` ends a chain. If it is there when `fit` begins, the run goes on from
    it, and ends as if it had never been stopped: bit for bit if steps are not compiled, to rounding if they are. Give
    all else as it was. A complete run removes the file. One whose last chain was stopped leaves it, by a callback too:
    the same call then goes on; delete the file for a new run. What does not carry over: what callbacks hold (one with
    a method ``flush`` is called there before each writing), what a loss holds beside its step and its critics, and
    random numbers that are not torch's. Pyro's learning-rate schedulers are refused, since callbacks move them: take
    `lr_scheduler`.
    """
    if isinstance(guide, str):
        options: dict[str, Any] = {
            "loss": loss,
            "optim": optim,
            "steps": steps,
            "epochs": epochs,
            "batch_size": batch_size,
        }
        options |= {"validation": validation, "patience": patience, "callbacks": callbacks or None, "ema": ema}
        options |= {
            "device": device,
            "checkpoint": checkpoint,
            "clip_norm": clip_norm,
            "lr_scheduler": lr_scheduler,
            "growth": growth,
        }
        return _without_a_guide(model, guide, data, options, 4 if restarts is None else restarts, seed, progress)
    restarts = 1 if restarts is None else restarts
    if steps is not None and epochs is not None:
        raise ValueError(f"fit: give steps or epochs, not both (got steps={steps}, epochs={epochs})")
    counts = {"steps": steps, "epochs": epochs, "restarts": restarts, "patience": patience}
    for what, number in counts.items():
        if number is not None and number < 1:
            raise ValueError(f"fit: {what} is at least 1, got {number}")
    if seed < 0:
        raise ValueError(f"fit: seed is at least 0, got {seed}")
    if ema is not None and not 0 <= ema < 1:
        raise ValueError(f"fit: ema is a decay from 0 to below 1, such as 0.99, got {ema}")
    if patience is not None and validation is None:
        raise ValueError("fit: patience needs validation data; give validation=0.1, say")
    if patience is not None and growth is not None:
        raise ValueError("fit: patience compares losses, and those of a growing run are of different resolutions")
    if isinstance(lr_scheduler, str) and lr_scheduler not in DECAYS:
        raise ValueError(
            f"fit: lr_scheduler is {' or '.join(map(repr, DECAYS))}, a function or None, got {lr_scheduler!r}"
        )
    loss = ELBO() if loss is None else loss
    optim = partial(torch.optim.Adam, lr=1e-3) if optim is None else optim

    owners = [top for program in (model, guide) if (top := owner(program)) is not None]
    floats = [p.dtype for module in owners for p in module.parameters() if p.is_floating_point()]
    tensors, held_out = _split(data, validation, seed, floats[0] if floats else None)
    if callable(check := getattr(owners[0] if owners else None, "check", None)):
        check(*tensors)
        if held_out is not None:
            check(*held_out)
    if device is not None:
        tensors = tuple(part.to(device) for part in tensors)
        held_out = None if held_out is None else tuple(part.to(device) for part in held_out)
    for option, given in (("patience", patience is not None), ("the best of restarts", restarts > 1)):
        if given and getattr(loss, "critics", None):
            warnings.warn(f"{option} goes by the loss, which in a game need not fall as draws get better", stacklevel=2)
    batches = Batches(tensors, size=batch_size, seed=seed)
    total = steps if steps is not None else (epochs or 0) * len(batches) or 1000
    asked: dict[str, Any] = {"steps": total, "seed": seed, "restarts": restarts, "patience": patience, "ema": ema}
    asked |= {
        "clip_norm": clip_norm,
        "batch_size": batches.size if batches.shuffled else None,
        "lr_scheduler": "a function" if callable(lr_scheduler) else lr_scheduler,
        "loss": str(loss) if isinstance(loss, Objective) else getattr(loss, "__qualname__", type(loss).__name__),
        "data": [f"{part.dtype} {tuple(part.shape)} on {part.device.type}" for part in tensors],
        "growth": None if growth is None else str(growth),
        "validation": [f"{part.dtype} {tuple(part.shape)}" for part in held_out or ()],
    }
    if isinstance(lr_scheduler, str):
        decay = DECAYS[lr_scheduler]
        lr_scheduler = partial(LambdaLR, lr_lambda=lambda step: decay(min(step / total, 1.0)))
    if device is not None:
        for module in owners:
            module.to(device)

    with torch.random.fork_rng():
        torch.manual_seed(seed)  # lazy autoguides and pyro.param's functions may draw their start
        example = next(batches.epoch(0))
        critics = networks(loss, model, guide, example)
        if device is not None:
            for critic in critics.values():
                critic.to(device)
        state = State.of(model, guide, example, critics=critics)
        grower = None if growth is None else Grower(growth, state.modules, total)
        file = Checkpoint(checkpoint, asked, state, tensors)
        watched = (callbacks, ema, progress, restarts)
        run = Training(loss, batches, held_out, total, patience, *watched, state, grower, file)
        chains = file.chains
        for number in range(file.number, restarts):
            torch.manual_seed(seed + number)
            if number > file.number:
                state.restart(file.start)
            if callable(initialize := getattr(owners[0] if owners else None, "initialize", None)):
                initialize(*example)
            if isinstance(loss, Objective):
                loss.step.zero_()
                loss.total = total
            try:
                to_come = max(1, total * (restarts - number) - file.steps)
                svi = SVI(
                    model,
                    guide,
                    optim,
                    loss,
                    clip_norm=clip_norm,
                    lr_scheduler=lr_scheduler,
                    compile=compile,
                    steps=to_come,
                )
                chains.append(run.chain(number, svi))
            except FloatingPointError as error:
                if not chains:
                    raise
                warnings.warn(f"restart {number + 1} of {restarts} is left out: {error}", stacklevel=2)
            if chains[-1].interrupted:
                break
    if not (chains[-1].interrupted or file.stopped):
        file.remove()
    result = Fit(model, guide, loss, chains, example)
    restore(state.tensors, chains[result.best].weights)
    return result


def _without_a_guide(
    model: Program, guide: str, data: Any, given: dict[str, Any], restarts: int, seed: int, progress: bool
) -> Fit:
    """The fit of ``guide="auto"``, which takes none of the options `given`."""
    if guide != "auto":
        raise ValueError(f'fit: guide is a Pyro program or "auto", got {guide!r}')
    if refused := [name for name, value in given.items() if value is not None]:
        raise ValueError(
            f'fit: guide="auto" looks for the posterior in its own way, and takes no {", ".join(refused)}; give a '
            "guide (AutoMultivariateNormal(model), say) to choose them"
        )
    if restarts < 1 or seed < 0:
        raise ValueError(f"fit: restarts is at least 1 and seed at least 0, got {restarts} and {seed}")
    tensors = () if data is None else as_tensors(data, dtype=torch.float64)
    with tqdm(total=0, bar_format="{desc} [{elapsed}]", disable=None if progress else True) as bar:
        return Fit(**vars(find(model, tensors, restarts=restarts, seed=seed, progress=bar.set_description_str)))


def _split(data: Any, validation: Any, seed: int, dtype: torch.dtype | None):
    """Training and held-out tensors."""
    tensors = () if data is None else as_tensors(data, dtype=dtype)
    if validation is None:
        return tensors, None
    if not tensors:
        raise ValueError("validation: programs that take no data have none to hold out")
    if not isinstance(validation, int | float):
        return tensors, as_tensors(validation, dtype=dtype, name="validation")
    n, held = len(tensors[0]), round(validation * len(tensors[0]))
    if not 0 < held < n:
        raise ValueError(
            f"validation={validation} of {n} rows leaves {n - held} to train on and {held} to validate on; give data, "
            "or a fraction between 0 and 1"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(tensors[0].device)
    return tuple(t[order[held:]] for t in tensors), tuple(t[order[:held]] for t in tensors)
