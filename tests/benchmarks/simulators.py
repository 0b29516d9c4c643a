"""Neural posterior estimation on two simulators of the SBI benchmark (Lueckmann et al. 2021), beside exact draws.

    two moons         theta ~ U(-1, 1)^2, x = (r cos a + 1/4 - |t1 + t2| / sqrt 2, r sin a + (t2 - t1) / sqrt 2),
                      a ~ U(-pi/2, pi/2), r ~ N(.1, .01^2)
    gaussian linear   theta ~ N(0, .1 I) of ten numbers, x ~ N(theta, .1 I), where .1 is the variance

`Sleep` fits an `AutoFlow` to a table of simulations, with five restarts and a number of epochs that depends on the
budget. Draws come from the mixture of the five. The flow of the moons models the parameters themselves, without the
logistic map that Pyro has for intervals; draws outside their box are left out. The settings were chosen on tables of
seed 100 by log q at new simulations.

C2ST is the benchmark's: the accuracy in five-fold cross-validation of a network of two layers of 10 x width ReLU, on
10,000 draws of the mixture and 10,000 of the posterior, z-scored by the latter. .5 is perfect. Its training stops after
`--patience` epochs without progress; at scikit-learn's default of 10 it may stop before it has found all differences.
KL(p, q) is E log p(theta | x) - E log q(theta | x) in nats over 10,000 new simulations, with its standard error; it
includes the draws outside the box. The posteriors are exact: that of the moons inverts the simulator. Observations are
the first three of the benchmark. C2ST takes most of the time.

    python tests/benchmarks/simulators.py [--only two_moons] [--budgets 1000 10000] [--seeds 1] [--observations 3]
        [--restarts 5] [--patience 10]
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor

import ppgen

DRAWS = 10_000


def crescent(n: int) -> Tensor:
    """Points (n, 2) of the moon, relative to the location that theta determines."""
    angle, radius = math.pi * (torch.rand(n) - 0.5), 0.1 + 0.01 * torch.randn(n)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], -1)


def moon(theta: Tensor) -> Tensor:
    first, second = theta.unbind(-1)
    location = torch.stack([-(first + second).abs(), second - first], -1) / math.sqrt(2)
    return location + crescent(len(theta))


class Box(dist.Uniform):
    """A uniform distribution whose bounds are hidden from guides, which model it on the real line."""

    support = constraints.real


def two_moons(x: Tensor | None = None) -> None:
    theta = pyro.sample("theta", Box(-1.0, 1.0).expand([2]).to_event(1))
    pyro.sample("x", ppgen.Implicit(moon, theta, event_shape=(2,)), obs=x)


def posterior_of_moons(x: Tensor, n: int) -> Tensor:
    """Draws (n, 2) of theta: x is its location plus a point of the crescent; t1 + t2 has either sign."""
    found: list[Tensor] = []
    while sum(map(len, found)) < n:
        location = x - crescent(2 * n)
        location = location[location[:, 0] <= 0]
        total = location[:, 0] * math.sqrt(2) * torch.where(torch.rand(len(location)) < 0.5, 1.0, -1.0)
        difference = location[:, 1] * math.sqrt(2)
        theta = torch.stack([total - difference, total + difference], -1) / 2
        found.append(theta[(theta.abs() <= 1).all(-1)])
    return torch.cat(found)[:n]


def score_of_moons(x: Tensor, theta: Tensor) -> Tensor:
    """log p(theta | x): the crescent's density at x minus the location, divided by its mass that the prior allows."""
    first, second = theta.unbind(-1)
    offset = x - torch.stack([0.25 - (first + second).abs() / math.sqrt(2), (second - first) / math.sqrt(2)], -1)
    radius = offset.norm(dim=-1)
    log_likelihood = dist.Normal(0.1, 0.01).log_prob(radius) - (math.pi * radius).log()
    location = x[:, None] - crescent(1000)
    along, across = location[..., 0].abs(), location[..., 1].abs()  # theta is (+- along +- across) / sqrt 2
    allowed = (location[..., 0] <= 0) & (along + across <= math.sqrt(2))
    return log_likelihood - (2 * allowed.float().mean(1)).log()


def gaussian_linear(x: Tensor | None = None) -> None:
    theta = pyro.sample("theta", dist.Normal(0.0, math.sqrt(0.1)).expand([10]).to_event(1))
    pyro.sample("x", dist.Normal(theta, math.sqrt(0.1)).to_event(1), obs=x)


def posterior_of_gaussians(x: Tensor, n: int) -> Tensor:
    return x / 2 + math.sqrt(0.05) * torch.randn(n, 10)


def score_of_gaussians(x: Tensor, theta: Tensor) -> Tensor:
    return dist.Normal(x / 2, math.sqrt(0.05)).log_prob(theta).sum(-1)


class Task(NamedTuple):
    """A simulator with observations, its exact posterior, and the settings of the guide.

    Attributes:
        model: The simulator as a Pyro program.
        observed: The observations.
        posterior: Returns n exact draws at one x.
        score: Returns the exact log density of theta given x, for each row.
        bound: Draws beyond it are left out.
        guide: Options of `AutoFlow`.
        epochs: The number of epochs by budget; the nearest budget counts.
    """

    model: Callable
    observed: list[list[float]]
    posterior: Callable[[Tensor, int], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]
    bound: float
    guide: dict[str, Any]
    epochs: dict[int, int]


