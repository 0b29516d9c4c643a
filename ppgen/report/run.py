"""The report of one run: numbers, training, samples, what is missing, reconstructions, codes, posterior, configuration.

Nothing here knows a class of model. What a model can do is what it has a method for: `sample(n, y=None, mean=...)`,
`reconstruct(x, y=None)`, `encode(x, y=None)`, `decode(z, y=None)` and `prior(n)`, the last three giving distributions,
and a flow's `distribution(y=None)`, `log_prob(x, y=None)` and `pull_back(x, y=None)`. A model with a `denoiser` draws by
`sample(n, y=None, steps=, return_path=)`, and may tell its `error(rates, x, y=None)`. A model whose `num_classes` is
not None is given labels y. x has shape (n, *event_shape), scaled as the model sees it; figures show it in the units of
the source.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.data import Data, Split
from ppgen.diagnostics import Verdict
from ppgen.models import mean
from ppgen.models.likelihood import Point
from ppgen.report import figures
from ppgen.report.adversarial import game
from ppgen.report.coverage import reach
from ppgen.report.diffusion import diffusion
from ppgen.report.figures.images import GRID, PAIRS, span
from ppgen.report.flow import flow
from ppgen.report.page import Figure, Report, Section
from ppgen.report.posterior import posterior
from ppgen.report.sections import configuration, summary, training
from ppgen.training.result import Fitted

__all__ = ["report_of_run"]

# How many rows of tables, lines in the plane and codes are drawn.
ROWS, LINES, CODES = 2000, 300, 2000
MEASURED = 500  # rows that the draws and the errors of a diffusion are laid beside
BATCH = 256  # rows encoded at a time
REACHED, LEAST = 1000, 50  # data that draws are looked for around, and how many it takes for that to say something


def report_of_run(
    fit: Fitted,
    model: Any,
    data: Data,
    *,
    idata: Any = None,
    verdict: Verdict | None = None,
    numbers: Mapping[str, Any] | None = None,
    title: str,
    config: Mapping[str, Any] | None = None,
    stages: Sequence[np.ndarray] = (),
    unit: str = "nats per datum",
    seed: int = 0,
) -> Report:
    """Says what a run of a generative model came to, in figures and numbers.

    Args:
        fit: the run.
        model: the model, with the weights to report on.
        data: what it was fitted to.
        idata: the posterior on held-out data, as `Fit.to_arviz` gives it.
        verdict: on that posterior, as `Fit.diagnose` gives it.
        numbers: further headline numbers by name, unit included: a number, text, or a pair (value, standard error).
        config: what was asked for, as plain values that YAML can hold.
        stages: of a run that grew, what it drew at the same latents when each stage ended.
        unit: of the loss.
        seed: of the samples; the caller's random state is left as it was.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        subject = _Subject(model, data)
        sections = [
            summary(fit, _question(subject), numbers or {}, unit),
            training(fit, unit),
            game(fit),
            _samples(subject),
            _stages(subject, stages),
            _flow(subject),
            _diffusion(subject),
            _reach(subject, seed),
            _reconstructions(subject),
            _codes(subject),
            posterior(fit, idata, verdict),
            configuration(config),
        ]
    return Report(title, subject.rows, [s for s in sections if s is not None])


class _Subject:
    """A model and its data: what goes into the model and what comes out of it."""

    def __init__(self, model: Any, data: Data) -> None:
        self.model, self.data = model, data
        self.images = len(data.event_shape) == 3
        self.conditional = getattr(model, "num_classes", None) is not None
        parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
        self.device = next((p.device for p in parameters), torch.device("cpu"))
        splits = ("test", "validation", "train")
        self.split = next(name for name in splits if len(data.rows[name]))
        self.held_out = getattr(data, self.split)
        self.look: dict[str, Any] = {"columns": data.columns}
        if self.images:
            self.look["limits"] = span(self.source(data.train.x[:GRID]))

    @property
    def rows(self) -> str:
        """The data in words."""
        shape = self.data.event_shape
        what = f"images of shape {shape}" if self.images else f"rows of {shape[0]} columns"
        splits = ", ".join(f"{len(rows)} {name}" for name, rows in self.data.rows.items())
        return f"{len(self.data.x)} {what}: {splits}"

    def tensors(self, split: Split, count: int) -> tuple[Tensor, ...]:
        """The first rows of a split, with their labels where the model takes them."""
        parts = (split.x, split.y) if self.conditional and split.y is not None else (split.x,)
        return tuple(torch.as_tensor(part[:count], device=self.device) for part in parts)

    def source(self, x: Tensor | np.ndarray) -> np.ndarray:
        """x in the units of the source."""
        return self.data.scaler.inverse(x.numpy(force=True) if isinstance(x, Tensor) else x)

    def prior(self, n: int) -> Any:
        """The law of n codes, if it is a flow; None for N(0, I)."""
        distribution = self.model.prior(n) if hasattr(self.model, "prior") else None
        return distribution if hasattr(distribution, "transform") else None

    def decode(self, z: np.ndarray) -> np.ndarray:
        """The means of the decoder at what the prior makes of z ~ N(0, I), in the units of the source."""
        codes = torch.as_tensor(z, dtype=torch.get_default_dtype(), device=self.device)
        prior = self.prior(len(codes))
        codes = codes if prior is None else prior.transform(codes)
        return self.source(mean(self.model.decode(codes)))


