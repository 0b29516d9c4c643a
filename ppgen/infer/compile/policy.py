"""When compiling a step pays, and what is known of the steps with arguments of each shape."""

import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ppgen.infer.compile.audits import Audits
from ppgen.infer.compile.building import Build
from ppgen.infer.compile.compiled_function import CompiledFunction
from ppgen.infer.compile.guard import Guard
from ppgen.infer.compile.recording import Recording

__all__ = ["Compile", "CompilePolicy", "ShapeState"]

Compile = bool | Literal["auto", "cuda_graph"]

RECORDING_SECONDS = 0.5  # that compiled steps have to save before a step is recorded, which takes as long as some steps
SAVED_SHARE = 0.6  # of an eager step's time, saved by a compiled one: a cautious guess
MAX_RECORDINGS = 4  # of one shape before two in a row must agree
MAX_COMPILED = 8  # shapes that are compiled
MAX_CHANGES = 5  # of one value between compiled steps; each costs another recording
LOOP_STEPS = 1_000_000  # from which a loop, some ten microseconds a step faster, saves the time of compiling it
MAX_SHAPES = 256  # shapes that are remembered, compiled or not


@dataclass
class ShapeState:
    """The steps with arguments of one shape.

    Attributes:
        steps: how many there were.
        timed_steps: how many of them were eager and timed.
        seconds: the time of those.
        operations: the number of operations in the last recording.
        recording: the last recording, which the next one must equal.
        recordings: how many there were since the last compilation.
        compiled: the compiled function, if there is one.
        compiled_at: the step, of all shapes, at which it was compiled.
        chosen: whether the run that this one continues had compiled it.
        guard: whether the compiled function is still valid.
        audits: when it is compared with an eager step.
        changes: how often each value that a compiled step depends on has changed.
        eager_only: whether steps of this shape are never compiled.
        build: compiles its graph in another process, from the recording on until that has ended.
        loop: many compiled steps in one call; False if they cannot be.
    """

    steps: int = 0
    timed_steps: int = 0
    seconds: float = 0.0
    operations: int = 0
    recording: Recording | None = None
    recordings: int = 0
    compiled: CompiledFunction | None = None
    compiled_at: int = 0
    chosen: bool = False
    guard: Guard | None = None
    audits: Audits | None = None
    changes: Counter[str] = field(default_factory=Counter)
    eager_only: bool = False
    build: Build | None = None
    loop: Any = None

    def discard(self) -> None:
        """Forgets the compiled function and its recording."""
        self.compiled = self.guard = self.recording = self.audits = self.build = self.loop = None
        self.recordings = 0


class CompilePolicy:
    """Decides which shapes are compiled, and when.

    Args:
        compile: True or "cuda_graph" to compile as soon as possible; False for never; "auto" for when it saves time
            over the remaining steps.
        steps: the number of steps to expect. After them, or if it is not known, "auto" expects as many more as there
            have been.

    Attributes:
        taken: the steps so far, of all shapes.
        compiled: the compilations so far.
        shapes: the state of each shape, by its key.

    Raises:
        ValueError: if an argument has another value.
    """

    clock: ClassVar = staticmethod(time.perf_counter)

    def __init__(self, compile: Compile = "auto", steps: int | None = None) -> None:
        if compile not in (True, False, "auto", "cuda_graph"):
            raise ValueError(f'compile must be True, False, "auto" or "cuda_graph", got {compile!r}')
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.compile, self.steps = compile, steps
        self.taken = self.compiled = 0
        self.shapes: dict[Hashable, ShapeState] = {}
        self._chosen: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """A copy of an SVI compiles its own steps: compiled ones belong to the tensors of the original."""
        return vars(self) | {"shapes": {}, "compiled": 0}

    def shape(self, key: Hashable) -> ShapeState:
        """Returns the state of a shape; that of the key None is never compiled."""
        if key not in self.shapes:
            if len(self.shapes) >= MAX_SHAPES:  # a number among the arguments changes with every step, for example
                self.shapes = {k: state for k, state in self.shapes.items() if state.compiled is not None}
            chosen_at = self._chosen.get(repr(key))
            self.shapes[key] = ShapeState(
                eager_only=key is None, chosen=chosen_at is not None, compiled_at=chosen_at or 0
            )
        return self.shapes[key]

    def loop_pays(self, steps: int) -> bool:
        """Whether to compile a loop.

        Args:
            steps: how many steps are to come.
        """
        return steps >= LOOP_STEPS if self.compile == "auto" else self.compile is True

    def decisions(self) -> dict[str, Any]:
        """What was decided so far, as JSON values: the step at which each shape was compiled."""
        compiled = {repr(k): s.compiled_at for k, s in self.shapes.items() if s.compiled is not None or s.chosen}
        return {"taken": self.taken, "steps": self.steps, "compiled": self._chosen | compiled}

    def restore(self, decisions: dict[str, Any]) -> None:
        """Continues a run that took some of the steps, so that the same shapes are compiled from the next step on.

        Args:
            decisions: what `decisions` returned.
        """
        self.taken, self.steps, self._chosen = decisions["taken"], decisions["steps"], decisions["compiled"]

    @property
    def exhausted(self) -> bool:
        """Whether no further shape may be compiled."""
        return self.compiled >= MAX_COMPILED

    def pays(self, shape: ShapeState) -> bool:
        """Whether to record a shape now, and then to compile it; not while another process compiles it."""
        if shape.eager_only or self.exhausted or shape.build is not None:
            return False
        if shape.chosen and self.compile is not False:
            return True
        if self.compile != "auto":
            return self.compile is not False
        return self.saves(shape, RECORDING_SECONDS)

    def saves(self, shape: ShapeState, seconds: float) -> bool:
        """Whether compiled steps would save more time than this in the rest of the run.

        Args:
            shape: of these steps, of which some have been timed.
            seconds: the time.
        """
        if not shape.timed_steps:
            return False
        remaining = self.taken if self.steps is None or self.taken > self.steps else self.steps - self.taken
        of_this_shape = remaining * shape.steps / self.taken
        return SAVED_SHARE * of_this_shape * shape.seconds / shape.timed_steps > seconds
