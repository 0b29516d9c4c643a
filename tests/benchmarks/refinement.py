"""Posteriors at which guides are refused, drawn by a sampler that starts from the guide.

    python tests/benchmarks/refinement.py [PROGRAM ...]

prints, for each program, the seconds of the fit, its verdict, the seconds of `refine`, and of its draws the verdict,
R-hat, the least effective sample sizes, the log evidence with its standard error, and what is known of it. Seconds are
those of the processor, in one thread, which on a quiet machine are those of the clock.
"""

import math
import sys
import time
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

import ppgen


def diabetes() -> tuple[Tensor, Tensor]:
    table = load_diabetes()
    x, y = torch.as_tensor(table.data), torch.as_tensor(table.target)
    return x / x.std(0), (y - y.mean()) / y.std()


def sparse() -> tuple[Tensor, Tensor]:
    """100 rows, of whose 20 covariates three matter."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 20, generator=generator).double()
    slopes = torch.tensor([2.0, -1.0, 0.5] + 17 * [0.0]).double()
    return x, x @ slopes + torch.randn(100, generator=generator).double()


def horseshoe(x: Tensor, y: Tensor) -> None:
    count = x.shape[-1]
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    local = pyro.sample("local", dist.HalfCauchy(1.0).expand([count]).to_event(1))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([count]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    beta = pyro.deterministic("beta", z * local * tau)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def centered_horseshoe(x: Tensor, y: Tensor) -> None:
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    local = pyro.sample("local", dist.HalfCauchy(1.0).expand([x.shape[-1]]).to_event(1))
    beta = pyro.sample("beta", dist.Normal(0.0, local * tau).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("xs", 9):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


def two_modes() -> None:
    """Five latents, 22 standard deviations between the modes."""
    centers = torch.tensor([[-5.0], [5.0]]).expand(2, 5)
    parts = dist.Normal(centers, torch.tensor([[1.0], [0.5]]).expand(2, 5)).to_event(1)
    pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.85, 0.15])), parts))


def rosenbrock(divisor: float) -> Callable[[], None]:
    def program() -> None:
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (6,)))
        ridge = 100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2
        pyro.factor("f", -ridge.sum(-1) / divisor)

    return program


def rosenbrock_pairs() -> None:
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (6,)))
    a, b = x[..., ::2], x[..., 1::2]
    pyro.factor("f", -(100 * (b - a**2) ** 2 + (1 - a) ** 2).sum(-1) / 20)


def chain_evidence(divisor: float) -> float:
    """The log evidence of `rosenbrock`, by integrals over one latent after another on a grid, from the last on."""
    x = torch.linspace(-4.0, 4.0, 3001, dtype=torch.float64) * divisor**0.25
    spacing = float(x[1] - x[0])
    kernel = (-100 * (x - x[:, None] ** 2) ** 2 / divisor).exp() * spacing  # row: x_i, column: x_(i+1)
    weight = (-((1 - x) ** 2) / divisor).exp()
    rest = torch.full_like(x, math.sqrt(math.pi * divisor / 100))  # over the last latent
    for _ in range(4):
        rest = kernel @ (weight * rest)
    return math.log(float((weight * rest).sum()) * spacing)


# by name: the program, its data, and the log evidence where it is known
PROGRAMS = {
    "horseshoe, 10 slopes": (horseshoe, diabetes(), None),
    "horseshoe, 20 slopes": (horseshoe, sparse(), None),
    "centered horseshoe, 10 slopes": (centered_horseshoe, diabetes(), None),
    "funnel, 10 latents": (funnel, (), 0.0),
    "two modes, 5 latents": (two_modes, (), 0.0),
    "Rosenbrock chain / 20, 6 latents": (rosenbrock(20.0), (), chain_evidence(20.0)),
    "Rosenbrock chain, 6 latents": (rosenbrock(1.0), (), chain_evidence(1.0)),
    "Rosenbrock pairs, 6 latents": (rosenbrock_pairs, (), 3 * math.log(2 * math.pi)),
}


def measure(name: str) -> str:
    """A row of the table."""
    program, data, known = PROGRAMS[name]
    start = time.process_time()
    fit = ppgen.fit(program, "auto", data or None, progress=False)
    of_fit = time.process_time() - start
    before = fit.diagnose(*data).level
    start = time.process_time()
    refined = fit.refine(*data, progress=False)
    seconds = time.process_time() - start
    verdict, found = refined.diagnose(*data), refined.metadata["refined"]
    r_hat, bulk, tail = (verdict.statistics[key] for key in ("r_hat", "ess_bulk", "ess_tail"))
    cells = [name, f"{of_fit:.1f}", before, f"{seconds:.1f}", verdict.level, f"{r_hat:.3f}", f"{bulk:.0f}, {tail:.0f}"]
    cells += [f"{found['log_marginal']:.2f} ± {found['error']:.2f}", "" if known is None else f"{known:.2f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    print("| program | fit, s | verdict | refine, s | verdict | R-hat | ESS bulk, tail | log evidence | exact |")
    print("|---|---|---|---|---|---|---|---|---|")
    for chosen in sys.argv[1:] or PROGRAMS:
        print(measure(chosen), flush=True)
