"""``guide="auto"`` on a field of latents, sequences or crossed effects: they are integrated out by Laplace's method.

The density of the global latents (`ppgen.posterior.laplace`) takes a hundredth of a second to a second at a point. So
its modes are found by a quasi-Newton method from all starts, and a surrogate from some tens of points around them
(`ppgen.posterior.surrogate`) stands for it in the search and in the verdict. The error of the surrogate is measured at
draws of the result, where more points are taken if it is large.
"""

from typing import Any

import torch
from pyro import factor, poutine
from torch import Tensor

from ppgen.posterior.control_variate import FACTOR, same_arguments
from ppgen.posterior.gaussians import LOG_2PI_E, GaussianBatch
from ppgen.posterior.group_chunks import GlobalLatents, LocalLatents
from ppgen.posterior.laplace import Laplace
from ppgen.posterior.log_density import needs_density
from ppgen.posterior.newton import LocalGaussians
from ppgen.posterior.surrogate import Surrogate, spread_points
from ppgen.tracing.double_precision import ProgramInContext
from ppgen.tracing.sites import Site
from ppgen.utils.budget import Budget

__all__ = ["FieldProgram", "quasi_newton_modes"]

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


class FieldProgram(ProgramInContext):
    """The program of the global latents, with a surrogate of their density.

    Args:
        laplace: the density.
        surrogate: the surrogate; None for the prior alone.
    """

    def __init__(self, laplace: Laplace, surrogate: Surrogate | None) -> None:
        super().__init__(laplace.whole.model)
        self.args, self.surrogate, self.size = laplace.whole.args, surrogate, laplace.size
        self.local = laplace.field.local
        self.names = tuple(name for name in laplace.whole.shapes if name not in self.local)

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
        g = torch.cat([latents.parts[name].reshape(-1) for name in self.names])
        if len(g) != self.surrogate.modes.center.shape[-1]:  # particles then run under vmap
            raise ValueError("a program with latents that are integrated out does not broadcast over particles")
        factor(FACTOR, self.surrogate(g) - latents.log_prob)

    def is_of(self, data: tuple) -> bool:
        """Whether these are the arguments of the fit.

        Args:
            data: the arguments.
        """
        return same_arguments(data, self.args)


def surrogate_of(laplace: Laplace, modes: GaussianBatch, peaks: Tensor, count: int, budget: Budget) -> Surrogate:
    """A surrogate by so many points.

    Args:
        laplace: the density.
        modes: Gaussians at its modes.
        peaks: its values there, (k,).
        count: the number of points, fewer in many dimensions.
        budget: the time, which is shown.
    """
    u = spread_points(modes, count)
    values, gradients = laplace.log_prob_and_grad(u, budget.part(1.0, "points of a surrogate").show)
    return Surrogate(modes, peaks, u, values, gradients)


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
