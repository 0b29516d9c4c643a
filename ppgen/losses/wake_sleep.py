"""Wake and sleep: each program learns from draws of the other (Hinton et al. 1995; Bornschein & Bengio 2015).

With z_k ~ q(z | x) at data x, weights w_k = p(x, z_k) / q(z_k | x), k = 1 .. K, and N as in `ppgen.losses.elbo`,

    Wake(particles=K)       -1/N log mean_k w_k                         moves the model; z and q are held still
    WakeInference(particles=K)  -1/N sum_k w_k log q(z_k | x) / sum_k w_k   moves the guide; z and w are held still
    Sleep()                 -1/N E_{p(x, z)} log q(z | x)               moves the guide; z and x are the model's draws

``Wake() + Sleep()`` is wake-sleep, since no term reaches the other's program. `Sleep` alone is the inclusive KL of the
joint laws, up to the entropy of z given x: at its minimum q(z | x) = p(z | x) for all x that the model generates. With
a simulator for a model (`ppgen.Simulator`) that is neural posterior estimation. No term asks a latent for an
`rsample`, so all of them serve discrete ones.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer import RenyiELBO
from pyro.poutine import Trace
from torch import Tensor

from ppgen.losses.objective import Term
from ppgen.tracing.programs import SubstituteLatents, check_separate_guide, signature
from ppgen.tracing.sites import (
    Program,
    Site,
    check_guide_sites,
    data_plate,
    data_plate_size,
    did_you_mean,
    is_delta,
    is_local,
    is_observed,
    is_subsample,
    latent_sites,
    log_density,
    sample_sites,
    trace_with_values,
)
from ppgen.tracing.traces import Traces

__all__ = ["Sleep", "Wake", "WakeInference", "dream"]


class _Waking(Term):
    """A term of K draws of the guide at data."""

    def __init__(self, particles: int, least: int):
        super().__init__()
        if not (isinstance(particles, int) and particles >= least):
            raise ValueError(f"{self.name}: particles is a whole number from {least} on, got {particles!r}")
        self.particles = particles
        self._together = RenyiELBO(alpha=0, num_particles=particles, vectorize_particles=True)
        self._together._get_trace = Traces

    def still(self, draws: Traces) -> tuple[Traces, Tensor, Program]:
        """K draws of the guide, held still, all in one; their log weights; and the guide that draws as many.

        Waking terms of one K share them.
        """
        check_separate_guide(draws.guide, self.name)
        key = "awake", self.particles
        if key not in draws.shared:
            programs = draws.model, draws.guide
            if self.particles > 1:
                (together,) = self._together._get_traces(*programs, draws.args, draws.kwargs)
                programs = together.model, together.guide
            still = draws.replace(model=programs[0], guide=_held_still(programs[1]))
            draws.shared[key] = still, programs[1]
        still, guide = draws.shared[key]
        model_trace, guide_trace = still.with_log_probs
        local = is_local(model_trace, guide_trace)
        log_q = log_density(guide_trace, per_datum=local).detach()  # a law may hold parameters that were not held still
        return still, log_density(model_trace, per_datum=local) - log_q, guide

    def __str__(self) -> str:
        return self.name if self.particles == 1 else f"{self.name}({self.particles})"


class Wake(_Waking):
    """The wake phase of the model: the negative evidence bound by K draws of a guide that is held still.

    -1/N E log 1/K sum_k p(x, z_k) / q(z_k | x), in nats per datum, which is -ELBO at K = 1. Its gradient is that of
    -sum_k w_k log p(x, z_k), weights normalized, and reaches the model's parameters alone.

    Args:
        particles: K; they are drawn together, under one more plate.

    Raises:
        ValueError: for a number below 1.
        TypeError: when it is used, for a guide that runs together with the model.
        LookupError: when it is used, for a guide that misses or adds a latent.
    """

    def __init__(self, *, particles: int = 1):
        super().__init__(particles, least=1)

    def value(self, draws: Traces) -> Tensor:
        still, log_weights, _ = self.still(draws)
        return -_per_datum(log_weights.logsumexp(0) - math.log(self.particles), still)


class WakeInference(_Waking):
    """The wake phase of the guide: -1/N sum_k w_k log q(z_k | x), weights normalized, of K of its own draws.

    In nats per datum: the inclusive KL at data rather than at the model's draws, by importance sampling, with the bias
    of normalized weights, which falls as 1/K. It reaches the guide's parameters alone.

    Args:
        particles: K, at least 2, since one draw has weight 1 wherever it is; drawn together, under one more plate.

    Raises:
        ValueError: for a number below 2; when it is used, for a guide whose draws are points.
        TypeError, LookupError: as `Wake`.
    """

    def __init__(self, *, particles: int = 10):
        super().__init__(particles, least=2)

    def value(self, draws: Traces) -> Tensor:
        still, log_weights, guide = self.still(draws)
        weights = log_weights.detach().softmax(0)
        model_trace, guide_trace = still.with_log_probs
        drawn = {k: s["value"].detach() for k, s in latent_sites(guide_trace).items() if not is_delta(s)}
        if not drawn:
            raise ValueError(f"{self.name}: the guide's draws are points, which have no density to raise")
        again = still.run(guide, trace_with_values(guide_trace, drawn))
        again.compute_log_prob()
        scores = log_density(again, per_datum=is_local(model_trace, guide_trace))
        return -_per_datum((weights * scores).sum(0), still)


class Sleep(Term):
    """The sleep phase: -1/N E_{p(x, z)} log q(z | x), in nats per datum, the inclusive KL of the joint laws.

    The model runs on its own, and the guide is scored at the latents that it drew, given the observations that it
    drew in place of the arguments that hold them. Of those arguments only the shapes matter: a step simulates as many
    rows as its batch has. Gradients reach the guide's parameters alone.

    A model that has `latents`, the names of arguments for its latents' values, as a `ppgen.Simulator` does, and is
    given them all, simulates nothing: what is given are simulations made before, and the term is their mean -log q.

    Args:
        data: {argument of the model: the observed site whose values it holds}; left out, they have one name.

    Raises:
        LookupError: when it is used, if it cannot be told which argument holds what a site observes, or if the guide
            misses or adds a latent.
        TypeError: for a guide that runs together with the model.
        ValueError: for a model with factors, which its own draws do not know of; for a guide whose draws are points, or
            do not follow from the latents' values.
    """

    def __init__(self, *, data: Mapping[str, str] | None = None):
        super().__init__()
        self.data = None if data is None else dict(data)

    def value(self, draws: Traces) -> Tensor:
        check_separate_guide(draws.guide, self.name)
        latents, asleep, size = _given(draws), draws, 1
        if latents is None:
            latents, asleep = simulate_joint(draws, self.data)
            size = draws.num_data
        guide_trace = asleep.run(SubstituteLatents(_guide_values(latents))(draws.guide))
        _check(latents, guide_trace)
        guide_trace.compute_log_prob()
        total = sum((torch.as_tensor(s["log_prob_sum"]) for s in sample_sites(guide_trace).values()), torch.zeros(()))
        return -total / data_plate_size(guide_trace.nodes.values(), default=size)


def simulate_joint(draws: Traces, data: Mapping[str, str] | None = None) -> tuple[dict[str, Tensor], Traces]:
    """What the model generates, cut off from the graph: its latents, and a draw with its observations for arguments.

    Args:
        data: as of `Sleep`.

    Raises:
        LookupError, ValueError: as `Sleep`.
    """
    sites = sample_sites(draws.generated)
    factors = [k for k, s in sites.items() if type(s["fn"]).__name__ == "Unit"]
    if factors:
        raise ValueError(
            f"Sleep: the model has the factor {factors[0]!r}, which its own draws do not know of; take "
            "Wake() + WakeInference(), which weigh by it"
        )
    given = _arguments(draws)
    observed = {k: s for k, s in sites.items() if is_observed(s)}
    held_by = {site: name for name, site in data.items()} if data is not None else {k: k for k in observed}
    if unknown := [name for name in held_by.values() if data is not None and name not in given]:
        raise LookupError(f"Sleep: data names the argument {unknown[0]!r}; {did_you_mean(unknown[0], given)}")
    if unknown := [site for site in held_by if site not in sites]:
        raise LookupError(f"Sleep: data names the site {unknown[0]!r}; {did_you_mean(unknown[0], observed)}")
    values: dict[str, Tensor] = {}
    for name, site in observed.items():
        argument = held_by.get(name, name)
        if not isinstance(given.get(argument), Tensor):
            raise LookupError(
                f"Sleep: it cannot be told which argument holds what the site {name!r} observes; there are the "
                f"arguments {', '.join(map(repr, given)) or '(none)'}: name one like the site, or give "
                f"Sleep(data={{argument: {name!r}}})"
            )
        values[argument] = _in_place_of(given[argument], site, draws, argument)
    latents = {k: s["value"].detach() for k, s in latent_sites(draws.generated).items() if k not in observed}
    known = getattr(draws.model, "latents", ())
    if unfilled := [name for name in latents if name in given and given[name] is None and name not in known]:
        raise LookupError(
            f"Sleep: the argument {unfilled[0]!r} was not given, so the site of that name is no observation; give rows "
            "of data: their number is that of the simulations"
        )
    names = list(signature(draws.model).parameters)
    args = tuple(values.get(name, arg) for name, arg in zip(names, draws.args, strict=False))
    kwargs = {name: values.get(name, arg) for name, arg in draws.kwargs.items()}
    return latents, draws.replace(args=args, kwargs=kwargs)


def _given(draws: Traces) -> dict[str, Tensor] | None:
    """The latents of simulations made before, where the arguments hold those of all of the model's latents."""
    names = getattr(draws.model, "latents", ())
    given = _arguments(draws) if names else {}
    values = {name: given.get(name) for name in names}
    missed = [name for name, value in values.items() if value is None]
    if missed and len(missed) < len(names):
        raise LookupError(
            f"Sleep: of the latents {', '.join(map(repr, names))} the simulations lack {', '.join(map(repr, missed))}; "
            "give all, or none"
        )
    return None if missed or not names else values  # type: ignore[return-value]


