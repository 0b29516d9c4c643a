"""`load`: a trained model from its run folder, which takes and gives data in the units of their source."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from ppgen.models.latent_flow import GaussianFlow
from ppgen.models.protocols import AdaptsDomains, Decodes, Encodes, HasLogEvidence, HasLogProb, Reconstructs, Samples
from ppgen.runs.folder import unused_folder
from ppgen.runs.lock import FolderLock
from ppgen.runs.run import Run
from ppgen.runs.training import continued, train
from ppgen.runs.units import Units
from ppgen.utils.budget import rows_at_a_time
from ppgen.utils.means import mean as mean_of

if TYPE_CHECKING:
    from ppgen.diagnostics import Verdict

__all__ = ["Trained", "load"]

Method = TypeVar("Method", bound=Callable[..., Any])


class _Needs:
    """A method that a trained model has if the model has a capability; otherwise it is an AttributeError to name it."""

    def __init__(self, method: Callable[..., Any], capability: type) -> None:
        self.method, self.capability, self.__doc__ = method, capability, method.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, trained: Trained | None, owner: type) -> Any:
        if trained is None:
            return self.method
        if not isinstance(trained.run.model, self.capability):
            raise AttributeError(
                f"{trained.run.folder}: a run of {trained.run.config['method']!r} has no {self.name}; it has "
                f"{', '.join(trained.methods())}"
            )
        return MethodType(self.method, trained)


def needs(capability: type) -> Any:
    """Marks a method that needs a capability of the model, a protocol of `ppgen.models.protocols`."""

    def mark(method: Method) -> Method:
        return cast(Method, _Needs(method, capability))

    return mark


class Trained:
    """A trained model. Its methods are those that the model has; `methods` lists them.

    Rows x are (n, *event_shape) in the units of the source: a table has the units of its file, images are gray levels
    as integers, or numbers from 0 to 1. Labels are names or numbers as in the source. Results are NumPy arrays.

    Args:
        run: the run.

    Attributes:
        run: the run, with its folder, its configuration, the model and the `ppgen.Fit`.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def __repr__(self) -> str:
        return f"Trained({self.run.config['method']!r}, {str(self.run.folder)!r}: {', '.join(self.methods())})"

    def __dir__(self) -> list[str]:
        lacking = {name for name, value in vars(Trained).items() if isinstance(value, _Needs)} - set(self.methods())
        return [name for name in super().__dir__() if name not in lacking]

    def methods(self) -> list[str]:
        """The names of the methods that this model has."""
        members = {name: member for name, member in vars(Trained).items() if name[0] != "_" and name != "methods"}
        methods = {name: member for name, member in members.items() if not isinstance(member, property)}
        return [k for k, v in methods.items() if isinstance(self.run.model, getattr(v, "capability", object))]

    @property
    def numbers(self) -> dict[str, Any]:
        """The results on held-out data, as in the report: numbers, texts, or pairs of a number and its error."""
        return self.run.numbers

    @needs(Samples)
    def sample(self, n: int, *, label: Any = None, mean: bool = False, seed: int = 0, **how: Any) -> np.ndarray:
        """Draws n rows (n, *event_shape).

        Args:
            n: the number of rows.
            label: for a conditional model, the label of all rows or of each.
            mean: whether to return E[x | z] in place of x.
            seed: the random seed.
            **how: options of the sampler of a diffusion model: ``sampler``, ``steps``, ``guidance``.
        """
        y = None if label is None else self._units.label_numbers(label, n)
        return self.run.sample(n, label=y, mean=mean, seed=seed, **how)

    @needs(Encodes)
    def encode(self, x: Any, y: Any = None, *, mean: bool = True, seed: int = 0) -> np.ndarray:
        """The codes z (n, latent_dim) of rows: E[z | x], or with ``mean=False`` draws.

        The mean of a posterior that is a flow is not known; the image of the mean of its base replaces it.

        Args:
            x: rows.
            y: their labels, for a conditional model.
            mean: whether to return means.
            seed: the random seed.
        """

        def code(*rows: Tensor) -> Tensor:
            posterior = self.run.model.encode(*rows)
            if not mean:
                return posterior.sample()
            return posterior.center if isinstance(posterior, GaussianFlow) else mean_of(posterior)

        with self._drawing(seed):
            return self._in_batches(code, *self._rows(x, y, seed))

    @needs(Decodes)
    def decode(self, z: Any, y: Any = None, *, mean: bool = True, seed: int = 0) -> np.ndarray:
        """The rows of codes: E[x | z], or with ``mean=False`` draws.

        Args:
            z: codes (n, latent_dim).
            y: labels, for a conditional model.
            mean: whether to return means.
            seed: the random seed.
        """
        codes = torch.as_tensor(np.asarray(z), dtype=torch.get_default_dtype(), device=self._units.device)
        labels = () if y is None else (self._units.label_numbers(y, len(codes)),)

        def decode(*codes: Tensor) -> Tensor:
            likelihood = self.run.model.decode(*codes)
            return mean_of(likelihood) if mean else likelihood.sample()

        with self._drawing(seed):
            return self._units.from_model(torch.as_tensor(self._in_batches(decode, codes, *labels)))

    @needs(Reconstructs)
    def reconstruct(self, x: Any, y: Any = None, *, seed: int = 0) -> np.ndarray:
        """Rows, encoded and decoded.

        Args:
            x: rows.
            y: their labels, for a conditional model.
            seed: the random seed.
        """
        with self._drawing(seed):
            rows = self._in_batches(self.run.model.reconstruct, *self._rows(x, y, seed))
            return self._units.from_model(torch.as_tensor(rows))

    @needs(HasLogProb)
    def log_prob(self, x: Any, y: Any = None, *, seed: int = 0, **how: Any) -> np.ndarray:
        """The log density log p(x) of rows, (n,) in nats in the units of the source.

        Args:
            x: rows.
            y: their labels, for a conditional model.
            seed: the random seed, for densities that are estimated.
            **how: options of the model's ``log_prob``.
        """
        with self._drawing(seed):
            log_prob = partial(self.run.model.log_prob, **how)
            return self._in_batches(log_prob, *self._rows(x, y, seed)) + self._log_det

    @needs(HasLogEvidence)
    def log_evidence(self, x: Any, y: Any = None, *, particles: int = 100, seed: int = 0) -> np.ndarray:
        """The log evidence log p(x) of rows, by importance sampling from the encoder: (n,) nats in the source's units.

        Args:
            x: rows.
            y: their labels, for a conditional model.
            particles: the number of importance samples.
            seed: the random seed.
        """
        with self._drawing(seed):
            rows = self._rows(x, y, seed)
            return self.run.model.log_evidence(*rows, particles=particles).numpy(force=True) + self._log_det

    @needs(AdaptsDomains)
    def predict(self, x: Any, *, seed: int = 0) -> np.ndarray:
        """The most probable labels (n,) of rows, as the source writes them.

        Args:
            x: rows.
            seed: the random seed, for a Bayesian classifier.
        """
        with self._drawing(seed):
            return self._units.label_names(self.run.model.predict(self._units.to_model(x, seed=seed)))

    def to_arviz(self, *data: Any, **options: Any) -> Any:
        """Draws from the posterior on rows, for ArviZ, scaled as the model sees them; see `ppgen.Fit.to_arviz`.

        Args:
            *data: rows, and for a conditional model their labels; without any, the held-out rows that the folder has.
            **options: options of `ppgen.Fit.to_arviz`.
        """
        rows = self.run.arguments(*self._rows(*data)) if data else self.run.diagnosed_rows()
        return self.run.fit.to_arviz(*rows, **options)

    def diagnose(self, *, draws: int = 500, seed: int = 0) -> Verdict:
        """Decides whether the posterior of the held-out rows that the folder has can be trusted.

        Args:
            draws: the number of draws.
            seed: the random seed.
        """
        return self.run.diagnose(draws=draws, seed=seed)

    def report(self, *, evaluate: bool = False, seconds: float | None = None) -> Path:
        """Computes the results that the folder lacks and rewrites its report.

        Args:
            evaluate: whether to compute all results again, which needs the data.
            seconds: the time that this may take, `math.inf` for all held-out rows; that of the training if left out.

        Returns:
            The path of the report.
        """
        with FolderLock(self.run.folder):
            return self.run.folder / self.run.finish(again=evaluate, seconds=seconds)[-1]

    def train(
        self,
        epochs: int | None = None,
        *,
        steps: int | None = None,
        out: str | os.PathLike | None = None,
        progress: bool = True,
    ) -> Trained:
        """Trains on from these weights, in a new run folder; this one does not change.

        The options are those of the run, but there is one chain, of other random numbers, and a growing network keeps
        its level. Optimizers and the schedule of the learning rate start over; weights of the loss that followed a
        schedule keep their last value.

        Args:
            epochs: the number of passes over the data.
            steps: the number of steps instead.
            out: the new folder; if left out, the name of this one with "-continued".
            progress: whether to show a progress bar on a terminal.

        Returns:
            The new trained model.

        Raises:
            ValueError: unless one of epochs and steps is given.
            ppgen.runs.run.DataMissingError: if the data cannot be read.
            ppgen.runs.run.DataChangedError: if they have changed, unless `load` was called with ``changed=True``.
        """
        folder = self.run.folder.resolve()
        target = unused_folder(folder.with_name(f"{folder.name}-continued")) if out is None else Path(out)
        config = continued(self.run, epochs=epochs, steps=steps)
        return Trained(train(config, out=target, start=self.run, progress=progress))

    @property
    def _units(self) -> Units:
        return self.run.units

    @property
    def _log_det(self) -> float:
        return self._units.data.scaler.log_det()

    def _rows(self, x: Any, y: Any = None, seed: int = 0) -> tuple[Tensor, ...]:
        rows = self._units.to_model(x, seed=seed)
        return (rows,) if y is None else (rows, self._units.label_numbers(y, len(rows)))

    def _in_batches(self, function: Callable[..., Tensor], *rows: Tensor) -> np.ndarray:
        """The values of a function of rows, of which so many are computed at a time that memory stays the same."""
        size = rows_at_a_time(math.prod(self._units.data.event_shape))
        batches = zip(*(part.split(size) for part in rows), strict=True)
        return np.concatenate([function(*batch).numpy(force=True) for batch in batches])

    def _drawing(self, seed: int) -> Any:
        return self.run.drawing(seed)


