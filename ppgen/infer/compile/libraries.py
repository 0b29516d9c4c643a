"""Compiled graphs as shared libraries in a folder, which later processes load in milliseconds.

Each library has a manifest, `<key>.json`, with its file name, its SHA-256 and what it took to compile it. The key is a
digest of the graph, of torch's version, of the processor and of ppgen's compiler. Nothing is run that is not the
current user's, or that is not what its manifest says. Files are written atomically and under names of their own, so
that processes may compile the same graph at once; the least recently used ones go when the folder has outgrown its
bound.
"""

import json
import os
import platform
import stat
import time
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen.utils.files import write_atomically
from ppgen.utils.torch_private import extension_function

__all__ = ["Libraries", "Library", "call_without_gradients", "library_key", "load_library"]

VARIABLE = "PPGEN_CACHE_DIR"
MEGABYTES = 256  # that the folder may have
PRIOR, OPERATIONS = 0.02, 300  # seconds of one operation, before any were measured; what compiling nothing costs
ABANDONED = 86400  # seconds after which a library without a manifest is deleted
RECENT = 20  # compilations from which the time of the next is predicted


class Library(NamedTuple):
    """A library in the folder.

    Attributes:
        manifest: the path of its manifest.
        file: that of the library.
        about: what the manifest says.
    """

    manifest: Path
    file: Path
    about: dict[str, Any]


class Libraries:
    """The folder of libraries.

    Args:
        folder: its path; None for "compiled" in the folder that the environment variable PPGEN_CACHE_DIR names, or else
            in the user's folder for caches.
    """

    def __init__(self, folder: str | os.PathLike | None = None) -> None:
        self.folder = _default() if folder is None else Path(folder)

    def find(self, key: str) -> Library | None:
        """The library of a key, checked; None if there is none.

        Args:
            key: as `library_key` makes it.

        Raises:
            PermissionError: if another user may have put it there.
        """
        library = self._read(self.folder / f"{key}.json")
        if library is None or not library.file.is_file():
            return None
        for path in (self.folder, library.manifest, library.file):
            _check_owner(path)
        if sha256(library.file.read_bytes()).hexdigest() != library.about.get("sha256"):
            return None
        for path in (library.manifest, library.file):  # used now, for `trim`
            os.utime(path)
        return library

    def add(self, key: str, file: Path, **about: Any) -> Path:
        """Copies a library into the folder.

        Args:
            key: its key.
            file: the library.
            **about: what else its manifest says, as JSON values.

        Returns:
            the copy.
        """
        if not self.folder.exists():
            self.folder.mkdir(parents=True, mode=0o700)
        _check_owner(self.folder)
        content = file.read_bytes()
        digest = sha256(content).hexdigest()
        copy = write_atomically(self.folder / f"{digest[:32]}.so", content)
        manifest = {"file": copy.name, "sha256": digest, "torch": torch.__version__, **about}
        write_atomically(self.folder / f"{key}.json", json.dumps(manifest, indent=1))
        self.trim(MEGABYTES)
        return copy

    def entries(self) -> list[Library]:
        """All libraries, the least recently used first."""
        if not self.folder.is_dir():
            return []
        found = [self._read(path) for path in self.folder.glob("*.json")]
        return sorted((each for each in found if each is not None), key=lambda each: _used(each.manifest))

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.glob("*")) if self.folder.is_dir() else 0

    def trim(self, megabytes: float) -> int:
        """Deletes the least recently used libraries beyond a size, and what belongs to no manifest.

        Args:
            megabytes: the size that stays at most.

        Returns:
            how many libraries were deleted.
        """
        deleted = 0
        entries, size = self.entries(), self.size()
        for library in entries:
            if size <= megabytes * 2**20:
                break
            for path in (library.manifest, library.file):
                size -= path.stat().st_size if path.exists() else 0
                path.unlink(missing_ok=True)
            deleted += 1
        named = {library.file for library in self.entries()}
        for path in self.folder.glob("*.so"):
            if path not in named and time.time() - _used(path) > ABANDONED:  # newer ones may get their manifest yet
                path.unlink(missing_ok=True)
        return deleted

    def predicted_seconds(self, operations: int) -> float:
        """How long a compilation takes on this machine, from the last ones.

        Args:
            operations: of the graph.
        """
        known = [each.about for each in self.entries()[-RECENT:]]
        rates = [about["seconds"] / (about["operations"] + OPERATIONS) for about in known if "seconds" in about]
        return (operations + OPERATIONS) * (median(rates) if rates else PRIOR)

    def _read(self, manifest: Path) -> Library | None:
        try:
            about = json.loads(manifest.read_bytes())
            return Library(manifest, self.folder / Path(about["file"]).name, about)
        except (OSError, ValueError, KeyError, TypeError):
            return None


def load_library(path: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    """Loads a library, without torch's compiler.

    Args:
        path: the library.

    Returns:
        a function of tensors, which are on the CPU.

    Raises:
        MissingTorchInterface: if torch lacks what passes tensors to it.
    """
    return call_without_gradients(extension_function(path))


def call_without_gradients(run: Callable[[list[Tensor]], list[Tensor]]) -> Callable[[list[Tensor]], list[Tensor]]:
    """A function that runs as under torch.no_grad(), at half its time.

    Args:
        run: the function.
    """

    def call(tensors: list[Tensor]) -> list[Tensor]:
        enabled = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        try:
            return run(tensors)
        finally:
            torch.set_grad_enabled(enabled)

    return call


def library_key(text: str, threads: int) -> str:
    """The key of a graph on this machine.

    Args:
        text: all of the graph.
        threads: how many threads the library uses.
    """
    return sha256("\n".join([text, str(threads), *_surroundings()]).encode()).hexdigest()


@cache
def _surroundings() -> tuple[str, ...]:
    """What a library depends on besides its graph: versions, the processor and ppgen's compiler."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor = platform.processor()
    compiler = Path(__file__).with_name("inductor.py").read_bytes()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return torch.__version__, python, platform.machine(), processor, sha256(compiler).hexdigest()


def _default() -> Path:
    if own := os.environ.get(VARIABLE):
        return Path(own) / "compiled"
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "ppgen" / "compiled"


def _check_owner(path: Path) -> None:
    if not hasattr(os, "getuid"):  # Windows has a folder of caches for each user
        return
    about = path.stat()
    if about.st_uid != os.getuid() or about.st_mode & stat.S_IWOTH:
        why = "all users may write to it" if about.st_uid == os.getuid() else "it is another user's"
        raise PermissionError(
            f"compiled code is not run from {path}, since {why}: set the environment variable {VARIABLE} to a folder "
            "of your own"
        )


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
