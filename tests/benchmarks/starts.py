"""Is the main mode found? Gaussian processes, mixtures and changepoints whose scales are far from the prior's middle.

The main mode is the best of `SEARCHED` searches, half from points around 0 on the real line and half from draws of
the prior, each by Newton's method. ``guide="auto"`` has found it if its log evidence is no more than one nat below the
lower bound of that mode. `CHOSEN` programs were in view when the starts were made, `REPORTED` ones were not; both were
written before.

    python tests/benchmarks/starts.py [--programs chosen reported] [--only NAME ...] [--seeds 1] [--first 0]

prints, for each program and seed of data and fit, how far the fit's log evidence is below the mode, whether that counts
as found, the seconds of the fit on the processor and the number of gradients that it took.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import ppgen
from ppgen.diagnostics.proposals import NO_DENSITY
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.newton import find_modes
from ppgen.posterior.starts import initial_points
from ppgen.utils.arviz_versions import group

SEARCHED = 64
FOUND = 1.0  # nats below the mode
DRAWS = 2000

Model = Callable[[], None]


def observe(name: str, d: dist.TorchDistribution, y: Tensor) -> None:
    with pyro.plate("data", len(y)):
        pyro.sample(name, d, obs=y)


def gp_model(x: Tensor, y: Tensor, covariance: Callable[[Tensor], Tensor]) -> Model:
    """y ~ N(0, K + noise^2), with K from the differences of x, (n, n) or (n, n, d)."""
    difference = (x[:, None] - x).abs()

    def model() -> None:
        k = covariance(difference)
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        root = torch.linalg.cholesky(k + (noise**2 + 1e-6) * torch.eye(len(y)))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(y)), scale_tril=root), obs=y)

    return model


def rbf(difference: Tensor, scale: Tensor, length: Tensor) -> Tensor:
    return scale**2 * torch.exp(-0.5 * (difference / length) ** 2)


def gp_short(rng: np.random.Generator) -> Model:
    """A length of .15 under a prior of median 1."""
    x = torch.as_tensor(np.sort(rng.uniform(0, 10, 80)))
    y = torch.sin(x / 0.15 * 1.2 + 0.5) + 0.7 * torch.cos(x / 0.21) + 0.1 * torch.as_tensor(rng.standard_normal(80))

    def covariance(difference: Tensor) -> Tensor:
        scale = pyro.sample("scale", dist.HalfNormal(2.0))
        return rbf(difference, scale, pyro.sample("length", dist.LogNormal(0.0, 1.0)))

    return gp_model(x, y, covariance)


def gp_days(rng: np.random.Generator) -> Model:
    """Matern 3/2 in days, with a length of 3 where the prior has 30 to 300."""
    x = torch.as_tensor(np.sort(rng.uniform(0, 365, 70)))
    k = rbf(x[:, None] - x, torch.tensor(3.0), torch.tensor(3.0)) + 0.04 * torch.eye(70)
    y = torch.linalg.cholesky(k) @ torch.as_tensor(rng.standard_normal(70))

    def covariance(difference: Tensor) -> Tensor:
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        t = math.sqrt(3) * difference / pyro.sample("length", dist.LogNormal(4.6, 1.2))
        return scale**2 * (1 + t) * torch.exp(-t)

    return gp_model(x, y, covariance)


def gp_period(rng: np.random.Generator) -> Model:
    """A period of .7 under a prior of median 2: the likelihood has a mode at its multiples."""
    x = torch.as_tensor(np.sort(rng.uniform(0, 6, 60)))
    y = torch.sin(2 * math.pi * x / 0.7) + 0.3 * torch.as_tensor(rng.standard_normal(60))

    def covariance(difference: Tensor) -> Tensor:
        scale, length = pyro.sample("scale", dist.HalfNormal(1.0)), pyro.sample("length", dist.LogNormal(0.0, 0.5))
        period = pyro.sample("period", dist.LogNormal(0.7, 0.7))
        return scale**2 * torch.exp(-2 * (torch.sin(math.pi * difference / period) / length) ** 2)

    return gp_model(x, y, covariance)


def gp_relevance(rng: np.random.Generator) -> Model:
    """Three covariates with lengths of .3, 5 and none."""
    x = torch.as_tensor(rng.uniform(0, 3, (90, 3)))
    y = torch.sin(x[:, 0] / 0.3) + 0.5 * x[:, 1] + 0.1 * torch.as_tensor(rng.standard_normal(90))

    def covariance(difference: Tensor) -> Tensor:
        scale = pyro.sample("scale", dist.HalfNormal(2.0))
        lengths = pyro.sample("lengths", dist.InverseGamma(2.0, 4.0).expand([3]).to_event(1))
        return scale**2 * torch.exp(-0.5 * (difference / lengths).square().sum(-1))

    return gp_model(x, y, covariance)


def gp_two_scales(rng: np.random.Generator) -> Model:
    """The sum of a slow and a fast process."""
    x = torch.as_tensor(np.sort(rng.uniform(0, 20, 80)))
    y = 3 * torch.sin(x / 5) + torch.sin(x / 0.4) + 0.1 * torch.as_tensor(rng.standard_normal(80))

    def covariance(difference: Tensor) -> Tensor:
        slow, long = pyro.sample("slow", dist.HalfNormal(3.0)), pyro.sample("long", dist.LogNormal(2.0, 1.0))
        fast, short = pyro.sample("fast", dist.HalfNormal(3.0)), pyro.sample("short", dist.LogNormal(1.0, 1.0))
        return rbf(difference, slow, long) + rbf(difference, fast, short)

    return gp_model(x, y, covariance)


def gp_small_noise(rng: np.random.Generator) -> Model:
    """Noise of .01 and a length of .05 on (0, 1), with priors of median 1."""
    x = torch.as_tensor(np.sort(rng.uniform(0, 1, 60)))
    y = 5 * torch.sin(x / 0.05) + 0.01 * torch.as_tensor(rng.standard_normal(60))

    def covariance(difference: Tensor) -> Tensor:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        return rbf(difference, scale, pyro.sample("length", dist.Gamma(2.0, 2.0)))

    return gp_model(x, y, covariance)


def mixture_far(rng: np.random.Generator) -> Model:
    """Three narrow components far apart."""
    y = torch.as_tensor(np.concatenate([rng.normal(m, 0.2, 20) for m in (-30.0, 2.0, 50.0)]))

    def model() -> None:
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        loc = pyro.sample("loc", dist.Normal(0.0, 40.0).expand([3]).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(2.0).expand([3]).to_event(1))
        observe("y", dist.MixtureSameFamily(dist.Categorical(share), dist.Normal(loc, scale)), y)

    return model


def mixture_scales(rng: np.random.Generator) -> Model:
    """One location, and scales of .05 and 10."""
    y = torch.as_tensor(np.concatenate([rng.normal(1.0, 0.05, 30), rng.normal(1.0, 10.0, 30)]))

    def model() -> None:
        share, loc = pyro.sample("share", dist.Beta(1.0, 1.0)), pyro.sample("loc", dist.Normal(0.0, 5.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0).expand([2]).to_event(1))
        shares = torch.stack([share, 1 - share], -1)
        observe("y", dist.MixtureSameFamily(dist.Categorical(shares), dist.Normal(loc[..., None], scale)), y)

    return model


def mixture_counts(rng: np.random.Generator) -> Model:
    """Poisson rates of 1, 12 and 150."""
    y = torch.as_tensor(np.concatenate([rng.poisson(m, 25) for m in (1.0, 12.0, 150.0)])).double()

    def model() -> None:
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        rate = pyro.sample("rate", dist.Gamma(1.0, 0.01).expand([3]).to_event(1))
        observe("y", dist.MixtureSameFamily(dist.Categorical(share), dist.Poisson(rate)), y)

    return model


def mixture_lines(rng: np.random.Generator) -> Model:
    """Two regression lines."""
    x = rng.uniform(-2, 2, 80)
    y = np.where(np.arange(80) % 2 == 0, 4 + 6 * x, -5 - 3 * x) + rng.normal(0, 0.3, 80)
    x, y = torch.as_tensor(x), torch.as_tensor(y)

    def model() -> None:
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        a = pyro.sample("a", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        shares = torch.stack([share, 1 - share], -1)
        observe("y", dist.MixtureSameFamily(dist.Categorical(shares), dist.Normal(a + b * x[:, None], scale)), y)

    return model


def mixture_outliers(rng: np.random.Generator) -> Model:
    """A narrow component with most of the data, and a wide one elsewhere."""
    y = torch.as_tensor(np.concatenate([rng.normal(12.0, 0.1, 60), rng.normal(-3.0, 8.0, 10)]))

    def model() -> None:
        share = pyro.sample("share", dist.Beta(1.0, 1.0))
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
        scale = pyro.sample("scale", dist.HalfCauchy(5.0).expand([2]).to_event(1))
        shares = torch.stack([share, 1 - share], -1)
        observe("y", dist.MixtureSameFamily(dist.Categorical(shares), dist.Normal(loc, scale)), y)

    return model


def mixture_plane(rng: np.random.Generator) -> Model:
    """Three clusters in the plane."""
    centers = np.array([[0.0, 9.0], [8.0, -6.0], [-9.0, -5.0]])
    y = torch.as_tensor(np.concatenate([c + 0.4 * rng.standard_normal((15, 2)) for c in centers]))

    def model() -> None:
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("clusters", 3):
            loc = pyro.sample("loc", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
            scale = pyro.sample("scale", dist.HalfNormal(3.0))
        parts = dist.Normal(loc, scale[..., None]).to_event(1)
        observe("y", dist.MixtureSameFamily(dist.Categorical(share), parts), y)

    return model


def step(t: Tensor, at: Tensor, width: float) -> Tensor:
    return torch.sigmoid((t - at) / width)


def change_level(rng: np.random.Generator) -> Model:
    """A step of the level at 83 of 100."""
    t = torch.arange(100.0).double()
    y = torch.where(t < 83, 2.0, 9.0) + torch.as_tensor(rng.standard_normal(100))

    def model() -> None:
        at = pyro.sample("at", dist.Uniform(0.0, 100.0))
        level = pyro.sample("level", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(3.0))
        s = step(t, at, 0.5)
        observe("y", dist.Normal(level[..., 0] + (level[..., 1] - level[..., 0]) * s, scale), y)

    return model


def change_rate(rng: np.random.Generator) -> Model:
    """Counts whose rate falls from 6 to 1 at 15 of 120."""
    t = torch.arange(120.0).double()
    y = torch.as_tensor(rng.poisson(np.where(np.arange(120) < 15, 6.0, 1.0))).double()

    def model() -> None:
        at = pyro.sample("at", dist.Uniform(0.0, 120.0))
        rate = pyro.sample("rate", dist.Exponential(0.2).expand([2]).to_event(1))
        s = step(t, at, 0.3)
        observe("y", dist.Poisson(rate[..., 0] * (1 - s) + rate[..., 1] * s), y)

    return model


def change_twice(rng: np.random.Generator) -> Model:
    """Two steps, at a fifth and at nine tenths."""
    t = torch.arange(120.0).double() / 120
    y = 5.0 * (t > 0.2) - 8.0 * (t > 0.9) + torch.as_tensor(rng.standard_normal(120))

    def model() -> None:
        first = pyro.sample("first", dist.Uniform(0.0, 1.0))
        second = pyro.sample("second", dist.Uniform(first, 1.0))
        level = pyro.sample("level", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(3.0))
        a, b = step(t, first, 0.004), step(t, second, 0.004)
        mean = level[..., 0] * (1 - a) + level[..., 1] * a * (1 - b) + level[..., 2] * b
        observe("y", dist.Normal(mean, scale), y)

    return model


def change_slope(rng: np.random.Generator) -> Model:
    """A line that bends at 70 of 80."""
    t = torch.arange(80.0).double()
    y = 0.1 * t - 2.0 * (t - 70).clamp(min=0) + 0.5 * torch.as_tensor(rng.standard_normal(80))

    def model() -> None:
        at, a = pyro.sample("at", dist.Uniform(0.0, 80.0)), pyro.sample("a", dist.Normal(0.0, 10.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(2.0))
        observe("y", dist.Normal(a + b[..., 0] * t + b[..., 1] * (t - at).clamp(min=0), scale), y)

    return model


def change_variance(rng: np.random.Generator) -> Model:
    """A standard deviation that falls from 3 to .2 at 20 of 150."""
    t = torch.arange(150.0).double()
    y = torch.as_tensor(rng.standard_normal(150)) * torch.where(t < 20, 3.0, 0.2)

    def model() -> None:
        at = pyro.sample("at", dist.Uniform(0.0, 150.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
        s = step(t, at, 0.3)
        observe("y", dist.Normal(0.0, scale[..., 0] * (1 - s) + scale[..., 1] * s), y)

    return model


def change_pulse(rng: np.random.Generator) -> Model:
    """A short pulse between 60 and 66 of 100."""
    t = torch.arange(100.0).double()
    y = 4.0 * ((t >= 60) & (t < 66)) + torch.as_tensor(0.7 * rng.standard_normal(100))

    def model() -> None:
        begin = pyro.sample("begin", dist.Uniform(0.0, 100.0))
        length = pyro.sample("length", dist.Gamma(2.0, 0.1))
        height, scale = pyro.sample("height", dist.Normal(0.0, 5.0)), pyro.sample("scale", dist.HalfNormal(2.0))
        inside = step(t, begin, 0.3) - step(t, begin + length, 0.3)
        observe("y", dist.Normal(height * inside, scale), y)

    return model


CHOSEN = [gp_short, gp_period, gp_two_scales, mixture_far, mixture_counts, mixture_outliers]
CHOSEN += [change_level, change_twice, change_variance]
REPORTED = [gp_days, gp_relevance, gp_small_noise, mixture_scales, mixture_lines, mixture_plane]
REPORTED += [change_rate, change_slope, change_pulse]
PROGRAMS = {"chosen": CHOSEN, "reported": REPORTED}
NAMES = [program.__name__ for part in PROGRAMS.values() for program in part]


def main_mode(model: Model) -> float:
    """The lower bound of the log evidence by the best mode that many searches find, in nats."""
    target, generator = UnconstrainedLogDensity(model), torch.Generator().manual_seed(12345)
    starts = initial_points(target, SEARCHED // 2, generator)
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        prior = torch.stack([target.prior_point() for _ in range(SEARCHED // 2)])
    value, gradient = target.log_prob_and_grad(prior)
    starts = torch.cat([starts, prior[value.isfinite() & gradient.isfinite().all(-1)]])
    return max(float(find_modes(target, part, generator).elbo.max()) for part in starts.split(16))


def measure(model: Model, seed: int) -> tuple[float, float, int]:
    """The log evidence of the fit in nats, its seconds and its gradients."""
    pyro.clear_param_store()
    start = time.process_time()
    fit = ppgen.fit(model, "auto", None, seed=seed, progress=False)
    seconds = time.process_time() - start
    idata = fit.to_arviz(draws=DRAWS, predictive=False, seed=seed)
    evidence = float(np.nanmax(group(idata, "vi_stats")["log_marginal"].values))
    return evidence, seconds, fit.metadata["evaluations"]["gradients"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for part in options.programs:
        found, count = 0, 0
        for program in (each for each in PROGRAMS[part] if each.__name__ in options.only):
            for seed in range(options.first, options.first + options.seeds):
                model = program(np.random.default_rng(seed))
                mode = main_mode(model)
                try:
                    evidence, seconds, gradients = measure(model, seed)
                except NO_DENSITY as error:
                    print(f"{program.__name__:18} {seed:3} failed: {error!r:.100}", flush=True)
                    continue
                below = mode - evidence
                found, count = found + (below <= FOUND), count + 1
                verdict = "found" if below <= FOUND else "missed"
                row = f"{program.__name__:18} {seed:3}  mode {mode:9.2f}  below {below:7.2f}  {verdict:6}"
                print(f"{row}  {seconds:5.1f} s  {gradients:7} gradients", flush=True)
        print(f"{part}: {found} of {count}", flush=True)


if __name__ == "__main__":
    main()
