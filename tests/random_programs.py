"""Random small programs, as descriptions that print as Python: model, guide and data of each, and how to draw one.

    program = Program(
        plates=(Plate("data", 4),),
        sites=(
            Site("a", "normal", "latent"),
            Site("y", "poisson", "observed", plates=("data",), parents=("a", "x"), uses=("broadcast", "broadcast")),
        ),
    )
    model, guide, args = program.build()

Each site has a distribution (a row of `FAMILIES`) around a location: a constant plus half of what each parent adds,
in one of the ways that people write it (a row of `USES`). The parent "x" is a covariate of the first plate.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import autoguide
from torch import Tensor
from torch.distributions import biject_to, transforms

WIDTH = 2  # of vector events


class Family(NamedTuple):
    """A distribution around a location m, and the rank of its events."""

    make: Callable[[Any], Any]
    event_dim: int = 0
    discrete: bool = False
    moving_support: bool = False
    """Whether its support depends on m."""


def _tensor(m: Any) -> Tensor:
    return torch.as_tensor(m, dtype=m.dtype if isinstance(m, Tensor) else torch.get_default_dtype())


def _vector(m: Any, *factors: float) -> Tensor:
    """A vector of multiples of m, along a new last dimension."""
    m = _tensor(m)
    return torch.stack([factor * m for factor in factors], -1)


def _tril(m: Any) -> Tensor:
    return torch.tensor([[0.8, 0.0], [0.3, 0.6]], dtype=_tensor(m).dtype)


FAMILIES: dict[str, Family] = {
    "normal": Family(lambda m: dist.Normal(m, 0.8)),
    "student": Family(lambda m: dist.StudentT(5.0, m, 0.7)),
    "log_normal": Family(lambda m: dist.LogNormal(torch.tanh(_tensor(m)), 0.5)),
    "gamma": Family(lambda m: dist.Gamma(2.0, torch.sigmoid(_tensor(m)) + 0.5)),
    "half_normal": Family(lambda m: dist.HalfNormal(torch.sigmoid(_tensor(m)) + 0.5)),
    "beta": Family(lambda m: dist.Beta(2.0, torch.sigmoid(_tensor(m)) + 1.0)),
    "uniform": Family(lambda m: dist.Uniform(torch.tensor(-1.0, dtype=_tensor(m).dtype), 2.0)),
    "uniform_to": Family(lambda m: dist.Uniform(0.0, torch.sigmoid(_tensor(m)) + 0.5), moving_support=True),
    "transformed": Family(
        lambda m: dist.TransformedDistribution(
            dist.Normal(_tensor(m), 0.5), [transforms.AffineTransform(1.0, 0.5), transforms.SigmoidTransform()]
        )
    ),
    "vector": Family(lambda m: dist.Normal(_vector(m, 1.0, -1.0), 0.9).to_event(1), 1),
    "mvn": Family(lambda m: dist.MultivariateNormal(_vector(m, 1.0, 0.5), scale_tril=_tril(m)), 1),
    "dirichlet": Family(lambda m: dist.Dirichlet(torch.sigmoid(_vector(m, 1.0, -1.0)) + 1.0), 1),
    "bernoulli": Family(lambda m: dist.Bernoulli(logits=_tensor(m)), discrete=True),
    "categorical": Family(lambda m: dist.Categorical(logits=_vector(m, 1.0, 0.0, -1.0)), discrete=True),
    "poisson": Family(lambda m: dist.Poisson(torch.tanh(_tensor(m)).exp()), discrete=True),
}
CONTINUOUS = [name for name, family in FAMILIES.items() if not family.discrete]
FINITE = ["bernoulli", "categorical"]
GUIDES = {
    "AutoNormal": autoguide.AutoNormal,
    "AutoDiagonalNormal": autoguide.AutoDiagonalNormal,
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
}
LEVELS = (-1.0, 0.3, 1.2)  # what the values of a categorical add


class _Readable:
    """Prints as the call that makes it, without what is left at its default."""

    def __repr__(self) -> str:
        shown = [f.name for f in fields(self) if f.default is MISSING or getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # which hypothesis calls
        printer.text(repr(self))


@dataclass(frozen=True, repr=False)
class Plate(_Readable):
    """A plate; with `rows`, it draws a subsample of so many ("drawn"), or its data are a batch of so many ("given")."""

    name: str
    size: int
    dim: int = -1
    rows: int = 0
    subsample: str = ""

    @property
    def used(self) -> int:
        return self.rows or self.size


@dataclass(frozen=True, repr=False)
class Site(_Readable):
    """A statement of a program; see the module's docstring.

    Attributes:
        role: "latent", "enumerated" (a latent that the guide leaves out), "observed", "deterministic" or "factor".
        mask: "handler" (`poutine.mask`) or "method" (`.mask`): every other row of the first plate counts for nothing.
        scale: of `poutine.scale`.
    """

    name: str
    family: str
    role: str
    plates: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    mask: str = ""
    scale: float = 1.0


class Built(NamedTuple):
    model: Callable
    guide: Callable
    args: tuple


@dataclass(frozen=True, repr=False)
class Program(_Readable):
    """A program; see the module's docstring. The covariate is the first argument, observations are the others."""

    plates: tuple[Plate, ...]
    sites: tuple[Site, ...]
    guide: str = "hand"
    dtype: torch.dtype = torch.float32

    def of(self, *roles: str) -> list[Site]:
        return [site for site in self.sites if site.role in roles]

    def is_summed(self, site: Site) -> bool:
        """Whether the density of a site depends on a latent that is left to enumeration."""
        return _is_summed(site, self.sites)

    @property
    def draws_rows(self) -> bool:
        return any(plate.subsample == "drawn" for plate in self.plates)

    @property
    def reads_values(self) -> bool:
        """Whether Python reads the values of latents."""
        scalars = {site.name for site in self.of("latent") if site.family == "categorical" and not site.plates}
        return any("branch" in site.uses or scalars & {*site.parents} for site in self.sites)  # table[scalar] does

    @property
    def plain_numbers(self) -> bool:
        """Whether constants are Python numbers, so that priors are float32 whatever the data are."""
        return not self.of("enumerated")  # Pyro's sums over enumerated latents need one dtype

    @property
    def depth(self) -> int:
        """How many dimensions its plates have."""
        return max(-plate.dim for plate in self.plates)

    @property
    def full_data(self) -> "Program":
        """The program without subsamples."""
        return replace(self, plates=tuple(replace(p, rows=0, subsample="") for p in self.plates))

    @staticmethod
    def observed_rows(x: Tensor) -> Tensor:
        """The rows that a mask keeps."""
        return x < 0.4

    def build(self) -> Built:
        """The programs, and data that the model draws, from an empty parameter store."""
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        full = self.full_data
        x = torch.linspace(-1.0, 1.0, self.plates[0].size, dtype=self.dtype)
        drawn = poutine.trace(full.model).get_trace(x)
        data = [drawn.nodes[site.name]["value"].detach() for site in self.of("observed")]
        for plate in self.plates:
            if plate.subsample == "given":  # the arguments are a batch of the data
                x = x[: plate.rows]
                for i, site in enumerate(self.of("observed")):
                    if plate.name in site.plates:
                        data[i] = data[i].narrow(plate.dim - FAMILIES[site.family].event_dim, 0, plate.rows)
        guide = self.hand_guide
        if self.guide != "hand":
            hidden = [site.name for site in self.of("enumerated")]
            guide = GUIDES[self.guide](poutine.block(self.model, hide=hidden))
            guide(x, *data)
        return Built(self.model, guide, (x, *data))

    def model(self, x: Tensor, *data: Tensor) -> dict[str, Tensor]:
        """The model; without data it draws its observations."""
        observations = dict(zip([site.name for site in self.of("observed")], data, strict=False))
        run = _Run(self, x)
        for site in self.sites:
            with run.inside(site):
                m = run.location(site)
                if site.role == "deterministic":
                    run.values[site.name] = pyro.deterministic(site.name, m, event_dim=0 if site.plates else None)
                elif site.role == "factor":
                    pyro.factor(site.name, -0.2 * m**2)
                else:
                    family = FAMILIES[site.family].make(m)
                    family = family.mask(run.mask()) if site.mask == "method" else family
                    obs = observations.get(site.name)
                    obs = obs if obs is None else run.drawn_rows(obs, site)
                    infer = {"enumerate": "parallel"} if site.role == "enumerated" else {}
                    run.values[site.name] = pyro.sample(site.name, family, obs=obs, infer=infer)
        return run.values

    def hand_guide(self, x: Tensor, *data: Tensor) -> None:
        """A guide of independent latents, whose parameters do not depend on the size of any plate."""
        run = _Run(self, x)
        for site in self.of("latent"):
            with run.inside(site):
                family = FAMILIES[site.family]
                prior = family.make(run.location(site) if family.moving_support else 0.3)
                row = 0.3 * run.covariate() if self.plates[0].name in site.plates else 0.0
                shift = pyro.param(f"{site.name}.loc", torch.tensor(0.2, dtype=self.dtype)) + row
                if family.discrete:
                    q = family.make(shift)
                else:
                    q = self._around(shift, site, prior)
                q = q.mask(run.mask()) if site.mask == "method" else q
                run.values[site.name] = pyro.sample(site.name, q)

    def _around(self, shift: Tensor, site: Site, prior: Any) -> Any:
        """A normal distribution around a location, moved to the support of the prior."""
        to_support = biject_to(prior.support)
        scale = pyro.param(
            f"{site.name}.scale", torch.tensor(0.4, dtype=self.dtype), constraint=dist.constraints.positive
        )
        event = to_support.inverse_shape(prior.shape())[len(prior.batch_shape) :]
        base = dist.Normal(shift.reshape(shift.shape + (1,) * len(event)).expand(shift.shape + event), scale)
        base = base.to_event(len(event))
        return (
            dist.TransformedDistribution(base, [to_support])
            if to_support is not transforms.identity_transform
            else base
        )


