"""Diffusion models: rows at several stages, and the denoiser's error at each noise level."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ppgen.report.figures.style import EQUAL, PALETTE, canvas, frame, panels, scatter, styled
from ppgen.report.figures.tables import DATA_COLOR, SAMPLE_COLOR

__all__ = ["clouds", "errors_by_noise"]

ACROSS = 3  # panels in a row


@styled
def clouds(
    stages: Mapping[str, np.ndarray], *, data: np.ndarray | None = None, columns: Sequence[str] | None = None
) -> Figure:
    """Rows at several stages, a panel each: a scatter plot of the first two columns, or a histogram of a single one.

    Args:
        stages: the rows (n, d) of each stage by title.
        data: rows that are drawn below those of each stage.
        columns: the names of the columns.

    Raises:
        ValueError: if there are no stages, or they differ in their number of columns.
    """
    widths = {rows.shape[1:] for rows in stages.values()}
    if len(widths) != 1 or len(next(iter(widths))) != 1:
        raise ValueError(f"expected rows (n, d) of one width at each stage, got shapes {sorted(widths)}")
    names = list(columns) if columns is not None else [f"x[{i}]" for i in range(next(iter(widths))[0])]
    figure, axes = panels(len(stages), across=ACROSS, height=2.3)
    for axis, (title, rows) in zip(axes, stages.items(), strict=True):
        axis.set_title(title)
        if rows.shape[1] == 1:
            edges = np.linspace(*frame(rows[:, 0] if data is None else np.r_[rows[:, 0], data[:, 0]]), 50)
            if data is not None:
                axis.stairs(np.histogram(data[:, 0], edges, density=True)[0], edges, fill=True, color=DATA_COLOR)
            axis.stairs(np.histogram(rows[:, 0], edges, density=True)[0], edges, color=SAMPLE_COLOR)
            axis.set_xlabel(names[0])
            continue
        if data is not None:
            scatter(axis, data[:, :2], DATA_COLOR, scale=2.0)
        scatter(axis, rows[:, :2], SAMPLE_COLOR)
        x, y = (frame(column) for column in rows[:, :2].T)
        axis.set(xlim=x, ylim=y, xlabel=names[0], ylabel=names[1], **EQUAL)
    return figure


@styled
def errors_by_noise(log_snr: np.ndarray, errors: Mapping[str, np.ndarray]) -> Figure:
    """The denoiser's mean squared error by noise level, a line for each set of rows, on a logarithmic scale.

    Args:
        log_snr: the log signal-to-noise ratios (m,), in nats.
        errors: the errors (m,) by the name of the set.

    Raises:
        ValueError: if there are no errors, or some have another length.
    """
    if not errors or any(np.shape(line) != np.shape(log_snr) for line in errors.values()):
        shapes = [np.shape(line) for line in errors.values()]
        raise ValueError(f"expected errors of shape {np.shape(log_snr)}, at least one, got {shapes}")
    figure = canvas(3.0)
    axis = figure.add_subplot(xlabel="log signal-to-noise ratio (nats)", ylabel="squared error per dimension")
    for color, (name, line) in zip(PALETTE, errors.items(), strict=False):
        axis.plot(log_snr, np.where(np.asarray(line) > 0, line, np.nan), color=color, label=name)
    axis.set_yscale("log")
    axis.invert_xaxis()
    axis.legend()
    return figure
