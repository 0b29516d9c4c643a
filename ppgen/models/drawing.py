"""What every model by a denoiser can do: draws by any sampler, and the law of the probability-flow ODE, with density.

Data are scored as v, of which z = a v + s e: as they are, or levels 0 .. K - 1 spread over [-1, 1]. The ODE's law is
that of z_0 / a_0, data with the little noise that the schedule starts with. Levels have probabilities given z_0 (see
`observation`), so with q(z_0 | x) = N(a_0 v, s_0^2)

    log P(x) >= E_q [log p(z_0) + log P(x | z_0) - log q(z_0 | x)].

That is how the denoiser saw levels in training. Uniform noise of the width of a level would be scored where p, a peak
of deviation s_0 / a_0 at each level, is next to zero.
"""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.diffusion import Denoise, PathLaw, Rates, Schedule, draw, straight
from ppgen.models.denoising import Denoising
from ppgen.nets import evaluation

__all__ = ["Drawing"]


class Drawing(Denoising):
    """Draws and densities of a model that has the attributes below, as `ppgen.models.Diffusion` does."""

    schedule: Schedule
    observation: Any  # z_0 to p(x | z_0)
    _last: Any  # rates and a batch shape to the law of z there, where little is left of the data
    _scaled: Any  # x to v
    _unscaled: Any  # and back

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
            steps: how many levels of noise, even in the schedule's time, the draws pass.
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
        if n < 1 or steps < 1:
            raise ValueError(f"expected n and steps of at least 1, got {n} and {steps}")
        self._check_labels(y, torch.Size([n]))
        with evaluation(self):
            context, levels = self._context(y), self._grid(steps)
            path = draw(
                self._denoise(context, guidance),
                self._start(levels, n),
                levels,
                sampler=sampler,
                return_path=return_path,
                progress=progress,
                **self._options(sampler, context, options),
            )
        return [*path[:-1], self._unscaled(path[-1])] if isinstance(path, list) else self._unscaled(path)

    def law(self, y: Tensor | None = None, **options: Any) -> PathLaw:
        """The law of v, or of v given y (*batch,), by the probability-flow ODE between the schedule's ends.

        Its batch shape is that of y. It is made of the denoiser as it is now, and has gradients in its parameters; of a
        schedule that is learned, its ends are taken for constants.

        Args:
            options: of `ppgen.diffusion.PathLaw`: solver, steps, tolerance, probes.
        """
        context = self._context(y)
        batch = torch.Size() if context is None else context.shape[:-1]
        least, most = (end.noise / (end.signal + end.noise) for end in (self._end(0), self._end(1)))
        start = self._last(straight(most), batch)
        return PathLaw(self._denoise(context), start, least=float(least), most=float(most), **options)

    def log_prob(self, x: Tensor, y: Tensor | None = None, *, particles: int = 1, **options: Any) -> Tensor:
        """log p(x_i), or log p(x_i | y_i), of the law, in nats: (n,).

        Of levels, log (1 / m) sum_j p(z_j) P(x_i | z_j) / q(z_j | x_i) with m draws z_j, `particles`: in the mean a
        lower bound of log P(x_i), which rises to it with m. Divided by -D log 2 it is bits per dimension.

        Args:
            options: of `ppgen.diffusion.PathLaw`; of images, take ``probes=1``.

        Raises:
            ValueError: for particles below 1, options out of range, and values, shapes and labels that `check` refuses.
        """
        self.check(x, y)
        if particles < 1:
            raise ValueError(f"expected particles of at least 1, got {particles}")
        with evaluation(self):
            law = self.law(y, **options)
            if self.levels is None:
                return law.log_prob(self._scaled(x))
            return torch.stack([self._log_weight(law, x) for _ in range(particles)]).logsumexp(0) - math.log(particles)

    def _denoise(self, context: Tensor | None, guidance: float = 1.0) -> Denoise:
        """E[v | z] at a context, guided by the weight."""
        if guidance == 1:
            return lambda z, rates: self.denoiser(z, rates, context)
        if context is None or not self.label_dropout:
            raise ValueError(
                f"guidance without a conditional training: guidance={guidance} needs a model of labels or contexts "
                "that learned to do without them too, by label_dropout above 0"
            )
        none = torch.zeros_like(context)

        def guided(z: Tensor, rates: Rates) -> Tensor:
            bare = self.denoiser(z, rates, none)
            return bare + guidance * (self.denoiser(z, rates, context) - bare)

        return guided

    def _log_weight(self, law: PathLaw, x: Tensor) -> Tensor:
        """log p(z) P(x_i | z) / q(z | x_i) of levels, at a draw z: (n,)."""
        q = self._noised(self._scaled(x))
        z = q.sample()
        return law.log_prob(z) + self.observation(self._end(0).signal * z).log_prob(x) - q.log_prob(z)

    def _grid(self, steps: int) -> Rates:
        """The levels that draws pass."""
        return self.schedule.grid(steps, next(self.denoiser.parameters()))

    def _start(self, levels: Rates, n: int) -> Tensor:
        """n draws at the first level."""
        return self._last(Rates(*(rate[0] for rate in levels)), torch.Size([n])).sample()

    def _options(self, sampler: str, context: Tensor | None, options: dict[str, Any]) -> dict[str, Any]:
        """A sampler's options, with what this model has to say of them."""
        return options

    def _noised(self, v: Tensor) -> TorchDistribution:
        """q(z_0 / a_0 | x)."""
        first = self._end(0)
        return dist.Normal(v, first.noise / first.signal).to_event(len(self.event_shape))

    def _end(self, t: float) -> Rates:
        """The rates where the schedule begins, at 0, or ends, at 1; constants."""
        rates = self.schedule(next(self.denoiser.parameters()).new_full((), t))
        return Rates(*(rate.detach() for rate in rates))
