"""A run folder: one training run on disk, from its configuration to its report.

config.yaml             everything that was asked for; ``ppgen train --config`` takes it back
metrics.jsonl           one line a step: chain, step, epoch, loss and its terms, of a game its signals, while training
checkpoint.safetensors  the run in the middle, until it is complete; ``ppgen resume`` goes on from it
weights.safetensors     the `Fit`
posterior.nc            the posterior on held-out data, as ArviZ reads it
numbers.json            held-out figures
stages.safetensors      of a run that grew: what it drew when each stage ended
report.html             the page to look at
"""

import json
import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser

from ppgen import data as datasets
from ppgen.diagnostics import Verdict, from_netcdf, to_netcdf
from ppgen.evaluation import base_space_test
from ppgen.utils.files import write_whole
from ppgen.fitting import fit
from ppgen.training.progressive import ProgressiveGrowing
from ppgen.evaluation.summary import measure
from ppgen.models import VAE
from ppgen.runs.log import Record
from ppgen.training.training_failures import TrainingWarning
from ppgen.report import report_of_run, write_report
from ppgen.fitting import Fit
from ppgen.training.checkpoint import position
from ppgen.runs.stages import Stages, read_stages
from ppgen.runs.methods import NOT_ASKED_OF_RECIPES, SYSTEMS

__all__ = ["Run", "new_folder", "read_config", "resume", "train"]

CHECKPOINT, METRICS, WEIGHTS = "checkpoint.safetensors", "metrics.jsonl", "weights.safetensors"
SHOWN = 64  # held-out rows whose posterior is stored
DIAGNOSED = 256  # rows whose posterior is judged, at most
MEASURED = 1000  # rows of a sample that draws are laid beside, at most
PULLED_BACK = 100  # numbers of a row that a flow pulls back, at most, to be held against its base
LABELLED = 5000  # training rows with labels that classifiers learn from, at most


