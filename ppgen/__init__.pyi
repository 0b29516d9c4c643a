from . import (
    data,
    diagnostics,
    diffusion,
    evaluation,
    flows,
    infer,
    losses,
    metrics,
    models,
    nets,
    posterior,
    report,
    runs,
    testing,
    tracing,
    training,
    tuning,
    utils,
)
from .diagnostics.stock_pyro import from_pyro, from_pyro_svi
from .fitting import Fit, fit
from .infer.autoguide import AutoFlow
from .infer.svi import SVI
from .losses import recipes, views
from .losses.annealed_elbo import AnnealedELBO
from .losses.diffusion_elbo import DiffusionELBO
from .losses.elbo import ELBO, Rate, Reconstruction
from .losses.match import match
from .losses.objective import Objective
from .losses.wake_sleep import Sleep, Wake, WakeInference
from .losses.weights import Anneal, Ramp
from .models.simulator import Implicit, Simulator
from .runs.trained import load
from .training.progressive import ProgressiveGrowing

__version__: str
__all__ = [
    "ELBO",
    "SVI",
    "Anneal",
    "AnnealedELBO",
    "AutoFlow",
    "DiffusionELBO",
    "Fit",
    "Implicit",
    "Objective",
    "ProgressiveGrowing",
    "Ramp",
    "Rate",
    "Reconstruction",
    "Simulator",
    "Sleep",
    "Wake",
    "WakeInference",
    "data",
    "diagnostics",
    "diffusion",
    "evaluation",
    "fit",
    "flows",
    "from_pyro",
    "from_pyro_svi",
    "infer",
    "load",
    "losses",
    "match",
    "metrics",
    "models",
    "nets",
    "posterior",
    "recipes",
    "report",
    "runs",
    "testing",
    "tracing",
    "training",
    "tuning",
    "utils",
    "views",
]