def _arguments(draws: Traces) -> dict[str, Any]:
    """The model's arguments by name, those that were left out at their defaults."""
    bound = signature(draws.model).bind(*draws.args, **draws.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _in_place_of(given: Tensor, site: Site, draws: Traces, name: str) -> Tensor:
    """A generated observation in the form of the argument that holds the real one: of a plate's subsample, those rows.

    Raises:
        ValueError: if it has another shape.
    """
    value, frame = site["value"].detach().to(given.dtype), data_plate(site)
    if value.shape == given.shape:
        return value
    if frame is not None and frame.size < (frame.full_size or 0):
        dim = value.dim() - site["fn"].event_dim + frame.dim
        if given.shape == (*value.shape[:dim], frame.full_size, *value.shape[dim + 1 :]):
            return given.detach().index_copy(dim, draws.subsample(frame.name), value)
    raise ValueError(
        f"Sleep: the model generates {site['name']!r} of shape {tuple(value.shape)} where the argument {name!r} has "
        f"{tuple(given.shape)}; observe it in the shape of the argument"
    )


def _held_still(program: Program) -> Program:
    """A program whose draws carry no gradients."""

    def held(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return program(*args, **kwargs)

    return held


def _per_datum(values: Tensor, still: Traces) -> Tensor:
    """The mean of one number for each datum; of one for all data together, that over N."""
    model_trace, guide_trace = still.with_log_probs
    return (
        values.mean()
        if is_local(model_trace, guide_trace)
        else values.sum() / data_plate_size(model_trace.nodes.values())
    )


def _guide_values(latents: Mapping[str, Tensor]) -> Callable[[Site], Tensor | None]:
    """The guide's values at given latents, for `SubstituteLatents`.

    An auxiliary site of the guide, from which some of the latents follow, says in its infer "pulled_back" how its own
    value follows from theirs.
    """
    implied: set[str] = set()

    def value_of(site: Site) -> Tensor | None:
        names, pulled_back = site["infer"].get("pulled_back", ((), None))
        if pulled_back is not None and all(k in latents for k in names):
            implied.update(names)
            return pulled_back(latents)
        return None if is_subsample(site) or site["name"] in implied else latents.get(site["name"])

    return value_of


def _check(latents: Mapping[str, Tensor], guide_trace: Trace) -> None:
    drawn = latent_sites(guide_trace)
    check_guide_sites(latents, guide_trace)
    known = {k for s in drawn.values() for k in s["infer"].get("pulled_back", ((),))[0]}
    for name, site in drawn.items():
        if name not in latents and "pulled_back" not in site["infer"]:
            raise ValueError(
                f"Sleep: the guide's draw {name!r} cannot be told from the latents that it gives, so neither can their "
                "density; take AutoFlow(model, amortized=...), or a guide that draws the latents themselves"
            )
        if name in latents and name not in known and is_delta(site):
            raise ValueError(f"Sleep: the guide's {name!r} is a point, which has no density; give it a law")
