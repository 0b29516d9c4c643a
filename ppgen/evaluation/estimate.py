"""A metric between two samples, its critic trained for the purpose where it has one."""

import copy

import torch
from torch import Tensor

from ppgen.infer.optimizers import ParameterOptimizer
from ppgen.metrics import CriticMetric, Metric

__all__ = ["estimate"]


def estimate(metric: Metric, x: Tensor, y: Tensor, *, steps: int = 1000, batch_size: int = 256, seed: int = 0) -> float:
    """D(P, Q) from rows x of P and y of Q, in the metric's own unit.

    A metric of samples is taken of all rows. A critic is trained on one half of each sample, in batches, and judged on
    the other: on rows that it has not seen its value is a lower bound of D but for sampling error, so that a critic
    that memorizes gains nothing, and two samples of one law come out at zero or below. The metric's own critic is left
    as it is; a copy is trained, or a new one where the metric makes its critic itself.

    Args:
        steps, batch_size: of the critic's training.
        seed: of halves, batches and a new critic; the caller's random state is left as it was.

    Raises:
        ValueError: for fewer than four rows of a sample under a critic, and as the metric does.
    """
    if not isinstance(metric, CriticMetric):
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)  # of random directions
            return float(metric(x, y))
    if min(len(x), len(y)) < 4:
        raise ValueError(f"estimate: a critic needs at least four rows of each sample, got {len(x)} and {len(y)}")
    metric = copy.deepcopy(metric)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        (x, held_x), (y, held_y) = (s.detach()[torch.randperm(len(s))].chunk(2) for s in (x, y))
        metric.build(x)
        assert metric.network is not None
        player = ParameterOptimizer(metric.optimizer)
        player.meet(dict(metric.network.named_parameters()))
        for _ in range(steps):
            batch = (s[torch.randint(len(s), (min(batch_size, len(s)),))] for s in (x, y))
            player.update(player.gradients(metric.critic_loss(*batch)))
            player.advance()
            metric.after_step()
        with torch.no_grad():
            return float(metric(held_x, held_y))
