"""A program's log density as a function of all its continuous latents, on the real line.

Let u hold the continuous latents, in the order in which the program samples them, each mapped to the real line by
`biject_to` of its support and flattened. With the latents z = T(u) themselves,

    log p(u) = log p(x, z) + log |det dT / du|        in nats, of the whole data set

in double precision, with discrete latents summed out. `torch.func.vmap` evaluates many points at once, so a program
need not broadcast. Values and gradients are recorded once as a graph and then run without Python.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import biject_to
from torch.func import grad_and_value, vmap

from ppgen.tracing.double_precision import double_precision
from ppgen.tracing.programs import joint_log_density, validation
from ppgen.tracing.sites import Program, Site, data_plate_size, is_observed, latent_sites, sample_sites
from ppgen.tracing.vmap import UnsharedTensors
from ppgen.utils.torch_private import record_function

__all__ = ["UnconstrainedLogDensity"]

BATCH = 64  # points that a recorded graph evaluates at once
RADIUS = 2.0  # initial points are uniform on (-RADIUS, RADIUS), as in Stan
SHRINKAGE = 0.7  # of the radius after each round without enough points
ROUNDS = 10
POINTS_PER_ROUND = 10  # for each initial point that is asked for


class UnconstrainedLogDensity:
    """log p(u) of a program on data (see the module's docstring).

    Args:
        model: a Pyro program whose latents are continuous, or discrete and enumerable.
        args: its arguments.

    Attributes:
        dim: the dimension of u.
        discrete: names of the discrete latents, which are summed out.
        num_data: the full size N of the plate "data".

    Raises:
        ValueError: if the program has parameters, no continuous latent, or a discrete latent that cannot be enumerated;
            if an observation has no density; if vmap cannot run the program, for example because it reads values.
    """

    def __init__(self, model: Program, args: tuple = ()) -> None:
        self.model = model
        self.args = tuple(_to_double(part) for part in args)
        with double_precision(), validation(False), torch.no_grad():
            trace, self._log_joint = joint_log_density(model, self.args, _value_in_support)
        if params := [name for name, site in trace.nodes.items() if site["type"] == "param"]:
            raise ValueError(
                f"the program has the parameters {', '.join(map(repr, params))}, and a posterior is a distribution of "
                "latents only: give them priors (pyro.sample), or fit the program with a guide of your own"
            )
        sites = latent_sites(trace)
        self.discrete = [name for name, site in sites.items() if site["fn"].support.is_discrete]
        self.num_data = data_plate_size(trace.nodes.values())
        latent = {name: site for name, site in sites.items() if name not in self.discrete}
        if not latent:
            raise ValueError("the program has no continuous latents, so there is no posterior to find")
        self.supports = {name: site["fn"].support for name, site in latent.items()}
        self.shapes = {name: _unconstrained_shape(site) for name, site in latent.items()}
        self.dim = sum(shape.numel() for shape in self.shapes.values())
        self._unshare_tensors = False
        _check_observations(trace)
        self._check_vmap()

    @property
    def labels(self) -> list[str]:
        """The name of each entry of u, such as ``beta[2]``."""
        return [
            name + (f"[{', '.join(map(str, index))}]" if shape else "")
            for name, shape in self.shapes.items()
            for index in (tuple(int(i) for i in row) for row in torch.ones(shape).nonzero())
        ]

    def constrain(self, u: Tensor) -> dict[str, Tensor]:
        """The latents z = T(u) at points (..., dim), by name: (..., *shape)."""
        return {name: value for name, (value, _) in self._transform(u).items()}

    def unconstrain(self, values: dict[str, Tensor]) -> Tensor:
        """The points (n, dim) of latents z, by name: (n, *shape)."""
        parts = []
        for name, support in self.supports.items():
            part = biject_to(support).inv(values[name].double())
            parts.append(part.reshape(len(part), -1))
        return torch.cat(parts, -1)

    def log_prob(self, u: Tensor) -> Tensor:
        """The values of log p at points (n, dim): (n,). NaN becomes -inf: there is no density at such a point."""
        with torch.no_grad():
            value = torch.cat([_isolated(self.batched_log_prob)(part) for part in u.split(8 * BATCH)])
        return torch.where(value.isnan(), -torch.inf, value)

    def log_prob_and_grad(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The values of log p (n,) and its gradients (n, dim) at points (n, dim)."""
        parts = [self._grad_and_value(part) for part in u.split(BATCH)]
        return torch.cat([value for _, value in parts]), torch.cat([gradient for gradient, _ in parts])

    def batched_log_prob(self, u: Tensor) -> Tensor:
        """The values of log p at points (n, dim), in differentiable operations that `make_fx` can record: (n,)."""
        return vmap(self._log_prob_of_one)(u)

    def hessian(self, u: Tensor, spacing: Tensor) -> Tensor:
        """The Hessians of log p at points (n, dim), by central differences of gradients: (n, dim, dim).

        Args:
            u: points, (n, dim).
            spacing: the distance of the differences in each coordinate, (n, dim).
        """
        moves = torch.cat([spacing.diag_embed(), -spacing.diag_embed()], 1)  # (n, 2 dim, dim)
        _, gradients = self.log_prob_and_grad((u[:, None] + moves).reshape(-1, self.dim))
        above, below = gradients.reshape(moves.shape).chunk(2, 1)
        h = (above - below) / (2 * spacing[..., None])
        return (h + h.mT) / 2

    def initial_points(self, count: int, generator: torch.Generator) -> Tensor:
        """Scattered points (count, dim) at which log p and its gradient are finite.

        They are uniform on (-2, 2) in each coordinate, or on a smaller interval if too few points are finite there.

        Args:
            count: how many points.
            generator: source of the random numbers.

        Raises:
            FloatingPointError: if there are too few such points; the message names the sites that are not finite.
            ValueError: raised by torch or Pyro if an argument or data lie outside a distribution's domain.
        """
        points, radius = torch.empty(0, self.dim, dtype=torch.float64), RADIUS
        for _ in range(ROUNDS):
            shape = POINTS_PER_ROUND * count, self.dim
            u = radius * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
            value, gradient = self.log_prob_and_grad(u)
            points = torch.cat([points, u[value.isfinite() & gradient.isfinite().all(-1)]])
            if len(points) >= count:
                with double_precision(), validation(True), torch.no_grad():  # finds data outside a support
                    joint_log_density(self.model, self.args, self._value_at(points[0]))[0].compute_log_prob()
                return points[:count]
            radius *= SHRINKAGE
        raise FloatingPointError(self._not_finite_message(u[0]))

    def _not_finite_message(self, u: Tensor) -> str:
        """Which sites are not finite at a point."""
        with double_precision(), validation(False), torch.no_grad():
            trace, _ = joint_log_density(self.model, self.args, self._value_at(u))
            trace.compute_log_prob()
        values = ", ".join(f"{name} = {_short(value)}" for name, value in self.constrain(u).items())
        bad = [k for k, s in sample_sites(trace).items() if not torch.as_tensor(s["log_prob"]).isfinite().all()]
        what = f"log p of {', '.join(map(repr, bad))} is" if bad else "the gradient of log p is"
        return (
            f"{what} not finite at any of {ROUNDS * POINTS_PER_ROUND} points tried around 0 on the real line; the last "
            f"was {values}. Look for data outside a distribution's support, a scale of 0 or a division by 0 there"
        )

    def _value_at(self, u: Tensor) -> Callable[[Site], Tensor]:
        values = self.constrain(u)
        return lambda site: values[site["name"]]

    def _transform(self, u: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Each latent at u, and log |det| of its transform, summed over all its axes."""
        result = {}
        for name, shape in self.shapes.items():
            part, u = u[..., : shape.numel()], u[..., shape.numel() :]
            rank = part.dim() - 1
            transform = biject_to(self.supports[name])
            part = part.reshape(part.shape[:-1] + shape)
            value = transform(part)
            log_det = transform.log_abs_det_jacobian(part, value)
            result[name] = value, log_det.sum(tuple(range(rank, log_det.dim()))) if log_det.dim() > rank else log_det
        return result

    def _log_prob_of_one(self, u: Tensor) -> Tensor:
        """The value of log p at one point (dim,)."""
        transformed = self._transform(u)
        values = {name: value for name, (value, _) in transformed.items()}
        with UnsharedTensors(u) if self._unshare_tensors else nullcontext():
            log_joint = self._log_joint(values)
        return log_joint + sum(log_det for _, log_det in transformed.values())

    @cached_property
    def _grad_and_value(self) -> "_RecordedFunction":
        return _RecordedFunction(vmap(grad_and_value(self._log_prob_of_one)))

    def _check_vmap(self) -> None:
        """Checks that vmap can run the program at two points; if not, tries again with unshared tensors."""
        if self._vmap_error() is None:
            return
        self._unshare_tensors = True
        if (error := self._vmap_error()) is not None:
            raise ValueError(
                "the program cannot be evaluated at many points at once (torch.func.vmap), which finding its posterior "
                "requires. Look for a distribution or a statement that reads a latent's value (if z > 0, float(z)) or "
                "writes into a tensor, or give a guide (AutoNormal(model), say). The error from torch: "
                f"{str(error).splitlines()[0]}"
            ) from error

    def _vmap_error(self) -> RuntimeError | None:
        try:
            _isolated(vmap(grad_and_value(self._log_prob_of_one)))(torch.zeros(2, self.dim, dtype=torch.float64))
        except RuntimeError as error:
            return error
        return None


class _RecordedFunction:
    """A function of `BATCH` points, recorded as a graph at its first call and then run without its Python code."""

    def __init__(self, function: Callable) -> None:
        self.function = _isolated(function)
        self.graph: Callable | None = None

    def __call__(self, u: Tensor) -> tuple[Tensor, ...]:
        padded = torch.cat([u, u[:1].expand(BATCH - len(u), -1)])
        if self.graph is None:
            self.graph = record_function(self.function, padded)
        with torch.no_grad():
            return tuple(part[: len(u)] for part in self.graph(padded))


def _isolated(function: Callable) -> Callable:
    """Runs a function in double precision, hidden from outer handlers, without checks that read values."""

    def run(u: Tensor) -> Any:
        with double_precision(), validation(False), pyro.poutine.block():
            return function(u)

    return run


def _check_observations(trace: Trace) -> None:
    """Checks that each observation that is not of a floating type has a density.

    Raises:
        ValueError: naming the site.
    """
    with double_precision(), validation(False), torch.no_grad():
        for name, site in sample_sites(trace).items():
            if not is_observed(site) or site["value"].is_floating_point():
                continue
            try:
                site["fn"].log_prob(site["value"])
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    f"the distribution {type(site['fn']).__name__} of {name!r} has no density at values of "
                    f"{site['value'].dtype}; give it others (y.double(), say): {error}"
                ) from error


def _value_in_support(site: Site) -> Tensor:
    """A value in a latent's support. It is not a draw, since an improper prior has none."""
    transform = biject_to(site["fn"].support)
    return transform(torch.zeros(_unconstrained_shape(site)))


def _unconstrained_shape(site: Site) -> torch.Size:
    return torch.Size(biject_to(site["fn"].support).inverse_shape(site["fn"].shape()))


def _to_double(part: Any) -> Any:
    return part.double() if isinstance(part, Tensor) and part.is_floating_point() else part


def _short(value: Tensor) -> str:
    """The first numbers of a tensor, for a message."""
    numbers = value.flatten().tolist()
    shown = ", ".join(f"{number:.3g}" for number in numbers[:4]) + (", ..." if len(numbers) > 4 else "")
    return shown if value.dim() == 0 else f"[{shown}]"
