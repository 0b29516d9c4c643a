"""Diffusion as a hierarchical pair: a guide that adds noise to data, and a model that takes it off again.

With rates a_i, s_i at times i / T of a schedule (see `ppgen.diffusion.schedule`) and v the data, scaled,

    guide    q(z_T | x) = N(a_T v, s_T^2 I),    q(z_{i-1} | z_i, x) = N(b z_i + c v, g^2 I)        fixed
    model    p(z_T) = N(0, (s_T^2 + a_T^2 d^2) I),
             p(z_{i-1} | z_i) = N(b z_i + c E[v | z_i], (g^2 + c^2 V_i) I),    p(x | z_0)

b, c, g being those of the bridge q(z_{i-1} | z_i, x). The model's step is the guide's, averaged over a Gaussian at the
denoiser's E[v | z_i] with variance V_i: zero, that of data N(0, d^2 I), or a learned one. Two of these are Ho et al.'s
variances, beta~ and beta (2020, section 3.2). Given z_0 the data are levels with probabilities in proportion to
N(z_0; a_0 v, s_0^2), or numbers N(z_0 / a_0, (s_0 / a_0)^2) (Kingma et al. 2021, equation 8).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppgen.diffusion import NoiseLevel, bridge, make_schedule
from ppgen.diffusion.schedule import Schedule
from ppgen.models.conditioned import Conditioned
from ppgen.models.sampling import Drawing
from ppgen.nets import evaluation, lookup

__all__ = ["Diffusion"]

# by name: whether V is that of data N(0, d^2 I), and whether it is learned
VARIANCES = {"small": (False, False), "large": (True, False), "learned": (False, True)}


class Diffusion(Drawing):
    """A chain z_T, .., z_0, x of T + 1 latents a datum, each over the plate "data" of x's rows.

    `model` and `guide` are the whole chain, for `ppgen.ELBO`; `ppgen.DiffusionELBO` trains on one step of it at
    a time.

    Args:
        event_shape: (features,) of a table or (channels, height, width) of images.
        network: "dense", "unet", or a module as `ppgen.diffusion.Denoiser` takes it; None for "unet" of images and
            "dense" of the rest.
        hidden: widths of the network, see `ppgen.nets.ResidualDense` and `ppgen.nets.UNet`; None for its own.
        schedule: a row of `ppgen.diffusion.SCHEDULES`, "learned", or a `Schedule`.
        steps: T; None for continuous time, a chain of infinitely many steps, whose program is `distribution`.
        prediction_type: what the network predicts, a row of `ppgen.diffusion.PREDICTION_TYPES`.
        variance: V above: "small", "large", or "learned".
        data_scale: d, the deviation of a number of the data.
        levels: K, of data that are integers 0 .. K - 1, which are spread over [-1, 1].
        num_classes: the number of labels when the model is conditioned on them.
        context_dim: the width of contexts (n, context_dim) that take the place of labels.
        label_dropout: how often a label, or a context, is left out in training by single steps, so that draws can be
            guided.
        options: further ones of the network, such as ``{"attention": True}``, and of the schedule, "sigma_min" and "sigma_max".

    Raises:
        ValueError: an option is out of range or unknown, or the schedule's end is not noise.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        network: str | nn.Module | None = None,
        hidden: Sequence[int] | None = None,
        schedule: str | Schedule = "cosine",
        steps: int | None = 100,
        prediction_type: str = "edm",
        variance: str = "large",
        sigma_data: float = 1.0,
        levels: int | None = None,
        num_classes: int | None = None,
        context_dim: int = 0,
        label_dropout: float = 0.1,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"expected steps of at least 1, or None for continuous time, got {steps}")
        wide, learned = lookup(VARIANCES, variance, option="variance")
        options = dict(options or {})
        ends = {key: options.pop(key) for key in ("sigma_min", "sigma_max") if key in options}
        super().__init__(
            event_shape,
            network=network,
            hidden=hidden,
            prediction_type=prediction_type,
            sigma_data=sigma_data,
            learned_scale=learned,
            levels=levels,
            num_classes=num_classes,
            context_dim=context_dim,
            label_dropout=label_dropout,
            options=options,
        )
        self.steps, self.wide = steps, wide
        self.schedule = make_schedule(schedule, **ends)
        self.schedule.check_terminal_snr()
        if prediction_type in ("noise", "score") and math.isinf(self.schedule.sigma_max):
            raise ValueError(
                f"prediction_type={prediction_type!r} divides by the signal, of which schedule={schedule!r} leaves none at its end; "
                "take prediction_type='velocity' or 'edm'"
            )

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """z_T, then z_{i-1} given z_i down to z_0, then x.

        In continuous time there is x alone, of the law of the probability-flow ODE (see `distribution`), levels with uniform
        noise.
        """
        self._register()
        if self.steps is None:
            return self._marginal(x, y)
        times, context = self._times(x, self.steps), self._context(y)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample(f"z_{self.steps}", self._last(times[-1], x.shape[:1]))
            for i in range(len(times) - 1, 0, -1):
                z = pyro.sample(f"z_{i - 1}", self._step(z, times[i - 1], times[i], context))
            pyro.sample("x", self.observation(z), obs=x if self.levels is not None else self._scaled(x))

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """z_T given x, then z_{i-1} given z_i and x: the data with less and less noise; in continuous time, nothing."""
        if self.steps is None:
            return
        if self._learns_schedule:
            pyro.module("schedule", self.schedule)
        times, v, rank = self._times(x, self.steps), self._scaled(x), len(self.event_shape)
        with pyro.plate("data", len(x), dim=-1):
            last = times[-1]
            z = pyro.sample(f"z_{self.steps}", dist.Normal(last.signal * v, last.noise).to_event(rank))
            for i in range(len(times) - 1, 0, -1):
                from_z, from_x, scale = bridge(times[i - 1], times[i])
                z = pyro.sample(f"z_{i - 1}", dist.Normal(from_z * z + from_x * v, scale).to_event(rank))

    def observation(self, z: Tensor) -> TorchDistribution:
        """p(x | z_0)."""
        first, rank = self.schedule(z.new_zeros(())), len(self.event_shape)
        mean, scale = z / first.signal, first.noise / first.signal
        if self.levels is None:
            return dist.Normal(mean, scale).to_event(rank)
        grid = torch.linspace(-1, 1, self.levels, dtype=z.dtype, device=z.device)
        return dist.Categorical(logits=-((mean.unsqueeze(-1) - grid) / scale).square() / 2).to_event(rank)

    def bound(self, x: Tensor, y: Tensor | None = None, *, particles: int = 1) -> Tensor:
        """A lower bound of log p(x_i), or log p(x_i | y_i), by the chain, estimated without bias, in nats: (n,).

        The mean over m draws, `particles`, of what `ends` and `rate` have, with opposite sign, and of one step in each
        of m equal parts of the chain.

        Raises:
            ValueError: for particles below 1, and values, shapes and labels that `check` refuses.
        """
        self.check(x, y)
        if particles < 1:
            raise ValueError(f"expected particles of at least 1, got {particles}")
        total = torch.zeros(len(x), dtype=self._dtype, device=x.device)
        with evaluation(self):
            for j in range(particles):
                u = (j + torch.rand_like(total)) / particles
                total -= self.ends(x) + self.rate(u, x, y)
        return total / particles

    def condition(
        self, program: Callable[..., Any], *, site: str | None = None, cg_steps: int = 5, floor: float = 0.2
    ) -> Conditioned:
        """p(x | y) by what a Pyro program observes, this model being the prior of x; to be drawn by its `sample`.

        ::

            def half(x):
                pyro.sample("y", dist.Normal(x[..., :4, :], 0.1).to_event(3), obs=y)

            model.condition(half).sample(16)

        Args:
            program: with observed sites alone, called with data x (n, *event_shape), real numbers where there are
                levels too; its rows are draws. Or, if a site is named, a whole program without arguments, whose only
                latent is this site, of the law `distribution` (of v, levels spread over [-1, 1]), under plates or expanded. It
                is run under one more plate, of the draws, to the left of all others, so it must broadcast.
            site: a name in that program.
            cg_steps, floor: see `ppgen.diffusion.posterior`, which says what is approximate in the draws; floor is
                in units of `sigma_data`.

        Raises:
            ValueError: the program has no such latent, or one of another law; when it is sampled, for likelihoods with
                latents, without observations, or whose shapes do not broadcast.
        """
        return Conditioned(self, program, site=site, cg_steps=cg_steps, floor=floor / self.sigma_data)

    # what DiffusionELBO asks of a chain

    def ends(self, x: Tensor) -> Tensor:
        """What the chain's two ends contribute to -log p(x), in nats: (n,).

        KL(q(z_T | x), p(z_T)), in closed form, and -log p(x | z_0) at a draw of z_0.
        """
        v, rank = self._scaled(x), len(self.event_shape)
        first, last = (self.schedule(v.new_full((), t)) for t in (0.0, 1.0))
        q = dist.Normal(last.signal * v, last.noise).to_event(rank)
        z = first.signal * v + first.noise * torch.randn_like(v)
        scored = x if self.levels is not None else v
        return torch.distributions.kl_divergence(q, self._last(last, v.shape[:1])) - self.observation(z).log_prob(
            scored
        )

    def rate(self, u: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """What the steps contribute, by one step for each row, the one at u (n,) in [0, 1): (n,), in nats.

        T KL(q(z_{i-1} | z_i, x), p(z_{i-1} | z_i)) with i - 1 = floor(u T), or in continuous time

            -1/2 SNR'(u) |v - E[v | z_u]|^2                                          Kingma et al. 2021, equation 17

        Its mean over u is the sum over all steps.
        """
        self._register()
        v, context = self._scaled(x), self._dropped(self._context(y))
        if self.steps is None:
            level = self.schedule(u)
            error = self._error(level, v, context)
            return -0.5 * self.schedule.log_snr_derivative(u) * level.log_snr.exp() * error
        i = (u * self.steps).floor().clamp(max=self.steps - 1)
        r, t = self.schedule(i / self.steps), self.schedule((i + 1) / self.steps)
        wide = t.unsqueeze_like(v)
        z = wide.signal * v + wide.noise * torch.randn_like(v)
        from_z, from_x, scale = bridge(r.unsqueeze_like(v), wide)
        q = dist.Normal(from_z * z + from_x * v, scale).to_event(len(self.event_shape))
        return self.steps * torch.distributions.kl_divergence(q, self._step(z, r, t, context))

    def error(self, level: NoiseLevel, x: Tensor, y: Tensor | None = None) -> Tensor:
        """|v - E[v | z]|^2 at a draw of z for each row, at rates (n,): (n,)."""
        self._register()
        return self._error(level, self._scaled(x), self._dropped(self._context(y)))

    def _error(self, level: NoiseLevel, v: Tensor, context: Tensor | None) -> Tensor:
        a, s, _ = level.unsqueeze_like(v)
        mean = self.denoiser(a * v + s * torch.randn_like(v), level, context)
        return (v - mean).square().flatten(1).sum(1)

    def _step(self, z: Tensor, r: NoiseLevel, t: NoiseLevel, context: Tensor | None) -> TorchDistribution:
        """p(z_r | z_t)."""
        mean, spread = self.denoiser.moments(z, t, context)
        wide = t.unsqueeze_like(z)
        if self.wide:
            spread = wide.posterior_std(self.sigma_data)
        step = bridge(r.unsqueeze_like(z), wide).averaged(z, mean, spread)
        return dist.Normal(*step).to_event(len(self.event_shape))

    def _last(self, level: NoiseLevel, batch: torch.Size) -> TorchDistribution:
        """p(z_T)."""
        scale = level.marginal_std(self.sigma_data)
        distribution = dist.Normal(torch.zeros_like(scale), scale).expand(batch + self.event_shape)
        return distribution.to_event(len(self.event_shape))

    def _options(self, sampler: str, context: Tensor | None, options: dict[str, Any]) -> dict[str, Any]:
        if sampler != "ancestral":
            return options
        if not self.denoiser.learned_scale:
            return {"variance": "large" if self.wide else "small", "sigma_data": self.sigma_data} | options
        return {"variance": lambda z, level: self.denoiser.moments(z, level, context).scale} | options

    def _times(self, x: Tensor, steps: int) -> list[NoiseLevel]:
        return self.schedule(torch.linspace(0, 1, steps + 1, dtype=self._dtype, device=x.device)).unbind()

    def _register(self) -> None:
        pyro.module("denoiser", self.denoiser)
        if self._learns_schedule:
            pyro.module("schedule", self.schedule)

    @property
    def _learns_schedule(self) -> bool:
        return any(True for _ in self.schedule.parameters())
