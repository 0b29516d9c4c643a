"""All measures of how close a model's draws are to data, whatever the model was trained on.

Both samples are first brought to a common scale: each column of a table, or all pixels together, is standardized by
the mean and standard deviation of the data. Values are comparable between models of the same data.
"""

from collections.abc import Callable

import numpy as np
import torch

from ppgen import metrics as m
from ppgen.evaluation import classifier_test, coverage, estimate, label_agreement, mode_coverage, pyramid_distance
from ppgen.evaluation.pyramid import MIN_SIDE

__all__ = ["METRICS", "measure"]

METRICS: dict[str, Callable[[], m.Metric]] = {
    kind.title: kind.for_summary
    for kind in sorted(m.METRICS.values(), key=lambda kind: issubclass(kind, m.CriticMetric))  # the slow ones last
    if kind.title is not None
}
"""The metrics of the summary by their titles; `ppgen.metrics.METRICS` is the table that they come from."""

C2ST = "classifier two-sample accuracy (0.5 is chance)"

Modes = tuple[np.ndarray, float]


def measure(
    generated: np.ndarray,
    data: np.ndarray,
    *,
    labeled: tuple[np.ndarray, np.ndarray] | None = None,
    modes: Modes | None = None,
    metrics: bool = True,
    seed: int = 0,
) -> dict[str, float]:
    """Measures by name, for generated rows compared with data.

    Args:
        generated: Rows (m, *event).
        data: Rows (n, *event).
        labeled: Further data and their labels, to determine the labels of the generated rows.
        modes: The centers (K, features) and the standard deviation of the modes, if the data are such a mixture.
        metrics: Whether to evaluate all `METRICS` and a classifier test. Without them, the result has only the
            fidelity, the diversity and, for images of at least 8 x 8, the `pyramid_distance` at each level.
        seed: The seed of directions, folds and critics.
    """
    numbers: dict[str, float] = {}
    axes = None if data.ndim > 2 else 0
    mean, std = data.mean(axes), data.std(axes)
    x, y = ((rows - mean) / np.where(std > 0, std, 1.0) for rows in (data, generated))
    if metrics:
        tensor_x, tensor_y = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y, dtype=torch.float32)
        for name, make in METRICS.items():
            numbers[name] = estimate(make(), tensor_x, tensor_y, steps=500, seed=seed)
        numbers[C2ST] = classifier_test(x, y, classifier="mlp", seed=seed).statistic
    numbers |= vars(coverage(x, y))
    if data.ndim == 4 and min(data.shape[2:]) >= MIN_SIDE:
        pyramid = pyramid_distance(y, x, seed=seed)
        numbers |= {f"patches at {level}, sliced Wasserstein-1": value for level, value in pyramid.levels.items()}
        numbers["patches, mean over levels"] = pyramid.mean
    if labeled is not None:
        agreement = label_agreement(*labeled, generated)
        numbers["agreement of two classifiers"] = agreement.share
        numbers["labels drawn"] = float((agreement.drawn > 0).sum())
        numbers["share of the rarest label"] = float(agreement.drawn.min())
    if modes is not None:
        captured = mode_coverage(generated, modes[0], sigma=modes[1])
        numbers["modes captured"] = float(captured.captured)
        numbers["high quality share"] = captured.high_quality
        numbers["reverse KL over modes (nats)"] = captured.reverse_kl
    return numbers
