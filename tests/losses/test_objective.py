"""Terms and their sums: parity with Pyro's ELBOs, closed forms, the algebra, Pyro's SVI, errors."""

import functools
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, AutoNormalMessenger
from pyro.nn import PyroModule, PyroParam
from support import Pair, gaussian_pair
from torch import nn

import ppgen
from ppgen import metrics as m
from ppgen import views as v
from ppgen.tracing.particles import particle_traces
from ppgen.tracing.traces import Traces

Normal = dist.Normal


# programs beside those of conftest


def score_function() -> Pair:
    """A Bernoulli latent, which has no rsample."""
    x = torch.randn(5)

    def model(x):
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.4))
            pyro.sample("x", Normal(loc[c.long()], 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.7))
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=slope * x))

    return Pair(model, guide, (x,), 5)


def random_subsample() -> Pair:
    """Both programs take 3 rows of 8 at random."""
    x = torch.randn(8)

    def model(x):
        slope = pyro.param("slope", torch.tensor(0.8))
        with pyro.plate("data", 8, subsample_size=3) as rows:
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(slope * z, 0.5), obs=x[rows])

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.4), constraint=dist.constraints.positive)
        with pyro.plate("data", 8, subsample_size=3) as rows:
            pyro.sample("z", Normal(x[rows], scale))

    return Pair(model, guide, (x,), 8)


def scaled_and_masked() -> Pair:
    pair = gaussian_pair()
    keep = torch.tensor([True, False, True, True, False, True])

    def wrap(program):
        return poutine.scale(poutine.mask(program, mask=keep), scale=0.3)

    return pair._replace(model=wrap(pair.model), guide=wrap(pair.guide))


def sequential() -> Pair:
    def model(x):
        loc = pyro.sample("loc", Normal(0.0, 1.0))
        for i in pyro.plate("data", 4):
            pyro.sample(f"x{i}", Normal(loc, 1.0), obs=x[i])

    def guide(x):
        pyro.sample("loc", Normal(pyro.param("at", torch.tensor(0.5)), 0.3))

    return Pair(model, guide, (torch.randn(4),), 4)


