"""A check of whether mini-batches count for all of the data."""

import torch
from torch import Tensor

from ppgen.diagnostics.checks.check import GOOD, Check, Finding
from ppgen.diagnostics.checks.draws import PosteriorDraws
from ppgen.tracing.sites import Site, is_observed, sample_sites
from ppgen.tracing.traces import Traces

__all__ = ["LIKELIHOOD_SHARE"]

MIN_SHARE = 0.95


def likelihood_share(draws: PosteriorDraws) -> Finding | None:
    """The share of the data's likelihood that a step of training counts, on average."""
    rows, batch = _length(draws.data), _length(draws.fit.example)
    if draws.per_datum or not 0 < batch < rows:
        return None
    try:
        with draws.fit.eval_mode(draws.chain), torch.no_grad(), torch.random.fork_rng():
            trace = Traces(draws.fit.model, draws.fit.guide, draws.fit.example).model_trace
    except (RuntimeError, ValueError, LookupError):  # of a loaded fit only the shape of its batches is known
        return None
    counted = {name: site for name, site in sample_sites(trace).items() if is_observed(site) and _holds(site, batch)}
    if not counted:
        return None
    name = min(counted, key=lambda each: _scale(counted[each]))
    value = _scale(counted[name]) * batch / rows
    if value >= MIN_SHARE:
        return Finding(value)
    plates = [frame.name for frame in counted[name]["cond_indep_stack"] if frame.size == batch]
    what = f"the plate {plates[0]!r} has" if plates else f"the observations {name!r} have"
    reason = (
        f"below 1: {what} the length of a batch, {batch} of {rows} rows, so that each step weighs the whole prior "
        "against these rows alone, and the posterior is too wide"
    )
    return Finding(value, reason, GOOD, advise=True)


def _length(data: tuple[Tensor, ...] | None) -> int:
    """The number of rows of data; 0 without any."""
    return len(data[0]) if data and isinstance(data[0], Tensor) and data[0].dim() else 0


def _holds(site: Site, batch: int) -> bool:
    """Whether the observations of a site are those of a batch."""
    return batch in [*(frame.size for frame in site["cond_indep_stack"]), *site["value"].shape[:1]]


def _scale(site: Site) -> float:
    return float(torch.as_tensor(site["scale"], dtype=torch.float).mean())


LIKELIHOOD_SHARE = Check(
    "likelihood_share",
    "The share of the data's likelihood that a step of training counts, beside the whole prior: 1 if a plate scales "
    "its batch to all rows.",
    likelihood_share,
    guide_advice=(
        'the number of all rows N in the plate of the data, pyro.plate("data", N, subsample=x), in model and guide; or '
        "a fit without batch_size",
    ),
)
