"""Views: which rows they hold, in what order, with what weights, and what they refuse."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from support import Pair
from torch import nn

import ppgen as o
from ppgen import metrics as m
from ppgen import views as v
from ppgen.tracing.traces import Traces

Normal = dist.Normal
METRICS = [m.MMD(unbiased=False), m.EnergyDistance(unbiased=False)]


def coded(size: int = 50, batch: int = 6) -> Pair:
    """Data 0, 1, 2, ... subsampled at random; the code of x is x, its reconstruction -x, and d marks even ones."""
    data = torch.arange(float(size))

    def model():
        with pyro.plate("data", size, subsample_size=batch) as rows:
            z = pyro.sample("z", Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("d", dist.Bernoulli(0.5), obs=(data[rows] % 2 == 0).float())
            pyro.deterministic("h", 3 * z, event_dim=1)
            pyro.deterministic("g", 3 * z)
            pyro.sample("x", dist.Delta(-z, event_dim=1), obs=data[rows, None])

    def guide():
        with pyro.plate("data", size, subsample_size=batch) as rows:
            pyro.sample("z", dist.Delta(data[rows, None], event_dim=1))

    return Pair(model, guide, (), size)


@pytest.fixture
def draws() -> Traces:
    pair = coded()
    return Traces(pair.model, pair.guide)


# which rows


def test_rows_of_data_and_posterior_belong_together_under_a_subsample(draws):
    z, x = (v.posterior("z") & v.data("x"))(draws).values
    assert z.shape == x.shape == (6, 1)
    assert len(set(x[:, 0].tolist())) == 6
    assert torch.equal(z, x)


@pytest.mark.parametrize("first", ["generated", "reconstructed", "data", "posterior"])
def test_views_share_one_run_of_the_programs(draws, first):
    getattr(v, first)("x" if first != "posterior" else "z")(draws)  # whichever is used first
    x, z = v.data("x")(draws).values, v.posterior("z")(draws).values
    assert torch.equal(x, z)
    assert torch.equal(v.reconstructed("x")(draws).values, -z)
    assert torch.equal(v.generated("x")(draws).values, -v.prior("z")(draws).values)
    assert torch.equal(v.prior("z")(draws).values, v.generated("z")(draws).values)
    assert not torch.equal(v.prior("z")(draws).values, z)
    new_x, new_z, d = (v.generated("x") & v.prior("z") & v.data("d"))(draws).values
    assert torch.equal(new_x, -new_z)
    assert torch.equal(d, (x[:, 0] % 2 == 0).float())


@pytest.mark.parametrize("batch", [6, 1])
def test_deterministic_sites_have_rows_with_and_without_event_dim(batch):
    pair = coded(batch=batch)
    draws = Traces(pair.model, pair.guide)
    for distribution, latent in ((v.posterior, v.posterior), (v.generated, v.prior), (v.reconstructed, v.posterior)):
        for site in ("h", "g"):
            value = distribution(site)(draws).values
            assert value.shape == (batch, 1)
            assert torch.equal(value, 3 * latent("z")(draws).values)


def test_a_guides_own_features_are_posterior_sites():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(0.0, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            h = pyro.deterministic("h", 2 * x)
            pyro.sample("z", Normal(h, 1.0))

    x = torch.randn(4)
    assert torch.equal(v.posterior("h")(Traces(model, guide, (x,))).values, 2 * x)


@pytest.mark.parametrize("data_dim", [-1, -2])
def test_rows_come_first_wherever_the_data_plate_is(data_dim):
    n, other = 5, -3 - data_dim
    shape = (3, n) if data_dim == -1 else (n, 3)
    x = torch.randn(*shape, 2)

    def model():
        with pyro.plate("data", n, dim=data_dim):
            w = pyro.sample("w", Normal(0.0, 1.0))
            with pyro.plate("features", 3, dim=other):
                z = pyro.sample("z", Normal(0.0, 1.0).expand([2]).to_event(1))
                pyro.deterministic("h", w.unsqueeze(-1) + z, event_dim=1)
                pyro.deterministic("g", w.unsqueeze(-1) + z)
                pyro.sample("x", Normal(z, 1.0).to_event(1), obs=x)

    def guide():
        with pyro.plate("data", n, dim=data_dim):
            pyro.sample("w", Normal(0.0, 1.0))
            with pyro.plate("features", 3, dim=other):
                pyro.sample("z", dist.Delta(x, event_dim=1))

    draws = Traces(model, guide)
    rows_first = x.movedim(data_dim - 1, 0)
    assert rows_first.shape == (n, 3, 2)
    assert torch.equal(v.data("x")(draws).values, rows_first)
    assert torch.equal(v.posterior("z")(draws).values, rows_first)
    assert v.generated("x")(draws).values.shape == (n, 3, 2)
    w = v.posterior("w")(draws).values
    assert w.shape == ((n, 1) if data_dim == -2 else (n,))
    for site in ("h", "g"):
        assert torch.equal(v.posterior(site)(draws).values, rows_first + w.reshape(n, 1, 1))


def test_broadcast_observations_have_every_row():
    def model():
        with pyro.plate("data", 4):
            pyro.sample("x", Normal(0.0, 1.0).expand([2]).to_event(1), obs=torch.tensor([1.0, 2.0]))
            pyro.sample("y", Normal(0.0, 1.0), obs=torch.tensor([3.0]))

    draws = Traces(model, lambda: None)
    assert torch.equal(v.data("x")(draws).values, torch.tensor([[1.0, 2.0]]).expand(4, 2))
    assert torch.equal(v.data("y")(draws).values, torch.full((4,), 3.0))


# weights


def masked(mask, event: bool = True) -> Traces:
    x = torch.arange(8.0).reshape(4, 2)

    def model():
        with pyro.plate("data", 4, dim=-1 if event else -2), poutine.mask(mask=mask):
            distribution = Normal(0.0, 1.0).expand([4, 2])
            if event:
                pyro.sample("x", distribution.to_event(1), obs=x)
            else:
                with pyro.plate("features", 2, dim=-1):
                    pyro.sample("x", distribution, obs=x)

    return Traces(model, lambda: None)


@pytest.mark.parametrize(
    ("mask", "event", "weights"),
    [
        (torch.tensor([True, False, True, True]), True, [1, 0, 1, 1]),
        (torch.tensor([[True], [False], [True], [True]]), False, [1, 0, 1, 1]),
        (torch.tensor(True), True, [1, 1, 1, 1]),
        (False, True, [0, 0, 0, 0]),
        (torch.tensor([False]), True, [0, 0, 0, 0]),
        (True, True, None),
    ],
)
def test_masks_become_weights(mask, event, weights):
    draws = masked(mask, event)
    for view in (v.data("x"), v.generated("x")):
        values, got = view(draws)
        assert values.shape == (4, 2)
        assert (got if got is None else got.tolist()) == weights


def test_a_masked_row_has_no_effect():
    keep = torch.tensor([True, False, True, True])
    values, weights = v.data("x")(masked(keep))
    other = torch.randn(5, 2)
    for metric in METRICS:
        torch.testing.assert_close(metric(values, other, weights), metric(values[keep], other))


@pytest.mark.parametrize(
    "observe",
    [
        lambda x, keep: (Normal(0.0, 1.0).expand([4, 2]).to_event(1).mask(keep), x),
        lambda x, keep: (Normal(0.0, 1.0).expand([4, 2]).mask(keep[:, None]).to_event(1), x),
        lambda x, keep: (
            dist.NanMaskedNormal(0 * x, 1.0).to_event(1),
            x.masked_fill(~keep[:, None], torch.nan),
        ),
    ],
)
def test_masked_distributions_and_missing_rows_become_weights(observe):
    """Values of weight zero are finite, so that they have no effect."""
    x, keep = torch.arange(8.0).reshape(4, 2), torch.tensor([True, False, True, True])

    def model():
        with pyro.plate("data", 4):
            fn, obs = observe(x, keep)
            pyro.sample("x", fn, obs=obs)

    draws = Traces(model, lambda: None)
    for view in (v.data("x"), v.generated("x")):
        values, weights = view(draws)
        assert weights.tolist() == [1, 0, 1, 1]
        assert values.isfinite().all()
    assert torch.equal(v.data("x")(draws).values[keep], x[keep])


def test_the_mask_of_a_latents_distribution_is_no_weight():
    """``mask(False)`` says that a latent has no density; its draws count."""

    def model():
        with pyro.plate("data", 4):
            pyro.sample("z", Normal(0.0, 1.0).mask(False))

    assert v.prior("z")(Traces(model, lambda: None)).weights is None


def test_a_mask_within_a_row_is_an_error():
    mask = torch.tensor([[True, True], [True, False], [True, True], [False, False]])
    with pytest.raises(ValueError, match=r"data\('x'\): the mask of site 'x' differs within a row"):
        v.data("x")(masked(mask, event=False))


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_given_equals_indexing_the_rows(draws, metric):
    z, d = v.posterior("z")(draws).values, v.data("d")(draws).values
    even, odd = z[d == 1], z[d == 0]
    assert len(even) > 1
    assert len(odd) > 1
    term = o.match(v.posterior("z").given(d=1), v.posterior("z").given(d=0), metric)
    torch.testing.assert_close(term.value(draws), metric(even, odd))
    # joined, and selected before joining
    x = v.data("x")
    term = o.match(v.posterior("z").given(d=1) & x, (x & v.posterior("h")).given(d=0), metric)
    expected = metric((even, even), (odd, 3 * odd))
    torch.testing.assert_close(term.value(draws), expected)


def test_given_uses_the_site_of_the_same_run_as_the_view(draws):
    x = v.data("x")(draws).values[:, 0]
    even = (x % 2 == 0).float()
    drawn = v.generated("d")(draws).values
    assert not torch.equal(drawn, even)
    for view, site in (
        (v.data("x"), even),
        (v.posterior("z"), even),
        (v.reconstructed("x"), even),
        (v.data("x") & v.generated("x"), even),
        (v.generated("x"), drawn),
        (v.prior("z"), drawn),
    ):
        assert torch.equal(view.given(d=1)(draws).weights, site), str(view)
        assert torch.equal(view.given(d=1).given(d=0)(draws).weights, torch.zeros(6)), str(view)


def test_given_and_masks_multiply():
    x = torch.arange(4.0)

    def model():
        with pyro.plate("data", 4):
            pyro.sample("d", Normal(0.0, 1.0), obs=torch.tensor([1.0, 1.0, 2.0, 2.0]))
            with poutine.mask(mask=torch.tensor([True, False, True, False])):
                pyro.sample("x", Normal(0.0, 1.0), obs=x)

    draws = Traces(model, lambda: None)
    assert v.data("x").given(d=2)(draws).weights.tolist() == [0, 0, 1, 0]


# words


def test_str_of_a_view_is_its_expression():
    joint = (v.data("x") & v.posterior("z")).given(d=1, e=0.5)
    assert str(joint) == "data(x) & posterior(z) | d=1, e=0.5"
    assert joint.name == "x, z"
    assert str(v.prior("z")) == "prior(z)"
    assert v.data("x").of_data
    assert not joint.of_data
    assert {v.data("x"): 1}[v.data("x")] == 1


# what is refused


def test_given_needs_one_number_per_row(draws):
    with pytest.raises(ValueError, match=r"given\(x=1\): site 'x' must have one number per row, got shape \(4, 2\)"):
        v.data("x").given(x=1)(masked(True))
    with pytest.raises(TypeError, match=r"given\(d='one'\): expected a number"):
        v.data("x").given(d="one")
    with pytest.raises(LookupError, match=r"data\('dd'\).*did you mean 'd'"):
        v.data("x").given(dd=1)(draws)


def test_only_views_can_be_joined():
    with pytest.raises(TypeError):
        v.data("x") & "z"


def test_a_site_outside_the_data_plate_is_an_error(subsampled):
    draws = Traces(subsampled.model, subsampled.guide, subsampled.args)
    with pytest.raises(ValueError, match=r"posterior\('w'\) has no rows.*\(its plates: none\)"):
        v.posterior("w")(draws)

    def model():
        with pyro.plate("rows", 3):
            pyro.sample("x", Normal(0.0, 1.0), obs=torch.zeros(3))

    with pytest.raises(ValueError, match=r"\(its plates: 'rows'\).*name its plate \"data\""):
        v.data("x")(Traces(model, lambda: None))


def test_a_deterministic_site_with_ambiguous_rows_is_an_error():
    def model():
        with pyro.plate("data", 3):
            pyro.deterministic("h", torch.zeros(2, 3))
            pyro.deterministic("c", torch.tensor(1.0))

    for site in "hc":
        with pytest.raises(ValueError, match=rf"deterministic site '{site}'.*event_dim="):
            v.generated(site)(Traces(model, lambda: None))


def bernoulli(logits) -> Traces:
    def model():
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=torch.zeros(4, 2))

    return Traces(model, lambda: None)


def test_a_draw_without_rsample_is_an_error():
    logits = nn.Parameter(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"generated\('x'\): site 'x' \(Bernoulli\) has no rsample"):
        v.generated("x")(bernoulli(logits))
    # without parameters there is no gradient to lose
    assert v.data("x")(bernoulli(logits)).values.shape == (4, 2)
    assert v.generated("x")(bernoulli(logits.detach())).values.shape == (4, 2)
    with torch.no_grad():
        assert v.generated("x")(bernoulli(logits)).values.shape == (4, 2)


def test_a_reconstruction_from_a_draw_without_rsample_is_an_error():
    logits = nn.Parameter(torch.zeros(4))

    def model():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", Normal(z, 1.0), obs=torch.zeros(4))

    def guide():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    for view in (v.reconstructed("x"), v.posterior("z")):
        with pytest.raises(ValueError, match=r"site 'z' \(Bernoulli\) has no rsample"):
            view(Traces(model, guide))
    assert v.generated("x")(Traces(model, guide)).values.shape == (4,)


def test_a_relaxed_draw_has_a_gradient():
    logits = nn.Parameter(torch.zeros(4, 2))

    def model():
        with pyro.plate("data", 4):
            distribution = dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), logits=logits)
            pyro.sample("x", distribution.to_event(1), obs=torch.zeros(4, 2))

    v.generated("x")(Traces(model, lambda: None)).values.sum().backward()
    assert (logits.grad != 0).all()


# means in place of draws


def decoded(distribution, *, size: int = 4) -> Traces:
    """x ~ distribution(z), with a guide whose latent is the data."""

    def model():
        with pyro.plate("data", size):
            z = pyro.sample("z", Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", distribution(z), obs=distribution(torch.zeros(size, 2)).sample())

    def guide():
        with pyro.plate("data", size):
            pyro.sample("z", Normal(torch.ones(size, 2), 0.1).to_event(1))

    return Traces(model, guide)


# Distributions of x given z, and their means.
DISTRIBUTIONS = {
    "normal": (lambda z: Normal(3 * z, 1.0).to_event(1), lambda z: 3 * z),
    "bernoulli": (lambda z: dist.Bernoulli(logits=z).to_event(1), torch.sigmoid),
    "delta": (lambda z: dist.Delta(-z, event_dim=1), lambda z: -z),
    "categorical": (
        lambda z: dist.Categorical(logits=torch.stack([z, 2 * z, -z], -1)).to_event(1),
        lambda z: torch.stack([z, 2 * z, -z], -1).softmax(-1) @ torch.arange(3.0),
    ),
    "full covariance": (lambda z: dist.MultivariateNormal(z, torch.eye(2)), lambda z: z),
    "shared": (lambda z: Normal(z[:1], 1.0).expand([len(z), 2]).to_event(1), lambda z: z[:1].expand(len(z), 2)),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_mean_is_that_of_the_distribution_at_its_own_latents(name):
    distribution, mean = DISTRIBUTIONS[name]
    draws = decoded(distribution)
    for view, z in ((v.generated, v.prior("z")), (v.reconstructed, v.posterior("z"))):
        values, weights = view("x", of="mean")(draws)
        torch.testing.assert_close(values, mean(z(draws).values))
        assert weights is None
        drawn = view("x")(draws).values  # of the same trace, and left as it was
        assert drawn.shape == values.shape
        assert torch.equal(drawn, values) == (name == "delta")


def test_the_mean_of_a_distribution_without_rsample_has_a_gradient():
    logits = nn.Parameter(torch.zeros(4, 2))
    v.generated("x", of="mean")(bernoulli(logits)).values.sum().backward()
    assert torch.equal(logits.grad, torch.full((4, 2), 0.25))
    with pytest.raises(
        ValueError, match=r'use its mean, generated\(\'x\', of="mean"\); use a distribution with rsample'
    ):
        v.generated("x")(bernoulli(logits))


def test_a_mean_at_latents_without_rsample_is_an_error():
    logits = nn.Parameter(torch.zeros(4))

    def model():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", Normal(z, 1.0), obs=torch.zeros(4))

    def guide():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    with pytest.raises(ValueError, match=r"reconstructed\('x'\): site 'z' \(Bernoulli\) has no rsample"):
        v.reconstructed("x", of="mean")(Traces(model, guide))


def test_means_can_be_joined_and_selected(draws):
    joint = (v.generated("x", of="mean") & v.prior("z")).given(d=1)
    (x, z), weights = joint(draws)
    assert torch.equal(x, -z)
    assert torch.equal(weights, v.generated("d")(draws).values)
    assert str(joint) == "generated(x, of=mean) & prior(z) | d=1"
    assert str(v.data("x") & v.reconstructed("x", of="mean")) == "data(x) & reconstructed(x, of=mean)"
    assert v.generated("x", of="mean") != v.generated("x")
    assert v.generated("x", of="draw") == v.generated("x")


def test_a_joint_view_of_a_site_and_its_mean_is_an_error():
    drawn, mean = v.generated("x"), v.generated("x", of="mean")
    for first, second in ((drawn, mean), (mean, drawn & v.prior("z"))):
        with pytest.raises(ValueError, match="a joint view has each site once, as draw or mean"):
            first & second
    assert str(mean & v.reconstructed("x")) == "generated(x, of=mean) & reconstructed(x)"


def test_a_mean_has_the_rows_and_the_mask_of_its_site():
    draws = masked(torch.tensor([True, False, True, True]))
    values, weights = v.generated("x", of="mean")(draws)
    assert values.shape == (4, 2)
    assert weights.tolist() == [1, 0, 1, 1]


def test_another_value_of_of_is_an_error():
    for view in (v.generated, v.reconstructed):
        with pytest.raises(ValueError, match=rf"{view.__name__}\('x'\): of must be \"draw\" or \"mean\", got 'mode'"):
            view("x", of="mode")
