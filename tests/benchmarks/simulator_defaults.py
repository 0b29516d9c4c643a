"""``fit(simulator, "auto", simulations=n)`` with its defaults alone, beside exact posteriors.

    two moons, gaussian linear      see tests/benchmarks/simulators.py; the moons have their uniform prior here
    bernoulli glm                   theta of ten numbers with a Gaussian prior, y_t ~ Bernoulli(sigmoid(v_t theta)) at
                                    100 times, x = sum_t y_t v_t, which is sufficient

after Lueckmann et al. (2021), with a stimulus and, for the last, observations of our own: three prior draws by a fixed
seed. Its posterior is log-concave in closed form up to a constant: 10,000 chains of Hamiltonian Monte Carlo, one draw
of each. C2ST is the benchmark's classifier on 10,000 draws of each distribution, as in simulators.py. Draws are those
of all five chains together.

    python tests/benchmarks/simulator_defaults.py [--only two_moons] [--budgets 1000 10000] [--seeds 1]
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from simulators import DRAWS, TASKS, c2st, moon
from torch import Tensor

import ppgen

TIMES, WIDTH = 100, 10


def two_moons(x: Tensor | None = None) -> None:
    theta = pyro.sample("theta", dist.Uniform(-1.0, 1.0).expand([2]).to_event(1))
    pyro.sample("x", ppgen.Implicit(moon, theta, event_shape=(2,)), obs=x)


def design() -> Tensor:
    """v_t (100, 10): a constant, and a white stimulus at the nine last times."""
    stimulus = torch.randn(TIMES + WIDTH - 2, generator=torch.Generator().manual_seed(42))
    return torch.cat([torch.ones(TIMES, 1), stimulus.unfold(0, WIDTH - 1, 1)], 1)


def prior_of_glm() -> dist.MultivariateNormal:
    """An intercept of variance 2, and a filter whose second differences are small."""
    m = WIDTH - 1
    difference = torch.eye(m) - torch.diag(torch.ones(m - 1), -1)
    f = difference @ difference + torch.diag(torch.arange(m) / m).sqrt()
    precision = torch.block_diag(torch.tensor([[0.5]]), f.T @ f)
    return dist.MultivariateNormal(torch.zeros(WIDTH), precision_matrix=precision)


V, PRIOR = design(), prior_of_glm()


def spikes(theta: Tensor) -> Tensor:
    return torch.bernoulli((theta @ V.T).sigmoid()) @ V


def bernoulli_glm(x: Tensor | None = None) -> None:
    theta = pyro.sample("theta", PRIOR)
    pyro.sample("x", ppgen.Implicit(spikes, theta, event_shape=(WIDTH,)), obs=x)


def posterior_of_glm(x: Tensor, n: int, steps: int = 60, leaps: int = 12) -> Tensor:
    """Draws theta of p(theta | x) = p(theta) exp(x theta - sum_t log(1 + exp(v_t theta))) / Z, in double precision."""
    v, x = V.double(), x.double()
    precision = PRIOR.precision_matrix.double()

    def log_p(theta: Tensor) -> Tensor:
        return theta @ x - torch.nn.functional.softplus(theta @ v.T).sum(-1) - (theta @ precision * theta).sum(-1) / 2

    def gradient(theta: Tensor) -> Tensor:
        return x - (theta @ v.T).sigmoid() @ v - theta @ precision

    mode = torch.zeros(WIDTH).double()
    for _ in range(50):
        rate = (mode @ v.T).sigmoid()
        hessian = v.T @ (rate * (1 - rate))[:, None].mul(v) + precision
        mode = mode + torch.linalg.solve(hessian, gradient(mode))
    root = torch.linalg.cholesky(torch.linalg.inv(hessian))
    u = torch.randn(n, WIDTH).double()
    for _ in range(steps):  # in coordinates in which the Gaussian at the mode is standard
        momentum, at = torch.randn_like(u), u
        size = 0.25 * (0.5 + torch.rand(())).double()
        moved = momentum + size / 2 * gradient(mode + at @ root.T) @ root
        for leap in range(leaps):
            at = at + size * moved
            moved = moved + (size if leap < leaps - 1 else size / 2) * gradient(mode + at @ root.T) @ root
        energy = log_p(mode + at @ root.T) - log_p(mode + u @ root.T) + (momentum**2 - moved**2).sum(-1) / 2
        u = torch.where((energy > torch.rand(n).double().log())[:, None], at, u)
    return (mode + u @ root.T).float()


def observations_of_glm() -> list[list[float]]:
    with torch.random.fork_rng():
        torch.manual_seed(2021)
        return spikes(PRIOR.sample((3,))).tolist()


class Task(NamedTuple):
    model: Callable
    observed: list[list[float]]
    posterior: Callable[[Tensor, int], Tensor]


SIMULATORS: dict[str, Callable[[], Task]] = {
    "two_moons": lambda: Task(two_moons, TASKS["two_moons"].observed, TASKS["two_moons"].posterior),
    "gaussian_linear": lambda: Task(*TASKS["gaussian_linear"][:3]),
    "bernoulli_glm": lambda: Task(bernoulli_glm, observations_of_glm(), posterior_of_glm),
}


def ensemble_draws(fit: Any, x: Tensor, n: int) -> Tensor:
    """Draws of all chains, with equal weights."""
    each = math.ceil(n / len(fit.chains))
    draws = []
    for chain in range(len(fit.chains)):
        with torch.no_grad(), fit.eval_mode(chain):
            draws.append(fit.guide(x.expand(each, -1))["theta"])
    return torch.cat(draws)[:n]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(SIMULATORS), default=list(SIMULATORS))
    parser.add_argument("--budgets", nargs="+", type=int, default=[1000, 10_000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| simulator | simulations | seed | C2ST, each observation | mean | p, calibration | steps | seconds |",
        flush=True,
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in options.only:
        task = SIMULATORS[name]()
        for budget in options.budgets:
            for seed in options.seeds:
                start = time.perf_counter()
                simulator = ppgen.Simulator(task.model)
                fit = ppgen.fit(simulator, "auto", simulations=budget, seed=seed, progress=False)
                seconds = time.perf_counter() - start
                scores = []
                for number, observed in enumerate(task.observed):
                    x = torch.tensor(observed)
                    pyro.set_rng_seed(number)
                    scores.append(c2st(task.posterior(x, DRAWS), ensemble_draws(fit, x, DRAWS), 10))
                each = ", ".join(f"{score:.3f}" for score in scores)
                steps = ", ".join(str(len(chain.history["loss"])) for chain in fit.chains)
                verdict = fit.diagnose().statistics["calibration_p"]
                print(
                    f"| {name} | {budget} | {seed} | {each} | {np.mean(scores):.3f} | {verdict:.3f} | {steps} "
                    f"| {seconds:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
