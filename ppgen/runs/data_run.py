"""A run of a generative model on one data set."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jsonargparse import ArgumentParser

from ppgen import data as datasets
from ppgen.data.loading import READING, Preparation, read_source
from ppgen.models.protocols import Denoises, ExpectsForm, HasLogEvidence
from ppgen.runs.folder import REPORT
from ppgen.runs.methods import Method
from ppgen.runs.record import Record
from ppgen.runs.run import Programs, Run, method_of
from ppgen.runs.stages import read_stage_images
from ppgen.utils.budget import Budget, rows_at_a_time

if TYPE_CHECKING:
    from ppgen.diagnostics import Verdict

__all__ = ["DataRun", "add_data_options"]

POSTERIOR_ROWS = 64  # the posterior of at most so many held-out rows is stored
POSTERIOR_BYTES = 2**25  # and at most so many bytes of draws, but at least one row
DIAGNOSED_NUMBERS = 2**16  # of data, in the held-out rows whose posterior `diagnose` examines
STREAMED_ROWS = 10_000  # at most so many held-out rows are evaluated if the data are streamed,
STREAMED_NUMBERS = 2**26  # and at most so many numbers
SAMPLES_AT_FIRST = 8  # in the first batch, from which the time of further ones is estimated
COMPARED_ROWS, MIN_COMPARED_ROWS = 1000, 100  # held-out rows that are compared with samples
LABELED_ROWS = 5  # for each of these: training rows, to train the classifiers that label samples
SOURCE_HELP = "digits, fashion, moons, ..., openml:NAME, a file or a folder of images"


def add_data_options(parser: ArgumentParser) -> None:
    """Adds the arguments of `ppgen.data.load` as ``--data.NAME``, and the number of posterior samples."""
    parser.add_argument("--draws", type=int, default=200, help="posterior samples to store for each chain; 0 for none")
    parser.add_function_arguments(datasets.load, "data", skip={"source"})


@dataclass
class DataRun(Run):
    """A run on a data set: `data` is a `ppgen.data.Data`, `model` one of `ppgen.models`."""

    @classmethod
    def add_arguments(cls, parser: ArgumentParser, method: Method) -> None:
        """Adds the data set and its options."""
        parser.add_argument("source", type=str, help=SOURCE_HELP)
        parser.add_argument("--conditional", type=bool, default=False, help="condition the model on the labels")
        add_data_options(parser)
        parser.add_argument("--augment.flip", type=bool, default=False, help="mirror half of the training images")
        shift = "the most pixels by which training images are shifted along each side"
        parser.add_argument("--augment.shift", type=int, default=0, help=shift)
        super().add_arguments(parser, method)

    @classmethod
    def sources(cls, config: Mapping[str, Any]) -> list[str]:
        """The data set."""
        return [config["source"]]

    @classmethod
    def load_data(cls, config: dict[str, Any], record: Record | None = None) -> datasets.Data:
        """Loads the data set, in the form that the model expects unless the configuration names one."""
        options = dict(config["data"])
        if options.get("form", "auto") == "auto":
            options["form"] = _expected_form(config)
        source, seed = config["source"], options.pop("seed", 0)
        reading = {name: options.pop(name) for name in READING if name in options}
        prepare = Preparation(**options)
        scaler = None if record is None else record.kept["data"].scaler
        return prepare(read_source(source, seed=seed, **reading), source, seed=seed, scaler=scaler)

    @classmethod
    def parts(cls, data: datasets.Data) -> dict[str, datasets.Data]:
        """The data set."""
        return {"data": data}

    @classmethod
    def join(cls, config: dict[str, Any], parts: Mapping[str, datasets.Data]) -> datasets.Data:
        """The data set."""
        return parts["data"]

    @classmethod
    def size(cls, data: datasets.Data) -> tuple[tuple[int, ...], int | None]:
        """The shape of an event and the number of rows for training."""
        return tuple(data.event_shape), len(data.train.x)

    @classmethod
    def make_model(cls, config: dict[str, Any], data: datasets.Data) -> Programs:
        """Makes the model, with the arguments that follow from the data.

        Raises:
            ValueError: If the model is to be conditional, and the data have no labels.
        """
        options, form = dict(config["model"]), _expected_form(config)
        if config["conditional"]:
            if data.y is None:
                raise ValueError(f"{config['source']}: --conditional needs labels, and these data have none")
            options["num_classes"] = data.classes
        if form == "integer" or (form == "levels" and data.form == "integer"):
            options["levels"] = data.levels
        with torch.random.fork_rng():
            torch.manual_seed(config["fit"]["seed"])
            return method_of(config).model_class()(data.event_shape, **options)

    @classmethod
    def rows(cls, config: dict[str, Any], data: datasets.Data, split: str) -> tuple[torch.Tensor, ...]:
        """The data x of a split, and the labels y if the model is conditional; streamed data are not read."""
        part = getattr(data, split)
        arrays: tuple[Any, ...] = (part.x, part.y) if config["conditional"] else (part.x,)
        rows: Any = tuple(a if isinstance(a, datasets.StreamedArray) else torch.as_tensor(a) for a in arrays)
        return rows

    @classmethod
    def fitted_data(cls, config: dict[str, Any], data: datasets.Data) -> Any:
        """The training rows, augmented if the configuration says so.

        Raises:
            ValueError: If data other than images are to be augmented.
        """
        augment = config.get("augment") or {}
        if not any(augment.values()):
            return super().fitted_data(config, data)
        return datasets.Augmented(data, labels=config["conditional"], **augment)

    @property
    def described(self) -> datasets.Data:
        """The data set."""
        return self.kept

    def held_out(self, data: datasets.Data) -> tuple[torch.Tensor, ...]:
        """The test rows of `data` or of `kept`, or the training rows if there are none; the first ones of a stream."""
        rows = self.rows(self.config, data, "test" if len(data.test.x) else "train")
        if isinstance(rows[0], datasets.StreamedArray):
            count = min(STREAMED_ROWS, max(1, STREAMED_NUMBERS // math.prod(data.event_shape)))
            rows = tuple(torch.as_tensor(part[:count]) for part in rows)
        return rows

    def measure(self, budget: Budget) -> dict[str, Any]:
        """Evaluates the model on held-out rows and compares samples with them."""
        from ppgen.runs.evaluations import HeldOut, evaluate  # late: SciPy and scikit-learn are slow to import

        options = {"particles": self.config["particles"], "seed": self.config["fit"]["seed"]}
        held_out = HeldOut(self.model, self.fit, self.data, self.held_out(self.data), **options)
        numbers = evaluate(held_out, budget.part(0.6))
        samples = self.generate(COMPARED_ROWS, budget=budget.part(0.5, "samples"))
        if len(samples) < MIN_COMPARED_ROWS:
            return numbers
        part = budget.part(0.8, "samples compared with data")
        found = part.at_size(
            lambda n: self._counts(n) | self.compare_with_data(samples[:n], rows=n, metrics=False),
            len(samples),
            least=MIN_COMPARED_ROWS,
            power=1.5,
        )
        return numbers | {f"generated: {name}": number for name, number in found.items()}

    def _counts(self, n: int) -> dict[str, Any]:
        """How many samples and rows are compared, and for images in what."""
        rows = min(n, len(self.data.test.x) or len(self.data.train.x))
        pixels = {"compared": "pixel by pixel"} if len(self.data.event_shape) == 3 else {}
        return {"samples compared": n, "rows of data compared": rows} | pixels

    def compare_with_data(
        self, samples: np.ndarray, *, rows: int = COMPARED_ROWS, metrics: bool = True, seed: int = 0
    ) -> dict[str, float]:
        """Compares samples with held-out rows by `ppgen.evaluation.summary.measure`.

        Args:
            samples: (n, *event_shape), in the units of the data's source.
            rows: The number of held-out rows.
            metrics: Whether to include all metrics and a two-sample test.
            seed: The random seed.

        Returns:
            Numbers by name.
        """
        from ppgen.evaluation.summary import measure  # late: SciPy and scikit-learn are slow to import

        data, inverse = self.data, self.data.scaler.inverse
        train = inverse(data.train.x[: LABELED_ROWS * rows])
        held_out = inverse(data.test.x[:rows]) if len(data.test.x) else train[:rows]
        modes, y = datasets.modes(self.config["source"]), data.train.y
        labeled = None
        if y is not None and modes is None and len(np.unique(y[: len(train)])) > 1:
            labeled = train, y[: len(train)]
        return measure(samples, held_out, labeled=labeled, modes=modes, metrics=metrics, seed=seed)

    def store_posterior(self, budget: Budget) -> None:
        """Stores the posterior of the first held-out rows, for a model whose encoder is an approximate posterior.

        These are draws of the latents and their densities, without predictions, for at most `POSTERIOR_ROWS` rows and
        `POSTERIOR_BYTES` bytes of draws, or for fewer if the time is short.
        """
        if not self.config["draws"] or not isinstance(self.model, HasLogEvidence):
            return
        width = getattr(self.model, "latent_dim", 1)
        row_bytes = 4 * len(self.fit.chains) * self.config["draws"] * width
        count = max(1, min(POSTERIOR_ROWS, POSTERIOR_BYTES // row_bytes))
        rows = _on_device_of(self, (part[:count] for part in self.held_out(self.kept)))
        self.write_posterior(budget, len(rows[0]), lambda n: tuple(part[:n] for part in rows))

    def report(self, budget: Budget | None = None) -> Path:
        """Writes the report; see `Run.report`."""
        from ppgen.report import report_of_run, write_report  # late: ArviZ and Matplotlib are slow to import

        idata, verdict = self.posterior()
        data, note = self.data_or_kept()
        page = report_of_run(
            self.fit,
            self.model,
            data,
            idata=idata,
            verdict=verdict,
            numbers=self.numbers,
            title=f"{self.config['method']} on {data.name}",
            note=note,
            config=self.config,
            stages=read_stage_images(self.folder, self.fit.best),
            budget=budget,
        )
        return write_report(self.folder / REPORT, page)

    def sample(self, n: int, *, label: Any = None, mean: bool = False, seed: int = 0, **how: Any) -> np.ndarray:
        """Draws n samples; see `Run.sample`."""
        if how and not isinstance(self.model, Denoises):
            options, method = ", ".join(how), self.config["method"]
            raise ValueError(
                f"{self.folder}: {options}: only diffusion models and flow matching have a sampler, not {method!r}"
            )
        if self.config["conditional"] != (label is not None):
            choose = "choose the label of the samples with --label, in Python label="
            advice = "leave --label out" if label is not None else choose
            kind = "conditional" if self.config["conditional"] else "not conditional"
            raise ValueError(f"{self.folder}: the model is {kind}: {advice}")
        y = None if label is None else torch.as_tensor(label, device=self.device).expand(n)
        return self._draw(n, y, seed, mean=mean, **how)

    def generate(self, n: int, *, seed: int = 0, budget: Budget | None = None) -> np.ndarray:
        """Draws n samples whose labels, for a conditional model, are distributed as those of the training data.

        Args:
            n: The number of samples.
            seed: The random seed.
            budget: The time; if it is short, there are fewer samples.

        Returns:
            An array (n, *event_shape), in the units of the data's source.
        """
        y = None
        if self.config["conditional"]:
            labels = np.random.default_rng(seed).choice(np.asarray(self.data.train.y), n)
            y = torch.as_tensor(labels, device=self.device)
        return self._draw(n, y, seed, budget=budget)

    def _draw(
        self, n: int, y: torch.Tensor | None, seed: int, *, budget: Budget | None = None, **how: Any
    ) -> np.ndarray:
        """Draws n samples, or as many as there is time for, in batches, in the units of the data's source."""
        largest = rows_at_a_time(math.prod(self.kept.event_shape))
        smallest = largest if budget is None else SAMPLES_AT_FIRST
        parts = [np.empty((0, *self.kept.event_shape), np.float32)]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for batch in (budget or Budget()).batches(n, largest=largest, smallest=smallest):
                labels = None if y is None else y[batch]
                x = self.model.sample(batch.stop - batch.start, labels, **how)
                parts.append(self.kept.scaler.inverse(x.numpy(force=True)))
        return np.concatenate(parts[len(parts) > 1 :])

    def diagnosed_rows(self) -> tuple[torch.Tensor, ...]:
        """The held-out rows."""
        rows = self.held_out(self.kept)
        count = max(1, DIAGNOSED_NUMBERS // math.prod(self.kept.event_shape))
        return _on_device_of(self, (part[:count] for part in rows))

    def diagnose(self, *, draws: int = 500, seed: int = 0) -> "Verdict":
        """Decides whether the posterior can be trusted; see `Run.diagnose`.

        Raises:
            ValueError: For a diffusion model, whose latents are noise that is not inferred.
        """
        if isinstance(self.model, Denoises):
            raise ValueError(
                f"{self.folder}: the latents of a diffusion model are noise by construction, so that there is no "
                "posterior to diagnose; the report compares the evidence lower bound with the likelihood by the ODE"
            )
        return super().diagnose(draws=draws, seed=seed)


def _expected_form(config: Mapping[str, Any]) -> str:
    """The form of data that the model scores."""
    model = method_of(config).model_class()
    return model.data_form(config["model"]) if isinstance(model, ExpectsForm) else "continuous"


def _on_device_of(run: Run, rows: Iterable[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(part.to(run.device) for part in rows)
