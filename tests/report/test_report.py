"""The figures, each against the module's exports; the page, read back by a parser; the report of a run, end to end."""

import base64
import os
import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import matplotlib
import numpy as np
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure as Drawing
from sklearn.decomposition import PCA

import ppgen
from ppgen.data import Data, load
from ppgen.diagnostics import Ranks, importance_summary
from ppgen.fitting import Fit
from ppgen.models import VAE, Autoencoder
from ppgen.report import Figure, Listing, Report, Section, Table, figures, report_of_run, write_report
from ppgen.report.adversarial import game
from ppgen.report.coverage import reach
from ppgen.report.figures import images, style
from ppgen.report.page import cell
from ppgen.training.result import Chain
from ppgen.utils import arviz_versions as versions

RNG = np.random.default_rng(0)
IMAGES = {"gray": RNG.random((20, 1, 6, 5)), "color": RNG.random((20, 3, 6, 5))}
WIDE = RNG.normal(size=(600, 8))
LABELS = np.arange(600) % 3
AXIS = np.linspace(-3, 3, 30)
LATTICE = np.stack(np.meshgrid(AXIS[::3], AXIS), axis=-1).reshape(10, 30, 2)


def chain(steps: int = 60, *, seed: int = 0, validated: bool = True, terms: bool = True) -> Chain:
    loss = 5 + 50 * np.exp(-np.arange(steps) / 5) + np.random.default_rng(seed).normal(size=steps)
    history = {"loss": loss} | ({"Reconstruction": 0.8 * loss, "Rate": 0.2 * loss} if terms else {})
    checks = np.arange(10, steps + 1, 10) if validated else np.empty(0)
    return Chain({}, history, {"step": checks, "loss": 6 + 0 * checks}, f"ran its {steps} steps", steps, 1.5)


