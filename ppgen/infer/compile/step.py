"""The compiled step: a step of any program, written down once for each shape of its arguments and compiled.

A `CompiledStep` runs a step eagerly at first. When compiling pays, it records two steps in a row (`recording`); if they are
one function of their inputs, random numbers move out of it (`drawing`), inductor compiles it (`inductor`), and the
compiled function repeats the second step on the same draws. Only if the two agree is it taken; whatever goes wrong, the
step stays eager, and one warning says why. Python then runs no more: what a program prints, counts or keeps in Python
it does only while it is recorded.
"""

import logging
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from traceback import walk_tb
from typing import Any, Literal

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from ppgen.infer.compile.comparison import disagreement
from ppgen.infer.compile.cuda_graph import Replay
from ppgen.infer.compile.fused_optimizer import Tail, step_outside
from ppgen.infer.compile.protocols import RecordableOptimizer
from ppgen.infer.compile.random_inputs import draw_outside
from ppgen.infer.compile.recording import Recording, Untraceable, is_users, keep_random_state, statement, traceable

__all__ = ["Compile", "CompiledStep"]

Compile = bool | Literal["auto"]

COST, COST_EACH = 2.0, 0.01  # seconds that a compile takes, about: in all, and for each operation
SAVED = 0.6  # of an eager step's time, by a compiled one: a cautious guess
ATTEMPTS = 4  # recordings of one shape before two in a row agree
CAPTURES = 8  # shapes compiled, at most
SHAPES = 256  # shapes remembered, compiled or not
KEPT = 64  # compiled functions that one process holds on to

logger = logging.getLogger("ppgen")
_library: OrderedDict[str, Callable] = OrderedDict()


@dataclass
class Capture:
    """One compiled step.

    Attributes:
        run: the compiled function of all inputs.
        inputs: the tensors from outside of the step, its arguments left out.
        draws: what makes its random numbers.
        tails: what runs on its results, the optimizer's own kernels.
        names: of its outputs.
        holds: whether the programs are still as they were when it was recorded.
    """

    run: Callable[[list[Tensor]], Any]
    inputs: list[Tensor]
    draws: list[Callable[[], Tensor]]
    tails: list[Tail]
    names: list[str]
    holds: Callable[[], bool]

    def __call__(self, arguments: list[Tensor]) -> dict[str, Tensor]:
        results = self.run([*arguments, *self.inputs, *[draw() for draw in self.draws]])
        if self.tails:
            with torch.no_grad():
                for tail in self.tails:
                    tail(results[len(self.names) :])
        return dict(zip(self.names, results, strict=not self.tails))


@dataclass
class Shape:
    """What is known of the steps with arguments of one shape."""

    steps: int = 0
    timed: int = 0
    seconds: float = 0.0
    operations: int = 0
    recording: Recording | None = None
    attempts: int = 0
    capture: Capture | None = None
    refused: bool = False


