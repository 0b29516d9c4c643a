"""A map of flows of tables, after whitening: each coordinate made closer to a Gaussian by itself."""

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform

from ppgen.flows.zuko import lazy

__all__ = ["Marginals"]

MAX_LOG_SCALE, MAX_SKEWNESS, MAX_TAILS = 2.0, 2.0, 1.5  # bounds, for columns with one value in many rows
ITERATIONS = 60


class Marginals(lazy.LazyTransform):
    """z_i = sinh(d_i arcsinh u_i - e_i), u_i = (x_i - m_i) / s_i, with constants of greatest likelihood under N(0, I).

    The sinh-arcsinh distribution (Jones & Pewsey 2009, https://doi.org/10.1093/biomet/asp053) with skewness e and tails
    d < 1 that are heavier than those of a Gaussian. Lighter ones would give rows beyond the data no density at all. A
    spline is the identity beyond its bound, so that without this map each outlier costs half its square in nats.

    It is the identity until `ppgen.flows.Flow.initialize` is called.

    Args:
        dim: The width of x.
    """

    constants: Tensor
    initialized: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        identity = torch.stack([torch.zeros(dim), torch.ones(dim), torch.zeros(dim), torch.ones(dim)])
        self.register_buffer("constants", identity)
        self.register_buffer("initialized", torch.tensor(False))
        self.initializing = False  # set by `Flow.initialize` while it passes data through

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets the map from data.

        Args:
            x: Rows (*batch, dim), of about unit scale.
        """
        self.constants.copy_(_fit(x.detach().reshape(-1, x.shape[-1]).double()))
        self.initialized.fill_(True)

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
        if self.marginals.initializing:
            self.marginals.initialize(x)
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
