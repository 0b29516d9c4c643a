"""Denoisers: a network that learns E[x | z] for z = a x + s e, whatever it is asked to predict.

What a network predicts is a mix p x + q e of data and noise, with p and q given by the rates a and s:

    predicts     p                        q
    "data"       1                        0
    "noise"      0                        1                        Ho et al. 2020
    "velocity"   -1                       1                        Liu et al. 2023: dz/du of z = (1 - u) x + u e
    "score"      0                        -1                       Song et al. 2021: s grad log p(z), of size one
    "edm"        s / (d r)                -a d / r, r = |(s, a d)| Karras et al. 2022, d the data's deviation

(the last, at d = 1, is minus the v of Salimans & Ho 2022). Since z is another mix of the two, each gives the posterior
mean of x, x = (q z - s F) / (q a - p s), and all the rest follows: noise (z - a x) / s, score, velocity. The network
sees z / r, of size one, and features of log SNR; so a denoiser serves every schedule.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ppgen.diffusion.schedule import Rates
from ppgen.nets import choose

__all__ = ["PREDICTION_TYPES", "Denoiser", "LevelFeatures"]

Mix = Callable[[Tensor, Tensor, float], tuple[Tensor | float, Tensor | float]]


def _edm(a: Tensor, s: Tensor, d: float) -> tuple[Tensor, Tensor]:
    r = (s.square() + (a * d).square()).sqrt()
    return s / (d * r), -a * d / r


PREDICTION_TYPES: dict[str, Mix] = {
    "data": lambda a, s, d: (1.0, 0.0),
    "noise": lambda a, s, d: (0.0, 1.0),
    "velocity": lambda a, s, d: (-1.0, 1.0),
    "score": lambda a, s, d: (0.0, -1.0),
    "edm": _edm,
}


class LevelFeatures(nn.Module):
    """A noise level to a vector: log SNR between -1 and 1, the share s / (a + s) of noise, and waves.

    Args:
        of_share: whether the waves are harmonics of the share, and it stands for log SNR, so that all is smooth up to
            both ends of the straight path, where log SNR is infinite; else waves of log SNR, of doubling frequency.
    """

    dim = 14
    reach = 20.0

    def __init__(self, *, of_share: bool = False) -> None:
        super().__init__()
        self.of_share = of_share

    def forward(self, log_snr: Tensor) -> Tensor:
        """(*batch,) to (*batch, dim); waves of log SNR take levels beyond +-`reach` for it."""
        share = (-log_snr / 2).sigmoid()
        count = torch.arange((self.dim - 2) // 2, dtype=share.dtype, device=share.device)
        if self.of_share:
            level, phase = 2 * share - 1, share[..., None] * (math.pi * (1 + count))
        else:
            level = (log_snr / self.reach).clamp(-1, 1)
            phase = level[..., None] * (math.pi * 2**count)
        return torch.cat([level[..., None], share[..., None], phase.sin(), phase.cos()], -1)


class Moments(NamedTuple):
    """E[x | z], and the deviation of x given z where the network learns one."""

    mean: Tensor
    scale: Tensor | None


class Denoiser(nn.Module):
    """E[x | z] at rates, by a network.

    Args:
        network: called as ``network(z, context)`` with a context (*batch, width): features of the noise level, then
            those of the condition. It returns an event like z, or with ``learned_scale`` twice as many numbers along
            the event's first dimension, of which the second half is the logarithm of a factor of the deviation. Its
            context has the width `level_dim` plus that of the condition.
        event_shape: of x.
        prediction_type: a row of `PREDICTION_TYPES`.
        data_scale: d, the deviation of a number of the data.
        learned_scale: whether the deviation of x given z is learned too (see `Moments`).
        of_share: which features of the noise level the network has, see `LevelFeatures`.

    Raises:
        ValueError: there is no such row, or a scale is not positive.
    """

    level_dim = LevelFeatures.dim

    def __init__(
        self,
        network: nn.Module,
        event_shape: tuple[int, ...],
        *,
        prediction_type: str = "edm",
        sigma_data: float = 1.0,
        learned_scale: bool = False,
        of_share: bool = False,
    ) -> None:
        super().__init__()
        if not sigma_data > 0:
            raise ValueError(f"expected data_scale > 0, got {sigma_data}")
        self.mix = choose(PREDICTION_TYPES, prediction_type, option="prediction_type")
        self.network, self.event_shape, self.prediction_type = network, tuple(event_shape), prediction_type
        self.sigma_data, self.learned_scale = sigma_data, learned_scale
        self.levels = LevelFeatures(of_share=of_share)

    def forward(self, z: Tensor, rates: Rates, context: Tensor | None = None) -> Tensor:
        """E[x | z] (*batch, *event) for z (*batch, *event), rates of shape () or (*batch,), and a context."""
        return self.moments(z, rates, context).mean

    def moments(self, z: Tensor, rates: Rates, context: Tensor | None = None) -> Moments:
        """E[x | z] and, if learned, the deviation of x given z, about d s / |(s, a d)|: (*batch, *event).

        Raises:
            ValueError: the network's output has another shape.
        """
        raw, wide = self.raw(z, rates, context), self._wide(z, rates)
        if not self.learned_scale:
            return Moments(self._mean(raw, z, wide), None)
        raw, log_factor = raw.chunk(2, z.dim() - len(self.event_shape))
        spread = wide.spread(self.sigma_data)
        return Moments(self._mean(raw, z, wide), spread * log_factor.clamp(-5, 5).exp())

    def raw(self, z: Tensor, rates: Rates, context: Tensor | None = None) -> Tensor:
        """What the network predicts, of `raw_shape` for each row of z.

        Raises:
            ValueError: the network's output has another shape.
        """
        batch = z.shape[: z.dim() - len(self.event_shape)]
        size = self._wide(z, rates).size(self.sigma_data)
        raw = self.network(z / size, self.context(rates.log_snr.expand(batch), context))
        expected = batch + self.raw_shape
        if raw.shape != expected:
            raise ValueError(
                f"expected the network to return {tuple(expected)} for z {tuple(z.shape)}, got {tuple(raw.shape)}: "
                "its output is an event like its input" + (", twice" if self.learned_scale else "")
            )
        return raw

    def _wide(self, z: Tensor, rates: Rates) -> Rates:
        """Rates that go with rows z."""
        batch = z.shape[: z.dim() - len(self.event_shape)]
        return Rates(*(rate.expand(batch) for rate in rates)).over(z)

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Of the network's output for one event."""
        first, *rest = self.event_shape
        return (2 * first if self.learned_scale else first, *rest)

    def context(self, log_snr: Tensor, context: Tensor | None) -> Tensor:
        """Features of levels (*batch,) and of a condition (*batch, width), joined."""
        features = self.levels(log_snr)
        if context is None:
            return features
        return torch.cat([features, context.expand(*log_snr.shape, context.shape[-1])], -1)

    def _mean(self, raw: Tensor, z: Tensor, rates: Rates) -> Tensor:
        a, s, _ = rates
        p, q = self.mix(a, s, self.sigma_data)
        return (q * z - s * raw) / (q * a - p * s)