@dataclass
class Run:
    """A finished run, read back from its folder."""

    folder: Path
    config: dict[str, Any]
    data: Any
    model: Any
    fit: Fit
    of_domains: ClassVar[bool] = False
    of_energy: ClassVar[bool] = False

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Self:
        """Builds programs and data as the configuration says, and loads the weights.

        Raises:
            FileNotFoundError: if this is no run folder, or its data are gone.
            ppgen.infer.checkpoint_file.CheckpointError: if the weights are damaged.
        """
        folder = Path(folder)
        config = read_config(folder)
        system = SYSTEMS.get(config.get("system", ""))
        if system is not None and (system.of_domains, system.of_energy) != (cls.of_domains, cls.of_energy):
            why = "is of an energy" if system.of_energy else "draws no data" if system.of_domains else "is of data"
            raise ValueError(f"{folder}: a run of {config['system']!r} {why}")
        data = cls.load_data(config)
        model = cls.make_model(config, data)
        fitted = Fit.load(folder / WEIGHTS, model.model, model.guide, loss=_loss(config))
        return cls(folder, config, data, model, fitted)

    @classmethod
    def load_data(cls, config: dict[str, Any]) -> Any:
        """The data that the configuration names."""
        options = dict(config["data"])
        if options.get("form", "auto") == "auto":
            options["form"] = SYSTEMS[config["system"]].form(config["model"])
        return datasets.load(config["source"], **options)

    @classmethod
    def make_model(cls, config: dict[str, Any], data: Any) -> Any:
        """The model that the configuration describes, for these data, under its seed."""
        with torch.random.fork_rng():
            torch.manual_seed(config["fit"]["seed"])
            return SYSTEMS[config["system"]].model(data.event_shape, **cls.model_options(config, data))

    @classmethod
    def model_options(cls, config: dict[str, Any], data: Any) -> dict[str, Any]:
        """The model's arguments, those that the data settle among them."""
        options, of_levels = dict(config["model"]), SYSTEMS[config["system"]].of_levels
        if config["conditional"]:
            if data.y is None:
                raise ValueError(f"{config['source']}: --conditional needs labels, and these data have none")
            options["num_classes"] = int(data.y.max()) + 1
        if options.get("likelihood") == "categorical" or (of_levels and data.form == "integer"):
            options["levels"] = data.levels
        return options

    @classmethod
    def rows(cls, config: dict[str, Any], data: Any, split: str) -> tuple[torch.Tensor, ...]:
        """A split as the programs take it: with labels where the model is conditioned on them."""
        rows = getattr(data, split)
        return tuple(torch.as_tensor(part) for part in ((rows.x, rows.y) if config["conditional"] else (rows.x,)))

    def evaluate(self) -> None:
        """Held-out figures, and the posterior of the first held-out rows, into the folder."""
        split = "test" if len(self.data.test.x) else "train"
        tensors = tuple(part.to(self.fit.example[0].device) for part in self.rows(self.config, self.data, split))
        numbers: dict[str, Any] = {"held-out rows": len(tensors[0])}
        with torch.random.fork_rng():
            torch.manual_seed(self.config["fit"]["seed"])
            terms, bits = self.fit.breakdown(*tensors), math.log(2) * math.prod(self.data.event_shape)
            numbers |= {f"held-out {name}": value for name, value in terms.items()}
            if isinstance(self.model, VAE):
                particles = self.config["particles"]
                evidence = self.model.log_evidence(*tensors, particles=particles).double()
                error = float(evidence.std() / math.sqrt(len(evidence)))
                numbers[f"held-out log evidence, k = {particles} (nats per datum)"] = (float(evidence.mean()), error)
                numbers[f"held-out bits per dimension, k = {particles}"] = (
                    -float(evidence.mean()) / bits,
                    error / bits,
                )
            elif hasattr(self.model, "log_prob"):
                exact = self.model.log_prob(*tensors).double()
                error = float(exact.std() / math.sqrt(len(exact)))
                numbers["held-out log-likelihood (nats per datum)"] = (float(exact.mean()), error)
                if len(self.data.event_shape) == 3 or self.data.form == "integer":
                    numbers["held-out bits per dimension"] = (-float(exact.mean()) / bits, error / bits)
            if getattr(self.model, "steps", None) and hasattr(self.model, "bound"):
                bound = self.model.bound(*tensors, particles=self.config["particles"]).double()
                error = float(bound.std() / math.sqrt(len(bound)))
                numbers["held-out evidence bound of the chain (nats per datum)"] = (float(bound.mean()), error)
            if hasattr(self.model, "pull_back"):
                numbers |= self._pulled_back(*tensors)
        numbers |= {f"generated: {name}": number for name, number in self.measures(metrics=False).items()}
        self.keep(numbers)
        if self.config["draws"] and isinstance(self.model, VAE):
            shown = tuple(t[:SHOWN] for t in tensors)
            to_netcdf(self.fit.to_arviz(*shown, draws=self.config["draws"]), self.folder / "posterior.nc")

    def _pulled_back(self, *tensors: torch.Tensor) -> dict[str, Any]:
        """How held-out rows that a flow pulls back compare with its base, where that is cheap to say."""
        z, _ = self.model.pull_back(*(part[:MEASURED] for part in tensors))
        flat = z.flatten(1)
        if flat.shape[1] > PULLED_BACK or len(flat) < flat.shape[1] + 2 or not flat.isfinite().all():
            return {}
        found = base_space_test(z, self.model.flow.base, seed=self.config["fit"]["seed"])
        kl: Any = (found.kl, found.error) if math.isfinite(found.kl) else "infinite: rows coincide"
        return {
            "held-out KL to the model, by neighbors in z (nats)": kl,
            f"p-value of {found.coordinates.name} of z": found.coordinates.p_value,
            f"p-value of {found.sliced.name} of z": found.sliced.p_value,
        }

    def training_warnings(self) -> list[TrainingWarning]:
        """What the run shows of its game, if it was one."""
        return self.fit.training_warnings()

    def keep(self, numbers: dict[str, Any]) -> None:
        """Writes `numbers`."""
        write_whole(self.folder / "numbers.json", json.dumps(numbers, indent=1))

    @property
    def numbers(self) -> dict[str, Any]:
        """Held-out figures by name: a number, or a pair of it and its standard error."""
        path = self.folder / "numbers.json"
        stored = json.loads(path.read_text()) if path.exists() else {}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}

    def report(self) -> Path:
        """Writes the page anew; returns its path."""
        idata, verdict = self.posterior()
        page = report_of_run(
            self.fit,
            self.model,
            self.data,
            idata=idata,
            verdict=verdict,
            numbers=self.numbers,
            title=f"{self.config['system']} on {self.data.name}",
            config=self.config,
            stages=read_stages(self.folder, self.fit.best),
        )
        return write_report(self.folder / "report.html", page)

    def posterior(self) -> tuple[Any, Verdict | None]:
        """The stored posterior and the verdict on its draws; None of either where none was stored."""
        path = self.folder / "posterior.nc"
        if not path.exists():
            return None, None
        idata = from_netcdf(path)
        return idata, self.fit.diagnose(idata=idata, starts=0)

    def sample(self, n: int, *, label: int | None = None, mean: bool = False, seed: int = 0, **how: Any) -> np.ndarray:
        """n draws of x from the model, in the units of the data's source: (n, *event_shape).

        Args:
            how: further options of the model's own ``sample``, such as the sampler of a diffusion.

        Raises:
            ValueError: if a label is given to a model without labels, or none to one with; for how, of a model that
                does not draw in steps.
        """
        if how and not hasattr(self.model, "denoiser"):
            asked, system = ", ".join(how), self.config["system"]
            raise ValueError(f"{self.folder}: {asked}: only a diffusion draws in steps, and this is {system!r}")
        y = None if label is None else torch.full((n,), label)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            x = self.model.sample(n, y, mean=mean, **how)
        return self.data.scaler.inverse(x.numpy(force=True))

    def draws(self, n: int, *, seed: int = 0) -> np.ndarray:
        """n draws of x, in the units of the source; a conditional model gets labels of the training data at random."""
        y = None
        if self.config["conditional"]:
            y = torch.as_tensor(np.random.default_rng(seed).choice(np.asarray(self.data.train.y), n))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            x = self.model.sample(n, y)
        return self.data.scaler.inverse(x.numpy(force=True))

    def diagnose(self, *, draws: int = 500, seed: int = 0) -> Verdict:
        """Whether the posterior of held-out rows, or of training rows if none were held out, can be trusted.

        Raises:
            ValueError: for a diffusion, whose latents are noise that nobody infers.
        """
        if hasattr(self.model, "denoiser"):
            raise ValueError(
                f"{self.folder}: the latents of a diffusion are noise by construction, and no posterior to be judged; "
                "its report lays the evidence bound beside the likelihood by the ODE"
            )
        split = "test" if len(getattr(getattr(self.data, "test", None), "x", ())) else "train"
        rows = self.rows(self.config, self.data, split)
        return self.fit.diagnose(*(part[:DIAGNOSED] for part in rows), draws=draws, seed=seed)

    def measures(self, n: int = MEASURED, *, metrics: bool = True, seed: int = 0) -> dict[str, float]:
        """`ppgen.evaluation.summary.measure` of n draws beside held-out data, or beside training data if none were held out."""
        return self.measure(self.draws(n, seed=seed), metrics=metrics, seed=seed)

    def measure(self, rows: np.ndarray, *, metrics: bool = True, seed: int = 0) -> dict[str, float]:
        """The same of given rows, in the units of the source."""
        data, inverse = self.data, self.data.scaler.inverse
        train = inverse(data.train.x[:LABELLED])
        held_out = inverse(data.test.x[:MEASURED]) if len(data.test.x) else train[:MEASURED]
        modes, y = datasets.modes(self.config["source"]), data.train.y
        labeled = None
        if y is not None and modes is None and len(np.unique(y[:LABELLED])) > 1:
            labeled = train, y[:LABELLED]
        return measure(rows, held_out, labeled=labeled, modes=modes, metrics=metrics, seed=seed)


