"""A step that many processes take together: gradients of each rank's rows, one sum over the ranks, the same update.

The gradients, the terms of the loss and the changes of buffers travel as one flat tensor,

    [gradients | which of them exist | terms | changes of buffers] * n_r / n   and   [ready to compile | wishes]

whose sum over ranks is the gradient of the global batch. What is computed before and after the sum is compiled as two
functions. All ranks get the same bits and take the same update, so that their weights stay equal.
"""

from collections.abc import Callable, Sequence
from math import isnan
from typing import Any

import torch
from torch import Tensor

from ppgen.infer.compile.policy import Compile
from ppgen.infer.compile.step import CompiledStep
from ppgen.infer.distributed import WISHES, Ranks
from ppgen.infer.finite_steps import NUMERICAL_ERRORS
from ppgen.infer.optimizers import ParameterOptimizer

__all__ = ["ReplicatedStep"]

Values = dict[str, Tensor]
Gradients = list[Tensor | None]


class ReplicatedStep:
    """Takes steps as a `CompiledStep` does, together with the other ranks.

    Args:
        gradients: a function of (args, kwargs) that returns terms by name and the gradients of all parameters.
        update: a function of the terms and the gradients of the global batch that takes the optimizers' steps.
        optimizers: whose parameters these are, in this order.
        static_values: returns all else, not a tensor, that the step depends on.
        ranks: the ranks.
        compile: as for `CompiledStep`.
        steps: as for `CompiledStep`.

    Attributes:
        failure: the error of this rank in the last step, if it failed for its numbers; no rank takes the step then.
    """

    failure: BaseException | None = None

    def __init__(
        self,
        gradients: Callable[[tuple, dict], tuple[Values, Gradients]],
        update: Callable[[Values, Gradients], Values],
        optimizers: Sequence[ParameterOptimizer],
        static_values: Callable[[], Any],
        *,
        ranks: Ranks,
        compile: Compile = "auto",
        steps: int | None = None,
    ) -> None:
        self.gradients, self.update, self.optimizers, self.ranks = gradients, update, optimizers, ranks
        self.gradient_step = CompiledStep(self._pack, optimizers, static_values, compile=compile, steps=steps)
        # its results must have the same bits on all ranks, so that "auto" compiles it on all in the same step
        together: Compile = False if compile == "auto" else compile
        self.update_step = CompiledStep(
            self._unpack, optimizers, lambda: (static_values(), self._present), compile=together, steps=steps
        )
        self._flat: Tensor | None = None
        self._leaves: list[Tensor] = []
        self._names: list[str] = []
        self._present: list[bool] = []

    @property
    def policy(self) -> Any:
        """When steps are compiled."""
        return self.gradient_step.policy

    @property
    def status(self) -> str:
        """The last decisions about compiling, in words; empty before there is one."""
        parts = {"gradient": self.gradient_step.status, "update": self.update_step.status}
        return "; ".join(f"{name}: {status}" for name, status in parts.items() if status)

    @property
    def compiled_shapes(self) -> int:
        """The number of argument shapes whose gradients have a compiled function at present."""
        return self.gradient_step.compiled_shapes

    def __call__(self, args: tuple, kwargs: dict) -> Values:
        """Takes one step on this rank's rows and returns the terms of the global batch by name, detached."""
        before = _joined(self.ranks.buffers, self._flat) if self.ranks.buffers else None
        self.failure = None
        if self.ranks.rows:
            try:
                self.gradient_step((args, self.ranks.whole), kwargs)
            except NUMERICAL_ERRORS as error:
                self.failure = error.__cause__ or error
                if self._flat is None:
                    raise self.failure from None
                self._flat.fill_(torch.nan)  # and so is the sum, which no rank takes
        elif self._flat is None:
            raise ValueError(
                f"the first batch has {self.ranks.whole} rows, and rank {self.ranks.rank} of {self.ranks.size} none of "
                "them: give at least 2 rows a rank, or start fewer processes"
            )
        else:
            self._flat.zero_()
        self._add_up(before)
        return self.update_step((), {})

    def _pack(self, args: tuple, kwargs: dict) -> Values:
        """Computes terms and gradients and writes them into the flat tensor."""
        with self.ranks.shard():
            values, gradients = self.gradients(args[0], kwargs)
        leaves = [leaf for optimizer in self.optimizers for leaf in optimizer.parameters.values()]
        if self._flat is None:
            self._make_flat(leaves, list(values))
        flat = self._flat
        assert flat is not None
        if len(leaves) != len(self._leaves) or list(values) != self._names:
            late = [name for o in self.optimizers for name in o.parameters][len(self._leaves) :]
            raise ValueError(
                f"rank {self.ranks.rank}: parameters {late} or terms {list(values)} appeared after the first step, and "
                f"ranks have to add up the same ones ({self._names}): let the programs make them on every batch"
            )
        flags = [gradient is not None for gradient in gradients]
        parts = [_real(leaf if g is None else g).reshape(-1) for leaf, g in zip(leaves, gradients, strict=True)]
        parts = [
            part.to(flat.dtype) if flag else torch.zeros_like(part) for part, flag in zip(parts, flags, strict=True)
        ]
        parts += [flat.new_full((1,), float(flag)) for flag in flags]
        parts += [value.detach().reshape(1).to(flat) for value in values.values()]
        with torch.no_grad():
            packed = torch.cat(parts)
            flat[: len(packed)].copy_(packed)
        return values

    def _make_flat(self, leaves: list[Tensor], names: list[str]) -> None:
        self._leaves, self._names = leaves, names
        dtype = torch.float32
        for leaf in leaves:
            dtype = torch.promote_types(dtype, _real(leaf).dtype)
        self._size = sum(_real(leaf).numel() for leaf in leaves)
        length = self._size + len(leaves) + len(names) + sum(b.numel() for b in self.ranks.buffers) + 1 + len(WISHES)
        self._flat = torch.zeros(length, dtype=dtype, device=leaves[0].device if leaves else None)

    def _add_up(self, before: Tensor | None) -> None:
        """Replaces the flat tensor by the sum over ranks, and buffers by their mean."""
        flat, ranks = self._flat, self.ranks
        assert flat is not None
        end = len(flat) - 1 - len(WISHES)
        start = end if before is None else end - len(before)
        if before is not None:
            flat[start:end] = _joined(ranks.buffers, flat) - before
        flat[:end].mul_(ranks.weight)
        flat[end:] = torch.tensor([float(self.compiled_shapes > 0), *ranks.wishes()]).to(flat)
        ranks.sum(flat)
        if before is not None:
            _split(before + flat[start:end], ranks.buffers)
        present = flat[self._size : self._size + len(self._leaves)]
        numbers = torch.cat([present, flat[end:]]).tolist()  # waits for the device
        if not any(map(isnan, numbers)):  # which a rank's failure made of them
            self._present = [number > 0 for number in numbers[: len(present)]]
        ready, *wishes = numbers[len(present) :]
        ranks.grant(wishes)
        if self.policy.compile == "auto" and ready == ranks.size:
            self.update_step.policy.compile = True

    def _unpack(self, args: tuple, kwargs: dict) -> Values:
        """Takes the optimizers' steps on the gradients in the flat tensor."""
        flat = self._flat
        assert flat is not None
        with torch.no_grad():
            pieces = flat[: self._size].split([_real(leaf).numel() for leaf in self._leaves])
            terms = flat[self._size + len(self._leaves) :]
            values = {name: terms[i].clone() for i, name in enumerate(self._names)}
            gradients: Gradients = [
                _shaped(piece, leaf) if present else None
                for piece, leaf, present in zip(pieces, self._leaves, self._present, strict=True)
            ]
        return self.update(values, gradients)


def _real(tensor: Tensor) -> Tensor:
    """A tensor of real numbers, dense."""
    tensor = tensor.detach()
    tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _shaped(piece: Tensor, leaf: Tensor) -> Tensor:
    """A part of the flat tensor as the gradient of a parameter."""
    if leaf.is_complex():
        return torch.view_as_complex(piece.view(*leaf.shape, 2).to(leaf.real.dtype, copy=True))
    return piece.view(leaf.shape).to(leaf.dtype, copy=True)


def _joined(tensors: Sequence[Tensor], like: Tensor | None) -> Tensor:
    """Copies of tensors in one flat tensor."""
    dtype = torch.float64 if like is None else like.dtype
    return torch.cat([tensor.detach().reshape(-1).to(dtype) for tensor in tensors])


def _split(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Writes a flat tensor into tensors."""
    with torch.no_grad():
        pieces = flat.split([tensor.numel() for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view(tensor.shape))
