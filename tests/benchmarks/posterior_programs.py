"""Programs whose posteriors are known, exactly or by long runs of NUTS, each one text that is Pyro's and NumPyro's.

`programs` takes the names `pyro`, `dist` and `np` from either library and returns the programs by name; priors are those
of posteriordb or of Gelman & Hill's examples where these have the program, weak ones where they leave them flat. Tables
come from scikit-learn; what else is described as "like" some data was simulated, with a seed, at its sizes and scales.
Covariates stay in the units they came in: years, inches, cholesterol.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import pyro
import pyro.distributions
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor

Arrays = tuple[numpy.ndarray, ...]


def programs(pyro: Any, dist: Any, np: Any) -> dict[str, Callable[..., None]]:
    """The programs, written for ``(pyro, pyro.distributions, torch)`` or ``(numpyro, its distributions, jax.numpy)``."""
    parts = (conjugate, regressions, hierarchies, series, processes, shapes)
    return {program.__name__: program for part in parts for program in part(pyro, dist, np)}


def conjugate(pyro: Any, dist: Any, np: Any) -> list[Callable[..., None]]:
    def normal_mean(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 2.0), obs=y)

    def beta_binomial(y):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Binomial(TRIALS, p), obs=y)

    return [normal_mean, beta_binomial]


def regressions(pyro: Any, dist: Any, np: Any) -> list[Callable[..., None]]:
    def diabetes(x, y):
        a = pyro.sample("a", dist.Normal(0.0, 1000.0))
        b = pyro.sample("b", dist.Normal(0.0, 100.0).expand([10]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(a + x @ b, sigma), obs=y)

    def kidscore(mom_hs, mom_iq, score):
        b = pyro.sample("b", dist.Normal(0.0, 1000.0).expand([4]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        mean = b[..., 0] + b[..., 1] * mom_hs + b[..., 2] * mom_iq + b[..., 3] * mom_hs * mom_iq
        with pyro.plate("data", len(score)):
            pyro.sample("score", dist.Normal(mean, sigma), obs=score)

    def earnings(height, male, log_earn):
        a = pyro.sample("a", dist.Normal(0.0, 100.0))
        b_height = pyro.sample("b_height", dist.Normal(0.0, 10.0))
        b_male = pyro.sample("b_male", dist.Normal(0.0, 10.0))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        with pyro.plate("data", len(log_earn)):
            pyro.sample("log_earn", dist.Normal(a + b_height * height + b_male * male, sigma), obs=log_earn)

    def warming(year, temperature):
        a = pyro.sample("a", dist.Normal(0.0, 1000.0))
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        with pyro.plate("data", len(year)):
            pyro.sample("temperature", dist.Normal(a + b * year, sigma), obs=temperature)

    def cancer(x, benign):
        a = pyro.sample("a", dist.Normal(0.0, 100.0))
        b = pyro.sample("b", dist.Normal(0.0, 100.0).expand([4]).to_event(1))
        with pyro.plate("data", len(benign)):
            pyro.sample("benign", dist.Bernoulli(logits=a + x @ b), obs=benign)

    def roaches(before, treatment, senior, exposure, y):
        b = pyro.sample("b", dist.Normal(0.0, 5.0).expand([4]).to_event(1))
        log_rate = b[..., 0] + b[..., 1] * before + b[..., 2] * treatment + b[..., 3] * senior
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(exposure * np.exp(log_rate)), obs=y)

    def horseshoe(x, y):
        tau = pyro.sample("tau", dist.HalfCauchy(1.0))
        local = pyro.sample("local", dist.HalfCauchy(1.0).expand([HORSESHOE]).to_event(1))
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([HORSESHOE]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        beta = pyro.deterministic("beta", z * local * tau[..., None])
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    return [diabetes, kidscore, earnings, warming, cancer, roaches, horseshoe]


def hierarchies(pyro: Any, dist: Any, np: Any) -> list[Callable[..., None]]:
    def schools_centred(y, s):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("data", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, s), obs=y)

    def schools(y, s):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", mu + tau * z)
            pyro.sample("y", dist.Normal(theta, s), obs=y)

    def radon(floor, county, log_radon):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("counties", COUNTIES):
            a = pyro.sample("a", dist.Normal(mu, spread))
        with pyro.plate("data", len(log_radon)):
            pyro.sample("log_radon", dist.Normal(a[..., county] + slope * floor, sigma), obs=log_radon)

    return [schools_centred, schools, radon]


def series(pyro: Any, dist: Any, np: Any) -> list[Callable[..., None]]:
    def ar2(y):
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        b1 = pyro.sample("b1", dist.Normal(0.0, 10.0))
        b2 = pyro.sample("b2", dist.Normal(0.0, 10.0))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        with pyro.plate("data", len(y) - 2):
            pyro.sample("y", dist.Normal(a + b1 * y[1:-1] + b2 * y[:-2], sigma), obs=y[2:])

    def garch(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        floor = pyro.sample("floor", dist.HalfNormal(5.0))
        shares = pyro.sample(
            "shares", dist.Dirichlet(np.ones(3))
        )  # of the last shock, of the last variance, of neither
        shocks = (y - mu[..., None]) ** 2
        variances = [shocks.mean(-1)]
        for t in range(len(y) - 1):
            variances.append(floor + shares[..., 0] * shocks[..., t] + shares[..., 1] * variances[-1])
        scale = np.sqrt(np.stack(variances, -1))
        pyro.sample("y", dist.Normal(mu[..., None], scale).to_event(1), obs=y)

    return [ar2, garch]


def processes(pyro: Any, dist: Any, np: Any) -> list[Callable[..., None]]:
    def covariance(x):
        """Of a Gaussian process with posteriordb's priors, at the places x."""
        rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))[..., None, None]
        alpha = pyro.sample("alpha", dist.HalfNormal(2.0))[..., None, None]
        return alpha**2 * np.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)

    def gp(x, y):
        k = covariance(x)
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))[..., None, None]
        law = dist.MultivariateNormal(np.zeros_like(x), covariance_matrix=k + sigma**2 * np.eye(len(x)))
        pyro.sample("y", law, obs=y)

    def gp_poisson(x, y):
        root = np.linalg.cholesky(covariance(x) + 1e-4 * np.eye(len(x)))
        z = pyro.sample("z", dist.Normal(np.zeros_like(x), 1.0).to_event(1))
        f = pyro.deterministic("f", (root @ z[..., None])[..., 0])
        pyro.sample("y", dist.Poisson(np.exp(f)).to_event(1), obs=y)

    return [gp, gp_poisson]


