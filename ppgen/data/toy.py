"""Toy data sets: distributions in the plane with known modes, a standard first test of a generative model.

Each function draws n independent points x, float32 (n, 2), and the mode or class y, int64 (n,), of each point. U(a, b)
is the uniform distribution, N(0, s²) the normal distribution with standard deviation s. `noise` is the standard
deviation of the normal noise of each coordinate, unless stated otherwise. Angles are in radians. All functions raise
ValueError for a number below 1 or a negative standard deviation. (The moons and circles of scikit-learn are equally
spaced along their curves, not independent, which would bias a two-sample test.)
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator

Sample = tuple[np.ndarray, np.ndarray]  # x and y


def _generator(seed: int, **options: float) -> Generator:
    for name, value in options.items():
        least = 0 if name in ("noise", "sigma") else 1
        if not value >= least:
            raise ValueError(f"expected {name} >= {least}, got {value}")
    return np.random.default_rng(seed)


def _add_noise(center: np.ndarray, y: np.ndarray, noise: float, rng: Generator) -> Sample:
    return (center + noise * rng.standard_normal(center.shape)).astype(np.float32), y


def _circle(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def moons(n: int, *, noise: float = 0.05, seed: int = 0) -> Sample:
    """Two interleaved half circles: (cos a, sin a) and (1 - cos a, 1/2 - sin a), a ~ U(0, π).

    Example:
        >>> from ppgen import data
        >>> x, y = data.moons(100, seed=1)
        >>> x.shape, y.shape
        ((100, 2), (100,))
    """
    rng = _generator(seed, n=n, noise=noise)
    y = rng.integers(2, size=n)
    upper = _circle(rng.uniform(0, np.pi, n))
    return _add_noise(np.where(y[:, None] == 0, upper, [1, 0.5] - upper), y, noise, rng)


def rotated_moons(n: int, *, degrees: float = 35.0, noise: float = 0.05, seed: int = 0) -> Sample:
    """`moons` rotated counterclockwise about (1/2, 1/4), a target domain (https://arxiv.org/abs/1505.07818, 5.1)."""
    x, y = moons(n, noise=noise, seed=seed)
    (cos, sin), center = _circle(np.deg2rad(degrees)), np.array([0.5, 0.25])
    return (center + (x - center) @ np.array([[cos, sin], [-sin, cos]])).astype(np.float32), y


def rings(n: int, *, radii: Sequence[float] = (0.5, 1.0), noise: float = 0.03, seed: int = 0) -> Sample:
    """Concentric circles with equal probabilities; y indexes `radii`."""
    rng = _generator(seed, n=n, rings=len(radii), noise=noise)
    y = rng.integers(len(radii), size=n)
    angle = rng.uniform(0, 2 * np.pi, n)
    return _add_noise(np.asarray(radii)[y, None] * _circle(angle), y, noise, rng)


def gaussians_ring(n: int, *, modes: int = 8, radius: float = 1.0, sigma: float = 0.01, seed: int = 0) -> Sample:
    """Equal Gaussians N(μ_k, sigma² I) with μ_k = radius (cos 2πk/modes, sin 2πk/modes).

    The defaults are those of the 2-D ring of VEEGAN (Srivastava et al., https://arxiv.org/abs/1705.07761) and PacGAN
    (Lin et al., https://arxiv.org/abs/1712.04086), on which missed modes are counted.
    """
    rng = _generator(seed, n=n, modes=modes, sigma=sigma)
    y = rng.integers(modes, size=n)
    return _add_noise(radius * _circle(2 * np.pi * y / modes), y, sigma, rng)


def gaussians_grid(n: int, *, side: int = 5, spacing: float = 2.0, sigma: float = 0.05, seed: int = 0) -> Sample:
    """Equal Gaussians of standard deviation sigma on a side x side grid centered on the origin.

    With the defaults the means are {-4, -2, 0, 2, 4}², the 2-D grid of the same papers. Mode y = i side + j has the
    mean spacing (i - (side - 1)/2, j - (side - 1)/2).
    """
    rng = _generator(seed, n=n, side=side, sigma=sigma)
    y = rng.integers(side**2, size=n)
    cell = np.stack(np.divmod(y, side), axis=-1)
    return _add_noise(spacing * (cell - (side - 1) / 2), y, sigma, rng)


def swiss_roll(n: int, *, noise: float = 0.05, seed: int = 0) -> Sample:
    """A spiral t (cos t, sin t)/10 with t = π(3/2 + h), h ~ U(0, 3); y is the half turn, floor(h)."""
    rng = _generator(seed, n=n, noise=noise)
    half_turns = rng.uniform(0, 3, n)
    t = np.pi * (1.5 + half_turns)
    return _add_noise(t[:, None] * _circle(t) / 10, half_turns.astype(np.int64), noise, rng)


def checkerboard(n: int, *, cells: int = 4, noise: float = 0.0, seed: int = 0) -> Sample:
    """The uniform distribution on the black cells of a board of cells x cells squares of side 2 around the origin.

    A cell (i, j), counted from the lower left, is black if i + j is even; y numbers the black cells in row-major order.
    """
    rng = _generator(seed, n=n, cells=cells, noise=noise)
    i, j = np.indices((cells, cells)).reshape(2, -1)
    black = np.stack([i, j], axis=-1)[(i + j) % 2 == 0]
    y = rng.integers(len(black), size=n)
    return _add_noise(2 * (black[y] + rng.uniform(size=(n, 2))) - cells, y, noise, rng)


def pinwheel(n: int, *, arms: int = 5, noise: float = 0.1, seed: int = 0) -> Sample:
    """Twisted arms, as in Johnson et al., https://arxiv.org/abs/1603.06277.

    A point (r, s) with r ~ N(1, 0.3²) along the arm and s ~ N(0, noise²) across it is rotated by 2πy/arms + exp(r)/4.
    """
    rng = _generator(seed, n=n, arms=arms, noise=noise)
    y = rng.integers(arms, size=n)
    r, s = 1 + 0.3 * rng.standard_normal(n), noise * rng.standard_normal(n)
    c, d = _circle(2 * np.pi * y / arms + np.exp(r) / 4).T
    return np.stack([c * r - d * s, d * r + c * s], axis=-1).astype(np.float32), y


TOY: dict[str, Callable[..., Sample]] = {
    f.__name__: f
    for f in (moons, rotated_moons, rings, gaussians_ring, gaussians_grid, swiss_roll, checkerboard, pinwheel)
}
TOY["ring"], TOY["grid"] = gaussians_ring, gaussians_grid


def modes(source: str) -> tuple[np.ndarray, float] | None:
    """The modes of a toy data set that is a mixture of equal Gaussians.

    Args:
        source: the name of a data set.

    Returns:
        The means (K, 2) and the standard deviation; None for other data sets.
    """
    toy = TOY.get(source)
    if toy is gaussians_ring:
        return _circle(2 * np.pi * np.arange(8) / 8), 0.01
    if toy is gaussians_grid:
        cell = np.stack(np.divmod(np.arange(25), 5), axis=-1)
        return 2.0 * (cell - 2.0), 0.05
    return None
