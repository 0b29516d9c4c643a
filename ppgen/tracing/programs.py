"""Running one program under handlers: its joint density, its likelihood, its sites."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Exponential, TorchDistribution
from pyro.infer import config_enumerate
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.distributions import Exponential as TorchExponential

import ppgen.tracing.mixture_supports  # noqa: F401  teaches torch a map from the real line to a support
from ppgen.tracing.enumeration import check_declared_dims, check_enumerable, sum_out_enumerated
from ppgen.tracing.nan_masked import SelectNoValues
from ppgen.tracing.plates import all_rows
from ppgen.tracing.sites import (
    PARTICLES,
    Program,
    Site,
    data_plate_size,
    did_you_mean,
    imputed_latents,
    is_deterministic,
    is_observed,
    is_subsample,
    latent_sites,
    quote_names,
    sample_sites,
    sized_plates,
)
from ppgen.tracing.time_series import SeriesLikelihoods
from ppgen.utils.torch_private import distributions_validate, without_validation
from ppgen.utils.user_warnings import warn_user_once


def signature(program: Program) -> inspect.Signature:
    """The signature of a program; for a module, that of its ``forward``."""
    return inspect.signature(program.forward if isinstance(program, nn.Module) else program)


def program_name(program: Program) -> str:
    """The name of a program in messages: that of the function, or of the class."""
    while not hasattr(program, "__name__"):
        inner = poutine.unwrap(program)
        inner = getattr(inner, "__wrapped__", inner)
        if inner is program:
            return type(program).__name__
        program = inner
    return program.__name__


def warn_one_by_one(name: str) -> None:
    """Warns, once in a process, that a program runs for one draw at a time.

    Args:
        name: the name of the program.
    """
    warn_user_once(
        f"the program {name} runs once for each draw, which is slow, since it cannot run for many draws at once. A "
        "statement that reads a latent's value does that (if z > 0, float(z)); torch.where(z > 0, a, b) in its place "
        "does not"
    )


def get_trace(program: Program, *args: Any, **kwargs: Any) -> Trace:
    """A trace of one run of a program, which reads no values to leave out NaN.

    Plates without a size have that of their sites, and hidden Markov models the duration of what they observe.
    """
    trace = poutine.trace(SelectNoValues()(SeriesLikelihoods()(program))).get_trace(*args, **kwargs)
    sites = sample_sites(trace).values()
    for site, plates in zip(sites, sized_plates(*sites), strict=True):
        site["cond_indep_stack"] = plates
    return trace


def likelihood_of_latent(program: Program, name: str, *, like: Tensor) -> tuple[Program, torch.Size, TorchDistribution]:
    """Turns a program without arguments into a likelihood p(x | z) of one of its latents z.

    The program runs once for this, at z = 0.

    Args:
        program: a Pyro program without arguments.
        name: the latent z.
        like: a tensor of the type and device that z has.

    Returns:
        a program to call with values (n, *shape), which runs under one more plate of size n to the left of all others;
        the shape of z; the distribution that the program gives z.

    Raises:
        ValueError: if the program has no such latent.
    """

    def zeros(site: Site) -> Tensor | None:
        return like.new_zeros(site["fn"].shape()) if site["name"] == name else None

    trace = get_trace(SubstituteLatents(zeros)(program))
    latent = latent_sites(trace)
    if name not in latent:
        raise ValueError(f"the program has no latent {name!r}; {did_you_mean(name, latent)}")
    distribution = latent[name]["fn"]
    rank = max(len(site["fn"].batch_shape) for site in sample_sites(trace).values())
    shape = torch.Size((1,) * (rank - len(distribution.batch_shape)) + distribution.shape())

    def likelihood(value: Tensor) -> None:
        conditioned = poutine.block(poutine.condition(program, data={name: value}), hide=[name])
        with pyro.plate(PARTICLES, len(value), dim=-rank - 1):
            conditioned()

    return likelihood, shape, distribution


class JointDensity:
    """The joint density p(x, z) of the whole data set, as a function of the continuous latents z.

    Discrete latents are summed out, and plates use all of their rows.

    Args:
        program: a Pyro program.
        args: its arguments.
        value_of: the value of each continuous latent, for a first run that finds the sites. As in all runs, it is given
            the site when the program reaches it, so that the value may depend on the site's distribution.

    Attributes:
        first: the trace of the first run.

    Raises:
        ValueError: if a discrete latent cannot be enumerated, or observations are broadcast against each other.
    """

    def __init__(self, program: Program, args: tuple, value_of: Callable[[Site], Tensor]) -> None:
        self.args = args
        self._program = self._enumerated = program
        self.first = self._trace(program, value_of)
        check_observation_shapes(self.first)
        discrete = {name: site for name, site in latent_sites(self.first).items() if site["fn"].support.is_discrete}
        self._sums_out = bool(discrete)
        if discrete:
            check_declared_dims(self.first)
            check_enumerable({name: {**site, "infer": {"enumerate": "parallel"}} for name, site in discrete.items()})
            sites = (site for site in self.first.nodes.values() if site["type"] == "sample")
            dims = [frame.dim for site in sites for frame in site["cond_indep_stack"] if frame.vectorized]
            self._enumerated = poutine.enum(config_enumerate(program), first_available_dim=min(dims, default=0) - 1)

    def run(self, value_of: Callable[[Site], Tensor], *, enumerated: bool = True) -> Trace:
        """Runs the program.

        Args:
            value_of: the value of each continuous latent.
            enumerated: whether discrete latents take all of their values at once; otherwise they are drawn.
        """
        return prune_subsample_sites(self._trace(self._enumerated if enumerated else self._program, value_of))

    def log_prob(self, value_of: Callable[[Site], Tensor]) -> Tensor:
        """The value of log p(x, z), in nats.

        Args:
            value_of: the value of each continuous latent.
        """
        trace = self.run(value_of)
        return sum_out_enumerated(trace).log_prob_sum() if self._sums_out else trace.log_prob_sum()

    def _trace(self, program: Program, value_of: Callable[[Site], Tensor]) -> Trace:
        def continuous(site: Site) -> Tensor | None:
            return None if is_subsample(site) or site["fn"].support.is_discrete else value_of(site)

        with all_rows():
            trace = get_trace(SubstituteLatents(continuous)(WithoutValidation()(program)), *self.args)
        for name in imputed_latents(trace):
            trace.nodes[name]["mask"] = None
        return trace


def check_observation_shapes(trace: Trace) -> None:
    """Refuses densities that are broadcast: by observations (n, 1) under a plate of n rows, or by such a mask or scale.

    A density has the shape that its plates give it, or, without plates, that of the value.

    Args:
        trace: a run of a program.

    Raises:
        ValueError: naming the site and the shapes.
    """
    for name, site in sample_sites(trace).items():
        if is_deterministic(site) or not isinstance(site["value"], Tensor):
            continue
        try:
            with torch.no_grad(), validation(False):
                density = site["fn"].log_prob(site["value"]).shape
        except (RuntimeError, ValueError, NotImplementedError):  # which evaluating the density reports
            continue
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        plates = [1] * max((-frame.dim for frame in frames), default=0)
        for frame in frames:
            plates[frame.dim] = frame.size
        expected = torch.Size(plates) if frames else site["value"].shape[: site["value"].dim() - site["fn"].event_dim]
        where = "the plates have" if frames else "its values have"
        if is_observed(site) and density.numel() > expected.numel():
            raise ValueError(
                f"site {name!r}: observations of shape {tuple(site['value'].shape)} are broadcast to densities of "
                f"shape {tuple(density)}, where {where} the shape {tuple(expected)}: give the observations that shape"
            )
        for kind in ("mask", "scale"):
            factor = torch.as_tensor(True if site[kind] is None else site[kind]).shape
            if (found := torch.broadcast_shapes(density, factor)).numel() > max(density.numel(), expected.numel()):
                raise ValueError(
                    f"site {name!r}: a {kind} of shape {tuple(factor)} broadcasts its densities to the shape "
                    f"{tuple(found)}, where {where} the shape {tuple(expected)}: give the {kind} that shape"
                )


def isolated_sites(program: Program, *args: Any, **kwargs: Any) -> dict[str, Site]:
    """The sample sites of one run of a program, without gradients and hidden from the handlers around the call."""
    with torch.no_grad(), poutine.block():
        return sample_sites(get_trace(program, *args, **kwargs))


def likelihood_sites(program: Program, *args: Any) -> tuple[Trace, dict[str, Site]]:
    """Runs a likelihood: a program without latents.

    Returns:
        the trace; its observed and factor sites, which have a density.

    Raises:
        ValueError: if the program has latents, or observes nothing.
    """
    trace = get_trace(program, *args)
    if latent := latent_sites(trace):
        raise ValueError(
            f"expected a likelihood, with observed sites only, got the latents {quote_names(latent)}: set their values "
            "(pyro.poutine.condition), or marginalize them"
        )
    sites = {k: s for k, s in sample_sites(trace).items() if not is_deterministic(s)}
    if not sites:
        raise ValueError(
            "expected a likelihood, got a program without an observed site: pyro.sample(name, distribution, obs=y)"
        )
    return trace, sites


def check_separate_guide(guide: Program, term: str) -> None:
    """Checks that a guide can run without the model.

    Args:
        guide: a guide.
        term: the name of the loss term, for the message.

    Raises:
        TypeError: if the guide is one of Pyro's guide messengers.
    """
    messenger = poutine.unwrap(guide)
    if isinstance(messenger, Messenger):
        raise TypeError(
            f"{term}: {type(messenger).__name__} runs model and guide together, and this term has to run the guide "
            "alone; use a guide that is not a messenger"
        )


@contextmanager
def validation(on: bool, *, values: bool = True) -> Iterator[None]:
    """Sets validation as `pyro.validation_enabled` does, and restores torch's own default too, which zuko changes.

    Args:
        on: whether shapes, arguments and values are checked.
        values: whether arguments and values are among them.
    """
    before = distributions_validate()
    try:
        with pyro.validation_enabled(on):
            torch.distributions.Distribution.set_default_validate_args(on and values)
            yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


class DataPlateSize(Messenger):
    """A handler that records the full size N of the plate "data": its `size` is 1 until a site lies in that plate."""

    size = 1

    def _pyro_post_sample(self, msg: Site) -> None:
        (plates,) = sized_plates(msg)
        self.size = data_plate_size([{**msg, "cond_indep_stack": plates}], default=self.size)


class SubstituteLatents(Messenger):
    """A handler that sets the values of unobserved sites, as NumPyro's ``substitute`` does.

    Args:
        value_of: a function from an unobserved sample site (also one in which a plate draws its subsample) to its
            value, or to None to let the program draw it.
    """

    def __init__(self, value_of: Callable[[Site], Tensor | None]) -> None:
        super().__init__()
        self.value_of = value_of

    def _pyro_sample(self, msg: Site) -> None:
        if not msg["is_observed"] and (value := self.value_of(msg)) is not None:
            msg["value"], msg["done"] = value, True


class WithoutValidation(Messenger):
    """A handler for programs that run at many points, at some of which data lie outside of a distribution's support.

    It turns off validation, which raises an error there, and reads values, which vmap refuses; also that of
    distributions that the program was given: what `expand` returns, as for a PyroSample, keeps the default under which
    it was made. The density outside of the support is then 0, which torch's own formula may miss.
    """

    def _pyro_sample(self, msg: Site) -> None:
        if not distributions_validate():
            msg["fn"] = without_validation(msg["fn"], {Exponential: _Exponential, TorchExponential: _Exponential})


class _Exponential(Exponential):
    """The exponential distribution with density 0 below 0, also as the base of a Pareto or shifted distribution."""

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.where(value >= 0, super().log_prob(value), -torch.inf)
