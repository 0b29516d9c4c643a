"""Evidence that is annealed from a base: from a law that is easy to cover to the posterior, along a geometric path.

    AnnealedELBO(base)    -1/N E_q[t log p(x, z) + (1 - t) log b(z) - log q(z | x)],    t by a schedule

whose minimum at a fixed t is q = p^t b^(1 - t), normalized. A guide that is first spread over the base, and follows
the path from there, finds modes that the reverse KL by itself would drop: it has no slope toward where q is not. It is
the evidence of a program of its own, the two put together with their log densities weighed, so that nothing else has to
know of it.
"""

from typing import Any

from pyro.infer import Trace_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.losses.elbo import ELBO
from ppgen.losses.weights import Ramp, Schedule
from ppgen.tracing.programs import SubstituteLatents
from ppgen.tracing.sites import Program, did_you_mean, is_subsample
from ppgen.tracing.traces import Traces

__all__ = ["AnnealedELBO"]


class AnnealedELBO(ELBO):
    """The negative evidence on the way from a base b to the model p, in nats per datum (see the module).

    Args:
        base: a Pyro program that takes what the model takes and draws its latents, by name. If left out, the model's
            own prior: then t weighs the model's observations and factors alone.
        schedule: of t, from 0 to 1; over the whole run if left out. ``Anneal(1.0, cycles=1, rise=0.5)`` arrives
            halfway.
        elbo, path_derivative: as of `ELBO`; a `Trace_ELBO`. It makes its own draws.

    Raises:
        TypeError: for another ELBO, or a schedule that is none.
        LookupError: if the base draws other latents than the model.
    """

    def __init__(
        self,
        base: Program | None = None,
        *,
        schedule: Schedule | None = None,
        elbo: Trace_ELBO | None = None,
        path_derivative: bool = False,
    ):
        super().__init__(elbo=elbo, path_derivative=path_derivative)
        if type(self.elbo) is not Trace_ELBO:
            raise TypeError(f"AnnealedELBO goes with Trace_ELBO, and not with {type(self.elbo).__name__}")
        schedule = Ramp(1.0) if schedule is None else schedule
        if not isinstance(schedule, Schedule):
            raise TypeError(f"AnnealedELBO: schedule is a Ramp or an Anneal, got {schedule!r}")
        self.base, self.schedule = base, schedule

    def value(self, draws: Traces) -> Tensor:
        t = self.schedule(*draws.clock)

        def between(*args: Any, **kwargs: Any) -> None:
            with _Values() as values, _Weighed(t, latents=self.base is not None):
                draws.model(*args, **kwargs)
            if self.base is not None:
                with _Weighed(1 - t), _ObserveBase(values) as observed:
                    self.base(*args, **kwargs)
                observed.check()

        return super().value(Traces(between, draws.guide, draws.args, draws.kwargs))

    def __str__(self) -> str:
        return f"{super().__str__()}[{self.schedule}]"


class _Weighed(Messenger):
    """Multiplies log densities by a weight, which may be zero; those of latents too, or not."""

    def __init__(self, weight: Tensor, *, latents: bool = True):
        super().__init__()
        self.weight, self.latents = weight, latents

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if self.latents or msg["is_observed"]:
            msg["scale"] = self.weight * msg["scale"]


class _Values(Messenger):
    """Notes the values of latents, and those of plates' subsamples."""

    def __enter__(self) -> "_Values":
        self.latents: dict[str, Tensor] = {}
        self.subsamples: dict[str, Tensor] = {}
        return super().__enter__()

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"]:
            (self.subsamples if is_subsample(msg) else self.latents)[msg["name"]] = msg["value"]


class _ObserveBase(SubstituteLatents):
    """Observes the latents of the base at the values that the model drew, under names of their own."""

    def __init__(self, values: _Values):
        self.values, self.missing = values.latents | values.subsamples, set(values.latents)
        super().__init__(self._value)

    def _value(self, site: dict[str, Any]) -> Tensor:
        name = site["name"]
        if name not in self.values:
            known = did_you_mean(name, self.values)
            raise LookupError(f"AnnealedELBO: the base draws {name!r}, which is no latent of the model; {known}")
        self.missing.discard(name)
        return self.values[name]

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"]:
            super()._pyro_sample(msg)
            msg.update(name=f"base of {msg['name']}", is_observed=not is_subsample(msg))

    def check(self) -> None:
        if missing := sorted(self.missing):
            raise LookupError(
                f"AnnealedELBO: the base does not draw {', '.join(map(repr, missing))}, which the model samples; "
                "add a pyro.sample of that name to the base"
            )
