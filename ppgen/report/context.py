"""What the sections of a report read: a fit, its posterior and verdict, and for some reports a model and its data."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppgen.data import Data, Split
from ppgen.diagnostics import Calibration, Verdict
from ppgen.models import DANN, UnnormalizedDensity, mean
from ppgen.models.protocols import HasPrior
from ppgen.report.figures.images import MAX_IMAGES, value_range
from ppgen.training.result import Fitted
from ppgen.training.training_failures import TrainingWarning
from ppgen.utils.arviz_versions import group
from ppgen.utils.budget import Budget, rows_at_a_time

__all__ = ["AdaptationContext", "DensityContext", "FitContext", "PosteriorContext", "RunContext"]


@dataclass(frozen=True, kw_only=True)
class FitContext:
    """A fit, and what is known about it.

    Attributes:
        fit: the fit.
        question: the question that the report answers.
        unit: the unit of the loss.
        numbers: results for the summary, by name with the unit: a number, text, or a pair (value, standard error).
        idata: the result of `ppgen.diagnostics.to_arviz`; None if nothing was drawn.
        verdict: the verdict on these draws.
        training_warnings: failures of adversarial training; those that the fit reports if None.
        config: the configuration, as plain values that YAML can hold.
    """

    fit: Fitted
    question: str = ""
    unit: str = "nats per datum"
    numbers: Mapping[str, Any] = field(default_factory=dict)
    idata: Any = None
    verdict: Verdict | None = None
    training_warnings: Sequence[TrainingWarning] | None = None
    config: Mapping[str, Any] | None = None

    def group(self, name: str) -> xr.Dataset | None:
        """A group of the draws; None if it is missing or empty."""
        found = None if self.idata is None else group(self.idata, name)
        return found if found is not None and found.data_vars else None


@dataclass(frozen=True, kw_only=True)
class RunContext(FitContext):
    """A fit of a generative model, its model and its data.

    Attributes:
        model: the model, which holds the weights to report on.
        data: the data that it was fitted to.
        stages: what a growing model drew from the same latent codes at the end of each stage.
        seed: the seed of what the sections draw.
        budget: the time that the sections may take together; where it is short they use fewer rows.
    """

    model: Any
    data: Data
    stages: Sequence[np.ndarray] = ()
    seed: int = 0
    budget: Budget = field(default_factory=Budget)

    @property
    def images(self) -> bool:
        """Whether the data are images."""
        return len(self.data.event_shape) == 3

    @property
    def conditional(self) -> bool:
        """Whether the model is given labels."""
        return getattr(self.model, "num_classes", None) is not None

    @property
    def split(self) -> str:
        """The name of the held-out split, or "train" if there is none."""
        return next(name for name in ("test", "validation", "train") if len(self.data.rows[name]))

    @property
    def held_out(self) -> Split:
        """The held-out split."""
        return getattr(self.data, self.split)

    @cached_property
    def figure_options(self) -> dict[str, Any]:
        """The options of `figures.samples` that depend on the data."""
        options: dict[str, Any] = {"columns": self.data.columns}
        if self.images:
            options["limits"] = value_range(self.in_source_units(self.data.train.x[:MAX_IMAGES]))
        return options

    @property
    def data_in_words(self) -> str:
        """The number and the kind of the rows."""
        shape = self.data.event_shape
        kind = f"images of shape {shape}" if self.images else f"rows of {shape[0]} columns"
        splits = ", ".join(f"{len(rows)} {name}" for name, rows in self.data.rows.items())
        return f"{len(self.data.x)} {kind}: {splits}"

    def tensors(self, split: Split, count: int) -> tuple[Tensor, ...]:
        """The first rows of a split, with their labels if the model is given labels."""
        parameters = self.model.parameters() if isinstance(self.model, torch.nn.Module) else ()
        device = next((p.device for p in parameters), torch.device("cpu"))
        parts = (split.x, split.y) if self.conditional and split.y is not None else (split.x,)
        return tuple(torch.as_tensor(part[:count], device=device) for part in parts)

    def batches(self, total: int, budget: Budget, *, least: int = 0, expected: float = 0.0) -> Iterator[slice]:
        """Batches of rows, of a size that is kept in memory, until all are done or the time is over."""
        numbers = math.prod(self.data.event_shape)
        return budget.batches(total, largest=rows_at_a_time(numbers), least=least, expected=expected)

    def draw(
        self, n: int, labels: Sequence[Tensor], budget: Budget, *, mean: bool = False, least: int = 0
    ) -> np.ndarray:
        """Samples of the model in the units of the source, n or as many as there is time for.

        Args:
            n: how many.
            labels: their labels (n,), if the model is given labels.
            budget: the time.
            mean: whether to return the means E[x | z].
            least: how many to draw in any case.
        """
        options = {"mean": True} if mean else {}
        parts = [
            self.in_source_units(self.model.sample(rows.stop - rows.start, *(y[rows] for y in labels), **options))
            for rows in self.batches(n, budget, least=least)
        ]
        return np.concatenate(parts) if parts else np.empty((0, *self.data.event_shape))

    def in_source_units(self, x: Tensor | np.ndarray) -> np.ndarray:
        """Rows x in the units of the source, which the model sees scaled."""
        return self.data.scaler.inverse(x.numpy(force=True) if isinstance(x, Tensor) else x)

    def flow_prior(self, n: int) -> Any:
        """The prior of n latent codes if it is a flow; None if it is N(0, I)."""
        distribution = self.model.prior(n) if isinstance(self.model, HasPrior) else None
        return distribution if hasattr(distribution, "transform") else None

    def decode(self, z: np.ndarray) -> np.ndarray:
        """The decoder's means, in the units of the source, at the codes that a flow prior makes of z ~ N(0, I)."""
        like = self.tensors(self.data.train, 1)[0]
        codes = torch.as_tensor(z, dtype=torch.get_default_dtype(), device=like.device)
        prior = self.flow_prior(len(codes))
        codes = codes if prior is None else prior.transform(codes)
        batches = codes.split(rows_at_a_time(math.prod(self.data.event_shape)))
        return np.concatenate([self.in_source_units(mean(self.model.decode(batch))) for batch in batches])


@dataclass(frozen=True, kw_only=True)
class PosteriorContext(FitContext):
    """A fit from Python, and a calibration of its inference.

    Attributes:
        calibration: the result of `ppgen.diagnostics.sbc` or `sbc_of`; None if there is none.
    """

    calibration: Calibration | None = None


@dataclass(frozen=True, kw_only=True)
class AdaptationContext(FitContext):
    """A fit of a classifier to a labeled source and an unlabeled target.

    Attributes:
        model: the model, which holds the weights to report on.
        held_out: rows of "source" and "target", each with its labels or None.
        domains: the names of source and target.
        label_names: the names of the labels; their numbers if None.
    """

    model: DANN
    held_out: Mapping[str, tuple[Tensor, np.ndarray | None]]
    domains: tuple[str, str]
    label_names: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class DensityContext(FitContext):
    """A fit of a flow to an unnormalized density in the plane.

    Attributes:
        target: the unnormalized density.
        side: the coordinates (m,) of a grid along either axis.
        densities: the densities (m, m) on the grid by name, the first index along x[0].
        draws: draws (n, 2) of the flow.
    """

    target: UnnormalizedDensity
    side: np.ndarray
    densities: Mapping[str, np.ndarray]
    draws: np.ndarray
