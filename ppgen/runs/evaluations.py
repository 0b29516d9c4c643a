"""What a run on data measures of its model on held-out rows.

An evaluation applies to the models that have a capability, see `ppgen.models.protocols`. To add one, write a function
of `HeldOut` and add it to `EVALUATIONS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppgen.data import Data
from ppgen.evaluation import base_space_test
from ppgen.fitting import Fit
from ppgen.models.protocols import HasBound, HasLogEvidence, HasLogProb, TransportsToBase

__all__ = ["EVALUATIONS", "HeldOut", "evaluate"]

MAX_BASE_SPACE_ROWS = 1000  # at most so many rows are tested in the base space of a flow
MAX_BASE_SPACE_DIM = 100  # rows of more dimensions are not tested there

Numbers = dict[str, Any]


@dataclass(frozen=True)
class HeldOut:
    """A model and the rows on which it is evaluated.

    Attributes:
        model: The model.
        fit: Its fit.
        data: The data set.
        rows: The held-out arguments of the programs, each (n, ...).
        particles: The number of importance samples for the log evidence.
        seed: The random seed.
    """

    model: Any
    fit: Fit
    data: Data
    rows: tuple[Tensor, ...]
    particles: int
    seed: int

    def bits_per_dimension(self, mean: float, error: float) -> tuple[float, float] | None:
        """A mean log density or probability in nats, and its error, in bits per dimension.

        A density of dequantized gray levels, (k + u)/L, bounds their probability, log P(k) >= E log p - D log L. Levels
        that are not dequantized, k/(L - 1), have no such number: their density has no upper bound.

        Args:
            mean: The mean.
            error: Its standard error.
        """
        data, dim = self.data, math.prod(self.data.event_shape)
        if data.levels is not None and data.form == "unit":
            return None
        if data.levels is not None and data.form == "continuous":
            mean += data.scaler.log_det() - dim * math.log(data.levels)
        bit = math.log(2) * dim
        return -mean / bit, error / bit


def evaluate(held_out: HeldOut) -> Numbers:
    """Runs all evaluations that apply to a model; the caller's random state does not change.

    Args:
        held_out: The model and the rows.

    Returns:
        Numbers by name: a number, a text, or a pair of a number and its standard error.
    """
    numbers: Numbers = {"held-out rows": len(held_out.rows[0])}
    with torch.random.fork_rng():
        torch.manual_seed(held_out.seed)
        for evaluation in EVALUATIONS:
            numbers |= evaluation(held_out)
    return numbers


def loss_terms(held_out: HeldOut) -> Numbers:
    """The value of each term of the loss. The term "ELBO" is minus the evidence lower bound, hence the words."""
    return {f"held-out loss term {name}": value for name, value in held_out.fit.breakdown(*held_out.rows).items()}


def log_evidence(held_out: HeldOut) -> Numbers:
    """The log evidence of a latent variable model, by importance sampling from its encoder."""
    if not isinstance(held_out.model, HasLogEvidence):
        return {}
    k = held_out.particles
    mean, error = mean_and_error(held_out.model.log_evidence(*held_out.rows, particles=k))
    numbers: Numbers = {f"held-out log evidence, {k} importance samples (nats per datum)": (mean, error)}
    if (bits := held_out.bits_per_dimension(mean, error)) is not None:
        numbers[f"held-out bits per dimension, {k} importance samples"] = bits
    return numbers


def log_likelihood(held_out: HeldOut) -> Numbers:
    """The log-likelihood, and bits per dimension for images and other integer data."""
    if not isinstance(held_out.model, HasLogProb):
        return {}
    mean, error = mean_and_error(held_out.model.log_prob(*held_out.rows))
    numbers: Numbers = {"held-out log-likelihood (nats per datum)": (mean, error)}
    discrete = len(held_out.data.event_shape) == 3 or held_out.data.form == "integer"
    if discrete and (bits := held_out.bits_per_dimension(mean, error)) is not None:
        numbers["held-out bits per dimension"] = bits
    return numbers


def chain_elbo(held_out: HeldOut) -> Numbers:
    """The evidence lower bound of a diffusion model with a finite number of steps."""
    if not isinstance(held_out.model, HasBound) or not getattr(held_out.model, "steps", None):
        return {}
    bound = held_out.model.bound(*held_out.rows, particles=held_out.particles)
    return {"held-out ELBO of the discrete-time chain (nats per datum)": mean_and_error(bound)}


def base_space(held_out: HeldOut) -> Numbers:
    """A comparison of rows that a flow maps to its base space with the base distribution, in moderate dimensions."""
    if not isinstance(held_out.model, TransportsToBase):
        return {}
    z, _ = held_out.model.pull_back(*(part[:MAX_BASE_SPACE_ROWS] for part in held_out.rows))
    flat = z.flatten(1)
    if flat.shape[1] > MAX_BASE_SPACE_DIM or len(flat) < flat.shape[1] + 2 or not flat.isfinite().all():
        return {}
    result = base_space_test(z, held_out.model.flow.base, seed=held_out.seed)
    kl = (result.kl, result.error) if math.isfinite(result.kl) else "infinite, because some rows are equal"
    return {
        "held-out KL(data, model), nearest-neighbor estimate in the base space (nats)": kl,
        f"p-value in the base space: {result.coordinates.name}": result.coordinates.p_value,
        f"p-value in the base space: {result.sliced.name}": result.sliced.p_value,
    }


EVALUATIONS: list[Callable[[HeldOut], Numbers]] = [loss_terms, log_evidence, log_likelihood, chain_elbo, base_space]


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of values (n,) and its standard error."""
    values = values.double()
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))
