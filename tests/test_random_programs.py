"""What ppgen computes about random programs equals what Pyro computes, one draw at a time.

A failing program is printed as Python: ``Program(...).build()`` is its model, guide and data.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from random_programs import FAMILIES, Built, Program, Site, programs
from torch import Tensor
from torch.distributions import biject_to

import ppgen
from ppgen.diagnostics import loo, to_arviz
from ppgen.fitting import Fit
from ppgen.infer.parameters import ProgramState
from ppgen.posterior.importance import smooth
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.training.result import Chain

DRAWS = 25
CHECKED = (0, 7, DRAWS - 1)  # draws that are repeated one at a time
STEPS = 5  # of which two are recorded and two are compiled
KINDS: dict[str, dict[str, bool]] = {
    "global": {},
    "local": {"local": True},
    "subsampled": {"subsampled": True},
    "enumerated": {"enumerated": True},
    "enumerated, local": {"enumerated": True, "local": True},
    "enumerated, subsampled": {"enumerated": True, "subsampled": True},
}


def close_to(found: Any, expected: Any, program: Program, what: str = "") -> None:
    """Checks numbers within the rounding of the program's precision; an autoguide's latents are inverted, too."""
    exact = program.dtype == torch.float64 and not program.plain_numbers
    tolerance = 1e-8 if exact else 2e-4
    atol = tolerance if exact or program.guide == "hand" else 2e-3
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=atol, err_msg=what)


# what Pyro says


def stock_elbo(program: Program) -> Any:
    return TraceEnum_ELBO(max_plate_nesting=program.depth) if program.of("enumerated") else Trace_ELBO()


def is_local(program: Program) -> bool:
    """Whether weights are those of each row."""
    return program.guide in ("hand", "AutoNormal") and all(
        "data" in site.plates for site in program.sites if site.role != "deterministic"
    )


def data_size(program: Program) -> int:
    """The number by which losses are divided."""
    sizes = [plate.size for plate in program.plates if plate.name == "data"]
    return sizes[0] if any("data" in site.plates for site in program.sites) else 1


def log_density(program: Program, trace: Trace) -> Tensor:
    """The log density of a trace, of each row if the program is local, else of all data: (rows or 1,)."""
    trace = prune_subsample_sites(trace)
    if not is_local(program):
        return trace.log_prob_sum().double()[None]
    trace.compute_log_prob()
    (plate,) = (p for p in program.plates if p.name == "data")
    total = torch.zeros(plate.used)
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site["infer"].get("_deterministic"):
            dims = [d for d in range(-site["log_prob"].dim(), 0) if d != plate.dim]
            total = total + (site["log_prob"].sum(dims) if dims else site["log_prob"])
    return total.double() * (plate.used / plate.size)  # without the scale of a batch


def log_weights(program: Program, built: Built, particles: int) -> Tensor:
    """Importance log weights, (particles, rows or 1)."""
    weights = []
    for _ in range(particles):
        guide_trace = poutine.trace(built.guide).get_trace(*built.args)
        model_trace = poutine.trace(poutine.replay(built.model, trace=guide_trace)).get_trace(*built.args)
        weights.append(log_density(program, model_trace) - log_density(program, guide_trace))
    return torch.stack(weights)


def log_joint(program: Program, args: tuple, values: dict[str, Tensor]) -> float:
    """The log density of the model at some of its latents; Pyro sums out the others."""
    model = poutine.condition(program.model, data=values)
    if all(site.name in values for site in program.of("latent", "enumerated")):
        return float(poutine.trace(model).get_trace(*args).log_prob_sum())
    model = config_enumerate(model)
    elbo = TraceEnum_ELBO(max_plate_nesting=program.depth)
    return -elbo.loss(model, lambda *args: None, *args)


def guide_log_density(program: Program, built: Built, values: dict[str, Tensor]) -> Tensor:
    """The log density of the guide at latents, (rows or 1,)."""
    guide = program.hand_guide
    if program.guide != "hand":
        guide, prior = built.guide, built.guide.prototype_trace.nodes
        unconstrained = {k: biject_to(prior[k]["fn"].support).inv(v) for k, v in values.items()}
        if program.guide == "AutoNormal":
            values = {f"{name}_unconstrained": value for name, value in unconstrained.items()}
        else:
            values = {f"_{program.guide}_latent": torch.cat([value.reshape(-1) for value in unconstrained.values()])}
    return log_density(program, poutine.trace(poutine.condition(guide, data=values)).get_trace(*built.args))


# losses and steps


def seeded(function: Callable, *args: Any, **kwargs: Any) -> Any:
    pyro.set_rng_seed(3)
    return function(*args, **kwargs)


def check_losses(program: Program) -> None:
    """The negative ELBO, and the importance weighted bound."""
    built, n = program.build(), data_size(program)
    with torch.no_grad():
        expected = seeded(stock_elbo(program).loss, *built[:2], *built.args)
        loss = ppgen.ELBO(elbo=stock_elbo(program))
        close_to(n * seeded(loss.loss, *built[:2], *built.args), expected, program, "ELBO")
        if program.of("enumerated") or any(FAMILIES[site.family].discrete for site in program.of("latent")):
            return  # the bound has no gradient there
        bounds = seeded(log_weights, program, built, 3).logsumexp(0) - math.log(3)
        bound = bounds.mean() if is_local(program) else bounds.sum() / n
        loss = ppgen.ELBO(elbo=RenyiELBO(alpha=0, num_particles=3))
        close_to(seeded(loss.loss, *built[:2], *built.args), -float(bound), program, "RenyiELBO")


def check_steps(program: Program) -> None:
    """The losses of compiled steps are those of Pyro's SVI."""

    def losses(kind: type, **options: Any) -> list[float]:
        model, guide, args = program.build()
        svi = seeded(kind, model, guide, pyro.optim.Adam({"lr": 0.02}), stock_elbo(program), **options)
        return [svi.step(*args) for _ in range(STEPS)]

    with warnings.catch_warnings():
        if program.reads_values:
            warnings.filterwarnings("ignore", "the step is not compiled")
        close_to(losses(ppgen.SVI, compile=True), losses(SVI), program)


