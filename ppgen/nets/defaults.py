"""The defaults of networks and of their training: one table, by what a network is for, its events and the rows.

Model classes know the shape of an event, the command line the number of rows as well. Arguments that are given always
win. `defaults_for` is the only place that decides; `docs/defaults.md` has the table with the reasons, and
`tests/benchmarks/defaults.py` the search by which it was chosen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["KINDS", "Defaults", "defaults_for", "earlier_widths"]

MIN_SIDE = 8  # images with a shorter side have too few pixels for convolutions to be of use
MAX_CHANNELS = 128  # more channels cost more time on a processor than they gain
FEW_ROWS, MANY_ROWS = 1000, 5000  # tables with fewer than the first get narrow networks, with the second wide ones
MANY_COLUMNS = 500  # of a table, such as counts of words, most of which are seldom seen


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is common to all data of one kind of network.

    Attributes:
        lr: the learning rate of Adam.
        image_lr: that for images, if it is another one.
        betas: the decay rates of its moments.
        image_norm: the normalization of a convolutional network, a row of `ppgen.nets.NORMS`, or None.
        widths: the hidden widths for tables of few, of more and of many rows; the last also if their number is unknown.
        min_batch: the least rows of a batch, if there are as many.
        wide_dropout: the probability of dropout for tables with many columns, whose networks are then as narrow as for
            few rows; None for no difference.
        penalty: the weight of a critic's penalty (|gradient| - 1)^2, for tables and for images; None for other kinds.
    """

    lr: float = 1e-3
    image_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    image_norm: str | None = None
    widths: tuple[tuple[int, ...], ...] = ((64, 64), (128, 128), (256, 256))
    min_batch: int = 32
    wide_dropout: float | None = None
    penalty: tuple[float, float] | None = None


# Adversarial training rotates around its equilibrium, and a long memory of gradients amplifies that (Gidel et al. 2019,
# https://arxiv.org/abs/1807.04740); the rate for images is that of DCGAN (Radford et al. 2016,
# https://arxiv.org/abs/1511.06434), at which a game on a table would take five times as long.
ADVERSARIAL_IMAGE_LR, ADVERSARIAL_BETAS = 2e-4, (0.5, 0.99)
ADVERSARIAL_WIDTHS = ((128, 128), (128, 128), (256, 256))  # games take long: a quarter of the time, where rows are few

KINDS: dict[str, Kind] = {
    # Groups do not depend on the batch, so that training and evaluation, averaged weights and particles agree.
    "autoencoder": Kind(image_norm="group"),
    "generator": Kind(
        image_lr=ADVERSARIAL_IMAGE_LR,
        betas=ADVERSARIAL_BETAS,
        image_norm="group",
        widths=ADVERSARIAL_WIDTHS,
        min_batch=128,  # a critic compares whole batches
    ),
    # A gradient penalty is on each row alone, which batch normalization would make depend on others (Gulrajani et al.
    # 2017, https://arxiv.org/abs/1704.00028, section 4); a bound by spectral norms would be undone by any norm.
    # In the units of a table, the weight of that paper smooths away what is finer than a standard deviation.
    "critic": Kind(
        image_lr=ADVERSARIAL_IMAGE_LR,
        betas=ADVERSARIAL_BETAS,
        widths=ADVERSARIAL_WIDTHS,
        min_batch=128,
        penalty=(0.1, 10.0),
    ),
    # Channels with the same mean and variance in both domains are a first alignment.
    # Dropout keeps a classifier from relying on single words.
    "classifier": Kind(image_norm="domain", wide_dropout=0.5),
    "denoiser": Kind(image_norm="group", widths=((128, 128, 128),) * 3),
    "flow": Kind(widths=((64, 64),) * 3),
}


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """The defaults of a network and of its training.

    Attributes:
        network: "dense", "convolutional" or "unet"; or another that was asked for.
        hidden: hidden widths, or channels from the image to the vector; None if the network chooses them by itself.
        norm: a row of `ppgen.nets.NORMS`, or None.
        lr: the learning rate of Adam.
        betas: the decay rates of its moments.
        batch_size: the rows of a batch.
        dropout: the probability of dropout.
        penalty: the weight of a critic's penalty (|gradient| - 1)^2; None for what is no critic.
    """

    network: str
    hidden: tuple[int, ...] | None
    norm: str | None
    lr: float
    betas: tuple[float, float]
    batch_size: int
    dropout: float = 0.0
    penalty: float | None = None


