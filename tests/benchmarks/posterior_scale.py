"""How the time of ``guide="auto"`` grows with rows and with groups, beside a mean-field guide under stock Pyro.

    python tests/benchmarks/posterior_scale.py [--rows 2000 20000 ...] [--groups 300 2000 ...] [--steps 5000 ...]
        [--rated 20000 ...] [--counted 20000 ...] [--svi] [--plot FILE]

fits a logistic regression with 50 covariates of so many rows, and a Poisson regression with two latents in each of so
many groups of five rows; a local level of so many steps with Gaussian noise; and crossed effects, whose rows have an
effect of one of rows / 40 persons and of one of a tenth as many items, with Gaussian ratings or Poisson counts. It
prints the seconds of fit and verdict (of the processor), the memory, and the error: the largest distance of a
posterior mean from the parameters that made the data, in posterior standard deviations, of which about 2 to 3 are
expected of 51 or 4 numbers; for the local level, from the exact posterior mean, by a Kalman filter on a grid. With
`--svi` stock Pyro fits an AutoNormal guide by mini-batches of 1000 rows for the same seconds as fit and verdict
together; of all others it takes all rows in a step.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import ppgen

DRAWS = {"rows": None, "groups": 50, "steps": 400, "rated": 50, "counted": 50}
COVARIATES, PER_GROUP, BATCH = 50, 5, 1000


def logistic(x: Tensor, y: Tensor, size: int | None = None) -> None:
    intercept = pyro.sample("intercept", dist.Normal(0.0, 2.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", size or len(x), subsample=None if size is None else x):
        pyro.sample("y", dist.Bernoulli(logits=intercept + x @ slope), obs=y)


def regression_data(rows: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, COVARIATES, generator=generator)
    truth = {"intercept": torch.tensor(-0.5), "slope": 0.5 * torch.randn(COVARIATES, generator=generator)}
    y = torch.bernoulli((truth["intercept"] + x @ truth["slope"]).sigmoid(), generator=generator)
    return (x, y), truth


def hierarchy(index: Tensor, x: Tensor, y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    spread = pyro.sample("spread", dist.HalfNormal(1.0).expand([2]).to_event(1))
    with pyro.plate("groups", int(index.max()) + 1):
        effect = pyro.sample("effect", dist.Normal(mean, spread).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson((effect[index, 0] + effect[index, 1] * x).exp()), obs=y)


def hierarchy_data(groups: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    index = torch.arange(groups * PER_GROUP) % groups
    x = torch.randn(len(index), generator=generator)
    truth = {"mean": torch.tensor([0.5, -0.2]), "spread": torch.tensor([0.4, 0.2])}
    effect = truth["mean"] + truth["spread"] * torch.randn(groups, 2, generator=generator)
    y = torch.poisson((effect[index, 0] + effect[index, 1] * x).exp(), generator=generator)
    return (index, x, y), truth


def local_level(y: Tensor) -> None:
    step_scale = pyro.sample("step_scale", dist.HalfNormal(1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("steps", len(y)):
        step = pyro.sample("step", dist.Normal(0.0, step_scale))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(step.cumsum(-1), noise), obs=y)


def series(steps: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """A level with steps of .2 under noise of 1; the exact posterior means are the truth here."""
    generator = torch.Generator().manual_seed(1)
    y = 0.2 * torch.randn(steps, generator=generator).cumsum(0) + torch.randn(steps, generator=generator)
    scale, noise = torch.meshgrid(torch.linspace(0.1, 0.4, 121), torch.linspace(0.8, 1.2, 121), indexing="ij")
    scale, noise = scale.double(), noise.double()
    log_p = -scale.square() / 2 - noise.square() / 2  # the priors
    mean, variance = torch.zeros_like(scale), torch.zeros_like(scale)
    for value in y.double():  # the Kalman filter, for all scales at once
        variance = variance + scale.square()
        total = variance + noise.square()
        log_p = log_p - (value - mean).square() / total / 2 - total.log() / 2
        gain = variance / total
        mean, variance = mean + gain * (value - mean), (1 - gain) * variance
    weights = log_p.flatten().softmax(0).reshape(scale.shape)
    return (y,), {"step_scale": (weights * scale).sum(), "noise": (weights * noise).sum()}


def predictor(person: Tensor, item: Tensor) -> Tensor:
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0).expand([2]).to_event(1))
    with pyro.plate("persons", int(person.max()) + 1):
        a = pyro.sample("a", dist.Normal(0.0, spread[0]))
    with pyro.plate("items", int(item.max()) + 1):
        b = pyro.sample("b", dist.Normal(0.0, spread[1]))
    return mean + a[person] + b[item]


def rated(person: Tensor, item: Tensor, y: Tensor) -> None:
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    eta = predictor(person, item)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(eta, noise), obs=y)


def counted(person: Tensor, item: Tensor, y: Tensor) -> None:
    eta = predictor(person, item)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(eta.exp()), obs=y)


def effects(rows: int, *, counts: bool) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    sizes = rows // 40, rows // 400
    person, item = (torch.randint(size, (rows,), generator=generator) for size in sizes)
    truth = {"mean": torch.tensor(0.3), "spread": torch.tensor([0.5, 0.3])}
    a, b = (s * torch.randn(size, generator=generator) for s, size in zip(truth["spread"], sizes, strict=True))
    eta = truth["mean"] + a[person] + b[item]
    if counts:
        return (person, item, torch.poisson(eta.exp(), generator=generator)), truth
    return (person, item, eta + 0.8 * torch.randn(rows, generator=generator)), truth | {"noise": torch.tensor(0.8)}


KINDS: dict[str, tuple[Callable[..., None], Callable[[int], tuple[tuple[Tensor, ...], dict[str, Tensor]]]]] = {
    "rows": (logistic, regression_data),
    "groups": (hierarchy, hierarchy_data),
    "steps": (local_level, series),
    "rated": (rated, partial(effects, counts=False)),
    "counted": (counted, partial(effects, counts=True)),
}


def error(draws: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """The largest distance of a mean from the truth, in standard deviations."""
    return max(float(((z.mean(0) - truth[k]) / z.std(0)).abs().max()) for k, z in draws.items() if k in truth)


def automatic(kind: str, size: int) -> str:
    """One row of the table."""
    model, make = KINDS[kind]
    data, truth = make(size)
    start = time.process_time()
    fit = ppgen.fit(model, "auto", data, progress=False)
    fitted = time.process_time()
    level = fit.diagnose(*data).level
    judged = time.process_time()
    draws = fit.to_arviz(*data, draws=DRAWS[kind], predictive=False).posterior
    seconds = fitted - start, judged - fitted, time.process_time() - judged
    found = {k: torch.as_tensor(draws[k].values[fit.best]) for k in truth}
    rows = fit.metadata.get("rows", {})
    return (
        f"| {kind} {size} | auto | {seconds[0]:.1f} | {seconds[1]:.1f} | {seconds[2]:.1f} | {memory():.1f} | {level} "
        f"| {rows.get('subset', 'all')} | {rows.get('error', 0):.2g} | {error(found, truth):.1f} |"
    )


def stock(kind: str, size: int, seconds: float) -> str:
    """One row of stock Pyro's mean-field guide, trained for so many seconds."""
    model, make = KINDS[kind]
    data, truth = make(size)
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    guide(*data)
    start, steps = time.process_time(), 0
    while time.process_time() - start < seconds:
        batch = data
        if kind == "rows" and size > BATCH:
            chosen = torch.randint(size, (BATCH,))
            batch = (*(part[chosen] for part in data), size)
        svi.step(*batch)
        steps += 1
    found = {k: torch.stack([guide(*data)[k].detach() for _ in range(500)]) for k in truth}
    guide_text = f"AutoNormal, {steps} steps"
    return f"| {kind} {size} | {guide_text} | {seconds:.1f} | | | {memory():.1f} | | | | {error(found, truth):.1f} |"


