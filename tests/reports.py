"""What the tests of reports share: chains, draws and fits without training, and access to the parts of a page."""

import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from matplotlib.figure import Figure as Drawing
from support import untrained_fit

import ppgen
from ppgen.fitting import Fit
from ppgen.report import Figure, Report, Section, Table
from ppgen.report.context import FitContext
from ppgen.training.result import Chain

RNG = np.random.default_rng(0)
IMAGES = {"gray": RNG.random((20, 1, 6, 5)), "color": RNG.random((20, 3, 6, 5))}
WIDE = RNG.normal(size=(600, 8))
LABELS = np.arange(600) % 3

N, P, NOISE = 40, 3, 0.7  # of `regression`


def chain(steps: int = 60, *, seed: int = 0, validated: bool = True, terms: bool = True) -> Chain:
    """A chain whose loss decreases, with two terms and validation losses."""
    loss = 5 + 50 * np.exp(-np.arange(steps) / 5) + np.random.default_rng(seed).normal(size=steps)
    history = {"loss": loss} | ({"Reconstruction": 0.8 * loss, "Rate": 0.2 * loss} if terms else {})
    checks = np.arange(10, steps + 1, 10) if validated else np.empty(0)
    return Chain({}, history, {"step": checks, "loss": 6 + 0 * checks}, f"completed {steps} steps", steps, 1.5)


def posterior_tree(chains: int = 1, *, dim: int = 8) -> xr.DataTree:
    """A posterior as ArviZ 1.x holds it; an `InferenceData` is read in the same way."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(chains, 100, 4, dim))
    groups = {
        "posterior": {"z": (("chain", "draw", "data", "z_dim"), z), "mu": (("chain", "draw"), z[:, :, 0, 0])},
        "vi_stats": {"pareto_k": (("chain", "data"), rng.uniform(0, 1, (chains, 4)))},
    }
    return xr.DataTree.from_dict({name: xr.Dataset(variables) for name, variables in groups.items()})


def fit_of(*chains: Chain) -> Fit:
    """A fit of programs that do nothing."""
    return Fit(lambda x: None, lambda x: None, None, list(chains) or [chain()], [])


def fitted_by_elbo(model, guide, *data, chains: int = 1, steps: int = 60) -> Fit:
    """A fit of programs as they are, with a history of the ELBO."""
    losses = np.random.default_rng(0).normal(2.0, 0.1, steps)
    return untrained_fit(model, guide, *data, chains=chains, losses=losses, loss=ppgen.ELBO())


def regression(*, shift: float = 0.0, widen: float = 1.0, rows: int = N, seed: int = 0) -> tuple[Fit, tuple, float]:
    """A conjugate regression whose guide is the posterior, shifted and widened: fit, data, exact log evidence."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(rows), rng.normal(size=(rows, P - 1))])
    y = x @ np.array([0.5, -1.0, 0.3]) + NOISE * rng.normal(size=rows)
    covariance = np.linalg.inv(np.eye(P) + x.T @ x / NOISE**2)
    root = torch.as_tensor(np.linalg.cholesky(covariance))
    center = torch.as_tensor(covariance @ x.T @ y / NOISE**2) + shift * root.sum(1)

    def model(x, y):
        b = pyro.sample("b", dist.Normal(x.new_zeros(P), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x * b).sum(-1), NOISE), obs=y)

    def guide(x, y):
        pyro.sample("b", dist.MultivariateNormal(center, scale_tril=widen * root))

    marginal = dist.MultivariateNormal(torch.zeros(rows).double(), torch.as_tensor(x @ x.T + NOISE**2 * np.eye(rows)))
    data = torch.as_tensor(x), torch.as_tensor(y)
    return fitted_by_elbo(model, guide, *data), data, float(marginal.log_prob(data[1]))


def context_of(fit: Fit, idata=None, verdict=None) -> FitContext:
    """What sections read of a fit."""
    return FitContext(fit=fit, idata=idata, verdict=verdict)


def titles(report: Report) -> list[str]:
    return [section.title for section in report.sections]


def by_title(report: Report) -> dict[str, Section]:
    return {section.title: section for section in report.sections}


def tables(section: Section) -> list[Table]:
    return [item for item in section.items if isinstance(item, Table)]


def captions(section: Section) -> str:
    return "\n".join(item.caption for item in section.items)


def figure_with(section: Section, words: str) -> Figure:
    """The figure of a section whose caption begins with these words."""
    (found,) = [item for item in section.items if isinstance(item, Figure) and item.caption.startswith(words)]
    return found


def text_of(figure: Drawing) -> str:
    """All text in a figure."""
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


class Page(HTMLParser):
    """A parsed page: its elements with their attributes, and its text."""

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
    """Asserts that a page loads nothing and runs no script."""
    page = Page(html)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for tag, attributes in page.elements:
        assert (attributes.get("src") or "data:").startswith("data:"), tag
        assert (attributes.get("href") or "#").startswith("#"), tag
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", html))
    (policy,) = [m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in (policy["content"] or "")
