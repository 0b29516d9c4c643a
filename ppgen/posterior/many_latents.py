"""``guide="auto"`` on global latents, with others integrated out, whose density takes long.

The others are those of groups (`ppgen.posterior.marginal`), or a field of sequences or crossed effects
(`ppgen.posterior.laplace`). At a point the density takes a hundredth of a second to a second. So modes are found in a
subset of the groups, or by a quasi-Newton method from all starts, and a surrogate from some tens of points around them
(`ppgen.posterior.surrogate`) stands for the density in the search and in the verdict. The error of the surrogate is
measured at draws of the result, and more points are taken if it is large.
"""

import math
from typing import Any

import torch
from pyro import factor, poutine
from torch import Tensor
from torch.func import vmap

from ppgen.posterior.control_variate import FACTOR, same_arguments
from ppgen.posterior.gaussians import LOG_2PI_E, GaussianBatch
from ppgen.posterior.group_chunks import GlobalLatents, GroupChunks, LocalLatents
from ppgen.posterior.laplace import Laplace
from ppgen.posterior.log_density import needs_density
from ppgen.posterior.newton import LocalGaussians
from ppgen.posterior.student_mixture import StudentMixture
from ppgen.posterior.surrogate import Surrogate, most_points, spread_points
from ppgen.tracing.double_precision import ProgramInContext
from ppgen.tracing.sites import Site
from ppgen.utils.budget import Budget

__all__ = ["GlobalProgram", "KnownDensity", "quasi_newton_modes"]

DRAWS_PER_NUMBER = 4  # of the linear function that corrects Laplace's approximation
ROUNDS, ENOUGH = 10, 0.05  # in which draws of a surrogate are added, and the error in nats at which they end
CANDIDATES, WIDER = 4000, 1.5  # from which these are chosen, and the width of their distribution
AT_ONCE = 500  # at which a surrogate is evaluated
STEPS = 60  # of the quasi-Newton method
FIRST_LENGTH, LONGEST = 0.5, 2.0  # of its first step and of any, on the real line
HALVINGS = 12  # of a step that does not increase the density
CONVERGED = 1e-3  # decrement in nats


class _AllDrawn(Exception):
    """All global latents have values."""


class _Drawn(GlobalLatents):
    """Takes global latents as uniform where a density is computed, and ends the program once all have values.

    Their prior is in the surrogate. Far out, added and subtracted, it would leave its rounding error.
    """

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.names and needs_density():
            msg["mask"] = False

    def _pyro_post_sample(self, msg: Site) -> None:
        super()._pyro_post_sample(msg)
        if len(self.parts) == len(self.names):
            raise _AllDrawn


