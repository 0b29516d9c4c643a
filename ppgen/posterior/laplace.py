"""The density of global latents, with a field of other latents integrated out by Laplace's approximation.

Given the global latents g, log p as a function of the field z has a mode z*(g), found by Newton's method, and a sparse
negative Hessian H(g, z) (`ppgen.posterior.latent_field`). The marginal log density of g, in nats, is

    m(g) ~ log p(g, z*) - log |H(g, z*)| / 2 + n/2 log 2 pi

(Tierney & Kadane 1986, https://doi.org/10.1080/01621459.1986.10478240; Rue et al. 2009,
https://doi.org/10.1111/j.1467-9868.2008.00700.x), exact where log p is quadratic in z. Its gradient is exact: dz*/dg
follows from the implicit function theorem, d log |H| from the factor by reverse mode.

The mean of the field differs from its mode, to first order by -H^-1 d log |H| / dz / 2, which draws are corrected for.

What the approximation leaves out is measured by draws z = z* + L'^-1 e: with w(e) = p(g, z) / N(z; z*, H^-1), scaled to
one at the mode,

    log E w ~ E log w + Var log w / 2

since log w is a sum of many small parts. Taken by the same noise at draws of the posterior of g, a linear function of g
is fitted to it and added to m. What is left over by other noise at other draws, but for a constant, is the error.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen.posterior.latent_field import LatentField
from ppgen.posterior.sparse_precision import Factor

__all__ = ["Laplace"]

POINTS = 24  # of the first surrogate
CHECKED = 16  # draws at which errors are measured
STEPS = 100  # of Newton's method
CONVERGED, NEARLY = 1e-16, 1e-10  # decrement of log p, in nats; the latter where rounding lets it not fall any more
ROUNDING = 1e-13  # relative, of log p
LENGTHS = 0.5 ** torch.arange(12.0)  # of a step that are tried
DAMPINGS = (0.0, *(10.0**k for k in range(-3, 7)))  # added to the diagonal of H until it is positive definite
POINTS_PER_NUMBER = 3  # that a linear function needs
NOISE = 32  # draws of the field that measure the error


class Mode(NamedTuple):
    """The field at its mode given the global latents.

    Attributes:
        z: the field, (n,).
        log_p: log p there.
        entries: those of H there.
        factor: the factor of H.
    """

    z: Tensor
    log_p: Tensor
    entries: Tensor
    factor: Factor


class Laplace:
    """Integrates a field out.

    Args:
        field: the field.

    Attributes:
        whole: log p of all latents.
        groups: the field, as the guide of all latents asks for it.
        size: the number of its latents.
        correction: the distance of the field's mean from its mode, to first order, after `begin_at`.
        remainder: the linear function of g that is added to m, after `correct`: its values at zero and its slope.
        skew: the largest distance of a mean from a mode, to first order, in standard deviations, after `begin_at`.
    """

    unit = "latents"
    first, checked = POINTS, CHECKED

    def __init__(self, field: LatentField) -> None:
        self.field = self.groups = field
        self.whole, self.size = field.density, field.size
        self._at = torch.zeros(len(field.global_index), dtype=torch.float64)
        self._slope: Tensor | None = None
        self._near = self.correction = torch.zeros(field.size, dtype=torch.float64)
        self.remainder = torch.zeros(1 + len(field.global_index), dtype=torch.float64)
        self.skew = 0.0

    def log_prob(self, u: Tensor, show: Callable[[str], object] = lambda text: None) -> Tensor:
        """The values of m at points (k, D): (k,); -inf where the field has no mode.

        Args:
            u: global latents.
            show: a function that is told how far the work is.
        """
        return self._at_each(u, show, self._value_at)[0]

    def log_prob_and_grad(self, u: Tensor, show: Callable[[str], object] = lambda text: None) -> tuple[Tensor, Tensor]:
        """The values (k,) and the gradients (k, D) at points (k, D).

        Args:
            u: global latents.
            show: a function that is told how far the work is.
        """
        values, gradients = self._at_each(u, show, self._one)
        return values, gradients

    def _at_each(
        self, u: Tensor, show: Callable[[str], object], function: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """The results of a function of one point at each of points (k, D), which are shown, stacked."""
        found = []
        for i, g in enumerate(u):
            show(f"point {i + 1} of {len(u)}")
            found.append(function(g))
        return tuple(map(torch.stack, zip(*found, strict=True)))

    def begin_at(self, g: Tensor) -> None:
        """Lets Newton's method begin near the mode given these global latents (D,), and from there on a line in g."""
        found = self.mode(g)
        if found is None:
            return
        z, factor = found.z, found.factor
        with torch.enable_grad():  # the columns of d slope / dg, by reverse mode alone: d / dv of v' d slope / dg
            variable = g.detach().clone().requires_grad_()
            slope = self.field.derivatives(variable, z)[1]
            v = torch.zeros_like(slope, requires_grad=True)
            (products,) = torch.autograd.grad(slope, variable, v, create_graph=True)
            columns = [torch.autograd.grad(part, v, retain_graph=True)[0] for part in products]
        self._at, self._near, self._slope = g, z, torch.stack([factor.solve(column) for column in columns], -1)
        if not self.field.quadratic:
            weights = self.field.pattern.log_det_slope(found.entries, factor)
            with torch.enable_grad():
                z = z.clone().requires_grad_()
                (slope,) = torch.autograd.grad(self.field.derivatives(g, z)[2] @ weights, z)
            self.correction = -factor.solve(slope) / 2
            variance = weights[self.field.diagonal.bool()]
            self.skew = float((self.correction / variance.sqrt()).abs().max())

    def draw(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """A draw of the field given the global latents (D,), and the log density of that draw.

        Returns:
            the draw (n, 1); its density, which is that of the conditional distribution as far as m is exact.

        Raises:
            ValueError: if the field has no mode there.
        """
        return _Draw.apply(g, self)

    def draw_at(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """`draw`, not under vmap."""
        found = self.mode(g)
        if found is None:
            raise ValueError("the conditional density of the latents that are integrated out has no mode")
        draw = found.z + self.correction + found.factor.draw(torch.randn_like(found.z))
        return draw[:, None], self.field.log_prob(g, draw) - self._value(g, found)

    @property
    def corrections(self) -> dict[str, Any]:
        """What a file has to hold for draws to be the same, as JSON values."""
        return {"skew": self.skew, "near": self._at.tolist(), "remainder": self.remainder.tolist()}

    def restore(self, corrections: dict[str, Any]) -> None:
        """Takes corrections from a file.

        Args:
            corrections: the property of that name, and more.
        """
        self.begin_at(torch.tensor(corrections["near"], dtype=torch.float64))
        self.remainder = torch.tensor(corrections["remainder"], dtype=torch.float64)

    def remaining(self, u: Tensor) -> Tensor:
        """The values of the linear function that is added to m, at points (..., D): (...)."""
        return self.remainder[0] + u @ self.remainder[1:]

    def correct(self, u: Tensor) -> None:
        """Adds to m what Laplace's approximation leaves out, as a linear function that is fitted at points.

        Args:
            u: draws of the posterior of the global latents, (k, D).
        """
        left = self._left_out(u, 0)
        known = left.isfinite()
        if known.sum() > POINTS_PER_NUMBER * len(self.remainder):
            design = torch.cat([torch.ones(len(u), 1).to(u), u], 1)[known]
            self.remainder = torch.linalg.lstsq(design, left[known, None]).solution[:, 0]

    def other_error(self, u: Tensor) -> float:
        """The standard deviation over points, in nats, of what m leaves out.

        Args:
            u: global latents, (k, D).
        """
        if self.field.quadratic:
            return 0.0
        left = self._left_out(u, 1) - self.remaining(u)
        left = left[left.isfinite()]
        return float(left.std()) if len(left) > 1 else math.inf

    @torch.no_grad()
    def _left_out(self, u: Tensor, seed: int) -> Tensor:
        """The logarithm of E w at points (k, D): (k,); NaN where the field has no mode."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(NOISE // 2, self.field.size, generator=generator, dtype=torch.float64)
        left = torch.full((len(u),), math.nan, dtype=torch.float64)
        for i, g in enumerate(u):
            if (mode := self.mode(g)) is None:
                continue
            log_w = torch.stack(
                [
                    self.field.log_prob(g, mode.z + sign * mode.factor.draw(e)) - mode.log_p + e.square().sum() / 2
                    for e in noise
                    for sign in (1, -1)
                ]
            )
            left[i] = log_w.mean() + log_w.var() / 2
        return left

    @torch.no_grad()
    def mode(self, g: Tensor) -> Mode | None:
        """The mode z*; None if Newton's method does not find it.

        Args:
            g: global latents, (D,).
        """
        z = self._near if self._slope is None else self._near + self._slope @ (g - self._at)
        log_p, gradient, entries = self.field.derivatives(g, z)
        if not log_p.isfinite():
            z = torch.zeros_like(z)
            log_p, gradient, entries = self.field.derivatives(g, z)
        last, before, factored = math.inf, None, None
        for _ in range(STEPS):
            if before is None or not torch.equal(entries, before):  # as it is of linear Gaussian programs
                factored = self._factor(entries)
            if factored is None or not log_p.isfinite():
                return None
            before, (factor, exact) = entries, factored
            step = factor.solve(gradient)
            decrement = float(gradient @ step)
            if exact and (decrement < CONVERGED or NEARLY > decrement > last / 2):
                if self._slope is None:
                    self._near = z
                return Mode(z, log_p, entries, factor)
            last = decrement
            for length in LENGTHS:
                moved = self.field.derivatives(g, z + length * step)
                if moved[0] >= log_p - ROUNDING * (1 + log_p.abs()):
                    break
            else:
                return None
            z = z + length * step
            log_p, gradient, entries = moved
        return None

    def _factor(self, entries: Tensor) -> tuple[Factor, bool] | None:
        """The factor of H, and whether nothing was added to its diagonal."""
        pattern = self.field.pattern
        for damping in DAMPINGS:
            try:
                return pattern.factor(entries + damping * self.field.diagonal), not damping
            except torch.linalg.LinAlgError:
                continue
        return None

    def _value(self, g: Tensor, mode: Mode) -> Tensor:
        value = mode.log_p - mode.factor.log_det / 2 + self.field.size / 2 * math.log(2 * math.pi)
        return value + self.remaining(g)

    def _value_at(self, g: Tensor) -> tuple[Tensor]:
        """The value at a point (D,)."""
        self.whole.evaluations["values"] += 1
        found = self.mode(g)
        return (torch.tensor(-math.inf, dtype=torch.float64) if found is None else self._value(g, found),)

    def _one(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the gradient (D,) at a point (D,)."""
        self.whole.evaluations["gradients"] += 1
        found = self.mode(g)
        if found is None:
            return torch.tensor(-math.inf, dtype=torch.float64), torch.full_like(g, math.nan)
        weights = self.field.pattern.log_det_slope(found.entries, found.factor)
        with torch.enable_grad():
            g, z = g.detach().requires_grad_(), found.z.clone().requires_grad_(not self.field.quadratic)
            log_p, slope, entries = self.field.derivatives(g, z)
            of_both = log_p - entries @ weights / 2
            if self.field.quadratic:  # at the mode nothing depends on z
                (of_g,) = torch.autograd.grad(of_both, g)
            else:
                of_g, of_z = torch.autograd.grad(of_both, (g, z), retain_graph=True)
                of_g = of_g + torch.autograd.grad(slope, g, found.factor.solve(of_z))[0]
        return self._value(g.detach(), found), of_g + self.remainder[1:]


class _Draw(torch.autograd.Function):
    """`Laplace.draw`, one point after another under vmap."""

    @staticmethod
    def forward(g: Tensor, laplace: Laplace) -> tuple[Tensor, Tensor]:
        return laplace.draw_at(g)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, g: Tensor, laplace: Laplace) -> tuple:
        draws = [_Draw.apply(part, laplace) for part in g.unbind(in_dims[0])]
        return tuple(map(torch.stack, zip(*draws, strict=True))), (0, 0)
