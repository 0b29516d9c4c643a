"""Where the machine code of a graph comes from: this process, the folder of libraries, or a process in the background.

Compiling takes seconds, and training can go on meanwhile. A `Build` therefore compiles in another process, at low
priority, which puts the library into the folder (`libraries`). What only this process can compile (for a GPU, or with
operations that another process does not know) it compiles itself.
"""

import logging
import os
import pickle
import subprocess
import sys
import tempfile
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from itertools import count
from typing import IO, Any, ClassVar

import torch
from torch import Tensor, fx

from ppgen.infer.compile.libraries import Libraries, library_key, load_library
from ppgen.infer.compile.portable_graph import NotPortable, PortableGraph
from ppgen.utils.torch_private import MissingTorchInterface

__all__ = ["Build", "CompiledGraph"]

CompiledGraph = Callable[[list[Tensor]], Any]

KEPT = 64  # compiled graphs that one process keeps
NICE = 10  # the priority of the other process: a tenth of that of training, where both want the same core
MAIN = "from ppgen.infer.compile.building import compile_request; compile_request()"

logger = logging.getLogger("ppgen")
_numbers = count()
_kept: OrderedDict[str, CompiledGraph] = OrderedDict()


class Build:
    """The compilation of one graph.

    Args:
        module: the graph, whose placeholders have a "like" in their meta data.
        draws: how many of its last inputs are random numbers.

    Attributes:
        module: the graph.
        draws: how many of its last inputs are random numbers.
        operations: how many operations the graph has.
        key: tells it from other graphs.
    """

    running: ClassVar["weakref.ref[Build] | None"] = None  # one process at a time

    def __init__(self, module: fx.GraphModule, draws: int) -> None:
        self.module, self.draws = module, draws
        self._process: subprocess.Popen | None = None
        self._errors: Any = None
        self.operations = len(module.graph.nodes)
        self._threads = torch.get_num_threads()
        self._portable: PortableGraph | None = None
        try:
            self._portable = PortableGraph.of(module, draws)
            self.key = library_key(self._portable.text(), self._threads)
        except NotPortable as error:
            logger.info("this process alone can compile the step: it has %s", error)
            self.key = f"graph {next(_numbers)} of this process"
        self._elsewhere = self._portable is not None and all(like.device.type == "cpu" for like in self._portable.likes)

    def known(self) -> CompiledGraph | None:
        """What was compiled before, by this process or another one; None if there is nothing.

        Raises:
            PermissionError: if another user may have put the library there.
        """
        if (graph := _kept.get(self.key)) is not None:
            _kept.move_to_end(self.key)
        elif self._elsewhere and (path := Libraries().find(self.key)) is not None:
            graph = self._keep(load_library(path))
        return graph

    def now(self) -> CompiledGraph:
        """Compiles the graph in this process.

        Raises:
            MissingTorchInterface: if torch lacks a private interface of its compiler.
        """
        began = time.perf_counter()
        compiler = _compiler()
        graph = self._keep(compiler.compile_graph(self.module, self.draws))
        if self._elsewhere and (library := compiler.library_of(graph)) is not None:
            try:
                self._store(library, time.perf_counter() - began)
            except OSError as error:
                logger.info("the compiled step is not kept for other processes: %s", error)
        return graph

    def predicted_seconds(self) -> float:
        """How long compiling takes, from the last compilations on this machine."""
        return Libraries().predicted_seconds(self.operations)

    def start(self) -> bool:
        """Starts to compile, in another process if that can be; False while that is busy with another graph."""
        if not self._elsewhere:
            self.now()
            return True
        other = None if Build.running is None else Build.running()
        if other is not None and not other.done:
            return False
        Build.running = weakref.ref(self)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
        with tempfile.TemporaryFile() as request:
            pickle.dump((self.key, self._portable, self._threads), request)
            request.seek(0)
            paths = os.pathsep.join(path for path in sys.path if path)
            self._process = subprocess.Popen(
                [sys.executable, "-c", MAIN],
                stdin=request,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for this process
            )
        weakref.finalize(self, _stop, self._process, self._errors)
        return True

    @property
    def started(self) -> bool:
        """Whether another process was started."""
        return self._process is not None

    @property
    def done(self) -> bool:
        """Whether the other process has ended."""
        return self._process is not None and self._process.poll() is not None

    @property
    def failure(self) -> str | None:
        """Why the other process could not compile the graph, in its last line; None if it could."""
        if self._process is None or not self._process.poll():
            return None
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"the process that compiled it ended with {self._process.returncode}"

    def _store(self, library: Any, seconds: float) -> None:
        Libraries().add(self.key, library, seconds=round(seconds, 2), operations=self.operations)

    def _keep(self, graph: CompiledGraph) -> CompiledGraph:
        _kept[self.key] = graph
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
        return graph


def compile_request() -> None:
    """What the other process does: compiles the graph that it is sent, and puts the library into the folder."""
    began = time.perf_counter()
    with suppress(OSError, AttributeError):
        os.nice(NICE)
    key, portable, threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    compiler = _compiler()
    library = compiler.library_of(compiler.compile_graph(portable.module(), portable.draws))
    if library is None:
        raise MissingTorchInterface("the path of a compiled library")
    seconds = time.perf_counter() - began
    Libraries().add(key, library, seconds=round(seconds, 2), operations=len(portable.nodes))


def _compiler() -> Any:
    try:
        return import_module("ppgen.infer.compile.inductor")  # late: it takes a second
    except (ImportError, AttributeError) as error:
        raise MissingTorchInterface(f"an interface of its compiler ({error})") from error


def _stop(process: subprocess.Popen, errors: IO[bytes]) -> None:
    errors.close()
    if process.poll() is None:
        process.kill()
        process.wait()
