"""Model and guide pairs ready to use."""

from ppgen.models.autoencoder import VAE, Autoencoder
from ppgen.models.dann import DANN, UNKNOWN
from ppgen.models.diffusion import Diffusion
from ppgen.models.flow import FlowModel
from ppgen.models.flow_matching import FlowMatching
from ppgen.models.gan import ALI, Generator
from ppgen.models.likelihood import COVARIANCES, LIKELIHOODS
from ppgen.models.unnormalized_density import ENERGIES, UnnormalizedDensity
from ppgen.utils.means import mean

__all__ = [
    "ALI",
    "COVARIANCES",
    "DANN",
    "ENERGIES",
    "LIKELIHOODS",
    "UNKNOWN",
    "VAE",
    "Autoencoder",
    "Diffusion",
    "FlowMatching",
    "FlowModel",
    "Generator",
    "UnnormalizedDensity",
    "mean",
]