class _Run:
    """One run of a program: its plates and the values so far."""

    def __init__(self, program: Program, x: Tensor) -> None:
        self.program, self.x, self.values = program, x, {}
        self.plates = {}
        for plate in program.plates:
            how: dict[str, Any] = {"dim": plate.dim}
            if plate.subsample == "drawn":
                how["subsample_size"] = plate.rows
            elif plate.subsample == "given":
                how["subsample_size"] = plate.rows
                how["subsample"] = torch.arange(plate.rows)
            self.plates[plate.name] = pyro.plate(plate.name, plate.size, **how)
        self.by_name = {plate.name: plate for plate in program.plates}
        self.sites = {site.name: site for site in program.sites}
        self.rows: dict[str, Tensor] = {}

    def inside(self, site: Site) -> ExitStack:
        """The plates and handlers around a site."""
        stack = ExitStack()
        for name in site.plates:
            self.rows[name] = stack.enter_context(self.plates[name])
        if site.mask == "handler":
            stack.enter_context(poutine.mask(mask=self.mask()))
        if site.scale != 1.0:
            stack.enter_context(poutine.scale(scale=site.scale))
        return stack

    def drawn_rows(self, value: Tensor, site: Site) -> Tensor:
        """The rows of data that the plates have drawn."""
        for name in site.plates:
            if self.by_name[name].subsample == "drawn":
                value = value.index_select(self.by_name[name].dim - FAMILIES[site.family].event_dim, self.rows[name])
        return value

    def covariate(self) -> Tensor:
        """The rows of x in the first plate, along its dimension."""
        plate = self.program.plates[0]
        x = self.x[self.rows[plate.name]] if plate.subsample == "drawn" else self.x
        return x.reshape((-1,) + (1,) * (-plate.dim - 1))

    def mask(self) -> Tensor:
        return Program.observed_rows(self.covariate())

    def location(self, site: Site) -> Any:
        m: Any = 0.3 if self.program.plain_numbers else torch.tensor(0.3, dtype=self.program.dtype)
        for parent, use in zip(site.parents, site.uses, strict=True):
            m = m + 0.5 * (self.covariate() if parent == "x" else USES[use](self, self.sites[parent], site))
        return m

    def number(self, parent: Site) -> Tensor:
        """One number for each row of the parent's plates."""
        value, family = self.values[parent.name], FAMILIES[parent.family]
        if parent.family == "categorical" and parent.role != "deterministic":
            return torch.tensor(LEVELS, dtype=self.program.dtype)[value.long()]
        value = value.to(self.program.dtype) if family.discrete else value
        return value.sum(-1) if family.event_dim and parent.role != "deterministic" else value


