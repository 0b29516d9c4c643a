"""Metrics of distribution functions against SciPy and sums over rows, and their smoothed versions."""

import math

import pytest
import scipy.stats
import torch
from metrics.helpers import close, normal
from torch import Tensor

from ppgen.metrics import CramerVonMises, KolmogorovSmirnov

BOTH = pytest.mark.parametrize("cls", [KolmogorovSmirnov, CramerVonMises])


def with_ties(generator: torch.Generator, n: int) -> Tensor:
    return torch.randint(0, 6, (n,), generator=generator).double()


@pytest.mark.parametrize("sample", [normal, with_ties])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (9, 9), (13, 8)])
def test_kolmogorov_smirnov_is_that_of_scipy(sample, n, m, generator):
    x, y = sample(generator, n), sample(generator, m) + 1
    close(KolmogorovSmirnov()(x, y), scipy.stats.ks_2samp(x, y).statistic)


def test_cramer_von_mises_is_that_of_scipy(generator):
    x, y = normal(generator, 15), normal(generator, 15) + 1
    close(CramerVonMises()(x, y), scipy.stats.cramervonmises_2samp(x, y).statistic * 2 / 15)


@pytest.mark.parametrize("sample", [normal, with_ties])
def test_weighted_statistics_are_sums_over_rows(sample, generator):
    x, y = sample(generator, 11), sample(generator, 7) + 1
    p, q = torch.rand(2, 11, generator=generator).double()
    p[3] = 0
    p, q = p / p.sum(), q[:7] / q[:7].sum()

    def difference(t: Tensor) -> float:
        return (p[x <= t].sum() - q[y <= t].sum()).item()

    close(KolmogorovSmirnov()(x, y, p, q), max(abs(difference(t)) for t in torch.cat((x, y))))
    squares = sum(r * difference(t) ** 2 for t, r in zip(torch.cat((x, y)), torch.cat((p, q)) / 2, strict=True))
    close(CramerVonMises()(x, y, p, q), squares)


@BOTH
def test_the_mean_or_the_maximum_over_directions(cls, generator):
    x, y = normal(generator, 9, 3), normal(generator, 8, 3) + 1
    torch.manual_seed(1)
    theta = torch.nn.functional.normalize(torch.randn(20, 3), dim=1).double()
    lines = torch.stack([cls()(x @ t, y @ t) for t in theta])
    for over, expected in (("mean", lines.mean()), ("max", lines.max())):
        torch.manual_seed(1)
        close(cls(projections=20, over=over)(x, y), expected)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rows_are_equal_on_every_line(cls, dtype, generator):
    """Whatever the rounding errors of the projection."""
    x = (100 * normal(generator, 301, 37)).to(dtype)
    assert cls()(x, x[torch.randperm(301, generator=generator)]) < 1e-6
    assert cls()(x, x[:150].repeat(2, 1)) < 0.1


@BOTH
@pytest.mark.parametrize("apart", [1, 100])
def test_largest_value(cls, apart):
    """For separate distributions: 1, and 1/3, which is 1/3 + 1/(6 n^2) for n rows of equal weight each."""
    x = torch.linspace(0, 0.5, 10).double()
    close(cls()(x, x + apart), 1.0 if cls is KolmogorovSmirnov else 1 / 3 + 1 / 600)


@BOTH
def test_of_gaussians(cls):
    """For a shift by ``s``, ``sup = 2 Phi(s / 2) - 1``, and the integral is computed by quadrature."""
    z = torch.special.ndtri((torch.arange(1000).double() + 0.5) / 1000)
    expected = 2 * scipy.stats.norm.cdf(0.4) - 1
    if cls is CramerVonMises:
        t = torch.linspace(-8, 9, 20_001).double()
        f, g = scipy.stats.norm.cdf(t), scipy.stats.norm.cdf(t, 0.8)
        density = scipy.stats.norm.pdf(t) / 2 + scipy.stats.norm.pdf(t, 0.8) / 2
        expected = ((f - g) ** 2 * density).sum() * (t[1] - t[0]).item()
    close(cls()(z, z + 0.8), expected, 2e-3)
    # smoothing widens both distributions slightly, and decreases the value
    smooth = cls(temperature=0.1)(z, z + 0.8)
    assert 0.94 * expected < smooth < expected


@BOTH
def test_the_smoothed_value_converges_to_the_exact_one_with_half_steps(cls, generator):
    """At every temperature, a sigmoid has half of its height at its own row."""
    x, y, p = normal(generator, 20), normal(generator, 15) + 1, torch.rand(20, generator=generator).double()
    t, p = torch.cat((x, y)), p / p.sum()
    gap = torch.heaviside(t[:, None] - t, torch.tensor(0.5).double()) @ torch.cat((p, torch.full((15,), -1 / 15)))
    half = gap.abs().max() if cls is KolmogorovSmirnov else gap.square() @ torch.cat((p / 2, torch.full((15,), 1 / 30)))
    errors = [abs(cls(temperature=tau, points=5000)(x, y, p) - half) / half for tau in (1.0, 0.1, 1e-5)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


@BOTH
def test_the_smoothed_value_does_not_depend_on_the_scale(cls, generator):
    x, y = normal(generator, 9, 2), normal(generator, 8, 2) + 1
    values = []
    for scale in (1.0, 1e4):
        torch.manual_seed(0)
        values.append(cls(temperature=0.2)(scale * x, scale * y))
    close(values[1], values[0], 1e-10)


@BOTH
def test_the_smoothed_value_can_be_minimized(cls, generator):
    x, y = normal(generator, 60), 0.5 * normal(generator, 60) + 2
    metric, before = cls(temperature=0.2), cls()(x, y)
    affine = torch.tensor([1.0, 0.0]).double().requires_grad_()
    adam = torch.optim.Adam([affine], lr=0.05)
    for _ in range(150):
        adam.zero_grad()
        metric(affine[0] * x + affine[1], y).backward()
        adam.step()
    assert cls()(affine[0].detach() * x + affine[1].detach(), y) < 0.3 * before


@BOTH
def test_a_gradient_without_a_temperature_is_refused(cls):
    x, y = torch.zeros(3, 2, requires_grad=True), torch.ones(4, 2)
    for samples in ((x, y), (y, x)):
        with pytest.raises(
            ValueError, match=rf"{cls.__name__}: .*no gradient in the rows; smooth them with temperature=0.1"
        ):
            cls()(*samples)
    with torch.no_grad():
        assert cls()(x, y) > 0.1


def test_weights_have_a_gradient(generator):
    x, y, p = normal(generator, 5), normal(generator, 4) + 1, torch.rand(5, generator=generator).double()
    for cls in (KolmogorovSmirnov, CramerVonMises):
        assert torch.autograd.gradcheck(lambda p, cls=cls: cls()(x, y, p), (p.requires_grad_(),))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projections": 0}, "projections: expected an integer of at least 1, got 0"),
        ({"points": 0}, "points: .*got 0"),
        ({"over": "sum"}, "over: expected 'mean' or 'max', got 'sum'"),
        ({"temperature": 0.0}, "temperature: expected None or a positive number, got 0.0"),
        ({"temperature": math.nan}, "temperature: .*got nan"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        KolmogorovSmirnov(**options)
