"""Path derivatives: the gradient of log q(z) through the draw alone, "sticking the landing".

With a reparameterized draw z = T(e; phi), the gradient of log q(z; phi) has two parts,

    d log q / d phi  =  (dz / d phi)' grad_z log q(z; phi)  +  the score, the derivative at a fixed z

and the score has mean zero. Without it the gradient of an ELBO is zero for every draw, and not only on average, where q
is the posterior (Roeder et al. 2017, https://arxiv.org/abs/1703.09194). To omit the score, the guide is run again at
the values that it has drawn, and the gradient of log q there is multiplied by the derivative of those values.
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


def log_density_by_path(traces: Traces) -> Tensor:
    """The log density log q(z) of the guide's draw; its gradient reaches the guide's parameters through z alone.

    Args:
        traces: one run of the programs.

    Raises:
        TypeError: for a guide that cannot run without its model.
        ValueError: for a guide with a draw that has no rsample, with a Delta whose density depends on parameters (the
            Jacobian of a learned map, for example), or with random numbers outside of its sample sites.
    """
    check_separate_guide(traces.guide, "path_derivative")
    guide_trace = traces.guide_trace
    drawn = {k: s["value"] for k, s in latent_sites(guide_trace).items() if not is_delta(s)}
    for name in drawn:
        if blocks_gradient(guide_trace.nodes[name]):
            raise ValueError(
                f"path_derivative: the guide's site {name!r} has no rsample, so its draw has no derivative in its "
                "parameters; use ELBO() without path_derivative"
            )
    fixed = {name: value.detach().requires_grad_(value.is_floating_point()) for name, value in drawn.items()}
    before = _random_state()
    again = traces.run(traces.guide, trace_with_values(guide_trace, fixed))
    if is_validation_enabled():
        _check(again, fixed, before)
    again.compute_log_prob()
    log_q = sum((torch.as_tensor(s["log_prob_sum"]) for s in sample_sites(again).values()), torch.zeros(()))
    differentiable = [name for name, value in drawn.items() if value.requires_grad]
    if not differentiable or not log_q.requires_grad:
        return log_q.detach()
    gradients = torch.autograd.grad(log_q, [fixed[name] for name in differentiable], allow_unused=True)
    path = [
        (gradient * (drawn[name] - fixed[name].detach())).sum()
        for name, gradient in zip(differentiable, gradients, strict=True)
        if gradient is not None
    ]
    return log_q.detach() + sum(path, torch.zeros(()))


def _check(again: Trace, fixed: dict[str, Tensor], before: list[Tensor]) -> None:
    if not all(map(torch.equal, before, _random_state())):
        raise ValueError(
            "path_derivative: the guide draws random numbers outside of its sample sites (dropout?), so its "
            "distribution differs when it is run again; turn them off, for example by eval()"
        )
    known = set(map(id, fixed.values()))
    for name, site in latent_sites(again).items():
        if is_delta(site) and any(id(leaf) not in known for leaf in _leaves(site["fn"].log_prob(site["value"]))):
            raise ValueError(
                f"path_derivative: the density of the guide's site {name!r}, a Delta, depends on parameters at a fixed "
                "draw, as the Jacobian of a learned map does; sample from the mapped distribution instead, by a "
                "TransformedDistribution or a ppgen flow"
            )


def _leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The leaves with gradients that a tensor is computed from."""
    seen, pending = set(), [tensor.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        pending += [before for before, _ in node.next_functions]


def _random_state() -> list[Tensor]:
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda] if is_validation_enabled() else []
