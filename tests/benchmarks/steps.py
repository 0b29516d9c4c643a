"""Training steps timed: ppgen's SVI beside stock Pyro, hand-written torch, NumPyro and zuko, in one run.

    python tests/benchmarks/steps.py [--only vae] [--blocks 20] [--threads 1] [--device cpu] [--no-compile-times]

Four tables: the time of a whole step, loss read back; the seconds until a step is compiled, with an empty and with a
full cache; the memory of steps; and what `fit` adds to bare steps. Programs are in `programs.py`, the peers' steps in
`peers.py`. A peer that is not installed is left out with a line that says so.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import peers
import torch
from peers import OURS, OURS_EAGER, Peer
from programs import PROGRAMS, Program
from steps_apart import FIRST

import ppgen
from ppgen.fitting import TrainingStep

BLOCK, TURN = 20, 0.1  # one peer's steps before the next one's turn: so many at least, for so many seconds
TOLERANCE = 0.1  # how far first losses may lie apart: noise of eight schools, averaged over a block, is about 0.01
FIT_BLOCK, FIT_STEPS = 50, 2000  # fit reads losses back a hundred times a run, whatever its length


def time_steps(key: str, program: Program, options: argparse.Namespace) -> None:
    """The table of step times of one program."""
    print(f"\nstep time: {program.title}")
    ready: dict[str, Peer] = {}
    for name in peers.names(key, options.device):
        try:
            ready[name] = peers.make(key, name, options.device)
        except ImportError as error:
            print(f"  left out: {name} ({error})")
    first = {name: warm_up(peer) for name, peer in ready.items()}
    losses = {name: loss for name, (loss, _) in first.items()}
    if max(losses.values()) > (1 + TOLERANCE) * min(losses.values()):
        raise SystemExit(f"{program.title}: the peers do not train the same program, first losses {losses}")
    times = medians(ready, options.blocks)
    print(f"  {'':34}{'ms a step':>10}{'x ours':>8}{'aim':>6}{'first loss':>13}{f'first {FIRST} steps, s':>18}")
    for name, peer in ready.items():
        aim = "-" if peer.aim is None else f"{peer.aim:g}"
        loss, seconds = first[name]
        print(f"  {name:34}{times[name]:#10.4g}{times[name] / times[OURS]:8.2f}{aim:>6}{loss:13.2f}{seconds:18.2f}")


def warm_up(peer: Peer) -> tuple[float, float]:
    """Mean loss of the first block of steps in nats a datum, and the seconds of the very first steps."""
    losses: list[float] = []
    seconds, start = 0.0, time.perf_counter()
    while len(losses) < BLOCK:
        loss = peer.step()
        losses += [loss] if isinstance(loss, float) else list(loss)
        if not seconds and len(losses) >= FIRST:
            seconds = time.perf_counter() - start
    return statistics.fmean(losses[:BLOCK]) / peer.rows, seconds


def medians(ready: dict[str, Peer], blocks: int) -> dict[str, float]:
    """Median milliseconds a step, the peers in turn, a block each, so that a slow moment meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(blocks):
        for name, peer in ready.items():
            taken, until = 0, time.perf_counter() + TURN
            while taken < BLOCK or time.perf_counter() < until:
                start = time.perf_counter()
                peer.step()
                times[name].append((time.perf_counter() - start) / peer.steps)
                taken += peer.steps
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def time_compiling(key: str, program: Program, options: argparse.Namespace) -> None:
    """Seconds until compiled, of ppgen and of torch.compile on the hand-written loss."""
    print(f"\ncompile: {program.title}, seconds of the first {FIRST} steps")
    print(f"  {'':34}{'cold':>8}{'warm':>8}")
    for name in (OURS, f"{peers.HAND[key].name}, compiled loss"):
        with TemporaryDirectory() as cache:
            runs = [apart("seconds", key, name, cache, options) for _ in range(2)]
        print(f"  {name:34}" + "".join(f"{run['seconds']:8.2f}" for run in runs if run))


