"""A check of whether the loss had converged."""

import math

import numpy as np

from ppgen.diagnostics.checks.check import GOOD, Check, Finding
from ppgen.diagnostics.checks.draws import PosteriorDraws

__all__ = ["UNCONVERGED_NATS"]

MAX_UNCONVERGED_NATS = 0.5
MIN_STEPS = 5  # in a fifth of the run


def unconverged_nats(draws: PosteriorDraws) -> Finding | None:
    """The decrease of the loss from the fourth to the last fifth of the run, beyond two standard errors, in nats.

    Where rows were held out it is that of their loss: the loss of the training rows goes on falling by overfitting.
    """
    chain = draws.fit.chains[draws.chain]
    held_out = np.asarray(chain.validation.get("loss", ()))
    losses = held_out if len(held_out) else chain.history["loss"]
    fifth = len(losses) // 5
    if fifth < MIN_STEPS or not np.isfinite(losses[-2 * fifth :]).all():
        return None
    before, last = losses[-2 * fifth : -fifth], losses[-fifth:]
    noise = 2 * math.sqrt((before.var() + last.var()) / fifth)
    value = max(0.0, float(before.mean() - last.mean() - noise)) * draws.fit.num_data
    if value > MAX_UNCONVERGED_NATS:
        return Finding(value, "the loss still fell by so many nats in the last fifth of the run", GOOD, advise=True)
    return Finding(value)


UNCONVERGED_NATS = Check(
    "unconverged_nats",
    "The number of nats by which the loss, held-out where rows were, still fell in the last fifth, beyond its noise.",
    unconverged_nats,
    guide_advice=("more steps",),
)
