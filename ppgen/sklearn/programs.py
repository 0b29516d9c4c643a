"""`Regressor` and `Classifier`: Pyro programs with their posterior as estimators of scikit-learn.

A program is called with the columns, ``program(x, y=None)``, or for a frame with the columns that it names, ``program(
income, county, num_county, y=None)`` (`ppgen.training.frames`). It observes one site at y, in a plate of the rows. Its
posterior is found by ``ppgen.fit(program, "auto", ...)``, and S draws of it are kept. Predictions are means over these
draws of the mean of the observed site, so that they are the same each time, for all rows together and one by one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from ppgen.fitting import Fit
from ppgen.fitting import fit as fit_program
from ppgen.tracing.programs import SubstituteLatents, get_trace, signature, validation
from ppgen.tracing.sites import is_observed, is_subsample, latent_sites, sample_sites
from ppgen.training.frames import is_frame

__all__ = ["Classifier", "Regressor", "linear_classification", "linear_regression"]

CLASSES = "num_classes"
PREDICTIVE = 10  # draws of a response for each draw of the posterior


def linear_regression(x: Tensor, y: Tensor | None = None) -> None:
    """y_i ~ N(a + x_i b, sigma^2), with a and b ~ N(0, 10^2), sigma ~ HalfCauchy(5): for data of unit scale.

    Args:
        x: (n, d).
        y: (n,), or None.
    """
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(x.shape[1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(5.0))
    mean = a + (x * b).sum(-1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def linear_classification(x: Tensor, y: Tensor | None = None, *, num_classes: int) -> None:
    """y_i ~ Categorical(softmax(a + x_i b)), where the first class has a = b = 0 and others N(0, 3^2).

    Args:
        x: (n, d).
        y: (n,), or None.
        num_classes: the number of classes.
    """
    a = pyro.sample("a", dist.Normal(torch.zeros(num_classes - 1), 3.0).to_event(1))
    b = pyro.sample("b", dist.Normal(torch.zeros(x.shape[1], num_classes - 1), 3.0).to_event(2))
    logits = a + (x[:, :, None] * b).sum(-2)
    logits = torch.cat([torch.zeros_like(logits[:, :1]), logits], -1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)


class _ProgramEstimator(BaseEstimator):
    """What a classifier and a regressor around a program have in common."""

    default: Callable[..., None]

    def __init__(
        self,
        program: Callable[..., Any] | None = None,
        *,
        response: str = "y",
        draws: int = 200,
        restarts: int | None = None,
        random_state: int | None = None,
    ) -> None:
        self.program = program
        self.response = response
        self.draws = draws
        self.restarts = restarts
        self.random_state = random_state

    def _program(self) -> Callable[..., Any]:
        """The program, with the number of classes where it takes that."""
        program = type(self).default if self.program is None else self.program
        counts = {k: n for k, n in getattr(self, "_counts", {}).items() if k in signature(program).parameters}
        return partial(program, **counts) if counts else program

    def _fit(self, X: Any, y: np.ndarray) -> Any:
        """Finds the posterior, and keeps draws."""
        if self.draws < 1:
            raise ValueError(f"draws: expected at least 1, got {self.draws}")
        program = self._program()
        names = signature(program).parameters
        self._by_name = _by_name(program, X)
        options: dict[str, Any] = {"restarts": self.restarts, "seed": self.random_state or 0, "progress": False}
        data: Any = (X, y)
        if self._by_name:
            if self.response not in names:
                raise ValueError(f"response: the program has no argument {self.response!r}; it has {', '.join(names)}")
            data = X.assign(**{self.response: y})
        self.fit_ = fit_program(program, "auto", data, **options)
        self._keep_draws()
        return self

    def _keep_draws(self) -> None:
        fitted, seed = self.fit_, self.random_state or 0
        with fitted.eval_mode(fitted.best), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            traces = [get_trace(fitted.guide, *fitted.example) for _ in range(self.draws)]
        self.draws_ = [{name: site["value"] for name, site in latent_sites(trace).items()} for trace in traces]

    def _arguments(self, X: Any) -> tuple[Tensor | None, ...]:
        check_is_fitted(self)
        if self._by_name:
            return self.fit_.tensors((X.drop(columns=self.response, errors="ignore"),))
        x = validate_data(self, X, dtype=np.float64, reset=False)
        return self.fit_.tensors((x, None))

    def _predictive(self, X: Any, statistic: Callable[[Any], Tensor]) -> np.ndarray:
        """A statistic of the distribution of each row's response, for each draw of the posterior: (draws, n, ...)."""
        arguments = self._arguments(X)
        found = []
        sites = sample_sites(self._trace(self.draws_[0], self.fit_.example))
        seen = {name for name, site in sites.items() if is_observed(site)}
        if len(seen) != 1:
            raise ValueError(f"expected a program that observes one site, got {', '.join(sorted(seen)) or 'none'}")
        (response,) = seen
        with torch.no_grad(), validation(False), torch.random.fork_rng():
            torch.manual_seed(self.random_state or 0)
            for values in self.draws_:
                site = sample_sites(self._trace(values, arguments))[response]
                found.append(statistic(site["fn"]).numpy(force=True))
        return np.stack(found)

    def _trace(self, values: dict[str, Tensor], arguments: tuple[Tensor | None, ...]) -> Any:
        known = SubstituteLatents(lambda site: None if is_subsample(site) else values.get(site["name"]))
        with torch.no_grad(), validation(False):
            return get_trace(known(self.fit_.model), *arguments)

    def __getstate__(self) -> dict[str, Any]:
        """The options, the draws, and the fit as the bytes of its file: a fitted guide cannot be pickled."""
        state = dict(super().__getstate__())
        if "fit_" in state:
            fitted = state.pop("fit_")
            with tempfile.TemporaryDirectory() as folder:
                fitted.save(path := Path(folder) / "fit.safetensors")
                state |= {"_file": path.read_bytes(), "_example": fitted.example}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        file, example = state.pop("_file", None), state.pop("_example", None)
        super().__setstate__(state)
        if file is not None:
            with tempfile.TemporaryDirectory() as folder:
                (path := Path(folder) / "fit.safetensors").write_bytes(file)
                self.fit_ = Fit.load(path, self._program(), "auto", data=example)