def load(folder: str | os.PathLike, *, device: str | torch.device | None = None, changed: bool = False) -> Trained:
    """Loads a trained model from its run folder, which may be a copy from another machine. Its data are not needed.

    Args:
        folder: the run folder.
        device: the device of the model; the CPU if left out, wherever it was trained.
        changed: whether `Trained.report` and `Trained.train` use the data as they are now, if they have changed since
            the training.

    Raises:
        FileNotFoundError: if this is not the folder of a trained model.
        ValueError: if an earlier version of ppgen wrote it, or this machine does not have the device.
        ppgen.infer.checkpoint_file.CheckpointError: if a file is damaged.

    Example:
        >>> import contextlib
        >>> import tempfile
        >>> import ppgen
        >>> from ppgen.runs.cli import main
        >>> folder = tempfile.mkdtemp()
        >>> words = f"train maf moons --fit.steps 3 --model.hidden [8] --progress false --out {folder}"
        >>> with contextlib.redirect_stdout(None):
        ...     status = main(words.split())
        >>> moons = ppgen.load(folder)
        >>> moons.methods()
        ['sample', 'log_prob', 'to_arviz', 'diagnose', 'report', 'train']
        >>> x = moons.sample(5)
        >>> x.shape, moons.log_prob(x).shape
        ((5, 2), (5,))
    """
    return Trained(Run.load(folder, device=device, changed=changed))
