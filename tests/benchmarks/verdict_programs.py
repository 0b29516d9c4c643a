"""Small programs with posteriors that a guide may miss, and easy ones, for verdicts.py.

Each function takes NumPy's generator, from which data are drawn, and returns a program without arguments whose one to
three latents a grid can integrate out. `CHOSEN` were in view when the checks of the verdict were made, `REPORTED` were
not.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch.distributions import biject_to
from torch.distributions.constraints import MixtureSameFamilyConstraint

T = torch.tensor


@biject_to.register(MixtureSameFamilyConstraint)  # torch has no map for the support of a mixture
def _(constraint):
    return biject_to(constraint.base_constraint)


def mixture(ws, locs, scales, kind=dist.Normal):
    return dist.MixtureSameFamily(dist.Categorical(T(ws)), kind(T(locs), T(scales)))


def jittered(rng, values, s=0.1):
    return T([float(v) + s * rng.standard_normal() for v in values])


def observe(name, d, y):
    with pyro.plate("data", len(y)):
        pyro.sample(name, d, obs=y)


def cauchy_groups(rng):
    y = jittered(rng, [-8, -7.5, -8.4, 8, 7.6])

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 100.0))
        observe("y", dist.Cauchy(mu, 1.0), y)

    return model


def one_datum_scale(rng):
    y = jittered(rng, [0.3])

    def model():
        s = pyro.sample("s", dist.HalfCauchy(1.0))
        observe("y", dist.Normal(0.0, s), y)

    return model


def coin_0_of_3(rng):
    def model():
        p = pyro.sample("p", dist.Beta(0.5, 0.5))
        observe("y", dist.Bernoulli(p), torch.zeros(3))

    return model


def uniform_bound(rng):
    y = jittered(rng, [-0.2, -0.3, 0.1])

    def model():
        b = pyro.sample("b", dist.Uniform(0.0, 1.0))
        observe("y", dist.Normal(b, 0.3), y)

    return model


def two_scale_prior(rng):
    y = jittered(rng, [2.0], 0.5)

    def model():
        z = pyro.sample("z", mixture([0.9, 0.1], [0.0, 0.0], [0.1, 10.0]))
        observe("y", dist.Normal(z, 5.0), y)

    return model


def square(rng):
    y = jittered(rng, [4.0])

    def model():
        b = pyro.sample("b", dist.Normal(0.5, 2.0))
        observe("y", dist.Normal(b**2, 0.1), y)

    return model


def three_modes(rng):
    far = 25 + rng.standard_normal()

    def model():
        pyro.sample("x", mixture([0.45, 0.4, 0.15], [-3.0, 3.0, far], [0.5, 0.5, 1.0]))

    return model


def t1_weak(rng):
    y = jittered(rng, [3.0], 1.0)

    def model():
        x = pyro.sample("x", dist.StudentT(1.0, 0.0, 1.0))
        observe("y", dist.Normal(x, 10.0), y)

    return model


def funnel_datum(rng):
    y = jittered(rng, [2.0], 0.3)

    def model():
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        x = pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))
        observe("y", dist.Normal(x, 1.0), y)

    return model


def tau_two_groups(rng):
    y = jittered(rng, [0.3, -0.3])

    def model():
        tau = pyro.sample("tau", dist.HalfCauchy(1.0))
        with pyro.plate("g", 2):
            th = pyro.sample("th", dist.Normal(0.0, tau))
            pyro.sample("y", dist.Normal(th, 1.0), obs=y)

    return model


def label_switch(rng):
    y = jittered(rng, [-2, -2.3, -1.8, -2.1, 2, 2.2, 1.7, 2.1])

    def model():
        with pyro.plate("k", 2):
            m = pyro.sample("m", dist.Normal(0.0, 5.0))
        observe("y", dist.MixtureSameFamily(dist.Categorical(T([0.5, 0.5])), dist.Normal(m, 1.0)), y)

    return model


def label_unequal(rng):
    y = jittered(rng, [-2, -2.3, -1.8, 2, 2.2, 1.7, 2.1])

    def model():
        with pyro.plate("k", 2):
            m = pyro.sample("m", dist.Normal(0.0, 5.0))
        observe("y", dist.MixtureSameFamily(dist.Categorical(T([0.6, 0.4])), dist.Normal(m, 1.0)), y)

    return model


def ridge(rng):
    y = jittered(rng, [1.0, 1.1])

    def model():
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        observe("y", dist.Normal(a + b, 0.3), y)

    return model


def product_ridge(rng):
    y = jittered(rng, [4.0])

    def model():
        a = pyro.sample("a", dist.Normal(0.0, 3.0))
        b = pyro.sample("b", dist.Normal(0.0, 3.0))
        observe("y", dist.Normal(a * b, 0.5), y)

    return model


def spike_slab(rng):
    y = jittered(rng, [1.0], 0.2)

    def model():
        b = pyro.sample("b", mixture([0.5, 0.5], [0.0, 0.0], [0.05, 3.0]))
        observe("y", dist.Normal(b, 0.5), y)

    return model


def changepoint(rng):
    y = jittered(rng, [0.0, 0.5, -0.3, 0.2, 1.0, 1.2, 0.6, 1.5], 0.3)

    def model():
        t = pyro.sample("t", dist.Uniform(0.0, 8.0))
        i = torch.arange(8.0)
        observe("y", dist.Normal(torch.where(i < t, 0.0, 1.0), 0.7), y)

    return model


def narrow_in_wide(rng):
    at = 2 + 0.2 * rng.standard_normal()

    def model():
        pyro.sample("x", mixture([0.8, 0.2], [0.0, at], [1.0, 0.02]))

    return model


def wide_tail(rng):
    w = 0.1 + 0.03 * rng.uniform()

    def model():
        pyro.sample("x", mixture([1 - w, w], [0.0, 0.0], [1.0, 20.0]))

    return model


def separation(rng):
    x = jittered(rng, [-1, -0.5, 0.5, 1], 0.1)
    y = T([0.0, 0.0, 1.0, 1.0])

    def model():
        b = pyro.sample("b", dist.Cauchy(0.0, 2.5))
        observe("y", dist.Bernoulli(logits=b * x), y)

    return model


def gamma_small_shape(rng):
    def model():
        lam = pyro.sample("lam", dist.Gamma(0.1, 1.0))
        observe("y", dist.Poisson(lam), T([0.0]))

    return model


def lognormal_rate(rng):
    y = jittered(rng, [2.0], 0.2)

    def model():
        lam = pyro.sample("lam", dist.LogNormal(0.0, 3.0))
        observe("y", dist.Exponential(lam), y)

    return model


def dof(rng):
    y = jittered(rng, [0.3, -1.2, 0.8, 4.0, -0.5], 0.2)

    def model():
        nu = pyro.sample("nu", dist.Exponential(0.1))
        observe("y", dist.StudentT(nu, 0.0, 1.0), y)

    return model


def ring(rng):
    y = jittered(rng, [3.0])

    def model():
        a = pyro.sample("a", dist.Normal(0.5, 3.0))
        b = pyro.sample("b", dist.Normal(0.0, 3.0))
        observe("y", dist.Normal((a * a + b * b).sqrt(), 0.3), y)

    return model


def frequency(rng):
    t = T([0.3, 0.9, 1.4, 2.2, 3.1, 4.4])
    y = torch.sin(2.3 * t) + jittered(rng, [0.0] * 6, 0.5)

    def model():
        w = pyro.sample("w", dist.Uniform(0.0, 8.0))
        observe("y", dist.Normal(torch.sin(w * t), 0.7), y)

    return model


def discrete_shift(rng):
    y = jittered(rng, [4.0], 0.5)

    def model():
        k = pyro.sample("k", dist.Bernoulli(0.3))
        mu = pyro.sample("mu", dist.Normal(8.0 * k, 1.0))
        observe("y", dist.Normal(mu, 4.0), y)

    return model


def normal_n2(rng):
    y = jittered(rng, [1.0, 2.0], 0.3)

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 100.0))
        s = pyro.sample("s", dist.HalfCauchy(10.0))
        observe("y", dist.Normal(mu, s), y)

    return model


def far_2d(rng):
    c = T([[0.0, 0.0], [30.0 + rng.standard_normal(), -20.0]])
    s = T([[1.0, 1.0], [0.5, 3.0]])

    def model():
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(T([0.85, 0.15])), dist.Normal(c, s).to_event(1)))

    return model


def outlier_location(rng):
    y = jittered(rng, [0.0, 0.4, 12.0], 0.2)

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 20.0))
        observe("y", dist.StudentT(2.0, mu, 1.0), y)

    return model


def exp_prior_vague(rng):
    y = jittered(rng, [0.5], 0.5)

    def model():
        r = pyro.sample("r", dist.Exponential(1.0))
        observe("y", dist.Normal(r, 5.0), y)

    return model


def gamma_two(rng):
    y = T([0.7, 2.1]) * math.exp(0.1 * rng.standard_normal())

    def model():
        a = pyro.sample("a", dist.HalfCauchy(1.0))
        b = pyro.sample("b", dist.HalfCauchy(1.0))
        observe("y", dist.Gamma(a, b), y)

    return model


# easy ones
def normal_mean(rng):
    y = T(rng.standard_normal(20)).float()

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        observe("y", dist.Normal(mu, 1.0), y)

    return model


def normal_both(rng):
    y = T(rng.standard_normal(30)).float()

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        s = pyro.sample("s", dist.HalfNormal(5.0))
        observe("y", dist.Normal(mu, s), y)

    return model


def coin_many(rng):
    y = T((rng.uniform(size=40) < 0.3).astype("float32"))

    def model():
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        observe("y", dist.Bernoulli(p), y)

    return model


def logistic(rng):
    x = T(rng.standard_normal(40)).float()
    y = T((rng.uniform(size=40) < 1 / (1 + np.exp(-1 * x.numpy()))).astype("float32"))

    def model():
        a = pyro.sample("a", dist.Normal(0.0, 2.0))
        b = pyro.sample("b", dist.Normal(0.0, 2.0))
        observe("y", dist.Bernoulli(logits=a + b * x), y)

    return model


def poisson_rate(rng):
    y = T(rng.poisson(3.0, 15)).float()

    def model():
        r = pyro.sample("r", dist.Gamma(1.0, 1.0))
        observe("y", dist.Poisson(r), y)

    return model


def cauchy_three(rng):
    y = jittered(rng, [-20, -19, 0, 0.5, 15, 16, 15.5], 0.3)

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 50.0))
        observe("y", dist.Cauchy(mu, 1.0), y)

    return model


def two_data_scale(rng):
    y = jittered(rng, [0.01, 2.0], 0.01)

    def model():
        s = pyro.sample("s", dist.HalfCauchy(5.0))
        observe("y", dist.Normal(0.0, s), y)

    return model


def coin_1_of_1(rng):
    n = 1 + int(rng.integers(0, 2))

    def model():
        p = pyro.sample("p", dist.Beta(0.3, 0.3))
        observe("y", dist.Bernoulli(p), torch.ones(n))

    return model


def rate_zero(rng):
    n = 2 + int(rng.integers(0, 3))

    def model():
        r = pyro.sample("r", dist.Uniform(0.0, 5.0))
        observe("y", dist.Poisson(r), torch.zeros(n))

    return model


def laplace_two_scale(rng):
    y = jittered(rng, [3.0], 0.5)

    def model():
        z = pyro.sample("z", mixture([0.9, 0.1], [0.0, 0.0], [0.05, 5.0], dist.Laplace))
        observe("y", dist.Normal(z, 4.0), y)

    return model


def absolute(rng):
    y = jittered(rng, [2.0], 0.2)

    def model():
        b = pyro.sample("b", dist.Normal(0.5, 1.0))
        observe("y", dist.Normal(b.abs(), 0.2), y)

    return model


def five_modes(rng):
    far = -18 + rng.standard_normal()

    def model():
        pyro.sample("x", mixture([0.3, 0.25, 0.2, 0.13, 0.12], [-6.0, 0.0, 5.0, far, 40.0], [0.5, 0.3, 0.8, 1.0, 0.5]))

    return model


def cauchy_prior_pair(rng):
    y = jittered(rng, [5.0], 0.5)

    def model():
        a = pyro.sample("a", dist.Cauchy(0.0, 1.0))
        b = pyro.sample("b", dist.Cauchy(0.0, 1.0))
        observe("y", dist.Normal(a + b, 1.0), y)

    return model


def funnel_free(rng):
    s = 2.5 + 0.5 * rng.uniform()

    def model():
        v = pyro.sample("v", dist.Normal(0.0, s))
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))

    return model


def groups_two(rng):
    y = jittered(rng, [5.0, -3.0], 0.5)

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfNormal(5.0))
        th = pyro.sample("th", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(th, 4.0), obs=y[0])
        pyro.sample("y2", dist.Normal(mu, (tau**2 + 16.0).sqrt()), obs=y[1])

    return model


def mixture_share(rng):
    y = jittered(rng, [-1.5, -1.2, -1.8, 1.4, 1.6], 0.2)

    def model():
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        a = pyro.sample("a", dist.Normal(0.0, 3.0))
        b = pyro.sample("b", dist.Normal(0.0, 3.0))
        observe(
            "y",
            dist.MixtureSameFamily(
                dist.Categorical(torch.stack([p, 1 - p], -1)), dist.Normal(torch.stack([a, b], -1), 0.7)
            ),
            y,
        )

    return model


def horseshoe_one(rng):
    y = jittered(rng, [2.0], 0.5)

    def model():
        lam = pyro.sample("lam", dist.HalfCauchy(1.0))
        b = pyro.sample("b", dist.Normal(0.0, lam))
        observe("y", dist.Normal(b, 1.0), y)

    return model


def ridge_positive(rng):
    y = jittered(rng, [1.0], 0.1)

    def model():
        a = pyro.sample("a", dist.Exponential(1.0))
        b = pyro.sample("b", dist.Exponential(1.0))
        observe("y", dist.Normal(a + b, 0.1), y)

    return model


def ratio(rng):
    y = jittered(rng, [2.0], 0.2)

    def model():
        a = pyro.sample("a", dist.Gamma(1.0, 0.5))
        b = pyro.sample("b", dist.Gamma(1.0, 0.5))
        observe("y", dist.Normal(a / b, 0.3), y)

    return model


def spike_slab_pair(rng):
    y = jittered(rng, [1.2, 0.8], 0.2)

    def model():
        a = pyro.sample("a", mixture([0.6, 0.4], [0.0, 0.0], [0.05, 2.0]))
        b = pyro.sample("b", mixture([0.6, 0.4], [0.0, 0.0], [0.05, 2.0]))
        pyro.sample("y", dist.Normal(a + 0.9 * b, 0.4), obs=y[0])
        pyro.sample("w", dist.Normal(a + b, 0.4), obs=y[1])

    return model


def changepoint_smooth(rng):
    y = jittered(rng, [0.0, 0.5, -0.3, 1.2, 0.1, 1.0, 1.2, -0.2, 1.5, 1.1], 0.3)

    def model():
        t = pyro.sample("t", dist.Uniform(0.0, 10.0))
        h = pyro.sample("h", dist.Normal(0.0, 2.0))
        i = torch.arange(10.0)
        observe("y", dist.Normal(h * torch.sigmoid(4 * (i - t)), 0.7), y)

    return model


def spike_2d(rng):
    c = T([[0.0, 0.0], [1.0 + 0.2 * rng.standard_normal(), 1.0]])
    s = T([[1.0, 1.0], [0.02, 0.02]])

    def model():
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(T([0.8, 0.2])), dist.Normal(c, s).to_event(1)))

    return model


def contaminated(rng):
    y = jittered(rng, [0.0, 0.5, 8.0], 0.3)

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 20.0))
        observe(
            "y",
            dist.MixtureSameFamily(
                dist.Categorical(T([0.9, 0.1])), dist.Normal(torch.stack([mu, mu], -1), T([1.0, 10.0]))
            ),
            y,
        )

    return model


def probit_separated(rng):
    x = jittered(rng, [-1, -0.7, 0.6, 1.3], 0.1)
    y = T([0.0, 0.0, 1.0, 1.0])

    def model():
        a = pyro.sample("a", dist.StudentT(3.0, 0.0, 2.0))
        b = pyro.sample("b", dist.StudentT(3.0, 0.0, 5.0))
        observe("y", dist.Bernoulli(dist.Normal(0.0, 1.0).cdf(a + b * x).clamp(1e-6, 1 - 1e-6)), y)

    return model


def dirichlet_small(rng):
    k = int(rng.integers(0, 3))

    def model():
        p = pyro.sample("p", dist.Dirichlet(T([0.3, 0.3, 0.3])))
        pyro.sample("y", dist.Categorical(p), obs=T(k))

    return model


def weibull(rng):
    y = T([0.5, 1.4]) * math.exp(0.2 * rng.standard_normal())

    def model():
        k = pyro.sample("k", dist.HalfCauchy(2.0))
        scale = pyro.sample("l", dist.HalfCauchy(2.0))
        observe("y", dist.Weibull(scale, k), y)

    return model


def dispersion(rng):
    y = T(rng.poisson(4.0, 5)).float()

    def model():
        m = pyro.sample("m", dist.LogNormal(1.0, 1.0))
        phi = pyro.sample("phi", dist.HalfNormal(50.0))
        observe("y", dist.GammaPoisson(phi, phi / m), y)

    return model


def banana(rng):
    y = jittered(rng, [1.0, 1.2], 0.1)

    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        observe("y", dist.Normal(b + a**2, 0.3), y)

    return model


def ar1(rng):
    e = rng.standard_normal(12)
    x = np.cumsum(e)
    y = T(x).float()

    def model():
        r = pyro.sample("r", dist.Uniform(-1.0, 1.0))
        observe("y", dist.Normal(r * y[:-1], 1.0), y[1:])

    return model


def discrete_three(rng):
    y = jittered(rng, [2.0], 0.3)

    def model():
        k = pyro.sample("k", dist.Categorical(T([0.5, 0.3, 0.2])))
        c = T([0.0, 6.0, 20.0])
        mu = pyro.sample("mu", dist.Normal(c[k], T([1.0, 0.5, 2.0])[k]))
        pyro.sample("y", dist.Normal(mu, 12.0), obs=y[0])

    return model


def variance_n3(rng):
    y = jittered(rng, [0.8, 1.0, 1.5], 0.1)

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        v = pyro.sample("v", dist.InverseGamma(0.01, 0.01))
        observe("y", dist.Normal(mu, v.sqrt()), y)

    return model


def far_2d_wide(rng):
    c = T([[0.0, 0.0], [-15.0, 12.0 + rng.standard_normal()]])
    s = T([[0.5, 2.0], [3.0, 3.0]])

    def model():
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(T([0.8, 0.2])), dist.Normal(c, s).to_event(1)))

    return model


def wide_tail_2d(rng):
    w = 0.05 + 0.1 * rng.uniform()

    def model():
        pyro.sample(
            "x",
            dist.MixtureSameFamily(
                dist.Categorical(T([1 - w, w])),
                dist.Normal(T([[0.0, 0.0], [0.0, 0.0]]), T([[1.0, 1.0], [12.0, 12.0]])).to_event(1),
            ),
        )

    return model


def two_lengths(rng):
    y = jittered(rng, [0.0, 10.0], 0.2)

    def model():
        mu = pyro.sample("mu", dist.StudentT(2.0, 0.0, 1.0))
        observe("y", dist.StudentT(2.0, mu, 1.0), y)

    return model


def halfcauchy_rate(rng):
    y = T([5.0, 0.2]) * math.exp(0.1 * rng.standard_normal())

    def model():
        r = pyro.sample("r", dist.HalfCauchy(1.0))
        observe("y", dist.Exponential(r), y)

    return model


# easy ones
def gamma_scale(rng):
    y = T(rng.gamma(2.0, 1.0, 25)).float()

    def model():
        r = pyro.sample("r", dist.Gamma(2.0, 1.0))
        observe("y", dist.Gamma(2.0, r), y)

    return model


def regression(rng):
    x = T(rng.standard_normal(30)).float()
    y = 1 + 0.5 * x + T(rng.standard_normal(30)).float()

    def model():
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        observe("y", dist.Normal(a + b * x, 1.0), y)

    return model


def poisson_regression(rng):
    x = T(rng.standard_normal(30)).float()
    y = T(rng.poisson(np.exp(0.5 + 0.4 * x.numpy()))).float()

    def model():
        a = pyro.sample("a", dist.Normal(0.0, 3.0))
        b = pyro.sample("b", dist.Normal(0.0, 3.0))
        observe("y", dist.Poisson((a + b * x).exp()), y)

    return model


def student_location(rng):
    y = T(rng.standard_t(4, 30)).float()

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        s = pyro.sample("s", dist.HalfNormal(5.0))
        observe("y", dist.StudentT(4.0, mu, s), y)

    return model


def binomial_two(rng):
    ka, kb = rng.binomial(20, 0.3), rng.binomial(25, 0.6)

    def model():
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        q = pyro.sample("q", dist.Beta(1.0, 1.0))
        pyro.sample("a", dist.Binomial(20, p), obs=T(float(ka)))
        pyro.sample("b", dist.Binomial(25, q), obs=T(float(kb)))

    return model


CHOSEN = [
    cauchy_groups,
    one_datum_scale,
    coin_0_of_3,
    uniform_bound,
    two_scale_prior,
    square,
    three_modes,
    t1_weak,
    funnel_datum,
    tau_two_groups,
    label_switch,
    label_unequal,
    ridge,
    product_ridge,
    spike_slab,
    changepoint,
    narrow_in_wide,
    wide_tail,
    separation,
    gamma_small_shape,
    lognormal_rate,
    dof,
    ring,
    frequency,
    discrete_shift,
    normal_n2,
    far_2d,
    outlier_location,
    exp_prior_vague,
    gamma_two,
    normal_mean,
    normal_both,
    coin_many,
    logistic,
    poisson_rate,
]
REPORTED = [
    cauchy_three,
    two_data_scale,
    coin_1_of_1,
    rate_zero,
    laplace_two_scale,
    absolute,
    five_modes,
    cauchy_prior_pair,
    funnel_free,
    groups_two,
    mixture_share,
    horseshoe_one,
    ridge_positive,
    ratio,
    spike_slab_pair,
    changepoint_smooth,
    spike_2d,
    contaminated,
    probit_separated,
    dirichlet_small,
    weibull,
    dispersion,
    banana,
    ar1,
    discrete_three,
    variance_n3,
    far_2d_wide,
    wide_tail_2d,
    two_lengths,
    halfcauchy_rate,
    gamma_scale,
    regression,
    poisson_regression,
    student_location,
    binomial_two,
]