# draws


def fit_of(built: Built) -> Fit:
    """A fit of programs as they are."""
    nothing = {"step": np.zeros(0), "loss": np.zeros(0)}
    chain = Chain(ProgramState.from_programs(*built).tensors, {"loss": np.zeros(1)}, nothing, "as given", 1, 0.0)
    return Fit(built.model, built.guide, ppgen.ELBO(), [chain], built.args)


def in_plates(program: Program, site: Site, value: Any, event_dim: int = 0) -> np.ndarray:
    """A value with one axis for each plate of the site, then those of its event."""
    plates = sorted((p for p in program.plates if p.name in site.plates), key=lambda plate: plate.dim)
    value = torch.as_tensor(value)
    event = value.shape[value.dim() - event_dim :]
    if plates:
        depth = -plates[0].dim
        sizes = [next((p.used for p in plates if p.dim == dim), 1) for dim in range(-depth, 0)]
        value = value.reshape(value.shape[max(0, value.dim() - event_dim - depth) :])  # without dimensions of size 1
        value = value.expand(*sizes, *event)
    return value.reshape([plate.used for plate in plates] + list(event)).numpy()


def check_draws(program: Program) -> None:
    """Draws of `to_arviz` have the densities, likelihoods and deterministic values that Pyro gives each alone."""
    built = program.build()
    whole = program.full_data if program.draws_rows else program
    with torch.no_grad(), warnings.catch_warnings():
        if program.reads_values:
            warnings.filterwarnings("ignore", ".*runs once for each draw")
        idata = to_arviz(fit_of(built), *built.args, draws=DRAWS)
        template = poutine.trace(whole.model).get_trace(*built.args).nodes
        for draw in CHECKED:
            drawn = {k: torch.as_tensor(v.values[0, draw]) for k, v in idata["posterior"].data_vars.items()}
            latents = program.of("latent", "enumerated")
            values = {site.name: drawn[site.name].reshape(template[site.name]["value"].shape) for site in latents}
            continuous = {site.name: values[site.name] for site in program.of("latent")}
            trace = poutine.trace(poutine.condition(whole.model, data=values)).get_trace(*built.args)
            trace.compute_log_prob()
            for site in program.of("deterministic"):
                expected = in_plates(whole, site, trace.nodes[site.name]["value"])
                close_to(drawn[site.name], expected, program, site.name)
            stats = {k: np.atleast_1d(v.values[0, draw]) for k, v in idata["sample_stats"].data_vars.items()}
            close_to(stats["log_q"], guide_log_density(whole, built, continuous), program, "log_q")
            if program.of("enumerated"):
                batch = whole.plates[0].used / whole.plates[0].size if is_local(program) else 1.0
                close_to(stats["lp"].sum(), batch * log_joint(whole, built.args, continuous), program, "lp")
            else:
                close_to(stats["lp"], log_density(whole, trace), program, "lp")
            if hasattr(idata, "log_likelihood"):
                likelihood = {k: v.values[0, draw] for k, v in idata["log_likelihood"].data_vars.items()}
                check_likelihood(whole, built, trace, continuous, likelihood)
    check_predictions_differ(program, idata)
    if hasattr(idata, "log_likelihood"):
        check_loo(idata)


