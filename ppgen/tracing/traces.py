"""The traces of one training step, each made on first use and shared by all terms of a loss.

Notation: the model p(x, z) = p(z) p(x | z) and the guide q(z | x) are Pyro programs, called with the same arguments; x
is the observed data and x' an observation that is sampled again. Four traces serve most objectives:

    guide_trace             z ~ q(z | x)                        the guide on the data
    model_trace             z ~ q(z | x), x                     the model at the guide's z and the observed x
    generated               z ~ p(z), x' ~ p(x' | z)            the model on its own
    reconstructed           z ~ q(z | x), x' ~ p(x' | z)        the model at the guide's z

A guide may leave discrete latents c to enumeration, so that p(x, z, c) = p(z) p(c | z) p(x | z, c). The traces above
then draw c ~ p(c | z) from its prior, and three more treat it exactly:

    with_summed_discrete    log p(x, z) = log sum_c p(x, z, c), and log q(z | x)
    with_sampled_discrete   z ~ q(z | x), c ~ p(c | z, x), x
    posterior_predictive    z ~ q(z | x), c ~ p(c | z, x), x' ~ p(x' | z, c)

All traces use one subsample of each plate, so that their rows are the same data.
"""

import math
from collections.abc import Hashable, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor

from ppgen.tracing.enumeration import check_declared_dims, check_enumerable, sample_enumerated, sum_out_enumerated
from ppgen.tracing.plates import all_rows
from ppgen.tracing.programs import get_trace
from ppgen.tracing.sites import (
    Program,
    Site,
    check_guide_sites,
    check_no_enumeration,
    data_plate_size,
    did_you_mean,
    imputed_latents,
    is_observed,
    is_subsample,
    latent_sites,
    sample_sites,
    trace_with_values,
)