def shapes(pyro: Any, dist: Any, np: Any) -> list[Callable[..., None]]:
    def mixture(y):
        share = pyro.sample("share", dist.Beta(5.0, 5.0))
        low = pyro.sample("low", dist.Normal(0.0, 2.0))
        gap = pyro.sample("gap", dist.HalfNormal(3.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
        parts = dist.Normal(np.stack([low, low + gap], -1), sigma)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(np.stack([share, 1 - share], -1)), parts), obs=y)

    def funnel():
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        with pyro.plate("xs", 9):
            pyro.sample("x", dist.Normal(0.0, np.exp(v / 2)))

    def banana():
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        pyro.sample("b", dist.Normal(0.03 * (a**2 - 100), 1.0))

    return [mixture, funnel, banana]


TRIALS, COUNTIES, HORSESHOE = 10, 40, 20
Draw = numpy.random.Generator


def make_normal_mean(rng: Draw) -> Arrays:
    return (rng.normal(3.0, 2.0, 20),)


def make_beta_binomial(rng: Draw) -> Arrays:
    return (rng.binomial(TRIALS, 0.15, 12),)


def make_diabetes(rng: Draw) -> Arrays:
    table = load_diabetes(scaled=False)
    return table.data, table.target


def make_kidscore(rng: Draw) -> Arrays:
    """Like the test scores of 434 children and whether the mother finished school, and her IQ."""
    hs, iq = rng.binomial(1, 0.79, 434), rng.normal(100.0, 15.0, 434)
    return hs, iq, rng.normal(-11.5 + 51.3 * hs + 1.1 * iq - 0.5 * hs * iq, 18.0)


