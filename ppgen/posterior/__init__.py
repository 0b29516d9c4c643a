"""Ways to a posterior from a program alone: its density on the real line, modes, Gaussians, a flow; its evidence."""

from ppgen.posterior.annealed import Sandwich, sandwich
from ppgen.posterior.bend import Bend
from ppgen.posterior.climb import Summit, climb
from ppgen.posterior.gaussian import Gaussians, climb_evidence
from ppgen.posterior.normals import Normals
from ppgen.posterior.precision import InDouble, in_double
from ppgen.posterior.unconstrained import Unconstrained

__all__ = [
    "Bend",
    "Gaussians",
    "InDouble",
    "Normals",
    "Sandwich",
    "Summit",
    "Unconstrained",
    "climb",
    "climb_evidence",
    "in_double",
    "sandwich",
]
