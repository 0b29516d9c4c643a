"""The section on a flow, and the results of its run."""

import math

import numpy as np
import pyro
import pytest
import torch
from reports import fit_of

import ppgen
from ppgen.data import Data, load
from ppgen.flows import FLOWS
from ppgen.models import FlowModel
from ppgen.report import figures
from ppgen.report.context import RunContext
from ppgen.report.sections import flow as section
from ppgen.runs.cli import main
from ppgen.runs.run import Run


@pytest.fixture(autouse=True)
def _fresh():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of each figure."""
    calls = {}

    def recording(name, draw):
        def recorded(*args, **options):
            calls[name] = args
            return draw(*args, **options)

        return recorded

    for name in ("density", "warped_grid", "log_densities", "base_space", "latent_plane"):
        monkeypatch.setattr(figures, name, recording(name, getattr(figures, name)))
    return calls


def make_flow(data: Data, name: str = "realnvp", **options) -> FlowModel:
    model = FlowModel(data.event_shape, flow=name, **({} if name == "lu_linear" else {"hidden": (8,)}), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def rows(data: Data, split: str, labels: bool = False) -> tuple[torch.Tensor, ...]:
    part = getattr(data, split)
    return tuple(torch.as_tensor(p) for p in ((part.x, part.y) if labels else (part.x,)))


def build_section(model: FlowModel, data: Data):
    return section.flow(RunContext(fit=fit_of(), model=model, data=data))


def load_table(path, width: int) -> Data:
    source = np.random.default_rng(0).normal(10.0 * np.arange(1, width + 1), [3.0] * width, size=(300, width))
    np.save(path, source)
    return load(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_the_grid_of_every_flow_in_the_plane_ends_at_data(name, drawn):
    data = load("moons", size=120)
    model = make_flow(data, name)
    build_section(model, data)
    (stages, points) = drawn["warped_grid"]
    first, last = stages["base"], stages["data"]
    assert 2 <= len(stages) == len(points) <= section.MAX_PANELS
    ends = np.array([-section.GRID_LIMIT, section.GRID_LIMIT])
    assert (
        first[: section.GRID_LINES, :, 1] == first[: section.GRID_LINES, :1, 1]
    ).all()  # z[1] is constant along a line
    np.testing.assert_allclose([first.min(), first.max()], ends)
    with torch.no_grad():
        expected = model.distribution().transform(torch.as_tensor(first))
        moved = model.distribution().transform(torch.as_tensor(points[0]))
    np.testing.assert_allclose(last, expected, atol=2e-3)
    np.testing.assert_allclose(points[-1], moved, atol=2e-3)


@pytest.mark.parametrize("width", [1, 2])
def test_the_density_is_in_the_units_of_the_source_and_integrates_to_one(width, drawn, tmp_path):
    data = load_table(tmp_path / "table.npy", width)
    build_section(make_flow(data, "lu_linear"), data)
    values, axes, source, _ = drawn["density"]
    np.testing.assert_allclose(source, data.scaler.inverse(data.train.x))
    for axis in axes[::-1]:
        values = np.trapezoid(values, axis, axis=0)
    assert 0.9 < values < 1.001  # the frame leaves little out
    ((log_prob, log_det), (z, *_)) = drawn["log_densities"], drawn["base_space"]
    expected = -0.5 * (z**2).sum(1) - 0.5 * width * math.log(2 * math.pi) + log_det
    np.testing.assert_allclose(log_prob["test"], expected, rtol=1e-4)


def test_the_density_is_a_sum_over_labels(drawn):
    data = load("moons", size=200)
    model = make_flow(data, "nsf", num_classes=2)
    build_section(model, data)
    values, axes, *_ = drawn["density"]
    place = torch.tensor([[axes[0][40], axes[1][60]]], dtype=torch.float32)
    at = torch.as_tensor(data.scaler.transform(place.numpy()))
    shares = [(data.train.y == label).mean() for label in (0, 1)]
    parts = [model.log_prob(at, torch.tensor([label])).exp().item() for label in (0, 1)]
    expected = np.dot(shares, parts) * math.exp(data.scaler.log_det())
    assert values[60, 40] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("labels", [False, True])
def test_images_have_no_figure_of_the_density(labels, drawn):
    data = load("digits", size=200)
    made = build_section(make_flow(data, "maf", num_classes=10 if labels else None), data)
    assert "density" not in drawn
    assert "warped_grid" not in drawn
    assert len(made.items) == 3
    assert drawn["base_space"][0].shape == (len(data.test.x), 64)


def test_the_density_is_zero_outside_of_the_support(drawn, monkeypatch):
    """As that of a flow of data in an interval."""
    data = load("moons", size=200)
    model = make_flow(data, "lu_linear")
    distribution = model.distribution()
    monkeypatch.setattr(type(distribution), "inverse_and_log_det", lambda self, x: (x.log(), x.sum(-1)))
    monkeypatch.setattr(model, "pull_back", lambda *rows: (rows[0], rows[0].sum(-1)))
    monkeypatch.setattr(model, "log_prob", lambda *rows: rows[0].sum(-1))
    build_section(model, data)
    values, axes, *_ = drawn["density"]
    assert (values[:, axes[0] < 0] == 0).all()
    assert (values[:, axes[0] > 0] > 0).any()


def test_the_base_density_and_the_determinant_make_the_density():
    data = load("moons", size=200)
    model = make_flow(data, "maf", num_classes=2)
    x, y = rows(data, "test", labels=True)
    z, log_det = model.pull_back(x, y)
    assert not z.requires_grad
    torch.testing.assert_close(model.flow.base.log_prob(z) + log_det, model.log_prob(x, y))
    torch.testing.assert_close(model.distribution(y).transform(z), x, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["moons", "digits"])
def test_a_run_compares_its_flow_with_data(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ["--fit.steps", "6", "--model.hidden", "[8]", "--data.size", "500"]
    assert main(["train", "maf", source, *quick, "--out", "run"]) == 0
    numbers = Run.load("run").numbers
    value, error = numbers["held-out KL(data, model), nearest-neighbor estimate in the base space (nats)"]
    assert value > 0
    assert error > 0
    assert 0 < numbers["p-value in the base space: Kolmogorov-Smirnov, sliced"] <= 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>The flow</h2>" in page
    assert ("heat map" in page) == (source == "moons")


def test_a_vae_has_no_section_on_a_flow():
    data = load("moons", size=200)
    model = ppgen.models.VAE((2,), latent_dim=2, hidden=(8,))
    fit = ppgen.fit(model.model, model.guide, (data.train.x,), loss=ppgen.recipes.vae(), steps=2, progress=False)
    report = ppgen.report.report_of_run(fit, model, data, title="t")
    assert "The flow" not in [part.title for part in report.sections]