def draws(chains: int = 1, *, dim: int = 8) -> xr.DataTree:
    """A posterior as ArviZ 1.x holds it; `InferenceData` is read in the same way."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(chains, 100, 4, dim))
    groups = {
        "posterior": {"z": (("chain", "draw", "data", "z_dim"), z), "mu": (("chain", "draw"), z[:, :, 0, 0])},
        "vi_stats": {"pareto_k": (("chain", "data"), rng.uniform(0, 1, (chains, 4)))},
    }
    return xr.DataTree.from_dict({name: xr.Dataset(variables) for name, variables in groups.items()})


def smoothed(log_weights: np.ndarray) -> np.ndarray:
    """Log weights, smoothed and normalized."""
    return importance_summary(log_weights[:, None]).log_smoothed[:, 0]


def ramp(z: np.ndarray) -> np.ndarray:
    """A decoder of images (1, 2, 3): z[0] all over the upper row, z[1] all over the lower."""
    return np.repeat(z[:, None, :, None], 3, axis=-1)


# For every exported figure, calls of it by what they show, and how many axes each draws.
CASES = {
    "clouds": {
        "stages": (lambda f: f({"a": np.eye(3), "b": np.ones((2, 3))}, data=np.zeros((4, 3))), 2),
        "one column": (lambda f: f({"a": np.arange(9.0)[:, None]}, columns=["x"]), 1),
    },
    "errors_by_noise": {"two": (lambda f: f(np.arange(3.0), {"a": np.ones(3), "b": np.array([1, 0, np.nan])}), 1)},
    "loss_curves": {
        "one chain": (lambda f: f([chain()]), 1),
        "several chains": (lambda f: f([chain(seed=i) for i in range(9)], unit="bits"), 1),
        "one step": (lambda f: f([chain(1, validated=False)]), 1),
    },
    "term_breakdown": {
        "terms": (lambda f: f(chain().history), 2),
        "loss alone": (lambda f: f(chain(terms=False).history), 1),
        "a term that came late": (lambda f: f({"loss": np.ones(9), "a": np.r_[[np.nan] * 5, 1, 2, 3, 4]}), 1),
        "a term that is not finite": (lambda f: f({"loss": np.ones(3), "a": np.full(3, np.nan)}), 1),
    },
    "densities": {
        "two": (lambda f: f(np.linspace(-1, 1, 9), {"a": np.eye(9), "b": np.ones((9, 9))}), 3),
        "one, not everywhere": (lambda f: f(np.arange(2.0), {"a": np.array([[1.0, np.nan], [2.0, 0.0]])}), 2),
    },
    "sequences": {
        "stages": (lambda f: f({"4 x 4": IMAGES["gray"][:5], "8 x 8": IMAGES["gray"][5:10]}), 2),
        "one row": (lambda f: f({"color": IMAGES["color"]}, limits=(0.0, 2.0)), 1),
    },
    "samples": {
        "gray": (lambda f: f(IMAGES["gray"]), 1),
        "gray beside data": (lambda f: f(IMAGES["gray"], data=IMAGES["gray"][:7]), 2),
        "color beside data": (lambda f: f(IMAGES["color"], data=IMAGES["color"]), 2),
        "one image": (lambda f: f(IMAGES["gray"][:1]), 1),
        "constant images": (lambda f: f(np.zeros((3, 1, 2, 2))), 1),
        "one column": (lambda f: f(WIDE[:, :1], columns=["$x_$"]), 1),
        "two columns": (lambda f: f(WIDE[:, :2], data=WIDE[:90, 1:3]), 1),
        "three columns": (lambda f: f(WIDE[:, :3], data=WIDE[:90, 1:4]), 6),
        "eight columns": (lambda f: f(WIDE, data=WIDE, columns=[f"a column of long name {i}" for i in range(8)]), 21),
        "not finite": (lambda f: f(np.r_[WIDE[:, :3], [[np.inf, np.nan, 0]]], data=WIDE[:, :3]), 6),
        "none finite": (lambda f: f(np.full((3, 2), np.nan)), 1),
        "constant": (lambda f: f(np.ones((4, 2)), data=np.ones((4, 2))), 1),
    },
    "reconstructions": {
        "gray": (lambda f: f(IMAGES["gray"], IMAGES["gray"]), 4),
        "color": (lambda f: f(IMAGES["color"][:3], IMAGES["color"][:3]), 2),
        "one column": (lambda f: f(WIDE[:, :1], WIDE[:, 1:2]), 1),
        "two columns": (lambda f: f(WIDE[:, :2], WIDE[:, 1:3]), 1),
        "four columns": (lambda f: f(WIDE[:, :4], WIDE[:, 1:5]), 4),
        "eight columns": (lambda f: f(WIDE, WIDE), 6),
        "not finite": (lambda f: f(WIDE[:, :2], np.full((600, 2), np.inf)), 1),
    },
    "density": {
        "one column": (lambda f: f(np.exp(-(AXIS**2)), [AXIS], WIDE[:, :1], None), 1),
        "two columns": (lambda f: f(np.ones((5, 30)), [AXIS, AXIS[:5]], WIDE[:, :2], ["a", "b"]), 2),
    },
    "warped_grid": {
        "points": (lambda f: f({"the base": LATTICE, "data": np.exp(LATTICE)}, [WIDE[:, :2]] * 2), 2),
        "no points": (lambda f: f({"the base": LATTICE}), 1),
        "a line that goes far": (lambda f: f({"data": np.where(LATTICE > 1.9, np.inf, LATTICE)}), 1),
        "a point": (lambda f: f({"data": 0 * LATTICE}), 1),
    },
    "log_densities": {
        "two sets": (lambda f: f({"train": WIDE[:, 0], "test": WIDE[:90, 1]}, WIDE[:, 2]), 2),
        "far below": (lambda f: f({"train": np.r_[WIDE[:, 0], -1e9, -np.inf]}, np.r_[WIDE[:, 2], np.nan]), 2),
        "one value": (lambda f: f({"test": np.ones(4)}, np.zeros(4)), 2),
    },
    "pulled_back": {
        "one coordinate": (lambda f: f(WIDE[:, :1]), 2),
        "many coordinates": (lambda f: f(RNG.normal(size=(50, 70))), 2),
        "far out": (lambda f: f(1e4 * WIDE), 2),
    },
    "latent_plane": {
        "another prior": (lambda f: f(WIDE, LABELS, prior=2 * WIDE[:50]), 1),
        "another prior of one dimension": (lambda f: f(WIDE[:, :1], prior=2 * WIDE[:50, :1]), 1),
        "one dimension": (lambda f: f(WIDE[:, :1], LABELS, prior=True), 1),
        "two dimensions": (lambda f: f(WIDE[:, :2], LABELS, label_names=["a", "b", "c"], prior=True), 1),
        "more": (lambda f: f(WIDE, LABELS), 1),
        "no labels": (lambda f: f(WIDE), 1),
        "labels without a legend": (lambda f: f(WIDE, np.arange(600) % 40, prior=True), 2),
        "one code": (lambda f: f(WIDE[:1], prior=True), 1),
        "collapsed": (lambda f: f(np.zeros((5, 4)), prior=True), 1),
    },
    "latent_walk": {
        "images": (lambda f: f(ramp), 1),
        "table": (lambda f: f(np.tanh, n=8, columns=["a", "b"]), 1),
    },
    "evidence_trace": {
        "a level": (lambda f: f(-5 - 50 * np.exp(-np.arange(2 * 60.0).reshape(2, 60) / 9), (-4.9, -4.95, -4.85)), 1),
        "no level": (lambda f: f(np.linspace(-2, -1, 9)[None]), 1),
        "chains that ended early, or are not finite": (
            lambda f: f(np.array([[1.0, np.nan], [np.nan, 2.0], [np.nan] * 2]), (1.0, np.nan, np.nan)),
            1,
        ),
        "one chain far below": (lambda f: f(np.array([[1.0, 2.0, 2.1, 2.0], [-90, -91, -90, -90]])), 1),
    },
    "weight_tail": {
        "light": (lambda f: f(WIDE[:, 0], smoothed(WIDE[:, 0]), 0.1), 2),
        "heavy": (lambda f: f(90 * WIDE[:, 0], smoothed(90 * WIDE[:, 0]), 9.0), 2),
        "equal": (lambda f: f(np.zeros(30), np.full(30, -np.log(30)), -np.inf), 2),
        "some of them zero": (lambda f: f(np.where(LABELS, 0.0, -np.inf), smoothed(1.0 * LABELS), 0.5), 2),
    },
    "moved": {
        "eight entries": (lambda f: f({f"z[{i}]": WIDE[:, i] for i in range(8)}, np.full(600, 1 / 600), of=9), 8),
        "one, that does not vary": (lambda f: f({"z": np.ones(4)}, np.array([1.0, 0, 0, 0])), 1),
    },
    "restarts": {
        "three entries": (lambda f: f(dict.fromkeys("abc", WIDE[:, :4].T), r_hat={"a": 1.1}, counted=[0, 2], of=4), 3),
        "not finite": (lambda f: f({"a": np.array([[np.nan] * 3, [1, 2, np.inf]])}), 1),
    },
    "replicates": {
        "numbers": (lambda f: f({"y": (WIDE[:, :9], WIDE[0, :9])}), 1),
        "counts": (lambda f: f({"y": (RNG.poisson(3, (50, 40)).astype(float), RNG.poisson(9, 40).astype(float))}), 1),
        "yes and no": (lambda f: f({"y": (np.eye(9), np.arange(9.0) % 2)}), 1),
        "large counts": (lambda f: f({"y": (RNG.poisson(900, (50, 40)) * 1.0, np.arange(0.0, 4000, 100))}), 1),
        "seven sites, one of them constant": (lambda f: f({k: (0 * WIDE[:, :3], np.zeros(3)) for k in "abcdefg"}), 6),
    },
    "uniformity": {
        "one number": (lambda f: f(Ranks(np.arange(20)[:, None], 19, ("z",))), 1),
        "eight": (lambda f: f(Ranks(RNG.integers(0, 20, (50, 8)), 19, tuple("abcdefgh"))), 6),
    },
    "khat": {"values": (lambda f: f(np.r_[RNG.normal(0.5, 0.2, 50), np.nan, np.inf, -np.inf]), 1)},
    "posterior": {
        "one chain": (lambda f: f(draws()), 6),
        "several chains": (lambda f: f(draws(3)), 6),
        "few components": (lambda f: f(draws(dim=1)), 2),
    },
}


EVERY = [
    pytest.param(name, *case, id=f"{name}-{kind}") for name, cases in CASES.items() for kind, case in cases.items()
]


def text_of(figure: Drawing) -> str:
    """All text in a figure."""
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def test_every_figure_has_its_cases():
    assert set(CASES) == set(figures.__all__)
    assert all(callable(getattr(figures, name)) for name in figures.__all__)


@pytest.mark.parametrize(("name", "draw", "axes"), EVERY)
def test_a_figure_draws_without_a_warning_and_leaves_no_trace(name, draw, axes):
    before = dict(matplotlib.rcParams)
    figure = draw(getattr(figures, name))
    assert type(figure) is Drawing
    assert len(figure.axes) == axes
    assert figure.get_figwidth() == style.WIDTH
    figure.draw_without_rendering()
    assert dict(matplotlib.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:  # ArviZ brings it
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.densities(np.arange(3.0), {"a": np.ones((2, 3))}), r"of shape \(3, 3\).* got \[\(2, 3\)\]"),
        (lambda: figures.loss_curves([]), "at least one step"),
        (lambda: figures.loss_curves([chain(), chain(0)]), r"chains of \[60, 0\] steps"),
        (lambda: figures.term_breakdown({}), "at least one step"),
        (lambda: figures.samples(np.ones((4, 3, 2))), r"got \(4, 3, 2\)"),
        (lambda: figures.samples(np.ones((0, 2))), r"got \(0, 2\)"),
        (lambda: figures.samples(WIDE, data=WIDE[:, :3]), r"data of event shape \(8,\), as x, got \(3,\)"),
        (lambda: figures.samples(WIDE, columns=["a"]), "names of 8 columns, got 1"),
        (lambda: figures.reconstructions(WIDE, WIDE[:9]), r"x_hat of shape \(600, 8\), as x, got \(9, 8\)"),
        (lambda: figures.latent_plane(np.ones(3)), r"got \(3,\)"),
        (lambda: figures.latent_plane(WIDE, LABELS[:5]), r"labels y of shape \(600,\), a label a code, got \(5,\)"),
        (lambda: figures.latent_plane(np.full((3, 2), np.nan)), "finite codes"),
        (lambda: figures.latent_walk(lambda z: np.ones((len(z), 3))), r"got \(256, 3\)"),
        (lambda: figures.latent_plane(WIDE, prior=WIDE[:, :2]), r"draws of the prior of shape \(m, 8\)"),
        (lambda: figures.density(np.ones((4, 4)), [AXIS], WIDE[:, :1], None), r"values of shape \(30,\)"),
        (lambda: figures.warped_grid({"data": AXIS}), r"got \(30,\)"),
        (lambda: figures.log_densities({"test": np.full(3, np.nan)}, AXIS), "got none"),
        (lambda: figures.pulled_back(np.full((3, 2), np.nan)), r"finite rows z of shape \(n, d\)"),
        (lambda: figures.khat(np.empty(0)), "got none"),
        (lambda: figures.evidence_trace(np.full((2, 3), np.nan), best=1), "got none that is finite of chain 1"),
        (lambda: figures.weight_tail(np.zeros(3), np.full(3, np.nan), 0.5), r"log weights \(K,\)"),
        (lambda: figures.moved({}, np.ones(1)), "got 0 and 1"),
        (lambda: figures.moved({"z": np.ones(2)}, np.ones(2)), "sum to one, got 1 and 2"),
        (lambda: figures.restarts({}), "got none"),
        (lambda: figures.replicates({}), "got none"),
        (lambda: figures.replicates({"y": (WIDE, WIDE[:, 0])}), r"of 'y', observed \(n,\); got \(600, 8\), \(600,\)"),
        (lambda: figures.posterior({"posterior": xr.Dataset()}), "got none"),
    ],
)
def test_bad_input_names_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_early_spike_does_not_squash_the_loss():
    spiked = chain(200)
    spiked.history["loss"][:3] = 1e9
    axes = figures.loss_curves([spiked]).axes[0]
    assert axes.get_ylim()[1] < 60
    assert axes.get_ylim()[0] < spiked.history["loss"].min()
    beyond = sum(spiked.history["loss"] > axes.get_ylim()[1])
    assert 3 <= beyond <= 0.03 * 220 + 1
    assert f"{beyond} of 220 values lie above the frame" in text_of(axes.figure)


def test_the_smooth_curve_is_the_mean_of_a_window():
    history = {"loss": RNG.normal(size=200)}
    (thin, thick) = figures.term_breakdown(history).axes[0].lines
    assert np.array_equal(thin.get_ydata(), history["loss"])
    steps = thick.get_xdata()
    assert steps[0] == 1
    window = np.convolve(history["loss"], np.ones(5) / 5, mode="valid")  # 200 steps: 5 at a time
    np.testing.assert_allclose(thick.get_ydata()[2:-2], window)


def test_an_image_is_drawn_as_its_pixels():
    x = np.arange(12.0).reshape(1, 3, 2, 2)
    shown = images.color(x, (1.0, 9.0))
    np.testing.assert_allclose(shown[0, 1, 0], (np.clip(x[0, :, 1, 0], 1, 9) - 1) / 8)
    x[0, 0, 0, 0] = np.nan
    assert tuple(images.color(x, (1.0, 9.0))[0, 0, 0]) == images.BROKEN


def test_a_sheet_holds_each_image_in_its_place():
    x = RNG.random((5, 3, 2, 3))
    sheet = images.tile(x, across=3)
    assert sheet.shape == (2 * 3 + 1, 3 * 2 + 2, 3)  # gaps of one pixel
    for i in range(5):
        row, column = divmod(i, 3)
        np.testing.assert_array_equal(sheet[4 * row : 4 * row + 3, 3 * column : 3 * column + 2], x[i])
    assert (sheet[4:, 6:] == 1).all()


def test_many_images_are_not_all_drawn():
    many = np.repeat(IMAGES["gray"], 10, axis=0)
    figure = figures.samples(many)
    assert figure.axes[0].images[0].get_size() == (4 * 7 - 1, 16 * 6 - 1)  # 64 images of 6 by 5, gaps of one pixel
    assert "the first 64 of 200" in text_of(figure)
    assert len(figures.reconstructions(many, many).axes) == 4


def test_reconstructions_say_how_much_they_explain():
    x = WIDE[:, :4]
    x_hat = np.stack([x[:, 0], np.full(600, x[:, 1].mean()), 2 * x[:, 2] - x[:, 2].mean(), x[:, 3] + 1], axis=1)
    x = np.where(np.arange(4) == 3, 1.0, x)
    assert re.findall(r"R² (\S+)", text_of(figures.reconstructions(x, x_hat))) == ["1.00", "0.00", "0.00", "undefined"]


def test_generated_rows_outside_the_frame_are_counted():
    x = WIDE[:, :2].copy()
    x[:60] = 1e6
    x[60:90] = np.nan
    assert "15% of the generated rows lie outside the frame" in text_of(figures.samples(x, data=0 * x + WIDE[:, :2]))


def test_codes_are_turned_to_their_principal_axes_about_the_origin():
    z = WIDE * np.arange(1, 9) + 3
    axes = figures.latent_plane(z).axes[0]
    pca = PCA(2).fit(z)
    shown = axes.collections[0].get_offsets()
    np.testing.assert_allclose(np.abs(shown), np.abs(z @ pca.components_.T), atol=1e-9)
    for label, share in zip((axes.get_xlabel(), axes.get_ylabel()), pca.explained_variance_ratio_, strict=True):
        assert f"{share:.0%} of the variance" in label


def test_the_prior_is_drawn_when_asked_for():
    def radii(figure):
        return [patch.radius for patch in figure.axes[0].patches]

    assert radii(figures.latent_plane(WIDE, prior=True)) == [1, 2, 3]
    assert radii(figures.latent_plane(WIDE)) == []


def test_the_walk_runs_right_and_up():
    picture = figures.latent_walk(ramp, n=4).axes[0].images[0].get_array()
    brightness = picture[[0, -2]][:, [0, -1], 0]  # upper rows of images at the corners show z[0]
    assert (brightness == [[0, 1], [0, 1]]).all()
    assert (picture[[1, -1]][:, [0, -1], 0] == [[1, 1], [0, 0]]).all()


def test_khat_classes_hold_their_bounds():
    figure = figures.khat(np.array([-np.inf, 0.3, 0.5, 0.6, 0.7, 0.71, 3.0, np.inf, np.nan, 0.5]))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "40% good (up to 0.5)",
        "20% usable (up to 0.7)",
        "40% not to be trusted",
    ]
    assert sum(patch.get_height() for patch in figure.axes[0].patches) == 10
    good = [p for p in figure.axes[0].patches if p.get_height() and p.get_facecolor()[:3] == (0, 158 / 255, 115 / 255)]
    assert max(p.get_x() + p.get_width() for p in good) == pytest.approx(0.5)


def test_the_posterior_shows_global_latents_then_those_of_the_first_datum():
    titles = [axes.get_title(loc="left") for axes in figures.posterior(draws(dim=3)).axes]
    assert titles == ["mu", "z[0], datum 0", "z[1], datum 0", "z[2], datum 0"]
    assert "6 of 9 components" in text_of(figures.posterior(draws()))


@pytest.mark.filterwarnings("ignore")  # ArviZ 0.23 announces 1.0 when it is imported
def test_the_posterior_is_drawn_by_histograms_without_arviz_plots(monkeypatch):
    import arviz

    assert versions.IS_NEW or not figures.posterior(draws()).axes[0].patches
    monkeypatch.delattr(arviz, "plot_posterior", raising=False)
    assert figures.posterior(draws()).axes[0].patches


def test_draws_that_do_not_vary_or_are_not_finite_are_drawn():
    group = xr.Dataset({"z": (("chain", "draw", "i"), np.array([[[1.0, np.nan], [1.0, 2.0], [1.0, 3.0]]]))})
    assert len(figures.posterior({"posterior": group}).axes) == 2


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0%"), (1e-9, "under 1%"), (0.014, "1%"), (0.999, "over 99%"), (1.0, "100%")]
)
def test_a_share_is_none_or_all_only_if_it_is(share, text):
    assert style.percent(share) == text


def test_a_long_name_keeps_both_ends():
    assert style.shorten("a name of some length", 9) == "a na…ngth"
    assert style.shorten("short", 5) == "short"


# The page.


class Page(HTMLParser):
    """A page taken apart: its elements with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def assert_self_contained(html: str) -> None:
    page = Page(html)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for tag, attributes in page.elements:
        assert (attributes.get("src") or "data:").startswith("data:"), tag
        assert (attributes.get("href") or "#").startswith("#"), tag
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", html))
    (policy,) = [m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in (policy["content"] or "")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HOSTILE = "<script>alert('x')</script> & \"<b>\" {{ 7 * 7 }} ]]>"


def a_report(text: str = "plain") -> Report:
    picture = Drawing(figsize=(1, 1))
    picture.add_subplot().set_title("drawn")
    return Report(
        title=f"title {text}",
        subtitle=f"subtitle {text}",
        sections=[
            Section(f"first {text}", f"one {text}\n\ntwo {text}", [Figure(picture, f"caption {text}", f"alt {text}")]),
            Section("second", items=[Table(("name", f"head {text}"), [("n", f"cell {text}")], f"below {text}")]),
            Section("third", items=[Listing(f"listing {text}\n  indented", f"under {text}")]),
            Section("fourth", items=[Figure(SVG, "", "vector")]),
        ],
    )


@pytest.mark.parametrize("text", ["plain", HOSTILE], ids=["plain", "hostile"])
def test_the_page_holds_everything_as_it_was_written(tmp_path, text):
    path = write_report(tmp_path / "new" / "report.html", a_report(text))
    html = path.read_text(encoding="utf-8")
    assert_self_contained(html)
    page = Page(html)
    for word in ("title", "subtitle", "first", "one", "two", "caption", "head", "cell", "below", "listing", "under"):
        assert f"{word} {text}" in page.text
    assert [attributes["alt"] for attributes in page.all("img")] == [f"alt {text}", "vector"]
    assert f"listing {text}\n  indented" in page.text
    targets = {attributes["href"] for attributes in page.all("a")}
    assert targets == {f"#{section['id']}" for section in page.all("section")}
    assert len(targets) == 4


def test_a_picture_is_embedded_byte_for_byte():
    assert Figure(SVG, "", "").uri == f"data:image/svg+xml;base64,{base64.b64encode(SVG).decode()}"
    assert Figure(b"\x89PNG\r\n\x1a\n...", "", "").uri.startswith("data:image/png;base64,")
    with pytest.raises(ValueError, match=r"PNG, JPEG or SVG picture, got b'GIF89a': the caption"):
        _ = Figure(b"GIF89a", "the caption", "").uri


def test_a_report_is_the_same_bytes_each_time(tmp_path):
    first, second = (write_report(tmp_path / name, a_report()).read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize("failure", ["figure", "disk"])
def test_a_failed_write_leaves_the_old_page_and_nothing_else(tmp_path, monkeypatch, failure):
    path = write_report(tmp_path / "report.html", a_report())
    old = path.read_bytes()
    report, error = a_report("new"), OSError
    if failure == "figure":
        report, error = Report("new", sections=[Section("s", items=[Figure(b"", "", "")])]), ValueError
    else:

        def refuse(*_):
            raise OSError("no space left on device")

        monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(error):
        write_report(path, report)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_can_be_read_by_those_who_can_read_other_files(tmp_path):
    (tmp_path / "other").write_text("")
    assert write_report(tmp_path / "page", a_report()).stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345.678, "12346"),
        (0.000123456, "0.0001235"),
        (7.0, "7.000"),
        (np.float32(-64), "-64.00"),
        (1e30, "1.000e+30"),
        (float("inf"), "inf"),
        (600, "600"),
        (np.int64(3), "3"),
        (None, ""),
        ("text", "text"),
        (True, "True"),
        ((-31.4159, 0.0217), "-31.416 ± 0.022"),
        ([1234.5, 67.8], "1234 ± 68"),
        ((1.0, 0.0), "1.000 ± 0.000"),
        ((float("nan"), float("nan")), "nan ± nan"),
    ],
)
def test_a_cell_has_the_digits_that_mean_something(value, text):
    assert cell(value) == text


