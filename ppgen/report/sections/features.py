"""The section on domain adaptation: the features of source and target in the plane."""

import numpy as np

from ppgen.models import UNKNOWN
from ppgen.report import figures
from ppgen.report.context import AdaptationContext
from ppgen.report.page import Figure, Section

__all__ = ["features"]

MAX_ROWS = 1000  # of each domain
MAX_COLORS = 12  # that a reader can distinguish
TEXT = (
    "The features of both domains in the plane of their two principal axes. Where the domains are apart, what the "
    "classifier learned about the source may be wrong about the target. Where they overlap it may still be wrong, "
    "unless the same labels overlap. The second figure shows that, as far as labels of the target are known."
)


def features(context: AdaptationContext) -> Section:
    """Features by domain, and by label and domain."""
    rows = [context.held_out[domain] for domain in ("source", "target")]
    h = [context.model.features_of(x[:MAX_ROWS], d=d).numpy(force=True) for d, (x, _) in enumerate(rows)]
    domains = np.repeat([0, 1], [len(part) for part in h])
    caption = f"{len(domains)} held-out rows, colored by domain."
    plane = figures.latent_plane(_centered(h), domains, label_names=context.domains)
    items = [Figure(plane, caption, f"Scatter plot. {caption}")]
    labels = [None if y is None else y[:MAX_ROWS] for _, y in rows]
    labeled = [
        (part[y != UNKNOWN], y[y != UNKNOWN])
        for part, y in zip(h, labels, strict=True)
        if y is not None and (y != UNKNOWN).any()
    ]
    classes = {str(label) for _, y in labeled for label in np.unique(y)}
    names = context.label_names
    names = list(names) if names is not None else [str(k) for k in range(context.model.num_classes)]
    by_domain = len(classes) * len(labeled) <= MAX_COLORS
    if by_domain:
        colors = np.concatenate([y + k * len(names) for k, (_, y) in enumerate(labeled)])
        names = [f"{label}, {domain}" for domain in context.domains[: len(labeled)] for label in names]
    else:
        colors = np.concatenate([y for _, y in labeled])
    caption = f"The same rows, colored by label{' and domain' if by_domain and len(labeled) > 1 else ''}."
    if len(labeled) == 1:
        caption = "The rows of the source, colored by label. The rows of the target have no labels."
    plane = figures.latent_plane(_centered([part for part, _ in labeled]), colors, label_names=names)
    items.append(Figure(plane, caption, f"Scatter plot. {caption}"))
    return Section("Features", TEXT, items)


def _centered(parts: list[np.ndarray]) -> np.ndarray:
    h = np.concatenate(parts)
    return h - h.mean(0)
