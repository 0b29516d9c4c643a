"""A cheap stand-in for a log density of few variables whose values and gradients take long.

Around modes c_k with covariance roots R_k, in the coordinates w = R_1^-1 (u - c_1),

    f(u) = max_k (v_k - |R_k^-1 (u - c_k)|^2 / 2) + r(w)

where r is the mean of a Gaussian process given the values and the gradients of log p at points around the modes
(Rasmussen & Williams 2006, section 9.4), with covariance s^2 exp(-|w - w'|^2 / 2 l^2). Among the points f interpolates
log p; far from them only the Gaussians are left. The length l has the highest marginal likelihood of a few.
"""

import torch
from torch import Tensor

from ppgen.posterior.gaussians import GaussianBatch

__all__ = ["Surrogate", "most_points", "spread_points"]

LENGTHS = (1.0, 1.5, 2.5, 4.0, 6.0)  # l over the root of the dimension
NUGGET = 1e-8  # variance of an error of values and scaled gradients, relative to s^2
SPREADS = (1.0, 2.0)  # standard deviations of the points, half of them each
NUMBERS = 4000  # values and gradients together, of which a matrix is factored


def most_points(dim: int) -> int:
    """The largest number of points of a surrogate of so many variables."""
    return NUMBERS // (dim + 1)


def spread_points(modes: GaussianBatch, count: int, start: int = 0) -> Tensor:
    """Points around modes, with little overlap: (count, dim), fewer in many dimensions.

    Args:
        modes: Gaussians at the modes.
        count: how many.
        start: how many are left out, of a longer sequence of points.
    """
    dim = modes.center.shape[-1]
    count = min(count, most_points(dim))
    sobol = torch.quasirandom.SobolEngine(dim, scramble=True, seed=0).draw(start + count, dtype=torch.float64)
    noise = torch.special.ndtri(sobol.clamp(1e-6, 1 - 1e-6))
    number = torch.arange(start + count)
    noise = noise * torch.tensor(SPREADS, dtype=torch.float64)[number % len(SPREADS), None]
    which = number // len(SPREADS) % len(modes.center)
    points = modes.center[which] + (modes.root[which] @ noise[..., None])[..., 0]
    return points[start:]


class Surrogate:
    """f, as a function of a point.

    Args:
        modes: Gaussians at the modes.
        peaks: log p at the modes, (k,), in nats.
        u: points, (n, dim).
        values: log p there, (n,).
        gradients: its gradients, (n, dim).
    """

    def __init__(self, modes: GaussianBatch, peaks: Tensor, u: Tensor, values: Tensor, gradients: Tensor) -> None:
        self.modes, self.peaks = modes, peaks
        usable = values.isfinite() & gradients.isfinite().all(-1)
        u, values, gradients = u[usable], values[usable], gradients[usable]
        self._points = self._whitened(u)
        with torch.enable_grad():
            at = u.clone().requires_grad_()
            base = torch.stack([self._base(point) for point in at])
            (slope,) = torch.autograd.grad(base.sum(), at)
        rest = (gradients - slope) @ modes.root[0]  # d / dw = R' d / du
        numbers = torch.cat([(values - base.detach())[:, None], rest], 1)
        root_dim = u.shape[-1] ** 0.5
        self.length, self._weights = max(
            ((length * root_dim, *self._fitted(numbers, length * root_dim)) for length in LENGTHS),
            key=lambda found: found[1],
        )[::2]

    def __call__(self, u: Tensor) -> Tensor:
        """The value of f at a point (dim,)."""
        offset = (self._whitened(u) - self._points) / self.length
        kernel = (-offset.square().sum(-1) / 2).exp()
        return self._base(u) + (kernel * (self._weights[:, 0] + (self._weights[:, 1:] * offset).sum(-1))).sum()

    def _whitened(self, u: Tensor) -> Tensor:
        return (
            torch.linalg.solve(self.modes.root[0], (u - self.modes.center[0]).mT).mT
            if u.dim() > 1
            else (torch.linalg.solve(self.modes.root[0], u - self.modes.center[0]))
        )

    def _base(self, u: Tensor) -> Tensor:
        noise = torch.linalg.solve(self.modes.root, (u - self.modes.center)[..., None])[..., 0]
        return (self.peaks - noise.square().sum(-1) / 2).amax()

    def _fitted(self, numbers: Tensor, length: float) -> tuple[float, Tensor]:
        """The log marginal likelihood of values and gradients in w, (n, 1 + dim), and the weights of the kernels."""
        count, dim = self._points.shape
        numbers = numbers * torch.tensor([1.0] + [length] * dim).double()  # of w / l
        offset = (self._points[:, None] - self._points) / length
        kernel = (-offset.square().sum(-1) / 2).exp()
        covariance = kernel.new_empty(count, 1 + dim, count, 1 + dim)
        covariance[:, 0, :, 0] = kernel
        covariance[:, 0, :, 1:] = kernel[..., None] * offset
        covariance[:, 1:, :, 0] = -(kernel[..., None] * offset).transpose(1, 2)
        outer = torch.eye(dim).double() - offset[..., None] * offset[..., None, :]
        covariance[:, 1:, :, 1:] = (kernel[..., None, None] * outer).permute(0, 2, 1, 3)
        size = count * (1 + dim)
        covariance = covariance.reshape(size, size) + NUGGET * torch.eye(size).double()
        root, failed = torch.linalg.cholesky_ex(covariance)
        if failed:
            return -torch.inf, torch.zeros(count, 1 + dim).double()
        flat = numbers.reshape(-1, 1)
        weights = torch.cholesky_solve(flat, root)[:, 0]
        scale = (flat[:, 0] @ weights / size).clamp(min=torch.finfo(flat.dtype).tiny)
        likelihood = -size / 2 * scale.log() - root.diagonal().log().sum()
        return float(likelihood), weights.reshape(count, 1 + dim)
