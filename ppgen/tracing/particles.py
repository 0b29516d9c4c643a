"""Draws of many latents at once, and their importance weights.

A program that broadcasts runs once, under one more plate to the left of all of its own, and a particle's density is
held against what it is alone; one that does not (``x @ b``, say) runs under `torch.func.vmap`; one that reads values
runs once for each.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from ppgen.tracing.programs import validation
from ppgen.tracing.sites import (
    PARTICLES,
    Program,
    Site,
    holding,
    importance_log_weights,
    is_observed,
    latent_sites,
    log_density,
    sample_sites,
)
from ppgen.tracing.traces import Traces
from ppgen.tracing.vmap import Own

__all__ = ["log_weights", "particle_draws"]

CLOSE = {torch.float64: 1e-8, torch.float32: 1e-4}  # by which log densities may differ, in nats and relatively


def log_weights(
    model: Program, guide: Program, args: tuple, *, particles: int, kwargs: Mapping | None = None
) -> Tensor:
    """Importance log weights log p(x_i, z_ik) - log q(z_ik | x_i), in nats, without gradients.

    Returns:
        (particles, n), one column a datum, if every site lies in the plate "data"; otherwise (particles, 1),
        the weight of the whole data set. Latents that the guide leaves to enumeration are summed out.

    Raises:
        LookupError: if the guide does not serve the model.
        ValueError: if a latent that is left to enumeration cannot be enumerated.
    """
    with torch.no_grad():
        draws = particle_draws(model, guide, args, kwargs, particles=particles)
        return torch.cat([importance_log_weights(*part.weighted) for part in draws])


def particle_draws(
    model: Program, guide: Program, args: tuple, kwargs: Mapping | None = None, *, particles: int
) -> list[Traces]:
    """Draws of `particles` latents, weighed: all in one under one more plate, to the left of all of the programs' own.

    Programs that do not broadcast to such a plate (``x @ weights``, say) are mapped over the particles, or run once for
    each if they read values. Plates that draw a subsample take all of their rows, or warn that they cannot (see
    `all_rows`).
    """
    once = _with_all_rows(model, guide, args, kwargs)
    whole = once.whole
    sites = [*once.guide_trace.nodes.values(), *once.model_trace.nodes.values()]
    dims = [f.dim for s in sites if s["type"] == "sample" for f in s["cond_indep_stack"] if f.vectorized]
    outer = pyro.plate(PARTICLES, particles, dim=min(dims, default=0) - 1)
    together = Traces(outer(model), outer(guide), args, kwargs, whole=whole)
    try:
        with validation(True):  # so that most wrong broadcasts are errors
            if _broadcasts(together, once):
                return [together]
    except (RuntimeError, ValueError, IndexError):
        pass
    try:
        if once._left is None:
            mapped = _Mapped(once, particles, depth=1 - min(dims, default=0))
            mapped.importance  # noqa: B018
            return [mapped]
    except (RuntimeError, ValueError, NotImplementedError):  # an operation that no rule maps, or one that reads values
        pass
    return [Traces(model, guide, args, kwargs, whole=whole) for _ in range(particles)]


def _broadcasts(together: Traces, once: Traces) -> bool:
    """Whether a particle has the log density that it has alone.

    ``scale[:, None] * root`` runs with particles to the left too, and multiplies columns in place of rows.
    """
    values = {}
    for name, site in latent_sites(together.guide_trace).items():
        shape = once.guide_trace.nodes[name]["value"].shape
        if site["value"].numel() == shape.numel():  # of no particle's own
            values[name] = site["value"].reshape(shape)
        else:
            values[name] = site["value"][-1].reshape(shape)
    alone = together.beside(model=once.model, guide=once.guide).at(holding(once.guide_trace, values))
    last, own = (log_density(draws.weighted[0], per_datum=False)[-1] for draws in (together, alone))
    close = CLOSE.get(last.dtype, max(CLOSE.values()))
    return torch.allclose(last, own.to(last.dtype), rtol=close, atol=close, equal_nan=True)


def _with_all_rows(model: Program, guide: Program, args: tuple, kwargs: Mapping | None) -> Traces:
    """A draw on all rows of each plate; if the programs do not run so, on the rows that they choose.

    Programs that take batches, with a plate of the size of the data set around them, are of the second kind: their
    arguments are the rows. Of others it is said, since nobody has chosen these rows.
    """
    draws = Traces(model, guide, args, kwargs, whole=True)
    try:
        with validation(True):
            draws.weighted  # noqa: B018
    except (RuntimeError, ValueError, IndexError):
        draws = Traces(model, guide, args, kwargs)
        frames = [f for s in draws.model_trace.nodes.values() if s["type"] == "sample" for f in s["cond_indep_stack"]]
        parts = {len(part) for part in args if isinstance(part, Tensor) and part.dim()}
        for frame in frames:
            if (frame.full_size or frame.size) != frame.size and frame.full_size in parts:
                warnings.warn(
                    f"the plate {frame.name!r} draws {frame.size} of {frame.full_size} rows, and the programs do not "
                    "run on all of them: what follows is of a random subsample. Index by the plate's rows in the model "
                    "and in the guide (x[rows]), and give an autoguide create_plates= if it has latents in that plate",
                    stacklevel=4,
                )
                break
    return draws


class _Mapped(Traces):
    """Draws of many particles by `torch.func.vmap`: each a run of its own, for which no program need broadcast.

    Args:
        once: a draw of the programs, whose sites say of what shape a particle's are.
        depth: how many dimensions to the left of an event the particles' lies, that of all plates and one.
    """

    def __init__(self, once: Traces, particles: int, *, depth: int):
        super().__init__(once.model, once.guide, once.args, once.kwargs, clock=once.clock, whole=once.whole)
        self.once, self.particles, self.depth = once, particles, depth

    @cached_property
    def _pair(self) -> tuple[Trace, Trace]:
        model_trace, guide_trace = self._runs("importance")
        return model_trace, guide_trace

    @property
    def importance(self) -> tuple[Trace, Trace]:
        return self._pair

    @cached_property
    def generated(self) -> Trace:
        return self._runs("generated")[0]

    @cached_property
    def reconstructed(self) -> Trace:
        return self._runs("reconstructed", self.guide_trace)[0]

    def _runs(self, distribution: str, at: Trace | None = None) -> tuple[Trace, ...]:
        """The traces of one law, over all particles; at the particles' own draws of the guide, if given."""
        fixed = {} if at is None else {k: self._own(s) for k, s in latent_sites(at).items()}

        def run(number: Tensor, values: dict[str, Tensor]) -> list[dict[str, tuple[Tensor, Tensor, Tensor]]]:
            draws = Traces(self.model, self.guide, self.args, self.kwargs, clock=self.clock, whole=self.whole)
            if at is not None:
                draws._pair = (self.once.model_trace, holding(self.once.guide_trace, values))
            with Own(number):
                traces = getattr(draws, distribution)
            traces = traces if isinstance(traces, tuple) else (traces,)
            for trace in traces:
                trace.compute_log_prob()
            return [
                {k: (s["value"], s["log_prob"], s["unscaled_log_prob"]) for k, s in sample_sites(trace).items()}
                for trace in traces
            ]

        with validation(False), torch.no_grad():
            try:
                found = torch.func.vmap(run, randomness="different")(torch.arange(self.particles), fixed)
            except RuntimeError:
                if distribution == "importance":
                    raise
                found = self._one_by_one(run, fixed)  # a Beta's draws, say, which no rule maps
        like = getattr(self.once, distribution)
        like = like if isinstance(like, tuple) else (like,)
        return tuple(self._spread(trace, values) for trace, values in zip(like, found, strict=True))

    def _one_by_one(self, run: Callable, fixed: dict[str, Tensor]) -> list[dict[str, Any]]:
        """What vmap would give of a run, by as many runs as there are particles."""
        runs = [run(torch.tensor(i), {k: v[i] for k, v in fixed.items()}) for i in range(self.particles)]
        return [
            {k: tuple(map(torch.stack, zip(*(some[k] for some in traces), strict=True))) for k in traces[0]}
            for traces in zip(*runs, strict=True)
        ]

    def _spread(self, like: Trace, values: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> Trace:
        """A trace of one particle as one of all, their values in place of its own."""
        trace, frame = Trace(), CondIndepStackFrame(PARTICLES, -self.depth, self.particles, 0, self.particles)
        for name, (value, *log_probs) in values.items():
            site = like.nodes[name]
            if site["infer"].get("_deterministic"):  # whose law may call its plates' axes an event's too
                plates = -min((f.dim for f in site["cond_indep_stack"] if f.vectorized), default=0)
                rank = min(site["fn"].event_dim, max(0, site["value"].dim() - plates))
                site = {**site, "fn": pyro.distributions.Delta(site["value"], event_dim=rank)}
            log_prob, unscaled = (self._placed(part, 0) for part in log_probs)
            value = (
                site["value"]
                if site["is_observed"] and is_observed(site)
                else self._placed(value, site["fn"].event_dim)
            )
            new = {"value": value, "log_prob": log_prob}
            new |= {"unscaled_log_prob": unscaled, "cond_indep_stack": (frame, *site["cond_indep_stack"])}
            trace.add_node(name, **{**site, **new})
        return trace

    def _placed(self, value: Tensor, event_dim: int) -> Tensor:
        """The particles' dimension, which vmap puts first, where their plate has it."""
        missing = self.depth + event_dim - value.dim()
        return value.reshape(value.shape[:1] + (1,) * missing + value.shape[1:])

    def _own(self, site: Site) -> Tensor:
        """The particles' values as `_runs` has them, first and without dimensions that `_placed` added."""
        shape = self.once.guide_trace.nodes[site["name"]]["value"].shape
        return site["value"].reshape(self.particles, *shape)
