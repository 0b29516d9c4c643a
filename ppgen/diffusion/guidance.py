"""Guidance: denoisers turned to a condition y that they were not asked for.

A path z = a v + s e has the posterior mean D(z) = E[v | z], which says all that a sampler needs. By Tweedie's formulas

    E[v | z] = (z + s^2 grad log p(z)) / a,        V = Cov[v | z] = (s^2 / a) dD/dz,

so that under a condition y

    E[v | z, y] = D(z) + (s^2 / a) grad_z log p(y | z).

Every function here takes denoisers, functions (z, rates) -> E[v | z], and returns one; they can be put one on another.
Where the signal vanishes D does not depend on z, and V is 0 / 0, of which the limit is the covariance of v before
anything is seen. Near there dD/dz is about a V / s^2, and what a network has wrong in it, V has s^2 / a times; so where
a / s is below a `floor`, derivatives are taken at a ratio f of that size. What f tells of v more than a / s does is
taken off again, for normal v with V_f = (V^-1 + k I)^-1, k = f^2 - (a / s)^2, by V = V_f + k V_f^2 + k^2 V_f^3 + ...
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from ppgen.diffusion.sampler import Denoise
from ppgen.diffusion.schedule import NoiseLevel
from ppgen.tracing.programs import likelihood_sites
from ppgen.tracing.sites import Site

__all__ = ["classifier", "classifier_free", "posterior"]


def classifier_free(conditional: Denoise, unconditional: Denoise, weight: float) -> Denoise:
    """E_none + w (E_y - E_none), the means with and without a condition (Ho & Salimans 2022, whose w is one less).

    A weight of 0 leaves the condition out, 1 is the condition as it was learned, and more exaggerates it: then the
    draws are of no law in particular, with less variety than p(v | y).
    """

    def guided(z: Tensor, level: NoiseLevel) -> Tensor:
        none = unconditional(z, level)
        return none + weight * (conditional(z, level) - none)

    return guided


def classifier(
    denoise: Denoise, log_prob: Callable[[Tensor, NoiseLevel], Tensor], weight: float = 1.0, *, floor: float = 0.01
) -> Denoise:
    """E[v | z] + w (s^2 / a) grad_z log p(y | z) (Dhariwal & Nichol 2021, in the mean instead of the step).

    Args:
        log_prob: (z, rates) -> log p(y | z) of shape (n,), in nats, of a classifier that knows noisy data.
        weight: w; 1 is Bayes' rule.
        floor: the least a / s at which the gradient is taken, see above.
    """

    def guided(z: Tensor, level: NoiseLevel) -> Tensor:
        near = _with_signal(level, floor)
        a, s, _ = near.unsqueeze_like(z)
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(log_prob(point, near).sum(), point, materialize_grads=True)
        return denoise(z, level) + weight * s.square() / a * slope

    return guided


def posterior(
    denoise: Denoise, likelihood: Callable[[Tensor], Any], *, cg_steps: int = 5, floor: float = 0.2
) -> Denoise:
    """The mean of v given z and what a Pyro program observes of v.

    With p(v | z) taken for N(D, V), sites N(y; A(v), S) that are normal give, A' being the derivative of A at D,

        D + V A'^T (S + A' V A'^T)^-1 (y - A(D)),                 Rozet et al. 2024, MMPS

    which is E[v | z, y] itself if v is normal and A linear. V is applied by one pass back through the denoiser, and the
    system, whitened to I + S^-1/2 A' V A'^T S^-1/2, solved as by conjugate gradients, for each row of z its own (see
    `krylov`). Fewer steps than observations guide less than they should, in directions that D leaves little room.

    Sites of other laws, and factors, are taken at D alone: log p(y | z) as log p(y | v = D), so that D moves by
    V grad_D log p(y | D) before the normal sites come. That v varies about D is left out, by which they are trusted too
    much while noise is strong; Chung et al. 2023 (DPS) do so for all sites, with a step size chosen by hand. It is for
    likelihoods that are smooth over the width of V; sharp ones are better written as normal.

    Args:
        likelihood: a program of observed sites alone, called with v (n, *event); rows are draws, to be taken each for
            itself, so each site has n in front: a y that all have in common broadcasts.
        cg_steps: each one pass back through the denoiser; 0 for no guidance by normal sites.
        floor: the least a / s at which V is taken, see above, for data of deviation about one.

    The scales of normal sites are those at D. The result carries no gradient.

    Raises:
        ValueError: when it is used, if the program has latents, or no site that it observes, or one whose shape does
            not fit (n, ..); cg_steps is below 0.
    """
    if cg_steps < 0:
        raise ValueError(f"expected cg_steps of at least 0, got {cg_steps}")

    def guided(z: Tensor, level: NoiseLevel) -> Tensor:
        near = _with_signal(level, floor)
        a, s, _ = near.unsqueeze_like(z)
        more = (a / s).square() - level.unsqueeze_like(z).log_snr.exp()
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            through = denoise(point, near)

        def spread_near(w: Tensor) -> Tensor:
            """V_f w; dD/dz is symmetric for a true mean, and its transpose is what a pass back gives."""
            (back,) = torch.autograd.grad(through, point, w, retain_graph=True, materialize_grads=True)
            return s.square() / a * back

        def spread(w: Tensor) -> Tensor:
            moved = spread_near(w)
            for _ in range(0 if near is level else 2):
                moved = spread_near(w + more * moved)
            return moved

        mean = through.detach() if near is level else denoise(z, level).detach()
        local = _linearize(likelihood, mean)
        residual = local.residual
        if local.slope is not None:
            shift = spread(local.slope)
            mean, residual = mean + shift, residual - local.push(shift)
        if residual.shape[1] == 0:
            return mean

        def system(u: Tensor) -> Tensor:
            return local.push(spread(local.pull(u)))

        return mean + spread(local.pull(krylov(system, residual, cg_steps)))

    return guided


def krylov(system: Callable[[Tensor], Tensor], target: Tensor, steps: int) -> Tensor:
    """u (n, m) with u + K u = target, from the span of target, K target, .., each row by itself (Arnoldi 1951).

    For a K that is symmetric and not negative, this is what so many conjugate gradient steps find. A network's is
    neither: of its projection on the span the symmetric part is taken, and directions in which that is negative are
    left out, since nothing is known there and a residual over a small noise is large.
    """
    size = target.norm(dim=1, keepdim=True)
    basis, images = _unit(target, size)[:, None], []
    for _ in range(steps):
        images.append(system(basis[:, -1]))
        left = images[-1]
        for _ in range(2):  # once does not suffice in finite precision
            left = left - torch.einsum("nkm,nk->nm", basis, torch.einsum("nkm,nm->nk", basis, left))
        basis = torch.cat([basis, _unit(left, images[-1].norm(dim=1, keepdim=True))[:, None]], 1)
    if not images:
        return torch.zeros_like(target)
    basis = basis[:, :-1]
    projected = basis @ torch.stack(images, 2)
    values, vectors = torch.linalg.eigh((projected + projected.mT) / 2)
    gains = torch.where(values > 0, size / (1 + values), 0.0)
    return torch.einsum("nki,ni,ni,nkm->nm", vectors, gains, vectors[:, 0], basis)


def _unit(x: Tensor, size: Tensor) -> Tensor:
    """Rows of x (n, m) at length one, or zero where they are rounding errors of numbers of a size (n, 1)."""
    norm = x.norm(dim=1, keepdim=True)
    return torch.where(norm > 1e3 * torch.finfo(x.dtype).eps * size, x / norm, 0.0)


class Local(NamedTuple):
    """A program's observations at one x: whitened residuals S^-1/2 (y - A(x)) of normal sites, and the rest's slope."""

    residual: Tensor  # (n, m)
    push: Callable[[Tensor], Tensor]  # S^-1/2 A' dx
    pull: Callable[[Tensor], Tensor]  # its transpose
    slope: Tensor | None  # of the log probability of all other sites


def _linearize(likelihood: Callable[[Tensor], Any], x: Tensor) -> Local:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        trace, sites = likelihood_sites(likelihood, x)
        for name, site in sites.items():
            _check_shape(name, site, len(x))
        normal = {name: e for name, site in sites.items() if (e := _whitened(site)) is not None}
        others = [name for name in sites if name not in normal]
        trace.compute_log_prob(lambda name, _: name in others)
        total = x.new_zeros(()) + sum(sites[name]["log_prob_sum"] for name in others)
        if not any(seen.requires_grad for seen in (total, *normal.values())):
            raise ValueError(f"likelihood: none of {', '.join(map(repr, sites))} has a derivative in x; compute with x")
        slope = None
        if total.requires_grad:
            (slope,) = torch.autograd.grad(total, x, retain_graph=True, materialize_grads=True)
        nothing = x.flatten(1)[:, :0]  # ties the residuals to x where there are none
        residual = torch.cat([nothing, *(e.reshape(len(x), -1) for e in normal.values())], 1)
        # the pass back is linear in what it starts from, so that its own pass back is the derivative forward
        start = torch.zeros_like(residual, requires_grad=True)
        (back,) = torch.autograd.grad(residual, x, start, create_graph=True, materialize_grads=True)

    def push(dx: Tensor) -> Tensor:
        return -torch.autograd.grad(back, start, dx, retain_graph=True, materialize_grads=True)[0]

    def pull(u: Tensor) -> Tensor:
        return -torch.autograd.grad(residual, x, u, retain_graph=True, materialize_grads=True)[0]

    return Local(residual.detach(), push, pull, slope)


def _whitened(site: Site) -> Tensor | None:
    """S^-1/2 (y - A(x)) of a normal site, with the weights and masks that it has; None for another law."""
    device = site["value"].device
    distribution, weight = site["fn"], torch.as_tensor(site["scale"], device=device)
    keep = torch.as_tensor(True if site["mask"] is None else site["mask"], device=device)
    while isinstance(distribution, Independent | MaskedDistribution):
        if isinstance(distribution, Independent):
            wide = (1,) * distribution.reinterpreted_batch_ndims
            keep, weight = keep.reshape(*keep.shape, *wide), weight.reshape(*weight.shape, *wide)
        else:
            keep = keep & distribution._mask
        distribution = distribution.base_dist
    if isinstance(distribution, Normal):
        white = (site["value"] - distribution.loc) / distribution.scale.detach()
    elif isinstance(distribution, MultivariateNormal):
        gap = (site["value"] - distribution.loc)[..., None]
        white = torch.linalg.solve_triangular(distribution.scale_tril.detach(), gap, upper=False)[..., 0]
        keep, weight = keep[..., None], weight[..., None]
    else:
        return None
    return torch.where(keep, weight.sqrt() * white, 0.0)


def _check_shape(name: str, site: Site, n: int) -> None:
    distribution, value = tuple(site["fn"].shape()), tuple(torch.as_tensor(site["value"]).shape)
    try:
        joint = torch.broadcast_shapes(distribution, value)
    except RuntimeError as error:
        raise ValueError(
            f"likelihood: site {name!r} observes values of shape {value} under a law of shape {distribution}, which do not "
            "broadcast; give it one observation for all rows of x, or one for each"
        ) from error
    if joint[:1] != (n,):
        raise ValueError(
            f"likelihood: site {name!r} has shape {tuple(joint)} (its law {distribution}, its values {value}), expected the {n} "
            "rows of x in front: write it of rows of x, with repeated observations behind"
        )


def _with_signal(level: NoiseLevel, floor: float) -> NoiseLevel:
    """The rates, those with a / s below the floor raised to it; the same object if there are none."""
    low = level.signal < floor * level.noise
    if not bool(low.any()):
        return level
    signal = torch.where(low, floor * level.noise, level.signal)
    return NoiseLevel(signal, level.noise, 2 * (signal / level.noise).log())
