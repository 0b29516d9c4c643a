"""Reading the sites of a trace. Nothing here runs a program.

A site is a Pyro message: a dictionary with the distribution "fn", the "value", and the plates around the statement in
"cond_indep_stack". Two plate names have a meaning: rows of data lie in `DATA`, particles in `PARTICLES`.
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


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of an error message about an unknown name: "did you mean ...? there are ..."."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{hint}there are {', '.join(map(repr, known)) or 'none'}"


def quote_names(names: Iterable[str]) -> str:
    """Names in quotes, separated by commas; "nothing" if there are none."""
    return ", ".join(map(repr, names)) or "nothing"


def sample_sites(trace: Trace) -> dict[str, Site]:
    """The sample sites of a trace by name, without the sites in which plates choose a subsample."""
    return {k: s for k, s in trace.nodes.items() if s["type"] == "sample" and not is_subsample(s)}


def latent_sites(trace: Trace) -> dict[str, Site]:
    """The unobserved sample sites of a trace by name."""
    return {k: s for k, s in sample_sites(trace).items() if not s["is_observed"]}


def is_observed(site: Site) -> bool:
    """Whether the program observed data at the site. Deterministic and factor sites do not count."""
    observed = site["is_observed"] or site["infer"].get("was_observed", False)
    return observed and not is_deterministic(site) and type(site["fn"]).__name__ != "Unit"


def is_deterministic(site: Site) -> bool:
    """Whether the value follows from other sites: ``pyro.deterministic``, or a latent that Pyro has reparametrized."""
    if site["infer"].get("_deterministic"):
        return True
    return site["is_observed"] and getattr(site["fn"], "_mask", None) is False and is_delta(site)


def imputed_latents(trace: Trace) -> list[str]:
    """The latents that ``pyro.sample(name, ..., obs=y, obs_mask=ok)`` makes for missing observations.

    Pyro observes ``name_observed`` under the mask `ok`, samples ``name_unobserved`` under ``~ok``, and has both in the
    deterministic site ``name``. The other entries of ``name_unobserved`` have no effect, and no prior that keeps a
    guide's density of them from becoming arbitrary. Their prior may count too, since its integral is 1.
    """
    computed = {name for name, site in sample_sites(trace).items() if is_deterministic(site)}
    return [k for k in latent_sites(trace) if k.endswith("_unobserved") and k.removesuffix("_unobserved") in computed]


def is_delta(site: Site) -> bool:
    """Whether the site's distribution is a Delta, as for latents that an autoguide computes from an auxiliary site."""
    distribution = site["fn"]
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return isinstance(distribution, pyro.distributions.Delta)


def is_subsample(site: Site) -> bool:
    """Whether the site is the one in which a plate chooses its rows."""
    return site["type"] == "sample" and type(site["fn"]).__name__ == "_Subsample"


def observation(site: Site) -> Tensor:
    """The value that the program observed at the site, even if the trace sampled the site again."""
    return site["infer"]["obs"] if site["infer"].get("was_observed") else site["value"]


def blocks_gradient(site: Site) -> bool:
    """Whether the distribution has parameters that require gradients but its draw, without rsample, passes none on."""
    if site["is_observed"] or site["fn"].has_rsample or not torch.is_grad_enabled():
        return False
    return site["fn"].log_prob(site["value"]).requires_grad


def sized_plates(*sites: Site) -> list[tuple[CondIndepStackFrame, ...]]:
    """The plates around each site; one without a size, ``pyro.plate("data")``, has the largest one of these sites."""
    sizes: dict[str, int] = {}
    for site in sites:
        for frame in site["cond_indep_stack"]:
            if frame.vectorized and frame.size == -1 and not is_subsample(site):
                rows = site["value"].shape[: site["value"].dim() - site["fn"].event_dim]
                found = (shape[frame.dim] for shape in (rows, site["fn"].batch_shape) if len(shape) >= -frame.dim)
                sizes[frame.name] = max(sizes.get(frame.name, 1), *found, 1)

    def sized(frame: CondIndepStackFrame) -> CondIndepStackFrame:
        size = sizes.get(frame.name)
        return frame if size is None else frame._replace(size=size, full_size=size)

    return [tuple(map(sized, site["cond_indep_stack"])) for site in sites]


def data_plate(site: Site) -> CondIndepStackFrame | None:
    """The frame of the vectorized plate "data" around a site, or None."""
    return next((f for f in site["cond_indep_stack"] if f.name == DATA and f.vectorized), None)


def data_plate_size(sites: Iterable[Site], default: int = 1) -> int:
    """The full size N of the plate "data", from the first site that lies in it; `default` if none does."""
    frames = (f for s in sites if s["type"] == "sample" for f in s["cond_indep_stack"] if f.name == DATA)
    return next((int(f.full_size or f.size) for f in frames), default)


