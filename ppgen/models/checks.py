"""Checks of data x (n, *event_shape) and labels y, with errors that say what was expected and what was found."""

import torch
from torch import Tensor

__all__ = ["check_event_shape", "check_labels", "check_levels", "check_support", "one_hot"]


def check_event_shape(x: Tensor, event_shape: tuple[int, ...]) -> None:
    """Checks that x is a tensor of at least one row.

    Args:
        x: the data.
        event_shape: the expected shape of a row.

    Raises:
        TypeError: if x is not a tensor.
        ValueError: if the shape of x is not (n, *event_shape), or n is 0.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"expected x to be a tensor, got {type(x).__name__}: use torch.as_tensor")
    if x.dim() == 0 or tuple(x.shape[1:]) != event_shape or len(x) == 0:
        raise ValueError(
            f"expected x of shape (n, {', '.join(map(str, event_shape))}), got {tuple(x.shape)}: "
            "reshape the data, or build the model with their event_shape"
        )


def check_support(x: Tensor, allowed: Tensor, expected: str, fix: str) -> None:
    """Checks that all values are allowed.

    Args:
        x: the data.
        allowed: booleans of the same shape.
        expected: the allowed values, in words.
        fix: what the user can do about other values.

    Raises:
        ValueError: with the number of other values and the range of x.
    """
    outside = int((~allowed).sum())
    if outside:
        raise ValueError(
            f"expected the values of x to be {expected}; {outside} of {x.numel()} are not "
            f"(min {x.min().item():g}, max {x.max().item():g}): {fix}"
        )


def check_levels(x: Tensor, levels: int, reason: str) -> None:
    """Checks that all values are integers 0 .. levels - 1.

    Args:
        x: the data.
        levels: the number of levels.
        reason: why they must be.

    Raises:
        ValueError: for other values.
    """
    allowed = (x >= 0) & (x < levels) & (x == x.long())
    check_support(x, allowed, f"integers 0 .. {levels - 1}, {reason}", "recode the data, or change levels")


def check_labels(y: Tensor | None, shape: torch.Size, num_classes: int | None) -> None:
    """Checks that there are labels if and only if the model is conditional, and that they are valid.

    Args:
        y: the labels, or None.
        shape: the expected shape.
        num_classes: the number of labels, or None.

    Raises:
        ValueError: if labels are missing or not expected, have another shape, or are not integers 0 .. num_classes - 1.
    """
    _check_presence(y, num_classes)
    if y is None or num_classes is None:
        return
    if y.shape != shape or y.is_floating_point() or y.dtype == torch.bool:
        raise ValueError(f"expected integer labels y of shape {tuple(shape)}, got {y.dtype} {tuple(y.shape)}")
    outside = int(((y < 0) | (y >= num_classes)).sum())
    if outside:
        raise ValueError(
            f"expected labels y in 0 .. {num_classes - 1}, as num_classes={num_classes} says; "
            f"{outside} of {y.numel()} are not (min {y.min().item()}, max {y.max().item()})"
        )


def one_hot(y: Tensor | None, num_classes: int | None, dtype: torch.dtype) -> Tensor | None:
    """One-hot labels, without reading their values, so that the result can be traced.

    Args:
        y: the labels, or None.
        num_classes: the number of labels, or None.
        dtype: the type of the result.

    Returns:
        A tensor (*y.shape, num_classes); None for a model without labels.

    Raises:
        ValueError: if labels are missing or not expected.
    """
    _check_presence(y, num_classes)
    if y is None or num_classes is None:
        return None
    return (y.unsqueeze(-1) == torch.arange(num_classes, device=y.device)).to(dtype)


def _check_presence(y: Tensor | None, num_classes: int | None) -> None:
    if (y is None) != (num_classes is None):
        raise ValueError(
            "expected no labels y: the model was built without num_classes"
            if num_classes is None
            else f"expected labels y: the model was built with num_classes={num_classes}"
        )