def with_factor() -> Pair:
    def model(x):
        strength = pyro.param("strength", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.factor("penalty", -strength * z.square())
            pyro.sample("x", Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(x, 0.4))

    return Pair(model, guide, (torch.randn(5),), 5)


def no_plate() -> Pair:
    def model(x):
        loc = pyro.sample("loc", Normal(0.0, 1.0))
        pyro.sample("x", Normal(loc.expand(3), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("loc", Normal(pyro.param("at", torch.tensor(0.5)), 0.3))

    return Pair(model, guide, (torch.randn(3),), 1)


class Line(PyroModule):
    def __init__(self):
        super().__init__()
        self.slope = PyroParam(torch.tensor(0.5))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(self.slope * z, 0.8), obs=x)


def module_and_autoguide() -> Pair:
    model = Line()
    return Pair(model, AutoNormal(model), (torch.randn(5),), 5)


def module_and_messenger() -> Pair:
    model = Line()
    return Pair(model, AutoNormalMessenger(model), (torch.randn(5),), 5)


BUILDERS = {
    "score_function": score_function,
    "random_subsample": random_subsample,
    "scaled_and_masked": scaled_and_masked,
    "sequential": sequential,
    "with_factor": with_factor,
    "no_plate": no_plate,
    "module_and_autoguide": module_and_autoguide,
    "module_and_messenger": module_and_messenger,
}
PROGRAMS = ["vae", "subsampled", "nested", *BUILDERS]


@pytest.fixture
def pair(request) -> Pair:
    name = request.param
    return BUILDERS[name]() if name in BUILDERS else request.getfixturevalue(name)


# parity with Pyro

ELBOS = {
    "trace": Trace_ELBO,
    "trace, 3 particles": functools.partial(Trace_ELBO, num_particles=3),
    "trace, 3 vectorized": functools.partial(Trace_ELBO, num_particles=3, vectorize_particles=True),
    "mean field": TraceMeanField_ELBO,
    "mean field, 3 vectorized": functools.partial(TraceMeanField_ELBO, num_particles=3, vectorize_particles=True),
} | {
    f"renyi {alpha}, {'vectorized' if vectorized else 'particles'}": functools.partial(
        RenyiELBO, alpha=alpha, num_particles=3, vectorize_particles=vectorized
    )
    for alpha, vectorized in ((0.0, False), (0.0, True), (0.5, True), (2.0, False))
}
INAPPLICABLE = {
    ("score_function", "mean field"),  # Pyro refuses discrete latents in these two
    ("score_function", "renyi"),
    # Pyro scales a row by N / B inside the logarithm; see test_the_renyi_bound_of_a_subsample_is_per_datum
    ("random_subsample", "renyi"),
}
CASES = [(p, e) for p in PROGRAMS for e in ELBOS if not any(p == q and e.startswith(f) for q, f in INAPPLICABLE)]


def loss_and_gradients(loss, pair: Pair) -> tuple[float, dict[str, torch.Tensor]]:
    pyro.set_rng_seed(3)
    store = pyro.get_param_store()
    for _, leaf in store.named_parameters():
        leaf.grad = None
    value = loss.loss_and_grads(pair.model, pair.guide, *pair.args)
    return float(value), {k: leaf.grad.clone() for k, leaf in store.named_parameters() if leaf.grad is not None}


def assert_parity(elbo, pair: Pair) -> None:
    elbo().loss(pair.model, pair.guide, *pair.args)  # makes the parameters
    expected, grads = loss_and_gradients(elbo(), pair)
    got, ours = loss_and_gradients(ppgen.ELBO(elbo=elbo()), pair)
    assert got * pair.n == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert grads
    assert ours.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(ours[name] * pair.n, grad, rtol=2e-4, atol=2e-5, msg=f"gradient of {name}")


@pytest.mark.parametrize(("pair", "elbo"), CASES, indirect=["pair"])
def test_elbo_times_n_is_the_loss_of_pyros_elbo(pair, elbo):
    assert_parity(ELBOS[elbo], pair)


def test_elbo_times_n_is_the_loss_of_pyros_elbo_with_enumeration(mixture):
    assert_parity(TraceEnum_ELBO, mixture)


def test_enumeration_gives_the_exact_log_marginal_with_and_without_gradients(mixture):
    loss = ppgen.ELBO(elbo=TraceEnum_ELBO())
    args = (mixture.model, mixture.guide, *mixture.args)
    exact = float(mixture.exact(*mixture.args).detach())
    assert float(loss.differentiable_loss(*args).detach()) == pytest.approx(exact, rel=1e-5)
    assert loss.loss(*args) == pytest.approx(exact, rel=1e-5)
    assert loss.breakdown(*args) == {"ELBO": pytest.approx(exact, rel=1e-5)}


def test_the_renyi_bound_of_a_subsample_is_per_datum():
    """The bound of a random subsample is the mean of its own rows' bounds, whatever N is."""
    pair = random_subsample()
    loss = ppgen.ELBO(elbo=RenyiELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1))
    pyro.set_rng_seed(5)
    got = loss.loss(pair.model, pair.guide, *pair.args)
    pyro.set_rng_seed(5)
    rows = torch.randperm(8)[:3]
    x, eps = pair.args[0][rows], torch.randn(4, 3)
    z = x + 0.4 * eps
    log_weights = Normal(0.0, 1.0).log_prob(z) + Normal(0.8 * z, 0.5).log_prob(x) - Normal(x, 0.4).log_prob(z)
    assert got == pytest.approx(-float((log_weights.logsumexp(0) - torch.tensor(4.0).log()).mean()), rel=1e-5)


# ELBO, reconstruction and rate


@pytest.mark.parametrize("pair", [p for p in PROGRAMS if p != "score_function"], indirect=True)
def test_elbo_is_reconstruction_plus_rate(pair):
    parts = ppgen.Reconstruction() + ppgen.Rate()
    parts.loss(pair.model, pair.guide, *pair.args)
    expected, grads = loss_and_gradients(ppgen.ELBO(elbo=TraceMeanField_ELBO()), pair)
    got, ours = loss_and_gradients(parts, pair)
    assert got == pytest.approx(expected, rel=1e-5)
    assert ours.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-4, atol=1e-5)


