"""The traces of one training step, made when first asked for and shared by every term of a loss.

Notation: a model p(x, z) = p(z) p(x | z) and a guide q(z | x) are Pyro programs called with the same arguments.
Four runs of them serve every objective:

    guided         q(z | x)            the guide, run on the data
    encoded        p(x, z)             the model at the guide's z and the observed x
    generated      p(z) p(x' | z)      the model on its own, its observations drawn anew
    reconstructed  q(z | x) p(x' | z)  the model at the guide's z, its observations drawn anew

All four share one subsample of each plate, so their rows are the same data. This is the one file that traces programs.
"""

import inspect
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer import config_enumerate, infer_discrete
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.subsample_messenger import SubsampleMessenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor, nn

from ppgen.enumeration import check_enumerable, summed_out
from ppgen.sites import (
    PARTICLES,
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
    quoted,
    sample_sites,
)


class Draws:
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

    def beside(self, **changed: Any) -> "Draws":
        """Another joint draw on the same subsample of each plate: by another `model` or `guide`, of other `args`."""
        same = {key: getattr(self, key) for key in ("model", "guide", "args", "kwargs", "clock", "whole")}
        draws = Draws(**(same | changed))
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
            trace = _traced(program, *self.args, **self.kwargs)
        for name, site in trace.nodes.items():
            if is_subsample(site) and name not in self._subsample:
                self._subsample.add_node(name, **site)
        return trace

    @cached_property
    def _pair(self) -> tuple[Trace, Trace]:
        messenger = poutine.unwrap(self.guide)
        if isinstance(messenger, poutine.messenger.Messenger):  # Pyro's GuideMessenger runs both at once
            self.run(self.guide)
            encoded, guided = messenger.get_traces()
        else:
            guided = self.run(self.guide)
            encoded = self.run(self.model, guided)
        latent = latent_sites(encoded)
        check_sites(latent, guided, enumerated=[k for k, s in latent.items() if s["infer"].get("enumerate")])
        return encoded, guided

    @property
    def encoded(self) -> Trace:
        return self._pair[0]

    @property
    def guided(self) -> Trace:
        return self._pair[1]

    @cached_property
    def generated(self) -> Trace:
        return self.run(_Unobserved()(self.model))

    @cached_property
    def reconstructed(self) -> Trace:
        return self.run(_Unobserved()(self.model), self.guided)

    @cached_property
    def importance(self) -> tuple[Trace, Trace]:
        """(encoded, guided) with log probabilities and score parts, as Pyro's ELBOs take them.

        Raises:
            LookupError: if the guide leaves a latent to enumeration, which no single draw stands for.
        """
        encoded, guided = self._pair
        check_drawn(encoded, guided)
        check = is_validation_enabled()
        if check:
            check_model_guide_match(encoded, guided)
        encoded, guided = prune_subsample_sites(encoded), prune_subsample_sites(guided)
        encoded.compute_log_prob()
        guided.compute_score_parts()
        if check:
            for trace in (encoded, guided):
                for site in sample_sites(trace).values():
                    check_site_shape(site, math.inf)
        return encoded, guided

    @cached_property
    def _left(self) -> int | None:
        """The first dimension that is free for latents that the guide leaves to enumeration; None if there are none.

        Raises:
            ValueError: if one of them cannot be enumerated.
        """
        left = {k: s for k, s in latent_sites(self.encoded).items() if k not in self.guided}
        if not left:
            return None
        check_enumerable(left)
        sites = [*sample_sites(self.encoded).values(), *sample_sites(self.guided).values()]
        return min((f.dim for s in sites for f in s["cond_indep_stack"] if f.vectorized), default=0) - 1

    @cached_property
    def sampled(self) -> Trace:
        """`encoded`, with latents that the guide leaves to enumeration drawn from their posterior given all others.

        Raises:
            ValueError: if one of them cannot be enumerated.
        """
        if self._left is None:
            return self.encoded
        model = self.model  # replayed inside: a run under enumeration is hidden from the handlers around it
        for trace in (self._subsample, self.guided):
            model = poutine.replay(model, trace=trace)
        return self.run(infer_discrete(model, first_available_dim=self._left))

    @cached_property
    def redrawn(self) -> Trace:
        """`reconstructed`, with latents that the guide leaves to enumeration as `sampled` has them."""
        return self.reconstructed if self._left is None else self.run(_Unobserved()(self.model), self._latents)

    @cached_property
    def weighted(self) -> tuple[Trace, Trace]:
        """As `importance`, with latents that the guide leaves to enumeration summed out (see `ppgen.enumeration`).

        Raises:
            ValueError: if one of them cannot be enumerated.
        """
        if self._left is None:
            return self.importance
        with EnumMessenger(self._left):
            encoded = prune_subsample_sites(self.run(self.model, self.guided))
        guided = prune_subsample_sites(self.guided)
        guided.compute_log_prob()
        return summed_out(encoded), guided

    def at(self, values: Trace) -> "Draws":
        """Another draw on the same rows, in which the guide draws anew all but these values."""
        return self.beside(guide=poutine.replay(self.guide, trace=values))

    @property
    def _latents(self) -> Trace:
        return holding(self.sampled, {k: s["value"] for k, s in latent_sites(self.sampled).items()})

    @property
    def observed(self) -> Trace:
        """A trace that carries the observations: one already made if there is one."""
        made = vars(self)
        return self.generated if "generated" in made and "_pair" not in made else self.encoded

    def find(self, law: str, name: str) -> Site:
        """The site `name` of one of the laws ``data, posterior, prior, generated, reconstructed``.

        Raises:
            LookupError: if the law has no such site; the message lists the nearest names.
        """
        if law == "data":
            sites = {k: s for k, s in sample_sites(self.observed).items() if is_observed(s)}
        elif law == "posterior":  # without the latents that are left to enumeration, here draws of the prior
            sites = {k: s for k, s in sample_sites(self.encoded).items() if s["is_observed"] or k in self.guided}
            sites |= sample_sites(self.guided)
        else:
            sites = sample_sites(self.reconstructed if law == "reconstructed" else self.generated)
        if name not in sites:
            raise LookupError(f"{law}({name!r}): the programs have no such site; {nearest(name, sites)}")
        return sites[name]

    @property
    def num_data(self) -> int:
        """Full size N of the plate "data", 1 for a program without it (its data set then counts as one datum)."""
        return plate_size(self.observed.nodes.values())


