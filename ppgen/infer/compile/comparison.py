"""Whether a compiled step agrees with the eager one, up to rounding.

The two round differently, and an adaptive optimizer can amplify that: where a gradient is rounding error alone, such as
that of a bias before batch norm, Adam takes a full step in a random direction. Gradients are therefore compared through
the optimizer's state, all parameters together, and parameters only where the gradient is not negligible.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ppgen.infer.compile.protocols import RecordableOptimizer
from ppgen.infer.compile.recording import Recording

__all__ = ["disagreement"]

TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-3}  # relative
MIXED_TOLERANCE = 1e-5  # of float64, where some operations are in float32
COARSE_TOLERANCE = 5e-2  # of all other types
NEGLIGIBLE = 1e-4  # gradients below this fraction of the largest one are taken for rounding error
STEP_TOLERANCE = 0.05  # relative to a parameter's update


@torch.no_grad()
def disagreement(
    recording: Recording,
    eager_results: list[Tensor],
    eager_values: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    optimizers: Sequence[RecordableOptimizer],
    *,
    slack: float = 1.0,
) -> str | None:
    """Compares the compiled step, which has just run, with the recorded eager step.

    Args:
        recording: of the eager step, which overwrote ``recording.overwritten``.
        eager_results: the values that the eager step left there, in that order; the tensors hold the compiled results.
        eager_values: the outputs of the eager step.
        values: the outputs of the compiled step.
        optimizers: with their gradients of the eager step.
        slack: a factor on the tolerances.

    Returns:
        The first difference in words; None if the two agree.
    """
    tolerances = _tolerances(recording)
    for name, value in eager_values.items():
        if not _close(values[name], value, tolerances, floor=1e-3, slack=slack):
            return f"{name} is {float(values[name]):.8g}, eagerly {float(value):.8g}"
    gradients = {id(p): grad for optimizer in optimizers for p, grad in optimizer.last_gradients if grad is not None}
    largest = max((float(grad.abs().max()) for grad in gradients.values() if grad.numel()), default=0.0)
    kinds = {id(tensor): kind for optimizer in optimizers for kind, tensor in optimizer.state_tensors()}
    states: dict[object, list[tuple[Tensor, Tensor]]] = {}
    for (tensor, before), eager in zip(recording.overwritten, eager_results, strict=True):
        if id(tensor) in gradients:
            counted = gradients[id(tensor)].abs() > NEGLIGIBLE * largest
            error = ((tensor - eager).abs() * counted).max() if tensor.numel() else tensor.new_zeros(())
            if error > slack * STEP_TOLERANCE * (eager - before).abs().max() + 1e-6 * eager.abs().max():
                return f"the update of a parameter of shape {tuple(tensor.shape)} differs by {float(error):.3g}"
        elif not tensor.is_floating_point():
            if not torch.equal(tensor, eager):
                return f"a tensor of {tensor.dtype} and shape {tuple(tensor.shape)} differs"
        else:
            states.setdefault(kinds.get(id(tensor), id(tensor)), []).append((tensor.detach(), eager))
    for kind, pairs in states.items():
        value, expected = (torch.cat([part.reshape(-1) for part in parts]) for parts in zip(*pairs, strict=True))
        if not _close(value, expected, tolerances, slack=slack):
            shape = tuple(pairs[0][0].shape)
            return f"{kind} of the optimizer differs" if isinstance(kind, str) else f"a tensor of shape {shape} differs"
    return None


def _tolerances(recording: Recording) -> Mapping[torch.dtype, float]:
    """The relative tolerance of each type of result."""
    computed = {node.meta["like"][2] for node in recording.graph.nodes if "like" in node.meta}
    mixed = any(dtype.is_floating_point and dtype != torch.float64 for dtype in computed)
    return TOLERANCES | ({torch.float64: MIXED_TOLERANCE} if mixed else {})


def _close(
    value: Tensor,
    expected: Tensor,
    tolerances: Mapping[torch.dtype, float],
    *,
    floor: float = 1e-6,
    slack: float = 1.0,
) -> bool:
    """Whether two tensors are equal within the precision of their type, relative to the largest entry."""
    tolerance = slack * tolerances.get(expected.dtype, COARSE_TOLERANCE)
    value, expected = value.detach().double(), expected.detach().double()
    if not torch.equal(value.isfinite(), expected.isfinite()):
        return False
    value, expected = value[value.isfinite()], expected[expected.isfinite()]
    scale = expected.abs().max() if expected.numel() else 0.0
    return bool((value - expected).abs().le(tolerance * (scale + floor)).all())
