"""Known methods, each one expression of the algebra, on any program with a data plate.

`z` names the latent site whose aggregate law is matched. Terms are in nats per datum where they are log densities.
"""

from pyro.infer import RenyiELBO

from ppgen import views as v
from ppgen.metrics import MMD, Metric
from ppgen.objective import Objective
from ppgen.schedules import Schedule
from ppgen.terms import Evidence, Rate, Reconstruction, match

__all__ = ["RECIPES", "ae", "info_vae", "iwae", "vae", "wae"]


def ae() -> Objective:
    """Autoencoder: the reconstruction error -log p(x | z) at the code z of x, and nothing on the code's law."""
    return Reconstruction()


def vae(*, beta: float | Schedule = 1.0) -> Objective:
    """VAE (Kingma & Welling 2014); beta other than 1: beta-VAE (Higgins et al. 2017); a schedule: KL warm-up."""
    return Reconstruction() + beta * Rate()


def wae(metric: Metric | None = None, *, weight: float | Schedule = 10.0, z: str = "z") -> Objective:
    """Wasserstein autoencoder (Tolstikhin et al. 2018, equation 4): reconstruction, the aggregate code at the prior.

    Args:
        weight: 10 is theirs, for squared errors; a decoder that learns its scale earns more nats, and wants about 100.
        metric: between q(z) and p(z); MMD with inverse multiquadric kernels if left out, as in their WAE-MMD.
    """
    metric = MMD(kernel="imq") if metric is None else metric
    return Reconstruction() + weight * match(v.posterior(z), v.prior(z), metric)


def iwae(k: int = 10) -> Objective:
    """Importance weighted autoencoder (Burda et al. 2016, equation 8): -E log 1/k sum_k p(x, z_k) / q(z_k | x)."""
    return Evidence(elbo=RenyiELBO(alpha=0, num_particles=k, vectorize_particles=True))


def info_vae(*, alpha: float = 0.0, weight: float = 10.0, metric: Metric | None = None, z: str = "z") -> Objective:
    """InfoVAE (Zhao et al. 2019, equation 6): E -log p(x | z) + (1 - alpha) Rate + (alpha + weight - 1) D(q(z), p(z)).

    alpha = 0, weight = 1 is the VAE; alpha = 1 leaves mutual information between x and z free (MMD-VAE).
    """
    aggregate = match(v.posterior(z), v.prior(z), MMD() if metric is None else metric)
    return Reconstruction() + (1.0 - alpha) * Rate() + (alpha + weight - 1.0) * aggregate


RECIPES = {"ae": ae, "vae": vae, "wae": wae, "iwae": iwae, "info_vae": info_vae}
