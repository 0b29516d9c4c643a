"""Scales that weigh the terms of a loss and are no part of a density.

``pyro.poutine.scale`` around a latent in model and guide, log p(z) and log q(z | x) times beta, anneals the KL term of
an ELBO; around both programs, it divides the ELBO by the number of data. Draws of the guide come from q whatever its
scale is, so that importance weights and evidence need log p and log q without it. A scale in the model alone is part
of its density: it tempers a prior or weighs data.
"""

import math
from collections.abc import Collection

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.tracing.sites import Site, is_subsample, sample_sites
from ppgen.tracing.traces import Traces

__all__ = ["plates_scale", "without_loss_scales"]


def without_loss_scales(traces: Traces) -> Traces:
    """Traces of the same programs without the scales of the guide, and without those that the model shares with it.

    Args:
        traces: traces of a model and a guide.
    """
    if isinstance(poutine.unwrap(traces.guide), Messenger):  # Pyro's GuideMessenger, which runs both programs
        return traces
    model, guide = ({k: _own_scale(s) for k, s in sample_sites(t).items()} for t in traces._model_and_guide)
    if all(_equal(scale, torch.ones((), dtype=torch.double)) for scale in guide.values()):
        return traces
    first = next(iter(guide.values()))
    if all(_equal(scale, first) for scale in (*guide.values(), *model.values())):
        shared = list(model)
    else:
        shared = [name for name, scale in guide.items() if name in model and _equal(model[name], scale)]
    return traces.replace(model=_Unscaled(shared)(traces.model), guide=_Unscaled(guide)(traces.guide))


def _own_scale(site: Site) -> Tensor:
    """The scale of a site without those of its plates, which are part of the density."""
    return torch.as_tensor(site["scale"], dtype=torch.double) / plates_scale(site)


def plates_scale(site: Site) -> float:
    """The scale that the plates around a site give it: the product of full sizes over sizes."""
    return math.prod((frame.full_size or frame.size) / frame.size for frame in site["cond_indep_stack"])


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b)


class _Unscaled(Messenger):
    """A handler that leaves sites the scales of their plates only.

    Args:
        names: the sites.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.names and not is_subsample(msg):
            msg["scale"] = plates_scale(msg)
