"""Whether programs that run for many particles at once compute for each of them what they compute for it alone.

Some programs run under a plate of particles but compute something else: ``scale[:, None] * root`` then multiplies
columns in place of rows, and ``b.sum()`` adds up the particles too. Comparing a few particles finds this. It need not
find a branch (``if b.sum() > 0``), which is one branch for all particles and may be the right one for those that are
compared, so programs that read values do not count as correct.
"""

from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppgen.tracing.programs import validation
from ppgen.tracing.sites import (
    Site,
    is_delta,
    is_observed,
    latent_sites,
    log_density,
    sample_sites,
    summed_log_prob,
    trace_with_values,
)
from ppgen.tracing.traces import SampleObservations, Traces
from ppgen.utils.calling_frame import calling_frame

__all__ = ["broadcasts_correctly"]

LIBRARIES = ("torch", "pyro", "ppgen", "torchdiffeq", "zuko")
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}  # of equal values and log densities: absolute, and relative


def broadcasts_correctly(batched: Traces, single: Traces) -> bool:
    """Whether the first and the last particle of a batch have, at each site, the value and log density of a run alone.

    One particle is not enough: the largest of all values, which a program computes by mistake, may be its own.

    Args:
        batched: traces of all particles.
        single: traces of one particle.

    Raises:
        RuntimeError: if a site has a shape that cannot be that of a batch; also other errors of torch and Pyro.
    """
    with _Reads() as reads:
        batched.model_trace  # noqa: B018
    return not reads.found and all(
        _density_is_as_alone(batched, single, number) and _predictions_are_as_alone(batched, single, number)
        for number in (0, -1)
    )


class _Reads(TorchFunctionMode):
    """Finds out whether a program reads values of tensors, other than in libraries: in checks, in ODE solvers."""

    READS: ClassVar[set[Any]] = {
        *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__bool__, Tensor.__float__),
        *(Tensor.__int__, Tensor.__index__, Tensor.__contains__, Tensor.is_nonzero, torch.is_nonzero),
        *(Tensor.equal, torch.equal, Tensor.allclose, torch.allclose),
    }

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in self.READS:
            frame = calling_frame()
            name = frame.f_globals.get("__name__", "") if frame else ""
            self.found |= name.split(".")[0] not in LIBRARIES
        return func(*args, **(kwargs or {}))


def _density_is_as_alone(batched: Traces, single: Traces, number: int) -> bool:
    """Whether one particle has the values and log densities, site by site, that it has alone."""
    drawn = latent_sites(batched.guide_trace)
    if any(site["infer"].get("is_auxiliary") for site in drawn.values()):  # what follows from these is computed again
        drawn = {name: site for name, site in drawn.items() if not is_delta(site)}
    enumerated = {k: s for k, s in latent_sites(batched.model_trace).items() if k not in batched.guide_trace}
    fixed = _particle_trace(drawn, single.guide_trace, number)
    alone = batched.replace(
        model=poutine.replay(single.model, trace=_particle_trace(enumerated, single.model_trace, number)),
        guide=poutine.replay(single.guide, trace=fixed),
    )
    pairs = (batched.guide_trace, alone.guide_trace), (batched.model_trace, alone.model_trace)
    if not all(_equal_sites(trace, expected, number) for trace, expected in pairs):
        return False
    if single.enumeration_dim is None:
        return True
    alone = batched.replace(model=single.model, guide=single.guide).resampled(fixed=fixed)
    in_batch, expected = (log_density(t.with_summed_discrete[0], per_datum=False)[number] for t in (batched, alone))
    return _close(in_batch, expected)


def _predictions_are_as_alone(batched: Traces, single: Traces, number: int) -> bool:
    """Whether what follows an observation in the program is as it is alone when the observation is drawn again."""
    sites = list(sample_sites(single.model_trace).values())
    if not any(map(is_observed, sites[:-1])):
        return True
    try:
        trace, template = batched.reconstructed, single.reconstructed
    except NotImplementedError:  # there are no predictions from a distribution that cannot be sampled
        return True
    drawn = {name: site for name, site in sample_sites(trace).items() if not site["is_observed"]}
    fixed = _particle_trace(drawn, template, number)
    return _equal_sites(trace, batched.run(poutine.replay(SampleObservations()(single.model), trace=fixed)), number)


def _particle_trace(sites: dict[str, Site], template: Trace, number: int) -> Trace:
    """One particle's values of some sites, as a trace to replay; `template` has the shapes of one particle."""
    values = {k: _particle_value(s["value"], template.nodes[k]["value"].shape, number) for k, s in sites.items()}
    return trace_with_values(template, values)


def _particle_value(value: Tensor, shape: torch.Size, number: int) -> Tensor:
    """One particle's part of a batch of values, or the whole value if all particles share it."""
    return (value if value.numel() == shape.numel() else value[number]).reshape(shape)


def _equal_sites(trace: Trace, expected: Trace, number: int) -> bool:
    """Whether one particle of a batch has the values and log densities of a trace of that particle alone."""
    with validation(False):  # Pyro would warn of a draw without a density
        for each in (trace, expected):
            each.compute_log_prob()
    for name, alone in sample_sites(expected).items():
        site = trace.nodes[name]
        log_prob = summed_log_prob(alone, per_datum=False)[0]
        if not _close(summed_log_prob(site, per_datum=False)[number], log_prob):
            return False
        if is_observed(alone) and log_prob.isneginf().any() and not _equal_means(site, alone, number):
            return False
        value = alone["value"]
        if not is_observed(alone) and not _close(_particle_value(site["value"], value.shape, number), value):
            return False
    return True


def _equal_means(site: Site, alone: Site, number: int) -> bool:
    """Whether a distribution under which data are impossible, so that its density says nothing, has the same mean."""
    try:
        mean, expected = site["fn"].mean, alone["fn"].mean
    except NotImplementedError:
        return False
    return _close(_particle_value(mean, expected.shape, number), expected)


def _close(value: Tensor, expected: Tensor) -> bool:
    if not value.is_floating_point():
        return torch.equal(value, expected.to(value.dtype))
    tolerance = TOLERANCE.get(value.dtype, max(TOLERANCE.values()))
    return torch.allclose(value, expected.to(value.dtype), rtol=tolerance, atol=tolerance, equal_nan=True)
