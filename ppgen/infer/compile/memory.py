"""Whether the tensors that a step overwrites share memory with others; a compiled step assumes that they do not."""

from collections.abc import Collection, Sequence

from torch import Tensor

from ppgen.infer.compile.recording import Recording, storage_of

__all__ = ["Memory"]


class Memory:
    """The memory of the tensors of a recorded step.

    A user may give a tensor other memory (``w.data = v.data``), or pass a step an argument that is part of a parameter.

    Args:
        recording: the recorded step, in which no tensors that it overwrites share memory.
        private: the ids of tensors that only the step uses, such as an optimizer's state, which are not compared.
    """

    def __init__(self, recording: Recording, private: Collection[int]) -> None:
        overwritten = {id(tensor) for tensor, _ in recording.overwritten}
        arguments, others = recording.inputs[: recording.num_arguments], recording.inputs[recording.num_arguments :]
        self._tensors = [tensor for tensor in others if id(tensor) not in private]
        self._overwritten = [tensor for tensor in self._tensors if id(tensor) in overwritten]
        self._overwrites_arguments = any(id(argument) in overwritten for argument in arguments)
        self._addresses: list[int] = []
        self._guarded: set[int] = set()

    def separate(self, arguments: Sequence[Tensor]) -> bool:
        """Whether no tensor that the step overwrites shares memory with another one now.

        Args:
            arguments: the tensors that the step is called with.
        """
        addresses = list(map(Tensor.data_ptr, self._tensors))
        if addresses != self._addresses:  # most often, nothing has moved
            storages = [storage_of(tensor) for tensor in self._tensors]
            if any(storages.count(storage_of(tensor)) > 1 for tensor in self._overwritten if tensor.numel()):
                return False
            guarded = self._tensors if self._overwrites_arguments else self._overwritten
            self._addresses, self._guarded = addresses, {storage_of(t) for t in guarded if t.numel()}
        if not arguments:
            return True
        given = [storage_of(argument) for argument in arguments if argument.numel()]
        return self._guarded.isdisjoint(given) and (not self._overwrites_arguments or len(set(given)) == len(given))
