"""The section of a report on a diffusion or a flow matching model: the way from noise to data, and how long it is."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppgen.data import Data
from ppgen.metrics import SlicedWasserstein
from ppgen.report import figures
from ppgen.report.figures.images import span
from ppgen.report.page import Figure, Section, Table

__all__ = ["diffusion"]

STAGES = 6  # of a path that are shown
SHOWN = 12  # images in a row
STEPS = (1, 2, 5, 18, 50)
IMPUTED, SEEN = 3, 0.05  # draws of a hidden half; the noise on what is seen, in deviations of the data
LEVELS = 20  # noise levels at which the error is measured
TEXT = (
    "The model draws noise, and takes it off in steps: at each noise level a network guesses the data beneath, "
    "E[x | z], and the sampler moves a part of the way there. What the network errs is shown by noise level; what the "
    "sampler errs falls with the number of its steps."
)


def diffusion(
    model: Any, data: Data, train: tuple[Tensor, ...], held_out: tuple[Tensor, ...], *, split: str
) -> Section:
    """What there is to see of a model with a denoiser, such as `ppgen.models.Diffusion`.

    Args:
        train, held_out: rows and, of a conditional model, their labels.
        split: what the second are called.
    """
    images = len(data.event_shape) == 3
    count = SHOWN if images else len(train[0])
    labels = [part[:count] for part in train[1:]]

    def source(x: Tensor) -> np.ndarray:
        return data.scaler.inverse(x.numpy(force=True))

    seen = source(train[0])

    def picture(stages: dict[str, np.ndarray], behind: np.ndarray | None) -> Any:
        if images:
            return figures.sequences(stages, limits=span(seen))
        return figures.clouds(stages, data=behind, columns=data.columns)

    *path, draws = model.sample(count, *labels, return_path=True)
    chosen = np.linspace(0, len(path) - 1, min(STAGES - 1, len(path))).round().astype(int)
    stages = {("noise" if k == 0 else f"step {k}"): _alike(path[k].numpy(force=True), seen) for k in chosen}
    stages["draws"] = source(draws)
    caption = (
        f"{count} draws on their way from noise to data, in {len(path)} steps; up to the last one shifted and scaled "
        "to the mean and the deviation of the data."
    )
    items: list[Any] = [Figure(picture(stages, None), caption, f"Generated data. {caption}")]

    drawn, rows = {}, []
    told = held_out[0].flatten(1).double().cpu()
    for steps in STEPS:
        with torch.random.fork_rng():  # the same noise for all
            draws = model.sample(len(held_out[0]), *held_out[1:], steps=steps)
            distance = SlicedWasserstein(root=True)(draws.flatten(1).double().cpu(), told)
        rows.append((steps, float(distance)))
        drawn[f"{steps} step{'s' if steps > 1 else ''}"] = source(draws[:count])
    caption = "Draws from the same noise, in one step and in more."
    items.append(Figure(picture(drawn, seen), caption, f"Generated data. {caption}"))
    items.append(
        Table(("steps", f"sliced Wasserstein-2 distance to the {split} data, on the scale of the model"), rows)
    )
    if hasattr(model, "error"):
        items.append(_errors(model, train, held_out, split))
    if images and hasattr(model, "condition"):
        seen_half = [part[:SHOWN] for part in held_out]
        caption = (
            f"The upper halves of {len(seen_half[0])} rows of the {split} data, and whole images drawn given them, the "
            "model being the prior: what is above is seen with little noise, what is below is imputed."
        )
        rows_of_images = {name: source(x) for name, x in _imputed(model, *seen_half).items()}
        items.append(Figure(picture(rows_of_images, None), caption, f"Images. {caption}"))
    return Section("From noise to data", TEXT, items)


def _imputed(model: Any, x: Tensor, *labels: Tensor) -> dict[str, Tensor]:
    """Rows whose lower half is hidden, and draws of the whole given the upper half."""
    half, seen = x.shape[-2] // 2, x.to(next(model.parameters()).dtype)
    blank = x.clone()
    blank[..., half:, :] = x.min()

    def program(whole: Tensor) -> None:
        distribution = dist.Normal(whole[..., :half, :], SEEN * seen.std())
        pyro.sample("upper half", distribution.to_event(3), obs=seen[..., :half, :])

    posterior = model.condition(program)
    drawn = {f"draw {k + 1}": posterior.sample(len(x), *labels) for k in range(IMPUTED)}
    return {"data": x, "seen": blank, **drawn}


def _alike(z: np.ndarray, data: np.ndarray) -> np.ndarray:
    """z, with the mean and the deviation that data have: of each column, or of all pixels together."""
    axis = None if data.ndim > 2 else 0
    return (z - z.mean(axis)) / z.std(axis) * data.std(axis) + data.mean(axis)


def _errors(model: Any, train: tuple[Tensor, ...], held_out: tuple[Tensor, ...], split: str) -> Figure:
    """The denoiser's error by noise level."""
    dtype = next(model.parameters()).dtype
    times = torch.linspace(0.01, 0.99, LEVELS, dtype=dtype, device=train[0].device)
    lines: dict[str, list[float]] = {"train": [], split: []}
    model.eval()
    with torch.no_grad():
        for time in times:
            for name, rows in (("train", train), (split, held_out)):
                rates = model.schedule(time.expand(len(rows[0])))
                lines[name].append(float(model.error(rates, *rows).mean()) / rows[0][0].numel())
        log_snr = model.schedule(times).log_snr.numpy(force=True)
    caption = (
        f"The squared error of the denoiser's guess, a number of x, on {len(train[0])} rows of the training data and "
        f"{len(held_out[0])} of the {split} data: from no noise on the left to nothing else on the right, where it is "
        "the variance of the data. Lines that part show what was learned by heart."
    )
    curves = {name: np.array(line) for name, line in lines.items()}
    return Figure(figures.errors_by_noise(log_snr, curves), caption, f"Line chart. {caption}")
