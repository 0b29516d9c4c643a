"""Choice among ways of domain adaptation without labels of the target.

Labels of the target would tell which alignment, and how much of it, transfers best; who needs adaptation has none.
:func:`tune_adaptation` trains a few candidates with equal effort and keeps the one that a scorer of
`ppgen.evaluation.SCORERS` prefers on held-out rows. A classifier of the source alone is always among them, so that no
adaptation is chosen which the scorer finds worse than none. The choice is as good as the scorer's assumption: the
module `ppgen.evaluation.adaptation_scores` says for each where it fails.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.data.labels import UNKNOWN
from ppgen.evaluation.adaptation_scores import SCORERS, TransferPredictions, transfer_scores
from ppgen.evaluation.domains import contrast_inverted
from ppgen.fitting import Fit, fit
from ppgen.losses import recipes
from ppgen.losses.elbo import ELBO
from ppgen.losses.objective import Objective
from ppgen.losses.weights import Ramp
from ppgen.models import DANN
from ppgen.nets import lookup
from ppgen.utils.user_warnings import warn_user

__all__ = ["CANDIDATES", "SOURCE_ONLY", "Tuning", "candidate_loss", "score_of", "tune_adaptation"]

Rows = tuple[Tensor, ...]
"""x (n, *event_shape), labels y with `UNKNOWN`, and domains d: 0 of the source, 1 of the target."""

CONTRAST_INVERTED = (
    "the target's images look like negatives of the source's, so that features are the same for both "
    "(contrast_invariant=True; False if light and dark mean something)"
)
DEFAULT_SCORER = "cluster_agreement"
DEFAULT_STEPS = 500

DOUBTFUL_AGREEMENT = 0.5  # of the chosen candidate with the others; where it was lower, all were wrong

SCORED_ROWS = 2000  # of each domain, at most, while a model trains

SOURCE_ONLY = "source only"

# by name: arguments of `ppgen.recipes.dann`, and whether the model is conditional; a number alpha is the end of a ramp
CANDIDATES: dict[str, dict[str, Any]] = {
    SOURCE_ONLY: {"alpha": 0.0},
    "jensen_shannon 0.1": {"distance": "jensen_shannon", "alpha": 0.1},
    "jensen_shannon 0.3": {"distance": "jensen_shannon", "alpha": 0.3},
    "jensen_shannon 1": {"distance": "jensen_shannon", "alpha": 1.0},
    "jensen_shannon 0.3, conditional": {"distance": "jensen_shannon", "alpha": 0.3, "conditional": True},
    "mmd 0.3": {"distance": "mmd", "alpha": 0.3},
    "joint_transport 0.1": {"distance": "joint_transport", "alpha": 0.1},
}


@dataclass(frozen=True, eq=False)
class Tuning:
    """What :func:`tune_adaptation` chose.

    Attributes:
        chosen: The name of the candidate with the best score.
        candidate: Its options, a value of `CANDIDATES`.
        scorer: The scorer that chose it.
        scores: Each candidate's scores by the name of the scorer; larger is better. Empty where training failed.
        agreement: The mean share of held-out rows of the target to which another candidate gives the same label, by
            candidate; empty if there is one. Candidates that are right agree, so that few of them are right where this
            is low (Jiang et al. 2022, https://arxiv.org/abs/2106.13799); they can agree on a wrong label.
        model: The chosen model, trained.
        fit: Its fit.
    """

    chosen: str
    candidate: Mapping[str, Any]
    scorer: str
    scores: Mapping[str, Mapping[str, float]]
    agreement: Mapping[str, float]
    model: DANN
    fit: Fit

    def __str__(self) -> str:
        lines = [f"{name:32} {found.get(self.scorer, math.nan):9.4f}" for name, found in self.scores.items()]
        return "\n".join([f"chosen by {self.scorer}: {self.chosen}", *lines])


def tune_adaptation(
    make_model: Callable[..., DANN],
    rows: Rows,
    held_out: Rows,
    *,
    candidates: Mapping[str, Mapping[str, Any]] | None = None,
    scorer: str = DEFAULT_SCORER,
    loss: Mapping[str, Any] | None = None,
    seed: int = 0,
    steps: int | None = DEFAULT_STEPS,
    contrast_invariant: bool | None = None,
    **options: Any,
) -> Tuning:
    """Trains candidates of domain adaptation with equal effort, and keeps the best by a score without target labels.

    Args:
        make_model: Makes an untrained `ppgen.models.DANN`; called with ``conditional=``, and if that is so with
            ``contrast_invariant=True``, from the same seed each time.
        rows: The training rows, as `ppgen.data.domains.Domains.rows` has them.
        held_out: Held-out rows of both domains, on which candidates are scored. Labels of the target are not used.
        candidates: By name the arguments of `ppgen.recipes.dann`, with ``conditional=True`` for a conditional model;
            `CANDIDATES` if left out. The source alone is added if it is not among them.
        scorer: A key of `ppgen.evaluation.SCORERS`; "circular_validation" trains each candidate twice.
        loss: Arguments of `ppgen.recipes.dann` that all candidates share, such as the critic's learning rate.
        seed: The seed of models and training.
        steps: The steps of each candidate.
        contrast_invariant: Whether all candidates have features that are the same for images and their negatives; None
            if `ppgen.evaluation.contrast_inverted` says of the training rows that the target needs it.
        **options: Further options of `ppgen.fit`, the same for all.

    Returns:
        The choice, with the trained model.

    Raises:
        ValueError: For an unknown scorer, or held-out rows without both domains or without labels of the source.
        FloatingPointError: If no candidate could be trained.

    Warns:
        UserWarning: If the chosen candidate and another one give half of the target's rows or fewer the same label.

    Example:
        >>> import functools
        >>> import torch
        >>> import ppgen
        >>> x, d = torch.randn(60, 2), torch.arange(2).repeat_interleave(30)
        >>> y = torch.where(d == 0, (x[:, 0] > 0).long(), ppgen.models.UNKNOWN)
        >>> tuning = ppgen.tuning.tune_adaptation(
        ...     functools.partial(ppgen.models.DANN, (2,), 2, latent_dim=4, hidden=(8,)),
        ...     (x[::2], y[::2], d[::2]),
        ...     (x[1::2], y[1::2], d[1::2]),
        ...     candidates={"mmd": {"distance": "mmd", "alpha": 0.3}},
        ...     steps=5,
        ...     compile=False,
        ...     progress=False,
        ... )
        >>> sorted(tuning.scores)
        ['mmd', 'source only']
    """
    lookup(SCORERS, scorer, option="scorer")
    candidates = {SOURCE_ONLY: {"alpha": 0.0}} | dict(CANDIDATES if candidates is None else candidates)
    scored = _scored(held_out)
    best: tuple[str, DANN, Fit] | None = None
    scores: dict[str, dict[str, float]] = {}
    labels: dict[str, np.ndarray] = {}
    training = {"seed": seed, "steps": steps, **options}
    if contrast_invariant is None and (contrast_invariant := needs_contrast_invariance(rows)):
        warn_user(f"tune_adaptation: {CONTRAST_INVERTED}")
    if contrast_invariant:
        make_model = partial(make_model, contrast_invariant=True)
    for name, candidate in candidates.items():
        try:
            model, fitted = _train(make_model, candidate, loss, rows, training)
            reverse = None
            if scorer == "circular_validation":
                backward, _ = _train(make_model, candidate, loss, _reversed(rows, model), training)
                reverse = backward.predict(scored[0])
            predictions = TransferPredictions.of(model, *scored, reverse=reverse)
            scores[name] = transfer_scores(predictions)
            labels[name] = predictions.target.argmax(1)
        except FloatingPointError as error:
            scores[name] = {}
            warn_user(f"tune_adaptation: {name} is left out: {error}")
            continue
        if best is None or scores[name][scorer] > scores[best[0]][scorer]:
            best = name, model, fitted
    if best is None:
        raise FloatingPointError("tune_adaptation: no candidate could be trained; the warnings say why")
    agreement = _agreement(labels)
    if (share := agreement.get(best[0], 1.0)) <= DOUBTFUL_AGREEMENT:
        warn_user(
            f"tune_adaptation: {best[0]} has the best score, but another candidate gives only {share:.0%} of the "
            "rows of the target the same label on average, so that most candidates are wrong; check some of its labels"
        )
    return Tuning(best[0], candidates[best[0]], scorer, scores, agreement, *best[1:])


def score_of(model: DANN, held_out: Rows, scorer: str = DEFAULT_SCORER) -> Callable[[], float]:
    """A score of a model while it trains, smaller being better, by which ``ppgen.fit(score=...)`` chooses its weights.

    Args:
        model: The model that is trained.
        held_out: Held-out rows of both domains. Labels of the target are not used.
        scorer: A key of `ppgen.evaluation.SCORERS` that needs no second training.

    Returns:
        A function without arguments.

    Raises:
        ValueError: As :func:`tune_adaptation`, and for "circular_validation".

    Example:
        >>> import torch
        >>> import ppgen
        >>> from ppgen.tuning import score_of
        >>> dann, x, d = ppgen.models.DANN((2,), 2, hidden=(8,)), torch.randn(40, 2), torch.arange(40) % 2
        >>> y = torch.where(d == 0, (x[:, 0] > 0).long(), ppgen.models.UNKNOWN)
        >>> score = score_of(dann, (x[:20], y[:20], d[:20]))
        >>> data, loss = (x[20:], y[20:], d[20:]), ppgen.recipes.dann(distance="coral")
        >>> fit = ppgen.fit(dann.model, dann.guide, data, loss=loss, score=score, steps=5, patience=2, compile=False)
        >>> len(fit.chains[0].validation["loss"]) > 0
        True
    """
    lookup(SCORERS, scorer, option="scorer")
    if scorer == "circular_validation":
        raise ValueError(
            "circular_validation trains a second model, and is no score of one that trains; choose another"
        )
    scored = tuple(part[:SCORED_ROWS] for part in _scored(held_out))
    return lambda: -transfer_scores(TransferPredictions.of(model, *scored), [scorer])[scorer]


def _agreement(labels: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of each candidate, the mean share of rows with the same label as by another one."""
    return {
        name: float(np.mean([(labels[name] == labels[other]).mean() for other in labels if other != name]))
        for name in labels
        if len(labels) > 1
    }


def needs_contrast_invariance(rows: Rows) -> bool:
    """Whether `ppgen.evaluation.contrast_inverted` finds the target's images to be negatives of the source's.

    Args:
        rows: Rows as in :func:`tune_adaptation`.
    """
    x, _, d = rows
    return contrast_inverted(x[d != 1], x[d == 1])


def _scored(held_out: Rows) -> Rows:
    """The labeled rows of the source with their labels, and the rows of the target."""
    x, y, d = held_out
    labeled, target = (d == 0) & (y >= 0), d == 1
    if not labeled.any() or int(target.sum()) < 2:
        raise ValueError(
            f"scores are of held-out rows: expected labeled ones of the source and some of the target, got "
            f"{int(labeled.sum())} and {int(target.sum())}; hold out more of both"
        )
    return x[labeled], y[labeled], x[target]


def candidate_loss(candidate: Mapping[str, Any], loss: Mapping[str, Any] | None = None) -> Objective:
    """The objective of a candidate.

    Args:
        candidate: A value of `CANDIDATES`.
        loss: Further arguments of `ppgen.recipes.dann`.
    """
    arguments = {**(loss or {}), **candidate}
    conditional, alpha = arguments.pop("conditional", False), arguments.pop("alpha", None)
    if alpha == 0:
        return ELBO()  # without a critic that nobody needs
    if isinstance(alpha, int | float):
        alpha = Ramp(float(alpha), shape="sigmoid")
    return recipes.dann(alpha=copy.deepcopy(alpha), h="hy" if conditional else "h", **arguments)


def _train(
    make_model: Callable[..., DANN],
    candidate: Mapping[str, Any],
    loss: Mapping[str, Any] | None,
    rows: Rows,
    training: Mapping[str, Any],
) -> tuple[DANN, Fit]:
    """A model of a candidate, trained on rows."""
    with torch.random.fork_rng():
        torch.manual_seed(training["seed"])
        model = make_model(conditional=candidate.get("conditional", False))
    return model, fit(model.model, model.guide, rows, loss=candidate_loss(candidate, loss), **training)


def _reversed(rows: Rows, model: DANN) -> Rows:
    """The rows with source and target exchanged: labels are those that the model predicts for the target."""
    x, y, d = rows
    y = torch.full_like(y, UNKNOWN)
    y[d == 1] = model.predict(x[d == 1]).to(y)
    return x, y, 1 - d
