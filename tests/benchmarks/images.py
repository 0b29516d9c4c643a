"""Images of 28 or 32 pixels through every family, each for the same time, and the draws of other programs beside them.

Each method trains under a setting of `ppgen.runs.presets` for `--seconds` of processor time, which other work on the
machine does not change: a few steps are timed, and the number of steps follows, so that schedules of learning rates and
resolutions come to their end. Measures, on as many draws as held-out images:

Fréchet         the distance of Gaussians in the features of a classifier that is trained here on the training images
means           the same for decoder means E[x | z], where the model adds noise to them
precision       and recall, in these features (Kynkäänniemi et al. 2019)
C2ST            the accuracy of a classifier that tells draws from data by these features; 0.5 is chance
bits            per dimension of gray levels, a bound, on `--scored` held-out images; not of unit data

The row "data" has the training images in the place of draws: what a perfect model reaches. Pictures of data, draws and
means are written beside the table, `OUT/METHOD-SEED.png`, with one row for each label of conditional models. A row that
OUT/rows.jsonl holds is not trained again, so that a long table can be interrupted.

    python tests/benchmarks/images.py --out OUT [--data fashion] [--side 32] [--size 20000] [--only vae r3_gan ...]
        [--seconds 900] [--first 0] [--seeds 1] [--preset images] [--threads 1] [--draws pythae_vae=FILE.npy ...]

`--draws NAME=FILE.npy` measures images (n, channels, height, width) with values from 0 to 1 that another program wrote,
such as `image_peers.py` from the images that `--export` writes to OUT/train.npy and OUT/test.npy. What FILE.json holds,
such as steps and bits, joins the row.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

import ppgen
from ppgen import data as datasets
from ppgen import metrics as m
from ppgen.data import Data
from ppgen.evaluation import ImageFeatures, classifier_test, coverage, train_image_features
from ppgen.fitting import Fit, TrainingStep
from ppgen.models.likelihood import Point
from ppgen.models.protocols import Decodes, HasLogEvidence, HasLogProb
from ppgen.report import figures
from ppgen.runs.data_run import DataRun
from ppgen.runs.defaults import with_defaults
from ppgen.runs.evaluations import HeldOut, mean_and_error
from ppgen.runs.methods import METHODS
from ppgen.runs.parser import make_parser, without_run_options
from ppgen.training.progressive import ProgressiveGrowing

FAMILIES = ["ae", "vae", "iwae", "wae", "aae", "r3_gan", "wgan_gp", "progan", "ali", "glow", "ddpm", "edm", "fm"]
CONDITIONAL = ["vae", "r3_gan", "edm", "fm"]  # these are also trained with labels, as "vae+labels"
NO_DRAWS = ["ae"]  # without a prior; its reconstructions are measured
TIMED, WARM = 8, 3  # steps that are timed, after others
CHUNK = 250  # draws at a time
LABELS = "+labels"
COLUMNS = ("frechet", "means", "precision", "recall", "c2st", "bits", "steps", "minutes", "parameters")

Row = dict[str, Any]


def configure(method: str, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The configuration of a method, as the command line makes it."""
    name, _, labels = method.partition(LABELS[0])
    words = ["train", name, options.data, "--preset", options.preset, "--data.seed", "0", "--fit.seed", str(seed)]
    words += ["--conditional", "true"] if labels else []
    for option in ("size", "side"):
        if (value := getattr(options, option)) is not None:
            words += [f"--data.{option}", str(value)]
    for part in options.set:
        option, _, value = part.partition("=")
        words += [f"--{option}", value]
    return without_run_options(make_parser(words).parse_args(words).train[name].as_dict())


