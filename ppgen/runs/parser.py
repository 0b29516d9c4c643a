"""The arguments of all commands. This module imports neither torch nor NumPy, so that ``ppgen --help`` is quick."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser

import ppgen
from ppgen.runs.folder import check_version, parse_config
from ppgen.runs.methods import METHODS, Method

__all__ = ["make_parser"]


def make_parser(words: Sequence[str]) -> ArgumentParser:
    """Makes the parser of a command line.

    Args:
        words: The command line. Of the methods of ``ppgen train``, only those that it names get their options, because
            the options come from signatures that are slow to import.

    Returns:
        The parser.
    """
    parser = ArgumentParser(prog="ppgen", description="Generative models as probabilistic programs.")
    parser.add_argument("--version", action="version", version=f"ppgen {ppgen.__version__}")
    commands = parser.add_subcommands(dest="command")
    for name, (add_arguments, summary, description) in _COMMANDS.items():
        command = ArgumentParser(description=description)
        commands.add_subcommand(name, command, help=summary)
        add_arguments(command, words)
    return parser


def _train(parser: ArgumentParser, words: Sequence[str]) -> None:
    methods = parser.add_subcommands(dest="method")
    for name, method in METHODS.items():
        options = _train_method(name, method) if name in words else ArgumentParser()
        methods.add_subcommand(name, options, help=method.summary)


def _train_method(name: str, method: Method) -> ArgumentParser:
    parser = ArgumentParser(description=f"Train {method.summary}.")
    parser.add_argument("--config", action=_ConfigFile, help="a config.yaml; later options override it")
    parser.add_argument(
        "--method", default=name, choices=[name], help="the method, which a configuration file has to name as well"
    )
    method.run_class().add_arguments(parser, method)
    return parser


class _ConfigFile(ActionConfigFile):
    """An action that reads a configuration file, after it has checked that the method has all of its options."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Reads the file and adds its contents to the parsed arguments."""
        if (path := Path(values)).is_file():
            _check_config(parse_config(path), parser.get_defaults().as_dict(), path)
        super().__call__(parser, cfg, values, option_string)


def _check_config(config: dict[str, Any], defaults: Mapping[str, Any], path: Path) -> None:
    """Raises a ValueError if the configuration is of another version or method, or has an unknown option."""
    if "system" in config:
        check_version(config, path)
    method = defaults["method"]
    if (other := config.get("method", method)) != method:
        raise ValueError(f"{path}: the configuration is of a run of {other!r}: use `ppgen train {other}`")
    known = _option_names(defaults)
    if unknown := [name for name in _option_names(config) if name not in known]:
        from ppgen.tracing.sites import did_you_mean  # late: it imports torch

        section = unknown[0].rpartition(".")[0]
        siblings = [name for name in known if name.rpartition(".")[0] == section] or known
        raise ValueError(f"{path}: {method!r} has no option {unknown[0]!r}; {did_you_mean(unknown[0], siblings)}")


def _option_names(options: Mapping[str, Any]) -> list[str]:
    """The names of options as on the command line, such as "lr" and "fit.epochs"."""
    names = []
    for name, value in options.items():
        names += [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
    return names


def _resume(parser: ArgumentParser, _: Sequence[str]) -> None:
    _add_run(parser)
    parser.add_argument("--progress", type=bool, default=True, help="show a progress bar on a terminal")


def _sample(parser: ArgumentParser, _: Sequence[str]) -> None:
    _add_run(parser)
    parser.add_argument("--n", type=int, default=64, help="the number of samples")
    parser.add_argument("--label", type=int, default=None, help="the label of all samples, for a conditional model")
    parser.add_argument("--mean", type=bool, default=False, help="write the means of p(x | z) in place of samples")
    sampler = "sampler of a diffusion model: ddim, heun, dpm++2m, ancestral, ..."
    parser.add_argument("--sampler", default=None, help=sampler)
    parser.add_argument("--steps", type=int, default=None, help="the number of steps of the sampler")
    guidance = "guidance weight of the label in the sampler; 1 is the conditional model itself"
    parser.add_argument("--guidance", type=float, default=None, help=guidance)
    _add_seed(parser)
    parser.add_argument("--out", type=Path, default=None, help="an .npy file; default: RUN/samples.npy")


def _diagnose(parser: ArgumentParser, _: Sequence[str]) -> None:
    _add_run(parser)
    parser.add_argument("--draws", type=int, default=500, help="the number of posterior samples")
    _add_seed(parser)


def _report(parser: ArgumentParser, _: Sequence[str]) -> None:
    _add_run(parser)


def _compare(parser: ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--n", type=int, default=1000, help="the number of samples of each model")
    _add_seed(parser)
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help="the report")


def _add_run(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run folder")


def _add_seed(parser: ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="the random seed")


# by name: a function that adds the arguments, the line in the list of commands, and the description
_COMMANDS: dict[str, tuple[Callable[[ArgumentParser, Sequence[str]], None], str, str]] = {
    "train": (
        _train,
        "train a method on data",
        "Train a method on data. The result is a run folder with a report.",
    ),
    "resume": (
        _resume,
        "resume an interrupted run",
        "Resume an interrupted run from its checkpoint and write its report.",
    ),
    "sample": (
        _sample,
        "draw samples from a trained model",
        "Draw samples from a trained model, and write them and a figure of them.",
    ),
    "diagnose": (
        _diagnose,
        "decide whether the posterior of a run can be trusted",
        "Decide whether the posterior of a run can be trusted, and explain why.",
    ),
    "report": (_report, "rewrite the report of a run", "Rewrite the report of a run."),
    "compare": (_compare, "compare runs under all metrics", "Compare runs on the same data under all metrics."),
}