def memory() -> float:
    """The largest memory of this process, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def plot(rows: list[str], path: str) -> None:
    """Seconds of fit and verdict against size."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3), constrained_layout=True)
    for axis, kind in zip(axes, ("rows", "groups"), strict=True):
        cells = [[cell.strip() for cell in row.split("|")] for row in rows if row.startswith(f"| {kind}")]
        found = [(int(c[1].split()[1]), float(c[3]), float(c[4])) for c in cells if c[2] == "auto"]
        for number, label in ((1, "fit"), (2, "verdict")):
            axis.semilogx([f[0] for f in found], [f[number] for f in found], "o-", label=label)
        axis.set_xlabel(f"number of {kind}")
        axis.set_ylabel("seconds")
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[2_000, 20_000, 200_000, 1_000_000])
    parser.add_argument("--groups", type=int, nargs="*", default=[300, 2_000, 20_000, 100_000])
    parser.add_argument("--steps", type=int, nargs="*", default=[5_000])
    parser.add_argument("--rated", type=int, nargs="*", default=[200_000])
    parser.add_argument("--counted", type=int, nargs="*", default=[200_000])
    parser.add_argument("--svi", action="store_true", help="fit a mean-field guide by stock Pyro too")
    parser.add_argument("--plot", help="a file for a figure")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:  # in a process of its own, whose memory is that of one fit
        kind, size, *seconds = options.one
        print(stock(kind, int(size), float(seconds[0])) if seconds else automatic(kind, int(size)), flush=True)
        return
    print("| | guide | fit, s | verdict, s | draws, s | GB | verdict | subset | its error, nats | error, sd |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for kind in KINDS:
        for size in getattr(options, kind):
            rows.append(_alone(kind, size))
            if options.svi:
                cells = rows[-1].split("|")
                _alone(kind, size, float(cells[3]) + float(cells[4]))
    if options.plot:
        plot(rows, options.plot)


def _alone(kind: str, size: int, *seconds: float) -> str:
    command = [sys.executable, __file__, "--one", kind, str(size), *map(str, seconds)]
    row = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
