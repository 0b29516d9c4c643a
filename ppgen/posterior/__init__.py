"""Finding the posterior of a program without a guide: modes, Gaussians, a flow, importance weights."""