def make_earnings(rng: Draw) -> Arrays:
    """Like the earnings of 1192 people, and their height in inches."""
    male = rng.binomial(1, 0.37, 1192)
    height = rng.normal(64.5 + 5.5 * male, 2.7).round()
    return height, male, rng.normal(8.15 + 0.021 * height + 0.42 * male, 0.88)


def make_warming(rng: Draw) -> Arrays:
    """Like 62 summers at Kilpisjarvi, against the calendar year: intercept and slope are nearly one."""
    year = numpy.arange(1952, 2014)
    return year, rng.normal(9.3 + 0.013 * (year - 1980), 1.1)


def make_cancer(rng: Draw) -> Arrays:
    """Mean radius, texture, smoothness and concavity of tumours: columns of scales 4, 4, .01 and .08."""
    table = load_breast_cancer()
    return table.data[:, [0, 1, 4, 6]], table.target


def make_roaches(rng: Draw) -> Arrays:
    """Like the cockroaches trapped in 262 flats: up to hundreds before, whether treated, for elderly people, days."""
    before, treatment = rng.gamma(0.4, 100.0, 262).round(2), rng.binomial(1, 0.6, 262)
    senior, exposure = rng.binomial(1, 0.3, 262), rng.uniform(0.2, 2.0, 262)
    return (
        before,
        treatment,
        senior,
        exposure,
        rng.poisson(exposure * numpy.exp(2.5 + 0.007 * before - 0.5 * treatment - 0.4 * senior)),
    )


def make_horseshoe(rng: Draw) -> Arrays:
    """100 rows of 20 covariates, of which three matter."""
    x = rng.standard_normal((100, HORSESHOE))
    return x, rng.normal(x[:, :3] @ numpy.array([3.0, -2.0, 1.0]), 1.0)


def make_schools(rng: Draw) -> Arrays:
    """Rubin 1981."""
    return numpy.array([28, 8, -3, 7, -1, 1, 18, 12]), numpy.array([15, 10, 16, 11, 9, 11, 10, 18])


def make_radon(rng: Draw) -> Arrays:
    """Like the radon measured in houses of Minnesota, on the first floor or in the basement; some counties have two."""
    sizes = 2 + rng.geometric(0.06, COUNTIES)
    county = numpy.repeat(numpy.arange(COUNTIES), sizes)
    floor = rng.binomial(1, 0.17, len(county))
    return floor, county, rng.normal(rng.normal(1.46, 0.33, COUNTIES)[county] - 0.69 * floor, 0.76)


def make_ar2(rng: Draw) -> Arrays:
    y = [0.0, 0.0]
    for shock in rng.normal(0.0, 0.5, 300):
        y.append(0.4 + 1.1 * y[-1] - 0.35 * y[-2] + shock)
    return (numpy.array(y[102:]),)


def make_garch(rng: Draw) -> Arrays:
    y, variance = [], 4.0
    for shock in rng.standard_normal(300):
        y.append(5.0 + variance**0.5 * shock)
        variance = 1.5 + 0.45 * (y[-1] - 5.0) ** 2 + 0.3 * variance
    return (numpy.array(y[100:]),)


def make_gp(rng: Draw) -> Arrays:
    return PLACES, rng.normal(curve(rng, 2.0), 0.5)


def make_gp_poisson(rng: Draw) -> Arrays:
    return PLACES, rng.poisson(numpy.exp(1.0 + curve(rng, 1.2)))


PLACES = numpy.arange(-10.0, 11.0, 2.0)


def curve(rng: Draw, size: float) -> numpy.ndarray:
    """A draw of a Gaussian process of length scale 6 at the places."""
    k = size**2 * numpy.exp(-0.5 * ((PLACES[:, None] - PLACES) / 6.0) ** 2)
    return rng.multivariate_normal(numpy.zeros(len(PLACES)), k)


