"""Joint transport of features and labels: closed forms, exact transport, gradients, and what it refuses."""

import math

import ot
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F

import ppgen
from ppgen import recipes
from ppgen.losses import JointTransport
from ppgen.models import DANN, UNKNOWN

TORCH = torch.Generator().manual_seed(0)
H = torch.randn(7, 2, generator=TORCH).double()
LOGITS = torch.randn(7, 3, generator=TORCH).double()
D = torch.tensor([0, 0, 0, 1, 1, 1, 1])
Y = torch.tensor([0, 2, 1, *[UNKNOWN] * 4])


def given(h, logits, y, d):
    """A program whose features and logits are given."""
    with pyro.plate("data", len(h)):
        pyro.deterministic("h", h, event_dim=1)
        pyro.sample("d", dist.Delta(d.double()), obs=d.double())
        with pyro.poutine.mask(mask=y >= 0):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y.clamp(min=0))


def empty(*_):
    """Its guide."""


def value(term, h=H, logits=LOGITS, y=Y, d=D):
    return term.differentiable_loss(given, empty, h, logits, y, d)


def test_one_row_of_each_domain_has_the_closed_form():
    rows = torch.tensor([0, 4])
    found = value(JointTransport(features=0.3), H[rows], LOGITS[rows], Y[rows], D[rows])
    expected = 0.3 * (H[0] - H[4]).square().sum() + F.cross_entropy(LOGITS[4], Y[0])
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_value_is_that_of_exact_transport():
    # the loss of DeepJDOT as skada 0.6.0 computes it: exact transport of the same cost
    source, target = D == 0, D == 1
    cost = 0.3 * torch.cdist(H[source], H[target]).square()
    cost += torch.stack([F.cross_entropy(LOGITS[target], label.expand(4), reduction="none") for label in Y[source]])
    exact = ot.emd2([1 / 3] * 3, [1 / 4] * 4, cost.numpy())
    assert value(JointTransport(features=0.3)).item() == pytest.approx(exact, rel=1e-9)


def test_classes_are_matched_to_classes():
    h = torch.tensor([[0.0], [1.0], [1.0], [0.0]]).double()
    d, y = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, UNKNOWN, UNKNOWN])
    right = 20 * torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 0]]).double()
    assert value(JointTransport(), h, right, y, d).item() == pytest.approx(0, abs=1e-6)
    exchanged = value(JointTransport(features=0.1), h, right.flip(1), y, d).item()
    assert exchanged == pytest.approx(0.1, rel=1e-6)  # features move by one, rather than labels by 20 nats


def test_rows_without_weight_change_nothing():
    hidden = torch.cat([H, 100 * torch.ones(2, 2).double()]), torch.cat([LOGITS, torch.zeros(2, 3).double()])
    y, d = torch.cat([Y, torch.tensor([1, UNKNOWN])]), torch.cat([D, torch.tensor([2, 0])])  # no label, or domain 2
    assert value(JointTransport(), *hidden, y, d).item() == pytest.approx(value(JointTransport()).item(), rel=1e-9)


@pytest.mark.parametrize("domain", [0, 1])
def test_a_batch_without_a_domain_adds_nothing(domain):
    h = H.clone().requires_grad_()
    found = value(JointTransport(), h, d=torch.full_like(D, domain))
    (gradient,) = torch.autograd.grad(found, [h])
    assert found.item() == 0
    assert not gradient.any()


def test_gradients_are_those_of_the_cost_at_a_fixed_plan():
    h, logits = (part.clone().requires_grad_() for part in (H, LOGITS))
    term = JointTransport(features=0.3)
    of_h, of_logits = torch.autograd.grad(value(term, h, logits), [h, logits])
    step = 1e-6
    for part, gradient in ((0, of_h), (1, of_logits)):
        direction = torch.randn(H.shape if part == 0 else LOGITS.shape, generator=TORCH).double()
        moved = [(H + s * direction, LOGITS) if part == 0 else (H, LOGITS + s * direction) for s in (step, -step)]
        plus, minus = (value(term, *pair).item() for pair in moved)
        assert (plus - minus) / (2 * step) == pytest.approx((gradient * direction).sum().item(), rel=1e-6)
    assert not of_logits[D == 0].any()  # the source's predictions learn from its labels


def test_the_recipe_trains_a_classifier_of_the_target():
    torch.manual_seed(0)
    x = torch.randn(80, 2)
    labels = (x[:, 0] > 0).long()
    x[:, 0] += torch.where(labels == 1, 2.0, -2.0)
    d = torch.arange(2).repeat_interleave(40)
    x[d == 1] += torch.tensor([2.5, 0.0])
    y = torch.where(d == 0, labels, UNKNOWN)
    right = {}
    for name, loss in (("source", ppgen.ELBO()), ("joint", recipes.dann(distance="joint_transport", alpha=1.0))):
        torch.manual_seed(0)
        dann = DANN((2,), 2, latent_dim=8, hidden=(8,))
        ppgen.fit(dann.model, dann.guide, (x, y, d), loss=loss, steps=40, optim=adam, compile=False, progress=False)
        right[name] = float((dann.predict(x[d == 1]) == labels[d == 1]).float().mean())
    assert right["source"] < 0.8 < 0.95 < right["joint"]


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.05)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="features: expected a weight of at least 0, got -1"):
        JointTransport(features=-1)
    with pytest.raises(ValueError, match=r"joint_transport matches classes by their labels .*leave conditional out"):
        recipes.dann(distance="joint_transport", h="hy")

    def normal(h, logits, y, d):
        with pyro.plate("data", len(h)):
            pyro.deterministic("h", h, event_dim=1)
            pyro.sample("d", dist.Delta(d.double()), obs=d.double())
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y.double())

    with pytest.raises(ValueError, match="site 'y' must be Categorical with one label a row of the plate, got Normal"):
        JointTransport().differentiable_loss(normal, empty, H, LOGITS, Y, D)
    assert str(JointTransport()) == "JointTransport(posterior(h) | d=0 & data(y), posterior(h) | d=1)"
    assert math.isfinite(value(JointTransport(features=0)).item())
