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
from ppgen.utils.budget import Budget

__all__ = ["noise_to_data"]

Picture = Callable[[Mapping[str, np.ndarray], np.ndarray | None], Any]

MAX_ROWS = 500  # rows that are compared with samples
STAGES = 6  # of a path that are shown
MAX_IMAGES = 12  # in a row
STEPS = (1, 2, 5, 18, 50)
IMPUTATIONS, OBSERVATION_NOISE = 3, 0.05  # draws of a hidden half; the noise in standard deviations of the data
NOISE_LEVELS = 20  # at which the error is measured
CONDITIONING = 10  # times as long as a draw takes one given observations, for its gradients
TEXT = (
    "The model draws noise and removes it in steps. At each noise level z a network estimates the data, E[x | z], and "
    "the sampler moves part of the way to the estimate. The table shows how the error of the sampler decreases with "
    "the number of steps."
)


def noise_to_data(context: RunContext) -> Section | None:
    """The path of samples from noise to data, samples by number of steps, the denoiser's error, and imputations.

    A part for which no time is left is left out; None if all are.
    """
    train, held_out = (context.tensors(split, MAX_ROWS) for split in (context.data.train, context.held_out))
    source = context.in_source_units(train[0])

    def picture(stages: Mapping[str, np.ndarray], behind: np.ndarray | None) -> Any:
        if context.images:
            return figures.sequences(stages, limits=value_range(source))
        return figures.clouds(stages, data=behind, columns=context.data.columns)

    budget = context.budget.part(0.7, "from noise to data")
    count = MAX_IMAGES if context.images else len(train[0])
    labels = [part[:count] for part in train[1:]]
    items: list[Any] = []
    figures_of_path, seconds, steps = _path(context, labels, count, source, picture, budget.part(0.2))
    items += figures_of_path
    expected = seconds / steps * sum(STEPS)
    items += _by_steps(context, held_out, count, source, picture, budget.part(0.4), expected)
    if isinstance(context.model, HasDenoisingError):
        items += _denoising_errors(context, train, held_out, budget.part(0.5), seconds / steps * NOISE_LEVELS)
    if context.images and isinstance(context.model, Conditions):
        items += _imputations(context, held_out, picture, budget, CONDITIONING * IMPUTATIONS * seconds)
    return Section("From noise to data", TEXT, items) if items else None


def _path(
    context: RunContext, labels: list[Tensor], count: int, source: np.ndarray, picture: Picture, budget: Budget
) -> tuple[list[Figure], float, int]:
    """Samples at some of the sampler's steps, the seconds of few samples, and the number of their steps."""
    start = budget.clock()
    paths = [
        context.model.sample(rows.stop - rows.start, *(y[rows] for y in labels), return_path=True)
        for rows in context.batches(count, budget)
    ]
    if not paths:
        return [], 0.0, 1
    seconds = (budget.clock() - start) / len(paths)
    *path, last = (torch.cat(stage) for stage in zip(*paths, strict=True))
    count = len(last)
    chosen = np.linspace(0, len(path) - 1, min(STAGES - 1, len(path))).round().astype(int)
    stages = {("noise" if k == 0 else f"step {k}"): _standardized(path[k].numpy(force=True), source) for k in chosen}
    stages["samples"] = context.in_source_units(last)
    caption = (
        f"{count} samples on their way from noise to data, in {len(path)} steps. All but the last are shifted and "
        "scaled to the mean and the standard deviation of the data."
    )
    return [Figure(picture(stages, None), caption, f"Generated data. {caption}")], seconds, len(path)


