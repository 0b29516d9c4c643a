"""The Python values that a step may read, so that a compiled step, which keeps them, can notice that one has changed.

While a step is recorded, a `PythonValues` looks at every Python function that returns. What its code names, in its
globals, its closure and the objects that it can reach, may have decided what the step did: a number, a flag, a small
list, a tensor, a method. Each is kept with the place where it stands. Values that only this step holds are left out,
since they follow from the others.

Of Pyro's and torch's functions, only the object whose method runs is looked at (``dropout.p``, a module's hooks). What
libraries change in it with every step, such as caches, is theirs, and is not watched.
"""

import dis
import gc
import random
import sys
import sysconfig
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from enum import Enum
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from ppgen.utils.torch_private import MODULE_PARTS

__all__ = ["PythonValues", "is_user_file"]

PPGEN, PYRO, TORCH, NUMPY = (
    str(Path(path)) for path in (Path(__file__).parents[2], pyro.__path__[0], torch.__path__[0], np.__path__[0])
)
LIBRARIES = (TORCH, PYRO, PPGEN, sysconfig.get_path("stdlib"))
METHODS = (f"{TORCH}/nn", f"{TORCH}/distributions", PYRO)  # libraries whose objects have options that a user may change
UNWATCHED = (  # what a step changes by design: parameters, the optimizer's state
    f"{PYRO}/params",
    f"{TORCH}/distributions/constraint",
    f"{PPGEN}/infer/compile",
    *(f"{PPGEN}/infer/{name}.py" for name in ("svi", "adversarial", "optimizers", "learning_rates", "parameters")),
)
ATOMS = (bool, int, float, complex, str, bytes, type(None), Enum, np.generic, torch.dtype, torch.device, torch.Size)
CONTAINERS = (list, tuple, dict, set, frozenset, deque, bytearray, array)
LARGEST_CONTAINER = 256  # entries that are compared before each step; of a larger container, the length alone
LARGEST_ARRAY = 4096  # bytes of a NumPy array that are compared before each step
RANDOM = (random.Random, np.random.Generator, np.random.RandomState)
REACHES_ALL = {"getattr", "vars", "__dict__", "globals", "locals"}  # code with these names can read any attribute
MISSING = object()
NAMELESS = (lambda: None).__code__


class Place(NamedTuple):
    """Where a value stands: a key of a namespace, a cell of a closure, or an attribute.

    Attributes:
        owner: the namespace, the cell, or the object.
        key: the name of the value there.
        label: the place in words, for messages.
        of_library: whether only functions of libraries were seen to read it; they may keep things there by themselves.
    """

    owner: Any
    key: str
    label: str
    of_library: bool

    def read(self) -> Any:
        """The value that stands there now; `MISSING` if there is none."""
        if isinstance(self.owner, Mapping):
            return self.owner.get(self.key, MISSING)
        return getattr(self.owner, self.key, MISSING)


class Call(NamedTuple):
    """A call of a function: its code, globals, and local variables that are neither numbers nor tensors."""

    code: CodeType
    global_values: dict[str, Any]
    local_values: dict[str, Any]


class Contents(NamedTuple):
    """A container or an array, with what it holds.

    Attributes:
        owner: the container or array.
        label: where it stands, in words.
        of_library: as for a `Place`.
        held: its contents, comparable by ``==``.
    """

    owner: Any
    label: str
    of_library: bool
    held: Any


