"""The algebra of losses: weighted sums of terms, L = sum_t w_t(step) T_t, evaluated on one run of model and guide.

An `Objective` is a Pyro ELBO, so ``pyro.infer.SVI`` and ``ppgen.SVI`` both minimize it. The terms are in
`ppgen.losses.elbo`, `ppgen.losses.match` and `ppgen.losses.wake_sleep`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from ppgen.infer.adversarial import CriticTrainer
from ppgen.losses.weights import Schedule
from ppgen.tracing.sites import Program
from ppgen.tracing.traces import Traces

__all__ = ["Objective", "Term"]

Weight = float | Schedule


@dataclass(frozen=True)
class Weighted:
    """A term times the product of its factors, which are numbers or schedules.

    Args:
        term: the term.
        factors: its factors.
    """

    term: "Term"
    factors: tuple[Weight, ...] = ()

    def weight(self, step: Tensor, total: int | None) -> Tensor | float:
        """The product of the factors.

        Args:
            step: the number of steps taken, an integer scalar tensor.
            total: the number of steps of the run, if known.
        """
        weight: Tensor | float = 1.0
        for factor in self.factors:
            weight = weight * (factor(step, total) if isinstance(factor, Schedule) else factor)
        return weight

    def __str__(self) -> str:
        number = 1.0
        for factor in self.factors:
            number = number if isinstance(factor, Schedule) else number * factor
        parts = [f"{number:g}"] if number != 1 else []
        parts += [str(f) for f in self.factors if isinstance(f, Schedule)]
        return " * ".join([*parts, str(self.term)])


class Objective(PyroELBO):
    """A weighted sum of terms. ``+``, ``-``, and ``*`` by a number or a schedule make new objectives.

    Args:
        terms: the terms with their factors.

    Attributes:
        step: the number of steps taken, an integer scalar tensor, which schedules read.
        total: the number of steps of the run, or None if it is unknown.
    """

    def __init__(self, terms: tuple[Weighted, ...]) -> None:
        super().__init__()
        self.terms = terms
        self.step = torch.zeros((), dtype=torch.long)
        self.total: int | None = None
        self._critics: CriticTrainer | None = None

    @property
    def critics(self) -> dict[str, tuple["Term", ...]]:
        """The terms with a critic, grouped by critic under the name of its first term."""
        names: dict[int, str] = {}
        found: dict[str, tuple[Term, ...]] = {}
        for name, weighted in self._named().items():
            if weighted.term.critic is not None:
                first = names.setdefault(id(weighted.term.critic), name)
                found[first] = (*found.get(first, ()), weighted.term)
        return found

    @property
    def schedules(self) -> list[Schedule]:
        """The schedules of all weights, and those inside of terms."""
        inside = [getattr(weighted.term, "schedule", None) for weighted in self.terms]
        found = [factor for weighted in self.terms for factor in weighted.factors] + inside
        return [schedule for schedule in found if isinstance(schedule, Schedule)]

    def values(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Each term's weighted value by name, differentiable scalars that sum to the loss.

        Args:
            model: a Pyro model.
            guide: a Pyro guide.
            *args: the arguments of both, such as a batch.
            **kwargs: their keyword arguments.
        """
        traces = Traces(model, guide, args, kwargs, clock=(self.step, self.total))
        values: dict[str, Tensor] = {}
        for name, weighted in self._named().items():
            values[name] = weighted.weight(self.step, self.total) * weighted.term.value(traces)
        return values

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a scalar tensor, a function of the parameters, the batch and random numbers alone.

        Args:
            model: a Pyro model.
            guide: a Pyro guide.
            *args: the arguments of both.
            **kwargs: their keyword arguments.
        """
        return sum(self.values(model, guide, *args, **kwargs).values(), torch.zeros(()))

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss as a float, without gradients.

        Args:
            model: a Pyro model.
            guide: a Pyro guide.
            *args: the arguments of both.
            **kwargs: their keyword arguments.
        """
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Trains the critics, adds the gradients of the loss to the parameters, and counts the step, for Pyro's SVI.

        Args:
            model: a Pyro model.
            guide: a Pyro guide.
            *args: the arguments of both.
            **kwargs: their keyword arguments.

        Returns:
            The loss.
        """
        if self._critics is None:
            self._critics = CriticTrainer(self)
        for iteration in range(self._critics.iterations):
            self._critics.step(iteration, model, guide, args, kwargs)
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        self.advance()
        return float(loss.detach())

    def breakdown(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Each term's weighted value by name, floats that sum to the loss. No parameter and no critic changes.

        Args:
            model: a Pyro model.
            guide: a Pyro guide.
            *args: the arguments of both.
            **kwargs: their keyword arguments.
        """
        with torch.no_grad():
            return {k: float(v) for k, v in self.values(model, guide, *args, **kwargs).items()}

    @property
    def is_negative_elbo(self) -> bool:
        """Whether the loss is an unweighted negative ELBO: `ELBO`, `DiffusionELBO`, or Reconstruction + Rate."""
        names = sorted(w.term.name for w in self.terms)
        unweighted = all(factor == 1 for w in self.terms for factor in w.factors)
        return unweighted and names in (["ELBO"], ["DiffusionELBO"], ["Rate", "Reconstruction"])

    def advance(self) -> None:
        """Counts one step in place, for the schedules."""
        self.step.add_(1)

    def _named(self) -> dict[str, Weighted]:
        """The terms by name; equal names are numbered."""
        named: dict[str, Weighted] = {}
        for weighted in self.terms:
            name, count = weighted.term.name, 2
            while name in named:
                name, count = f"{weighted.term.name} #{count}", count + 1
            named[name] = weighted
        return named

    def _get_trace(self, model: Program, guide: Program, args: tuple, kwargs: Mapping) -> tuple:
        return Traces(model, guide, args, kwargs).with_log_probs

    def __add__(self, other: Any) -> "Objective":
        if other == 0:  # so that sum() works
            return self
        return Objective(self.terms + other.terms) if isinstance(other, Objective) else NotImplemented

    __radd__ = __add__

    def __mul__(self, factor: Weight) -> "Objective":
        if not isinstance(factor, Real | Schedule):
            return NotImplemented
        return Objective(tuple(Weighted(w.term, (factor, *w.factors)) for w in self.terms))

    __rmul__ = __mul__

    def __neg__(self) -> "Objective":
        return self * -1.0

    def __sub__(self, other: "Objective") -> "Objective":
        return self + (-other) if isinstance(other, Objective) else NotImplemented

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms)).replace("+ -1 * ", "- ").replace("+ -", "- ")

    __repr__ = __str__


class Term(Objective):
    """The base class of terms. A subclass implements `value`."""

    def __init__(self) -> None:
        super().__init__((Weighted(self),))

    @property
    def name(self) -> str:
        """The key of the term in a breakdown."""
        return type(self).__name__

    @abstractmethod
    def value(self, traces: Traces) -> Tensor:
        """The term on one run of the programs, a scalar tensor, averaged over data.

        Args:
            traces: the traces of model and guide that the terms of an objective share, each made when it is first used.

        Raises:
            LookupError: if the programs do not have a site that the term needs; the message names it.
            ValueError: if the term is not defined for a site; the message names it.
        """

    @property
    def critic(self) -> Any:
        """The metric with a critic that the term uses, or None. A term with a critic has a method `critic_loss`."""
        return None

    @property
    def is_alignment(self) -> bool:
        """Whether the critic should fail, because the term aligns one distribution in two selections of rows."""
        return False

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__
