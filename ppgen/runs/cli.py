"""The command line: ``ppgen train SYSTEM SOURCE``, then ``ppgen sample RUN``, ``report RUN``, ``compare RUN RUN ...``.

A run that was stopped goes on by ``ppgen resume RUN``; ``ppgen diagnose RUN`` says whether to trust its posterior.

Options come from the signatures of what they reach: ``--model.latent_dim`` is an argument of the model's class,
``--loss.beta`` of the recipe, ``--data.size`` of `ppgen.data.load`, ``--fit.epochs`` of `ppgen.fit`.
"""

import inspect
import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from torch import nn

from ppgen.data import load
from ppgen.fitting import fit
from ppgen.models import ENERGIES
from ppgen.runs.methods import NOT_ASKED_OF_RECIPES, SYSTEMS, System

__all__ = ["main"]

EPOCHS = 200  # of a run that names neither steps nor epochs
# arguments of fit that a command line does not give
NOT_ASKED: set[str | int] = {
    *("model", "guide", "data", "loss", "optim", "callbacks", "validation", "progress", "checkpoint"),
}
# arguments of models that come from the data, or are networks
NOT_ASKED_OF_MODELS: set[str | int] = {
    *("event_shape", "levels", "num_classes", "context_dim", "features", "classifier", "critic"),
    *("model", "amortized", "encoder", "init_loc_fn", "base"),
}
FAILURES = (OSError, ValueError, LookupError, TypeError, FloatingPointError)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, or 1 with the reason on standard error."""
    words = sys.argv[1:] if arguments is None else arguments
    given = _parser(words).parse_args(words)
    command = given.command
    with warnings.catch_warnings():  # which puts showwarning back
        warnings.showwarning = lambda message, *_, **__: print(f"ppgen: {message}", file=sys.stderr)
        try:
            COMMANDS[command](given[command])
        except FAILURES as error:
            if os.environ.get("PPGEN_TRACEBACK"):
                raise
            print(f"ppgen: {error}", file=sys.stderr)
            return 1
    return 0


def _parser(words: list[str]) -> ArgumentParser:
    """The parser of these words; of all systems, only a named one's options are worked out, which takes a moment."""
    parser = ArgumentParser(prog="ppgen", description="Generative models as probabilistic programs.")
    parser.add_argument("--version", action="version", version=f"ppgen {version('ppgen')}")
    commands = parser.add_subcommands(dest="command")

    train = ArgumentParser(description="Train a system on data; leaves a run folder with its report.")
    commands.add_subcommand("train", train, help="train a system on data")
    systems = train.add_subcommands(dest="system")
    for name, system in SYSTEMS.items():
        options = _train_parser(name, system) if name in words else ArgumentParser()
        systems.add_subcommand(name, options, help=system.about)

    resume = ArgumentParser(description="Go on with a run that was stopped, from its checkpoint to its report.")
    resume.add_argument("run", type=Path, help="a run folder")
    resume.add_argument("--progress", type=bool, default=True, help="a progress bar, on a terminal")
    commands.add_subcommand("resume", resume, help="go on with a run that was stopped")

    sample = ArgumentParser(description="Draw from a trained model; writes the draws, and a picture of them.")
    sample.add_argument("run", type=Path, help="a run folder")
    sample.add_argument("--n", type=int, default=64, help="how many")
    sample.add_argument("--label", type=int, default=None, help="the label to draw, for a conditional model")
    sample.add_argument("--mean", type=bool, default=False, help="means of p(x | z) in place of draws")
    sample.add_argument("--sampler", default=None, help="of a diffusion: ddim, heun, dpm++2m, ancestral, ...")
    sample.add_argument("--steps", type=int, default=None, help="of its sampler")
    sample.add_argument(
        "--guidance", type=float, default=None, help="how much its draws are to heed the label; 1: as is"
    )
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--out", type=Path, default=None, help="an .npy file; RUN/samples.npy if left out")
    commands.add_subcommand("sample", sample, help="draw from a trained model")
    diagnose = ArgumentParser(description="Says whether a run's posterior can be trusted, and why, or why not.")
    diagnose.add_argument("run", type=Path, help="a run folder")
    diagnose.add_argument("--draws", type=int, default=500, help="of the guide")
    diagnose.add_argument("--seed", type=int, default=0)
    commands.add_subcommand("diagnose", diagnose, help="whether its posterior can be trusted")

    report = ArgumentParser(description="Write a run's report anew.")
    report.add_argument("run", type=Path, help="a run folder")
    commands.add_subcommand("report", report, help="write a run's report anew")

    compare = ArgumentParser(description="Every run under every metric, whatever it was trained on.")
    compare.add_argument("runs", type=Path, nargs="+", help="run folders, of the same data")
    compare.add_argument("--n", type=int, default=1000, help="draws of each model")
    compare.add_argument("--seed", type=int, default=0)
    compare.add_argument("--out", type=Path, default=Path("compare.html"), help="the page")
    commands.add_subcommand("compare", compare, help="every run under every metric")
    return parser