class PythonValues:
    """Finds the Python values that the functions that run inside ``with`` may read.

    Args:
        roots: the programs, whose own arguments (of a `functools.partial`) are watched too.

    Attributes:
        places: where they stand.
        values: what stood there when the block ended.
        containers: the containers and NumPy arrays among them.
        refusal: a value that cannot be compared before each step, in words; empty if there is none.
    """

    def __init__(self, roots: tuple = ()) -> None:
        self.roots = roots
        self.places: dict[tuple[int, str], Place] = {}
        self.values: dict[tuple[int, str], Any] = {}
        self.containers: dict[int, Contents] = {}
        self._calls: list[Call] = []
        self._functions: dict[CodeType, FunctionType] = {}
        self._seen: dict[tuple[int, int], bool] = {}  # by code and object, whether the object lasts
        self._young: set[int] = set()  # ids of the objects that were made inside the block
        self._of_library = False
        self.refusal = ""
        self._stack = ExitStack()

    def __enter__(self) -> "PythonValues":
        if gc.isenabled():
            self._stack.callback(gc.enable)
        gc.collect(0)  # all objects that exist are in older generations now, and new ones stay in the youngest
        gc.disable()
        for get_hook, set_hook in ((sys.getprofile, sys.setprofile), (sys.gettrace, sys.settrace)):
            if get_hook() is None:
                self._stack.callback(set_hook, None)
                set_hook(self._on_event)
                return self
        self.refusal = "a profiler and a debugger are on, and one of the two has to be free to find the values it uses"
        return self

    def __exit__(self, kind: Any, *exc: Any) -> None:
        self._stack.close()  # removes the hook
        if kind is None:
            self._young = set(map(id, gc.get_objects(0)))
            self._visit_calls()
            self.read()

    def read(self) -> None:
        """Reads the values that stand in all places now."""
        self.values = {key: place.read() for key, place in self.places.items()}
        self.containers = {key: c._replace(held=held(c.owner)) for key, c in self.containers.items()}

    def compare(self, earlier: "PythonValues") -> str | None:
        """Compares the values with those at the end of an earlier step that did the same operations.

        What libraries change in their own objects with every step, such as caches, is not watched any further.

        Returns:
            The label of the first value that differs, or None.
        """
        for key in self.places.keys() & earlier.places.keys():
            if not same(self.values[key], earlier.values[key]):
                if not self.places[key].of_library:
                    return self.places[key].label
                del self.places[key], self.values[key]
        for number in self.containers.keys() & earlier.containers.keys():
            if self.containers[number].held != earlier.containers[number].held:
                if not self.containers[number].of_library:
                    return self.containers[number].label
                del self.containers[number]
        return None

    def changed(self) -> str | None:
        """The label of the first value that is another one now, or None."""
        for key, place in self.places.items():
            if not same(self.values[key], place.read()):
                return place.label
        return next((c.label for c in self.containers.values() if held(c.owner) != c.held), None)

    def _on_event(self, frame: FrameType, event: str, arg: Any) -> Any:
        """Keeps what each function that returns could read; serves as a profile function and as a trace function."""
        if event == "call":
            frame.f_trace_lines = False
            return self._on_event
        code = frame.f_code
        path = code.co_filename
        generated = path == "<string>" and frame.f_globals.get("__name__") != "__main__"  # by dataclasses, for example
        if event == "return" and code.co_name != "<module>" and not generated and not path.startswith(UNWATCHED):
            if path.startswith(METHODS):
                owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
                if type(getattr(owner, "__dict__", None)) is dict:
                    self._calls.append(Call(code, {}, {"self": owner}))
            elif is_user_file(path) or path.startswith(PPGEN):
                kept = {
                    name: value for name, value in frame.f_locals.items() if not isinstance(value, (*ATOMS, Tensor))
                }
                self._calls.append(Call(code, frame.f_globals, kept))
        return None

    def _visit_calls(self) -> None:
        """Watches what the functions that ran could read."""
        self._follow(self.roots, NAMELESS, "the program", True)
        for code, global_values, local_values in self._calls:
            path = code.co_filename
            self._of_library = not is_user_file(path)
            if path.startswith(METHODS):
                self._visit_method(code, local_values["self"])
                continue
            for name in _globals(code) & global_values.keys() if not self._of_library else ():
                self.add_place(global_values, name, f"the global {name}")
                self._follow(global_values[name], code, name, True)
            for name, value in local_values.items():
                self._follow(value, code, name, self._lasts(value))
        ran = {code for code, *_ in self._calls if is_user_file(code.co_filename)}
        self._calls = []
        self._of_library = False
        visited: set[CodeType] = set()
        while found := [f for code, f in self._functions.items() if code in ran and code not in visited]:
            for function in found:
                visited.add(function.__code__)
                self._visit_function(function)
        inner = {part for code in ran for part in code.co_consts if isinstance(part, CodeType)}  # made by the step
        if hidden := ran - visited - inner:
            for function in gc.get_referrers(*hidden):
                if isinstance(function, FunctionType) and self._lasts(function):
                    self._visit_function(function)

    def _has_seen(self, code: CodeType, value: Any, lasting: bool) -> bool:
        """Whether a value was visited for a function before, and notes that it is now."""
        key = id(code), id(value)
        if key in self._seen and self._seen[key] >= lasting:
            return True
        self._seen[key] = lasting
        return False

    def _lasts(self, value: Any) -> bool:
        """Whether an object was there before the block; unknown, and taken for no, of containers of numbers alone."""
        return gc.is_tracked(value) and id(value) not in self._young

    def _visit_method(self, code: CodeType, owner: Any) -> None:
        """Watches the options, hooks and parts of an object of a library whose method ran."""
        private = type(owner).__name__.startswith("_")
        if private or not self._lasts(owner) or self._has_seen(code, owner, True):
            return
        own = vars(owner)
        for name in _names(code):
            if name.startswith("_") and not name.endswith("_hooks") and name not in MODULE_PARTS:
                continue
            label, value = f"{type(owner).__name__}.{name}", own.get(name, MISSING)
            if isinstance(value, (*ATOMS, Tensor, FunctionType, MethodType)):
                self.add_place(own, name, label)
            elif isinstance(value, CONTAINERS) and (name in MODULE_PARTS or _is_plain(value)):
                self.add_container(value, label)
            elif value is MISSING and isinstance(method := getattr(type(owner), name, None), FunctionType):
                self._functions[method.__code__] = method
                self.add_place(own, name, label)
                if is_user_file(method.__code__.co_filename):
                    self.add_place(type(owner), name, label)

    def _visit_function(self, function: FunctionType) -> None:
        """Watches the code, the closure and the defaults of a user's function that ran."""
        code, title = function.__code__, function.__name__
        for attribute in ("__code__", "__defaults__", "__kwdefaults__"):
            if getattr(function, attribute) is not None:
                self.add_place(function, attribute, f"{title}.{attribute}")
        self._follow((function.__defaults__, function.__kwdefaults__), code, f"the defaults of {title}", True)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            label = f"{name}, in the closure of {title}"
            self.add_place(cell, "cell_contents", label)
            self._follow(getattr(cell, "cell_contents", None), code, label, True)

    def _follow(self, value: Any, code: CodeType, label: str, lasting: bool) -> None:
        """Watches what a function can reach from a value by the names in its code.

        Args:
            value: a value that the function can read.
            code: of the function.
            label: the value in words.
            lasting: whether the value was there before the step; of others, only lasting parts are watched.
        """
        if isinstance(value, (*ATOMS, Tensor)) or self._has_seen(code, value, lasting):
            return
        if isinstance(value, CONTAINERS):
            if lasting:
                self.add_container(value, label)
            for key, part in _parts(value):
                entry = f"{label}[{key!r}]" if isinstance(key, ATOMS) else label
                self._follow(part, code, entry, lasting or self._lasts(part))
        elif isinstance(value, np.ndarray):
            if lasting:
                self._add_array(value, label)
        elif isinstance(value, RANDOM) or isinstance(getattr(value, "__self__", None), RANDOM):
            self._refuse(f"it uses random numbers that are not torch's ({label}): draw them with torch")
        elif isinstance(value, ModuleType):
            self._follow_module(value, code)
        elif isinstance(value, partial):
            self._follow((value.func, value.args, value.keywords), code, label, lasting)
        elif isinstance(value, MethodType):
            self._follow((value.__self__, value.__func__), code, label, lasting)
        elif lasting and not isinstance(value, type) and hasattr(type(value), "__next__"):
            self._refuse(f"it reads from the iterator {label}, which moves on: use a list")
        else:
            self._follow_object(value, code, lasting)

    def _follow_module(self, module: ModuleType, code: CodeType) -> None:
        """Watches a user's module; in libraries, only random numbers are looked for."""
        library = _is_library(module)
        for name in sorted(_names(code) & vars(module).keys()):
            value, label = vars(module)[name], f"{module.__name__}.{name}"
            if not library:
                self.add_place(vars(module), name, label)
            if not library or module is np or isinstance(getattr(value, "__self__", None), RANDOM):
                self._follow(value, code, label, True)

    def _follow_object(self, value: Any, code: CodeType, lasting: bool) -> None:
        """Watches the attributes of an object, or of a class, that a function's code names."""
        kind = value if isinstance(value, type) else type(value)
        names, own = _names(code), getattr(value, "__dict__", {})
        if isinstance(value, FunctionType) and lasting:
            self._functions[value.__code__] = value
        for name in list(own) if names & REACHES_ALL else names & own.keys():
            label = f"{getattr(value, '__name__', kind.__name__)}.{name}"
            if lasting:
                self.add_place(own, name, label)
            self._follow(own[name], code, label, lasting or self._lasts(own[name]))
        if isinstance(value, nn.Module):
            for name, layer in value.named_children():
                if name in names:
                    self._follow(layer, code, f"{kind.__name__}.{name}", lasting)
        for name in names - own.keys() if lasting else ():
            base = next((base for base in kind.__mro__ if name in vars(base)), None)
            if base is None or _is_library(sys.modules.get(base.__module__)):
                continue
            part, label = vars(base)[name], f"{kind.__name__}.{name}"
            self.add_place(kind, name, label)
            self.add_place(value if isinstance(part, MemberDescriptorType) else own, name, label)
            self._follow(part, code, label, True)

    def add_place(self, owner: Any, key: str, label: str) -> None:
        """Adds a place; of one that a user's function reads too, a change is never ignored."""
        known = self.places.get((id(owner), key))
        if known is None or (known.of_library and not self._of_library):
            self.places[id(owner), key] = Place(owner, key, label, self._of_library)

    def add_container(self, container: Any, label: str) -> None:
        """Adds a container or an array, as `add_place` does; a tuple cannot change."""
        if isinstance(container, tuple):
            return
        known = self.containers.get(id(container))
        if known is None or (known.of_library and not self._of_library):
            self.containers[id(container)] = Contents(container, label, self._of_library, None)

    def _add_array(self, array: np.ndarray, label: str) -> None:
        if array.dtype == object or array.nbytes > LARGEST_ARRAY:
            self._refuse(f"it reads the NumPy array {label}, which may change: make it a tensor outside of the program")
        self.add_container(array, label)

    def _refuse(self, why: str) -> None:
        if not self._of_library:
            self.refusal = self.refusal or why


