"""What all models with a denoiser can do: sampling, and the density of the probability-flow ODE.

The ODE defines a density of z_0 / a_0: data with the small noise, of standard deviation s_0 / a_0, at which the
schedule starts. Gray levels have probabilities. They are bounded from below by the density of levels to which noise is
added, see `DEQUANTIZATIONS`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution

from ppgen.diffusion import (
    Denoise,
    NoiseLevel,
    ProbabilityFlow,
    Schedule,
    classifier_free,
    linear_interpolation,
    sample,
)
from ppgen.models.denoising import DenoisingModel
from ppgen.nets import eval_mode, lookup

__all__ = ["DEQUANTIZATIONS", "DenoisingSampler"]

MAX_EXACT_TRACE = 16  # elements of an event up to which log_prob computes the trace exactly by default

Dequantization = Callable[[Any, Tensor], tuple[Tensor, Tensor]]


def _uniform(model: "DenoisingSampler", x: Tensor) -> tuple[Tensor, Tensor]:
    """Uniform noise over the width of a level."""
    width = 2 / (model.levels - 1)
    v = model._scale(x)
    z = v + width * (torch.rand_like(v) - 0.5)
    return z, z.new_full(x.shape[:1], math.log(width) * math.prod(model.event_shape))


# By name, a function of a model and levels x that returns a draw z of v with noise and a term c(x, z) with
# log P(x) >= E [log p(z) + c]. "uniform" is that of Theis et al., https://arxiv.org/abs/1511.01844, section 3.1.
DEQUANTIZATIONS: dict[str, Dequantization] = {"uniform": _uniform}


class DenoisingSampler(DenoisingModel):
    """A model with a denoiser and a schedule, from which it samples and by which it scores data.

    A subclass sets `schedule` and defines `_terminal_distribution`. `Conditioned` and other code that replaces the
    denoiser use `denoise`, `run_sampler`, `unscale` and `to_data`.
    """

    dequantizations: ClassVar[dict[str, Dequantization]] = DEQUANTIZATIONS
    schedule: Schedule

    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        mean: bool = False,
        sampler: str = "heun",
        steps: int = 18,
        guidance: float = 1.0,
        progress: bool = False,
        return_path: bool = False,
        **options: Any,
    ) -> Tensor | list[Tensor]:
        """Draws data.

        Args:
            n: the number of draws.
            y: labels (n,) or contexts (n, context_dim) of a conditional model.
            mean: accepted for the interface of other models; must be False.
            sampler: a row of `ppgen.diffusion.SAMPLERS`.
            steps: the number of noise levels, equally spaced in the time of the schedule; "adaptive" chooses its own.
            guidance: the weight w of E + w (E_y - E), where E is the mean without labels (Ho and Salimans,
                https://arxiv.org/abs/2207.12598); 1 for E_y.
            progress: whether to show a progress bar, in a terminal.
            return_path: whether to return the states z at all levels too.
            options: further options of the sampler. "ancestral" has the variance of this model by default.

        Returns:
            Draws (n, *event_shape), integers if the model has levels; with `return_path` a list that ends with them.

        Raises:
            ValueError: for ``mean=True``, because a draw is the mean E[v | z] at the last level already; for guidance
                of a model without label dropout; for options out of range; for labels that `check` refuses.
        """
        if mean:
            raise ValueError("the last step of a sampler returns the mean E[v | z], without noise: leave mean=True out")
        self.check_labels(y, torch.Size([n]))
        options = self._sampler_options(sampler, self._context(y), options)
        options |= {"return_path": return_path, "progress": progress}
        return self.to_data(self.run_sampler(self.denoise(y, guidance=guidance), (n,), sampler, steps, **options))

    def denoise(self, y: Tensor | None = None, *, guidance: float = 1.0) -> Denoise:
        """The function (z, level) -> E[v | z, y].

        Args:
            y: labels or contexts of a conditional model, with the batch shape of z.
            guidance: the weight of classifier-free guidance, as in `sample`.

        Raises:
            ValueError: if y is missing or not expected; for guidance of a model without label dropout.
        """
        context = self._context(y)

        def conditional(z: Tensor, level: NoiseLevel) -> Tensor:
            return self.denoiser(z, level, context)

        if guidance == 1:
            return conditional
        if context is None or not self.label_dropout:
            raise ValueError(
                f"guidance={guidance} needs a model that is trained with labels or contexts, and also without them, by "
                "label_dropout above 0"
            )
        zeros = torch.zeros_like(context)
        return classifier_free(conditional, lambda z, level: self.denoiser(z, level, zeros), guidance)

    def run_sampler(
        self, denoise: Denoise, batch_shape: Sequence[int], sampler: str, steps: int, **options: Any
    ) -> Tensor | list[Tensor]:
        """Draws v by a denoiser, that of this model or another one, on the schedule of this model.

        Args:
            denoise: the function (z, level) -> E[v | z].
            batch_shape: the batch shape of the draws.
            sampler: as in `sample`.
            steps: as in `sample`.
            options: options of `ppgen.diffusion.sample`.

        Returns:
            Draws of v (*batch_shape, *event_shape), or the list of states with ``return_path=True``.

        Raises:
            ValueError: if n or steps are below 1, or an option is out of range.
        """
        if batch_shape[0] < 1 or steps < 1:
            raise ValueError(f"expected n and steps of at least 1, got {batch_shape[0]} and {steps}")
        with eval_mode(self):
            levels = self._noise_levels(steps, sampler)
            noise = self._initial_noise(levels, torch.Size(batch_shape))
            return sample(denoise, noise, levels, sampler=sampler, **options)

    def to_data(self, v: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """The data x of draws v, levels rounded; in a list of states only the last one is transformed."""
        if isinstance(v, list):
            return [*v[:-1], self._round(v[-1])]
        return self._round(v)

    def _round(self, v: Tensor) -> Tensor:
        return v if self.levels is None else self.unscale(v).round().clamp(0, self.levels - 1).long()

    def _density_program(self, x: Tensor, y: Tensor | None) -> None:
        """The program x_i ~ `distribution`; for levels its density is a lower bound of log P."""
        distribution = self.distribution(y)
        z, term = (self._scale(x), None) if self.levels is None else _uniform(self, x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", distribution, obs=z)
            if term is not None:
                pyro.factor("levels", term)

    def distribution(self, y: Tensor | None = None, **options: Any) -> ProbabilityFlow:
        """The distribution of v, or of v given y, that the probability-flow ODE defines between the schedule's ends.

        It uses the present denoiser and has gradients with respect to its parameters. The ends of a learned schedule
        are constants.

        Args:
            y: labels (*batch) or contexts (*batch, context_dim) of a conditional model.
            options: options of `ppgen.diffusion.ProbabilityFlow`: solver, steps, tolerance, probes.

        Returns:
            The distribution, of batch shape (*batch).
        """
        context = self._context(y)
        batch = torch.Size() if context is None else context.shape[:-1]
        least, most = (end.noise / (end.signal + end.noise) for end in (self._noise_level(0), self._noise_level(1)))
        base = self._terminal_distribution(linear_interpolation(most), batch)
        return ProbabilityFlow(self.denoise(y), base, sigma_min=float(least), sigma_max=float(most), **options)

    def log_prob(
        self, x: Tensor, y: Tensor | None = None, *, particles: int = 1, noise: str = "uniform", **options: Any
    ) -> Tensor:
        """The log density of x, or of x given y, by the probability-flow ODE.

        For levels, it is log (1 / m) sum_j p(z_j) exp(c(x_i, z_j)) with m draws z_j of noisy levels. Its expectation is
        a lower bound of log P(x_i), which increases with m. Divided by -D log 2 it is in bits per dimension.

        Args:
            x: as in `check`.
            y: as in `check`.
            particles: the number m of draws, for levels.
            noise: the noise of levels, a row of `dequantizations`.
            options: options of `ppgen.diffusion.ProbabilityFlow`. By default, events of more than 16 elements have
                ``probes=1``: an unbiased estimate of the trace, with which more particles no longer give a bound.

        Returns:
            log p(x_i) in nats, (n,).

        Raises:
            TypeError: as `check` does.
            ValueError: as `check` does, for particles below 1, and for options out of range.
        """
        self.check(x, y)
        if particles < 1:
            raise ValueError(f"expected particles of at least 1, got {particles}")
        dequantize = lookup(self.dequantizations, noise, option="noise")
        options.setdefault("probes", None if math.prod(self.event_shape) <= MAX_EXACT_TRACE else 1)
        with eval_mode(self):
            distribution = self.distribution(y, **options)
            if self.levels is None:
                return distribution.log_prob(self._scale(x))
            weights = []
            for _ in range(particles):
                z, term = dequantize(self, x)
                weights.append(distribution.log_prob(z) + term)
            return torch.stack(weights).logsumexp(0) - math.log(particles)

    def _terminal_distribution(self, level: NoiseLevel, batch: torch.Size) -> Distribution:
        """The distribution of z at a level with little signal, with that batch shape."""
        raise NotImplementedError

    def _noise_levels(self, steps: int, sampler: str) -> NoiseLevel:
        """The noise levels of a sampler."""
        return self.schedule.grid(steps, next(self.denoiser.parameters()))

    def _initial_noise(self, levels: NoiseLevel, batch: torch.Size) -> Tensor:
        """Draws at the first level, (*batch, *event_shape)."""
        return self._terminal_distribution(levels.unbind()[0], batch).sample()

    def _sampler_options(self, sampler: str, context: Tensor | None, options: dict[str, Any]) -> dict[str, Any]:
        """The user's options of a sampler, with the defaults and checks of this model."""
        return options

    def _noise_level(self, t: float) -> NoiseLevel:
        """The noise level at time t of the schedule, as a constant."""
        level = self.schedule(next(self.denoiser.parameters()).new_full((), t))
        return NoiseLevel(*(value.detach() for value in level))
