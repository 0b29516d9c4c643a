"""What every model by a denoiser can do: draws by any sampler, and the law of the probability-flow ODE, with density.

Data are scored as v, of which z = a v + s e: as they are, or levels 0 .. K - 1 spread over [-1, 1]. The ODE's law p is
that of z_0 / a_0, data with the little noise, of deviation s_0 / a_0, that the schedule starts with. Levels have
probabilities by noise that fills the gaps between them, see `NOISES`, which bounds log P(x).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppgen.diffusion import (
    Denoise,
    NoiseLevel,
    ProbabilityFlow,
    Schedule,
    classifier_free,
    linear_interpolation,
    sample,
)
from ppgen.models.denoising import Denoising
from ppgen.nets import evaluation, lookup

__all__ = ["Drawing"]

EXACT = 16  # numbers of an event up to which the trace of the density's equation is exact by default


def _uniform(model: "Drawing", x: Tensor) -> tuple[Tensor, Tensor]:
    assert model.levels is not None
    width = 2 / (model.levels - 1)
    v = model._scaled(x)
    z = v + width * (torch.rand_like(v) - 0.5)
    return z, z.new_full(x.shape[:1], math.log(width) * math.prod(model.event_shape))


def _normal(model: "Drawing", x: Tensor) -> tuple[Tensor, Tensor]:
    first, v = model._end(0), model._scaled(x)
    q = dist.Normal(v, first.noise / first.signal).to_event(len(model.event_shape))
    z = q.sample()
    return z, model.observation(first.signal * z).log_prob(x) - q.log_prob(z)


# by name a draw z of v with noise, and a term c(x, z) for which log P(x) >= E [log p(z) + c]: "uniform", over the width
# of a level (Theis et al. 2016, section 3.1); "normal", q(z_0 | x) and P(x | z_0) as the chain has them (see
# `Diffusion.observation`), for a p that has learned its peak at each level, as it does where levels are few
NOISES: dict[str, Callable[["Drawing", Tensor], tuple[Tensor, Tensor]]] = {"uniform": _uniform, "normal": _normal}


class Drawing(Denoising):
    """Draws and densities of a model that has the attributes below, as `ppgen.models.Diffusion` does."""

    noises: ClassVar[dict[str, Any]] = NOISES
    schedule: Schedule
    observation: Any  # z_0 to p(x | z_0)
    _last: Any  # rates and a batch shape to the law of z there, where little is left of the data

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
        """n draws (n, *event_shape), integers where there are levels.

        Args:
            y: labels (n,), or contexts (n, context_dim), of a conditional model.
            sampler: a row of `ppgen.diffusion.SAMPLERS`.
            steps: how many levels of noise, even in the schedule's time, the draws pass; "adaptive" takes its own.
            guidance: w of E + w (E_y - E), E the mean without labels (Ho & Salimans 2022); 1 for E_y.
            progress: whether a bar is shown, in a terminal.
            return_path: whether the states z at all levels are returned too, in a list that ends with the draws.
            options: of the sampler. "ancestral" has this model's own variance unless told otherwise.

        Raises:
            ValueError: for means, since a sampler's last step is E already and leaves no noise out; for guidance of a
                model that learned nothing without labels; for options out of range; for labels that `check` refuses.
        """
        if mean:
            raise ValueError("a sampler's draws end in means already, E[v | z] at the least noise: leave mean=True out")
        self._check_labels(y, torch.Size([n]))
        context = self._context(y)
        options = self._options(sampler, context, options) | {"return_path": return_path, "progress": progress}
        return self._ended(self._drawn(self._denoise(context, guidance), (n,), sampler, steps, options))

    def _drawn(
        self, denoise: Denoise, batch: Sequence[int], sampler: str, steps: int, options: dict[str, Any]
    ) -> Tensor | list[Tensor]:
        """Draws of v (*batch, *event_shape) by a denoiser, this model's or one turned to a condition.

        Args:
            options: of `ppgen.diffusion.sample`.
        """
        if batch[0] < 1 or steps < 1:
            raise ValueError(f"expected n and steps of at least 1, got {batch[0]} and {steps}")
        with evaluation(self):
            levels = self._grid(steps, sampler)
            return sample(denoise, self._start(levels, torch.Size(batch)), levels, sampler=sampler, **options)

    def _ended(self, drawn: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """Draws as data, the states on the way to them as they are."""
        return [*drawn[:-1], self._unscaled(drawn[-1])] if isinstance(drawn, list) else self._unscaled(drawn)

    def _marginal(self, x: Tensor, y: Tensor | None) -> None:
        """The program of x by `distribution`; of levels its density is a bound of log P."""
        distribution = self.distribution(y)
        z, term = (self._scaled(x), None) if self.levels is None else NOISES["uniform"](self, x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", distribution, obs=z)
            if term is not None:
                pyro.factor("levels", term)

    def distribution(self, y: Tensor | None = None, **options: Any) -> ProbabilityFlow:
        """The law of v, or of v given y (*batch,), by the probability-flow ODE between the schedule's ends.

        Its batch shape is that of y. It is made of the denoiser as it is now, and has gradients in its parameters; of a
        schedule that is learned, its ends are taken for constants.

        Args:
            options: of `ppgen.diffusion.ProbabilityFlow`: solver, steps, tolerance, probes.
        """
        context = self._context(y)
        batch = torch.Size() if context is None else context.shape[:-1]
        least, most = (end.noise / (end.signal + end.noise) for end in (self._end(0), self._end(1)))
        start = self._last(linear_interpolation(most), batch)
        return ProbabilityFlow(self._denoise(context), start, sigma_min=float(least), sigma_max=float(most), **options)

    def log_prob(
        self, x: Tensor, y: Tensor | None = None, *, particles: int = 1, noise: str = "uniform", **options: Any
    ) -> Tensor:
        """log p(x_i), or log p(x_i | y_i), of the law, in nats: (n,).

        Of levels, log (1 / m) sum_j p(z_j) exp(c(x_i, z_j)) with m draws z_j, `particles`: in the mean a lower bound of
        log P(x_i), which rises with m. Divided by -D log 2 it is bits per dimension.

        Args:
            noise: of levels, a row of `noises`.
            options: of `ppgen.diffusion.ProbabilityFlow`. Events of more than 16 numbers have ``probes=1`` unless told
                otherwise; an estimate of the trace is right in the mean, and a bound no longer with more particles.

        Raises:
            ValueError: for particles below 1, options out of range, and values, shapes and labels that `check` refuses.
        """
        self.check(x, y)
        if particles < 1:
            raise ValueError(f"expected particles of at least 1, got {particles}")
        fill = lookup(self.noises, noise, option="noise")
        options.setdefault("probes", None if math.prod(self.event_shape) <= EXACT else 1)
        with evaluation(self):
            distribution = self.distribution(y, **options)
            if self.levels is None:
                return distribution.log_prob(self._scaled(x))
            weights = []
            for _ in range(particles):
                z, term = fill(self, x)
                weights.append(distribution.log_prob(z) + term)
            return torch.stack(weights).logsumexp(0) - math.log(particles)

    def denoise(self, y: Tensor | None = None, *, guidance: float = 1.0) -> Denoise:
        """The function (z, rates) -> E[v | z] for labels or contexts y, by classifier-free guidance of that weight.

        Raises:
            ValueError: for guidance of a model that learned nothing without labels.
        """
        return self._denoise(self._context(y), guidance)

    def _denoise(self, context: Tensor | None, guidance: float = 1.0) -> Denoise:
        """E[v | z] at a context, guided by the weight."""
        if guidance == 1:
            return lambda z, level: self.denoiser(z, level, context)
        if context is None or not self.label_dropout:
            raise ValueError(
                f"guidance without a conditional training: guidance={guidance} needs a model of labels or contexts "
                "that learned to do without them too, by label_dropout above 0"
            )
        none = torch.zeros_like(context)
        return classifier_free(
            lambda z, level: self.denoiser(z, level, context), lambda z, level: self.denoiser(z, level, none), guidance
        )

    def _grid(self, steps: int, sampler: str) -> NoiseLevel:
        """The levels that draws pass."""
        return self.schedule.grid(steps, next(self.denoiser.parameters()))

    def _start(self, levels: NoiseLevel, batch: torch.Size) -> Tensor:
        """Draws at the first level, (*batch, *event_shape)."""
        return self._last(levels.unbind()[0], batch).sample()

    def _options(self, sampler: str, context: Tensor | None, options: dict[str, Any]) -> dict[str, Any]:
        """A sampler's options, with what this model has to say of them."""
        return options

    def _end(self, t: float) -> NoiseLevel:
        """The rates where the schedule begins, at 0, or ends, at 1; constants."""
        level = self.schedule(next(self.denoiser.parameters()).new_full((), t))
        return NoiseLevel(*(value.detach() for value in level))
