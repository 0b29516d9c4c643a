"""How near a model's draws come to data, by every metric at once, whatever the model was trained on.

Both samples are brought to a common scale first: each column of a table, or all pixels together, less their mean and
over their standard deviation in the reference. Values are comparable between models of the same data.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

import ppgen.metrics as m
from ppgen import nets
from ppgen.evaluation import classifier_test, coverage, estimate, label_agreement, mode_coverage, pyramid_distance
from ppgen.evaluation.pyramid import LEAST_SIDE

__all__ = ["METRICS", "measure"]

CRITIC = partial(nets.Critic, hidden=(64, 64))
METRICS: dict[str, Callable[[], m.Metric]] = {
    "energy distance": m.EnergyDistance,
    "MMD²": m.MMD,
    "sliced Wasserstein-2²": m.SlicedWasserstein,
    "Wasserstein-1, exact": partial(m.Wasserstein, p=1),
    "Sinkhorn": m.Sinkhorn,
    "Fréchet": m.Frechet,
    "CORAL": m.CORAL,
    "Kolmogorov, sliced": m.KolmogorovSmirnov,
    "Cramér-von Mises, sliced": m.CramerVonMises,
    "Jensen-Shannon, by a critic (nats)": partial(
        m.JensenShannon, CRITIC, lr=1e-3, penalty=m.ZeroCenteredGradientPenalty(0.1)
    ),
    "Wasserstein-1, by a critic": partial(m.WassersteinDual, CRITIC, lr=1e-3, penalty=m.GradientPenalty(10.0)),
}

C2ST = "classifier two-sample accuracy (0.5: no telling)"

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
    """Numbers by name for generated rows beside data, (m, *event) and (n, *event).

    Args:
        labeled: further data and their labels, to see of which label the draws are.
        modes: (K, features) centers and the standard deviation around them, of data that are such a mixture.
        metrics: whether to take all `METRICS` and a classifier's test; without, only fidelity, variety and, of images
            of at least 8 x 8, `pyramid_distance` at each level.
        seed: of directions, folds and critics.
    """
    numbers: dict[str, float] = {}
    axes = None if data.ndim > 2 else 0
    mean, scale = data.mean(axes), data.std(axes)
    x, y = ((rows - mean) / np.where(scale > 0, scale, 1.0) for rows in (data, generated))
    if metrics:
        there, here = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y, dtype=torch.float32)
        for name, make in METRICS.items():
            numbers[name] = estimate(make(), there, here, steps=500, seed=seed)
        numbers[C2ST] = classifier_test(x, y, classifier="mlp", seed=seed).statistic
    numbers |= vars(coverage(x, y))
    if data.ndim == 4 and min(data.shape[2:]) >= LEAST_SIDE:
        pyramid = pyramid_distance(y, x, seed=seed)
        numbers |= {f"patches at {level}, sliced Wasserstein-1": value for level, value in pyramid.levels.items()}
        numbers["patches, mean over levels"] = pyramid.mean
    if labeled is not None:
        agreement = label_agreement(*labeled, generated)
        numbers["agreement of two classifiers"] = agreement.share
        numbers["labels drawn"] = float((agreement.drawn > 0).sum())
        numbers["share of the rarest label"] = float(agreement.drawn.min())
    if modes is not None:
        found = mode_coverage(generated, modes[0], sigma=modes[1])
        numbers["modes captured"] = float(found.captured)
        numbers["high quality share"] = found.high_quality
        numbers["reverse KL over modes (nats)"] = found.reverse_kl
    return numbers
