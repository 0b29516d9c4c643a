"""Command-line options from signatures, and the objective that they describe.

``--model.latent_dim`` is an argument of the model's class, ``--loss.beta`` of the recipe and ``--fit.epochs`` of
`ppgen.fit`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args

from jsonargparse import ArgumentParser
from torch import nn

from ppgen.fitting import fit

__all__ = ["add_fit_options", "add_loss_options", "add_model_options", "make_loss"]

# Arguments of `fit` that the run sets, or that are no plain values.
FIT_EXCLUDED: set[str | int] = {
    *("model", "guide", "data", "loss", "optim", "callbacks", "validation", "progress", "checkpoint"),
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
    """Adds the arguments of a model's class as ``--model.NAME``.

    An argument that accepts a module or the name of one becomes an option for the name.
    """
    named = {
        name: parameter.default
        for name, parameter in inspect.signature(model).parameters.items()
        if _accepts_module_or_name(parameter.annotation)
    }
    parser.add_class_arguments(model, "model", skip=MODEL_EXCLUDED | set(named))
    for name, default in named.items():
        explanation = f"the name of a {name}; see {model.__name__}"
        parser.add_argument(f"--model.{name}", type=str | None, default=default, help=explanation)


def _accepts_module_or_name(annotation: Any) -> bool:
    parts = get_args(annotation)
    return str in parts and any(isinstance(part, type) and issubclass(part, nn.Module) for part in parts)


def add_loss_options(parser: ArgumentParser, recipe: Callable[..., Any]) -> None:
    """Adds the arguments of a recipe as ``--loss.NAME``."""
    parser.add_function_arguments(recipe, "loss", skip=LOSS_EXCLUDED)


def add_fit_options(parser: ArgumentParser) -> None:
    """Adds the arguments of `ppgen.fit` as ``--fit.NAME``."""
    parser.add_function_arguments(fit, "fit", skip=FIT_EXCLUDED)


def make_loss(recipe: Callable[..., Any], options: Mapping[str, Any], **sites: Any) -> Any:
    """Makes the objective that a configuration describes.

    Args:
        recipe: The recipe.
        options: The section "loss" of the configuration. A schedule is a dictionary with ``class_path``
            and ``init_args``.
        **sites: Arguments of the recipe that the run sets.

    Returns:
        The objective.
    """
    parser = ArgumentParser()
    parser.add_function_arguments(recipe, skip=LOSS_EXCLUDED)
    return recipe(**parser.instantiate(parser.parse_object(dict(options))).as_dict(), **sites)
