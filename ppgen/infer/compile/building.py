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
from functools import cached_property
from hashlib import sha256
from importlib import import_module
from typing import IO, Any, ClassVar

import torch
from torch import Tensor, fx

from ppgen.infer.compile.libraries import Libraries, library_key, load_library
from ppgen.infer.compile.portable_graph import NotPortable, PortableGraph
from ppgen.utils.torch_private import MissingTorchInterface

__all__ = ["Build", "CompiledGraph", "stop_compiling"]

CompiledGraph = Callable[[list[Tensor]], Any]

KEPT = 64  # compiled graphs that one process keeps
ABANDONED = 10.0  # seconds after which a job that no run asks about makes way for another
NICE = 10  # the priority of the other process: a tenth of that of training, where both want the same core
MAIN = "from ppgen.infer.compile.building import compile_request; compile_request()"

logger = logging.getLogger("ppgen")
_kept: OrderedDict[str, CompiledGraph] = OrderedDict()


class Build:
    """The compilation of one graph.

    Args:
        module: the graph, whose placeholders have a "like" in their meta data.
        draws: how many of its last inputs are random numbers.
        signature: a text that is the same for equal graphs of this process alone.

    Attributes:
        module: the graph.
        draws: how many of its last inputs are random numbers.
        operations: how many operations the graph has.
        key: tells it from other graphs.
    """

    def __init__(self, module: fx.GraphModule, draws: int, signature: str) -> None:
        self.module, self.draws = module, draws
        self._job: Job | None = None
        self.operations = len(module.graph.nodes)
        self._threads = torch.get_num_threads()
        self._portable: PortableGraph | None = None
        try:
            self._portable = PortableGraph.of(module, draws)
            self.key = library_key(self._portable.text(), self._threads)
        except NotPortable as error:
            logger.info("this process alone can compile the step: it has %s", error)
            self.key = sha256(f"{signature}\n{self._threads}".encode()).hexdigest()
        self._elsewhere = self._portable is not None and all(like.device.type == "cpu" for like in self._portable.likes)

    def known(self) -> CompiledGraph | None:
        """What was compiled before, by this process or another one; None if there is nothing.

        Raises:
            PermissionError: if another user may have put the library there.
        """
        if (graph := _kept.get(self.key)) is not None:
            _kept.move_to_end(self.key)
        elif self._elsewhere and (library := Libraries().find(self.key)) is not None:
            graph = self._keep(load_library(library.file))
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

    @property
    def text(self) -> str | None:
        """A text that is the same for equal graphs alone; None if only this process can compile the graph."""
        return self._portable.text() if self._portable is not None and self._elsewhere else None

    @cached_property
    def predicted_seconds(self) -> float:
        """How long compiling takes, from the last compilations on this machine."""
        return Libraries().predicted_seconds(self.operations)

    def start(self) -> bool:
        """Compiles in another process if that can be, else here; False while that process is busy with another graph.

        Raises:
            OSError: if no process or no file can be made.
            MissingTorchInterface: as `now`.
        """
        if self._portable is None or not self._elsewhere:
            self.now()
            return True
        self._job = Job.start(self.key, self._portable, self._threads)
        return self._job is not None

    @property
    def started(self) -> bool:
        """Whether another process was started, or this one has compiled the graph."""
        return self._job is not None or self.key in _kept

    @property
    def done(self) -> bool:
        """Whether that process has ended."""
        return self.key in _kept or (self._job is not None and self._job.done)

    @property
    def failure(self) -> str | None:
        """Why the other process could not compile the graph, in its last line; None if it could."""
        return None if self._job is None else self._job.failure

    def _store(self, library: Any, seconds: float) -> None:
        Libraries().add(self.key, library, seconds=round(seconds, 2), operations=self.operations)

    def _keep(self, graph: CompiledGraph) -> CompiledGraph:
        _kept[self.key] = graph
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
        return graph


class Job:
    """The process that compiles a graph; there is one at a time.

    Args:
        key: the key of the graph.
        request: what the process is to do.

    Attributes:
        key: the key.
        process: the process.
        stopped: whether it was ended before it was done.
    """

    current: ClassVar["Job | None"] = None

    def __init__(self, key: str, request: IO[bytes]) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        self.key, self.stopped = key, False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", MAIN],
                stdin=request,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for this process
            )
        except BaseException:
            self._errors.close()
            raise
        self._asked = time.monotonic()
        self._end = weakref.finalize(self, _end, self.process, self._errors)

    @classmethod
    def start(cls, key: str, portable: PortableGraph, threads: int) -> "Job | None":
        """Starts to compile a graph, or finds the job that does; None while another graph is compiled.

        Args:
            key: the key of the graph.
            portable: the graph.
            threads: how many threads the library uses.
        """
        job = cls.current
        if job is not None and job.key == key and not job.stopped:
            return job
        if job is not None and not job.done_now and time.monotonic() - job._asked < ABANDONED:
            return None
        stop_compiling()
        with tempfile.TemporaryFile() as request:
            pickle.dump((key, portable, threads), request)
            request.seek(0)
            cls.current = cls(key, request)
        return cls.current

    @property
    def done_now(self) -> bool:
        """Whether the process has ended."""
        return self.stopped or self.process.poll() is not None

    @property
    def done(self) -> bool:
        """Whether the process has ended; a job about which nobody asks for some seconds may be stopped for another."""
        self._asked = time.monotonic()
        return self.done_now

    @property
    def failure(self) -> str | None:
        """The last line of the process's errors; None if it has not failed, or was stopped."""
        if self.stopped or not self.process.poll():
            return None
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"the process that compiled it ended with {self.process.returncode}"

    def stop(self) -> None:
        """Ends the process."""
        if not self.done_now:
            self.stopped = True
            self._end()


def stop_compiling() -> None:
    """Ends the process that compiles in the background, at the end of a run."""
    if Job.current is not None:
        Job.current.stop()
        Job.current = None


def compile_request() -> None:
    """What the other process does: compiles the graph that it is sent, and puts the library into the folder."""
    began = time.perf_counter()
    with suppress(OSError, AttributeError):
        os.nice(NICE)
    key, portable, threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    compiler = _compiler()
    compiled = compiler.compile_graph(portable.module(), portable.draws)
    library = compiler.library_of(compiled)
    if library is None:
        raise MissingTorchInterface("what a library without operations in Python needs")
    with suppress(RuntimeError):  # what crashes a process crashes this one, and is not kept
        compiled([torch.empty_strided(*like[:2], dtype=like.dtype).zero_() for like in portable.likes])
    seconds = time.perf_counter() - began
    Libraries().add(key, library, seconds=round(seconds, 2), operations=len(portable.nodes))


def _compiler() -> Any:
    try:
        return import_module("ppgen.infer.compile.inductor")  # late: it takes a second
    except (ImportError, AttributeError) as error:
        raise MissingTorchInterface(f"an interface of its compiler ({error})") from error


def _end(process: subprocess.Popen, errors: IO[bytes]) -> None:
    errors.close()
    if process.poll() is None:
        process.kill()
        process.wait()
