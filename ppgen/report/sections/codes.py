"""The section on the latent codes of held-out data."""

from typing import Any

import numpy as np

from ppgen.models.protocols import Decodes
from ppgen.report import figures
from ppgen.report.context import RunContext
from ppgen.report.page import Figure, Section

__all__ = ["latent_codes"]

MAX_CODES, MIN_CODES = 2000, 16  # that are shown, and even if there is no time for them
MAX_WALK, MIN_WALK = 16, 4  # images along each side of the latent plane


def latent_codes(context: RunContext) -> Section:
    """The codes of held-out data in the plane, and for two latent dimensions what the decoder makes of the plane."""
    tensors = context.tensors(context.held_out, MAX_CODES)
    batches = context.batches(len(tensors[0]), context.budget.part(0.5, "latent codes"), least=MIN_CODES)
    parts = [context.model.encode(*(part[rows] for part in tensors)).sample().numpy(force=True) for rows in batches]
    z = np.concatenate(parts)
    y = None if context.held_out.y is None else context.held_out.y[: len(z)]
    prior = context.flow_prior(MAX_CODES)
    drawn = True if prior is None else prior.sample().numpy(force=True)
    plane = figures.latent_plane(z, y, label_names=context.data.label_names, prior=drawn)
    colored = "" if y is None else ", colored by label"
    caption = f"A draw z ~ q(z | x) for each of {len(z)} rows of the {context.split} data{colored}."
    items = [Figure(plane, caption, f"Scatter plot. {caption}")]
    drawable = context.images or context.data.event_shape == (2,)
    if z.shape[1] == 2 and drawable and isinstance(context.model, Decodes) and not context.conditional:
        caption = "The decoder's means over the latent plane, at evenly spaced quantiles of the prior."
        if prior is not None:
            caption += " The prior is a flow: the quantiles are those of its base u, which the flow maps to z."
        name = "z" if prior is None else "u"

        def walk_of(size: int) -> Any:
            return figures.latent_walk(context.decode, n=size, name=name, **context.figure_options)

        part = context.budget.part(0.5)
        walk = part.at_size(walk_of, MAX_WALK, least=MIN_WALK, power=2.0) if context.images else walk_of(32)
        items.append(Figure(walk, caption, caption))
    distribution = "the prior N(0, I)" if prior is None else "its prior, which is a flow"
    text = (
        f"The model draws latent codes from {distribution}. Its samples look like data where the codes of data have "
        "the distribution of the prior. If the codes leave gaps in the prior, samples from these gaps have codes that "
        "no datum has."
    )
    return Section("Latent codes", text, items)
