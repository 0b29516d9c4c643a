"""The figures of a report: pure functions from arrays to matplotlib figures, all in one look."""

from ppgen.report.figures.density import densities
from ppgen.report.figures.diffusion import clouds, errors_by_noise
from ppgen.report.figures.events import reconstructions, samples, sequences
from ppgen.report.figures.flow import density, log_densities, pulled_back, warped_grid
from ppgen.report.figures.latent import latent_plane, latent_walk
from ppgen.report.figures.posterior import khat, posterior
from ppgen.report.figures.training import loss_curves, term_breakdown

__all__ = [
    "clouds",
    "densities",
    "density",
    "errors_by_noise",
    "khat",
    "latent_plane",
    "latent_walk",
    "log_densities",
    "loss_curves",
    "posterior",
    "pulled_back",
    "reconstructions",
    "samples",
    "sequences",
    "term_breakdown",
    "warped_grid",
]
