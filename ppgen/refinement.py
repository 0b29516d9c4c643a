"""A fit that is refused is refined: a sampler that the guide preconditions draws from the posterior.

1. The guide's coordinates: those of its flow, unless that misses a mode, or whitened by its draws.
2. A base around the guide, wider and with heavier tails, and without a flow around all modes that are found too.
3. Sequential Monte Carlo from the base to the posterior, in four chains (`ppgen.posterior.tempered_sampling`).

The result is a fit as any other, whose chains hold draws in the place of parameters of a guide.
"""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_value
from torch import Tensor

from ppgen.diagnostics.arviz import to_arviz
from ppgen.diagnostics.checks.draws import PosteriorDraws
from ppgen.diagnostics.proposals import Proposal, has_points
from ppgen.diagnostics.reading import read_attribute, unconstrained_draws
from ppgen.flows import Flow
from ppgen.infer import AutoFlow, AutoMixture
from ppgen.infer.parameters import ProgramState, snapshot
from ppgen.posterior.gaussians import GaussianBatch
from ppgen.posterior.group_guide import GroupGuide
from ppgen.posterior.guides import AutoPrograms, build_guide, describe_guide, initialized, loss_of, programs_of
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.many_rows import on_row_subset
from ppgen.posterior.preconditioning import Preconditioned
from ppgen.posterior.student_mixture import StudentMixture, WithPrior
from ppgen.posterior.tempered_sampling import ENOUGH_ESS, TemperedSample, sample_tempered
from ppgen.tracing.loss_scales import without_loss_scales
from ppgen.tracing.sites import Program, quote_names
from ppgen.tracing.traces import Traces
from ppgen.training.result import Chain, Fitted
from ppgen.utils.budget import Budget

__all__ = ["refine"]

SURROUNDINGS_SHARE = 0.3  # of the time, for a search for modes
GUIDE_DRAWS = 1000  # from which a guide's location and width are computed
LEAST_DRAWS = 800  # of all chains
WIDER = 1.5  # times the guide's width: that of the base
PRIOR_SHARE = 0.25  # of the base
MOST_INVERTED = 0.99  # share of draws of the prior that must have coordinates
STARTS = 8  # around 0, and as many drawn by the prior, of the search for modes that the guide misses
REFINED = ("log_marginal", "error", "beta", "temperatures", "moves", "memory", "accepted")  # in a fit's metadata
SAMPLER = "draws of the posterior"  # what a fit is called whose guide holds draws


def refine(
    fit: Fitted, *data: Tensor, chains: int = 4, draws: int = 1000, seed: int = 0, budget: Budget | None = None
) -> Fitted:
    """Draws from the posterior on data by a sampler that starts from a fit's guide.

    Args:
        fit: the fit, of a model whose latents are all global, or few.
        *data: the arguments of the programs.
        chains: the number of independent populations, which are chains to ArviZ.
        draws: the number of draws of each.
        seed: of all random numbers; the caller's random state does not change.
        budget: the time that it may take.

    Returns:
        a fit whose chains hold the draws.

    Raises:
        ValueError: for fewer than two chains, or than 800 draws in all; if the program has no density on the real line,
            or parameters; if the guide gives a latent a single value.
        FloatingPointError: if no draw around the guide has a density.
    """
    if chains < 2 or chains * draws < LEAST_DRAWS:
        raise ValueError(
            f"refine: expected at least 2 chains and {LEAST_DRAWS} draws in all, of which {ENOUGH_ESS:.0f} have to be "
            f"independent, got {chains} chains of {draws}"
        )
    budget = Budget() if budget is None else budget
    start = budget.clock()
    generator = torch.Generator().manual_seed(seed)
    whole = fit
    fit, data = on_row_subset(fit, data)  # whose density stands for that of all rows
    with fit.eval_mode(fit.best), torch.random.fork_rng():
        budget.show("the guide")
        programs = _programs(fit, data)
        density, base = _surroundings(fit, programs, data, seed, budget.part(SURROUNDINGS_SHARE))
        sample = sample_tempered(density, base, chains=chains, draws=draws, generator=generator, budget=budget)
        refined = _as_fit(programs, density.target, sample, budget.clock() - start)
    refined.metadata |= {key: whole.metadata[key] for key in ("frame",) if key in whole.metadata}
    if "rows" in whole.metadata:
        refined.metadata["rows"] = whole.metadata["rows"]
        refined.model, refined.example, refined.row_subset = whole.model, whole.example, fit.row_subset
        if isinstance(whole.guide, GroupGuide):
            refined.guide = GroupGuide(refined.guide, whole.guide.chunks)
    refined.select_chain(refined.best)
    return refined


class _Surroundings(NamedTuple):
    """The density in the coordinates of a guide, and a base around the guide in these."""

    density: Preconditioned
    base: StudentMixture | WithPrior


