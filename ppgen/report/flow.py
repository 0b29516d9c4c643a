"""The section of a report on a flow: its density, its maps one after another, and data pulled back to the base.

x is scaled as the model sees it. Densities are shown in the units of the source: with s the scaler,
log p(source) = log p(s(source)) + log |det ds|.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.data import Data
from ppgen.report import figures
from ppgen.report.figures.style import frame
from ppgen.report.page import Figure, Section

__all__ = ["flow"]

SIDE = 100  # points of the density along each column
SPAN, LINES, POINTS = 2.5, 21, 81  # of the grid, in the base: from -SPAN to SPAN, lines each way, points a line
PANELS = 6
TEXT = (
    "The flow carries its base z ~ N(0, I) to data, x = T(z), and data back, z = T^-1(x). Its density is that of the "
    "base at z, times how much T^-1 stretches there: log p(x) = log N(z; 0, I) + log |det dz/dx|. Where the flow is "
    "the law of the data, rows pulled back follow the base; how far they are from it, in KL, is how far the flow is "
    "from the data."
)


def flow(model: Any, data: Data, train: tuple[Tensor, ...], held_out: tuple[Tensor, ...], *, split: str) -> Section:
    """What there is to see of a `ppgen.models.FlowModel`.

    Args:
        train, held_out: rows and, of a conditional model, their labels.
        split: what the second are called.
    """
    items = [*_density(model, data, train), *_grid(model, data, train)]
    z, log_det = (part.numpy(force=True) for part in model.pull_back(*held_out))
    unit = data.scaler.log_det()
    log_prob = {
        name: model.log_prob(*rows).numpy(force=True) + unit for name, rows in (("train", train), (split, held_out))
    }
    caption = (
        f"Left: the log density of {len(train[0])} rows of the training data and {len(z)} of the {split} data, their "
        "means dashed; training rows far to the right are learned by heart. Right: the log determinant of the Jacobian "
        f"at the {split} rows, all in the units of the source."
    )
    if all(np.isfinite(values).any() for values in (log_det, *log_prob.values())):
        items.append(Figure(figures.log_densities(log_prob, log_det + unit), caption, f"Histograms. {caption}"))
    flat = z.reshape(len(z), -1)
    if np.isfinite(flat).all():
        caption = (
            f"{len(z)} rows of the {split} data pulled back. Left: their norms, and the base's. Right: the quantiles "
            "of each coordinate against those of N(0, 1), the dashed line where they agree."
        )
        items.append(Figure(figures.pulled_back(flat), caption, f"Histogram and lines. {caption}"))
        labels = getattr(data, split).y
        y = None if labels is None else labels[: len(flat)]
        plane = figures.latent_plane(flat, y, label_names=data.label_names, prior=True)
        caption = f"The same rows pulled back{'' if y is None else ', by label'}, and the base's circles."
        items.append(Figure(plane, caption, f"Scatter plot. {caption}"))
    return Section("The flow", TEXT, items)


def _density(model: Any, data: Data, rows: tuple[Tensor, ...]) -> Iterator[Figure]:
    """The density of a table of one or two columns beside the data."""
    if len(data.event_shape) != 1 or data.event_shape[0] > 2:
        return
    source = data.scaler.inverse(rows[0].numpy(force=True))
    axes = [np.linspace(*frame(column), SIDE) for column in source.T]
    places = np.stack(np.meshgrid(*axes), axis=-1)
    x = torch.as_tensor(data.scaler.transform(places.reshape(-1, len(axes)))).to(rows[0])
    with torch.no_grad():
        log_prob = torch.stack(
            [weight.log() + _log_prob(distribution, x) for weight, distribution in _laws(model, rows)]
        ).logsumexp(0)
    values = np.exp(log_prob.numpy(force=True) + data.scaler.log_det())
    picture = figures.density(values.reshape(places.shape[:-1]), axes, source, data.columns)
    caption = f"{len(source)} rows of the training data and the model's density, in the units of the source."
    if len(rows) > 1:
        caption += " The labels' laws are added up, each by its share of those rows."
    yield Figure(picture, caption, f"Scatter plot and heat map. {caption}")


def _grid(model: Any, data: Data, rows: tuple[Tensor, ...]) -> Iterator[Figure]:
    """A grid of the base carried through the maps of a flow in the plane."""
    if tuple(model.flow.event_shape) != (2,):
        return
    along, across = torch.linspace(-SPAN, SPAN, POINTS), torch.linspace(-SPAN, SPAN, LINES)
    lines = torch.stack(torch.meshgrid(across, along, indexing="ij"), -1)  # z[0] the same along a line
    z = torch.cat([lines.flip(-1), lines]).to(rows[0])
    drawn = torch.randn(300, 2).to(rows[0])
    distribution = max(_laws(model, rows), key=lambda pair: float(pair[0]))[1]
    with torch.no_grad():
        through = _carried(distribution, torch.cat([z.flatten(0, 1), drawn]))
    count = len(through) - 1
    chosen = sorted(set(np.linspace(0, count, min(PANELS, count + 1)).round().astype(int).tolist()))
    stages = {}
    for k in chosen:
        name = "the base" if k == 0 else f"after map {k} of {count}" if k < count else "data"
        stages[name] = through[k].numpy(force=True)
    split = z.shape[0] * z.shape[1]
    grid = {name: points[:split].reshape(z.shape) for name, points in stages.items()}
    picture = figures.warped_grid(grid, [points[split:] for points in stages.values()])
    caption = (
        f"A grid of the base, from -{SPAN} to {SPAN}, and 300 draws, carried through the maps of the flow one after "
        "another, on the scale that the model sees. A map squeezes where lines come close, and density is high there."
    )
    if len(rows) > 1:
        caption += " It is the law of the most frequent label."
    yield Figure(picture, caption, f"Line drawings. {caption}")


def _laws(model: Any, rows: tuple[Tensor, ...]) -> list[tuple[Tensor, Any]]:
    """The model's laws and their weights: one, or one for each label that the rows have."""
    if len(rows) == 1:
        return [(torch.ones(()), model.distribution())]
    labels, counts = rows[1].unique(return_counts=True)
    return [(count / counts.sum(), model.distribution(label)) for label, count in zip(labels, counts, strict=True)]


def _log_prob(distribution: Any, x: Tensor) -> Tensor:
    """log p(x), minus infinity where the flow does not reach."""
    z, log_det = distribution.inverse_and_log_det(x)
    inside = z.isfinite().flatten(1).all(1) & log_det.isfinite()
    z = torch.where(inside.reshape(-1, *[1] * (z.dim() - 1)), z, 0.0)
    return torch.where(inside, distribution.flow.base.log_prob(z) + log_det, -torch.inf)


def _carried(distribution: Any, z: Tensor) -> list[Tensor]:
    """z, and what each map in turn makes of it, up to x."""
    through = [z]
    for transform in reversed(list(_maps(distribution.flow.maps(distribution.context)))):
        through.append(transform.inv(through[-1]))
    return through


def _maps(transform: Any) -> Iterator[Any]:
    """The maps that a transform is put together of, from data to base."""
    parts = getattr(transform, "transforms", None)
    if parts is None:
        yield transform
    else:
        for part in parts:
            yield from _maps(part)
