"""Diffusion: noise levels, denoisers, and ways from noise back to data."""

from ppgen.diffusion.coupling import COUPLINGS, couple
from ppgen.diffusion.denoiser import PREDICTS, Denoiser
from ppgen.diffusion.guidance import classifier, classifier_free, posterior
from ppgen.diffusion.law import PathLaw
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
    "PREDICTS",
    "SAMPLERS",
    "SCHEDULES",
    "TIMES",
    "Denoise",
    "Denoiser",
    "LearnedSchedule",
    "PathLaw",
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