def _surroundings(
    fit: Fitted, programs: AutoPrograms, data: tuple[Tensor, ...], seed: int, budget: Budget
) -> _Surroundings:
    """Those of the guide, in whose weights the programs are."""
    idata = to_arviz(fit, *data, draws=GUIDE_DRAWS, predictive=False, likelihood=False, resampled=None, seed=seed)
    found = PosteriorDraws.read(fit, data, idata, starts=STARTS, seed=seed, budget=budget)
    if found is None:
        why = read_attribute(idata, "density") or "the programs have no latents"
        raise ValueError(f"refine: there is no density to sample from ({why})")
    target = _target(programs.model, fit.guide, data)
    if missing := sorted(set(target.shapes) - set(map(str, found.posterior.data_vars))):
        raise ValueError(
            f"refine: the guide draws no {quote_names(missing)}, which are the latents of the program on the real "
            'line: fit it by guide="auto"'
        )
    u = unconstrained_draws(target, found.posterior, fit.best)
    if not u.isfinite().all() or float(u.std(0).min()) == 0.0:
        label = target.labels[int(u.std(0).nan_to_num().argmin())]
        raise ValueError(f"refine: the guide gives {label!r} a single value, and so no width to start a sampler from")
    search = found.mode_search
    misses = search is not None and bool(search.missed.any())
    center, root, flow = _coordinates(fit.guide, target, u, with_flow=not misses)
    weights, parts = _parts_of_guide(fit.guide, target, u) or (u.new_ones(1), GaussianBatch(center[None], root[None]))
    if search is not None and flow is None and (count := len(search.modes.center)):
        modes = search.modes
        weights = torch.cat([weights / 2, u.new_full((count,), 0.5 / count)])
        parts = GaussianBatch(torch.cat([parts.center, modes.center]), torch.cat([parts.root, modes.root]))
    y = torch.linalg.solve(root, (parts.center - center).mT).mT
    density = Preconditioned(target, center, root, flow)
    student = StudentMixture(weights, y, WIDER * torch.linalg.solve(root, parts.root))
    return _Surroundings(density, _with_prior(student, density, found.prior))


def _with_prior(student: StudentMixture, density: Preconditioned, prior: Proposal | None) -> StudentMixture | WithPrior:
    """A base that has draws of the prior too, where these are known in the coordinates of the guide."""
    if prior is None or prior.density is None:
        return student
    y = density.inverse(prior.u)
    right = density.is_at(y, prior.u)
    if right.double().mean() < MOST_INVERTED:
        return student
    of_prior = Preconditioned(prior.density, density.center, density.root, density.flow)
    return WithPrior(student, of_prior, y[right], PRIOR_SHARE)


def _target(model: Program, guide: Program, data: tuple[Tensor, ...]) -> UnconstrainedLogDensity:
    return UnconstrainedLogDensity(without_loss_scales(Traces(model, guide, data, use_all_rows=True)).model, data)


def _coordinates(
    guide: Any, target: UnconstrainedLogDensity, u: Tensor, *, with_flow: bool
) -> tuple[Tensor, Tensor, Flow | None]:
    """The center, root and flow of a guide: its own, if it has them for these latents, or those of its draws.

    A mode that a flow misses lies where the flow was never trained, and its coordinates are no help.
    """
    affine = isinstance(guide, AutoFlow | AutoMultivariateNormal) and has_points(guide, target, u)
    if affine and (with_flow or not isinstance(guide, AutoFlow)):
        flow = copy.deepcopy(guide.flow).double().requires_grad_(False) if isinstance(guide, AutoFlow) else None
        scale = guide.scale.detach().double()
        return guide.loc.detach().double(), scale[:, None] * guide.scale_tril.detach().double(), flow
    root, failed = torch.linalg.cholesky_ex(torch.atleast_2d(u.mT.cov()))
    return u.mean(0), u.std(0).diag() if failed else root, None


def _parts_of_guide(guide: Any, target: UnconstrainedLogDensity, u: Tensor) -> tuple[Tensor, GaussianBatch] | None:
    """The parts of an `AutoMixture`, with weights that leave no part out; None for other guides."""
    if not isinstance(guide, AutoMixture) or not has_points(guide, target, u):
        return None
    root = (guide.scale[..., None] * guide.scale_tril).detach().double()
    weights = guide.logits.detach().double().softmax(0)
    return 0.5 * (weights + 1 / len(weights)), GaussianBatch(guide.loc.detach().double(), root)


def _programs(fit: Fitted, data: tuple[Tensor, ...]) -> AutoPrograms:
    """The programs of a fit by ``guide="auto"``, or such programs of another fit, for which a file can be loaded."""
    if "auto" in fit.metadata:
        discrete = fit.metadata["guide"]["discrete"]
        return AutoPrograms(fit.model, poutine.block(fit.model, hide=discrete) if discrete else fit.model)
    return programs_of(fit.model, _target(programs_of(fit.model, ()).model, fit.guide, data).discrete)


def _as_fit(programs: AutoPrograms, target: UnconstrainedLogDensity, sample: TemperedSample, seconds: float) -> Fitted:
    """The fit whose guide has these draws."""
    args, count = target.args, sample.u.shape[1]
    start = {name: value[0] for name, value in target.constrain(sample.u[0, :1]).items()}
    guide = build_guide(programs.continuous, init_to_value(values=start), "draws", count=count)
    chains = []
    with initialized(programs.model, guide, args):
        for u, log_evidence in zip(sample.u, sample.log_evidence.tolist(), strict=True):
            guide.draws.copy_(u)
            weights = snapshot(ProgramState.from_programs(programs.model, guide, args).tensors)
            losses = {"loss": np.array([-log_evidence / target.num_data])}
            nothing = {"step": np.zeros(0), "loss": np.zeros(0)}
            chain = Chain(weights, losses, nothing, sample.stop_reason, 1, seconds, interrupted=sample.interrupted)
            chains.append(chain)
    described = describe_guide(guide, args, target.discrete, "draws", count=count)
    refined = {name: getattr(sample, name) for name in REFINED} | {"seconds": seconds}
    metadata = {"auto": SAMPLER, "starts": len(chains), "guide": described, "refined": refined}
    metadata["evaluations"] = dict(target.evaluations)
    return Fitted(programs.model, guide, loss_of("draws", target.discrete), chains, args, metadata)
