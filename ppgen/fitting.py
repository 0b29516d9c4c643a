"""`fit`: programs and data in, a `Fit` out."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from pyro.infer import ELBO as PyroELBO
from pyro.optim import PyroOptim
from torch import Tensor

from ppgen.infer.compile.step import Compile
from ppgen.infer.distributed import Ranks, check_launch
from ppgen.infer.optimizers import OptimizerFactory
from ppgen.infer.parameter_scope import ParameterScope
from ppgen.losses.wake_sleep import Sleep
from ppgen.models.simulator import Simulator
from ppgen.posterior.auto import find_posterior
from ppgen.posterior.guides import rebuild
from ppgen.posterior.many_rows import on_row_subset, rebuilt_groups
from ppgen.tracing.double_precision import DoublePrecision
from ppgen.tracing.sites import Program
from ppgen.training.callbacks import TrainingStep
from ppgen.training.conversion import as_tensors
from ppgen.training.first_run import after_first_run
from ppgen.training.frames import ByName, FrameArguments, is_frame, program_of_frame
from ppgen.training.loop import train
from ppgen.training.missing import check_missing
from ppgen.training.options import TrainingOptions
from ppgen.training.progressive import ProgressiveGrowing
from ppgen.training.result import Fitted
from ppgen.training.simulations import amortized_flow, fit_simulator
from ppgen.utils.budget import Budget, seconds_after_training, shown_budget
from ppgen.utils.user_warnings import warn_user

if TYPE_CHECKING:
    import pandas as pd
    from arviz import InferenceData
    from xarray import Dataset, DataTree

    from ppgen.diagnostics import Calibration, Verdict

    ArvizData: TypeAlias = "InferenceData | DataTree"  # of ArviZ 0.2x, of ArviZ 1.x

__all__ = ["Fit", "TrainingStep", "fit"]

AUTO_OPTIONS = ("seed", "restarts", "progress", "compile", "budget")  # those that guide="auto" accepts
AUTO_RESTARTS = 4
VERDICT_SHARE = 0.3  # of what is left after the search
SEARCH_SHARE = 0.4  # of the budget, for the search for a guide where a sampler may follow


@dataclass
class Fit(Fitted):
    """A model and a guide with trained weights, one set for each chain: the result of `ppgen.fit`.

    The programs hold the weights of one chain at a time, which `select_chain` changes. `history` has the losses, `save`
    and `load` write and read a file, and the methods below need ArviZ.

    A fit to a frame whose columns the program takes by name takes frames in the place of tensors. Its own frame is
    meant where a method is given no data; a fit that was loaded does not have it.

    Attributes:
        data: the frame of the fit, or None.
    """

    data: Any = field(default=None, repr=False, compare=False)

    def tensors(self, data: tuple) -> tuple[Any, ...]:
        """Converts data to tensors; see `ppgen.training.result.Fitted.tensors`. No data is the frame of the fit."""
        return super().tensors(data or (() if self.data is None else (self.data,)))

    def to_arviz(
        self,
        *data: Any,
        draws: int | None = None,
        predictive: bool = True,
        resampled: Literal["with", "without"] | None = "with",
        integrate: int = 0,
        dims: Mapping[str, Sequence[str]] | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
        chunk: int | None = None,
        seed: int = 0,
    ) -> "ArvizData":
        """Draws from the posterior on data, for ArviZ; see `ppgen.diagnostics.to_arviz`, which documents the options.

        Returns:
            An `arviz.InferenceData` (ArviZ 0.2x) or an `xarray.DataTree` (ArviZ 1.x).

        Example:
            >>> import torch
            >>> import ppgen
            >>> vae = ppgen.models.VAE((3,), latent_dim=2, hidden=(8,))
            >>> x = torch.randn(20, 3)
            >>> fit = ppgen.fit(vae.model, vae.guide, x, steps=2, compile=False, progress=False)
            >>> idata = fit.to_arviz(x, draws=30)
            >>> idata.posterior["z"].shape  # chains, draws, rows, latent dimensions
            (1, 30, 20, 2)
        """
        from ppgen.diagnostics.arviz import to_arviz  # late: ArviZ is slow to import

        options: dict[str, Any] = {"draws": draws, "predictive": predictive, "resampled": resampled}
        options |= {"integrate": integrate, "dims": dims, "coords": coords, "chunk": chunk, "seed": seed}
        options["rows"] = self._row_names(data)
        fit, tensors = on_row_subset(self, self.tensors(data), groups=False)
        return to_arviz(fit, *tensors, **options)

    def _row_names(self, data: tuple) -> Any:
        """The index of a frame; None for other data, and an index of several levels."""
        frame: Any = data[0] if len(data) == 1 else None if data else self.data
        named = self.frame is not None and is_frame(frame) and frame.index.nlevels == 1
        return frame.index.to_numpy() if named else None

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: Program,
        guide: Program | Literal["auto"],
        *,
        loss: PyroELBO | Callable[..., Tensor] | None = None,
        data: Any = None,
        device: str | torch.device | None = None,
    ) -> "Fit":
        """Reads a file that `save` wrote, into programs that were built the same way.

        Args:
            path: the file.
            model: the model, whose weights are replaced.
            guide: the guide, whose weights are replaced; "auto" for a fit by ``guide="auto"``, which is built again.
            loss: the loss of the fit, which `breakdown` needs, except for "auto"; the schedules of a ppgen objective
                continue at the step where they were.
            data: the data of the fit, or a batch of them, for programs that read values of their data, such as the
                number of groups; zeros of their shapes if left out.
            device: the device of the programs; torch's default device if left out.

        Raises:
            FileNotFoundError: if there is no such file.
            CheckpointError: if the file is damaged, from an earlier version, or not a fit.
            LookupError: if the programs have other parameters or latents than the file, or the fit had another guide
                than "auto". They are unchanged then.
            ValueError: if shapes or supports differ from those of the file, or the programs do not run on
                a batch of the stored shape. They are unchanged then. Also for a device that this machine does not have.

        Example:
            >>> import tempfile
            >>> import pyro
            >>> import pyro.distributions as dist
            >>> import torch
            >>> import ppgen
            >>> def model(x, y=None):
            ...     slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
            >>> x = torch.arange(20.0)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     ppgen.fit(model, "auto", (x, 2 * x), progress=False).save(f"{folder}/fit.safetensors")
            ...     fit = ppgen.Fit.load(f"{folder}/fit.safetensors", model, "auto")
            >>> round(float(fit.predict(torch.tensor([100.0]))["y"].mean() / 100))
            2
        """
        if isinstance(guide, str) and guide != "auto":
            raise ValueError(f'load: guide must be a Pyro program or "auto", got {guide!r}')
        if isinstance(model, Simulator) and guide == "auto":
            guide, loss = amortized_flow(model), loss or Sleep()
        return super().load(path, model, guide, loss=loss, data=data, device=device)  # type: ignore[arg-type]

    def _rebuild_programs(self, path: str | os.PathLike[str]) -> None:
        """Replaces "auto" by the guide that the file describes, and the model by the one that it was found for."""
        if self.frame is not None:
            self.model = ByName(self.model, self.frame)
        if not isinstance(self.guide, str):
            return
        if "guide" not in self.metadata:
            raise LookupError(f'{path}: this fit has a guide of its own, not "auto": give that guide to load')
        with self.scope.open():
            if "integrated" in self.metadata.get("rows", {}):
                self.model, self.guide, loss = rebuilt_groups(self.model, self.metadata, self.example)
            else:
                self.model, self.guide, loss = rebuild(self.model, self.metadata["guide"], self.example)
        self.loss = loss if self.loss is None else self.loss

    def predict(
        self,
        *data: Any,
        draws: int = 500,
        chain: int | None = None,
        chunk: int | None = None,
        new_groups: Literal["refuse", "draw"] = "refuse",
        seed: int = 0,
    ) -> "Dataset | pd.DataFrame":
        """Draws what the program observes, on new data; see `ppgen.diagnostics.predict`, which documents the options.

        Where the fit and the new data are frames, so are the draws: a column for each site that the program observes,
        and a row for each draw and each row of the frame, by an index of two levels, "draw" and "row" (or the name of
        the frame's index). ``draws["y"].unstack("draw")`` has a column for each draw, and
        ``draws["y"].groupby("row").quantile([0.05, 0.95])`` intervals of 90 %. A site that is called as a column of
        categories is drawn as categories.

        With ``new_groups="draw"``, categories that the fit did not have are new groups of the population: their latents
        are drawn from the model, given those of the fit. The program takes their number, ``num_county`` of a column
        "county", and has latents of groups in a plate of that size.

        Raises:
            ValueError: see `ppgen.diagnostics.predict` and `ppgen.training.frames.FrameArguments.tensors`.

        Example:
            >>> import pyro
            >>> import pyro.distributions as dist
            >>> import torch
            >>> import ppgen
            >>> def model(x, y=None):
            ...     slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
            >>> x = torch.arange(20.0)
            >>> fit = ppgen.fit(model, "auto", (x, 2 * x), progress=False)
            >>> fit.predict(torch.tensor([30.0, 40.0]), draws=200)["y"].shape  # chains, draws, rows
            (1, 200, 2)
        """
        from ppgen.diagnostics.predictions import predict, predict_frame  # late: xarray is slow to import

        options: dict[str, Any] = {"draws": draws, "chain": chain, "chunk": chunk, "seed": seed}
        if new_groups not in ("refuse", "draw"):
            raise ValueError(f'predict: new_groups is "refuse" or "draw", got {new_groups!r}')
        frame = data[0] if len(data) == 1 else None if data else self.data
        if self.frame is not None and is_frame(frame):
            return predict_frame(self, frame, new_groups=new_groups == "draw", **options)
        if new_groups == "draw":
            raise ValueError("predict: new_groups is for fits to a frame, whose columns of categories are groups")
        return predict(self, *self.tensors(data), **options)

    def diagnose(
        self,
        *data: Any,
        draws: int | None = None,
        starts: int = 4,
        idata: "ArvizData | None" = None,
        seed: int = 0,
        budget: float | None = None,
    ) -> "Verdict":
        """Whether to trust the posterior on data; see `ppgen.diagnostics.diagnose`, which documents the options.

        Here `budget` is a number of seconds, which may allow fewer draws and a shorter search for other modes.

        Example:
            >>> import pyro
            >>> import pyro.distributions as dist
            >>> import torch
            >>> import ppgen
            >>> def model(x):
            ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
            >>> x = torch.randn(20)
            >>> ppgen.fit(model, "auto", x, progress=False).diagnose(x).level
            'good'
        """
        from ppgen.diagnostics.verdict import diagnose  # late: ArviZ is slow to import

        fit, tensors = on_row_subset(self, self.tensors(data))
        seconds = Budget(math.inf if budget is None else budget)
        return diagnose(fit, *tensors, draws=draws, starts=starts, idata=idata, seed=seed, budget=seconds)

    def refine(
        self,
        *data: Any,
        chains: int = 4,
        draws: int = 1000,
        seed: int = 0,
        budget: float | None = None,
        progress: bool = True,
    ) -> "Fit":
        """Draws from the posterior on data by a sampler that starts from the guide, where that is not to be trusted.

        Populations of points go from the guide to the posterior by sequential Monte Carlo, with moves by Hamiltonian
        Monte Carlo in the guide's coordinates (`ppgen.refinement`), until R-hat and effective sample sizes are good.
        Their draws, one population a chain, are the chains of the result: `diagnose` judges them, `to_arviz` has them
        in order, and `save` stores them. ``metadata["refined"]`` has the log evidence with its standard error.

        Args:
            *data: the arguments of the programs.
            chains: the number of populations.
            draws: the number of draws of each.
            seed: the seed of all random numbers; the caller's random state does not change.
            budget: the seconds that it may take. Ctrl-C and the end of the budget leave what was reached.
            progress: whether to show what is being done, on a terminal.

        Raises:
            ValueError: see `ppgen.refinement.refine`.

        Example:
            >>> import pyro
            >>> import pyro.distributions as dist
            >>> import torch
            >>> import ppgen
            >>> def funnel():
            ...     log_scale = pyro.sample("log_scale", dist.Normal(0.0, 1.0))
            ...     pyro.sample("x", dist.Normal(0.0, log_scale.exp()))
            >>> fit = ppgen.fit(funnel, ppgen.AutoFlow(funnel, hidden=(8,)), None, steps=20, progress=False)
            >>> refined = fit.refine(draws=200, progress=False)
            >>> refined.to_arviz().posterior["x"].shape  # chains, draws
            (4, 200)
        """
        from ppgen.refinement import refine  # late: ArviZ is slow to import

        with shown_budget(math.inf if budget is None else budget, "sampling", progress=progress) as shown:
            refined = refine(self, *self.tensors(data), chains=chains, draws=draws, seed=seed, budget=shown)
        refined.scope.publish()
        return Fit(**(vars(refined) | {"data": self.data}))

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
        seconds: float | None = None,
    ) -> Path:
        """Writes one HTML page about the posterior on data, the verdict, its statistics and the training.

        See `ppgen.report.report_of_fit`, which documents the other options.

        Args:
            path: the path of the page.
            *data: the arguments of the programs.
            title: the title of the page.
            draws: the number of draws.
            starts: the number of starts of the search for other modes.
            dims: names of dimensions.
            coords: values along dimensions.
            calibration: a calibration to show.
            seed: the seed.
            seconds: the time that it may take: a fifth of that of training by default, and at least 10; `math.inf` for
                all rows and draws, however long they take.

        Returns:
            The path of the page.

        Raises:
            ValueError: for negative seconds; as `ppgen.report.report_of_fit`.
        """
        from ppgen.report import report_of_fit, write_report  # late: ArviZ and matplotlib are slow to import

        options: dict[str, Any] = {"title": title, "draws": draws, "starts": starts, "dims": dims, "coords": coords}
        options |= {"calibration": calibration, "seed": seed}
        if seconds is None:
            shared = len(self.chains) if "auto" in self.metadata else 1  # whose chains all have the time of the whole
            seconds = seconds_after_training(sum(chain.seconds for chain in self.chains) / shared)
        with shown_budget(seconds, "report") as budget:
            fit, tensors = on_row_subset(self, self.tensors(data))
            return write_report(path, report_of_fit(fit, *tensors, **options, budget=budget))


def fit(
    model: Program,
    guide: Program | Literal["auto"],
    data: Any = None,
    *,
    loss: PyroELBO | Callable[..., Tensor] | None = None,
    optim: PyroOptim | OptimizerFactory | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    validation: Any = None,
    score: Callable[[], float | Sequence[float]] | None = None,
    patience: int | None = None,
    callbacks: Sequence[Callable[[TrainingStep], None]] = (),
    seed: int = 0,
    restarts: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_seconds: float = 60.0,
    checkpoint_keep: int = 2,
    ema: float | None = None,
    clip_norm: float | None = None,
    lr_scheduler: Literal["linear", "cosine"] | Callable | None = None,
    compile: Compile = "auto",
    growth: ProgressiveGrowing | None = None,
    distribute: Literal["rows", "chains"] | None = "rows",
    budget: float | None = None,
    otherwise: Literal["sample"] | None = None,
    simulations: int | None = None,
    failed: Literal["refuse", "leave out"] = "refuse",
) -> Fit:
    """Fits a model and a guide to data by stochastic variational inference.

    The programs are called with a batch of each part of `data`: ``model(x)``, or ``model(x, y)`` for a tuple.

    Args:
        model: a Pyro model. If it is a module with a method ``check``, that is called with all data first; a method
            ``initialize`` is called with at most 512 rows before each chain.
        guide: a Pyro guide, or "auto" to find the posterior of the model's global latents (see below).
        data: a tensor, array, frame or tuple of those, a torch or Hugging Face data set, rows on disk, or None for
            programs without data (see below). Missing values are NaN, which the model has to leave out (see below).
        loss: a ppgen objective, a Pyro ELBO, or a function (model, guide, *batch) -> scalar; `ELBO()` if left out.
        optim: a Pyro optimizer, or a function parameters -> torch optimizer; Adam at 1e-3 if left out.
        steps: the number of steps; without `steps` and `epochs` the run ends when it has converged (see below).
        epochs: the number of passes over the data, instead of `steps`.
        max_steps: the ceiling of a run until convergence; 30,000 if left out.
        batch_size: the rows of a step and process; if left out, all (right for global latents without a subsampling
            plate).
        validation: held-out data, or the fraction of `data` to hold out, on which the loss is checked after each pass,
            though not within 30 steps; 0 for nothing. If left out, a tenth, at most 5000 rows, where the length depends
            on it: without `steps` and `epochs`, or with `patience` (see below).
        score: a function without arguments that is evaluated in the place of the loss on held-out data, smaller is
            better: a number, or one for each part of the data, whose differences between checks then show the noise.
        patience: stop after so many passes over the data without a better check, but not within 300 steps, and return
            to the best weights.
        callbacks: functions that are called with a `TrainingStep` after each step; ``step.stop(reason)`` ends a chain.
        seed: the seed of batches, starts and random draws; the caller's random state does not change.
        restarts: the number of chains, each from a new start; 1 if left out. The best has the lowest loss.
        device: the device to which batches and module programs are moved; if left out, they stay where they are.
        progress: whether to show a progress bar, on a terminal.
        checkpoint: a file that holds the run while it trains, from which a stopped run continues (see below).
        checkpoint_seconds: the time between two checkpoints.
        checkpoint_keep: how many of the newest checkpoints stay on the disk.
        ema: the decay of an exponential moving average of the weights, which becomes the result; see Notes.
        clip_norm: the bound on the norm of all gradients together; no clipping if left out.
        lr_scheduler: "linear" or "cosine", down to 0, or a function optimizer -> torch scheduler, for critics too.
            Without `steps` and `epochs` rates fall to 0 once the run has converged.
        compile: whether to compile the step, once for each shape of a batch; "auto" does so if it saves time.
        growth: the schedule of growing networks (`ppgen.nets.Growing`) in programs and critics.
        distribute: what several processes share (see below): the "rows" of each batch, or whole "chains"; None to train
            in each process by itself.
        budget: the seconds that ``guide="auto"`` may take (see below); no limit if left out.
        otherwise: "sample" for draws of a sampler where the fit of ``guide="auto"`` is not to be trusted (see below).
        simulations: how many simulations ``fit(simulator, "auto")`` draws, in the place of a table (see below).
        failed: what to do with simulations that are not finite: "refuse" them, by name, or "leave out".

    Returns:
        The fit. The programs hold the weights of its best chain.

    Raises:
        TypeError: for an argument of a wrong type, or data that are not numeric.
        ValueError: for options or data that are out of range, observations outside of a distribution's support,
            or a checkpoint of another run, which is left unchanged.
        LookupError: if the programs do not have the sites that the loss needs.
        FloatingPointError: if the loss is not finite at the first step of the first chain. Later, a step that is not
            finite is skipped; after five in a row a chain goes back to weights from before, with half the learning
            rates, and after three returns it ends with those, a warning and `Chain.failed`. A restart that begins with
            such a step is left out.
        ppgen.infer.checkpoint_file.CheckpointError: if the checkpoint is damaged.

    **Notes.** Restarts sample the weights of networks again, move other parameters by U(-2, 2) in unconstrained space,
    and reset an `AutoFlow` to a Gaussian. In adversarial training the loss need not fall as samples get better, so
    the best restart means little there: compare samples. The moving average warms up, with decay
    min(ema, (1 + step) / (10 + step)). As in Pyro, one of its schedulers advances when a callback calls
    ``optim.step()``. Ctrl-C ends the run after the current step and keeps what was learned; pressed twice, it ends the
    run at once.

    **Length.** Without `steps` and `epochs` a run ends when it has converged, at the latest after `max_steps`. Of 100
    rows or more a tenth is held out, if each row has its own latents, or none, and the guide computes them from the
    row. The run checks the loss on these rows under the same random numbers each time. After 5 passes without a check
    that is better by more than its noise, and at least 1000 steps, or less than a third of that if all checks are worse
    by more than their noise, it returns to the best weights and lowers the learning rates to a fifth; it does so once
    more, with half the patience, and then ends with the best weights. Programs with global latents, or
    fewer rows, hold nothing out, since all rows count for the posterior: there the loss of the steps has to be flat
    over a window, whose length grows, and so have the latents that the guide draws. Where critics train, held-out rows
    are compared with samples by the energy distance, with twice the patience. Schedules of weights that last
    for the run then take 10 passes, at least 1000 steps, before which no check counts. With `steps` or `epochs` the
    run takes exactly those, and a warning and `Chain.stop_reason` say if the loss on validation data was still
    improving, or was best long before.

    **guide="auto"** finds modes from `restarts` (4 if left out) dispersed starts, fits a Gaussian at each in
    coordinates whitened by its curvature, mixes the Gaussians of several modes, and fits a flow if importance weights
    show that the best of these is not good enough. It works in double precision, on all data, until it has converged
    (`ppgen.posterior.auto`). It accepts no loss, optimizer, batches or length, but a `budget` in seconds: when it is
    over, the best that was found is the result, and a warning says what was left out. ``Fit.metadata["evaluations"]``
    counts the values and gradients of log p. More than 10,000 rows that are independent given the latents are stood for
    by a subset with control variates. Of 500 latents or more those of groups, sequences and crossed effects are
    integrated out (``docs/scale.md``); ``Fit.metadata["rows"]`` has the error of log p, in nats, which the verdict
    judges. ``fit.diagnose(...)`` says whether the result can be trusted. With ``otherwise="sample"`` it is asked at
    once, and where it says no, the result has draws of a sampler (`Fit.refine`).

    **Frames.** With ``guide="auto"`` a pandas frame gives its columns by name to the program's arguments:
    ``fit(model, "auto", frame)`` of ``model(income, county, num_county, y=None)`` takes the columns "income", "county"
    and "y". Numbers are float64, categories and text are codes, and ``num_county`` is the number of categories, the
    size of a plate (`ppgen.training.frames`). Categories and the frame's index are coordinates in ArviZ, and `Fit`
    takes frames: ``fit.predict(new_frame)`` returns one. A program of one argument that is no column takes the whole
    frame as one array.

    **Simulators.** ``fit(simulator, "auto", table)`` of a `Simulator` and a table of its draws, or of `simulations` new
    ones, is neural posterior estimation with defaults (`ppgen.training.simulations`): a flow over the latents of a row
    given its data, trained by `Sleep` until simulations that are held out are no longer predicted better. Its five
    chains are an ensemble: their draws together are those of the posterior. ``fit.diagnose()`` judges them by
    calibration on new simulations.

    **Data beyond memory.** With a `batch_size`, data sets, memory-mapped arrays (``np.load(path, mmap_mode="r")``) and
    rows of `ppgen.data.load(path, stream=True)` are read, converted and checked batch by batch; `ppgen.data.Stream`
    sets workers. Batches are those of the same data in memory, except that a Parquet file is shuffled by row groups.
    An iterable data set has no length: none of it is held out, and without `steps` and `epochs` its training loss tells
    when the run has converged. For `epochs` its items are counted first (a warning after a million says so; one without
    an end is counted until you stop it). It comes in its own order or through the buffer of a `Stream`, and leaves it
    to the program to know N of ``pyro.plate("data", N, subsample=x)``. Validation data of these kinds are read in
    batches too, and their loss is the mean weighted by rows. See docs/scale.md.

    **Missing values.** A model leaves NaN out if it masks the site and fills the values, ``obs=y.nan_to_num()`` under
    ``pyro.poutine.mask(mask=~y.isnan())``, or observes them by ``NanMaskedNormal``. Data are refused if a log density
    is NaN before it is masked, since its gradient is NaN too.

    **Many processes.** In a process group of `torch.distributed` (torchrun, SLURM, Ray), all processes call `fit` with
    the same arguments and all data. Each computes the gradient of its share of every batch, and all take the same step
    by the gradient of the whole, so that their weights stay equal; rank 0 writes the checkpoint. With
    ``distribute="chains"`` each trains some of the `restarts` on all data, and the results are gathered. See
    docs/scale.md, also for what is computed within each share.

    **Checkpoints.** The file is written after the first step of a chain, every `checkpoint_seconds`, at validations
    (as far as this takes less than 1 % of the time), and when Ctrl-C, SIGTERM, SIGHUP or a callback's ``step.stop``
    ends a chain; a second signal ends the run at once. After SIGTERM or SIGHUP is saved, it acts as it would have
    without `fit`. Beside the file there are the one before, ``.previous``, which takes its place if the file is damaged
    (with a larger `checkpoint_keep` also ``.previous2``, and so on), and that of the best validation, ``.best``. If
    writing fails, a warning says so, training goes on, and later checkpoints are tried.

    If the file exists when `fit` begins, the run continues, and ends as if it had never been stopped: bit for bit if
    steps are not compiled, otherwise to rounding. Call `fit` with the same arguments. The files are kept until
    ``fit.save(...)`` has written a run that is complete (`Fit.complete`) and that no callback stopped; to start a new
    run without that, delete the file. A checkpoint does not hold the state of callbacks (a method ``flush`` is called
    before each writing), the state of a loss other than its step and its critics, or random numbers that are not
    torch's. It refuses Pyro's learning-rate schedulers, which callbacks advance; give `lr_scheduler` instead.

    Example:
        >>> import torch
        >>> import ppgen
        >>> x = torch.randn(20, 3)
        >>> vae = ppgen.models.VAE((3,), latent_dim=2, hidden=(8,))
        >>> fit = ppgen.fit(vae.model, vae.guide, x, steps=5, batch_size=10, compile=False, progress=False)
        >>> fit.history["loss"].shape
        (5,)
        >>> list(fit.breakdown(x))
        ['ELBO']
    """
    options = TrainingOptions(
        loss=loss,
        optim=optim,
        steps=steps,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        validation=validation,
        score=score,
        patience=patience,
        callbacks=callbacks,
        seed=seed,
        restarts=restarts,
        device=device,
        progress=progress,
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        checkpoint_keep=checkpoint_keep,
        ema=ema,
        clip_norm=clip_norm,
        lr_scheduler=lr_scheduler,
        compile=compile,
        growth=growth,
        distribute=distribute,
        budget=budget,
    )
    check_launch(options.distribute)
    if isinstance(model, Simulator) and guide == "auto":
        return Fit(**vars(fit_simulator(model, data, options, simulations=simulations, failed=failed)))
    if simulations is not None:
        raise ValueError('fit: simulations is for a ppgen.Simulator with guide="auto"')
    if otherwise not in ("sample", None):
        raise ValueError(f'fit: otherwise is "sample" or None, got {otherwise!r}')
    if isinstance(guide, str):
        return _fit_auto(model, guide, data, options, otherwise)
    if options.budget is not None:
        raise ValueError('fit: budget is for guide="auto"; give steps, epochs or max_steps for the length of a run')
    if otherwise:
        raise ValueError(f'fit: otherwise={otherwise!r} is for guide="auto"; call fit(...).refine(...)')
    return Fit(**vars(train(model, guide, data, options)))


def _fit_auto(model: Program, guide: str, data: Any, options: TrainingOptions, otherwise: str | None) -> Fit:
    """The fit of ``guide="auto"``, or draws of a sampler where its verdict refuses the fit."""
    if guide != "auto":
        raise ValueError(f'fit: guide must be a Pyro program or "auto", got {guide!r}')
    if Ranks(alone=options.distribute is None).size > 1:
        raise ValueError(
            'fit: guide="auto" finds a posterior in one process: start one, or give distribute=None to find it in each'
        )
    if refused := [name for name in options.given() if name not in AUTO_OPTIONS]:
        raise ValueError(
            f'fit: guide="auto" chooses its own optimization and takes no {", ".join(refused)}; give a guide, for '
            "example AutoMultivariateNormal(model), to set them"
        )
    restarts = AUTO_RESTARTS if options.restarts is None else options.restarts
    arguments = FrameArguments.of(model, data) if is_frame(data) else None
    if arguments is None:
        tensors = () if data is None else as_tensors(data, dtype=torch.float64, allow_nan=True)
        check_missing(DoublePrecision(model), tensors, data)
        tensors = after_first_run(DoublePrecision(model), None, tensors, dtype=torch.float64, seed=options.seed)
    else:
        model, tensors = program_of_frame(model, arguments, data, seed=options.seed)
    seconds = math.inf if options.budget is None else options.budget
    with shown_budget(seconds, "posterior", progress=options.progress) as budget:
        share = budget.part(SEARCH_SHARE) if otherwise else budget
        with ParameterScope().open():
            fitted = find_posterior(model, tensors, restarts=restarts, seed=options.seed, budget=share)
        if arguments is not None:
            fitted.metadata["frame"] = arguments.as_dict()
        if otherwise:
            fitted = _sample_if_refused(fitted, tensors, options.seed, budget)
    fitted.scope.publish()
    return Fit(**vars(fitted), data=None if arguments is None else data)


def _sample_if_refused(fitted: Fitted, data: tuple[Tensor, ...], seed: int, budget: Budget) -> Fitted:
    """The fit, or draws of a sampler if it is not to be trusted."""
    from ppgen.diagnostics.verdict import BAD, diagnose  # late: ArviZ is slow to import
    from ppgen.refinement import refine

    budget.show("the verdict")
    try:
        judged, rows = on_row_subset(fitted, data)
        if diagnose(judged, *rows, seed=seed, budget=budget.part(VERDICT_SHARE)).level != BAD:
            return fitted
        return refine(fitted, *data, seed=seed, budget=budget)
    except KeyboardInterrupt:
        warn_user("interrupted before the sampler had begun: this is the fit as it was found")
        return fitted
