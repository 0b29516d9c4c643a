"""Noise schedules: how fast noise replaces the data.

A Gaussian path from data x to noise e ~ N(0, I), over times t from 0 to 1, is

    z_t = a(t) x + s(t) e,

where a is the scale of the signal and s the scale of the noise (alpha and sigma in the literature). The log
signal-to-noise ratio, log SNR = 2 log(a / s), decreases in t. Paths with the same log SNR differ only by a factor:
z / (a + s) lies on the linear path (1 - u) x + u e with u = s / (a + s). Networks and samplers therefore need no
schedule. A schedule defines which noise levels exist and how they are spaced in time.

Between two times r < t the path is Gaussian too. With g = 1 - SNR(t) / SNR(r),

    q(z_r | z_t, x) = N((a_t s_r^2) / (a_r s_t^2) z_t + a_r g x,  s_r^2 g I).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppgen.nets import lookup

__all__ = [
    "SCHEDULES",
    "Bridge",
    "LearnedSchedule",
    "NoiseLevel",
    "Schedule",
    "bridge",
    "linear_interpolation",
    "make_schedule",
    "variance_exploding",
]


class NoiseLevel(NamedTuple):
    """A point z = a x + s e on a path, or several of them: tensors of one shape.

    Attributes:
        signal: a, the scale of the data.
        noise: s, the scale of the noise.
        log_snr: 2 log(a / s), infinite where a or s is zero.
    """

    signal: Tensor
    noise: Tensor
    log_snr: Tensor

    def unsqueeze_like(self, z: Tensor) -> "NoiseLevel":
        """Adds trailing dimensions of size one, so that levels of shape (*times,) broadcast with z (*times, *event)."""
        extra = (1,) * (z.dim() - self.signal.dim())
        return NoiseLevel(*(value.reshape(*value.shape, *extra) for value in self))

    def unbind(self) -> list["NoiseLevel"]:
        """Splits levels of shape (n, ...) into n levels of shape (...)."""
        return [NoiseLevel(*values) for values in zip(*(value.unbind() for value in self), strict=True)]

    def marginal_std(self, sigma_data: float) -> Tensor:
        """The standard deviation (s^2 + a^2 d^2)^(1/2) of z, for data of standard deviation d, `sigma_data`."""
        return (self.noise.square() + (self.signal * sigma_data).square()).sqrt()

    def posterior_std(self, sigma_data: float) -> Tensor:
        """The standard deviation d s / (s^2 + a^2 d^2)^(1/2) of x given z, for data x ~ N(0, d^2 I)."""
        return sigma_data * self.noise / self.marginal_std(sigma_data)


class Schedule(nn.Module):
    """Noise levels at times in [0, 1], by one of the formulas in `SCHEDULES`.

    Args:
        name: A key of `SCHEDULES`.
        sigma_min: The ratio s / a at t = 0; None for the formula's default.
        sigma_max: The ratio s / a at t = 1; None for the formula's default, which is infinite if the path ends in pure
            noise.

    Raises:
        ValueError: If the name is unknown, if 0 < sigma_min < sigma_max does not hold, or if `sigma_max` is given for a
            path that ends in pure noise.
    """

    def __init__(self, name: str = "cosine", *, sigma_min: float | None = None, sigma_max: float | None = None) -> None:
        super().__init__()
        formula = lookup(SCHEDULES, name, option="schedule")
        if sigma_max is not None and math.isinf(formula.sigma_max):
            raise ValueError(f"schedule={name!r} ends in pure noise, expected sigma_max=None, got {sigma_max}")
        self.name, self.formula = name, formula
        self._set_ends(
            formula.sigma_min if sigma_min is None else sigma_min,
            formula.sigma_max if sigma_max is None else sigma_max,
        )

    def _set_ends(self, sigma_min: float, sigma_max: float) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"expected 0 < sigma_min < sigma_max, got sigma_min={sigma_min} and sigma_max={sigma_max}")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def forward(self, t: Tensor) -> NoiseLevel:
        """Returns the noise levels at times t of any shape."""
        return self.formula.level(t, self.sigma_min, self.sigma_max)

    def log_snr_derivative(self, t: Tensor) -> Tensor:
        """The derivative of log SNR at times t of any shape, in nats; it is negative."""
        with torch.enable_grad():
            times = t.detach().requires_grad_()
            (derivative,) = torch.autograd.grad(self(times).log_snr.sum(), times, create_graph=True)
        return derivative

    def grid(self, steps: int, like: Tensor) -> NoiseLevel:
        """Returns `steps` levels of shape (steps,) at equally spaced times from t = 1 to t = 0; for one step, t = 1.

        Args:
            steps: The number of levels.
            like: A tensor with the dtype and device of the result.
        """
        return self(torch.linspace(1, 0, steps, dtype=like.dtype, device=like.device))

    def check_terminal_snr(self, max_ratio: float = 0.15) -> None:
        """Checks that the path ends in noise, so that sampling can start from noise as in training.

        Args:
            max_ratio: The largest accepted ratio a / s at t = 1.

        Raises:
            ValueError: If a / s at t = 1 is larger than `max_ratio`.
        """
        ratio = float((0.5 * self(torch.ones(())).log_snr.detach()).exp())
        if ratio > max_ratio:
            raise ValueError(
                f"the schedule does not end in noise: its ratio of signal to noise at t = 1 is {ratio:.3g}, expected "
                f"at most {max_ratio:g}; increase sigma_max"
            )

    def extra_repr(self) -> str:
        """The name and both ends, for `repr`."""
        return f"{self.name!r}, sigma_min={self.sigma_min:g}, sigma_max={self.sigma_max:g}"


class LearnedSchedule(Schedule):
    """A variance-preserving schedule (a^2 + s^2 = 1) whose log SNR is learned and monotone in t.

    From Kingma et al. 2021, section 3.2 (https://arxiv.org/abs/2107.00630). With both ends learned,

        log SNR(t) = log SNR(0) + (log SNR(1) - log SNR(0)) m(t),        m(t) = sum_k w_k b_k(t),

    where the weights w_k sum to one, b_0(t) = t, and every other b_k is a sigmoid in t rescaled to run from 0 to 1. At
    initialization log SNR is close to linear in t. The continuous-time ELBO depends on the two ends only; the shape in
    between affects the variance of its estimate.

    Args:
        sigma_min: The initial ratio s / a at t = 0; None for 0.001.
        sigma_max: The initial ratio s / a at t = 1; None for 20.

    Raises:
        ValueError: If 0 < sigma_min < sigma_max does not hold.
    """

    def __init__(self, *, sigma_min: float | None = None, sigma_max: float | None = None) -> None:
        nn.Module.__init__(self)
        self.name = "learned"
        self._set_ends(1e-3 if sigma_min is None else sigma_min, 20.0 if sigma_max is None else sigma_max)
        self.ends = nn.Parameter(-2 * torch.tensor([self.sigma_min, self.sigma_max]).log())
        self.raw_weights = nn.Parameter(torch.tensor([4.0] + [0.0] * 8))
        self.centers = nn.Parameter(torch.linspace(0, 1, 8))
        self.raw_steepness = nn.Parameter(torch.full((8,), 5.0))

    def forward(self, t: Tensor) -> NoiseLevel:
        """Returns the noise levels at times t of any shape."""
        weights, steepness = self.raw_weights.softmax(0), F.softplus(self.raw_steepness)
        low, high = ((edge - self.centers).mul(steepness).sigmoid() for edge in (0.0, 1.0))
        sigmoid = ((t[..., None] - self.centers) * steepness).sigmoid()
        m = weights[0] * t + (weights[1:] * (sigmoid - low) / (high - low)).sum(-1)
        return _variance_preserving(self.ends[0] + (self.ends[1] - self.ends[0]) * m)


class Formula(NamedTuple):
    """A row of `SCHEDULES`.

    Attributes:
        level: The noise level at times t, given the ratios s / a at t = 0 and at t = 1.
        sigma_min: The default ratio at t = 0.
        sigma_max: The default ratio at t = 1; infinite if the path ends in pure noise.
    """

    level: Callable[[Tensor, float, float], NoiseLevel]
    sigma_min: float
    sigma_max: float


def _variance_preserving(log_snr: Tensor) -> NoiseLevel:
    return NoiseLevel(log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt(), log_snr)


def variance_exploding(noise: Tensor) -> NoiseLevel:
    """The noise level with a = 1 and s = `noise`."""
    return NoiseLevel(torch.ones_like(noise), noise, -2 * noise.log())


def linear_interpolation(u: Tensor) -> NoiseLevel:
    """The noise level with a = 1 - u and s = u, on the linear path (1 - u) x + u e (rectified flow)."""
    return NoiseLevel(1 - u, u, 2 * (torch.log1p(-u) - u.log()))


def _linear(t: Tensor, sigma_min: float, sigma_max: float) -> NoiseLevel:
    """The level with log a^2 = -b u - (B - b) u^2 / 2, for u linear in t between the times of both ends."""
    beta_min, beta_max = 0.1, 20.0

    def time(ratio: float) -> float:  # solves b u + (B - b) u^2 / 2 = log(1 + ratio^2)
        growth = beta_max - beta_min
        return 2 * math.log1p(ratio**2) / (beta_min + math.sqrt(beta_min**2 + 2 * growth * math.log1p(ratio**2)))

    first, last = time(sigma_min), time(sigma_max)
    u = first + (last - first) * t
    integral = beta_min * u + (beta_max - beta_min) * u.square() / 2  # -log a^2
    return NoiseLevel((-integral / 2).exp(), (-torch.expm1(-integral)).sqrt(), -torch.expm1(integral).log())


def _cosine(t: Tensor, sigma_min: float, sigma_max: float) -> NoiseLevel:
    first, last = math.atan(sigma_min), math.atan(sigma_max)
    angle = first + (last - first) * t
    return NoiseLevel(angle.cos(), angle.sin(), -2 * angle.tan().log())


def _exponential(t: Tensor, sigma_min: float, sigma_max: float) -> NoiseLevel:
    return variance_exploding((math.log(sigma_min) + t * math.log(sigma_max / sigma_min)).exp())


def _karras(t: Tensor, sigma_min: float, sigma_max: float) -> NoiseLevel:
    low, high = sigma_min ** (1 / 7), sigma_max ** (1 / 7)
    return variance_exploding((low + t * (high - low)) ** 7)


def _straight(t: Tensor, sigma_min: float, sigma_max: float) -> NoiseLevel:
    first = sigma_min / (1 + sigma_min)
    return linear_interpolation(first + (1 - first) * t)


# "linear": Ho et al. 2020 (https://arxiv.org/abs/2006.11239) in continuous time, Song et al. 2021, equation 33
#     (https://arxiv.org/abs/2011.13456), with beta from 0.1 to 20
# "cosine": Nichol & Dhariwal 2021 (https://arxiv.org/abs/2102.09672)
# "exponential": the variance-exploding path of Song et al. 2021
# "karras": Karras et al. 2022 (https://arxiv.org/abs/2206.00364), rho = 7
# "straight": rectified flow, Liu et al. 2023 (https://arxiv.org/abs/2209.03003); flow matching, Lipman et al. 2023
#     (https://arxiv.org/abs/2210.02747)
SCHEDULES: dict[str, Formula] = {
    "linear": Formula(_linear, 0.01, 152.0),
    "cosine": Formula(_cosine, 0.005, 100.0),
    "exponential": Formula(_exponential, 0.005, 80.0),
    "karras": Formula(_karras, 0.002, 80.0),
    "straight": Formula(_straight, 0.001, math.inf),
}


def make_schedule(
    schedule: str | Schedule, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Schedule:
    """Builds a schedule by name; a `Schedule` is returned unchanged.

    Args:
        schedule: A key of `SCHEDULES`, "learned", or a schedule.
        sigma_min: The ratio s / a at t = 0; None for the default.
        sigma_max: The ratio s / a at t = 1; None for the default.

    Raises:
        ValueError: If the name is unknown or an option is out of range.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if schedule == "learned":
        return LearnedSchedule(sigma_min=sigma_min, sigma_max=sigma_max)
    return Schedule(schedule, sigma_min=sigma_min, sigma_max=sigma_max)


class Bridge(NamedTuple):
    """q(z_r | z_t, x) = N(from_z z_t + from_x x, scale^2 I).

    Attributes:
        from_z: The coefficient of z_t.
        from_x: The coefficient of x.
        scale: The standard deviation.
    """

    from_z: Tensor
    from_x: Tensor
    scale: Tensor

    def averaged(self, z: Tensor, mean: Tensor, std: Tensor | None) -> tuple[Tensor, Tensor]:
        """Averages q(z_r | z_t, x) over x ~ N(mean, std^2 I).

        Args:
            z: z_t.
            mean: The mean of x.
            std: The standard deviation of x; None if x equals its mean.

        Returns:
            The mean and the standard deviation of z_r given z_t.
        """
        scale = self.scale if std is None else (self.scale.square() + (self.from_x * std).square()).sqrt()
        return self.from_z * z + self.from_x * mean, scale


def bridge(r: NoiseLevel, t: NoiseLevel) -> Bridge:
    """The distribution of z at level r given x and z at the noisier level t."""
    gain = -torch.expm1(t.log_snr - r.log_snr)
    from_z = t.signal * r.noise.square() / (r.signal * t.noise.square())
    return Bridge(from_z, r.signal * gain, r.noise * gain.sqrt())
