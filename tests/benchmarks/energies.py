"""The four energies of Rezende & Mohamed 2015 with a flow as the guide, under the reverse KL divergence, over seeds.

KL(q, p) = log Z - E_q[log p~(x) - log q(x)] in nats, with log Z by quadrature. ESS / n is the effective share of the n
importance samples. Their estimate of log Z less that by quadrature is printed for the seed where it is farthest from
zero; it is negative where q misses mass. All columns use the same n draws.

The settings are those of ``ppgen train flow``. They were chosen on seed 0; only the number of steps was chosen after
seeds 1 to 3 had been seen. The seconds of a run leave out compiling, which the first seed of an energy pays for.

    python tests/benchmarks/energies.py [--seeds 3] [--first 1] [--only u1 u3] [--steps 8000] [--draws 100000]
        [--layers 3] [--path_derivative 0] [--anneal 0.3]
"""

import argparse
import time
from functools import partial

import numpy as np
import pyro
import torch

import ppgen
from ppgen import recipes
from ppgen.models import ENERGIES, UnnormalizedDensity
from ppgen.posterior.importance import importance_summary
from ppgen.runs.methods import METHODS
from ppgen.tracing.particles import log_weights

CHUNK = 10_000
DEFAULTS = METHODS["flow"].defaults


def one(energy: UnnormalizedDensity, seed: int, options: argparse.Namespace) -> tuple[float, ...]:
    """Returns KL, its standard error, ESS / n, the error of log Z, the seconds of the steps and those of compiling."""
    pyro.set_rng_seed(seed)
    guide = ppgen.AutoFlow(energy.model, layers=options.layers, init_scale=DEFAULTS["model.init_scale"])
    loss = recipes.reverse_kl(
        energy.base, anneal=options.anneal, path_derivative=bool(options.path_derivative), max_plate_nesting=0
    )
    adam = partial(torch.optim.Adam, lr=DEFAULTS["lr"])
    start = time.perf_counter()
    fit = ppgen.fit(
        *(energy.model, guide, None),
        loss=loss,
        optim=adam,
        steps=options.steps,
        lr_scheduler=DEFAULTS["fit.lr_scheduler"],
        seed=seed,
        progress=False,
        compile=True,
    )
    seconds = time.perf_counter() - start
    compiling = float(fit.chains[0].compiled.split(" in ")[1].split(" s")[0])
    pyro.set_rng_seed(seed)
    chunks = [log_weights(energy.model, guide, (), particles=CHUNK) for _ in range(options.draws // CHUNK)]
    weights = torch.cat(chunks).double().numpy()
    summary, error = importance_summary(weights), float(weights.std() / len(weights) ** 0.5)
    kl, ess_ratio = energy.log_z - float(summary.elbo[0]), float(summary.ess[0]) / len(weights)
    return kl, error, ess_ratio, float(summary.log_marginal[0]) - energy.log_z, seconds - compiling, compiling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(ENERGIES), default=list(ENERGIES))
    parser.add_argument("--steps", type=int, default=DEFAULTS["fit.steps"])
    parser.add_argument("--anneal", type=float, default=DEFAULTS["loss.anneal"])
    parser.add_argument("--layers", type=int, default=DEFAULTS["model.layers"])
    parser.add_argument("--path_derivative", type=int, default=1)
    parser.add_argument("--draws", type=int, default=100_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"nsf_autoregressive, {options.layers} layers of 2 x 64; {options.steps} steps of 256 "
        f"draws, Adam {DEFAULTS['lr']:g} to 0; annealed for {options.anneal:.0%} of them; "
        f"{'with' if options.path_derivative else 'without'} path derivatives; evaluated by {options.draws} draws\n"
    )
    print("| energy | log Z | KL, each seed | KL, mean | ESS / n, smallest | log Z, IS | seconds | compiling |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.only:
        energy = ENERGIES[name]
        rows = [one(energy, seed, options) for seed in range(options.first, options.first + options.seeds)]
        kl, error, ess_ratio, difference, seconds, compiling = np.array(rows).T
        each = ", ".join(f"{value:.4f} ({se:.4f})" for value, se in zip(kl, error, strict=True))
        worst = difference[np.abs(difference).argmax()]
        print(
            f"| {name} | {energy.log_z:.4f} | {each} | {kl.mean():.4f} | {ess_ratio.min():.3f} | {worst:+.4f} "
            f"| {seconds.mean():.0f} | {compiling.max():.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
