"""How well labels carry over from a source to a target whose labels nobody knows.

The risk in the target, R_1 = E_1 [error], is what counts and cannot be measured. What can be measured:

    source risk          R_0 on labeled rows of the source, held out
    domain distance      how well a classifier tells features of the two domains apart. R_1 <= R_0 + distance + the
                         least joint risk of any classifier on these features (Ben-David et al. 2010, theorem 2): the
                         last part is unknown, and features on which the domains agree can make it worse
    weighted risk        E_0 [w error], w = p_1(h) / p_0(h), the target's risk if labels depend on h in the same way in
                         both domains (Sugiyama et al. 2007), which alignment does not ensure; its error bars are wide
                         where few source rows carry the weight
    spread               sqrt(tr Cov h / tr Cov h_0) of a domain's features, h_0 those of the network before training.
                         Features that are one for all rows are told apart by no critic, and by no classifier
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ppgen.evaluation.two_sample import Rows, TwoSample, classifier_test, paired_rows
from ppgen.training.training_failures import REMEDIES, TrainingWarning

__all__ = ["AdaptationRisk", "adaptation_risk", "feature_spread", "features_collapsed"]

COLLAPSED = 1e-2  # the spread of features below which all rows get one
LEAST = 1e-3  # probability of a domain, below which the ratio of densities is cut off


@dataclass(frozen=True)
class AdaptationRisk:
    """What is known of the risk in the target without its labels; each with what it takes to be right, see the module.

    source          share of wrong labels among held-out rows of the source, and its standard error
    distance        the classifier two-sample test of features: accuracy, 0.5 where the domains look alike
    weighted        the importance-weighted share of wrong labels, and its standard error
    effective       how many rows of the source carry the weights, (sum w)^2 / sum w^2
    """

    source: float
    source_error: float
    distance: TwoSample
    weighted: float
    weighted_error: float
    effective: float


def adaptation_risk(
    source: Rows, target: Rows, wrong: Rows, *, classifier: str = "logistic", seed: int = 0
) -> AdaptationRisk:
    """The risk in the target, as far as it shows without labels.

    Args:
        source, target: (n, *event) and (m, *event) features of rows that were not trained on.
        wrong: (n,) 1 where the prediction in the source is wrong, 0 where it is right.
        classifier: of the two-sample test, see `classifier_test`. The weights come from a logistic regression.
        seed: of the test's folds.

    Raises:
        TypeError, ValueError: as `classifier_test`; ValueError if `wrong` is not (n,) zeros and ones.
    """
    from sklearn.linear_model import LogisticRegression  # late: it takes its time to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = paired_rows(source, target, names=("source", "target"))
    errors = np.asarray(wrong.numpy(force=True) if isinstance(wrong, Tensor) else wrong, dtype=float)
    if errors.shape != (len(x),) or not np.isin(errors, (0, 1)).all():
        raise ValueError(f"wrong: expected ({len(x)},) zeros and ones, got {errors.shape}")
    rows, domains = np.concatenate([x, y]), np.repeat([0, 1], [len(x), len(y)])
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(rows, domains)
    p = fitted.predict_proba(x)[:, 1].clip(LEAST, 1 - LEAST)
    weights = p / (1 - p) * (len(x) / len(y))
    weights /= weights.mean()
    weighted = weights * errors
    root = np.sqrt(len(x))
    return AdaptationRisk(
        source=float(errors.mean()),
        source_error=float(errors.std(ddof=1) / root),
        distance=classifier_test(x, y, classifier=classifier, seed=seed),
        weighted=float(weighted.mean()),
        weighted_error=float((weighted - weights * weighted.mean()).std(ddof=1) / root),
        effective=float(weights.sum() ** 2 / (weights**2).sum()),
    )


def feature_spread(features: Rows, start: Rows) -> float:
    """How far the features of one domain's rows lie apart, in units of the same rows' before training.

    Args:
        features, start: (n, *event) and (m, *event), of the trained network and of the network as it began.

    Returns:
        sqrt(tr Cov / tr Cov), which is 1 for a network that has not moved; 0 where neither network's features differ.

    Raises:
        TypeError, ValueError: as `classifier_test`.
    """
    now, then = (rows.var(axis=0).sum() for rows in paired_rows(features, start, names=("features", "start")))
    return math.sqrt(now / then) if then > 0 else (math.inf if now > 0 else 0.0)


def features_collapsed(spreads: Mapping[str, float]) -> list[TrainingWarning]:
    """A sign for every domain whose `feature_spread` is below a hundredth.

    A critic that tells nothing apart then shows no alignment: it has nothing to look at.
    """
    return [
        TrainingWarning(
            sign := "features collapsed", domain, f"their spread is {spread:.2g} of what it was", REMEDIES[sign]
        )
        for domain, spread in spreads.items()
        if spread < COLLAPSED
    ]
