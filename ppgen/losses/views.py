"""Views: the samples of a law at named sites, one row a datum.

    data(x)           x ~ p_data
    posterior(z)      z ~ q(z | x),  x ~ p_data          deterministic sites of the model, at the guide's z, too
    prior(z)          z ~ p(z)
    generated(x)      x ~ p(x | z),  z ~ p(z)
    reconstructed(x)  x' ~ p(x' | z),  z ~ q(z | x),  x ~ p_data

``generated("x", of="mean")`` and ``reconstructed("x", of="mean")`` are the means E[x | z] in place of draws: of a law
without `rsample`, such as Bernoulli, they pass gradients on.

``a & b`` joins sites into one joint sample whose rows belong together: ``data("x") & posterior("z")`` is q(x, z),
``generated("x") & prior("z")`` is p(x, z). ``view.given(d=1)`` keeps the rows where site d is 1, by weights.
"""

from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal, NamedTuple

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from ppgen.tracing.sites import Site, blocks_gradient, data_plate, latent_sites, observation
from ppgen.tracing.traces import Traces
from ppgen.utils.means import mean

__all__ = ["Rows", "View", "data", "generated", "posterior", "prior", "reconstructed"]


MEANS = ("generated", "reconstructed")  # the laws whose means can stand in for draws


class Rows(NamedTuple):
    """`values`: (n, *event), or a tuple of such for joined sites. `weights`: (n,), or None where all count alike."""

    values: Tensor | tuple[Tensor, ...]
    weights: Tensor | None


@dataclass(frozen=True)
class View:
    """Samples at `sites`, pairs (law, site name), of the rows that `selection` keeps.

    At the sites in `means`, the mean of the site's law given what precedes it stands in for the draw.
    """

    sites: tuple[tuple[str, str], ...]
    selection: tuple[tuple[str, float], ...] = ()
    means: frozenset[tuple[str, str]] = frozenset()

    def __and__(self, other: "View") -> "View":
        if not isinstance(other, View):
            return NotImplemented
        if both := (self.means ^ other.means) & {*self.sites} & {*other.sites}:
            distribution, name = min(both)
            raise ValueError(
                f'{distribution}({name!r}) & {distribution}({name!r}, of="mean"): a joint law has a site once, drawn or mean'
            )
        return View(self.sites + other.sites, self.selection + other.selection, self.means | other.means)

    def given(self, **values: float) -> "View":
        """Keeps the rows where each named site equals the value, by weights of one and zero (shapes stay).

        They are sites of the run on data for a view that holds posterior or reconstructed sites, otherwise
        observations for one that holds data, otherwise sites of the model's own run.

        Raises:
            TypeError: for a value that is not a number.
        """
        for site, value in values.items():
            if not isinstance(value, Real):
                raise TypeError(f"given({site}={value!r}): expected a number that the site's values can equal")
        return replace(self, selection=(*self.selection, *values.items()))

    @property
    def name(self) -> str:
        return ", ".join(site for _, site in self.sites)

    def __str__(self) -> str:
        means = ("", ", of=mean")
        joined = " & ".join(
            f"{distribution}({name}{means[(distribution, name) in self.means]})" for distribution, name in self.sites
        )
        given = ", ".join(f"{k}={v:g}" for k, v in self.selection)
        return f"{joined} | {given}" if given else joined

    @property
    def of_data(self) -> bool:
        """Whether the view holds observations alone, which any trace of the model carries."""
        return all(distribution == "data" for distribution, _ in self.sites)

    @property
    def _selecting(self) -> str:
        """The law whose sites `given` names."""
        distributions = {distribution for distribution, _ in self.sites}
        if distributions & {"posterior", "reconstructed"}:
            return "posterior"
        return "data" if "data" in distributions else "generated"

    def __call__(self, draws: Traces) -> Rows:
        """The view's rows in one draw.

        Raises:
            LookupError: for an unknown site.
            ValueError: for a site outside the plate "data", or one whose draws would hide a gradient.
        """
        # observations last: they are then read off a trace that another site has already made
        found = {site: draws.find(*site) for site in sorted(self.sites, key=lambda site: site[0] == "data")}
        for site in self.sites:
            _check_gradient(*site, found[site], draws, of_mean=site in self.means)
            if site in self.means:
                found[site] = found[site] | {"value": mean(found[site]["fn"])}
        values = [_rows(*site, found[site]) for site in self.sites]
        weights = [_mask(*site, found[site]) for site in self.sites]
        weights += [_selected(draws, self._selecting, name, value) for name, value in self.selection]
        given = [w for w in weights if w is not None]
        return Rows(values[0] if len(values) == 1 else tuple(values), torch.stack(given).prod(0) if given else None)


