"""Diffusion as a hierarchical model: the guide adds noise to data step by step, and the model removes it again.

With signal a_i and noise s_i at times i / T of a schedule (see `ppgen.diffusion.schedule`) and v the scaled data,

    guide    q(z_T | x) = N(a_T v, s_T^2 I),    q(z_{i-1} | z_i, x) = N(b z_i + c v, g^2 I)        fixed
    model    p(z_T) = N(0, (s_T^2 + a_T^2 d^2) I),
             p(z_{i-1} | z_i) = N(b z_i + c E[v | z_i], (g^2 + c^2 V_i) I),    p(x | z_0)

where b, c and g are those of the bridge q(z_{i-1} | z_i, x). A step of the model is a step of the guide, averaged over
v ~ N(E[v | z_i], V_i I). The variance V_i is zero ("small"), that of Gaussian data N(0, d^2 I) ("large"), or learned;
the first two are the variances beta~ and beta of Ho et al., https://arxiv.org/abs/2006.11239, section 3.2. Given z_0,
the data are levels with probabilities proportional to N(z_0; a_0 v, s_0^2), or numbers from N(z_0 / a_0, (s_0 / a_0)^2)
(Kingma et al., https://arxiv.org/abs/2107.00630, equation 8).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.diffusion import NoiseLevel, bridge, make_schedule
from ppgen.diffusion.schedule import Schedule
from ppgen.models.conditioned import Conditioned
from ppgen.models.denoising import DenoiserOptions
from ppgen.models.options import constructed_from
from ppgen.models.sampling import DEQUANTIZATIONS, DenoisingSampler, Dequantization
from ppgen.nets import eval_mode, lookup

__all__ = ["Diffusion", "DiffusionOptions"]

# by name: whether V is that of Gaussian data N(0, d^2 I), and whether it is learned
VARIANCES = {"small": (False, False), "large": (True, False), "learned": (False, True)}
SCHEDULE_OPTIONS = ("sigma_min", "sigma_max")


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions(DenoiserOptions):
    """Options of :class:`Diffusion`; ``options`` may contain "sigma_min" and "sigma_max" of the schedule too.

    Attributes:
        schedule: a row of `ppgen.diffusion.SCHEDULES`, "learned", or a `Schedule`.
        steps: T; None for continuous time, a chain of infinitely many steps, whose program is `distribution`.
        prediction_type: the target of the network, a row of `ppgen.diffusion.PREDICTION_TYPES`.
        variance: the variance V: "small", "large", or "learned".
    """

    schedule: str | Schedule = "cosine"
    steps: int | None = 100
    prediction_type: str = "edm"
    variance: str = "large"

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"expected steps of at least 1, or None for continuous time, got {self.steps}")
        super().__post_init__()

    def network_options(self) -> dict[str, Any]:
        """Further options of the network alone."""
        return {key: value for key, value in super().network_options().items() if key not in SCHEDULE_OPTIONS}

    def make_schedule(self) -> Schedule:
        """The schedule.

        Raises:
            ValueError: if it is unknown, does not end in noise, or does not suit the prediction type.
        """
        options = dict(self.options or {})
        schedule = make_schedule(self.schedule, **{key: options[key] for key in SCHEDULE_OPTIONS if key in options})
        schedule.check_terminal_snr()
        if self.prediction_type in ("noise", "score") and math.isinf(schedule.sigma_max):
            raise ValueError(
                f"prediction_type={self.prediction_type!r} divides by the signal, which is zero at the end of "
                f"schedule={self.schedule!r}; choose prediction_type='velocity' or 'edm'"
            )
        return schedule


def _normal(model: "Diffusion", x: Tensor) -> tuple[Tensor, Tensor]:
    """Noise and probabilities of levels as in the chain, q(z_0 | x) and P(x | z_0).

    This suits a density that has learned a peak at each level, as it does if there are few levels.
    """
    first, v = model._noise_level(0), model._scale(x)
    q = dist.Normal(v, first.noise / first.signal).to_event(len(model.event_shape))
    z = q.sample()
    return z, model.observation(first.signal * z).log_prob(x) - q.log_prob(z)


class Diffusion(DenoisingSampler):
    """A chain z_T, .., z_0, x of T + 1 latents per row, over the plate "data" of the rows of x.

    `model` and `guide` are the whole chain, for `ppgen.ELBO`; `ppgen.DiffusionELBO` trains on one step of it at a time
    (Sohl-Dickstein et al., https://arxiv.org/abs/1503.03585; Ho et al., https://arxiv.org/abs/2006.11239).

    The arguments are the fields of :class:`DiffusionOptions`.

    Raises:
        ValueError: if an option is unknown or out of range, or the schedule does not end in noise.

    Example:
        >>> import torch
        >>> import ppgen
        >>> diffusion = ppgen.models.Diffusion((2,), steps=10, hidden=(8,))
        >>> x, loss = torch.randn(20, 2), ppgen.DiffusionELBO()
        >>> fit = ppgen.fit(diffusion.model, diffusion.guide, x, loss=loss, steps=2, compile=False, progress=False)
        >>> diffusion.sample(5).shape
        torch.Size([5, 2])
    """

    dequantizations: ClassVar[dict[str, Dequantization]] = DEQUANTIZATIONS | {"normal": _normal}

    @constructed_from(DiffusionOptions)
    def __init__(self, options: DiffusionOptions) -> None:
        wide, learned = lookup(VARIANCES, options.variance, option="variance")
        super().__init__(options, prediction_type=options.prediction_type, learned_scale=learned)
        self.steps, self.wide = options.steps, wide
        self.schedule = options.make_schedule()

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """The program z_T, then z_{i-1} given z_i down to z_0, then x.

        In continuous time it has the site x alone, distributed as `distribution`, levels with uniform noise.

        Args:
            x: data (n, *event_shape).
            y: labels (n,) or contexts (n, context_dim) of a conditional model.
        """
        self._register()
        if self.steps is None:
            return self._density_program(x, y)
        levels, context = self._levels(x, self.steps), self._context(y)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample(f"z_{self.steps}", self._terminal_distribution(levels[-1], x.shape[:1]))
            for i in range(len(levels) - 1, 0, -1):
                z = pyro.sample(f"z_{i - 1}", self._step(z, levels[i - 1], levels[i], context))
            pyro.sample("x", self.observation(z), obs=x if self.levels is not None else self._scale(x))

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """The program z_T given x, then z_{i-1} given z_i and x; empty in continuous time. Arguments as in `model`."""
        if self.steps is None:
            return
        if self._learns_schedule:
            pyro.module("schedule", self.schedule)
        levels, v, rank = self._levels(x, self.steps), self._scale(x), len(self.event_shape)
        with pyro.plate("data", len(x), dim=-1):
            last = levels[-1]
            z = pyro.sample(f"z_{self.steps}", dist.Normal(last.signal * v, last.noise).to_event(rank))
            for i in range(len(levels) - 1, 0, -1):
                from_z, from_x, scale = bridge(levels[i - 1], levels[i])
                z = pyro.sample(f"z_{i - 1}", dist.Normal(from_z * z + from_x * v, scale).to_event(rank))

    def observation(self, z: Tensor) -> TorchDistribution:
        """p(x | z_0), for z_0 (*batch, *event_shape)."""
        first, rank = self.schedule(z.new_zeros(())), len(self.event_shape)
        mean, scale = z / first.signal, first.noise / first.signal
        if self.levels is None:
            return dist.Normal(mean, scale).to_event(rank)
        grid = torch.linspace(-1, 1, self.levels, dtype=z.dtype, device=z.device)
        return dist.Categorical(logits=-((mean.unsqueeze(-1) - grid) / scale).square() / 2).to_event(rank)

    def bound(self, x: Tensor, y: Tensor | None = None, *, particles: int = 1) -> Tensor:
        """An unbiased estimate of the chain's lower bound of log p(x), or of log p(x | y).

        It is minus the mean, over m draws, of `ends` and `rate`, where each draw takes a step in another of m equal
        parts of the chain.

        Args:
            x: as in `check`.
            y: as in `check`.
            particles: the number m of draws.

        Returns:
            The estimates in nats, (n,).

        Raises:
            TypeError: as `check` does.
            ValueError: as `check` does, and for particles below 1.
        """
        self.check(x, y)
        if particles < 1:
            raise ValueError(f"expected particles of at least 1, got {particles}")
        total = torch.zeros(len(x), dtype=self._dtype, device=x.device)
        with eval_mode(self):
            for j in range(particles):
                u = (j + torch.rand_like(total)) / particles
                total -= self.ends(x) + self.rate(u, x, y)
        return total / particles

    def condition(
        self, program: Callable[..., Any], *, site: str | None = None, cg_steps: int = 5, floor: float = 0.2
    ) -> Conditioned:
        """p(x | y) for the observations y of a Pyro program, with this model as the prior of x; call its `sample`.

        ::

            def upper_rows(x):
                pyro.sample("y", dist.Normal(x[..., :4, :], 0.1).to_event(3), obs=y)

            model.condition(upper_rows).sample(16)

        Args:
            program: a program with observed sites only, called with draws x (n, *event_shape), real numbers also in a
                model with levels. If a site is named, a program without arguments whose only latent is that site, with
                the distribution `distribution` (of v, levels in [-1, 1]), in plates or expanded. It runs in one more
                plate, of the draws, to the left of all others, so it must broadcast.
            site: the name of the latent site.
            cg_steps: as in `ppgen.diffusion.posterior`, which describes the approximation.
            floor: as in `ppgen.diffusion.posterior`, in units of `sigma_data`.

        Raises:
            ValueError: if the program has no such latent site, or its distribution is another one. The draws raise it
                for likelihoods with latents, without observations, or with shapes that do not broadcast.
        """
        return Conditioned(self, program, site=site, cg_steps=cg_steps, floor=floor / self.sigma_data)

    # the methods that DiffusionELBO needs, see `ppgen.models.protocols.DiffusionChain`

    def ends(self, x: Tensor) -> Tensor:
        """The terms of -log p(x) at both ends of the chain, in nats: (n,).

        KL(q(z_T | x), p(z_T)) in closed form, and -log p(x | z_0) at a draw of z_0.
        """
        v, rank = self._scale(x), len(self.event_shape)
        first, last = (self.schedule(v.new_full((), t)) for t in (0.0, 1.0))
        q = dist.Normal(last.signal * v, last.noise).to_event(rank)
        kl = torch.distributions.kl_divergence(q, self._terminal_distribution(last, v.shape[:1]))
        z = first.signal * v + first.noise * torch.randn_like(v)
        return kl - self.observation(z).log_prob(x if self.levels is not None else v)

    def rate(self, u: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The terms of -log p(x) at the steps of the chain, estimated from one step for each row.

        This is T KL(q(z_{i-1} | z_i, x), p(z_{i-1} | z_i)) with i - 1 = floor(u T), or in continuous time

            -1/2 SNR'(u) |v - E[v | z_u]|^2            Kingma et al., https://arxiv.org/abs/2107.00630, equation 17

        Its mean over u is the sum over all steps.

        Args:
            u: times (n,) in [0, 1).
            x: as in `check`.
            y: as in `check`.

        Returns:
            The estimates in nats, (n,).
        """
        self._register()
        v, context = self._scale(x), self._drop_context(self._context(y))
        if self.steps is None:
            level = self.schedule(u)
            error = self._error(level, v, context)
            return -0.5 * self.schedule.log_snr_derivative(u) * level.log_snr.exp() * error
        i = (u * self.steps).floor().clamp(max=self.steps - 1)
        r, t = self.schedule(i / self.steps), self.schedule((i + 1) / self.steps)
        per_row = t.unsqueeze_like(v)
        z = per_row.signal * v + per_row.noise * torch.randn_like(v)
        from_z, from_x, scale = bridge(r.unsqueeze_like(v), per_row)
        q = dist.Normal(from_z * z + from_x * v, scale).to_event(len(self.event_shape))
        return self.steps * torch.distributions.kl_divergence(q, self._step(z, r, t, context))

    def error(self, level: NoiseLevel, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The squared error |v - E[v | z]|^2 at a draw of z for each row.

        Args:
            level: noise levels (n,).
            x: as in `check`.
            y: as in `check`.

        Returns:
            The errors (n,).
        """
        self._register()
        return self._error(level, self._scale(x), self._drop_context(self._context(y)))

    def _error(self, level: NoiseLevel, v: Tensor, context: Tensor | None) -> Tensor:
        a, s, _ = level.unsqueeze_like(v)
        mean = self.denoiser(a * v + s * torch.randn_like(v), level, context)
        return (v - mean).square().flatten(1).sum(1)

    def _step(self, z: Tensor, r: NoiseLevel, t: NoiseLevel, context: Tensor | None) -> TorchDistribution:
        """p(z_r | z_t)."""
        mean, std = self.denoiser.moments(z, t, context)
        per_row = t.unsqueeze_like(z)
        if self.wide:
            std = per_row.posterior_std(self.sigma_data)
        step = bridge(r.unsqueeze_like(z), per_row).averaged(z, mean, std)
        return dist.Normal(*step).to_event(len(self.event_shape))

    def _terminal_distribution(self, level: NoiseLevel, batch: torch.Size) -> TorchDistribution:
        """p(z_T)."""
        scale = level.marginal_std(self.sigma_data)
        distribution = dist.Normal(torch.zeros_like(scale), scale).expand(batch + self.event_shape)
        return distribution.to_event(len(self.event_shape))

    def _sampler_options(self, sampler: str, context: Tensor | None, options: dict[str, Any]) -> dict[str, Any]:
        if sampler != "ancestral":
            return options
        if not self.denoiser.learned_scale:
            return {"variance": "large" if self.wide else "small", "sigma_data": self.sigma_data} | options
        return {"variance": lambda z, level: self.denoiser.moments(z, level, context).scale} | options

    def _levels(self, x: Tensor, steps: int) -> list[NoiseLevel]:
        """The noise levels of the chain, from the data to the noise."""
        return self.schedule(torch.linspace(0, 1, steps + 1, dtype=self._dtype, device=x.device)).unbind()

    def _register(self) -> None:
        pyro.module("denoiser", self.denoiser)
        if self._learns_schedule:
            pyro.module("schedule", self.schedule)

    @property
    def _learns_schedule(self) -> bool:
        return any(True for _ in self.schedule.parameters())
