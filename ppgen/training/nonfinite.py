"""Which site or which gradient of a step is not finite, found by running it once more, eagerly."""

import torch
from pyro.poutine import Trace
from torch import Tensor

from ppgen.infer.finite_steps import Rollback
from ppgen.infer.parameter_scope import one_at_a_time
from ppgen.infer.parameters import CollectParameters
from ppgen.infer.svi import SVI
from ppgen.tracing.programs import validation
from ppgen.tracing.sites import sample_sites
from ppgen.tracing.traces import Traces

__all__ = ["find_nonfinite"]


def find_nonfinite(svi: SVI, batch: tuple[Tensor, ...]) -> str:
    """Names the parameters that are not finite, else the first such site, else the parameters with such gradients.

    The programs draw other random numbers than in the step, so that what is rare may not be found. Nothing changes.

    Args:
        svi: with the weights before the step.
        batch: its batch.

    Returns:
        One clause, for a message.
    """
    if not svi.ranks.rows:
        return "this rank had no rows"
    rollback = Rollback(svi.buffers or [])
    rollback.save()
    try:
        with one_at_a_time, torch.random.fork_rng(), validation(False):
            return (_bad_parameters(svi) or _bad_site(svi, batch) or _bad_gradient(svi, batch)) + _bad_data(batch)
    except Exception as error:
        return _in_words(error)
    finally:
        rollback.settle(taken=False)


def _bad_data(batch: tuple[Tensor, ...]) -> str:
    for i, part in enumerate(batch):
        if part.is_floating_point() and not part.isfinite().all():
            rows = [int(row) for row in (~part.isfinite()).nonzero()[:, 0].unique()[:3]] if part.dim() else []
            return f"; data[{i}] is not finite in rows {rows} of the batch"
    return ""


def _bad_parameters(svi: SVI) -> str:
    bad = [name for name, leaf in svi.optimizer.parameters.items() if not _finite(leaf)]
    return f"{', '.join(bad[:3])} {'is' if len(bad) == 1 else 'are'} not finite" if bad else ""


def _bad_site(svi: SVI, batch: tuple[Tensor, ...]) -> str:
    with torch.no_grad(), CollectParameters():
        traces = Traces(svi.model, svi.guide, batch)
        guide = traces.guide_trace
        return _first_bad(guide, "guide") or _first_bad(traces.run(svi.model, guide), "model")


def _first_bad(trace: Trace, program: str) -> str:
    for name, site in sample_sites(trace).items():
        if not _finite(site["value"]):
            return f"the value of {name!r} in the {program} is not finite"
        log_prob = site["fn"].log_prob(site["value"])
        if not _finite(log_prob):
            bad = int((~log_prob.isfinite()).sum())
            return f"the log density of {name!r} in the {program} is not finite, in {bad} of {log_prob.numel()} entries"
    return ""


def _bad_gradient(svi: SVI, batch: tuple[Tensor, ...]) -> str:
    _, gradients = svi.program_gradients(batch, {})
    named = zip(svi.optimizer.parameters, gradients, strict=True)
    bad = [name for name, gradient in named if gradient is not None and not _finite(gradient)]
    for leaf in svi.optimizer.parameters.values():
        leaf.grad = None  # of a loss that runs backward itself
    if bad:
        return f"the gradient of {', '.join(bad[:3])} is not finite"
    if svi.failure is not None:
        return _in_words(svi.failure)
    return f"with other random numbers all sites and gradients are finite{' on this rank' * (svi.ranks.size > 1)}"


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__.lstrip('_')}: {str(error).strip().splitlines()[0]}"


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())
