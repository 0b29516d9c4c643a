"""Data to fit: toy laws, bundled and downloaded sets, tables and images from files.

`load` turns the name of a set or a path into a `Data`: rows first, in the form that a likelihood asks for
(continuous, integer, binary, unit), split into train, validation and test, scaled by the train rows alone.
The toy laws are also here by name, each `f(n, *, seed=0, ...) -> (x, y)`.
"""

from ppgen.data.checks import check
from ppgen.data.datum import Data, Split
from ppgen.data.forms import FORMS
from ppgen.data.loading import load
from ppgen.data.scaler import Scaler
from ppgen.data.toy import (
    TOY,
    checkerboard,
    gaussians_grid,
    gaussians_ring,
    modes,
    moons,
    pinwheel,
    rings,
    rotated_moons,
    swiss_roll,
)

__all__ = [
    "FORMS",
    "TOY",
    "Data",
    "Scaler",
    "Split",
    "check",
    "checkerboard",
    "gaussians_grid",
    "gaussians_ring",
    "load",
    "modes",
    "moons",
    "pinwheel",
    "rings",
    "rotated_moons",
    "swiss_roll",
]