def make_mixture(rng: Draw) -> Arrays:
    return (numpy.concatenate([rng.normal(-1.5, 1.0, 160), rng.normal(1.5, 0.6, 240)]),)


def make_nothing(rng: Draw) -> Arrays:
    return ()


@dataclass(frozen=True)
class Program:
    """A program with its data, and what is to be known of its posterior.

    Attributes:
        name: of the program, a key of `PROGRAMS`.
        model: the Pyro program, called as ``model(*data)``.
        data: float64 tensors, and integers where they index.
        judged: the sites whose posterior is judged; all latents if empty. Fewer where others have no finite moments.
        exact: mean and standard deviation of each judged site, where they have a formula.
        twin: the program that NUTS draws instead, with the same sites judged; this one if empty.
    """

    name: str
    model: Callable[..., None]
    data: tuple[Tensor, ...]
    judged: tuple[str, ...] = ()
    exact: Callable[..., dict[str, tuple[float, float]]] | None = None
    twin: str = ""


def exact_normal_mean(y: Tensor) -> dict[str, tuple[float, float]]:
    precision = len(y) / 2.0**2 + 1 / 10.0**2
    return {"mu": (float(y.sum()) / 2.0**2 / precision, precision**-0.5)}


def exact_beta_binomial(y: Tensor) -> dict[str, tuple[float, float]]:
    a, b = 1 + float(y.sum()), 1 + TRIALS * len(y) - float(y.sum())
    return {"p": (a / (a + b), math.sqrt(a * b / (a + b + 1)) / (a + b))}


def exact_funnel() -> dict[str, tuple[float, float]]:
    """Of v; x has variance e^4.5 and a kurtosis of 24,000, so that draws say little about its deviation."""
    return {"v": (0.0, 3.0)}


def exact_banana() -> dict[str, tuple[float, float]]:
    """The variance of a^2 is 2 * 10^4."""
    return {"a": (0.0, 10.0), "b": (0.0, math.sqrt(1 + 0.03**2 * 2e4))}


MAKE: dict[str, Callable[[Draw], Arrays]] = {
    "normal_mean": make_normal_mean,
    "beta_binomial": make_beta_binomial,
    "diabetes": make_diabetes,
    "kidscore": make_kidscore,
    "earnings": make_earnings,
    "warming": make_warming,
    "cancer": make_cancer,
    "roaches": make_roaches,
    "horseshoe": make_horseshoe,
    "schools_centred": make_schools,
    "schools": make_schools,
    "radon": make_radon,
    "ar2": make_ar2,
    "garch": make_garch,
    "gp": make_gp,
    "gp_poisson": make_gp_poisson,
    "mixture": make_mixture,
    "funnel": make_nothing,
    "banana": make_nothing,
}
# a half-Cauchy local scale has no finite variance, given data or not
ABOUT: dict[str, dict[str, Any]] = {
    "normal_mean": {"exact": exact_normal_mean},
    "beta_binomial": {"exact": exact_beta_binomial},
    "funnel": {"exact": exact_funnel, "judged": ("v",)},
    "banana": {"exact": exact_banana},
    "horseshoe": {"judged": ("beta", "sigma")},
    "schools_centred": {"judged": ("mu", "tau", "theta"), "twin": "schools"},
}


def tensors(arrays: Arrays, indices: tuple[int, ...] = ()) -> tuple[Tensor, ...]:
    kinds = (int if i in indices else float for i in range(len(arrays)))
    return tuple(torch.as_tensor(array.astype(kind)) for array, kind in zip(arrays, kinds, strict=True))


PROGRAMS: dict[str, Program] = {
    name: Program(
        name,
        model,
        tensors(MAKE[name](numpy.random.default_rng(0)), indices=(1,) if name == "radon" else ()),
        **ABOUT.get(name, {}),
    )
    for name, model in programs(pyro, pyro.distributions, torch).items()
}