def measure_memory(key: str, program: Program, options: argparse.Namespace) -> None:
    """Peaks of memory, compiled and eager; the compiled run finds its cache full, so that no compiler runs."""
    print(f"\nmemory: {program.title}, MiB over 50 steps")
    print(f"  {'':34}{'above the level before them':>28}{'process, start-up included':>28}")
    peaks = {}
    with TemporaryDirectory() as cache:
        apart("seconds", key, OURS, cache, options)
        for name in (OURS, OURS_EAGER):
            if peak := apart("memory", key, name, cache, options):
                peaks[name] = peak
                print(f"  {name:34}{peak['steps']:28.2f}{peak['process']:28.2f}")
    if len(peaks) == 2:
        ratios = (peaks[OURS][what] / max(peaks[OURS_EAGER][what], 1e-9) for what in ("steps", "process"))
        print(f"  {'compiled / eager':34}" + "".join(f"{ratio:28.2f}" for ratio in ratios))


def apart(what: str, key: str, name: str, cache: str, options: argparse.Namespace) -> dict[str, float] | None:
    """A measurement in a fresh process with its own inductor cache; None, and a line, where it fails."""
    command = [sys.executable, str(Path(__file__).with_name("steps_apart.py")), what, key, name]
    command += ["--device", options.device] + (["--threads", str(options.threads)] if options.threads else [])
    # larger allocations are mapped one by one and given back when freed, so that resident means alive
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        print(f"  left out: {name} ({(done.stderr.strip().splitlines() or ['no message'])[-1]})")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def time_fit(key: str, program: Program, options: argparse.Namespace) -> None:
    """What `fit` adds to bare steps: its loop, batches, history and progress.

    A callback takes a block of bare steps on ready batches after each block of fit's own, and fit's time is read
    between the callbacks: set-up and compiling cancel, and a slow moment meets both.
    """
    print(f"\nfit: {program.title}")
    bare = peers.ours(key, options.device, compile=True)
    torch.manual_seed(2)
    (x,) = program.batch
    data = (torch.rand(50 * program.rows, *x.shape[1:]) > 0.5).to(x)
    ready = list(data.split(program.rows))
    for batch in ready[:BLOCK]:
        bare.step(batch)
    times: dict[str, list[float]] = {"fit": [], "bare steps": []}
    left = 0.0

    def alternate(step: TrainingStep) -> None:
        nonlocal left
        if step.number % FIT_BLOCK:
            return
        came = time.perf_counter()
        for i in range(FIT_BLOCK):
            bare.step(ready[i % len(ready)])
        done = time.perf_counter()
        if step.number > FIT_BLOCK:  # the first block compiled
            times["fit"].append((came - left) / FIT_BLOCK)
            times["bare steps"].append((done - came) / FIT_BLOCK)
        left = time.perf_counter()

    ppgen.fit(
        *program.pyro(f"{key} fit"),
        data,
        loss=program.loss(),
        batch_size=program.rows,
        steps=FIT_STEPS,
        callbacks=[alternate],
        progress=False,
        compile=True,
    )
    ms = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    for name, value in ms.items():
        print(f"  {name:34}{value:#10.4g} ms a step")
    extras = [100 * (ours / bare - 1) for ours, bare in zip(*times.values(), strict=True)]  # neighbors in time
    low, middle, high = statistics.quantiles(extras)
    print(f"  {'overhead, median of pairs':34}{middle:10.1f} %, quartiles {low:.1f} and {high:.1f}")


def machine() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=PROGRAMS, help="one program")
    parser.add_argument("--blocks", type=int, default=20, help="turns of each peer, of 20 steps")
    parser.add_argument("--threads", type=int, help="torch's and NumPyro's threads")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--no-compile-times", action="store_true", help="leave out what needs fresh processes")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
        os.environ["NPROC"] = str(options.threads)  # the size of XLA's thread pool
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {machine()}", end="")
    print(f", {torch.cuda.get_device_name()}" if options.device == "cuda" else "")
    tables: list[Callable] = [time_steps] + ([] if options.no_compile_times else [time_compiling])
    rows = [(table, key) for table in tables for key in ([options.only] if options.only else PROGRAMS)]
    if options.only in (None, "vae"):
        rows += [] if options.no_compile_times else [(measure_memory, "vae")]
        rows += [(time_fit, "vae")]
    for table, key in rows:
        try:
            program = PROGRAMS[key](options.device)
        except ImportError as error:
            print(f"\nleft out: {key} ({error})")
            continue
        table(key, program, options)


if __name__ == "__main__":
    main()
