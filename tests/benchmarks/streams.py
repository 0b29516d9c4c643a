"""Rows a second that `fit` reads from each kind of data, beside the same data in memory.

    python tests/benchmarks/streams.py

The program is a VAE 64-16-2 in eager steps of 500 rows, so that reading counts. Medians of three epochs in turn.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torch.utils.data import Dataset

import ppgen

ROWS, COLUMNS, BATCH = 20_000, 64, 500


class Items(Dataset):
    """Items of an array, one by one."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


def sources(folder: Path):
    x = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "wide.npy", x.astype(np.float64))
    pd.DataFrame(x).rename(columns=str).to_parquet(folder / "x.parquet", row_group_size=5000)
    (folder / "images").mkdir()
    for i, row in enumerate(np.random.default_rng(0).integers(0, 256, (2000, 8, 8), np.uint8)):
        Image.fromarray(row).save(folder / "images" / f"{i:05}.png")
    options = {"stream": True, "scale": "none", "validation": 0.0, "test": 0.0}
    images = ppgen.data.load(folder / "images", **options).train.x
    return {
        "memory": x,
        "mapped .npy": np.load(folder / "x.npy", mmap_mode="r"),
        "mapped .npy, float64": np.load(folder / "wide.npy", mmap_mode="r"),
        "Parquet": ppgen.data.load(folder / "x.parquet", **options).train.x,
        "map-style, no workers": Items(x),
        "map-style, 2 workers": ppgen.data.Stream(Items(x), workers=2),
        "folder of images": images.map(flat),
        "folder of images, 2 workers": ppgen.data.Stream(images.map(flat), workers=2),
    }


def flat(x, rows):
    return x.reshape(len(x), -1)


def rows_per_second(data) -> float:
    vae = ppgen.models.VAE((COLUMNS,), latent_dim=2, hidden=(16,))
    rows = len(data.data if isinstance(data, ppgen.data.Stream) else data)
    times = []  # at the end of each step

    def note(step):
        times.append(time.perf_counter())

    steps = 2 * (rows // BATCH)
    options = {"batch_size": BATCH, "compile": False, "progress": False}
    ppgen.fit(vae.model, vae.guide, data, steps=steps, callbacks=[note], **options)
    half = len(times) // 2  # the first epoch starts workers and fills caches
    return (len(times) - half) * BATCH / (times[-1] - times[half - 1])


def main():
    import warnings

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        kinds = sources(Path(folder))
        found = {name: [] for name in kinds}
        for _ in range(3):
            for name, data in kinds.items():
                found[name].append(rows_per_second(data))
    memory = np.median(found["memory"])
    print("| data | rows a second | of memory |\n|---|---|---|")
    for name, values in found.items():
        print(f"| {name} | {np.median(values):,.0f} | {np.median(values) / memory:.2f} |")


if __name__ == "__main__":
    main()
