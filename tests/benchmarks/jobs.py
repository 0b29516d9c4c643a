"""Runs of a long table, in processes side by side, each one's record kept in a file, so that it can be gone on with."""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def gather(
    one: Callable[..., Record],
    wanted: Iterable[tuple],
    key: tuple[str, ...],
    *,
    jobs: int,
    out: Path | None,
    told: Callable[[Record], str],
) -> list[Record]:
    """The records of all runs that are wanted; those that `out` has are not made again.

    Args:
        one: makes a run's record of its arguments. A process compiles once for all its runs.
        wanted: the arguments of each run.
        key: the names in a record under which they stand.
        jobs: processes.
        out: a file of records, one a line in JSON.
        told: a line to print of a new record.
    """
    wanted = list(wanted)
    stored = out.read_text().splitlines() if out is not None and out.exists() else []
    held = {tuple(record[name] for name in key): record for record in map(json.loads, stored)}
    records = [held[run] for run in wanted if run in held]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for run in as_completed([pool.submit(one, *run) for run in wanted if run not in held]):
            records.append(record := run.result())
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
            print(told(record), flush=True)
    return records
