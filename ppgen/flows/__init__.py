"""Normalizing flows as Pyro distributions, which are sampled and scored, with a context or without.

The constructors are listed in `ppgen.flows.registry` and are attributes of this package: ``flows.nsf(2)`` is
``flows.FLOWS["nsf"](2)``. Everything is imported on first use.
"""

from collections import ChainMap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ppgen.flows.registry import FLOWS, IMAGE_FLOWS, TORUS_FLOWS
from ppgen.utils.lazy_table import LazyTable

if TYPE_CHECKING:
    from ppgen.flows.flow import Flow, FlowDistribution
    from ppgen.flows.interval import bounded

__all__ = ["FLOWS", "IMAGE_FLOWS", "TORUS_FLOWS", "Flow", "FlowDistribution", "bounded"]

_others: LazyTable[Any] = LazyTable(
    {
        "Flow": "ppgen.flows.flow:Flow",
        "FlowDistribution": "ppgen.flows.flow:FlowDistribution",
        "bounded": "ppgen.flows.interval:bounded",
    }
)
_attributes: ChainMap[str, Any] = ChainMap(_others, FLOWS, IMAGE_FLOWS, TORUS_FLOWS)


def __getattr__(name: str) -> "Callable[..., Flow]":
    if name not in _attributes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _attributes[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_attributes})
