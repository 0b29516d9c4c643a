"""A parameter store for each fit, and one program at a time.

Pyro's parameter store and its stack of handlers are global. Parameters of one name are one parameter, whichever program
creates them, and programs that run in two threads at once apply each other's handlers. A fit therefore has a store of
its own, and threads take turns.
"""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyro
from torch import Tensor

from ppgen.utils.user_warnings import warn_user

__all__ = ["ParameterScope", "one_at_a_time"]

one_at_a_time = threading.RLock()
"""Held while programs run: a thread waits until the fit or the step of another thread has ended."""

_published: weakref.WeakValueDictionary[int, Tensor] = (
    weakref.WeakValueDictionary()
)  # by id, what fits put into a store


class ParameterScope:
    """The parameters of one fit, apart from what Pyro's store holds otherwise."""

    def __init__(self) -> None:
        self._state: Any = {"params": {}, "constraints": {}}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Puts these parameters in the place of Pyro's store inside ``with``; other threads wait.

        Raises:
            LookupError: if a program reads an entry of the store that it does not create.
        """
        store = pyro.get_param_store()
        with one_at_a_time:
            outside = set(store.keys())
            with store.scope(self._state):
                try:
                    yield
                except KeyError as error:
                    name = error.args[0] if error.args else None
                    if name not in outside or name in store:
                        raise
                    raise LookupError(
                        f"the programs read pyro.param({name!r}), which they do not create; a fit does not use what "
                        f"the parameter store held before it: give the start, pyro.param({name!r}, value)"
                    ) from error

    def publish(self) -> None:
        """Puts the parameters into Pyro's store, where the programs and ``pyro.param`` find them.

        Entries of the same names that are not from a fit stay as they are, and a warning names them.
        """
        with one_at_a_time:
            store, kept = pyro.get_param_store(), []
            for name, leaf in self._state["params"].items():
                held = store._params.get(name)
                if held is not None and held is not leaf:
                    if _published.get(id(held)) is not held:
                        kept.append(name)
                        continue
                    with suppress(KeyError):  # a tensor of two names, already removed under the other
                        del store[name]
                constraint = self._state["constraints"][name]
                store.set_state({"params": {name: leaf}, "constraints": {name: constraint}})
                _published[id(leaf)] = leaf
        if kept:
            warn_user(
                f"the parameter store held {', '.join(map(repr, kept))} before the fit. These entries are unchanged, "
                "so programs that are run outside of the fit's methods use them in the place of what was fitted: run "
                "them inside `with fit.eval_mode():`, or call pyro.clear_param_store() before the fit"
            )
