"""The report of a run of a generative model: which sections it has, and what they are given."""

import inspect
from types import SimpleNamespace

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure as Drawing
from reports import Page, assert_self_contained, chain, fit_of, posterior_tree, titles

import ppgen
from ppgen.data import Data, load
from ppgen.fitting import Fit
from ppgen.models import VAE, Autoencoder, Diffusion
from ppgen.report import figures, report_of_run, write_report
from ppgen.utils.budget import Budget

FIGURES = [name for name, value in vars(figures).items() if inspect.isfunction(value)]


class Doubler:
    """A model with a method for each part of the protocol; its code is the datum, twice."""

    num_classes: int | None = None

    def __init__(self):
        self.labels = []

    def sample(self, n, y=None, *, mean=False):
        self.labels += [] if y is None else [y]
        return torch.full((n, 2), 1.0) if mean else torch.randn(n, 2)

    def reconstruct(self, x, y=None):
        return x + 1

    def encode(self, x, y=None):
        return dist.Delta(2 * x, event_dim=1)

    def decode(self, z, y=None):
        return dist.Normal(z / 2, 1.0).to_event(1)


@pytest.fixture
def drawn(monkeypatch) -> dict[str, tuple[tuple, dict]]:
    """The last call of each figure function, (arguments, options) by its name; none of them draws."""
    calls = {}
    for name in FIGURES:

        def record(*args, _name=name, **options):
            calls[_name] = args, options
            return Drawing()

        monkeypatch.setattr(figures, name, record)
    return calls


def test_sections_need_capabilities_of_the_model(drawn):
    data = load("moons", size=200)
    asked = {"numbers": {"log evidence (nats)": (-1.5, 0.1)}, "title": "t", "config": {"seed": 3, "name": "é"}}
    sections = ["Summary", "Training", "Samples", "Coverage of the data", "Reconstructions", "Latent codes"]
    sections += ["Posterior draws", "Importance weights", "Configuration"]
    assert titles(report_of_run(fit_of(), Doubler(), data, idata=posterior_tree(), **asked)) == sections
    assert set(drawn) == {
        *("loss_curves", "term_breakdown", "samples", "reconstructions", "latent_plane", "latent_walk"),
        *("khat", "posterior"),
    }
    shows = {
        "sample": ("Samples", "Coverage of the data"),
        "reconstruct": ("Reconstructions",),
        "encode": ("Latent codes",),
    }
    for method, without in shows.items():
        methods = set(shows) - {method}
        model = SimpleNamespace(**{name: getattr(Doubler(), name) for name in methods})
        assert titles(report_of_run(fit_of(), model, data, idata=posterior_tree(), **asked)) == [
            title for title in sections if title not in without
        ]
    assert titles(report_of_run(fit_of(), object(), data, title="t")) == ["Summary", "Training"]


@pytest.mark.usefixtures("drawn")
def test_the_numbers_are_those_of_the_best_chain():
    worse, better = chain(40), chain(60)
    better.validation["loss"] = better.validation["loss"] - 2
    report = report_of_run(
        fit_of(worse, better), object(), load("moons", size=200), numbers={"a": (1.0, 0.1)}, title="t"
    )
    (table,) = report.sections[0].items
    assert dict(table.rows) == {
        "loss on validation data (nats per datum)": better.final,
        "a": (1.0, 0.1),
        "chain": "1, the best of 2",
        "steps": 60,
        "seconds": 1.5,
        "reason for stopping": "completed 60 steps",
        "compilation": "The step was not compiled, as that would have taken longer.",
    }
    assert len(report.sections[1].items[-1].rows) == 2


def test_a_run_without_a_step_has_a_report():
    report = report_of_run(fit_of(chain(0, terms=False)), object(), load("moons", size=200), title="t")
    assert titles(report) == ["Summary"]


def test_figures_are_in_the_units_of_the_source(tmp_path, drawn):
    source = np.random.default_rng(0).normal([100.0, -5.0], [10.0, 0.1], size=(50, 2))
    np.save(tmp_path / "table.npy", source)
    data = load(tmp_path / "table.npy")
    report_of_run(fit_of(), Doubler(), data, title="t")
    (made,), options = drawn["samples"]
    np.testing.assert_allclose(options["data"], source[data.rows["train"]], rtol=1e-5)
    assert abs(made.mean(axis=0) - [100, -5]).max() < 10
    (x, x_hat), _ = drawn["reconstructions"]
    np.testing.assert_allclose(x, source[data.rows["test"]], rtol=1e-5)
    np.testing.assert_allclose(x_hat - x, np.broadcast_to(data.scaler.scale, x.shape), rtol=1e-3)
    (decode,), _ = drawn["latent_walk"]
    np.testing.assert_allclose(decode(np.array([[2.0, 4.0]])), data.scaler.inverse(np.array([[1.0, 2.0]])), rtol=1e-6)


