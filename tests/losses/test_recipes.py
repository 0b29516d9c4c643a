"""Recipes: each equals its expression and trains."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from support import Pair, gaussian_pair
from torch import nn

import ppgen
from ppgen import metrics as m
from ppgen import nets, recipes
from ppgen import views as v
from ppgen.models import Diffusion, FlowModel
from ppgen.tracing.particles import log_weights


def values(loss, pair) -> tuple[float, dict[str, torch.Tensor]]:
    pyro.set_rng_seed(1)
    for _, leaf in pyro.get_param_store().named_parameters():
        leaf.grad = None
    value = loss.loss_and_grads(pair.model, pair.guide, *pair.args)
    return value, {k: leaf.grad.clone() for k, leaf in pyro.get_param_store().named_parameters()}


def assert_same(a, b, pair) -> None:
    (one, grads), (two, others) = values(a, pair), values(b, pair)
    assert one == pytest.approx(two, rel=1e-5)
    assert len(grads) == 4
    for name, grad in grads.items():
        torch.testing.assert_close(grad, others[name], rtol=1e-4, atol=1e-5)


def test_the_registry_contains_every_recipe():
    assert set(recipes.RECIPES) | {"ALIGNMENTS", "RECIPES"} == set(recipes.__all__)
    assert all(recipes.RECIPES[name] is getattr(recipes, name) for name in recipes.RECIPES)


ADAPTING = ("dann", "dann_reversal")  # of programs with labels and domains: see test_dann
GAMES = {name: make for name, make in recipes.RECIPES.items() if name not in ADAPTING and make().critics}
BY_STEPS = ("ddpm", "edm", "vdm")  # of chains
COMPARING = [*GAMES, "mmd_generator", "sinkhorn_generator"]
"""Recipes that match samples of two distributions, some with a likelihood."""
SMALL: dict[str, Any] = {"hidden": (16,), "lr": 0.02}


def make(name: str) -> ppgen.Objective:
    if name == "progan":  # whose own critic is of images; it is tried on them in test_growing.py
        return recipes.progan(partial(nets.Critic, hidden=SMALL["hidden"]), lr=SMALL["lr"])
    return recipes.RECIPES[name](**SMALL if name in GAMES else {})


def train(loss: ppgen.Objective, pair: Pair, x: torch.Tensor, *, steps: int) -> None:
    svi = pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.03}), loss=loss)
    for _ in range(steps):
        svi.step(x)


def mean_loss(loss: ppgen.Objective, pair: Pair, x: torch.Tensor) -> float:
    pyro.set_rng_seed(1)
    return sum(loss.loss(pair.model, pair.guide, x) for _ in range(10)) / 10


@pytest.mark.parametrize("name", [name for name in recipes.RECIPES if name not in (*COMPARING, *ADAPTING, *BY_STEPS)])
def test_recipes_of_densities_train_under_stock_svi(name):
    pair, loss = gaussian_pair(rows=16), make(name)
    assert isinstance(loss, ppgen.Objective)
    (x,) = pair.args
    first = mean_loss(loss, pair, x)
    train(loss, pair, x, steps=30)
    assert mean_loss(loss, pair, x) < first - 0.1
    assert len(loss.breakdown(pair.model, pair.guide, x)) == len(loss.terms)


@pytest.mark.parametrize("name", BY_STEPS)
def test_recipes_of_diffusion_models_train_under_stock_svi(name):
    pyro.set_rng_seed(0)
    model, x = Diffusion((2,), hidden=(16,), steps=10, prediction_type="edm"), 0.3 * torch.randn(64, 2)
    loss = recipes.RECIPES[name]()
    before = sum(loss.loss(model.model, model.guide, x) for _ in range(20))
    train(loss, Pair(model.model, model.guide, (x,), len(x)), x, steps=40)
    assert sum(loss.loss(model.model, model.guide, x) for _ in range(20)) < before


DRAWS = ppgen.match(v.data("x"), v.generated("x"), m.EnergyDistance())
CODES = ppgen.match(v.prior("z"), v.posterior("z"), m.EnergyDistance())


@pytest.mark.parametrize("name", COMPARING)
def test_recipes_that_compare_samples_reduce_their_distance_under_stock_svi(name):
    """An adversarial loss need not fall, but the distributions that it compares become closer: data and samples, or
    prior and codes.

    By a third or more in energy distance, which none of the recipes goes by.
    """
    pair = gaussian_pair(rows=32)
    x, distance = pair.args[0] / 2 + 1.5, CODES if name == "aae" else DRAWS
    first = mean_loss(distance, pair, x)
    loss = make(name)
    train(loss, pair, x, steps=60)
    assert mean_loss(distance, pair, x) < first * {"aae": 2 / 3}.get(name, 1 / 5)
    parts = loss.breakdown(pair.model, pair.guide, x)
    assert len(parts) == len(loss.terms)
    for (terms,) in loss.critics.values():
        assert terms.critic.network is not None


# The expression of each adversarial recipe.
EXPRESSIONS = {
    "gan": "JensenShannon(data(x), generated(x))",
    "f_gan": "kl(data(x), generated(x))",
    "lsgan": "LeastSquares(data(x), generated(x))",
    "hinge_gan": "Hinge(data(x), generated(x))",
    "r1_gan": "JensenShannon(data(x), generated(x))",
    "r3_gan": "Relativistic(data(x), generated(x))",
    "wgan_clip": "WassersteinDual(data(x), generated(x))",
    "wgan_gp": "WassersteinDual(data(x), generated(x))",
    "progan": "WassersteinDual(data(x), generated(x))",
    "aae": "Reconstruction + 10 * JensenShannon(prior(z), posterior(z))",
    "ali": "JensenShannon(data(x) & posterior(z), generated(x) & prior(z))",
    "vae_gan": "Reconstruction + Rate + 10 * JensenShannon(data(x), generated(x, of=mean))",
}
PENALTIES = {
    "hinge_gan": m.SpectralNorm(),
    "r1_gan": m.ZeroCenteredGradientPenalty(1.0),
    "r3_gan": m.ZeroCenteredGradientPenalty(1.0, at="both"),
    "wgan_clip": m.WeightClipping(0.01),
    "wgan_gp": m.GradientPenalty(10.0),
    "progan": m.GradientPenalty(10.0),
}


@pytest.mark.parametrize("name", GAMES)
def test_an_adversarial_recipe_equals_its_expression(name):
    assert set(EXPRESSIONS) == set(GAMES)
    loss = make(name)
    (terms,) = loss.critics.values()
    critic = terms[0].critic
    assert str(loss) == EXPRESSIONS[name]
    assert critic.penalty == PENALTIES.get(name)
    assert critic.steps == (5 if name.startswith("wgan") else 1)
    assert critic.lr == 0.02
    built = critic.build((torch.zeros(2, 3), torch.zeros(2, 2)) if name == "ali" else torch.zeros(2, 3))
    assert [part.out_features for part in built.modules() if isinstance(part, nn.Linear)] == [16, 1]
    assert built.training


@pytest.mark.parametrize("name", GAMES)
def test_an_adversarial_recipe_accepts_a_critic_and_options_of_the_metric(name):
    network = nn.Linear(3, 1)
    loss = recipes.RECIPES[name](network, packing=2, noise=0.1, smoothing=0.1, saturating=True)
    (terms,) = loss.critics.values()
    critic = terms[0].critic
    assert critic.critic is network
    assert (critic.packing, critic.noise, critic.smoothing, critic.saturating) == (2, 0.1, 0.1, True)
    with pytest.raises(
        ValueError, match=r"hidden=\(4,\) is an option of the default critic; give either it or a critic"
    ):
        recipes.RECIPES[name](network, hidden=(4,))
    with pytest.raises(TypeError, match="unexpected keyword argument 'rate'"):
        recipes.RECIPES[name](rate=0.1)


def test_adversarial_recipes_accept_sites_and_options():
    assert str(recipes.gan(x=("x", "y"))) == "JensenShannon(data(x) & data(y), generated(x) & generated(y))"
    joint = recipes.ali(x=("x", "y"), z=("z", "u"))
    views = "data(x) & data(y) & posterior(z) & posterior(u), generated(x) & generated(y) & prior(z) & prior(u)"
    assert str(joint) == f"JensenShannon({views})"
    assert str(recipes.aae(weight=2.0, z="code")) == "Reconstruction + 2 * JensenShannon(prior(code), posterior(code))"
    assert str(recipes.f_gan(divergence="pearson")) == "pearson(data(x), generated(x))"
    assert str(recipes.mmd_generator(m.EnergyDistance(), x="y")) == "EnergyDistance(data(y), generated(y))"
    assert str(recipes.sinkhorn_generator()) == "Sinkhorn(data(x), generated(x))"
    assert recipes.wgan_gp(weight=3.0, one_sided=True, steps=2).terms[0].term.metric.penalty.one_sided
    by_r1 = recipes.progan(distance="jensen_shannon", weight=2.0)
    assert str(by_r1) == "JensenShannon(data(x), generated(x))"
    assert by_r1.terms[0].term.metric.penalty == m.ZeroCenteredGradientPenalty(2.0)
    with pytest.raises(ValueError, match="distance to be one of 'wasserstein', 'jensen_shannon'"):
        recipes.progan(distance="mmd")
    assert str(recipes.vae_gan(beta=0.5, weight=1.0)).startswith("Reconstruction + 0.5 * Rate + JensenShannon(")


def test_the_vae_is_the_mean_field_elbo(vae):
    assert_same(recipes.vae(), ppgen.ELBO(elbo=TraceMeanField_ELBO()), vae)
    assert_same(recipes.vae(beta=4.0), ppgen.Reconstruction() + 4.0 * ppgen.Rate(), vae)
    assert recipes.vae().is_negative_elbo
    assert not recipes.vae(beta=4.0).is_negative_elbo


def test_beta_may_be_a_schedule(vae):
    loss = recipes.vae(beta=ppgen.Ramp(1.0, steps=2))
    assert_same(ppgen.Reconstruction(), loss, vae)
    loss.advance()
    assert_same(recipes.vae(), loss, vae)


def test_info_vae_contains_the_vae_and_the_mmd_vae(vae):
    aggregate = ppgen.match(v.posterior("z"), v.prior("z"), m.MMD())
    assert_same(recipes.info_vae(alpha=0.0, weight=1.0), recipes.vae(), vae)
    assert_same(recipes.info_vae(alpha=1.0, weight=3.0), ppgen.Reconstruction() + 3.0 * aggregate, vae)
    expected = ppgen.Reconstruction() + 0.5 * ppgen.Rate() + 1.5 * aggregate
    assert_same(recipes.info_vae(alpha=0.5, weight=2.0), expected, vae)


def test_the_wae_accepts_a_metric_a_weight_and_a_site(vae):
    expected = ppgen.Reconstruction() + 3.0 * ppgen.match(v.posterior("z"), v.prior("z"), m.EnergyDistance())
    assert_same(recipes.wae(m.EnergyDistance(), weight=3.0), expected, vae)
    assert str(recipes.wae(z="code")) == "Reconstruction + 10 * MMD(posterior(code), prior(code))"


def test_the_autoencoder_does_not_use_the_prior():
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


def test_iwae_with_one_particle_is_the_elbo(vae):
    assert_same(recipes.iwae(1), ppgen.ELBO(), vae)


def test_iwae_is_the_mean_log_of_the_mean_weight(vae):
    pyro.set_rng_seed(1)
    loss = recipes.iwae(5).loss(vae.model, vae.guide, *vae.args)
    pyro.set_rng_seed(1)
    weights = log_weights(vae.model, vae.guide, vae.args, particles=5).exp()
    assert loss == pytest.approx(-float(weights.mean(0).log().mean()), rel=1e-5)


def test_the_iwae_bound_tightens_with_more_particles(ppca):
    """At a guide twice as wide as the posterior; the exact log marginal is -exact.mean()."""

    def mean(k):
        loss = recipes.iwae(k)
        draws = torch.tensor([loss.loss(ppca.model, ppca.guide, *ppca.args, 2.0) for _ in range(50)])
        return draws.mean(), draws.std() / 50**0.5

    (one, error_one), (many, error_many) = mean(1), mean(20)
    assert one - many > 4 * (error_one + error_many)  # level 3e-5
    assert many + 4 * error_many > -ppca.exact.mean()


# Flows: both directions of KL


def test_flow_kl_equals_its_expression():
    assert str(recipes.flow_kl()) == "ELBO"
    reverse = "reverse_kl(data(x), generated(x))"
    assert str(recipes.flow_kl(reverse=0.5)) == f"ELBO + 0.5 * {reverse}"
    assert str(recipes.flow_kl(forward=0.0, reverse=1.0)) == reverse
    assert str(recipes.flow_kl(forward=2.0, reverse=ppgen.Ramp(1.0, steps=3))).startswith("2 * ELBO + Ramp")
    with pytest.raises(ValueError, match="a forward or a reverse weight that is not zero"):
        recipes.flow_kl(forward=0.0)


class LogRatio(nn.Module):
    """The best critic of P = N(0, 1) and Q = N(loc, scale): v = log p/q, at fixed loc and scale."""

    def __init__(self, loc: float, scale: float) -> None:
        super().__init__()
        self.p, self.q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(loc, scale)
        self.idle = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.p.log_prob(x) - self.q.log_prob(x) + self.idle


def test_the_reverse_term_has_the_gradient_of_reverse_kl():
    """Under the best critic. KL(N(m, s), N(0, 1)) = (s² + m² - 1) / 2 - log s; of 200,000 rows, errors are below 2%."""
    torch.manual_seed(0)
    loc, scale = torch.tensor(0.6, requires_grad=True), torch.tensor(0.7, requires_grad=True)
    x = torch.randn(200_000, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale).expand([1]).to_event(1), obs=x)

    critic = LogRatio(0.6, 0.7)
    loss = recipes.flow_kl(critic, forward=0.0, reverse=1.0)
    value = loss.differentiable_loss(model, lambda x: None, x)
    exact = (scale**2 + loc**2 - 1) / 2 - scale.log()
    assert float(value.detach()) == pytest.approx(float(exact.detach()), rel=0.03)
    ours, theirs = (torch.autograd.grad(number, (loc, scale)) for number in (value, exact))
    for a, b in zip(ours, theirs, strict=True):
        assert float(a) == pytest.approx(float(b), rel=0.03)


@pytest.mark.parametrize("weights", [{"reverse": 1.0}, {"forward": 0.0, "reverse": 1.0}])
def test_a_flow_trains_on_both_directions(weights):
    """From N(0, I) its draws come to data of another mean and scale: their energy distance falls to a third or less."""
    torch.manual_seed(0)
    x = 0.5 * torch.randn(256, 2) - 1.0
    model = FlowModel((2,), flow="maf", layers=1, hidden=(8,))
    first = m.EnergyDistance()(model.sample(1000), x)
    loss = recipes.flow_kl(hidden=(16,), lr=5e-3, betas=(0.0, 0.99), steps=2, **weights)
    options = {"optim": partial(torch.optim.Adam, lr=1e-2), "steps": 100, "compile": False, "progress": False}
    fit = ppgen.fit(model.model, model.guide, x, loss=loss, ema=0.95, **options)
    assert fit.chains[0].adversarial_metrics
    assert m.EnergyDistance()(model.sample(1000), x) < first / 3