class Regressor(RegressorMixin, _ProgramEstimator):
    """A regression by a Pyro program.

    Args:
        program: ``program(x, y=None)`` with x (n, d), or a program of the columns of a frame by name;
            `linear_regression` if left out.
        response: the argument of a program of columns that is the response.
        draws: S, of the posterior.
        restarts: as in `ppgen.fit`.
        random_state: the seed; 0 if None.

    Attributes:
        fit_: the `ppgen.Fit`: ``fit_.diagnose()`` tells whether the posterior can be trusted.

    Raises:
        ValueError: from `fit` and `predict`, as `ppgen.fit` and `ppgen.Fit.predict`.

    Example:
        >>> import numpy as np
        >>> from ppgen.sklearn import Regressor
        >>> x = np.linspace(-1, 1, 30)[:, None]
        >>> line = Regressor(restarts=1, draws=50).fit(x, 2 * x[:, 0] + 1 + 0.2 * np.cos(40 * x[:, 0]))
        >>> [round(float(value)) for value in line.predict([[0.0], [1.0]])]
        [1, 3]
    """

    default = staticmethod(linear_regression)

    def fit(self, X: Any, y: Any) -> Regressor:
        """Finds the posterior.

        Args:
            X: columns (n, d), or a frame.
            y: responses (n,).
        """
        if not _by_name(self._program(), X):
            X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        return self._fit(X, np.asarray(y, dtype=np.float64))

    def predict(self, X: Any) -> np.ndarray:
        """The posterior mean of the mean of each row's response, (n,).

        Args:
            X: columns (n, d), or a frame.
        """
        return self._predictive(X, lambda fn: fn.mean).mean(0)

    def predict_interval(self, X: Any, level: float = 0.9) -> np.ndarray:
        """Intervals that hold the response with a probability, from its (1 - level)/2 quantile on: (n, 2).

        They are quantiles of draws of the posterior predictive distribution, ten for each draw of the posterior.

        Args:
            X: columns (n, d), or a frame.
            level: the probability.

        Raises:
            ValueError: for a level outside of (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"level: expected a probability between 0 and 1, got {level}")
        drawn = self._predictive(X, lambda fn: fn.sample((PREDICTIVE,)))
        return np.quantile(np.concatenate(list(drawn)), [(1 - level) / 2, (1 + level) / 2], axis=0).T


class Classifier(ClassifierMixin, _ProgramEstimator):
    """A classification by a Pyro program that observes a Bernoulli or Categorical site.

    Args:
        program: ``program(x, y=None)`` with x (n, d) and classes y = 0, 1, .., in the order of `classes_`, or a program
            of the columns of a frame by name. A keyword argument ``num_classes`` is their number.
            `linear_classification` if left out.
        response: the argument of a program of columns that is the response.
        draws: S, of the posterior.
        restarts: as in `ppgen.fit`.
        random_state: the seed; 0 if None.

    Attributes:
        classes_: the classes.
        fit_: the `ppgen.Fit`: ``fit_.diagnose()`` tells whether the posterior can be trusted.

    Raises:
        ValueError: from `fit` and `predict`, as `ppgen.fit` and `ppgen.Fit.predict`.

    Example:
        >>> import numpy as np
        >>> from ppgen.sklearn import Classifier
        >>> x = np.linspace(-1, 1, 30)[:, None]
        >>> step = Classifier(restarts=1, draws=50).fit(x, np.where(x[:, 0] > 0, "high", "low"))
        >>> step.predict([[-1.0], [1.0]]).tolist()
        ['low', 'high']
    """

    default = staticmethod(linear_classification)

    def fit(self, X: Any, y: Any) -> Classifier:
        """Finds the posterior.

        Args:
            X: columns (n, d), or a frame.
            y: classes (n,).
        """
        if not _by_name(self._program(), X):
            X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        y = np.asarray(y)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Classifier: expected at least two classes, got 1 class, {self.classes_[0]!r}")
        self._counts = {CLASSES: len(self.classes_)}
        binary = len(self.classes_) == 2
        return self._fit(X, codes.astype(np.float64) if binary else codes)

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probabilities of the classes of each row, (n, number of classes), means over the posterior.

        Args:
            X: columns (n, d), or a frame.
        """
        return self._predictive(X, self._probabilities).mean(0)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, (n,).

        Args:
            X: columns (n, d), or a frame.
        """
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]

    def _probabilities(self, fn: Any) -> Tensor:
        base = getattr(fn, "base_dist", fn)
        if not isinstance(base, dist.Bernoulli | dist.Categorical | dist.OneHotCategorical):
            raise ValueError(
                "Classifier: expected a program that observes a Bernoulli or Categorical site, got "
                f"{type(base).__name__}"
            )
        probabilities = base.probs
        if isinstance(base, dist.Bernoulli):
            probabilities = torch.stack([1 - probabilities, probabilities], -1)
        if probabilities.shape[-1] != len(self.classes_):
            raise ValueError(
                f"Classifier: expected probabilities of {len(self.classes_)} classes, got {probabilities.shape[-1]}; "
                f"take their number as a keyword argument {CLASSES}"
            )
        return probabilities


def _by_name(program: Callable[..., Any], X: Any) -> bool:
    """Whether a program takes columns of a frame by name."""
    return is_frame(X) and any(str(column) in signature(program).parameters for column in X.columns)
