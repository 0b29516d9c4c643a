"""The posterior of the horseshoe regression by Gibbs sampling, which converges where NUTS does not.

    y ~ N(X beta, sigma^2),  beta_j = z_j local_j tau,  z_j ~ N(0, 1),  local_j, tau ~ C+(0, 1),  sigma ~ C+(0, 2.5)

A scale s has a half-Cauchy distribution of scale c if s^2 | a ~ IG(1/2, 1/a) and a ~ IG(1/2, 1/c^2). So each full
conditional is normal or inverse gamma (Makalic & Schmidt 2016, https://arxiv.org/abs/1508.03884; their beta is in units
of sigma, this one is not):

    beta       ~ N(V X'y / sigma^2, V),                                V^-1 = X'X / sigma^2 + diag(local^2 tau^2)^-1
    local_j^2  ~ IG(1, 1 / a_j + beta_j^2 / 2 tau^2),                      a_j ~ IG(1, 1 + 1 / local_j^2)
    tau^2      ~ IG((p + 1) / 2, 1 / b + sum_j beta_j^2 / 2 local_j^2),    b ~ IG(1, 1 + 1 / tau^2)
    sigma^2    ~ IG((n + 1) / 2, 1 / c + |y - X beta|^2 / 2),              c ~ IG(1, 1 / 2.5^2 + 1 / sigma^2)

    python tests/benchmarks/posterior_gibbs.py          prints R-hat of its chains
"""

import arviz as az
import numpy as np
from posterior_data import data
from torch import Tensor

CHAINS, SWEEPS, WARMUP = 4, 40_000, 2000
SIGMA_SCALE = 2.5  # of sigma's prior


def sample(x: np.ndarray, y: np.ndarray, *, sweeps: int = SWEEPS, seed: int = 0) -> dict[str, np.ndarray]:
    """Draws (chains, sweeps, ...) of tau, z, sigma and beta; all chains run in parallel."""
    rng = np.random.default_rng(seed)
    (n, p), gram, moment = x.shape, x.T @ x, x.T @ y
    local, tau, sigma = rng.gamma(1.0, size=(CHAINS, p)), rng.gamma(1.0, size=CHAINS), rng.gamma(1.0, size=CHAINS)
    draws: dict[str, list[np.ndarray]] = {name: [] for name in ("tau", "z", "sigma", "beta")}

    def inverse_gamma(shape: float, scale: np.ndarray) -> np.ndarray:
        return scale / rng.gamma(shape, size=scale.shape)

    for sweep in range(WARMUP + sweeps):
        prior = (local * tau[:, None]) ** -2
        precision = gram / sigma[:, None, None] ** 2 + prior[:, None] * np.eye(p)
        root = np.linalg.cholesky(precision)
        mean = np.linalg.solve(precision, (moment / sigma[:, None] ** 2)[..., None])
        noise = np.linalg.solve(root.transpose(0, 2, 1), rng.standard_normal((CHAINS, p, 1)))
        beta = (mean + noise)[..., 0]
        a = inverse_gamma(1.0, 1 + local**-2)
        local = inverse_gamma(1.0, 1 / a + beta**2 / (2 * tau[:, None] ** 2)) ** 0.5
        b = inverse_gamma(1.0, 1 + tau**-2)
        tau = inverse_gamma((p + 1) / 2, 1 / b + (beta**2 / local**2).sum(1) / 2) ** 0.5
        c = inverse_gamma(1.0, SIGMA_SCALE**-2 + sigma**-2)
        sigma = inverse_gamma((n + 1) / 2, 1 / c + ((y - beta @ x.T) ** 2).sum(1) / 2) ** 0.5
        if sweep >= WARMUP:
            for name, value in (("tau", tau), ("z", beta / (local * tau[:, None])), ("sigma", sigma), ("beta", beta)):
                draws[name].append(value)
    return {name: np.stack(values, 1) for name, values in draws.items()}


def moments(x: Tensor, y: Tensor) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of each site."""
    draws = sample(x.numpy(), y.numpy())
    return {name: (value.mean((0, 1)), value.std((0, 1))) for name, value in draws.items()}


if __name__ == "__main__":
    dataset = az.convert_to_dataset(sample(*data("horseshoe")))
    print(az.summary(dataset, kind="all", round_to=3).to_string())
