"""Neural posterior estimation on two simulators of the SBI benchmark (Lueckmann et al. 2021): C2ST beside exact draws.

    two moons         theta ~ U(-1, 1)^2, x = (r cos a + 1/4 - |t1 + t2| / sqrt 2, r sin a + (t2 - t1) / sqrt 2),
                      a ~ U(-pi/2, pi/2), r ~ N(.1, .01^2)
    gaussian linear   theta ~ N(0, .1 I) of ten numbers, x ~ N(theta, .1 I), where .1 is the variance

An `AutoFlow` is fitted by `Sleep` to a table of simulations, five times from other starts, for a number of epochs that
depends on the budget, and a draw is one of any of the five: they are one mixture. Within their box the parameters of
the moons are taken as they are, not through the logistic map that Pyro has for intervals; draws outside are left out.
The settings were chosen on tables of seed 100 by log q at new simulations.

C2ST is the benchmark's: the accuracy of a network of two layers of 10 x width ReLU in five-fold cross-validation, on
10,000 draws of the mixture and 10,000 of the posterior, z-scored by the latter: .5 is perfect. It stops after
`--patience` epochs without progress; by scikit-learn's own 10 it may end before it has found what there is.
"Behind" is E log p(theta | x) - E log q(theta | x) in nats over 10,000 new simulations, with its standard error, draws
outside not left out. The posteriors are exact: that of the moons by inverting the simulator. Observations are the first
three of the benchmark. Most of the time goes into C2ST.

    python tests/benchmarks/simulators.py [--only two_moons] [--budgets 1000 10000] [--seeds 1] [--observations 3]
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
    """Points (n, 2) of the moon that is added to the place that theta gives."""
    angle, radius = math.pi * (torch.rand(n) - 0.5), 0.1 + 0.01 * torch.randn(n)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], -1)


def moon(theta: Tensor) -> Tensor:
    first, second = theta.unbind(-1)
    place = torch.stack([-(first + second).abs(), second - first], -1) / math.sqrt(2)
    return place + crescent(len(theta))


class Box(dist.Uniform):
    """A uniform law to guides of which its bounds mean nothing."""

    support = constraints.real


def two_moons(x: Tensor | None = None) -> None:
    theta = pyro.sample("theta", Box(-1.0, 1.0).expand([2]).to_event(1))
    pyro.sample("x", ppgen.Implicit(moon, theta, event_shape=(2,)), obs=x)


def posterior_of_moons(x: Tensor, n: int) -> Tensor:
    """theta at which x is a place plus a point of the crescent, either sign of t1 + t2, within the prior."""
    found: list[Tensor] = []
    while sum(map(len, found)) < n:
        place = x - crescent(2 * n)
        place = place[place[:, 0] <= 0]
        total = place[:, 0] * math.sqrt(2) * torch.where(torch.rand(len(place)) < 0.5, 1.0, -1.0)
        difference = place[:, 1] * math.sqrt(2)
        theta = torch.stack([total - difference, total + difference], -1) / 2
        found.append(theta[(theta.abs() <= 1).all(-1)])
    return torch.cat(found)[:n]


def score_of_moons(x: Tensor, theta: Tensor) -> Tensor:
    """log p(theta | x): the crescent's density at x less the place, over how much of the crescent the prior allows."""
    first, second = theta.unbind(-1)
    offset = x - torch.stack([0.25 - (first + second).abs() / math.sqrt(2), (second - first) / math.sqrt(2)], -1)
    radius = offset.norm(dim=-1)
    log_likelihood = dist.Normal(0.1, 0.01).log_prob(radius) - (math.pi * radius).log()
    place = x[:, None] - crescent(1000)
    along, across = place[..., 0].abs(), place[..., 1].abs()  # theta1 and theta2 are (+- along +- across) / sqrt 2
    allowed = (place[..., 0] <= 0) & (along + across <= math.sqrt(2))
    return log_likelihood - (2 * allowed.float().mean(1)).log()


def gaussian_linear(x: Tensor | None = None) -> None:
    theta = pyro.sample("theta", dist.Normal(0.0, math.sqrt(0.1)).expand([10]).to_event(1))
    pyro.sample("x", dist.Normal(theta, math.sqrt(0.1)).to_event(1), obs=x)


def posterior_of_gaussians(x: Tensor, n: int) -> Tensor:
    return x / 2 + math.sqrt(0.05) * torch.randn(n, 10)


