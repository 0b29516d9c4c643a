"""Domain adaptation: the program, the recipe with every metric, gradient reversal, warnings, and errors."""

import copy
import functools
from typing import Any

import pyro
import pytest
import torch
import torch.nn.functional as F
from programs import bits
from pyro import infer
from torch import Tensor, nn

import ppgen
from ppgen import data, recipes
from ppgen import metrics as m
from ppgen import views as v
from ppgen.evaluation import feature_spread, features_collapsed
from ppgen.models import DANN, UNKNOWN
from ppgen.tracing.traces import Traces

HALF = 12
X = torch.randn(2 * HALF, 3, generator=torch.Generator().manual_seed(3))
X[HALF:] += 1
Y = torch.tensor([0, 1, 2, 1] * (HALF // 2))
D = torch.arange(2).repeat_interleave(HALF)
KNOWN = torch.where(D == 0, Y, UNKNOWN)
DATA = X, KNOWN, D

every = pytest.mark.parametrize("distance", recipes.ALIGNMENTS)


def small(**options: Any) -> DANN:
    torch.manual_seed(0)
    return DANN((3,), 3, latent_dim=4, hidden=(5,), activation="tanh", **options)


def gradients(loss: ppgen.Objective, dann: DANN, data: tuple = DATA) -> list[Tensor]:
    """The gradients with respect to the features and the classifier."""
    parameters = [*dann.features.parameters(), *dann.classifier.parameters()]
    return list(torch.autograd.grad(loss.differentiable_loss(dann.model, dann.guide, *data), parameters))


def fit(dann: DANN, loss: Any, data: tuple = DATA, **options: Any) -> ppgen.Fit:
    adam = functools.partial(torch.optim.Adam, lr=options.pop("lr", 0.01))
    options = {"steps": 4, "batch_size": 8, "compile": False} | options
    return ppgen.fit(dann.model, dann.guide, data, loss=loss, optim=adam, **options)


def test_the_elbo_scores_known_labels_only():
    dann = small()
    expected = F.cross_entropy(dann.classifier(dann.features(X[:HALF])), Y[:HALF], reduction="sum") / (2 * HALF)
    loss = ppgen.ELBO().loss(dann.model, dann.guide, *DATA)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    shifted = X.clone()
    shifted[HALF:] += 5
    assert ppgen.ELBO().loss(dann.model, dann.guide, shifted, KNOWN, D) == loss
    assert ppgen.ELBO().loss(dann.model, dann.guide, X, Y, D) > loss  # labels in the target count if they are given


@every
def test_alpha_zero_trains_on_the_source_alone(distance):
    fitted = {}
    for name, loss in (
        ("plain", ppgen.ELBO()),
        ("alpha 0", recipes.dann(distance=distance, alpha=0.0, hidden=(4,))),
    ):
        dann = small()
        fit(dann, loss)
        fitted[name] = bits(dann.parameters())
    assert fitted["plain"] == fitted["alpha 0"]


@every
def test_alignment_passes_gradients_to_the_features_only(distance):
    dann = small()
    of_labels = gradients(ppgen.ELBO() + 0.0 * ppgen.Rate(), dann)
    with_term = gradients(recipes.dann(distance=distance, alpha=2.0, hidden=(4,)), dann)
    changed = [not torch.equal(a, b) for a, b in zip(of_labels, with_term, strict=True)]
    features = len(list(dann.features.parameters()))
    assert all(changed[: features - 1])  # some metrics do not depend on the mean, hence not on the last bias
    assert not any(changed[features:])


@every
def test_gradients_do_not_depend_on_the_order_of_rows_and_domains(distance):
    dann = small().double()
    order = torch.randperm(2 * HALF, generator=torch.Generator().manual_seed(1))
    data = X.double(), KNOWN, D
    forward = recipes.dann(distance=distance, alpha=2.0, hidden=(4,))
    torch.manual_seed(5)
    first = gradients(forward, dann, data)
    torch.manual_seed(5)
    shuffled = gradients(forward, dann, tuple(part[order] for part in data))
    torch.testing.assert_close(first, shuffled)
    if distance in ("jensen_shannon", "wasserstein"):  # the critic for swapped domains
        metric = forward.critics.copy().popitem()[1][0].metric
        with torch.no_grad():
            last = [layer for layer in metric.network.modules() if isinstance(layer, nn.Linear)][-1]
            last.weight.neg_()
            last.bias.neg_()
        backward = recipes.dann(metric, alpha=2.0, sources=(1,), target=0)
    else:
        backward = recipes.dann(distance=distance, alpha=2.0, sources=(1,), target=0)
    torch.manual_seed(5)
    torch.testing.assert_close(first, gradients(backward, dann, data))


class Negated(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, h: Tensor) -> Tensor:
        return -self.network(h)


def test_gradient_reversal_has_the_gradients_of_alternating_training():
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    alternating, reversal = small(), small(critic=Negated(network))
    adversarial = recipes.dann(m.JensenShannon(network, saturating=True), alpha=0.7)
    one_step = recipes.dann_reversal(alpha=0.7)
    torch.testing.assert_close(gradients(adversarial, alternating), gradients(one_step, reversal))
    ((term,),) = adversarial.critics.values()
    critic_gradients = torch.autograd.grad(
        term.critic_loss(Traces(alternating.model, alternating.guide, DATA)), [*network.parameters()]
    )
    loss = one_step.differentiable_loss(reversal.model, reversal.guide, *DATA)
    step_gradients = torch.autograd.grad(loss, [*network.parameters()])
    torch.testing.assert_close([0.7 * gradient for gradient in critic_gradients], list(step_gradients))


def test_conditional_features_are_outer_products_with_probabilities():
    dann = small(conditional=True)
    h = v.posterior("h")(Traces(dann.model, dann.guide, DATA)).values
    hy = v.posterior("hy")(Traces(dann.model, dann.guide, DATA)).values
    p = dann.classifier(h).softmax(-1)
    torch.testing.assert_close(hy.reshape(-1, 4, 3), h[:, :, None] * p[:, None, :])
    torch.testing.assert_close(hy.reshape(-1, 4, 3).sum(-1), h)
    fit(dann, recipes.dann(h="hy", hidden=(4,)))
    fit(small(conditional=True, critic=True), recipes.dann_reversal())


def test_every_source_has_its_own_critic():
    domains = torch.arange(3).repeat_interleave(8)
    labels = torch.where(domains < 2, Y, UNKNOWN)
    loss = recipes.dann(sources=(0, 1), target=2, hidden=(4,))
    assert str(loss).count("posterior(h) | d=2") == 2
    assert len({id(terms[0].critic) for terms in loss.critics.values()}) == 2
    dann = small()
    dann.check(X, labels, domains)
    result = fit(dann, loss, (X, labels, domains))
    assert len([name for name in result.chains[0].adversarial_metrics if name.startswith("critic ")]) == 2


def test_a_batch_without_the_target_adds_no_alignment():
    dann = small()
    data = X[:HALF], KNOWN[:HALF], D[:HALF]
    for distance in recipes.ALIGNMENTS:
        loss = recipes.dann(distance=distance, alpha=3.0, hidden=(4,))
        assert loss.loss(dann.model, dann.guide, *data) == pytest.approx(
            ppgen.ELBO().loss(dann.model, dann.guide, *data), abs=1e-6
        )


def test_custom_networks_train_with_pyros_svi():
    features = nn.Sequential(nn.Linear(3, 6), nn.Tanh())
    classifier = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    dann = DANN((3,), 3, features=features, classifier=classifier)
    loss = recipes.dann(distance="mmd", alpha=1.0)
    svi = infer.SVI(dann.model, dann.guide, pyro.optim.Adam({"lr": 0.01}), loss)
    first = svi.step(*DATA)
    for _ in range(30):
        last = svi.step(*DATA)
    assert last < first
    assert dann.features_of(X).shape == (2 * HALF, 6)
    torch.testing.assert_close(dann.predict_proba(X).sum(-1), torch.ones(2 * HALF))
    assert torch.equal(dann.predict(X), classifier(features(X)).argmax(-1))
    assert dann.training


@pytest.mark.slow
def test_eager_and_compiled_steps_agree():
    fitted = []
    for compile in (False, True):
        dann = small()
        fit(dann, recipes.dann(hidden=(4,), steps=2, weight=0.1), steps=12, compile=compile)
        fitted.append([parameter.detach() for parameter in dann.parameters()])
    torch.testing.assert_close(*fitted, rtol=1e-4, atol=1e-5)


def test_bayesian_weights_have_a_posterior_in_arviz():
    dann = small(bayesian=True)
    loss = recipes.dann(distance="coral", alpha=0.1)
    result = fit(dann, loss, steps=50)
    idata = result.to_arviz(*DATA, draws=30)
    assert idata["posterior"]["w"].shape == (1, 30, 5, 3)
    p = dann.predict_proba(X, draws=7)
    torch.testing.assert_close(p.sum(-1), torch.ones(2 * HALF))
    with torch.no_grad():
        dann.log_scale.fill_(-30.0)
        h = dann.features(X)
        expected = (h @ dann.loc[:-1] + dann.loc[-1]).softmax(-1)
    torch.testing.assert_close(dann.predict_proba(X, draws=2), expected)


def test_the_elbo_of_almost_certain_bayesian_weights_has_the_closed_form():
    dann = small(bayesian=True)
    with torch.no_grad():
        dann.log_scale.fill_(-12.0)
    posterior = torch.distributions.Normal(dann.loc, dann.log_scale.exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum()
    h = dann.features(X[:HALF])
    error = F.cross_entropy(h @ dann.loc[:-1] + dann.loc[-1], Y[:HALF], reduction="sum")
    loss = (ppgen.Reconstruction() + ppgen.Rate()).loss(dann.model, dann.guide, *DATA)
    assert loss == pytest.approx(((error + kl) / (2 * HALF)).item(), rel=1e-4)


def test_missing_labels_are_latent():
    dann = small()
    trace = pyro.poutine.trace(dann.model).get_trace(X)
    assert not trace.nodes["y"]["is_observed"]
    assert "d" not in trace.nodes
    assert ppgen.ELBO().loss(dann.model, dann.guide, X) == pytest.approx(0.0, abs=1e-6)


MOONS, MOVED = data.moons(100, seed=0), data.rotated_moons(100, degrees=35.0, seed=1)
FLAT = torch.as_tensor(MOONS[0]), torch.as_tensor(MOVED[0])
# loss, learning rate, steps, shift of the target, and the expected warnings
RUNS: dict[str, tuple[Any, float, int, float, list[str]]] = {
    "a good run": (recipes.dann(hidden=(8,), lr=0.02, weight=0.1), 0.01, 200, 0.0, []),
    "next to no alignment": (recipes.dann(hidden=(8,), lr=0.02, alpha=1e-4), 0.01, 200, 3.0, ["critic never fooled"]),
    "a critic that learns nothing": (
        recipes.dann(hidden=(8,), lr=1e-7),
        0.01,
        200,
        0.0,
        ["critic at chance too early"],
    ),
    "alignment alone": (recipes.dann(alpha=1e3), 0.1, 100, 0.0, ["features collapsed"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNS)
def test_warnings_of_adaptation_appear_when_provoked(case):
    loss, rate, steps, shift, warnings = RUNS[case]
    torch.manual_seed(0)
    dann = DANN((2,), 2, latent_dim=8, hidden=(8,), activation="tanh")
    domains = FLAT[0], FLAT[1] + shift
    start = [dann.features_of(x) for x in domains]
    y = torch.as_tensor(MOONS[1])
    rows = torch.cat(domains), torch.cat([y, torch.full_like(y, UNKNOWN)]), torch.arange(2).repeat_interleave(100)
    result = fit(dann, copy.deepcopy(loss), rows, steps=steps, batch_size=None, lr=rate)
    spreads = {name: feature_spread(dann.features_of(x), h) for name, x, h in zip("ab", domains, start, strict=True)}
    found = result.training_warnings() + features_collapsed(spreads)
    assert sorted({finding.name for finding in found}) == warnings


def test_matching_two_selections_of_one_view_is_an_alignment():
    h, metric = v.posterior("h"), m.JensenShannon()
    assert ppgen.match(h.given(d=0), h.given(d=1), metric).is_alignment
    assert not ppgen.match(v.data("x"), v.generated("x"), metric).is_alignment
    assert not ppgen.match(v.data("x").given(d=0), v.generated("x").given(d=1), metric).is_alignment
    assert not ppgen.match(h, h, metric).is_alignment
    assert not ppgen.ELBO().is_alignment


BAD: dict[str, tuple[Any, Any, Any, type[Exception], str]] = {
    "one domain": (X, KNOWN, torch.ones_like(D), ValueError, "all rows are of domain 1: give rows of a source and"),
    "no labels": (X, torch.full_like(Y, UNKNOWN), D, ValueError, "no row has a label, all y are -1"),
    "unknown class": (X, Y + 1, D, ValueError, r"labels y in 0 \.\. 2, or -1 where there is none; got 1 \.\. 3"),
    "below unknown": (X, Y - 2, D, ValueError, r"got -2 \.\. 0"),
    "no domain": (X, KNOWN, None, ValueError, "expected x, y and d"),
    "domains that are floats": (X, KNOWN, D.float(), ValueError, r"d of shape \(24,\), integers, got torch.float32"),
    "few labels": (X, KNOWN[:-1], D, ValueError, r"y of shape \(24,\), integers, got torch.int64 \(23,\)"),
    "other events": (X[:, :2], KNOWN, D, ValueError, r"x of shape \(n, 3\), got \(24, 2\)"),
    "NaN": (X / 0 * 0, KNOWN, D, ValueError, "x to be finite"),
    "an array": (X.numpy(), KNOWN, D, TypeError, "x to be a tensor, got ndarray"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused(case):
    x, y, d, error, message = BAD[case]
    with pytest.raises(error, match=message):
        small().check(x, y, d)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"expected distance to be one of 'jensen_shannon', .*got 'l2'"):
        recipes.dann(distance="l2")
    with pytest.raises(ValueError, match="a target that is not a source"):
        recipes.dann(sources=(0, 1), target=1)
    with pytest.raises(ValueError, match="give either classifier or bayesian=True"):
        small(bayesian=True, classifier=nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"features: expected \(n, width\) of \(n, 3\)"):
        DANN((3,), 3, features=nn.Unflatten(1, (3, 1)))