def trace_with_values(trace: Trace, values: Mapping[str, Tensor]) -> Trace:
    """A trace to replay: only the sites named in `values`, with these values."""
    result = Trace()
    for name, value in values.items():
        result.add_node(name, **{**trace.nodes[name], "value": value})
    return result


def check_no_enumeration(model_trace: Trace, guide_trace: Trace) -> None:
    """Checks that the guide draws every latent, so that log q is defined for each of them.

    Raises:
        LookupError: if the guide leaves latents to enumeration. Their values here are draws from the prior.
    """
    enumerated = [k for k in latent_sites(model_trace) if k not in guide_trace]
    if enumerated:
        raise LookupError(
            f"the guide leaves {quote_names(enumerated)} to enumeration; use ELBO(elbo=TraceEnum_ELBO()), which sums "
            "over its values, or sample it in the guide"
        )


def check_guide_sites(
    latent: Collection[str], guide_trace: Trace, *, enumerated: Collection[str] = (), observed: Collection[str] = ()
) -> None:
    """Checks that the guide draws exactly the latents of the model.

    Args:
        latent: names of the model's latents.
        guide_trace: a trace of the guide.
        enumerated: names of latents that the guide may leave out.
        observed: names of sites that the model observes.

    Raises:
        LookupError: if the guide misses a latent, or draws a site that is neither a latent nor auxiliary.
    """
    drawn = latent_sites(guide_trace)
    missing = [k for k in latent if k not in drawn and k not in enumerated]
    added = [k for k, s in drawn.items() if k not in latent and not s["infer"].get("is_auxiliary")]
    if missing:
        raise LookupError(
            f"the guide does not draw {quote_names(missing)}, which the model samples; it draws {quote_names(drawn)}: "
            "add a pyro.sample of that name to the guide"
        )
    if known := [k for k in added if k in observed]:
        raise LookupError(
            f"the guide draws {quote_names(known)}, which the model observes: a guide draws latents only. Remove the "
            "guide's site; what is to be inferred about these data is a latent (pyro.sample without obs) or a "
            "parameter (pyro.param) of the model"
        )
    if added:
        raise LookupError(
            f"the guide draws {quote_names(added)}, which is no latent of the model; those are {quote_names(latent)}: "
            "rename the guide's site, or mark it with infer={'is_auxiliary': True}"
        )


def importance_log_weights(model_trace: Trace, guide_trace: Trace) -> Tensor:
    """Log weights log p(x, z) - log q(z | x) of a pair of traces, in nats.

    Returns:
        (particles, n) if every site lies in the plate "data", else (particles, 1), as `log_weights` describes.
    """
    local = is_local(model_trace, guide_trace)
    return log_density(model_trace, per_datum=local) - log_density(guide_trace, per_datum=local)


def log_density(trace: Trace, *, per_datum: bool) -> Tensor:
    """The joint log density of a trace's sites, in nats.

    Args:
        trace: with log probabilities.
        per_datum: whether to keep the rows of the plate "data" apart. The scale N / B of a subsample of B rows is then
            divided out, so that each entry is the density of one datum.

    Returns:
        (particles, n) per datum, or (particles, 1) for all data together.
    """
    total = torch.zeros(())
    for site in sample_sites(trace).values():
        total = total + summed_log_prob(site, per_datum=per_datum)
    return torch.atleast_2d(total)


def is_local(*traces: Trace) -> bool:
    """Whether every site that has a density lies in the plate "data", so that each datum has its own density."""
    return all(
        data_plate(site) is not None
        for trace in traces
        for site in sample_sites(trace).values()
        if not is_deterministic(site)
    )


def summed_log_prob(site: Site, *, per_datum: bool) -> Tensor:
    """The log probability of a site, summed over all plates except the particles and, if asked, the data.

    Args:
        site: with its log probability.
        per_datum: as in `log_density`.

    Returns:
        (particles, n) per datum in the plate "data", or (particles, 1).
    """
    log_prob, data = torch.as_tensor(site["log_prob"]), data_plate(site) if per_datum else None
    if data is not None:
        log_prob = log_prob * (data.size / (data.full_size or data.size))
    log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, site["fn"].batch_shape))
    outer = [f for f in site["cond_indep_stack"] if f.name in (PARTICLES, "num_particles_vectorized")]
    rows = [] if data is None else [data]
    keep = {f.dim + log_prob.dim() for f in outer + rows}
    summed = [d for d in range(log_prob.dim()) if d not in keep]
    log_prob = log_prob.sum(summed) if summed else log_prob
    return log_prob.reshape(outer[0].size if outer else 1, rows[0].size if rows else 1)
