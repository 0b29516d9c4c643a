"""Held-out log evidence on dequantised digits: a VAE with a Gaussian decoder beside factor analysis of the same size.

Factor analysis has an exact likelihood; the VAE's is the importance weighted bound with k = 500, which is below its
own log evidence in expectation. Same splits, same latent size, nats per image, over several seeds of data and weights.

    python tests/benchmarks/evidence.py [--seeds 3] [--epochs 200]
"""

import argparse
import math
import time

import numpy as np
import torch
from sklearn.decomposition import FactorAnalysis

import ppgen
from ppgen import data, recipes
from ppgen.models import VAE

LATENT = 8


def one(seed: int, epochs: int, covariance: str) -> tuple[float, float, float]:
    """Mean held-out log evidence of the VAE and of factor analysis, and the VAE's seconds."""
    digits = data.load("digits", seed=seed)
    torch.manual_seed(seed)
    vae = VAE(digits.event_shape, latent_dim=LATENT, covariance=covariance)
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
    options = parser.parse_args()
    print(f"held-out log evidence, dequantised digits, {LATENT} latents, {options.seeds} seeds: mean (standard error)")
    for covariance in ("diagonal", "low_rank"):
        rows = np.array([one(seed, options.epochs, covariance) for seed in range(options.seeds)])
        error = rows.std(0, ddof=1) / math.sqrt(len(rows)) if len(rows) > 1 else np.full(3, np.nan)
        vae, factors, seconds = rows.mean(0)
        print(f"  VAE, {covariance} covariance   {vae:8.2f} ({error[0]:.2f}) nats   {seconds:.0f} s")
    print(f"  factor analysis            {factors:8.2f} ({error[1]:.2f}) nats")


if __name__ == "__main__":
    main()
