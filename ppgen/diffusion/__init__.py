"""Diffusion: noise levels, denoisers, and ways from noise back to data."""

from ppgen.diffusion.coupling import COUPLINGS, couple
from ppgen.diffusion.denoiser import PREDICTION_TYPES, Denoiser
from ppgen.diffusion.guidance import classifier, classifier_free, posterior
from ppgen.diffusion.probability_flow import ProbabilityFlow
from ppgen.diffusion.sampler import SAMPLERS, Denoise, draw
from ppgen.diffusion.schedule import (
    SCHEDULES,
    LearnedSchedule,
    Rates,
    Schedule,
    at_noise,
    bridge,
    make_schedule,
    straight,
)
from ppgen.diffusion.times import TIMES

__all__ = [
    "COUPLINGS",
    "PREDICTION_TYPES",
    "SAMPLERS",
    "SCHEDULES",
    "TIMES",
    "Denoise",
    "Denoiser",
    "LearnedSchedule",
    "ProbabilityFlow",
    "Rates",
    "Schedule",
    "at_noise",
    "bridge",
    "classifier",
    "classifier_free",
    "couple",
    "draw",
    "make_schedule",
    "posterior",
    "straight",
]
