"""A run of domain adaptation: one system, a source with labels and a target without."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from ppgen.data.domains import Domains, load_domains
from ppgen.data.labels import UNKNOWN
from ppgen.evaluation import adaptation_risk, classifier_test, feature_spread, features_collapsed
from ppgen.diagnostics import to_netcdf
from ppgen.training.training_failures import TrainingWarning
from ppgen.report import write_report
from ppgen.report.adaptation import report_of_adaptation
from ppgen.runs.run import SHOWN, Run

__all__ = ["Adaptation"]

JUDGED = 2000  # held-out rows of a domain that are looked at, at most
DOMAIN_CLASSIFIER = "mlp"
SPREAD = "spread of features in the {}, of what it was before training"


@dataclass
class Adaptation(Run):
    """As `ppgen.runs.run.Run`, of a model with features: its data are `Domains`."""

    data: Domains
    of_domains: ClassVar[bool] = True

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Self:
        with warnings.catch_warnings():  # what was said of the target's labels has been said
            warnings.filterwarnings("ignore", ".*the target's labels are not trained on")
            return super().load(folder)

    @classmethod
    def load_data(cls, config: dict[str, Any]) -> Domains:
        return load_domains(
            config["source"],
            config["target"],
            source_test=config.get("source_test"),
            target_test=config.get("target_test"),
            **config["data"],
        )

    @classmethod
    def model_options(cls, config: dict[str, Any], data: Domains) -> dict[str, Any]:
        return config["model"] | {"num_classes": data.num_classes}

    @classmethod
    def rows(cls, config: dict[str, Any], data: Domains, split: str) -> tuple[torch.Tensor, ...]:
        return tuple(torch.as_tensor(part) for part in data.rows(split))

    def held_out(self, domain: str) -> tuple[torch.Tensor, np.ndarray | None]:
        """Rows of "source" or "target" that were not trained on, and their labels, `UNKNOWN` where there is none."""
        data = getattr(self.data, domain)
        split = data.test if len(data.test.x) else data.train
        x = torch.as_tensor(split.x[:JUDGED], device=self.fit.example[0].device)
        return x, None if split.y is None else split.y[:JUDGED]

    def evaluate(self) -> None:
        (x, y), (there, theirs) = self.held_out("source"), self.held_out("target")
        assert y is not None  # of the source
        model, seed = self.model, self.config["fit"]["seed"]
        h, g = model.features_of(x), model.features_of(there)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            wrong = model.predict(x).cpu().numpy() != y
            predicted = model.predict(there).cpu().numpy()
        risk = adaptation_risk(h, g, wrong, classifier=DOMAIN_CLASSIFIER, seed=seed)
        numbers: dict[str, Any] = {"held-out rows": f"{len(x)} of the source, {len(there)} of the target"}
        numbers["accuracy in the source"] = (1 - risk.source, risk.source_error)
        if theirs is not None and (known := theirs != UNKNOWN).any():
            right = predicted[known] == theirs[known]
            numbers["accuracy in the target, by its labels"] = (
                float(right.mean()),
                float(right.std() / len(right) ** 0.5),
            )
        before = classifier_test(x, there, classifier=DOMAIN_CLASSIFIER, seed=seed)
        for name, test in (("rows", before), ("features", risk.distance)):
            numbers[f"domains told apart by {name} (0.5: not at all)"] = test.statistic
            numbers[f"p-value of domains told apart by {name}"] = test.p_value
        numbers["without the target's labels: risk in the source + distance of features"] = risk.source + 2 * max(
            risk.distance.statistic - 0.5, 0.0
        )
        numbers["without the target's labels: importance-weighted risk"] = (risk.weighted, risk.weighted_error)
        numbers["rows of the source that carry the weights"] = risk.effective
        start = self.make_model(self.config, self.data).to(x.device)
        for domain, rows, features in (("source", x, h), ("target", there, g)):
            numbers[SPREAD.format(domain)] = feature_spread(features, start.features_of(rows))
        self.keep(numbers)
        if self.config["draws"] and model.bayesian:
            x, there, y = x[: SHOWN // 2], there[: SHOWN // 2], y[: SHOWN // 2]
            labels = torch.cat([torch.as_tensor(y), torch.full((len(there),), UNKNOWN)]).to(x.device)
            domains = torch.arange(2).repeat_interleave(torch.tensor([len(x), len(there)])).to(x.device)
            shown = torch.cat([x, there]), labels, domains
            to_netcdf(self.fit.to_arviz(*shown, draws=self.config["draws"]), self.folder / "posterior.nc")

    def training_warnings(self) -> list[TrainingWarning]:
        """What the game shows, and features that have collapsed, which it does not show."""
        numbers = self.numbers
        spreads = {d: numbers[key] for d in ("source", "target") if (key := SPREAD.format(d)) in numbers}
        return self.fit.training_warnings() + features_collapsed(spreads)

    def draws(self, n: int, *, seed: int = 0) -> np.ndarray:
        raise ValueError(f"{self.folder}: a run of {self.config['system']!r} draws no data")

    def sample(self, n: int, *, label: int | None = None, mean: bool = False, seed: int = 0, **how: Any) -> np.ndarray:
        return self.draws(n, seed=seed)

    def report(self) -> Path:
        idata, verdict = self.posterior()
        page = report_of_adaptation(
            self.fit,
            self.model,
            {name: self.held_out(name) for name in ("source", "target")},
            names=(self.data.source.name, self.data.target.name),
            label_names=self.data.source.label_names,
            training_warnings=self.training_warnings(),
            idata=idata,
            verdict=verdict,
            numbers=self.numbers,
            config=self.config,
        )
        return write_report(self.folder / "report.html", page)
