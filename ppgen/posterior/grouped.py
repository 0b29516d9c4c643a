"""The latents of a program whose groups are independent given its global latents, and their densities by group.

A plate of G rows declares that its rows are independent given what was sampled before. If every term of log p depends
on the latents z_j of at most one row j of that plate,

    log p(g, z) = a(g) + sum_j f_j(g, z_j)

Rows of data name their group by an index, or in any other way: which group a term depends on is read from derivatives.
Along the directions v_j = 1, j + 1 and random r_j of all groups at once, a term of group j has the derivatives d,
(j + 1) d and r_j d.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.tracing.sites import Site, is_deterministic, latent_sites, sample_sites
from ppgen.utils.graphs import record_simplified

__all__ = ["Groups", "assign_terms", "find_groups"]

EQUAL = 1e-6  # relative error of a derivative
MAX_LOCAL = 4  # latents of a group, which are integrated out by quadrature


class Groups:
    """The split of log p into global terms and those of groups.

    Args:
        density: log p.
        plate: the name of the plate of groups.
        local: for each latent of the groups, the axis of the plate in its part of a point.

    Attributes:
        count: the number of groups, G.
        width: the number of latents of a group on the real line, L.
        group: the group of each term; G for those that depend on no group.
    """

    def __init__(self, density: UnconstrainedLogDensity, plate: str, local: dict[str, int]) -> None:
        self.density, self.plate, self.local = density, plate, local
        self.count = density.shapes[next(iter(local))][local[next(iter(local))]]
        numbers = torch.arange(density.dim).split([shape.numel() for shape in density.shapes.values()])
        parts = {k: n.reshape(density.shapes[k]) for k, n in zip(density.shapes, numbers, strict=True)}
        self.local_index = torch.cat(
            [parts[k].movedim(axis, 0).reshape(self.count, -1) for k, axis in local.items()], 1
        )
        self.width = self.local_index.shape[1]
        is_global = torch.ones(density.dim, dtype=torch.bool)
        is_global[self.local_index.reshape(-1)] = False
        self.global_index = is_global.nonzero()[:, 0]
        self.group = torch.empty(0)
        self._terms = _recorded(density)

    def point(self, g: Tensor, z: Tensor) -> Tensor:
        """The point u (dim,) with these global latents (D,) and those of the groups (G, L)."""
        order = torch.cat([self.global_index, self.local_index.reshape(-1)]).argsort()
        return torch.cat([g, z.reshape(-1)])[order]

    def parts_of(self, z: Tensor) -> dict[str, Tensor]:
        """The unconstrained values of the latents of groups (G, L), by name and in their shapes."""
        flat, start = {}, 0
        for name, axis in self.local.items():
            shape = list(self.density.shapes[name])
            of_others = [size for i, size in enumerate(shape) if i != axis % len(shape)]
            width = math.prod(of_others)
            flat[name] = z[:, start : start + width].reshape(self.count, *of_others).movedim(0, axis)
            start += width
        return flat

    def terms(self, g: Tensor, z: Tensor) -> Tensor:
        """All terms of log p, in one vector."""
        return self._terms(self.point(g, z))

    def of_groups(self, terms: Tensor) -> Tensor:
        """The sums f of the terms of each group: (G,)."""
        return terms.new_zeros(self.count + 1).index_add(0, self.group, terms)[:-1]

    def of_none(self, terms: Tensor) -> Tensor:
        """The sum of the terms that depend on no group."""
        return terms[self.group == self.count].sum()


def _recorded(density: UnconstrainedLogDensity) -> Callable[[Tensor], Tensor]:
    """The terms at a point, recorded as a graph if that can be vmapped and differentiated as they can."""
    u = torch.zeros(density.dim, dtype=torch.float64)
    try:
        recorded = record_simplified(lambda u: density.terms(u), u)  # make_fx counts the self of a method
        batch = torch.stack([u, u + 0.1])
        for function in (density.terms, recorded):
            vmap(grad(lambda u, f=function: f(u).sum()))(batch)
        same = torch.equal(vmap(recorded)(batch), vmap(density.terms)(batch))
    except Exception:  # the terms can be computed, so this is due to the recording
        return density.terms
    return recorded if same else density.terms


def find_groups(density: UnconstrainedLogDensity) -> Groups | None:
    """The groups of a program: of its plates that hold latents, the largest of independent rows; None without one.

    Args:
        density: log p.
    """
    if density.discrete or not density.vectorized:
        return None
    sites = latent_sites(density.trace(torch.zeros(density.dim, dtype=torch.float64)))
    sizes = {f.name: f.size for site in sites.values() for f in site["cond_indep_stack"] if f.vectorized}
    for plate in sorted(sizes, key=lambda name: -sizes[name]):
        local = {name: axis for name, site in sites.items() if (axis := _axis(site, plate)) is not None}
        if not local or local.keys() - density.shapes.keys():
            continue
        groups = Groups(density, plate, local)
        if groups.width <= MAX_LOCAL and assign_terms(groups):
            return groups
    return None


def _axis(site: Site, plate: str) -> int | None:
    """The axis of a plate in the unconstrained value of a site, whose event may have fewer dimensions than its own."""
    found = [frame for frame in site["cond_indep_stack"] if frame.name == plate and frame.vectorized]
    return len(site["fn"].batch_shape) + found[0].dim if found else None


def _declared_groups(groups: Groups) -> Tensor:
    """The group of each term of a site in the plate, even of a uniform prior; G for all other terms."""
    density, found = groups.density, []
    sites = sample_sites(density.trace(torch.zeros(density.dim, dtype=torch.float64)))
    terms = [(site, site["log_prob"].shape) for site in sites.values() if not is_deterministic(site)]
    terms += [(sites[name], sites[name]["fn"].batch_shape) for name in density.shapes]  # the Jacobians
    for site, shape in terms:
        frames = [f for f in site["cond_indep_stack"] if f.name == groups.plate and f.vectorized]
        if frames:
            number = torch.arange(groups.count).reshape(-1, *[1] * (-frames[0].dim - 1))
            found.append(number.expand(shape).reshape(-1))
        else:
            found.append(torch.full((shape.numel(),), groups.count))
    return torch.cat(found).double()


def assign_terms(groups: Groups) -> bool:
    """Finds the group of each term; False if a term depends on several.

    Args:
        groups: the groups, whose attribute `group` is set.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    g, z = random(len(groups.global_index)), random(groups.count, groups.width)
    directions = torch.stack(
        [torch.ones(groups.count).double(), torch.arange(groups.count) + 1.0, 1 + random(groups.count)]
    )
    of_latents = 0.5 + random(groups.width)
    try:
        terms, pull_back = vjp(lambda z: groups.terms(g, z), z)[:2]
        weight = torch.zeros_like(terms)  # d / dw of w' J v is J v, by backward passes alone
        derivatives = [
            grad(lambda w, v=v: (pull_back(w)[0] * (v[:, None] * of_latents)).sum())(weight) for v in directions
        ]
    except (RuntimeError, NotImplementedError):  # an operation without a second derivative
        return False
    one, number, other = derivatives
    declared = _declared_groups(groups)
    group = torch.where(one != 0, (number / one).round() - 1, declared).nan_to_num(nan=-1.0)
    if (group < 0).any() or (group > groups.count).any() or not torch.stack(derivatives).isfinite().all():
        return False
    groups.group = group.long()
    factors = torch.cat([directions, directions.new_zeros(3, 1)], 1)[:, groups.group]
    return all(
        torch.allclose(d, factor * one, rtol=EQUAL) for d, factor in zip((number, other), factors[1:], strict=True)
    )
