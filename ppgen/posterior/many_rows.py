"""``guide="auto"`` on many rows or groups: a subset with control variates, as large as its measured error asks for."""

import dataclasses
import math
from typing import Any, TypeVar

import torch
from pyro.infer import config_enumerate
from torch import Tensor

from ppgen.infer.autoguide.stored_draws import AutoDraws
from ppgen.posterior.control_variate import anchored
from ppgen.posterior.directions import Directions
from ppgen.posterior.gaussians import GaussianBatch
from ppgen.posterior.group_chunks import GroupChunks, split_by_groups
from ppgen.posterior.group_guide import GroupGuide
from ppgen.posterior.guides import programs_of, rebuild
from ppgen.posterior.laplace import Laplace
from ppgen.posterior.latent_field import MOST_GLOBAL, UnreadableStructure, find_field
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.many_latents import FieldProgram, quasi_newton_modes, surrogate_of
from ppgen.posterior.newton import ELBO_DRAWS, LocalGaussians, local_elbo
from ppgen.posterior.row_chunks import RowChunks, split_by_rows
from ppgen.tracing.double_precision import DoublePrecision
from ppgen.tracing.sites import Program, quote_names
from ppgen.training.result import Fitted
from ppgen.utils.budget import Budget
from ppgen.utils.user_warnings import warn_user

__all__ = ["MAX_ROW_ERROR", "ManyRows", "on_row_subset", "rebuilt_groups"]

MANY_LATENTS = 500  # from which latents of groups are integrated out
GROWTH = 4  # of a subset whose error is too large
MAX_ROW_ERROR = 0.1  # nats, standard deviation of an estimate of log p over draws of the posterior

F = TypeVar("F", bound=Fitted)


