"""Many particles at once, z_k ~ q(z | x) for k = 1 .. K, and their importance weights.

Three ways to run K particles, from the fastest to the most general:

1. Programs that broadcast run once, under one more plate to the left of all of their own. The values and log densities
   of particles are compared with runs of these particles alone.
2. Programs that do not broadcast (``x @ b``, ``b.sum()``) run under `torch.func.vmap`.
3. Programs that vmap refuses, because they read values, run once for each particle.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro.distributions import Delta
from pyro.infer import config_enumerate
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.tracing.broadcasting import broadcasts_correctly
from ppgen.tracing.loss_scales import without_loss_scales
from ppgen.tracing.masks import site_mask
from ppgen.tracing.programs import WithoutValidation, program_name, validation, warn_one_by_one
from ppgen.tracing.sites import (
    PARTICLES,
    Program,
    Site,
    check_no_enumeration,
    importance_log_weights,
    is_deterministic,
    is_observed,
    is_subsample,
    latent_sites,
    sample_sites,
    trace_with_values,
)
from ppgen.tracing.stored_draws import InOrder
from ppgen.tracing.traces import Traces
from ppgen.tracing.unmapped import DrawsOutside, compute_log_probs
from ppgen.tracing.vmap import UnsharedTensors, permissive_vmap
from ppgen.utils.user_warnings import warn_user

__all__ = ["ConditionedTraces", "log_weights", "particle_traces"]

OUTSIDE_SUPPORT = "to be within the support"  # in torch's error about a value
MAX_DRAWS = 30  # that may be tried until data lie within all supports


def log_weights(
    model: Program, guide: Program, args: tuple, *, particles: int, kwargs: Mapping | None = None
) -> Tensor:
    """Importance log weights log p(x_i, z_ik) - log q(z_ik | x_i), in nats, without gradients.

    Latents that the guide leaves to enumeration are summed out.

    Args:
        model: a Pyro program.
        guide: a Pyro program.
        args: positional arguments of both.
        particles: K.
        kwargs: keyword arguments of both.

    Returns:
        (K, n), one column per datum, if every site lies in the plate "data"; otherwise (K, 1), the weight of the whole
        data set.

    Raises:
        LookupError: if the guide does not draw the latents of the model.
        ValueError: if a latent that the guide leaves to enumeration cannot be enumerated.
    """
    with torch.no_grad():
        parts = particle_traces(model, guide, args, kwargs, particles=particles)
    with torch.no_grad(), validation(False):
        return torch.cat([importance_log_weights(*part.with_summed_discrete) for part in parts])


def particle_traces(
    model: Program,
    guide: Program,
    args: tuple,
    kwargs: Mapping | None = None,
    *,
    particles: int,
    report: bool = True,
    first: int = 0,
) -> list[Traces]:
    """Traces of K particles: one `Traces` of all of them, or K of one particle each (see the module's docstring).

    Plates that would draw a subsample use all of their rows (see `all_rows`). If the programs do not run on all rows,
    they use a random subsample, with a warning.

    Args:
        model: a Pyro program.
        guide: a Pyro program.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        particles: K.
        report: whether a warning names programs that run once for each particle.
        first: the number of the first particle, for a guide of stored draws, which come in their order.

    Raises:
        LookupError: if the guide does not draw the latents of the model.
        ValueError: if a latent that the guide leaves to enumeration cannot be enumerated.
    """
    single = _with_all_rows(model, guide, args, kwargs)
    use_all_rows, _ = single.use_all_rows, single.enumeration_dim  # raises if a latent cannot be enumerated
    single, name = without_loss_scales(single), program_name(model)
    model, guide = WithoutValidation()(single.model), single.guide  # at some draws, data may lie outside of a support
    sites = [*single.guide_trace.nodes.values(), *single.model_trace.nodes.values()]
    dims = [f.dim for s in sites if s["type"] == "sample" for f in s["cond_indep_stack"] if f.vectorized]
    plate = pyro.plate(PARTICLES, particles, dim=min(dims, default=0) - 1)
    batched = Traces(plate(model), InOrder(first)(plate(guide)), args, kwargs, use_all_rows=use_all_rows)
    try:
        with validation(True, values=False):  # turns most wrong broadcasts into errors
            _check_broadcast_shapes(model, guide, single, plate.dim)
            if broadcasts_correctly(batched, single):
                return [batched]
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):  # Pyro asserts shapes
        pass
    try:
        mapped = _VmappedTraces(single, particles, depth=1 - min(dims, default=0), first=first)
        mapped.with_summed_discrete  # noqa: B018
        return [mapped]
    except (RuntimeError, ValueError, NotImplementedError):  # vmap has no rule for an operation, or a value is read
        pass
    if particles > 1 and report:
        warn_one_by_one(name)
    guides = [InOrder(first + number)(guide) for number in range(particles)]
    return [Traces(model, guide, args, kwargs, use_all_rows=use_all_rows) for guide in guides]


class _PlatesOnly(Messenger):
    """A handler that refuses a batch shape that reaches beyond the plate of particles.

    Args:
        dim: the dimension of that plate.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def _pyro_post_sample(self, msg: Site) -> None:
        if not is_subsample(msg) and len(msg["fn"].batch_shape) > -self.dim:
            raise ValueError(f"site {msg['name']!r}: the batch shape {tuple(msg['fn'].batch_shape)} exceeds its plates")


def _check_broadcast_shapes(model: Program, guide: Program, single: Traces, dim: int) -> None:
    """Runs programs with two particles, since a wrong broadcast of many can need much more memory than their traces.

    Raises:
        ValueError: if a site's batch shape exceeds its plates.
    """
    plate = pyro.plate(PARTICLES, 2, dim=dim)
    with _PlatesOnly(dim), torch.random.fork_rng(devices=[]):
        Traces(plate(model), plate(guide), single.args, single.kwargs, use_all_rows=single.use_all_rows).model_trace  # noqa: B018


def _with_all_rows(model: Program, guide: Program, args: tuple, kwargs: Mapping | None) -> Traces:
    """Traces on all rows of each plate, or on the rows that the programs choose if they do not run on all rows.

    Programs whose arguments are a batch, under a plate of the size of the data set, do not run on all rows, and have
    chosen theirs. If instead an argument holds the whole data set, the subsample is random, and a warning says so.
    """
    traces = Traces(model, guide, args, kwargs, use_all_rows=True)
    try:
        with validation(True):
            return _inside_supports(traces)
    except (RuntimeError, ValueError, IndexError) as error:
        if OUTSIDE_SUPPORT in str(error):
            raise
        traces = _inside_supports(Traces(model, guide, args, kwargs))
        sites = [site for site in traces.model_trace.nodes.values() if site["type"] == "sample"]
        frames = [frame for site in sites for frame in site["cond_indep_stack"]]
        lengths = {len(part) for part in args if isinstance(part, Tensor) and part.dim()}
        for frame in frames:
            if (frame.full_size or frame.size) != frame.size and frame.full_size in lengths:
                warn_user(
                    f"the plate {frame.name!r} draws {frame.size} of {frame.full_size} rows, and the programs do not "
                    "run on all of them: the result is for a random subsample. Index by the plate's rows in the model "
                    "and in the guide (x[rows]), and give an autoguide create_plates= if it has latents in that plate"
                )
                break
    return traces


def _inside_supports(traces: Traces) -> Traces:
    """These traces, or others on the same rows, with data inside of all supports, where torch validates.

    A support may depend on latents, so that data lie outside of it at some draws, which then have weight 0.

    Raises:
        ValueError: if data lie outside of a support at each of several draws.
    """
    for _ in range(MAX_DRAWS - 1):
        try:
            traces.with_summed_discrete  # noqa: B018
            return traces
        except ValueError as error:
            if OUTSIDE_SUPPORT not in str(error):
                raise
            traces = traces.replace()
    traces.with_summed_discrete  # noqa: B018
    return traces


class _VmappedTraces(Traces):
    """Traces of many particles by `torch.func.vmap`: each particle is a run of its own, so programs need not broadcast.

    Args:
        single: traces of one particle, which give the shape of each site.
        particles: K.
        depth: the position of the particles' plate: how many dimensions left of the event, one more than all plates.
        first: the number of the first particle.
    """

    may_loop = False  # whether what vmap refuses runs in a loop; otherwise it raises

    def __init__(self, single: Traces, particles: int, *, depth: int, first: int = 0) -> None:
        programs = WithoutValidation()(single.model), single.guide, single.args, single.kwargs
        super().__init__(*programs, clock=single.clock, use_all_rows=single.use_all_rows)
        self.single, self.particles, self.depth, self.first = single, particles, depth, first

    @cached_property
    def _model_and_guide(self) -> tuple[Trace, Trace]:
        model_trace, guide_trace = self._run_particles("_model_and_guide")
        return model_trace, guide_trace

    @property
    def with_log_probs(self) -> tuple[Trace, Trace]:
        check_no_enumeration(*self._model_and_guide)
        return self._model_and_guide

    @cached_property
    def enumerated(self) -> Trace:
        return self._run_particles("enumerated", at=self.guide_trace)[0]

    @cached_property
    def with_sampled_discrete(self) -> Trace:
        if self.enumeration_dim is None:
            return self.model_trace
        return self._run_particles("with_sampled_discrete", at=self.guide_trace, discrete=self.sampled_discrete)[0]

    @cached_property
    def posterior_predictive(self) -> Trace:
        if self.enumeration_dim is None:
            return self.reconstructed
        return self._run_particles("posterior_predictive", at=self.guide_trace, discrete=self.sampled_discrete)[0]

    @cached_property
    def generated(self) -> Trace:
        return self._run_particles("generated")[0]

    @cached_property
    def reconstructed(self) -> Trace:
        return self._run_particles("reconstructed", at=self.guide_trace)[0]

    def _guide_of(self, number: Tensor) -> Program:
        """The guide of one particle."""
        return self.guide

    def _run_particles(self, kind: str, *, at: Trace | None = None, discrete: Trace | None = None) -> tuple[Trace, ...]:
        """The traces of one kind, for all particles.

        Args:
            kind: an attribute of `Traces`.
            at: a trace of the guide to take the latents from.
            discrete: a trace to take the latents from that the guide leaves to enumeration.
        """
        latents = {} if at is None else {k: self._particle_values(s) for k, s in latent_sites(at).items()}
        if discrete is not None:
            shapes = {k: s["value"].shape for k, s in self.single.sampled_discrete.nodes.items()}
            latents |= {k: s["value"].reshape(-1, *shapes[k]) for k, s in discrete.nodes.items()}

        def run(number: Tensor, values: dict[str, Tensor]) -> list[dict[str, tuple[Tensor, ...]]]:
            """The value, log probability, unscaled log probability and mask of each site, for one particle."""
            programs = self.model, self._guide_of(number), self.args, self.kwargs
            traces = Traces(*programs, clock=self.clock, use_all_rows=self.use_all_rows)
            if at is not None:
                drawn = {k: v for k, v in values.items() if k in at}
                traces._model_and_guide = (self.single.model_trace, trace_with_values(self.single.guide_trace, drawn))
            if discrete is not None:
                drawn = {k: v for k, v in values.items() if k in discrete}
                traces.sampled_discrete = trace_with_values(self.single.sampled_discrete, drawn)
            with UnsharedTensors(number), DrawsOutside(number), InOrder(self.first + number):
                found = _as_tuple(getattr(traces, kind))
                for trace in found:
                    compute_log_probs(trace, number)
            return [
                {
                    k: (s["value"], s["log_prob"], s["unscaled_log_prob"], site_mask(s))
                    for k, s in sample_sites(trace).items()
                }
                for trace in found
            ]

        with validation(False), permissive_vmap(), torch.no_grad():
            try:
                batched = torch.func.vmap(run, randomness="different")(torch.arange(self.particles), latents)
            except RuntimeError:
                if kind in ("_model_and_guide", "enumerated"):
                    if not self.may_loop:
                        raise
                    warn_one_by_one(program_name(self.model))
                batched = self._loop(run, latents)  # vmap has no rule for some draws, a Beta's for example
        templates = _as_tuple(getattr(self.single, kind))
        return tuple(self._batched_trace(trace, values) for trace, values in zip(templates, batched, strict=True))

    def _loop(self, run: Callable, latents: dict[str, Tensor]) -> list[dict[str, Any]]:
        """The result of vmap over a run, by a loop over the particles."""
        runs = [run(torch.tensor(i), {k: v[i] for k, v in latents.items()}) for i in range(self.particles)]
        return [
            {k: tuple(map(torch.stack, zip(*(trace[k] for trace in traces), strict=True))) for k in traces[0]}
            for traces in zip(*runs, strict=True)
        ]

    def _batched_trace(self, template: Trace, values: Mapping[str, tuple[Tensor, ...]]) -> Trace:
        """The trace of one particle with the values and log probabilities of all."""
        trace, frame = Trace(), CondIndepStackFrame(PARTICLES, -self.depth, self.particles, 0, self.particles)
        for name, (value, *parts) in values.items():
            site = {k: v for k, v in template.nodes[name].items() if k not in ("packed", "score_parts", "log_prob_sum")}
            if is_deterministic(site):  # its Delta may count the axes of plates as event axes
                plates = -min((f.dim for f in site["cond_indep_stack"] if f.vectorized), default=0)
                rank = min(site["fn"].event_dim, max(0, site["value"].dim() - plates))
                site["fn"] = Delta(site["value"], event_dim=rank).mask(False)
            log_prob, unscaled, mask = (self._move_to_plate(part, 0) for part in parts)
            if site["is_observed"] and is_observed(site):
                value = site["value"]
            else:
                value = self._move_to_plate(value, site["fn"].event_dim)
            site |= {"value": value, "log_prob": log_prob, "unscaled_log_prob": unscaled}
            site |= {} if site["mask"] is None else {"mask": mask}
            site |= {"infer": dict(site["infer"]), "cond_indep_stack": (frame, *site["cond_indep_stack"])}
            trace.add_node(name, **site)
        return trace

    def _move_to_plate(self, value: Tensor, event_dim: int) -> Tensor:
        """Moves the particles' dimension from the front, where vmap puts it, to their plate's.

        Dimensions to the left of the plate are those of enumeration, which leaves a dimension of size 1 for the plate.
        """
        depth = self.depth + event_dim
        if value.dim() > depth:
            return value.transpose(0, -depth).squeeze(0)
        return value.reshape(value.shape[:1] + (1,) * (depth - value.dim()) + value.shape[1:])

    def _particle_values(self, site: Site) -> Tensor:
        """The inverse of `_move_to_plate`: (particles, *shape of one particle's value)."""
        shape = self.single.guide_trace.nodes[site["name"]]["value"].shape
        return site["value"].reshape(self.particles, *shape)


class ConditionedTraces(_VmappedTraces):
    """Traces of K particles, of which particle k has the given latents z_k.

    The guide is a point at z_k, with log q = 0. Discrete latents without a value are summed out, as by Pyro's HMC.

    Args:
        model: a Pyro program.
        args: its positional arguments.
        kwargs: its keyword arguments.
        values: z, (K, *shape) for each latent.

    Raises:
        LookupError: if a continuous latent has no value, or a value belongs to no latent.
    """

    may_loop = True

    def __init__(self, model: Program, args: tuple, kwargs: Mapping | None, values: Mapping[str, Tensor]) -> None:
        self.values = values
        model = config_enumerate(model)
        single = Traces(model, self._guide_of(0), args, kwargs)
        sites = sample_sites(single.model_trace).values()
        dims = [frame.dim for site in sites for frame in site["cond_indep_stack"] if frame.vectorized]
        super().__init__(single, len(next(iter(values.values()))), depth=1 - min(dims, default=0))

    def _guide_of(self, number: Tensor | int) -> Program:
        def guide(*args: Any, **kwargs: Any) -> None:
            for name, value in self.values.items():
                point = value[number]
                pyro.sample(name, Delta(point, event_dim=point.dim()))

        return guide


def _as_tuple(traces: Trace | tuple[Trace, ...]) -> tuple[Trace, ...]:
    return traces if isinstance(traces, tuple) else (traces,)