def data(site: str) -> View:
    """Observations of a site: x ~ p_data."""
    return View((("data", site),))


def posterior(site: str) -> View:
    """A site of the guide on data, z ~ q(z | x), or of the model at the guide's latents."""
    return View((("posterior", site),))


def prior(site: str) -> View:
    """A latent of the model on its own: z ~ p(z)."""
    return View((("prior", site),))


def generated(site: str, *, of: Literal["draw", "mean"] = "draw") -> View:
    """A site of the model on its own, observations drawn: x ~ p(x | z), or their means E[x | z], z ~ p(z)."""
    return _drawn("generated", site, of)


def reconstructed(site: str, *, of: Literal["draw", "mean"] = "draw") -> View:
    """Observations drawn anew at the guide's latents: x' ~ p(x' | z), or their means E[x' | z], z ~ q(z | x)."""
    return _drawn("reconstructed", site, of)


def _drawn(distribution: str, site: str, of: str) -> View:
    if of not in ("draw", "mean"):
        raise ValueError(f'{distribution}({site!r}): of is "draw" or "mean", got {of!r}')
    return View(((distribution, site),), means=frozenset({(distribution, site)} if of == "mean" else ()))


def _frame(distribution: str, name: str, site: Site) -> CondIndepStackFrame:
    frame = data_plate(site)
    if frame is None:
        plates = ", ".join(repr(f.name) for f in site["cond_indep_stack"]) or "none"
        raise ValueError(
            f'{distribution}({name!r}) has no rows: site {name!r} lies outside the plate "data" (its plates: {plates}); '
            'put it under pyro.plate("data", n), or name its plate "data"'
        )
    return frame


def _rows(distribution: str, name: str, site: Site) -> Tensor:
    frame, fn = _frame(distribution, name, site), site["fn"]
    value = observation(site) if distribution == "data" else site["value"]
    if site["infer"].get("_deterministic") and fn.event_dim == value.dim():
        # pyro.deterministic without event_dim calls every axis event, those of the plates among them
        axis = frame.dim - min(f.dim for f in site["cond_indep_stack"] if f.vectorized)
        if value.shape[axis : axis + 1] != (frame.size,):
            raise ValueError(
                f"{distribution}({name!r}): axis {axis} of deterministic site {name!r}, shape {tuple(value.shape)}, is not the "
                f'plate "data" of size {frame.size}; give pyro.deterministic its event_dim='
            )
        return value.movedim(axis, 0)
    value = value.expand(torch.broadcast_shapes(value.shape, fn.batch_shape + fn.event_shape))
    return value.movedim(value.dim() - fn.event_dim + frame.dim, 0)


def _mask(distribution: str, name: str, site: Site) -> Tensor | None:
    """A weight a row, one or zero, from the mask of a site; None where there is no mask."""
    if site["mask"] is None or site["mask"] is True:
        return None
    frame, mask = _frame(distribution, name, site), torch.as_tensor(site["mask"])
    mask = mask.reshape((1,) * (-frame.dim - mask.dim()) + mask.shape)
    mask = mask.movedim(mask.dim() + frame.dim, 0)
    if mask[0].numel() != 1:
        raise ValueError(
            f'{distribution}({name!r}): the mask of site {name!r} differs within a row of the plate "data" (shape '
            f"{tuple(mask.shape)} with rows first); a row counts or does not: mask whole rows"
        )
    return mask.reshape(-1).expand(frame.size).to(torch.get_default_dtype())


def _selected(draws: Traces, distribution: str, name: str, value: float) -> Tensor:
    rows = _rows(distribution, name, draws.find(distribution, name))
    if rows[0].numel() != 1:
        raise ValueError(
            f"given({name}={value:g}): site {name!r} is not a number a row, it has shape {tuple(rows.shape)}"
        )
    return (rows.reshape(-1) == value).to(torch.get_default_dtype())


def _check_gradient(distribution: str, name: str, site: Site, draws: Traces, *, of_mean: bool) -> None:
    """An error, not silence, where a view would pass no gradient on to parameters."""
    sites = {name: site} if distribution != "data" and not of_mean else {}
    if distribution == "reconstructed":
        sites |= latent_sites(draws.guide_trace)
    for key, drawn in sites.items():
        if blocks_gradient(drawn):
            by_mean = (
                f'take its mean, {distribution}({name!r}, of="mean"); ' if key == name and distribution in MEANS else ""
            )
            raise ValueError(
                f"{distribution}({name!r}): site {key!r} ({_family(drawn['fn'])}) has no rsample, so no gradient would reach "
                f"its parameters; {by_mean}draw it from a law that has it (Normal, Delta, "
                "RelaxedBernoulliStraightThrough), or score it by ELBO()"
            )


def _family(fn) -> str:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__
