"""Data of four times the memory that a process may use are trained on; read whole, they do not fit."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

MIB = 2**20
LIMIT = 64 * MIB  # of memory for the data, beyond what the process has after a small run
ROWS, COLUMNS = 4 * LIMIT // (64 * 8), 64

CHILD = """
import resource, sys
import numpy as np
import torch
import ppgen
from pathlib import Path

kind, path = sys.argv[1:]
vae = ppgen.models.VAE((64,), latent_dim=2, hidden=(16,))

def load(stream):
    if kind == "mapped":
        x = np.load(path, mmap_mode="r") if stream else np.load(path)
        return x, x[:5000]
    data = ppgen.data.load(path, stream=stream, validation=0.01, test=0.0)
    return data.train.x, data.validation.x

def train(x, validation, epochs):
    return ppgen.fit(vae.model, vae.guide, x, validation=validation, epochs=epochs, batch_size=2048, compile=False,
                     progress=False)

def data_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmData")) * 1024

rng = np.random.default_rng(0)
train(rng.normal(size=(4096, 64)).astype(np.float32), rng.normal(size=(5000, 64)).astype(np.float32), 1)
limit = data_bytes() + LIMIT
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    train(*load(False), 1)
except (MemoryError, RuntimeError, OSError, ValueError) as error:  # of NumPy, of torch, of the reader
    assert any(words in str(error) for words in ("allocate", "memory", "malloc")), error
else:
    raise SystemExit("the data fit into memory: the limit shows nothing")
fit = train(*load(True), 1)
assert len(fit.history["loss"]) > 100
print(fit.history["loss"][0], fit.history["loss"][-1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("kind", ["mapped", "npy"])
def test_memory_stays_below_a_quarter_of_the_data(kind, tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "x.npy"
    x = rng.normal(3, 2, (ROWS, COLUMNS))
    assert x.nbytes == 4 * LIMIT
    np.save(path, x)
    del x
    script = textwrap.dedent(CHILD).replace("+ LIMIT", f"+ {LIMIT}")
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", script, kind, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    first, last = map(float, result.stdout.split())
    assert np.isfinite([first, last]).all()
