"""One measurement in a process of its own, printed as JSON; `steps.py` runs it.

    python steps_in_process.py seconds|memory PROGRAM PEER --device cpu [--threads N]

seconds: the first steps of a peer, which compile; the time includes imports that compiling makes, not the peer's own.
memory: peaks over 50 steps, in MiB (see `memory`).
"""

import argparse
import json
import resource
import time
from ctypes import CDLL
from pathlib import Path

import peers
import torch

FIRST = 5  # steps until every peer has compiled
STEPS = 50


def seconds(peer: peers.Peer) -> dict[str, float]:
    start = time.perf_counter()
    for _ in range(FIRST):
        peer.step()
    return {"seconds": time.perf_counter() - start}


def memory(peer: peers.Peer, device: str) -> dict[str, float]:
    """The peak memory of 50 steps after the steps that compile.

    On CPU `steps` is the largest resident set during the steps, minus the resident set before them: freed memory is
    returned first, and the kernel's high-water mark is reset (Linux). `process` is the largest resident set of the
    whole process, compiling included, minus that after the program was made. On CUDA both are allocated memory.
    """
    if device == "cuda":
        level = begin = torch.cuda.memory_allocated()
    else:
        level = begin = resident("VmRSS")
    for _ in range(FIRST):
        peer.step()
    if device == "cuda":
        top = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        level = torch.cuda.memory_allocated()
    else:
        CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        level = resident("VmRSS")
    for _ in range(STEPS):
        peer.step()
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
        top = max(top, peak)
    else:
        peak = resident("VmHWM")
        top = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"steps": (peak - level) / 2**20, "process": (top - begin) / 2**20}


def resident(entry: str) -> int:
    """An entry of this process's status, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[entry].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["seconds", "memory"])
    parser.add_argument("program")
    parser.add_argument("peer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    peer = peers.make(options.program, options.peer, options.device)
    result = seconds(peer) if options.what == "seconds" else memory(peer, options.device)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
