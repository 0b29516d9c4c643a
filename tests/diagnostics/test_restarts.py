"""R-hat across restarts."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import ppgen
from ppgen.diagnostics import rhat


def test_rhat_of_restarts():
    """R-hat is near one for equal distributions, large for shifted ones, and NaN for a single restart."""

    def guide(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = torch.zeros(3)
    torch.manual_seed(0)
    fit = ppgen.fit(model, guide, y, steps=1, restarts=2, progress=False)
    for apart, check in ((0.0, lambda r: r < 1.02), (2.0, lambda r: r > 1.3)):
        for number, chain in enumerate(fit.chains):
            for weight in chain.weights.values():
                weight.fill_(apart * number)
        found = rhat(fit.to_arviz(y, draws=500, predictive=False))
        assert check(found.mu.item())
        assert found.attrs["rhat"] == "across 2 restarts"
    alone = rhat(ppgen.fit(model, guide, y, steps=1, progress=False).to_arviz(y, draws=30))
    assert np.isnan(alone.mu.item())
    assert alone.attrs["rhat"].startswith("undefined")
