"""Summing out the discrete latents that a guide leaves to enumeration.

Under enumeration a discrete latent c takes all of its values at once, along a dimension of its own to the left of all
plates, and so does the log density of every site that depends on c. Sites that share such dimensions form a component.
Its factor, in the plates that all sites of the component have in common, is

    log sum_c prod_{sites s of the component} p(s | its parents)

If c_i and x_i lie in the plate "data", this is one number per row: log p(x_i | the global latents). The same sums, run
backwards, draw the enumerated latents from their joint posterior. A plate of particles to the right of the enumeration
dimensions is a plate like any other, so that both serve many draws at once.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.einsum.adjoint import require_backward
from pyro.ops.rings import SampleRing
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from ppgen.tracing.log_einsum import VmapLogRing
from ppgen.tracing.sites import Site, is_deterministic, is_observed, sample_sites

__all__ = ["SUMMED_OUT", "check_declared_dims", "check_enumerable", "sample_enumerated", "sum_out_enumerated"]

PackedTensor = Any  # a tensor whose attribute _pyro_dims has a letter for each of its dimensions
SUMMED_OUT = "_ppgen_summed_out"  # key in a factor's "infer": the names of the observed sites that it replaces

LOG_TINY = -1e20


def check_enumerable(latent: dict[str, Site]) -> None:
    """Checks that latents can be enumerated in parallel.

    Args:
        latent: their sites by name.

    Raises:
        ValueError: if a latent has no finite support, or is set to another kind of enumeration, or to a sample of its
            values.
    """
    for name, site in latent.items():
        if not site["fn"].has_enumerate_support:
            raise ValueError(
                f"the guide leaves {name!r} to enumeration, but its distribution {type(site['fn']).__name__} has no "
                "finite support to enumerate; sample it in the guide, or use a distribution of finitely many values"
            )
        if site["infer"].get("num_samples"):
            raise ValueError(
                f"{name!r} is enumerated by a sample of its values (num_samples={site['infer']['num_samples']}), whose "
                "sum is not exact: leave num_samples out, so that all values are enumerated"
            )
        if site["infer"].get("enumerate") != "parallel":
            raise ValueError(
                f"the guide leaves {name!r} to enumeration that is {site['infer'].get('enumerate')!r}; the model can "
                "only be enumerated with infer={'enumerate': 'parallel'}"
            )


def sum_out_enumerated(trace: Trace) -> Trace:
    """A copy of an enumerated trace in which one factor replaces the sites of each component.

    The factor is named after the observed sites of the component, joined by "+", or after its latents if it has none.

    Args:
        trace: run under `pyro.poutine.EnumMessenger`, without subsample sites.

    Raises:
        ValueError: if sites of one component have different scales.
    """
    sites, dims = _packed_sites(trace)
    result, components = Trace(), {names[0]: names for names in _components(dims)}
    replaced = {name for names in components.values() for name in names}
    for name, site in trace.nodes.items():
        if name in components:
            names = components[name]
            factor = _factor({k: sites[k] for k in names}, set().union(*(dims[k] for k in names)), trace)
            result.add_node(factor["name"], **factor)
        elif name not in replaced:
            result.add_node(name, **site)
    return result


def check_declared_dims(trace: Trace) -> None:
    """Checks that all dimensions of log probabilities are those of plates, since enumeration uses the others.

    Args:
        trace: run without enumeration.

    Raises:
        ValueError: naming the site.
    """
    for name, site in sample_sites(trace).items():
        if is_deterministic(site):
            continue
        value, fn = site["value"], site["fn"]
        shape = torch.broadcast_shapes(fn.batch_shape, value.shape[: value.dim() - fn.event_dim])
        plates = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
        if any(size > 1 and dim - len(shape) not in plates for dim, size in enumerate(shape)):
            raise ValueError(
                f"the density of site {name!r} has the shape {tuple(shape)}, with a dimension that is not that of a "
                "plate, and a program with enumerated latents may have none: write .to_event(...) behind the "
                "distribution, or put the site in a pyro.plate"
            )


def sample_enumerated(trace: Trace) -> dict[str, Tensor]:
    """Draws the enumerated latents of a trace from their joint posterior, c ~ p(c | z, x).

    Args:
        trace: run under `pyro.poutine.EnumMessenger`, without subsample sites.

    Returns:
        the values by name; each latent has its own draw in each of its plates.
    """
    sites, dims = _packed_sites(trace)
    terms = {name: _without_zeros(_term(site)) for name, site in sites.items() if dims[name]}
    latents = {name: site for name, site in sites.items() if "_enumerate_symbol" in site["infer"]}
    for name in terms.keys() & latents.keys():
        require_backward(terms[name])
    sizes = {dim: size for term in terms.values() for dim, size in zip(term._pyro_dims, term.shape, strict=True)}
    tree = _by_plates({name: sites[name] for name in terms}, terms, trace)
    for factors in contract_tensor_tree(tree, set().union(*dims.values()), ring=SampleRing(dim_to_size=sizes)).values():
        for factor in factors:
            factor._pyro_backward()
    return {
        name: _chosen(site, getattr(terms.get(name), "_pyro_backward_result", None), trace)
        for name, site in latents.items()
    }


def _without_zeros(term: PackedTensor) -> PackedTensor:
    """A term whose zero densities are tiny, so that latents can be drawn even where no value is possible."""
    result: PackedTensor = term.nan_to_num(nan=LOG_TINY, neginf=LOG_TINY)
    result._pyro_dims = term._pyro_dims
    return result


def _chosen(site: Site, drawn: PackedTensor | None, trace: Trace) -> Tensor:
    """The value of an enumerated latent at the index that was drawn; `drawn` is None if there is only one value."""
    event_shape, symbol = site["fn"].event_shape, site["infer"]["_enumerate_symbol"]
    support = site["value"].movedim(site["infer"]["_enumerate_dim"] - len(event_shape), 0)
    support = support.reshape(len(support), -1, *event_shape)[:, 0]  # the same for all rows and for all parents
    index = torch.zeros((), dtype=torch.long, device=support.device)
    if drawn is not None and symbol in drawn._pyro_sample_dims:
        packed_index = drawn[drawn._pyro_sample_dims.index(symbol)]
        packed_index._pyro_dims = drawn._pyro_dims[1:]
        index = packed.unpack(packed_index, trace.symbol_to_dim)
    return support[index.expand(_shape(site["cond_indep_stack"]))]


def _shape(plates: Iterable[CondIndepStackFrame]) -> list[int]:
    """The batch shape of a site in these plates."""
    frames = [frame for frame in plates if frame.vectorized]
    shape = [1] * -min((frame.dim for frame in frames), default=0)
    for frame in frames:
        shape[frame.dim] = frame.size
    return shape


def _packed_sites(trace: Trace) -> tuple[dict[str, Site], dict[str, set[str]]]:
    """The sample sites of a trace, with packed log probabilities, and the enumeration dimensions of each."""
    trace.compute_log_prob()
    trace.pack_tensors()
    plates = set(trace.plate_to_symbol.values())
    sites = {k: s for k, s in trace.nodes.items() if s["type"] == "sample"}
    return sites, {k: set(s["packed"]["unscaled_log_prob"]._pyro_dims) - plates for k, s in sites.items()}


def _term(site: Site) -> PackedTensor:
    """The packed log probability of a site.

    Where a mask leaves out an enumerated latent, its values have equal probability, so that their sum is 1.
    """
    log_prob, mask = site["packed"]["unscaled_log_prob"], site["packed"]["mask"]
    term = packed.scale_and_mask(log_prob, mask=mask)
    symbol = site["infer"].get("_enumerate_symbol")
    if mask is None or symbol is None or symbol not in log_prob._pyro_dims:
        return term
    log_count: PackedTensor = torch.full_like(log_prob, math.log(log_prob.shape[log_prob._pyro_dims.index(symbol)]))
    log_count._pyro_dims = log_prob._pyro_dims
    total = term + packed.scale_and_mask(log_count, mask=mask) - log_count.max()
    total._pyro_dims = term._pyro_dims
    return total


def _by_plates(sites: dict[str, Site], terms: dict[str, PackedTensor], trace: Trace) -> OrderedDict:
    """Terms of sites, in lists by the symbols of their plates."""
    tree: OrderedDict = OrderedDict()
    for name, site in sites.items():
        plates = frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        tree.setdefault(plates, []).append(terms[name])
    return tree


def _components(dims: dict[str, set[str]]) -> Iterator[list[str]]:
    """Names of sites that share enumeration dimensions, directly or through other sites, in the order of the trace."""
    remaining = {name: set(own) for name, own in dims.items() if own}
    while remaining:
        first = next(iter(remaining))
        shared = remaining.pop(first)
        names = {first}
        while connected := [name for name, own in remaining.items() if own & shared]:
            for name in connected:
                shared |= remaining.pop(name)
                names.add(name)
        yield [name for name in dims if name in names]


def _factor(sites: dict[str, Site], dims: set[str], trace: Trace) -> Site:
    """The factor site of one component: `dims` summed out of the product of its densities."""
    symbols = trace.plate_to_symbol
    numbers = [torch.as_tensor(s["scale"], dtype=torch.float64) for s in sites.values()]  # exact, as Python's
    scales = {float(number.max()) for number in numbers}
    if len(scales) > 1 or any(number.numel() > 1 for number in numbers):
        raise ValueError(
            f"{', '.join(map(repr, sites))} share an enumerated latent but have different scales ({sorted(scales)}), "
            "so the sum over the latent is not a density; put all of them in the same plates and handlers"
        )
    tree = _by_plates(sites, {name: _term(site) for name, site in sites.items()}, trace)
    ((ordinal, (term,)),) = contract_tensor_tree(tree, dims, ring=VmapLogRing({})).items()
    frames = {symbols[f.name]: f for s in sites.values() for f in s["cond_indep_stack"] if f.vectorized}
    stack = tuple(frames[symbol] for symbol in sorted(ordinal))
    shape = _shape(stack)
    log_prob = packed.unpack(term, trace.symbol_to_dim)
    log_prob = log_prob.reshape(log_prob.shape[max(0, log_prob.dim() - len(shape)) :]).expand(shape)
    observed = [k for k, s in sites.items() if s["is_observed"] and not is_deterministic(s)]
    latent = [k for k, s in sites.items() if not s["is_observed"]]
    (scale,) = scales
    return {
        "type": "sample",
        "name": "+".join(observed or latent),
        "fn": dist.Unit(log_prob),
        "value": log_prob.new_zeros((*log_prob.shape, 0)),
        "is_observed": True,
        "infer": {SUMMED_OUT: tuple(k for k in observed if is_observed(sites[k]))},  # factors are no data
        "cond_indep_stack": stack,
        "scale": scale,
        "mask": None,
        "unscaled_log_prob": log_prob,
        "log_prob": log_prob if math.isclose(scale, 1.0) else scale * log_prob,
        "log_prob_sum": scale * log_prob.sum(),
    }
