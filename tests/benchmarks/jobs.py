"""Runs the jobs of a long table in parallel processes and keeps their records in a file, so that it can be resumed."""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def gather(
    one: Callable[..., Record],
    runs: Iterable[tuple],
    key: tuple[str, ...],
    *,
    jobs: int,
    out: Path | None,
    describe: Callable[[Record], str],
) -> list[Record]:
    """Returns the records of all runs; runs whose records are in `out` are not repeated.

    Args:
        one: Makes a run and returns its record. A process compiles once for all its runs.
        runs: The arguments of each run.
        key: The names of these arguments in a record.
        jobs: The number of processes.
        out: A file with one record a line, in JSON.
        describe: Returns the line to print for a new record.
    """
    runs = list(runs)
    stored = out.read_text().splitlines() if out is not None and out.exists() else []
    finished = {tuple(record[name] for name in key): record for record in map(json.loads, stored)}
    records = [finished[run] for run in runs if run in finished]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for run in as_completed([pool.submit(one, *run) for run in runs if run not in finished]):
            records.append(record := run.result())
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
            print(describe(record), flush=True)
    return records
