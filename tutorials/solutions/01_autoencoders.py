"""Solutions of the exercises of "Can one draw from an autoencoder?"."""

import math

import torch

from ppgen import data
from ppgen import metrics as m


def exercise_1() -> None:
    """The best linear code of 8 numbers is the principal components, and its error the remaining eigenvalues."""
    x = torch.as_tensor(data.load("digits").train.x).flatten(1).double()
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))  # in ascending order

    def error(directions):  # of the orthogonal projection onto their span
        basis, _ = torch.linalg.qr(directions)
        return float((x - x @ basis @ basis.T).square().sum(1).mean())

    best = error(vectors[:, -8:])
    assert math.isclose(best, float(values[:-8].sum()), rel_tol=1e-9)
    assert all(error(torch.randn(64, 8, dtype=torch.double)) > best for _ in range(20))


def exercise_2() -> None:
    """The mean of a Gaussian kernel over a Gaussian difference is a Gaussian integral.

    x - x' is N(0, 2 I) and x - y is N(-mu, 2 I). For u of N(a, 2 I), E exp(-|u|^2 / 2h^2) is (h^2 / (h^2 + 2))^(d/2)
    exp(-|a|^2 / (2 h^2 + 4)).
    """
    d, h, n = 3, 2.0, 4000
    mu = torch.tensor([1.0, 0.5, -0.5])
    expected = 2 * (h**2 / (h**2 + 2)) ** (d / 2) * (1 - math.exp(-float(mu @ mu) / (2 * h**2 + 4)))
    found = float(m.MMD(bandwidth=h, scales=(1,))(torch.randn(n, d), mu + torch.randn(n, d)))
    assert abs(found - expected) < 0.02


def exercise_3() -> None:
    """A row beside itself has the kernel 1, which is more than that of two rows: by (1 - E k(x, x')) / n a sample."""
    d, h, n, repeats = 2, 1.0, 20, 2000
    x, y = torch.randn(2, repeats, n, d).double()

    def kernel(a, b):
        return torch.exp(-torch.cdist(a, b).square() / (2 * h**2))

    with_pairs_of_one = kernel(x, x).mean((1, 2)) - 2 * kernel(x, y).mean((1, 2)) + kernel(y, y).mean((1, 2))
    excess = 2 * (1 - (h**2 / (h**2 + 2)) ** (d / 2)) / n
    error = with_pairs_of_one.std() / repeats**0.5
    assert abs(with_pairs_of_one.mean() - excess) < 4 * error
