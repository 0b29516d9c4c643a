"""The time of training steps: ppgen's SVI beside stock Pyro, hand-written torch, NumPyro and zuko, in one run.

    python tests/benchmarks/steps.py [--only vae] [--blocks 20] [--threads 1] [--device cpu] [--no-compile-times]

The tables are the time of a whole step, with its loss read back; the seconds until a step is compiled, with an empty
and with a full cache; the memory of steps; what `fit` adds to bare steps; and what it costs to look for steps that are
not finite. The programs are in `programs.py`, the peers' steps in `peers.py`. A peer that is not installed is left out,
and a line says so.
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
from peers import PPGEN, PPGEN_EAGER, Peer
from programs import PROGRAMS, Program
from steps_in_process import FIRST

import ppgen
from ppgen.fitting import TrainingStep

GUARD_TURN = 0.0005  # seconds of a turn of steps with guards, or without
BLOCK, TURN = 20, 0.1  # the smallest number of steps in a peer's turn, and its shortest time in seconds
TOLERANCE = 0.1  # between first losses; the noise of eight schools, averaged over a block, is about 0.01
FIT_BLOCK, FIT_STEPS = 50, 2000  # fit reads losses back a hundred times in a run of any length
WIDTH = 48  # of the column of names


def time_steps(key: str, program: Program, options: argparse.Namespace) -> None:
    """Prints the step times of one program."""
    print(f"\nstep time: {program.title}")
    installed: dict[str, Peer] = {}
    for name in peers.names(key, options.device):
        try:
            installed[name] = peers.make(key, name, options.device)
        except ImportError as error:
            print(f"  left out: {name} ({error})")
    first = {name: warm_up(peer) for name, peer in installed.items()}
    losses = {name: loss for name, (loss, _) in first.items()}
    if max(losses.values()) > (1 + TOLERANCE) * min(losses.values()):
        raise SystemExit(f"{program.title}: the peers do not train the same program, first losses {losses}")
    times = medians(installed, options.blocks)
    print(f"  {'':{WIDTH}}{'ms a step':>10}{'peer / ppgen':>14}{'aim':>6}{'first loss':>13}{'first steps, s':>16}")
    for name, peer in installed.items():
        aim = "-" if peer.aim is None else f"{peer.aim:g}"
        loss, seconds = first[name]
        ratio = times[name] / times[PPGEN]
        print(f"  {name:{WIDTH}}{times[name]:#10.4g}{ratio:14.2f}{aim:>6}{loss:13.2f}{seconds:16.2f}")


def warm_up(peer: Peer) -> tuple[float, float]:
    """Returns the mean loss of the first block of steps, in nats per datum, and the seconds of the first steps."""
    losses: list[float] = []
    seconds, start = 0.0, time.perf_counter()
    while len(losses) < BLOCK:
        loss = peer.step()
        losses += [loss] if isinstance(loss, float) else list(loss)
        if not seconds and len(losses) >= FIRST:
            seconds = time.perf_counter() - start
    return statistics.fmean(losses[:BLOCK]) / peer.rows, seconds


def medians(installed: dict[str, Peer], blocks: int) -> dict[str, float]:
    """Median milliseconds a step; peers take turns of one block, so that a slow moment affects all of them."""
    times: dict[str, list[float]] = {name: [] for name in installed}
    for _ in range(blocks):
        for name, peer in installed.items():
            steps, until = 0, time.perf_counter() + TURN
            while steps < BLOCK or time.perf_counter() < until:
                start = time.perf_counter()
                peer.step()
                times[name].append((time.perf_counter() - start) / peer.steps)
                steps += peer.steps
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def time_compiling(key: str, program: Program, options: argparse.Namespace) -> None:
    """Prints the seconds of the first steps, of ppgen and of torch.compile on the hand-written loss."""
    print(f"\ncompile: {program.title}, seconds of the first {FIRST} steps")
    print(f"  {'':{WIDTH}}{'cold':>8}{'warm':>8}")
    for name in (PPGEN, f"{peers.HAND_WRITTEN[key].name}, loss compiled"):
        with TemporaryDirectory() as cache:
            runs = [in_process("seconds", key, name, cache, options) for _ in range(2)]
        print(f"  {name:{WIDTH}}" + "".join(f"{run['seconds']:8.2f}" for run in runs if run))


def measure_memory(key: str, program: Program, options: argparse.Namespace) -> None:
    """Prints peaks of memory, compiled and eager; the compiled run has a full cache, so no compiler runs."""
    print(f"\nmemory: {program.title}, MiB over 50 steps")
    print(f"  {'':{WIDTH}}{'above the level before':>28}{'process, with start-up':>28}")
    peaks = {}
    with TemporaryDirectory() as cache:
        in_process("seconds", key, PPGEN, cache, options)
        for name in (PPGEN, PPGEN_EAGER):
            if peak := in_process("memory", key, name, cache, options):
                peaks[name] = peak
                print(f"  {name:{WIDTH}}{peak['steps']:28.2f}{peak['process']:28.2f}")
    if len(peaks) == 2:
        ratios = (peaks[PPGEN][what] / max(peaks[PPGEN_EAGER][what], 1e-9) for what in ("steps", "process"))
        print(f"  {'compiled / eager':{WIDTH}}" + "".join(f"{ratio:28.2f}" for ratio in ratios))


def in_process(what: str, key: str, name: str, cache: str, options: argparse.Namespace) -> dict[str, float] | None:
    """Measures in a fresh process with its own inductor cache; if this fails, prints a line and returns None."""
    command = [sys.executable, str(Path(__file__).with_name("steps_in_process.py")), what, key, name]
    command += ["--device", options.device] + (["--threads", str(options.threads)] if options.threads else [])
    # larger allocations are mapped one by one and returned when freed, so that resident memory is memory in use
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        print(f"  left out: {name} ({(done.stderr.strip().splitlines() or ['no message'])[-1]})")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def time_fit(key: str, program: Program, options: argparse.Namespace) -> None:
    """Prints what `fit` adds to bare steps: its loop, batches, history and progress.

    A callback takes a block of bare steps on prepared batches after each block of fit's steps. fit's time is that
    between the callbacks, so set-up and compiling do not count, and a slow moment affects both.
    """
    print(f"\nfit: {program.title}")
    bare = peers.ppgen_svi(key, options.device, compile=True)
    torch.manual_seed(2)
    (x,) = program.batch
    data = (torch.rand(50 * program.rows, *x.shape[1:]) > 0.5).to(x)
    batches = list(data.split(program.rows))
    for batch in batches[:BLOCK]:
        bare.step(batch)
    times: dict[str, list[float]] = {"fit": [], "bare steps": []}
    block_start = 0.0

    def alternate(step: TrainingStep) -> None:
        nonlocal block_start
        if step.number % FIT_BLOCK:
            return
        block_end = time.perf_counter()
        for i in range(FIT_BLOCK):
            bare.step(batches[i % len(batches)])
        bare_end = time.perf_counter()
        if step.number > FIT_BLOCK:  # the first block compiled
            times["fit"].append((block_end - block_start) / FIT_BLOCK)
            times["bare steps"].append((bare_end - block_end) / FIT_BLOCK)
        block_start = time.perf_counter()

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
        print(f"  {name:{WIDTH}}{value:#10.4g} ms a step")
    pairs = zip(times["fit"], times["bare steps"], strict=True)  # neighbors in time
    low, middle, high = statistics.quantiles([100 * (fit / bare_steps - 1) for fit, bare_steps in pairs])
    print(f"  {'overhead, median of pairs':{WIDTH}}{middle:10.1f} %, quartiles {low:.1f} and {high:.1f}")


def time_guards(key: str, program: Program, options: argparse.Namespace) -> None:
    """Prints what looking at the loss and the gradients before each step costs; turns with and without it alternate.

    Other work on the machine only adds time, so that quick turns are compared: a twentieth are quicker than the times.
    """
    print(f"\nguards: {program.title}")
    print(f"  {'':{WIDTH}}{'off, ms':>10}{'on, ms':>10}{'on / off':>10}{'of medians':>12}")
    for compile in (True, False):
        off, on = (peers.ppgen_svi(key, options.device, compile=compile, skip_nonfinite=s) for s in (False, True))
        for svi in (off, on):
            seconds_of(svi, program, BLOCK)
        block = max(1, int(GUARD_TURN / seconds_of(off, program, BLOCK)))
        times: dict[int, list[float]] = {id(off): [], id(on): []}
        for turn in range(options.blocks * BLOCK):
            for svi in (off, on) if turn % 2 else (on, off):
                times[id(svi)].append(seconds_of(svi, program, block))
        before, after = (1e3 * statistics.quantiles(values, n=20)[0] for values in times.values())
        medians = [statistics.median(values) for values in times.values()]
        name = PPGEN if compile else PPGEN_EAGER
        ratios = f"{after / before:10.3f}{medians[1] / medians[0]:12.3f}"
        print(f"  {name:{WIDTH}}{before:#10.4g}{after:#10.4g}{ratios}")


def seconds_of(svi: ppgen.SVI, program: Program, steps: int) -> float:
    """The mean time of some steps."""
    start = time.perf_counter()
    for _ in range(steps):
        svi.step(*program.batch)
    return (time.perf_counter() - start) / steps


def machine() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=PROGRAMS, help="the only program to measure")
    parser.add_argument("--blocks", type=int, default=20, help="the number of turns of each peer, of 20 steps")
    parser.add_argument("--threads", type=int, help="the number of torch's and NumPyro's threads")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--no-compile-times", action="store_true", help="leave out compile times and memory")
    parser.add_argument("--guards", action="store_true", help="only the table of guards")
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
        rows += [(time_fit, "vae"), (time_guards, "vae")]
    if options.only in (None, "schools"):
        rows += [(time_guards, "schools")]
    if options.guards:
        rows = [row for row in rows if row[0] is time_guards]
    for table, key in rows:
        try:
            program = PROGRAMS[key](options.device)
        except ImportError as error:
            print(f"\nleft out: {key} ({error})")
            continue
        table(key, program, options)


if __name__ == "__main__":
    main()
