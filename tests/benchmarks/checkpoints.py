"""Checkpoints of the VAE 784-400-20: bytes and seconds beside `torch.save` of the same state, and their share of a run.

    python tests/benchmarks/checkpoints.py

All numbers are of one process, and the share is the time spent in writing over the time of the same run, so that the
load of the machine is in both.
"""

import io
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

import ppgen
from ppgen.infer.checkpoint_file import read
from ppgen.training.checkpoint import Checkpoint
from ppgen.training.checkpoint_files import CheckpointFiles

ROWS, BATCH, STEPS, REPEATS = 12800, 128, 600, 9


class Timer:
    """Counts the time in a method.

    Args:
        owner: the class.
        name: the method.
    """

    def __init__(self, owner: type, name: str) -> None:
        self.seconds: list[float] = []
        original = getattr(owner, name)

        def timed(*args: object, **kwargs: object) -> object:
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds.append(time.perf_counter() - began)

        setattr(owner, name, timed)


def saved_by_torch(tensors: dict[str, Tensor], path: Path) -> float:
    """The seconds that torch.save takes, synced as a checkpoint is."""
    began = time.perf_counter()
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    with path.open("wb") as file:
        file.write(buffer.getvalue())
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - began


def main() -> None:
    torch.set_num_threads(1)
    x = torch.rand(ROWS, 784, generator=torch.Generator().manual_seed(0)).round()
    timer = Timer(Checkpoint, "write")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run"
        rows = []
        for label, options in {
            "default": {},
            "validation once an epoch": {"validation": 0.1},
            "checkpoint_seconds=2": {"checkpoint_seconds": 2.0},
        }.items():
            vae = ppgen.models.VAE((784,), latent_dim=20, hidden=(400,), likelihood="bernoulli")
            timer.seconds.clear()
            began = time.perf_counter()
            fit = ppgen.fit(
                vae.model,
                vae.guide,
                x,
                steps=STEPS,
                batch_size=BATCH,
                compile=False,
                progress=False,
                checkpoint=path,
                **options,
            )
            seconds = time.perf_counter() - began
            rows.append((label, len(timer.seconds), sum(timer.seconds), seconds))
            if label != "checkpoint_seconds=2":
                fit.save(Path(name) / "fit")
        files = CheckpointFiles(path)
        tensors, metadata = read(path)
        ours, torchs = [], []
        for _ in range(REPEATS):
            began = time.perf_counter()
            files.write(tensors, metadata, best=False)
            ours.append(time.perf_counter() - began)
            torchs.append(saved_by_torch(tensors, Path(name) / "torch"))
        print("| what is written | bytes | seconds (median of 9) |\n|---|---|---|")
        print(f"| a checkpoint | {path.stat().st_size:,} | {statistics.median(ours):.3f} |")
        print(f"| torch.save of its tensors, synced | {(Path(name) / 'torch').stat().st_size:,} "
              f"| {statistics.median(torchs):.3f} |")  # fmt: skip
        print(f"\n| run of {STEPS} steps | checkpoints | seconds of writing | of | share |\n|---|---|---|---|---|")
        for label, count, writing, seconds in rows:
            print(f"| {label} | {count} | {writing:.2f} | {seconds:.1f} | {100 * writing / seconds:.2f} % |")
        print(f"\nevery 60 s: {100 * statistics.median(ours) / 60:.2f} %")


if __name__ == "__main__":
    main()
