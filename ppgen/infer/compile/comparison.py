"""Whether a compiled step did what the eager one did, up to rounding.

Rounding differs between the two, and an adaptive optimizer can blow it up: where a gradient is nothing but rounding,
as of a bias before batch norm, Adam steps by its full rate in a direction of chance. So gradients are compared by what
the optimizer gathers of them, all parameters together, and parameters only where the gradient means something.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ppgen.infer.compile.protocols import RecordableOptimizer
from ppgen.infer.compile.recording import Recording

__all__ = ["disagreement"]

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3}  # relative; coarser types below
COARSE = 5e-2
NOISE = 1e-4  # gradients below this share of the greatest one are taken for rounding
STEP = 0.05  # relative, of a parameter's move


@torch.no_grad()
def disagreement(
    recording: Recording,
    reference: list[Tensor],
    values: Mapping[str, Tensor],
    repeated: Mapping[str, Tensor],
    players: Sequence[RecordableOptimizer],
) -> str | None:
    """How the step just repeated differs from the recorded one; None if it agrees.

    Args:
        recording: of the eager step, which overwrote ``recording.before``.
        reference: what the eager step left there, in the same order; the tensors hold what the repetition left.
        values, repeated: the outputs of the two.
        players: with their gradients of the eager step.
    """
    for name, value in values.items():
        if not _close(repeated[name], value, floor=1e-3):
            return f"{name} is {float(repeated[name]):.8g}, eagerly {float(value):.8g}"
    gradients = {id(leaf): grad for player in players for leaf, grad in player.last if grad is not None}
    greatest = max((float(grad.abs().max()) for grad in gradients.values() if grad.numel()), default=0.0)
    kinds = {id(tensor): kind for player in players for kind, tensor in player.moments()}
    together: dict[object, list[tuple[Tensor, Tensor]]] = {}
    for (tensor, before), eager in zip(recording.before, reference, strict=True):
        if id(tensor) in gradients:
            means = gradients[id(tensor)].abs() > NOISE * greatest
            off = ((tensor - eager).abs() * means).max() if tensor.numel() else tensor.new_zeros(())
            if off > STEP * (eager - before).abs().max() + 1e-6 * eager.abs().max():
                return f"a parameter of shape {tuple(tensor.shape)} moves otherwise, by {float(off):.3g}"
        elif not tensor.is_floating_point():
            if not torch.equal(tensor, eager):
                return f"a tensor of {tensor.dtype} and shape {tuple(tensor.shape)} is another"
        else:
            together.setdefault(kinds.get(id(tensor), id(tensor)), []).append((tensor.detach(), eager))
    for kind, pairs in together.items():
        if not _close(*(torch.cat([part.reshape(-1) for part in parts]) for parts in zip(*pairs, strict=True))):
            what = (
                f"{kind} of the optimizer" if isinstance(kind, str) else f"a tensor of shape {tuple(pairs[0][0].shape)}"
            )
            return f"{what} is another"
    return None


def _close(got: Tensor, expected: Tensor, *, floor: float = 1e-6) -> bool:
    """Whether two tensors are the same within what their type can hold, relative to the greatest of their numbers."""
    tolerance = TOLERANCE.get(expected.dtype, COARSE)
    got, expected = got.detach().double(), expected.detach().double()
    if not torch.equal(got.isfinite(), expected.isfinite()):
        return False
    got, expected = got[got.isfinite()], expected[expected.isfinite()]
    scale = expected.abs().max() if expected.numel() else 0.0
    return bool((got - expected).abs().le(tolerance * (scale + floor)).all())
