from . import recipes, views
from .annealed_elbo import AnnealedELBO
from .diffusion_elbo import DiffusionELBO
from .elbo import ELBO, Rate, Reconstruction
from .joint_transport import JointTransport
from .match import Match, match
from .objective import Objective, Term
from .wake_sleep import Sleep, Wake, WakeInference
from .weights import Anneal, Ramp, Schedule

__all__ = [
    "ELBO",
    "Anneal",
    "AnnealedELBO",
    "DiffusionELBO",
    "JointTransport",
    "Match",
    "Objective",
    "Ramp",
    "Rate",
    "Reconstruction",
    "Schedule",
    "Sleep",
    "Term",
    "Wake",
    "WakeInference",
    "match",
    "recipes",
    "views",
]
