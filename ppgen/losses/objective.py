"""The algebra of losses: weighted sums of terms, L = sum_t w_t(step) T_t, on one shared draw of model and guide.

An `Objective` is a Pyro ELBO: stock ``pyro.infer.SVI`` and ``ppgen.SVI`` both drive it. The terms are in `ppgen.losses.elbo`.
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
    """A term times its factors, numbers or schedules."""

    term: "Term"
    factors: tuple[Weight, ...] = ()

    def weight(self, step: Tensor, total: int | None) -> Tensor | float:
        weight: Tensor | float = 1.0
        for factor in self.factors:
            weight = weight * (factor(step, total) if isinstance(factor, Schedule) else factor)
        return weight

    def __str__(self) -> str:
        number = 1.0
        for factor in self.factors:
            number = number if isinstance(factor, Schedule) else number * factor
        words = [f"{number:g}"] if number != 1 else []
        words += [str(f) for f in self.factors if isinstance(f, Schedule)]
        return " * ".join([*words, str(self.term)])


class Objective(PyroELBO):
    """A weighted sum of terms; ``+``, ``-`` and ``*`` by a number or a schedule make new ones.

    `step` counts the steps taken (schedules read it), `total` is the run's length where known.
    """

    def __init__(self, terms: tuple[Weighted, ...]):
        super().__init__()
        self.terms = terms
        self.step = torch.zeros((), dtype=torch.long)
        self.total: int | None = None
        self._critics: CriticTrainer | None = None

    @property
    def critics(self) -> dict[str, tuple["Term", ...]]:
        """The terms that have a critic, by the name of the critic's first term."""
        names: dict[int, str] = {}
        found: dict[str, tuple[Term, ...]] = {}
        for name, weighted in self._named().items():
            if weighted.term.critic is not None:
                first = names.setdefault(id(weighted.term.critic), name)
                found[first] = (*found.get(first, ()), weighted.term)
        return found

    def values(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Each term's weighted value on one shared draw, by name: they sum to the loss, gradients attached."""
        draws = Traces(model, guide, args, kwargs, clock=(self.step, self.total))
        values: dict[str, Tensor] = {}
        for name, weighted in self._named().items():
            values[name] = weighted.weight(self.step, self.total) * weighted.term.value(draws)
        return values

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a scalar tensor: a pure function of the parameters, the batch and the random draws."""
        return sum(self.values(model, guide, *args, **kwargs).values(), torch.zeros(()))

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss as a float, without gradients."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss as a float, its gradients left in the parameters, the step counted: what stock Pyro SVI calls.

        Critics take their steps first.
        """
        if self._critics is None:
            self._critics = CriticTrainer(self)
        for turn in range(self._critics.turns):
            self._critics.move(turn, model, guide, args, kwargs)
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        self.advance()
        return float(loss.detach())

    def breakdown(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Each term's weighted value, a float; they sum to the loss. No parameter and no critic moves."""
        with torch.no_grad():
            return {k: float(v) for k, v in self.values(model, guide, *args, **kwargs).items()}

    @property
    def is_negative_elbo(self) -> bool:
        """Whether the loss is a negative evidence bound, unweighted: `ELBO()`, of one step, or in two parts."""
        names = sorted(w.term.name for w in self.terms)
        plain = all(factor == 1 for w in self.terms for factor in w.factors)
        return plain and names in (["ELBO"], ["DiffusionELBO"], ["Rate", "Reconstruction"])

    def advance(self) -> None:
        """Counts one step, in place, for the schedules."""
        self.step.add_(1)

    def _named(self) -> dict[str, Weighted]:
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
    """One term: `value` maps a draw to a scalar, an average over data."""

    def __init__(self) -> None:
        super().__init__((Weighted(self),))

    @property
    def name(self) -> str:
        """The term's key in a breakdown."""
        return type(self).__name__

    @abstractmethod
    def value(self, draws: Traces) -> Tensor:
        """The term on one draw, a scalar tensor.

        Raises:
            LookupError, ValueError: if the programs cannot serve it; the message names the site.
        """

    @property
    def critic(self) -> Any:
        """The metric with a critic that the term goes by, or None. A term that has one has `critic_loss(draws)`."""
        return None

    @property
    def is_alignment(self) -> bool:
        """Whether the critic is meant to fail: its two samples are one law in two selections of rows."""
        return False

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__
