"""Path derivatives: log q(z) as a function of the draw alone, "sticking the landing" (Roeder et al. 2017).

With z = T(e; phi), e ~ noise, the gradient of log q(z; phi) has two parts,

    d log q / d phi  =  (dz / d phi)' grad_z log q(z; phi)  +  the score, the derivative at a fixed z

and the score has mean zero. Without it the gradient of an evidence bound is zero at every draw, and not only on
average, where q is the posterior. To leave it out the guide is run again at the values that it has drawn: the slopes of
log q there, times what moves those values, are the path.
"""

from collections.abc import Iterator

import torch
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from torch import Tensor

from ppgen.tracing.programs import check_separate_guide
from ppgen.tracing.sites import blocks_gradient, is_delta, latent_sites, sample_sites, trace_with_values
from ppgen.tracing.traces import Traces

__all__ = ["log_density_by_path"]


def log_density_by_path(draws: Traces) -> Tensor:
    """log q(z) of a guide's draw, all sites together; its gradient reaches the guide's parameters through z alone.

    Raises:
        TypeError: for a guide that runs together with the model, and cannot be run by itself.
        ValueError: for a guide with a draw that has no rsample, a density of its own parameters at a point (the
            Jacobian of a learned map, say), or random numbers outside of its sample sites.
    """
    check_separate_guide(draws.guide, "path_derivative")
    guide_trace = draws.guide_trace
    drawn = {k: s["value"] for k, s in latent_sites(guide_trace).items() if not is_delta(s)}
    for name in drawn:
        if blocks_gradient(guide_trace.nodes[name]):
            raise ValueError(
                f"path_derivative: the guide's site {name!r} has no rsample, so no path leads from its parameters to "
                "its draw; take ELBO(), which scores such sites"
            )
    fixed = {name: value.detach().requires_grad_(value.is_floating_point()) for name, value in drawn.items()}
    before = _random_state()
    again = draws.run(draws.guide, trace_with_values(guide_trace, fixed))
    if is_validation_enabled():
        _check(again, fixed, before)
    again.compute_log_prob()
    log_q = sum((torch.as_tensor(s["log_prob_sum"]) for s in sample_sites(again).values()), torch.zeros(()))
    moving = [name for name, value in drawn.items() if value.requires_grad]
    if not moving or not log_q.requires_grad:
        return log_q.detach()
    slopes = torch.autograd.grad(log_q, [fixed[name] for name in moving], allow_unused=True)
    path = [
        (slope * (drawn[name] - fixed[name].detach())).sum()
        for name, slope in zip(moving, slopes, strict=True)
        if slope is not None
    ]
    return log_q.detach() + sum(path, torch.zeros(()))


def _check(again: Trace, fixed: dict[str, Tensor], before: list[Tensor]) -> None:
    if not all(map(torch.equal, before, _random_state())):
        raise ValueError(
            "path_derivative: the guide draws random numbers outside of its sample sites (dropout?), so it is not the "
            "same law when it is run again; turn them off, by eval() say"
        )
    known = set(map(id, fixed.values()))
    for name, site in latent_sites(again).items():
        if is_delta(site) and any(id(leaf) not in known for leaf in _leaves(site["fn"].log_prob(site["value"]))):
            raise ValueError(
                f"path_derivative: the density of the guide's site {name!r}, a Delta, depends on parameters at a fixed "
                "draw, as the Jacobian of a learned map does; let the guide draw from the mapped law instead, by a "
                "TransformedDistribution or a ppgen flow"
            )


def _leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The leaves that a tensor is computed from, those that require gradients."""
    seen, left = set(), [tensor.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        left += [before for before, _ in node.next_functions]


def _random_state() -> list[Tensor]:
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda] if is_validation_enabled() else []