def test_a_ragged_table_is_refused():
    with pytest.raises(ValueError, match=r"rows of 2 cells, as the header, got \[1, 2, 3\]"):
        Table(("a", "b"), [(1, 2), (1, 2, 3)])


# The report of a run.


def a_fit(*chains: Chain) -> Fit:
    return Fit(lambda x: None, lambda x: None, None, list(chains) or [chain()], [])


def titles(report: Report) -> list[str]:
    return [section.title for section in report.sections]


class Doubler:
    """A model with a method for each part of the protocol; its code is the datum, twice."""

    num_classes: int | None = None

    def sample(self, n, y=None, *, mean=False):
        self.labels = y
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
    for name in figures.__all__:

        def record(*args, _name=name, **options):
            calls[_name] = args, options
            return Drawing()

        monkeypatch.setattr(figures, name, record)
    return calls


def test_a_report_shows_what_the_model_can_do(drawn):
    data = load("moons", size=200)
    asked = {"numbers": {"log evidence (nats)": (-1.5, 0.1)}, "title": "t", "config": {"seed": 3, "name": "é"}}
    sections = ["In short", "Training", "Samples", "What is missing", "Reconstructions", "Codes"]
    sections += ["Posterior", "Configuration"]
    assert titles(report_of_run(a_fit(), Doubler(), data, idata=draws(), **asked)) == sections
    # of a run that grew: see test_cli; of flows: see test_flow_report; of an energy: see test_energies; of what a
    # posterior's weights, restarts and data say: see test_posterior_report
    others = {
        *("evidence_trace", "moved", "replicates", "restarts", "uniformity", "weight_tail"),
        "clouds",
        "errors_by_noise",
        "sequences",
        "densities",
        "density",
        "warped_grid",
        "log_densities",
        "pulled_back",
    }
    assert set(drawn) == set(figures.__all__) - others
    shows = {"sample": ("Samples", "What is missing"), "reconstruct": ("Reconstructions",), "encode": ("Codes",)}
    for method, without in shows.items():
        methods = set(shows) - {method}
        model = SimpleNamespace(**{name: getattr(Doubler(), name) for name in methods})
        assert titles(report_of_run(a_fit(), model, data, idata=draws(), **asked)) == [
            title for title in sections if title not in without
        ]
    assert titles(report_of_run(a_fit(), object(), data, title="t")) == ["In short", "Training"]