class Budget:
    """A callback that measures the processor time of steps and ends the training when it is over.

    Args:
        seconds: how long.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.ends = seconds, [time.process_time()]

    def __call__(self, step: TrainingStep) -> None:
        """Notes the time, and stops at the end."""
        self.ends.append(time.process_time())
        if self.ends[-1] - self.ends[0] > self.seconds:
            step.stop("the time limit was reached")

    @property
    def seconds_a_step(self) -> float:
        """The median time of a step after the first ones."""
        return float(np.median(np.diff(self.ends[WARM:])))


def train(config: dict[str, Any], data: Data, seconds: float) -> tuple[Any, Fit, float]:
    """Trains for some seconds: the model, its fit and the minutes."""
    growth = config["fit"].get("growth")
    fixed = {"epochs": None, "compile": False, "progress": False, "validation": None, "patience": None}
    given = {name: value for name, value in config["fit"].items() if name not in ("growth", *fixed)}
    fixed = {name: value for name, value in fixed.items() if name in config["fit"] or name == "progress"}
    rows = DataRun.fitted_data(config, data)

    def run(steps: int, budget: Budget) -> tuple[Any, Fit]:
        model = DataRun.make_model(config, data)
        options = given | fixed | {"steps": steps, "growth": ProgressiveGrowing(**growth) if growth else None}
        optim = partial(torch.optim.Adam, lr=config["lr"], betas=tuple(config["betas"]))
        loss = DataRun.make_loss(config)
        return model, ppgen.fit(model.model, model.guide, rows, loss=loss, optim=optim, callbacks=[budget], **options)

    run(WARM + TIMED, timer := Budget(math.inf))
    steps = max(WARM + TIMED, int(0.97 * seconds / timer.seconds_a_step))
    model, fit = run(steps, budget := Budget(seconds))
    return model, fit, (budget.ends[-1] - budget.ends[0]) / 60


def draw(model: Any, y: torch.Tensor | None, n: int, *, mean: bool = False) -> np.ndarray:
    """Draws n images, of the labels y."""
    parts = []
    for start in range(0, n, CHUNK):
        labels = None if y is None else y[start : start + CHUNK]
        parts.append(model.sample(min(CHUNK, n - start), labels, mean=mean).numpy(force=True))
    return np.concatenate(parts)


def as_unit(x: np.ndarray, data: Data) -> np.ndarray:
    """Images of any form with values from 0 to 1; gray levels that were dequantized are rounded down to them."""
    x = data.scaler.inverse(x.astype(np.float32))
    if data.levels is not None and data.form == "integer":
        x = x / (data.levels - 1)
    elif data.levels is not None and data.form == "continuous":
        x = np.floor(x * data.levels) / (data.levels - 1)
    return x.clip(0, 1)


def measure(x: np.ndarray, held_out: np.ndarray, network: ImageFeatures) -> Row:
    """The measures of images with values from 0 to 1."""
    drawn, real = network.features(x), network.features(held_out)
    found = coverage(real, drawn, k=3)
    return {
        "frechet": float(m.Frechet()(torch.as_tensor(real).double(), torch.as_tensor(drawn).double())),
        "precision": found.precision,
        "recall": found.recall,
        "c2st": classifier_test(real, drawn, classifier="mlp").statistic,
    }


def bits(model: Any, fit: Fit, data: Data, y: torch.Tensor | None, scored: int) -> float | None:
    """Bits per dimension of held-out images, where the model has a bound or a likelihood."""
    rows = (torch.as_tensor(data.test.x[:scored]), *([] if y is None else [y[:scored]]))
    if isinstance(model, HasLogEvidence):
        mean, error = mean_and_error(model.log_evidence(*rows, particles=64))
    elif isinstance(model, HasLogProb):
        mean, error = mean_and_error(model.log_prob(*rows))
    else:
        return None
    found = HeldOut(model, fit, data, rows, 64, 0).bits_per_dimension(mean, error)
    return None if found is None else found[0]


def one(method: str, seed: int, options: argparse.Namespace, network: ImageFeatures, held_out: np.ndarray) -> Row:
    """Trains a method, writes its picture, and measures its draws."""
    config = configure(method, options, seed)
    data = DataRun.load_data(config)
    config = with_defaults(config, METHODS[config["method"]], *DataRun.size(data))
    torch.manual_seed(seed)
    model, fit, minutes = train(config, data, options.seconds)
    n = len(held_out)
    y = torch.as_tensor(data.test.y[:n]) if config["conditional"] and data.test.y is not None else None
    labels = () if y is None else (y,)
    noisy = isinstance(model, Decodes) and not isinstance(getattr(model, "likelihood", None), Point)
    with fit.eval_mode():
        torch.manual_seed(seed)
        if method in NO_DRAWS:
            x = model.reconstruct(torch.as_tensor(data.test.x[:n]), *labels).numpy(force=True)
        else:
            x = draw(model, y, n)
        torch.manual_seed(seed)
        means = as_unit(draw(model, y, n, mean=True), data) if noisy and method not in NO_DRAWS else None
        row = measure(as_unit(x, data), held_out, network) | {"bits": bits(model, fit, data, y, options.scored)}
    if means is not None:
        row["means"] = measure(means, held_out, network)["frechet"]
    picture = figures.samples(as_unit(x, data)[:64], data=held_out[:64], means=means, limits=(0.0, 1.0))
    picture.savefig(options.out / f"{method}{options.name}-{seed}.png", dpi=160)
    if y is not None:
        shown = np.concatenate([np.flatnonzero(y.numpy() == label)[:10] for label in range(data.classes or 0)])
        rows = {f"label {label}": as_unit(x, data)[shown[10 * label : 10 * label + 10]] for label in range(10)}
        path = options.out / f"{method}{options.name}-{seed}-labels.png"
        if len({len(part) for part in rows.values()}) == 1:
            figures.sequences(rows, limits=(0.0, 1.0)).savefig(path, dpi=160)
    parameters = sum(part.numel() for part in model.parameters())
    return row | {"steps": len(fit.history["loss"]), "minutes": minutes, "parameters": parameters}


def of_file(name: str, path: Path, options: argparse.Namespace, network: ImageFeatures, held_out: np.ndarray) -> Row:
    """Measures draws that another program wrote, and writes their picture."""
    x = np.load(path)[: len(held_out)].astype(np.float32)
    picture = figures.samples(x[:64], data=held_out[:64], limits=(0.0, 1.0))
    picture.savefig(options.out / f"{name.replace(' ', '_')}.png", dpi=160)
    known = path.with_suffix(".json")
    row: Row = json.loads(known.read_text()) if known.exists() else {}
    if bad := int((~np.isfinite(x)).any((1, 2, 3)).sum()):
        print(f"{name}: {bad} of {len(x)} draws are not finite, so that they are not measured")
        return row
    return measure(x, held_out, network) | row


def feature_network(options: argparse.Namespace, data: Data) -> ImageFeatures:
    """The classifier of the training images, trained once."""
    path = options.out / f"features-{options.data}-{data.event_shape[-1]}.safetensors"
    if path.exists():
        network = ImageFeatures(data.event_shape, data.classes or 0)
        safetensors.torch.load_model(network, path)
        return network.eval().requires_grad_(False)
    network = train_image_features(data.train.x[:20_000], data.train.y[:20_000], epochs=options.epochs)
    safetensors.torch.save_model(network, path)
    return network


def stored(path: Path) -> list[Row]:
    """The rows that are already there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def resumed(rows: list[Row], path: Path, key: Row, make: Callable[[], Row]) -> None:
    """Makes a row and stores it, unless it is there."""
    if any(all(row.get(name) == value for name, value in key.items()) for row in rows):
        return
    rows.append(row := key | make())
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(describe(row), flush=True)


