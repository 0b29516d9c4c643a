"""Views: samples at named sites of the programs, one row per datum.

    data(x)           x ~ p_data
    posterior(z)      z ~ q(z | x),  x ~ p_data          also deterministic sites of the model at the guide's z
    prior(z)          z ~ p(z)
    generated(x)      x ~ p(x | z),  z ~ p(z)
    reconstructed(x)  x' ~ p(x' | z),  z ~ q(z | x),  x ~ p_data

``generated("x", of="mean")`` and ``reconstructed("x", of="mean")`` are the means E[x | z] instead of draws. They have
gradients where a distribution without `rsample`, such as Bernoulli, has none.

``a & b`` joins sites into one joint sample, row by row: ``data("x") & posterior("z")`` is q(x, z),
``generated("x") & prior("z")`` is p(x, z). ``view.given(d=1)`` selects the rows where site d is 1, by weights.
"""

from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal, NamedTuple

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from ppgen.tracing.masks import masks, skips_nan
from ppgen.tracing.sites import (
    Site,
    blocks_gradient,
    data_plate,
    is_deterministic,
    is_observed,
    latent_sites,
    observation,
)
from ppgen.tracing.traces import Traces
from ppgen.utils.means import mean

__all__ = ["Rows", "View", "data", "generated", "posterior", "prior", "reconstructed"]


MEANS = ("generated", "reconstructed")  # the views that have means


class Rows(NamedTuple):
    """The rows of a view.

    Args:
        values: a tensor (n, *event), or a tuple of them for joined sites.
        weights: a tensor (n,), or None for equal weights.
    """

    values: Tensor | tuple[Tensor, ...]
    weights: Tensor | None


@dataclass(frozen=True)
class View:
    """Samples at one or several sites.

    Args:
        sites: pairs (kind, site name), such as ("data", "x").
        selection: pairs (site name, value): the rows to select.
        means: the sites where the conditional mean replaces the draw.
    """

    sites: tuple[tuple[str, str], ...]
    selection: tuple[tuple[str, float], ...] = ()
    means: frozenset[tuple[str, str]] = frozenset()

    def __and__(self, other: "View") -> "View":
        if not isinstance(other, View):
            return NotImplemented
        if both := (self.means ^ other.means) & {*self.sites} & {*other.sites}:
            kind, name = min(both)
            raise ValueError(
                f'{kind}({name!r}) & {kind}({name!r}, of="mean"): a joint view has each site once, as draw or mean'
            )
        return View(self.sites + other.sites, self.selection + other.selection, self.means | other.means)

    def given(self, **values: float) -> "View":
        """Selects the rows where each named site equals its value, by weights of one and zero (shapes do not change).

        The named sites are those of the posterior if the view has a posterior or reconstructed site, otherwise
        observations if it has data, otherwise sites that the model generates.

        Args:
            **values: a number for each site.

        Raises:
            TypeError: for a value that is not a number.
        """
        for site, value in values.items():
            if not isinstance(value, Real):
                raise TypeError(f"given({site}={value!r}): expected a number that the site's values can equal")
        return replace(self, selection=(*self.selection, *values.items()))

    @property
    def name(self) -> str:
        """The names of the sites."""
        return ", ".join(site for _, site in self.sites)

    def __str__(self) -> str:
        means = ("", ", of=mean")
        joined = " & ".join(f"{kind}({name}{means[(kind, name) in self.means]})" for kind, name in self.sites)
        given = ", ".join(f"{k}={v:g}" for k, v in self.selection)
        return f"{joined} | {given}" if given else joined

    @property
    def of_data(self) -> bool:
        """Whether the view is of observations alone, which every trace of the model has."""
        return all(kind == "data" for kind, _ in self.sites)

    @property
    def of_model(self) -> bool:
        """Whether the view is of draws of the model alone, which do not depend on the data."""
        return all(kind in ("prior", "generated") for kind, _ in self.sites)

    @property
    def _selecting(self) -> str:
        """The view whose sites `given` names."""
        kinds = {kind for kind, _ in self.sites}
        if kinds & {"posterior", "reconstructed"}:
            return "posterior"
        return "data" if "data" in kinds else "generated"

    def __call__(self, traces: Traces) -> Rows:
        """The rows of the view in one run of the programs.

        Args:
            traces: the traces of model and guide.

        Raises:
            LookupError: for an unknown site.
            ValueError: for a site outside the plate "data", or one through which no gradient would pass.
        """
        # observations last, since another site may have run the model already
        found = {site: traces.find(*site) for site in sorted(self.sites, key=lambda site: site[0] == "data")}
        for site in self.sites:
            _check_gradient(*site, found[site], traces, of_mean=site in self.means)
            if site in self.means:
                found[site] = found[site] | {"value": mean(found[site]["fn"])}
        values = [_filled(*site, found[site]) for site in self.sites]
        weights = [weight for site in self.sites for weight in _weights(*site, found[site])]
        weights += [_selected(traces, self._selecting, name, value) for name, value in self.selection]
        return Rows(values[0] if len(values) == 1 else tuple(values), torch.stack(weights).prod(0) if weights else None)


def data(site: str) -> View:
    """Observations of a site: x ~ p_data.

    Args:
        site: an observed site of the model.
    """
    return View((("data", site),))


def posterior(site: str) -> View:
    """A site of the guide on data, z ~ q(z | x), or a site of the model at the guide's latents.

    Args:
        site: a latent, or another site of the model.

    Example:
        >>> from ppgen import views
        >>> print(views.posterior("z") & views.data("x"))  # the joint distribution of both
        posterior(z) & data(x)
        >>> print(views.posterior("h").given(d=1))  # the rows of domain 1
        posterior(h) | d=1
    """
    return View((("posterior", site),))