@pytest.mark.usefixtures("drawn")
def test_the_numbers_are_those_of_the_best_chain():
    worse, better = chain(40), chain(60)
    better.validation["loss"] = better.validation["loss"] - 2
    report = report_of_run(
        a_fit(worse, better), object(), load("moons", size=200), numbers={"a": (1.0, 0.1)}, title="t"
    )
    (table,) = report.sections[0].items
    assert dict(table.rows) == {
        "loss on validation data (nats per datum)": better.final,
        "a": (1.0, 0.1),
        "chain": "1, the best of 2",
        "steps": 60,
        "seconds": 1.5,
        "why it ended": "ran its 60 steps",
        "the step": "eager: compiling would not have paid",
    }
    assert len(report.sections[1].items[-1].rows) == 2


def test_a_run_that_took_no_step_is_reported():
    report = report_of_run(a_fit(chain(0, terms=False)), object(), load("moons", size=200), title="t")
    assert titles(report) == ["In short"]


def test_figures_are_in_the_units_of_the_source(tmp_path, drawn):
    source = np.random.default_rng(0).normal([100.0, -5.0], [10.0, 0.1], size=(50, 2))
    np.save(tmp_path / "table.npy", source)
    data = load(tmp_path / "table.npy")
    report_of_run(a_fit(), Doubler(), data, title="t")
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
    report_of_run(a_fit(), model, data, title="t")
    assert model.labels is None
    model.num_classes = 2
    report_of_run(a_fit(), model, data, title="t")
    np.testing.assert_array_equal(model.labels, data.train.y)


