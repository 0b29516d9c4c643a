"""Diffusion: noise levels, denoisers, and ways from noise back to data."""

from ppgen.diffusion.denoiser import PREDICTS, Denoiser
from ppgen.diffusion.schedule import SCHEDULES, LearnedSchedule, Rates, Schedule, at_noise, bridge, make_schedule

__all__ = [
    "PREDICTS",
    "SCHEDULES",
    "Denoiser",
    "LearnedSchedule",
    "Rates",
    "Schedule",
    "at_noise",
    "bridge",
    "make_schedule",
]