def _broadcast(run: _Run, parent: Site, child: Site) -> Tensor:
    """Row by row; summed over the plates of the parent in which the child does not lie."""
    value = run.number(parent)
    for name in parent.plates:
        if name not in child.plates and value.dim() >= -run.by_name[name].dim:
            value = value.sum(run.by_name[name].dim, keepdim=True)
    return value


def _total(run: _Run, parent: Site, child: Site) -> Tensor:
    return run.number(parent).sum()


def _matmul(run: _Run, parent: Site, child: Site) -> Tensor:
    x = run.covariate()
    features = torch.stack([torch.ones_like(x), x], -1)
    return features @ run.values[parent.name].to(features.dtype)


def _index(run: _Run, parent: Site, child: Site) -> Tensor:
    """Entries of the parent by a group of each row."""
    x = run.covariate()
    return run.values[parent.name][(x > 0).long()]


def _branch(run: _Run, parent: Site, child: Site) -> Tensor:
    return torch.tensor(1.0 if float(run.number(parent).detach().sum()) > 0.5 else -1.0, dtype=run.program.dtype)


def _write(run: _Run, parent: Site, child: Site) -> Tensor:
    filled = torch.zeros(3, dtype=run.program.dtype)
    filled[1] = run.number(parent).sum()
    return filled.sum()


USES: dict[str, Callable[[_Run, Site, Site], Tensor]] = {
    "broadcast": _broadcast,
    "total": _total,
    "matmul": _matmul,
    "index": _index,
    "branch": _branch,
    "write": _write,
}


