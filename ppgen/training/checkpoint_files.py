"""`CheckpointFiles`: the checkpoints of one run on disk, the newest, the one before it and the best one."""

import os
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ppgen.infer.checkpoint_file import CheckpointError, read, write
from ppgen.training.stored import check_stored
from ppgen.utils.files import link, remove_leftovers
from ppgen.utils.user_warnings import warn_user, warn_user_once

__all__ = ["FORMAT", "CheckpointFiles"]

FORMAT = "run 3"


class CheckpointFiles:
    """The files of one run's checkpoints.

    ``run.safetensors`` is the newest and exists from the first writing until `remove`. ``run.safetensors.previous`` is
    the one before, and ``run.safetensors.best`` the one of the lowest validation loss. Files that have the same content
    share it on the disk, where the file system can.

    Args:
        path: the newest file. If it is a link, the files are beside what it points to.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path, self.file = Path(path), Path(os.path.realpath(path))
        self.previous, self.best = (self.file.with_name(f"{self.file.name}.{kind}") for kind in ("previous", "best"))
        self._began = self._damaged = False

    def exist(self) -> bool:
        """Whether there is a checkpoint."""
        return self.file.is_file()

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Reads the newest checkpoint that is whole; a warning names each newer one that is damaged.

        Raises:
            FileNotFoundError: if there is none.
            CheckpointError: if all are damaged, or the file is from an earlier version, or not a checkpoint.
        """
        try:
            return _read(self.path)
        except CheckpointError as error:
            for other in (self.previous, self.best):
                try:
                    found = _read(other)
                except (CheckpointError, FileNotFoundError):
                    continue
                self._damaged, step = True, found[1]["monitor"]["steps"]
                warn_user_once(f"{error}; the run continues from the checkpoint before, {other}, of step {step}")
                return found
            raise

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
        write(self.file, tensors, metadata | {"format": FORMAT}, previous=None if self._damaged else self.previous)
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

    def _remove_leftovers(self) -> None:
        for path in (self.file, self.previous, self.best):
            remove_leftovers(path)

    def _remove_others(self) -> None:
        self.previous.unlink(missing_ok=True)
        self.best.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
