"""Data of four times the memory that a process may use are trained on; read whole, they do not fit.

The limit is on what the process has beyond a run on a small file of the same kind, which pays for libraries (pandas
45 MiB) and threads. What it leaves is for the copies of one chunk from which a scaler is computed (four of 8 MiB), for
the numbers of the rows, and for the row groups of a Parquet file that are held: 64 MiB, and here 8 MiB. So a larger
file takes more only by its row numbers. Measured, with 64 MiB of row groups, as peaks beyond a small file: 83 MiB for
64 MiB of Parquet, 95 MiB for 256 MiB, and 191 MiB for 1 GiB, that is 57 bytes for each of 2.1 million rows.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

MIB = 2**20
LIMIT = 64 * MIB  # of memory for the data
COLUMNS, SMALL, ROWS = 64, 32768, 4 * LIMIT // (64 * 8)

CHILD = """
import resource, sys, warnings
import numpy as np
import ppgen
from pathlib import Path
from ppgen.data import streamed_files

kind, small, large, limit = sys.argv[1:]
streamed_files.CACHE_BYTES = 8 * 2**20
vae = ppgen.models.VAE((64,), latent_dim=2, hidden=(16,))

def load(path, stream):
    if kind == "mapped":
        x = np.load(path, mmap_mode="r") if stream else np.load(path)
        return x, x[:1000]
    data = ppgen.data.load(path, stream=stream, validation=0.01, test=0.0)
    return data.train.x, data.validation.x

def train(path, stream):
    x, validation = load(path, stream)
    return ppgen.fit(vae.model, vae.guide, x, validation=validation, epochs=1, batch_size=2048, compile=False,
                     progress=False)

def data_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmData")) * 1024

for stream in (False, True):
    train(small, stream)
most = data_bytes() + int(limit)
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
try:
    with warnings.catch_warnings():
        if kind == "parquet":  # whose reader would end the process
            warnings.filterwarnings("error", ".*large.parquet: it has .* memory are free, .* stream=True")
        train(large, False)
except (MemoryError, RuntimeError, OSError, ValueError, UserWarning) as error:
    # of NumPy, of torch, of the reader
    assert any(words in str(error) for words in ("allocate", "memory", "malloc")), error
else:
    raise SystemExit("the data fit into memory: the limit shows nothing")
fit = train(large, True)
assert len(fit.history["loss"]) > 100
print(fit.history["loss"][0], fit.history["loss"][-1])
"""


def write(kind: str, path: Path, rows: int) -> Path:
    x = np.random.default_rng(0).normal(3, 2, (rows, COLUMNS))
    assert x.nbytes == rows * 8 * COLUMNS
    if kind == "parquet":
        pd.DataFrame(x, columns=[f"c{i}" for i in range(COLUMNS)]).to_parquet(path, row_group_size=4096)
        return path
    np.save(path.with_suffix(".npy"), x)
    return path.with_suffix(".npy")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("kind", ["mapped", "npy", "parquet"])
def test_memory_stays_below_a_quarter_of_the_data(kind, tmp_path):
    small, large = write(kind, tmp_path / "small.parquet", SMALL), write(kind, tmp_path / "large.parquet", ROWS)
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)}
    environment["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # mimalloc reserves 1 GiB of addresses, which the limit counts
    command = [sys.executable, "-W", "ignore", "-c", CHILD, kind, str(small), str(large), str(LIMIT)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    first, last = map(float, result.stdout.split())
    assert np.isfinite([first, last]).all()
