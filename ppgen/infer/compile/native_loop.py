"""Many steps in one call: the graph of a compiled step as the body of a loop in machine code.

A compiled step of a small program takes a few microseconds, and calling it from Python more than that. Here the tensors
that the step overwrites are carried from turn to turn by `while_loop`, its random numbers are drawn in the loop, in the
order of the eager step, and its results are written into tensors with one place for each turn. Inductor compiles the
loop, with a wrapper in C++.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tag, Tensor, fx

from ppgen.infer.compile.compiled_function import CompiledFunction
from ppgen.infer.compile.libraries import Libraries, library_key, load_library
from ppgen.infer.compile.recording import Untraceable

__all__ = ["LoopPlan", "NativeLoop"]

MOST_TURNS, FIRST_TURNS = 1000, 10  # of one call, and of the first
SECONDS = 0.25  # of one call: Python waits for its end, with Ctrl-C and a progress bar
aten = torch.ops.aten


@dataclass
class LoopPlan:
    """What a loop carries, as JSON values.

    Attributes:
        written: the numbers of the inputs that the step overwrites.
        equal: pairs of inputs, such as an optimizer's counters: the first always has the value of the second.
        constants: types, shapes and values of the last inputs.
        results: the types of the results of a step.
    """

    written: list[int]
    equal: list[list[int]]
    constants: list[list[Any]]
    results: list[str]


class NativeLoop:
    """A compiled step, many times.

    Args:
        compiled: the step.
        arguments: the tensors that it is called with.

    Attributes:
        most: the largest number of turns of the next call.

    Raises:
        Untraceable: if the step runs partly outside of its graph, or draws random numbers that a loop does not.
    """

    def __init__(self, compiled: CompiledFunction, arguments: list[Tensor]) -> None:
        if compiled.step.fused_updates:
            raise Untraceable("a part of the step is not in its graph, such as a fused optimizer")
        self.names, self._arguments, self._build = compiled.names, len(arguments), compiled.step.build
        self._tensors = [*arguments, *compiled.inputs]
        self._draws = [_draw(draw) for draw in compiled.draws]
        self._graph: Callable[[list[Tensor]], list[Tensor]] | None = None
        self.most = FIRST_TURNS
        text = self._build.text
        counters = {i: tensor.item() for i, tensor in enumerate(compiled.inputs) if tensor.numel() == 1}
        alike = [[i for i in counters if counters[i] == value] for value in dict.fromkeys(counters.values())]
        self._key = text and library_key(repr((text, self._draws, alike, MOST_TURNS, _source())), 1)
        if self._key and (library := Libraries().find(self._key)) is not None:
            self._use(LoopPlan(**library.about["plan"]), load_library(library.file))

    @property
    def ready(self) -> bool:
        """Whether the loop is compiled, by this process or an earlier one."""
        return self._graph is not None

    def compile(self) -> "NativeLoop":
        """Compiles the loop, and returns it.

        Raises:
            Untraceable: if the step writes into tensors that a loop cannot carry.
        """
        from ppgen.infer.compile.inductor import compile_loop, functional_graph, library_of  # late: it takes a second

        began = time.perf_counter()
        pure, plan = _without_writes(functional_graph(self._build.module, len(self._draws)), self._tensors)
        plan.results = [_name(node.meta["val"].dtype) for node in _outputs(pure)[: len(self.names)]]
        self._use(plan, None)
        draws = [partial(getattr(torch, kind), shape, dtype=dtype) for kind, shape, dtype in self._draws]
        count, states, results = len(self._tensors) + len(draws), len(self._dtypes), len(self.names)
        read = [i for i in range(len(self._tensors)) if i not in plan.written]

        def going(turn: Tensor, *others: Tensor) -> Tensor:
            return turn < others[states + results]

        def body(turn: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
            kept, places = self._unpacked(others[:states]), others[states : states + results]
            fixed = others[states + results + 1 :]
            inputs: list[Any] = [None] * count
            for i, tensor in [*zip(plan.written, kept, strict=True), *zip(read, fixed[: len(read)], strict=True)]:
                inputs[i] = tensor
            inputs[len(self._tensors) :] = [draw() for draw in draws]
            found = pure(*inputs, *fixed[len(read) :])
            filled = [
                place.index_copy(0, turn.reshape(1), value.reshape(1).to(place.dtype))
                for place, value in zip(places, found[:results], strict=True)
            ]
            return (turn + 1, *self._packed(found[results:]), *filled)

        self._graph = compile_loop(going, body, 1 + states + results, self._inputs(1))
        if self._key and (library := library_of(self._graph)) is not None:
            seconds = round(time.perf_counter() - began, 2)
            with suppress(OSError):  # the loop is compiled again in the next process
                Libraries().add(self._key, library, loop_seconds=seconds, plan=asdict(plan))
        return self

    def _use(self, plan: LoopPlan, graph: Callable[[list[Tensor]], list[Tensor]] | None) -> None:
        tensors = self._tensors
        if any(not tensors[i].is_contiguous() or tensors[i].is_cuda for i in plan.written):
            raise Untraceable("the step writes into tensors that are not contiguous, or on a GPU")
        if any(i < self._arguments for i in plan.written):
            raise Untraceable("the step writes into its arguments")
        self._written = [tensors[i] for i in plan.written]
        self._equal = [(tensors[i], tensors[first]) for i, first in plan.equal]
        self._read = [tensor for i, tensor in enumerate(tensors) if i not in plan.written]
        self._constants = [
            torch.tensor(values, dtype=getattr(torch, dtype)).reshape(shape) for dtype, shape, values in plan.constants
        ]
        self._dtypes = list(dict.fromkeys(tensor.dtype for tensor in self._written))
        self._result_dtypes = [getattr(torch, name) for name in plan.results]
        self._graph = graph

    @property
    def holds(self) -> bool:
        """Whether counters that were equal when the loop was made still are."""
        return all(torch.equal(tensor, first) for tensor, first in self._equal)

    def __call__(self, arguments: list[Tensor], turns: int) -> dict[str, Tensor]:
        """Takes so many steps on the same arguments, at most `most`.

        Returns:
            the results of all steps, by name, each (turns,).
        """
        self._read[: self._arguments] = arguments
        assert self._graph is not None
        began = time.perf_counter()
        _, *found = self._graph(self._inputs(turns))
        seconds = time.perf_counter() - began
        self.most = min(MOST_TURNS, max(2, int(SECONDS * turns / seconds)))
        states = len(self._dtypes)
        with torch.no_grad():
            for tensor, value in zip(self._written, self._unpacked(found[:states]), strict=True):
                tensor.copy_(value)
            for tensor, first in self._equal:
                tensor.copy_(first)
        return {name: value[:turns] for name, value in zip(self.names, found[states:], strict=True)}

    def _inputs(self, turns: int) -> list[Tensor]:
        zero = torch.zeros((), dtype=torch.int64)
        places = [torch.zeros(MOST_TURNS, dtype=dtype) for dtype in self._result_dtypes]
        written = self._packed([tensor.detach() for tensor in self._written])
        return [zero, *written, *places, zero + turns, *self._read, *self._constants]

    def _packed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """All tensors of a type in one vector: to make a tensor takes longer than to fill it."""
        return [torch.cat([t.reshape(-1) for t in tensors if t.dtype == dtype]) for dtype in self._dtypes]

    def _unpacked(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        parts = {}
        for dtype, vector in zip(self._dtypes, vectors, strict=True):
            sizes = [tensor.numel() for tensor in self._written if tensor.dtype == dtype]
            parts[dtype] = iter(vector.split(sizes))
        return [next(parts[tensor.dtype]).reshape(tensor.shape) for tensor in self._written]


def _without_writes(module: fx.GraphModule, tensors: Sequence[Tensor]) -> tuple[fx.GraphModule, LoopPlan]:
    """A graph that returns what the original returns, and then the new values of the inputs that it overwrites.

    Args:
        module: the original.
        tensors: its inputs.

    Returns:
        the graph, whose last inputs are its constants; and the plan of the loop, without the types of its results.
    """
    graph = fx.Graph()
    found: Any = graph.graph_copy(module.graph, {})
    results = list(found)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    sources: dict[int, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target is aten.copy_.default:
            sources[placeholders.index(node.args[0])] = node.args[1]
            node.replace_all_uses_with(node.args[1])
            graph.erase_node(node)
    constants: list[Tensor] = []
    last = placeholders[-1]
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        with graph.inserting_after(last):
            last = graph.placeholder(f"constant_{len(constants)}")
        last.meta = dict(node.meta)
        constants.append(module.get_buffer(str(node.target)))
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    equal: dict[int, int] = {}
    counters: dict[tuple, int] = {}
    for i, source in list(sources.items()):
        if source.target is aten.add.Tensor and source.args[0] is placeholders[i] and tensors[i].numel() == 1:
            first = counters.setdefault((repr(source.args[1:]), tensors[i].dtype, tensors[i].item()), i)
            if first != i:
                equal[i] = first
                placeholders[i].replace_all_uses_with(placeholders[first])
                del sources[i]
    merged = _merge_equal(graph)
    outputs: list[fx.Node] = []
    for node in (merged.get(node, node) for node in [*results, *sources.values()]):
        if node.op == "placeholder" or node in outputs:  # a loop must not return one tensor twice
            meta = node.meta
            node = graph.call_function(aten.clone.default, (node,))
            node.meta = dict(meta)
        outputs.append(node)
    graph.output(tuple(outputs))
    stored = [[_name(c.dtype), list(c.shape), c.flatten().tolist()] for c in constants]
    return fx.GraphModule(module, graph), LoopPlan(list(sources), [list(pair) for pair in equal.items()], stored, [])


def _merge_equal(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Does equal operations on equal inputs once.

    Returns:
        for each operation that is gone, the one that stands for it.
    """
    known: dict[tuple, fx.Node] = {}
    merged: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        same = known.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
            merged[node] = same
    return merged


def _outputs(module: fx.GraphModule) -> list[fx.Node]:
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    return list(output.args[0])


def _draw(draw: Any) -> tuple[str, tuple[int, ...], torch.dtype]:
    """A draw that makes a new tensor, of the same random numbers: torch's function, the shape and the type."""
    buffer, rest = getattr(draw.func, "__self__", None), [*draw.args, *draw.keywords.values()]
    if isinstance(buffer, Tensor):
        make = {"normal_": "randn", "uniform_": "rand"}.get(draw.func.__name__)
        if make is not None and not [value for value in rest if value is not None and value not in (0, 1)]:
            return make, tuple(buffer.shape), buffer.dtype
    elif draw.func in (aten.randn.default, aten.rand.default):
        dtype = draw.keywords.get("dtype") or torch.get_default_dtype()
        return draw.func.overloadpacket.__name__, tuple(draw.args[0]), dtype
    raise Untraceable("the step draws random numbers that a loop does not draw")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def _source() -> str:
    """A digest of this module, which libraries depend on."""
    return sha256(Path(__file__).read_bytes()).hexdigest()
