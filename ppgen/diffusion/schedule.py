"""Schedules: how fast noise takes the place of data.

A Gaussian path from data x to noise e ~ N(0, I), over times t from 0 to 1, is

    z_t = a(t) x + s(t) e,        a the rate of signal, s that of noise,

and its log signal-to-noise ratio, log SNR = 2 log(a / s), falls all the way. That ratio is all that distinguishes one
path from another: z / (a + s) lies on the straight path (1 - u) x + u e with u = s / (a + s), whatever a and s are. So
networks and samplers know nothing of schedules; a schedule says which noise levels there are and how densely they lie.
Between two times r < t the path is Gaussian too, and with g = 1 - SNR(t) / SNR(r)

    q(z_r | z_t, x) = N((a_t s_r^2) / (a_r s_t^2) z_t + a_r g x,  s_r^2 g I).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppgen.nets import choose

__all__ = [
    "SCHEDULES",
    "Bridge",
    "LearnedSchedule",
    "Rates",
    "Schedule",
    "at_noise",
    "bridge",
    "make_schedule",
    "straight",
]


class Rates(NamedTuple):
    """a and s at some times, and 2 log(a / s), which is infinite where one of them is zero."""

    signal: Tensor
    noise: Tensor
    log_snr: Tensor

    def over(self, z: Tensor) -> "Rates":
        """The same, with dimensions of one after those of the times, to go with rows z (*times, *event)."""
        extra = (1,) * (z.dim() - self.signal.dim())
        return Rates(*(rate.reshape(*rate.shape, *extra) for rate in self))

    def each(self) -> list["Rates"]:
        """Rates of shape (n, ...) one by one."""
        return [Rates(*parts) for parts in zip(*(rate.unbind() for rate in self), strict=True)]

    def size(self, sigma_data: float) -> Tensor:
        """|(s, a d)|: the deviation of z for data of deviation d."""
        return (self.noise.square() + (self.signal * sigma_data).square()).sqrt()

    def spread(self, sigma_data: float) -> Tensor:
        """d s / |(s, a d)|: the deviation of x given z for data x ~ N(0, d^2 I)."""
        return sigma_data * self.noise / self.size(sigma_data)


class Schedule(nn.Module):
    """Rates at times in [0, 1], from a row of `SCHEDULES`.

    Args:
        name: the row.
        least, most: the ratio s / a at t = 0 and at t = 1; None for the row's own, infinite where the row ends in pure
            noise.

    Raises:
        ValueError: there is no such row, the ratios are not 0 < sigma_min < sigma_max, or most is given to a row that has none.
    """

    def __init__(self, name: str = "cosine", *, sigma_min: float | None = None, sigma_max: float | None = None) -> None:
        super().__init__()
        row = choose(SCHEDULES, name, option="schedule")
        if sigma_max is not None and math.isinf(row.sigma_max):
            raise ValueError(f"schedule={name!r} ends in pure noise, expected sigma_max=None, got {sigma_max}")
        self.name, self.row = name, row
        self.sigma_min = row.sigma_min if sigma_min is None else sigma_min
        self.sigma_max = row.sigma_max if sigma_max is None else sigma_max
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"expected 0 < sigma_min < sigma_max, got sigma_min={self.sigma_min} and sigma_max={self.sigma_max}"
            )

    def forward(self, t: Tensor) -> Rates:
        """The rates at times of any shape."""
        return self.row.rates(t, self.sigma_min, self.sigma_max)

    def slope(self, t: Tensor) -> Tensor:
        """d log SNR / dt, in nats, below zero."""
        with torch.enable_grad():
            times = t.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self(times).log_snr.sum(), times, create_graph=True)
        return slope

    def grid(self, steps: int, like: Tensor) -> Rates:
        """The rates at `steps` times from t = 1 down to t = 0, evenly spaced; of one step, those at t = 1."""
        return self(torch.linspace(1, 0, steps, dtype=like.dtype, device=like.device))

    def check_end(self, sigma_max: float = 0.15) -> None:
        """Whether the path ends in noise.

        Raises:
            ValueError: at t = 1 signal over noise is still larger than `sigma_max`, so draws that start from noise would
                start from another law than training saw.
        """
        ratio = float((0.5 * self(torch.ones(())).log_snr.detach()).exp())
        if ratio > sigma_max:
            raise ValueError(
                f"the schedule's end is not noise: signal over noise is {ratio:.3g} there, expected at most {sigma_max:g}; "
                "raise its option sigma_max"
            )

    def extra_repr(self) -> str:
        return f"{self.name!r}, sigma_min={self.sigma_min:g}, sigma_max={self.sigma_max:g}"


class LearnedSchedule(Schedule):
    """A schedule whose log SNR is learned, monotone in t (Kingma et al. 2021, section 3.2); a^2 + s^2 = 1.

    log SNR falls from its value at 0 to that at 1, both learned, in shares m(t) = sum_k w_k b_k(t), where w are
    weights that sum to one, b_0(t) = t and every other b_k is a sigmoid in t scaled to run from 0 to 1. It starts as a
    straight line. The evidence in continuous time depends on the two ends alone; what is learned between them makes
    its estimate less noisy, if it is trained to.
    """

    def __init__(self, *, sigma_min: float | None = None, sigma_max: float | None = None) -> None:
        nn.Module.__init__(self)
        self.name = "learned"
        self.sigma_min, self.sigma_max = (
            1e-3 if sigma_min is None else sigma_min,
            20.0 if sigma_max is None else sigma_max,
        )
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"expected 0 < sigma_min < sigma_max, got sigma_min={self.sigma_min} and sigma_max={self.sigma_max}"
            )
        self.ends = nn.Parameter(-2 * torch.tensor([self.sigma_min, self.sigma_max]).log())
        self.raw_weights = nn.Parameter(torch.tensor([4.0] + [0.0] * 8))
        self.centers = nn.Parameter(torch.linspace(0, 1, 8))
        self.raw_steepness = nn.Parameter(torch.full((8,), 5.0))

    def forward(self, t: Tensor) -> Rates:
        weights, steepness = self.raw_weights.softmax(0), F.softplus(self.raw_steepness)
        low, high = ((edge - self.centers).mul(steepness).sigmoid() for edge in (0.0, 1.0))
        rise = ((t[..., None] - self.centers) * steepness).sigmoid()
        share = weights[0] * t + (weights[1:] * (rise - low) / (high - low)).sum(-1)
        log_snr = self.ends[0] + (self.ends[1] - self.ends[0]) * share
        return _preserving(log_snr)


class Row(NamedTuple):
    """A row of `SCHEDULES`: rates at t given both ends of s / a, and what those are by default."""

    rates: Callable[[Tensor, float, float], Rates]
    sigma_min: float
    sigma_max: float


def _preserving(log_snr: Tensor) -> Rates:
    return Rates(log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt(), log_snr)


def _exploding(noise: Tensor) -> Rates:
    return Rates(torch.ones_like(noise), noise, -2 * noise.log())


def _linear(t: Tensor, sigma_min: float, sigma_max: float) -> Rates:
    """log a^2 = -b u - (B - b) u^2 / 2 for u between where s / a is `sigma_min` and where it is `sigma_max`."""
    slow, fast = 0.1, 20.0

    def time(ratio: float) -> float:  # where b t + (B - b) t^2 / 2 = log(1 + ratio^2)
        rise = fast - slow
        return 2 * math.log1p(ratio**2) / (slow + math.sqrt(slow**2 + 2 * rise * math.log1p(ratio**2)))

    first, last = time(sigma_min), time(sigma_max)
    u = first + (last - first) * t
    spent = slow * u + (fast - slow) * u.square() / 2  # -log a^2
    return Rates((-spent / 2).exp(), (-torch.expm1(-spent)).sqrt(), -torch.expm1(spent).log())


def _cosine(t: Tensor, sigma_min: float, sigma_max: float) -> Rates:
    first, last = math.atan(sigma_min), math.atan(sigma_max)
    angle = first + (last - first) * t
    return Rates(angle.cos(), angle.sin(), -2 * angle.tan().log())


def _exponential(t: Tensor, sigma_min: float, sigma_max: float) -> Rates:
    return _exploding((math.log(sigma_min) + t * math.log(sigma_max / sigma_min)).exp())


def _karras(t: Tensor, sigma_min: float, sigma_max: float) -> Rates:
    low, high = sigma_min ** (1 / 7), sigma_max ** (1 / 7)
    return _exploding((low + t * (high - low)) ** 7)


def _straight(t: Tensor, sigma_min: float, sigma_max: float) -> Rates:
    first = sigma_min / (1 + sigma_min)
    return straight(first + (1 - first) * t)


# "linear": Ho et al. 2020 in continuous time (Song et al. 2021, equation 33), b = 0.1, B = 20; "cosine": Nichol &
# Dhariwal 2021; "exponential": the variance exploding path of Song et al. 2021; "karras": Karras et al. 2022, rho = 7;
# "straight": Liu et al. 2023, Lipman et al. 2023
SCHEDULES: dict[str, Row] = {
    "linear": Row(_linear, 0.01, 152.0),
    "cosine": Row(_cosine, 0.005, 100.0),
    "exponential": Row(_exponential, 0.005, 80.0),
    "karras": Row(_karras, 0.002, 80.0),
    "straight": Row(_straight, 0.001, math.inf),
}


def make_schedule(
    schedule: str | Schedule, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Schedule:
    """The schedule of that name, "learned" or a row of `SCHEDULES`, or the one given.

    Raises:
        ValueError: there is no such row, or an option is out of range.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if schedule == "learned":
        return LearnedSchedule(sigma_min=sigma_min, sigma_max=sigma_max)
    return Schedule(schedule, sigma_min=sigma_min, sigma_max=sigma_max)


def at_noise(ratio: Tensor) -> Rates:
    """The rates of a path whose signal keeps its size, at noise s = `ratio`."""
    return _exploding(ratio)


def straight(u: Tensor) -> Rates:
    """The rates 1 - u and u of the straight path (1 - u) x + u e."""
    return Rates(1 - u, u, 2 * (torch.log1p(-u) - u.log()))


class Bridge(NamedTuple):
    """q(z_r | z_t, x) = N(from_z z_t + from_x x, scale^2 I)."""

    from_z: Tensor
    from_x: Tensor
    scale: Tensor

    def averaged(self, z: Tensor, mean: Tensor, spread: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and deviation of z_r given z_t alone, x being N(mean, spread^2 I); None for no spread."""
        scale = self.scale if spread is None else (self.scale.square() + (self.from_x * spread).square()).sqrt()
        return self.from_z * z + self.from_x * mean, scale


def bridge(r: Rates, t: Rates) -> Bridge:
    """The law of z at the rates r given x and z at rates t of more noise."""
    gain = -torch.expm1(t.log_snr - r.log_snr)
    from_z = t.signal * r.noise.square() / (r.signal * t.noise.square())
    return Bridge(from_z, r.signal * gain, r.noise * gain.sqrt())