def test_the_closed_form_rate_is_the_mean_over_draws(vae):
    rate = ppgen.Rate().loss(vae.model, vae.guide, *vae.args)
    with torch.no_grad():
        (many,) = particle_traces(vae.model, vae.guide, vae.args, particles=20_000)
    model_trace, guide_trace = many.with_log_probs
    draws = (guide_trace.nodes["z"]["log_prob"] - model_trace.nodes["z"]["log_prob"]).mean(-1)
    error = draws.std() / len(draws) ** 0.5
    assert abs(draws.mean() - rate) < 4 * error  # level 6e-5
    assert error < 0.02 * rate


def gaussian_chain(*, reverse: bool) -> Pair:
    """z1 -> z2 in the model; the guide the same way, or z2 -> z1. `exact` is KL(q, p)."""
    n, slope = 20_000, 0.6

    def model():
        with pyro.plate("data", n):
            a = pyro.sample("a", Normal(0.0, 1.0))
            b = pyro.sample("b", Normal(a, 0.5))
            pyro.sample("x", Normal(b, 1.0), obs=torch.zeros(n))

    def guide():
        first, second = ("b", "a") if reverse else ("a", "b")
        with pyro.plate("data", n):
            one = pyro.sample(first, Normal(0.3, 0.8))
            pyro.sample(second, Normal(slope * one, 0.7))

    def joint(mean, s1, slope, s2):  # the distribution of (one, two): one ~ N(mean, s1), two ~ N(slope one, s2)
        cov = torch.tensor([[s1**2, slope * s1**2], [slope * s1**2, slope**2 * s1**2 + s2**2]])
        return torch.tensor([mean, slope * mean]), cov

    loc, cov = joint(0.3, 0.8, slope, 0.7)
    q = dist.MultivariateNormal(loc.flip(0), cov.flip(0, 1)) if reverse else dist.MultivariateNormal(loc, cov)
    p = dist.MultivariateNormal(*joint(0.0, 1.0, 1.0, 0.5))
    return Pair(model, guide, (), n, torch.distributions.kl_divergence(q, p))


@pytest.mark.parametrize("reverse", [False, True])
def test_the_rate_of_dependent_latents_is_their_kl_in_either_order(reverse):
    pair = gaussian_chain(reverse=reverse)
    draws = Traces(pair.model, pair.guide)
    rate = ppgen.Rate().value(draws)
    model_trace, guide_trace = draws.with_log_probs
    log_ratio = sum(guide_trace.nodes[k]["log_prob"] - model_trace.nodes[k]["log_prob"] for k in "ab")
    error = log_ratio.std() / pair.n**0.5  # an upper bound on that of the closed form, which averages over a only
    assert abs(rate - pair.exact) < 4 * error  # level 6e-5
    assert (float(rate) == pytest.approx(float(log_ratio.mean()), rel=1e-5)) is reverse


def test_mean_field_warns_where_its_closed_form_may_be_wrong():
    pair = gaussian_chain(reverse=True)
    with pytest.warns(UserWarning, match="different orders"):
        ppgen.ELBO(elbo=TraceMeanField_ELBO()).loss(pair.model, pair.guide)


def test_the_rate_includes_the_jacobian_of_an_autoguide():
    """Pyro's KL of a Delta leaves its log_density out, here of a positive latent drawn through an exponential."""

    def model():
        pyro.sample("s", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", Normal(0.0, 1.0), obs=torch.tensor(0.5))

    guide = AutoMultivariateNormal(model, init_scale=0.5)
    guide()
    with torch.no_grad():
        guide.loc.fill_(2.0)
    expected, _ = loss_and_gradients(ppgen.ELBO(), Pair(model, guide, (), 1))
    got, _ = loss_and_gradients(ppgen.Reconstruction() + ppgen.Rate(), Pair(model, guide, (), 1))
    assert got == pytest.approx(expected, rel=1e-5)


def test_factors_are_part_of_the_reconstruction_but_not_an_observed_site():
    pair = with_factor()
    draws = Traces(pair.model, pair.guide, pair.args)
    z = draws.guide_trace.nodes["z"]["value"]
    whole, x_alone = ppgen.Reconstruction().value(draws), ppgen.Reconstruction("x").value(draws)
    torch.testing.assert_close(whole - x_alone, 0.5 * z.square().mean())
    with pytest.raises(LookupError, match="penalty"):
        ppgen.Reconstruction("penalty").value(draws)


def test_reconstruction_of_one_site_of_two():
    x = torch.randn(4)

    def model():
        with pyro.plate("data", 4):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x)
            pyro.sample("y", Normal(-z, 2.0), obs=x)

    def guide():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Delta(x))

    args = (model, guide)
    assert ppgen.Reconstruction("y").loss(*args) == pytest.approx(float(-Normal(-x, 2.0).log_prob(x).mean()))
    both = ppgen.Reconstruction("x") + ppgen.Reconstruction("y")
    assert both.loss(*args) == pytest.approx(ppgen.Reconstruction().loss(*args))


