"""First maps of flows of tables, fitted to data and constant, that turn them into about N(0, I)."""

from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform

from ppgen.flows.whitening import Whitening, mean_and_scale
from ppgen.flows.zuko import lazy, transforms

__all__ = ["Gaussianization", "Marginals"]

MAX_LOG_SCALE, MAX_SKEWNESS, MAX_TAILS = 2.0, 2.0, 1.5  # bounds, for columns with one value in many rows
ITERATIONS = 60


class Gaussianization(lazy.LazyTransform):
    """Whitening, then `Marginals`; before both, `Marginals` of the columns if that makes the data more probable.

    Columns of a skewed unit are linear in each other on another scale, as areas and lengths are on the logarithmic one,
    and columns that are sums of others are so on their own. So there are two candidates. The one of greater likelihood
    under N(0, I) is taken, less the four numbers of each column (Akaike's criterion).

    It is the identity until `ppgen.flows.Flow.initialize` is called.

    Args:
        dim: The width of x.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.columns, self.whitening, self.marginals = Marginals(dim), Whitening(dim), Marginals(dim)
        self.initializing = False  # set by `Flow.initialize` while it passes data through

    @property
    def initialized(self) -> Tensor:
        """Whether the map is set."""
        return self.whitening.initialized

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets the map from data.

        Args:
            x: Rows (*batch, dim).
        """
        x = x.detach().reshape(-1, x.shape[-1])
        self.columns.reset()
        plain = self._fit(x)
        self.columns.initialize(x)
        if self._fit(x) - 4 * x.shape[1] / len(x) <= plain:
            self.columns.reset()
            self._fit(x)

    def forward(self, c: Tensor | None = None) -> Transform:
        """Returns the transform, which does not depend on the context c."""
        return _First(self)

    def maps(self) -> Any:
        """The composition of the three."""
        return transforms.ComposedTransform(self.columns(), self.whitening(), self.marginals())

    def _fit(self, x: Tensor) -> float:
        """Sets the later two maps given the first; returns the mean log density of x."""
        y = self.columns()(x)
        self.whitening.initialize(y)
        self.marginals.initialize(self.whitening()(y), units=False)
        z, log_det = self.maps().call_and_ladj(x)
        return float((log_det - z.square().sum(-1) / 2).double().mean())


class _First(Transform):
    """The transform of a `Gaussianization`."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, parts: Gaussianization) -> None:
        super().__init__()
        self.parts = parts

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, z: Tensor) -> Tensor:
        return self.parts.maps().inv(z)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns z and log |dz/dx|."""
        if self.parts.initializing:
            self.parts.initialize(x)
        return self.parts.maps().call_and_ladj(x)

    def log_abs_det_jacobian(self, x: Tensor, z: Tensor) -> Tensor:
        """Returns log |dz/dx|."""
        return self.call_and_ladj(x)[1]


class Marginals(lazy.LazyTransform):
    """z_i = sinh(d_i arcsinh u_i - e_i), u_i = (x_i - m_i) / s_i, with constants of greatest likelihood under N(0, I).

    The sinh-arcsinh distribution (Jones & Pewsey 2009, https://doi.org/10.1093/biomet/asp053) with skewness e and tails
    d < 1 that are heavier than those of a Gaussian. Lighter ones would give rows beyond the data no density at all. A
    spline is the identity beyond its bound, so that without this map each outlier costs half its square in nats.

    It is the identity until it is initialized.

    Args:
        dim: The width of x.
    """

    constants: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("constants", torch.empty(4, dim))
        self.reset()

    def reset(self) -> None:
        """Makes it the identity."""
        self.constants.copy_(torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None])

    @torch.no_grad()
    def initialize(self, x: Tensor, *, units: bool = True) -> None:
        """Sets the map from data.

        Args:
            x: Rows (n, dim).
            units: Whether columns may have any units; otherwise they are of unit scale, or else constant.
        """
        rows = x.detach().double()
        mean, scale = mean_and_scale(rows) if units else (torch.zeros_like(rows[0]), torch.ones_like(rows[0]))
        m, s, e, d = _fit((rows - mean) / scale)
        self.constants.copy_(torch.stack([mean + scale * m, scale * s, e, d]))

    def forward(self, c: Tensor | None = None) -> Transform:
        """Returns the transform, which does not depend on the context c."""
        return _SinhArcsinh(self)


class _SinhArcsinh(Transform):
    """The map of all coordinates."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, marginals: Marginals) -> None:
        super().__init__()
        self.marginals = marginals

    def _call(self, x: Tensor) -> Tensor:
        m, s, e, d = self.marginals.constants
        return (d * ((x - m) / s).arcsinh() - e).sinh()

    def _inverse(self, z: Tensor) -> Tensor:
        m, s, e, d = self.marginals.constants
        return m + s * ((z.arcsinh() + e) / d).sinh()

    def log_abs_det_jacobian(self, x: Tensor, z: Tensor) -> Tensor:
        """Returns log |dz/dx|."""
        m, s, _, d = self.marginals.constants
        return _log_slope((x - m) / s, z, s, d).sum(-1)


def _log_slope(u: Tensor, z: Tensor, s: Tensor, d: Tensor) -> Tensor:
    """Returns log dz/dx = log d - log s + log(1 + z^2) / 2 - log(1 + u^2) / 2, as cosh^2 = 1 + sinh^2."""
    return d.log() - s.log() + (z.square().log1p() - u.square().log1p()) / 2


def _bounded(raw: Tensor) -> Tensor:
    """m, s, e and d of numbers without bounds; zero is close to the identity."""
    m, s, e, d = raw
    scale = (MAX_LOG_SCALE * (s / MAX_LOG_SCALE).tanh()).exp()
    return torch.stack([m, scale, MAX_SKEWNESS * (e / MAX_SKEWNESS).tanh(), (-MAX_TAILS * (d - 3).sigmoid()).exp()])


def _fit(x: Tensor) -> Tensor:
    """The constants (4, dim) for rows (n, dim), with a prior N(0, 1) of the unbounded numbers, as if of one row."""
    raw = x.new_zeros(4, x.shape[1]).requires_grad_()
    optim = torch.optim.LBFGS([raw], max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optim.zero_grad()
        m, s, e, d = _bounded(raw)
        u = (x - m) / s
        z = (d * u.arcsinh() - e).sinh()
        value = (z.square() / 2 - _log_slope(u, z, s, d)).mean(0).sum() + raw.square().sum() / (2 * len(x))
        value.backward()
        return value

    with torch.enable_grad():
        optim.step(loss)
    return _bounded(raw).detach()
