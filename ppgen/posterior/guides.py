"""The guides of ``guide="auto"``: how they are built from a program, and rebuilt from what a file says of them.

A file has the kind of the guide with its options, the names of the discrete latents, and the latents at one point of
the guide's space. The last tells whether the program still maps that space to the same supports: they may follow from
data, as in ``Uniform(0, x.max())``, which a file does not hold.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from ppgen.infer import AutoFlow, AutoMixture
from ppgen.infer.autoguide.stored_draws import AutoDraws
from ppgen.infer.autoguide.supports import AutoGaussian
from ppgen.infer.parameters import separate_names
from ppgen.losses.elbo import ELBO
from ppgen.posterior.directions import Directions
from ppgen.posterior.flow_vi import HIDDEN
from ppgen.tracing.double_precision import DoublePrecision, double_precision
from ppgen.tracing.programs import get_trace, validation
from ppgen.tracing.sites import Program, latent_sites, quote_names
from ppgen.tracing.time_series import SeriesProgram

__all__ = ["AutoPrograms", "build_guide", "describe_guide", "initialized", "loss_of", "programs_of", "rebuild"]

POINT = 1.0  # every coordinate of the point at which latents are compared; at 0, intervals (-a, a) would not differ
TOLERANCE = 1e-6


class AutoPrograms(NamedTuple):
    """The programs of a fit by ``guide="auto"``.

    Attributes:
        model: the user's program in double precision, whose discrete latents are enumerated.
        continuous: the same without them, for the guide.
    """

    model: Program
    continuous: Program


def programs_of(model: Program, discrete: Sequence[str]) -> AutoPrograms:
    """The programs that a guide is built for.

    Args:
        model: the user's program.
        discrete: the names of its discrete latents.
    """
    wrapped = DoublePrecision(Directions(SeriesProgram(model)))
    if not discrete:
        return AutoPrograms(wrapped, wrapped)
    enumerated = config_enumerate(wrapped)
    return AutoPrograms(enumerated, poutine.block(enumerated, hide=list(discrete)))


def loss_of(kind: str, discrete: Sequence[str]) -> ELBO:
    """The loss of a fit.

    Args:
        kind: the kind of guide.
        discrete: the names of discrete latents.
    """
    if discrete:
        return ELBO(elbo=TraceEnum_ELBO())
    return ELBO(path_derivative=kind in ("gaussian", "flow"))  # draws of the others have no path derivative


def build_guide(program: Program, init_loc_fn: Callable, kind: str, **options: Any) -> Any:
    """Builds a guide.

    Args:
        program: the program without discrete latents.
        init_loc_fn: the initial value of each latent.
        kind: "gaussian", "mixture", "flow" or "draws".
        **options: the number of components of a mixture; the name of a flow, or the flow itself; the count of draws.
    """
    if kind == "gaussian":
        return AutoGaussian(program, init_loc_fn=init_loc_fn)
    if kind == "mixture":
        return AutoMixture(program, init_loc_fn=init_loc_fn, components=options["components"])
    if kind == "draws":
        return AutoDraws(program, init_loc_fn=init_loc_fn, count=options["count"])
    return AutoFlow(program, init_loc_fn=init_loc_fn, flow=options["flow"], hidden=HIDDEN)


@contextmanager
def initialized(model: Program, guide: Any, args: tuple) -> Iterator[None]:
    """Sets up an autoguide by a first run; inside it runs in double precision. The random state is preserved.

    Args:
        model: the model.
        guide: the guide.
        args: the arguments of both.
    """
    separate_names(model, guide)
    with torch.random.fork_rng(), double_precision():
        guide(*args)
        yield


def describe_guide(guide: Any, args: tuple, discrete: Sequence[str], kind: str, **options: Any) -> dict[str, Any]:
    """What a file says of a guide, as JSON values.

    Args:
        guide: the guide, set up.
        args: its arguments.
        discrete: the names of discrete latents.
        kind: as in `build_guide`.
        **options: as in `build_guide`, JSON values.
    """
    latents = {name: value.tolist() for name, value in _latents_at_point(guide, args).items()}
    return {"kind": kind, "options": options, "discrete": list(discrete), "latents": latents}


def rebuild(model: Program, described: dict[str, Any], args: tuple) -> tuple[Program, Any, ELBO]:
    """The model, the guide and the loss of a fit, from what its file says.

    Args:
        model: the user's program.
        described: the result of `describe_guide`.
        args: the arguments of the program: the data of the fit, or others of their shapes.

    Raises:
        LookupError: if the program has other latents than the fit.
        ValueError: if they have other shapes or supports.
    """
    stored = {name: torch.tensor(value, dtype=torch.float64) for name, value in described["latents"].items()}
    programs = programs_of(model, described["discrete"])
    guide = build_guide(
        programs.continuous, init_to_value(values=dict(stored)), described["kind"], **described["options"]
    )
    latent = _continuous_latents(programs.continuous, stored, args)
    if latent.keys() != stored.keys():
        raise LookupError(
            f"the program has the latents {quote_names(sorted(latent))}, and the fit has {quote_names(sorted(stored))}"
        )
    changed = [name for name, shape in latent.items() if shape != stored[name].shape]
    if not changed:
        with initialized(programs.model, guide, args):
            found = _latents_at_point(guide, args)
        changed = [
            name
            for name, value in found.items()
            if not torch.allclose(value, stored[name], rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        ]
    if changed:
        raise ValueError(
            f"{quote_names(changed)} has another shape or support than in the fit, in another program or at other data"
        )
    return programs.model, guide, loss_of(described["kind"], described["discrete"])


def _continuous_latents(program: Program, values: dict[str, Tensor], args: tuple) -> dict[str, torch.Size]:
    """The shapes of a program's continuous latents."""
    with torch.random.fork_rng(), torch.no_grad(), validation(False):
        trace = get_trace(poutine.condition(program, data=values), *args)
    given = {name: trace.nodes[name]["fn"].shape() for name in values if name in trace}
    return given | {name: site["fn"].shape() for name, site in latent_sites(trace).items()}


def _latents_at_point(guide: Any, args: tuple) -> dict[str, Tensor]:
    """The latents at one point of the space of the guide's auxiliary variable."""
    with torch.random.fork_rng(), torch.no_grad(), validation(False), double_precision():
        auxiliary = {
            name: torch.full_like(site["value"], POINT)
            for name, site in latent_sites(get_trace(guide, *args)).items()
            if site["infer"].get("is_auxiliary")
        }
        trace = get_trace(poutine.condition(guide, data=auxiliary), *args)
    return {name: site["value"] for name, site in latent_sites(trace).items()}
