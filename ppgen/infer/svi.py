"""Stochastic variational inference: Pyro's `SVI` with one optimizer, one gradient clip and every parameter trained."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from pyro.optim import PyroOptim
from torch import Tensor

from ppgen.infer.adversarial import Critics, gradient_norm
from ppgen.infer.compile.step import Compile, CompiledStep
from ppgen.infer.optimizers import OptimizerFactory, ParameterOptimizer
from ppgen.infer.parameters import Parameters, prepare, tell_apart
from ppgen.tracing.sites import Program

__all__ = ["SVI"]

GRADIENT = "gradient of the programs"


class SVI:
    """Fits a model and a guide by steps down a loss; takes what ``pyro.infer.SVI`` takes.

    Against Pyro's: a parameter is the tensor that the program computes with, so a model and a guide that use one
    attribute name both train; a new PyroModule does not start from what an earlier one of its name left in the
    parameter store; frozen parameters (``requires_grad_(False)``) stay bitwise unchanged; clipping is of all gradients
    together.

    Args:
        model, guide: Pyro programs, functions or modules.
        optim: a Pyro optimizer, or a function parameters -> torch optimizer.
        loss: a ppgen objective, a Pyro ELBO, or a function (model, guide, *args, **kwargs) -> scalar tensor.
        loss_and_grads: as in Pyro: runs backward itself and returns the loss; then `loss` only evaluates.
        clip: bound on the norm of all gradients together.
        schedule: optimizer -> torch learning-rate schedule, advanced every step.
        compile: whether the whole step is compiled, once for each shape of its arguments: True; False; or "auto", once
            the steps still to come make it pay (see `ppgen.infer.compile.step`). Python in the programs then runs no more.
            What was decided is logged to "ppgen", and kept in ``svi.stepper.said``.
        steps: how many steps there will be, which "auto" goes by; unknown if left out.

    A loss with critics is a game (`ppgen.infer.adversarial`): they take their own steps, by their own optimizers, before
    each step of the programs; `clip_norm` is the programs' alone, `lr_scheduler` everybody's.

    Attributes:
        signals: of the last step of a game: each critic's loss, and the norms of the gradients of every player.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        optim: PyroOptim | OptimizerFactory,
        loss: PyroELBO | Callable[..., Tensor],
        loss_and_grads: Callable[..., Any] | None = None,
        *,
        clip_norm: float | None = None,
        lr_scheduler: Callable | None = None,
        compile: Compile = "auto",
        steps: int | None = None,
    ):
        tell_apart(model, guide)
        self.model, self.guide, self.optim = model, guide, optim
        self.objective: Any = loss
        self.player = ParameterOptimizer(optim, clip_norm=clip_norm, lr_scheduler=lr_scheduler)
        self._loss_and_grads = loss_and_grads
        self._differentiable: Any = loss
        if isinstance(loss, PyroELBO):
            self._differentiable = getattr(loss, "differentiable_loss", None)
            if self._differentiable is None and loss_and_grads is None:
                self._loss_and_grads = loss.loss_and_grads  # an ELBO that only runs backward itself
        self.critics = Critics(loss, lr_scheduler=lr_scheduler)
        self.adversarial_metrics: dict[str, Tensor] = {}
        self._compile: Compile = compile
        self.renew(steps)

    def renew(self, steps: int | None = None) -> None:
        """Forgets what is compiled; players and their optimizers stay. For when the programs' structure has changed.

        Args:
            steps: how many steps there will be, as for the constructor.
        """

        def stepper(take: Callable, players: list[ParameterOptimizer], to_come: int | None) -> CompiledStep:
            return CompiledStep(take, players, self._facts, compile=self._compile, steps=to_come)

        self.stepper = stepper(self._take, [self.player], steps)
        self._turns: list[CompiledStep] = []  # of each turn, those of equal critics shared
        steppers: dict[tuple[str, ...], CompiledStep] = {}
        for names in map(self.critics.of_turn, range(self.critics.turns)):
            if names not in steppers:
                players = [self.critics.players[name] for name in names]
                turns = sum(self.critics.of_turn(turn) == names for turn in range(self.critics.turns))
                take = partial(self._take_turn, len(self._turns))
                steppers[names] = stepper(take, players, None if steps is None else steps * turns)
            self._turns.append(steppers[names])

    @property
    def said(self) -> str:
        """What was decided about compiling, in words; empty so far as nothing was."""
        of_critics = [f"critics: {turn.said}" for turn in dict.fromkeys(self._turns) if turn.said]
        return "; ".join([*([self.stepper.said] if self.stepper.said else []), *of_critics])

    @property
    def players(self) -> list[ParameterOptimizer]:
        """Who moves parameters: the programs' player, and each critic's."""
        return [self.player, *self.critics.players.values()]

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One step down the loss on a batch; returns the loss before it, in the loss's own unit.

        A loss in parts, as ReweightedWakeSleep's, is their sum here.

        Raises:
            ValueError: if the loss depends on no trainable parameter.
        """
        loss = _total(self.update(*args, **kwargs))
        if loss != loss:
            warnings.warn("the loss is NaN", stacklevel=2)
        return loss

    def update(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """As `step`, and returns the loss term by term, detached tensors that sum to it."""
        adversarial_metrics: dict[str, Tensor] = {}
        for turn in self._turns:
            adversarial_metrics |= turn(args, kwargs)
        values = self.stepper(args, kwargs)
        if self._turns:
            self.adversarial_metrics = adversarial_metrics | {GRADIENT: values.pop(GRADIENT)}
        self.player.advance()
        self.critics.advance()
        return values

    def _take_turn(self, turn: int, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        """A step of the critics of one turn."""
        return self.critics.move(turn, self.model, self.guide, args, kwargs)

    def _take(self, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        """One step, in tensors alone."""
        values, leaves = self._losses(args, kwargs)
        self.player.meet(leaves)
        self._move_step()
        if self._loss_and_grads is not None:
            gradients = [leaf.grad for leaf in self.player.leaves.values()]
        else:
            gradients = self.player.gradients(sum(values.values(), torch.zeros(())))
        adversarial_metrics = {GRADIENT: gradient_norm(gradients)} if self._turns else {}
        self.player.update(gradients)  # last of all, so that the optimizer's kernel can leave a compiled step
        if hasattr(self.objective, "advance"):
            self.objective.advance()
        return {name: value.detach() for name, value in values.items()} | adversarial_metrics

    def _move_step(self) -> None:
        """Puts the count of steps where the parameters are: a CUDA graph reads nothing off the GPU."""
        step, leaf = getattr(self.objective, "step", None), next(iter(self.player.leaves.values()), None)
        if isinstance(step, Tensor) and leaf is not None and step.device != leaf.device:
            step.data = step.data.to(leaf.device)

    def _facts(self) -> tuple:
        """What a compiled step holds on to that is no tensor."""
        known = self.model, self.guide, self.objective, getattr(self.objective, "total", None), self.player.clip_norm
        return (*known, self.critics.facts()) if self._turns else known

    def _losses(self, args: tuple, kwargs: dict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The loss term by term, and the leaves it was computed with."""
        programs = (self.model, self.guide)
        prepare(*programs, args, kwargs)
        with Parameters() as used:
            if self._loss_and_grads is not None:
                values = _parts(self._loss_and_grads(*programs, *args, **kwargs))
            elif hasattr(self.objective, "values"):
                values = self.objective.values(*programs, *args, **kwargs)
            else:
                values = _parts(self._differentiable(*programs, *args, **kwargs))
        return values, used.leaves

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """The loss on a batch, without gradients, the modules in the mode they are in; no parameter moves."""
        loss = self.objective.loss if isinstance(self.objective, PyroELBO) else self.objective
        prepare(self.model, self.guide, args, kwargs)
        with torch.no_grad(), Parameters():
            return _total(_parts(loss(self.model, self.guide, *args, **kwargs)))


def _parts(loss: Any) -> dict[str, Tensor]:
    """A loss by name; Pyro's wake-sleep gives a pair, one for the model and one for the guide."""
    parts = loss if isinstance(loss, tuple) else (loss,)
    names = [f"loss {i + 1}" for i in range(len(parts))] if len(parts) > 1 else ["loss"]
    return {name: torch.as_tensor(part) for name, part in zip(names, parts, strict=True)}


def _total(values: dict[str, Tensor]) -> float:
    return sum(float(value) for value in values.values())
