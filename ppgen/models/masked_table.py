"""An autoregressive model of tables in any order of the columns, with mixed likelihoods and missing cells.

Notation: x_j is a column, G a set of columns that are given, and h = f(x_G) a network's view of them. Columns that
are not in G, because they are missing or yet to be drawn, do not enter f. One network has p(x_j | x_G) of all j and G.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.data import Schema
from ppgen.models.column_likelihoods import Encoded, column_likelihoods
from ppgen.models.table_checks import check_table
from ppgen.nets.networks import eval_mode

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MaskedTable"]

KNOTS = 16  # of the piecewise linear features of a number


class MaskedTable(nn.Module):
    """p(x) = prod_k p(x_o(k) | x_o(1), .., x_o(k-1)) for any order o of the columns, of the cells that are there.

    The order-agnostic training of NADE (Uria et al. 2014, https://arxiv.org/abs/1310.1757): a random part of a row's
    cells is given, and the others are predicted from it. For each numeric column p(x_j | x_G) is a mixture of frequent
    values and of K normal distributions of its normal score, so that masses at zero, grids and heavy tails are no
    obstacle; for each column of categories it is a categorical distribution. Missing cells are given to no prediction
    and are not predicted, which is right for cells that are missing at random.

    Args:
        schema: The columns, with their marginal distributions.
        hidden: The widths of the residual blocks, all the same.
        components: The number K of normal distributions.
        dropout: The part of the units of each block that is dropped in training.

    Raises:
        ValueError: If the schema has no marginal distributions, or an option is out of range.
    """

    offsets: Tensor
    edges: Tensor

    def __init__(
        self, schema: Schema, *, hidden: Sequence[int] = (256, 256, 256), components: int = 12, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not hidden or len(set(hidden)) != 1 or hidden[0] < 1:
            raise ValueError(f"hidden: expected widths that are all the same, such as (256, 256), got {tuple(hidden)}")
        if components < 1:
            raise ValueError(f"components: expected at least 1, got {components}")
        self.schema, self.event_shape = schema, (len(schema),)
        width = hidden[0]
        columns = column_likelihoods(schema, components)
        self.columns: Any = nn.ModuleList(columns)
        self.numeric = [j for j, column in enumerate(columns) if column.components]
        sizes = [column.spikes + 1 for column in columns]  # one more for a number that is not frequent
        self.register_buffer("offsets", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)
        self.register_buffer("edges", torch.linspace(-2.6, 2.6, KNOTS), persistent=False)
        self.values = nn.EmbeddingBag(sum(sizes), width, mode="sum")
        self.scores = nn.Linear(len(self.numeric) * KNOTS, width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in hidden)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, sum(column.width for column in columns))
        nn.init.normal_(self.values.weight, std=1.0 / math.sqrt(len(sizes)))
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            self.head.bias.copy_(torch.cat([column.start() for column in columns]))

    def model(self, x: Tensor) -> None:
        """x_i ~ p, by an unbiased estimate of the mean of log p over all orders.

        With t of the D cells of a row given, t uniform on 0 .. D - 1, it is D / (D - t) sum_j log p(x_j | x_G) over the
        cells that are not given.

        Args:
            x: Rows (n, columns) of `Schema.encode`, NaN where a cell is missing.
        """
        pyro.module("table", self)
        with pyro.plate("data", len(x)):
            pyro.sample("x", _AnyOrder(self, x), obs=x.nan_to_num())

    def guide(self, x: Tensor) -> None:
        """Empty: there are no latents.

        Args:
            x: Rows, as in `model`.
        """

    def density_model(self, x: Tensor) -> None:
        """x_ij ~ p(x_j | x_1, .., x_{j-1}), a site each column under its name; missing cells are not observed.

        Args:
            x: Rows, as in `model`.
        """
        observed = ~x.isnan()
        given = torch.zeros_like(observed)
        with pyro.plate("data", len(x)):
            for j, column in enumerate(self.schema.kept):
                likelihood = self.columns[j].distribution(self._outputs(self._encode(x), given)[j])
                seen = x[:, j].nan_to_num(nan=float(self.columns[j].typical))
                pyro.sample(column.name, likelihood.mask(observed[:, j]), obs=seen)
                given = given.clone()
                given[:, j] = observed[:, j]

    def check(self, x: Tensor) -> None:
        """Checks data before training.

        Args:
            x: Rows, as in `model`.

        Raises:
            TypeError: If they are no tensor.
            ValueError: If they have another number of columns, codes of no category, or a row without a value.
        """
        check_table(x, self.schema)

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Log p(x_i) of the cells that are there, in the order of the columns, in nats: (n,).

        Densities of numeric columns are per unit of the encoded numbers; frequent values and categories have masses.

        Args:
            x: Rows, as in `model`.
            y: None: the model has no labels.
        """
        check_table(x, self.schema)
        observed = ~x.isnan()
        total = torch.zeros(len(x), dtype=torch.float64)
        with torch.no_grad(), eval_mode(self):
            cells = self._encode(x)
            for j in range(len(self.columns)):
                given = observed & (torch.arange(len(self.columns)) < j)
                outputs = self._outputs(cells, given)[j]
                logp = self.columns[j].distribution(outputs).log_prob_encoded(cells[j])
                total += torch.where(observed[:, j], logp.double(), 0.0)
        return total

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, mean: bool = False, given: Tensor | None = None) -> Tensor:
        """Draws rows (n, columns), float64.

        Args:
            n: How many.
            y: None: the model has no labels.
            mean: False: a table has no noise to leave out.
            given: Cells that are given (n, columns) or (columns,), NaN where a cell is to be drawn; they are kept.

        Raises:
            ValueError: For labels or means, which the model does not have.
        """
        if y is not None or mean:
            raise ValueError("a table has neither labels nor means: give the cells that are known with given=")
        x = torch.full((n, len(self.columns)), math.nan, dtype=torch.float64)
        if given is not None:
            x[:] = given
        return self.complete(x)

    def impute(self, frame: pd.DataFrame, *, draws: int = 1, seed: int = 0) -> list[pd.DataFrame]:
        """Completes a frame several times: draws of p(missing cells | cells that are there), row by row.

        Differences between the frames show how uncertain the missing cells are: intervals are quantiles over them.

        Args:
            frame: A frame with the columns of the schema; those that the schema omits are kept as they are.
            draws: How many.
            seed: The seed of the draws; the caller's random state does not change.

        Returns:
            As many frames, in which cells that are there are unchanged.

        Raises:
            ValueError: For draws below 1, and as `Schema.encode`.
        """
        if draws < 1:
            raise ValueError(f"draws: expected at least 1, got {draws}")
        x = torch.from_numpy(self.schema.encode(frame))
        completed = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for _ in range(draws):
                filled, copy = self.schema.decode(self.complete(x), index=frame.index), frame.copy()
                for j, name in enumerate(self.schema.names):
                    missing = x[:, j].isnan().numpy()
                    if missing.all():
                        copy[name] = filled[name]
                    elif missing.any():
                        copy[name] = frame[name].where(~missing, filled[name])
                completed.append(copy)
        return completed

    def complete(self, x: Tensor) -> Tensor:
        """Draws the missing cells of rows from p(missing | given), column by column; the others are kept.

        Args:
            x: Rows (n, columns), NaN where a cell is missing.
        """
        with torch.no_grad(), eval_mode(self):
            return self._complete(x.double().clone(), ~x.isnan())

    def _complete(self, x: Tensor, given: Tensor) -> Tensor:
        for j, column in enumerate(self.columns):
            rows = torch.nonzero(~given[:, j]).squeeze(1)
            for some in rows.split(20_000) if len(rows) else ():
                drawn = column.distribution(self._outputs(self._encode(x[some]), given[some])[j]).sample()
                x[some, j] = drawn.double()
            given[:, j] = True
        return x

    def masked_log_prob(self, x: Tensor, given: Tensor) -> Tensor:
        """Log p(x_j | x_G) of each column, 0 where a cell is given or missing: (n, columns).

        Args:
            x: Rows (n, columns), NaN where a cell is missing.
            given: Whether a cell is in G (n, columns).
        """
        cells = self._encode(x)
        outputs = self._outputs(cells, given)
        parts = [
            column.distribution(out).log_prob_encoded(cell)
            for column, out, cell in zip(self.columns, outputs, cells, strict=True)
        ]
        return torch.where(given | x.isnan(), 0.0, torch.stack(parts, 1))

    def _encode(self, x: Tensor) -> list[Encoded]:
        """The cells of each column; those that are missing have any value."""
        return [column.encode(x[:, j].nan_to_num()) for j, column in enumerate(self.columns)]

    def _outputs(self, cells: Sequence[Encoded], given: Tensor) -> Sequence[Tensor]:
        """The parameters of each column's distribution, a tensor (n, width) each."""
        weights = given.to(self.head.weight.dtype)
        spikes = torch.stack([cell.spike for cell in cells], 1)
        h = self.values(spikes + self.offsets, per_sample_weights=weights)
        if self.numeric:
            z = torch.stack([cells[j].score for j in self.numeric], 1).to(h.dtype).unsqueeze(-1)
            features = ((z - self.edges) / (self.edges[1] - self.edges[0]) + 0.5).clamp(0, 1)
            h = h + self.scores((features * weights[:, self.numeric].unsqueeze(-1)).flatten(1))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)).split([column.width for column in self.columns], 1)


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )

    def forward(self, h: Tensor) -> Tensor:
        """H + f(h)."""
        return h + self.layers(h)


class _AnyOrder(dist.TorchDistribution):
    """The distribution of rows, whose log density is estimated from one random set of given cells.

    Args:
        table: The model.
        x: The rows, with their missing cells.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = dist.constraints.real_vector

    def __init__(self, table: MaskedTable, x: Tensor) -> None:
        self.table, self.x = table, x
        super().__init__(x.shape[:1], x.shape[1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """An unbiased estimate of the mean of log p(x) over all orders: (n,)."""
        x = self.x
        observed = ~x.isnan()
        count = observed.sum(1, keepdim=True)
        rank = torch.rand(x.shape, device=x.device).masked_fill(~observed, 2.0).argsort(1).argsort(1)
        t = (torch.rand(len(x), 1, device=x.device) * count).floor()
        logp = self.table.masked_log_prob(x, observed & (rank < t)).sum(1)
        return logp * (count / (count - t)).squeeze(1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws rows."""
        return self.table.sample(len(self.x)).to(self.x.dtype)
