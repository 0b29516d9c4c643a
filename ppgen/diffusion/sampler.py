"""Samplers: from noise to data, by the posterior mean E[v | z] at falling levels of noise.

At z = a v + s e write E for the mean of v given z and N = (z - a E) / s for that of e. The probability-flow ODE moves z
as the rates change, with E and N for data and noise, and keeps the laws of the path (Song et al. 2021). In z / (a + s)
as a function of u = s / (a + s), the straight path, its slope is N - E, which is finite where there is no signal; in
z / a as one of s / a it is N. A step of Euler's is the same in either: z' = a' E + s' N, and that is DDIM's. The other
samplers guess better what E and N will be, or add fresh noise. The last step, from the last level to the data, is E in
all of them: n levels are n steps, and of one level the draw is the mean of all data.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from ppgen.diffusion.schedule import Rates, bridge, straight
from ppgen.nets import choose
from ppgen.utils.ode import State, solve

__all__ = ["SAMPLERS", "Denoise", "draw"]

Denoise: TypeAlias = Callable[[Tensor, Rates], Tensor]
Step: TypeAlias = Callable[[Tensor, Rates, Rates], Tensor]


def draw(
    denoise: Denoise,
    z: Tensor,
    levels: Rates,
    *,
    sampler: str = "heun",
    return_path: bool = False,
    progress: bool = False,
    **options: object,
) -> Tensor | list[Tensor]:
    """Draws of v, from noise.

    Args:
        denoise: E[v | z] (*batch, *event) of z and of rates of shape ().
        z: draws at the first level, (*batch, *event).
        levels: rates of shape (n,), from most noise to least, as `Schedule.grid` gives them. All have noise; the first
            may have no signal.
        sampler: a row of `SAMPLERS`.
        return_path: whether the states at all n levels are returned too, in a list that ends with the draws.
        progress: whether a bar is shown, in a terminal.
        options: of the sampler, see there.

    Raises:
        ValueError: there is no such sampler or option, an option is out of range, or noise does not fall.
    """
    make = choose(SAMPLERS, sampler, option="sampler")
    nodes = _nodes(levels)
    if sampler == "adaptive" and not return_path:
        nodes = [nodes[0], nodes[-1]] if len(nodes) > 1 else nodes  # it stops at levels only to show them
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


def _nodes(levels: Rates) -> list[Rates]:
    """The levels one by one."""
    if levels.signal.dim() != 1 or len(levels.signal) == 0:
        raise ValueError(f"expected levels of shape (n,) with n of at least 1, got {tuple(levels.signal.shape)}")
    if not (levels.log_snr[1:] > levels.log_snr[:-1]).all() or not (levels.noise > 0).all():
        raise ValueError(
            "expected levels from most noise to least, all with some, as Schedule.grid gives them; got log SNR "
            f"{[round(value, 3) for value in levels.log_snr.tolist()]}"
        )
    return levels.each()


def _means(denoise: Denoise, z: Tensor, t: Rates) -> tuple[Tensor, Tensor]:
    """E and N."""
    mean = denoise(z, t)
    return mean, (z - t.signal * mean) / t.noise


def _ddim(denoise: Denoise, count: int, *, eta: float = 0.0) -> Step:
    """z' = a' E + (s'^2 - eta^2 g^2)^(1/2) N + eta g e, g the bridge's deviation (Song et al. 2021, equation 12).

    Of eta = 0 it is Euler's step; of eta = 1 the ancestral one, of small variance.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"expected eta in [0, 1], got {eta}")

    def step(z: Tensor, t: Rates, r: Rates) -> Tensor:
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
    variance: str | Callable[[Tensor, Rates], Tensor] = "small",
    sigma_data: float = 1.0,
) -> Step:
    """z' ~ q(z' | z, v) averaged over v ~ N(E, V I) (Ho et al. 2020), V = 0, that of data N(0, d^2 I), or a given one.

    Args:
        variance: "small", "large", or a function of z and rates that gives the deviation V^(1/2), like z.
        data_scale: d.
    """
    if not callable(variance) and variance not in ("small", "large"):
        raise ValueError(f"expected variance to be 'small', 'large' or a function, got {variance!r}")
    if not sigma_data > 0:
        raise ValueError(f"expected data_scale > 0, got {sigma_data}")

    def step(z: Tensor, t: Rates, r: Rates) -> Tensor:
        spread = variance(z, t) if callable(variance) else t.spread(sigma_data) if variance == "large" else None
        mean, scale = bridge(r, t).averaged(z, denoise(z, t), spread)
        return mean + scale * torch.randn_like(z)

    return step


