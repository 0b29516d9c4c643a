"""The other players of a loss: its critics, each a network with an optimizer, that move before the programs do.

A step of the programs down a loss with critics is a round: for each turn, up to the most steps that a critic takes, a
new draw of the programs without gradients, and a step of every critic that still has one; then the programs' own step.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.infer.optimizers import ParameterOptimizer
from ppgen.infer.parameters import Evaluation, Parameters, prepare
from ppgen.tracing.programs import validation
from ppgen.tracing.sites import Program
from ppgen.tracing.traces import Traces

__all__ = ["Critics", "gradient_norm", "networks"]


class Critics:
    """The critics of an objective, and what moves them.

    Args:
        objective: has `critics`, terms by name.
        schedule: optimizer -> torch learning-rate schedule, as the programs' own has.

    Attributes:
        players: an optimizer each.
        turns: the most steps that one of them takes in a round.
    """

    def __init__(self, objective: Any, *, lr_scheduler: Callable | None = None):
        self.terms: dict[str, tuple] = getattr(objective, "critics", {})
        self.metrics = {name: terms[0].critic for name, terms in self.terms.items()}
        self.players = {
            name: ParameterOptimizer(metric.optimizer, lr_scheduler=lr_scheduler)
            for name, metric in self.metrics.items()
        }
        self.turns = max((metric.steps for metric in self.metrics.values()), default=0)

    def of_turn(self, turn: int) -> tuple[str, ...]:
        """The critics that take a step in a turn, counted from 0."""
        return tuple(name for name, metric in self.metrics.items() if metric.steps > turn)

    def move(self, turn: int, model: Program, guide: Program, args: tuple, kwargs: Mapping) -> dict[str, Tensor]:
        """One step of each critic of a turn; returns each one's loss and the norm of its gradient."""
        seen: dict[str, Tensor] = {}
        prepare(model, guide, args, kwargs)
        with torch.no_grad(), Parameters():
            draws = Traces(model, guide, args, kwargs)
            losses = {name: [term.critic_loss(draws) for term in self.terms[name]] for name in self.of_turn(turn)}
        for name, parts in losses.items():
            metric, player, loss = self.metrics[name], self.players[name], sum(parts, torch.zeros(()))
            player.meet(dict(metric.network.named_parameters()))
            seen[f"critic {name}"] = loss.detach()
            if not loss.requires_grad:  # a critic whose weights are frozen
                continue
            gradients = player.gradients(loss)
            seen[f"gradient of critic {name}"] = gradient_norm(gradients)
            player.update(gradients)
            metric.after_step()
        return seen

    def advance(self) -> None:
        """One step of the learning-rate schedules."""
        for player in self.players.values():
            player.advance()

    def facts(self) -> list:
        """The critics' options, which a compiled step holds on to."""
        return [dict(vars(metric)) for metric in self.metrics.values()]


def networks(objective: Any, model: Program, guide: Program, args: tuple) -> dict[str, nn.Module]:
    """The networks of an objective's critics by name; those that are not there yet are made for a draw of the programs.

    Raises:
        LookupError, ValueError: if the programs do not serve the critics.
    """
    found: dict[str, nn.Module] = {}
    for name, (term, *_) in getattr(objective, "critics", {}).items():
        if term.critic.network is None:
            with torch.random.fork_rng():
                with torch.no_grad(), Parameters(), Evaluation(), validation(False):
                    prepare(model, guide, args)
                    sample = term.critic_sample(Traces(model, guide, args))
                term.critic.build(sample)
        found[name] = term.critic.network
    return found


def gradient_norm(gradients: list[Tensor | None]) -> Tensor:
    """The Euclidean norm of all gradients together."""
    found = [gradient.detach() for gradient in gradients if gradient is not None]
    return torch.stack([g.square().sum() for g in found]).sum().sqrt() if found else torch.zeros(())
