"""The CPU time of imports and of the command line's help, next to ``import pyro``.

    python tests/benchmarks/imports.py [--repeats 7]

Each statement runs in fresh processes, alternating with the others, so that a busy machine affects all of them alike.
The table has the median of the processes' user and system time, less that of an empty process, and its ratio to
``import pyro``. The first round is not counted: it fills the caches of the file system and of bytecode.
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys

HELP = "import sys; from ppgen.runs.cli import main; sys.exit(main({words!r}))"
REFERENCE = "import pyro"
STATEMENTS = {
    REFERENCE: REFERENCE,
    "import ppgen": "import ppgen",
    "import ppgen; fit, SVI, recipes, models.VAE": (
        "import ppgen; ppgen.fit, ppgen.SVI, ppgen.recipes, ppgen.models.VAE"
    ),
    "ppgen --help": HELP.format(words=["--help"]),
    "ppgen train vae --help": HELP.format(words=["train", "vae", "--help"]),
}
EMPTY = "pass"


def cpu_seconds(code: str) -> float:
    """The user and system time of a fresh process that runs a statement, its children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def main() -> None:
    """Measures all statements in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7, help="processes for each statement")
    repeats = parser.parse_args().repeats
    codes = {"": EMPTY, **STATEMENTS}
    seconds: dict[str, list[float]] = {name: [] for name in codes}
    for repeat in range(repeats + 1):
        for name, code in codes.items():
            measured = cpu_seconds(code)
            if repeat:
                seconds[name].append(measured)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    empty = medians.pop("")
    print(f"Python {platform.python_version()}, median of {repeats} processes; an empty process takes {empty:.2f} s\n")
    print(f"| {'statement':45} | CPU s | / import pyro |")
    print(f"|{'-' * 47}|------:|--------------:|")
    for name, value in medians.items():
        print(f"| {name:45} | {value - empty:5.2f} | {(value - empty) / (medians[REFERENCE] - empty):13.2f} |")


if __name__ == "__main__":
    main()