def _heun(denoise: Denoise, count: int) -> Step:
    """Along the mean of the slopes N - E at both ends, the second found by a step of Euler's; in u, on any path."""

    def step(z: Tensor, t: Rates, r: Rates) -> Tensor:
        mean, noise = _means(denoise, z, t)
        then_mean, then_noise = _means(denoise, r.signal * mean + r.noise * noise, r)
        before, after = t.signal + t.noise, r.signal + r.noise
        slope = (noise - mean + then_noise - then_mean) / 2
        return after * (z / before + (r.noise / after - t.noise / before) * slope)

    return step


def _multistep(denoise: Denoise, count: int) -> Step:
    """z' = (s' / s) z + a' (1 - exp(-h)) (E + h / (2 h_before) (E - E_before)), h the rise of log SNR / 2.

    DPM-Solver++(2M), Lu et al. 2022, algorithm 2. From a level without signal h is infinite, and both the step from it
    and the next one are of first order.
    """
    before: tuple[Tensor, Tensor] | None = None  # E and h of the last step

    def step(z: Tensor, t: Rates, r: Rates) -> Tensor:
        nonlocal before
        mean, h = denoise(z, t), (r.log_snr - t.log_snr) / 2
        guess = mean if before is None else mean + h / (2 * before[1]) * (mean - before[0])
        before = mean, h
        return r.noise / t.noise * z - r.signal * torch.expm1(-h) * guess

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
    """Noise first, up to (1 + g) s, then a step of Heun's down from there (Karras et al. 2022, algorithm 2).

    Args:
        churn: n g, over all n levels; g is at most 2^(1/2) - 1.
        s_min, s_max: the levels s / a between which noise is added.
        s_noise: its deviation, a little above 1 to make up for what denoisers take off.
    """
    if not (churn >= 0 and 0 <= s_min <= s_max and s_noise > 0):
        raise ValueError(
            "expected churn of at least 0, 0 <= s_min <= s_max and s_noise > 0, "
            f"got churn={churn}, s_min={s_min}, s_max={s_max}, s_noise={s_noise}"
        )
    down, more = _heun(denoise, count), min(churn / count, math.sqrt(2) - 1)

    def step(z: Tensor, t: Rates, r: Rates) -> Tensor:
        if more and s_min <= float(t.noise / t.signal) <= s_max:
            if not t.signal > 0:
                raise ValueError(
                    "sampler='edm' adds noise in proportion to noise over signal, of which the first level has none: "
                    "take a finite s_max, or churn=0"
                )
            z = z + s_noise * t.noise * math.sqrt((1 + more) ** 2 - 1) * torch.randn_like(z)
            t = Rates(t.signal, (1 + more) * t.noise, t.log_snr - 2 * math.log1p(more))
        return down(z, t, r)

    return step


def _adaptive(denoise: Denoise, count: int, *, tolerance: float = 1e-4) -> Step:
    """The ODE in u, by dopri5, to a tolerance (absolute, relative) of z / (a + s), from the first level to the last."""
    if not tolerance > 0:
        raise ValueError(f"expected tolerance > 0, got {tolerance}")

    def motion(u: Tensor, state: State) -> State:
        mean, noise = _means(denoise, state[0], straight(u))
        return (noise - mean,)

    def step(z: Tensor, t: Rates, r: Rates) -> Tensor:
        before, after = t.signal + t.noise, r.signal + r.noise
        ends = float(t.noise / before), float(r.noise / after)
        return after * solve(motion, (z / before,), ends, solver="dopri5", steps=0, tolerance=tolerance)[0]

    return step


# "ancestral": Ho et al. 2020, takes `variance` and `sigma_data`; "ddim": Song et al. 2021, `eta`; "euler", "heun": of
# orders 1 and 2, Heun's with two denoisings a step; "dpm++2m": of order 2 with one; "edm": `churn`, `s_min`, `s_max`,
# `s_noise`; "adaptive": `tolerance`
SAMPLERS: dict[str, Callable[..., Step]] = {
    "ancestral": _ancestral,
    "ddim": _ddim,
    "euler": _euler,
    "heun": _heun,
    "dpm++2m": _multistep,
    "edm": _edm,
    "adaptive": _adaptive,
}
