"""The figures of a report: pure functions from arrays to matplotlib figures, all in one look."""

from ppgen.report.figures.checks import replicates, uniformity
from ppgen.report.figures.density import densities
from ppgen.report.figures.diffusion import clouds, errors_by_noise
from ppgen.report.figures.events import reconstructions, samples, sequences
from ppgen.report.figures.flow import density, log_densities, pulled_back, warped_grid
from ppgen.report.figures.latent import latent_plane, latent_walk
from ppgen.report.figures.posterior import khat, posterior
from ppgen.report.figures.restarts import restarts
from ppgen.report.figures.training import evidence_trace, loss_curves, term_breakdown
from ppgen.report.figures.weights import moved, weight_tail

__all__ = [
    "clouds",
    "densities",
    "density",
    "errors_by_noise",
    "evidence_trace",
    "khat",
    "latent_plane",
    "latent_walk",
    "log_densities",
    "loss_curves",
    "moved",
    "posterior",
    "pulled_back",
    "reconstructions",
    "replicates",
    "restarts",
    "samples",
    "sequences",
    "term_breakdown",
    "uniformity",
    "warped_grid",
    "weight_tail",
]
