"""The likelihood of one column, given the outputs of a network: spikes at frequent values, and normal scores.

The normal score z(x) of a number is the quantile function of N(0, 1) at its level in the data, linear between the
quantiles of the schema and beyond them. With weights w of A spikes v_a and K normal distributions,

    p(x = v_a) = w_a,    p(x) = sum_k w_{A+k} N(z(x); m_k, s_k) z'(x) elsewhere.

A column of categories has spikes only, at its codes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppgen.data import Column, Schema

__all__ = ["ColumnLikelihood", "Encoded", "SpikesAndScores", "column_likelihoods"]

MIN_LOG_SCALE = -5.0
FLOAT32 = 2.0**-23  # relative rounding of data that were cast to float32, in which a frequent value stays one


class Encoded(NamedTuple):
    """Values of a column as its likelihood sees them.

    Attributes:
        spike: The number of the spike at which each value is, A for none.
        score: The normal score z(x), or the code of a category.
        log_slope: log z'(x).
    """

    spike: Tensor
    score: Tensor
    log_slope: Tensor


class ColumnLikelihood(nn.Module):
    """What a column's likelihood needs: its spikes and its map to normal scores.

    Args:
        column: The column, with its marginal distribution.
        components: The number K of normal distributions, of columns that have no categories.

    Attributes:
        spikes: The number A of spikes.
        components: K; 0 for a column of categories.
        width: The number of outputs of the network that its distribution takes.

    Raises:
        ValueError: If a column of numbers has no marginal distribution.
    """

    values: Tensor
    knots: Tensor
    knot_scores: Tensor
    slopes: Tensor

    def __init__(self, column: Column, components: int) -> None:
        super().__init__()
        if not column.is_coded and not column.quantiles:
            raise ValueError(
                f"column {column.name!r} of the schema has no marginal distribution: use Schema.infer(frame), or "
                "schema.with_marginals(schema.encode(frame))"
            )
        values = range(len(column.categories or ())) if column.is_coded else column.frequent
        self.spikes, self.components = len(values), 0 if column.is_coded else components
        self.width = self.spikes + 3 * self.components
        self.register_buffer("values", torch.tensor(list(values), dtype=torch.float64), persistent=False)
        knots, levels = column.quantiles or (0.0, 1.0), column.levels or (0.25, 0.75)
        scores = torch.special.ndtri(torch.tensor(levels, dtype=torch.float64))
        self.register_buffer("knots", torch.tensor(knots, dtype=torch.float64), persistent=False)
        self.register_buffer("knot_scores", scores, persistent=False)
        self.register_buffer("slopes", scores.diff() / self.knots.diff(), persistent=False)
        self.typical = float(self.values[0]) if self.spikes else float(self.knots[len(knots) // 2])

    def start(self) -> Tensor:
        """Outputs with which training starts: components that cover the scores."""
        k = self.components
        return torch.cat([torch.zeros(self.spikes + k), torch.linspace(-1.5, 1.5, k), torch.full((k,), -0.5)])

    def encode(self, x: Tensor) -> Encoded:
        """Where each value is: its spike, its normal score and the slope of that.

        Args:
            x: Values (n,), none missing.
        """
        x = x.double().contiguous()
        if not self.components:
            return Encoded(x.long().clamp(0, self.spikes - 1), x, x)
        i = (torch.searchsorted(self.knots, x) - 1).clamp(0, len(self.knots) - 2)
        z = self.knot_scores[i] + self.slopes[i] * (x - self.knots[i])
        spike = torch.full_like(i, self.spikes)
        if self.spikes:
            near = torch.searchsorted((self.values[1:] + self.values[:-1]) / 2, x)
            at = (self.values[near] - x).abs() <= FLOAT32 * self.values[near].abs()
            spike = torch.where(at, near, spike)
        return Encoded(spike, z, self.slopes[i].log())

    def value(self, z: Tensor) -> Tensor:
        """The number of a normal score.

        Args:
            z: Scores (n,).
        """
        i = (torch.searchsorted(self.knot_scores, z.double().contiguous()) - 1).clamp(0, len(self.knots) - 2)
        return self.knots[i] + (z - self.knot_scores[i]) / self.slopes[i]

    def distribution(self, outputs: Tensor) -> SpikesAndScores:
        """The distribution of the column.

        Args:
            outputs: Outputs of a network (n, width).
        """
        return SpikesAndScores(self, outputs)


class SpikesAndScores(dist.TorchDistribution):
    """The distribution of a column in the units of the encoded numbers: masses at spikes, a density elsewhere.

    Args:
        column: Spikes and scores.
        outputs: Logits of the weights (A + K), the means (K) and log standard deviations (K): (n, A + 3K).
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.real
    has_rsample = False

    def __init__(self, column: ColumnLikelihood, outputs: Tensor) -> None:
        a, k = column.spikes, column.components
        logits, self.loc, log_scale = outputs.split([a + k, k, k], -1)
        self.column, self.log_weights = column, logits.log_softmax(-1)
        self.log_scale = MIN_LOG_SCALE + nn.functional.softplus(log_scale - MIN_LOG_SCALE)
        super().__init__(outputs.shape[:-1], validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> SpikesAndScores:
        """The same distribution for other batch shapes that broadcast."""
        outputs = torch.cat([self.log_weights, self.loc, self.log_scale], -1)
        new = SpikesAndScores(self.column, outputs.expand(*batch_shape, outputs.shape[-1]))
        new.log_scale = self.log_scale.expand(*batch_shape, self.log_scale.shape[-1])
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log p(x) in nats.

        Args:
            value: Encoded numbers.
        """
        return self.log_prob_encoded(self.column.encode(value))

    def log_prob_encoded(self, at: Encoded) -> Tensor:
        """Log p(x) in nats.

        Args:
            at: Encoded numbers, as `ColumnLikelihood.encode` returns them.
        """
        a = self.column.spikes
        spike, z, log_slope = at
        if not self.column.components:
            return self.log_weights.gather(-1, spike.unsqueeze(-1)).squeeze(-1)
        dtype = self.log_weights.dtype
        standard = (z.to(dtype).unsqueeze(-1) - self.loc) * (-self.log_scale).exp()
        density = self.log_weights[..., a:] - self.log_scale - 0.5 * standard.square() - 0.5 * math.log(2 * math.pi)
        smooth = density.logsumexp(-1) + log_slope.to(dtype)
        if not a:
            return smooth
        mass = self.log_weights[..., :a].gather(-1, spike.clamp(max=a - 1).unsqueeze(-1)).squeeze(-1)
        return torch.where(spike < a, mass, smooth)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws numbers, float64."""
        a, k = self.column.spikes, self.column.components
        shape = (*sample_shape, *self.batch_shape)
        chosen = dist.Categorical(logits=self.log_weights, validate_args=False).sample(sample_shape)
        if not k:
            return self.column.values[chosen]
        component = (chosen - a).clamp(min=0).unsqueeze(-1)
        loc, log_scale = (
            part.expand(*shape, k).gather(-1, component).squeeze(-1) for part in (self.loc, self.log_scale)
        )
        x = self.column.value(loc + log_scale.exp() * torch.randn(shape, device=loc.device))
        return torch.where(chosen < a, self.column.values[chosen.clamp(max=a - 1)], x) if a else x


def column_likelihoods(schema: Schema, components: int) -> list[ColumnLikelihood]:
    """The likelihood of each kept column.

    Args:
        schema: The columns.
        components: The number K of normal distributions.
    """
    return [ColumnLikelihood(column, components) for column in schema.kept]
