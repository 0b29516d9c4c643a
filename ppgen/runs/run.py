"""What all kinds of runs have in common.

A kind of run is a subclass of `Run`. It has the options of its command line, loads its data, evaluates its model and
writes its report. The row of a method in `ppgen.runs.methods.METHODS` names the kind.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch
from jsonargparse import ArgumentParser

from ppgen.data import Data
from ppgen.fitting import Fit
from ppgen.infer.checkpoint_file import CheckpointError
from ppgen.runs.defaults import with_earlier_defaults
from ppgen.runs.folder import CONFIG, NUMBERS, POSTERIOR, RECORD, WEIGHTS, read_config
from ppgen.runs.methods import METHODS, Method
from ppgen.runs.options import add_fit_options, add_loss_options, add_model_options, make_loss
from ppgen.runs.parser import SECONDS, complete_config
from ppgen.runs.record import Record
from ppgen.runs.units import Units
from ppgen.training.options import check_device
from ppgen.training.training_failures import TrainingWarning
from ppgen.utils.budget import Budget, seconds_after_training, shown_budget
from ppgen.utils.files import write_atomically
from ppgen.utils.schema import NUMBER, SCALAR, Kind, read_json
from ppgen.utils.tensor_bound import TensorBound
from ppgen.utils.user_warnings import warn_user

if TYPE_CHECKING:
    from ppgen.diagnostics import Verdict

__all__ = ["DataChangedError", "DataMissingError", "Programs", "Run", "check_evaluation", "load_weights", "method_of"]

CUT = (
    "on as many rows as {:.2g} s allowed, so that numbers depend on the machine; on all rows: "
    "ppgen report {} --evaluate true --evaluation_seconds inf"
)
NUMBER_OR_TEXT = Kind(
    "a number, a text, or a number and its error",
    lambda v: SCALAR.test(v) or (isinstance(v, list) and len(v) == 2 and all(map(NUMBER.test, v))),
)
REPORT_SHARE = 0.2  # of the time, even if evaluation and posterior took longer than they should
SECTIONS_SHARE = 0.8  # of the time for the report: the rest is for drawing its figures
POSTERIOR_ROWS_AT_FIRST = 2  # from which the time of more is estimated
EVALUATION_HELP = (
    "time for evaluation, posterior and report together; default: a fifth of that of training, and at least 10; inf "
    "for all held-out rows, and results that do not depend on the time"
)
LEAST_DRAWS = 25  # of a stored posterior, as `Fit.to_arviz` expects
MEMORY_OF_WEIGHTS, MEMORY_BESIDE = 20, 2**28  # a stored model takes at most so many times its weights, and bytes beside
SOURCES = ("source", "target", "source_test", "target_test")  # the options that name data


class DataMissingError(OSError):
    """The data of a run cannot be read."""


class DataChangedError(ValueError):
    """The data of a run are not those that it was trained on."""


class Programs(Protocol):
    """A model and its guide, as `ppgen.fit` takes them, with a check of their data."""

    @property
    def model(self) -> Any:
        """The Pyro model."""

    @property
    def guide(self) -> Any:
        """The Pyro guide."""

    def check(self, *data: Any) -> None:
        """Raises an error if the model cannot be fitted to these data."""


@dataclass
class Run(ABC):
    """A finished run.

    What the model was fitted to is `data`, which is read when it is first asked for. What the folder holds of it is
    `kept`: the first rows of each split, with the scaler and the names.

    Attributes:
        folder: Where it is stored.
        config: The contents of ``config.yaml``.
        record: What the folder holds of the data and of the machine.
        model: The model and its guide.
        fit: Their weights and the training history.
        changed: Whether data that are not those of the training are used, with a warning.
    """

    folder: Path
    config: dict[str, Any]
    record: Record
    model: Any
    fit: Fit
    changed: bool = False

    # The command line

    @classmethod
    @abstractmethod
    def add_arguments(cls, parser: ArgumentParser, method: Method) -> None:
        """Adds the arguments of ``ppgen train METHOD``. A subclass adds those of its data and calls this method."""
        parser.add_argument("--out", type=Path, default=None, help="the run folder; default: runs/METHOD-SOURCE")
        by_data = "; by default that of the method and the data, see docs/defaults.md"
        lr = f"Adam's learning rate for the model and the guide{by_data}"
        parser.add_argument("--lr", type=float | None, default=None, help=lr)
        betas = f"Adam's decay rates of the moments of the gradient{by_data}"
        parser.add_argument("--betas", type=tuple[float, float] | None, default=None, help=betas)
        particles = "importance samples for the log evidence; default: as many as there is time for, at most 500"
        parser.add_argument("--particles", type=int | None, default=None, help=particles)
        parser.add_argument("--evaluation_seconds", type=SECONDS, default=None, help=EVALUATION_HELP)
        parser.add_argument("--progress", type=bool, default=True, help="show a progress bar on a terminal")
        add_model_options(parser, method.model_class())
        add_loss_options(parser, method.recipe_function())
        add_fit_options(parser)
        parser.set_defaults(dict(method.defaults))

    @classmethod
    @abstractmethod
    def sources(cls, config: Mapping[str, Any]) -> list[str]:
        """The data of a run, from which its folder gets its name."""

    # From the configuration to programs and data

    @classmethod
    @abstractmethod
    def load_data(cls, config: dict[str, Any], record: Record | None = None) -> Any:
        """Loads the data that the configuration names; given a record, with the scalers that it holds."""

    @classmethod
    @abstractmethod
    def parts(cls, data: Any) -> dict[str, Data]:
        """The data sets that the data consist of, by the part that each has."""

    @classmethod
    @abstractmethod
    def join(cls, config: dict[str, Any], parts: Mapping[str, Data]) -> Any:
        """The data that consist of these parts; the inverse of `parts`."""

    @classmethod
    def read_record(cls, folder: Path, config: dict[str, Any]) -> Record:
        """Reads what a folder holds of the data. In that of an earlier version it is nothing: they are loaded.

        Raises:
            CheckpointError: If it is damaged, or that of another kind of run.
        """
        try:
            record = Record.read(folder)
        except FileNotFoundError:
            sources = ", ".join(cls.sources(config))
            warn_user(
                f"{folder}: an earlier version of ppgen wrote this folder, without a record of its data. They are read "
                f"again from {sources}, and if they have changed since, results are wrong: train again to have a record"
            )
            return Record.of(cls.parts(cls.load_data(config)), config["fit"]["seed"])
        try:
            cls.join(config, record.kept)
        except (LookupError, ValueError) as error:
            parts = ", ".join(map(repr, record.parts)) or "no data"
            raise CheckpointError(
                f"{folder / RECORD}: not the record of a run of {config['method']!r}: it has {parts} ({error}); train "
                "the run again"
            ) from error
        return record

    @classmethod
    def read_data(cls, folder: Path, config: dict[str, Any], record: Record, *, changed: bool = False) -> Any:
        """Loads the data of a run and compares them with its record.

        Args:
            folder: The run folder, for errors.
            config: The configuration of the run.
            record: Its record.
            changed: Whether data that have changed are accepted, with a warning.

        Raises:
            DataMissingError: If they cannot be read.
            DataChangedError: If they have changed; the message names the sources.
        """
        located = config | {key: record.locate(config[key]) for key in SOURCES if key in config}
        try:
            data = cls.load_data(located, record)
            parts = cls.parts(data)
            changes = record.changes(parts)
        except (ImportError, LookupError, OSError, ValueError) as error:
            sources = ", ".join(cls.sources(config))
            raise DataMissingError(
                f"{folder}: this needs the data of the run, {sources}, which cannot be read: {error}"
            ) from error
        if not changes:
            return cls.join(config, {k: replace(part, rows=record.parts[k].splits) for k, part in parts.items()})
        message = f"{folder}: the data have changed since the training: {'; '.join(changes)}"
        if not changed:
            raise DataChangedError(
                f"{message}. Restore them, or use them as they are now with --changed true (in Python changed=True)"
            )
        warn_user(message)
        return cls.join(config, {k: record.parts[k].conform(part) for k, part in parts.items()})

    @classmethod
    def size(cls, data: Any) -> tuple[tuple[int, ...], int | None]:
        """The shape of an event and the number of rows for training; None for the latter without data."""
        return (), None

    @classmethod
    @abstractmethod
    def make_model(cls, config: dict[str, Any], data: Any) -> Programs:
        """Makes the model that the configuration describes for these data, with the seed of the configuration."""

    @classmethod
    def with_data(cls, config: dict[str, Any], data: Any) -> dict[str, Any]:
        """The configuration with options of the model that the data decide, where it has none: unchanged by default."""
        return config

    @classmethod
    def tuned(
        cls, config: dict[str, Any], data: Any, options: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """Chooses the options that are left to the data, before training: none, unless the kind of run has some.

        Args:
            config: The configuration.
            data: The data.
            options: The arguments of `ppgen.fit` that the configuration holds.

        Returns:
            The configuration with the chosen options, and by what they were chosen, for ``tuning.json``; else empty.
        """
        return config, {}

    @classmethod
    def make_stored_model(cls, folder: Path, config: dict[str, Any], data: Any) -> Programs:
        """Makes the model of a finished run, which takes not much more memory than its weights.

        Raises:
            ValueError: If the configuration describes a model that takes more, or none.
        """
        most = MEMORY_OF_WEIGHTS * (folder / WEIGHTS).stat().st_size + MEMORY_BESIDE
        try:
            with TensorBound(most, f"the model, whose weights are in {WEIGHTS},"):
                return cls.make_model(config, data)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG}: {error}") from error

    @classmethod
    def loss_arguments(cls, config: dict[str, Any]) -> Mapping[str, Any]:
        """The arguments of the recipe that the kind of run sets: none, unless the model is conditioned on labels."""
        return method_of(config).conditional if config.get("conditional") else {}

    @classmethod
    @abstractmethod
    def rows(cls, config: dict[str, Any], data: Any, split: str) -> tuple[torch.Tensor, ...]:
        """A split, "train", "validation" or "test", as the arguments of the programs."""

    @classmethod
    def fitted_data(cls, config: dict[str, Any], data: Any) -> Any:
        """What `ppgen.fit` is given: the training rows, or None for programs without data."""
        return cls.rows(config, data, "train") or None

    @classmethod
    def checks(cls, config: dict[str, Any], model: Any, validation: tuple[torch.Tensor, ...]) -> dict[str, Any]:
        """How `ppgen.fit` checks the model while it trains, as its arguments: by the loss on the validation rows.

        Args:
            config: The configuration.
            model: The model.
            validation: The validation rows; empty without data.
        """
        return {"validation": validation if validation and len(validation[0]) else 0}

    @classmethod
    def make_loss(cls, config: dict[str, Any]) -> Any:
        """Makes the objective that the configuration describes."""
        return make_loss(method_of(config).recipe_function(), config["loss"], **cls.loss_arguments(config))

    @classmethod
    def load(
        cls, folder: str | os.PathLike, *, device: str | torch.device | None = None, changed: bool = False
    ) -> Self:
        """Loads a finished run of any kind: makes its programs and restores the weights. Its data are not read.

        Args:
            folder: The run folder.
            device: The device of the model; the CPU if left out, wherever it was trained.
            changed: Whether to use data that are not those of the training, with a warning.

        Returns:
            The run, of the kind that its method has.

        Raises:
            FileNotFoundError: If this is not the folder of a finished run.
            ValueError: If an earlier version of ppgen wrote the folder, or this machine does not have the device.
            TypeError: If it is a run of another kind than this class.
            ppgen.infer.checkpoint_file.CheckpointError: If the weights are damaged.
        """
        check_device(device)
        folder = Path(folder)
        config = complete_config(read_config(folder), folder / CONFIG)
        kind = method_of(config, folder).run_class()
        if not issubclass(kind, cls):
            raise TypeError(f"{folder}: expected a {cls.__name__}, got a run of {config['method']!r}: {kind.__name__}")
        return kind.restore(folder, config, device=device, changed=changed)

    @classmethod
    def restore(
        cls, folder: Path, config: dict[str, Any], *, device: str | torch.device | None = None, changed: bool = False
    ) -> Self:
        """Makes the run that is stored in a folder with this configuration; see `load`."""
        record = cls.read_record(folder, config)
        config = with_earlier_defaults(config, method_of(config), cls.size(kept := cls.join(config, record.kept))[0])
        model: Any = cls.make_stored_model(folder, config, kept)
        fitted = load_weights(folder / WEIGHTS, model, cls.make_loss(config), device)
        return cls(folder, config, record, model, fitted, changed)

    @cached_property
    def kept(self) -> Any:
        """The rows that the folder holds, in the form of `data`."""
        return self.join(self.config, self.record.kept)

    @cached_property
    def data(self) -> Any:
        """What the model was fitted to; see `read_data` for the errors."""
        return self.read_data(self.folder, self.config, self.record, changed=self.changed)

    @property
    @abstractmethod
    def described(self) -> Data:
        """The data set whose scaler, columns and labels are those of the model's data; its rows may be few."""

    @property
    def units(self) -> Units:
        """The conversion between the units of the source and what the model takes."""
        return Units(self.described, self.device)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next((part.device for part in self.fit.example), torch.device("cpu"))

    def arguments(self, *rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The arguments of the programs for rows and their labels, as the model takes them."""
        return rows

    @contextmanager
    def drawing(self, seed: int) -> Iterator[None]:
        """Inside, the programs are in eval mode, without gradients, and draws depend on the seed alone.

        Args:
            seed: The random seed.
        """
        with self.fit.eval_mode(), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            yield

    def data_or_kept(self) -> tuple[Any, str]:
        """The data, or if they are missing or have changed the rows that the folder holds, with a note that says so."""
        try:
            return self.data, ""
        except (DataChangedError, DataMissingError) as error:
            why = "missing" if isinstance(error, DataMissingError) else "not those of the training"
            warn_user(f"{error}. The report shows the rows that the run folder holds")
            return self.kept, f"The data are {why}: shown are the first rows of each split, which the run holds"

    # Results

    def evaluate(self, budget: Budget | None = None) -> dict[str, Any]:
        """Evaluates the model on held-out data.

        Args:
            budget: The time that this may take; that of the configuration if left out.

        Returns:
            Numbers by name: a number, a text, or a pair of a number and its standard error. If the time was too short
            for all rows, "evaluation" says so.
        """
        budget = Budget(self.evaluation_seconds) if budget is None else budget
        numbers = self.measure(budget)
        if budget.cut:
            numbers["evaluation"] = CUT.format(budget.seconds, self.folder)
        return numbers

    @abstractmethod
    def measure(self, budget: Budget) -> dict[str, Any]:
        """The numbers of `evaluate`, within a time."""

    @abstractmethod
    def store_posterior(self, budget: Budget) -> None:
        """Writes the posterior of held-out data into the folder, if the model has one, within a time."""

    def write_posterior(self, budget: Budget, most: int, rows: Callable[[int], tuple[torch.Tensor, ...]]) -> None:
        """Writes the posterior of as many rows as there is time for: draws and densities, without predictions.

        Args:
            budget: The time.
            most: The largest number of rows.
            rows: The arguments of the programs for a number of rows.
        """
        from ppgen.diagnostics import to_netcdf  # late: ArviZ is slow to import

        draws = self.config["draws"]
        idata = budget.at_size(
            lambda n: self.fit.to_arviz(*rows(n), draws=draws, predictive=False, resampled=None),
            most,
            least=min(most, POSTERIOR_ROWS_AT_FIRST),
        )
        to_netcdf(idata, self.folder / POSTERIOR)

    @abstractmethod
    def report(self, budget: Budget | None = None) -> Path:
        """Writes the report; returns its path.

        Args:
            budget: The time that it may take, if its sections can do with fewer rows; no limit if left out.
        """

    @abstractmethod
    def sample(self, n: int, *, label: Any = None, mean: bool = False, seed: int = 0, **how: Any) -> np.ndarray:
        """Draws n samples from the model.

        Args:
            n: The number of samples.
            label: For a conditional model the number of the label of all samples, or a tensor (n,) of them.
            mean: Whether to return the means E[x | z] in place of samples.
            seed: The random seed.
            **how: Further options of the model's ``sample``, such as the sampler of a diffusion model.

        Returns:
            An array (n, *event_shape), in the units of the data's source.

        Raises:
            ValueError: For options that the model does not have.
        """

    def diagnosed_rows(self) -> tuple[torch.Tensor, ...]:
        """The data whose posterior `diagnose` examines: rows that the folder holds."""
        return self.rows(self.config, self.kept, "train")

    def diagnose(self, *, draws: int = 500, seed: int = 0) -> "Verdict":
        """Decides whether the posterior of held-out data can be trusted, or of training data if none were held out.

        Args:
            draws: The number of posterior samples.
            seed: The random seed.

        Returns:
            The verdict.

        Raises:
            ValueError: If the model has no posterior to diagnose.
        """
        return self.fit.diagnose(*self.diagnosed_rows(), draws=draws, seed=seed)

    def training_warnings(self) -> list[TrainingWarning]:
        """The warnings about adversarial training; none for other objectives."""
        return self.fit.training_warnings()

    @property
    def evaluation_seconds(self) -> float:
        """The time for evaluation, posterior and report together, unless the configuration gives one."""
        if (seconds := self.config.get("evaluation_seconds")) is not None:
            return float(seconds)
        return seconds_after_training(sum(chain.seconds for chain in self.fit.chains))

    def finish(self, *, again: bool = False, seconds: float | None = None, progress: bool = True) -> list[str]:
        """Computes the results that the folder lacks, for example after a kill, and rewrites the report.

        Args:
            again: Whether to evaluate the model and to draw from its posterior in any case.
            seconds: The time that this may take; `evaluation_seconds` if left out.
            progress: Whether to show on a terminal what is being done.

        Returns:
            The names of the files that were written.

        Raises:
            DataChangedError: If held-out rows are needed for results, and the data have changed.
            DataMissingError: If they are needed because of `again`. Otherwise a warning says what is left out.
            ValueError: For seconds that are not positive.
        """
        check_evaluation({"evaluation_seconds": seconds})
        with shown_budget(
            self.evaluation_seconds if seconds is None else seconds, "results", progress=progress
        ) as budget:
            return self._finish(budget, again)

    def _finish(self, budget: Budget, again: bool) -> list[str]:
        written = []
        if again or not (self.folder / NUMBERS).exists():
            try:
                self.numbers = self.evaluate(budget.part(0.5, "evaluation"))
                written.append(NUMBERS)
            except DataMissingError as error:
                if again:
                    raise
                warn_user(f"{error}. {NUMBERS}, which the folder lacks, is not computed")
        if again or not (self.folder / POSTERIOR).exists():
            self.store_posterior(budget.part(0.3, "posterior"))
            written += [POSTERIOR] if (self.folder / POSTERIOR).exists() else []
        return [*written, self.report(budget.part(SECTIONS_SHARE, "report", least=REPORT_SHARE)).name]

    @property
    def numbers(self) -> dict[str, Any]:
        """The results of `evaluate`, as they are stored."""
        path = self.folder / NUMBERS
        stored = read_json(path, {str: NUMBER_OR_TEXT}) if path.exists() else {}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}

    @numbers.setter
    def numbers(self, numbers: Mapping[str, Any]) -> None:
        write_atomically(self.folder / NUMBERS, json.dumps(dict(numbers), indent=1))

    def posterior(self) -> tuple[Any, "Verdict | None"]:
        """The stored posterior and the verdict on it, both None if no posterior was stored."""
        path = self.folder / POSTERIOR
        if not path.exists():
            return None, None
        from ppgen.diagnostics import from_netcdf  # late: ArviZ is slow to import

        idata = from_netcdf(path)
        return idata, self.fit.diagnose(idata=idata, starts=0)


def check_evaluation(config: Mapping[str, Any]) -> None:
    """Checks the options of the evaluation, before the training.

    Args:
        config: The configuration.

    Raises:
        ValueError: For particles or seconds that are not positive, and too few draws.
    """
    if (draws := config.get("draws", 0)) != 0 and draws < LEAST_DRAWS:
        raise ValueError(f"--draws {draws}: a posterior has at least {LEAST_DRAWS} draws for each chain, or 0 for none")
    for name in ("particles", "evaluation_seconds"):
        if (value := config.get(name)) is not None and not float(value) > 0:
            raise ValueError(f"--{name}: expected a number above 0, got {value}; leave it out for the default")


def load_weights(path: Path, model: Any, loss: Any, device: str | torch.device | None) -> Fit:
    """Reads stored weights into a model and the critics of its loss.

    Args:
        path: The file.
        model: The model and its guide.
        loss: The loss.
        device: The device of all of them; where the model is if None.

    Raises:
        CheckpointError: If it is damaged, or has the weights of another model.
    """
    if device is not None:
        (model if isinstance(model, torch.nn.Module) else model.guide).to(device)
    try:
        fitted = Fit.load(path, model.model, model.guide, loss=loss, device=device)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: not the weights of the model that {CONFIG} describes: {error}") from error
    for term, *_ in getattr(loss, "critics", {}).values() if device is not None else ():
        term.critic.network.to(device)
    return fitted


def method_of(config: Mapping[str, Any], folder: str | os.PathLike = "config.yaml") -> Method:
    """The method that a configuration names.

    Args:
        config: The configuration.
        folder: Where it was read, for the error.

    Returns:
        The row of `METHODS`.

    Raises:
        ValueError: If there is no method of this name.
    """
    name = config["method"]
    if name not in METHODS:
        raise ValueError(f"{folder}: there is no method {name!r}; expected one of {', '.join(METHODS)}")
    return METHODS[name]
