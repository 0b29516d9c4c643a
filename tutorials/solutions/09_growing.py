"""Solutions of the exercises of "Can a generator learn small images first?"."""

from itertools import pairwise

import numpy as np
import torch
from scipy.ndimage import correlate1d
from torch.nn.functional import avg_pool2d, interpolate, relu

from ppgen import data
from ppgen.evaluation import laplacian_pyramid


def exercise_1() -> None:
    """At a = 0 the blend is the scale before, at a = 1 the next one."""
    small, large = torch.rand(5, 1, 4, 4), torch.rand(5, 1, 8, 8)
    up = interpolate(small, scale_factor=2, mode="nearest")
    torch.testing.assert_close(avg_pool2d(up, 2), small)
    torch.testing.assert_close(torch.lerp(up, large, 0.0), up)
    torch.testing.assert_close(torch.lerp(up, large, 1.0), large)
    steps = torch.stack([torch.lerp(up, large, float(a)) for a in torch.linspace(0, 1, 101)])
    assert steps.diff(dim=0).abs().max() <= (large - up).abs().max() / 100 + 1e-6


def mean_squares(scale: float) -> torch.Tensor:
    """Mean squares of eight ReLU layers with weights of variance scale / n."""
    widths = (256, 512, 128, 1024, 256, 512, 512, 256, 256)
    h, found = torch.randn(200, widths[0]), []
    for inputs, outputs in pairwise(widths):
        h = relu(h @ (torch.randn(inputs, outputs) * (scale / inputs) ** 0.5))
        found.append(h.square().mean())
    return torch.stack(found)


def exercise_2() -> None:
    """2 / n keeps the mean square; 1 / n halves it in each layer."""
    assert (mean_squares(2.0) - 1).abs().max() < 0.5
    assert mean_squares(1.0)[-1] < 2 * 0.5**8


def enlarged(g: np.ndarray) -> np.ndarray:
    """Zeros between rows and columns, and the filter (1, 4, 6, 4, 1) / 8 along both, with reflection at the borders."""
    h = np.zeros((*g.shape[:2], 2 * g.shape[2], 2 * g.shape[3]))
    h[..., ::2, ::2] = g
    for axis in (2, 3):
        h = correlate1d(h, np.array([1, 4, 6, 4, 1]) / 8, axis=axis, mode="mirror")
    return h


def exercise_3() -> None:
    """Each level is what enlarging the smaller image leaves out."""
    x = data.load("digits", form="unit").x[:20].astype(np.float64)
    fine, coarse = laplacian_pyramid(x)
    np.testing.assert_allclose(fine + enlarged(coarse), x, atol=1e-12)
    assert np.abs(fine).mean() < np.abs(coarse).mean()