def test_elbo_at_the_exact_posterior_is_minus_the_exact_log_marginal(ppca):
    args = (ppca.model, ppca.guide, *ppca.args)
    for elbo in (Trace_ELBO(), Trace_ELBO(num_particles=3), RenyiELBO(num_particles=3)):
        assert ppgen.ELBO(elbo=elbo).loss(*args) == pytest.approx(-float(ppca.exact.mean()), abs=1e-8)


# batches


def test_the_mean_of_a_term_over_batches_is_its_value_on_all_data():
    """Exact, by every batch of 2 rows of 5: codes are points, and the global latent is drawn first, from one seed."""
    data = torch.randn(5)

    def model(x):
        w = pyro.sample("w", Normal(0.0, 1.0))
        with pyro.plate("data", 5, subsample=x):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(w * z, 0.7), obs=x)

    def guide(x):
        pyro.sample("w", Normal(0.4, 0.3))
        with pyro.plate("data", 5, subsample=x):
            pyro.sample("z", dist.Delta(0.9 * x))

    def value(term, x):
        pyro.set_rng_seed(1)
        return term.loss(model, guide, x)

    for term in (ppgen.ELBO(), ppgen.Reconstruction(), ppgen.Rate(), ppgen.Reconstruction("x")):
        batches = [value(term, data[list(rows)]) for rows in itertools.combinations(range(5), 2)]
        assert sum(batches) / len(batches) == pytest.approx(value(term, data), rel=1e-5), term


def test_a_global_latent_counts_once_per_data_set(subsampled):
    """Its rate is KL(q(w), p(w)) / N at every batch size."""
    kl = torch.distributions.kl_divergence(Normal(0.5, 0.4), Normal(0.0, 1.0)) / 20
    for rows in (1, 4, 20):
        x = torch.zeros(rows)
        local = torch.distributions.kl_divergence(Normal(0.0, 0.4), Normal(0.0, 1.0))
        rate = ppgen.Rate().loss(subsampled.model, subsampled.guide, x)
        assert rate == pytest.approx(float(kl + local), rel=1e-5)


def test_match_does_not_depend_on_the_batch_size():
    """MMD of q(z) and p(z) over batches of 2 and of 32 rows: the same mean unbiased, not so biased."""
    data = torch.randn(64) * 0.3 + 1.0

    def model(x):
        with pyro.plate("data", 64, subsample=x):
            pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(0.0, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 64, subsample=x):
            pyro.sample("z", Normal(x, 0.2))

    def difference(unbiased):  # in standard errors
        metric = m.MMD(bandwidth=1.0, scales=(1,), unbiased=unbiased)
        term = ppgen.match(v.posterior("z"), v.prior("z"), metric)
        small, large = (
            torch.tensor([term.loss(model, guide, data[torch.randperm(64)[:rows]]) for _ in range(count)])
            for rows, count in ((2, 300), (32, 60))
        )
        return (small.mean() - large.mean()) / (small.var() / len(small) + large.var() / len(large)).sqrt()

    assert abs(difference(unbiased=True)) < 4  # level 6e-5
    assert difference(unbiased=False) > 4


# the algebra


def terms() -> list[ppgen.Objective]:
    return [
        ppgen.ELBO(),
        ppgen.Reconstruction("x"),
        ppgen.Rate(),
        ppgen.match(v.posterior("z"), v.prior("z"), m.MMD()),
        ppgen.match(v.data("x"), v.generated("x"), m.EnergyDistance()),
    ]


def loss_of(objective: ppgen.Objective, pair: Pair) -> float:
    pyro.set_rng_seed(2)
    return objective.loss(pair.model, pair.guide, *pair.args)