def signature(program: Program) -> inspect.Signature:
    """The arguments that a program takes; of a module, those of its forward."""
    return inspect.signature(program.forward if isinstance(program, nn.Module) else program)


def given(program: Program, name: str, *, like: Tensor) -> tuple[Program, torch.Size, TorchDistribution]:
    """A program without arguments as a likelihood of one of its latents.

    Returns:
        the likelihood, a program to be called with values (n, *shape), for each its own under one more plate to the
        left of all others; the shape; and the law that the program gives the latent. The program is run once for that,
        at a value of zeros of the type of `like`.

    Raises:
        ValueError: if it has no such latent.
    """
    trace = _traced(_Blank(name, like)(program))
    latent = latent_sites(trace)
    if name not in latent:
        raise ValueError(f"the program has no latent {name!r}; {nearest(name, latent)}")
    law = latent[name]["fn"]
    rank = max(len(site["fn"].batch_shape) for site in sample_sites(trace).values())
    shape = torch.Size((1,) * (rank - len(law.batch_shape)) + law.shape())

    def likelihood(value: Tensor) -> None:
        conditioned = poutine.block(poutine.condition(program, data={name: value}), hide=[name])
        with pyro.plate(PARTICLES, len(value), dim=-rank - 1):
            conditioned()

    return likelihood, shape, law


def joint(
    program: Program, args: tuple, value_of: Callable[[Site], Tensor]
) -> tuple[Trace, Callable[[Mapping[str, Tensor]], Tensor]]:
    """A run of a program at given values of its continuous latents, and its log density as a function of them.

    Returns:
        the trace; and values by name to log p(x, z), in nats, of the whole data set, discrete latents summed out.

    Raises:
        ValueError: for discrete latents that cannot be enumerated.
    """
    with all_rows():
        once = _traced(_At(value_of)(program), *args)
    left = {name: site for name, site in latent_sites(once).items() if site["fn"].support.is_discrete}
    if left:
        check_enumerable({name: {**site, "infer": {"enumerate": "parallel"}} for name, site in left.items()})
        sites = (site for site in once.nodes.values() if site["type"] == "sample")
        dims = [frame.dim for site in sites for frame in site["cond_indep_stack"] if frame.vectorized]
        program = poutine.enum(config_enumerate(program), first_available_dim=min(dims, default=0) - 1)

    def log_joint(values: Mapping[str, Tensor]) -> Tensor:
        with all_rows():
            trace = prune_subsample_sites(_traced(_At(lambda site: values[site["name"]])(program), *args))
        return summed_out(trace).log_prob_sum() if left else trace.log_prob_sum()

    return once, log_joint


