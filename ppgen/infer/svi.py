"""Stochastic variational inference: Pyro's `SVI` with one optimizer, one gradient clip and every parameter trained."""

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO as PyroELBO
from pyro.optim import PyroOptim
from torch import Tensor
from tqdm.auto import tqdm

from ppgen.infer.adversarial import CriticTrainer, gradient_norm
from ppgen.infer.compile.step import Compile, CompiledStep
from ppgen.infer.distributed import Ranks
from ppgen.infer.finite_steps import FINITE, NAN, FiniteSteps, all_finite, attempt
from ppgen.infer.optimizers import OptimizerFactory, ParameterOptimizer
from ppgen.infer.parameter_scope import one_at_a_time
from ppgen.infer.parameters import CollectParameters, ProgramState, check_rows, separate_names, setup_programs
from ppgen.infer.replicated_step import ReplicatedStep
from ppgen.tracing.sites import Program
from ppgen.utils.user_warnings import warn_user

__all__ = ["SVI", "SVIRun"]

GRADIENT = "gradient of the programs"
TAKEN = torch.tensor(True)

UNTRAINABLE = (
    "the loss depends on no trainable parameter, so a step changes nothing: register networks with pyro.module or "
    "parameters with pyro.param, and set requires_grad on those that are to be trained"
)


class SVIRun(NamedTuple):
    """What `SVI.run` returns.

    Attributes:
        params: the parameters after the last step, by name, as the optimizer holds them: unconstrained.
        losses: the loss before each step, (num_steps,).
    """

    params: dict[str, Tensor]
    losses: Tensor