def describe(row: Row) -> str:
    """A line of the table."""
    cells = []
    for name in COLUMNS:
        value = row.get(name)
        places = 0 if name in ("steps", "parameters") else 1 if name in ("frechet", "means", "minutes") else 3
        cells.append(f"{'-' if value is None else f'{value:.{places}f}':>11}")
    return f"{row['method']:26}{row['seed']:5}" + "".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="fashion")
    parser.add_argument("--size", type=int)
    parser.add_argument("--side", type=int)
    every = [*FAMILIES, *(name + LABELS for name in CONDITIONAL)]
    parser.add_argument("--only", nargs="*", default=every)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--preset", default="images")
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE", help="further options of ppgen train")
    parser.add_argument("--name", default="", help="what is added to the names of rows, for --set")
    parser.add_argument("--epochs", type=int, default=3, help="of the classifier whose features are used")
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--scored", type=int, default=128, help="held-out images whose bits are computed")
    parser.add_argument("--draws", nargs="*", default=[], metavar="NAME=FILE.npy")
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if unknown := [name for name in options.only if name.removesuffix(LABELS) not in METHODS]:
        parser.error(f"--only: no method {', '.join(unknown)}")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    data = datasets.load(options.data, form="unit", size=options.size, side=options.side, seed=0)
    held_out, path = data.test.x[: options.held_out], options.out / "rows.jsonl"
    if options.export:
        np.save(options.out / "train.npy", data.train.x)
        np.save(options.out / "test.npy", data.test.x[: options.scored])
    network = feature_network(options, data)
    print(
        f"accuracy of the classifier on held-out images: {network.accuracy(held_out, data.test.y[: len(held_out)]):.3f}"
    )
    rows = stored(path)
    print(f"{'method':26}{'seed':>5}" + "".join(f"{name:>11}" for name in COLUMNS))
    for row in rows:
        print(describe(row))
    common = {"data": options.data, "size": options.size, "side": options.side}
    train_rows = data.train.x[: len(held_out)]
    resumed(rows, path, common | {"method": "data", "seed": 0}, lambda: measure(train_rows, held_out, network))
    for part in options.draws:
        name, _, file = part.partition("=")
        resumed(
            rows,
            path,
            common | {"method": name, "seed": 0},
            partial(of_file, name, Path(file), options, network, held_out),
        )
    for seed in range(options.first, options.first + options.seeds):
        for method in options.only:
            key = common | {"method": method + options.name, "seed": seed, "seconds": options.seconds}
            resumed(rows, path, key, partial(one, method, seed, options, network, held_out))


if __name__ == "__main__":
    main()
