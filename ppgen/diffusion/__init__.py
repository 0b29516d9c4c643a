"""Diffusion models: noise schedules, denoisers, samplers, guidance, and couplings of noise with data."""

from ppgen.diffusion.coupling import COUPLINGS, couple
from ppgen.diffusion.denoiser import PREDICTION_TYPES, Denoiser
from ppgen.diffusion.guidance import classifier, classifier_free, posterior
from ppgen.diffusion.probability_flow import ProbabilityFlow
from ppgen.diffusion.sampler import SAMPLERS, Denoise, sample
from ppgen.diffusion.schedule import (
    SCHEDULES,
    LearnedSchedule,
    NoiseLevel,
    Schedule,
    bridge,
    linear_interpolation,
    make_schedule,
    variance_exploding,
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
    "NoiseLevel",
    "ProbabilityFlow",
    "Schedule",
    "bridge",
    "classifier",
    "classifier_free",
    "couple",
    "linear_interpolation",
    "make_schedule",
    "posterior",
    "sample",
    "variance_exploding",
]
