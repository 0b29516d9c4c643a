"""Command-line options from signatures, and the objective that they describe.

``--model.latent_dim`` is an argument of the model's class, ``--loss.beta`` of the recipe and ``--fit.epochs`` of
`ppgen.fit`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args

import docstring_parser
from jsonargparse import ArgumentParser

from ppgen.fitting import fit
from ppgen.losses.weights import Schedule
from ppgen.runs.plain_types import make_schedule, plain_type

__all__ = ["add_fit_options", "add_loss_options", "add_model_options", "make_loss"]

# Arguments of `fit` that the run sets, or that are no plain values.
FIT_EXCLUDED: set[str | int] = {
    *("model", "guide", "data", "loss", "optim", "callbacks", "validation", "score", "progress", "checkpoint"),
}
# Arguments of models that follow from the data, or that are networks, functions or distributions.
MODEL_EXCLUDED: set[str | int] = {
    *("event_shape", "levels", "num_classes", "context_dim", "features", "classifier", "critic"),
    *("model", "amortized", "encoder", "init_loc_fn", "base"),
}
# Arguments of recipes that the run sets, or that are metrics, networks or optimizers.
LOSS_EXCLUDED: set[str | int] = {
    *("metric", "critic", "base", "max_plate_nesting", "name", "optim", "penalty"),
    *("x", "h", "d", "sources", "target"),
}


def add_model_options(parser: ArgumentParser, model: Callable[..., Any]) -> None:
    """Adds the arguments of a model's class as ``--model.NAME``."""
    _add_options(parser, model, "model", MODEL_EXCLUDED)


def add_loss_options(parser: ArgumentParser, recipe: Callable[..., Any]) -> None:
    """Adds the arguments of a recipe as ``--loss.NAME``."""
    _add_options(parser, recipe, "loss", LOSS_EXCLUDED)


def add_fit_options(parser: ArgumentParser) -> None:
    """Adds the arguments of `ppgen.fit` as ``--fit.NAME``."""
    _add_options(parser, fit, "fit", FIT_EXCLUDED)


def _add_options(parser: ArgumentParser, function: Callable[..., Any], section: str, excluded: set[str | int]) -> None:
    """Adds the arguments of a function or class, each with the plain part of its type; see `plain_type`.

    Raises:
        TypeError: If nothing of a type is plain, so that the argument has to be excluded.
    """
    replaced = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name in excluded or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue  # jsonargparse finds the arguments to which **options go
        plain = plain_type(parameter.annotation)
        if plain is None:
            raise TypeError(f"--{section}.{name}: {parameter.annotation} is no type of an option; exclude the argument")
        if plain != parameter.annotation:
            replaced[name] = plain
    add = parser.add_class_arguments if inspect.isclass(function) else parser.add_function_arguments
    add(function, section, skip=excluded | set(replaced))
    documented = docstring_parser.parse(inspect.getdoc(function) or "").params
    described = {argument.arg_name: argument.description for argument in documented}
    for name, plain in replaced.items():
        default, explanation = inspect.signature(function).parameters[name].default, described.get(name)
        parser.add_argument(f"--{section}.{name}", type=plain, default=default, help=explanation)


def make_loss(recipe: Callable[..., Any], options: Mapping[str, Any], **sites: Any) -> Any:
    """Makes the objective that a configuration describes.

    Args:
        recipe: The recipe.
        options: The section "loss" of the configuration. A schedule is a text such as ``Ramp(1.0, steps=1000)``.
        **sites: Arguments of the recipe that the run sets.

    Returns:
        The objective.
    """
    parameters = inspect.signature(recipe).parameters
    arguments: dict[str, Any] = {}
    for name, value in options.items():
        scheduled = name in parameters and Schedule in get_args(parameters[name].annotation)
        if isinstance(value, list):
            arguments[name] = tuple(value)
        else:
            arguments[name] = make_schedule(value) if scheduled and isinstance(value, str) else value
    return recipe(**arguments, **sites)