def check_likelihood(
    program: Program, built: Built, trace: Trace, continuous: dict[str, Tensor], likelihood: dict[str, np.ndarray]
) -> None:
    """Each number is that of one observation; where latents are summed out, all together are what Pyro's sum leaves."""
    if not program.of("enumerated"):
        for site in program.of("observed"):
            node = trace.nodes[site.name]
            expected = in_plates(program, site, node["fn"].log_prob(node["value"]))
            if site.mask:  # whose rows are left out
                first = program.plates[0]
                axis = sum(p.dim < first.dim for p in program.plates if p.name in site.plates)
                expected = expected.take(np.flatnonzero(program.observed_rows(built.args[0])), axis)
            close_to(likelihood[site.name], expected, program, site.name)
    elif not any(plate.subsample for plate in program.plates):
        joined = {part for name in likelihood for part in name.split("+")}
        others = [site for site in program.of("latent", "factor") if site.name not in joined]
        factors = {site.name for site in program.of("factor")} & joined
        if any(program.is_summed(site) for site in others) or (factors and any(s.mask for s in program.sites)):
            return  # a sum has no observation, in the whole or in a masked row
        rest = log_joint(program, built.args, continuous) - sum(
            float(trace.nodes[s.name]["log_prob_sum"]) for s in others
        )
        close_to(sum(part.sum() for part in likelihood.values()), rest, program, "likelihood")


def check_predictions_differ(program: Program, idata: Any) -> None:
    """No two continuous draws are the same number."""
    for group, roles in (
        ("prior", ["latent"]),
        ("prior_predictive", ["observed"]),
        ("posterior_predictive", ["observed"]),
    ):
        for site in program.of(*roles):
            if not FAMILIES[site.family].discrete and site.name in idata[group]:
                values = idata[group][site.name].values.ravel()
                assert len(np.unique(values)) > 0.98 * len(values), (group, site.name)


def check_loo(idata: Any) -> None:
    """log sum_s w_is p(y_i | theta_s), from the likelihoods and weights of the groups."""
    log_weights = idata["sample_stats"]["log_weight"].values.reshape(DRAWS, -1).astype(float)
    if log_weights.shape[1] > 1:
        return  # there is no global latent
    for name, likelihood in idata["log_likelihood"].data_vars.items():
        flat = likelihood.values.reshape(DRAWS, -1).astype(float)
        weights, _ = smooth(log_weights - flat)
        expected = np.log(np.exp(weights + flat).sum(0)).sum()
        result = loo(idata, var_name=name)
        found = result.elpd_loo if hasattr(result, "elpd_loo") else result.elpd
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


# the log density on the real line


def check_unconstrained_density(program: Program) -> None:
    """log p(u) is log p(z) and the log determinants of the transforms."""
    built = program.build()
    whole = program.full_data if program.draws_rows else program
    if any(FAMILIES[site.family].discrete for site in program.of("latent")):
        return  # these would be summed out, over the plates of what follows from them
    with torch.no_grad(), warnings.catch_warnings():
        if program.reads_values:
            warnings.filterwarnings("ignore", ".*runs once for each")
        density = UnconstrainedLogDensity(built.model, built.args)
        u = torch.linspace(-1.0, 1.0, density.dim, dtype=torch.float64)
        values = {name: value.to(program.dtype) for name, value in density.constrain(u).items()}
        prior = poutine.trace(poutine.condition(whole.model, data=values)).get_trace(*built.args).nodes
        expected, rest = log_joint(whole, built.args, values), u
        for name, shape in density.shapes.items():
            part, rest = rest[: shape.numel()].reshape(shape), rest[shape.numel() :]
            to_support = biject_to(prior[name]["fn"].support)
            np.testing.assert_allclose(values[name], to_support(part), rtol=1e-4, atol=1e-5)
            expected += float(to_support.log_abs_det_jacobian(part, values[name]).sum())
        np.testing.assert_allclose(float(density.log_prob(u[None])), expected, rtol=1e-3, atol=1e-3)


pytestmark = pytest.mark.filterwarnings("ignore:log_likelihood lacks the pyro.factor:UserWarning")
SEEDED = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


def check_values(program: Program) -> None:
    check_losses(program)
    check_draws(program)
    check_unconstrained_density(program)


def check_programs(kind: str, check: Callable[[Program], None], count: int) -> None:
    """Checks so many random programs of a kind, the same in each run."""
    settings(SEEDED, max_examples=count)(given(programs(**KINDS[kind]))(check))()


@pytest.mark.parametrize("kind", KINDS)
def test_losses_draws_and_densities_are_those_of_pyro(kind):
    check_programs(kind, check_values, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_steps_are_those_of_pyro(kind, builds):
    check_programs(kind, check_steps, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_more_programs_give_what_pyro_gives(kind, builds):
    check_programs(kind, check_values, 34)
    check_programs(kind, check_steps, 8)


@pytest.mark.extensive
@pytest.mark.parametrize("kind", KINDS)
def test_many_programs_give_what_pyro_gives(kind, builds):
    check_programs(kind, check_values, 200)
    check_programs(kind, check_steps, 200)


@pytest.mark.extensive
@pytest.mark.parametrize("kind", KINDS)
def test_steps_that_inductor_compiles_are_those_of_pyro(kind):
    check_programs(kind, check_steps, 3)