def test_samples_depend_on_the_seed_alone(drawn):
    data, state = load("moons", size=100), torch.random.get_rng_state()
    seen = []
    for seed in (1, 1, 2):
        report_of_run(a_fit(), Doubler(), data, title="t", seed=seed)
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
def test_the_models_of_the_package_speak_the_protocol(drawn, source, form, build):
    data = load(source, form=form, size=200)
    model = build(data.event_shape)
    report = report_of_run(train(model, data), model, data, title="t", config={"model": model.config})
    sections = ["In short", "Training", "Samples", "What is missing", "Reconstructions", "Codes", "Configuration"]
    assert titles(report) == sections
    x, x_hat = drawn["reconstructions"][0]
    assert x.shape == x_hat.shape == (len(x), *data.event_shape)
    (z, y), _ = drawn["latent_plane"]
    assert z.shape == (len(data.rows["test"]), model.latent_dim)
    np.testing.assert_array_equal(y, data.test.y)
    for array in (x, x_hat, z, drawn["samples"][0][0]):
        assert np.isfinite(array).all()


@pytest.mark.filterwarnings("ignore")  # ArviZ 0.23 announces 1.0 when it is imported
def test_a_trained_model_makes_a_page(tmp_path):
    data = load("digits", size=200)
    model = VAE(data.event_shape, latent_dim=2, hidden=[16])
    fit = train(model, data)
    idata = fit.to_arviz(data.test.x[:10], draws=30, predictive=False)
    report = report_of_run(fit, model, data, idata=idata, title="t", config={"model": model.config})
    path = write_report(tmp_path / "report.html", report)
    html = path.read_text(encoding="utf-8")
    assert_self_contained(html)
    assert all(f"<h2>{title}</h2>" in html for title in titles(report))
    assert len(Page(html).all("img")) == 11  # one of them of data that are not reached
    assert all(attributes["alt"] for attributes in Page(html).all("img"))
    assert path.stat().st_size < 3_000_000