def defaults_for(
    kind: str, event_shape: Sequence[int], rows: int | None = None, *, network: str | None = None
) -> Defaults:
    """The defaults of one kind of network.

    Args:
        kind: A key of `KINDS`.
        event_shape: (features,) of a table or (channels, height, width) of images.
        rows: The number of rows for training; None if it is not known, as for many.
        network: The network, if it was chosen; None or "auto" for the default one.

    Raises:
        ValueError: If there is no such kind.

    Example:
        >>> from ppgen.nets import defaults_for
        >>> images = defaults_for("autoencoder", (1, 28, 28))
        >>> images.network, images.hidden, images.norm
        ('convolutional', (32, 64, 128), 'group')
        >>> defaults_for("autoencoder", (13,), rows=178).hidden
        (64, 64)
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    row, shape = KINDS[kind], tuple(event_shape)
    network = _network(kind, shape) if network in (None, "auto") else str(network)
    hidden, norm = _hidden(row, shape, rows, network), None
    if network in ("convolutional", "unet"):
        norm = row.image_norm
    elif network in ("growing", "pyramid") and kind != "critic":
        norm = "pixel"  # Karras et al. 2018, section 4.2
    return Defaults(
        network=network,
        hidden=hidden,
        norm=norm,
        lr=row.image_lr if row.image_lr is not None and len(shape) == 3 else row.lr,
        betas=row.betas,
        batch_size=_batch_size(row, rows),
        dropout=(row.wide_dropout or 0.0) if network == "dense" and _is_wide(row, shape) else 0.0,
        penalty=None if row.penalty is None else row.penalty[len(shape) == 3],
    )


def earlier_widths(kind: str, event_shape: Sequence[int], network: str | None) -> tuple[int, ...] | None:
    """The hidden widths of a run that was stored without them, before there was this table.

    Args:
        kind: A key of `KINDS`.
        event_shape: The shape of an event.
        network: The network that was stored, or None for the default.
    """
    if network is None:
        of_images = {"critic": "convolutional", "denoiser": "unet"}
        network = of_images.get(kind, "dense") if len(tuple(event_shape)) == 3 else "dense"
    if network in ("convolutional", "unet"):
        return (32, 64)
    if network == "dense":
        return {"denoiser": (128, 128, 128), "flow": (64, 64)}.get(kind, (256, 256))
    return None


def _network(kind: str, shape: tuple[int, ...]) -> str:
    if len(shape) != 3 or kind == "flow":
        return "dense"
    if kind == "denoiser":
        return "unet"
    return "convolutional" if kind == "critic" or min(shape[1:]) >= MIN_SIDE else "dense"


def _hidden(row: Kind, shape: tuple[int, ...], rows: int | None, network: str) -> tuple[int, ...] | None:
    if network in ("convolutional", "unet") and len(shape) != 3:
        return None  # which the network refuses
    if network == "convolutional":
        return _channels(_halvings(shape, down_to=4))
    if network == "unet":
        return _channels(_halvings(shape, down_to=8) + 1)
    if network != "dense":
        return None
    few, more, many = row.widths
    if _is_wide(row, shape):
        return few
    if rows is None or rows >= MANY_ROWS:
        return many
    return few if rows < FEW_ROWS else more


def _is_wide(row: Kind, shape: tuple[int, ...]) -> bool:
    return row.wide_dropout is not None and len(shape) == 1 and shape[0] >= MANY_COLUMNS


def _halvings(shape: tuple[int, ...], *, down_to: int) -> int:
    """How often the sides of an image are halved until the shorter one has so many pixels."""
    return max(0, math.ceil(math.log2(min(shape[1:]) / down_to)))


def _channels(count: int) -> tuple[int, ...]:
    """Channels of at least two layers or scales, from the image on: twice as many at half the sides."""
    return tuple(min(32 * 2**scale, MAX_CHANNELS) for scale in range(max(count, 2)))


def _batch_size(row: Kind, rows: int | None) -> int:
    """About eight batches a pass over few rows, and 128 rows a batch of many."""
    if rows is None:
        return 128
    size = 2 ** int(math.log2(max(rows / 8, 1)))
    return min(128, max(row.min_batch, size), max(rows, 1))
