"""Is the main mode found? Gaussian processes, mixtures and changepoints whose scales are far from the prior's middle.

The starts of ``guide="auto"`` lead to modes by Newton's method. They have found the main one if the lower bound of the
log evidence by the best of them is within two nats of the best that any seed of this run, or one of `OTHERS` searches
from draws of the prior, has found. `CHOSEN` programs were in view when the starts were made, `REPORTED` ones were not;
both were written before.

    python tests/benchmarks/starts.py [--programs chosen reported] [--only NAME ...] [--seeds 8]

prints, for each program, the share of seeds that find the main mode, and the seconds of the processor and the number of
values and gradients of log p that the search of one seed takes.
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

from ppgen.posterior.auto import search_from
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.newton import find_modes
from ppgen.posterior.starts import initial_points
from ppgen.utils.budget import Budget

STARTS, OTHERS = 4, 12
FOUND = 2.0  # nats below the best, whose estimates have errors of some tenths

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
    x = torch.as_tensor(np.sort(rng.uniform(0, 10, 50)))
    y = torch.sin(x / 0.15 * 1.2 + 0.5) + 0.7 * torch.cos(x / 0.21) + 0.1 * torch.as_tensor(rng.standard_normal(50))

    def covariance(difference: Tensor) -> Tensor:
        scale = pyro.sample("scale", dist.HalfNormal(2.0))
        return rbf(difference, scale, pyro.sample("length", dist.LogNormal(0.0, 1.0)))

    return gp_model(x, y, covariance)


def gp_days(rng: np.random.Generator) -> Model:
    """Matern 3/2 in days, with a length of 3 where the prior has 30 to 300."""
    x = torch.as_tensor(np.sort(rng.uniform(0, 365, 40)))
    k = rbf(x[:, None] - x, torch.tensor(3.0), torch.tensor(3.0)) + 0.04 * torch.eye(40)
    y = torch.linalg.cholesky(k) @ torch.as_tensor(rng.standard_normal(40))

    def covariance(difference: Tensor) -> Tensor:
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        t = math.sqrt(3) * difference / pyro.sample("length", dist.LogNormal(4.6, 1.2))
        return scale**2 * (1 + t) * torch.exp(-t)

    return gp_model(x, y, covariance)


def gp_period(rng: np.random.Generator) -> Model:
    """A period of .7 under a prior of median 2: the likelihood has a mode at its multiples."""
    x = torch.as_tensor(np.sort(rng.uniform(0, 6, 40)))
    y = torch.sin(2 * math.pi * x / 0.7) + 0.3 * torch.as_tensor(rng.standard_normal(40))

    def covariance(difference: Tensor) -> Tensor:
        scale, length = pyro.sample("scale", dist.HalfNormal(1.0)), pyro.sample("length", dist.LogNormal(0.0, 0.5))
        period = pyro.sample("period", dist.LogNormal(0.7, 0.7))
        return scale**2 * torch.exp(-2 * (torch.sin(math.pi * difference / period) / length) ** 2)

    return gp_model(x, y, covariance)


def gp_relevance(rng: np.random.Generator) -> Model:
    """Three covariates with lengths of .3, 5 and none."""
    x = torch.as_tensor(rng.uniform(0, 3, (50, 3)))
    y = torch.sin(x[:, 0] / 0.3) + 0.5 * x[:, 1] + 0.1 * torch.as_tensor(rng.standard_normal(50))

    def covariance(difference: Tensor) -> Tensor:
        scale = pyro.sample("scale", dist.HalfNormal(2.0))
        lengths = pyro.sample("lengths", dist.InverseGamma(2.0, 4.0).expand([3]).to_event(1))
        return scale**2 * torch.exp(-0.5 * (difference / lengths).square().sum(-1))

    return gp_model(x, y, covariance)


def gp_two_scales(rng: np.random.Generator) -> Model:
    """The sum of a slow and a fast process."""
    x = torch.as_tensor(np.sort(rng.uniform(0, 20, 50)))
    y = 3 * torch.sin(x / 5) + torch.sin(x / 0.4) + 0.1 * torch.as_tensor(rng.standard_normal(50))

    def covariance(difference: Tensor) -> Tensor:
        slow, long = pyro.sample("slow", dist.HalfNormal(3.0)), pyro.sample("long", dist.LogNormal(2.0, 1.0))
        fast, short = pyro.sample("fast", dist.HalfNormal(3.0)), pyro.sample("short", dist.LogNormal(1.0, 1.0))
        return rbf(difference, slow, long) + rbf(difference, fast, short)

    return gp_model(x, y, covariance)


def gp_small_noise(rng: np.random.Generator) -> Model:
    """Noise of .01 and a length of .05 on (0, 1), with priors of median 1."""
    x = torch.as_tensor(np.sort(rng.uniform(0, 1, 40)))
    y = 5 * torch.sin(x / 0.05) + 0.01 * torch.as_tensor(rng.standard_normal(40))

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


def from_prior(target: UnconstrainedLogDensity) -> Tensor:
    """Draws of the prior with a density."""
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        points = torch.stack([target.prior_point() for _ in range(OTHERS)])
    value, gradient = target.log_prob_and_grad(points)
    return points[value.isfinite() & gradient.isfinite().all(-1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for part in options.programs:
        for program in (each for each in PROGRAMS[part] if each.__name__ in options.only):
            target = UnconstrainedLogDensity(program(np.random.default_rng(0)))
            others = float(find_modes(target, from_prior(target), torch.Generator().manual_seed(12345)).elbo.max())
            before, start = dict(target.evaluations), time.process_time()
            found = []
            for seed in range(options.seeds):
                generator = torch.Generator().manual_seed(seed)
                starts = initial_points(target, STARTS, generator)
                found.append(float(search_from(target, starts, generator, Budget()).elbo.max()))
            seconds = (time.process_time() - start) / options.seeds
            counts = [(target.evaluations[kind] - before[kind]) // options.seeds for kind in ("values", "gradients")]
            best = max(others, *found)
            share = sum(value > best - FOUND for value in found)
            row = f"{part:8} {program.__name__:16} {share} of {len(found)}  best {best:9.2f}"
            print(f"{row}  {seconds:.1f} s  {counts[0]} values, {counts[1]} gradients", flush=True)


if __name__ == "__main__":
    main()