def prior(site: str) -> View:
    """A latent that the model samples: z ~ p(z).

    Args:
        site: a latent of the model.
    """
    return View((("prior", site),))


def generated(site: str, *, of: Literal["draw", "mean"] = "draw") -> View:
    """A site that the model generates: x ~ p(x | z), or the mean E[x | z], with z ~ p(z).

    Args:
        site: a site of the model.
        of: "draw" or "mean".

    Raises:
        ValueError: for another value of `of`.
    """
    return _drawn("generated", site, of)


def reconstructed(site: str, *, of: Literal["draw", "mean"] = "draw") -> View:
    """Observations sampled again at the guide's latents: x' ~ p(x' | z), or the mean E[x' | z], with z ~ q(z | x).

    Args:
        site: an observed site of the model.
        of: "draw" or "mean".

    Raises:
        ValueError: for another value of `of`.
    """
    return _drawn("reconstructed", site, of)


def _drawn(kind: str, site: str, of: str) -> View:
    if of not in ("draw", "mean"):
        raise ValueError(f'{kind}({site!r}): of must be "draw" or "mean", got {of!r}')
    return View(((kind, site),), means=frozenset({(kind, site)} if of == "mean" else ()))


def _frame(kind: str, name: str, site: Site) -> CondIndepStackFrame:
    frame = data_plate(site)
    if frame is None:
        plates = ", ".join(repr(f.name) for f in site["cond_indep_stack"]) or "none"
        raise ValueError(
            f'{kind}({name!r}) has no rows: site {name!r} lies outside the plate "data" (its plates: {plates}); '
            'put it under pyro.plate("data", n), or name its plate "data"'
        )
    return frame


def _rows(kind: str, name: str, site: Site) -> Tensor:
    frame, fn = _frame(kind, name, site), site["fn"]
    value = observation(site) if kind == "data" else site["value"]
    if is_deterministic(site) and fn.event_dim == value.dim():
        # without event_dim, pyro.deterministic makes every axis an event axis, plates included
        axis = frame.dim - min(f.dim for f in site["cond_indep_stack"] if f.vectorized)
        if value.shape[axis : axis + 1] != (frame.size,):
            raise ValueError(
                f"{kind}({name!r}): axis {axis} of deterministic site {name!r}, shape {tuple(value.shape)}, is not the "
                f'plate "data" of size {frame.size}; give pyro.deterministic its event_dim='
            )
        return value.movedim(axis, 0)
    value = value.expand(torch.broadcast_shapes(value.shape, fn.batch_shape + fn.event_shape))
    return value.movedim(value.dim() - fn.event_dim + frame.dim, 0)


def _filled(kind: str, name: str, site: Site) -> Tensor:
    """The rows of a site, with zero in rows of data that are missing, whose weight is zero."""
    rows = _rows(kind, name, site)
    if kind == "data" and skips_nan(site["fn"]):
        rows = torch.where(_missing(rows).reshape(-1, *(1,) * (rows.dim() - 1)), 0.0, rows)
    return rows


def _weights(kind: str, name: str, site: Site) -> list[Tensor]:
    """Weights of one or zero per row: from each mask of a site, and from observations that are missing."""
    rank, found = site["fn"].event_dim, []
    for mask in masks(site, of_distribution=is_observed(site)):
        frame = _frame(kind, name, site)
        for axis in (axis for axis, stride in enumerate(mask.stride()) if stride == 0):  # an expanded mask
            mask = mask.narrow(axis, 0, 1)
        mask = mask.reshape((1,) * (rank - frame.dim - mask.dim()) + mask.shape).movedim(frame.dim - rank, 0)
        if mask[0].numel() != 1:
            raise ValueError(
                f'{kind}({name!r}): the mask of site {name!r} differs within a row of the plate "data" (shape '
                f"{tuple(mask.shape)} with rows first); mask whole rows, and a distribution after its to_event"
            )
        found.append(mask.reshape(-1).expand(frame.size))
    if is_observed(site) and skips_nan(site["fn"]):
        found.append(~_missing(_rows("data", name, site)))
    return [weight.to(torch.get_default_dtype()) for weight in found]


def _missing(rows: Tensor) -> Tensor:
    """Whether all numbers of a row are missing, (n,)."""
    return ~rows.isfinite().reshape(len(rows), -1).any(1)


def _selected(traces: Traces, kind: str, name: str, value: float) -> Tensor:
    rows = _rows(kind, name, traces.find(kind, name))
    if rows[0].numel() != 1:
        raise ValueError(
            f"given({name}={value:g}): site {name!r} must have one number per row, got shape {tuple(rows.shape)}"
        )
    return (rows.reshape(-1) == value).to(torch.get_default_dtype())


def _check_gradient(kind: str, name: str, site: Site, traces: Traces, *, of_mean: bool) -> None:
    """Raises an error where a view would silently have no gradient in the parameters."""
    sites = {name: site} if kind != "data" and not of_mean else {}
    if kind == "reconstructed":
        sites |= latent_sites(traces.guide_trace)
    for key, drawn in sites.items():
        if blocks_gradient(drawn):
            use_mean = f'use its mean, {kind}({name!r}, of="mean"); ' if key == name and kind in MEANS else ""
            raise ValueError(
                f"{kind}({name!r}): site {key!r} ({_family(drawn['fn'])}) has no rsample, so no gradient would reach "
                f"its parameters; {use_mean}use a distribution with rsample (Normal, Delta, "
                "RelaxedBernoulliStraightThrough), or use ELBO()"
            )


def _family(fn: Any) -> str:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__