class SVI:
    """Fits a model and a guide by gradient steps on a loss; accepts the arguments of ``pyro.infer.SVI``.

    It differs from Pyro's in this: a parameter is the tensor that the program computes with, so that a model and a
    guide that share an attribute name are both trained; a new PyroModule does not start from values that an earlier one
    of its name left in the parameter store; frozen parameters (``requires_grad_(False)``) stay bitwise unchanged; the
    gradient norm is clipped over all parameters together.

    If the loss has critics, training is adversarial (`ppgen.infer.adversarial`): the critics take steps with their own
    optimizers before each step of the programs. `clip_norm` applies to the programs alone, `lr_scheduler` to all.

    Args:
        model: a Pyro program, a function or a module.
        guide: a Pyro program, a function or a module.
        optim: a Pyro optimizer, or a function parameters -> torch optimizer.
        loss: a ppgen objective, a Pyro ELBO, or a function (model, guide, *args, **kwargs) -> scalar tensor.
        loss_and_grads: as in Pyro, a function that runs backward itself and returns the loss; `loss` is then used for
            evaluation only.
        clip_norm: bound on the Euclidean norm of all gradients together.
        lr_scheduler: optimizer -> torch learning-rate scheduler, advanced every step.
        compile: whether to compile the whole step, once for each shape of its arguments: True, False, or "auto" for
            when that saves time over the remaining steps (see `ppgen.infer.compile.step`). A compiled step does not run
            the Python of the programs, and is dropped when a value that they read has changed. Decisions are logged to
            "ppgen" and kept in `compile_status`. "cuda_graph" also replays steps on a GPU as CUDA graphs, which has not
            been tried there.
        steps: the number of steps to expect, which "auto" uses; None if it is not known.
        skip_nonfinite: whether a step is left out where the loss or the norm of a gradient is not finite, or where a
            distribution or a matrix is refused for its numbers; parameters, the optimizers' states, buffers and critics
            then stay as they are. Without it, as in Pyro, such a step is taken. `ppgen.fit` leaves them out.
        ranks: the processes that train this model together, as `ppgen.fit` sets them up; each takes all steps alone if
            left out.

    Attributes:
        critics: the critics of the loss, with their optimizers.
        adversarial_metrics: of the last step with critics: each critic's loss, and the gradient norms of the critics
            and of the programs.
        trainable: whether the loss of the last step depended on a parameter that can be trained.
        buffers: with `skip_nonfinite`, the buffers of the programs and critics; found by running the programs if they
            are not set before the first step.
        finite_steps: with `skip_nonfinite`, takes the steps, and knows whether the last one was taken.

    Raises:
        TypeError: if `optim` is not an optimizer as described.
        ValueError: if `clip_norm`, `compile` or `steps` is out of range.

    Example:
        >>> import pyro
        >>> import torch
        >>> import ppgen
        >>> vae, x = ppgen.models.VAE((3,), latent_dim=2, hidden=(8,)), torch.randn(20, 3)
        >>> svi = ppgen.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), loss=ppgen.ELBO(), compile=False)
        >>> losses = [svi.step(x) for _ in range(50)]
        >>> losses[-1] < losses[0]
        True
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
        skip_nonfinite: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        with one_at_a_time:
            separate_names(model, guide)
        self.model, self.guide, self.optim = model, guide, optim
        self.objective: Any = loss
        self.optimizer = ParameterOptimizer(optim, clip_norm=clip_norm, lr_scheduler=lr_scheduler)
        self._loss_and_grads = loss_and_grads
        self._differentiable: Any = loss
        if isinstance(loss, PyroELBO):
            self._differentiable = getattr(loss, "differentiable_loss", None)
            if self._differentiable is None and loss_and_grads is None:
                self._loss_and_grads = loss.loss_and_grads  # an ELBO that only runs backward itself
        self.critics = CriticTrainer(loss, lr_scheduler=lr_scheduler)
        self.adversarial_metrics: dict[str, Tensor] = {}
        self.trainable, self._warned_untrainable, self._checked_rows = True, False, False
        self._compile: Compile = compile
        self.skip_nonfinite = skip_nonfinite
        self.buffers: list[Tensor] | None = None
        self.finite_steps: FiniteSteps | None = None
        self.ranks = Ranks(alone=True) if ranks is None else ranks
        self.recompile(steps)

    def recompile(self, steps: int | None = None) -> None:
        """Discards all compiled steps, for when the programs' structure has changed; optimizers keep their state.

        Args:
            steps: the number of steps to come, as for the constructor.
        """
        halves = self.program_gradients, self._program_update
        self.compiled_step = self._compiled(*halves, [self.optimizer], steps)
        by_critics: dict[tuple[str, ...], CompiledStep | ReplicatedStep] = {}  # iterations of the same critics share it
        iterations = [self.critics.active(iteration) for iteration in range(self.critics.iterations)]
        for iteration, names in enumerate(iterations):
            if names not in by_critics:
                optimizers = [self.critics.optimizers[name] for name in names]
                halves = partial(self._critic_gradients, iteration), partial(self._critic_update, names)
                total = None if steps is None else steps * iterations.count(names)
                by_critics[names] = self._compiled(*halves, optimizers, total)
        self.critic_steps = [by_critics[names] for names in iterations]

    @property
    def optimizer(self) -> ParameterOptimizer:
        """The optimizer of the programs' parameters; compiled steps are discarded when another one takes its place."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: ParameterOptimizer) -> None:
        self._optimizer = optimizer
        if hasattr(self, "compiled_step"):
            self.recompile(self.compiled_step.policy.steps)

    @property
    def compile_status(self) -> str:
        """The last decisions about compiling, in words; empty before there is one."""
        critics = [f"critics: {step.status}" for step in dict.fromkeys(self.critic_steps) if step.status]
        return "; ".join([*([self.compiled_step.status] if self.compiled_step.status else []), *critics])

    def compile_decisions(self) -> list[dict[str, Any]]:
        """When the programs' step and those of the critics were compiled, as JSON values; a checkpoint holds them."""
        return [step.policy.decisions() for step in self._single_steps]

    def restore_compile_decisions(self, decisions: list[dict[str, Any]]) -> None:
        """Compiles what a stopped run had compiled from the next step on.

        Args:
            decisions: what `compile_decisions` returned.
        """
        if len(decisions) == len(self._single_steps):  # otherwise another number of ranks wrote them
            for step, decided in zip(self._single_steps, decisions, strict=True):
                step.policy.restore(decided)

    @property
    def _single_steps(self) -> list[CompiledStep]:
        """The steps that one rank takes alone."""
        steps = dict.fromkeys([self.compiled_step, *self.critic_steps])
        return [step for step in steps if isinstance(step, CompiledStep)]

    @property
    def optimizers(self) -> list[ParameterOptimizer]:
        """The programs' optimizer, then each critic's."""
        return [self.optimizer, *self.critics.optimizers.values()]

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Takes one step on a batch. A warning says if the loss depends on no trainable parameter.

        Args:
            *args: the arguments of model and guide.
            **kwargs: their keyword arguments.

        Returns:
            The loss before the step, in its own unit. A loss in parts, such as ReweightedWakeSleep's, is their sum.
        """
        loss = _total(self.update(*args, **kwargs))
        if not (self.trainable or self._warned_untrainable):
            self._warned_untrainable = True
            warn_user(UNTRAINABLE)
        if loss != loss:
            warn_user("the loss is NaN")
        return loss

    def run(self, num_steps: int, *args: Any, progress: bool = True, **kwargs: Any) -> "SVIRun":
        """Takes many steps on one batch, as NumPyro's ``SVI.run`` does; further calls go on from there.

        Where the step is compiled and small, many steps are one call of a loop in machine code: with `compile=True`, or
        where "auto" expects to save more time than compiling it takes. The numbers are those of `step`.

        Args:
            num_steps: how many.
            *args: the arguments of model and guide.
            progress: whether to show a progress bar on a terminal.
            **kwargs: their keyword arguments.

        Returns:
            The losses, and the parameters after the last step.

        Raises:
            ValueError: for fewer than one step.

        Example:
            >>> import pyro
            >>> import pyro.distributions as dist
            >>> import torch
            >>> import ppgen
            >>> def model(x):
            ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
            >>> guide, x = pyro.infer.autoguide.AutoNormal(model), torch.randn(20)
            >>> svi = ppgen.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), ppgen.ELBO(), compile=False)
            >>> svi.run(200, x, progress=False).losses.shape
            torch.Size([200])
        """
        if num_steps < 1:
            raise ValueError(f"run: expected at least 1 step, got {num_steps}")
        losses: list[Tensor] = []
        left = num_steps
        with tqdm(total=num_steps, desc="SVI", unit="step", disable=None if progress else True, leave=False) as bar:
            while left:
                values = self._several(left, args, kwargs)
                if values is None:
                    losses.append(torch.tensor([self.step(*args, **kwargs)]))
                else:
                    losses.append(sum(values.values(), torch.zeros(())))
                bar.update(len(losses[-1]))
                left -= len(losses[-1])
        found = torch.cat(losses)
        if bool(found.isnan().any()):
            warn_user("the loss is NaN")
        return SVIRun({k: v.detach().clone() for k, v in self.optimizer.parameters.items()}, found)

    def _several(self, most: int, args: tuple, kwargs: dict) -> dict[str, Tensor] | None:
        """The terms of the losses of many steps, taken in one call; None if the next step is to be taken alone."""
        alone = self.critic_steps or self.skip_nonfinite or self.optimizer.lr_scheduler or self.optimizer.scheduler
        if alone or not isinstance(self.compiled_step, CompiledStep):
            return None
        with one_at_a_time:
            return self.compiled_step.several(args, kwargs, most)

    def update(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Takes one step as `step` does, but tells by `trainable` alone whether it could change anything.

        Args:
            *args: the arguments of model and guide.
            **kwargs: their keyword arguments.

        Returns:
            The terms of the loss by name, detached tensors that sum to it.
        """
        adversarial_metrics: dict[str, Tensor] = {}
        if not self._checked_rows:
            self._checked_rows = True
            self._warn_of_rows(args, kwargs)
        with one_at_a_time:
            if self.skip_nonfinite:
                if self.finite_steps is None:
                    self.finite_steps = self._make_finite_steps(args, kwargs)
                adversarial_metrics, values = self.finite_steps(self.critic_steps, self.compiled_step, args, kwargs)
            else:
                for critic_step in self.critic_steps:
                    adversarial_metrics |= critic_step(args, kwargs)
                values = self.compiled_step(args, kwargs)
        if self.critic_steps:
            self.adversarial_metrics = adversarial_metrics | {GRADIENT: values.pop(GRADIENT, NAN)}
        self.optimizer.step_scheduler()
        self.critics.step_schedulers()
        return values

    @property
    def taken(self) -> Tensor:
        """Whether the last step was taken, a boolean scalar; reading it waits for a GPU."""
        return TAKEN if self.finite_steps is None else self.finite_steps.taken

    @property
    def failure(self) -> BaseException | None:
        """The error for which the last step was skipped, if it was one of this process."""
        parts = [self.finite_steps, self.compiled_step, *self.critic_steps]
        return next((error for part in parts if (error := getattr(part, "failure", None)) is not None), None)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """The loss on a batch without gradients; modules keep their training modes, and no parameter changes.

        Args:
            *args: the arguments of model and guide.
            **kwargs: their keyword arguments.
        """
        loss = self.objective.loss if isinstance(self.objective, PyroELBO) else self.objective
        with one_at_a_time, torch.no_grad(), CollectParameters():
            setup_programs(self.model, self.guide, args, kwargs)
            return _total(_parts(loss(self.model, self.guide, *args, **kwargs)))

    def _warn_of_rows(self, args: tuple, kwargs: dict) -> None:
        """Warns if an autoguide replaces rows that the model gives to a plate; stock SVI takes such a step."""
        if not isinstance(self.objective, PyroELBO):
            return
        with one_at_a_time:
            setup_programs(self.model, self.guide, args, kwargs)
            try:
                check_rows(self.model, self.guide, args, kwargs)
            except ValueError as error:
                warn_user(str(error))

    def _compiled(
        self, gradients: Callable, update: Callable, optimizers: list[ParameterOptimizer], steps: int | None
    ) -> CompiledStep | ReplicatedStep:
        """A step as one function, or among several ranks as two, with the sum over ranks between them."""
        options: dict[str, Any] = {"compile": self._compile, "steps": steps}
        if self.ranks.size == 1:
            step = partial(self._whole_step, gradients, update)
            return CompiledStep(step, optimizers, self._static_values, **options)
        half = partial(self._gradient_half, gradients)
        return ReplicatedStep(half, update, optimizers, self._static_values, ranks=self.ranks, **options)

    def _make_finite_steps(self, args: tuple, kwargs: dict) -> FiniteSteps:
        if self.buffers is None:
            networks = {name: metric.network for name, metric in self.critics.metrics.items()}
            state = ProgramState.from_programs(self.model, self.guide, args, kwargs, critics=networks)
            self.buffers = list(state.buffers.values())
        several = bool(self.critic_steps) or self.ranks.size > 1
        started = self.optimizer.torch_optimizer is not None  # as in a run that continues
        return FiniteSteps(self.buffers, list(self.critics.optimizers.values()), several=several, started=started)

    @property
    def _eager(self) -> bool:
        """Whether the step that runs is decided in Python: one that is recorded is taken in any case."""
        return not any(optimizer.recording for optimizer in self.optimizers)

    @property
    def _device(self) -> torch.device:
        """The GPU that parameters are on, or else the CPU."""
        leaves = (leaf for optimizer in self.optimizers for leaf in optimizer.parameters.values())
        return next((leaf.device for leaf in leaves if leaf.is_cuda), torch.device("cpu"))

    def _whole_step(self, gradients: Callable, update: Callable, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        """One step, which reads and writes tensors only: its gradients, then the update."""
        if self.finite_steps is not None and self._eager:
            step = lambda take: update(*gradients(args, kwargs), take=take)  # noqa: E731
            return self.finite_steps.eagerly(step, self._device)
        return update(*gradients(args, kwargs))

    def _gradient_half(self, gradients: Callable, args: tuple, kwargs: dict) -> Any:
        """The gradients of this rank's rows."""
        if self.finite_steps is not None and self._eager:
            return attempt(lambda _: gradients(args, kwargs), self._device)
        return gradients(args, kwargs)

    def _critic_gradients(
        self, iteration: int, args: tuple, kwargs: dict
    ) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        """The losses of the critics of an iteration, and the gradients of all of them."""
        losses, gradients = self.critics.gradients(iteration, self.model, self.guide, args, kwargs)
        return losses, [gradient for of_critic in gradients.values() for gradient in of_critic]

    def _critic_update(
        self, names: tuple[str, ...], losses: dict[str, Tensor], gradients: list[Tensor | None], *, take: bool = True
    ) -> dict[str, Tensor]:
        """The update of the critics of an iteration."""
        flag = self._flag(losses, gradients, take=take)
        sizes = [len(self.critics.optimizers[name].parameters) for name in names]
        ends = list(accumulate(sizes))
        parts = [gradients[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        return flag | self.critics.update(losses, dict(zip(names, parts, strict=True)), take=self._takes(flag))

    def _flag(self, values: dict[str, Tensor], gradients: list[Tensor | None], *, take: bool) -> dict[str, Tensor]:
        """Whether a step is finite and may be taken, under the name `FINITE`; nothing if all are taken."""
        if self.finite_steps is None:
            return {}
        return {FINITE: all_finite(values, gradients) if take else torch.tensor(False)}

    def _takes(self, flag: dict[str, Tensor]) -> bool:
        """Whether a step is taken. A recorded one is; the graph that is made of it goes by the flag."""
        return not flag or not self._eager or bool(flag[FINITE])  # reading it waits for a GPU

    def program_gradients(self, args: tuple, kwargs: dict) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        """The terms of the loss, and its gradients in the order of the optimizer's parameters; changes no parameter."""
        values, parameters = self._losses(args, kwargs)
        self.optimizer.add_parameters(parameters)
        self._move_step_counter()
        if self._loss_and_grads is not None:
            gradients = [leaf.grad for leaf in self.optimizer.parameters.values()]
        else:
            gradients = self.optimizer.gradients(sum(values.values(), torch.zeros(())))
        return {name: value.detach() for name, value in values.items()}, gradients

    def _program_update(
        self, values: dict[str, Tensor], gradients: list[Tensor | None], *, take: bool = True
    ) -> dict[str, Tensor]:
        """Clips the gradients and takes the optimizer's step; the terms of the loss and, with critics, the norm."""
        self.trainable = any(gradient is not None for gradient in gradients)
        adversarial_metrics = {GRADIENT: gradient_norm(gradients)} if self.critic_steps else {}
        flag = self._flag(values, gradients, take=take)
        if self._takes(flag):
            self.optimizer.update(gradients)  # last, so that a fused optimizer can run after the compiled graph
            if hasattr(self.objective, "advance"):
                self.objective.advance()
        return values | adversarial_metrics | flag

    def _move_step_counter(self) -> None:
        """Moves the objective's step counter to the device of the parameters: a CUDA graph reads GPU memory only."""
        step, leaf = getattr(self.objective, "step", None), next(iter(self.optimizer.parameters.values()), None)
        if isinstance(step, Tensor) and leaf is not None and step.device != leaf.device:
            step.data = step.data.to(leaf.device)

    def _static_values(self) -> tuple:
        """All that a step depends on besides tensors."""
        values = (
            self.model,
            self.guide,
            self.objective,
            getattr(self.objective, "total", None),
            self.optimizer.clip_norm,
        )
        return (*values, self.critics.options()) if self.critic_steps else values

    def _losses(self, args: tuple, kwargs: dict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The loss term by term, and the parameters that it was computed with."""
        programs = (self.model, self.guide)
        setup_programs(*programs, args, kwargs)
        with CollectParameters() as used:
            if self._loss_and_grads is not None:
                values = _parts(self._loss_and_grads(*programs, *args, **kwargs))
            elif hasattr(self.objective, "values"):
                values = self.objective.values(*programs, *args, **kwargs)
            else:
                values = _parts(self._differentiable_loss(args, kwargs))
        return values, used.parameters

    def _differentiable_loss(self, args: tuple, kwargs: dict) -> Any:
        """The loss with its graph, if it has one."""
        try:
            return self._differentiable(self.model, self.guide, *args, **kwargs)
        except ValueError as error:
            if not (isinstance(self.objective, PyroELBO) and "cannot be differentiated" in str(error)):
                raise
        with torch.no_grad():  # TraceEnum_ELBO refuses what has no gradient, where stock SVI returns the loss
            return self.objective.loss(self.model, self.guide, *args, **kwargs)


def _parts(loss: Any) -> dict[str, Tensor]:
    """A loss by name; Pyro's wake-sleep returns a pair, for the model and for the guide."""
    parts = loss if isinstance(loss, tuple) else (loss,)
    names = [f"loss {i + 1}" for i in range(len(parts))] if len(parts) > 1 else ["loss"]
    return {name: torch.as_tensor(part) for name, part in zip(names, parts, strict=True)}


def _total(values: dict[str, Tensor]) -> float:
    return sum(float(value) for value in values.values())
