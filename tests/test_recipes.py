"""Recipes: each is the expression it says it is, and trains."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import gaussian_pair
from pyro.infer import TraceMeanField_ELBO

import ppgen
from ppgen import metrics as m
from ppgen import recipes
from ppgen import views as v
from ppgen.draws import log_weights


def values(loss, pair) -> tuple[float, dict[str, torch.Tensor]]:
    pyro.set_rng_seed(1)
    for _, leaf in pyro.get_param_store().named_parameters():
        leaf.grad = None
    value = loss.loss_and_grads(pair.model, pair.guide, *pair.args)
    return value, {k: leaf.grad.clone() for k, leaf in pyro.get_param_store().named_parameters()}


def assert_same(a, b, pair) -> None:
    (one, slopes), (two, others) = values(a, pair), values(b, pair)
    assert one == pytest.approx(two, rel=1e-5)
    assert len(slopes) == 4
    for name, slope in slopes.items():
        torch.testing.assert_close(slope, others[name], rtol=1e-4, atol=1e-5)


def test_the_registry_holds_every_recipe():
    assert set(recipes.RECIPES) | {"RECIPES"} == set(recipes.__all__)
    assert all(recipes.RECIPES[name] is getattr(recipes, name) for name in recipes.RECIPES)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_each_trains_under_stock_svi(name):
    pair = gaussian_pair(rows=16)
    loss = recipes.RECIPES[name]()
    assert isinstance(loss, ppgen.Objective)

    def value():
        pyro.set_rng_seed(1)
        return sum(loss.loss(pair.model, pair.guide, *pair.args) for _ in range(10)) / 10

    first = value()
    svi = pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.03}), loss=loss)
    for _ in range(30):
        svi.step(*pair.args)
    assert value() < first - 0.1
    parts = loss.breakdown(pair.model, pair.guide, *pair.args)
    assert len(parts) == len(loss.terms)


def test_the_vae_is_the_mean_field_evidence(vae):
    assert_same(recipes.vae(), ppgen.Evidence(elbo=TraceMeanField_ELBO()), vae)
    assert_same(recipes.vae(beta=4.0), ppgen.Reconstruction() + 4.0 * ppgen.Rate(), vae)
    assert recipes.vae().is_evidence
    assert not recipes.vae(beta=4.0).is_evidence


def test_beta_may_be_a_schedule(vae):
    loss = recipes.vae(beta=ppgen.Ramp(1.0, steps=2))
    assert_same(ppgen.Reconstruction(), loss, vae)
    loss.advance()
    assert_same(recipes.vae(), loss, vae)


def test_info_vae_holds_the_vae_and_the_mmd_vae(vae):
    aggregate = ppgen.match(v.posterior("z"), v.prior("z"), m.MMD())
    assert_same(recipes.info_vae(alpha=0.0, weight=1.0), recipes.vae(), vae)
    assert_same(recipes.info_vae(alpha=1.0, weight=3.0), ppgen.Reconstruction() + 3.0 * aggregate, vae)
    expected = ppgen.Reconstruction() + 0.5 * ppgen.Rate() + 1.5 * aggregate
    assert_same(recipes.info_vae(alpha=0.5, weight=2.0), expected, vae)


def test_the_wae_takes_its_metric_weight_and_site(vae):
    expected = ppgen.Reconstruction() + 3.0 * ppgen.match(v.posterior("z"), v.prior("z"), m.Energy())
    assert_same(recipes.wae(m.Energy(), weight=3.0), expected, vae)
    assert str(recipes.wae(z="code")) == "Reconstruction + 10 * MMD(posterior(code), prior(code))"


def test_the_autoencoder_asks_nothing_of_the_prior():
    """Codes may lie where the prior has no density."""
    x = torch.randn(4)

    def model():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Uniform(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Delta(x - 10))

    expected = -dist.Normal(x - 10, 1.0).log_prob(x).mean()
    assert recipes.ae().loss(model, guide) == pytest.approx(float(expected))


def test_iwae_of_one_particle_is_the_evidence(vae):
    assert_same(recipes.iwae(1), ppgen.Evidence(), vae)


def test_iwae_is_the_mean_log_of_the_mean_weight(vae):
    pyro.set_rng_seed(1)
    loss = recipes.iwae(5).loss(vae.model, vae.guide, *vae.args)
    pyro.set_rng_seed(1)
    weights = log_weights(vae.model, vae.guide, vae.args, particles=5).exp()
    assert loss == pytest.approx(-float(weights.mean(0).log().mean()), rel=1e-5)


def test_iwae_tightens_with_its_particles(ppca):
    """At a posterior twice too wide; the exact evidence is -exact.mean()."""

    def mean(k):
        loss = recipes.iwae(k)
        draws = torch.tensor([loss.loss(ppca.model, ppca.guide, *ppca.args, 2.0) for _ in range(50)])
        return draws.mean(), draws.std() / 50**0.5

    (one, error_one), (many, error_many) = mean(1), mean(20)
    assert one - many > 4 * (error_one + error_many)  # level 3e-5
    assert many + 4 * error_many > -ppca.exact.mean()