def test_terms_add_and_weights_scale(vae):
    a, b = ppgen.ELBO(), ppgen.match(v.posterior("z"), v.prior("z"), m.MMD())
    one, two = loss_of(a, vae), loss_of(b, vae)
    ramp = ppgen.Ramp(3.0, start=2.0, steps=10)
    for objective, expected in {
        a + b: one + two,
        a - b: one - two,
        -a: -one,
        2 * a: 2 * one,
        a * 2: 2 * one,
        3 * (a + 2 * b): 3 * one + 6 * two,
        0.5 * (2 * (a - b)): one - two,
        ramp * a: 2 * one,
        a * ramp * 2: 4 * one,
        sum([a, b, a]): 2 * one + two,
        a + (b - a): two,
    }.items():
        assert loss_of(objective, vae) == pytest.approx(expected, rel=1e-5, abs=1e-6), objective


def test_breakdown_sums_to_the_loss_under_unique_names(vae):
    listed = terms()
    objective = sum([weight * term for weight, term in zip((1, 0.5, 2, 10, 3), listed, strict=True)]) - 2 * listed[3]
    pyro.set_rng_seed(2)
    parts = objective.breakdown(vae.model, vae.guide, *vae.args)
    assert list(parts) == ["ELBO", "Reconstruction(x)", "Rate", "MMD(z)", "EnergyDistance(x)", "MMD(z) #2"]
    assert all(type(part) is float for part in parts.values())
    assert sum(parts.values()) == pytest.approx(loss_of(objective, vae), rel=1e-5)
    assert parts["MMD(z) #2"] == pytest.approx(-0.2 * parts["MMD(z)"])


def test_loss_and_breakdown_change_no_state(vae):
    objective = ppgen.Ramp(1.0, steps=10) * sum(terms())
    objective.loss_and_grads(vae.model, vae.guide, *vae.args)
    leaves = dict(pyro.get_param_store().named_parameters())
    before = {k: (p.detach().clone(), p.grad.clone()) for k, p in leaves.items()}
    assert objective.step == 1
    objective.loss(vae.model, vae.guide, *vae.args)
    objective.breakdown(vae.model, vae.guide, *vae.args)
    objective.differentiable_loss(vae.model, vae.guide, *vae.args)
    assert objective.step == 1
    assert len(before) == 4
    for name, (value, grad) in before.items():
        assert torch.equal(leaves[name], value)
        assert torch.equal(leaves[name].grad, grad)


def test_schedules_follow_the_number_of_steps(vae):
    objective = ppgen.ELBO() + ppgen.Ramp(1.0, steps=4) * ppgen.Rate()
    weights = []
    for _ in range(6):
        pyro.set_rng_seed(0)
        rate = ppgen.Rate().loss(vae.model, vae.guide, *vae.args)
        pyro.set_rng_seed(0)
        weights.append(objective.breakdown(vae.model, vae.guide, *vae.args)["Rate"] / rate)
        objective.loss_and_grads(vae.model, vae.guide, *vae.args)
    assert weights == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


def test_str_of_a_loss_is_its_formula():
    elbo, mmd = ppgen.ELBO(), ppgen.match(v.posterior("z"), v.prior("z"), m.MMD())
    joint = ppgen.match(v.data("x") & v.posterior("z"), v.generated("x") & v.prior("z"), m.EnergyDistance())
    given = ppgen.match(v.posterior("h").given(d=0), v.posterior("h").given(d=1), m.MMD(name="gap"))
    for objective, formula in {
        elbo + 10 * mmd: "ELBO + 10 * MMD(posterior(z), prior(z))",
        elbo - mmd: "ELBO - MMD(posterior(z), prior(z))",
        -2 * elbo - 0.5 * mmd: "-2 * ELBO - 0.5 * MMD(posterior(z), prior(z))",
        ppgen.Ramp(1.0) * elbo: "Ramp(0 -> 1) * ELBO",
        2 * (ppgen.Anneal(1.0) * elbo): "2 * Anneal(0 -> 1, 4 cycles) * ELBO",
        ppgen.Reconstruction("x") + ppgen.Rate(): "Reconstruction(x) + Rate",
        joint + given: "EnergyDistance(data(x) & posterior(z), generated(x) & prior(z)) "
        "+ gap(posterior(h) | d=0, posterior(h) | d=1)",
        ppgen.ELBO(elbo=RenyiELBO()) + 0 * mmd: "ELBO(RenyiELBO) + 0 * MMD(posterior(z), prior(z))",
    }.items():
        assert str(objective) == formula
        assert repr(objective) == formula


