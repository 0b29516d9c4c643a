"""An ELBO that is annealed from a base distribution to the posterior, along a geometric path.

    AnnealedELBO(base)    -1/N E_q[t log p(x, z) + (1 - t) log b(z) - log q(z | x)],    t from a schedule

At a fixed t it is minimal at q = p^t b^(1 - t), normalized. A guide that first covers the base and then follows the
path finds modes that the reverse KL alone would miss, since its gradient vanishes where q has no mass. It is the ELBO
of another program: model and base together, with scaled log densities.
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
    """The NEGATIVE ELBO on the path from a base b to the model p, in nats per datum: a loss (see the module).

    Args:
        base: a Pyro program with the arguments and the latents of the model. If left out, the model's own prior: t then
            scales the observations and the factors of the model alone.
        schedule: the schedule of t from 0 to 1; a `Ramp` over the whole run if left out. ``Anneal(1.0, cycles=1,
            rise=0.5)`` reaches 1 halfway.
        elbo: a `Trace_ELBO`, as for `ELBO`.
        path_derivative: see `ELBO`.

    Raises:
        TypeError: for another ELBO, or for a schedule that is not a `Schedule`.
        LookupError: if the base has other latents than the model.
    """

    def __init__(
        self,
        base: Program | None = None,
        *,
        schedule: Schedule | None = None,
        elbo: Trace_ELBO | None = None,
        path_derivative: bool = False,
    ) -> None:
        super().__init__(elbo=elbo, path_derivative=path_derivative)
        if type(self.elbo) is not Trace_ELBO:
            raise TypeError(f"AnnealedELBO needs Trace_ELBO, got {type(self.elbo).__name__}")
        schedule = Ramp(1.0) if schedule is None else schedule
        if not isinstance(schedule, Schedule):
            raise TypeError(f"AnnealedELBO: schedule must be a Ramp or an Anneal, got {schedule!r}")
        self.base, self.schedule = base, schedule

    def value(self, traces: Traces) -> Tensor:
        """The annealed ELBO; it runs the programs itself."""
        t = self.schedule(*traces.clock)

        def annealed(*args: Any, **kwargs: Any) -> None:
            with _RecordLatents() as values, _ScaleLogDensity(t, latents=self.base is not None):
                traces.model(*args, **kwargs)
            if self.base is not None:
                with _ScaleLogDensity(1 - t), _ObserveBase(values) as observed:
                    self.base(*args, **kwargs)
                observed.check()

        return super().value(Traces(annealed, traces.guide, traces.args, traces.kwargs))

    def __str__(self) -> str:
        return f"{super().__str__()}[{self.schedule}]"


class _ScaleLogDensity(Messenger):
    """Multiplies log densities by a weight, which may be zero; those of latents if `latents`."""

    def __init__(self, weight: Tensor, *, latents: bool = True) -> None:
        super().__init__()
        self.weight, self.latents = weight, latents

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if self.latents or msg["is_observed"]:
            msg["scale"] = self.weight * msg["scale"]


class _RecordLatents(Messenger):
    """Records the values of latents and the indices of subsamples."""

    def __enter__(self) -> "_RecordLatents":
        self.latents: dict[str, Tensor] = {}
        self.subsamples: dict[str, Tensor] = {}
        return super().__enter__()

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"]:
            (self.subsamples if is_subsample(msg) else self.latents)[msg["name"]] = msg["value"]


class _ObserveBase(SubstituteLatents):
    """Observes the latents of the base at the values that the model drew, under names of their own."""

    def __init__(self, values: _RecordLatents) -> None:
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
