"""The invariants of a likelihood head, which turns a network's output into a distribution over events."""

import torch

from ppgen.models.likelihood import Head
from ppgen.utils.means import mean

__all__ = ["check_likelihood"]

ROWS, DRAWS = 6, 4000


def check_likelihood(head: Head, *, seed: int = 0) -> None:
    """Checks a head h (*batch, size, *event_shape) -> p(x | h), as `ppgen.models.likelihood.Head` describes it.

    * Its batch and event shapes are right, for one batch dimension and for two.
    * Draws pass the head's own `check`, and their log density is finite.
    * The mean is that of draws (every element within five standard errors; the level is below 1e-6 an element).
    * The log density passes a finite gradient to h.

    Args:
        head: the head, with `size`, `event_shape`, `observed` and `check`.
        seed: seed of h and of the draws.

    Raises:
        AssertionError: naming the invariant that does not hold.

    Example:
        >>> import ppgen
        >>> from ppgen.models.likelihood import Gaussian
        >>> ppgen.testing.check_likelihood(Gaussian((3,), covariance="full"))
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        h = torch.randn(ROWS, head.size, *head.event_shape, requires_grad=True)
        p = head(h)
        assert p.batch_shape == (ROWS,), f"expected the batch shape {(ROWS,)}, got {tuple(p.batch_shape)}"
        assert p.event_shape == head.event_shape, f"expected events {head.event_shape}, got {tuple(p.event_shape)}"
        stacked = head(h.expand(2, *h.shape))
        assert stacked.batch_shape == (2, ROWS), f"expected the batch shape {(2, ROWS)}, got {stacked.batch_shape}"
        x = p.sample()
        head.check(x)
        log_prob = p.log_prob(head.observed(x, h.dtype))
        assert log_prob.shape == (ROWS,), f"log p has the shape {tuple(log_prob.shape)}"
        assert log_prob.isfinite().all(), "log p of a draw is not finite"
        (slope,) = torch.autograd.grad(log_prob.sum(), h)
        assert slope.isfinite().all(), "the gradient of log p with respect to h is not finite"
        assert slope.any(), "log p passes no gradient to h"
        draws = p.sample((DRAWS,)).to(h.dtype)
        error = draws.std(0) / DRAWS**0.5
        off = (draws.mean(0) - mean(p)).abs() > 5 * error + 1e-6
        assert not off.any(), f"the mean is not that of draws in {int(off.sum())} elements"
