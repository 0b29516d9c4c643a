"""Options of a configuration that have no value yet: those that follow from the method and the data.

``config.yaml`` holds their values, so that a run does not depend on later changes of the defaults. A run that was
stored before there were such defaults has none of some options, and gets the values of that time.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ppgen.flows.multiscale import couples_at_full_resolution
from ppgen.flows.registry import IMAGE_FLOWS
from ppgen.models.flow import AFFINE, default_activation
from ppgen.nets import Defaults, defaults_for
from ppgen.nets.defaults import earlier_widths
from ppgen.runs.methods import Method

__all__ = ["with_defaults", "with_earlier_defaults"]

# by section and name of an option: its value
OF_NETWORK: dict[tuple[str, str], Callable[[Defaults], Any]] = {
    ("model", "network"): lambda d: d.network,
    ("model", "hidden"): lambda d: d.hidden,
    ("model", "norm"): lambda d: d.norm,
    ("model", "dropout"): lambda d: d.dropout,
    ("", "lr"): lambda d: d.lr,
    ("", "betas"): lambda d: d.betas,
    ("fit", "batch_size"): lambda d: d.batch_size,
}
AUTO = (None, "auto")
LEAST_WEIGHT = 10  # of a match of codes, that of Tolstikhin et al. 2018
EARLIER_CRITIC_LR = 2e-4


def with_defaults(
    config: Mapping[str, Any], method: Method, event_shape: tuple[int, ...], rows: int | None
) -> dict[str, Any]:
    """A configuration with defaults for the data, where it has no value.

    Args:
        config: The configuration.
        method: Its method.
        event_shape: The shape of an event; () without data, where there is a value for Adam only.
        rows: The number of rows for training.
    """
    shape = event_shape or (1,)
    chosen = defaults_for(method.network, shape, rows, network=config.get("model", {}).get("network"))
    found = {key: value(chosen) for key, value in OF_NETWORK.items() if event_shape or not key[0]}
    if "flow" in config.get("model", {}):
        found["model", "whiten"] = found["model", "marginals"] = config["model"]["flow"] not in AFFINE
        found["model", "activation"] = default_activation(config["model"]["flow"], shape)
    if _is_image_flow(config) and len(shape) == 3:
        found["model", "full_resolution"] = couples_at_full_resolution(shape, config["model"].get("scales"))
    if method.critic is not None:
        critic = defaults_for("critic", *((shape, rows) if method.critic == "data" else ((1,),)))
        found["loss", "hidden"], found["loss", "lr"] = critic.hidden, critic.lr
        if method.penalized:
            found["loss", "weight"] = critic.penalty
    if method.weight_by_elements:
        found["loss", "weight"] = float(max(LEAST_WEIGHT, math.prod(shape)))
    return _filled(config, found)


def with_earlier_defaults(config: Mapping[str, Any], method: Method, event_shape: tuple[int, ...]) -> dict[str, Any]:
    """A stored configuration with the values of the time when it was stored, where it has none.

    Args:
        config: The configuration.
        method: Its method.
        event_shape: The shape of an event.
    """
    if not event_shape:
        return dict(config)
    widths = earlier_widths(method.network, event_shape, config["model"].get("network"))
    found: dict[tuple[str, str], Any] = {
        ("model", "hidden"): widths,
        ("model", "whiten"): False,
        ("model", "marginals"): False,
        ("model", "dropout"): 0.0,
    }
    if config["model"].get("flow") == "nsf":
        found["model", "activation"] = "silu"
    if _is_image_flow(config):
        found["model", "full_resolution"] = True
    if method.critic is not None:
        found["loss", "hidden"] = earlier_widths("critic", event_shape if method.critic == "data" else (1,), None)
        found["loss", "lr"] = EARLIER_CRITIC_LR
    return _filled(config, found)


def _is_image_flow(config: Mapping[str, Any]) -> bool:
    return config.get("model", {}).get("flow") in IMAGE_FLOWS


def _filled(config: Mapping[str, Any], found: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
    """The configuration with values of options that it has, and that have none."""
    filled = {key: dict(part) if isinstance(part, Mapping) else part for key, part in config.items()}
    for (section, name), value in found.items():
        options = filled.get(section, {}) if section else filled
        norm = name == "norm" and options.get(name) is None  # None is no normalization
        if name in options and options[name] in AUTO and not norm:
            options[name] = list(value) if isinstance(value, tuple) else value
    return filled