@pytest.mark.usefixtures("drawn")
def test_a_conditional_model_is_given_labels():
    data, model = load("moons", size=200), Doubler()
    report_of_run(fit_of(), model, data, title="t")
    assert model.labels == []
    model.num_classes = 2
    report_of_run(fit_of(), model, data, title="t")
    np.testing.assert_array_equal(torch.cat(model.labels)[: len(data.train.y)], data.train.y)


def test_without_time_sections_have_few_rows_and_captions_say_so(drawn):
    data = load("moons", size=400)
    report = report_of_run(fit_of(), Doubler(), data, title="t", budget=Budget(0))
    found = {section.title: section.items for section in report.sections}
    assert "Coverage of the data" not in found
    assert found["Samples"][0].caption.startswith("8 samples of the model beside as many rows")
    assert "each of 16 rows" in found["Latent codes"][0].caption
    (samples,), options = drawn["samples"]
    assert len(samples) == len(options["data"]) == 8
    assert len(drawn["latent_plane"][0][0]) == 16


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("seconds", [100, 300])
def test_the_path_of_a_diffusion_of_images_keeps_to_the_time(seconds):
    """Where a run of the network takes a second, draws given observations are left out, which need hundreds."""
    data, runs = load("digits", form="continuous", size=60), []
    model = Diffusion((1, 8, 8), network="dense", hidden=(4,))
    model.denoiser.network.register_forward_pre_hook(lambda *_: runs.append(1))
    budget = Budget(seconds, clock=lambda: float(len(runs)))
    report = report_of_run(fit_of(), model, data, title="t", budget=budget)
    captions = [item.caption for section in report.sections for item in section.items]
    assert any("on their way from noise to data" in caption for caption in captions)
    assert not any("Imputation" in caption for caption in captions)
    assert len(runs) <= seconds
    assert "some sections show fewer rows, or are left out" in report.subtitle


def test_samples_depend_on_the_seed_alone(drawn):
    data, state = load("moons", size=100), torch.random.get_rng_state()
    seen = []
    for seed in (1, 1, 2):
        report_of_run(fit_of(), Doubler(), data, title="t", seed=seed)
        seen.append(drawn["samples"][0][0])
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def train(model: VAE | Autoencoder, data: Data) -> Fit:
    """A few steps, on the labels too where the model takes them."""
    given = slice(0, 2 if model.num_classes else 1)
    return ppgen.fit(
        model.model,
        model.guide,
        data.train[given],
        loss=ppgen.recipes.vae(),
        steps=15,
        batch_size=50,
        validation=data.validation[given],
        progress=False,
    )


@pytest.mark.parametrize(
    ("source", "form", "build"),
    [
        ("digits", "binary", lambda shape: Autoencoder(shape, latent_dim=3, hidden=[16], likelihood="bernoulli")),
        ("digits", "integer", lambda shape: VAE(shape, hidden=[16], likelihood="categorical", levels=17)),
        ("moons", "auto", lambda shape: VAE(shape, latent_dim=2, hidden=[16], covariance="full", num_classes=2)),
    ],
)
def test_the_models_have_the_protocols(drawn, source, form, build):
    data = load(source, form=form, size=200)
    model = build(data.event_shape)
    report = report_of_run(train(model, data), model, data, title="t", config={"model": model.config})
    sections = [
        "Summary",
        "Training",
        "Samples",
        "Coverage of the data",
        "Reconstructions",
        "Latent codes",
        "Configuration",
    ]
    assert titles(report) == sections
    x, x_hat = drawn["reconstructions"][0]
    assert x.shape == x_hat.shape == (len(x), *data.event_shape)
    (z, y), _ = drawn["latent_plane"]
    assert z.shape == (len(data.rows["test"]), model.latent_dim)
    np.testing.assert_array_equal(y, data.test.y)
    for array in (x, x_hat, z, drawn["samples"][0][0]):
        assert np.isfinite(array).all()


@pytest.mark.filterwarnings("ignore")  # ArviZ 0.23 announces 1.0 when it is imported
def test_the_page_of_a_trained_model_is_self_contained(tmp_path):
    data = load("digits", size=200)
    model = VAE(data.event_shape, latent_dim=2, hidden=[16])
    fit = train(model, data)
    idata = fit.to_arviz(data.test.x[:10], draws=30, predictive=False)
    report = report_of_run(fit, model, data, idata=idata, title="t", config={"model": model.config})
    path = write_report(tmp_path / "report.html", report)
    html = path.read_text(encoding="utf-8")
    assert_self_contained(html)
    assert all(f"<h2>{title}</h2>" in html for title in titles(report))
    assert len(Page(html).all("img")) == 10  # one of them of data that are not reached
    assert all(attributes["alt"] for attributes in Page(html).all("img"))
    assert path.stat().st_size < 3_000_000