def test_is_negative_elbo():
    elbo, rate, whole = ppgen.ELBO(), ppgen.Rate(), ppgen.Reconstruction()
    bounds = [elbo, 1 * elbo, whole + rate, rate + whole, ppgen.ELBO(elbo=RenyiELBO())]
    others = [2 * elbo, whole, rate, whole + 2 * rate, ppgen.Reconstruction("x") + rate, elbo + elbo]
    others += [ppgen.Ramp(1.0) * elbo, elbo + 0 * ppgen.match(v.data("x"), v.generated("x"), m.MMD())]
    assert [bound.is_negative_elbo for bound in bounds] == [True] * len(bounds)
    assert [other.is_negative_elbo for other in others] == [False] * len(others)


def test_the_wrapped_elbo_does_not_change(vae):
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True)
    ppgen.ELBO(elbo=elbo).loss(vae.model, vae.guide, *vae.args)
    assert vars(elbo) == vars(Trace_ELBO(num_particles=2, vectorize_particles=True))


# what drives it


@pytest.mark.parametrize("build", [gaussian_pair, module_and_autoguide])
def test_stock_svi_lowers_every_term(build):
    for term in terms():
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        pair = build()

        def value(term=term, pair=pair):
            pyro.set_rng_seed(1)
            return sum(term.loss(pair.model, pair.guide, *pair.args) for _ in range(20)) / 20

        first = value()
        svi = pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.03}), loss=term)
        for _ in range(40):
            assert isinstance(svi.step(*pair.args), float)
        assert term.step == 40
        assert value() < first, term


def test_the_example_of_the_readme():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc, self.log_scale = nn.Linear(12, 8), nn.Linear(12, 8)

        def forward(self, x):
            return self.loc(x), self.log_scale(x).exp()

    decoder, encoder = nn.Linear(8, 12), Encoder()
    x = torch.bernoulli(torch.full((16, 12), 0.3))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = encoder(x)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    loss = ppgen.ELBO() + 10 * ppgen.match(v.posterior("z"), v.prior("z"), m.MMD())
    pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=loss).step(x)
    ppgen.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=loss).step(x)
    ppgen.SVI(model, guide, functools.partial(torch.optim.Adam, lr=1e-3), loss=loss).step(x)
    assert loss.step == 3
    assert loss.breakdown(model, guide, x).keys() == {"ELBO", "MMD(z)"}


def test_a_generator_is_matched_without_running_the_guide():
    generator = nn.Linear(2, 3)
    x = torch.randn(16, 3) * 0.5 + 1.0

    def model(x):
        pyro.module("generator", generator)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Delta(generator(z), event_dim=1), obs=x)

    def guide(x):
        raise AssertionError("the guide ran")

    for a, b in itertools.permutations((v.data("x"), v.generated("x"))):
        loss = ppgen.match(a, b, m.MMD())
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=loss)
        first = loss.differentiable_loss(model, guide, x)
        first.backward()
        assert all(p.grad.abs().sum() > 0 for p in generator.parameters())
        for _ in range(40):
            svi.step(x)
        assert loss.loss(model, guide, x) < first
        generator.reset_parameters()


def test_an_objective_can_be_called_like_a_pyro_elbo_module():
    x = torch.randn(5)
    with pyro.settings.context(module_local_params=True):
        model = Line()
        guide = AutoNormal(model)
        loss = (ppgen.ELBO() + ppgen.match(v.posterior("z"), v.prior("z"), m.EnergyDistance()))(model, guide)
        loss(x).backward()
        assert [name for name, p in loss.named_parameters() if p.grad is not None] == [
            "model.slope_unconstrained",
            "guide.locs.z_unconstrained",
            "guide.scales.z_unconstrained",
        ]


# errors


