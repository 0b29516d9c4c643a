"""A step written down while it runs: every tensor operation, what it read, what it overwrote, and how to undo it.

A `Recording` watches one eager run below Pyro's handlers and below autograd, so that models, guides, losses, gradients
and optimizers all look the same: a list of operations on tensors. What the step takes from outside (its arguments,
parameters, an optimizer's moments, data in a closure) becomes the inputs of a graph; `signature` is all that the graph
is made of, so that two runs with one signature are one function of their inputs.
"""

import linecache
import operator
import sys
import sysconfig
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from ppgen.tracing.programs import validation

__all__ = ["Recording", "Untraceable", "is_users", "keep_random_state", "statement", "traceable"]

aten = torch.ops.aten
ALIKE = (  # these take no more from a tensor than its shape and type
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
# arguments that an operation overwrites although its schema does not say so: batch norm's running moments
UNSAID = {aten.native_batch_norm: (3, 4), aten.cudnn_batch_norm: (3, 4), aten.miopen_batch_norm: (3, 4)}
LIBRARIES = tuple(
    str(Path(path))
    for path in (torch.__path__[0], pyro.__path__[0], Path(__file__).parents[1], sysconfig.get_path("stdlib"))
)


class Untraceable(Exception):
    """A step is no fixed list of operations; the message says why and where."""


class Recording(TorchDispatchMode):
    """Writes down the operations inside ``with``, which run as ever.

    Args:
        arguments: the tensors that the step is called with.

    Attributes:
        inputs: the arguments, then every tensor from outside, in the order of first use.
        before: the inputs that were overwritten, with copies of their values from just before.
        modules: every nn.Module that ran.
        root, graph: the operations, as torch.fx has them; placeholders are the inputs, constants lie in `root`.
        signature: the operations, comparable between runs.
        places: for each line of the signature, the user's statement it comes from.
        constants: the operations that are the same in every step, until their results are overwritten.
        drawable: the operations that draw random numbers from a law which is the same in every step.

    Raises:
        Untraceable: where the course of the step depends on values of tensors.
    """

    def __init__(self, arguments: Iterable[Tensor] = ()):
        super().__init__()
        self.inputs: list[Tensor] = []
        self.before: list[tuple[Tensor, Tensor]] = []
        self.modules: dict[int, nn.Module] = {}
        self.root, self.graph = nn.Module(), fx.Graph()
        self.signature: list[str] = []
        self.places: list[tuple[FrameType, int] | None] = []
        self.drawable: set[fx.Node] = set()
        self.constants: set[fx.Node] = set()
        self._fixed: dict[fx.Node, int] = {}  # nodes whose values come from constants alone, and where they lie
        self._nodes = WeakIdKeyDictionary()
        self._sharing: dict[int, list[Tensor]] = {}
        self._saved: set[int] = set()
        self._met: dict[int, int] = {}
        self._last: fx.Node | None = None
        for argument in arguments:
            if argument not in self._nodes:
                self._meet(argument)
        self.given = len(self.inputs)

    def __enter__(self) -> "Recording":
        self._handle = nn.modules.module.register_module_forward_pre_hook(self._note)
        return super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        self._handle.remove()
        super().__exit__(*exc)

    def _note(self, module: nn.Module, inputs: Any) -> None:
        self.modules[id(module)] = module

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        if func is aten.lift_fresh.default:  # of torch.tensor(...): a constant that the step makes
            return self._constant(args[0])
        (node_args, node_kwargs) = tree_map_only(Tensor, self.node, (args, kwargs))
        sources = [leaf for leaf in tree_iter((node_args, node_kwargs)) if isinstance(leaf, fx.Node)]
        fixed = func.overloadpacket in ALIKE or all(source in self._fixed for source in sources)
        if Tag.data_dependent_output in func.tags:
            if fixed:
                return func(*args, **kwargs)
            raise Untraceable("Python reads a tensor's value (if, float() or .item()); torch.where chooses by value")
        by_mask = func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_mask or (Tag.dynamic_output_shape in func.tags and func is not aten.index.Tensor):
            what = "a boolean mask selects rows" if by_mask else f"{func.overloadpacket.__name__} does"
            raise Untraceable(f"a shape depends on values: {what}; torch.where and masks keep shapes fixed")
        for tensor in _written(func, args, kwargs):
            self._overwrite(tensor)
        out = func(*args, **kwargs)
        node = self.graph.call_function(func, node_args, node_kwargs)
        if fixed and Tag.nondeterministic_seeded in func.tags:
            self.drawable.add(node)
        elif fixed and isinstance(out, Tensor) and not func._schema.is_mutable:
            self._fixed[node] = _storage(out)
            self.constants.add(node)
        self._sign(f"{func}{node_args}{node_kwargs}")
        self._made(out, node)
        return out

    def node(self, tensor: Tensor) -> fx.Node:
        """What stands for a tensor in the graph."""
        if tensor not in self._nodes:
            self._meet(tensor)
        return self._nodes[tensor]

    def _meet(self, tensor: Tensor) -> None:
        """A tensor from outside becomes an input."""
        with self.graph.inserting_after(self._last) if self._last else self.graph.inserting_before():
            self._last = self.graph.placeholder(f"input_{len(self.inputs)}")
        self._nodes[tensor] = self._last
        self._last.meta["like"] = _like(tensor)
        self.inputs.append(tensor)
        self._sharing.setdefault(_storage(tensor), []).append(tensor)
        self._met[id(tensor)] = len(self.signature)
        self._sign(f"input {_like(tensor)}")

    def _constant(self, value: Tensor) -> Tensor:
        name = f"constant_{len(self.root._buffers)}"
        self.root.register_buffer(name, _copy(value))
        node = self.graph.call_function(aten.lift_fresh_copy.default, (self.graph.get_attr(name),))
        self._fixed[node] = _storage(value)
        self.constants.add(node)
        self._nodes[value] = node
        node.meta["like"] = _like(value)
        raw = value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        self._sign(f"constant {value.item() if value.numel() == 1 else sha256(raw).hexdigest()} {_like(value)}")
        return value

    def _made(self, out: Any, node: fx.Node) -> None:
        """Result tensors are known by their nodes from now on; a result that is an argument keeps its own."""
        if isinstance(out, Tensor):
            if out not in self._nodes:
                self._nodes[out] = node
                node.meta["like"] = _like(out)
        elif isinstance(out, tuple | list):
            for i, part in enumerate(out):
                if isinstance(part, Tensor) and part not in self._nodes:
                    self._made(part, self.graph.call_function(operator.getitem, (node, i)))

    def _sign(self, line: str) -> None:
        self.signature.append(line)
        self.places.append(_place(sys._getframe(2)))

    def _overwrite(self, tensor: Tensor) -> None:
        where = _storage(tensor)
        for owner in self._sharing.get(where, ()):  # a view is written through to what it is a view of
            if id(owner) not in self._saved:
                self._saved.add(id(owner))
                self.before.append((owner, _copy(owner)))
        self._fixed = {node: storage for node, storage in self._fixed.items() if storage != where}

    def after(self) -> list[Tensor]:
        """Copies of what was overwritten, as it is now, in the order of `before`."""
        return [_copy(tensor) for tensor, _ in self.before]

    def undo(self) -> None:
        """Gives what was overwritten its values of before."""
        self.write([value for _, value in self.before])

    def write(self, values: list[Tensor]) -> None:
        """Gives what was overwritten these values, in the order of `before`."""
        with torch.no_grad():
            for (tensor, _), value in zip(self.before, values, strict=True):
                tensor.copy_(value)

    def _at(self, line: int) -> str:
        """Where a line of the signature comes from, for a message."""
        place = self.places[line]
        return f", at {statement(*place)}" if place else ""

    @property
    def aliased(self) -> bool:
        """Whether an input was overwritten that shares its memory with another: a graph takes inputs for separate."""
        return any(len(sharing) > 1 and id(sharing[0]) in self._saved for sharing in self._sharing.values())

    def difference(self, other: "Recording") -> str | None:
        """How another run of the same step differs from this one; None if the two are one function of their inputs."""
        for i, (now, then) in enumerate(zip(self.signature, other.signature, strict=False)):
            if now != then:
                return f"it does not do the same in every step ({then}, then {now}){self._at(i)}"
        for tensor, earlier in zip(self.inputs[self.given :], other.inputs[other.given :], strict=False):
            if tensor is not earlier:
                at = self._at(self._met[id(tensor)])
                return f"it reads another tensor of shape {tuple(tensor.shape)} in every step{at}"
        if len(self.signature) != len(other.signature):
            return f"it had {len(other.signature)} operations, then {len(self.signature)}"
        return None


def is_users(frame: FrameType) -> bool:
    """Whether a frame runs code that is neither a library's nor ours."""
    return not frame.f_code.co_filename.startswith((*LIBRARIES, "<"))


def statement(frame: FrameType, line: int) -> str:
    """A statement by file, line and text."""
    path = frame.f_code.co_filename
    text = linecache.getline(path, line).strip()
    return f"{Path(path).name}:{line}" + (f": {text}" if text else "")


def _place(frame: FrameType | None) -> tuple[FrameType, int] | None:
    """The innermost of a user's statements, from a frame outwards."""
    while frame is not None and not is_users(frame):
        frame = frame.f_back
    return None if frame is None else (frame, frame.f_lineno)


@contextmanager
def traceable() -> Iterator[None]:
    """Lets Pyro and torch's optimizers run on tensors whose values nobody may read.

    Pyro reads a loss by `torch_item` and checks it by `warn_if_nan`, and distributions validate; torch's optimizers
    count steps in a tensor on the CPU only when they believe that torch.compile runs them.
    """
    with ExitStack() as stack:
        for name, stand_in in (("torch_item", _detached), ("warn_if_nan", lambda *_, **__: None)):
            for module_name, module in list(sys.modules.items()):
                if module_name.startswith("pyro.") and name in vars(module):
                    stack.enter_context(patch.object(module, name, stand_in))
        stack.enter_context(patch.object(torch.compiler, "_is_compiling_flag", True))
        stack.enter_context(patch.object(Tensor, "item", _item))
        stack.enter_context(validation(False))
        yield


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def _item(tensor: Tensor) -> Any:
    if sys._getframe(1).f_code.co_filename.startswith(pyro.__path__[0]):  # a loss that Pyro reports
        return tensor.detach()
    return torch._C.TensorBase.item(tensor)


def keep_random_state(device: torch.device) -> Callable[[], None]:
    """Takes note of torch's random state, of the CPU and of a GPU in use; calling the result goes back to it."""
    state = torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def rewind() -> None:
        torch.set_rng_state(state)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, device)

    return rewind


def _written(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The tensors that an operation overwrites, by its schema or against it."""
    if func.overloadpacket in UNSAID:
        return [args[i] for i in UNSAID[func.overloadpacket] if args[i] is not None]
    if not func._schema.is_mutable:
        return []
    targets: list[Any] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            targets.append(args[i] if i < len(args) else kwargs.get(argument.name))
    return [leaf for leaf in tree_iter(targets) if isinstance(leaf, Tensor)]


def _like(tensor: Tensor) -> tuple:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _copy(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        return tensor.detach().clone()
