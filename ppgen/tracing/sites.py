"""What a trace holds: its sites, told apart and read; nothing here runs a program.

A site is a message of Pyro's, a dictionary with its law "fn", its "value", and the plates around it.
"""

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import pyro
import torch
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

DATA = "data"
PARTICLES = "particles"

Program = Callable[..., Any]
Site = dict[str, Any]


def nearest(name: str, names: Iterable[str]) -> str:
    """'did you mean ...? there are ...', for an error about an unknown name."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{hint}there are {', '.join(map(repr, known)) or 'none'}"


def quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def sample_sites(trace: Trace) -> dict[str, Site]:
    """The random sites of a trace by name, plates' subsamples left out."""
    return {k: s for k, s in trace.nodes.items() if s["type"] == "sample" and not is_subsample(s)}


def latent_sites(trace: Trace) -> dict[str, Site]:
    """The unobserved random sites of a trace by name."""
    return {k: s for k, s in sample_sites(trace).items() if not s["is_observed"]}


def is_observed(site: Site) -> bool:
    """Whether the program gave the site a value, deterministic and factor sites left out."""
    given = site["is_observed"] or site["infer"].get("was_observed", False)
    return given and not site["infer"].get("_deterministic") and type(site["fn"]).__name__ != "Unit"


def is_point(site: Site) -> bool:
    """Whether a site's law is a Delta: its value follows from others, as an autoguide's do from its auxiliary ones."""
    distribution = site["fn"]
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return isinstance(distribution, pyro.distributions.Delta)


def is_subsample(site: Site) -> bool:
    return site["type"] == "sample" and type(site["fn"]).__name__ == "_Subsample"


def observation(site: Site) -> Tensor:
    """The value that the program gave the site, also where a run drew it anew."""
    return site["infer"]["obs"] if site["infer"].get("was_observed") else site["value"]


def hides_gradient(site: Site) -> bool:
    """Whether a draw passes no gradient on to the parameters that its law has."""
    if site["is_observed"] or site["fn"].has_rsample or not torch.is_grad_enabled():
        return False
    return site["fn"].log_prob(site["value"]).requires_grad


def data_frame(site: Site) -> CondIndepStackFrame | None:
    """The frame of a vectorized plate "data" around a site, or None."""
    return next((f for f in site["cond_indep_stack"] if f.name == DATA and f.vectorized), None)


def plate_size(sites: Iterable[Site], default: int = 1) -> int:
    """Full size of the plate "data" among `sites`."""
    frames = (f for s in sites if s["type"] == "sample" for f in s["cond_indep_stack"] if f.name == DATA)
    return next((int(f.full_size or f.size) for f in frames), default)


def holding(trace: Trace, values: Mapping[str, Tensor]) -> Trace:
    """A trace to be replayed that holds these values of its sites, and no others."""
    held = Trace()
    for name, value in values.items():
        held.add_node(name, **{**trace.nodes[name], "value": value})
    return held


def check_drawn(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuses a pair whose guide leaves latents to enumeration: they are draws of the prior, without a density q.

    Raises:
        LookupError: naming them.
    """
    left = [k for k in latent_sites(model_trace) if k not in guide_trace]
    if left:
        raise LookupError(
            f"the guide leaves {quoted(left)} to enumeration; take ELBO(elbo=TraceEnum_ELBO()), which sums over "
            "its values, or draw it in the guide"
        )


def check_sites(latent: Collection[str], guide_trace: Trace, *, enumerated: Collection[str] = ()) -> None:
    """Refuses a guide that misses a latent of the model, unless it is one to be enumerated, or adds one.

    Raises:
        LookupError: naming them.
    """
    drawn = latent_sites(guide_trace)
    missed = [k for k in latent if k not in drawn and k not in enumerated]
    added = [k for k, s in drawn.items() if k not in latent and not s["infer"].get("is_auxiliary")]
    if missed:
        raise LookupError(
            f"the guide does not draw {quoted(missed)}, which the model samples; it draws {quoted(drawn)}: add a "
            "pyro.sample of that name to the guide"
        )
    if added:
        raise LookupError(
            f"the guide draws {quoted(added)}, which is no latent of the model; those are {quoted(latent)}: rename "
            "the guide's site, or mark it with infer={'is_auxiliary': True}"
        )


def importance_log_weights(model_trace: Trace, guide_trace: Trace) -> Tensor:
    """Log weights (particles, n) or (particles, 1), as `log_weights` describes, of one pair of traces."""
    local = is_local(model_trace, guide_trace)
    return log_density(model_trace, per_datum=local) - log_density(guide_trace, per_datum=local)


def log_density(trace: Trace, *, per_datum: bool) -> Tensor:
    """The joint log density of a trace's sites, (particles, n) per datum or (particles, 1) of all data together.

    Per datum, a subsample's scale N / B is taken out: a density is a datum's own.
    """
    total = torch.zeros(())
    for site in sample_sites(trace).values():
        log_prob, frame = torch.as_tensor(site["log_prob"]), data_frame(site)
        if per_datum and frame is not None:
            log_prob = log_prob * (frame.size / (frame.full_size or frame.size))
        total = total + _particles_by_rows(log_prob, site, per_datum)
    return torch.atleast_2d(total)


def is_local(*traces: Trace) -> bool:
    """Whether every site with a density belongs to one datum, that is, lies in the plate "data"."""
    return all(
        data_frame(site) is not None
        for trace in traces
        for site in sample_sites(trace).values()
        if not site["infer"].get("_deterministic")
    )


def _particles_by_rows(log_prob: Tensor, site: Site, local: bool) -> Tensor:
    """Sums a site's log probability over all of its plates but the particles' and, if `local`, the data's."""
    log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, site["fn"].batch_shape))
    outer = [f for f in site["cond_indep_stack"] if f.name in (PARTICLES, "num_particles_vectorized")]
    rows = [f for f in (data_frame(site),) if local and f is not None]
    keep = {f.dim + log_prob.dim() for f in outer + rows}
    gone = [d for d in range(log_prob.dim()) if d not in keep]
    log_prob = log_prob.sum(gone) if gone else log_prob
    return log_prob.reshape(outer[0].size if outer else 1, rows[0].size if rows else 1)
