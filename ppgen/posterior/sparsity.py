"""Which arguments each of the values of a function depends on, where each depends on few of many.

The Jacobian of f: R^n -> R^m is read from its products with few vectors. The arguments are bisected: of the blocks on
which a value is known to depend, both halves are tried. Halves on which no value may depend together share a vector,
as in a coloring of the columns of a sparse Jacobian (Curtis, Powell & Reid 1974,
https://doi.org/10.1093/imamat/13.1.117; Gebremedhin et al. 2005, https://doi.org/10.1137/S0036144504444711), so that a
random walk of any length needs four vectors for each halving.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

__all__ = ["MOST", "Dependencies", "colored", "find_dependencies"]

MOST = 16  # arguments on which a value may depend
ZERO = 1e-10  # of a derivative, relative to the largest of the same value
NUMBERS = 2**22  # derivatives that are computed at once, which bounds the memory


class Dependencies(NamedTuple):
    """Pairs of a value and an argument on which it depends.

    Attributes:
        value: the number of the value of each pair.
        argument: the number of the argument.
        dense: the numbers of values that depend on more than `MOST` arguments, which have no pairs.
    """

    value: np.ndarray
    argument: np.ndarray
    dense: np.ndarray


def find_dependencies(product: Callable[[Tensor], Tensor], values: int, arguments: int) -> Dependencies:
    """The pairs of a value and an argument whose derivative is not zero.

    Args:
        product: the products (k, values) of the Jacobian with vectors (k, arguments), at a point in general position.
        values: the number of values.
        arguments: that of arguments.
    """
    rng = np.random.default_rng(0)
    weight = torch.as_tensor(rng.uniform(0.5, 1.5, arguments))  # so that derivatives do not cancel
    value, block = np.arange(values), np.zeros(values, dtype=np.int64)
    edges, dense = np.array([0, arguments]), np.zeros(values, dtype=bool)
    while len(edges) - 1 < arguments and len(value):
        edges, children = _halved(edges)
        value, block = _with_halves(value, block, children)
        color = colored(value, block, len(edges) - 1)
        of_argument = np.repeat(color, np.diff(edges))
        found = torch.zeros(len(value), dtype=torch.float64)
        at_once = max(1, NUMBERS // max(values, arguments))
        largest = torch.zeros(values, dtype=torch.float64)
        for start in range(0, int(color.max()) + 1, at_once):
            colors = range(start, min(start + at_once, int(color.max()) + 1))
            vectors = torch.stack([weight * torch.as_tensor(of_argument == c) for c in colors])
            products = product(vectors).abs()
            largest = torch.maximum(largest, products.amax(0))
            here = np.flatnonzero((color[block] >= start) & (color[block] < start + at_once))
            found[here] = products[color[block[here]] - start, value[here]]
        kept = (found > ZERO * largest[torch.as_tensor(value)]).numpy()
        value, block = value[kept], block[kept]
        dense |= np.bincount(value, minlength=values) > MOST
        kept = ~dense[value]
        value, block = value[kept], block[kept]
    return Dependencies(value, block, np.flatnonzero(dense))


def _halved(edges: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The edges of halved blocks, and the two halves of each block; one is -1 where a block has a single argument."""
    size = np.diff(edges)
    split = size > 1
    first = np.cumsum(1 + split) - (1 + split)
    middle = edges[:-1] + (size + 1) // 2
    new = np.unique(np.concatenate([edges, middle[split]]))
    return new, (first, np.where(split, first + 1, -1))


def _with_halves(
    value: np.ndarray, block: np.ndarray, children: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of a value and both halves of its blocks."""
    values = np.concatenate([value, value])
    blocks = np.concatenate([children[0][block], children[1][block]])
    return values[blocks >= 0], blocks[blocks >= 0]


def colored(value: np.ndarray, argument: np.ndarray, arguments: int) -> np.ndarray:
    """Colors such that no value depends on two arguments of one color: (arguments,), whole numbers from 0 on.

    Args:
        value: the value of each pair.
        argument: the argument of each pair.
        arguments: the number of arguments.
    """
    rng = np.random.default_rng(0)
    pairs = sparse.csr_array((np.ones(len(value)), (value, argument)), shape=(value.max(initial=0) + 1, arguments))
    mark = pairs @ rng.uniform(1.0, 2.0, arguments)  # equal for values with the same arguments
    pairs = pairs[np.unique(mark, return_index=True)[1]]
    near = sparse.csr_array(pairs.T @ pairs)
    start, neighbors, color = near.indptr, near.indices, np.full(arguments, -1)
    for i in np.argsort(-np.diff(start), kind="stable"):
        taken = set(color[neighbors[start[i] : start[i + 1]]].tolist())
        color[i] = next(c for c in range(len(taken) + 1) if c not in taken)
    return color
