"""Denoisers: a network that learns E[x | z] for z = a x + s e, for any choice of what the network predicts.

A network F predicts a linear combination p x + q e of data and noise, where p and q depend on the noise level (a, s):

    prediction type   p                        q
    "data"            1                        0
    "noise"           0                        1                          Ho et al. 2020
    "velocity"        -1                       1                          Liu et al. 2023
    "score"           0                        -1                         Song et al. 2021
    "edm"             s / (d r)                -a d / r                   Karras et al. 2022

- "velocity" is dz/du on the linear path z = (1 - u) x + u e (https://arxiv.org/abs/2209.03003).
- "score" is s grad log p(z), which has unit scale (https://arxiv.org/abs/2011.13456); "noise" is its negative
  (https://arxiv.org/abs/2006.11239).
- "edm" (https://arxiv.org/abs/2206.00364) has d = `sigma_data`, the standard deviation of the data, and
  r = (s^2 + a^2 d^2)^(1/2). With d = 1 it is minus the v of Salimans & Ho 2022 (https://arxiv.org/abs/2202.00512).

Since z is another linear combination of x and e, each prediction gives the posterior mean,

    E[x | z] = (q z - s F) / (q a - p s),

and from it the predicted noise (z - a E[x | z]) / s, the score and the velocity. The network's inputs are z / r, of
unit scale, and an embedding of log SNR, so one denoiser works with every schedule.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ppgen.diffusion.schedule import NoiseLevel
from ppgen.nets import lookup

__all__ = ["PREDICTION_TYPES", "Denoiser", "NoiseEmbedding"]

Coefficients = Callable[[Tensor, Tensor, float], tuple[Tensor | float, Tensor | float]]


def _edm(a: Tensor, s: Tensor, d: float) -> tuple[Tensor, Tensor]:
    r = (s.square() + (a * d).square()).sqrt()
    return s / (d * r), -a * d / r


# (a, s, d) to the coefficients (p, q)
PREDICTION_TYPES: dict[str, Coefficients] = {
    "data": lambda a, s, d: (1.0, 0.0),
    "noise": lambda a, s, d: (0.0, 1.0),
    "velocity": lambda a, s, d: (-1.0, 1.0),
    "score": lambda a, s, d: (0.0, -1.0),
    "edm": _edm,
}


class NoiseEmbedding(nn.Module):
    """Embeds log SNR as a vector: log SNR scaled to [-1, 1], the noise fraction s / (a + s), and sines and cosines.

    Args:
        by_noise_fraction: Whether sines and cosines are harmonics of the noise fraction, which then replaces log SNR as
            the first feature. All features are then smooth up to both ends of the linear path, where log SNR is
            infinite. Otherwise they are functions of log SNR with doubling frequencies.
    """

    dim = 14
    max_log_snr = 20.0

    def __init__(self, *, by_noise_fraction: bool = False) -> None:
        super().__init__()
        self.by_noise_fraction = by_noise_fraction

    def forward(self, log_snr: Tensor) -> Tensor:
        """Maps log SNR (*batch,) to features (*batch, dim).

        The functions of log SNR saturate at +-`max_log_snr`; the noise fraction and its harmonics do not.
        """
        fraction = (-log_snr / 2).sigmoid()
        k = torch.arange((self.dim - 2) // 2, dtype=fraction.dtype, device=fraction.device)
        if self.by_noise_fraction:
            scaled, phase = 2 * fraction - 1, fraction[..., None] * (math.pi * (1 + k))
        else:
            scaled = (log_snr / self.max_log_snr).clamp(-1, 1)
            phase = scaled[..., None] * (math.pi * 2**k)
        return torch.cat([scaled[..., None], fraction[..., None], phase.sin(), phase.cos()], -1)


class Moments(NamedTuple):
    """The mean of x given z, and its standard deviation where the network learns one.

    Attributes:
        mean: E[x | z].
        scale: The standard deviation of x given z, or None.
    """

    mean: Tensor
    scale: Tensor | None


class Denoiser(nn.Module):
    """E[x | z] at a noise level, by a network.

    Args:
        network: Called as ``network(z, context)``. Its context (*batch, width) is the embedding of the noise level, of
            width `level_dim`, followed by the features of the condition. It returns an event like z. With
            ``learned_scale`` it returns twice as many numbers along the event's first dimension; the second half is the
            logarithm of a factor of the standard deviation.
        event_shape: The shape of x.
        prediction_type: A key of `PREDICTION_TYPES`.
        sigma_data: d, the standard deviation of one number of the data.
        learned_scale: Whether the standard deviation of x given z is learned too (see `Moments`).
        by_noise_fraction: Which embedding of the noise level the network gets (see `NoiseEmbedding`).

    Raises:
        ValueError: If the prediction type is unknown or `sigma_data` is not positive.
    """

    level_dim = NoiseEmbedding.dim

    def __init__(
        self,
        network: nn.Module,
        event_shape: tuple[int, ...],
        *,
        prediction_type: str = "edm",
        sigma_data: float = 1.0,
        learned_scale: bool = False,
        by_noise_fraction: bool = False,
    ) -> None:
        super().__init__()
        if not sigma_data > 0:
            raise ValueError(f"expected sigma_data > 0, got {sigma_data}")
        self.coefficients = lookup(PREDICTION_TYPES, prediction_type, option="prediction_type")
        self.network, self.event_shape, self.prediction_type = network, tuple(event_shape), prediction_type
        self.sigma_data, self.learned_scale = sigma_data, learned_scale
        self.embedding = NoiseEmbedding(by_noise_fraction=by_noise_fraction)

    def forward(self, z: Tensor, level: NoiseLevel, context: Tensor | None = None) -> Tensor:
        """Returns E[x | z].

        Args:
            z: Noisy data (*batch, *event).
            level: The noise level, of shape () or (*batch,).
            context: Features of the condition (*batch, width), or None.
        """
        return self.moments(z, level, context).mean

    def moments(self, z: Tensor, level: NoiseLevel, context: Tensor | None = None) -> Moments:
        """Returns E[x | z] and, if learned, the standard deviation of x given z, both (*batch, *event).

        The standard deviation is d s / r, that of Gaussian data, times a learned factor.

        Args:
            z: Noisy data (*batch, *event).
            level: The noise level, of shape () or (*batch,).
            context: Features of the condition (*batch, width), or None.

        Raises:
            ValueError: If the network's output has the wrong shape.
        """
        raw, per_row = self.raw(z, level, context), self._per_row(z, level)
        if not self.learned_scale:
            return Moments(self._mean(raw, z, per_row), None)
        raw, log_factor = raw.chunk(2, z.dim() - len(self.event_shape))
        scale = per_row.posterior_std(self.sigma_data) * log_factor.clamp(-5, 5).exp()
        return Moments(self._mean(raw, z, per_row), scale)

    def raw(self, z: Tensor, level: NoiseLevel, context: Tensor | None = None) -> Tensor:
        """Returns the network's prediction (*batch, *raw_shape).

        Args:
            z: Noisy data (*batch, *event).
            level: The noise level, of shape () or (*batch,).
            context: Features of the condition (*batch, width), or None.

        Raises:
            ValueError: If the network's output has the wrong shape.
        """
        batch = z.shape[: z.dim() - len(self.event_shape)]
        scaled = z / self._per_row(z, level).marginal_std(self.sigma_data)
        raw = self.network(scaled, self.context(level.log_snr.expand(batch), context))
        expected = batch + self.raw_shape
        if raw.shape != expected:
            raise ValueError(
                f"expected the network to return {tuple(expected)} for z {tuple(z.shape)}, got {tuple(raw.shape)}: "
                "its output must be an event like its input"
                + (", with twice as many numbers along the first dimension" if self.learned_scale else "")
            )
        return raw

    def _per_row(self, z: Tensor, level: NoiseLevel) -> NoiseLevel:
        """The level of each row of z, with a shape that broadcasts with z."""
        batch = z.shape[: z.dim() - len(self.event_shape)]
        return NoiseLevel(*(value.expand(batch) for value in level)).unsqueeze_like(z)

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """The shape of the network's output for one event."""
        first, *rest = self.event_shape
        return (2 * first if self.learned_scale else first, *rest)

    def context(self, log_snr: Tensor, context: Tensor | None) -> Tensor:
        """Concatenates the embedding of log SNR (*batch,) with the features of a condition (*batch, width)."""
        features = self.embedding(log_snr)
        if context is None:
            return features
        return torch.cat([features, context.expand(*log_snr.shape, context.shape[-1])], -1)

    def _mean(self, raw: Tensor, z: Tensor, level: NoiseLevel) -> Tensor:
        a, s, _ = level
        p, q = self.coefficients(a, s, self.sigma_data)
        return (q * z - s * raw) / (q * a - p * s)
