"""Simulators as Pyro programs: batches of simulations, and distributions that can be sampled but not scored.

A simulator is a model p(z) p(x | z) of one datum x. `Simulator` runs n of them at once, in a plate "data" whose row i
has its own z_i and x_i. Observations are arguments of the model, with the names of their sites. `ppgen.Sleep` trains a
guide on simulations, which is neural posterior estimation (Papamakarios and Murray, https://arxiv.org/abs/1605.06376).
"""

from collections import namedtuple
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.tracing.programs import isolated_sites, signature, validation
from ppgen.tracing.sites import DATA, Program, Site, quote_names

__all__ = ["Implicit", "Simulator", "WithoutDensity"]


class Simulator:
    """The program of n independent data: ``simulator(x)`` observes n rows, ``simulator.draw(n)`` simulates them.

    Latents are arguments as well, ``simulator(x, z)``, for stored simulations as `draw` returns them. The program
    ignores them; `ppgen.Sleep` scores the guide at them. Hence

        fit(simulator, guide, simulator.draw(10_000), loss=Sleep(), batch_size=100)

    trains on a table of simulations until those held out are no longer predicted better, and
    ``fit(simulator, guide, simulator.draw(256).x, loss=Sleep())`` on new simulations in each step. A guide has the same
    arguments, ``guide(x, z=None)``.

    Args:
        model: a Pyro program of one datum, for example ``def model(x=None)`` with ``pyro.sample("x", p, obs=x)``. It
            simulates the observations that are None. It must broadcast: in the plate, z is (n, *event).

    Attributes:
        data: the names of the observed sites, which are arguments of the model.
        latents: the names of the latent sites.

    Raises:
        LookupError: if no argument has the name of a site.
        ValueError: if the model has a plate "data" already or no latents, or if its rows are not independent.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import ppgen
        >>> def model(x=None):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 0.1), obs=x)
        >>> simulations = ppgen.Simulator(model).draw(5)
        >>> simulations.x.shape, simulations.z.shape
        (torch.Size([5]), torch.Size([5]))
    """

    def __init__(self, model: Program) -> None:
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
                f"Simulator: none of the model's arguments, {quote_names(self._parameters)}, has the name of one of "
                f"its sites, {quote_names(names)}; give an argument the name of the site that it observes"
            )
        if not self.latents:
            raise ValueError(
                f"Simulator: the model has the sites {quote_names(names)} and no latents; there is nothing to infer"
            )
        if any(frame.name == DATA for site in sites.values() for frame in site["cond_indep_stack"]):
            raise ValueError(
                'Simulator: the model has a plate "data", so it is a program of many data already; give it to Sleep() '
                "itself"
            )
        self._dim = -1 - max(len(site["fn"].batch_shape) for site in sites.values())
        latents = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in self.latents]
        ordered = sorted([*self._parameters.values(), *latents], key=lambda parameter: parameter.kind)
        self.__signature__ = Signature(ordered)
        self._check_independence()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The program of n rows of observations; arguments are those of the model, then its latents.

        Raises:
            ValueError: if there are no rows, their numbers differ, or a row has another shape than a simulated one.
        """
        bound = self.__signature__.bind(*args, **kwargs)
        arguments = {name: value for name, value in bound.arguments.items() if name not in self.latents}
        rows = {name: len(arguments[name]) for name in self.data if arguments.get(name) is not None}
        if len(set(rows.values())) != 1:
            raise ValueError(
                f"Simulator: expected the same number of rows of {quote_names(self.data)}, got {rows or 'none'}; to "
                "simulate, call draw(n)"
            )
        for name in rows:
            if arguments[name].shape[1:] != self._shapes[name]:
                raise ValueError(
                    f"Simulator: expected rows of {name!r} of shape {tuple(self._shapes[name])} each, as the model "
                    f"simulates them, got {tuple(arguments[name].shape)}; give a single datum as x[None]"
                )
        return self._run(next(iter(rows.values())), **arguments)

    def draw(self, n: int, *, seed: int | None = None) -> Any:
        """Simulates.

        Args:
            n: the number of simulations.
            seed: a seed; the state of torch's generator is then restored. If left out, the generator advances.

        Returns:
            A named tuple of rows (n, ...), one entry for each argument and latent, in the order of the arguments.

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

    def _run(self, n: int, **arguments: Any) -> Any:
        with pyro.plate(DATA, n, dim=self._dim):
            return self.model(**(self._defaults | arguments))

    def _check_independence(self) -> None:
        """Checks that the densities of a row do not depend on the latents of another row."""
        with torch.random.fork_rng(), validation(False):
            one, other = ({k: s["value"] for k, s in isolated_sites(self._run, 2).items()} for _ in range(2))
            self._shapes = {name: one[name].shape[1:] for name in self.data}
            for row in (0, 1):
                changed = {name: value.clone() for name, value in one.items()}
                for name in self.latents:
                    changed[name][row] = other[name][row]
                traces = [isolated_sites(poutine.condition(self._run, data=data), 2) for data in (one, changed)]
                for name in one:
                    before, after = (_log_density(sites[name])[1 - row] for sites in traces)
                    if not torch.allclose(before, after, equal_nan=True):
                        raise ValueError(
                            f"Simulator: in a plate of 2 simulations, the distribution of {name!r} in one row depends "
                            "on the latents of the other; index and sum latents from the right, as z[..., 0] and "
                            "z.sum(-1)"
                        )


