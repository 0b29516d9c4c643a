"""Steps that are not taken where their loss or a gradient is not finite, and what such a step leaves as it was.

A step of an optimizer is taken after the loss and the norms of the gradients are known. Before that the programs have
changed buffers, such as running statistics of batch norm, and critics have taken steps of their own: of those a
`Rollback` keeps copies.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ppgen.infer.compile.guarded_writes import FINITE
from ppgen.infer.compile.recording import RandomState
from ppgen.infer.optimizers import ParameterOptimizer
from ppgen.tracing.programs import validation

__all__ = ["FINITE", "NAN", "NUMERICAL_ERRORS", "FiniteSteps", "NumericalFailure", "Rollback", "all_finite", "attempt"]

NUMERICAL_ERRORS = (torch.linalg.LinAlgError, ArithmeticError)  # of a matrix that is not positive definite, for example
HALF = (torch.float16, torch.bfloat16)  # in which the norm of a finite gradient may not be finite

NAN = torch.tensor(torch.nan)

T = TypeVar("T")
Values = dict[str, Tensor]
Step = Callable[[tuple, dict], Values]


def all_finite(values: Values, gradients: Iterable[Tensor | None]) -> Tensor:
    """Whether a loss and the norms of its gradients are finite, as a boolean scalar.

    Args:
        values: the terms of the loss.
        gradients: the gradients; None for parameters without one.
    """
    total = sum(values.values(), torch.zeros(())).detach()
    for gradient in gradients:
        if gradient is not None:
            total = total + _norm(gradient.detach())  # one by one: compiled code has no place for a list of norms
    return total.isfinite()


def _norm(gradient: Tensor) -> Tensor:
    if gradient.layout != torch.strided:
        gradient = gradient.coalesce().values()
    if not gradient.dim():
        return gradient.abs()
    return torch.linalg.vector_norm(gradient, dtype=torch.float32 if gradient.dtype in HALF else None)


class Rollback:
    """Copies of tensors that a step changes before it is known whether it is taken.

    Args:
        buffers: the buffers of modules.
    """

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self.buffers = buffers
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def save(self, others: Iterable[Tensor] = ()) -> None:
        """Copies the values before a step.

        Args:
            others: tensors that each step changes.
        """
        for buffer in self.buffers:  # all of them: batch norm changes its statistics without a new version
            self._copy(buffer)
        for tensor in others:
            self._copy(tensor)

    def settle(self, *, taken: bool) -> None:
        """Keeps the values after a step, or writes those before it back.

        Args:
            taken: whether the step is taken.
        """
        if not taken:
            with torch.no_grad():
                for tensor, value in self._copies.values():
                    tensor.copy_(value)

    def _copy(self, tensor: Tensor) -> None:
        _, kept = self._copies.get(id(tensor), (tensor, None))
        if kept is None or kept.shape != tensor.shape:
            self._copies[id(tensor)] = tensor, tensor.detach().clone()
        else:
            kept.copy_(tensor.detach())


class NumericalFailure(ArithmeticError):
    """A step failed for its numbers, which a matrix or a distribution does not allow.

    Args:
        result: what the step returned where nothing checks numbers, or None.
    """

    def __init__(self, result: Any = None) -> None:
        super().__init__("the step failed for its numbers")
        self.result = result


def attempt(step: Callable[[bool], T], device: torch.device) -> T:
    """Runs a step eagerly.

    Where distributions refuse a value, the step is run again without these checks, and not taken, for its loss and so
    that the next step draws the same random numbers as after a compiled step, which does not check.

    Args:
        step: the step as a function of whether it may be taken.
        device: the device of the programs.

    Raises:
        NumericalFailure: if it fails for its numbers.
    """
    before = RandomState(device)
    try:
        return step(True)
    except NUMERICAL_ERRORS as error:
        before.restore()
        torch.rand(())  # so that the same numbers are not drawn again
        raise NumericalFailure from error
    except ValueError as error:
        before.restore()
        try:
            with validation(False), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pyro's, of NaN
                result: Any = step(False)
        except NUMERICAL_ERRORS:
            result = None
        except Exception:
            raise error from None  # the checks of distributions were not its cause
        raise NumericalFailure(result) from error
    except Exception:
        before.restore()  # as the run before the step can go on, where memory was not enough
        raise


class FiniteSteps:
    """Takes the steps of critics and programs, or none of them if one is not finite.

    Args:
        buffers: the buffers of the programs and of the critics.
        critics: the optimizers of the critics.
        several: whether a step has several parts, which are undone together.
        started: whether steps were taken before. If not, the error of the first one is raised.

    Attributes:
        taken: whether the last step was taken, a boolean scalar.
        failure: the error of the last step, if it failed for its numbers.
    """

    def __init__(
        self, buffers: Sequence[Tensor], critics: Sequence[ParameterOptimizer], *, several: bool, started: bool
    ) -> None:
        self.critics, self.several, self.started = critics, several, started
        self.taken = torch.tensor(True)
        self.failure: BaseException | None = None
        self._rollback = Rollback(buffers)
        self._names: dict[int, list[str]] = {}  # of the values of each part

    def __call__(self, critic_steps: Sequence[Step], program_step: Step, args: tuple, kwargs: dict) -> list[Values]:
        """Takes a step.

        Args:
            critic_steps: the steps of the critics, in order.
            program_step: the step of the programs.
            args: the arguments of the programs.
            kwargs: their keyword arguments.

        Returns:
            The values of the critics' steps, and those of the programs. Where a critic's step is not finite, the values
            of later ones are NaN.
        """
        self.failure = None
        if not self.several:  # the most frequent case, and the quickest
            values = self._take(0, program_step, args, kwargs)
            self.taken = values.pop(FINITE)
            return [{}, values]
        return self._take_all([*critic_steps, program_step], args, kwargs)

    def _take_all(self, steps: Sequence[Step], args: tuple, kwargs: dict) -> list[Values]:
        """Takes the steps of several parts, and undoes all of them if one is not finite."""
        self._rollback.save(tensor for optimizer in self.critics for tensor in optimizer.tensors())
        before = RandomState(self.taken.device)
        taken, values = False, []
        try:
            for part, step in enumerate(steps):
                values.append(self._take(part, step, args, kwargs))
                self.taken = values[-1].pop(FINITE)
                if part + 1 < len(steps) and not self.taken:  # waits for a GPU
                    break
            taken = bool(self.taken)
        except Exception:
            before.restore()
            raise
        finally:
            self._rollback.settle(taken=taken)
        values += [dict.fromkeys(self._names.get(part, ["loss"]), NAN) for part in range(len(values), len(steps))]
        return [{name: value for of_part in values[:-1] for name, value in of_part.items()}, values[-1]]

    def eagerly(self, step: Callable[[bool], Values], device: torch.device) -> Values:
        """Takes an eager step of the programs or of critics; if it is not finite, buffers keep their values.

        Args:
            step: the step as a function of whether it may be taken, which returns a flag `FINITE`.
            device: the device of the programs.

        Raises:
            NumericalFailure: see `attempt`.
        """
        if self.several:
            return attempt(step, device)
        taken = False
        self._rollback.save()
        try:
            values = attempt(step, device)
            taken = bool(values[FINITE])
        finally:
            self._rollback.settle(taken=taken)
        return values

    def _take(self, part: int, step: Step, args: tuple, kwargs: dict) -> Values:
        try:
            values = step(args, kwargs)
        except NUMERICAL_ERRORS as error:
            self.failure = error.__cause__ if isinstance(error, NumericalFailure) else error
            if not self.started and part not in self._names:
                raise self.failure or error from None
            seen = getattr(error, "result", None) or {}
            return dict.fromkeys(self._names.get(part, seen or ["loss"]), NAN) | seen | {FINITE: torch.tensor(False)}
        if part not in self._names:
            self._names[part] = [name for name in values if name != FINITE]
        return values
