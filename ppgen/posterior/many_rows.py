"""``guide="auto"`` on many rows: a subset of them with control variates, as large as its measured error asks for."""

import dataclasses
from typing import Any, TypeVar

import torch
from pyro.infer import config_enumerate
from torch import Tensor

from ppgen.infer.autoguide.stored_draws import AutoDraws
from ppgen.posterior.gaussians import GaussianBatch
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.newton import ELBO_DRAWS, LocalGaussians, local_elbo
from ppgen.posterior.row_chunks import RowChunks, split_by_rows
from ppgen.posterior.row_subset import RowSubset, anchored
from ppgen.tracing.double_precision import DoublePrecision
from ppgen.training.result import Fitted
from ppgen.utils.budget import Budget
from ppgen.utils.user_warnings import warn_user

__all__ = ["MAX_ROW_ERROR", "ManyRows", "on_row_subset"]

ROWS = 5000  # of the first subset; of twice as many rows or less, all are used
GROWTH = 4  # of a subset whose error is too large
MAX_ROW_ERROR = 0.1  # nats, standard deviation of an estimate of log p over draws of the posterior
CHECKED = 64  # draws at which that is measured

F = TypeVar("F", bound=Fitted)


class ManyRows:
    """Estimates of log p from subsets of rows.

    Args:
        chunks: all rows.
        generator: the source of random numbers.

    Attributes:
        scaled: the log density of the subset alone, scaled to all rows, in which modes are looked for.
        subset: the program on the subset, with control variates, after `anchor`.
        estimate: its log density.
        error: the standard deviation of the estimate, in nats, after `serves`.
    """

    def __init__(self, chunks: RowChunks, generator: torch.Generator) -> None:
        self.chunks, self.error = chunks, float("nan")
        self._order = torch.randperm(chunks.size, generator=generator)
        self.take(ROWS)

    @classmethod
    def of(cls, whole: UnconstrainedLogDensity, generator: torch.Generator, budget: Budget) -> "ManyRows | None":
        """Many rows of a program; None if there are few, or they are not independent given the latents.

        Args:
            whole: its log density.
            generator: the source of random numbers.
            budget: shows what is being done.
        """
        lengths = [len(part) for part in whole.args if isinstance(part, Tensor) and part.dim()]
        if max(lengths, default=0) <= 2 * ROWS:
            return None
        budget.show("splitting log p by rows")
        chunks = split_by_rows(whole)
        return None if chunks is None else cls(chunks, generator)

    def anchor(self, modes: GaussianBatch, budget: Budget) -> None:
        """Moves modes of the subset to those of all rows, which are the control variates.

        Args:
            modes: Gaussians at the modes of `scaled`.
            budget: the time.
        """
        self._all_rows = anchored(self.chunks, modes, budget)
        self._estimate()

    def modes(self, generator: torch.Generator) -> LocalGaussians:
        """The modes of all rows, with the ELBO of a Gaussian at each.

        Args:
            generator: the source of random numbers.
        """
        at = self._all_rows.modes
        noise = torch.randn(ELBO_DRAWS // 2, at.center.shape[-1], generator=generator, dtype=at.center.dtype)
        elbo = local_elbo(self.estimate, at, torch.cat([noise, -noise]))
        return LocalGaussians(at.center, at.root, elbo, 0)

    def serves(self, u: Tensor, generator: torch.Generator, budget: Budget) -> bool:
        """Whether the subset is large enough, or as large as it can be; a larger one is taken if not.

        Args:
            u: draws of a fit, (k, dim).
            generator: the source of random numbers.
            budget: the time.
        """
        u = u[torch.randperm(len(u), generator=generator)[:CHECKED]]
        difference = self.chunks.log_prob(
            u, budget.part(1.0, "error of the subset of rows").show
        ) - self.estimate.log_prob(u)
        difference = difference[difference.isfinite()]
        self.error = float(difference.std()) if len(difference) > 1 else float("inf")
        if self.error <= MAX_ROW_ERROR:
            return True
        if not budget.left or GROWTH * self.rows > self.chunks.size // 2:
            warn_user(
                f"the importance weights use {self.rows} of {self.chunks.size} rows, which estimate log p with a "
                f"standard deviation of {self.error:.2g} nats at draws of the posterior, above {MAX_ROW_ERROR}"
            )
            return True
        self.take(GROWTH * self.rows)
        self._estimate()
        return False

    @property
    def rows(self) -> int:
        """The number of rows of the subset."""
        return len(self._index)

    @property
    def description(self) -> dict[str, Any]:
        """What is stored with a fit, as JSON values."""
        return {"subset": self.rows, "all": self.chunks.size, "error": self.error}

    def take(self, count: int) -> None:
        """Takes a subset of so many rows.

        Args:
            count: how many.
        """
        self._index = self._order[:count].sort().values
        program = self.chunks.program(row_weight=self.chunks.size / count)
        self.scaled = UnconstrainedLogDensity(program, self.chunks.args(self._index))

    def _estimate(self) -> None:
        self.subset = RowSubset(self.chunks, self._index, self._all_rows.minus(self.scaled))
        self.estimate = UnconstrainedLogDensity(self.subset, self.subset.args)


def on_row_subset(fit: F, data: tuple[Any, ...]) -> tuple[F, tuple[Any, ...]]:
    """A fit of many rows and its data, with the subset of rows in the place of all; any other fit or data as they are.

    Args:
        fit: the fit.
        data: the arguments of its programs.
    """
    if "rows" not in fit.metadata or any(part is None for part in data):
        return fit, data
    if fit.row_subset is None:  # a loaded fit
        fit.row_subset = _rebuilt(fit, data)
    if fit.row_subset is None or not fit.row_subset.is_of(data):
        return fit, data
    model: Any = DoublePrecision(fit.row_subset)
    if fit.metadata["guide"]["discrete"]:
        model = config_enumerate(model)
    rows = fit.metadata["rows"]
    about = (
        f"a random subset, {rows['subset']} of {rows['all']}; log p is that of all rows, by control variates, with a "
        f"standard deviation of {rows['error']:.2g} nats"
    )
    metadata = fit.metadata | {"rows": rows | {"about": about}}
    return dataclasses.replace(fit, model=model, example=fit.row_subset.args, metadata=metadata), fit.row_subset.args


def _rebuilt(fit: Fitted, data: tuple[Any, ...]) -> RowSubset | None:
    """The program on a subset of rows, as `find_posterior` made it, at the modes that the guide has."""
    with fit.eval_mode(fit.best), torch.no_grad():
        whole = UnconstrainedLogDensity(fit.model, data)
        many = ManyRows.of(whole, torch.Generator().manual_seed(0), Budget())
        if many is None or many.chunks.size != fit.metadata["rows"]["all"]:
            return None
        many.take(fit.metadata["rows"]["subset"])
        many.anchor(_gaussians_of(fit.guide), Budget())
        return many.subset


def _gaussians_of(guide: Any) -> GaussianBatch:
    """The Gaussians of a guide, or one of the moments of its stored draws."""
    if isinstance(guide, AutoDraws):
        root = torch.linalg.cholesky(torch.atleast_2d(guide.draws.mT.cov()))
        return GaussianBatch(guide.draws.mean(0)[None], root[None])
    root = guide.scale[..., None] * guide.scale_tril
    return GaussianBatch(torch.atleast_2d(guide.loc), root.reshape(-1, *root.shape[-2:]))