class ManyRows:
    """Estimates of log p from subsets of rows, or of groups whose latents are integrated out.

    Args:
        chunks: all rows or groups.
        generator: the source of random numbers.

    Attributes:
        scaled: the log density of a subset, scaled to all, in which modes are looked for.
        subset: the program on the subset, with control variates, after `anchor`.
        estimate: its log density.
        error: the standard deviation of the estimate, in nats, after `serves`.
    """

    chunks: Any  # of groups, of rows, or the density with a field integrated out

    def __init__(self, chunks: GroupChunks | RowChunks, generator: torch.Generator) -> None:
        self.chunks, self.error = chunks, float("nan")
        self._order = torch.randperm(chunks.size, generator=generator)
        self.take(chunks.searched)

    @classmethod
    def of(cls, whole: UnconstrainedLogDensity, generator: torch.Generator, budget: Budget) -> "ManyRows | None":
        """Many groups or rows of a program; None if there are few, or they are not independent given other latents.

        Args:
            whole: its log density.
            generator: the source of random numbers.
            budget: shows what is being done.
        """
        budget.show("splitting log p")
        groups = split_by_groups(whole) if whole.dim >= MANY_LATENTS else None
        of_groups = 0 if groups is None else groups.size * groups.groups.width
        if whole.dim >= MANY_LATENTS and whole.dim - of_groups > MOST_GLOBAL:  # such as those of crossed effects
            try:
                return ManyLatents(Laplace(find_field(whole)))
            except UnreadableStructure:
                pass
        chunks = split_by_rows(whole) if groups is None else groups
        return None if chunks is None or chunks.size <= chunks.searched else cls(chunks, generator)

    def anchor(self, modes: GaussianBatch, budget: Budget) -> None:
        """Moves modes of the subset to those of all rows, which are the control variates.

        Args:
            modes: Gaussians at the modes of `scaled`.
            budget: the time.
        """
        self.chunks.begin_at(modes.center[0])
        self._at = anchored(self.chunks, modes, budget)
        self.take(self.chunks.first)
        self._estimate()

    def modes(self, generator: torch.Generator) -> LocalGaussians:
        """The modes of all rows, with the ELBO of a Gaussian at each.

        Args:
            generator: the source of random numbers.
        """
        at = self._at.modes
        noise = torch.randn(ELBO_DRAWS // 2, at.center.shape[-1], generator=generator, dtype=at.center.dtype)
        elbo = local_elbo(self.estimate, at, torch.cat([noise, -noise]))
        return LocalGaussians(at.center, at.root, elbo, 0)

    def grow(self, generator: torch.Generator, budget: Budget) -> None:
        """Takes as many rows as draws of the Gaussian at the first mode ask for.

        Args:
            generator: the source of random numbers.
            budget: the time.
        """
        at = self._at.modes
        noise = torch.randn(self.chunks.checked, at.center.shape[-1], generator=generator, dtype=at.center.dtype)
        u = at.center[0] + noise @ at.root[0].mT
        exact = self._exact(u, budget)
        while self._error(exact, u) > MAX_ROW_ERROR and budget.left and self.rows < self.chunks.size:
            self._take_more()

    def serves(self, u: Tensor, generator: torch.Generator, budget: Budget) -> bool:
        """Whether the subset is large enough, or as large as it can be; a larger one is taken if not.

        Args:
            u: draws of a fit, (k, dim).
            generator: the source of random numbers.
            budget: the time.
        """
        u = u[torch.randperm(len(u), generator=generator)[: self.chunks.checked]]
        self.error = 0.0
        if self.rows < self.chunks.size:
            self.error = self._error(self._exact(u, budget), u)
            if self.error > MAX_ROW_ERROR and budget.left:
                self._take_more()
                return False
        subset: Any = self.subset
        self.error = math.hypot(self.error, self.chunks.other_error(subset, u))
        if self.error > MAX_ROW_ERROR:
            warn_user(
                f"the importance weights use {self._used}, which estimate log p with a standard deviation of "
                f"{self.error:.2g} nats at draws of the posterior, above {MAX_ROW_ERROR}"
            )
        return True

    def _exact(self, u: Tensor, budget: Budget) -> Tensor:
        """The values of log p on all rows at points (n, dim): (n,)."""
        return self.chunks.log_prob(u, budget.part(1.0, f"error of the subset of {self.chunks.unit}").show)

    def _error(self, exact: Tensor, u: Tensor) -> float:
        """The standard deviation of the estimate's error at points (n, dim), in nats."""
        difference = exact - self.estimate.log_prob(u)
        difference = difference[difference.isfinite()]
        return float(difference.std()) if len(difference) > 1 else float("inf")

    def _take_more(self) -> None:
        more = GROWTH * self.rows
        self.take(more if more <= self.chunks.size // 2 else self.chunks.size)
        self._estimate()

    @property
    def program(self) -> UnconstrainedLogDensity:
        """The log density of the program for which a guide is built: that on all rows, or that of global latents."""
        return self.estimate if self.integrates else self.chunks.whole

    @property
    def integrates(self) -> bool:
        """Whether latents of groups are integrated out."""
        return self.groups is not None

    @property
    def groups(self) -> GroupChunks | Laplace | None:
        """All groups whose latents are integrated out, or a field of such latents."""
        return None if isinstance(self.chunks, RowChunks) else self.chunks

    def without_values(self) -> Any:
        """The program of the global latents, as far as a guide of them needs it."""
        return self.chunks.estimate(torch.arange(self.rows), None)

    def finish(self, fit: Fitted) -> None:
        """Gives a fit of `program` the latents of groups, and the subset by which it is judged.

        Args:
            fit: the fit, which is changed.
        """
        fit.row_subset, fit.metadata["rows"] = self.subset, self.description
        if self.groups is not None:
            whole = self.groups.whole
            fit.metadata["rows"]["integrated"] = list(self.groups.groups.local)
            fit.model, fit.example = programs_of(whole.model, []).model, whole.args
            fit.guide = GroupGuide(fit.guide, self.groups)

    @property
    def rows(self) -> int:
        """The number of rows of the subset."""
        return len(self._index)

    @property
    def _used(self) -> str:
        return f"{self.rows} of {self.chunks.size} {self.chunks.unit}"

    @property
    def description(self) -> dict[str, Any]:
        """What is stored with a fit, as JSON values."""
        return {"unit": self.chunks.unit, "subset": self.rows, "all": self.chunks.size, "error": self.error}

    def take(self, count: int) -> None:
        """Takes a subset of so many rows.

        Args:
            count: how many.
        """
        self._index = self._order[:count].sort().values
        self.scaled = self.chunks.scaled(self._index)

    def _estimate(self) -> None:
        self.subset = self.chunks.estimate(self._index, self._at.minus(self.scaled))
        self.estimate = UnconstrainedLogDensity(self.subset, self.subset.args)


class ManyLatents(ManyRows):
    """A surrogate of the density of global latents, with a field of others integrated out.

    Args:
        laplace: that density.
    """

    def __init__(self, laplace: Laplace) -> None:
        self.chunks, self.error = laplace, float("nan")
        self.scaled = UnconstrainedLogDensity(self.without_values(), laplace.whole.args)

    def finish(self, fit: Fitted) -> None:
        """Gives a fit of `program` all latents, and what it is judged by.

        Args:
            fit: the fit, which is changed.
        """
        super().finish(fit)
        fit.metadata["rows"]["skew"] = self.chunks.skew

    def find_modes(self, starts: Tensor, budget: Budget) -> LocalGaussians:
        """Gaussians at modes.

        Args:
            starts: where the search begins, (n, D).
            budget: the time.
        """
        return quasi_newton_modes(self.chunks, starts, budget)

    def without_values(self) -> FieldProgram:
        """The program of the global latents, as far as a guide of them needs it."""
        return FieldProgram(self.chunks, None)

    @property
    def rows(self) -> int:
        """The number of points of the surrogate."""
        return self._count

    @property
    def _used(self) -> str:
        return f"Laplace's approximation for {self.chunks.size} latents, at {self.rows} points of a surrogate"

    def take(self, count: int) -> None:
        """Takes so many points.

        Args:
            count: how many.
        """
        self._count = count

    def _estimate(self) -> None:
        at = self._at
        self.subset = FieldProgram(self.chunks, surrogate_of(self.chunks, at.modes, at.value, self._count, Budget()))
        self.estimate = UnconstrainedLogDensity(self.subset, self.subset.args)


def on_row_subset(fit: F, data: tuple[Any, ...], *, groups: bool = True) -> tuple[F, tuple[Any, ...]]:
    """A fit of many rows and its data, with the subset of rows in the place of all; any other fit or data as they are.

    Args:
        fit: the fit.
        data: the arguments of its programs.
        groups: whether a fit whose latents of groups were integrated out becomes that of its global latents.
    """
    if not groups and isinstance(fit.guide, GroupGuide):
        return fit, data
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
    of_subset = (
        f"a random subset, {rows['subset']} of {rows['all']} {rows['unit']}; log p is that of all, by control variates"
    )
    of_field = f"log p is interpolated from {rows['subset']} points, with {rows['all']} latents integrated out"
    about = (
        f"{of_field if rows['unit'] == Laplace.unit else of_subset}, up to a standard deviation of "
        f"{rows['error']:.2g} nats"
    )
    metadata = fit.metadata | {"rows": rows | {"about": about}}
    guide = fit.guide.inner if isinstance(fit.guide, GroupGuide) else fit.guide
    args = fit.row_subset.args
    return dataclasses.replace(fit, model=model, guide=guide, example=args, metadata=metadata), args


def rebuilt_groups(model: Program, described: dict[str, Any], args: tuple) -> tuple[Program, Any, Any]:
    """The model, the guide and the loss of a stored fit whose latents of groups were integrated out.

    Args:
        model: the user's program.
        described: the metadata of the fit.
        args: the data of the fit.

    Raises:
        ValueError: if these are not data of as many groups.
    """
    whole = UnconstrainedLogDensity(Directions(model), args)
    many = ManyRows.of(whole, torch.Generator().manual_seed(0), Budget())
    if many is None or many.groups is None or many.chunks.size != described["rows"]["all"]:
        raise ValueError(
            f"load: the latents {quote_names(described['rows']['integrated'])} of {described['rows']['all']} "
            f"{described['rows']['unit']} were integrated out, which needs the data of the fit: give them, data=(...)"
        )
    program = many.without_values()
    _, inner, loss = rebuild(program, described["guide"], program.args)
    return programs_of(whole.model, []).model, GroupGuide(inner, many.groups), loss


def _rebuilt(fit: Fitted, data: tuple[Any, ...]) -> Any:
    """The program on a subset of rows, as `find_posterior` made it, at the modes that the guide has."""
    with fit.eval_mode(fit.best), torch.no_grad():
        whole = UnconstrainedLogDensity(fit.model, data)
        many = ManyRows.of(whole, torch.Generator().manual_seed(0), Budget())
        if many is None or many.chunks.size != fit.metadata["rows"]["all"]:
            return None
        many.chunks.first = fit.metadata["rows"]["subset"]
        many.anchor(_gaussians_of(fit.guide.inner if isinstance(fit.guide, GroupGuide) else fit.guide), Budget())
        return many.subset


def _gaussians_of(guide: Any) -> GaussianBatch:
    """The Gaussians of a guide, or one of the moments of its stored draws."""
    if isinstance(guide, AutoDraws):
        root = torch.linalg.cholesky(torch.atleast_2d(guide.draws.mT.cov()))
        return GaussianBatch(guide.draws.mean(0)[None], root[None])
    root = guide.scale[..., None] * guide.scale_tril
    return GaussianBatch(torch.atleast_2d(guide.loc), root.reshape(-1, *root.shape[-2:]))
