"""Wake-sleep: model and guide each learn from samples of the other.

With z_k ~ q(z | x) at data x, weights w_k = p(x, z_k) / q(z_k | x), k = 1 .. K, and N as in `ppgen.losses.elbo`,

    Wake(particles=K)           -1/N log mean_k w_k                         trains the model; z and q are detached
    WakeInference(particles=K)  -1/N sum_k w_k log q(z_k | x) / sum_k w_k   trains the guide; z and w are detached
    Sleep()                     -1/N E_{p(x, z)} log q(z | x)               trains the guide on samples of the model

``Wake() + Sleep()`` is wake-sleep (Hinton et al. 1995, https://doi.org/10.1126/science.7761831), and
``Wake(particles=K) + WakeInference(particles=K)`` is reweighted wake-sleep (Bornschein & Bengio 2015,
https://arxiv.org/abs/1406.2751).
`Sleep` alone is the inclusive KL divergence of the joint distributions, up to the entropy of z given x: at its minimum
q(z | x) = p(z | x) for all x that the model generates. With a simulator as the model (`ppgen.Simulator`), it is neural
posterior estimation. None of the terms needs an `rsample`, so they work for discrete latents.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer import RenyiELBO
from pyro.poutine import Trace
from torch import Tensor

from ppgen.losses.objective import Term
from ppgen.tracing.masks import masks, skips_nan
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

__all__ = ["Sleep", "Wake", "WakeInference", "simulate_joint"]


class _WakeTerm(Term):
    """A term that uses K draws of the guide at data.

    Args:
        particles: K.
        least: the smallest K for which the term is defined.
    """

    def __init__(self, particles: int, least: int) -> None:
        super().__init__()
        if not (isinstance(particles, int) and particles >= least):
            raise ValueError(f"{self.name}: particles must be a whole number of at least {least}, got {particles!r}")
        self.particles = particles
        self._vectorized = RenyiELBO(alpha=0, num_particles=particles, vectorize_particles=True)
        self._vectorized._get_trace = Traces

    def detached_draws(self, traces: Traces) -> tuple[Traces, Tensor, Program]:
        """K detached draws of the guide, which wake terms of the same K share.

        Args:
            traces: one run of the programs.

        Returns:
            The traces of the draws, their log weights, and the guide that draws K at a time.
        """
        check_separate_guide(traces.guide, self.name)
        key = "wake", self.particles
        if key not in traces.shared:
            programs = traces.model, traces.guide
            if self.particles > 1:
                (vectorized,) = self._vectorized._get_traces(*programs, traces.args, traces.kwargs)
                programs = vectorized.model, vectorized.guide
            detached = traces.replace(model=programs[0], guide=_without_gradients(programs[1]))
            traces.shared[key] = detached, programs[1]
        detached, guide = traces.shared[key]
        model_trace, guide_trace = detached.with_log_probs
        local = is_local(model_trace, guide_trace)
        log_q = log_density(guide_trace, per_datum=local).detach()  # a distribution may hold parameters with gradients
        return detached, log_density(model_trace, per_datum=local) - log_q, guide

    def __str__(self) -> str:
        return self.name if self.particles == 1 else f"{self.name}({self.particles})"


class Wake(_WakeTerm):
    """Trains the model (wake phase): minus the importance weighted bound, with K detached draws of the guide.

    -1/N E log 1/K sum_k p(x, z_k) / q(z_k | x), in nats per datum; for K = 1 it is the negative ELBO. Its gradient is
    that of -sum_k w_k log p(x, z_k) with normalized weights, and reaches the parameters of the model alone. References:
    Burda et al. 2016, https://arxiv.org/abs/1509.00519; Bornschein & Bengio 2015, https://arxiv.org/abs/1406.2751.

    Args:
        particles: K; the draws are vectorized, under one more plate.

    Raises:
        ValueError: for K below 1.
        TypeError: when it is used, for a guide that cannot run without its model.
        LookupError: when it is used, for a guide that misses or adds a latent.
    """

    def __init__(self, *, particles: int = 1) -> None:
        super().__init__(particles, least=1)

    def value(self, traces: Traces) -> Tensor:
        """Minus the bound with K draws."""
        detached, log_weights, _ = self.detached_draws(traces)
        return -_per_datum(log_weights.logsumexp(0) - math.log(self.particles), detached)


class WakeInference(_WakeTerm):
    """Trains the guide on data (its wake phase): -1/N sum_k w_k log q(z_k | x), normalized weights, in nats per datum.

    It estimates the inclusive KL at data (and not at samples of the model) by importance sampling with K draws of the
    guide. The normalized weights have a bias that falls as 1/K. The gradient reaches the parameters of the guide alone.
    Reference: Bornschein & Bengio 2015, https://arxiv.org/abs/1406.2751.

    Args:
        particles: K, at least 2, since a single draw always has weight 1; vectorized, under one more plate.

    Raises:
        ValueError: for K below 2; when it is used, for a guide whose draws are all deterministic.
        TypeError: when it is used, for a guide that cannot run without its model.
        LookupError: when it is used, for a guide that misses or adds a latent.
    """

    def __init__(self, *, particles: int = 10) -> None:
        super().__init__(particles, least=2)

    def value(self, traces: Traces) -> Tensor:
        """The weighted cross-entropy with K draws."""
        detached, log_weights, guide = self.detached_draws(traces)
        weights = log_weights.detach().softmax(0)
        model_trace, guide_trace = detached.with_log_probs
        drawn = {k: s["value"].detach() for k, s in latent_sites(guide_trace).items() if not is_delta(s)}
        if not drawn:
            raise ValueError(f"{self.name}: the guide's draws are deterministic and have no density")
        again = detached.run(guide, trace_with_values(guide_trace, drawn))
        again.compute_log_prob()
        scores = log_density(again, per_datum=is_local(model_trace, guide_trace))
        return -_per_datum((weights * scores).sum(0), detached)


class Sleep(Term):
    """Trains the guide on draws of the model (sleep phase): -1/N E_{p(x, z)} log q(z | x), in nats per datum.

    Up to a constant this is the inclusive KL divergence of the joint distributions.

    The model generates latents and observations, and the guide is scored at the latents, given the generated
    observations in place of the arguments that hold the real ones. Of those arguments only the shapes matter: a step
    simulates as many rows as its batch has. The gradient reaches the parameters of the guide alone.

    A model may have an attribute `latents`, the names of arguments for the values of its latents, as `ppgen.Simulator`
    does. If all of them are given, nothing is simulated: the term is the mean of -log q at these earlier simulations.

    Reference: Hinton et al. 1995, https://doi.org/10.1126/science.7761831.

    Args:
        data: {argument of the model: the observed site whose values it holds}; if left out, they have the same name.

    Raises:
        LookupError: when it is used, if it is unknown which argument holds the values of an observed site, or if the
            guide misses or adds a latent.
        TypeError: when it is used, for a guide that cannot run without its model.
        ValueError: when it is used, for a model with factors, which its samples ignore; for a guide whose draws are
            deterministic, or cannot be computed from the values of the latents.
    """

    def __init__(self, *, data: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.data = None if data is None else dict(data)

    def value(self, traces: Traces) -> Tensor:
        """The cross-entropy at one simulated data set, or at the given simulations."""
        check_separate_guide(traces.guide, self.name)
        latents, simulated, size = _given(traces), traces, 1
        if latents is None:
            latents, simulated = simulate_joint(traces, self.data)
            size = traces.num_data
        guide_trace = simulated.run(SubstituteLatents(_guide_values(latents))(traces.guide))
        _check(latents, guide_trace)
        guide_trace.compute_log_prob()
        total = sum((torch.as_tensor(s["log_prob_sum"]) for s in sample_sites(guide_trace).values()), torch.zeros(()))
        return -total / data_plate_size(guide_trace.nodes.values(), default=size)


def simulate_joint(traces: Traces, data: Mapping[str, str] | None = None) -> tuple[dict[str, Tensor], Traces]:
    """Samples latents and observations from the model, without gradients.

    Args:
        traces: one run of the programs.
        data: see `Sleep`.

    Returns:
        The latents by name, and traces of the programs whose arguments are the generated observations.

    Raises:
        LookupError: see `Sleep`.
        ValueError: see `Sleep`.
    """
    sites = sample_sites(traces.generated)
    factors = [k for k, s in sites.items() if type(s["fn"]).__name__ == "Unit"]
    if factors:
        raise ValueError(
            f"Sleep: the model has the factor {factors[0]!r}, which its samples ignore; use "
            "Wake() + WakeInference(), whose weights include it"
        )
    given = _arguments(traces)
    observed = {k: s for k, s in sites.items() if is_observed(s)}
    argument_of = {site: name for name, site in data.items()} if data is not None else {k: k for k in observed}
    if unknown := [name for name in argument_of.values() if data is not None and name not in given]:
        raise LookupError(f"Sleep: data names the argument {unknown[0]!r}; {did_you_mean(unknown[0], given)}")
    if unknown := [site for site in argument_of if site not in sites]:
        raise LookupError(f"Sleep: data names the site {unknown[0]!r}; {did_you_mean(unknown[0], observed)}")
    values: dict[str, Tensor] = {}
    for name, site in observed.items():
        argument = argument_of.get(name, name)
        if not isinstance(given.get(argument), Tensor):
            raise LookupError(
                f"Sleep: no argument is known to hold the values of the observed site {name!r}; the model has "
                f"the arguments {', '.join(map(repr, given)) or '(none)'}: give one the name of the site, or use "
                f"Sleep(data={{argument: {name!r}}})"
            )
        values[argument] = _fit_to_argument(given[argument], site, traces, argument)
    latents = {k: s["value"].detach() for k, s in latent_sites(traces.generated).items() if k not in observed}
    known = getattr(traces.model, "latents", ())
    if unfilled := [name for name in latents if name in given and given[name] is None and name not in known]:
        raise LookupError(
            f"Sleep: the argument {unfilled[0]!r} was not given, so the site of that name is not observed; give "
            "data, whose number of rows is the number of simulations"
        )
    names = list(signature(traces.model).parameters)
    args = tuple(values.get(name, arg) for name, arg in zip(names, traces.args, strict=False))
    kwargs = {name: values.get(name, arg) for name, arg in traces.kwargs.items()}
    return latents, traces.replace(args=args, kwargs=kwargs)


def _given(traces: Traces) -> dict[str, Tensor] | None:
    """The latents of earlier simulations, if the arguments hold all latents of the model; otherwise None."""
    names = getattr(traces.model, "latents", ())
    given = _arguments(traces) if names else {}
    values = {name: given.get(name) for name in names}
    missing = [name for name, value in values.items() if value is None]
    if missing and len(missing) < len(names):
        raise LookupError(
            f"Sleep: of the latents {', '.join(map(repr, names))} the simulations lack "
            f"{', '.join(map(repr, missing))}; give all of them, or none"
        )
    return None if missing or not names else values  # type: ignore[return-value]


def _arguments(traces: Traces) -> dict[str, Any]:
    """The model's arguments by name, with defaults for those that were left out."""
    bound = signature(traces.model).bind(*traces.args, **traces.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _fit_to_argument(given: Tensor, site: Site, traces: Traces, name: str) -> Tensor:
    """A generated observation in the shape of the argument; that of a subsample replaces its rows of the argument.

    What is missing in the argument, as NaN that the program leaves out, is missing in it too.

    Raises:
        ValueError: if the shapes differ.
    """
    value, frame = site["value"].detach().to(given.dtype), data_plate(site)
    missing = given.isnan() if masks(site) or skips_nan(site["fn"]) else torch.zeros_like(given, dtype=torch.bool)
    if value.shape == given.shape:
        return torch.where(missing, given, value)
    if frame is not None and frame.size < (frame.full_size or 0):
        dim = value.dim() - site["fn"].event_dim + frame.dim
        if given.shape == (*value.shape[:dim], frame.full_size, *value.shape[dim + 1 :]):
            generated = given.detach().index_copy(dim, traces.subsample(frame.name), value)
            return torch.where(missing, given, generated)
    raise ValueError(
        f"Sleep: the model generates {site['name']!r} of shape {tuple(value.shape)} where the argument {name!r} has "
        f"{tuple(given.shape)}; observe it in the shape of the argument"
    )


def _without_gradients(program: Program) -> Program:
    """A program whose draws have no gradients."""

    def detached(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return program(*args, **kwargs)

    return detached


def _per_datum(values: Tensor, traces: Traces) -> Tensor:
    """The mean of one value for each datum; one value for all data together is divided by N."""
    model_trace, guide_trace = traces.with_log_probs
    return (
        values.mean()
        if is_local(model_trace, guide_trace)
        else values.sum() / data_plate_size(model_trace.nodes.values())
    )


def _guide_values(latents: Mapping[str, Tensor]) -> Callable[[Site], Tensor | None]:
    """The guide's values at given latents, for `SubstituteLatents`.

    An auxiliary site of the guide that determines some of the latents has infer={"from_latents": (names, inverse)}: the
    names of those latents, and a function from latents by name to the value of the site.
    """
    implied: set[str] = set()

    def value_of(site: Site) -> Tensor | None:
        names, inverse = site["infer"].get("from_latents", ((), None))
        if inverse is not None and all(k in latents for k in names):
            implied.update(names)
            return inverse(latents)
        return None if is_subsample(site) or site["name"] in implied else latents.get(site["name"])

    return value_of


def _check(latents: Mapping[str, Tensor], guide_trace: Trace) -> None:
    drawn = latent_sites(guide_trace)
    check_guide_sites(latents, guide_trace)
    known = {k for s in drawn.values() for k in s["infer"].get("from_latents", ((),))[0]}
    for name, site in drawn.items():
        if name not in latents and "from_latents" not in site["infer"]:
            raise ValueError(
                f"Sleep: the guide's site {name!r} cannot be computed from the latents, so their density is unknown; "
                "use AutoFlow(model, amortized=...), or a guide that samples the latents themselves"
            )
        if name in latents and name not in known and is_delta(site):
            raise ValueError(f"Sleep: the guide's {name!r} is deterministic and has no density; give it a distribution")
