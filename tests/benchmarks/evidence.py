"""Held-out log evidence of dequantized digits: VAEs with a Gaussian decoder beside factor analysis of the same size.

Factor analysis has an exact likelihood. The VAE's is the importance weighted bound with k = 500, whose expectation is
below the VAE's own log evidence. Both have the same splits and the same number of latents. Results are in nats per
image, over several seeds of data and weights.

    python tests/benchmarks/evidence.py [--seeds 3] [--epochs 200] [--flows]

With --flows, the variants differ in the flows of prior and posterior, and not in the decoder's covariance.
"""

import argparse
import math
import time
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import FactorAnalysis

import ppgen
from ppgen import data, recipes
from ppgen.models import VAE

LATENT = 8


COVARIANCES: dict[str, dict[str, Any]] = {
    f"{name} covariance": {"covariance": name} for name in ("diagonal", "low_rank")
}
FLOWS: dict[str, dict[str, Any]] = {
    "Gaussians": {},
    "prior realnvp": {"prior": "realnvp"},
    "prior maf": {"prior": "maf"},
    "posterior iaf": {"posterior": "iaf"},
    "posterior nsf": {"posterior": "nsf"},
    "prior realnvp, posterior iaf": {"prior": "realnvp", "posterior": "iaf"},
}


def one(seed: int, epochs: int, options: dict[str, Any]) -> tuple[float, float, float]:
    """Returns the mean held-out log evidence of the VAE and of factor analysis, and the VAE's seconds."""
    digits = data.load("digits", seed=seed)
    torch.manual_seed(seed)
    vae = VAE(digits.event_shape, latent_dim=LATENT, **options)
    start = time.perf_counter()
    ppgen.fit(
        vae.model,
        vae.guide,
        digits.train.x,
        loss=recipes.vae(),
        epochs=epochs,
        batch_size=128,
        validation=digits.validation.x,
        patience=20,
        seed=seed,
        progress=False,
    )
    seconds = time.perf_counter() - start
    torch.manual_seed(seed)
    evidence = float(vae.log_evidence(torch.as_tensor(digits.test.x), particles=500).mean())
    flat = [split.x.reshape(len(split.x), -1).astype(float) for split in (digits.train, digits.test)]
    factors = float(FactorAnalysis(LATENT, svd_method="lapack", max_iter=5000, tol=1e-4).fit(flat[0]).score(flat[1]))
    return evidence, factors, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--flows", action="store_true")
    options = parser.parse_args()
    print(f"held-out log evidence, dequantized digits, {LATENT} latents, {options.seeds} seeds: mean (standard error)")
    for name, variant in (FLOWS if options.flows else COVARIANCES).items():
        rows = np.array([one(seed, options.epochs, variant) for seed in range(options.seeds)])
        error = rows.std(0, ddof=1) / math.sqrt(len(rows)) if len(rows) > 1 else np.full(3, np.nan)
        vae, factors, seconds = rows.mean(0)
        print(f"  VAE, {name:<30} {vae:8.2f} ({error[0]:.2f}) nats   {seconds:.0f} s", flush=True)
    print(f"  factor analysis {'':<19} {factors:8.2f} ({error[1]:.2f}) nats")


if __name__ == "__main__":
    main()
