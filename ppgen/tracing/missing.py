"""Whether a model leaves out the values that are missing in its arguments, where they are NaN."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from ppgen.tracing.masks import has_nan_density
from ppgen.tracing.plates import all_rows
from ppgen.tracing.programs import SubstituteLatents, get_trace, validation
from ppgen.tracing.sites import Program, Site, is_subsample, sample_sites

__all__ = ["simulated_sites", "sites_without_density"]


def sites_without_density(model: Program, args: tuple[Any, ...]) -> list[str]:
    """The sites of which some log density is NaN before it is masked, at latents in the middle of their supports.

    Args:
        model: a Pyro program.
        args: its arguments.
    """

    def run() -> list[str]:
        trace = get_trace(SubstituteLatents(_middle)(model), *args)
        return [name for name, site in sample_sites(trace).items() if has_nan_density(site)]

    with torch.no_grad(), torch.random.fork_rng(), validation(False):
        try:
            with all_rows():
                return run()
        except (RuntimeError, ValueError, IndexError):  # the arguments may be a batch, in a plate of more rows
            return run()


def simulated_sites(model: Program, args: tuple[Any, ...]) -> list[str]:
    """The sites that observe NaN by a distribution without any density, such as a simulator's.

    Args:
        model: a Pyro program.
        args: its arguments.
    """
    with torch.no_grad(), torch.random.fork_rng(), validation(False):
        sites = sample_sites(get_trace(model, *args))
        return [name for name, site in sites.items() if site["value"].isnan().any() and not _has_density(site)]


def _has_density(site: Site) -> bool:
    try:
        site["fn"].log_prob(site["value"])
    except NotImplementedError:
        return False
    return True


def _middle(site: Site) -> Tensor | None:
    """Zero on the real line, mapped to the support of a site; None, which is a draw, where there is no such map."""
    if is_subsample(site):
        return None
    try:
        transform = biject_to(site["fn"].support)
        return transform(torch.zeros(transform.inverse_shape(site["fn"].shape())))
    except NotImplementedError:
        return None
