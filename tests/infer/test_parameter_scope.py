"""Fits and Pyro's parameter store: what a user holds there neither changes nor matters; threads take turns."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn

import ppgen

X = torch.randn(12, generator=torch.Generator().manual_seed(0)) + 1
kept_by_the_user = pytest.mark.filterwarnings("ignore:the parameter store held")


def model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def function(x: Tensor) -> None:
    loc = pyro.param("loc", lambda: torch.randn(()))
    pyro.sample("z", dist.Normal(loc, pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)))


class Module(PyroModule):
    """z ~ N(loc + net(1), 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.net = nn.Parameter(torch.tensor(0.3)), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> None:
        pyro.sample("z", dist.Normal(self.loc + self.net(torch.ones(1))[0], 1.0))


def network() -> Callable:
    net = nn.Linear(1, 1)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        pyro.sample("z", dist.Normal(net(torch.ones(1))[0], 1.0))

    return guide


GUIDES: dict[str, Callable[[], Any]] = {
    "function": lambda: function,
    "autoguide": lambda: AutoNormal(model),
    "module": Module,
    "network": network,
    "auto": lambda: "auto",
}


def fit(kind: str, **options: Any) -> ppgen.Fit:
    pyro.set_rng_seed(0)
    guide = GUIDES[kind]()
    if kind != "auto":
        options |= {"steps": 8, "optim": lambda p: torch.optim.Adam(p, lr=0.1), "compile": False}
    return ppgen.fit(model, guide, X, progress=False, **options)


def outcome(result: ppgen.Fit) -> tuple[np.ndarray, dict[str, list]]:
    """The losses, and draws of z by the fit's own methods."""
    draws = result.to_arviz(X, draws=25, predictive=False).posterior["z"].values
    return result.history["loss"], {k: v.tolist() for k, v in result.chains[0].weights.items()} | {"z": draws.tolist()}


def assert_same(one: tuple, other: tuple) -> None:
    assert np.array_equal(one[0], other[0])
    assert one[1] == other[1]


def entries() -> dict[str, tuple[int, bytes, str]]:
    store = pyro.get_param_store()
    return {k: (id(v), v.detach().numpy().tobytes(), str(store._constraints[k])) for k, v in store.named_parameters()}


@kept_by_the_user
@pytest.mark.parametrize("kind", GUIDES)
def test_entries_of_the_user_are_unchanged_and_without_influence(kind):
    reference = fit(kind)
    names = {*pyro.get_param_store().keys()}
    expected = outcome(reference)
    pyro.clear_param_store()
    for name in (*names, "AutoNormal.other", "guide.loc", "mine", "net$$$other", "data"):
        pyro.param(name, torch.tensor([7.0, 2.0]), constraint=dist.constraints.positive)
    before = entries()
    repeated = fit(kind)
    assert_same(outcome(repeated), expected)
    repeated.select_chain(0)
    repeated.diagnose(X, draws=25, starts=0) if kind == "auto" else repeated.breakdown(X)
    assert entries() == before


@pytest.mark.parametrize("kind", GUIDES)
def test_the_same_fit_twice_in_a_process_is_the_same(kind):
    first = outcome(fit(kind))
    assert_same(outcome(fit(kind)), first)


def test_a_fit_whose_names_are_taken_says_where_its_values_are():
    pyro.param("loc", torch.tensor(9.0))
    with pytest.warns(UserWarning, match=r"held 'loc' before the fit.*eval_mode"):
        result = fit("function")
    assert pyro.param("loc").item() == 9.0
    with result.eval_mode():
        assert pyro.param("loc").item() == result.chains[0].weights["loc"].item() != 9.0
    assert pyro.param("loc").item() == 9.0


def test_programs_hold_the_fitted_values_after_a_fit_and_after_the_next():
    for _ in range(2):
        result = fit("function", restarts=2)
        for chain in (0, 1):
            result.select_chain(chain)
            assert pyro.param("loc").item() == result.chains[chain].weights["loc"].item()


def test_an_earlier_fit_keeps_its_values_after_a_later_one():
    early = fit("function")
    before = outcome(early)
    ppgen.fit(model, function, X + 5, steps=8, progress=False, compile=False)
    assert_same(outcome(early), before)


def test_a_program_that_reads_what_the_user_stored_is_refused():
    pyro.param("mine", torch.tensor(1.0))

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("mine"), 1.0))

    with pytest.raises(LookupError, match=r"read pyro.param\('mine'\), which they do not create.*give the start"):
        ppgen.fit(model, guide, X, steps=2, progress=False)
    assert pyro.param("mine").item() == 1.0


def test_a_fit_that_fails_leaves_the_store_as_it_was():
    pyro.param("loc", torch.tensor(9.0))
    before = entries()
    with pytest.raises(FloatingPointError):
        ppgen.fit(model, function, X, loss=lambda *_: pyro.param("loc") * torch.nan, steps=2, progress=False)
    assert entries() == before


def test_fits_in_threads_take_turns_and_equal_fits_in_a_row():
    kinds = ["function", "module", "autoguide", "network"] * 2
    expected = [outcome(fit(kind)) for kind in kinds]
    guides = []
    for kind in kinds:
        pyro.set_rng_seed(0)
        guides.append(GUIDES[kind]())

    def run(guide: Any) -> tuple:
        optim = lambda p: torch.optim.Adam(p, lr=0.1)  # noqa: E731
        return outcome(ppgen.fit(model, guide, X, steps=8, optim=optim, compile=False, progress=False))

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, guides))
    for result, reference in zip(results, expected, strict=True):
        assert_same(result, reference)


def test_steps_in_threads_take_turns():
    """Without turns, the handlers of one thread's step apply to the programs of the other, and most runs fail."""

    def run(number: int) -> float:
        def guide(x: Tensor) -> None:
            pyro.sample("z", dist.Delta(pyro.param(f"loc {number}", torch.tensor(0.0))))

        svi = ppgen.SVI(model, guide, lambda p: torch.optim.SGD(p, lr=0.01), ppgen.ELBO(), compile=False)
        return [svi.step(X * number) for _ in range(20)][-1]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(1, 5)))
    pyro.clear_param_store()
    assert together == [run(number) for number in range(1, 5)]
