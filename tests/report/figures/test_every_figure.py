"""What every figure does: it draws without a warning, in the common style, and names bad input."""

import inspect
import sys

import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure as Drawing
from reports import IMAGES, LABELS, RNG, WIDE, chain, posterior_tree

from ppgen.diagnostics import Ranks, importance_summary
from ppgen.report import figures
from ppgen.report.figures import style

AXIS = np.linspace(-3, 3, 30)
LATTICE = np.stack(np.meshgrid(AXIS[::3], AXIS), axis=-1).reshape(10, 30, 2)


def smoothed(log_weights: np.ndarray) -> np.ndarray:
    """Log weights, smoothed and normalized."""
    return importance_summary(log_weights[:, None]).log_smoothed[:, 0]


def ramp(z: np.ndarray) -> np.ndarray:
    """A decoder of images (1, 2, 3): z[0] all over the upper row, z[1] all over the lower."""
    return np.repeat(z[:, None, :, None], 3, axis=-1)


CASES = {
    "marginals": {
        "numbers and categories": (
            lambda f: f(
                np.array([[0.5, 0], [1.5, np.nan], [np.nan, 1]]), np.zeros((4, 2)), ["a", "$b_"], [None, ("u", "v")]
            ),
            2,
        ),
        "many columns": (lambda f: f(RNG.normal(size=(9, 30)), WIDE[:, :1].repeat(30, 1), ["c"] * 30, [None] * 30), 24),
    },
    "associations": {
        "three columns": (lambda f: f(np.eye(3), np.ones((3, 3)), ["a", "b", "$c"]), 4),
        "many columns": (lambda f: f(np.eye(40), -np.eye(40), ["c"] * 40), 4),
    },
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
        "rounded": (lambda f: f({"test": np.ones(4)}, np.float32(0.3) + np.float32(3e-8) * np.arange(4, dtype="f")), 2),
    },
    "base_space": {
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
    "elbo_trace": {
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
    "weights_by_rank": {
        "eight entries": (lambda f: f({f"z[{i}]": WIDE[:, i] for i in range(8)}, np.full(600, 1 / 600), total=9), 8),
        "one, that does not vary": (lambda f: f({"z": np.ones(4)}, np.array([1.0, 0, 0, 0])), 1),
    },
    "restart_intervals": {
        "three entries": (
            lambda f: f(dict.fromkeys("abc", WIDE[:, :4].T), r_hat={"a": 1.1}, compared=[0, 2], total=4),
            3,
        ),
        "not finite": (lambda f: f({"a": np.array([[np.nan] * 3, [1, 2, np.inf]])}), 1),
    },
    "predictive_histograms": {
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
        "one chain": (lambda f: f(posterior_tree()), 6),
        "several chains": (lambda f: f(posterior_tree(3)), 6),
        "few components": (lambda f: f(posterior_tree(dim=1)), 2),
    },
}


ALL_CASES = [
    pytest.param(name, *case, id=f"{name}-{kind}") for name, cases in CASES.items() for kind, case in cases.items()
]


def test_every_figure_has_cases():
    assert set(CASES) == {name for name, value in vars(figures).items() if inspect.isfunction(value)}


@pytest.mark.parametrize(("name", "draw", "axes"), ALL_CASES)
def test_a_figure_draws_without_a_warning_and_changes_no_setting(name, draw, axes):
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
        (lambda: figures.latent_plane(WIDE, LABELS[:5]), r"labels y of shape \(600,\), one for each code, got \(5,\)"),
        (lambda: figures.latent_plane(np.full((3, 2), np.nan)), "finite codes"),
        (lambda: figures.latent_walk(lambda z: np.ones((len(z), 3))), r"got \(256, 3\)"),
        (lambda: figures.latent_plane(WIDE, prior=WIDE[:, :2]), r"draws of the prior of shape \(m, 8\)"),
        (lambda: figures.density(np.ones((4, 4)), [AXIS], WIDE[:, :1], None), r"values of shape \(30,\)"),
        (lambda: figures.warped_grid({"data": AXIS}), r"got \(30,\)"),
        (lambda: figures.log_densities({"test": np.full(3, np.nan)}, AXIS), "got none"),
        (lambda: figures.base_space(np.full((3, 2), np.nan)), r"finite rows z of shape \(n, d\)"),
        (lambda: figures.khat(np.empty(0)), "got none"),
        (lambda: figures.elbo_trace(np.full((2, 3), np.nan), best=1), "got none that is finite of chain 1"),
        (lambda: figures.weight_tail(np.zeros(3), np.full(3, np.nan), 0.5), r"log weights \(K,\)"),
        (lambda: figures.weights_by_rank({}, np.ones(1)), "got 0 and 1"),
        (lambda: figures.weights_by_rank({"z": np.ones(2)}, np.ones(2)), "sum to one, got 1 and 2"),
        (lambda: figures.restart_intervals({}), "got none"),
        (lambda: figures.predictive_histograms({}), "got none"),
        (
            lambda: figures.predictive_histograms({"y": (WIDE, WIDE[:, 0])}),
            r"of 'y', observed \(n,\); got \(600, 8\), \(600,\)",
        ),
        (lambda: figures.posterior({"posterior": xr.Dataset()}), "got none"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
