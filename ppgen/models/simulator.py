"""Simulators as Pyro programs: rows of simulations, and laws that can be drawn but not scored.

A simulator is a model p(z) p(x | z) of one datum x. `Simulator` is n of them at once, row i with its own z_i and x_i,
in a plate "data"; the observations are arguments of the model, by the names of their sites.
"""

from collections import namedtuple
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ppgen.tracing.programs import isolated_sites, signature, validation
from ppgen.tracing.sites import DATA, Program, Site

__all__ = ["Implicit", "Simulator"]


class Simulator:
    """A program of one datum as a program of rows: ``simulator(x)`` observes n rows, ``simulator.draw(n)`` draws them.

    Latents are arguments too, ``simulator(x, z)``: simulations made before, as `draw` returns them. They change nothing
    here, and are what `ppgen.Sleep` then scores a guide at. So

        fit(simulator, guide, simulator.draw(10_000), loss=Sleep(), batch_size=100, validation=0.1, patience=20)

    learns from a table of simulations, and ``fit(simulator, guide, simulator.draw(256).x, loss=Sleep())`` from new ones
    in every step, as many as there are rows. A guide of one's own takes the same arguments, ``guide(x, z=None)``.

    Args:
        model: a Pyro program of one datum, which broadcasts: under the plate z is (n, *event). ``def model(x=None)``
            with ``pyro.sample("x", law, obs=x)``; arguments are None where it is to simulate.

    Attributes:
        data, latents: the names of the observed sites, which are arguments of the model, and of its latents.

    Raises:
        LookupError: if no argument has the name of a site.
        ValueError: if the model has a plate "data" already or no latents, or if its rows depend on one another.
    """

    def __init__(self, model: Program):
        self.model = self.__wrapped__ = model
        self._parameters = {
            name: parameter.replace(default=None) if parameter.default is Parameter.empty else parameter
            for name, parameter in signature(model).parameters.items()
            if parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        }
        with torch.random.fork_rng():
            sites = isolated_sites(model, **self._defaults)
        names = [name for name, site in sites.items() if not site["is_observed"]]
        self.data = tuple(name for name in self._parameters if name in names)
        self.latents = tuple(name for name in names if name not in self.data)
        if not self.data:
            raise LookupError(
                f"Simulator: none of the model's arguments, {_listed(self._parameters)}, has the name of one of its "
                f"sites, {_listed(names)}; name an argument as the site that it observes"
            )
        if not self.latents:
            raise ValueError(f"Simulator: the model draws {_listed(names)} and no latents; there is nothing to infer")
        if any(frame.name == DATA for site in sites.values() for frame in site["cond_indep_stack"]):
            raise ValueError(
                'Simulator: the model has a plate "data", so it is one of many data already; Sleep() takes it as it is'
            )
        self._dim = -1 - max(len(site["fn"].batch_shape) for site in sites.values())
        latents = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in self.latents]
        ordered = sorted([*self._parameters.values(), *latents], key=lambda parameter: parameter.kind)
        self.__signature__ = Signature(ordered)
        self._check()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.__signature__.bind(*args, **kwargs)
        given = {name: value for name, value in bound.arguments.items() if name not in self.latents}
        rows = {name: len(given[name]) for name in self.data if given.get(name) is not None}
        if len(set(rows.values())) != 1:
            raise ValueError(
                f"Simulator: expected rows of {_listed(self.data)}, equally many, got {rows or 'none'}; to simulate, "
                "call draw(n)"
            )
        for name in rows:
            if given[name].shape[1:] != self._shapes[name]:
                raise ValueError(
                    f"Simulator: expected rows of {name!r} of shape {tuple(self._shapes[name])} each, as it draws "
                    f"them, got {tuple(given[name].shape)}; a single datum is a row, x[None]"
                )
        return self._run(next(iter(rows.values())), **given)

    def draw(self, n: int, *, seed: int | None = None) -> Any:
        """n simulations, a named tuple: of each argument and latent the rows (n, ...), as the program takes them.

        Args:
            seed: torch's generator goes on where it is if left out, and is left alone otherwise.

        Raises:
            ValueError: for n below 1.
        """
        if n < 1:
            raise ValueError(f"Simulator: expected at least one simulation, got n={n}")
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            sites = isolated_sites(self._run, n)
        names = [name for name in self.__signature__.parameters if name in sites]
        return namedtuple("Simulations", names, rename=True)(*(sites[name]["value"] for name in names))

    @property
    def _defaults(self) -> dict[str, Any]:
        return {name: parameter.default for name, parameter in self._parameters.items()}

    def _run(self, n: int, **given: Any) -> Any:
        with pyro.plate(DATA, n, dim=self._dim):
            return self.model(**(self._defaults | given))

    def _check(self) -> None:
        """Holds that a row of latents matters to the densities of its own row alone."""
        with torch.random.fork_rng(), validation(False):
            one, other = ({k: s["value"] for k, s in isolated_sites(self._run, 2).items()} for _ in range(2))
            self._shapes = {name: one[name].shape[1:] for name in self.data}
            for row in (0, 1):
                moved = {name: value.clone() for name, value in one.items()}
                for name in self.latents:
                    moved[name][row] = other[name][row]
                at = [isolated_sites(poutine.condition(self._run, data=data), 2) for data in (one, moved)]
                for name in one:
                    before, after = (_density(sites[name])[1 - row] for sites in at)
                    if not torch.allclose(before, after, equal_nan=True):
                        raise ValueError(
                            f"Simulator: in a plate of 2 simulations, the law of {name!r} in one row depends on the "
                            "latents of the other; index and sum latents from the right, as z[..., 0] and z.sum(-1)"
                        )


