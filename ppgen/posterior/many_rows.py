"""``guide="auto"`` on many rows or latents: estimates of log p, of as many terms as their measured error asks for."""

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
from ppgen.posterior.many_latents import GlobalProgram, KnownDensity, quasi_newton_modes
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
    """Estimates of log p from subsets of rows.

    Args:
        chunks: all rows.
        generator: the source of random numbers.

    Attributes:
        scaled: the log density of a subset, scaled to all, in which modes are looked for.
        subset: the program on the subset, with control variates, after `anchor`.
        estimate: its log density.
        error: the standard deviation of the estimate, in nats, after `serves`.
    """

    chunks: Any  # of rows, or of groups, or the density with a field integrated out

    def __init__(self, chunks: RowChunks, generator: torch.Generator) -> None:
        self.chunks, self.error = chunks, float("nan")
        self._order = torch.randperm(chunks.size, generator=generator)
        self.take(chunks.searched)

    @classmethod
    def of(
        cls, whole: UnconstrainedLogDensity, generator: torch.Generator, budget: Budget, *, report: bool = False
    ) -> "ManyRows | None":
        """Many groups or rows of a program; None if there are few, or they are not independent given other latents.

        Args:
            whole: its log density.
            generator: the source of random numbers.
            budget: shows what is being done.
            report: whether to warn where many latents cannot be integrated out.
        """
        budget.show("splitting log p")
        groups = split_by_groups(whole) if whole.dim >= MANY_LATENTS else None
        of_groups = 0 if groups is None else groups.size * groups.groups.width
        if whole.dim >= MANY_LATENTS and whole.dim - of_groups > MOST_GLOBAL:  # such as those of crossed effects
            try:
                return ManyLatents(Laplace(find_field(whole)))
            except UnreadableStructure as error:
                if report and groups is None:
                    warn_user(f"the {whole.dim} latents are fitted all together, which takes long, since {error}")
        if groups is not None:
            return ManyLatents(groups)
        chunks = split_by_rows(whole)
        return None if chunks is None or chunks.size <= chunks.searched else cls(chunks, generator)

    def anchor(self, modes: GaussianBatch, budget: Budget) -> None:
        """Moves modes of the subset to those of all rows, which are the control variates.

        Args:
            modes: Gaussians at the modes of `scaled`.
            budget: the time.
        """
        self.chunks.begin_at(modes.center[0])
        self._at, self._budget = anchored(self.chunks, modes, budget), budget
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

    def serves(self, u: Tensor, generator: torch.Generator, budget: Budget) -> bool:
        """Whether the subset is large enough, or as large as it can be; a larger one is taken if not.

        Args:
            u: draws of a fit, (k, dim).
            generator: the source of random numbers.
            budget: the time.
        """
        u = u[torch.randperm(len(u), generator=generator)[: self.chunks.checked]]
        self.error = self._error_at(u, budget.part(1.0, f"error by {self._used}"))
        if self.error > MAX_ROW_ERROR and budget.left and self._take_more():
            self._estimate()
            return False
        self.error = math.hypot(self.error, self.chunks.other_error(u))
        if self.error > MAX_ROW_ERROR:
            warn_user(
                f"the importance weights use {self._used}, which estimate log p with a standard deviation of "
                f"{self.error:.2g} nats at draws of the posterior, above {MAX_ROW_ERROR}"
            )
        return True

    def _error_at(self, u: Tensor, budget: Budget) -> float:
        """The standard deviation of the estimate's error at points (n, dim), in nats."""
        difference = self.chunks.log_prob(u, budget.show) - self.estimate.log_prob(u)
        difference = difference[difference.isfinite()]
        return float(difference.std()) if len(difference) > 1 else float("inf")

    def _take_more(self) -> bool:
        """Takes more rows; returns whether that is worth while."""
        if GROWTH * self.rows > self.chunks.size // 2:
            return False
        self.take(GROWTH * self.rows)
        return True

    @property
    def program(self) -> UnconstrainedLogDensity:
        """The log density of the program for which a guide is built."""
        return self.chunks.whole

    def find_modes(self, starts: Tensor, budget: Budget) -> LocalGaussians | None:
        """Gaussians at modes; None if they are to be found by `scaled`.

        Args:
            starts: where the search begins, (n, D).
            budget: the time.
        """
        return None

    def finish(self, fit: Fitted) -> None:
        """Gives a fit of `program` the subset by which it is judged.

        Args:
            fit: the fit, which is changed.
        """
        fit.row_subset, fit.metadata["rows"] = self.subset, self.description

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
    """A surrogate of the density of global latents, with others integrated out.

    Args:
        chunks: that density. The others are those of groups, or form a field.
    """

    chunks: GroupChunks | Laplace

    def __init__(self, chunks: GroupChunks | Laplace) -> None:
        self.chunks, self.error = chunks, float("nan")
        if isinstance(chunks, GroupChunks):
            self.scaled = chunks.scaled()
        else:
            self.scaled = UnconstrainedLogDensity(self.without_values(), chunks.whole.args)

    def find_modes(self, starts: Tensor, budget: Budget) -> LocalGaussians | None:
        """Gaussians at modes; None for groups, whose modes some of them have."""
        return None if isinstance(self.chunks, GroupChunks) else quasi_newton_modes(self.chunks, starts, budget)

    def without_values(self) -> GlobalProgram:
        """The program of the global latents, as far as a guide of them needs it."""
        return GlobalProgram(self.chunks, None)

    @property
    def program(self) -> UnconstrainedLogDensity:
        """The log density of the global latents."""
        return self.estimate

    def finish(self, fit: Fitted) -> None:
        """Gives a fit of `program` the latents that were integrated out, and the surrogate by which it is judged.

        Args:
            fit: the fit, which is changed.
        """
        super().finish(fit)
        whole = self.chunks.whole
        fit.metadata["rows"]["integrated"] = list(self.chunks.groups.local)
        if isinstance(self.chunks, Laplace):
            fit.metadata["rows"] |= self.chunks.corrections
        fit.model, fit.example = programs_of(whole.model, []).model, whole.args
        fit.guide = GroupGuide(fit.guide, self.chunks)

    @property
    def rows(self) -> int:
        """The number of points of the surrogate."""
        return len(self._known)

    @property
    def _used(self) -> str:
        return f"{self.rows} points of a surrogate, with {self.chunks.size} {self.chunks.unit} integrated out"

    def take(self, count: int) -> None:
        """Takes so many points around the modes, and draws of the surrogate.

        Args:
            count: how many.
        """
        self._known = KnownDensity(self.chunks, self._at.modes, self._at.value, count, self._budget)

    def _error_at(self, u: Tensor, budget: Budget) -> float:
        return self._known.error(u, None, budget)

    def _take_more(self) -> bool:
        return not self._known.is_full

    def _estimate(self) -> None:
        self.subset = GlobalProgram(self.chunks, self._known.surrogate)
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
    of_surrogate = (
        f"log p is interpolated from {rows['subset']} points, with the latents of {rows['all']} {rows['unit']} "
        "integrated out"
    )
    about = (
        f"{of_surrogate if 'integrated' in rows else of_subset}, up to a standard deviation of {rows['error']:.2g} nats"
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
    if not isinstance(many, ManyLatents) or many.chunks.size != described["rows"]["all"]:
        raise ValueError(
            f"load: the latents {quote_names(described['rows']['integrated'])} of {described['rows']['all']} "
            f"{described['rows']['unit']} were integrated out, which needs the data of the fit: give them, data=(...)"
        )
    if isinstance(many.chunks, Laplace):
        many.chunks.restore(described["rows"])
    program = many.without_values()
    _, inner, loss = rebuild(program, described["guide"], program.args)
    return programs_of(whole.model, []).model, GroupGuide(inner, many.chunks), loss


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
