"""Data of the programs in posterior_programs.py, in their original units: years, inches, cholesterol.

Tables come from scikit-learn. Data that are described as "like" other data are simulated, with a seed, at the sizes and
scales of those data.
"""

from collections.abc import Callable

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes

TRIALS, COUNTIES, COLUMNS = 10, 40, 20
INPUTS = np.arange(-10.0, 11.0, 2.0)

Arrays = tuple[np.ndarray, ...]
Generator = np.random.Generator


def normal_mean(rng: Generator) -> Arrays:
    return (rng.normal(3.0, 2.0, 20),)


def beta_binomial(rng: Generator) -> Arrays:
    return (rng.binomial(TRIALS, 0.15, 12),)


def diabetes(rng: Generator) -> Arrays:
    table = load_diabetes(scaled=False)
    return table.data, table.target


def kidscore(rng: Generator) -> Arrays:
    """Like the test scores of 434 children, given whether the mother finished school, and her IQ."""
    hs, iq = rng.binomial(1, 0.79, 434), rng.normal(100.0, 15.0, 434)
    return hs, iq, rng.normal(-11.5 + 51.3 * hs + 1.1 * iq - 0.5 * hs * iq, 18.0)


def earnings(rng: Generator) -> Arrays:
    """Like the log earnings of 1192 people, given their height in inches and their sex."""
    male = rng.binomial(1, 0.37, 1192)
    height = rng.normal(64.5 + 5.5 * male, 2.7).round()
    return height, male, rng.normal(8.15 + 0.021 * height + 0.42 * male, 0.88)


def warming(rng: Generator) -> Arrays:
    """Like 62 summers in Lapland, given the calendar year: intercept and slope are almost perfectly correlated."""
    year = np.arange(1952, 2014)
    return year, rng.normal(9.3 + 0.013 * (year - 1980), 1.1)


def cancer(rng: Generator) -> Arrays:
    """Mean radius, texture, smoothness, concavity of tumors (standard deviations 3.5, 4.3, .014, .08); 1 if benign."""
    table = load_breast_cancer()
    return table.data[:, [0, 1, 4, 6]], table.target


def roaches(rng: Generator) -> Arrays:
    """Like the cockroaches trapped in 262 apartments: counts before, treatment, elderly residents, exposure time."""
    before, treatment = rng.gamma(0.4, 100.0, 262).round(2), rng.binomial(1, 0.6, 262)
    senior, exposure = rng.binomial(1, 0.3, 262), rng.uniform(0.2, 2.0, 262)
    rate = exposure * np.exp(2.5 + 0.007 * before - 0.5 * treatment - 0.4 * senior)
    return before, treatment, senior, exposure, rng.poisson(rate)


def horseshoe(rng: Generator) -> Arrays:
    """100 rows of 20 covariates, three of which have an effect."""
    x = rng.standard_normal((100, COLUMNS))
    return x, rng.normal(x[:, :3] @ np.array([3.0, -2.0, 1.0]), 1.0)


def schools(rng: Generator) -> Arrays:
    """Eight schools, Rubin 1981."""
    return np.array([28, 8, -3, 7, -1, 1, 18, 12]), np.array([15, 10, 16, 11, 9, 11, 10, 18])


def radon(rng: Generator) -> Arrays:
    """Like radon in houses of 40 counties, measured in the basement or on the first floor; some counties have few."""
    county = np.repeat(np.arange(COUNTIES), 2 + rng.geometric(0.06, COUNTIES))
    floor = rng.binomial(1, 0.17, len(county))
    return floor, county, rng.normal(rng.normal(1.46, 0.33, COUNTIES)[county] - 0.69 * floor, 0.76)


def ar2(rng: Generator) -> Arrays:
    y = [0.0, 0.0]
    for shock in rng.normal(0.0, 0.5, 300):
        y.append(0.4 + 1.1 * y[-1] - 0.35 * y[-2] + shock)
    return (np.array(y[102:]),)


def garch(rng: Generator) -> Arrays:
    y, variance = [], 4.0
    for shock in rng.standard_normal(300):
        y.append(5.0 + variance**0.5 * shock)
        variance = 1.5 + 0.45 * (y[-1] - 5.0) ** 2 + 0.3 * variance
    return (np.array(y[100:]),)


def gp(rng: Generator) -> Arrays:
    return INPUTS, rng.normal(curve(rng, 2.0), 0.5)


def gp_poisson(rng: Generator) -> Arrays:
    return INPUTS, rng.poisson(np.exp(1.0 + curve(rng, 1.2)))


def curve(rng: Generator, size: float) -> np.ndarray:
    """A draw of a Gaussian process of length scale 6 at `INPUTS`."""
    covariance = size**2 * np.exp(-0.5 * ((INPUTS[:, None] - INPUTS) / 6.0) ** 2)
    return rng.multivariate_normal(np.zeros(len(INPUTS)), covariance)


def mixture(rng: Generator) -> Arrays:
    return (np.concatenate([rng.normal(-1.5, 1.0, 160), rng.normal(1.5, 0.6, 240)]),)


def nothing(rng: Generator) -> Arrays:
    return ()


DATA: dict[str, Callable[[Generator], Arrays]] = {
    "normal_mean": normal_mean,
    "beta_binomial": beta_binomial,
    "diabetes": diabetes,
    "kidscore": kidscore,
    "earnings": earnings,
    "warming": warming,
    "cancer": cancer,
    "roaches": roaches,
    "horseshoe": horseshoe,
    "schools_centered": schools,
    "schools": schools,
    "radon": radon,
    "ar2": ar2,
    "garch": garch,
    "gp": gp,
    "gp_poisson": gp_poisson,
    "mixture": mixture,
    "funnel": nothing,
    "banana": nothing,
}


def data(name: str) -> Arrays:
    """The data of a program, the same in every call."""
    return DATA[name](np.random.default_rng(0))