def _by_steps(
    context: RunContext,
    held_out: tuple[Tensor, ...],
    count: int,
    source: np.ndarray,
    picture: Picture,
    budget: Budget,
    expected: float,
) -> list[Figure | Table]:
    """Samples in more and more steps, and their distance to held-out data."""
    parts: dict[int, list[Tensor]] = {steps: [] for steps in STEPS}
    for batch in context.batches(len(held_out[0]), budget, expected=expected):
        labels, seed = [part[batch] for part in held_out[1:]], int(torch.randint(2**31, ()))
        for steps in STEPS:
            with torch.random.fork_rng():
                torch.manual_seed(seed)  # the same noise each time
                parts[steps].append(context.model.sample(batch.stop - batch.start, *labels, steps=steps))
    if not parts[STEPS[0]]:
        return []
    drawn, rows = {}, []
    for steps, batches in parts.items():
        samples = torch.cat(batches)
        data = held_out[0][: len(samples)].flatten(1).double().cpu()
        with torch.random.fork_rng():  # the same directions each time
            rows.append((steps, float(SlicedWasserstein(root=True)(samples.flatten(1).double().cpu(), data))))
        drawn[f"{steps} step{'s' if steps > 1 else ''}"] = context.in_source_units(samples[:count])
    caption = "Samples from the same noise, by the number of steps."
    distance = (
        f"sliced Wasserstein-2 distance of {len(data)} samples to the {context.split} data, as the model sees them"
    )
    return [Figure(picture(drawn, source), caption, f"Generated data. {caption}"), Table(("steps", distance), rows)]


def _imputations(
    context: RunContext, held_out: tuple[Tensor, ...], picture: Picture, budget: Budget, expected: float
) -> list[Figure]:
    """Images whose lower half is hidden, and draws of the whole given the upper half."""
    x, *labels = (part[:MAX_IMAGES] for part in held_out)
    half, observed = x.shape[-2] // 2, x.to(next(context.model.parameters()).dtype)
    noise, parts = OBSERVATION_NOISE * observed.std(), []
    for batch in context.batches(len(x), budget, expected=expected):
        seen = observed[batch, ..., :half, :]

        def program(image: Tensor, seen: Tensor = seen) -> None:
            pyro.sample("upper half", dist.Normal(image[..., :half, :], noise).to_event(3), obs=seen)

        posterior = context.model.condition(program)
        parts.append([posterior.sample(len(seen), *(y[batch] for y in labels)) for _ in range(IMPUTATIONS)])
    if not parts:
        return []
    drawn = {f"draw {k + 1}": torch.cat(draws) for k, draws in enumerate(zip(*parts, strict=True))}
    x = x[: len(drawn["draw 1"])]
    masked = x.clone()
    masked[..., half:, :] = x.min()
    rows = {name: context.in_source_units(part) for name, part in {"data": x, "observed": masked, **drawn}.items()}
    caption = (
        f"Imputation with the model as the prior. The upper halves of {len(x)} rows of the {context.split} data are "
        "observed with little noise, and the lower halves are imputed."
    )
    return [Figure(picture(rows, None), caption, f"Images. {caption}")]


def _standardized(z: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Z with the mean and the standard deviation of the data: by column, or of all pixels together."""
    axis = None if data.ndim > 2 else 0
    return (z - z.mean(axis)) / z.std(axis) * data.std(axis) + data.mean(axis)


def _denoising_errors(
    context: RunContext, train: tuple[Tensor, ...], held_out: tuple[Tensor, ...], budget: Budget, expected: float
) -> list[Figure]:
    """The denoiser's error by noise level."""
    model, split = context.model, context.split
    dtype = next(model.parameters()).dtype
    times = torch.linspace(0.01, 0.99, NOISE_LEVELS, dtype=dtype, device=train[0].device)
    curves, counts = {}, {}
    model.eval()
    with torch.no_grad():
        for name, rows, part in (("train", train, budget.part(0.5)), (split, held_out, budget)):
            errors = []
            for batch in context.batches(len(rows[0]), part, expected=expected):
                args = tuple(arg[batch] for arg in rows)
                levels = (model.schedule(time.expand(len(args[0]))) for time in times)
                errors.append(torch.stack([model.error(level, *args) for level in levels]).cpu())
            if not errors:
                return []
            of_rows = torch.cat(errors, 1)
            curves[name], counts[name] = of_rows.mean(1).numpy() / rows[0][0].numel(), of_rows.shape[1]
        log_snr = model.schedule(times).log_snr.numpy(force=True)
    caption = (
        f"The denoiser's squared error per dimension by noise level, on {counts['train']} rows of the training data "
        f"and {counts[split]} rows of the {split} data. There is no noise at the left end. At the right end there is "
        "only noise, and the error is the variance of the data. A gap between the lines shows overfitting."
    )
    return [Figure(figures.errors_by_noise(log_snr, curves), caption, f"Line chart. {caption}")]
