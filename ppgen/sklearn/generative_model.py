"""`GenerativeModel`: a method of ``ppgen train`` as an estimator of scikit-learn."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sklearn.base import BaseEstimator
from sklearn.utils import TransformerTags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from ppgen.data.loading import Preparation
from ppgen.data.origin import Origin
from ppgen.data.raw import RawData
from ppgen.fitting import fit as fit_programs
from ppgen.models.protocols import Decodes, Encodes, HasLogEvidence, HasLogProb, TransportsToBase
from ppgen.runs.data_run import DataRun
from ppgen.runs.defaults import with_defaults
from ppgen.runs.folder import CONFIG, RECORD, WEIGHTS
from ppgen.runs.methods import METHODS
from ppgen.runs.parser import complete_config
from ppgen.runs.record import Record
from ppgen.runs.run import method_of
from ppgen.runs.trained import Trained
from ppgen.tracing.sites import did_you_mean

__all__ = ["GenerativeModel"]

SOURCE = "X"
FILES = (CONFIG, RECORD, WEIGHTS)


def _model_class_has(*capabilities: type) -> Any:
    """Makes a method exist only if the model of the method has one of these capabilities."""

    def has(estimator: GenerativeModel) -> bool:
        found = METHODS.get(estimator.method)
        model: Any = None if found is None else found.model_class()
        if model is None or not any(issubclass(model, capability) for capability in capabilities):
            names = " or ".join(capability.__name__ for capability in capabilities)
            raise AttributeError(f"the model of the method {estimator.method!r} has no {names}")
        return True

    return available_if(has)


class GenerativeModel(BaseEstimator):
    """A generative model of rows of numbers.

    Its options are those of ``ppgen train METHOD``, by section: ``{"hidden": [64]}`` of `model_options` is
    ``--model.hidden [64]``. Columns are standardized inside, and rows go in and come out in their own units. Where a
    frame is fitted, frames come out.

    Args:
        method: a method of ``ppgen train`` that models data, such as "maf", "nsf", "vae", "edm" or "gan".
        model_options: options of the model.
        loss_options: options of the loss.
        fit_options: options of `ppgen.fit`, such as {"steps": 1000}; without a length, training ends when it has
            converged.
        scale: "standard", or "none" for numbers that are scaled already.
        particles: importance samples of the log evidence, for models with latents.
        random_state: the seed of training; 0 if None.

    Attributes:
        fit_: the `ppgen.Fit`, with losses and the programs.
        trained_: the model with the methods that `ppgen.load` gives.
        n_features_in_: the number of columns.

    Raises:
        ValueError: from `fit`, for a method or an option that does not exist, and data that it cannot model.

    Example:
        >>> from sklearn.datasets import make_moons
        >>> from ppgen.sklearn import GenerativeModel
        >>> x, _ = make_moons(200, noise=0.1, random_state=0)
        >>> moons = GenerativeModel("maf", model_options={"hidden": [8]}, fit_options={"steps": 5}).fit(x)
        >>> moons.sample(3).shape, moons.score_samples(x).shape, moons.transform(x).shape
        ((3, 2), (200,), (200, 2))
    """

    def __init__(
        self,
        method: str = "maf",
        *,
        model_options: Mapping[str, Any] | None = None,
        loss_options: Mapping[str, Any] | None = None,
        fit_options: Mapping[str, Any] | None = None,
        scale: str = "standard",
        particles: int = 100,
        random_state: int | None = None,
    ) -> None:
        self.method = method
        self.model_options = model_options
        self.loss_options = loss_options
        self.fit_options = fit_options
        self.scale = scale
        self.particles = particles
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> GenerativeModel:
        """Fits the model to rows.

        Args:
            X: numbers (n, features), at least two rows.
            y: ignored.
        """
        if self.method not in METHODS or METHODS[self.method].run_class() is not DataRun:
            known = [name for name, method in METHODS.items() if method.kind.endswith(":DataRun")]
            raise ValueError(
                f"method: there is no {self.method!r} that models data; {did_you_mean(self.method, known)}"
            )
        x = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        columns = getattr(self, "feature_names_in_", None)
        raw = RawData(x, columns=None if columns is None else tuple(map(str, columns)))
        raw = raw._replace(origins=(Origin.of(SOURCE, raw, named=True, late=False),))
        config = self._config()
        if (form := _form(config)) in ("levels", "auto"):
            form = "continuous"
        held_out = 0.1 if len(x) >= 100 else 0.0
        prepare = Preparation(form=form, scale=self.scale, validation=held_out, test=0.0)
        data = prepare(raw, SOURCE, seed=config["fit"]["seed"])
        config = DataRun.with_data(with_defaults(config, method_of(config), *DataRun.size(data)), data)
        model: Any = DataRun.make_model(config, data)
        train, validation = (DataRun.rows(config, data, part) for part in ("train", "validation"))
        model.check(*train)
        self.fit_ = fit_programs(
            model.model,
            model.guide,
            train,
            loss=DataRun.make_loss(config),
            optim=partial(torch.optim.Adam, lr=config["lr"], betas=tuple(config["betas"])),
            **DataRun.checks(config, model, validation),
            progress=False,
            **config["fit"],
        )
        record = Record.of(DataRun.parts(data), config["fit"]["seed"])
        self.trained_ = Trained(DataRun(Path(SOURCE), config, record, model, self.fit_))
        return self

    def sample(self, n_samples: int = 1, *, random_state: int | None = None) -> Any:
        """Draws rows.

        Args:
            n_samples: their number.
            random_state: the seed; 0 if None.

        Returns:
            An array (n_samples, features), or a frame if the model was fitted to one.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"sample: expected at least one row, got n_samples={n_samples}")
        return self._like_input(self.trained_.sample(n_samples, seed=random_state or 0))

    @_model_class_has(HasLogProb, HasLogEvidence)
    def score_samples(self, X: Any) -> np.ndarray:
        """The log density of rows, (n,) in nats; of a model with latents, estimated by importance sampling.

        Args:
            X: rows (n, features).
        """
        x = self._rows(X)
        if isinstance(self.trained_.run.model, HasLogProb):
            return self.trained_.log_prob(x).astype(np.float64)
        return self.trained_.log_evidence(x, particles=self.particles).astype(np.float64)

    @_model_class_has(HasLogProb, HasLogEvidence)
    def score(self, X: Any, y: Any = None) -> float:
        """The mean log density of rows, in nats, by which grid search chooses.

        Args:
            X: rows (n, features).
            y: ignored.
        """
        return float(self.score_samples(X).mean())

    @_model_class_has(Encodes, TransportsToBase)
    def transform(self, X: Any) -> np.ndarray:
        """The codes of rows: the mean of the posterior, or what a flow maps them to.

        Args:
            X: rows (n, features).
        """
        x, run = self._rows(X), self.trained_.run
        if isinstance(run.model, Encodes):
            return self.trained_.encode(x)
        with run.drawing(0):
            return run.model.pull_back(run.units.to_model(x))[0].numpy(force=True)

    @_model_class_has(Decodes, TransportsToBase)
    def inverse_transform(self, X: Any) -> Any:
        """The rows of codes: the mean of the decoder, or the inverse of the flow.

        Args:
            X: codes (n, latent dimension).
        """
        check_is_fitted(self)
        run = self.trained_.run
        if isinstance(run.model, Decodes):
            return self._like_input(self.trained_.decode(np.asarray(X)))
        with run.drawing(0):
            distribution = run.model.distribution()
            x = distribution.transform(torch.as_tensor(np.asarray(X), dtype=torch.get_default_dtype()))
            return self._like_input(run.units.from_model(x))

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Fits the model and returns the codes of the rows; see `transform`.

        Args:
            X: rows (n, features).
            y: ignored.
        """
        return self.fit(X).transform(X)

    def __sklearn_tags__(self) -> Any:
        """The tags of scikit-learn: a transformer if the model has codes."""
        tags = super().__sklearn_tags__()
        if hasattr(self, "transform"):
            tags.transformer_tags = TransformerTags(preserves_dtype=[])
        return tags

    def _config(self) -> dict[str, Any]:
        """The configuration of a run with these options."""
        options = {"model": self.model_options, "loss": self.loss_options, "fit": self.fit_options}
        given = {section: dict(values) for section, values in options.items() if values}
        seed = {"seed": self.random_state or 0, "compile": "auto"}
        config = {"method": self.method, "source": SOURCE, **given, "fit": seed | given.get("fit", {})}
        complete = complete_config(config, Path(type(self).__name__))
        if complete["fit"]["epochs"] is not None and complete["fit"]["steps"] == METHODS[self.method].defaults.get(
            "fit.steps"
        ):
            complete["fit"]["steps"] = None
        return complete

    def _rows(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return validate_data(self, X, dtype=np.float64, reset=False)

    def _like_input(self, rows: np.ndarray) -> Any:
        """Rows as a frame, if the model was fitted to one."""
        if (names := getattr(self, "feature_names_in_", None)) is None:
            return rows
        import pandas as pd

        return pd.DataFrame(rows, columns=names)

    def __getstate__(self) -> dict[str, Any]:
        """The options, and of a fitted model the files of a run folder: programs cannot be pickled."""
        state = dict(super().__getstate__())
        if "trained_" in state:
            run = state.pop("trained_").run
            fitted = state.pop("fit_")
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                (folder / CONFIG).write_text(yaml.safe_dump(run.config, sort_keys=False), encoding="utf-8")
                run.record.write(folder)
                fitted.save(folder / WEIGHTS)
                state["_files"] = {file: (folder / file).read_bytes() for file in FILES}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        files = dict(state).pop("_files", None)
        super().__setstate__({key: value for key, value in state.items() if key != "_files"})
        if files is not None:
            with tempfile.TemporaryDirectory() as name:
                for file in FILES:
                    (Path(name) / file).write_bytes(files[file])
                run = DataRun.load(name)
            self.fit_, self.trained_ = run.fit, Trained(run)


def _form(config: Mapping[str, Any]) -> str:
    from ppgen.models.protocols import ExpectsForm

    model = method_of(config).model_class()
    return model.data_form(config["model"]) if isinstance(model, ExpectsForm) else "continuous"
