"""Solutions of the exercises of "From a data frame to plots with names"."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist

import ppgen

MU, TAU, SIGMA = 1.0, 2.0, 1.0
SHOPS = np.repeat(["north", "south", "west"], [1, 4, 100])


def level(shop, num_shop, sales=None):
    """One number a group; means and variances are known, so that the posterior is normal."""
    with pyro.plate("shop", num_shop):
        a = pyro.sample("a", dist.Normal(MU, TAU))
    with pyro.plate("data", len(shop)):
        pyro.sample("sales", dist.Normal(a[shop], SIGMA), obs=sales)


def table() -> pd.DataFrame:
    """Sales of three shops with 1, 4 and 100 days."""
    rng = np.random.default_rng(0)
    return pd.DataFrame({"sales": rng.normal(MU, TAU, len(SHOPS)), "shop": SHOPS})


def means(frame: pd.DataFrame) -> pd.Series:
    """The posterior mean of each shop by name."""
    fit = ppgen.fit(level, "auto", frame, restarts=1, progress=False)
    return fit.to_arviz(draws=2000, predictive=False).posterior["a"].mean(("chain", "draw")).to_series().sort_index()


def exercise_1() -> None:
    """Precisions add up."""
    frame = table()
    shops = frame.groupby("shop")["sales"].agg(["mean", "size"])
    kappa = (SIGMA**2 / shops["size"]) / (SIGMA**2 / shops["size"] + TAU**2)
    expected = kappa * MU + (1 - kappa) * shops["mean"]
    error = np.sqrt((1 - kappa) * SIGMA**2 / shops["size"] / 2000)
    assert (abs(means(frame) - expected) < 5 * error).all()


def exercise_2() -> None:
    """Names decide, not positions."""
    frame = table()
    shuffled = frame.sample(frac=1, random_state=0)[["shop", "sales"]]
    shuffled["shop"] = pd.Categorical(shuffled["shop"], categories=["west", "north", "south"])
    assert np.allclose(means(frame), means(shuffled), atol=5 * TAU / 2000**0.5)


def exercise_3() -> None:
    """A new group knows the population alone."""
    fit = ppgen.fit(level, "auto", table(), restarts=1, progress=False)
    drawn = fit.predict(pd.DataFrame({"shop": ["east", "west"]}), draws=10_000, new_groups="draw")
    variance = drawn["sales"].groupby("row").var()
    error = (2 / 10_000) ** 0.5
    assert abs(variance[0] / (TAU**2 + SIGMA**2) - 1) < 5 * error
    assert abs(variance[1] / (SIGMA**2 * (1 + 1 / 100)) - 1) < 5 * error
