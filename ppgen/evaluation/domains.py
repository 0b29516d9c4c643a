"""How well a classifier transfers from a labeled source domain to an unlabeled target domain.

The risk in the target, R_1 = E_1 [error], is what matters, and it cannot be measured without labels. These can be
measured:

    source risk          R_0 on held-out labeled rows of the source
    domain distance      how well a classifier separates the features of the two domains. R_1 <= R_0 + distance + the
                         smallest joint risk of any classifier on these features (Ben-David et al. 2010,
                         https://doi.org/10.1007/s10994-009-5152-4, theorem 2). The last part is unknown, and features
                         on which the domains agree can increase it
    weighted risk        E_0 [w error], w = p_1(h) / p_0(h), the target's risk if labels depend on the features h in the
                         same way in both domains (Sugiyama et al. 2007,
                         https://jmlr.org/papers/v8/sugiyama07a.html), which alignment does not ensure. Its error is
                         large if few source rows carry the weight
    spread               sqrt(tr Cov h / tr Cov h_0) of a domain's features, with h_0 the features of the untrained
                         network. No critic and no classifier separates features that are the same for all rows
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppgen.evaluation.two_sample import Rows, TwoSample, classifier_test, energy_test, flatten_samples
from ppgen.training.training_failures import ADVICE, TrainingWarning

__all__ = [
    "AdaptationRisk",
    "adaptation_risk",
    "contrast_inverted",
    "density_ratio",
    "feature_spread",
    "features_collapsed",
]

COLLAPSED_SPREAD = 1e-2  # features with a smaller spread are the same for all rows
FOLDS = 5
MIN_PROBABILITY = 1e-3  # of a domain; the density ratio is truncated below it
COMPARED_ROWS = 500  # of a domain, at most, whose contrast is compared
LEVEL, PERMUTATIONS = 0.01, 199  # of the test that images differ
INVERTED_SHARE = 0.5  # of the distance of the images is that of the negatives, at most, if contrast is inverted


@dataclass(frozen=True)
class AdaptationRisk:
    """Estimates of the risk in the target without its labels. The module's docstring states their assumptions.

    Attributes:
        source: The share of wrong labels among held-out rows of the source.
        source_error: Its standard error.
        distance: The classifier two-sample test of the features; its accuracy is 0.5 if the domains look the same.
        weighted: The importance-weighted share of wrong labels.
        weighted_error: Its standard error.
        effective_rows: The effective sample size of the weights, (sum w)^2 / sum w^2, in rows of the source.
    """

    source: float
    source_error: float
    distance: TwoSample
    weighted: float
    weighted_error: float
    effective_rows: float


def adaptation_risk(
    source: Rows, target: Rows, wrong: Rows, *, classifier: str = "logistic", seed: int = 0
) -> AdaptationRisk:
    """Estimates the risk in the target without its labels.

    Args:
        source: Features (n, *event) of rows of the source that were not used in training.
        target: Features (m, *event) of rows of the target that were not used in training.
        wrong: (n,), 1 if the prediction in the source is wrong and 0 if it is right.
        classifier: The classifier of the two-sample test, see `classifier_test`. The weights come from a logistic
            regression.
        seed: The seed of the folds of the test.

    Raises:
        TypeError: As `classifier_test`.
        ValueError: As `classifier_test`, and if `wrong` is not (n,) zeros and ones.
    """
    x, y = flatten_samples(source, target, names=("source", "target"))
    errors = np.asarray(wrong.numpy(force=True) if isinstance(wrong, Tensor) else wrong, dtype=float)
    if errors.shape != (len(x),) or not np.isin(errors, (0, 1)).all():
        raise ValueError(f"wrong: expected ({len(x)},) zeros and ones, got {errors.shape}")
    weights = density_ratio(x, y)
    weights /= weights.mean()
    weighted = weights * errors
    root_n = np.sqrt(len(x))
    return AdaptationRisk(
        source=float(errors.mean()),
        source_error=float(errors.std(ddof=1) / root_n),
        distance=classifier_test(x, y, classifier=classifier, seed=seed),
        weighted=float(weighted.mean()),
        weighted_error=float((weighted - weights * weighted.mean()).std(ddof=1) / root_n),
        effective_rows=float(weights.sum() ** 2 / (weights**2).sum()),
    )


def density_ratio(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """p_1 / p_0 at the rows of x, by a logistic regression that tells x ~ p_0 from y ~ p_1; its mean is about one.

    Each ratio comes from a regression that was not fitted to its row (five folds): otherwise wide features
    would separate even equal distributions, and ratios would be extreme.

    Args:
        x: Rows (n, d) of the source.
        y: Rows (m, d) of the target.
    """
    from sklearn.linear_model import LogisticRegression  # late, because it is slow to import
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, domains = np.concatenate([x, y]), np.repeat([0, 1], [len(x), len(y)])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(min(FOLDS, len(x), len(y)), shuffle=True, random_state=0)
    p = cross_val_predict(model, rows, domains, cv=folds, method="predict_proba")[: len(x), 1]
    p = p.clip(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    return p / (1 - p) * (len(x) / len(y))


def contrast_inverted(source: Tensor, target: Tensor) -> bool:
    """Whether images of the target look like negatives of the source's, by which alignment exchanges classes.

    With z the images of each domain, normalized channel by channel by its own mean and standard deviation, contrast is
    inverted if z differs between the domains, by an energy test at the level .01, and the energy distance of z in the
    source and -z in the target is less than half of that of z and z. Without a difference that is true with a
    probability of .01 at most.

    Args:
        source: Images (n, channels, height, width), of which at most 500 are compared.
        target: Images (m, channels, height, width).

    Returns:
        False also for rows that are no images, and for fewer than two of a domain.

    Example:
        >>> import ppgen
        >>> import torch
        >>> from ppgen.evaluation import contrast_inverted
        >>> x = torch.as_tensor(ppgen.data.load("digits", form="unit").train.x)
        >>> contrast_inverted(x[::2], x[1::2]), contrast_inverted(x[::2], 1 - x[1::2])
        (False, True)
    """
    if source.dim() != 4 or min(len(source), len(target)) < 2:
        return False
    z, other = (_standardized(x[:: max(1, len(x) // COMPARED_ROWS)][:COMPARED_ROWS]) for x in (source, target))
    of_images, of_negatives = (energy_test(z, sign * other, permutations=PERMUTATIONS) for sign in (1, -1))
    differs = of_images.p_value <= LEVEL
    return differs and of_negatives.statistic < INVERTED_SHARE * of_images.statistic


def _standardized(x: Tensor) -> Tensor:
    """Images with mean zero and standard deviation one in each channel, or zero where a channel is constant."""
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0, keepdim=True)
    return (x - mean) * torch.where(var > 0, var, 1.0).rsqrt()


def feature_spread(features: Rows, start: Rows) -> float:
    """The spread of the features of one domain, relative to the spread before training.

    Args:
        features: Features (n, *event) from the trained network.
        start: Features (m, *event) from the untrained network.

    Returns:
        sqrt(tr Cov / tr Cov), which is 1 for an unchanged network, and 0 if the features of neither network vary.

    Raises:
        TypeError: As `classifier_test`.
        ValueError: As `classifier_test`.
    """
    now, before = (rows.var(axis=0).sum() for rows in flatten_samples(features, start, names=("features", "start")))
    return math.sqrt(now / before) if before > 0 else (math.inf if now > 0 else 0.0)


def features_collapsed(spreads: Mapping[str, float]) -> list[TrainingWarning]:
    """A warning for every domain whose `feature_spread` is below a hundredth.

    A critic that cannot separate the domains then does not show that they are aligned.

    Args:
        spreads: The `feature_spread` of each domain, by name.
    """
    name = "features collapsed"
    return [
        TrainingWarning(name, domain, f"their spread is {spread:.2g} of that before training", ADVICE[name])
        for domain, spread in spreads.items()
        if spread < COLLAPSED_SPREAD
    ]