def quiet_sites(program: Program, *args: Any, **kwargs: Any) -> dict[str, Site]:
    """The random sites of one run of a program without gradients, of which no handler outside notices."""
    with torch.no_grad(), poutine.block():
        return sample_sites(_traced(program, *args, **kwargs))


def weighing_sites(program: Program, *args: Any) -> tuple[Trace, dict[str, Site]]:
    """A run of a program that has no latents, and what in it has a density: its observations and its factors.

    Raises:
        ValueError: naming the latents if it has some; if it observes nothing.
    """
    trace = _traced(program, *args)
    if latent := latent_sites(trace):
        raise ValueError(
            f"a likelihood has observed sites alone, got the latents {quoted(latent)}: give them values "
            "(pyro.poutine.condition), or marginalise them"
        )
    sites = {k: s for k, s in sample_sites(trace).items() if not s["infer"].get("_deterministic")}
    if not sites:
        raise ValueError(
            "a likelihood observes something, got a program without an observed site: pyro.sample(name, law, obs=y)"
        )
    return trace, sites


def check_apart(guide: Program, term: str) -> None:
    """Refuses a guide that is one of Pyro's messengers.

    Raises:
        TypeError: naming it.
    """
    messenger = poutine.unwrap(guide)
    if isinstance(messenger, poutine.messenger.Messenger):
        raise TypeError(
            f"{term}: {type(messenger).__name__} runs model and guide at once, and cannot be run again by itself; take "
            "a guide that is no messenger"
        )


@contextmanager
def validation(on: bool) -> Iterator[None]:
    """As `pyro.validation_enabled`, and leaves torch's own default as it was, which zuko turns off."""
    before = torch.distributions.Distribution._validate_args
    try:
        with pyro.validation_enabled(on):
            yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


class PlateSize(poutine.messenger.Messenger):
    """Notes the full size N of the plate "data" while programs run under it (1 if the plate never comes)."""

    size = 1

    def _pyro_post_sample(self, msg: Site) -> None:
        self.size = plate_size([msg], default=self.size)


@contextmanager
def all_rows() -> Iterator[None]:
    """While this is open, plates that would draw a subsample of their rows take all of them, in order.

    A plate that is told its rows, ``subsample=x``, keeps them. How large a subsample is stands in no message that a
    handler could change, so the function by which plates choose their rows is put aside.
    """
    drawn = SubsampleMessenger._subsample

    def whole(name: str, size: int | None = None, subsample_size: int | None = None, subsample=None, *rest: Any):
        size_left = None if size is not None and subsample is None else subsample_size
        return drawn(name, size, size_left, subsample, *rest)

    SubsampleMessenger._subsample = staticmethod(whole)
    try:
        yield
    finally:
        SubsampleMessenger._subsample = staticmethod(drawn)


def _traced(program: Program, *args: Any, **kwargs: Any) -> Trace:
    return poutine.trace(program).get_trace(*args, **kwargs)


class _Blank(poutine.messenger.Messenger):
    """Gives one latent zeros for a value instead of a draw."""

    def __init__(self, name: str, like: Tensor):
        super().__init__()
        self.name, self.like = name, like

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] == self.name and not msg["is_observed"]:
            msg["value"] = self.like.new_zeros(msg["fn"].shape())


class _At(poutine.messenger.Messenger):
    """Gives continuous latents their values."""

    def __init__(self, value_of: Callable[[Site], Tensor]):
        super().__init__()
        self.value_of = value_of

    def _pyro_sample(self, msg: Site) -> None:
        if not (msg["is_observed"] or is_subsample(msg) or msg["fn"].support.is_discrete):
            msg["value"] = self.value_of(msg)


class _Unobserved(poutine.messenger.Messenger):
    """Draws observations anew and notes what they were; deterministic and factor sites stay as they are."""

    def _pyro_sample(self, msg: Site) -> None:
        if is_observed(msg):
            msg["infer"] |= {"was_observed": True, "obs": msg["value"]}
            msg.update(is_observed=False, value=None, done=False)
