"""The commands of the command line, as functions of their parsed arguments.

Imports inside the functions keep ``ppgen --help`` quick: torch, ArviZ and Matplotlib are slow to import.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ppgen.runs.folder import read_config, unused_folder
from ppgen.runs.methods import METHODS
from ppgen.runs.parser import without_run_options
from ppgen.runs.printing import exit_status, print_run

__all__ = ["COMMANDS"]


def data(arguments: Namespace) -> None:
    """Prints what the columns of a table are, with reasons, and writes the schema if asked for."""
    from ppgen.data.table_files import read_table

    table = read_table(arguments.file, missing=arguments.missing, text=arguments.text)
    schema = table.infer(kinds=arguments.kinds, missing=arguments.missing)
    print(f"{table.name}: {len(table.frame)} rows{'' if table.csv is None else f'; {table.csv}'}\n")
    print(schema.describe())
    if arguments.out is not None:
        import yaml

        text = yaml.safe_dump(schema.as_dict(marginals=False), sort_keys=False, allow_unicode=True)
        arguments.out.write_text(text, encoding="utf-8")
        print(f"\nschema: {arguments.out.resolve()}")


def train(arguments: Namespace) -> int:
    """Trains a method on data, prints the results and returns the exit status."""
    from ppgen.infer.distributed import joined
    from ppgen.runs.training import train

    name = arguments.method
    options = arguments[name]
    method = METHODS[name]
    config = without_run_options(options.as_dict())
    length = config["fit"]
    if length["epochs"] is not None and length["steps"] == method.defaults.get("fit.steps"):
        length["steps"] = None  # the default of the method, which the user did not ask for
    folder = options.out
    if folder is None:
        sources = map(_short_name, method.run_class().sources(config))
        folder = unused_folder(Path("runs") / "-".join([name, *sources]))
    with joined() as ranks:
        run = train(config, out=ranks.gather(folder)[0], progress=options.progress)
        if ranks.first:
            print_run(run)
        return exit_status(run)


def resume(arguments: Namespace) -> int:
    """Resumes an interrupted run, prints the results and returns the exit status."""
    read_config(arguments.run, finished=False)  # a wrong folder is found before torch is imported
    from ppgen.infer.distributed import joined
    from ppgen.runs.training import resume

    with joined() as ranks:
        run = resume(arguments.run, progress=arguments.progress)
        if ranks.first:
            print_run(run)
        return exit_status(run)


def sample(arguments: Namespace) -> None:
    """Draws samples from a trained model; writes them and a figure."""
    if arguments.n < 1:
        raise ValueError(f"--n: expected at least 1, got {arguments.n}")
    run = _load(arguments.run)
    options = {key: arguments[key] for key in ("sampler", "steps", "guidance") if arguments[key] is not None}
    samples = run.sample(arguments.n, label=arguments.label, mean=arguments.mean, seed=arguments.seed, **options)
    import numpy as np

    from ppgen.report import figures

    out = arguments.out if arguments.out is not None else arguments.run / "samples.npy"
    np.save(out, samples)
    written = out if out.suffix == ".npy" else out.with_name(out.name + ".npy")
    figures.samples(samples, columns=getattr(run.kept, "columns", None)).savefig(figure := written.with_suffix(".png"))
    print(f"samples: {written.resolve()}\nfigure: {figure.resolve()}")


def diagnose(arguments: Namespace) -> None:
    """Prints whether the posterior of a run can be trusted."""
    print(_load(arguments.run).diagnose(draws=arguments.draws, seed=arguments.seed))


def report(arguments: Namespace) -> None:
    """Computes the results that a run lacks, and rewrites its report."""
    run = _load(arguments.run, changed=arguments.changed)
    from ppgen.runs.lock import FolderLock

    seconds = None if arguments.evaluation_seconds is None else float(arguments.evaluation_seconds)
    with FolderLock(arguments.run):
        *computed, page = run.finish(again=arguments.evaluate, seconds=seconds)
    for name in computed:
        print(f"computed: {(arguments.run / name).resolve()}")
    print(f"report: {(arguments.run / page).resolve()}")


def compare(arguments: Namespace) -> None:
    """Compares runs under all metrics; prints the table and writes a report."""
    from ppgen.runs.compare import compare

    page, table = compare(arguments.runs, n=arguments.n, seed=arguments.seed, out=arguments.out)
    print(table)
    print(f"report: {page.resolve()}")


def cache(arguments: Namespace) -> None:
    """Prints the size of the folder of compiled code, after it was reduced if that was asked for."""
    from ppgen.infer.compile.libraries import Libraries

    if arguments.trim is not None and arguments.trim < 0:
        raise ValueError(f"--trim: expected a size of at least 0 megabytes, got {arguments.trim:g}")
    libraries = Libraries()
    if arguments.clear or arguments.trim is not None:
        print(f"deleted: {libraries.trim(0 if arguments.clear else arguments.trim)} libraries")
    print(f"folder: {libraries.folder}\nlibraries: {len(libraries.entries())}, {libraries.size() / 2**20:.1f} MB")


COMMANDS: dict[str, Callable[[Namespace], int | None]] = {
    "data": data,
    "train": train,
    "resume": resume,
    "sample": sample,
    "diagnose": diagnose,
    "report": report,
    "cache": cache,
    "compare": compare,
}


def _load(folder: Path, *, changed: bool = False) -> Any:
    """Loads a run of any kind."""
    read_config(folder)  # a wrong folder is found before torch is imported
    from ppgen.runs.run import Run

    return Run.load(folder, changed=changed)


def _short_name(source: str) -> str:
    """The name of a data set or of a file, for the name of a folder."""
    return Path(source.split(":")[-1]).stem or "data"
