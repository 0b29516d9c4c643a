"""The traces of one training step, made when first asked for and shared by every term of a loss.

Notation: a model p(x, z) = p(z) p(x | z) and a guide q(z | x) are Pyro programs called with the same arguments.
Four runs of them serve every objective:

    guided         q(z | x)            the guide, run on the data
    encoded        p(x, z)             the model at the guide's z and the observed x
    generated      p(z) p(x' | z)      the model on its own, its observations drawn anew
    reconstructed  q(z | x) p(x' | z)  the model at the guide's z, its observations drawn anew

All four share one subsample of each plate, so their rows are the same data. This is the one file that traces programs.
"""

import math
from collections.abc import Hashable, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from pyro import poutine
from pyro.infer import infer_discrete
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor

from ppgen.tracing.enumeration import check_enumerable, summed_out
from ppgen.tracing.programs import all_rows, traced
from ppgen.tracing.sites import (
    Program,
    Site,
    check_drawn,
    check_sites,
    holding,
    is_observed,
    is_subsample,
    latent_sites,
    nearest,
    plate_size,
    sample_sites,
)


class Traces:
    """One joint draw of model and guide on one batch, each trace made on first use.

    Args:
        model, guide: Pyro programs, called as ``model(*args, **kwargs)``.
        clock: the number of the step and the length of the run, None where not known, as schedules take them.
        whole: whether plates that would draw a subsample of their rows take all of them (see `all_rows`).
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: tuple = (),
        kwargs: Mapping | None = None,
        *,
        clock: tuple[Tensor, int | None] | None = None,
        whole: bool = False,
    ):
        self.model, self.guide, self.args, self.kwargs = model, guide, args, dict(kwargs or {})
        self.whole = whole
        self.clock = (torch.zeros((), dtype=torch.long), None) if clock is None else clock
        self.shared: dict[Hashable, Any] = {}
        """What several terms use beside the traces, under names that they agree on."""
        self._subsample = Trace()

    def beside(self, **changed: Any) -> "Traces":
        """Another joint draw on the same subsample of each plate: by another `model` or `guide`, of other `args`."""
        same = {key: getattr(self, key) for key in ("model", "guide", "args", "kwargs", "clock", "whole")}
        draws = Traces(**(same | changed))
        draws._subsample = self._subsample
        return draws

    def subsample(self, plate: str) -> Tensor:
        """The rows of a plate that this draw is of."""
        return self._subsample.nodes[plate]["value"]

    def run(self, program: Program, *replayed: Trace) -> Trace:
        """A trace of a program at the values of others, on this draw's subsample."""
        for trace in (self._subsample, *replayed):
            program = poutine.replay(program, trace=trace)
        with all_rows() if self.whole else nullcontext():
            trace = traced(program, *self.args, **self.kwargs)
        for name, site in trace.nodes.items():
            if is_subsample(site) and name not in self._subsample:
                self._subsample.add_node(name, **site)
        return trace

    @cached_property
    def _pair(self) -> tuple[Trace, Trace]:
        messenger = poutine.unwrap(self.guide)
        if isinstance(messenger, poutine.messenger.Messenger):  # Pyro's GuideMessenger runs both at once
            self.run(self.guide)
            model_trace, guide_trace = messenger.get_traces()
        else:
            guide_trace = self.run(self.guide)
            model_trace = self.run(self.model, guide_trace)
        latent = latent_sites(model_trace)
        check_sites(latent, guide_trace, enumerated=[k for k, s in latent.items() if s["infer"].get("enumerate")])
        return model_trace, guide_trace

    @property
    def model_trace(self) -> Trace:
        return self._pair[0]

    @property
    def guide_trace(self) -> Trace:
        return self._pair[1]

    @cached_property
    def generated(self) -> Trace:
        return self.run(_Unobserved()(self.model))

    @cached_property
    def reconstructed(self) -> Trace:
        return self.run(_Unobserved()(self.model), self.guide_trace)

    @cached_property
    def importance(self) -> tuple[Trace, Trace]:
        """(encoded, guided) with log probabilities and score parts, as Pyro's ELBOs take them.

        Raises:
            LookupError: if the guide leaves a latent to enumeration, which no single draw stands for.
        """
        model_trace, guide_trace = self._pair
        check_drawn(model_trace, guide_trace)
        check = is_validation_enabled()
        if check:
            check_model_guide_match(model_trace, guide_trace)
        model_trace, guide_trace = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        if check:
            for trace in (model_trace, guide_trace):
                for site in sample_sites(trace).values():
                    check_site_shape(site, math.inf)
        return model_trace, guide_trace

    @cached_property
    def _left(self) -> int | None:
        """The first dimension that is free for latents that the guide leaves to enumeration; None if there are none.

        Raises:
            ValueError: if one of them cannot be enumerated.
        """
        left = {k: s for k, s in latent_sites(self.model_trace).items() if k not in self.guide_trace}
        if not left:
            return None
        check_enumerable(left)
        sites = [*sample_sites(self.model_trace).values(), *sample_sites(self.guide_trace).values()]
        return min((f.dim for s in sites for f in s["cond_indep_stack"] if f.vectorized), default=0) - 1

    @cached_property
    def sampled(self) -> Trace:
        """`model_trace`, with latents that the guide leaves to enumeration drawn from their posterior given all others.

        Raises:
            ValueError: if one of them cannot be enumerated.
        """
        if self._left is None:
            return self.model_trace
        model = self.model  # replayed inside: a run under enumeration is hidden from the handlers around it
        for trace in (self._subsample, self.guide_trace):
            model = poutine.replay(model, trace=trace)
        return self.run(infer_discrete(model, first_available_dim=self._left))

    @cached_property
    def redrawn(self) -> Trace:
        """`reconstructed`, with latents that the guide leaves to enumeration as `sampled` has them."""
        return self.reconstructed if self._left is None else self.run(_Unobserved()(self.model), self._latents)

    @cached_property
    def weighted(self) -> tuple[Trace, Trace]:
        """As `importance`, with latents that the guide leaves to enumeration summed out (see `ppgen.tracing.enumeration`).

        Raises:
            ValueError: if one of them cannot be enumerated.
        """
        if self._left is None:
            return self.importance
        with EnumMessenger(self._left):
            model_trace = prune_subsample_sites(self.run(self.model, self.guide_trace))
        guide_trace = prune_subsample_sites(self.guide_trace)
        guide_trace.compute_log_prob()
        return summed_out(model_trace), guide_trace

    def at(self, values: Trace) -> "Traces":
        """Another draw on the same rows, in which the guide draws anew all but these values."""
        return self.beside(guide=poutine.replay(self.guide, trace=values))

    @property
    def _latents(self) -> Trace:
        return holding(self.sampled, {k: s["value"] for k, s in latent_sites(self.sampled).items()})

    @property
    def observed(self) -> Trace:
        """A trace that carries the observations: one already made if there is one."""
        made = vars(self)
        return self.generated if "generated" in made and "_pair" not in made else self.model_trace

    def find(self, distribution: str, name: str) -> Site:
        """The site `name` of one of the laws ``data, posterior, prior, generated, reconstructed``.

        Raises:
            LookupError: if the law has no such site; the message lists the nearest names.
        """
        if distribution == "data":
            sites = {k: s for k, s in sample_sites(self.observed).items() if is_observed(s)}
        elif distribution == "posterior":  # without the latents that are left to enumeration, here draws of the prior
            sites = {
                k: s for k, s in sample_sites(self.model_trace).items() if s["is_observed"] or k in self.guide_trace
            }
            sites |= sample_sites(self.guide_trace)
        else:
            sites = sample_sites(self.reconstructed if distribution == "reconstructed" else self.generated)
        if name not in sites:
            raise LookupError(f"{distribution}({name!r}): the programs have no such site; {nearest(name, sites)}")
        return sites[name]

    @property
    def num_data(self) -> int:
        """Full size N of the plate "data", 1 for a program without it (its data set then counts as one datum)."""
        return plate_size(self.observed.nodes.values())


class _Unobserved(poutine.messenger.Messenger):
    """Draws observations anew and notes what they were; deterministic and factor sites stay as they are."""

    def _pyro_sample(self, msg: Site) -> None:
        if is_observed(msg):
            msg["infer"] |= {"was_observed": True, "obs": msg["value"]}
            msg.update(is_observed=False, value=None, done=False)
