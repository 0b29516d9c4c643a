"""A fit is saved and loaded into new programs, which then behave the same; other programs are an error."""

import json
import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from support import gaussian_pair
from torch import Tensor, nn

import ppgen
from ppgen.infer.checkpoint_file import CheckpointError, read, write
from ppgen.models import VAE
from ppgen.training.result import Chain
from ppgen.utils import files

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(7)) + 1
Y = torch.arange(12) % 3
frozen_in_training = pytest.mark.filterwarnings("ignore:.*was not registered in the param store")


class Programs(NamedTuple):
    model: Callable
    guide: Callable
    data: tuple = (X,)


def networks(width: int = 3) -> Programs:
    return Programs(*gaussian_pair(width=width)[:2])


def functions(*, extra: bool = False) -> Programs:
    def model(x: Tensor) -> None:
        scale = pyro.param("scale", lambda: torch.rand(3) + 0.1, constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", lambda: torch.randn(3))
        if extra:
            pyro.param("extra", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ slope, 1.0))

    return Programs(model, guide)


def globally(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, tau).expand([3]).to_event(1), obs=x)


def list_of_guides() -> Programs:
    guide = AutoGuideList(globally)
    guide.append(AutoMultivariateNormal(poutine.block(globally, hide=["tau"])))
    guide.append(AutoDelta(poutine.block(globally, expose=["tau"])))
    return Programs(globally, guide)


class Module(PyroModule):
    """A model or a guide; its attributes have the same names in both."""

    def __init__(self, *, guide: bool) -> None:
        super().__init__()
        self.guide = guide
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
        self.fixed = nn.Linear(3, 3).requires_grad_(False)
        self.scale = PyroParam(torch.rand(3) + 0.5, constraint=dist.constraints.positive)
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if self.guide:
                pyro.sample("z", dist.Normal(self.map(x), self.scale).to_event(1))
            else:
                z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
                pyro.sample("x", dist.Normal(self.map(z), self.scale).to_event(1), obs=x)

    def map(self, value: Tensor) -> Tensor:
        return self.fixed(self.net(value)) + self.frozen


def vae(**options: Any) -> Programs:
    options = {"latent_dim": 2, "hidden": (6,), "norm": "batch", "num_classes": 3, **options}
    module = VAE((3,), **options)
    return Programs(module.model, module.guide, (X, Y))


PROGRAMS: dict[str, Callable[[], Programs]] = {
    "networks": networks,
    "functions": functions,
    "autoguide": lambda: Programs(globally, AutoMultivariateNormal(globally)),
    "list of guides": list_of_guides,
    "modules": lambda: Programs(Module(guide=False), Module(guide=True)),
    "vae": vae,
}


def train(programs: Programs, **options: Any) -> ppgen.Fit:
    options = {"steps": 4, "batch_size": 6, "validation": 0.2, "restarts": 2, "progress": False, **options}
    return ppgen.fit(programs.model, programs.guide, programs.data, **options)


