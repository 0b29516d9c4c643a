"""Fixtures: small programs that many tests run, a substitute for inductor."""

import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support import Pair, gaussian_pair, interpret, known_as
from torch import Tensor

from ppgen.infer.compile.building import Build


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leaves out files that are not tests, which --doctest-modules would import."""
    return True if collection_path.suffix == ".py" and not collection_path.name.startswith("test_") else None


@pytest.fixture(autouse=True, scope="session")
def own_compiled_libraries(tmp_path_factory) -> Iterator[None]:
    """Libraries that tests compile do not go into the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPGEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def vae() -> Pair:
    return gaussian_pair()


@pytest.fixture
def ppca() -> Pair:
    """Probabilistic PCA in float64 with its exact posterior as guide; `exact` is log p(x), one number a datum.

    The guide's keyword `spread` widens the posterior, which makes it a wrong one.
    """
    generator = torch.Generator().manual_seed(1)
    width, size, noise = 4, 2, 0.3
    weight = torch.randn(width, size, generator=generator, dtype=torch.float64)
    offset = torch.randn(width, generator=generator, dtype=torch.float64)
    precision = torch.eye(size, dtype=torch.float64) + weight.T @ weight / noise**2
    covariance = precision.inverse()
    marginal = dist.MultivariateNormal(offset, weight @ weight.T + noise**2 * torch.eye(width, dtype=torch.float64))
    x = marginal.sample((5,))

    def model(x: Tensor, spread: float = 1.0) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(size), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T + offset, noise).to_event(1), obs=x)

    def guide(x: Tensor, spread: float = 1.0) -> None:
        with pyro.plate("data", x.shape[0]):
            loc = (x - offset) @ weight @ covariance / noise**2
            pyro.sample("z", dist.MultivariateNormal(loc, spread**2 * covariance))

    return Pair(model, guide, (x,), len(x), marginal.log_prob(x))


@pytest.fixture
def mixture() -> Pair:
    """Two Gaussians with learned means; the component is left to enumeration. `exact` gives -log p(x | means) / N."""

    def parameters() -> tuple[Tensor, Tensor]:
        return pyro.param("logits", torch.tensor([0.3, -0.2])), pyro.param("loc", torch.tensor([-1.0, 2.0]))

    def model(x: Tensor) -> None:
        logits, loc = parameters()
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[c], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pass

    def exact(x: Tensor) -> Tensor:
        logits, loc = parameters()
        distribution = dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, 1.0))
        return -distribution.log_prob(x).mean()

    return Pair(model, guide, (torch.randn(7) * 2,), 7, exact)


@pytest.fixture
def subsampled() -> Pair:
    """A global weight w and a local z on a batch of 4 rows out of 20, as ``pyro.plate("data", N, subsample=x)``."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20, subsample=x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(w * z, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        loc, slope = pyro.param("loc", torch.tensor(0.5)), pyro.param("slope", torch.tensor(0.8))
        scale = pyro.param("scale", torch.tensor(0.4), constraint=dist.constraints.positive)
        pyro.sample("w", dist.Normal(loc, scale))
        with pyro.plate("data", 20, subsample=x):
            pyro.sample("z", dist.Normal(slope * x, scale))

    return Pair(model, guide, (torch.randn(4),), 20)


@pytest.fixture
def nested() -> Pair:
    """A plate "features" of 3 to the left of the plate "data" of 5."""

    def model(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.8))
        with pyro.plate("data", 5, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("features", 3, dim=-2):
                pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.6), constraint=dist.constraints.positive)
        with pyro.plate("data", 5, dim=-1):
            pyro.sample("z", dist.Normal(x.mean(0), scale))

    return Pair(model, guide, (torch.randn(3, 5),), 5)


@pytest.fixture
def inductor() -> Any:
    """The module `ppgen.infer.compile.inductor`, which is slow to import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's
        from ppgen.infer.compile import inductor
    return inductor


@pytest.fixture
def builds(monkeypatch) -> list:
    """Replaces compilation with an interpreter, which is faster; the list has one entry for each compilation."""
    made: list = []

    def make(build: Build) -> Callable:
        made.append(interpret(build))
        return made[-1]

    monkeypatch.setattr(Build, "known", known_as(make))
    return made


@pytest.fixture
def sighup_ends_processes() -> Iterator[None]:
    """Under nohup, SIGHUP is ignored, also by the processes that a test starts."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
