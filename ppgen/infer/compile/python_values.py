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
import operator
import os
import random
import sys
import sysconfig
import weakref
from contextlib import ExitStack
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CodeType,
    FrameType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from ppgen.infer.compile.places import (
    ATOMS,
    CONTAINERS,
    LARGEST_CONTAINER,
    MISSING,
    Comparison,
    Contents,
    Place,
    bases,
    class_attribute,
    held,
    parts,
    same,
)
from ppgen.utils.torch_private import MODULE_PARTS

__all__ = ["PythonValues", "is_user_file"]

PPGEN, PYRO, TORCH, NUMPY, STDLIB = (
    str(Path(path)) + os.sep
    for path in (
        Path(__file__).parents[2],
        pyro.__path__[0],
        torch.__path__[0],
        np.__path__[0],
        sysconfig.get_path("stdlib"),
    )
)
LIBRARIES = (TORCH, PYRO, PPGEN)
INSTALLED = (f"{STDLIB}site-packages{os.sep}", f"{STDLIB}dist-packages{os.sep}")  # not of Python, though beneath it
METHODS = (f"{TORCH}nn", f"{TORCH}distributions", PYRO)  # libraries whose objects have options that a user may change
UNWATCHED = (  # what a step changes by design: parameters, the optimizer's state
    f"{PYRO}params",
    *(f"{path}distributions/constraint" for path in (TORCH, PYRO)),
    f"{PYRO}poutine/trace_struct",
    f"{PPGEN}infer/compile",
    *(f"{PPGEN}infer/{name}.py" for name in ("svi", "adversarial", "optimizers", "learning_rates", "parameters")),
)
LARGEST_ARRAY = 4096  # bytes of a NumPy array that are compared before each step
RANDOM = (random.Random, np.random.Generator, np.random.RandomState)
REACHES_ALL = {"getattr", "vars", "__dict__", "attrgetter"}  # code with these names can read any attribute
BY_STRING = {"getattr", "hasattr", "__dict__"}  # code with these names can ask for an attribute by a string
UNSEEN = ("eval", "exec", "globals", "open")  # functions that read what no name shows
COLLECTIONS = ("collections", "weakref", "os")  # modules of Python with containers that are objects
HIDE_NAMES = (operator.attrgetter, operator.methodcaller)  # these read attributes whose names no code shows
NAMELESS = (lambda: None).__code__


class Call(NamedTuple):
    """A call of a function: its code, globals, and local variables that are neither numbers nor tensors."""

    code: CodeType
    global_values: dict[str, Any]
    local_values: dict[str, Any]