def fresh(build: Callable[[], Programs], seed: int) -> Programs:
    """Programs as in a new process."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    return build()


def outputs(fit: ppgen.Fit, data: tuple) -> list[float]:
    """Losses under each chain with seeded random numbers, which depend on every parameter and buffer."""
    values = []
    for chain in (None, *range(len(fit.chains))):
        with fit.eval_mode(chain):
            torch.manual_seed(5)
            values.append(ppgen.ELBO().loss(fit.model, fit.guide, *data))
    return values


def bits(tensors: Any) -> list[bytes]:
    return [tensor.detach().numpy().tobytes() for tensor in tensors]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "fit.safetensors"
    train(fresh(networks, 0)).save(path)
    return path


@frozen_in_training
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_loaded_fit_equals_the_saved_one(program, tmp_path):
    first = fresh(PROGRAMS[program], 1)
    fit = train(first)
    fit.metadata["note"] = {"columns": ["a", "b"]}
    fit.save(tmp_path / "fit")
    expected = outputs(fit, first.data)

    second = fresh(PROGRAMS[program], 2)
    state = torch.random.get_rng_state()
    again = ppgen.Fit.load(tmp_path / "fit", second.model, second.guide)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert outputs(again, second.data) == expected
    assert expected[0] == expected[1 + fit.best]
    assert expected[1] != expected[2]
    assert again.metadata == fit.metadata
    assert again.best == fit.best
    for one, other in zip(fit.chains, again.chains, strict=True):
        assert one.weights.keys() == other.weights.keys()
        assert all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())
        for kind in ("history", "validation"):
            arrays, stored = getattr(one, kind), getattr(other, kind)
            assert arrays.keys() == stored.keys()
            assert all(np.array_equal(values, stored[name]) for name, values in arrays.items())
        fields = ("stop_reason", "best_step", "seconds", "interrupted", "final")
        assert [getattr(one, name) for name in fields] == [getattr(other, name) for name in fields]


@frozen_in_training
@pytest.mark.parametrize("program", [name for name in PROGRAMS if name != "functions"])  # those start anew in each fit
def test_a_loaded_fit_can_be_trained_further(program, tmp_path):
    train(fresh(PROGRAMS[program], 1)).save(tmp_path / "fit")
    programs = fresh(PROGRAMS[program], 2)
    fit = ppgen.Fit.load(tmp_path / "fit", programs.model, programs.guide)
    before = bits(fit._state().parameters.values())
    further = train(programs, restarts=1)
    assert bits(further._state().parameters.values()) != before


@pytest.mark.parametrize("program", PROGRAMS)
@frozen_in_training
def test_the_file_is_safetensors_with_json_metadata(program, tmp_path):
    fit = train(fresh(PROGRAMS[program], 1))
    fit.save(tmp_path / "fit")
    content = (tmp_path / "fit").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["metadata"])
    assert facts["loss"] == "ELBO"
    assert [chain["stop_reason"] for chain in facts["chains"]] == ["completed 4 steps"] * 2
    tensors = safetensors.torch.load(content)
    assert sum(name.startswith("1/weights/") for name in tensors) == len(fit.chains[1].weights)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        pytest.param(
            lambda: networks(width=4),
            ValueError,
            r"do not run on a batch of the shape they were trained on, \(6, 3\)",
            id="width",
        ),
        pytest.param(
            functions, LookupError, r"not stored \['scale', 'slope'\], not in .*'decoder\$\$\$bias'", id="names"
        ),
        pytest.param(vae, ValueError, "do not run on a batch.*expected labels|expected labels", id="arguments"),
        pytest.param(
            lambda: Programs(gaussian_pair(size=4).model, gaussian_pair(size=4).guide),
            ValueError,
            r"encoder\$\$\$weight: expected shape \(8, 3\), the stored one is \(4, 3\)",
            id="shapes",
        ),
    ],
)
def test_loading_into_other_programs_is_an_error_that_names_the_difference(saved, build, error, message):
    programs = fresh(build, 2)
    with pytest.raises(error, match=message):
        ppgen.Fit.load(saved, programs.model, programs.guide)


def test_a_failed_load_does_not_change_the_programs(tmp_path):
    train(fresh(functions, 1)).save(tmp_path / "fit")
    programs = fresh(lambda: functions(extra=True), 2)
    with poutine.block(), torch.no_grad():
        programs.guide(X)
        programs.model(X)
    held = dict(pyro.get_param_store().named_parameters())
    before = bits(held.values())
    with pytest.raises(LookupError, match=r"not stored \['extra'\]"):
        ppgen.Fit.load(tmp_path / "fit", programs.model, programs.guide)
    assert dict(pyro.get_param_store().named_parameters()) == held
    assert bits(held.values()) == before


def test_loading_a_file_that_is_not_a_fit_is_an_error(saved, tmp_path):
    programs = fresh(networks, 2)
    content = saved.read_bytes()
    for name, bad in {"cut": content[:-1], "altered": content[:-1] + bytes([content[-1] ^ 1])}.items():
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(CheckpointError, match=name):
            ppgen.Fit.load(tmp_path / name, programs.model, programs.guide)
    write(tmp_path / "other", {}, {"something": "else"})
    with pytest.raises(
        CheckpointError, match=r"not a fit, or of another version of ppgen .format None; this version reads 2"
    ):
        ppgen.Fit.load(tmp_path / "other", programs.model, programs.guide)
    with pytest.raises(FileNotFoundError, match="absent: no such file"):
        ppgen.Fit.load(tmp_path / "absent", programs.model, programs.guide)


def test_a_failed_save_keeps_the_existing_file(saved, monkeypatch):
    before = saved.read_bytes()
    fit = train(fresh(networks, 3))

    def fail(*args: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="the disk is full"):
        fit.save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_select_chain_runs_programs_on_training_data():
    """`select_chain` runs the programs on a batch of the data, not on zeros."""

    def positive(x: Tensor) -> None:
        if not (x > 0).all():
            raise RuntimeError("expected lengths above 0")
        functions().model(x)

    fit = train(Programs(positive, functions().guide, (X.abs() + 0.1,)))
    fit.select_chain(1)
    fit.select_chain(0)


def test_a_breakdown_keeps_the_step_of_its_schedules_after_loading(tmp_path):
    def loss() -> ppgen.Objective:
        return ppgen.Reconstruction() + ppgen.Ramp(2.0) * ppgen.Rate()

    fit = train(fresh(networks, 1), loss=loss(), steps=8, validation=None)
    fit.save(tmp_path / "fit")
    torch.manual_seed(0)
    terms = fit.breakdown(X.numpy())
    assert set(terms) == {"Reconstruction", "Rate"}
    programs = fresh(networks, 2)
    again = ppgen.Fit.load(tmp_path / "fit", programs.model, programs.guide, loss=loss())
    torch.manual_seed(0)
    assert again.breakdown(X) == terms


def test_a_breakdown_of_a_loss_without_terms_is_an_error():
    with pytest.raises(TypeError, match="the loss is Trace_ELBO, not a sum of ppgen terms"):
        train(networks(), loss=Trace_ELBO()).breakdown(X)


@frozen_in_training
def test_eval_mode_restores_weights_and_modes():
    model, guide = Module(guide=False), Module(guide=True)
    fit = train(Programs(model, guide), restarts=3)
    tensors = fit._state().tensors
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.add_(1)
    before, modes = bits(tensors.values()), [m.training for m in model.modules()]
    with fit.eval_mode(2):
        assert bits(tensors.values()) == bits(fit.chains[2].weights[name] for name in tensors)
        ppgen.ELBO().loss(model, guide, X)
    with pytest.raises(ZeroDivisionError), fit.eval_mode(0):
        raise ZeroDivisionError(ppgen.ELBO().loss(model, guide, X))
    pyro.clear_param_store()  # Pyro thaws what it has not met
    with fit.eval_mode():
        ppgen.ELBO().loss(model, guide, X)
    assert bits(tensors.values()) == before
    assert [m.training for m in model.modules()] == modes
    assert not model.frozen.requires_grad


def test_eval_mode_turns_dropout_off():
    programs = vae(dropout=0.5, norm=None)
    fit = train(programs, restarts=1)
    assert len(set(outputs(fit, programs.data))) == 1


def chain(loss: list[float], validation: dict[int, float] | None = None, *, best_step: int) -> Chain:
    checks = validation or {}
    arrays = {"step": np.array(list(checks), dtype=float), "loss": np.array(list(checks.values()))}
    return Chain({}, {"loss": np.array(loss)}, arrays, "", best_step, 0.0)


@pytest.mark.parametrize(
    ("of", "final"),
    [
        pytest.param(chain([9.0, 8.0, 7.0], best_step=3), 7.0, id="short"),
        pytest.param(chain(list(range(40)), best_step=40), 37.5, id="the last tenth"),
        pytest.param(chain(list(range(40)), best_step=20), 18.5, id="up to the best step"),
        pytest.param(chain([9.0] * 6, {2: 5.0, 4: 3.0, 6: 4.0}, best_step=6), 4.0, id="validated"),
        pytest.param(chain([9.0] * 6, {2: 5.0, 4: 3.0, 6: 4.0}, best_step=4), 3.0, id="the best"),
        pytest.param(chain([9.0] * 6, {2: math.nan}, best_step=6), math.inf, id="nan"),
        pytest.param(chain([], best_step=0), math.inf, id="nothing"),
    ],
)
def test_the_final_loss_belongs_to_the_weights(of, final):
    assert of.final == final


def test_the_best_chain_is_never_one_that_failed():
    chains = [chain([5.0], {1: math.nan}, best_step=1), chain([5.0], {1: 4.0}, best_step=1), chain([], best_step=0)]
    assert ppgen.Fit(globally, globally, None, chains, ()).best == 1


def test_the_file_contains_the_example_and_the_arrays(saved):
    tensors, facts = read(saved)
    assert facts["example"] == [[[6, 3], "float32"]]
    assert {name.split("/")[1] for name in tensors} == {"weights", "history", "validation"}


OLD_CHAIN = {"stopped": "ran its 4 steps", "kept": 4, "seconds": 0.1, "interrupted": False, "compiled": ""}
OLD_FIT = {"format": 1, "loss": "Evidence", "example": [[[6, 3], "float32"]], "chains": [OLD_CHAIN], "facts": {}}


def test_a_fit_of_an_earlier_development_version_is_refused_by_name(tmp_path):
    programs, path = fresh(networks, 2), tmp_path / "old.safetensors"
    header = {"facts": json.dumps(OLD_FIT), "digest": "0" * 64}
    safetensors.torch.save_file({"0/weights/w": torch.zeros(1), "0/signals/v": torch.zeros(4)}, path, header)
    with pytest.raises(CheckpointError, match=r"old\.safetensors: an earlier development version .* train again"):
        ppgen.Fit.load(path, programs.model, programs.guide)
    write(path, {}, OLD_FIT)
    with pytest.raises(CheckpointError, match=r"another version of ppgen .format 1; .*fit the programs again"):
        ppgen.Fit.load(path, programs.model, programs.guide)


def bounded_by_data(x: Tensor) -> None:
    top = pyro.sample("top", dist.Uniform(0.0, 2.0 * x.max()))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(top, 1.0), obs=x)


def test_an_autoguide_whose_support_follows_from_data_needs_them_to_be_loaded(tmp_path):
    x, path = torch.arange(1.0, 9.0), tmp_path / "fit.safetensors"
    fit = ppgen.fit(bounded_by_data, AutoNormal(bounded_by_data), x, steps=30, seed=1, progress=False)
    fit.save(path)
    expected = fit.guide.median(x)["top"]
    with pytest.raises(ValueError, match=r"'top' has another support than in the fit.*load\(\.\.\., data=x\)"):
        ppgen.Fit.load(path, bounded_by_data, AutoNormal(bounded_by_data))
    loaded = ppgen.Fit.load(path, bounded_by_data, AutoNormal(bounded_by_data), data=x)
    torch.testing.assert_close(loaded.guide.median(x)["top"], expected)
