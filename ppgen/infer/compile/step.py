"""A training step that is compiled when that pays, and that always does what the eager step does.

A `CompiledStep` runs a step eagerly at first. When compiling pays (`policy`), it records two steps in a row
(`recording`). If both are the same function of their inputs, random numbers and fused optimizers are moved out of the
graph (`random_inputs`, `fused_optimizer`), inductor compiles the rest (`inductor`), and the compiled function repeats
the second step on the same random numbers. It is used only if its results agree with the eager ones (`comparison`), and
only while nothing but the values of tensors changes (`guard`). Whatever fails, the step stays eager, and one warning
says why.

A compiled step does not run the Python of the programs: what they print, count or append happens in eager and recorded
steps only.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from traceback import walk_tb
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ppgen.infer.compile.arguments import argument_key, map_tensors, new_view
from ppgen.infer.compile.audits import Audits
from ppgen.infer.compile.comparison import disagreement
from ppgen.infer.compile.compiled_function import CompiledFunction, finish_recording
from ppgen.infer.compile.guard import Guard, check_environment
from ppgen.infer.compile.guarded_writes import FINITE
from ppgen.infer.compile.native_loop import NativeLoop
from ppgen.infer.compile.policy import MAX_CHANGES, MAX_COMPILED, MAX_RECORDINGS, Compile, CompilePolicy, ShapeState
from ppgen.infer.compile.protocols import RecordableOptimizer
from ppgen.infer.compile.python_values import PythonValues
from ppgen.infer.compile.recording import (
    RandomState,
    Recording,
    Untraceable,
    is_user_code,
    recordable_programs,
    source_line,
)
from ppgen.utils.torch_private import MissingTorchInterface, warn_missing
from ppgen.utils.user_warnings import warn_user

__all__ = ["Compile", "CompiledStep"]

NOT_COMPILED = "the step is not compiled, and runs eagerly"

AUDIT_SLACK = 10.0  # on tolerances: audits find other operations by comparing the recordings, which is exact

logger = logging.getLogger("ppgen")


class RecordedStep(NamedTuple):
    """An eager step that was recorded.

    Attributes:
        recording: its operations.
        values: the scalars that it returned.
        arguments: the tensors that it was called with.
        random_state: torch's random state before it.
    """

    recording: Recording
    values: dict[str, Tensor]
    arguments: list[Tensor]
    random_state: RandomState

    @property
    def refusal(self) -> Exception | None:
        """Why it cannot be compiled."""
        if self.recording.refusal or self.recording.aliased:
            return Untraceable(self.recording.refusal or "two tensors share memory, and the step writes into it")
        return None


class CompiledStep:
    """Takes steps, eager or compiled.

    Args:
        step: one step as a function of (args, kwargs) that returns scalars by name. It reads and writes tensors only.
            One of the scalars may be a flag, `FINITE`: where it is false, a compiled step writes nothing. An eager step
            has to see to that by itself; a recorded one is undone.
        optimizers: whose parameters it updates.
        static_values: returns all else, not a tensor, that the step depends on; compared by ``==``.
        compile: True to compile as soon as possible; False for never; "auto" for when it saves time over the remaining
            steps; "cuda_graph" as True, with compiled steps on a GPU replayed as CUDA graphs, which is experimental.
        steps: the number of steps to expect. After them, or if it is not known, "auto" expects as many more as there
            have been.

    Attributes:
        status: the last decision about compiling, in words; empty before there is one.

    Raises:
        ValueError: for another value of `compile` or `steps`.
    """

    def __init__(
        self,
        step: Callable[[tuple, dict], dict[str, Tensor]],
        optimizers: Sequence[RecordableOptimizer],
        static_values: Callable[[], Any],
        *,
        compile: Compile = "auto",
        steps: int | None = None,
    ) -> None:
        self.step, self.optimizers, self.static_values = step, optimizers, static_values
        self.policy = CompilePolicy(compile, steps)
        self.status = ""

    @property
    def compiled_shapes(self) -> int:
        """The number of argument shapes that have a compiled function at present."""
        return sum(shape.compiled is not None for shape in self.policy.shapes.values())

    def __call__(self, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        """Takes one step and returns its scalars by name, detached."""
        self.policy.taken += 1
        if self.policy.compile is False:
            return self.step(*map_tensors(new_view, (args, kwargs)))
        tensors, key = argument_key(args, kwargs)
        shape = self.policy.shape(key)
        shape.steps += 1
        if shape.compiled is not None and shape.guard is not None and shape.audits is not None:
            change = shape.guard.change(tensors)
            if change is None:
                for optimizer in self.optimizers:
                    optimizer.learning_rates.refresh()
                if shape.audits.due():
                    return self._audit(shape, *map_tensors(new_view, (args, kwargs)))
                return shape.compiled(tensors)
            self._discard(shape, change)
        args, kwargs = map_tensors(new_view, (args, kwargs))
        # the first step creates parameters, optimizers and their state, unless they were restored
        ready = all(optimizer.torch_optimizer is not None for optimizer in self.optimizers)
        started = ready and (shape.steps > 1 or shape.chosen)
        if started and self.policy.pays(shape):
            if shape.chosen:
                self._rehearse(shape, args, kwargs)
            return self._record(shape, args, kwargs)
        began = self.policy.clock()
        values = self.step(args, kwargs)
        if shape.build is not None:
            self._compile_meanwhile(shape)
        if started:
            shape.timed_steps, shape.seconds = shape.timed_steps + 1, shape.seconds + self.policy.clock() - began
        return values

    def several(self, args: tuple, kwargs: dict, most: int) -> dict[str, Tensor] | None:
        """Takes many steps on a batch in one call, if they are compiled and nothing is to be done between them.

        Args:
            args: the arguments of the step.
            kwargs: its keyword arguments.
            most: the largest number of steps.

        Returns:
            The scalars of all steps by name, each (number of steps,); None where the next step is to be taken alone.
        """
        if self.policy.compile not in (True, "auto"):
            return None
        tensors, key = argument_key(args, kwargs)
        shape = self.policy.shape(key)
        if shape.compiled is None or shape.guard is None or shape.audits is None or shape.loop is False:
            return None
        compiled, turns = shape.compiled, min(most, shape.audits.before_next)
        if turns < 2 or shape.guard.change(tensors) is not None:
            return None
        if shape.loop is not None and not shape.loop.holds:
            shape.loop = None
        if shape.loop is None:
            shape.loop = self._loop(lambda: NativeLoop(compiled, tensors))
        if shape.loop and not shape.loop.ready and self.policy.loop_pays(most):
            shape.loop = self._loop(shape.loop.compile)
        if not shape.loop or not shape.loop.ready:
            return None
        turns = min(turns, shape.loop.most)
        for optimizer in self.optimizers:
            optimizer.learning_rates.refresh()
        shape.audits.steps += turns
        shape.steps += turns
        self.policy.taken += turns
        return shape.loop(tensors, turns)

    def _loop(self, make: Callable[[], NativeLoop]) -> "NativeLoop | Literal[False]":
        """The loop of a compiled step, made by a function; False if there is none."""
        began = self.policy.clock()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns while it compiles
                loop = make()
        except Exception as error:
            self._report(f"steps are called one by one: {_reason(error)}")
            return False
        if loop.ready:
            self._report(f"many steps a call, compiled in {self.policy.clock() - began:.1f} s")
        return loop

    def _compile_meanwhile(self, shape: ShapeState) -> None:
        """Starts to compile a recorded step in another process when that pays, and sees whether it is done."""
        build = shape.build
        assert build is not None
        if not build.started:
            try:
                started = self.policy.saves(shape, build.predicted_seconds) and build.start()
            except Exception as error:
                shape.build = None
                self._stay_eager(shape, error)
                return
            if started:
                self._report(f"the step is being compiled since step {self.policy.taken}, while eager steps go on")
        elif build.done:
            shape.build = None  # the next step is recorded again, and finds what was compiled
            if build.failure is not None:
                self._stay_eager(shape, Untraceable(build.failure))

    def _discard(self, shape: ShapeState, change: str) -> None:
        """Gives up a compiled function because of a change; a value that keeps changing leaves the shape eager."""
        shape.discard()
        shape.changes[change] += 1
        if shape.changes[change] >= MAX_CHANGES:
            self._stay_eager(shape, Untraceable(f"{change} has changed {MAX_CHANGES} times since it was compiled"))
        else:
            self._report(f"step {self.policy.taken} is not compiled: {change} has changed")

    def _record(self, shape: ShapeState, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        """Records a step, and compiles it if the previous recording was the same."""
        previous, shape.recording, shape.recordings = shape.recording, None, shape.recordings + 1
        known = [len(optimizer.parameters) for optimizer in self.optimizers]
        python_values = PythonValues(self.static_values())
        recorded = self._recorded_step(args, kwargs, python_values)
        if isinstance(recorded, Exception):
            refusal: Exception | None = recorded
            values = self.step(args, kwargs)  # raises the program's own errors
        else:
            refusal, values = recorded.refusal, recorded.values
        if not _is_finite(values):  # the step was not taken, and another one is recorded
            shape.recordings -= 1
            return values
        if refusal is not None:
            joined = [len(optimizer.parameters) for optimizer in self.optimizers] != known
            if not joined or shape.recordings >= MAX_RECORDINGS:  # new parameters lack the flags of recordable steps
                self._stay_eager(shape, refusal)
            return values
        assert isinstance(recorded, RecordedStep)
        difference = None if previous is None else recorded.recording.difference(previous)
        if previous is not None and difference is None:
            return self._compile(shape, recorded)
        if difference is not None and shape.recordings >= MAX_RECORDINGS:
            self._stay_eager(shape, Untraceable(difference))
        else:
            shape.recording, shape.operations = recorded.recording, len(recorded.recording.signature)
        return values

    def _rehearse(self, shape: ShapeState, args: tuple, kwargs: dict) -> None:
        """Records and undoes a step that a stopped run would have taken compiled, so that the next one compiles it."""
        shape.chosen = False
        restore_states = [optimizer.learning_rates.save_state() for optimizer in self.optimizers]
        recorded = self._recorded_step(args, kwargs, PythonValues(self.static_values()))
        if isinstance(recorded, RecordedStep):
            recorded.recording.undo()
            recorded.random_state.restore()
            for restore_state in restore_states:
                restore_state()
            shape.recording = recorded.recording if recorded.refusal is None else None

    def _recorded_step(
        self, args: tuple, kwargs: dict, python_values: PythonValues | None = None
    ) -> "RecordedStep | Exception":
        """Takes an eager step and records it; if that fails, nothing has changed, and the error is returned."""
        arguments, _ = argument_key(args, kwargs)
        random_state = RandomState(self._device)
        restore_states = [optimizer.learning_rates.save_state() for optimizer in self.optimizers]
        recording: Recording | None = None
        try:
            check_environment()
            recording = Recording(arguments, python_values)
            numbers = [optimizer.learning_rates.python_numbers() for optimizer in self.optimizers]
            with self._recordable(), recording:
                values = self.step(args, kwargs)
            after = [optimizer.learning_rates.python_numbers() for optimizer in self.optimizers]
            if any(now.get(k) != v for now, old in zip(after, numbers, strict=True) for k, v in old.items()):
                recording.refuse("its optimizer counts in Python numbers", None)
            if not _is_finite(values):  # a recorded step is taken in any case
                recording.undo()
                for restore_state in restore_states:
                    restore_state()
        except Exception as error:
            if recording is not None:
                recording.undo()
            for restore_state in restore_states:
                restore_state()
            random_state.restore()
            return error
        return RecordedStep(recording, values, arguments, random_state)

    def _compile(self, shape: ShapeState, recorded: "RecordedStep") -> dict[str, Tensor]:
        """Compiles the recorded step and repeats it; returns its values, or the eager ones if the two differ."""
        began = self.policy.clock()
        recording = recorded.recording
        try:
            finished = finish_recording(recording, recorded.values)
            graph = finished.build.known()
            if graph is None and self.policy.compile == "auto" and not shape.chosen:
                shape.build, shape.recording = finished.build, recording
                recording.forget()
                return recorded.values
            if graph is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # torch warns while it compiles
                    graph = finished.build.now()
            compiled = CompiledFunction(finished, graph, len(recorded.arguments), cuda_graph=self._cuda_graph)
            guard = Guard(recording, self.optimizers, self.static_values)
        except Exception as error:
            self._stay_eager(shape, error)
            return recorded.values
        values, difference = self._repeat(recorded, compiled)
        if difference is not None:
            self._stay_eager(shape, difference)
            return values
        recording.forget()
        self.policy.compiled += 1
        shape.recording, shape.compiled, shape.guard, shape.audits = recording, compiled, guard, Audits()
        shape.compiled_at = shape.compiled_at or self.policy.taken
        limit = f"; this was shape or state {MAX_COMPILED}, others run eagerly" if self.policy.exhausted else ""
        self._report(f"compiled at step {self.policy.taken}, in {self.policy.clock() - began:.1f} s{limit}")
        return values

    def _repeat(
        self, recorded: "RecordedStep", compiled: CompiledFunction, *, slack: float = 1.0
    ) -> tuple[dict[str, Tensor], Exception | None]:
        """Repeats a recorded step with the compiled function, on the same random numbers.

        Args:
            recorded: the step, which has just been taken eagerly.
            compiled: the compiled function.
            slack: a factor on the tolerances.

        Returns:
            The values of the compiled step, and None; if the two differ, the eager results stay, and the values are
            those of the eager step, with an error that says how they differ.
        """
        recording = recorded.recording
        eager_results, random_state_after = recording.after(), RandomState(self._device)
        try:
            recording.undo()
            recorded.random_state.restore()
            values = compiled(recorded.arguments)
            difference = disagreement(recording, eager_results, recorded.values, values, self.optimizers, slack=slack)
            if difference is None and not random_state_after.is_current():
                difference = "it draws other random numbers"
            if difference is not None:
                raise Untraceable(f"the compiled step differs from the eager one: {difference}")
        except Exception as error:
            recording.write(eager_results)
            random_state_after.restore()
            return recorded.values, error
        return values, None

    def _audit(self, shape: ShapeState, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        """Takes a step eagerly and compiled, and goes back to eager steps if the two differ."""
        assert shape.audits is not None
        assert shape.recording is not None
        assert shape.compiled is not None
        began = self.policy.clock()
        recorded = self._recorded_step(args, kwargs)
        difference: Exception | None
        if isinstance(recorded, Exception):
            values, difference = self.step(args, kwargs), recorded  # raises the program's own errors
        elif recorded.refusal is not None:
            values, difference = recorded.values, recorded.refusal
        elif text := recorded.recording.difference(shape.recording):
            values, difference = recorded.values, Untraceable(text)
        else:
            values, difference = self._repeat(recorded, shape.compiled, slack=AUDIT_SLACK)
        if not _is_finite(values):  # it was not taken, and two numbers that are not finite cannot be compared
            difference = None
        if difference is None:
            shape.audits.passed(self.policy.clock() - began)
            return values
        taken, since = self.policy.taken, shape.audits.steps - shape.audits.verified
        shape.discard()
        self._stay_eager(
            shape,
            difference,
            f"step {taken} differs from what was compiled; up to {since} steps before it may have been wrong (step "
            f"{taken - since} was checked last), and later ones are eager",
        )
        return values

    @property
    def _cuda_graph(self) -> bool:
        return self.policy.compile == "cuda_graph" and self._device.type == "cuda"

    @property
    def _device(self) -> torch.device:
        """The GPU that parameters are on, or else the CPU."""
        parameters = (p for optimizer in self.optimizers for p in optimizer.parameters.values())
        return next((p.device for p in parameters if p.is_cuda), torch.device("cpu"))

    @contextmanager
    def _recordable(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(recordable_programs())
            for optimizer in self.optimizers:
                stack.enter_context(optimizer.recordable())
            yield

    def _stay_eager(self, shape: ShapeState, error: Exception, what: str = NOT_COMPILED) -> None:
        """Leaves a shape eager. The first time, a warning says why."""
        shape.eager_only = True
        message = f"{what}: {_reason(error)}"
        if isinstance(error, MissingTorchInterface):
            warn_missing(error)
        elif not self.status.startswith(NOT_COMPILED):
            warn_user(message)
        self._report(message)

    def _report(self, status: str) -> None:
        self.status = status
        logger.info(status)


def _is_finite(values: dict[str, Tensor]) -> bool:
    """Whether a step was taken: its flag says so, or it has none."""
    return FINITE not in values or bool(values[FINITE])


def _reason(error: Exception) -> str:
    """The reason in one line, with the statement of the user's code that it is about."""
    text = str(error).strip().split("\n")[0].rstrip(".")
    if not isinstance(error, Untraceable | MissingTorchInterface):
        text = f"{type(error).__name__}: {text}"
    frames = list(walk_tb(error.__traceback__))
    where = next((source_line(f.f_code.co_filename, line) for f, line in reversed(frames) if is_user_code(f)), None)
    return f"{text}, at {where}" if where else text
