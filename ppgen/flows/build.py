"""Construction of a flow from its name and options, for models and guides that have the name as an option."""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

from ppgen.flows.flow import Flow
from ppgen.flows.registry import FLOWS
from ppgen.nets import lookup

__all__ = ["build_flow"]


def build_flow(
    flow: str,
    shape: int | Sequence[int],
    *,
    hidden: Sequence[int],
    activation: str | None = None,
    layers: int | None = None,
    context_dim: int = 0,
    table: Mapping[str, Callable[..., Flow]] = FLOWS,
    option: str = "flow",
    options: Mapping[str, Any] | None = None,
) -> Flow:
    """Builds a flow.

    Args:
        flow: A key of the table.
        shape: The width of events, or the shape of images.
        hidden: The hidden widths of the networks, which a flow without networks ignores.
        activation: That of the networks; None for the flow's default.
        layers: The number of layers; None for the flow's default.
        context_dim: The width of the context, 0 for none.
        table: Constructors by name.
        option: The name of the user's option, for error messages.
        options: Further options of the flow, which take precedence.

    Raises:
        ValueError: If the flow is unknown or does not accept an option, and as the flow does.
    """
    make = lookup(table, flow, option=option)
    arguments: dict[str, Any] = {"hidden": tuple(hidden)} if _accepts(make, "hidden") else {}
    arguments |= {} if layers is None else {"layers": layers}
    arguments |= {} if activation is None else {"activation": activation}
    arguments |= options or {}
    try:
        return make(shape, context_dim=context_dim, **arguments)
    except TypeError as error:
        raise ValueError(f"{option}={flow!r} has no such option: {error}") from error


def _accepts(function: Callable[..., Any], name: str) -> bool:
    parameters = signature(function).parameters
    return name in parameters or any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
