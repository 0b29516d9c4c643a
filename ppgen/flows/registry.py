"""The flows by name. A constructor is imported on its first lookup, so this module does not import torch.

To add a flow, write its constructor in a module of this package and add a row to one of the tables. A user adds a flow
with ``FLOWS["mine"] = constructor``. A constructor has the arguments of `ppgen.flows.maf`, as far as they apply.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ppgen.utils.lazy_table import LazyTable

if TYPE_CHECKING:
    from ppgen.flows.flow import Flow

__all__ = ["FLOWS", "IMAGE_FLOWS", "TORUS_FLOWS"]

# flows of vectors: constructors take the dimension `dim`
FLOWS: LazyTable[Callable[..., "Flow"]] = LazyTable(
    {
        "nice": "ppgen.flows.coupling:nice",
        "realnvp": "ppgen.flows.coupling:realnvp",
        "nsf": "ppgen.flows.coupling:nsf",
        "maf": "ppgen.flows.autoregressive:maf",
        "iaf": "ppgen.flows.autoregressive:iaf",
        "iaf_tails": "ppgen.flows.power_tails:iaf_tails",
        "nsf_autoregressive": "ppgen.flows.autoregressive:nsf_autoregressive",
        "naf": "ppgen.flows.monotone:naf",
        "sum_of_squares": "ppgen.flows.monotone:sum_of_squares",
        "bernstein": "ppgen.flows.monotone:bernstein",
        "planar": "ppgen.flows.low_rank:planar",
        "radial": "ppgen.flows.low_rank:radial",
        "sylvester": "ppgen.flows.low_rank:sylvester",
        "lu_linear": "ppgen.flows.linear:lu_linear",
        "residual": "ppgen.flows.residual_flow:residual",
        "continuous": "ppgen.flows.continuous_time:continuous",
    }
)

# flows of images: constructors take the shape (channels, height, width)
IMAGE_FLOWS: LazyTable[Callable[..., "Flow"]] = LazyTable({"glow": "ppgen.flows.multiscale:glow"})

# flows of angles: constructors take the number of angles
TORUS_FLOWS: LazyTable[Callable[..., "Flow"]] = LazyTable({"circular": "ppgen.flows.torus:circular"})
