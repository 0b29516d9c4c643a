"""Views: the samples of a law at named sites, one row a datum.

    data(x)           x ~ p_data
    posterior(z)      z ~ q(z | x),  x ~ p_data          deterministic sites of the model, at the guide's z, too
    prior(z)          z ~ p(z)
    generated(x)      x ~ p(x | z),  z ~ p(z)
    reconstructed(x)  x' ~ p(x' | z),  z ~ q(z | x),  x ~ p_data

``a & b`` joins sites into one joint sample whose rows belong together: ``data("x") & posterior("z")`` is q(x, z),
``generated("x") & prior("z")`` is p(x, z). ``view.given(d=1)`` keeps the rows where site d is 1, by weights.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ppgen.draws import Draws, Site, data_frame, observation

__all__ = ["Rows", "View", "data", "generated", "posterior", "prior", "reconstructed"]


class Rows(NamedTuple):
    """`values`: (n, *event), or a tuple of such for joined sites. `weights`: (n,), or None where all count alike."""

    values: Tensor | tuple[Tensor, ...]
    weights: Tensor | None


@dataclass(frozen=True)
class View:
    """Samples at `sites`, pairs (law, site name), of the rows that `selection` keeps."""

    sites: tuple[tuple[str, str], ...]
    selection: tuple[tuple[str, float], ...] = ()

    def __and__(self, other: "View") -> "View":
        return View(self.sites + other.sites, self.selection + other.selection)

    def given(self, **values: float) -> "View":
        """Keeps the rows where each named site equals the value, by weights of one and zero (shapes stay)."""
        return replace(self, selection=(*self.selection, *values.items()))

    @property
    def name(self) -> str:
        return ", ".join(site for _, site in self.sites)

    def __str__(self) -> str:
        joined = " & ".join(f"{law}({site})" for law, site in self.sites)
        given = ", ".join(f"{k}={v:g}" for k, v in self.selection)
        return f"{joined} | {given}" if given else joined

    @property
    def of_data(self) -> bool:
        """Whether the view holds observations alone, which any trace of the model carries."""
        return all(law == "data" for law, _ in self.sites)

    def __call__(self, draws: Draws) -> Rows:
        """The view's rows in one draw.

        Raises:
            LookupError: for an unknown site.
            ValueError: for a site outside the plate "data", or one whose draws would hide a gradient.
        """
        # observations last: they are then read off a trace that another site has already made
        order = sorted(range(len(self.sites)), key=lambda i: self.sites[i][0] == "data")
        found = {i: draws.find(*self.sites[i]) for i in order}
        values, weights = [], []
        for i, (law, name) in enumerate(self.sites):
            site = found[i]
            if law != "data":
                _check_gradient(law, name, site)
            values.append(_rows(law, name, site))
            weights.append(_mask(law, name, site))
        law = (
            "posterior"
            if any(law != "prior" and law != "generated" for law, _ in self.sites)
            else "generated"
        )
        weights += [_selected(draws, law, name, value) for name, value in self.selection]
        weight = None
        for w in weights:
            if w is not None:
                weight = w if weight is None else weight * w
        return Rows(values[0] if len(values) == 1 else tuple(values), weight)


def data(site: str) -> View:
    """Observations of a site: x ~ p_data."""
    return View((("data", site),))


def posterior(site: str) -> View:
    """A site of the guide on data, z ~ q(z | x), or of the model at the guide's latents."""
    return View((("posterior", site),))


def prior(site: str) -> View:
    """A latent of the model on its own: z ~ p(z)."""
    return View((("prior", site),))


def generated(site: str) -> View:
    """A site of the model on its own, observations drawn: x ~ p(x | z), z ~ p(z)."""
    return View((("generated", site),))


def reconstructed(site: str) -> View:
    """Observations drawn anew at the guide's latents: x' ~ p(x' | z), z ~ q(z | x)."""
    return View((("reconstructed", site),))


def _axis(law: str, name: str, site: Site) -> int:
    frame = data_frame(site)
    if frame is None:
        plates = ", ".join(repr(f.name) for f in site["cond_indep_stack"]) or "none"
        raise ValueError(
            f'{law}({name!r}) has no rows: site {name!r} lies outside the plate "data" (its plates: {plates}); '
            'put it under pyro.plate("data", n), or name its plate "data"'
        )
    shape = site["value"].shape
    if site["infer"].get("_deterministic") and len(shape) < site["fn"].event_dim - frame.dim:
        # pyro.deterministic without event_dim: every axis counts as event, the data plate's among them
        if shape[0] != frame.size:
            raise ValueError(
                f"{law}({name!r}): the first axis of deterministic site {name!r}, shape {tuple(shape)}, is not the "
                f'plate "data" of size {frame.size}; give pyro.deterministic its event_dim='
            )
        return 0
    return len(shape) - site["fn"].event_dim + frame.dim


def _rows(law: str, name: str, site: Site) -> Tensor:
    axis = _axis(law, name, site)
    value = observation(site) if law == "data" else site["value"]
    if axis < 0 or value.shape[axis] == 1:
        value = value.expand(site["fn"].batch_shape + site["fn"].event_shape)
        axis = value.dim() - site["fn"].event_dim + data_frame(site).dim  # type: ignore[union-attr]
    return value.movedim(axis, 0)


def _mask(law: str, name: str, site: Site) -> Tensor | None:
    mask = site["mask"]
    if mask is None or mask is True:
        return None
    frame = data_frame(site)
    assert frame is not None  # _rows has checked
    mask = torch.as_tensor(mask)
    mask = mask.reshape((1,) * (-frame.dim - mask.dim()) + mask.shape)
    mask = mask.movedim(mask.dim() + frame.dim, 0)
    if mask[0].numel() != 1:
        raise ValueError(
            f'{law}({name!r}): the mask of site {name!r} differs within a row of the plate "data" (shape '
            f"{tuple(mask.shape)} with rows first); a row counts or does not: mask whole rows"
        )
    return mask.reshape(-1).expand(frame.size).to(torch.get_default_dtype())


def _selected(draws: Draws, law: str, name: str, value: float) -> Tensor:
    rows = _rows(law, name, draws.find(law, name))
    if rows[0].numel() != 1:
        raise ValueError(
            f"given({name}={value:g}): site {name!r} is not a number a row, it has shape {tuple(rows.shape)}"
        )
    return (rows.reshape(-1) == value).to(torch.get_default_dtype())


def _check_gradient(law: str, name: str, site: Site) -> None:
    """A draw without rsample passes no gradient on: an error, not silence, where its law has parameters."""
    fn = site["fn"]
    if site["is_observed"] or fn.has_rsample or not torch.is_grad_enabled():
        return
    if fn.log_prob(site["value"]).requires_grad:
        raise ValueError(
            f"{law}({name!r}): site {name!r} ({_family(fn)}) has no rsample, so no gradient would reach its parameters; "
            "draw it from a law that has (Normal, Delta, RelaxedBernoulliStraightThrough), or score it by Evidence()"
        )


def _family(fn) -> str:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__
