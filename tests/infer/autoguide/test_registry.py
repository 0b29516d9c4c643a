"""What every autoguide does: it draws every latent, and SVI finds a Gaussian posterior with it."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoGuide

import ppgen
from ppgen.infer import autoguide
from ppgen.infer.autoguide import AutoFlow, AutoMixture

# by name: the guide of a model
GUIDES = {
    "AutoFlow": partial(AutoFlow, flow="realnvp", hidden=(8,)),
    "AutoMixture": partial(AutoMixture, components=2),
}
Y = torch.tensor([1.2, 0.6, 0.9, 1.5])


def scales():
    pyro.sample("s", dist.Gamma(2.0, 1.0))
    pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def mean_of(y):
    """The posterior of m is N(sum y / (n + 1), 1 / (n + 1)); w has its prior."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(m, 1.0), obs=y)


def test_every_autoguide_is_tested():
    guides = {k for k, v in vars(autoguide).items() if isinstance(v, type) and issubclass(v, AutoGuide)}
    assert guides == set(GUIDES)


@pytest.mark.parametrize("name", GUIDES)
def test_it_draws_every_latent_in_its_support(name):
    guide = GUIDES[name](scales)
    drawn = guide()
    assert drawn.keys() == {"s", "w", "z"}
    assert drawn["s"] > 0
    assert float(drawn["w"].sum().detach()) == pytest.approx(1, abs=1e-5)
    assert drawn["z"].shape == (2,)


# those whose draws have gradients; a mixture is placed by `guide="auto"` and trains by scores, which takes far longer
@pytest.mark.parametrize("name", [name for name in GUIDES if name != "AutoMixture"])
def test_svi_finds_a_gaussian_posterior(name):
    """Mean and standard deviation within .1, which is about a quarter of the latter."""
    guide = GUIDES[name](mean_of)
    optim = partial(torch.optim.Adam, lr=0.05)
    fit = ppgen.fit(mean_of, guide, Y, optim=optim, steps=300, lr_scheduler="cosine", compile=False, progress=False)
    with fit.eval_mode(), torch.no_grad():
        draws = torch.stack([guide(Y)["m"] for _ in range(2000)])
    assert float(draws.mean()) == pytest.approx(float(Y.sum()) / 5, abs=0.1)
    assert float(draws.std()) == pytest.approx(5**-0.5, abs=0.1)