def a_game(**adversarial_metrics: np.ndarray) -> Fit:
    """A fit whose chain kept these signals of a critic called D(x)."""
    names = {"edge": "critic D(x)", "slope": "gradient of critic D(x)", "programs": "gradient of the programs"}
    one = chain(400)
    one.adversarial_metrics = {names[key]: values for key, values in adversarial_metrics.items()}
    return a_fit(one)


def test_a_game_is_reported_with_its_signs():
    steady = np.full(400, 0.1)
    still = a_game(edge=-steady, slope=steady, programs=steady)
    collapsed = a_game(edge=0 * steady, slope=np.repeat([0.1, 1e-7], 200), programs=steady)
    assert game(a_fit()) is None
    assert [type(item) for item in game(still).items] == [Figure]
    assert "Nothing was seen" in game(still).text
    _, table = game(collapsed).items
    assert table.rows[0][0] == "critic collapsed"
    assert "learning rate" in table.rows[0][3]


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_what_is_missing_is_shown_by_datum_and_by_label(shape):
    """Three clusters, of which the draws leave out the last."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 60)
    data = 8.0 * y.reshape(-1, *[1] * len(shape)) + rng.standard_normal((180, *shape))
    draws = data[rng.choice(120, 180)] + 0.1 * rng.standard_normal((180, *shape))
    section = reach(data, draws, y, names=("a", "b", "c"), look={}, seed=0)
    numbers, picture, labels = section.items
    assert isinstance(picture, Figure)
    assert dict(numbers.rows)["data unreached"] == "60 of 180"
    assert {row[0]: row[-1] for row in labels.rows} == {"a": "", "b": "", "c": "never drawn"}
    whole = reach(data, data + 0.1 * rng.standard_normal(data.shape), y, names=None, look={}, seed=0)
    assert dict(whole.items[0].rows)["data unreached"] == "0 of 180"
    assert len(whole.items) == 2
