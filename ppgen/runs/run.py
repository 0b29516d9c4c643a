"""What all kinds of runs have in common.

A kind of run is a subclass of `Run`. It has the options of its command line, loads its data, evaluates its model and
writes its report. The row of a method in `ppgen.runs.methods.METHODS` names the kind.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch
from jsonargparse import ArgumentParser

from ppgen.fitting import Fit
from ppgen.runs.folder import CONFIG, NUMBERS, POSTERIOR, WEIGHTS, read_config
from ppgen.runs.methods import METHODS, Method
from ppgen.runs.options import add_fit_options, add_loss_options, add_model_options, make_loss
from ppgen.runs.parser import complete_config
from ppgen.training.training_failures import TrainingWarning
from ppgen.utils.files import write_atomically

if TYPE_CHECKING:
    from ppgen.diagnostics import Verdict

__all__ = ["Programs", "Run", "method_of"]

DIAGNOSED_ROWS = 256  # at most so many rows have their posterior diagnosed


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

    Attributes:
        folder: Where it is stored.
        config: The contents of ``config.yaml``.
        data: What the model was fitted to.
        model: The model and its guide.
        fit: Their weights and the training history.
    """

    folder: Path
    config: dict[str, Any]
    data: Any
    model: Any
    fit: Fit

    # The command line

    @classmethod
    @abstractmethod
    def add_arguments(cls, parser: ArgumentParser, method: Method) -> None:
        """Adds the arguments of ``ppgen train METHOD``. A subclass adds those of its data and calls this method."""
        parser.add_argument("--out", type=Path, default=None, help="the run folder; default: runs/METHOD-SOURCE")
        parser.add_argument("--lr", type=float, default=1e-3, help="Adam's learning rate for the model and the guide")
        betas = "Adam's decay rates of the moments of the gradient"
        parser.add_argument("--betas", type=tuple[float, float], default=(0.9, 0.999), help=betas)
        particles = "importance samples for the log evidence"
        parser.add_argument("--particles", type=int, default=500, help=particles)
        parser.add_argument("--progress", type=bool, default=True, help="show a progress bar on a terminal")
        add_model_options(parser, method.model_class())
        add_loss_options(parser, method.recipe_function())
        add_fit_options(parser)
        parser.set_defaults({"fit.batch_size": 128, **method.defaults})

    @classmethod
    @abstractmethod
    def sources(cls, config: Mapping[str, Any]) -> list[str]:
        """The data of a run, from which its folder gets its name."""

    # From the configuration to programs and data

    @classmethod
    @abstractmethod
    def load_data(cls, config: dict[str, Any]) -> Any:
        """Loads the data that the configuration names."""

    @classmethod
    @abstractmethod
    def make_model(cls, config: dict[str, Any], data: Any) -> Programs:
        """Makes the model that the configuration describes for these data, with the seed of the configuration."""

    @classmethod
    def loss_arguments(cls, config: dict[str, Any]) -> Mapping[str, Any]:
        """The arguments of the recipe that the kind of run sets: none, unless the model is conditioned on labels."""
        return method_of(config).conditional if config.get("conditional") else {}

    @classmethod
    @abstractmethod
    def rows(cls, config: dict[str, Any], data: Any, split: str) -> tuple[torch.Tensor, ...]:
        """A split, "train", "validation" or "test", as the arguments of the programs."""

    @classmethod
    def make_loss(cls, config: dict[str, Any]) -> Any:
        """Makes the objective that the configuration describes."""
        return make_loss(method_of(config).recipe_function(), config["loss"], **cls.loss_arguments(config))

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Self:
        """Loads a finished run of any kind: makes its programs, loads its data and restores the weights.

        Args:
            folder: The run folder.

        Returns:
            The run, of the kind that its method has.

        Raises:
            FileNotFoundError: If this is not the folder of a finished run, or its data no longer exist.
            ValueError: If an earlier version of ppgen wrote the folder.
            TypeError: If it is a run of another kind than this class.
            ppgen.infer.checkpoint_file.CheckpointError: If the weights are damaged.
        """
        folder = Path(folder)
        config = complete_config(read_config(folder), folder / CONFIG)
        kind = method_of(config, folder).run_class()
        if not issubclass(kind, cls):
            raise TypeError(f"{folder}: expected a {cls.__name__}, got a run of {config['method']!r}: {kind.__name__}")
        return kind.restore(folder, config)

    @classmethod
    def restore(cls, folder: Path, config: dict[str, Any]) -> Self:
        """Makes the run that is stored in a folder with this configuration."""
        data = cls.load_data(config)
        model = cls.make_model(config, data)
        fitted = Fit.load(folder / WEIGHTS, model.model, model.guide, loss=cls.make_loss(config))
        return cls(folder, config, data, model, fitted)

    # Results

    @abstractmethod
    def evaluate(self) -> dict[str, Any]:
        """Evaluates the model on held-out data.

        Returns:
            Numbers by name: a number, a text, or a pair of a number and its standard error.
        """

    @abstractmethod
    def store_posterior(self) -> None:
        """Writes the posterior of held-out data into the folder, if the model has one."""

    @abstractmethod
    def report(self) -> Path:
        """Writes the report; returns its path."""

    @abstractmethod
    def sample(self, n: int, *, label: int | None = None, mean: bool = False, seed: int = 0, **how: Any) -> np.ndarray:
        """Draws n samples from the model.

        Args:
            n: The number of samples.
            label: The label of all samples, for a conditional model.
            mean: Whether to return the means E[x | z] in place of samples.
            seed: The random seed.
            **how: Further options of the model's ``sample``, such as the sampler of a diffusion model.

        Returns:
            An array (n, *event_shape), in the units of the data's source.

        Raises:
            ValueError: For options that the model does not have.
        """

    def diagnosed_rows(self) -> tuple[torch.Tensor, ...]:
        """The data whose posterior `diagnose` examines."""
        return self.rows(self.config, self.data, "train")

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
        return self.fit.diagnose(*(part[:DIAGNOSED_ROWS] for part in self.diagnosed_rows()), draws=draws, seed=seed)

    def training_warnings(self) -> list[TrainingWarning]:
        """The warnings about adversarial training; none for other objectives."""
        return self.fit.training_warnings()

    @property
    def numbers(self) -> dict[str, Any]:
        """The results of `evaluate`, as they are stored."""
        path = self.folder / NUMBERS
        stored = json.loads(path.read_text()) if path.exists() else {}
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