TASKS = {
    "two_moons": Task(
        two_moons,
        [[-0.6396706, 0.16234657], [-0.5676688, -0.33194834], [0.0030109584, -0.6457662]],
        posterior_of_moons,
        score_of_moons,
        1.0,
        {"flow": "nsf_autoregressive", "layers": 3, "hidden": (64, 64), "init_scale": 0.3},
        {1000: 200, 10_000: 200, 100_000: 60},
    ),
    "gaussian_linear": Task(
        gaussian_linear,
        [
            [1.0471, 0.5567, -0.2362, 0.0279, -1.0051, -0.0079, 0.0612, -0.2929, -0.3854, 0.2450],
            [-0.1067, -0.8016, -0.0733, 0.4010, 0.6230, -0.1869, 0.7088, 0.1921, 0.6718, 0.0978],
            [0.4668, -1.0392, -0.4222, -0.0435, 0.0680, 0.4469, 0.0348, -0.4869, -0.1439, -0.6007],
        ],
        posterior_of_gaussians,
        score_of_gaussians,
        math.inf,
        {"flow": "maf", "layers": 1, "hidden": (32, 32), "init_scale": 0.3},
        {1000: 12, 10_000: 6, 100_000: 3},
    ),
}


def c2st(exact: Tensor, draws: Tensor, patience: int) -> float:
    """Accuracy of the benchmark's classifier, 0.5 if the distributions are equal."""
    center, spread = exact.mean(0), exact.std(0)
    rows = torch.cat([(exact - center) / spread, (draws - center) / spread]).numpy()
    labels = np.repeat([0, 1], [len(exact), len(draws)])
    width = 10 * rows.shape[1]
    network = MLPClassifier((width, width), max_iter=10_000, n_iter_no_change=patience, random_state=1)
    folds = KFold(n_splits=5, shuffle=True, random_state=1)
    return float(cross_val_score(network, rows, labels, cv=folds, scoring="accuracy").mean())


def train(task: Task, budget: int, seed: int, restarts: int) -> tuple[ppgen.Fit, float]:
    """Returns the fit and its seconds, with compiling."""
    pyro.set_rng_seed(seed)
    simulator = ppgen.Simulator(task.model)
    table = simulator.draw(budget)
    guide = ppgen.AutoFlow(simulator, amortized="x", **task.guide)
    epochs = task.epochs[min(task.epochs, key=lambda other: abs(math.log(other / budget)))]
    options = {"batch_size": 100, "epochs": epochs, "lr_scheduler": "cosine", "ema": 0.99, "restarts": restarts}
    adam = partial(torch.optim.Adam, lr=3e-3)
    start = time.perf_counter()
    fit = ppgen.fit(simulator, guide, table, loss=ppgen.Sleep(), optim=adam, seed=seed, progress=False, **options)
    return fit, time.perf_counter() - start


def kl_divergence(fit: ppgen.Fit, task: Task) -> tuple[float, float]:
    """The expected KL divergence of the mixture from the posterior at new simulations, and its standard error."""
    new = ppgen.Simulator(task.model).draw(DRAWS, seed=999)
    pyro.set_rng_seed(999)
    exact = torch.cat([task.score(*rows) for rows in zip(new.x.split(1000), new.theta.split(1000), strict=True)])
    scores = []
    for chain in range(len(fit.chains)):
        with torch.no_grad(), fit.eval_mode(chain):
            scores.append(fit.guide.get_posterior(new.x).log_prob(new.theta))  # theta is modeled on the real line
    log_ratios = exact - (torch.stack(scores).logsumexp(0) - math.log(len(scores)))
    return float(log_ratios.mean()), float(log_ratios.std()) / math.sqrt(DRAWS)


def draw(fit: ppgen.Fit, x: Tensor, n: int, bound: float) -> Tensor:
    """Draws of all chains, with equal weights, without those beyond the bound."""
    draws = []
    for chain in range(len(fit.chains)):
        with torch.no_grad(), fit.eval_mode(chain):
            draws.append(fit.guide(x.expand(n, -1))["theta"])
    mixture = torch.stack(draws, 1).flatten(0, 1)
    inside = mixture[(mixture.abs() <= bound).all(-1)]
    if len(inside) < n:
        raise ValueError(f"expected at least {n} of {len(mixture)} draws within {bound}, got {len(inside)}")
    return inside[torch.randperm(len(inside))[:n]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--budgets", nargs="+", type=int, default=[1000, 10_000])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--observations", type=int, default=3, help="the number of observations, at most three")
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--patience", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| simulator | simulations | seed | C2ST, each observation | C2ST, mean | KL(p, q), nats | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in options.only:
        task = TASKS[name]
        for budget in options.budgets:
            for seed in range(options.seeds):
                fit, seconds = train(task, budget, seed, options.restarts)
                scores = []
                for number, observed in enumerate(task.observed[: options.observations]):
                    x = torch.tensor(observed)
                    pyro.set_rng_seed(number)
                    exact = task.posterior(x, DRAWS)
                    scores.append(c2st(exact, draw(fit, x, DRAWS, task.bound), options.patience))
                each = ", ".join(f"{score:.3f}" for score in scores)
                kl, error = kl_divergence(fit, task)
                print(
                    f"| {name} | {budget} | {seed} | {each} | {np.mean(scores):.3f} | {kl:.3f} ({error:.3f}) "
                    f"| {seconds:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
