"""Who called a function of torch, for the modes that are told of every call."""

import sys
from types import FrameType

__all__ = ["calling_frame"]

TENSOR_METHODS = ("torch/_tensor.py", "torch/overrides.py")  # files of torch that pass a tensor's methods on


def calling_frame(depth: int = 1) -> FrameType | None:
    """The frame that called a function of torch, outside of the files in which torch passes a tensor's methods on.

    Args:
        depth: how many frames above the caller of this function to begin: 1 in ``__torch_function__`` itself.
    """
    frame: FrameType | None = sys._getframe(depth + 1)
    while frame and frame.f_code.co_filename.endswith(TENSOR_METHODS):
        frame = frame.f_back
    return frame
