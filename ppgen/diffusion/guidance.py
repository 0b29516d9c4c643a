"""Guidance: denoisers conditioned on a y for which they were not trained.

A path z = a v + s e has the posterior mean D(z) = E[v | z], which is all that a sampler needs. By Tweedie's formulas

    E[v | z] = (z + s^2 grad log p(z)) / a,        V = Cov[v | z] = (s^2 / a) dD/dz,

so that under a condition y

    E[v | z, y] = D(z) + (s^2 / a) grad_z log p(y | z).

Every function here maps denoisers, functions (z, level) -> E[v | z], to a denoiser, so they compose.

Numerics at low signal. As a -> 0, D no longer depends on z, and V = (s^2 / a) dD/dz becomes 0 / 0; its limit is the
prior covariance of v. Near this limit dD/dz is about a V / s^2, so an error of the network in dD/dz is multiplied by
s^2 / a. Derivatives are therefore evaluated at a ratio a / s of at least f, the `floor`, where z has more information
about v. For Gaussian v the excess is k = f^2 - (a / s)^2 in V_f = (V^-1 + k I)^-1, and it is removed by

    V = V_f + k V_f^2 + k^2 V_f^3 + ...
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
    """Classifier-free guidance: E_none + w (E_y - E_none) (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598).

    Args:
        conditional: E_y, the posterior mean with the condition.
        unconditional: E_none, the posterior mean without it.
        weight: w, the paper's weight plus one. 0 ignores the condition and 1 is the learned conditional mean. Larger
            weights exaggerate the condition; samples then follow no known distribution and vary less than p(v | y).
    """

    def guided(z: Tensor, level: NoiseLevel) -> Tensor:
        none = unconditional(z, level)
        return none + weight * (conditional(z, level) - none)

    return guided


def classifier(
    denoise: Denoise, log_prob: Callable[[Tensor, NoiseLevel], Tensor], weight: float = 1.0, *, floor: float = 0.01
) -> Denoise:
    """Classifier guidance: E[v | z] + w (s^2 / a) grad_z log p(y | z).

    As Dhariwal & Nichol 2021 (https://arxiv.org/abs/2105.05233), but applied to the mean instead of the sampling step.

    Args:
        denoise: E[v | z].
        log_prob: log p(y | z) (n,), in nats, as a function of z and the level: a classifier of noisy data.
        weight: w; 1 is Bayes' rule.
        floor: The lowest a / s at which the gradient is evaluated (see the module's docstring).
    """

    def guided(z: Tensor, level: NoiseLevel) -> Tensor:
        raised = _raise_signal(level, floor)
        a, s, _ = raised.unsqueeze_like(z)
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_prob(point, raised).sum(), point, materialize_grads=True)
        return denoise(z, level) + weight * s.square() / a * gradient

    return guided


def posterior(
    denoise: Denoise, likelihood: Callable[[Tensor], Any], *, cg_steps: int = 5, floor: float = 0.2
) -> Denoise:
    """The mean of v given z and the observations of a Pyro program: moment matching posterior sampling (MMPS).

    From Rozet et al. 2024 (https://arxiv.org/abs/2405.13712). With p(v | z) approximated by N(D, V), the observed
    Gaussian sites N(y; A(v), S) give, with A' the derivative of A at D,

        D + V A'^T (S + A' V A'^T)^-1 (y - A(D)),

    which equals E[v | z, y] if v is Gaussian and A linear. V is applied by backpropagation through the denoiser. The
    linear system, whitened to I + S^-1/2 A' V A'^T S^-1/2, is solved separately for each row of z in a Krylov subspace
    (see `krylov`). With fewer steps than observations the guidance is too weak in directions in which v varies little.

    Sites with other distributions, and factors, are evaluated at D alone: log p(y | z) is approximated by
    log p(y | v = D), which shifts D by V grad_D log p(y | D) before the Gaussian sites are applied. This neglects the
    spread of v around D, and so trusts these sites too much at high noise. Diffusion posterior sampling (DPS, Chung et
    al. 2023, https://arxiv.org/abs/2209.14687) does the same for all sites, with a step size set by hand. The
    approximation suits likelihoods that are smooth over the width of V; write sharp ones as Gaussian sites.

    The scales of Gaussian sites are those at D. The result carries no gradient.

    Args:
        denoise: E[v | z].
        likelihood: A Pyro program with observed sites only, called with v (n, *event). Rows are separate samples, so
            each site needs a leading dimension n; an observation y shared by all rows broadcasts.
        cg_steps: The number of Krylov steps, each with one pass back through the denoiser; 0 ignores Gaussian sites.
        floor: The lowest a / s at which V is evaluated, for data of standard deviation about one (see the module's
            docstring).

    Raises:
        ValueError: If `cg_steps` is negative; when the result is called, if the program has latent sites, no observed
            site, or an observed site whose shape does not broadcast with (n, ...).
    """
    if cg_steps < 0:
        raise ValueError(f"expected cg_steps of at least 0, got {cg_steps}")

    def guided(z: Tensor, level: NoiseLevel) -> Tensor:
        raised = _raise_signal(level, floor)
        a, s, _ = raised.unsqueeze_like(z)
        excess = (a / s).square() - level.unsqueeze_like(z).log_snr.exp()  # k
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            mean_at_floor = denoise(point, raised)

        def covariance_at_floor(w: Tensor) -> Tensor:
            """V_f w. For an exact mean dD/dz is symmetric, so backpropagation, which gives its transpose, suffices."""
            (vjp,) = torch.autograd.grad(mean_at_floor, point, w, retain_graph=True, materialize_grads=True)
            return s.square() / a * vjp

        def covariance(w: Tensor) -> Tensor:
            """V w, by the first three terms of the series."""
            product = covariance_at_floor(w)
            for _ in range(0 if raised is level else 2):
                product = covariance_at_floor(w + excess * product)
            return product

        mean = mean_at_floor.detach() if raised is level else denoise(z, level).detach()
        local = _linearize(likelihood, mean)
        residual = local.residual
        if local.gradient is not None:
            shift = covariance(local.gradient)
            mean, residual = mean + shift, residual - local.jvp(shift)
        if residual.shape[1] == 0:
            return mean

        def system(u: Tensor) -> Tensor:
            return local.jvp(covariance(local.vjp(u)))

        return mean + covariance(local.vjp(krylov(system, residual, cg_steps)))

    return guided


def krylov(system: Callable[[Tensor], Tensor], target: Tensor, steps: int) -> Tensor:
    """Solves u + K u = target approximately, separately for each row, in the Krylov space of (K, target).

    The basis is that of Arnoldi 1951 (https://doi.org/10.1090/qam/42792). If K is symmetric and positive semidefinite,
    the result is that of conjugate gradients. The K of a network is neither. So the projection of K onto the space is
    symmetrized, and directions with negative eigenvalues are dropped: nothing is known there, and a residual divided by
    a small noise scale is large.

    Args:
        system: The map u -> K u, for u (n, m).
        target: The right-hand side (n, m).
        steps: The dimension of the Krylov space.
    """
    size = target.norm(dim=1, keepdim=True)
    basis, images = _normalize(target, size)[:, None], []
    for _ in range(steps):
        images.append(system(basis[:, -1]))
        remainder = images[-1]
        for _ in range(2):  # once is not enough in finite precision
            coefficients = torch.einsum("nkm,nm->nk", basis, remainder)
            remainder = remainder - torch.einsum("nkm,nk->nm", basis, coefficients)
        basis = torch.cat([basis, _normalize(remainder, images[-1].norm(dim=1, keepdim=True))[:, None]], 1)
    if not images:
        return torch.zeros_like(target)
    basis = basis[:, :-1]
    projected = basis @ torch.stack(images, 2)
    values, vectors = torch.linalg.eigh((projected + projected.mT) / 2)
    gains = torch.where(values > 0, size / (1 + values), 0.0)
    return torch.einsum("nki,ni,ni,nkm->nm", vectors, gains, vectors[:, 0], basis)


def _normalize(x: Tensor, size: Tensor) -> Tensor:
    """Rows of x (n, m) at unit length, or zero where they are rounding errors of numbers of the given size (n, 1)."""
    norm = x.norm(dim=1, keepdim=True)
    return torch.where(norm > 1e3 * torch.finfo(x.dtype).eps * size, x / norm, 0.0)


class Linearization(NamedTuple):
    """A program's observations linearized at x.

    Attributes:
        residual: S^-1/2 (y - A(x)) of all Gaussian sites, (n, m).
        jvp: The map dx -> S^-1/2 A' dx.
        vjp: Its transpose.
        gradient: The gradient of the log probability of all other sites, None if there are none.
    """

    residual: Tensor
    jvp: Callable[[Tensor], Tensor]
    vjp: Callable[[Tensor], Tensor]
    gradient: Tensor | None


def _linearize(likelihood: Callable[[Tensor], Any], x: Tensor) -> Linearization:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        trace, sites = likelihood_sites(likelihood, x)
        for name, site in sites.items():
            _check_shape(name, site, len(x))
        gaussian = {name: e for name, site in sites.items() if (e := _whitened_residual(site)) is not None}
        others = [name for name in sites if name not in gaussian]
        trace.compute_log_prob(lambda name, _: name in others)
        total = x.new_zeros(()) + sum(sites[name]["log_prob_sum"] for name in others)
        if not any(value.requires_grad for value in (total, *gaussian.values())):
            raise ValueError(
                f"likelihood: none of the sites {', '.join(map(repr, sites))} depends differentiably on x; compute "
                "them from x with torch operations"
            )
        gradient = None
        if total.requires_grad:
            (gradient,) = torch.autograd.grad(total, x, retain_graph=True, materialize_grads=True)
        empty = x.flatten(1)[:, :0]  # connects the residuals to x if there are none
        residual = torch.cat([empty, *(e.reshape(len(x), -1) for e in gaussian.values())], 1)
        # the vector-Jacobian product is linear in its vector; differentiating it gives Jacobian-vector products
        zero = torch.zeros_like(residual, requires_grad=True)
        (product,) = torch.autograd.grad(residual, x, zero, create_graph=True, materialize_grads=True)

    def jvp(dx: Tensor) -> Tensor:
        return -torch.autograd.grad(product, zero, dx, retain_graph=True, materialize_grads=True)[0]

    def vjp(u: Tensor) -> Tensor:
        return -torch.autograd.grad(residual, x, u, retain_graph=True, materialize_grads=True)[0]

    return Linearization(residual.detach(), jvp, vjp, gradient)


def _whitened_residual(site: Site) -> Tensor | None:
    """S^-1/2 (y - A(x)) of a Gaussian site, with its scale and masks; None for any other distribution."""
    device = site["value"].device
    distribution, weight = site["fn"], torch.as_tensor(site["scale"], device=device)
    keep = torch.as_tensor(True if site["mask"] is None else site["mask"], device=device)
    while isinstance(distribution, Independent | MaskedDistribution):
        if isinstance(distribution, Independent):
            ones = (1,) * distribution.reinterpreted_batch_ndims
            keep, weight = keep.reshape(*keep.shape, *ones), weight.reshape(*weight.shape, *ones)
        else:
            keep = keep & distribution._mask
        distribution = distribution.base_dist
    if isinstance(distribution, Normal):
        residual = (site["value"] - distribution.loc) / distribution.scale.detach()
    elif isinstance(distribution, MultivariateNormal):
        difference = (site["value"] - distribution.loc)[..., None]
        residual = torch.linalg.solve_triangular(distribution.scale_tril.detach(), difference, upper=False)[..., 0]
        keep, weight = keep[..., None], weight[..., None]
    else:
        return None
    return torch.where(keep, weight.sqrt() * residual, 0.0)


def _check_shape(name: str, site: Site, n: int) -> None:
    distribution, value = tuple(site["fn"].shape()), tuple(torch.as_tensor(site["value"]).shape)
    try:
        joint = torch.broadcast_shapes(distribution, value)
    except RuntimeError as error:
        raise ValueError(
            f"likelihood: site {name!r} observes values of shape {value} under a distribution of shape {distribution}, "
            "which do not broadcast; pass one observation for all rows of x, or one per row"
        ) from error
    if joint[:1] != (n,):
        raise ValueError(
            f"likelihood: site {name!r} has shape {tuple(joint)} (distribution {distribution}, values {value}), "
            f"expected the {n} rows of x as its first dimension; put repeated observations into later dimensions"
        )


def _raise_signal(level: NoiseLevel, floor: float) -> NoiseLevel:
    """The level with a / s raised to the floor where it is below; the same object if it is nowhere below."""
    low = level.signal < floor * level.noise
    if not bool(low.any()):
        return level
    signal = torch.where(low, floor * level.noise, level.signal)
    return NoiseLevel(signal, level.noise, 2 * (signal / level.noise).log())
