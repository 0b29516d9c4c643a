"""torchrun, SLURM and Ray start the same training; a rank that dies ends the others, and the run resumes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ppgen

pytestmark = pytest.mark.slow

ROOT = Path(ppgen.__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


def torchrun(*command: str, cwd: Path) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    return subprocess.run(
        [*launcher, *command], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


def assert_same_weights(first: Path, second: Path) -> None:
    one, other = load_file(first), load_file(second)
    weights = [name for name in one if "weights" in name]
    assert weights
    assert all(torch.equal(one[name], other[name]) for name in weights)


@pytest.fixture(scope="module")
def by_torchrun(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("torchrun")
    done = torchrun(str(EXAMPLES / "many_processes.py"), "weights", cwd=path)
    assert done.returncode == 0, done.stderr
    assert "2 processes: loss" in done.stdout
    return path / "weights"


def test_a_step_of_slurm_trains_as_torchrun_does(by_torchrun, tmp_path):
    """With the environment variables that srun sets in each of its tasks."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid())}
    command = [sys.executable, str(EXAMPLES / "many_processes.py"), "weights"]
    tasks = [
        subprocess.Popen(command, cwd=tmp_path, env=environment(SLURM_PROCID=str(r), SLURM_LOCALID=str(r), **step))
        for r in range(2)
    ]
    assert [task.wait(120) for task in tasks] == [0, 0]
    assert_same_weights(by_torchrun, tmp_path / "weights")


def test_two_workers_of_ray_train_as_torchrun_does(by_torchrun, tmp_path):
    pytest.importorskip("ray.train", reason="needs ppgen[ray]", exc_type=ImportError)
    command = [sys.executable, str(EXAMPLES / "ray_train.py"), str(tmp_path)]
    done = subprocess.run(
        command, env=environment(HOME=str(tmp_path)), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert_same_weights(by_torchrun, tmp_path / "weights.safetensors")


def test_the_log_of_a_run_has_the_chains_of_all_ranks(tmp_path):
    options = {"data.size": 200, "fit.steps": 6, "fit.restarts": 3, "fit.distribute": "chains", "fit.compile": "false"}
    options |= {"draws": 0, "particles": 4, "out": "run"}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    done = torchrun("-m", "ppgen", "train", "ae", "moons", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(line["chain"], line["step"]) for line in lines] == [(c, s) for c in (0, 2, 1) for s in range(1, 7)]
    stored = load_file(tmp_path / "run/weights.safetensors")
    losses = [line["loss"] for line in lines if line["chain"] == 1]
    torch.testing.assert_close(torch.tensor(losses, dtype=torch.float64), stored["1/history/loss"])


def test_a_rank_that_dies_ends_the_others_and_the_run_resumes_bit_for_bit(tmp_path):
    script = str(Path(__file__).with_name("killed_run.py"))
    died = torchrun(script, "23", "checkpoint", "killed", cwd=tmp_path)
    assert died.returncode != 0
    assert (tmp_path / "checkpoint").exists()
    assert not (tmp_path / "killed").exists()
    for arguments in (("0", "checkpoint", "resumed"), ("0", "another", "uninterrupted")):
        done = torchrun(script, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert_same_weights(tmp_path / "resumed", tmp_path / "uninterrupted")
    assert not (tmp_path / "checkpoint").exists()


def test_the_command_line_trains_one_run_in_two_processes(tmp_path):
    quick = ["--fit.steps", "6", "--model.hidden", "[8]", "--draws", "0", "--particles", "4", "--data.size", "300"]
    quick += ["--fit.compile", "false", "--fit.batch_size", "32"]
    done = torchrun("-m", "ppgen", "train", "vae", "moons", *quick, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report:") == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 6
    again = torchrun("-m", "ppgen", "train", "vae", "moons", *quick, "--out", str(folder), cwd=tmp_path)
    assert again.returncode != 0
    assert "not empty" in again.stderr
