"""A program's log density as a function of all its continuous latents, on the real line.

Let u hold the continuous latents, in the order in which the program samples them, each mapped to the real line by
`biject_to` of its support and flattened. A support may depend on the latents before it, as that of b ~ Uniform(0, a)
does: z = T(u) is computed site by site while the program runs. Then

    log p(u) = log p(x, z) + log |det dT / du|        in nats, of the whole data set

in double precision, with discrete latents summed out. `torch.func.vmap` evaluates many points at once, so a program
need not broadcast; values and gradients are recorded once as a graph and then run without Python. A program that reads
values of its latents runs once for each point instead.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Transform, biject_to
from torch.func import grad_and_value, vmap

from ppgen.tracing.double_precision import double_precision
from ppgen.tracing.masks import has_nan_density
from ppgen.tracing.programs import JointDensity, program_name, validation, warn_one_by_one
from ppgen.tracing.sites import (
    Program,
    Site,
    data_plate_size,
    is_delta,
    is_deterministic,
    is_observed,
    latent_sites,
    quote_names,
    sample_sites,
)
from ppgen.tracing.vmap import UnsharedTensors, permissive_vmap
from ppgen.utils.torch_private import record_function

__all__ = ["UnconstrainedLogDensity", "central_differences", "latents_only", "needs_density"]

_LATENTS_ONLY: ContextVar[bool] = ContextVar("latents_only", default=False)
BATCH = 64  # points that a recorded graph evaluates at once, where a point has few terms
TERMS = 2**22  # log densities of all those points together, which bounds the memory
VALUE_TERMS = 2**20  # the same without gradients: more are slower, as they fit into no cache
FEW_TERMS = 2**15  # up to so many, one graph serves for any number of points
FEWER = (4, 16)  # points of further graphs, where there are more terms
EQUAL = 1e-6  # relative difference of log p at one point, above which the program is not a function of its latents
DIFFERENCE = 1e-6  # spacing of the differences that check a gradient
GRADIENT_ERROR = 0.01  # relative, of such differences


@contextmanager
def latents_only() -> Iterator[None]:
    """A context in which the latents of programs are asked for, and no density of data (see `needs_density`)."""
    token = _LATENTS_ONLY.set(True)
    try:
        yield
    finally:
        _LATENTS_ONLY.reset(token)


def needs_density() -> bool:
    """Whether a program has to compute a factor that takes long, or may leave it out."""
    return not _LATENTS_ONLY.get()


def central_differences(gradient: Callable[[Tensor], Tensor], u: Tensor, spacing: Tensor) -> Tensor:
    """The Hessians of a function at points (n, dim), by central differences of its gradient: (n, dim, dim).

    Args:
        gradient: the gradients (m, dim) at points (m, dim).
        u: points, (n, dim).
        spacing: the distance of the differences in each coordinate, (n, dim).
    """
    moves = torch.cat([spacing.diag_embed(), -spacing.diag_embed()], 1)  # (n, 2 dim, dim)
    above, below = gradient((u[:, None] + moves).reshape(-1, u.shape[-1])).reshape(moves.shape).chunk(2, 1)
    h = (above - below) / (2 * spacing[..., None])
    return (h + h.mT) / 2


class UnconstrainedLogDensity:
    """log p(u) of a program on data (see the module's docstring).

    Args:
        model: a Pyro program whose latents are continuous, or discrete and enumerable.
        args: its arguments.
        jacobian_weight: the weight of log |det dT / du|, for a program whose sites are weighted.
        like: a density of the same program on other data, which is evaluated in the same way.

    Attributes:
        dim: the dimension of u.
        discrete: names of the discrete latents, which are summed out.
        num_data: the full size N of the plate "data".
        vectorized: whether many points are evaluated at once.
        evaluations: how many "values" of log p were computed without, and how many with "gradients".

    Raises:
        ValueError: if the program has parameters, no continuous latent, or a discrete latent that cannot be enumerated;
            if an observation has no density; if the density is not a function of the latents; if a latent's support
            cannot be mapped to the real line.
    """

    def __init__(
        self,
        model: Program,
        args: tuple = (),
        *,
        jacobian_weight: float = 1.0,
        like: "UnconstrainedLogDensity | None" = None,
    ) -> None:
        self.model, self._jacobian_weight = model, jacobian_weight
        self.args = tuple(_to_double(part) for part in args)
        with double_precision(), validation(False), torch.no_grad():
            self._joint = JointDensity(model, self.args, _value_in_support)
        trace = self._joint.first
        if params := [name for name, site in trace.nodes.items() if site["type"] == "param"]:
            raise ValueError(
                f"the program has the parameters {', '.join(map(repr, params))}, and a posterior is a distribution of "
                "latents only: give them priors (pyro.sample), or fit the program with a guide of your own. Those of "
                "LocScaleReparam() are absent if its `centered` is a number, such as 0.0"
            )
        sites = latent_sites(trace)
        if fixed := [name for name, site in sites.items() if is_delta(site)]:
            raise ValueError(
                f"the program samples {quote_names(fixed)} from a Delta, which has one value and no density around it: "
                "name a computed value by pyro.deterministic(name, value), or give the latent another prior"
            )
        self.discrete = [name for name, site in sites.items() if site["fn"].support.is_discrete]
        self.num_data = data_plate_size(trace.nodes.values())
        terms = getattr(model, "terms", max(site["value"].numel() for site in sample_sites(trace).values()))
        self._points = min(BATCH, max(1, TERMS // terms))
        self._values = min(8 * BATCH, max(8, VALUE_TERMS // terms))
        self._sizes = [n for n in FEWER if n < self._points and terms * self._points > FEW_TERMS] + [self._points]
        latent = {name: site for name, site in sites.items() if name not in self.discrete}
        if not latent:
            raise ValueError("the program has no continuous latents, so there is no posterior to find")
        self.shapes = {name: _unconstrained_shape(site) for name, site in latent.items()}
        self.value_shapes = {name: site["value"].shape for name, site in latent.items()}
        self.dim = sum(shape.numel() for shape in self.shapes.values())
        self.vectorized, self._unshare_tensors = True, False
        if like is not None:
            self.vectorized, self._unshare_tensors = like.vectorized, like._unshare_tensors
        self.evaluations = {"values": 0, "gradients": 0}
        _check_observations(trace)
        _check_plates(trace)
        if like is None:
            self._choose_evaluation()

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
        with latents_only():
            flat = self._in_parts(self._at_each(self._values_of_one), u.reshape(-1, self.dim))
        parts = flat.split([shape.numel() for shape in self.value_shapes.values()], -1)
        shapes = self.value_shapes.items()
        return {k: part.reshape((*u.shape[:-1], *shape)) for (k, shape), part in zip(shapes, parts, strict=True)}

    def supports(self, u: Tensor) -> dict[str, Any]:
        """The supports of the latents at a point (dim,), by name."""
        point = self._point(u)
        with self._tensors(u), double_precision(), validation(False), pyro.poutine.block():
            self._joint.run(point)
        return point.supports

    def unconstrain(self, values: dict[str, Tensor]) -> Tensor:
        """The points (n, dim) of latents z, by name: (n, *shape)."""
        flat = torch.cat([values[name].double().reshape(len(values[name]), -1) for name in self.value_shapes], -1)
        with latents_only():
            return self._in_parts(self._at_each(self._point_of_one), flat)

    def prior_point(self) -> Tensor:
        """The point (dim,) of a draw from the prior, by torch's global random numbers.

        Raises:
            NotImplementedError: if the prior has no draws.
        """
        point = _Unconstrained(lambda site: site["fn"]())
        with torch.no_grad():
            _isolated(lambda value_of: self._joint.run(value_of, enumerated=False))(point)
        return self._whole(point.parts)

    def log_prob(self, u: Tensor) -> Tensor:
        """The values of log p at points (n, dim): (n,). NaN becomes -inf: there is no density at such a point."""
        self.evaluations["values"] += len(u)
        value = self._in_parts(self.batched_log_prob, u)
        return torch.where(value.isnan(), -torch.inf, value)

    def log_prob_and_grad(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The values of log p (n,) and its gradients (n, dim) at points (n, dim)."""
        self.evaluations["gradients"] += len(u)
        parts = [self._grad_and_value(part) for part in u.split(self._points)]
        return torch.cat([value for _, value in parts]), torch.cat([gradient for gradient, _ in parts])

    def batched_log_prob(self, u: Tensor) -> Tensor:
        """The values of log p at points (n, dim), in differentiable operations: (n,)."""
        with permissive_vmap():
            return self._at_each(self._log_prob_of_one)(u)

    def batched_grad_and_value(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients (n, dim) and the values (n,) of log p at points (n, dim), in recordable operations."""
        return _isolated(vmap(grad_and_value(self._log_prob_of_one), randomness="different"))(u)

    def terms(self, u: Tensor) -> Tensor:
        """The terms whose sum is log p at a point (dim,), in one vector: densities of all sites and log Jacobians.

        Args:
            u: the point.
        """

        def parts(u: Tensor) -> Tensor:
            point = self._point(u)
            with self._tensors(u):
                trace = self._joint.run(point)
                trace.compute_log_prob()
            densities = [site["log_prob"] for site in sample_sites(trace).values() if not is_deterministic(site)]
            return torch.cat([torch.as_tensor(part).reshape(-1) for part in (*densities, *point.log_dets.values())])

        return _isolated(parts)(u)

    @contextmanager
    def on(self, args: tuple) -> Iterator[None]:
        """A context in which the program has other arguments, of the same shapes.

        Args:
            args: the arguments.
        """
        before, self._joint.args = self._joint.args, args
        try:
            yield
        finally:
            self._joint.args = before

    def hessian(self, u: Tensor, spacing: Tensor) -> Tensor:
        """The Hessians of log p at points (n, dim), by central differences of gradients: (n, dim, dim).

        Args:
            u: points, (n, dim).
            spacing: the distance of the differences in each coordinate, (n, dim).
        """
        return central_differences(lambda points: self.log_prob_and_grad(points)[1], u, spacing)

    def trace(self, u: Tensor, *, validate: bool = False) -> Trace:
        """The trace of the program at one point (dim,), with the log density of each site.

        Args:
            u: the point.
            validate: whether arguments and data outside of a distribution's domain are errors.
        """
        with double_precision(), validation(validate), torch.no_grad(), pyro.poutine.block():
            trace = self._joint.run(self._point(u))
            trace.compute_log_prob()
        return trace

    def check(self, u: Tensor) -> None:
        """Checks log p and its gradient at a point (dim,) against a new run of the program.

        Raises:
            ValueError: if they differ.
        """
        value, gradient = self.log_prob_and_grad(u[None])
        with torch.no_grad():
            again = _isolated(self._log_prob_of_one)(u)
        _check_equal(self.model, value[0], again)
        if not self.vectorized:
            self._check_gradient(u, gradient[0])

    def _check_gradient(self, u: Tensor, gradient: Tensor) -> None:
        """Checks that autograd sees how log p depends on each latent."""
        steps = DIFFERENCE * (1 + u.abs()).diag_embed()
        difference = (self.log_prob(u + steps) - self.log_prob(u - steps)) / (2 * steps.diagonal())
        error = (difference - gradient).abs()
        wrong = error > GRADIENT_ERROR * (1 + torch.maximum(difference.abs(), gradient.abs()))
        if wrong.any():
            label = self.labels[int(wrong.nonzero()[0])]
            raise ValueError(
                f"the gradient of log p in the latent {label} is {float(gradient[wrong][0]):.3g} by autograd, but "
                f"{float(difference[wrong][0]):.3g} by differences: the program {program_name(self.model)} turns the "
                "latent into a number (float(z), z.item(), z.detach(), NumPy). Compute with tensors, by torch's "
                "functions, where the density depends on a latent"
            )

    def _in_parts(self, function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
        """A function of many points, in parts, so that memory is bounded, without gradients."""
        with torch.no_grad():
            return torch.cat([_isolated(function)(part) for part in points.split(self._values)])

    def _at_each(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A function of one point as a function of many."""
        if self.vectorized:
            return vmap(function, randomness="different")
        return lambda points: torch.stack([function(point) for point in points])

    def _point(self, u: Tensor) -> "_Constrained":
        parts = u.split([shape.numel() for shape in self.shapes.values()])
        named = {k: part.reshape(self.shapes[k]) for k, part in zip(self.shapes, parts, strict=True)}
        return _Constrained(named, self.value_shapes)

    def _log_prob_of_one(self, u: Tensor) -> Tensor:
        """The value of log p at one point (dim,)."""
        point = self._point(u)
        with self._tensors(u):
            log_joint = self._joint.log_prob(point)
        return log_joint + self._jacobian_weight * point.log_det

    def _values_of_one(self, u: Tensor) -> Tensor:
        """The latents at one point (dim,), flattened and in one vector."""
        point = self._point(u)
        with self._tensors(u):
            self._joint.run(point)
        return torch.cat([point.values[name].reshape(-1) for name in self.value_shapes])

    def _point_of_one(self, flat: Tensor) -> Tensor:
        """The point (dim,) of latents that are flattened and in one vector."""
        parts = flat.split([shape.numel() for shape in self.value_shapes.values()])
        values = {k: part.reshape(self.value_shapes[k]) for k, part in zip(self.value_shapes, parts, strict=True)}
        point = _Unconstrained(lambda site: values[site["name"]])
        with self._tensors(flat):
            self._joint.run(point)
        return self._whole(point.parts)

    def _whole(self, parts: dict[str, Tensor]) -> Tensor:
        return torch.cat([parts[name].reshape(-1) for name in self.shapes])

    def _tensors(self, like: Tensor) -> Any:
        return UnsharedTensors(like) if self._unshare_tensors else nullcontext()

    @cached_property
    def _grad_and_value(self) -> Callable[[Tensor], tuple[Tensor, ...]]:
        if self.vectorized:
            return _RecordedFunction(self.batched_grad_and_value, self._sizes)
        return _isolated(lambda u: tuple(map(torch.stack, zip(*map(self._autograd, u), strict=True))))

    def _autograd(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient and the value of log p at one point (dim,), by plain autograd."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            value = self._log_prob_of_one(u)
            (gradient,) = torch.autograd.grad(value, u)
        return gradient, value.detach()

    def _choose_evaluation(self) -> None:
        """Chooses how many points are evaluated, after checking that two runs at one point agree."""
        u = torch.zeros(2, self.dim, dtype=torch.float64)
        with torch.no_grad(), torch.random.fork_rng():
            _check_equal(self.model, *(_isolated(self._log_prob_of_one)(u[0]) for _ in range(2)))
            for self._unshare_tensors in (False, True):
                try:
                    _isolated(vmap(grad_and_value(self._log_prob_of_one), randomness="different"))(u)
                except Exception:  # the program runs at one point, so this is due to vmap
                    continue
                return
        self.vectorized, self._unshare_tensors = False, False
        warn_one_by_one(program_name(self.model))


class _Constrained:
    """The values of the latents at a point of the real line: called with each site when the program reaches it.

    Args:
        parts: the parts of the point, by name.
        shapes: the shapes of the values.

    Attributes:
        values: the values so far.
        log_dets: log |det| of their transforms, by name.
        supports: their supports.
    """

    def __init__(self, parts: dict[str, Tensor], shapes: dict[str, torch.Size]) -> None:
        self.parts, self.shapes = parts, shapes
        self.values: dict[str, Tensor] = {}
        self.log_dets: dict[str, Tensor] = {}
        self.supports: dict[str, Any] = {}

    @property
    def log_det(self) -> Tensor:
        """The sum of log |det| of all transforms."""
        return torch.stack([part.sum() for part in self.log_dets.values()]).sum()

    def __call__(self, site: Site) -> Tensor:
        name = site["name"]
        self.supports[name] = site["fn"].support
        transform = biject_to(site["fn"].support)
        value = transform(self.parts[name])
        if value.shape != self.shapes[name]:
            raise ValueError(
                f"the support of the latent {name!r} depends on a discrete latent, which is summed out: give {name!r} "
                "a support that does not, for example by scaling a latent on (0, 1)"
            )
        self.log_dets[name] = transform.log_abs_det_jacobian(self.parts[name], value)
        self.values[name] = value
        return value


class _Unconstrained:
    """The inverse of `_Constrained`.

    Args:
        value_of: the value of a latent, given its site.

    Attributes:
        parts: the parts of the point so far, by name.
    """

    def __init__(self, value_of: Callable[[Site], Tensor]) -> None:
        self.value_of = value_of
        self.parts: dict[str, Tensor] = {}

    def __call__(self, site: Site) -> Tensor:
        value = self.value_of(site)
        self.parts[site["name"]] = biject_to(site["fn"].support).inv(value)
        return value


class _RecordedFunction:
    """A function of many points, recorded as a graph at its first call and then run without its Python code.

    Args:
        function: the function.
        sizes: for how many points there may be graphs, the largest last; other numbers are filled up.
    """

    def __init__(self, function: Callable, sizes: Sequence[int]) -> None:
        self.function, self.sizes = function, sizes
        self.graphs: dict[int, Callable] = {}

    def __call__(self, u: Tensor) -> tuple[Tensor, ...]:
        size = min(size for size in self.sizes if size >= len(u))
        padded = torch.cat([u, u[:1].expand(size - len(u), -1)])
        if size not in self.graphs:
            try:
                self.graphs[size] = record_function(self.function, padded)
            except Exception:  # the function can be called, so this is due to the recording
                self.graphs[size] = self.function
        with torch.no_grad():
            return tuple(part[: len(u)] for part in self.graphs[size](padded))


def _isolated(function: Callable) -> Callable:
    """Runs a function in double precision, hidden from outer handlers, without checks that read values."""

    def run(argument: Any) -> Any:
        with double_precision(), validation(False), permissive_vmap(), pyro.poutine.block():
            return function(argument)

    return run


def _check_equal(model: Program, value: Tensor, again: Tensor) -> None:
    """Checks that two evaluations of log p at one point agree."""
    if not torch.allclose(value, again, rtol=EQUAL, atol=EQUAL, equal_nan=True):
        raise ValueError(
            f"log p of the program {program_name(model)} is {float(value):.6g} in one run and {float(again):.6g} in "
            "another at the same latents, so it is not a density of them. Look for random numbers outside of "
            "pyro.sample (torch.randn, NumPy's, dropout), which become latents by pyro.sample, or are drawn once "
            "before the fit (dropout: module.eval()); or for a variable that the program changes from run to run"
        )


def _check_observations(trace: Trace) -> None:
    """Checks that each observation that is NaN, or not of a floating type, has a density.

    Raises:
        ValueError: naming the site.
    """
    with double_precision(), validation(False), torch.no_grad():
        for name, site in sample_sites(trace).items():
            if is_observed(site) and site["value"].isnan().any() and has_nan_density(site):
                raise ValueError(
                    f"{int(site['value'].isnan().sum())} of {site['value'].numel()} observations at {name!r} are NaN, "
                    f"where {type(site['fn']).__name__} has no density: leave them out, or fill them (y.nan_to_num()) "
                    "under pyro.poutine.mask(mask=~y.isnan()), or observe them by dist.NanMaskedNormal"
                )
            if not is_observed(site) or site["value"].is_floating_point():
                continue
            try:
                site["fn"].log_prob(site["value"])
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    f"the distribution {type(site['fn']).__name__} of {name!r} has no density at values of "
                    f"{site['value'].dtype}; give it others (y.double(), say): {error}"
                ) from error


def _check_plates(trace: Trace) -> None:
    """Checks that plates declare all batch dimensions, without which draws of the posterior cannot be weighted.

    Raises:
        ValueError: naming the site.
    """
    if not is_validation_enabled():
        return
    for name, site in sample_sites(trace).items():
        depth = -min((frame.dim for frame in site["cond_indep_stack"] if frame.vectorized), default=0)
        shape = site["fn"].batch_shape
        if not is_deterministic(site) and any(size > 1 for size in shape[: len(shape) - depth]):
            raise ValueError(
                f"site {name!r}: plates declare {depth} of the dimensions of its distribution's batch shape "
                f"{tuple(shape)}: add .to_event({len(shape) - depth}) to the distribution if its numbers belong to "
                "one vector, or sample it within a plate, with pyro.plate(name, size), if they are independent"
            )


def _value_in_support(site: Site) -> Tensor:
    """A value in a latent's support. It is not a draw, since an improper prior has none."""
    return _transform(site)(torch.zeros(_unconstrained_shape(site)))


def _unconstrained_shape(site: Site) -> torch.Size:
    return torch.Size(_transform(site).inverse_shape(site["fn"].shape()))


def _transform(site: Site) -> Transform:
    """The map from the real line to a latent's support."""
    support = site["fn"].support
    try:
        return biject_to(support)
    except NotImplementedError as error:
        name = site["name"]
        what = f"the support of the latent {name!r}, a {type(site['fn']).__name__}, cannot be mapped to the real line"
        if support is constraints.sphere:
            advice = (
                f"A direction can be {name} = pyro.sample({name!r}, dist.ProjectedNormal(torch.zeros(3))), uniform on "
                f"the sphere, with another prior by pyro.factor('prior', prior.log_prob({name}) + "
                "math.log(4 * math.pi))"
            )
        else:
            advice = (
                f"Sample {name!r} from a distribution on an interval, a simplex or the real line that covers this "
                f"support, here called q, and give it this prior p by pyro.factor('prior', p.log_prob({name}) - "
                f"q.log_prob({name}))"
            )
        raise ValueError(f"{what} ({error}). {advice}" if str(error) else f"{what}. {advice}") from error


def _to_double(part: Any) -> Any:
    return part.double() if isinstance(part, Tensor) and part.is_floating_point() else part
