"""`CheckpointFiles`: the checkpoints of one run on disk, the newest ones and the best one."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ppgen.infer.checkpoint_file import CheckpointError, read, write
from ppgen.training.stored import check_stored
from ppgen.utils.files import link, remove_leftovers
from ppgen.utils.user_warnings import warn_user, warn_user_once

__all__ = ["FORMAT", "CheckpointFiles"]

FORMAT = "run 3"


Content = tuple[dict[str, Tensor], dict[str, Any]]


class CheckpointFiles(os.PathLike):
    """The files of one run's checkpoints, which stand for the path of the newest.

    ``run.safetensors`` is the newest and exists from the first writing until `remove`. ``run.safetensors.previous`` is
    the one before, ``run.safetensors.previous2`` that before it, and ``run.safetensors.best`` the one of the lowest
    validation loss. Files that have the same content share it on the disk, where the file system can.

    Args:
        path: the newest file. If it is a link, the files are beside what it points to.

    Attributes:
        keep: how many of the newest checkpoints stay on the disk.
    """

    keep = 2

    def __init__(self, path: str | os.PathLike) -> None:
        self.path, self.file = Path(path), Path(os.path.realpath(path))
        self.best = self.file.with_name(f"{self.file.name}.best")
        self._began = self._damaged = False
        self._content: Content | None = None

    def __fspath__(self) -> str:
        return str(self.path)

    @classmethod
    def at(cls, path: str | os.PathLike) -> "CheckpointFiles":
        """The files of a path, which may be such files already, with what was read from them.

        Args:
            path: the newest file.
        """
        return path if isinstance(path, cls) else cls(path)

    @property
    def previous(self) -> list[Path]:
        """The checkpoints before the newest, as far as they are kept."""
        names = [f"{self.file.name}.previous{number if number > 1 else ''}" for number in range(1, self.keep)]
        return [self.file.with_name(name) for name in names]

    def exist(self) -> bool:
        """Whether there is a checkpoint."""
        return self.file.is_file()

    def read(self) -> Content:
        """Reads the newest checkpoint that is whole, once; a warning names it if newer ones are damaged.

        Raises:
            FileNotFoundError: if there is none.
            CheckpointError: if all are damaged, or the file is from an earlier version, or not a checkpoint.
        """
        if self._content is None:
            self._content = self._newest()
        return self._content

    def forget(self) -> None:
        """Forgets what was read."""
        self._content = None

    def _newest(self) -> Content:
        try:
            return _read(self.path)
        except CheckpointError as error:
            whole: dict[Path, Content] = {}
            for other in self._others():
                with suppress(CheckpointError, FileNotFoundError):
                    whole[other] = _read(other)
            if not whole:
                raise
            self._damaged, other = True, max(whole, key=lambda path: _position(whole[path]))
            step = _position(whole[other])[1]
            warn_user_once(f"{error}; the run continues from the checkpoint before, {other}, of step {step}")
            return whole[other]

    def write(self, tensors: dict[str, Tensor], metadata: dict[str, Any], *, best: bool) -> None:
        """Writes the newest checkpoint; the file that was the newest becomes the previous one.

        Args:
            tensors: by name.
            metadata: anything that JSON can hold.
            best: whether it has the lowest validation loss.

        Raises:
            OSError: if it cannot be written; the files stay as they were.
        """
        if not self._began:
            self._remove_leftovers()
            if not self.exist():
                self._remove_others()  # of an earlier run, whose newest file was deleted
        self._began = True
        self.forget()
        write(self.file, tensors, metadata | {"format": FORMAT}, previous=() if self._damaged else self.previous)
        self._damaged = False
        if best:
            link(self.file, self.best)

    def remove(self) -> None:
        """Deletes all files, with a warning if they cannot be. What they hold must be on disk elsewhere."""
        if not self.exist():
            return
        try:
            self._remove_leftovers()
            self._remove_others()
            for path in self.file.parent.glob("*.rank*"):  # of ranks that trained other chains of this run
                if path.name.startswith(f"{self.file.name}.rank"):
                    path.unlink(missing_ok=True)
            self.file.unlink(missing_ok=True)
        except OSError as error:
            warn_user(f"{self.path}: this checkpoint of a complete run could not be deleted ({error}); delete it")

    def _others(self) -> list[Path]:
        """The files besides the newest, also those of a run that kept more of them."""
        start = f"{self.file.name}.previous"
        found = self.file.parent.iterdir() if self.file.parent.is_dir() else ()
        previous = [path for path in found if path.name == start or re.fullmatch(r"\d+", path.name.removeprefix(start))]
        return [*sorted(previous), self.best]

    def _remove_leftovers(self) -> None:
        for path in (self.file, *self._others(), *self.previous):
            remove_leftovers(path)

    def _remove_others(self) -> None:
        for path in self._others():
            path.unlink(missing_ok=True)


def _position(content: Content) -> tuple[int, int]:
    return content[1]["chain"], content[1]["monitor"]["steps"]


def _read(path: Path) -> Content:
    tensors, metadata = read(path)
    if metadata.get("format") == "run 2":  # one rank wrote it
        tensors = {re.sub("^random/", "random/0/", name): tensor for name, tensor in tensors.items()}
        metadata |= {"format": FORMAT, "ranks": 1}
    if (found := metadata.get("format")) != FORMAT:
        raise CheckpointError(
            f"{path}: not a checkpoint of a run, or of another version of ppgen (format {found!r}; this version reads "
            f"{FORMAT!r}); give another path, or delete the file to start a new run"
        )
    check_stored(path, "run", tensors, metadata)
    return tensors, metadata
