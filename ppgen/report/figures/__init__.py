"""The figures of reports: pure functions from arrays to matplotlib figures, in one style.

A new figure is a function in a file of this package and an import here, by its own name.
"""

from ppgen.report.figures.checks import predictive_histograms as predictive_histograms
from ppgen.report.figures.checks import uniformity as uniformity
from ppgen.report.figures.density import densities as densities
from ppgen.report.figures.diffusion import clouds as clouds
from ppgen.report.figures.diffusion import errors_by_noise as errors_by_noise
from ppgen.report.figures.events import reconstructions as reconstructions
from ppgen.report.figures.events import samples as samples
from ppgen.report.figures.events import sequences as sequences
from ppgen.report.figures.flow import base_space as base_space
from ppgen.report.figures.flow import density as density
from ppgen.report.figures.flow import log_densities as log_densities
from ppgen.report.figures.flow import warped_grid as warped_grid
from ppgen.report.figures.latent import latent_plane as latent_plane
from ppgen.report.figures.latent import latent_walk as latent_walk
from ppgen.report.figures.posterior import khat as khat
from ppgen.report.figures.posterior import posterior as posterior
from ppgen.report.figures.restarts import restart_intervals as restart_intervals
from ppgen.report.figures.table_quality import associations as associations
from ppgen.report.figures.table_quality import marginals as marginals
from ppgen.report.figures.training import elbo_trace as elbo_trace
from ppgen.report.figures.training import loss_curves as loss_curves
from ppgen.report.figures.training import term_breakdown as term_breakdown
from ppgen.report.figures.weights import weight_tail as weight_tail
from ppgen.report.figures.weights import weights_by_rank as weights_by_rank
