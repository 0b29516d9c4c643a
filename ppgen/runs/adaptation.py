"""A run of domain adaptation: one model, a source domain with labels and a target domain without."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser

from ppgen.data import Data
from ppgen.data.domains import Domains, load_domains
from ppgen.data.labels import UNKNOWN
from ppgen.models import DANN
from ppgen.runs.data_run import POSTERIOR_ROWS, SOURCE_HELP, add_data_options
from ppgen.runs.folder import REPORT, TUNING
from ppgen.runs.methods import Method
from ppgen.runs.record import KEPT_ROWS, Record
from ppgen.runs.run import Run, method_of
from ppgen.training.training_failures import TrainingWarning
from ppgen.utils.budget import Budget, rows_at_a_time
from ppgen.utils.schema import TEXT, read_json
from ppgen.utils.user_warnings import warn_user

__all__ = ["AdaptationRun"]

EVALUATED_ROWS = 2000  # at most so many held-out rows of a domain are evaluated
MIN_TESTED_ROWS = 200  # of a domain, by the tests of two samples, if there is little time
DOMAIN_CLASSIFIER = "mlp"
FEATURE_SPREAD = "spread of the {} features, relative to before training"


@dataclass
class AdaptationRun(Run):
    """A run on two domains: `data` are `Domains`, `model` predicts labels from features of both."""

    model: DANN

    @classmethod
    def add_arguments(cls, parser: ArgumentParser, method: Method) -> None:
        """Adds the two data sets and their options."""
        parser.add_argument("--source", type=str, required=True, help=f"data with labels: {SOURCE_HELP}")
        parser.add_argument(
            "--target", type=str, required=True, help="data of the same form, whose labels are not trained on"
        )
        for domain in ("source", "target"):
            explanation = f"test data of the {domain}; default: the fraction --data.test of its data"
            parser.add_argument(f"--{domain}_test", type=str | None, default=None, help=explanation)
        from ppgen.tuning import DEFAULT_SCORER  # late: SciPy is slow to import

        tune = (
            "choose distance and alpha by short runs and a score without target labels: that of the given name in "
            f"ppgen.evaluation.SCORERS, {DEFAULT_SCORER} if none is given"
        )
        parser.add_argument("--tune", type=str | None, nargs="?", const=DEFAULT_SCORER, default=None, help=tune)
        add_data_options(parser)
        super().add_arguments(parser, method)

    @classmethod
    def sources(cls, config: Mapping[str, Any]) -> list[str]:
        """The source and the target."""
        return [config["source"], config["target"]]

    @classmethod
    def load_data(cls, config: dict[str, Any], record: Record | None = None) -> Domains:
        """Loads both domains. The warning about the target's labels comes once, with the training."""
        options = dict(config["data"])
        if record is not None:
            options["scalers"] = tuple(part.scaler for part in record.kept.values())
        with warnings.catch_warnings():
            if record is not None:
                warnings.filterwarnings("ignore", ".*the target's labels are not trained on")
            return load_domains(
                config["source"],
                config["target"],
                source_test=config.get("source_test"),
                target_test=config.get("target_test"),
                **options,
            )

    @classmethod
    def parts(cls, data: Domains) -> dict[str, Data]:
        """The source and the target."""
        return {"source": data.source, "target": data.target}

    @classmethod
    def join(cls, config: dict[str, Any], parts: Mapping[str, Data]) -> Domains:
        """Both domains."""
        return Domains(parts["source"], parts["target"])

    @classmethod
    def size(cls, data: Domains) -> tuple[tuple[int, ...], int | None]:
        """The shape of an event and the number of rows for training, of both domains."""
        return tuple(data.event_shape), len(data.source.train.x) + len(data.target.train.x)

    @classmethod
    def make_model(cls, config: dict[str, Any], data: Domains) -> DANN:
        """Makes the model for as many classes as the source has."""
        with torch.random.fork_rng():
            torch.manual_seed(config["fit"]["seed"])
            options = config["model"] | {"num_classes": data.num_classes}
            return method_of(config).model_class()(data.event_shape, **options)

    @classmethod
    def with_data(cls, config: dict[str, Any], data: Domains) -> dict[str, Any]:
        """Makes features the same for images and their negatives if the target's are negatives of the source's."""
        if config["model"]["contrast_invariant"] is not None:
            return config
        from ppgen.tuning import CONTRAST_INVERTED, needs_contrast_invariance  # late: SciPy is slow to import

        if needed := needs_contrast_invariance(cls.rows(config, data, "train")):
            warn_user(CONTRAST_INVERTED)
        return _with_model(config, contrast_invariant=needed)

    @classmethod
    def tuned(
        cls, config: dict[str, Any], data: Domains, options: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """With ``--tune`` the distance and alpha whose short run has the best score on validation rows.

        Raises:
            ValueError: For an unknown scorer, and without validation rows.
        """
        if config["tune"] is None:
            return config, {}
        from ppgen.tuning import DEFAULT_STEPS, tune_adaptation  # late: SciPy is slow to import

        if not len(data.source.validation.x) or not len(data.target.validation.x):
            raise ValueError("--tune scores rows of the validation split, and there are none: raise --data.validation")
        shared = {name: value for name, value in config["loss"].items() if name not in ("distance", "alpha")}
        of_length = ("epochs", "max_steps", "patience", "restarts")
        options = {name: value for name, value in options.items() if name not in of_length}
        steps = min(options.pop("steps", None) or DEFAULT_STEPS, DEFAULT_STEPS)
        tuning = tune_adaptation(
            lambda **model: cls.make_model(_with_model(config, **model), data),
            cls.rows(config, data, "train"),
            cls.rows(config, data, "validation"),
            scorer=config["tune"],
            loss=shared,
            steps=steps,
            contrast_invariant=config["model"]["contrast_invariant"],
            optim=partial(torch.optim.Adam, lr=config["lr"], betas=tuple(config["betas"])),
            **options,
        )
        chosen = dict(tuning.candidate)
        config = _with_model(config, conditional=chosen.pop("conditional", False))
        alpha = chosen.pop("alpha")
        loss = chosen | {"alpha": alpha if alpha == 0 else f"Ramp({alpha!r}, shape='sigmoid')"}
        found = {"chosen": tuning.chosen, "scorer": tuning.scorer, "steps": steps, "scores": tuning.scores}
        found["agreement"] = tuning.agreement
        return config | {"loss": config["loss"] | loss}, found

    @classmethod
    def checks(cls, config: dict[str, Any], model: Any, validation: tuple[torch.Tensor, ...]) -> dict[str, Any]:
        """Where checks choose the length or the weights, a score without target labels, if there is alignment.

        A loss of alignment does not tell; that of the source alone does.
        """
        options, (of_source, of_target) = config["fit"], (int((validation[2] == d).sum()) for d in (0, 1))
        chooses = options["patience"] is not None or (options["steps"] is None and options["epochs"] is None)
        if not chooses or config["loss"]["alpha"] == 0 or of_source < 1 or of_target < 2:
            return super().checks(config, model, validation)
        from ppgen.tuning import DEFAULT_SCORER, score_of  # late: SciPy is slow to import

        scorer = DEFAULT_SCORER if config["tune"] in (None, "circular_validation") else config["tune"]
        return {"score": score_of(model, validation, scorer)}

    @classmethod
    def loss_arguments(cls, config: dict[str, Any]) -> Mapping[str, Any]:
        """The features that the critic compares: with the predicted labels if the model is conditional."""
        return method_of(config).conditional if config["model"]["conditional"] else {}

    @classmethod
    def rows(cls, config: dict[str, Any], data: Domains, split: str) -> tuple[torch.Tensor, ...]:
        """The data x of a split, the labels y and the domains d."""
        return tuple(torch.as_tensor(part) for part in data.rows(split))

    @property
    def described(self) -> Data:
        """The source: the target has its scaler and labels."""
        return self.kept.source

    def arguments(self, *rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The rows, their labels and domains: rows with labels are of the source, those without of the target."""
        x, *labels = rows
        y = labels[0] if labels else torch.full((len(x),), UNKNOWN, device=x.device)
        return x, y, torch.full_like(y, 0 if labels else 1)

    def held_out(self, domain: str, domains: Domains | None = None) -> tuple[torch.Tensor, np.ndarray | None]:
        """The test rows of a domain, or its training rows if none were held out: at most 2000, at random.

        Args:
            domain: "source" or "target".
            domains: Of which data: `data` if left out, or `kept`.

        Returns:
            The rows, and their labels (`UNKNOWN` for a row without one) or None.
        """
        data = getattr(self.data if domains is None else domains, domain)
        split = data.test if len(data.test.x) else data.train
        order = np.random.default_rng(self.config["fit"]["seed"]).permutation(len(split.x))
        rows = order[:EVALUATED_ROWS]
        x = torch.as_tensor(split.x[rows], device=self.device)
        return x, None if split.y is None else split.y[rows]

    def measure(self, budget: Budget) -> dict[str, Any]:
        """Measures the accuracy on both domains, their distance and estimates of the risk without target labels."""
        from ppgen.evaluation import adaptation_risk, classifier_test, feature_spread  # late: SciPy is slow to import

        (x, y), (x_target, y_target) = self.held_out("source"), self.held_out("target")
        if y is None:
            raise ValueError(f"{self.folder}: the source has no labels")
        model, seed = self.model, self.config["fit"]["seed"]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            labels = self._in_batches(partial(model.predict, d=0), x, budget.part(0.3, "labels of the source"))
            predicted = self._in_batches(model.predict, x_target, budget.part(0.3, "labels of the target"))
        x, y, x_target = x[: len(labels)], y[: len(labels)], x_target[: len(predicted)]
        y_target = None if y_target is None else y_target[: len(predicted)]
        h, h_target = (
            self._in_batches(partial(model.features_of, d=d), rows, Budget()) for d, rows in enumerate((x, x_target))
        )
        wrong, most = labels != y, max(len(x), len(x_target))

        def at_size(share: float, what: str, task: Callable[[int], Any]) -> tuple[int, Any]:
            """The number of rows of each domain at most, and the result."""
            return budget.part(share, what).at_size(lambda n: (n, task(n)), most, least=MIN_TESTED_ROWS)

        of_features, risk = at_size(
            0.4,
            "features of both domains",
            lambda n: adaptation_risk(h[:n], h_target[:n], wrong[:n], classifier=DOMAIN_CLASSIFIER, seed=seed),
        )
        numbers: dict[str, Any] = {"held-out rows": f"{len(x)} of the source, {len(x_target)} of the target"}
        if (self.folder / TUNING).exists():
            tuning = read_json(self.folder / TUNING, {"chosen": TEXT, "scorer": TEXT})
            numbers[f"chosen without target labels, by {tuning['scorer']}"] = tuning["chosen"]
        numbers["accuracy on the source"] = _mean_and_error(~wrong)
        if y_target is not None and (known := y_target != UNKNOWN).any():
            right = predicted[known] == y_target[known]
            numbers["accuracy on the target, by its labels"] = _mean_and_error(right)
        of_data, data_test = at_size(
            0.6,
            "data of both domains",
            lambda n: classifier_test(x[:n], x_target[:n], classifier=DOMAIN_CLASSIFIER, seed=seed),
        )
        for name, test, count in (("data", data_test, of_data), ("features", risk.distance, of_features)):
            if count < most:
                numbers[f"held-out rows of a domain behind the classifier on the {name}"] = count
            numbers[f"accuracy of a domain classifier on the {name} (0.5 is chance)"] = test.statistic
            numbers[f"p-value of a domain classifier on the {name}"] = test.p_value
        distance = 2 * max(risk.distance.statistic - 0.5, 0.0)
        numbers["risk without target labels: source risk + feature distance"] = float(wrong.mean()) + distance
        numbers["risk without target labels: importance-weighted source risk"] = (risk.weighted, risk.weighted_error)
        numbers["effective sample size of the importance weights (source rows)"] = risk.effective_rows
        untrained = self.make_model(self.config, self.kept).to(x.device)
        for d, (domain, rows, features) in enumerate((("source", x, h), ("target", x_target, h_target))):
            start = self._in_batches(partial(untrained.features_of, d=d), rows, Budget())
            numbers[FEATURE_SPREAD.format(domain)] = feature_spread(features, start)
        return numbers

    def _in_batches(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, budget: Budget) -> Any:
        """The values (n, ...) of a function of the first rows for which there is time."""
        largest = rows_at_a_time(x[0].numel())
        return np.concatenate(
            [
                function(x[batch]).numpy(force=True)
                for batch in budget.batches(len(x), largest=largest, least=MIN_TESTED_ROWS)
            ]
        )

    def store_posterior(self, budget: Budget) -> None:
        """Stores the posterior of a Bayesian classifier, on the first rows of both domains, if there is time."""
        if self.config["draws"] and self.model.bayesian:
            self.write_posterior(budget, POSTERIOR_ROWS // 2, self._both_domains)

    def diagnosed_rows(self) -> tuple[torch.Tensor, ...]:
        """Held-out rows of both domains."""
        return self._both_domains(KEPT_ROWS // 2)

    def _both_domains(self, count: int) -> tuple[torch.Tensor, ...]:
        """As many held-out rows of each domain, with the labels of the source and the domains."""
        (x, y), (x_target, _) = (self.held_out(domain, self.kept) for domain in ("source", "target"))
        x, x_target = x[:count], x_target[:count]
        unknown = torch.full((len(x_target),), UNKNOWN)
        labels = torch.cat([torch.as_tensor(y)[: len(x)], unknown]).to(x.device)
        domains = torch.arange(2).repeat_interleave(torch.tensor([len(x), len(x_target)])).to(x.device)
        return torch.cat([x, x_target]), labels, domains

    def training_warnings(self) -> list[TrainingWarning]:
        """The warnings about adversarial training, and about collapsed features, which its losses do not show."""
        from ppgen.evaluation import features_collapsed  # late: SciPy is slow to import

        numbers = self.numbers
        spreads = {d: numbers[key] for d in ("source", "target") if (key := FEATURE_SPREAD.format(d)) in numbers}
        return super().training_warnings() + features_collapsed(spreads)

    def sample(self, n: int, *, label: Any = None, mean: bool = False, seed: int = 0, **how: Any) -> np.ndarray:
        """Raises a ValueError: the model does not generate data."""
        raise ValueError(f"{self.folder}: {self.config['method']!r} does not generate data")

    def report(self, budget: Budget | None = None) -> Path:
        """Writes the report, whose cost is fixed; see `Run.report`."""
        from ppgen.report import write_report  # late: ArviZ and Matplotlib are slow to import
        from ppgen.report.adaptation import report_of_adaptation

        idata, verdict = self.posterior()
        data, note = self.data_or_kept()
        page = report_of_adaptation(
            self.fit,
            self.model,
            {name: self.held_out(name, data) for name in ("source", "target")},
            names=(data.source.name, data.target.name),
            label_names=data.source.label_names,
            note=note,
            training_warnings=self.training_warnings(),
            idata=idata,
            verdict=verdict,
            numbers=self.numbers,
            config=self.config,
        )
        return write_report(self.folder / REPORT, page)


def _with_model(config: dict[str, Any], **model: Any) -> dict[str, Any]:
    """The configuration with other options of the model."""
    return config | {"model": config["model"] | model}


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of values (n,) and its standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)
