"""Recording a step while it runs: every tensor operation, the tensors that it reads and overwrites, and how to undo it.

A `Recording` sees one eager run below Pyro's handlers and below autograd. Models, guides, losses, gradients and
optimizers therefore all look the same: a list of operations on tensors. The tensors that the step does not create (its
arguments, parameters, an optimizer's state, data in a closure) become the inputs of a graph. `signature` describes the
whole graph, so that two runs with equal signatures are the same function of their inputs.
"""

import linecache
import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import pyro
import torch
from torch import Tag, Tensor, fx, nn
from torch.utils.weak import WeakIdKeyDictionary

from ppgen.infer.compile.arguments import leaves, map_tensors
from ppgen.infer.compile.python_values import PythonValues, is_user_file
from ppgen.tracing.programs import validation
from ppgen.utils.torch_private import TorchDispatchMode, written_arguments

__all__ = ["RandomState", "Recording", "Untraceable", "is_user_code", "recordable_programs"]
__all__ += ["source_line", "storage_of"]

aten = torch.ops.aten
read_item, read_numpy = Tensor.item, Tensor.numpy
SHAPE_ONLY = (  # these read the shape and type of a tensor, not its values
    aten.empty_like,
    aten.zeros_like,
    aten.ones_like,
    aten.full_like,
    aten.rand_like,
    aten.randn_like,
    aten.new_empty,
    aten.new_zeros,
    aten.new_ones,
    aten.new_full,
)
# arguments that an operation overwrites although its schema does not say so: batch norm's running statistics
UNDECLARED_WRITES = {aten.native_batch_norm: (3, 4), aten.cudnn_batch_norm: (3, 4), aten.miopen_batch_norm: (3, 4)}
READS = ("numpy", "tolist", "__array__", "__dlpack__")  # these read values below the operations that are recorded


class Untraceable(Exception):
    """A compiled step could differ from the eager one; the message says why."""


