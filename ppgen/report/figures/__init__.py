"""The figures of a report: pure functions from arrays to matplotlib figures, all in one look."""

from ppgen.report.figures.density import densities
from ppgen.report.figures.events import reconstructions, samples, sequences
from ppgen.report.figures.latent import latent_plane, latent_walk
from ppgen.report.figures.posterior import khat, posterior
from ppgen.report.figures.training import loss_curves, term_breakdown

__all__ = [
    "densities",
    "khat",
    "latent_plane",
    "latent_walk",
    "loss_curves",
    "posterior",
    "reconstructions",
    "samples",
    "sequences",
    "term_breakdown",
]
