"""Samplers: from noise to data, by the posterior mean E[v | z] at decreasing noise levels.

At z = a v + s e write E for the posterior mean of the data v, and N = (z - a E) / s for that of the noise e. The
probability-flow ODE moves z as if E and N were the data and the noise, and keeps the marginal distributions of the path
(Song et al. 2021, https://arxiv.org/abs/2011.13456). Its right-hand side is

    N - E    for z / (a + s) as a function of u = s / (a + s), the linear path; finite even where a = 0,
    N        for z / a as a function of s / a.

An Euler step is the same in both: z' = a' E + s' N, which is also the step of DDIM. The other samplers use better
estimates of E and N over the step, or add fresh noise. In all of them the last step, from the last level to the data,
returns E. So n levels take n steps, and with one level the sample is the mean of the data.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from ppgen.diffusion.schedule import NoiseLevel, bridge, linear_interpolation
from ppgen.nets import lookup
from ppgen.utils.ode import State, solve

__all__ = ["SAMPLERS", "Denoise", "sample"]

Denoise: TypeAlias = Callable[[Tensor, NoiseLevel], Tensor]
Step: TypeAlias = Callable[[Tensor, NoiseLevel, NoiseLevel], Tensor]


def sample(
    denoise: Denoise,
    z: Tensor,
    levels: NoiseLevel,
    *,
    sampler: str = "heun",
    return_path: bool = False,
    progress: bool = False,
    **options: object,
) -> Tensor | list[Tensor]:
    """Samples v, starting from noise.

    Args:
        denoise: E[v | z] (*batch, *event) as a function of z and a level of shape ().
        z: Samples at the first level, (*batch, *event).
        levels: Noise levels of shape (n,), from the most noise to the least, as returned by `Schedule.grid`. All need
            noise; the first may have no signal.
        sampler: A key of `SAMPLERS`.
        return_path: Whether to return the states at all n levels too, in a list that ends with the samples.
        progress: Whether to show a progress bar, in a terminal.
        **options: Options of the sampler (see `SAMPLERS`).

    Returns:
        The samples (*batch, *event), or the list of states.

    Raises:
        ValueError: If the sampler or an option is unknown, an option is out of range, or the noise does not decrease.
    """
    make = lookup(SAMPLERS, sampler, option="sampler")
    nodes = _split(levels)
    if sampler == "adaptive" and not return_path:
        nodes = [nodes[0], nodes[-1]] if len(nodes) > 1 else nodes  # it needs the levels in between for the path only
    try:
        step = make(denoise, len(nodes), **options)
    except TypeError as error:
        raise ValueError(f"sampler={sampler!r} has no such option: {error}") from error
    path = [z]
    with tqdm(total=len(nodes), desc=sampler, unit="level", disable=None if progress else True) as bar:
        for t, r in pairwise(nodes):
            z = step(z, t, r)
            path = [*path, z] if return_path else path
            bar.update()
        v = denoise(z, nodes[-1])
        bar.update()
    return [*path, v] if return_path else v


def _split(levels: NoiseLevel) -> list[NoiseLevel]:
    """The levels one by one, after a check of their order."""
    if levels.signal.dim() != 1 or len(levels.signal) == 0:
        raise ValueError(f"expected levels of shape (n,) with n of at least 1, got {tuple(levels.signal.shape)}")
    if not (levels.log_snr[1:] > levels.log_snr[:-1]).all() or not (levels.noise > 0).all():
        raise ValueError(
            "expected levels from the most noise to the least, all with noise > 0, as returned by Schedule.grid; got "
            f"log SNR {[round(value, 3) for value in levels.log_snr.tolist()]}"
        )
    return levels.unbind()


def _means(denoise: Denoise, z: Tensor, t: NoiseLevel) -> tuple[Tensor, Tensor]:
    """E and N, the posterior means of the data and of the noise."""
    mean = denoise(z, t)
    return mean, (z - t.signal * mean) / t.noise


def _ddim(denoise: Denoise, count: int, *, eta: float = 0.0) -> Step:
    """DDIM, Song, Meng & Ermon 2021, equation 12 (https://arxiv.org/abs/2010.02502).

        z' = a' E + (s'^2 - eta^2 g^2)^(1/2) N + eta g e,        g the bridge's standard deviation.

    With eta = 0 it is an Euler step, with eta = 1 an ancestral step of small variance.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"expected eta in [0, 1], got {eta}")

    def step(z: Tensor, t: NoiseLevel, r: NoiseLevel) -> Tensor:
        mean, noise = _means(denoise, z, t)
        fresh = eta * bridge(r, t).scale
        z = r.signal * mean + (r.noise.square() - fresh.square()).sqrt() * noise
        return z + fresh * torch.randn_like(z) if eta else z

    return step


def _euler(denoise: Denoise, count: int) -> Step:
    return _ddim(denoise, count)


def _ancestral(
    denoise: Denoise,
    count: int,
    *,
    variance: str | Callable[[Tensor, NoiseLevel], Tensor] = "small",
    sigma_data: float = 1.0,
) -> Step:
    """Ancestral sampling: z' ~ q(z' | z, v), averaged over v ~ N(E, V I).

    From Ho et al. 2020 (https://arxiv.org/abs/2006.11239).

    Args:
        denoise: E[v | z].
        count: The number of levels.
        variance: "small" for V = 0, "large" for the V of data N(0, d^2 I), or a function of z and a level that returns
            the standard deviation V^(1/2), of a shape that broadcasts with z.
        sigma_data: d, the standard deviation of the data.
    """
    if not callable(variance) and variance not in ("small", "large"):
        raise ValueError(f"expected variance to be 'small', 'large' or a function, got {variance!r}")
    if not sigma_data > 0:
        raise ValueError(f"expected sigma_data > 0, got {sigma_data}")

    def step(z: Tensor, t: NoiseLevel, r: NoiseLevel) -> Tensor:
        std = variance(z, t) if callable(variance) else t.posterior_std(sigma_data) if variance == "large" else None
        mean, scale = bridge(r, t).averaged(z, denoise(z, t), std)
        return mean + scale * torch.randn_like(z)

    return step


def _heun(denoise: Denoise, count: int) -> Step:
    """Heun's method on the linear path: the mean of N - E at both ends, with an Euler step to the second end."""

    def step(z: Tensor, t: NoiseLevel, r: NoiseLevel) -> Tensor:
        mean, noise = _means(denoise, z, t)
        next_mean, next_noise = _means(denoise, r.signal * mean + r.noise * noise, r)
        total, next_total = t.signal + t.noise, r.signal + r.noise
        velocity = (noise - mean + next_noise - next_mean) / 2
        return next_total * (z / total + (r.noise / next_total - t.noise / total) * velocity)

    return step


def _multistep(denoise: Denoise, count: int) -> Step:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2 (https://arxiv.org/abs/2211.01095).

        z' = (s' / s) z + a' (1 - exp(-h)) (E + h / (2 h_prev) (E - E_prev)),

    where h is the increase of log SNR / 2 over the step. From a level without signal h is infinite; the step from it
    and the next step are then of first order.
    """
    previous: tuple[Tensor, Tensor] | None = None  # E and h of the last step

    def step(z: Tensor, t: NoiseLevel, r: NoiseLevel) -> Tensor:
        nonlocal previous
        mean, h = denoise(z, t), (r.log_snr - t.log_snr) / 2
        extrapolated = mean if previous is None else mean + h / (2 * previous[1]) * (mean - previous[0])
        previous = mean, h
        return r.noise / t.noise * z - r.signal * torch.expm1(-h) * extrapolated

    return step


def _edm(
    denoise: Denoise,
    count: int,
    *,
    churn: float = 40.0,
    s_min: float = 0.05,
    s_max: float = 50.0,
    s_noise: float = 1.0,
) -> Step:
    """Adds noise up to level (1 + g) s, then takes a Heun step.

    From Karras et al. 2022, algorithm 2 (https://arxiv.org/abs/2206.00364).

    Args:
        denoise: E[v | z].
        count: n, the number of levels.
        churn: n g, the total over all levels; g is at most 2^(1/2) - 1.
        s_min: The lowest s / a at which noise is added.
        s_max: The highest s / a at which noise is added.
        s_noise: The standard deviation of the noise; slightly above 1 compensates for denoisers that remove too much.
    """
    if not (churn >= 0 and 0 <= s_min <= s_max and s_noise > 0):
        raise ValueError(
            "expected churn of at least 0, 0 <= s_min <= s_max and s_noise > 0, "
            f"got churn={churn}, s_min={s_min}, s_max={s_max}, s_noise={s_noise}"
        )
    heun_step, gamma = _heun(denoise, count), min(churn / count, math.sqrt(2) - 1)

    def step(z: Tensor, t: NoiseLevel, r: NoiseLevel) -> Tensor:
        if gamma and s_min <= float(t.noise / t.signal) <= s_max:
            if not t.signal > 0:
                raise ValueError(
                    "sampler='edm' adds noise in proportion to the ratio of noise to signal, which is infinite at the "
                    "first level: set a finite s_max, or churn=0"
                )
            z = z + s_noise * t.noise * math.sqrt((1 + gamma) ** 2 - 1) * torch.randn_like(z)
            t = NoiseLevel(t.signal, (1 + gamma) * t.noise, t.log_snr - 2 * math.log1p(gamma))
        return heun_step(z, t, r)

    return step


def _adaptive(denoise: Denoise, count: int, *, tolerance: float = 1e-4) -> Step:
    """Solves the ODE in u by dopri5, with an absolute and relative tolerance for z / (a + s)."""
    if not tolerance > 0:
        raise ValueError(f"expected tolerance > 0, got {tolerance}")

    def velocity(u: Tensor, state: State) -> State:
        mean, noise = _means(denoise, state[0], linear_interpolation(u))
        return (noise - mean,)

    def step(z: Tensor, t: NoiseLevel, r: NoiseLevel) -> Tensor:
        total, next_total = t.signal + t.noise, r.signal + r.noise
        ends = float(t.noise / total), float(r.noise / next_total)
        return next_total * solve(velocity, (z / total,), ends, solver="dopri5", steps=0, tolerance=tolerance)[0]

    return step


# Each maps a denoiser, the number of levels and its own options to a step (z, t, r) -> z' from level t to level r.
# Options: "ancestral" has `variance` and `sigma_data`; "ddim" has `eta`; "edm" has `churn`, `s_min`, `s_max` and
# `s_noise`; "adaptive" has `tolerance`. "euler" is of order 1. "heun" is of order 2 and evaluates the denoiser twice
# per step; "dpm++2m" is of order 2 and evaluates it once.
SAMPLERS: dict[str, Callable[..., Step]] = {
    "ancestral": _ancestral,
    "ddim": _ddim,
    "euler": _euler,
    "heun": _heun,
    "dpm++2m": _multistep,
    "edm": _edm,
    "adaptive": _adaptive,
}
