"""Pyro's hidden Markov models as likelihoods of a series.

A homogeneous model may leave out its ``duration``, and has a density of a series of any length, but neither draws nor a
shape. Here it has the duration of the series that it observes.

`LinearHMM` has no density. Given auxiliary scales of its noise, one for each time, it is a `GaussianHMM`, which has
one: Student's t is a normal distribution given a gamma variable, and so is a stable one given others (Pyro's
`LinearHMMReparam`). These variables, ``y_trans_gamma`` for example, are latents of the program.
"""

import copy
from typing import Any

from pyro.distributions import Independent, LinearHMM, MaskedDistribution, Normal, Stable, StudentT
from pyro.distributions.hmm import HiddenMarkovModel, IndependentHMM
from pyro.infer.reparam import LinearHMMReparam, StableReparam, StudentTReparam
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import MultivariateNormal, TransformedDistribution

from ppgen.tracing.double_precision import ProgramInContext
from ppgen.tracing.sites import Site

__all__ = ["SeriesLikelihoods", "SeriesProgram"]

# reparametrizations under which noise is Gaussian
GAUSSIAN = {Normal: None, MultivariateNormal: None, StudentT: StudentTReparam, Stable: StableReparam}


class SeriesLikelihoods(Messenger):
    """A handler under which hidden Markov models know the duration of what they observe, and all have a density."""

    def _pyro_sample(self, msg: Site) -> None:
        value = msg["value"] if msg["is_observed"] else msg["infer"].get("obs")
        if not isinstance(value, Tensor):
            return
        fn = _with_duration(msg["fn"], value)
        if (linear := _linear(fn)) is not None:
            given = {key: msg[key] for key in ("name", "value", "is_observed")}
            msg.update(_reparam(msg["name"], linear).apply({**given, "fn": fn}))
        else:
            msg["fn"] = fn


class SeriesProgram(ProgramInContext):
    """A program under `SeriesLikelihoods`, also where it is not traced by `ppgen`, as in Pyro's autoguides."""

    context = staticmethod(SeriesLikelihoods)


def _with_duration(fn: Any, value: Tensor) -> Any:
    """A distribution whose hidden Markov model has the duration of a value, if it had none."""
    if isinstance(fn, HiddenMarkovModel):
        if fn.duration is not None:
            return fn
        made = copy.copy(fn)
        duration = value.shape[value.dim() - fn.event_dim]
        HiddenMarkovModel.__init__(made, duration, fn.batch_shape, fn.event_shape)
        return made
    if not hasattr(fn, "base_dist") or (base := _with_duration(fn.base_dist, _base_value(fn, value))) is fn.base_dist:
        return fn
    if isinstance(fn, Independent):
        return base.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, MaskedDistribution):
        return base.mask(fn._mask)
    if isinstance(fn, IndependentHMM):
        return IndependentHMM(base)
    return type(fn)(base, fn.transforms) if isinstance(fn, TransformedDistribution) else fn


def _base_value(fn: Any, value: Tensor) -> Tensor:
    """The value of the distribution inside of another, as far as its duration goes."""
    return value.transpose(-1, -2)[..., None] if isinstance(fn, IndependentHMM) else value


def _linear(fn: Any) -> LinearHMM | None:
    """The `LinearHMM` inside of a distribution, or None."""
    while isinstance(fn, Independent | IndependentHMM):
        fn = fn.base_dist
    return fn if isinstance(fn, LinearHMM) else None


def _reparam(name: str, hmm: LinearHMM) -> LinearHMMReparam:
    """The reparametrization under which a model is Gaussian.

    Raises:
        NotImplementedError: if there is none for its noise.
    """
    parts = {"init": hmm.initial_dist, "trans": hmm.transition_dist, "obs": hmm.observation_dist}
    found = {}
    for part, noise in parts.items():
        while isinstance(noise, Independent):
            noise = noise.base_dist
        kind = next((known for known in GAUSSIAN if isinstance(noise, known)), None)
        if kind is None:
            raise NotImplementedError(
                f"site {name!r}: a LinearHMM has a density where its noise is normal, StudentT or Stable, and its "
                f"{part} is {type(noise).__name__}: take StudentT, whose tails are heavy too"
            )
        found[part] = GAUSSIAN[kind] and GAUSSIAN[kind]()
    return LinearHMMReparam(**found)
