"""Programs whose posteriors are known, exactly or by long runs of NUTS. One text serves Pyro and NumPyro.

`programs` has the arguments `pyro`, `dist` and `np`, the modules of either library, and returns its programs by name.
Priors are those of posteriordb or of Gelman & Hill's examples, where these have the program, and weak priors where
theirs are flat. `PROGRAMS` has the Pyro programs, with their data (posterior_data.py) and what is known of their
posteriors.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro
import pyro.distributions
import torch
from posterior_data import COLUMNS, COUNTIES, DATA, TRIALS, data
from posterior_gibbs import moments as horseshoe_moments
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor


def programs(pyro: Any, dist: Any, np: Any) -> dict[str, Callable[..., None]]:
    """The programs of ``(pyro, pyro.distributions, torch)`` or of ``(numpyro, numpyro.distributions, jax.numpy)``."""
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
        local = pyro.sample("local", dist.HalfCauchy(1.0).expand([COLUMNS]).to_event(1))
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([COLUMNS]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        beta = pyro.deterministic("beta", z * local * tau[..., None])
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    def horseshoe_mixed(x, y):
        """The half-Cauchy priors as mixtures of half-normal distributions, whose tails NUTS explores better."""
        tau = pyro.deterministic(
            "tau", pyro.sample("tau_a", dist.HalfNormal(1.0)) * pyro.sample("tau_b", dist.InverseGamma(0.5, 0.5)) ** 0.5
        )
        a = pyro.sample("local_a", dist.HalfNormal(1.0).expand([COLUMNS]).to_event(1))
        b = pyro.sample("local_b", dist.InverseGamma(0.5, 0.5).expand([COLUMNS]).to_event(1))
        local = pyro.deterministic("local", a * b**0.5)
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([COLUMNS]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        beta = pyro.deterministic("beta", z * local * tau[..., None])
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    return [diabetes, kidscore, earnings, warming, cancer, roaches, horseshoe, horseshoe_mixed]


def hierarchies(pyro: Any, dist: Any, np: Any) -> list[Callable[..., None]]:
    def schools_centered(y, s):
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

    return [schools_centered, schools, radon]


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
        # the weights of the last shock, of the last variance, and of neither
        shares = pyro.sample("shares", dist.Dirichlet(np.ones(3)))
        shocks = (y - mu[..., None]) ** 2
        variances = [shocks.mean(-1)]
        for t in range(len(y) - 1):
            variances.append(floor + shares[..., 0] * shocks[..., t] + shares[..., 1] * variances[-1])
        scale = np.sqrt(np.stack(variances, -1))
        pyro.sample("y", dist.Normal(mu[..., None], scale).to_event(1), obs=y)

    def garch_at_once(y):
        """The recursion in steps of doubling length, since XLA takes minutes to compile a loop of 200 iterations."""
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        floor = pyro.sample("floor", dist.HalfNormal(5.0))
        shares = pyro.sample("shares", dist.Dirichlet(np.ones(3)))
        shocks, factor = (y - mu) ** 2, shares[1]
        variances = np.concatenate([shocks.mean() * np.ones(1), floor + shares[0] * shocks[:-1]])
        for step in (2**i for i in range((len(y) - 1).bit_length())):
            variances = np.concatenate([variances[:step], variances[step:] + factor * variances[:-step]])
            factor = factor**2
        pyro.sample("y", dist.Normal(mu, np.sqrt(variances)).to_event(1), obs=y)

    return [ar2, garch, garch_at_once]


def processes(pyro: Any, dist: Any, np: Any) -> list[Callable[..., None]]:
    def covariance(x):
        """The covariance of a Gaussian process at the inputs x, with posteriordb's priors."""
        rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))[..., None, None]
        alpha = pyro.sample("alpha", dist.HalfNormal(2.0))[..., None, None]
        return alpha**2 * np.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)

    def gp(x, y):
        k = covariance(x)
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))[..., None, None]
        distribution = dist.MultivariateNormal(np.zeros_like(x), covariance_matrix=k + sigma**2 * np.eye(len(x)))
        pyro.sample("y", distribution, obs=y)

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


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """Sets torch's default dtype, which programs use for plain numbers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True)
class Program:
    """A program with its data, and what is known of its posterior.

    Attributes:
        name: The name of the program, a key of `PROGRAMS`.
        model: The Pyro program, called as ``model(*data)``.
        data: Tensors of float64, or of integers if they are indices.
        evaluated: The sites whose posterior is compared; all latents if empty.
        exact: Returns the mean and standard deviation of each of these sites given the data, by a formula or a special
            sampler; None if NUTS is the reference.
        nuts_program: The program that NUTS runs, which has the same posterior and all sites of this one; this program
            if empty.
    """

    name: str
    model: Callable[..., None]
    data: tuple[Tensor, ...]
    evaluated: tuple[str, ...] = ()
    exact: Callable[..., Mapping[str, tuple[Any, Any]]] | None = None
    nuts_program: str = ""

    @cached_property
    def latents(self) -> tuple[str, ...]:
        with default_type(torch.float64):
            trace = prune_subsample_sites(poutine.trace(self.model).get_trace(*self.data))
        return tuple(trace.stochastic_nodes)

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the sites that are compared."""
        return self.evaluated or self.latents


def exact_normal_mean(y: Tensor) -> dict[str, tuple[float, float]]:
    precision = len(y) / 2.0**2 + 1 / 10.0**2
    return {"mu": (float(y.sum()) / 2.0**2 / precision, precision**-0.5)}


def exact_beta_binomial(y: Tensor) -> dict[str, tuple[float, float]]:
    a, b = 1 + float(y.sum()), 1 + TRIALS * len(y) - float(y.sum())
    return {"p": (a / (a + b), math.sqrt(a * b / (a + b + 1)) / (a + b))}


KNOWN: dict[str, dict[str, Any]] = {
    "normal_mean": {"exact": exact_normal_mean},
    "beta_binomial": {"exact": exact_beta_binomial},
    # x has a kurtosis of 24,000: no feasible number of draws estimates its standard deviation
    "funnel": {"evaluated": ("v",), "exact": lambda: {"v": (0.0, 3.0)}},
    "banana": {"exact": lambda: {"a": (0.0, 10.0), "b": (0.0, math.sqrt(1 + 0.03**2 * 2 * 10.0**4))}},
    # without "local", whose posterior has no finite variance
    "horseshoe": {
        "evaluated": ("tau", "z", "sigma", "beta"),
        "nuts_program": "horseshoe_mixed",
        "exact": horseshoe_moments,
    },
    "garch": {"nuts_program": "garch_at_once"},
    "schools_centered": {"evaluated": ("mu", "tau", "theta"), "nuts_program": "schools"},
}
INDICES = {("radon", 1)}  # arguments that stay integers; Pyro's distributions score floats


def tensors(name: str) -> tuple[Tensor, ...]:
    """The data of a program as tensors."""
    dtypes = (int if (name, i) in INDICES else float for i in range(len(data(name))))
    return tuple(torch.as_tensor(part.astype(dtype)) for part, dtype in zip(data(name), dtypes, strict=True))


PROGRAMS: dict[str, Program] = {
    name: Program(name, model, tensors(name), **KNOWN.get(name, {}))
    for name, model in programs(pyro, pyro.distributions, torch).items()
    if name in DATA
}
