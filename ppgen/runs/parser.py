"""The arguments of all commands. This module imports neither torch nor NumPy, so that ``ppgen --help`` is quick."""

from argparse import Action
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

import ppgen
from ppgen.runs.config_file import parse_config
from ppgen.runs.folder import check_version
from ppgen.runs.methods import METHODS, Method
from ppgen.runs.presets import preset, presets_of

__all__ = ["SECONDS", "complete_config", "make_parser", "without_run_options"]


SECONDS = float | Literal["inf"] | None  # jsonargparse reads "inf" as text
NOT_IN_CONFIG = ("config", "preset", "out", "progress")


def make_parser(words: Sequence[str]) -> ArgumentParser:
    """Makes the parser of a command line.

    Args:
        words: The command line. Of the methods of ``ppgen train``, only those that it names get their options, because
            the options come from signatures that are slow to import.

    Returns:
        The parser.
    """
    parser = _parser(prog="ppgen", description="Generative models as probabilistic programs.")
    parser.add_argument("--version", action="version", version=f"ppgen {ppgen.__version__}")
    commands = parser.add_subcommands(dest="command")
    for name, (add_arguments, summary, description) in _COMMANDS.items():
        command = _parser(description=description)
        commands.add_subcommand(name, command, help=summary)
        add_arguments(command, words)
    return parser


def _parser(**options: Any) -> ArgumentParser:
    """A parser that raises an ArgumentError in place of printing its usage and exiting."""
    return ArgumentParser(exit_on_error=False, **options)


