"""Scattered points from which a search for modes starts: on the real line, where log p and its gradient are finite.

They are uniform on (-2, 2) in each coordinate, as in Stan. Where too few of these are finite, smaller intervals are
tried, then draws of the prior, then larger intervals. If few points are found, the rest lies near them.

Where scales are far from the middle of their prior, the few of its draws that explain the data are near these:
`likely_points` are the best of many, by log p.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.tracing.sites import sample_sites

__all__ = ["initial_points", "likely_points"]

RADIUS = 2.0  # of the first interval
SHRINKAGE, GROWTH = 0.7, 1.5  # of the radius after each round
ROUNDS = 10  # of each kind
POINTS_PER_ROUND = 10  # for each point that is asked for
PRIOR_DRAWS = 20  # of which the best one is a likely point
NEARBY = 0.1  # standard deviations of a point around one that was found, halved after each round


def initial_points(target: UnconstrainedLogDensity, count: int, generator: torch.Generator) -> Tensor:
    """Scattered points (count, dim) at which log p and its gradient are finite.

    Args:
        target: log p.
        count: how many points.
        generator: source of the random numbers.

    Raises:
        FloatingPointError: if no such point is found; the message names the sites that are not finite.
        ValueError: if the program's density is not a function of its latents; raised by torch or Pyro if an argument or
            data lie outside a distribution's domain.
    """
    found, tried = torch.empty(0, target.dim, dtype=torch.float64), 0
    for points in _candidates(target, POINTS_PER_ROUND * count, generator):
        tried += len(points)
        found = torch.cat([found, points[_evaluate(target, points)[1]]])
        if len(found) >= count:
            break
    if not len(found):
        raise FloatingPointError(_not_finite_message(target, points[0], tried))
    target.trace(found[0], validate=True)
    target.check(found[0])
    return found[:count] if len(found) >= count else _with_nearby(target, found, count, generator)


def likely_points(target: UnconstrainedLogDensity, count: int, generator: torch.Generator) -> Tensor:
    """The draws of the prior of highest log p, at most (count, dim); none if the prior is improper.

    Args:
        target: log p.
        count: how many points.
        generator: source of the random numbers.
    """
    points = _prior_points(target, PRIOR_DRAWS * count, generator)
    value, finite = _evaluate(target, points)
    return points[finite][value[finite].argsort(descending=True)][:count]


def _prior_points(target: UnconstrainedLogDensity, size: int, generator: torch.Generator) -> Tensor:
    """Draws of the prior (size, dim); none if it is improper."""
    seed = int(torch.randint(2**31, (), generator=generator))
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return torch.stack([target.prior_point() for _ in range(size)])
    except NotImplementedError:
        return torch.empty(0, target.dim, dtype=torch.float64)


def _candidates(target: UnconstrainedLogDensity, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rounds of points (size, dim)."""

    def uniform(radius: float) -> Tensor:
        return radius * (2 * torch.rand(size, target.dim, generator=generator, dtype=torch.float64) - 1)

    yield from (uniform(RADIUS * SHRINKAGE**number) for number in range(ROUNDS))
    for _ in range(ROUNDS):
        points = _prior_points(target, size, generator)
        if not len(points):
            break
        yield points
    yield from (uniform(RADIUS * GROWTH**number) for number in range(1, ROUNDS + 1))


def _with_nearby(target: UnconstrainedLogDensity, found: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Points that were found, and others near them."""
    missing = torch.arange(count - len(found)) % len(found)
    points = found[missing].clone()
    for number in range(ROUNDS):
        noise = torch.randn(points.shape, generator=generator, dtype=points.dtype)
        moved = found[missing] + NEARBY * 0.5**number * noise
        new = (points == found[missing]).all(-1) & _evaluate(target, moved)[1]
        points = torch.where(new[:, None], moved, points)
    return torch.cat([found, points])


def _evaluate(target: UnconstrainedLogDensity, points: Tensor) -> tuple[Tensor, Tensor]:
    """The values of log p at points (n, dim), and whether these and the gradients are finite: (n,)."""
    if not len(points):
        return points.new_empty(0), torch.empty(0, dtype=torch.bool)
    value, gradient = target.log_prob_and_grad(points)
    return value, value.isfinite() & gradient.isfinite().all(-1)


def _not_finite_message(target: UnconstrainedLogDensity, u: Tensor, tried: int) -> str:
    """Which sites are not finite at a point."""
    values = ", ".join(f"{name} = {_short(value)}" for name, value in target.constrain(u).items())
    sites = sample_sites(target.trace(u)).items()
    bad = [name for name, site in sites if not torch.as_tensor(site["log_prob"]).isfinite().all()]
    what = f"log p of {', '.join(map(repr, bad))} is" if bad else "the gradient of log p is"
    return (
        f"{what} not finite at any of {tried} points tried, around 0 on the real line and drawn from the prior; the "
        f"last was {values}. Look for data outside a distribution's support, a scale of 0 or a division by 0 there. If "
        "you know values at which it is finite, fit a guide that starts there: AutoMultivariateNormal(model, "
        "init_loc_fn=init_to_value(values={...}))"
    )


def _short(value: Tensor) -> str:
    """The first numbers of a tensor, for a message."""
    numbers = value.flatten().tolist()
    shown = ", ".join(f"{number:.3g}" for number in numbers[:4]) + (", ..." if len(numbers) > 4 else "")
    return shown if value.dim() == 0 else f"[{shown}]"