def _density(site: Site) -> Tensor:
    """A site's log density, a row each; zeros where it has none."""
    distribution = site["fn"]
    return (
        torch.zeros(distribution.batch_shape)
        if isinstance(distribution, Implicit)
        else distribution.log_prob(site["value"])
    )


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"


class Implicit(TorchDistribution):
    """The law of what a function makes of parameters and random numbers of its own, which has no density.

    ``Implicit(simulate, theta, event_shape=(2,))`` draws simulate(theta): any code, called without gradients with rows
    of parameters, (n, width) each, and to return as many rows (n, *event_shape), a tensor or an array. A compiled step
    takes torch code alone; random numbers that are not torch's are not seeded by `fit`.

    Args:
        function: rows of parameters to rows of draws.
        parameters: (*batch_shape, width) each.
        event_shape: of a draw.

    Raises:
        ValueError: if a draw comes in another shape.
        NotImplementedError: where a density is asked for.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, function: Callable[..., Any], *parameters: Tensor, event_shape: Sequence[int] = ()):
        self.function, self.parameters = function, parameters
        batch_shape = torch.broadcast_shapes(*(parameter.shape[:-1] for parameter in parameters))
        super().__init__(batch_shape, torch.Size(event_shape), validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "Implicit":
        parameters = (parameter.expand(*batch_shape, parameter.shape[-1]) for parameter in self.parameters)
        return Implicit(self.function, *parameters, event_shape=self.event_shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        rows = [p.detach().expand(*shape, p.shape[-1]).reshape(-1, p.shape[-1]) for p in self.parameters]
        with torch.no_grad():
            drawn = torch.as_tensor(self.function(*rows))
        if drawn.shape != (len(rows[0]), *self.event_shape):
            raise ValueError(
                f"Implicit: expected draws of shape {(len(rows[0]), *self.event_shape)} of the function, got "
                f"{tuple(drawn.shape)}"
            )
        return drawn.to(rows[0].dtype).reshape(*shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError("Implicit: a law that is drawn by a function has no density; Sleep() asks for none")