def _question(subject: _Subject) -> str:
    does = "generate and reconstruct data" if hasattr(subject.model, "reconstruct") else "generate data"
    return (
        f"How well does this {type(subject.model).__name__}, fitted to {len(subject.data.rows['train'])} rows of "
        f"{subject.data.name}, {does} that it was not fitted to?"
    )


def _samples(subject: _Subject) -> Section | None:
    if not hasattr(subject.model, "sample"):
        return None
    _, *labels = tensors = subject.tensors(subject.data.train, GRID if subject.images else ROWS)
    count = len(tensors[0])
    data = subject.source(tensors[0])
    draws = subject.source(subject.model.sample(count, *labels))
    caption = f"{count} draws of the model, and as many rows of the training data."
    if subject.conditional:
        caption += " The model is given the labels of those rows."
    items = [Figure(figures.samples(draws, data=data, **subject.look), caption, f"Generated data. {caption}")]
    noisy = hasattr(subject.model, "decode") and not isinstance(getattr(subject.model, "likelihood", None), Point)
    if subject.images and noisy:
        means = subject.source(subject.model.sample(count, *labels, mean=True))
        caption = "Means E[x | z] at other codes z ~ p(z): what the model draws, without the noise of p(x | z)."
        items.append(Figure(figures.samples(means, **subject.look), caption, f"Generated data. {caption}"))
    return Section("Samples", "", items)


def _stages(subject: _Subject, stages: Sequence[np.ndarray]) -> Section | None:
    if not len(stages):
        return None
    sides = getattr(subject.model.decoder.network, "sides", ())
    titles = [f"{height} x {width}" for height, width in sides] or [f"stage {k + 1}" for k in range(len(stages))]
    rows = {title: subject.source(x) for title, x in zip(titles, stages, strict=False)}
    caption = "Draws at the same latents when each stage of the growth ended, the latent of a column always the same."
    items = [Figure(figures.sequences(rows, limits=subject.look["limits"]), caption, f"Images. {caption}")]
    text = "What is laid out at a small scale should stay, and be worked out at the next ones."
    return Section("Progressive growing", text, items)


def _reach(subject: _Subject, seed: int) -> Section | None:
    if not hasattr(subject.model, "sample"):
        return None
    split = subject.held_out if len(subject.held_out.x) >= REACHED else subject.data.train
    tensors = subject.tensors(split, REACHED)
    if len(tensors[0]) < LEAST:
        return None
    labels = None if split.y is None else split.y[: len(tensors[0])]
    draws = subject.source(subject.model.sample(len(tensors[0]), *tensors[1:]))
    look, names = subject.look, subject.data.label_names
    return reach(subject.source(tensors[0]), draws, labels, names=names, look=look, seed=seed)


def _flow(subject: _Subject) -> Section | None:
    if not hasattr(subject.model, "pull_back"):
        return None
    train, held_out = (subject.tensors(split, ROWS) for split in (subject.data.train, subject.held_out))
    return flow(subject.model, subject.data, train, held_out, split=subject.split)


def _diffusion(subject: _Subject) -> Section | None:
    if not hasattr(subject.model, "denoiser"):
        return None
    train, held_out = (subject.tensors(split, MEASURED) for split in (subject.data.train, subject.held_out))
    return diffusion(subject.model, subject.data, train, held_out, split=subject.split)


def _reconstructions(subject: _Subject) -> Section | None:
    if not hasattr(subject.model, "reconstruct"):
        return None
    count = PAIRS if subject.images else LINES if subject.data.event_shape == (2,) else ROWS
    tensors = subject.tensors(subject.held_out, count)
    figure = figures.reconstructions(
        subject.source(tensors[0]), subject.source(subject.model.reconstruct(*tensors)), **subject.look
    )
    caption = f"{len(tensors[0])} rows of the {subject.split} data and what the model makes of them through the code."
    return Section("Reconstructions", "", [Figure(figure, caption, f"Originals and reconstructions. {caption}")])


def _codes(subject: _Subject) -> Section | None:
    if not hasattr(subject.model, "encode"):
        return None
    tensors = subject.tensors(subject.held_out, CODES)
    batches = zip(*(part.split(BATCH) for part in tensors), strict=True)
    z = torch.cat([subject.model.encode(*batch).sample() for batch in batches]).numpy(force=True)
    y = None if subject.held_out.y is None else subject.held_out.y[:CODES]
    prior = subject.prior(CODES)
    shown = True if prior is None else prior.sample().numpy(force=True)
    plane = figures.latent_plane(z, y, label_names=subject.data.label_names, prior=shown)
    by_label = "" if y is None else ", by label"
    caption = f"A draw z ~ q(z | x) for each of {len(z)} rows of the {subject.split} data{by_label}."
    items = [Figure(plane, caption, f"Scatter plot. {caption}")]
    drawable = subject.images or subject.data.event_shape == (2,)
    if z.shape[1] == 2 and drawable and hasattr(subject.model, "decode") and not subject.conditional:
        caption = "What the decoder makes of the latent plane: its means at evenly spaced quantiles of the prior."
        if prior is not None:
            caption += " The prior is a flow: the quantiles are those of its base, u, carried to z."
        name = "z" if prior is None else "u"
        walk = figures.latent_walk(subject.decode, n=16 if subject.images else 32, name=name, **subject.look)
        items.append(Figure(walk, caption, caption))
    distribution = "the prior N(0, I)" if prior is None else "its prior, a flow"
    text = (
        f"The model draws codes from {distribution}. Where the codes of data spread as it does, its draws land among them; "
        "where they leave gaps or gather elsewhere, its draws land on codes that no datum has."
    )
    return Section("Codes", text, items)