class Recording(TorchDispatchMode):
    """Records the operations inside ``with``, which run as usual.

    Args:
        arguments: the tensors that the step is called with.
        python_values: finds the Python values that the step may read; None to do without.

    Attributes:
        inputs: the arguments, then every other tensor that the step did not create, in the order of first use.
        overwritten: the inputs that were overwritten, with copies of their previous values.
        writers: the operations that overwrote each of them, by the id of the input.
        root: holds the constants of the graph.
        graph: the operations, as torch.fx represents them; placeholders are the inputs.
        signature: the operations as text, comparable between runs.
        locations: for each line of the signature, the statement of the user's code that it comes from.
        constants: the operations that are the same in every step, until their results are overwritten.
        refusal: why the step cannot be compiled, in words; empty if it can.
        constant_draws: the operations that draw from a distribution which is the same in every step.

    Raises:
        MissingTorchInterface: if torch lacks a private interface that recording needs.
    """

    def __init__(self, arguments: Iterable[Tensor] = (), python_values: PythonValues | None = None) -> None:
        super().__init__()
        self.python_values = python_values
        self.inputs: list[Tensor] = []
        self.overwritten: list[tuple[Tensor, Tensor]] = []
        self.writers: dict[int, list[fx.Node]] = {}
        self.root, self.graph = nn.Module(), fx.Graph()
        self.signature: list[str] = []
        self.locations: list[tuple[str, int] | None] = []
        self.refusal = ""
        self._in_operation = False
        self.constant_draws: set[fx.Node] = set()
        self.constants: set[fx.Node] = set()
        self._constant_storages: dict[fx.Node, int] = {}  # the storages of nodes that constants alone determine
        self._nodes = WeakIdKeyDictionary()
        self._sharing: dict[int, list[Tensor]] = {}  # the inputs in each storage
        self._saved: set[int] = set()
        self._first_use: dict[int, int] = {}
        self._last_input: fx.Node | None = None
        for argument in arguments:
            if argument not in self._nodes:
                self._add_input(argument)
        self.num_arguments = len(self.inputs)

    def __enter__(self) -> "Recording":
        with ExitStack() as stack:
            for name in READS:
                stack.enter_context(patch.object(Tensor, name, self._checked(getattr(Tensor, name))))
            super().__enter__()
            stack.push(super().__exit__)
            if self.python_values is not None:
                stack.enter_context(self.python_values)
            self.root = nn.Module()  # late, so that its constants are not taken for values of the program
            self._exit = stack.pop_all().__exit__
        return self

    def __exit__(self, *exc: Any) -> None:
        self._exit(*exc)
        if self.python_values is not None and self.python_values.refusal:
            self.refuse(self.python_values.refusal, None)

    def refuse(self, why: str, frame: FrameType | None) -> None:
        """Notes that the step cannot be compiled; it goes on, so that the program runs once.

        Args:
            why: the reason.
            frame: where to look for the statement of the user's code that is the reason.
        """
        location = _user_location(frame)
        self.refusal = self.refusal or (why + (f", at {source_line(*location)}" if location else ""))

    def _checked(self, read: Callable) -> Callable:
        """A method that reads a tensor's values, for constants alone."""

        def checked(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self._in_operation and self._nodes.get(tensor) not in self._constant_storages:
                self.refuse(f"Python reads a tensor's values ({read.__name__}); keep them in tensors", sys._getframe(1))
            return read(tensor, *args, **kwargs)

        return checked

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        if func is aten.lift_fresh.default:  # torch.tensor(...) makes a constant
            return self._add_constant(args[0])
        if any(isinstance(leaf, torch.Generator) for leaf in leaves((args, kwargs))):
            self.refuse("it draws from a torch.Generator of its own; use torch's (torch.manual_seed)", sys._getframe(1))
        (node_args, node_kwargs) = map_tensors(self.node, (args, kwargs))
        sources = [leaf for leaf in leaves((node_args, node_kwargs)) if isinstance(leaf, fx.Node)]
        constant = func.overloadpacket in SHAPE_ONLY or all(source in self._constant_storages for source in sources)
        if Tag.data_dependent_output in func.tags:
            if not constant:
                why = "Python reads a tensor's value (if, float() or .item()); torch.where selects by value"
                self.refuse(why, sys._getframe(1))
            return func(*args, **kwargs)
        by_mask = func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_mask or (Tag.dynamic_output_shape in func.tags and func is not aten.index.Tensor):
            what = "a boolean mask selects rows" if by_mask else f"{func.overloadpacket.__name__} does"
            self.refuse(f"a shape depends on values: {what}; torch.where and masks keep shapes fixed", sys._getframe(1))
        written = [shared for tensor in _written_tensors(func, args, kwargs) for shared in self._overwrite(tensor)]
        self._in_operation = True  # which may read values, as custom operations do
        try:
            out = func(*args, **kwargs)
        finally:
            self._in_operation = False
        node = self.graph.call_function(func, node_args, node_kwargs)
        for tensor in written:
            self.writers.setdefault(id(tensor), []).append(node)
        if constant and Tag.nondeterministic_seeded in func.tags:
            self.constant_draws.add(node)
        elif constant and isinstance(out, Tensor) and not written_arguments(func):
            self._constant_storages[node] = storage_of(out)
            self.constants.add(node)
        self._append(f"{func}{node_args}{node_kwargs}")
        self._add_result(out, node)
        return out

    def node(self, tensor: Tensor) -> fx.Node:
        """The node of a tensor in the graph; a tensor not seen before becomes an input."""
        if tensor not in self._nodes:
            self._add_input(tensor)
        return self._nodes[tensor]

    def _add_input(self, tensor: Tensor) -> None:
        """Makes a tensor that the step did not create an input."""
        with self.graph.inserting_after(self._last_input) if self._last_input else self.graph.inserting_before():
            self._last_input = self.graph.placeholder(f"input_{len(self.inputs)}")
        self._nodes[tensor] = self._last_input
        self._last_input.meta["like"] = _like(tensor)
        self.inputs.append(tensor)
        if storage := storage_of(tensor):
            self._sharing.setdefault(storage, []).append(tensor)
        self._first_use[id(tensor)] = len(self.signature)
        self._append(f"input {_like(tensor)}")

    def _add_constant(self, value: Tensor) -> Tensor:
        if not value.untyped_storage().resizable():  # memory of NumPy's, which may change without notice
            why = "it makes a tensor from a NumPy array, which may change; make it outside of the program"
            self.refuse(why, sys._getframe(2))
        name = f"constant_{len(list(self.root.buffers()))}"
        self.root.register_buffer(name, _copy(value))
        node = self.graph.call_function(aten.lift_fresh_copy.default, (self.graph.get_attr(name),))
        self._constant_storages[node] = storage_of(value)
        self.constants.add(node)
        self._nodes[value] = node
        node.meta["like"] = _like(value)
        raw = read_numpy(value.detach().cpu().reshape(-1).view(torch.uint8)).tobytes()
        self._append(f"constant {value.item() if value.numel() == 1 else sha256(raw).hexdigest()} {_like(value)}")
        return value

    def _add_result(self, out: Any, node: fx.Node) -> None:
        """Assigns result tensors to their node; a result that is an argument keeps the node that it has."""
        if isinstance(out, Tensor):
            if out not in self._nodes:
                self._nodes[out] = node
                node.meta["like"] = _like(out)
        elif isinstance(out, tuple | list):
            for i, part in enumerate(out):
                if isinstance(part, Tensor) and part not in self._nodes:
                    self._add_result(part, self.graph.call_function(operator.getitem, (node, i)))

    def _append(self, line: str) -> None:
        self.signature.append(line)
        self.locations.append(_user_location(sys._getframe(2)))

    def _overwrite(self, tensor: Tensor) -> list[Tensor]:
        """Saves and returns the inputs that share the tensor's memory, and forgets that nodes there are constant."""
        if not (storage := storage_of(tensor)):
            return []
        for shared in self._sharing.get(storage, ()):  # writing into a view writes into its base
            if id(shared) not in self._saved:
                self._saved.add(id(shared))
                self.overwritten.append((shared, _copy(shared)))
        self._constant_storages = {node: kept for node, kept in self._constant_storages.items() if kept != storage}
        return self._sharing.get(storage, [])

    def after(self) -> list[Tensor]:
        """Copies of the current values of the overwritten inputs, in the order of `overwritten`."""
        return [_copy(tensor) for tensor, _ in self.overwritten]

    def undo(self) -> None:
        """Restores the previous values of the overwritten inputs."""
        self.write([value for _, value in self.overwritten])

    def write(self, values: list[Tensor]) -> None:
        """Writes values into the overwritten inputs.

        Args:
            values: in the order of `overwritten`.
        """
        with torch.no_grad():
            for (tensor, _), value in zip(self.overwritten, values, strict=True):
                tensor.copy_(value)

    def forget(self) -> None:
        """Drops the copies of overwritten tensors and the nodes of tensors, once the step is compiled."""
        self.overwritten, self.writers, self._nodes, self._sharing = [], {}, WeakIdKeyDictionary(), {}

    def _where(self, line: int) -> str:
        """The statement that a line of the signature comes from, for a message."""
        location = self.locations[line]
        return f", at {source_line(*location)}" if location else ""

    @property
    def aliased(self) -> bool:
        """Whether an overwritten input shares memory with another one; a graph assumes that inputs are separate."""
        return any(len(sharing) > 1 and id(sharing[0]) in self._saved for sharing in self._sharing.values())

    def difference(self, other: "Recording") -> str | None:
        """Compares an earlier recording of the same step with this one.

        Args:
            other: the earlier recording.

        Returns:
            The first difference in words; None if both are the same function of the same inputs.
        """
        for i, (now, then) in enumerate(zip(self.signature, other.signature, strict=False)):
            if now != then:
                why = f"; {changed} has changed" if (changed := self._changed_value(other)) else ""
                return f"its operations differ between steps ({then}, then {now}{why}){self._where(i)}"
        for tensor, earlier in zip(
            self.inputs[self.num_arguments :], other.inputs[other.num_arguments :], strict=False
        ):
            if tensor is not earlier:
                at = self._where(self._first_use[id(tensor)])
                return f"it reads a different tensor of shape {tuple(tensor.shape)} in every step{at}"
        if len(self.signature) != len(other.signature):
            return f"it had {len(other.signature)} operations, then {len(self.signature)}"
        if changed := self._changed_value(other):
            return f"it uses {changed}, which changes from step to step; keep it in a tensor that is changed in place"
        return None

    def _changed_value(self, other: "Recording") -> str | None:
        """A Python value that has changed since an earlier recording, in words."""
        if self.python_values is None or other.python_values is None:
            return None
        return self.python_values.compare(other.python_values)


def is_user_code(frame: FrameType) -> bool:
    """Whether a frame runs code of the user: not of Python, torch, Pyro or ppgen."""
    return is_user_file(frame.f_code.co_filename)


def source_line(path: str, line: int) -> str:
    """A statement as file, line number and text.

    Args:
        path: the file.
        line: the number of the line.
    """
    text = linecache.getline(path, line).strip()
    return f"{Path(path).name}:{line}" + (f": {text}" if text else "")


def _user_location(frame: FrameType | None) -> tuple[str, int] | None:
    """The file and line of the innermost statement of the user's code, searched from a frame outwards."""
    while frame is not None and not is_user_code(frame):
        frame = frame.f_back
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


@contextmanager
def recordable_programs() -> Iterator[None]:
    """Lets Pyro and torch's optimizers run without reading the values of tensors.

    Pyro reads losses with `torch_item` and checks them with `warn_if_nan`, and distributions validate their arguments.
    Torch's optimizers count steps in a tensor on the CPU only if torch.compile appears to run them.
    """
    with ExitStack() as stack:
        for name, substitute in (("torch_item", _detached), ("warn_if_nan", lambda *_, **__: None)):
            for module_name, module in list(sys.modules.items()):
                if module_name.startswith("pyro.") and name in vars(module):
                    stack.enter_context(patch.object(module, name, substitute))
        stack.enter_context(patch.object(torch.compiler, "is_compiling", lambda: True))
        stack.enter_context(patch.object(Tensor, "item", _item))
        stack.enter_context(validation(False))
        yield


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def _item(tensor: Tensor) -> Any:
    if sys._getframe(1).f_code.co_filename.startswith(pyro.__path__[0]):  # a loss that Pyro reports
        return tensor.detach()
    return read_item(tensor)


class RandomState:
    """Torch's random state when this is made.

    Args:
        device: a GPU whose random state is included besides that of the CPU; or the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = device if device.type == "cuda" else None
        self._states = self._read()

    def restore(self) -> None:
        """Sets torch's random state to this one."""
        torch.set_rng_state(self._states[0])
        if self._gpu is not None:
            torch.cuda.set_rng_state(self._states[1], self._gpu)

    def is_current(self) -> bool:
        """Whether torch's random state is this one."""
        return all(map(torch.equal, self._states, self._read()))

    def _read(self) -> list[Tensor]:
        return [torch.get_rng_state(), *([] if self._gpu is None else [torch.cuda.get_rng_state(self._gpu)])]


def _written_tensors(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The tensors that an operation overwrites, whether its schema declares it or not."""
    if func.overloadpacket in UNDECLARED_WRITES:
        return [args[i] for i in UNDECLARED_WRITES[func.overloadpacket] if args[i] is not None]
    written = [args[i] if i < len(args) else kwargs.get(name) for i, name in written_arguments(func)]
    return [leaf for leaf in leaves(written) if isinstance(leaf, Tensor)]


def _like(tensor: Tensor) -> tuple:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def storage_of(tensor: Tensor) -> int:
    """The address of a tensor's memory; 0 if it is empty."""
    return tensor.untyped_storage().data_ptr()


def _copy(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        return tensor.detach().clone()