def _log_density(site: Site) -> Tensor:
    """The log density of a site for each row; zero for an implicit distribution."""
    distribution = site["fn"]
    return (
        torch.zeros(distribution.batch_shape)
        if isinstance(distribution, Implicit)
        else distribution.log_prob(site["value"])
    )


class Implicit(TorchDistribution):
    """An implicit distribution: that of the output of a stochastic function of parameters. It has no density.

    ``Implicit(simulate, theta, event_shape=(2,))`` draws simulate(theta). The function is any code. It is called
    without gradients on rows of parameters (n, width), and returns n rows (n, *event_shape), a tensor or an array. In a
    compiled step it must be torch code. `fit` seeds torch's random numbers only.

    Args:
        function: the function, from rows of parameters to rows of draws.
        parameters: tensors (*batch_shape, width).
        event_shape: the shape of a draw.

    Raises:
        ValueError: if a draw has another shape.
        TypeError: if a draw is no tensor or array, or complex.
        NotImplementedError: if a density is asked for.

    Example:
        >>> import torch
        >>> import ppgen
        >>> def simulate(theta):
        ...     return theta + torch.randn_like(theta)
        >>> ppgen.Implicit(simulate, torch.zeros(4, 2), event_shape=(2,)).sample().shape
        torch.Size([4, 2])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, function: Callable[..., Any], *parameters: Tensor, event_shape: Sequence[int] = ()) -> None:
        self.function, self.parameters = function, parameters
        batch_shape = torch.broadcast_shapes(*(parameter.shape[:-1] for parameter in parameters))
        super().__init__(batch_shape, torch.Size(event_shape), validate_args=False)

    @property
    def support(self) -> Any:
        """Real tensors."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "Implicit":
        """The same distribution with another batch shape."""
        parameters = (parameter.expand(*batch_shape, parameter.shape[-1]) for parameter in self.parameters)
        return type(self)(self.function, *parameters, event_shape=self.event_shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws of the function, without gradients."""
        shape = torch.Size(sample_shape) + self.batch_shape
        rows = [p.detach().expand(*shape, p.shape[-1]).reshape(-1, p.shape[-1]) for p in self.parameters]
        with torch.no_grad():
            drawn = self.function(*rows)
        try:
            drawn = torch.as_tensor(drawn)
        except (RuntimeError, TypeError, ValueError) as error:
            raise TypeError(
                f"Implicit: expected a tensor or an array from the function, got {type(drawn).__name__}: {error}"
            ) from error
        if drawn.is_complex():
            raise TypeError(
                f"Implicit: expected real draws from the function, got {drawn.dtype}: give torch.view_as_real(x), say"
            )
        if drawn.shape != (len(rows[0]), *self.event_shape):
            raise ValueError(
                f"Implicit: expected draws of shape {(len(rows[0]), *self.event_shape)} from the function, got "
                f"{tuple(drawn.shape)}"
            )
        return drawn.to(rows[0].dtype).reshape(*shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Raises NotImplementedError, because an implicit distribution has no density."""
        raise NotImplementedError("Implicit: an implicit distribution has no density; use Sleep(), which needs none")


class WithoutDensity(Messenger):
    """A handler under which the densities of implicit distributions are 0, so that traces with them can be scored."""

    def _pyro_sample(self, msg: Site) -> None:
        fn = msg["fn"]
        if isinstance(fn, Implicit):
            msg["fn"] = _Unscored(fn.function, *fn.parameters, event_shape=fn.event_shape)


class _Unscored(Implicit):
    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_full(self.batch_shape, -torch.inf)
