"""Model and guide pairs ready to use."""

from ppgen.models.autoencoder import VAE, Autoencoder
from ppgen.models.dann import DANN, UNKNOWN
from ppgen.models.flow import FlowModel
from ppgen.models.gan import ALI, Generator
from ppgen.models.likelihood import COVARIANCES, LIKELIHOODS
from ppgen.moments import mean

__all__ = [
    "ALI",
    "COVARIANCES",
    "DANN",
    "LIKELIHOODS",
    "UNKNOWN",
    "VAE",
    "Autoencoder",
    "FlowModel",
    "Generator",
    "mean",
]