class Traces:
    """The traces of a model and a guide on one batch, each made on first use (formulas in the module's docstring).

    Args:
        model: a Pyro program, called as ``model(*args, **kwargs)``.
        guide: a Pyro program, called as ``guide(*args, **kwargs)``.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        clock: the number of the step and the length of the run (None if unknown), for schedules.
        use_all_rows: whether plates that would draw a subsample use all of their rows (see `all_rows`).
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: tuple = (),
        kwargs: Mapping | None = None,
        *,
        clock: tuple[Tensor, int | None] | None = None,
        use_all_rows: bool = False,
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, dict(kwargs or {})
        self.use_all_rows = use_all_rows
        self.clock = (torch.zeros((), dtype=torch.long), None) if clock is None else clock
        self.shared: dict[Hashable, Any] = {}
        """Results that several loss terms share, under keys on which they agree."""
        self._subsample = Trace()

    def replace(self, **changes: Any) -> "Traces":
        """New traces on the same subsample of each plate, with another `model`, `guide`, `args` or `kwargs`."""
        same = {key: getattr(self, key) for key in ("model", "guide", "args", "kwargs", "clock", "use_all_rows")}
        traces = Traces(**(same | changes))
        traces._subsample = self._subsample
        return traces

    def resampled(self, *, fixed: Trace) -> "Traces":
        """New traces on the same rows, in which the guide samples again all latents except those in `fixed`."""
        return self.replace(guide=poutine.replay(self.guide, trace=fixed))

    def subsample(self, plate: str) -> Tensor:
        """The row indices that a plate uses."""
        return self._subsample.nodes[plate]["value"]

    def run(self, program: Program, *replayed: Trace) -> Trace:
        """A trace of a program on these rows, at the values of other traces."""
        for trace in (self._subsample, *replayed):
            program = poutine.replay(program, trace=trace)
        with all_rows() if self.use_all_rows else nullcontext():
            trace = get_trace(program, *self.args, **self.kwargs)
        for name, site in trace.nodes.items():
            if is_subsample(site) and name not in self._subsample:
                self._subsample.add_node(name, **site)
        for name in imputed_latents(trace):  # a guide that does not mask them has a density for all of their entries
            if any(name in other and other.nodes[name]["mask"] is None for other in replayed):
                trace.nodes[name]["mask"] = None
        return trace

    @cached_property
    def _model_and_guide(self) -> tuple[Trace, Trace]:
        messenger = poutine.unwrap(self.guide)
        if isinstance(messenger, poutine.messenger.Messenger):  # Pyro's GuideMessenger runs both at once
            self.run(self.guide)
            model_trace, guide_trace = messenger.get_traces()
        else:
            guide_trace = self.run(self.guide)
            model_trace = self.run(self.model, guide_trace)
        latent = latent_sites(model_trace)
        enumerated = [k for k, s in latent.items() if s["infer"].get("enumerate")]
        observed = [k for k, s in sample_sites(model_trace).items() if is_observed(s)]
        check_guide_sites(latent, guide_trace, enumerated=enumerated, observed=observed)
        return model_trace, guide_trace

    @property
    def model_trace(self) -> Trace:
        """The model at z ~ q(z | x) and the observed x.

        Raises:
            LookupError: if the guide misses a latent of the model, or draws a site that is not one.
        """
        return self._model_and_guide[0]

    @property
    def guide_trace(self) -> Trace:
        """The guide: z ~ q(z | x).

        Raises:
            LookupError: as `model_trace`.
        """
        return self._model_and_guide[1]

    @cached_property
    def generated(self) -> Trace:
        """The model on its own: z ~ p(z), x' ~ p(x' | z)."""
        return self.run(SampleObservations()(self.model))

    @cached_property
    def reconstructed(self) -> Trace:
        """The model at the guide's latents: z ~ q(z | x), x' ~ p(x' | z)."""
        return self.run(SampleObservations()(self.model), self.guide_trace)

    @cached_property
    def with_log_probs(self) -> tuple[Trace, Trace]:
        """`model_trace` with log p and `guide_trace` with log q and score parts, as Pyro's ELBOs expect them.

        Raises:
            LookupError: as `model_trace`; if the guide leaves a latent to enumeration.
        """
        model_trace, guide_trace = self._model_and_guide
        check_no_enumeration(model_trace, guide_trace)
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
    def enumeration_dim(self) -> int | None:
        """The first dimension for latents that the guide leaves to enumeration; None if it leaves none.

        The dimension to its right is free for a plate of particles.

        Raises:
            ValueError: if one of them cannot be enumerated, or a dimension is not that of a plate.
        """
        enumerated = {k: s for k, s in latent_sites(self.model_trace).items() if k not in self.guide_trace}
        if not enumerated:
            return None
        check_enumerable(enumerated)
        check_declared_dims(self.model_trace)
        sites = [*sample_sites(self.model_trace).values(), *sample_sites(self.guide_trace).values()]
        return min((f.dim for s in sites for f in s["cond_indep_stack"] if f.vectorized), default=0) - 2

    @cached_property
    def enumerated(self) -> Trace:
        """As `model_trace`, but latents c left to enumeration have all of their values, in dimensions of their own."""
        # inside of the replay, so that it sees the sites whose values are replayed
        model = poutine.enum(self.model, first_available_dim=self.enumeration_dim)
        trace = prune_subsample_sites(self.run(model, self.guide_trace))
        trace.compute_log_prob()
        return trace

    @cached_property
    def sampled_discrete(self) -> Trace:
        """Latents c left to enumeration, drawn from their posterior c ~ p(c | z, x); a trace to replay."""
        return trace_with_values(self.enumerated, sample_enumerated(self.enumerated))

    @cached_property
    def with_summed_discrete(self) -> tuple[Trace, Trace]:
        """As `with_log_probs`, but latents c left to enumeration are summed out: log p(x, z) = log sum_c p(x, z, c).

        Raises:
            ValueError: if one of them cannot be enumerated.
        """
        if self.enumeration_dim is None:
            return self.with_log_probs
        guide_trace = prune_subsample_sites(self.guide_trace)
        guide_trace.compute_log_prob()
        return sum_out_enumerated(self.enumerated), guide_trace

    @cached_property
    def with_sampled_discrete(self) -> Trace:
        """As `model_trace`, but latents c left to enumeration come from their posterior: c ~ p(c | z, x).

        Raises:
            ValueError: if one of them cannot be enumerated.
        """
        if self.enumeration_dim is None:
            return self.model_trace
        return self.run(self.model, self.guide_trace, self.sampled_discrete)

    @cached_property
    def posterior_predictive(self) -> Trace:
        """As `reconstructed`, but with the latents of `with_sampled_discrete`: x' ~ p(x' | z, c), c ~ p(c | z, x).

        Raises:
            ValueError: as `with_sampled_discrete`.
        """
        if self.enumeration_dim is None:
            return self.reconstructed
        return self.run(SampleObservations()(self.model), self.guide_trace, self.sampled_discrete)

    @property
    def _with_observations(self) -> Trace:
        """A trace that holds the observations: one already made, if there is one."""
        made = vars(self)
        return self.generated if "generated" in made and "_model_and_guide" not in made else self.model_trace

    def find(self, distribution: str, name: str) -> Site:
        """The site `name` of one distribution.

        Args:
            distribution: "data" (observed x), "posterior" (guide), "prior", "generated" or "reconstructed".
            name: the site.

        Raises:
            LookupError: if there is no such site; the message suggests similar names.
        """
        if distribution == "data":
            sites = {k: s for k, s in sample_sites(self._with_observations).items() if is_observed(s)}
        elif distribution == "posterior":  # latents left to enumeration are excluded: here they are prior draws
            sites = {
                k: s for k, s in sample_sites(self.model_trace).items() if s["is_observed"] or k in self.guide_trace
            }
            sites |= sample_sites(self.guide_trace)
        else:
            sites = sample_sites(self.reconstructed if distribution == "reconstructed" else self.generated)
        if name not in sites:
            raise LookupError(f"{distribution}({name!r}): the programs have no such site; {did_you_mean(name, sites)}")
        return sites[name]

    @property
    def num_data(self) -> int:
        """The full size N of the plate "data"; 1 without that plate, when the whole data set counts as one datum."""
        return data_plate_size(self._with_observations.nodes.values())


class SampleObservations(poutine.messenger.Messenger):
    """Samples observed sites again and keeps their observed values; leaves deterministic and factor sites alone."""

    def _pyro_sample(self, msg: Site) -> None:
        if is_observed(msg):
            msg["infer"] |= {"was_observed": True, "obs": msg["value"]}
            msg.update(is_observed=False, value=None, done=False)