def _data(parser: ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("file", type=Path, help="a table: .csv, .tsv, .txt or .parquet")
    kinds = "kinds of columns that are known, such as '{plan: ordinal, id: omitted}'"
    parser.add_argument("--kinds", type=dict[str, str], default={}, help=kinds)
    missing = "further texts that stand for missing cells, such as '[unknown]'"
    parser.add_argument("--missing", type=list[str], default=[], help=missing)
    text = "columns of text in which NA, None and the like are values"
    parser.add_argument("--text", type=list[str], default=[], help=text)
    parser.add_argument("--out", type=Path | None, default=None, help="a YAML file, to which the schema is written")


def _train(parser: ArgumentParser, words: Sequence[str]) -> None:
    methods = parser.add_subcommands(dest="method")
    for name, method in METHODS.items():
        options = _train_method(name, method) if name in words else _parser()
        methods.add_subcommand(name, options, help=method.summary)


def _train_method(name: str, method: Method) -> ArgumentParser:
    parser = _parser(description=f"Train {method.summary}.")
    parser.add_argument("--config", action=_ConfigFile, help="a config.yaml; later options override it")
    parser.add_argument(
        "--method", default=name, choices=[name], help="the method, which a configuration file has to name as well"
    )
    if names := presets_of(name):
        explanation = "settings of `ppgen.runs.presets`; later options override them"
        parser.add_argument("--preset", action=partial(_Preset, method=name), choices=names, help=explanation)
    method.run_class().add_arguments(parser, method)
    return parser


class _Preset(Action):
    """An action that adds the options of a setting of a method to the parsed arguments."""

    def __init__(self, *, method: str, **options: Any) -> None:
        super().__init__(**options)
        self.method = method

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Adds the options."""
        for option, value in preset(values, self.method).items():
            cfg[option] = value
        cfg[self.dest] = values


class _ConfigFile(ActionConfigFile):
    """An action that reads a configuration file, after it has checked that the method has all of its options."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Reads the file and adds its contents to the parsed arguments."""
        config = parse_config(Path(values))
        lacking = {action.dest: "" for action in parser._actions if action.required}  # the command line may have it
        _parse_config(parser, lacking | config, Path(values))
        super().__call__(parser, cfg, yaml.safe_dump(config), option_string)  # the file is read once, by `parse_config`


def complete_config(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Checks the configuration of a run as the command line does. What it leaves out has its default, as there.

    Args:
        config: The contents of the file.
        path: The file, for errors.

    Returns:
        All options of the method, as plain values.

    Raises:
        ValueError: If the method does not exist, an option is unknown, has a value of another type, or is missing and
            has no default; the message names it.
    """
    check_version(config, path)
    name = config["method"]
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"{path}: there is no method {name!r}; expected one of {', '.join(METHODS)}")
    return without_run_options(_parse_config(_train_method(name, METHODS[name]), config, path))


def _parse_config(parser: ArgumentParser, config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Checks the names and the values of a configuration, and fills in defaults."""
    _check_names(config, parser.get_defaults().as_dict(), path)
    nullable = {action.dest: _nullable(action) for action in parser._actions}
    for option in _option_names(config):
        section, _, key = option.rpartition(".")
        if not nullable.get(option, True) and (config[section] if section else config)[key] is None:
            raise ValueError(f"{path}: {option!r} must have a value, got null")  # jsonargparse checks values only
    try:
        return parser.parse_object(config).as_dict()
    except ArgumentError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def _nullable(action: Any) -> bool:
    """Whether an option may be null: by its type, or where it may be left out and null is its default."""
    annotation = getattr(action, "_typehint", None)
    if annotation is None or (action.default is None and not action.required):
        return not action.required
    return NoneType in get_args(annotation)


def without_run_options(options: dict[str, Any]) -> dict[str, Any]:
    """What ``config.yaml`` stores of the options of a method: plain values, without those of one call."""
    config = {name: _plain_values(value) for name, value in options.items() if name not in NOT_IN_CONFIG}
    config.setdefault("loss", {})  # some recipes have no options
    return {"method": config.pop("method"), **config}


def _plain_values(value: Any) -> Any:
    """Converts options to what YAML can store: dictionaries, lists, numbers and strings."""
    if isinstance(value, dict):
        return {str(key): _plain_values(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_values(part) for part in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _check_names(config: dict[str, Any], defaults: Mapping[str, Any], path: Path) -> None:
    """Raises a ValueError if the configuration is of another version or method, or has an unknown option."""
    if "system" in config:
        check_version(config, path)
    method = defaults["method"]
    if (other := config.get("method", method)) != method:
        raise ValueError(f"{path}: the configuration is of a run of {other!r}: use `ppgen train {other}`")
    for section, default in defaults.items():
        if isinstance(default, dict) and not isinstance(found := config.get(section, {}), dict):
            raise ValueError(f"{path}: {section!r} must be a mapping from options to values, got {str(found)[:80]!r}")
    known = [name for name in _option_names(defaults) if name not in NOT_IN_CONFIG]
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
    out = "an .npy file, which is overwritten (a link is followed); default: RUN/samples.npy"
    parser.add_argument("--out", type=Path, default=None, help=out)


def _diagnose(parser: ArgumentParser, _: Sequence[str]) -> None:
    _add_run(parser)
    parser.add_argument("--draws", type=int, default=500, help="the number of posterior samples")
    _add_seed(parser)


def _report(parser: ArgumentParser, _: Sequence[str]) -> None:
    _add_run(parser)
    evaluate = "evaluate the model again; otherwise only what the folder lacks is computed"
    parser.add_argument("--evaluate", type=bool, default=False, help=evaluate)
    seconds = "time for all of this, inf for all held-out rows; default: that of the training"
    parser.add_argument("--evaluation_seconds", type=SECONDS, default=None, help=seconds)
    changed = "use the data as they are now, if they have changed since the training"
    parser.add_argument("--changed", type=bool, default=False, help=changed)


def _compare(parser: ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--n", type=int, default=1000, help="the number of samples of each model")
    _add_seed(parser)
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help="the report")


def _cache(parser: ArgumentParser, _: Sequence[str]) -> None:
    trim = "the size in megabytes to reduce the folder to; what was used least recently is deleted"
    parser.add_argument("--trim", type=float, default=None, help=trim)
    parser.add_argument("--clear", type=bool, default=False, help="delete all libraries")


def _add_run(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run folder")


def _add_seed(parser: ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="the random seed")


# by name: a function that adds the arguments, the line in the list of commands, and the description
_COMMANDS: dict[str, tuple[Callable[[ArgumentParser, Sequence[str]], None], str, str]] = {
    "data": (
        _data,
        "show what the columns of a table are",
        "Show what the columns of a table are: kinds, values, missing cells, each with the reason.",
    ),
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
    "report": (
        _report,
        "rewrite the report of a run",
        "Rewrite the report of a run. Results that the folder lacks, for example after a kill, are computed first.",
    ),
    "cache": (
        _cache,
        "show or empty the folder of compiled code",
        "Show the folder of compiled training steps, which later runs load instead of compiling them, or empty it.",
    ),
    "compare": (_compare, "compare runs under all metrics", "Compare runs on the same data under all metrics."),
}
