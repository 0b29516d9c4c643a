"""The density of global latents, summed over chunks of groups or estimated from a subset of them.

A program runs on some of its groups with the rows of data that belong to them, the plate of groups resized, and indices
of groups renumbered. Of its arguments those are

    rows      tensors whose length is that of observations of which each belongs to one group
    indices   tensors of whole numbers among them, which are the group of each row
    groups    tensors whose length is the number of groups, and that number itself

Everything else stays. That the densities of the groups are those of the whole program is checked at a point.
"""

import itertools
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
from ppgen.posterior.marginal import CONVERGED, STEPS, STEPS_NEAR, Line, Marginal
from ppgen.posterior.noted_latents import NotedLatents
from ppgen.tracing.double_precision import ProgramInContext
from ppgen.tracing.plates import resized_plate
from ppgen.tracing.sites import Program, Site, is_deterministic, sample_sites

__all__ = ["GlobalLatents", "GroupChunks", "LocalLatents", "MarginalProgram", "split_by_groups"]

GROUPS = 100  # of the subset in which modes are looked for, and errors of quadrature
SURROGATE_POINTS = 32  # of the first surrogate
CHECKED = 16  # draws at which errors are measured
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
        line: where Newton's method begins in each group.
    """

    unit = "groups"

    def __init__(self, groups: Groups) -> None:
        self.groups, self.whole, self.size = groups, groups.density, groups.count
        self.line = Line.constant(len(groups.global_index), groups.count, groups.width)
        self.first, self.checked, self.steps = SURROGATE_POINTS, CHECKED, STEPS
        self._of_rows = _groups_of_rows(groups)
        evaluated = len(groups.group) * Marginal.node_count(groups.width)
        count = -(-evaluated // TERMS)
        self._points = min(POINTS, max(1, TERMS * count // evaluated))  # at once
        self._ends = [self.size * i // count for i in range(count + 1)]
        self._marginals: dict[int, Marginal] = {}

    def args(self, index: Tensor) -> tuple:
        """The arguments of the program, for these groups.

        Args:
            index: the numbers of the groups, in order.
        """
        chosen: dict[int, Tensor] = {n: torch.isin(group, index) for n, group in self._of_rows.items()}
        return tuple(self._argument(arg, index, chosen) for arg in self.whole.args)

    def _argument(self, arg: Any, index: Tensor, chosen: dict[int, Tensor]) -> Any:
        if isinstance(arg, int) and not isinstance(arg, bool) and arg == self.size:
            return len(index)
        if not isinstance(arg, Tensor) or not arg.dim():
            return arg
        if len(arg) in chosen:
            rows = arg[chosen[len(arg)]]
            is_index = not arg.is_floating_point() and torch.equal(arg, self._of_rows[len(arg)].to(arg))
            return torch.searchsorted(index, rows.contiguous()).to(arg) if is_index else rows
        return arg[index] if len(arg) == self.size else arg

    def part(self, index: Tensor) -> Groups:
        """Some of the groups.

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
        return groups

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
        return self._sum(u, show, vmap, differentiable=False)[0]

    def log_prob_and_grad(self, u: Tensor, show: Callable[[str], object] = lambda text: None) -> tuple[Tensor, Tensor]:
        """The values (n,) and the gradients (n, D) at points (n, D).

        Args:
            u: global latents.
            show: a function that is told how far the sum is.
        """

        def with_gradient(function: Callable) -> Callable:
            def both(points: Tensor) -> tuple[Tensor, ...]:
                gradient, (value, distance) = vmap(grad_and_value(function, has_aux=True))(points)
                return value, distance, gradient

            return both

        values, gradients = self._sum(u, show, with_gradient)
        return values, gradients

    def begin_at(self, g: Tensor) -> None:
        """Lets Newton's method begin at the modes of all groups given these global latents (D,), and on a line in g."""
        lines = [self._marginal(i).line(g, self.line.part(part)(g)) for i, part in enumerate(self._parts())]
        self.line = Line(g, torch.cat([line.mode for line in lines]), torch.cat([line.slope for line in lines]))
        self.steps = STEPS_NEAR

    def other_error(self, u: Tensor) -> float:
        """The standard deviation over points, in nats, of the error of quadrature, by a rule with two more nodes.

        It is that of some groups, scaled to all as if their errors were the same.

        Args:
            u: global latents, (n, D).
        """
        index = self._some()
        groups, line = self.part(index), self.line.part(index)
        rule, finer = Marginal(groups), Marginal(groups, more_nodes=2)
        with torch.no_grad():
            errors = [(finer(g, line(g)).log_evidence - rule(g, line(g)).log_evidence).sum() for g in u]
        return self.size / groups.count * float(torch.stack(errors).std())

    def draw(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Draws of the latents of all groups given the global ones (D,), and the log density of that draw.

        Returns:
            the draws (G, L); the density, which is that of the exact conditional distribution as far as the evidence
            of each group is exact.
        """
        draws, log_q = [], g.new_zeros(())
        for i, part in enumerate(self._parts()):
            marginal, start = self._marginal(i), self.line.part(part)(g)
            given = marginal(g, start, self.steps, differentiable=False)  # as many steps as points around needed
            z = marginal.draw(g, given)
            draws.append(z)
            log_q = log_q + (marginal.values(g, z) - given.log_evidence).sum()
        return torch.cat(draws), log_q

    def _some(self) -> Tensor:
        """The numbers of a random subset of the groups, in order."""
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(0))[:GROUPS].sort().values

    def _sum(
        self,
        u: Tensor,
        show: Callable[[str], object],
        of: Callable[[Callable], Callable],
        *,
        differentiable: bool = True,
    ) -> tuple[Tensor, ...]:
        """Sums over all chunks.

        Args:
            u: global latents, (n, D).
            show: a function that is told how far the sum is.
            of: the function from a function of one point, whose results are a value and the distance from modes, to one
                of several points, (n,) and (n,), and what else is to be summed.
            differentiable: whether gradients are asked for.

        Returns:
            the sums of the values, and what else there is.
        """
        self.whole.evaluations["gradients"] += len(u)
        found = []
        with torch.no_grad():
            for points in u.split(self._points):
                total: list[Tensor] = []
                for i, part in enumerate(self._parts()):
                    show(f"{len(u)} points, {i / len(self._parts()):.0%} of the groups" if i else "")
                    value, distance, *more = of(self._evidence(i, part, differentiable))(points)
                    while self._take_more_steps(distance):
                        value, distance, *more = of(self._evidence(i, part, differentiable))(points)
                    total = [a + b for a, b in zip(total, (value, *more), strict=True)] if i else [value, *more]
                found.append(total)
        return tuple(map(torch.cat, zip(*found, strict=True)))

    def _take_more_steps(self, distance: Tensor) -> bool:
        """Whether Newton's method has not converged everywhere, and now takes more steps."""
        if self.steps >= STEPS or not (distance > CONVERGED).any():
            return False
        self.steps = min(STEPS, 2 * self.steps)
        return True

    def _evidence(self, number: int, part: slice, differentiable: bool) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The log evidence of a chunk of groups, with their share of the terms of none, and the distance from modes.

        Args:
            number: that of the chunk.
            part: its groups.
            differentiable: whether gradients are asked for.
        """
        marginal, line, share = self._marginal(number), self.line.part(part), (part.stop - part.start) / self.size

        def value(g: Tensor) -> tuple[Tensor, Tensor]:
            given = marginal(g, line(g.detach()), self.steps, differentiable=differentiable)
            return given.log_evidence.sum() + share * given.of_none, given.distance

        return value

    def _parts(self) -> list[slice]:
        """The groups of each chunk."""
        return [slice(*ends) for ends in itertools.pairwise(self._ends)]

    def _marginal(self, number: int) -> Marginal:
        if number not in self._marginals:
            self._marginals[number] = Marginal(self.part(torch.arange(*self._ends[number : number + 2])))
        return self._marginals[number]


class MarginalProgram(ProgramInContext):
    """The program of the global latents, with those of groups integrated out, estimated from some groups.

    Args:
        chunks: all groups.
        index: the numbers of the groups, in order.

    Attributes:
        terms: how many log densities it computes, at all nodes of the quadrature.
    """

    def __init__(self, chunks: GroupChunks, index: Tensor) -> None:
        groups = chunks.part(index)
        self.marginal, density = Marginal(groups), groups.density
        super().__init__(density.model)
        self.terms = len(groups.group) * len(self.marginal.nodes)
        self._start = torch.zeros(groups.count, groups.width, dtype=torch.float64)
        self.args, self.weight = density.args, chunks.size / len(index)
        self.local = tuple(chunks.groups.local)
        self.names = tuple(name for name in density.shapes if name not in self.local)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program."""
        with GlobalLatents(self.names) as latents, poutine.block(expose=list(self.names)), LocalLatents(self.local):
            self.program(*args, **kwargs)
        if not needs_density():
            return
        g = latents.point
        if len(g) != len(self.marginal.groups.global_index):  # particles then run under vmap
            raise ValueError("a program with latents that are integrated out does not broadcast over particles")
        given = self.marginal(g, self._start)
        pyro.factor("groups", self.weight * given.log_evidence.sum() + given.of_none - latents.log_prob)


class GlobalLatents(NotedLatents):
    """A handler that notes the values of global latents on the real line, and their log density there.

    Args:
        names: the latents.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.log_prob: Tensor | float = 0.0

    def _note(self, msg: Site) -> None:
        super()._note(msg)
        density = scale_and_mask(msg["fn"].log_prob(msg["value"]), msg["scale"], msg["mask"]).sum()
        jacobian = biject_to(msg["fn"].support).log_abs_det_jacobian(self.parts[msg["name"]], msg["value"]).sum()
        self.log_prob = self.log_prob + density + jacobian


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
        part = chunks.part(index)
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
