"""Heads: maps from the output h of a network to a distribution over events of shape (*event_shape).

``size`` is the number of outputs that a head reads for each element of the event; h has shape (*batch, size,
*event_shape). The heads of data are the rows of ``LIKELIHOODS``. Each of them also defines how data enter a network,
and checks data. D is the number of elements of an event.

The likelihood of a Gaussian with a learned scale is unbounded: a decoder can put its mean on one datum and let the
scale there go to zero (Mattei and Frellsen, https://arxiv.org/abs/1802.04826). Therefore every learned scale is s =
floor + softplus(h), which bounds the density by (2 pi)^(-D/2) floor^(-D).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions.transforms import ReshapeTransform

from ppgen.models.checks import check_levels, check_support
from ppgen.nets import lookup


class Head(nn.Module):
    """A map from h (*batch, size, *event_shape) to a distribution over events.

    Args:
        event_shape: the shape of an event.

    Attributes:
        size: the number of outputs of the network for each element.
        form: the form of data that the distribution scores, a row of `ppgen.data.FORMS`.
    """

    size = 1
    form: ClassVar[str] = "continuous"

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.elements = math.prod(self.event_shape)

    def forward(self, raw: Tensor) -> TorchDistribution:
        """The distribution, of batch shape (*batch) and event shape (*event_shape)."""
        raise NotImplementedError

    def features(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Data as input of a network."""
        return x.to(dtype)

    def observed(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Data as the distribution scores them."""
        return x.to(dtype)

    def check(self, x: Tensor) -> None:
        """Raises ValueError if the data lie outside the support of the distribution."""


class Point(Head):
    """A point mass at h: the output of a deterministic encoder or generator."""

    def forward(self, raw: Tensor) -> TorchDistribution:
        """Delta(h)."""
        return dist.Delta(raw.squeeze(-1 - len(self.event_shape)), event_dim=len(self.event_shape))


class Bernoulli(Head):
    """x_d ~ Bernoulli(sigmoid(h_d)), independently, for data 0 or 1."""

    form = "binary"

    def forward(self, raw: Tensor) -> TorchDistribution:
        """Bernoulli(sigmoid(h))."""
        rank = len(self.event_shape)
        return dist.Bernoulli(logits=raw.squeeze(-1 - rank)).to_event(rank)

    def check(self, x: Tensor) -> None:
        """Raises ValueError unless all values are 0 or 1."""
        check_support(
            x,
            (x == 0) | (x == 1),
            "0 or 1, the support of likelihood='bernoulli'",
            "load the data with form='binary', or choose likelihood='gaussian'",
        )


class Categorical(Head):
    """x_d ~ Categorical(softmax(h_d)), independently, for integers 0 .. levels - 1.

    The likelihood does not use the order of the levels. The encoder sees them equally spaced in [-1, 1].

    Args:
        event_shape: the shape of an event.
        levels: the number of levels.

    Raises:
        ValueError: for fewer than 2 levels.
    """

    form = "integer"

    def __init__(self, event_shape: Sequence[int], *, levels: int | None = None) -> None:
        super().__init__(event_shape)
        if levels is None or levels < 2:
            raise ValueError(f"expected levels, at least 2, for likelihood='categorical', got {levels}")
        self.size = self.levels = levels

    def forward(self, raw: Tensor) -> TorchDistribution:
        """Categorical(softmax(h))."""
        rank = len(self.event_shape)
        return dist.Categorical(logits=raw.movedim(-1 - rank, -1)).to_event(rank)

    def features(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Levels in [-1, 1]."""
        return 2 * x.to(dtype) / (self.levels - 1) - 1

    def observed(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Levels as integers."""
        return x.long()

    def check(self, x: Tensor) -> None:
        """Raises ValueError unless all values are integers 0 .. levels - 1."""
        check_levels(x, self.levels, "the support of likelihood='categorical'")


class Gaussian(Head):
    """x ~ N(mu, Sigma), with the form of Sigma a row of ``COVARIANCES``.

    | covariance | Sigma | from h |
    |---|---|---|
    | fixed | scale^2 I | |
    | scalar | s^2 I | one parameter, the same for every h |
    | diagonal | diag(s_d^2) | s |
    | low_rank | diag(s_d^2) + W W^T, W of shape (D, rank) | s, W |
    | full | L L^T, L lower triangular with diagonal s | L, as D^2 numbers: for small events |

    mu is an output of the network, and s = floor + softplus(h + c), where c makes s = scale at h = 0. W and the
    off-diagonal elements of L are divided by the square root of their width, so that an untrained network changes the
    variance little.

    Args:
        event_shape: the shape of an event, which "low_rank" and "full" flatten.
        covariance: a row of ``COVARIANCES``.
        rank: the width of W, of "low_rank".
        scale: the initial standard deviation, or the constant one of "fixed"; choose about that of the data.
        floor: the least standard deviation, in units of the data; not of "fixed".

    Raises:
        ValueError: if an option is unknown or out of range.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        covariance: str = "diagonal",
        rank: int = 4,
        scale: float = 1.0,
        floor: float = 1e-2,
    ) -> None:
        super().__init__(event_shape)
        row = lookup(COVARIANCES, covariance, option="covariance")
        if covariance == "low_rank" and not 1 <= rank <= self.elements:
            raise ValueError(f"expected a rank from 1 to the event's {self.elements} elements, got {rank}")
        if covariance == "fixed":
            floor = 0.0
        elif floor <= 0:
            raise ValueError(f"expected floor > 0, without which the likelihood has no bound, got {floor}")
        if floor >= scale:
            raise ValueError(f"expected scale > {floor}, the floor, got {scale}")
        self.covariance, self.rank, self.scale, self.floor = covariance, rank, scale, floor
        self.size = 1 + row.size(self.elements, rank)
        self.shift = scale - floor + math.log(-math.expm1(floor - scale))
        if covariance == "scalar":
            self.raw_scale = nn.Parameter(torch.zeros(()))

    def forward(self, raw: Tensor) -> TorchDistribution:
        """N(mu, Sigma)."""
        rank = len(self.event_shape)
        loc, rest = raw.split([1, self.size - 1], -1 - rank)
        return COVARIANCES[self.covariance].build(self, loc.squeeze(-1 - rank), rest)

    def std(self, raw: Tensor) -> Tensor:
        """The standard deviation floor + softplus(raw + c), which is ``scale`` at zero."""
        return self.floor + F.softplus(raw + self.shift)

    def check(self, x: Tensor) -> None:
        """Raises ValueError unless the data are finite floating point numbers."""
        if not x.is_floating_point():
            raise ValueError(
                f"expected floating point data for likelihood='gaussian', got {x.dtype}, where a density "
                "has no upper bound: dequantize the data (load them with form='continuous')"
            )
        check_support(x, x.isfinite(), "finite numbers", "drop or impute the rest")


class Covariance(NamedTuple):
    """A row of ``COVARIANCES``.

    Attributes:
        size: the number of outputs for each element of the event beside the mean, from the number of elements and the
            rank.
        build: the distribution, from the head, the mean and those outputs.
    """

    size: Callable[[int, int], int]
    build: Callable[[Gaussian, Tensor, Tensor], TorchDistribution]


def _fixed(head: Gaussian, loc: Tensor, rest: Tensor) -> TorchDistribution:
    return dist.Normal(loc, head.scale).to_event(len(head.event_shape))


def _scalar(head: Gaussian, loc: Tensor, rest: Tensor) -> TorchDistribution:
    return dist.Normal(loc, head.std(head.raw_scale)).to_event(len(head.event_shape))


def _diagonal(head: Gaussian, loc: Tensor, rest: Tensor) -> TorchDistribution:
    rank = len(head.event_shape)
    return dist.Normal(loc, head.std(rest.squeeze(-1 - rank))).to_event(rank)


def _low_rank(head: Gaussian, loc: Tensor, rest: Tensor) -> TorchDistribution:
    loc, columns = _flat(head, loc), _flat(head, rest).mT
    factor = columns[..., 1:] / math.sqrt(head.rank)
    base = dist.LowRankMultivariateNormal(loc, factor, head.std(columns[..., 0]).square())
    return _reshaped(base, head.event_shape)


def _full(head: Gaussian, loc: Tensor, rest: Tensor) -> TorchDistribution:
    loc, square = _flat(head, loc), _flat(head, rest).mT
    below = square.tril(-1) / math.sqrt(head.elements)
    tril = below + torch.diag_embed(head.std(square.diagonal(dim1=-2, dim2=-1)))
    return _reshaped(dist.MultivariateNormal(loc, scale_tril=tril), head.event_shape)


COVARIANCES: dict[str, Covariance] = {
    "fixed": Covariance(lambda elements, rank: 0, _fixed),
    "scalar": Covariance(lambda elements, rank: 0, _scalar),
    "diagonal": Covariance(lambda elements, rank: 1, _diagonal),
    "low_rank": Covariance(lambda elements, rank: 1 + rank, _low_rank),
    "full": Covariance(lambda elements, rank: elements, _full),
}

LIKELIHOODS: dict[str, type[Head]] = {
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "gaussian": Gaussian,
}


def make_likelihood(
    event_shape: Sequence[int],
    *,
    likelihood: str,
    levels: int | None,
    **options: Any,
) -> Head:
    """Builds the head of a likelihood.

    Args:
        event_shape: the shape of an event.
        likelihood: a row of ``LIKELIHOODS``.
        levels: the number of levels of "categorical"; None for the others.
        options: further options of "gaussian", which the others ignore.

    Raises:
        ValueError: if the likelihood is unknown, an option is out of range, or levels are given to another one.
    """
    kind = lookup(LIKELIHOODS, likelihood, option="likelihood")
    if kind is Categorical:
        return Categorical(event_shape, levels=levels)
    if levels is not None:
        raise ValueError(f"expected no levels for likelihood={likelihood!r}, got {levels}")
    return Gaussian(event_shape, **options) if kind is Gaussian else kind(event_shape)


def _flat(head: Head, value: Tensor) -> Tensor:
    """Flattens the dimensions of the event."""
    return value.flatten(-len(head.event_shape))


def _reshaped(base: TorchDistribution, event_shape: tuple[int, ...]) -> TorchDistribution:
    """A distribution over vectors, reshaped to events."""
    if base.event_shape == event_shape:
        return base
    return dist.TransformedDistribution(base, ReshapeTransform(base.event_shape, torch.Size(event_shape)))