@st.composite
def programs(draw: Any, *, enumerated: bool = False, subsampled: bool = False, local: bool = False) -> Program:
    """Draws a program.

    Args:
        draw: hypothesis's function.
        enumerated: whether it has discrete latents that the guide leaves to enumeration.
        subsampled: whether the first plate has more rows than it uses.
        local: whether every site lies in the plate "data".
    """
    plates = draw(_plates(subsampled, local))
    first = plates[0]
    guide = "hand" if subsampled else draw(st.sampled_from(["hand", "hand", *GUIDES]))
    sites: list[Site] = []

    def add(name: str, role: str, families: list[str]) -> None:
        must = _enumerated_plates(sites) if role != "latent" else ()
        if role == "enumerated" and subsampled:  # Pyro wants one scale for all enumerated sites
            must = (*must, first.name)
        inside = tuple(p.name for p in plates if p.name in must or (local and p is first) or draw(st.booleans()))
        candidates = {s.name: s for s in sites if s.role not in ("factor", "observed")}
        fewest = 1 if role in ("deterministic", "factor") else 0
        if len(candidates) < fewest:
            return
        some = st.lists(st.sampled_from([*candidates]), min_size=fewest, max_size=2, unique=True)
        parents = draw(some) if candidates else []
        uses = [draw(_uses(candidates[parent], inside, first, sites)) for parent in parents]
        if first.name in inside and draw(st.booleans()):
            parents, uses = [*parents, "x"], [*uses, "broadcast"]
        masks = ["", "", "", "handler", "method"] if role == "observed" and first.name in inside else [""]
        scales = [1.0, 1.0, 1.0, 0.5, 3.0] if role == "observed" and not enumerated else [1.0]
        family, mask, scale = (draw(st.sampled_from(choices)) for choices in (families, masks, scales))
        sites.append(Site(name, family, role, inside, tuple(parents), tuple(uses), mask, scale))

    continuous = CONTINUOUS if guide == "hand" else [k for k in CONTINUOUS if not FAMILIES[k].moving_support]
    for i in range(draw(st.integers(1, 2))):
        add(f"z{i}", "latent", continuous + (FINITE if guide == "hand" and not enumerated else []))
    for i in range(draw(st.integers(1, 2)) if enumerated else 0):
        add(f"c{i}", "enumerated", FINITE)
    if draw(st.booleans()):
        add("f", "deterministic", ["normal"])
    if draw(st.integers(0, 3)) == 0:
        add("g", "factor", ["normal"])
    for i in range(draw(st.integers(1, 2))):
        add(f"y{i}", "observed", [k for k in FAMILIES if k not in ("uniform", "uniform_to", "beta")])
    mixed = enumerated and any(site.role == "deterministic" for site in sites)  # whose densities are float32 in Pyro
    dtype = torch.float32 if mixed else draw(st.sampled_from([torch.float32, torch.float64]))
    return Program(plates, tuple(sites), guide, dtype)


@st.composite
def _plates(draw: Any, subsampled: bool, local: bool) -> tuple[Plate, ...]:
    name = "data" if local else draw(st.sampled_from(["data", "data", "rows"]))
    size = draw(st.integers(2, 5))
    rows = draw(st.integers(1, size - 1)) if subsampled else 0
    how = draw(st.sampled_from(["drawn", "given"])) if subsampled else ""
    dim, other = draw(st.sampled_from([(-1, -2), (-1, -2), (-2, -1)]))
    first = Plate(name, size, dim, rows, how)
    if not draw(st.booleans()):
        return (replace(first, dim=-1),)
    return first, Plate("groups", draw(st.integers(2, 3)), other)


def _enumerated_plates(sites: list[Site]) -> tuple[str, ...]:
    """The plates of all enumerated latents, in which later sites have to lie too."""
    return tuple({name: None for site in sites if site.role == "enumerated" for name in site.plates})


def _is_summed(site: Site, sites: Sequence[Site]) -> bool:
    parents = [parent for parent in sites if parent.name in site.parents]
    return site.role == "enumerated" or any(
        parent.role in ("enumerated", "deterministic") and _is_summed(parent, sites) for parent in parents
    )


def _uses(parent: Site, inside: tuple[str, ...], first: Plate, sites: list[Site]) -> st.SearchStrategy[str]:
    if parent.role != "latent" and _is_summed(parent, sites):
        return st.just("broadcast")
    uses = ["broadcast"] * 6
    uses += ["total"] if set(parent.plates) - set(inside) or not inside else []
    vector = FAMILIES[parent.family].event_dim and parent.role == "latent" and not parent.plates
    uses += ["matmul", "index"] if vector and first.name in inside else []
    uses += ["branch", "write"] if not inside or not parent.plates else []
    return st.sampled_from(uses)
