"""Latents of groups that a fit did not have, drawn from the population: p(new | global latents)."""

from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor

from ppgen.tracing.programs import SubstituteLatents, get_trace, validation
from ppgen.tracing.sites import PARTICLES, Program, Site, is_subsample, latent_sites

__all__ = ["WithNewGroups"]


class WithNewGroups:
    """A guide whose latents have more groups than those of another: new ones come from the model, given all latents.

    In a plate of groups, latents of different groups are independent given the latents outside of it. So a group
    without data has the distribution that the model gives it, at the draw of the other latents.

    Args:
        guide: a guide of the groups of the fit.
        model: the model, with the new groups after those of the fit.
        args: the arguments of both.

    Raises:
        ValueError: for a latent that has an entry for each group, and is not in a plate of them.
    """

    def __init__(self, guide: Program, model: Program, args: tuple[Any, ...]) -> None:
        self.guide, self.model, self.__wrapped__ = guide, model, guide
        with torch.no_grad(), torch.random.fork_rng(), poutine.block():
            values = _values(get_trace(guide, *args))
            trace = self._with_new(values, args)
        sites = latent_sites(trace)
        self._grown = [name for name in sites if name in values and sites[name]["value"].shape != values[name].shape]
        plates = {frame.name for name in self._grown for frame in _plates(sites[name])}
        self._hidden = [*self._grown, *sorted(plates)]

    def __call__(self, *args: Any) -> dict[str, Tensor]:
        """Draws all latents."""
        with poutine.block(hide=self._hidden):
            values = _values(get_trace(self.guide, *args))
        with poutine.block():
            trace = self._with_new(values, args)
        plates: dict[str, Any] = {}
        for name in self._grown:
            site = trace.nodes[name]
            with ExitStack() as stack:
                for frame in _plates(site):
                    if frame.name not in plates:
                        plates[frame.name] = pyro.plate(frame.name, frame.size, dim=frame.dim)
                    stack.enter_context(plates[frame.name])
                values[name] = pyro.sample(name, Delta(site["value"], event_dim=site["fn"].event_dim))
        return values

    def _with_new(self, values: dict[str, Tensor], args: tuple[Any, ...]) -> poutine.Trace:
        """A trace of the model at these values, with draws of the latents of new groups."""
        with validation(False):
            return get_trace(SubstituteLatents(lambda site: _value(site, values))(self.model), *args)


def _plates(site: Site) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES]


def _values(trace: poutine.Trace) -> dict[str, Tensor]:
    return {name: site["value"] for name, site in latent_sites(trace).items() if not site["infer"].get("is_auxiliary")}


def _value(site: Site, values: dict[str, Tensor]) -> Tensor | None:
    """The value of a latent: that of the guide, and draws of the model for groups that the guide does not have."""
    if is_subsample(site) or (known := values.get(site["name"])) is None:
        return None
    for frame in _plates(site):
        dim = frame.dim - site["fn"].event_dim
        if -dim <= known.dim() and known.shape[dim] < frame.size:
            return _joined(site, known, dim, frame.size)
    _check_sizes(site, known)
    return known


def _check_sizes(site: Site, known: Tensor) -> None:
    """Checks that a latent of the guide has the event of the model's."""
    event = site["fn"].event_shape
    if known.shape[known.dim() - len(event) :] != event:
        raise ValueError(
            f"new_groups: the latent {site['name']!r} has an entry for each group, shape "
            f"{tuple(known.shape[known.dim() - len(event) :])} in the fit and {tuple(event)} with the new ones, and is "
            "not in a plate of them, where groups are independent: pyro.plate('county', num_county)"
        )


def _joined(site: Site, known: Tensor, dim: int, size: int) -> Tensor:
    """The latents of known groups, and draws of those of the others, along a dimension."""
    fn, count = site["fn"], known.shape[dim]
    shape = list(known.shape)
    shape[dim] = size
    batch = torch.broadcast_shapes(torch.Size(shape[: len(shape) - fn.event_dim]), fn.batch_shape)
    new = fn.expand(batch).sample().narrow(dim, count, size - count).to(known.dtype)
    shape = list(new.shape)
    shape[dim] = count
    return torch.cat([known.expand(shape), new], dim)
