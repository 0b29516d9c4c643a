"""The value of a metric between two samples, with a critic trained for it if the metric needs one."""

import copy

import torch
from torch import Tensor

from ppgen.infer.optimizers import ParameterOptimizer
from ppgen.metrics import CriticMetric, Metric

__all__ = ["estimate"]


def estimate(metric: Metric, x: Tensor, y: Tensor, *, steps: int = 1000, batch_size: int = 256, seed: int = 0) -> float:
    """D(P, Q) from rows x of P and y of Q, in the metric's own unit.

    A metric without a critic is evaluated on all rows. A critic is trained on one half of each sample, in batches, and
    evaluated on the other half. On held-out rows its value is a lower bound of D up to sampling error, so a critic that
    memorizes rows gains nothing, and two samples of one distribution have a value of zero or below. The metric's own
    critic is not changed; a copy is trained, or a new network if the metric builds its critic itself.

    Args:
        metric: The metric.
        x: Rows (n, *event).
        y: Rows (m, *event).
        steps: The number of training steps of a critic.
        batch_size: The number of rows of each sample in a training step.
        seed: The seed of the halves, the batches and a new critic; the global random state is not changed.

    Raises:
        ValueError: If a critic gets fewer than four rows of a sample, and as the metric does.
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
        (x, held_out_x), (y, held_out_y) = (s.detach()[torch.randperm(len(s))].chunk(2) for s in (x, y))
        metric.build(x)
        assert metric.network is not None
        optimizer = ParameterOptimizer(metric.optimizer)
        optimizer.add_parameters(dict(metric.network.named_parameters()))
        for _ in range(steps):
            batch = (s[torch.randint(len(s), (min(batch_size, len(s)),))] for s in (x, y))
            optimizer.update(optimizer.gradients(metric.critic_loss(*batch)))
            optimizer.step_scheduler()
            metric.after_step()
        with torch.no_grad():
            return float(metric(held_out_x, held_out_y))
