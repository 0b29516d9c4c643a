"""Warnings point to the statement of the user that caused them, whichever part of the package finds the cause."""

import functools
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import ppgen

DATA = torch.randn(31, 1, generator=torch.Generator().manual_seed(0))


def mean_model(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0).expand([1]).to_event(1), obs=x)


def reads_a_value(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0 if mean.sum() > 0 else 2.0).expand([1]).to_event(1), obs=x)


def fixed_subsample(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=7):
        pyro.sample("x", dist.Normal(mean, 1.0).expand([1]).to_event(1), obs=x[:7])


def two_latents() -> None:
    pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(0.0, 1.0))


def in_another_order() -> None:
    pyro.sample("b", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
    pyro.sample("a", dist.Normal(0.0, 1.0))


def fit(model: Callable = mean_model, data: Tensor = DATA, **options: object) -> ppgen.Fit:
    options = {"steps": 3, "compile": False, "progress": False} | options
    return ppgen.fit(model, AutoNormal(model), data, **options)


def train_gan() -> ppgen.Fit:
    gan = ppgen.models.Generator((1,), latent_dim=1)
    return ppgen.fit(gan.model, gan.guide, DATA, loss=ppgen.recipes.gan(), restarts=2, steps=1, progress=False)


def step_of_stock_pyro() -> float:
    loss = ppgen.ELBO(elbo=TraceMeanField_ELBO())
    return pyro.infer.SVI(two_latents, in_another_order, pyro.optim.Adam({"lr": 1e-3}), loss=loss).step()


CASES = {
    "float64 cast": functools.partial(fit, data=DATA.double()),
    "validation: float64 cast": functools.partial(fit, validation=DATA.double()),
    "batch_size 100": functools.partial(fit, batch_size=100),
    "a last batch of one row": functools.partial(fit, batch_size=30),
    "in adversarial training": train_gan,
    "the step is not compiled": functools.partial(fit, reads_a_value, compile=True, steps=10),
    "different orders": step_of_stock_pyro,
}


@pytest.mark.parametrize("text", CASES)
def test_warning_names_the_line_of_the_user(text):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CASES[text]()
    assert [each.filename for each in caught if text in str(each.message)] == [__file__]


@pytest.mark.parametrize(
    "use", [lambda fitted: fitted.breakdown(DATA.double()), lambda fitted: fitted.tensors((DATA.double(),))]
)
def test_warning_of_a_fit_names_the_line_of_the_user(use):
    with pytest.warns(UserWarning, match="float64 cast") as caught:
        use(fit(loss=ppgen.ELBO()))
    assert [each.filename for each in caught] == [__file__]


def test_warning_of_a_random_subsample_names_the_line_of_the_user():
    fitted = fit(fixed_subsample)
    with pytest.warns(UserWarning, match="draws 7 of 31 rows") as caught:
        fitted.to_arviz(DATA, draws=30)
    assert {each.filename for each in caught} == {__file__}