class CompiledStep:
    """Takes steps, eager or compiled.

    Args:
        step: a step as a function of (args, kwargs) that returns scalars by name; it reads and moves tensors only.
        players: whose parameters it moves.
        facts: what else, not a tensor, the step depends on; compared by ``==``.
        compile: True: as soon as can be; False: never; "auto": once the steps still to come make it pay.
        steps: how many steps there will be. If unknown, "auto" expects as many as there have been.

    Attributes:
        said: what it decided, in words; empty so far as it has not.
    """

    def __init__(
        self,
        step: Callable[[tuple, dict], dict[str, Tensor]],
        players: Sequence[RecordableOptimizer],
        facts: Callable[[], Any],
        *,
        compile: Compile = "auto",
        steps: int | None = None,
    ):
        if compile not in (True, False, "auto"):
            raise ValueError(f'compile is True, False or "auto", got {compile!r}')
        if steps is not None and steps < 1:
            raise ValueError(f"steps is at least 1, got {steps}")
        self.step, self.players, self.facts, self.compile, self.steps = step, players, facts, compile, steps
        self.said = ""
        self.taken = self._made = 0
        self._shapes: dict[Hashable, Shape] = {}

    def __call__(self, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        self.taken += 1
        if self.compile is False:
            return self.step(*tree_map_only(Tensor, _anew, (args, kwargs)))
        leaves, key = _shape(args, kwargs)
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= SHAPES:  # a number among the arguments changes with every step
                self._shapes = {k: known for k, known in self._shapes.items() if known.capture is not None}
            shape = self._shapes[key] = Shape(refused=key is None)
        shape.steps += 1
        if shape.capture is not None:
            if shape.capture.holds():
                for player in self.players:
                    player.rates.refresh()
                return shape.capture(leaves)
            shape.capture, shape.recording, shape.attempts = None, None, 0
        args, kwargs = tree_map_only(Tensor, _anew, (args, kwargs))
        ready = shape.steps > 1 and all(player.optimizer is not None for player in self.players)
        if ready and not shape.refused and self._made < CAPTURES and self._pays(shape):
            return self._record(shape, args, kwargs)
        began = time.perf_counter()
        values = self.step(args, kwargs)
        if ready:  # the first step makes parameters and more
            shape.timed, shape.seconds = shape.timed + 1, shape.seconds + time.perf_counter() - began
        return values

    def _pays(self, shape: Shape) -> bool:
        """Whether to compile this shape now; before a first recording, whether to look at it more closely."""
        if self.compile is True or not shape.timed:
            return self.compile is True
        left = self.taken if self.steps is None else self.steps - self.taken
        often = shape.steps / self.taken
        return SAVED * left * often * shape.seconds / shape.timed > COST + COST_EACH * shape.operations

    def _record(self, shape: Shape, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        """A step that is written down, and compiled if the one before was the same."""
        arguments = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        first, shape.recording, shape.attempts = shape.recording, None, shape.attempts + 1
        second = Recording(arguments)
        rewind = keep_random_state(self._device)
        known = [len(player.leaves) for player in self.players]
        states = [player.rates.keep() for player in self.players]
        try:
            numbers = [player.rates.numbers() for player in self.players]
            with self._recordable(), second:
                values = self.step(args, kwargs)
            after = [player.rates.numbers() for player in self.players]
            if any(now.get(k) != v for now, old in zip(after, numbers, strict=True) for k, v in old.items()):
                raise Untraceable("its optimizer counts in Python numbers")
        except Exception as error:
            second.undo()
            for back in states:
                back()
            rewind()
            values = self.step(args, kwargs)  # raises by itself what is the program's own fault
            joined = [len(player.leaves) for player in self.players] != known
            if not joined or shape.attempts >= ATTEMPTS:  # parameters that join come without the optimizer's flags
                self._refuse(shape, error)
            return values
        why = None if first is None else second.difference(first)
        if first is not None and why is None:
            return self._compile(shape, second, values, arguments, rewind)
        if why is not None and shape.attempts >= ATTEMPTS:
            self._refuse(shape, Untraceable(why))
        else:
            shape.recording, shape.operations = second, len(second.signature)
        return values

    def _compile(
        self,
        shape: Shape,
        recording: Recording,
        values: dict[str, Tensor],
        arguments: list[Tensor],
        rewind: Callable[[], None],
    ) -> dict[str, Tensor]:
        """Compiles the recorded step and repeats it: its values, or those of the eager one if the two differ."""
        began = time.perf_counter()
        reference, forward = recording.after(), keep_random_state(self._device)
        try:
            if recording.aliased:
                raise Untraceable("two tensors share memory, and the step writes into it")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, while it compiles
                run, draws, tails = _compiled(recording, list(values.values()))
            holds = _watch(recording, self.players, self.facts)
            if self._device.type == "cuda":
                run = Replay(run, range(len(arguments), len(recording.inputs)))
            capture = Capture(run, recording.inputs[len(arguments) :], draws, tails, list(values), holds)
            recording.undo()
            rewind()
            repeated = capture(arguments)
            if why := disagreement(recording, reference, values, repeated, self.players):
                raise Untraceable(f"the compiled step differs from the eager one: {why}")
        except Exception as error:
            recording.write(reference)
            forward()
            self._refuse(shape, error)
            return values
        self._made += 1
        shape.capture = capture
        last = f"; that was the {CAPTURES}th shape or state, others run eagerly" if self._made == CAPTURES else ""
        self._say(f"compiled at step {self.taken}, in {time.perf_counter() - began:.1f} s{last}")
        return repeated

    @property
    def _device(self) -> torch.device:
        """The GPU that parameters are on, or else the CPU."""
        leaves = (leaf for player in self.players for leaf in player.leaves.values())
        return next((leaf.device for leaf in leaves if leaf.is_cuda), torch.device("cpu"))

    @contextmanager
    def _recordable(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(traceable())
            for player in self.players:
                stack.enter_context(player.recordable())
            yield

    def _refuse(self, shape: Shape, error: Exception) -> None:
        """This shape stays eager; the first time, a warning says why."""
        shape.refused = True
        why = f"the step is not compiled, and runs eagerly: {_reason(error)}"
        if not self.said.startswith("the step is not"):
            warnings.warn(why, stacklevel=6)
        self._say(why)

    def _say(self, what: str) -> None:
        self.said = what
        logger.info(what)


def _shape(args: tuple, kwargs: dict) -> tuple[list[Tensor], Hashable]:
    """The tensors among a step's arguments, and what else a compiled step holds on to; None if that is not known."""
    if not kwargs and all(isinstance(arg, Tensor) for arg in args):
        return list(args), tuple([_kind(arg) for arg in args])
    leaves, form = tree_flatten((args, kwargs))
    arguments = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    key = (str(form), *(_kind(leaf) if isinstance(leaf, Tensor) else (type(leaf), leaf) for leaf in leaves))
    try:
        hash(key)
    except TypeError:  # a NumPy array, say, whose values may change
        return arguments, None
    return arguments, key


def _anew(tensor: Tensor) -> Tensor:
    """A tensor as another object: Pyro's transforms take one that they have met for one whose results they hold."""
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach()


def _kind(tensor: Tensor) -> tuple:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


def _compiled(recording: Recording, outputs: list[Tensor]) -> tuple[Callable, list[Callable[[], Tensor]], list[Tail]]:
    """The compiled function of a recording, with what comes before it and after; one seen before is not built again."""
    from ppgen.infer.compile.inductor import build  # late: it takes a second to import

    nodes = [recording.node(output) for output in outputs]
    needed, tails = step_outside(recording)
    nodes += needed
    draws = draw_outside(recording)
    signature = "\n".join([*recording.signature, *(node.name for node in nodes), str(torch.get_num_threads())])
    key = sha256(signature.encode()).hexdigest()
    run = _library.pop(key, None) or build(recording, nodes, len(draws))
    _library[key] = run
    while len(_library) > KEPT:
        _library.popitem(last=False)
    return run, draws, tails


def _watch(
    recording: Recording, players: Sequence[RecordableOptimizer], facts: Callable[[], Any]
) -> Callable[[], bool]:
    """A check, cheap enough for every step, that what was not a tensor is still as it was when recorded."""
    inputs = set(map(id, recording.inputs))
    store = pyro.get_param_store()  # its dictionary is another once it has been cleared
    named = [(name, value) for name, value in store._params.items() if id(value) in inputs]
    leaves: dict[int, Tensor] = {id(leaf): leaf for player in players for leaf in player.leaves.values()}
    leaves |= {id(tensor): tensor for tensor in recording.inputs if isinstance(tensor, torch.nn.Parameter)}
    flags = [(leaf, leaf.requires_grad) for leaf in leaves.values()]
    parts = {id(part): part for module in recording.modules.values() for part in module.modules()}
    parts = {key: part for key, part in parts.items() if key in recording.modules or inputs & set(_held(part))}
    modules = [(module, module.training, _held(module)) for module in parts.values()]
    shaped: list[tuple[Any, Any]] = [(m, m.structure) for m in recording.modules.values() if hasattr(m, "structure")]
    rates = [(player, player.rates) for player in players]
    settings = [setting for player in players for setting in player.rates.settings()]
    known = facts()

    def holds() -> bool:  # loops, which cost less than all(...) of a generator
        for leaf, flag in flags:
            if leaf.requires_grad is not flag:
                return False
        for name, value in named:
            if store._params.get(name) is not value:
                return False
        for module, mode, held in modules:
            if module.training is not mode or _held(module) != held:
                return False
        for module, structure in shaped:
            if module.structure != structure:
                return False
        for player, same in rates:
            if player.rates is not same:
                return False
        for group, key, setting in settings:
            if group.get(key) != setting:
                return False
        return facts() == known

    return holds


def _held(module: torch.nn.Module) -> list[int]:
    return [id(part) for part in (*module._parameters.values(), *module._buffers.values(), *module._modules.values())]


def _reason(error: Exception) -> str:
    """Why, in one line, with the user's statement that it is about."""
    text = str(error).strip().split("\n")[0].rstrip(".")
    if not isinstance(error, Untraceable):
        text = f"{type(error).__name__}: {text}"
    frames = list(walk_tb(error.__traceback__))
    where = next((statement(*frame) for frame in reversed(frames) if is_users(frame[0])), None)
    return f"{text}, at {where}" if where else text
