"""A program's log density as a function of all its latents at once, side by side on the real line.

With u the continuous latents in the order in which the program draws them, each mapped to the real line by `biject_to`
of its support and flattened, and z = T(u) the latents themselves,

    log p(u) = log p(x, z) + log |det dT / du|        in nats, of the whole data set

in double precision. Discrete latents are summed out. It is taken of many points at once, by `torch.func.vmap`, so a
program need not broadcast; values and slopes are recorded once and run without Python after.
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

BATCH = 64  # points that a recorded function takes at once
RADIUS = 2.0  # of starts, as Stan has it
TRIES = 100


class UnconstrainedLogDensity:
    """log p(u) of a program on data.

    Args:
        model: a Pyro program, whose random latents are continuous, or can be enumerated.
        args: what it is called with.

    Raises:
        ValueError: for a program without continuous latents, or with parameters, which have no posterior; for one that
            cannot be taken of many points at once, since it reads values, say.
    """

    def __init__(self, model: Program, args: tuple = ()):
        self.model = model
        self.args = tuple(_double(part) for part in args)
        with double_precision(), validation(False), torch.no_grad():
            trace, self._log_joint = joint_log_density(model, self.args, _anywhere)
        if learned := [name for name, site in trace.nodes.items() if site["type"] == "param"]:
            raise ValueError(
                f"a posterior is of latents, and the program has parameters, {', '.join(map(repr, learned))}: give "
                "them priors (pyro.sample), or fit the program with a guide of your own"
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
        self._fills = False
        self._check(trace)

    @property
    def labels(self) -> list[str]:
        """What each entry of u is of: ``beta[2]``."""
        return [
            name + (f"[{', '.join(map(str, index))}]" if shape else "")
            for name, shape in self.shapes.items()
            for index in (tuple(int(i) for i in row) for row in torch.ones(shape).nonzero())
        ]

    def constrain(self, u: Tensor) -> dict[str, Tensor]:
        """The latents z at points (..., dim), by name: (..., *shape)."""
        return {name: value for name, (value, _) in self._mapped(u).items()}

    def unconstrain(self, values: dict[str, Tensor]) -> Tensor:
        """The points (n, dim) of latents z, by name: (n, *shape)."""
        parts = []
        for name, support in self.supports.items():
            part = biject_to(support).inv(values[name].double())
            parts.append(part.reshape(len(part), -1))
        return torch.cat(parts, -1)

    def log_prob(self, u: Tensor) -> Tensor:
        """Log p at points (n, dim): (n,); -inf where it is no number, since there is no density there."""
        with torch.no_grad():
            value = torch.cat([_quietly(self.batched_log_prob)(part) for part in u.split(8 * BATCH)])
        return torch.where(value.isnan(), -torch.inf, value)

    def log_prob_and_grad(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log p (n,) and its slopes (n, dim) at points (n, dim)."""
        parts = [self._slopes(part) for part in u.split(BATCH)]
        return torch.cat([value for _, value in parts]), torch.cat([slope for slope, _ in parts])

    def hessian(self, u: Tensor, steps: Tensor) -> Tensor:
        """The second derivatives of log p at points (n, dim), by differences of slopes over `steps` (n, dim)."""
        moves = torch.cat([steps.diag_embed(), -steps.diag_embed()], 1)  # (n, 2 dim, dim)
        _, slopes = self.log_prob_and_grad((u[:, None] + moves).reshape(-1, self.dim))
        up, down = slopes.reshape(moves.shape).chunk(2, 1)
        h = (up - down) / (2 * steps[..., None])
        return (h + h.mT) / 2

    def initial_points(self, count: int, generator: torch.Generator) -> Tensor:
        """Points (count, dim) that lie wide apart, uniform on (-2, 2) in each entry, where log p and slopes are finite.

        Raises:
            FloatingPointError: if no such point is found; the message names the sites that are not finite.
            ValueError: of torch or Pyro, for arguments or data that a law does not take.
        """
        found, radius = torch.empty(0, self.dim, dtype=torch.float64), RADIUS
        for _ in range(TRIES // 10):
            u = radius * (2 * torch.rand(10 * count, self.dim, generator=generator, dtype=torch.float64) - 1)
            value, slope = self.log_prob_and_grad(u)
            found = torch.cat([found, u[value.isfinite() & slope.isfinite().all(-1)]])
            if len(found) >= count:
                with (
                    double_precision(),
                    validation(True),
                    torch.no_grad(),
                ):  # data outside of a law's support are found here
                    joint_log_density(self.model, self.args, self._value_at(found[0]))[0].compute_log_prob()
                return found[:count]
            radius *= 0.7
        raise FloatingPointError(self._what_is_not_finite(u[0]))

    def _what_is_not_finite(self, u: Tensor) -> str:
        with double_precision(), validation(False), torch.no_grad():
            trace, _ = joint_log_density(self.model, self.args, self._value_at(u))
            trace.compute_log_prob()
        at = ", ".join(f"{name} = {_short(value)}" for name, value in self.constrain(u).items())
        bad = [k for k, s in sample_sites(trace).items() if not torch.as_tensor(s["log_prob"]).isfinite().all()]
        what = f"log p of {', '.join(map(repr, bad))} is" if bad else "the slopes of log p are"
        return (
            f"{what} not finite at any of {TRIES} points tried around 0 on the real line; the last was {at}. Look for "
            "data outside a law's support, a scale of 0 or a division by 0 there"
        )

    def _value_at(self, u: Tensor) -> Callable[[Site], Tensor]:
        values = self.constrain(u)
        return lambda site: values[site["name"]]

    def _mapped(self, u: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Each latent at u, and the log-determinant of its map, summed over all its axes."""
        found = {}
        for name, shape in self.shapes.items():
            part, u = u[..., : shape.numel()], u[..., shape.numel() :]
            rank = part.dim() - 1
            transform = biject_to(self.supports[name])
            part = part.reshape(part.shape[:-1] + shape)
            value = transform(part)
            ladj = transform.log_abs_det_jacobian(part, value)
            found[name] = value, ladj.sum(tuple(range(rank, ladj.dim()))) if ladj.dim() > rank else ladj
        return found

    def _check(self, trace: Trace) -> None:
        """Holds that observations have a density, and that the program runs at two points at once.

        If it does not, it may be since it writes into tensors that it has made: then each point makes its own.
        """
        with double_precision(), validation(False), torch.no_grad():
            for name, site in sample_sites(trace).items():
                if not is_observed(site) or site["value"].is_floating_point():
                    continue
                try:
                    site["fn"].log_prob(site["value"])
                except (RuntimeError, TypeError) as error:
                    raise ValueError(
                        f"the law {type(site['fn']).__name__} of {name!r} has no density at values of "
                        f"{site['value'].dtype}; give it others (y.double(), say): {error}"
                    ) from error
        if self._error() is not None:
            self._fills = True
            if (found := self._error()) is not None:
                raise ValueError(
                    "the program cannot be taken of many points at once (torch.func.vmap), as it has to be to find its "
                    "posterior. Look for a law or a statement that reads a latent's value (if z > 0, float(z)) or "
                    "writes into a tensor, or give a guide (AutoNormal(model), say); torch says: "
                    f"{str(found).splitlines()[0]}"
                ) from found

    def _error(self) -> RuntimeError | None:
        try:
            _quietly(vmap(grad_and_value(self._one)))(torch.zeros(2, self.dim, dtype=torch.float64))
        except RuntimeError as error:
            return error
        return None

    def _one(self, u: Tensor) -> Tensor:
        mapped = self._mapped(u)
        values = {name: value for name, (value, _) in mapped.items()}
        with UnsharedTensors(u) if self._fills else nullcontext():
            log_joint = self._log_joint(values)
        return log_joint + sum(ladj for _, ladj in mapped.values())

    def batched_log_prob(self, u: Tensor) -> Tensor:
        """Log p at points (n, dim), as operations that can be recorded, and that gradients go through."""
        return vmap(self._one)(u)

    @cached_property
    def _slopes(self) -> "_Recorded":
        return _Recorded(vmap(grad_and_value(self._one)))


class _Recorded:
    """A function of points, `BATCH` at once, its operations recorded once, and run after without its Python."""

    def __init__(self, function: Callable):
        self.function = _quietly(function)
        self.graph: Callable | None = None

    def __call__(self, u: Tensor) -> tuple[Tensor, ...]:
        filled = torch.cat([u, u[:1].expand(BATCH - len(u), -1)])
        if self.graph is None:
            self.graph = record_function(self.function, filled)
        with torch.no_grad():
            return tuple(part[: len(u)] for part in self.graph(filled))


def _quietly(function: Callable) -> Callable:
    """A function in double precision, without the checks that read values, which a batch does not have."""

    def run(u: Tensor) -> Any:
        with double_precision(), validation(False), pyro.poutine.block():
            return function(u)

    return run


def _anywhere(site: Site) -> Tensor:
    """A value in a latent's support, found without drawing from its law, which may have no draws."""
    transform = biject_to(site["fn"].support)
    return transform(torch.zeros(_unconstrained_shape(site)))


def _unconstrained_shape(site: Site) -> torch.Size:
    return torch.Size(biject_to(site["fn"].support).inverse_shape(site["fn"].shape()))


def _double(part: Any) -> Any:
    return part.double() if isinstance(part, Tensor) and part.is_floating_point() else part


def _short(value: Tensor) -> str:
    numbers = value.flatten().tolist()
    shown = ", ".join(f"{number:.3g}" for number in numbers[:4]) + (", ..." if len(numbers) > 4 else "")
    return shown if value.dim() == 0 else f"[{shown}]"
