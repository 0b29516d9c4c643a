"""Discrete latents that a guide leaves to enumeration, summed out of a program's joint density.

Run under enumeration, a latent c has all of its values at once, along a dimension of their own to the left of all
plates, and so has the log density of every site that c touches. Sites that share such dimensions make a component;
its factor, in the plates that all of it has in common,

    log sum_c prod_{sites s of the component} p(s | what precedes it)

is a number for each row where c belongs to one: with c_i and x_i in the plate "data", log p(x_i | global latents).
"""

import math
from collections import OrderedDict
from collections.abc import Iterator

import pyro.distributions as dist
import torch
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine import Trace

from ppgen.tracing.log_einsum import LogSums
from ppgen.tracing.sites import Site

__all__ = ["SUMMED_OUT", "check_enumerable", "summed_out"]

SUMMED_OUT = "_ppgen_summed_out"  # in a factor's infer: the names of its observed sites


def check_enumerable(latent: dict[str, Site]) -> None:
    """Refuses latents that cannot be enumerated, all at once, without a guide.

    Raises:
        ValueError: naming them.
    """
    for name, site in latent.items():
        if not site["fn"].has_enumerate_support:
            raise ValueError(
                f"the guide leaves {name!r} to enumeration, but its law {type(site['fn']).__name__} has no finite "
                "support to enumerate; draw it in the guide, or take a law of finitely many values"
            )
        if site["infer"].get("enumerate") != "parallel":
            raise ValueError(
                f"the guide leaves {name!r} to enumeration that is {site['infer'].get('enumerate')!r}; one that the "
                "model does by itself is infer={'enumerate': 'parallel'}"
            )


def summed_out(trace: Trace) -> Trace:
    """An enumerated trace with each component in place of its sites, as a factor in the plates that are left.

    The factor is named after the component's observed sites, joined by "+", or after its latents where it has none.

    Args:
        trace: run under `pyro.poutine.EnumMessenger`, without sites of subsamples.

    Raises:
        ValueError: if sites of one component are scaled differently.
    """
    trace.compute_log_prob()
    trace.pack_tensors()
    plates = set(trace.plate_to_symbol.values())
    sites = {k: s for k, s in trace.nodes.items() if s["type"] == "sample"}
    dims = {k: set(s["packed"]["unscaled_log_prob"]._pyro_dims) - plates for k, s in sites.items()}
    result, factors = Trace(), {names[0]: names for names in _components(dims)}
    gone = {name for names in factors.values() for name in names}
    for name, site in trace.nodes.items():
        if name in factors:
            names = factors[name]
            factor = _factor({k: sites[k] for k in names}, set().union(*(dims[k] for k in names)), trace)
            result.add_node(factor["name"], **factor)
        elif name not in gone:
            result.add_node(name, **site)
    return result


def _components(dims: dict[str, set[str]]) -> Iterator[list[str]]:
    """Names of sites that share dimensions, directly or through others; each in the order of the trace."""
    left = {name: set(own) for name, own in dims.items() if own}
    while left:
        first = next(iter(left))
        shared = left.pop(first)
        names = {first}
        while touched := [name for name, own in left.items() if own & shared]:
            for name in touched:
                shared |= left.pop(name)
                names.add(name)
        yield [name for name in dims if name in names]


def _factor(sites: dict[str, Site], dims: set[str], trace: Trace) -> Site:
    symbols = trace.plate_to_symbol
    scales = {float(torch.as_tensor(s["scale"]).max()) for s in sites.values()}
    if len(scales) > 1 or any(torch.as_tensor(s["scale"]).numel() > 1 for s in sites.values()):
        raise ValueError(
            f"{', '.join(map(repr, sites))} share an enumerated latent but not their scale ({sorted(scales)}), so that "
            "the sum over it is no density; put all of them in the same plates and handlers"
        )
    tree: OrderedDict = OrderedDict()
    for site in sites.values():
        ordinal = frozenset(symbols[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        term = packed.scale_and_mask(site["packed"]["unscaled_log_prob"], mask=site["packed"]["mask"])
        tree.setdefault(ordinal, []).append(term)
    ((ordinal, (term,)),) = contract_tensor_tree(tree, dims, ring=LogSums({})).items()
    frames = {symbols[f.name]: f for s in sites.values() for f in s["cond_indep_stack"] if f.vectorized}
    stack = tuple(frames[symbol] for symbol in sorted(ordinal))
    shape = [1] * -min((f.dim for f in stack), default=0)
    for frame in stack:
        shape[frame.dim] = frame.size
    log_prob = packed.unpack(term, trace.symbol_to_dim)
    log_prob = log_prob.reshape(log_prob.shape[max(0, log_prob.dim() - len(shape)) :]).expand(shape)
    observed = [k for k, s in sites.items() if s["is_observed"] and not s["infer"].get("_deterministic")]
    latent = [k for k, s in sites.items() if not s["is_observed"]]
    (scale,) = scales
    return {
        "type": "sample",
        "name": "+".join(observed or latent),
        "fn": dist.Unit(log_prob),
        "value": log_prob.new_zeros((*log_prob.shape, 0)),
        "is_observed": True,
        "infer": {SUMMED_OUT: tuple(observed)},
        "cond_indep_stack": stack,
        "scale": scale,
        "mask": None,
        "unscaled_log_prob": log_prob,
        "log_prob": log_prob if math.isclose(scale, 1.0) else scale * log_prob,
        "log_prob_sum": scale * log_prob.sum(),
    }
