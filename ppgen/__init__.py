"""Generative models as probabilistic programs."""

__version__ = "0.1.0"
