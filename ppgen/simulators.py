"""Simulators as Pyro programs: rows of simulations, and laws that can be drawn but not scored.

A simulator is a model p(z) p(x | z) of one datum. `Simulator` runs n of them at once, row i with its own z_i and x_i,
in a plate "data" of n rows; x are arguments of the model by the names of its sites.
"""

import inspect
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ppgen.draws import DATA, Program, nearest, quiet_sites, signature

__all__ = ["Implicit", "Simulator"]


class Simulator:
    """A program of one datum as a program of rows: ``simulator(x)`` observes n rows, ``draw(n)`` simulates as many.

    It is called as the model is, or with values for latents beside: ``simulator(x, z)``. Those are simulations made
    before, as `draw` returns them. They change nothing here but are what `ppgen.Sleep` then scores a guide at, so that

        fit(simulator, guide, simulator.draw(10_000), loss=Sleep(), batch_size=100, validation=0.1, patience=20)

    goes by a table of simulations, and ``fit(simulator, guide, x, loss=Sleep())`` simulates anew in every step, as many
    as x has rows. A guide of one's own takes the same arguments, ``guide(x, z=None)``.

    Args:
        model: a Pyro program of one datum, that broadcasts: z is (n, *event) under the plate. It is called without
            arguments to simulate, and with the observations to observe them: ``def model(x=None)``.
        data: {argument: site} for arguments that are not named as the sites whose values they hold.

    Attributes:
        latents: the names of the model's latents, in order.

    Raises:
        LookupError: if no argument holds a site's values, or `data` names what is not there.
        ValueError: if the model has plates of the name "data", no latents, or rows that depend on one another.
    """

    def __init__(self, model: Program, *, data: Mapping[str, str] | None = None):
        self.model, self.__wrapped__ = model, model
        form = signature(model)
        sites = quiet_sites(model)
        ...