def test_an_unknown_site_is_an_error_with_suggestions(vae):
    args = (vae.model, vae.guide, *vae.args)
    for term, culprit, near in (
        (ppgen.match(v.data("xx"), v.generated("x"), m.MMD()), r"data\('xx'\)", "'x'"),
        (ppgen.match(v.posterior("zz"), v.prior("z"), m.MMD()), r"posterior\('zz'\)", "'z'"),
        (ppgen.match(v.posterior("z"), v.prior("z_"), m.MMD()), r"prior\('z_'\)", "'z'"),
        (ppgen.match(v.data("x"), v.generated("y"), m.MMD()), r"generated\('y'\)", "'x', 'z'"),
        (ppgen.match(v.data("x"), v.reconstructed("X"), m.MMD()), r"reconstructed\('X'\)", "'x', 'z'"),
        (ppgen.Reconstruction("xs"), r"Reconstruction\(xs\)", "'x'"),
    ):
        with pytest.raises(LookupError, match=f"{culprit}.*{near}"):
            term.loss(*args)


@pytest.mark.parametrize("elbo", [e for e in ELBOS if "particles" not in e])
def test_a_guide_that_misses_or_adds_a_site_is_an_error(vae, elbo):
    def misses(x):
        pass

    def adds(x):
        vae.guide(x)
        pyro.sample("extra", Normal(0.0, 1.0))

    loss = ppgen.ELBO(elbo=ELBOS[elbo]())
    with pytest.raises(LookupError, match="does not draw 'z'"):
        loss.loss(vae.model, misses, *vae.args)
    with pytest.raises(LookupError, match=r"draws 'extra'.*is_auxiliary"):
        loss.loss(vae.model, adds, *vae.args)


@pytest.mark.parametrize("elbo", ["trace", "trace, 3 particles", "mean field", "renyi 0.0, vectorized"])
def test_a_latent_left_to_enumeration_needs_trace_enum_elbo(mixture, elbo):
    args = (mixture.model, mixture.guide, *mixture.args)
    for term in (ppgen.ELBO(elbo=ELBOS[elbo]()), ppgen.Reconstruction(), ppgen.Rate()):
        with pytest.raises(LookupError, match=r"'c' to enumeration.*TraceEnum_ELBO"):
            term.loss(*args)


def test_a_draw_without_rsample_is_an_error():
    pair = score_function()
    for term in (ppgen.Reconstruction(), ppgen.Rate(), ppgen.ELBO(elbo=RenyiELBO())):
        with pytest.raises(ValueError, match="'c' has no rsample"):
            term.differentiable_loss(pair.model, pair.guide, *pair.args)
        if not isinstance(term, ppgen.Rate):  # without gradients it is a number like any other
            assert torch.tensor(term.loss(pair.model, pair.guide, *pair.args)).isfinite()


def test_reconstruction_without_observations_is_an_error():
    def program():
        with pyro.plate("data", 3):
            pyro.sample("z", Normal(0.0, 1.0))

    with pytest.raises(LookupError, match="observes no site"):
        ppgen.Reconstruction().loss(program, program)


def test_an_elbo_without_a_differentiable_value_is_an_error():
    for elbo in (TraceGraph_ELBO(), TraceTailAdaptive_ELBO(), ppgen.Rate(), "trace", Trace_ELBO):
        with pytest.raises(TypeError, match=r"use Trace_ELBO, .*RenyiELBO"):
            ppgen.ELBO(elbo=elbo)


def test_match_needs_two_views_and_a_metric():
    z = v.prior("z")
    for args, culprit in (
        (("z", z, m.MMD()), "a must be"),
        ((z, None, m.MMD()), "b must be"),
        ((z, z, m.MMD), "metric must be"),
    ):
        with pytest.raises(TypeError, match=culprit):
            ppgen.match(*args)


def test_invalid_operands_of_the_algebra_are_an_error():
    for expression in (
        lambda: "2" * ppgen.ELBO(),
        lambda: ppgen.ELBO() * ppgen.Rate(),
        lambda: ppgen.ELBO() + 1,
        lambda: ppgen.ELBO() - "Rate",
    ):
        with pytest.raises(TypeError):
            expression()


def test_a_ramp_without_a_length_is_an_error_under_stock_svi(vae):
    loss = ppgen.ELBO() + ppgen.Ramp(1.0) * ppgen.Rate()
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss=loss)
    with pytest.raises(ValueError, match=r"Ramp\(0 -> 1\) needs the length of the run: give it steps="):
        svi.step(*vae.args)
    loss.total = 10
    svi.step(*vae.args)
