"""The section on a flow: its density, its transformations one by one, and data transformed to the base space.

x is scaled as the model sees it. Densities are shown in the units of the source: with s the scaler,
log p(source) = log p(s(source)) + log |det ds|.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.report import figures
from ppgen.report.context import RunContext
from ppgen.report.figures.style import frame
from ppgen.report.page import Figure, Section
from ppgen.utils.budget import Budget

__all__ = ["flow"]

MAX_ROWS, MIN_ROWS = 2000, 2  # that are evaluated, and even if there is no time for them
DENSITY_POINTS = 100  # along each column
GRID_LIMIT, GRID_LINES, LINE_POINTS = 2.5, 21, 81  # of the grid in the base space, which spans both directions
MAX_PANELS = 6
TEXT = (
    "The flow maps its base z ~ N(0, I) to data, x = T(z), and data to the base space, z = T^-1(x). Its density is "
    "that of the base at z times the volume change of T^-1: log p(x) = log N(z; 0, I) + log |det dz/dx|. If the flow "
    "has the distribution of the data, data in the base space follow N(0, I). Their KL divergence from it equals the "
    "KL divergence between data and flow."
)


def flow(context: RunContext) -> Section:
    """The density of a flow, its transformations, log densities and the base space."""
    train, held_out = (context.tensors(split, MAX_ROWS) for split in (context.data.train, context.held_out))
    items = [*_density(context, train), *_warped_grid(context, train)]
    unit = context.data.scaler.log_det()
    budget = context.budget.part(0.6, "the flow")
    z, log_det = _by_rows(context, context.model.pull_back, held_out, budget.part(0.3))
    rows = {"train": train, context.split: held_out}
    log_prob = {
        name: _by_rows(context, context.model.log_prob, part, budget.part(0.5))[0] + unit for name, part in rows.items()
    }
    if all(np.isfinite(values).any() for values in (log_det, *log_prob.values())):
        caption = (
            f"Left: the log density of {len(log_prob['train'])} rows of the training data and "
            f"{len(log_prob[context.split])} rows of the {context.split} data, with dashed means. Training rows far to "
            f"the right are memorized. Right: the log determinant of the Jacobian at {len(z)} rows of the "
            f"{context.split} data. Both are in the units of the source."
        )
        items.append(Figure(figures.log_densities(log_prob, log_det + unit), caption, f"Histograms. {caption}"))
    z = z.reshape(len(z), -1)
    if np.isfinite(z).all():
        items += _base_space(context, z)
    return Section("The flow", TEXT, items)


def _by_rows(
    context: RunContext, function: Callable[..., Tensor | tuple[Tensor, ...]], rows: tuple[Tensor, ...], budget: Budget
) -> list[np.ndarray]:
    """The values of a function, one or several for each row, of the rows for which there is time."""
    parts = []
    for batch in context.batches(len(rows[0]), budget, least=MIN_ROWS):
        values = function(*(part[batch] for part in rows))
        values = (values,) if isinstance(values, Tensor) else values
        parts.append([value.numpy(force=True) for value in values])
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def _base_space(context: RunContext, z: np.ndarray) -> Iterator[Figure]:
    """Held-out rows z (n, d) in the base space."""
    caption = (
        f"{len(z)} rows of the {context.split} data in the base space. Left: their norms, and those of the base. "
        "Right: the quantiles of each coordinate against those of N(0, 1); they agree on the dashed line."
    )
    yield Figure(figures.base_space(z), caption, f"Histogram and lines. {caption}")
    y = None if context.held_out.y is None else context.held_out.y[: len(z)]
    plane = figures.latent_plane(z, y, label_names=context.data.label_names, prior=True)
    colored = "" if y is None else ", colored by label"
    caption = f"The same rows in the base space{colored}. Circles show the base."
    yield Figure(plane, caption, f"Scatter plot. {caption}")


def _density(context: RunContext, rows: tuple[Tensor, ...]) -> Iterator[Figure]:
    """The density of a table of one or two columns beside the data."""
    data = context.data
    if len(data.event_shape) != 1 or data.event_shape[0] > 2:
        return
    source = context.in_source_units(rows[0])
    axes = [np.linspace(*frame(column), DENSITY_POINTS) for column in source.T]
    points = np.stack(np.meshgrid(*axes), axis=-1)
    x = torch.as_tensor(data.scaler.transform(points.reshape(-1, len(axes)))).to(rows[0])
    with torch.no_grad():
        parts = [w.log() + _log_prob(distribution, x) for w, distribution in _distributions(context.model, rows)]
        log_prob = torch.stack(parts).logsumexp(0)
    values = np.exp(log_prob.numpy(force=True) + data.scaler.log_det())
    picture = figures.density(values.reshape(points.shape[:-1]), axes, source, data.columns)
    caption = f"{len(source)} rows of the training data and the model's density, in the units of the source."
    if len(rows) > 1:
        caption += " The density is the sum over labels, weighted by their shares of these rows."
    yield Figure(picture, caption, f"Scatter plot and heat map. {caption}")


def _warped_grid(context: RunContext, rows: tuple[Tensor, ...]) -> Iterator[Figure]:
    """A grid in the base space after each transformation of a flow in the plane."""
    if tuple(context.model.flow.event_shape) != (2,):
        return
    along = torch.linspace(-GRID_LIMIT, GRID_LIMIT, LINE_POINTS)
    across = torch.linspace(-GRID_LIMIT, GRID_LIMIT, GRID_LINES)
    lines = torch.stack(torch.meshgrid(across, along, indexing="ij"), -1)  # z[0] is constant along a line
    z = torch.cat([lines.flip(-1), lines]).to(rows[0])
    drawn = torch.randn(300, 2).to(rows[0])
    distribution = max(_distributions(context.model, rows), key=lambda pair: float(pair[0]))[1]
    with torch.no_grad():
        steps = _transformed(distribution, torch.cat([z.flatten(0, 1), drawn]))
    count = len(steps) - 1
    stages = {}
    for k in sorted(set(np.linspace(0, count, min(MAX_PANELS, count + 1)).round().astype(int).tolist())):
        name = "base" if k == 0 else f"after {k} of {count}" if k < count else "data"
        stages[name] = steps[k].numpy(force=True)
    split = z.shape[0] * z.shape[1]
    grid = {name: points[:split].reshape(z.shape) for name, points in stages.items()}
    picture = figures.warped_grid(grid, [points[split:] for points in stages.values()])
    caption = (
        f"A grid in the base space, from -{GRID_LIMIT} to {GRID_LIMIT}, and 300 draws, after each transformation of "
        "the flow, in the scaling that the model sees. The density is high where lines come close together."
    )
    if len(rows) > 1:
        caption += " The flow is that of the most frequent label."
    yield Figure(picture, caption, f"Line drawings. {caption}")


def _distributions(model: Any, rows: tuple[Tensor, ...]) -> list[tuple[Tensor, Any]]:
    """The model's distributions with their weights: one, or one for each label that the rows have."""
    if len(rows) == 1:
        return [(torch.ones(()), model.distribution())]
    labels, counts = rows[1].unique(return_counts=True)
    return [(count / counts.sum(), model.distribution(label)) for label, count in zip(labels, counts, strict=True)]


def _log_prob(distribution: Any, x: Tensor) -> Tensor:
    """Log p(x), minus infinity outside of the support of the flow."""
    z, log_det = distribution.inverse_and_log_det(x)
    inside = z.isfinite().flatten(1).all(1) & log_det.isfinite()
    z = torch.where(inside.reshape(-1, *[1] * (z.dim() - 1)), z, 0.0)
    return torch.where(inside, distribution.flow.base.log_prob(z) + log_det, -torch.inf)


def _transformed(distribution: Any, z: Tensor) -> list[Tensor]:
    """z, and its images after each transformation up to x."""
    steps = [z]
    for transform in reversed(list(_parts(distribution.flow.maps(distribution.context)))):
        steps.append(transform.inv(steps[-1]))
    return steps


def _parts(transform: Any) -> Iterator[Any]:
    """The transformations that a composed one consists of, from data to base."""
    parts = getattr(transform, "transforms", None)
    if parts is None:
        yield transform
    else:
        for part in parts:
            yield from _parts(part)
