"""`fit`: programs and data in, a `Fit` out. It runs SVI over mini-batches, watches, and keeps what was learned."""

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from ppgen.batches import Batches, as_tensors
from ppgen.draws import Program
from ppgen.infer.optimizers import OptimizerFactory
from ppgen.infer.parameters import Evaluation, State, owner, restore, snapshot
from ppgen.infer.svi import SVI
from ppgen.objective import Evidence
from ppgen.result import Chain, Fit

__all__ = ["Moment", "fit"]

CHECKS = 100  # a run reads its losses back about so many times


@dataclass
class Moment:
    """What a callback sees after a step. ``moment.stop("why")`` ends the chain there."""

    step: int
    epoch: int
    chain: int
    svi: SVI
    values: dict[str, Tensor]
    reason: str | None = None

    @property
    def loss(self) -> float:
        """The step's loss, read back from the device."""
        return float(sum(self.values.values()))

    def stop(self, reason: str) -> None:
        self.reason = reason


def fit(
    model: Program,
    guide: Program,
    data: Any,
    *,
    loss: ELBO | None = None,
    optim: PyroOptim | OptimizerFactory | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    validation: Any = None,
    patience: int | None = None,
    callbacks: Sequence[Callable[[Moment], None]] = (),
    seed: int = 0,
    restarts: int = 1,
    device: str | torch.device | None = None,
    progress: bool = True,
    ema: float | None = None,
    clip: float | None = None,
    schedule: Callable | None = None,
) -> Fit:
    """Fits a model and a guide to data, by SVI.

    Args:
        model, guide: Pyro programs, called with a batch of each part of `data`: ``model(x)`` or ``model(x, y)``.
        data: a tensor, array, frame, a tuple of those, or a torch Dataset (see `ppgen.batches.as_tensors`).
        loss: a ppgen objective or Pyro ELBO; `Evidence()` if left out.
        optim: a Pyro optimiser or a function parameters -> torch optimiser; Adam at 1e-3 if left out.
        steps, epochs: the length of the run, one of the two; 1000 steps if neither.
        batch_size: rows a step; the whole data set if left out (right for models with global latents and no
            subsampling plate).
        validation: data held out, or a fraction of `data` to hold out: the loss there is taken about once an epoch,
            in eval mode.
        patience: stop after so many validations without a new best, and go back to the best. Needs `validation`.
        callbacks: called with a `Moment` after every step.
        seed: of batches, starts and random draws; the caller's random state is left as it was.
        restarts: chains, each from a new start: networks draw their weights anew, other parameters move by
            U(-2, 2) in unconstrained space.
        device: where batches and module programs go; unchanged if left out.
        progress: a progress bar, on a terminal.
        ema: decay of an exponential moving average of the weights, which then are the result (warmed up:
            min(ema, (1 + step) / (10 + step))).
        clip: bound on the norm of all gradients together.
        schedule: optimiser -> torch learning-rate schedule, advanced every step.

    Returns:
        A `Fit`. The live programs hold the weights of its best chain.

    Raises:
        TypeError, ValueError, LookupError: for bad options or data, before the first step.
        FloatingPointError: if the loss is not finite at the first step. Later, the run stops there with a warning
            and the last good weights.

    Ctrl-C ends the run cleanly with what was learned.
    """
    if steps is not None and epochs is not None:
        raise ValueError(f"fit: give steps or epochs, not both (got steps={steps}, epochs={epochs})")
    for what, count in (("steps", steps), ("epochs", epochs), ("restarts", restarts), ("patience", patience)):
        if count is not None and count < 1:
            raise ValueError(f"fit: {what} is at least 1, got {count}")
    if patience is not None and validation is None:
        raise ValueError("fit: patience needs validation data; give validation=0.1, say")
    loss = Evidence() if loss is None else loss
    optim = partial(torch.optim.Adam, lr=1e-3) if optim is None else optim

    owners = [top for program in (model, guide) if (top := owner(program)) is not None]
    for module in owners:
        if device is not None:
            module.to(device)
    floats = [p.dtype for module in owners for p in module.parameters() if p.is_floating_point()]
    tensors, held_out = _split(data, validation, seed, floats[0] if floats else None)
    if callable(check := getattr(owners[0] if owners else None, "check", None)):
        check(*tensors)
    if device is not None:
        tensors, held_out = (
            None if t is None else tuple(p.to(device) for p in t) for t in (tensors, held_out)
        )
    batches = Batches(tensors, size=batch_size, seed=seed)
    total = steps if steps is not None else (epochs or 0) * len(batches) or 1000

    example = next(batches.epoch(0))
    state = State.of(model, guide, example)
    start = snapshot(state.tensors)
    result = Fit(
        model, guide, loss, [], [(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in example]
    )
    run = _Run(
        model, guide, loss, batches, held_out, total, patience, callbacks, ema, progress, restarts, state
    )
    with torch.random.fork_rng():
        for number in range(restarts):
            torch.manual_seed(seed + number)
            if number:
                state.restart(start)
            if isinstance(getattr(loss, "step", None), Tensor):
                loss.step.zero_()  # type: ignore[attr-defined]
                loss.total = total  # type: ignore[attr-defined]
            chain = run.chain(number, SVI(model, guide, copy.copy(optim), loss, clip=clip, schedule=schedule))
            result.chains.append(chain)
            if chain.interrupted:
                break
    result.use(result.best)
    return result


def _split(data: Any, validation: Any, seed: int, dtype: torch.dtype | None):
    """Training and held-out tensors."""
    tensors = as_tensors(data, dtype=dtype)
    if validation is None:
        return tensors, None
    if not isinstance(validation, int | float):
        return tensors, as_tensors(validation, dtype=dtype, name="validation")
    n, held = len(tensors[0]), round(validation * len(tensors[0]))
    if not 0 < held < n:
        raise ValueError(
            f"validation={validation} of {n} rows leaves {n - held} to train on and {held} to validate on"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return tuple(t[order[held:]] for t in tensors), tuple(t[order[:held]] for t in tensors)


@dataclass
class _Run:
    """One setting of `fit`, run once a chain."""

    model: Program
    guide: Program
    loss: Any
    batches: Batches
    held_out: tuple[Tensor, ...] | None
    total: int
    patience: int | None
    callbacks: Sequence[Callable[[Moment], None]]
    ema: float | None
    progress: bool
    restarts: int
    state: State
    every: int = field(init=False)

    def __post_init__(self) -> None:
        self.every = max(1, self.total // CHECKS)

    def chain(self, number: int, svi: SVI) -> Chain:
        """Trains one chain from the weights that the programs hold."""
        tensors = self.state.tensors
        watch = _Watch(self, tensors)
        label = "fit" if self.restarts == 1 else f"fit {number + 1}/{self.restarts}"
        began, reason, interrupted, step = time.perf_counter(), f"ran its {self.total} steps", False, 0
        validate_every = max(len(self.batches), self.every)
        with tqdm(total=self.total, desc=label, unit="step", disable=None if self.progress else True) as bar:
            try:
                for epoch, batch in self._stream():
                    values = svi.update(*batch)
                    step += 1
                    watch.saw(values, svi)
                    moment = Moment(step, epoch, number, svi, values)
                    for callback in self.callbacks:
                        callback(moment)
                    done = step == self.total
                    if step == 1 or step % self.every == 0 or done:
                        watch.read_back(step)
                        bar.set_postfix_str(watch.summary, refresh=False)
                    bar.update()
                    if self.held_out is not None and (step % validate_every == 0 or done):
                        watch.validate(step)
                    moment.reason = moment.reason or watch.verdict
                    if moment.reason:
                        reason = f"{moment.reason}, at step {step}"
                        break
            except KeyboardInterrupt:
                reason, interrupted = f"interrupted at step {step}", True
            except _NotFinite as error:
                reason = str(error)
                if not watch.history["loss"]:
                    restore(tensors, watch.good)
                    raise FloatingPointError(
                        f"{error}; nothing was learned, the weights are as they were"
                    ) from None
                warnings.warn(f"{error}; the weights are those of step {watch.good_step}", stacklevel=3)
        watch.finish(step)
        return Chain(
            weights=snapshot(tensors),
            history={k: np.asarray(v) for k, v in watch.history.items()},
            validation={k: np.asarray(v) for k, v in watch.validation.items()},
            stopped=reason,
            seconds=time.perf_counter() - began,
            interrupted=interrupted,
        )

    def _stream(self):
        step = epoch = 0
        while True:
            for batch in self.batches.epoch(epoch):
                if step == self.total:
                    return
                step += 1
                yield epoch, batch
            epoch += 1


class _NotFinite(Exception):
    pass


class _Watch:
    """The record of one chain: losses, validation, the last good weights, the best ones, their moving average."""

    def __init__(self, run: _Run, tensors: dict[str, Tensor]):
        self.run, self.tensors = run, tensors
        self.history: dict[str, list[float]] = {"loss": []}
        self.validation: dict[str, list[float]] = {"step": [], "loss": []}
        self.good, self.good_step = snapshot(tensors), 0
        self.average = snapshot(tensors) if run.ema is not None else None
        self.best: dict[str, Tensor] | None = None
        self.pending: list[dict[str, Tensor]] = []
        self.failed = False
        self.steps = 0

    def saw(self, values: dict[str, Tensor], svi: SVI) -> None:
        self.pending.append(values)
        self.steps += 1
        if self.average is None:
            return
        assert self.run.ema is not None
        decay = min(self.run.ema, (1 + self.steps) / (10 + self.steps))
        leaves = self.run.state.leaves
        with torch.no_grad():
            get_ema_multi_avg_fn(decay)([self.average[k] for k in leaves], list(leaves.values()), None)
            for name, buffer in self.run.state.buffers.items():
                self.average[name].copy_(buffer)

    def read_back(self, step: int) -> None:
        """Reads the losses since the last time; the weights are good if those, and they, are finite."""
        start = len(self.history["loss"])
        for values in self.pending:
            numbers = {name: float(value) for name, value in values.items()}
            loss = sum(numbers.values())
            if not np.isfinite(loss):
                self._fail(f"the loss is {loss} at step {len(self.history['loss']) + 1} ({_named(numbers)})")
            self.history["loss"].append(loss)
            if len(numbers) > 1:
                for name, number in numbers.items():
                    self.history.setdefault(name, [float("nan")] * (len(self.history["loss"]) - 1)).append(
                        number
                    )
        self.pending.clear()
        bad = [
            k for k, t in self.tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())
        ]
        if bad:
            del self.history["loss"][start:]
            self._fail(f"parameters are no longer finite after step {step}: {', '.join(bad[:3])}")
        self.good, self.good_step = snapshot(self.tensors), step

    def _fail(self, why: str) -> None:
        self.failed = True
        self.pending.clear()
        raise _NotFinite(why)

    @property
    def summary(self) -> str:
        recent = self.history["loss"][-self.run.every :]
        text = f"loss {np.mean(recent):.4g}"
        return f"{text}, validation {self.validation['loss'][-1]:.4g}" if self.validation["loss"] else text

    def validate(self, step: int) -> None:
        """The loss on held-out data, in eval mode, under the averaged weights where there are such."""
        assert self.run.held_out is not None
        live = snapshot(self.tensors)
        if self.average is not None:
            restore(self.tensors, self.average)
        with torch.random.fork_rng(), torch.no_grad(), Evaluation():
            torch.manual_seed(0)  # the same draws every time, so that validations compare
            loss = float(self.run.loss.loss(self.run.model, self.run.guide, *self.run.held_out))
        if not self.validation["loss"] or loss < min(self.validation["loss"]):
            self.best = snapshot(self.tensors)
        self.validation["step"].append(step)
        self.validation["loss"].append(loss)
        restore(self.tensors, live)

    @property
    def verdict(self) -> str | None:
        """Why to stop now, if there is a reason."""
        losses = self.validation["loss"]
        if self.run.patience is None or not losses:
            return None
        since = len(losses) - 1 - int(np.argmin(losses))
        return f"no better validation loss in {since} checks" if since >= self.run.patience else None

    def finish(self, step: int) -> None:
        """Leaves in the programs the weights that the chain ends with."""
        if not self.failed and self.pending:
            try:
                self.read_back(step)
            except _NotFinite as error:
                warnings.warn(f"{error}; the weights are those of step {self.good_step}", stacklevel=4)
        if self.run.patience is not None and self.best is not None:
            restore(self.tensors, self.best)
        elif self.failed:
            restore(self.tensors, self.good)
        elif self.average is not None:
            restore(self.tensors, self.average)


def _named(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