def is_user_file(path: str) -> bool:
    """Whether code of a file is the user's: not of Python, torch, Pyro or ppgen. A notebook's cell has no file."""
    return not path.startswith((*LIBRARIES, "<frozen"))


def same(value: Any, other: Any) -> bool:
    """Whether a step does the same with two values: they are one object, or equal numbers, strings or methods."""
    if value is other:
        return True
    if type(value) is not type(other) or not isinstance(value, (*ATOMS, MethodType)):
        return False
    return bool(value == other)


def held(container: Any) -> Any:
    """What a container or an array holds, comparable by ``==``: numbers and strings by value, others by identity."""
    if isinstance(container, np.ndarray):
        return container.dtype.str, container.shape, container.tobytes()
    if len(container) > LARGEST_CONTAINER:
        return len(container)
    if isinstance(container, set | frozenset):
        return {_token(part) for part in container}
    return [(_token(key), _token(part)) for key, part in _parts(container)]


def _is_plain(container: Any) -> bool:
    """Whether a container is small and holds numbers, strings and the like alone."""
    parts = container.values() if isinstance(container, dict) else container
    return len(container) <= LARGEST_CONTAINER and all(isinstance(part, ATOMS) for part in parts)


def _token(part: Any) -> Any:
    return (type(part), part) if isinstance(part, ATOMS) else id(part)


def _parts(container: Any) -> Iterator[tuple[Any, Any]]:
    """The entries of a container with their keys; none of a large one."""
    if len(container) > LARGEST_CONTAINER:
        return iter(())
    return iter(list(container.items()) if isinstance(container, dict) else list(enumerate(container)))


@cache
def _names(code: CodeType) -> frozenset[str]:
    """The globals, attributes and methods that a function names."""
    return frozenset(code.co_names)


@cache
def _globals(code: CodeType) -> frozenset[str]:
    """The globals that a function reads or sets."""
    return frozenset(i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "STORE_GLOBAL"))


def _is_library(module: Any) -> bool:
    """Whether a module is of Python, torch, Pyro, NumPy or ppgen, or built in."""
    path = getattr(module, "__file__", None)
    return path is None or path.startswith((*LIBRARIES, NUMPY))