def _train_parser(name: str, system: System) -> ArgumentParser:
    parser = ArgumentParser(description=f"Train {system.about}.")
    parser.add_argument("--config", action=ActionConfigFile, help="a config.yaml; options after it override it")
    what = "digits, fashion, moons, ..., openml:NAME, a file or a folder of images"
    if system.of_energy:
        parser.add_argument("--energy", required=True, help=f"the energy: {', '.join(ENERGIES)}")
    elif system.of_domains:
        parser.add_argument("--source", required=True, help=f"data with labels: {what}")
        parser.add_argument("--target", required=True, help="data of the same kind, whose labels are not trained on")
        for domain in ("source", "target"):
            what = f"data of the {domain} to judge by, in place of a share --data.test of it"
            parser.add_argument(f"--{domain}_test", default=None, help=what)
    else:
        parser.add_argument("source", help=what)
    parser.add_argument("--system", default=name, help="as the configuration file names it")
    parser.add_argument("--out", type=Path, default=None, help="the run folder; runs/SYSTEM-SOURCE if left out")
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's learning rate, of the programs")
    parser.add_argument("--betas", type=tuple[float, float], default=(0.9, 0.999), help="Adam's memory of gradients")
    if not (system.of_domains or system.of_energy):
        parser.add_argument("--conditional", type=bool, default=False, help="condition the model on the labels")
    if not system.of_energy:
        parser.add_argument("--draws", type=int, default=200, help="draws a chain of the stored posterior; 0 for none")
    parser.add_argument("--particles", type=int, default=500, help="importance samples of the log evidence")
    parser.add_argument("--progress", type=bool, default=True, help="a progress bar, on a terminal")
    if not system.of_energy:
        parser.add_function_arguments(load, "data", skip={"source"})
    parser.add_class_arguments(system.model, "model", skip=NOT_ASKED_OF_MODELS | set(by_name := _by_name(system.model)))
    for option, default in by_name.items():
        parser.add_argument(
            f"--model.{option}", type=str | None, default=default, help=f"the name of one, see {system.model.__name__}"
        )
    parser.add_function_arguments(system.recipe, "loss", skip=NOT_ASKED_OF_RECIPES)
    parser.add_function_arguments(fit, "fit", skip=NOT_ASKED)
    parser.set_defaults({"fit.batch_size": 128, **system.defaults})
    return parser


def _by_name(model: type) -> dict[str, str | None]:
    """The arguments that take modules or names of such, of which a command line gives names, and their defaults."""

    def named(annotation: Any) -> bool:
        parts = get_args(annotation)
        return str in parts and any(isinstance(part, type) and issubclass(part, nn.Module) for part in parts)

    return {k: p.default for k, p in inspect.signature(model).parameters.items() if named(p.annotation)}