class GlobalProgram(ProgramInContext):
    """The program of the global latents, with a surrogate of their density.

    Args:
        density: the density.
        surrogate: the surrogate; None for the prior alone.
    """

    def __init__(self, density: GroupChunks | Laplace, surrogate: Surrogate | None) -> None:
        super().__init__(density.whole.model)
        self.args, self.surrogate = density.whole.args, surrogate
        self.local = tuple(density.groups.local)
        self.names = tuple(name for name in density.whole.shapes if name not in self.local)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program as far as its last global latent."""
        latents = _Drawn(self.names)
        try:
            with poutine.block(expose=list(self.names)), LocalLatents(self.local), latents:
                self.program(*args, **kwargs)
        except _AllDrawn:
            pass
        if not needs_density() or self.surrogate is None:
            return
        g = latents.point
        if len(g) != self.surrogate.modes.center.shape[-1]:  # particles then run under vmap
            raise ValueError("a program with latents that are integrated out does not broadcast over particles")
        factor(FACTOR, self.surrogate(g) - latents.log_prob)

    def is_of(self, data: tuple) -> bool:
        """Whether these are the arguments of the fit.

        Args:
            data: the arguments.
        """
        return same_arguments(data, self.args)


class KnownDensity:
    """The density of global latents where it is known, and a surrogate of it.

    It is known at points around its modes first. Then draws of the surrogate and of a wider density are added, until it
    is right there: a surrogate may have mass where there are no points and the density has none, or none in tails.

    Args:
        density: the density.
        modes: Gaussians at its modes.
        peaks: its values there, (k,).
        count: the number of points around the modes, fewer in many dimensions.
        budget: the time, which is shown.

    Attributes:
        surrogate: the surrogate.
    """

    def __init__(
        self, density: GroupChunks | Laplace, modes: GaussianBatch, peaks: Tensor, count: int, budget: Budget
    ) -> None:
        self.density, self.modes, self.peaks = density, modes, peaks
        self._known: list[tuple[Tensor, Tensor, Tensor]] = []
        budget = budget.part(1.0, "points of a surrogate")
        self._correct()
        self._add(spread_points(modes, count), budget)
        generator, right = torch.Generator().manual_seed(0), 0
        for _ in range(ROUNDS):
            if not budget.left or right >= 2:  # once may be chance, unless it is far below
                break
            error = self.error(*self._draws(generator), budget)
            right = 0 if error >= ENOUGH else right + (2 if error < ENOUGH / 10 else 1)

    def __len__(self) -> int:
        """The number of points."""
        return sum(len(u) for u, _, _ in self._known)

    @property
    def is_full(self) -> bool:
        """Whether there are as many points as there may be."""
        return len(self) >= most_points(self.modes.center.shape[-1])

    def _correct(self) -> None:
        """Adds what Laplace's approximation leaves out to the density, by draws of the Gaussian at the first mode."""
        if not isinstance(self.density, Laplace) or self.density.field.quadratic:
            return
        generator, center = torch.Generator().manual_seed(0), self.modes.center
        count = max(self.density.checked, DRAWS_PER_NUMBER * (1 + center.shape[-1]))
        noise = torch.randn(count, center.shape[-1], generator=generator, dtype=center.dtype)
        self.peaks = self.peaks - self.density.remaining(center)
        self.density.correct(center[0] + noise @ self.modes.root[0].mT)
        self.peaks = self.peaks + self.density.remaining(center)

    def error(self, u: Tensor, log_q: Tensor | None, budget: Budget) -> float:
        """The standard deviation, in nats, of the error of the surrogate, over the density; the points are added to it.

        Args:
            u: the points, (n, D).
            log_q: the log density from which they were drawn, up to a constant, (n,); None for draws of a fit.
            budget: the time, which is shown.
        """
        before = self.surrogate
        values = self._add(u, budget)
        log_weights = values * 0 if log_q is None else values - log_q
        usable = log_weights.isfinite()
        if usable.sum() < 2:
            return math.inf
        difference, weights = (values - vmap(before)(u))[usable], log_weights[usable].softmax(0)
        return float(torch.cov(difference, aweights=weights, correction=0).sqrt())

    def _add(self, u: Tensor, budget: Budget) -> Tensor:
        values, gradients = self.density.log_prob_and_grad(u, budget.show)
        if not self._known or not self.is_full:
            self._known.append((u, values, gradients))
            points = map(torch.cat, zip(*self._known, strict=True))
            self.surrogate = Surrogate(self.modes, self.peaks, *points)
        return values

    def _draws(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws of the surrogate and of its root, which has wider tails, and their log density up to a constant.

        They are chosen by importance weights from draws that are wider still.
        """
        center, root = self.modes.center, WIDER * self.modes.root
        wider = StudentMixture(torch.full((len(center),), 1 / len(center)).double(), center, root)
        u = wider.sample(CANDIDATES, generator)
        log_p = torch.cat([vmap(self.surrogate)(part) for part in u.split(AT_ONCE)])
        log_q = wider.log_prob_and_grad(u)[0]
        share = ((log_p - log_q).softmax(0) + (log_p / 2 - log_q).softmax(0)) / 2
        chosen = torch.multinomial(share, self.density.checked, generator=generator)
        return u[chosen], (log_q + share.log())[chosen]


def quasi_newton_modes(laplace: Laplace, starts: Tensor, budget: Budget) -> LocalGaussians:
    """Gaussians at modes of the density, by the method of Broyden, Fletcher, Goldfarb and Shanno from each start.

    Args:
        laplace: the density.
        starts: (n, D).
        budget: the time, after which the best so far is returned.

    Raises:
        FloatingPointError: if the density is finite at no start.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for number, start in enumerate(starts):
        if not found or budget.left:
            part = budget.part(1.0, f"finding modes from start {number + 1}")
            mode = _mode_from(laplace, start, found[0][1] if found else None, part)
            if mode is not None:
                found.append(mode)
    if not found:
        raise FloatingPointError(
            "the density of the global latents is finite at no starting point: given these, the others have no mode"
        )
    center, root, value = map(torch.stack, zip(*found, strict=True))
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    elbo = value + log_det + starts.shape[1] / 2 * (LOG_2PI_E - 1)
    return LocalGaussians(center, root, elbo, STEPS)


def _mode_from(
    laplace: Laplace, u: Tensor, root: Tensor | None, budget: Budget
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The mode, a triangular root of the inverse of the curvature there, and the value.

    Args:
        laplace: the density.
        u: the start, (D,).
        root: the root at another mode, whose curvature is a guess of that at the start.
        budget: the time.
    """

    def at(u: Tensor) -> tuple[Tensor, Tensor]:
        values, gradients = laplace.log_prob_and_grad(u[None])
        return values[0], gradients[0]

    value, gradient = at(u)
    if not value.isfinite():
        return None
    unknown, eye = root is None, torch.eye(len(u), dtype=u.dtype)
    inverse = eye * min(1.0, FIRST_LENGTH / float(gradient.norm())) if root is None else root @ root.mT
    for number in range(STEPS):
        budget.show(f"step {number + 1}")
        step = inverse @ gradient
        if float(gradient @ step) < CONVERGED or not budget.left:
            break
        step = step * min(1.0, LONGEST / float(step.norm()))
        for _ in range(HALVINGS):
            moved, there = at(u + step)
            if moved > value:
                break
            step = step / 2
        else:
            break
        change, slope = gradient - there, float((gradient - there) @ step)
        u, value, gradient = u + step, moved, there
        if slope > 0:  # the curvature along the step is that of a mode
            if number == 0 and unknown:
                inverse = eye * float(slope / change.square().sum())
            left = eye - torch.outer(step, change) / slope
            inverse = left @ inverse @ left.mT + torch.outer(step, step) / slope
    return u, torch.linalg.cholesky((inverse + inverse.mT) / 2), value
