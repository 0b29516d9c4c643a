"""Model and guide pairs ready to use."""

from ppgen.models.autoencoder import VAE, Autoencoder
from ppgen.models.likelihood import COVARIANCES, LIKELIHOODS, mean

__all__ = ["COVARIANCES", "LIKELIHOODS", "VAE", "Autoencoder", "mean"]
