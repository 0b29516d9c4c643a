"""The density of global latents, summed over chunks of groups or estimated from a subset of them.

A program runs on some of its groups with the rows of data that belong to them, the plate of groups resized, and indices
of groups renumbered. Of its arguments those are

    rows      tensors whose length is that of observations of which each belongs to one group
    indices   tensors of whole numbers among them, which are the group of each row
    groups    tensors whose length is the number of groups, and that number itself

Everything else stays. That the densities of the groups are those of the whole program is checked at a point.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to
from torch.func import grad_and_value, vmap

from ppgen.posterior.grouped import Groups, assign_terms, find_groups
from ppgen.posterior.log_density import UnconstrainedLogDensity, needs_density
from ppgen.posterior.marginal import STEPS, STEPS_NEAR, Marginal
from ppgen.tracing.double_precision import ProgramInContext
from ppgen.tracing.plates import resized_plate
from ppgen.tracing.sites import Program, Site, is_deterministic, sample_sites

__all__ = ["GlobalLatents", "GroupChunks", "LocalLatents", "MarginalProgram", "split_by_groups"]

GROUPS = 100  # of the subset in which modes are looked for, and errors of quadrature
SURROGATE_POINTS = 32  # of the first surrogate
CHECKED = 24  # draws at which errors are measured
TERMS = 2**21  # terms times nodes times points that are evaluated at once, which bounds the memory
POINTS = 16  # evaluated at once
EQUAL = 1e-8  # relative difference of the densities of groups


class _Resized(ProgramInContext):
    """A program whose plate of groups has another number of rows."""

    def __init__(self, program: Program, plate: str, size: int) -> None:
        super().__init__(program)
        self.plate, self.size = plate, size

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with resized_plate(self.plate, self.size):
            return self.program(*args, **kwargs)


class GroupChunks:
    """The exact density of the global latents, computed chunk by chunk.

    Args:
        groups: the groups of the whole program.

    Attributes:
        whole: log p of all latents.
        size: the number of groups, G.
        start: where Newton's method begins in each group, (G, L).
    """

    unit = "groups"

    def __init__(self, groups: Groups) -> None:
        self.groups, self.whole, self.size = groups, groups.density, groups.count
        self.start = torch.zeros(groups.count, groups.width, dtype=torch.float64)
        self.first, self.checked = SURROGATE_POINTS, CHECKED
        self._of_rows, self.steps = _groups_of_rows(groups), STEPS
        self._marginals: dict[tuple[int, int], Marginal] = {}

    def args(self, index: Tensor) -> tuple:
        """The arguments of the program, for these groups.

        Args:
            index: the numbers of the groups, in order.
        """
        chosen: dict[int, Tensor] = {n: torch.isin(group, index) for n, group in self._of_rows.items()}
        return tuple(self._part(arg, index, chosen) for arg in self.whole.args)

    def _part(self, arg: Any, index: Tensor, chosen: dict[int, Tensor]) -> Any:
        if isinstance(arg, int) and not isinstance(arg, bool) and arg == self.size:
            return len(index)
        if not isinstance(arg, Tensor) or not arg.dim():
            return arg
        if len(arg) in chosen:
            rows = arg[chosen[len(arg)]]
            is_index = not arg.is_floating_point() and torch.equal(arg, self._of_rows[len(arg)].to(arg))
            return torch.searchsorted(index, rows.contiguous()).to(arg) if is_index else rows
        return arg[index] if len(arg) == self.size else arg

    def marginal(self, index: Tensor) -> Marginal:
        """The density of the global latents that these groups contribute.

        Args:
            index: the numbers of the groups, in order.

        Raises:
            ValueError: if the program does not run on these groups alone.
        """
        program = _Resized(self.whole.model, self.groups.plate, len(index))
        with poutine.block():  # a guide may come here first
            density = UnconstrainedLogDensity(program, self.args(index), like=self.whole)
            groups = Groups(density, self.groups.plate, self.groups.local)
            if groups.count != len(index) or not assign_terms(groups):
                raise ValueError("the program does not run on some of its groups")
        return Marginal(groups, self.start[index], steps=self.steps)

    def scaled(self) -> UnconstrainedLogDensity:
        """The log density of the global latents by some groups, scaled to all."""
        program = MarginalProgram(self, self._some())
        return UnconstrainedLogDensity(program, program.args)

    def log_prob(self, u: Tensor, show: Callable[[str], object] = lambda text: None) -> Tensor:
        """The values of log p, with the latents of groups integrated out, at points (n, D): (n,).

        Args:
            u: global latents.
            show: a function that is told how far the sum is.
        """
        return self._sum(u, show, lambda marginal, part: vmap(_evidence(marginal))(part)[..., None])[..., 0]

    def log_prob_and_grad(self, u: Tensor, show: Callable[[str], object] = lambda text: None) -> tuple[Tensor, Tensor]:
        """The values (n,) and the gradients (n, D) at points (n, D).

        Args:
            u: global latents.
            show: a function that is told how far the sum is.
        """

        def both(marginal: Marginal, part: Tensor) -> Tensor:
            gradient, value = vmap(grad_and_value(_evidence(marginal)))(part)
            return torch.cat([value[:, None], gradient], 1)

        found = self._sum(u, show, both)
        return found[:, 0], found[:, 1:]

    def begin_at(self, g: Tensor) -> None:
        """Lets Newton's method begin at the modes of all groups given these global latents (D,)."""
        for start, end in self._chunks(1):
            self.start[start:end] = self._marginal(start, end)(g).mode
        self._marginals.clear()
        self.steps = STEPS_NEAR

    def other_error(self, u: Tensor) -> float:
        """The standard deviation over points, in nats, of the error of quadrature, by a rule with two more nodes.

        It is that of some groups, scaled to all as if their errors were the same.

        Args:
            u: global latents, (n, D).
        """
        marginal = self.marginal(self._some())
        finer = Marginal(marginal.groups, marginal.start, steps=marginal.steps, more_nodes=2)
        with torch.no_grad():
            errors = [(finer(g).log_evidence - marginal(g).log_evidence).sum() for g in u]
        return self.size / marginal.groups.count * float(torch.stack(errors).std())

    def draw(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Draws of the latents of all groups given the global ones (D,), and the log density of that draw.

        Returns:
            the draws (G, L); the density, which is that of the exact conditional distribution as far as the evidence
            of each group is exact.
        """
        draws, log_q = [], g.new_zeros(())
        for start, end in self._chunks(1):
            marginal = self._marginal(start, end)
            given = marginal(g)
            z = marginal.draw(g, given)
            draws.append(z)
            log_q = log_q + (marginal.values(g, z) - given.log_evidence).sum()
        return torch.cat(draws), log_q

    def _some(self) -> Tensor:
        """The numbers of a random subset of the groups, in order."""
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(0))[:GROUPS].sort().values

    def _sum(self, u: Tensor, show: Callable[[str], object], function: Callable[[Marginal, Tensor], Tensor]) -> Tensor:
        """The sum over all chunks of a function of the marginal density of each, and of the terms of no group."""
        self.whole.evaluations["gradients"] += len(u)
        parts = []
        with torch.no_grad():
            for points in u.split(POINTS):
                chunks = self._chunks(len(points))
                total: Any = 0.0
                for i, (start, end) in enumerate(chunks):
                    show(f"{len(points)} points, {start / self.size:.0%} of the groups" if i else "")
                    marginal = self._marginal(start, end)
                    marginal.weight_of_none = (end - start) / self.size
                    total = total + function(marginal, points)
                parts.append(total)
        return torch.cat(parts)

    def _chunks(self, points: int) -> list[tuple[int, int]]:
        """The first and last group of chunks that fit into memory at so many points."""
        terms = len(self.groups.group) / self.size * Marginal.node_count(self.groups.width) * points
        count = max(1, round(self.size * terms / TERMS))
        ends = [self.size * (i + 1) // count for i in range(count)]
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def _marginal(self, start: int, end: int) -> Marginal:
        if (start, end) not in self._marginals:
            self._marginals[start, end] = self.marginal(torch.arange(start, end))
        return self._marginals[start, end]


def _evidence(marginal: Marginal) -> Callable[[Tensor], Tensor]:
    """The function from global latents to the log evidence of groups, with their share of the terms of no group."""

    def value(g: Tensor) -> Tensor:
        given = marginal(g)
        return given.log_evidence.sum() + marginal.weight_of_none * given.of_none

    return value


class MarginalProgram(ProgramInContext):
    """The program of the global latents, with those of groups integrated out, estimated from some groups.

    Args:
        chunks: all groups.
        index: the numbers of the groups, in order.

    Attributes:
        terms: how many log densities it computes, at all nodes of the quadrature.
    """

    def __init__(self, chunks: GroupChunks, index: Tensor) -> None:
        self.marginal = chunks.marginal(index)
        density = self.marginal.groups.density
        super().__init__(density.model)
        self.terms = len(self.marginal.groups.group) * len(self.marginal.nodes)
        self.args, self.weight = density.args, chunks.size / len(index)
        self.local = tuple(chunks.groups.local)
        self.names = tuple(name for name in density.shapes if name not in self.local)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program."""
        with GlobalLatents(self.names) as latents, poutine.block(expose=list(self.names)), LocalLatents(self.local):
            self.program(*args, **kwargs)
        if not needs_density():
            return
        g = torch.cat([latents.parts[name].reshape(-1) for name in self.names])
        if len(g) != len(self.marginal.groups.global_index):  # particles then run under vmap
            raise ValueError("a program with latents that are integrated out does not broadcast over particles")
        given = self.marginal(g)
        pyro.factor("groups", self.weight * given.log_evidence.sum() + given.of_none - latents.log_prob)


class GlobalLatents(Messenger):
    """A handler that notes the values of global latents on the real line, and their log density there.

    Args:
        names: the latents.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names
        self.parts: dict[str, Tensor] = {}
        self.log_prob: Tensor | float = 0.0

    def _pyro_post_sample(self, msg: Site) -> None:
        if msg["name"] in self.names:
            transform, value = biject_to(msg["fn"].support), msg["value"]
            part = self.parts[msg["name"]] = transform.inv(value)
            density = scale_and_mask(msg["fn"].log_prob(value), msg["scale"], msg["mask"]).sum()
            self.log_prob = self.log_prob + density + transform.log_abs_det_jacobian(part, value).sum()


class LocalLatents(Messenger):
    """A handler that gives the latents of groups some value, which nothing reads.

    Args:
        names: the latents.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.names:
            transform = biject_to(msg["fn"].support)
            msg["value"], msg["done"] = transform(torch.zeros(transform.inverse_shape(msg["fn"].shape()))), True


def split_by_groups(whole: UnconstrainedLogDensity) -> GroupChunks | None:
    """Splits a log density by groups; None without groups that are independent given the other latents.

    Args:
        whole: log p of all latents.
    """
    try:
        groups = find_groups(whole)
        if groups is None or not len(groups.global_index):
            return None
        chunks = GroupChunks(groups)
        return chunks if _is_sum(chunks) else None
    except (ValueError, RuntimeError, IndexError, TypeError):  # the program does not run on some of its groups
        return None


def _is_sum(chunks: GroupChunks) -> bool:
    """Whether the program on every other group, and on the rest, gives the densities of the whole program."""
    generator = torch.Generator().manual_seed(0)
    groups = chunks.groups
    g = torch.rand(len(groups.global_index), generator=generator, dtype=torch.float64)
    z = torch.rand(groups.count, groups.width, generator=generator, dtype=torch.float64)
    terms = groups.terms(g, z)
    for start in (0, 1):
        index = torch.arange(start, groups.count, 2)
        part = chunks.marginal(index).groups
        found = part.terms(g, z[index])
        for a, b in (
            (part.of_groups(found), groups.of_groups(terms)[index]),
            (part.of_none(found), groups.of_none(terms)),
        ):
            if not torch.allclose(a, b, rtol=EQUAL, atol=EQUAL):
                return False
    return True


def _groups_of_rows(groups: Groups) -> dict[int, Tensor]:
    """The group of each row of data, by the number of rows, for lengths of arguments whose rows have one each."""
    sites = sample_sites(groups.density.trace(torch.zeros(groups.density.dim, dtype=torch.float64)))
    sizes = [site["log_prob"].numel() for site in sites.values() if not is_deterministic(site)]
    of_sites = groups.group[: sum(sizes)].split(sizes)
    tensors = [arg for arg in groups.density.args if isinstance(arg, Tensor) and arg.dim()]
    found: dict[int, Tensor] = {}
    for length in {len(arg) for arg in tensors} - {groups.count}:
        for of_site in (part for part in of_sites if len(part) == length and (part < groups.count).any()):
            known = of_site < groups.count
            whole_numbers = (a for a in tensors if a.shape == (length,) and not a.is_floating_point())
            index = next((a.long() for a in whole_numbers if torch.equal(a.long()[known], of_site[known])), None)
            if index is not None or known.all():
                found[length] = of_site if index is None else index
                break
    return found
