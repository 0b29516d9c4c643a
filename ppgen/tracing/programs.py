"""What a single program does: runs of it under handlers, its joint density, its likelihood."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer import config_enumerate
from pyro.poutine import Trace
from pyro.poutine.subsample_messenger import SubsampleMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from ppgen.tracing.enumeration import check_enumerable, summed_out
from ppgen.tracing.sites import (
    PARTICLES,
    Program,
    Site,
    is_subsample,
    latent_sites,
    nearest,
    plate_size,
    quoted,
    sample_sites,
)


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
    trace = traced(_Blank(name, like)(program))
    latent = latent_sites(trace)
    if name not in latent:
        raise ValueError(f"the program has no latent {name!r}; {nearest(name, latent)}")
    distribution = latent[name]["fn"]
    rank = max(len(site["fn"].batch_shape) for site in sample_sites(trace).values())
    shape = torch.Size((1,) * (rank - len(distribution.batch_shape)) + distribution.shape())

    def likelihood(value: Tensor) -> None:
        conditioned = poutine.block(poutine.condition(program, data={name: value}), hide=[name])
        with pyro.plate(PARTICLES, len(value), dim=-rank - 1):
            conditioned()

    return likelihood, shape, distribution


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
        once = traced(_At(value_of)(program), *args)
    left = {name: site for name, site in latent_sites(once).items() if site["fn"].support.is_discrete}
    if left:
        check_enumerable({name: {**site, "infer": {"enumerate": "parallel"}} for name, site in left.items()})
        sites = (site for site in once.nodes.values() if site["type"] == "sample")
        dims = [frame.dim for site in sites for frame in site["cond_indep_stack"] if frame.vectorized]
        program = poutine.enum(config_enumerate(program), first_available_dim=min(dims, default=0) - 1)

    def log_joint(values: Mapping[str, Tensor]) -> Tensor:
        with all_rows():
            trace = prune_subsample_sites(traced(_At(lambda site: values[site["name"]])(program), *args))
        return summed_out(trace).log_prob_sum() if left else trace.log_prob_sum()

    return once, log_joint


def quiet_sites(program: Program, *args: Any, **kwargs: Any) -> dict[str, Site]:
    """The random sites of one run of a program without gradients, of which no handler outside notices."""
    with torch.no_grad(), poutine.block():
        return sample_sites(traced(program, *args, **kwargs))


def weighing_sites(program: Program, *args: Any) -> tuple[Trace, dict[str, Site]]:
    """A run of a program that has no latents, and what in it has a density: its observations and its factors.

    Raises:
        ValueError: naming the latents if it has some; if it observes nothing.
    """
    trace = traced(program, *args)
    if latent := latent_sites(trace):
        raise ValueError(
            f"a likelihood has observed sites alone, got the latents {quoted(latent)}: give them values "
            "(pyro.poutine.condition), or marginalize them"
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


def traced(program: Program, *args: Any, **kwargs: Any) -> Trace:
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