class PythonValues:
    """Finds the Python values that the functions that run inside ``with`` may read.

    Args:
        roots: the programs, whose own arguments (of a `functools.partial`) are watched too.

    Attributes:
        places: where they stand.
        values: what stood there when the block ended.
        containers: the containers and NumPy arrays among them.
        refusal: a value that cannot be compared before each step, in words; empty if there is none.
        of_library: whether what is added belongs to a library (see `Place`).
    """

    def __init__(self, roots: tuple = ()) -> None:
        self.roots = roots
        self.places: dict[tuple[int, str], Place] = {}
        self.values: dict[tuple[int, str], Any] = {}
        self.containers: dict[int, Contents] = {}
        self.unwatched: dict[Any, Place | Contents] = {}
        self._calls: list[Call] = []
        self._functions: dict[CodeType, FunctionType] = {}
        self._cached: set[CodeType] = set()  # of functions behind a cache, which need not have run
        self._seen: dict[tuple[int, int], bool] = {}  # by code and object, whether the object lasts
        self._young: set[int] = set()  # ids of the objects that were made inside the block
        self.of_library = False
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

    def comparison(self) -> Comparison:
        """Compares all values with those that stand there now."""
        return Comparison(self.places.values(), self.containers.values())

    def compare(self, earlier: "PythonValues") -> str | None:
        """Compares the values with those at the end of an earlier step that did the same operations.

        What libraries change in their own objects with every step, such as caches, is not watched any further.

        Returns:
            The label of the first value that differs, or None.
        """
        for key in self.places.keys() & earlier.unwatched.keys():  # by comparison with a step before that one
            self._unwatch(self.places, key)
        for number in self.containers.keys() & earlier.unwatched.keys():
            self._unwatch(self.containers, number)
        for key in self.places.keys() & earlier.places.keys():
            place = self.places[key]
            if not same(self.values[key], earlier.values[key]):
                if not place.of_library or (isinstance(self.values[key], Tensor) and not place.key.startswith("_")):
                    return place.label  # a tensor that an old-style weight norm keeps, for example
                self._unwatch(self.places, key)
        for number in self.containers.keys() & earlier.containers.keys():
            if self.containers[number].held != earlier.containers[number].held:
                if not self.containers[number].of_library:
                    return self.containers[number].label
                self._unwatch(self.containers, number)
        return None

    def _unwatch(self, watched: dict, key: Any) -> None:
        self.unwatched[key] = watched.pop(key)  # kept, so that no other object gets its id
        self.values.pop(key, None)

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
            self.of_library = not is_user_file(path)
            if path.startswith(METHODS):
                self._visit_method(code, local_values["self"])
                continue
            if not self.of_library:
                self._visit_globals(code, global_values)
            for name, value in local_values.items():
                self._follow(value, code, name, self._lasts(value))
        ran = {code for code, *_ in self._calls if is_user_file(code.co_filename)}
        self._calls = []
        self.of_library = False
        visited: set[CodeType] = set()
        while found := [f for code, f in self._functions.items() if code in ran | self._cached and code not in visited]:
            for function in found:
                visited.add(function.__code__)
                self._visit_function(function)
                if function.__code__ in self._cached:
                    self._visit_globals(function.__code__, function.__globals__)
        inner = {part for code in ran for part in code.co_consts if isinstance(part, CodeType)}  # made by the step
        if hidden := ran - visited - inner:
            for function in gc.get_referrers(*hidden):
                if isinstance(function, FunctionType) and self._lasts(function):
                    self._visit_function(function)

    def _visit_globals(self, code: CodeType, values: dict[str, Any]) -> None:
        """Watches the globals of a user's function, also those that are not there yet, or stand in for a builtin."""
        names = _globals(code)
        for name in sorted(names.intersection(UNSEEN) - values.keys()):
            self._refuse(f"{code.co_name} calls {name}(), which may read anything: do that outside of the program")
        for name in names:
            self.add_place(values, name, f"the global {name}")
            if name in values:
                self._follow(values[name], code, name, True)

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
        if isinstance(owner, torch.jit.ScriptModule):
            self.refusal = self.refusal or "it runs a TorchScript module, whose options Python does not hold"
        own = vars(owner)
        for name in _names(code):
            label, value = f"{type(owner).__name__}.{name}", own.get(name, MISSING)
            if value is MISSING:
                if not name.startswith("_") and isinstance(method := getattr(type(owner), name, None), FunctionType):
                    self._functions[method.__code__] = method
                    self.add_place(own, name, label)
                    if is_user_file(method.__code__.co_filename):
                        self.add_place(type(owner), name, label)
                continue
            if not name.startswith("_"):
                self.add_place(own, name, label)
            if isinstance(value, CONTAINERS) and len(value) <= LARGEST_CONTAINER:
                self.add_container(value, label)

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
        if isinstance(value, ATOMS) or (isinstance(value, Tensor) and (self.of_library or not vars(value))):
            return
        if self._has_seen(code, value, lasting):
            return
        if isinstance(value, CONTAINERS):
            if lasting:
                self.add_container(value, label)
                self._check_size(value, label)
            for key, part in parts(value):
                entry = f"{label}[{key!r}]" if isinstance(key, ATOMS) else label
                self._follow(part, code, entry, lasting or self._lasts(part))
        elif isinstance(value, np.ndarray):
            if lasting:
                self._add_array(value, label)
        elif isinstance(value, RANDOM) or isinstance(_bound_to(value), RANDOM):
            self._refuse(f"it uses random numbers that are not torch's ({label}): draw them with torch")
        elif isinstance(value, ModuleType):
            self._follow_module(value, code)
        elif isinstance(value, partial):
            self._follow((value.func, value.args, value.keywords), code, label, lasting)
        elif isinstance(value, MethodType):
            self._follow((value.__self__, value.__func__), code, label, lasting)
        elif isinstance(value, weakref.ref):
            self._follow(value(), code, label, lasting)
        elif isinstance(value, MappingProxyType | memoryview):
            self._follow(value.obj if isinstance(value, memoryview) else gc.get_referents(value), code, label, lasting)
        elif isinstance(value, ContextVar):
            self._refuse(f"it reads the context variable {label}: read it outside of the program")
        elif isinstance(value, HIDE_NAMES):
            self._refuse(f"it uses {label}, an operator.{type(value).__name__}: write a function in its place")
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
            if not library or module is np or isinstance(_bound_to(value), RANDOM):
                self._follow(value, code, label, True)
        if module is os and _names(code) & {"environ", "getenv"}:
            self._follow(os.environ, code, "os.environ", True)

    def _follow_object(self, value: Any, code: CodeType, lasting: bool) -> None:
        """Watches the attributes of an object, or of a class, that a function's code names."""
        kind, own = value if isinstance(value, type) else type(value), _own(value)
        title = value.__name__ if isinstance(value, type | FunctionType) else kind.__name__
        names = _names(code)
        if isinstance(value, FunctionType) and lasting:
            self._functions[value.__code__] = value
            if value.__code__.co_filename.startswith(STDLIB):  # a decorator's function, which holds the user's
                self._follow([cell.cell_contents for cell in value.__closure__ or ()], code, title, True)
        if isinstance(wrapped := own.get("__wrapped__"), FunctionType) and not isinstance(value, FunctionType):
            self._functions[wrapped.__code__] = wrapped  # a cache does not call it
            self._cached.add(wrapped.__code__)
        if any(base.__module__ in COLLECTIONS for base in kind.__mro__):  # whose methods show no names
            self._follow(list(own.values()), code, title, lasting)
        for name in list(own) if names & REACHES_ALL else names & own.keys():
            self._follow_part(own, name, f"{title}.{name}", code, lasting)
        if isinstance(value, nn.Module):
            for own_parts in (own[part] for part in MODULE_PARTS if isinstance(own.get(part), dict)):
                for name in list(own_parts) if names & REACHES_ALL else names & own_parts.keys():
                    self._follow_part(own_parts, name, f"{title}.{name}", code, lasting)
        if lasting:
            self._watch_class(value, kind, own, code, title)

    def _watch_class(self, value: Any, kind: type, own: dict[str, Any], code: CodeType, title: str) -> None:
        """Watches what a function reads from the class of an object, or may read from the object in the future."""
        is_function = isinstance(value, FunctionType)
        users = is_user_file(value.__code__.co_filename) if is_function else not _is_library(_module_of(kind))
        if users and not is_function and not isinstance(value, type):
            self.add_place(value, "__class__", f"the class of {title}")
        names = _names(code)
        for name in names - own.keys():
            part, label = class_attribute(kind, name), f"{title}.{name}"
            if part is MISSING:
                watched = users and not self.of_library
            else:
                watched = not _is_library(_module_of(_defined_in(kind, name)))
            if watched:
                self.add_place(kind, name, label)
                self.add_place(value if isinstance(part, MemberDescriptorType) else own, name, label)
                self._follow(part, code, label, True)

    def _follow_part(self, namespace: dict[str, Any], name: str, label: str, code: CodeType, lasting: bool) -> None:
        """Watches one attribute in the namespace of an object."""
        if lasting:
            self.add_place(namespace, name, label)
        self._follow(namespace[name], code, label, lasting or self._lasts(namespace[name]))

    def add_place(self, owner: Any, key: Any, label: str) -> None:
        """Adds a place; of one that a user's function reads too, a change is never ignored."""
        known = self.places.get((id(owner), key))
        if known is None or (known.of_library and not self.of_library):
            self.places[id(owner), key] = Place(owner, key, label, self.of_library)

    def add_container(self, container: Any, label: str) -> None:
        """Adds a container or an array, as `add_place` does; a tuple cannot change."""
        if isinstance(container, tuple):
            return
        known = self.containers.get(id(container))
        if known is None or (known.of_library and not self.of_library):
            self.containers[id(container)] = Contents(container, label, self.of_library, None)

    def _check_size(self, container: Any, label: str) -> None:
        """Refuses containers that are too large to compare, unless they cannot change."""
        fixed = isinstance(container, tuple | frozenset) and all(isinstance(p, (*ATOMS, Tensor)) for p in container)
        if len(container) > LARGEST_CONTAINER and not fixed:
            kind, size = type(container).__name__, len(container)
            self._refuse(
                f"it uses {label}, a {kind} of {size} entries, too many to compare before each step: make it a tensor, "
                "or a tuple of numbers"
            )

    def _add_array(self, array: np.ndarray, label: str) -> None:
        if array.dtype == object or array.nbytes > LARGEST_ARRAY:
            self._refuse(f"it reads the NumPy array {label}, which may change: make it a tensor outside of the program")
        self.add_container(array, label)

    def _refuse(self, why: str) -> None:
        if not self.of_library:
            self.refusal = self.refusal or why