def score_of_gaussians(x: Tensor, theta: Tensor) -> Tensor:
    return dist.Normal(x / 2, math.sqrt(0.05)).log_prob(theta).sum(-1)


class Task(NamedTuple):
    """A simulator, what was observed, the exact posterior (draws at one x; log density, a row each), and the guide.

    `epochs` are those of the nearest budget; draws beyond `bound` are left out.
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


def c2st(exact: Tensor, found: Tensor, patience: int) -> float:
    """Accuracy of the benchmark's classifier, 0.5 where the laws are one."""
    center, spread = exact.mean(0), exact.std(0)
    rows = torch.cat([(exact - center) / spread, (found - center) / spread]).numpy()
    labels = np.repeat([0, 1], [len(exact), len(found)])
    width = 10 * rows.shape[1]
    network = MLPClassifier((width, width), max_iter=10_000, n_iter_no_change=patience, random_state=1)
    folds = KFold(n_splits=5, shuffle=True, random_state=1)
    return float(cross_val_score(network, rows, labels, cv=folds, scoring="accuracy").mean())


def learn(task: Task, budget: int, seed: int, restarts: int) -> tuple[ppgen.Fit, float]:
    """The fit, and the seconds that it took with all of compiling."""
    pyro.set_rng_seed(seed)
    simulator = ppgen.Simulator(task.model)
    table = simulator.draw(budget)
    guide = ppgen.AutoFlow(simulator, amortized="x", **task.guide)
    epochs = task.epochs[min(task.epochs, key=lambda known: abs(math.log(known / budget)))]
    options = {"batch_size": 100, "epochs": epochs, "lr_scheduler": "cosine", "ema": 0.99, "restarts": restarts}
    adam = partial(torch.optim.Adam, lr=3e-3)
    start = time.perf_counter()
    fit = ppgen.fit(simulator, guide, table, loss=ppgen.Sleep(), optim=adam, seed=seed, progress=False, **options)
    return fit, time.perf_counter() - start


def behind(fit: ppgen.Fit, task: Task) -> tuple[float, float]:
    """Nats by which the mixture is behind the posterior at new simulations, and the standard error."""
    new = ppgen.Simulator(task.model).draw(DRAWS, seed=999)
    pyro.set_rng_seed(999)
    exact = torch.cat([task.score(*rows) for rows in zip(new.x.split(1000), new.theta.split(1000), strict=True)])
    scores = []
    for chain in range(len(fit.chains)):
        with torch.no_grad(), fit.eval_mode(chain):
            scores.append(fit.guide.get_posterior(new.x).log_prob(new.theta))  # no map between theta and the line
    gaps = exact - (torch.stack(scores).logsumexp(0) - math.log(len(scores)))
    return float(gaps.mean()), float(gaps.std()) / math.sqrt(DRAWS)


def draw(fit: ppgen.Fit, x: Tensor, n: int, bound: float) -> Tensor:
    """Draws of all chains, as many of each, and those beyond the bound left out."""
    found = []
    for chain in range(len(fit.chains)):
        with torch.no_grad(), fit.eval_mode(chain):
            found.append(fit.guide(x.expand(n, -1))["theta"])
    together = torch.stack(found, 1).flatten(0, 1)
    inside = together[(together.abs() <= bound).all(-1)]
    if len(inside) < n:
        raise ValueError(f"expected at least {n} of {len(together)} draws within {bound}, got {len(inside)}")
    return inside[torch.randperm(len(inside))[:n]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--budgets", nargs="+", type=int, default=[1000, 10_000])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--observations", type=int, default=3, help="how many of the three")
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--patience", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| simulator | simulations | seed | C2ST, each observation | C2ST, mean | behind, nats | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in options.only:
        task = TASKS[name]
        for budget in options.budgets:
            for seed in range(options.seeds):
                fit, seconds = learn(task, budget, seed, options.restarts)
                scores = []
                for number, observed in enumerate(task.observed[: options.observations]):
                    x = torch.tensor(observed)
                    pyro.set_rng_seed(number)
                    exact = task.posterior(x, DRAWS)
                    scores.append(c2st(exact, draw(fit, x, DRAWS, task.bound), options.patience))
                each = ", ".join(f"{score:.3f}" for score in scores)
                gap, error = behind(fit, task)
                print(
                    f"| {name} | {budget} | {seed} | {each} | {np.mean(scores):.3f} | {gap:.3f} ({error:.3f}) "
                    f"| {seconds:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
