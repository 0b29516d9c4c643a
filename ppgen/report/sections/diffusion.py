"""The section on a diffusion or flow matching model: the path from noise to data, and the error of the denoiser."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppgen.metrics import SlicedWasserstein
from ppgen.models.protocols import Conditions, HasDenoisingError
from ppgen.report import figures
from ppgen.report.context import RunContext
from ppgen.report.figures.images import value_range
from ppgen.report.page import Figure, Section, Table

__all__ = ["noise_to_data"]

Picture = Callable[[Mapping[str, np.ndarray], np.ndarray | None], Any]

MAX_ROWS = 500  # rows that are compared with samples
STAGES = 6  # of a path that are shown
MAX_IMAGES = 12  # in a row
STEPS = (1, 2, 5, 18, 50)
IMPUTATIONS, OBSERVATION_NOISE = 3, 0.05  # draws of a hidden half; the noise in standard deviations of the data
NOISE_LEVELS = 20  # at which the error is measured
TEXT = (
    "The model draws noise and removes it in steps. At each noise level z a network estimates the data, E[x | z], and "
    "the sampler moves part of the way to the estimate. The table shows how the error of the sampler decreases with "
    "the number of steps."
)


def noise_to_data(context: RunContext) -> Section:
    """The path of samples from noise to data, samples by number of steps, the denoiser's error, and imputations."""
    train, held_out = (context.tensors(split, MAX_ROWS) for split in (context.data.train, context.held_out))
    source = context.in_source_units(train[0])

    def picture(stages: Mapping[str, np.ndarray], behind: np.ndarray | None) -> Any:
        if context.images:
            return figures.sequences(stages, limits=value_range(source))
        return figures.clouds(stages, data=behind, columns=context.data.columns)

    count = MAX_IMAGES if context.images else len(train[0])
    labels = [part[:count] for part in train[1:]]
    items: list[Any] = [_path(context, labels, count, source, picture)]
    items += _by_steps(context, held_out, count, source, picture)
    if isinstance(context.model, HasDenoisingError):
        items.append(_denoising_errors(context, train, held_out))
    if context.images and isinstance(context.model, Conditions):
        items.append(_imputations(context, held_out, picture))
    return Section("From noise to data", TEXT, items)


def _path(context: RunContext, labels: list[Tensor], count: int, source: np.ndarray, picture: Picture) -> Figure:
    """Samples at some of the sampler's steps."""
    *path, last = context.model.sample(count, *labels, return_path=True)
    chosen = np.linspace(0, len(path) - 1, min(STAGES - 1, len(path))).round().astype(int)
    stages = {("noise" if k == 0 else f"step {k}"): _standardized(path[k].numpy(force=True), source) for k in chosen}
    stages["samples"] = context.in_source_units(last)
    caption = (
        f"{count} samples on their way from noise to data, in {len(path)} steps. All but the last are shifted and "
        "scaled to the mean and the standard deviation of the data."
    )
    return Figure(picture(stages, None), caption, f"Generated data. {caption}")


def _by_steps(
    context: RunContext, held_out: tuple[Tensor, ...], count: int, source: np.ndarray, picture: Picture
) -> tuple[Figure, Table]:
    """Samples in more and more steps, and their distance to held-out data."""
    drawn, rows = {}, []
    data = held_out[0].flatten(1).double().cpu()
    for steps in STEPS:
        with torch.random.fork_rng():  # the same noise each time
            samples = context.model.sample(len(held_out[0]), *held_out[1:], steps=steps)
            distance = SlicedWasserstein(root=True)(samples.flatten(1).double().cpu(), data)
        rows.append((steps, float(distance)))
        drawn[f"{steps} step{'s' if steps > 1 else ''}"] = context.in_source_units(samples[:count])
    caption = "Samples from the same noise, by the number of steps."
    header = ("steps", f"sliced Wasserstein-2 distance to the {context.split} data, in the scaling of the model")
    return Figure(picture(drawn, source), caption, f"Generated data. {caption}"), Table(header, rows)


def _imputations(context: RunContext, held_out: tuple[Tensor, ...], picture: Picture) -> Figure:
    """Images whose lower half is hidden, and draws of the whole given the upper half."""
    x, *labels = (part[:MAX_IMAGES] for part in held_out)
    half, observed = x.shape[-2] // 2, x.to(next(context.model.parameters()).dtype)
    masked = x.clone()
    masked[..., half:, :] = x.min()

    def program(image: Tensor) -> None:
        distribution = dist.Normal(image[..., :half, :], OBSERVATION_NOISE * observed.std())
        pyro.sample("upper half", distribution.to_event(3), obs=observed[..., :half, :])

    posterior = context.model.condition(program)
    drawn = {f"draw {k + 1}": posterior.sample(len(x), *labels) for k in range(IMPUTATIONS)}
    rows = {name: context.in_source_units(part) for name, part in {"data": x, "observed": masked, **drawn}.items()}
    caption = (
        f"Imputation with the model as the prior. The upper halves of {len(x)} rows of the {context.split} data are "
        "observed with little noise, and the lower halves are imputed."
    )
    return Figure(picture(rows, None), caption, f"Images. {caption}")


def _standardized(z: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Z with the mean and the standard deviation of the data: by column, or of all pixels together."""
    axis = None if data.ndim > 2 else 0
    return (z - z.mean(axis)) / z.std(axis) * data.std(axis) + data.mean(axis)


def _denoising_errors(context: RunContext, train: tuple[Tensor, ...], held_out: tuple[Tensor, ...]) -> Figure:
    """The denoiser's error by noise level."""
    model, split = context.model, context.split
    dtype = next(model.parameters()).dtype
    times = torch.linspace(0.01, 0.99, NOISE_LEVELS, dtype=dtype, device=train[0].device)
    errors: dict[str, list[float]] = {"train": [], split: []}
    model.eval()
    with torch.no_grad():
        for time in times:
            for name, rows in (("train", train), (split, held_out)):
                rates = model.schedule(time.expand(len(rows[0])))
                errors[name].append(float(model.error(rates, *rows).mean()) / rows[0][0].numel())
        log_snr = model.schedule(times).log_snr.numpy(force=True)
    caption = (
        f"The denoiser's squared error per dimension by noise level, on {len(train[0])} rows of the training data and "
        f"{len(held_out[0])} rows of the {split} data. There is no noise at the left end. At the right end there is "
        "only noise, and the error is the variance of the data. A gap between the lines shows overfitting."
    )
    curves = {name: np.array(line) for name, line in errors.items()}
    return Figure(figures.errors_by_noise(log_snr, curves), caption, f"Line chart. {caption}")
