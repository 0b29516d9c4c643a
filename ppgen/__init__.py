"""Generative models as probabilistic programs.

A Pyro model and guide define two joint laws of data x and latent z; a loss is a sum of terms, each naming where the
two are compared and by which metric. `Evidence`, `Reconstruction`, `Rate` and `match` are the terms, `views` the
places, `metrics` the metrics, `recipes` the known methods; `SVI` and `fit` minimise.
"""

from ppgen import metrics, recipes, views
from ppgen.annealing import AnnealedEvidence
from ppgen.fit import fit
from ppgen.growth import Growth
from ppgen.infer import SVI, AutoFlow
from ppgen.objective import Objective
from ppgen.result import Fit
from ppgen.schedules import Anneal, Ramp
from ppgen.simulators import Implicit, Simulator
from ppgen.stepwise import StepwiseEvidence
from ppgen.terms import Evidence, Rate, Reconstruction, match
from ppgen.wake_sleep import Sleep, Wake, WakeGuide

__version__ = "0.1.0"

__all__ = [
    "SVI",
    "Anneal",
    "AnnealedEvidence",
    "AutoFlow",
    "Evidence",
    "Fit",
    "Growth",
    "Implicit",
    "Objective",
    "Ramp",
    "Rate",
    "Reconstruction",
    "Simulator",
    "Sleep",
    "StepwiseEvidence",
    "Wake",
    "WakeGuide",
    "fit",
    "match",
    "metrics",
    "recipes",
    "views",
]