def train(config: dict[str, Any], *, out: str | os.PathLike, progress: bool = True, kind: type[Run] = Run) -> Run:
    """Trains one of `SYSTEMS` on a data source and leaves a run folder behind.

    Args:
        config: what ``config.yaml`` holds: "system" and "source"; "data", "model", "loss", "fit", each the keyword
            arguments of `ppgen.data.load`, the model's class, the recipe and `ppgen.fit`; "lr", "conditional",
            "draws" (of the stored posterior) and "particles" (of the held-out log evidence).
        kind: what the system's runs are.
    """
    data = kind.load_data(config)
    model = kind.make_model(config, data)
    model.check(*kind.rows(config, data, "train"))  # before there is a folder
    folder = new_folder(out)
    write_whole(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    return _train(kind, folder, config, data, model, Record(folder / METRICS), progress)


def resume(folder: str | os.PathLike, *, progress: bool = True, kind: type[Run] = Run) -> Run:
    """Goes on with a run that was stopped, from its checkpoint to its report, as `train` would have.

    Raises:
        FileNotFoundError: if this is no run folder, or nothing was stopped in it.
        ppgen.infer.checkpoint_file.CheckpointError: if the checkpoint is damaged.
        ValueError: if the data, or the installed programs, are no longer those of then.
    """
    folder = Path(folder)
    config = read_config(folder, holds=())
    if not (folder / CHECKPOINT).is_file():
        complete = (folder / WEIGHTS).is_file()
        why = "the run is complete" if complete else f"it has no {CHECKPOINT}; `ppgen train` the same --config anew"
        raise FileNotFoundError(f"{folder}: nothing to resume: {why}")
    record = Record(folder / METRICS, after=position(folder / CHECKPOINT))
    data = kind.load_data(config)
    return _train(kind, folder, config, data, kind.make_model(config, data), record, progress)


def _train(
    kind: type[Run], folder: Path, config: dict[str, Any], data: Any, model: Any, record: Record, progress: bool
) -> Run:
    """Trains, to the end or until it is stopped, and leaves weights, figures and report of what there is."""
    rows, held_out = kind.rows(config, data, "train"), kind.rows(config, data, "validation")
    options = fit_options(config)
    pictures = [] if options.get("growth") is None else [Stages(folder, model, *rows[1:])]
    try:
        fitted = fit(
            model.model,
            model.guide,
            rows or None,
            loss=_loss(config),
            optim=partial(torch.optim.Adam, lr=config["lr"], betas=tuple(config.get("betas", (0.9, 0.999)))),
            validation=held_out if held_out and len(held_out[0]) else None,
            callbacks=[record, *pictures],
            progress=progress,
            checkpoint=folder / CHECKPOINT,
            **options,
        )
    finally:
        record.flush()
    fitted.save(folder / WEIGHTS)
    run = kind(folder, config, data, model, fitted)
    run.evaluate()
    run.report()
    return run


def fit_options(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration's arguments of `ppgen.fit`."""
    growth = config["fit"].get("growth")
    return config["fit"] | ({} if growth is None else {"growth": ProgressiveGrowing(**growth)})


def _loss(config: dict[str, Any]) -> Any:
    """The recipe's objective; a schedule stands in the configuration as class_path and init_args."""
    system, parser = SYSTEMS[config["system"]], ArgumentParser()
    parser.add_function_arguments(system.recipe, skip=NOT_ASKED_OF_RECIPES)
    sites = system.sites(config)
    return system.recipe(**parser.instantiate(parser.parse_object(config["loss"])).as_dict(), **sites)


def read_config(folder: Path, *, holds: tuple[str, ...] = (WEIGHTS,)) -> dict[str, Any]:
    """What a run folder's configuration says.

    Args:
        holds: files that the folder is to hold besides.

    Raises:
        FileNotFoundError: if this is no run folder.
    """
    for name in ("config.yaml", *holds):
        if not (folder / name).is_file():
            stopped = (folder / CHECKPOINT).is_file()
            what = f"go on with it by `ppgen resume {folder}`" if stopped else "make one by `ppgen train`"
            raise FileNotFoundError(
                f"{folder}: not a {'finished run' if stopped else 'run folder'}, it has no {name}; {what}"
            )
    return yaml.safe_load((folder / "config.yaml").read_text())


def new_folder(path: str | os.PathLike) -> Path:
    """Makes a run folder.

    Raises:
        FileExistsError: if it exists and holds anything: a run is never written over.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty; a run is never written over: give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