def _train(given: Namespace) -> None:
    from ppgen.runs.run import train  # late: ArviZ and matplotlib are slow to import

    name = given.system
    system = given[name]
    if system.system != name:
        raise ValueError(f"the configuration is of a run of {system.system!r}: use `ppgen train {system.system}`")
    config = {"loss": {}, **_plain(system.as_dict())}  # a recipe may have no options
    for left_out in ("config", "out", "progress"):
        config.pop(left_out, None)
    length = config["fit"]
    if length["epochs"] is not None and length["steps"] == SYSTEMS[name].defaults.get("fit.steps"):
        length["steps"] = None  # the system's own number, which nobody asked for
    if length["steps"] is None and length["epochs"] is None:
        length["epochs"] = EPOCHS
    kind = SYSTEMS[name]
    sources = [system.energy] if kind.of_energy else [system.source, *([system.target] if kind.of_domains else [])]
    folder = system.out if system.out is not None else _free(Path("runs") / "-".join([name, *map(_stem, sources)]))
    _tell(train(config, out=folder, progress=system.progress, kind=_kind(name)))


def _resume(given: Namespace) -> None:
    from ppgen.runs.run import read_config, resume

    system = read_config(given.run, holds=())["system"]
    _tell(resume(given.run, progress=given.progress, kind=_kind(system)))


def _tell(run: Any) -> None:
    """What came of a run, and where its report is."""
    from ppgen.runs.run import CHECKPOINT

    chain = run.fit.chains[run.fit.best]
    print(f"{chain.stop_reason} in {chain.seconds:.0f} s; {chain.compiled or 'compiling would not have paid'}")
    if (run.folder / CHECKPOINT).exists():
        print(f"go on with it: ppgen resume {run.folder}")
    for finding in run.training_warnings():
        print(finding)
    for what, number in run.numbers.items():
        print(f"{what}: {_shown(number)}")
    print(f"report: {(run.folder / 'report.html').resolve()}")


def _shown(number: Any) -> str:
    """A number, text, or a pair (value, standard error)."""
    if isinstance(number, tuple):
        return f"{number[0]:.4g} +- {number[1]:.2g}"
    return f"{number:.4g}" if isinstance(number, float) else str(number)


def _kind(name: str) -> Any:
    """What the runs of a system are."""
    from ppgen.runs.adaptation import Adaptation
    from ppgen.runs.energy import EnergyRun
    from ppgen.runs.run import Run

    system = SYSTEMS[name]
    return EnergyRun if system.of_energy else Adaptation if system.of_domains else Run


def _open(folder: Path) -> Any:
    """A run folder of whatever system."""
    from ppgen.runs.run import Run, read_config

    config = read_config(folder)
    return (_kind(config["system"]) if config.get("system") in SYSTEMS else Run).load(folder)


def _sample(given: Namespace) -> None:
    from ppgen.report.figures import samples

    if given.n < 1:
        raise ValueError(f"--n: expected at least 1, got {given.n}")
    run = _open(given.run)
    how = {key: given[key] for key in ("sampler", "steps", "guidance") if given[key] is not None}
    drawn = run.sample(given.n, label=given.label, mean=given.mean, seed=given.seed, **how)
    out = given.out if given.out is not None else given.run / "samples.npy"
    np.save(out, drawn)
    written = out if out.suffix == ".npy" else out.with_name(out.name + ".npy")
    samples(drawn, columns=run.data.columns).savefig(picture := written.with_suffix(".png"))
    print(f"samples: {written.resolve()}\npicture: {picture.resolve()}")


def _diagnose(given: Namespace) -> None:
    print(_open(given.run).diagnose(draws=given.draws, seed=given.seed))


def _report(given: Namespace) -> None:
    print(f"report: {_open(given.run).report().resolve()}")


def _compare(given: Namespace) -> None:
    from ppgen.runs.compare import compare

    page, table = compare(given.runs, n=given.n, seed=given.seed, out=given.out)
    print(table)
    print(f"report: {page.resolve()}")


def _plain(value: Any) -> Any:
    """Options as YAML holds them: dicts, lists, numbers and words."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _stem(source: str) -> str:
    return Path(source.split(":")[-1]).stem or "data"


def _free(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, ... that is not there yet."""
    candidate, number = folder, 2
    while candidate.exists():
        candidate, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return candidate


COMMANDS = {
    "train": _train,
    "resume": _resume,
    "sample": _sample,
    "diagnose": _diagnose,
    "report": _report,
    "compare": _compare,
}

if __name__ == "__main__":
    sys.exit(main())
