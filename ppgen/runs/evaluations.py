"""What a run on data measures of its model on held-out rows.

An evaluation applies to the models that have a capability, see `ppgen.models.protocols`. To add one, write a function
of `HeldOut` and of the time that it has, and add it to `EVALUATIONS` with its share of the time that is left.

Rows are evaluated in batches and in random order, until all are done or the time is over. What is reported is thus the
mean of a simple random sample of the held-out rows, with its standard error.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppgen.data import Data
from ppgen.evaluation import base_space_test
from ppgen.fitting import Fit
from ppgen.models.protocols import HasBound, HasLogEvidence, HasLogProb, TransportsToBase
from ppgen.utils.budget import Budget, rows_at_a_time

__all__ = ["EVALUATIONS", "HeldOut", "RowSample", "by_rows", "evaluate"]

MAX_BASE_SPACE_ROWS, MIN_BASE_SPACE_ROWS = 1000, 200  # that are tested in the base space of a flow
MAX_BASE_SPACE_DIM = 100  # rows of more dimensions are not tested there
MAX_LOSS_BATCH = 1024  # rows on which the loss is computed at a time
PARTICLES = (10, 20, 50, 100, 200, 500)  # importance samples of a row: the most that leave time for ENOUGH_ROWS
ENOUGH_ROWS, TRIED_ROWS = 500, 16
BOUND_PARTICLES = 10  # of the bound of a diffusion model, whose mean does not depend on them

Numbers = dict[str, Any]


@dataclass(frozen=True)
class HeldOut:
    """A model and the rows on which it is evaluated.

    Attributes:
        model: The model.
        fit: Its fit.
        data: The data set.
        rows: The held-out arguments of the programs, each (n, ...).
        particles: The number of importance samples for the log evidence; None for as many as the time allows.
        seed: The random seed.
    """

    model: Any
    fit: Fit
    data: Data
    rows: tuple[Tensor, ...]
    particles: int | None
    seed: int

    def bits_per_dimension(self, mean: float, error: float) -> tuple[float, float] | None:
        """A mean log density or probability in nats, and its error, in bits per dimension; None but for gray levels.

        A density of dequantized gray levels, (k + u)/L, bounds their probability, log P(k) >= E log p - D log L. Levels
        that are not dequantized, k/(L - 1), have no such number: their density has no upper bound.

        Args:
            mean: The mean.
            error: Its standard error.
        """
        data, dim = self.data, math.prod(self.data.event_shape)
        discrete = len(data.event_shape) == 3 or data.form == "integer"
        if not discrete or (data.levels is not None and data.form == "unit"):
            return None
        if data.levels is not None and data.form == "continuous":
            mean += data.scaler.log_det() - dim * math.log(data.levels)
        bit = math.log(2) * dim
        return -mean / bit, error / bit

    @property
    def order(self) -> Tensor:
        """The numbers of the rows in random order."""
        return torch.randperm(len(self.rows[0]), generator=torch.Generator().manual_seed(self.seed))

    def choose(self, numbers: Tensor) -> tuple[Tensor, ...]:
        """The rows of these numbers, on the device of the model."""
        device = self.fit.example[0].device
        return tuple(part[numbers].to(device) for part in self.rows)


@dataclass(frozen=True)
class RowSample:
    """Values of a simple random sample of rows.

    Attributes:
        values: (k,), one for each row of the sample.
        total: The number of rows from which the sample was drawn.
    """

    values: Tensor
    total: int

    @property
    def mean_and_error(self) -> tuple[float, float]:
        """The mean and its standard error, as an estimate of the expectation over data."""
        return mean_and_error(self.values)

    def rows_behind(self, quantity: str) -> Numbers:
        """The number of rows behind a quantity, if they are not all."""
        return rows_behind(quantity, len(self.values), self.total)


def by_rows(function: Callable[..., Tensor], held_out: HeldOut, budget: Budget, *, copies: int = 1) -> RowSample | None:
    """Values of rows in random order, until all are done or the time is over; None if there is no time.

    Args:
        function: The function from arguments of the programs to a value for each row.
        held_out: The rows.
        budget: The time.
        copies: How many times a row is in memory at once.
    """
    order, values = held_out.order, []
    largest = rows_at_a_time(copies * math.prod(held_out.data.event_shape))
    for batch in budget.batches(len(order), largest=largest):
        values.append(function(*held_out.choose(order[batch])).double().cpu())
    return RowSample(torch.cat(values), len(order)) if values else None


def evaluate(held_out: HeldOut, budget: Budget) -> Numbers:
    """Runs all evaluations that apply to a model; the caller's random state does not change.

    Args:
        held_out: The model and the rows.
        budget: The time that they may take together.

    Returns:
        Numbers by name: a number, a text, or a pair of a number and its standard error.
    """
    numbers: Numbers = {"held-out rows": len(held_out.rows[0])}
    with torch.random.fork_rng():
        for evaluation, share in EVALUATIONS.items():
            torch.manual_seed(held_out.seed)  # the draws of one do not depend on the rows that another had time for
            numbers |= evaluation(held_out, budget.part(share, evaluation.__name__.replace("_", " ")))
    return numbers


def loss_terms(held_out: HeldOut, budget: Budget) -> Numbers:
    """The value of each term of the loss, as the mean over batches of the size that they had in training.

    The term "ELBO" is minus the evidence lower bound, hence the words.
    """
    order = held_out.order
    size = min(len(held_out.fit.example[0]), MAX_LOSS_BATCH)
    batches = order.tensor_split(math.ceil(len(order) / size))
    values: dict[str, list[float]] = {}
    done = 0
    for chosen in budget.batches(len(batches), largest=1, least=1):
        rows = batches[chosen.start]
        for name, value in held_out.fit.breakdown(*held_out.choose(rows)).items():
            values.setdefault(name, []).append(value)
        done += len(rows)
    numbers: Numbers = {
        f"held-out loss term {name}": mean_and_error(torch.tensor(terms)) if len(terms) > 1 else terms[0]
        for name, terms in values.items()
    }
    return numbers | rows_behind("loss terms", done, len(order))


def log_evidence(held_out: HeldOut, budget: Budget) -> Numbers:
    """The log evidence of a latent variable model, by importance sampling from its encoder."""
    if not isinstance(held_out.model, HasLogEvidence):
        return {}
    k = held_out.particles or _affordable_particles(held_out, budget)
    sample = by_rows(partial(held_out.model.log_evidence, particles=k), held_out, budget, copies=k)
    if sample is None:
        return {}
    mean, error = sample.mean_and_error
    numbers: Numbers = {f"held-out log evidence, {k} importance samples (nats per datum)": (mean, error)}
    if (bits := held_out.bits_per_dimension(mean, error)) is not None:
        numbers[f"held-out bits per dimension, {k} importance samples"] = bits
    return numbers | sample.rows_behind("log evidence")


def _affordable_particles(held_out: HeldOut, budget: Budget) -> int:
    """The largest number of importance samples with which there is time for enough rows, by trying it on a few.

    The estimate of a row is biased downwards by less the more samples it has; the mean over rows has an error that is
    smaller the more rows there are.
    """
    order, chosen = held_out.order, PARTICLES[0]
    enough = min(len(order), ENOUGH_ROWS)
    held_out.model.log_evidence(*held_out.choose(order[:1]), particles=chosen)  # the first run allocates what it needs
    for k in PARTICLES:
        size = min(enough, TRIED_ROWS, rows_at_a_time(k * math.prod(held_out.data.event_shape)))
        start = budget.clock()
        held_out.model.log_evidence(*held_out.choose(order[:size]), particles=k)
        if (budget.clock() - start) * enough / size > budget.left:
            break
        chosen = k
    return chosen


def log_likelihood(held_out: HeldOut, budget: Budget) -> Numbers:
    """The log-likelihood, and bits per dimension for images and other integer data."""
    if not isinstance(held_out.model, HasLogProb):
        return {}
    if (sample := by_rows(held_out.model.log_prob, held_out, budget)) is None:
        return {}
    mean, error = sample.mean_and_error
    numbers: Numbers = {"held-out log-likelihood (nats per datum)": (mean, error)}
    if (bits := held_out.bits_per_dimension(mean, error)) is not None:
        numbers["held-out bits per dimension"] = bits
    return numbers | sample.rows_behind("log-likelihood")


def chain_elbo(held_out: HeldOut, budget: Budget) -> Numbers:
    """The evidence lower bound of a diffusion model with a finite number of steps."""
    if not isinstance(held_out.model, HasBound) or not getattr(held_out.model, "steps", None):
        return {}
    bound = partial(held_out.model.bound, particles=held_out.particles or BOUND_PARTICLES)
    if (sample := by_rows(bound, held_out, budget)) is None:
        return {}
    name = "held-out ELBO of the discrete-time chain (nats per datum)"
    return {name: sample.mean_and_error, **sample.rows_behind("ELBO")}


def base_space(held_out: HeldOut, budget: Budget) -> Numbers:
    """A comparison of rows that a flow maps to its base space with the base distribution, in moderate dimensions."""
    if not isinstance(held_out.model, TransportsToBase) or math.prod(held_out.data.event_shape) > MAX_BASE_SPACE_DIM:
        return {}
    order, parts = held_out.order[:MAX_BASE_SPACE_ROWS], []
    width = math.prod(held_out.data.event_shape)
    for batch in budget.part(0.5).batches(len(order), largest=rows_at_a_time(width)):
        parts.append(held_out.model.pull_back(*held_out.choose(order[batch]))[0].cpu())
    z = torch.cat(parts) if parts else torch.empty(0, width)
    if len(z) < width + 2 or not z.isfinite().all():
        return {}
    base, least = held_out.model.flow.base, max(MIN_BASE_SPACE_ROWS, width + 2)
    result = budget.at_size(lambda n: base_space_test(z[:n], base, seed=held_out.seed), len(z), least=least)
    kl = (result.kl, result.error) if math.isfinite(result.kl) else "infinite, because some rows are equal"
    return {
        "held-out KL(data, model), nearest-neighbor estimate in the base space (nats)": kl,
        f"p-value in the base space: {result.coordinates.name}": result.coordinates.p_value,
        f"p-value in the base space: {result.sliced.name}": result.sliced.p_value,
    }


EVALUATIONS: dict[Callable[[HeldOut, Budget], Numbers], float] = {
    loss_terms: 0.2,
    log_evidence: 0.8,
    log_likelihood: 0.5,
    chain_elbo: 0.5,
    base_space: 0.8,
}
"""What is evaluated, and the share of the time that is left when its turn comes."""


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of values (n,) and its standard error."""
    values = values.double()
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def rows_behind(quantity: str, count: int, total: int) -> Numbers:
    """The number of rows behind a quantity, if they are not all."""
    return {} if count == total else {f"held-out rows behind the {quantity}": f"{count} of {total}"}
