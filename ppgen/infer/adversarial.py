"""Adversarial training: the critics of a loss take their own optimizer steps before each step of the programs.

In one step of the programs there are as many iterations as the critic with the most steps takes. In each iteration the
programs are sampled again without gradients, and every critic that still has a step left takes it. Then the programs
take theirs.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.infer.optimizers import ParameterOptimizer
from ppgen.infer.parameters import CollectParameters, EvalMode, setup_programs
from ppgen.tracing.programs import validation
from ppgen.tracing.sites import Program
from ppgen.tracing.traces import Traces

__all__ = ["CriticTrainer", "build_critics", "gradient_norm"]


class CriticTrainer:
    """The critics of an objective and their optimizers.

    Args:
        objective: a loss; its attribute `critics`, if it has one, holds the terms of each critic by name.
        lr_scheduler: optimizer -> torch learning-rate scheduler, as for the programs.

    Attributes:
        optimizers: the optimizer of each critic, by name.
        iterations: the largest number of steps that a critic takes before one step of the programs.
    """

    def __init__(self, objective: Any, *, lr_scheduler: Callable | None = None) -> None:
        self.terms: dict[str, tuple] = getattr(objective, "critics", {})
        self.metrics = {name: terms[0].critic for name, terms in self.terms.items()}
        self.optimizers = {
            name: ParameterOptimizer(metric.optimizer, lr_scheduler=lr_scheduler)
            for name, metric in self.metrics.items()
        }
        self.iterations = max((metric.steps for metric in self.metrics.values()), default=0)

    def active(self, iteration: int) -> tuple[str, ...]:
        """The critics that take a step in an iteration, counted from 0."""
        return tuple(name for name, metric in self.metrics.items() if metric.steps > iteration)

    def step(self, iteration: int, model: Program, guide: Program, args: tuple, kwargs: Mapping) -> dict[str, Tensor]:
        """Takes one step with each active critic.

        Args:
            iteration: counted from 0.
            model: the model.
            guide: its guide.
            args: the arguments of both.
            kwargs: their keyword arguments.

        Returns:
            Each critic's loss and the norm of its gradient, by name.
        """
        return self.update(*self.gradients(iteration, model, guide, args, kwargs))

    def gradients(
        self, iteration: int, model: Program, guide: Program, args: tuple, kwargs: Mapping
    ) -> tuple[dict[str, Tensor], dict[str, list[Tensor | None]]]:
        """The loss of each active critic and its gradients, by name; changes no weight.

        Args:
            iteration: counted from 0.
            model: the model.
            guide: its guide.
            args: the arguments of both.
            kwargs: their keyword arguments.
        """
        setup_programs(model, guide, args, kwargs)
        with torch.no_grad(), CollectParameters():
            traces = Traces(model, guide, args, kwargs)
            parts = {name: [term.critic_loss(traces) for term in self.terms[name]] for name in self.active(iteration)}
        losses = {name: sum(values, torch.zeros(())) for name, values in parts.items()}
        gradients = {}
        for name, loss in losses.items():
            optimizer = self.optimizers[name]
            optimizer.add_parameters(dict(self.metrics[name].network.named_parameters()))
            gradients[name] = optimizer.gradients(loss)
        return {name: loss.detach() for name, loss in losses.items()}, gradients

    def update(
        self, losses: dict[str, Tensor], gradients: dict[str, list[Tensor | None]], *, take: bool = True
    ) -> dict[str, Tensor]:
        """Takes the optimizers' steps.

        Args:
            losses: the loss of each critic that takes a step.
            gradients: the gradients of each of them.
            take: whether the steps are taken; if not, nothing changes.

        Returns:
            Each critic's loss and the norm of its gradient, by name.
        """
        metrics: dict[str, Tensor] = {}
        for name, loss in losses.items():
            metrics[f"critic {name}"] = loss
            if all(gradient is None for gradient in gradients[name]):  # all weights of the critic are frozen
                continue
            metrics[f"gradient of critic {name}"] = gradient_norm(gradients[name])
            if take:
                self.optimizers[name].update(gradients[name])
                self.metrics[name].after_step()
        return metrics

    def step_schedulers(self) -> None:
        """Advances the learning-rate schedulers by one step."""
        for optimizer in self.optimizers.values():
            optimizer.step_scheduler()

    def options(self) -> list:
        """The critics' options, which are constants of a compiled step."""
        return [dict(vars(metric)) for metric in self.metrics.values()]


def build_critics(objective: Any, model: Program, guide: Program, args: tuple) -> dict[str, nn.Module]:
    """The networks of an objective's critics, by name; missing ones are built for samples of the programs.

    Args:
        objective: a loss.
        model: the model.
        guide: its guide.
        args: the arguments of both.

    Raises:
        LookupError: if a critic needs a site that the programs do not have.
        ValueError: if a site has no samples that a critic can use.
    """
    networks: dict[str, nn.Module] = {}
    for name, (term, *_) in getattr(objective, "critics", {}).items():
        if term.critic.network is None:
            with torch.random.fork_rng():
                with torch.no_grad(), CollectParameters(), EvalMode(), validation(False):
                    setup_programs(model, guide, args)
                    sample = term.critic_sample(Traces(model, guide, args))
                term.critic.build(sample)
        networks[name] = term.critic.network
    return networks


def gradient_norm(gradients: list[Tensor | None]) -> Tensor:
    """The Euclidean norm of all gradients together."""
    present = [gradient.detach() for gradient in gradients if gradient is not None]
    return torch.stack([g.square().sum() for g in present]).sum().sqrt() if present else torch.zeros(())