def is_user_file(path: str) -> bool:
    """Whether code of a file is the user's: not of Python, torch, Pyro or ppgen. A notebook's cell has no file."""
    return (path.startswith(INSTALLED) and not path.startswith(LIBRARIES)) or not path.startswith(
        (*LIBRARIES, STDLIB, "<frozen")
    )


def _own(value: Any) -> dict[str, Any]:
    """The namespace of an object, if it has one."""
    try:
        return vars(value)
    except Exception:  # it has none, or its own __getattr__ fails
        return {}


def _bound_to(value: Any) -> Any:
    """The object whose method a value is."""
    return value.__self__ if isinstance(value, BuiltinFunctionType | MethodType) else None


def _module_of(kind: type) -> ModuleType | None:
    return sys.modules.get(kind.__module__)


def _defined_in(kind: type, name: str) -> type:
    """The class that defines an attribute of a class."""
    return next(base for base in bases(kind) if name in vars(base))


@cache
def _names(code: CodeType) -> frozenset[str]:
    """The globals, attributes and methods that a function names, also in strings where it asks for them by string."""
    strings = [name for name in code.co_consts if isinstance(name, str)] if BY_STRING & set(code.co_names) else []
    return frozenset([*code.co_names, *strings])


@cache
def _globals(code: CodeType) -> frozenset[str]:
    """The globals that a function reads or sets."""
    return frozenset(i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "STORE_GLOBAL"))


def _is_library(module: Any) -> bool:
    """Whether a module is of Python, torch, Pyro, NumPy or ppgen, or built in; a notebook has no file, as those."""
    path = getattr(module, "__file__", None)
    if path is None:
        root = getattr(module, "__name__", "").split(".")[0]
        return root in ("torch", "pyro", "numpy", "ppgen") or (root in sys.stdlib_module_names and root != "__main__")
    return path.startswith(NUMPY) or not is_user_file(path)
