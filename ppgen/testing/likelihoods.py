"""The invariants of a likelihood head, which turns a network's output into a distribution over events."""

import torch

from ppgen.models.likelihood import Head
from ppgen.utils.means import mean

__all__ = ["check_likelihood"]

ROWS, DRAWS = 6, 4000  # the number of network outputs h, and of draws for each of them


def check_likelihood(head: Head, *, seed: int = 0) -> None:
    """Checks a head h (*batch, size, *event_shape) -> p(x | h), as `ppgen.models.likelihood.Head` describes it.

    * p(x | h) has the expected batch and event shapes, for one batch dimension and for two.
    * Draws pass the head's own `check`, and their log density is finite.
    * The mean agrees with the average of draws (each element within five standard errors, which happens by chance with
      a probability below 1e-6 per element).
    * The log density has a finite gradient with respect to h.

    Args:
        head: the head, with `size`, `event_shape`, `observed` and `check`.
        seed: the seed of h and of the draws.

    Raises:
        AssertionError: if an invariant does not hold; the message names it.

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
        try:
            head.check(x)
        except ValueError as error:
            raise AssertionError(f"a draw does not pass the head's own check: {error}") from error
        log_prob = p.log_prob(head.observed(x, h.dtype))
        assert log_prob.shape == (ROWS,), f"expected log p of shape {(ROWS,)}, got {tuple(log_prob.shape)}"
        assert log_prob.isfinite().all(), "log p of a draw is not finite"
        assert log_prob.requires_grad, "log p does not depend on h"
        (gradient,) = torch.autograd.grad(log_prob.sum(), h)
        assert gradient.isfinite().all(), "the gradient of log p with respect to h is not finite"
        assert gradient.any(), "the gradient of log p with respect to h is zero"
        draws = p.sample((DRAWS,)).to(h.dtype)
        standard_error = draws.std(0) / DRAWS**0.5
        wrong = (draws.mean(0) - mean(p)).abs() > 5 * standard_error + 1e-6
        assert not wrong.any(), f"the mean differs from the average of draws in {int(wrong.sum())} elements"
