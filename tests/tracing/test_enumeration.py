"""Discrete latents that are summed out and drawn for many particles at once, against sums over all of their values."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.ops.indexing import Vindex
from scipy.stats import chisquare
from torch import Tensor

from ppgen.tracing.particles import log_weights, particle_traces
from ppgen.tracing.programs import JointDensity

Normal = dist.Normal
LEVEL = 1e-4  # of each test of frequencies
LOCS = torch.tensor([-1.0, 0.5, 2.0])
INITIAL = torch.tensor([0.5, 0.2, 0.3])
TRANSITION = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]])
parallel = {"enumerate": "parallel"}


def at_locs(*args):
    """A guide that gives the locations, of three states, one value."""
    pyro.sample("locs", dist.Delta(LOCS, event_dim=1))


def locations():
    return pyro.sample("locs", Normal(torch.zeros(3), 1.0).to_event(1))


def pick(locs, state, broadcasts):
    return Vindex(locs)[..., state] if broadcasts else locs[state]


def hidden_chain(broadcasts, rows=None):
    """A hidden Markov model of one sequence y (steps,), or of several, y (rows, steps)."""

    def steps(y, locs):
        state = None
        for t in pyro.markov(range(y.shape[-1])):
            prior = INITIAL if state is None else TRANSITION[state]
            state = pyro.sample(f"state_{t}", dist.Categorical(prior), infer=parallel)
            pyro.sample(f"y_{t}", Normal(pick(locs, state, broadcasts), 1.0), obs=y[..., t])

    def model(y):
        locs = locations()
        if rows is None:
            return steps(y, locs)
        with pyro.plate("data", rows):
            return steps(y, locs)

    return model


def log_joint_of_paths(y: Tensor) -> tuple[list[tuple[int, ...]], Tensor]:
    """All paths of the hidden chain, and log p(y, path) without the prior of the locations."""
    paths = list(itertools.product(range(3), repeat=len(y)))
    of_paths = []
    for path in paths:
        moves = [INITIAL[path[0]], *(TRANSITION[i, j] for i, j in itertools.pairwise(path))]
        of_paths.append(torch.stack(moves).log().sum() + Normal(LOCS[list(path)], 1.0).log_prob(y).sum())
    return paths, torch.stack(of_paths)


def check_frequencies(outcomes: Tensor, probabilities: Tensor) -> None:
    """Outcomes (draws,), numbers of probabilities, do not differ from them at `LEVEL`; rare ones count together."""
    expected = probabilities.double() * len(outcomes)
    counts = torch.bincount(outcomes, minlength=len(expected)).double()
    rare = expected < 5
    pooled = [torch.cat([part[~rare], part[rare].sum()[None]]) for part in (counts, expected)]
    if not rare.any() or pooled[1][-1] < 1e-6 * len(outcomes):
        pooled = [part[:-1] for part in pooled]
    assert chisquare(pooled[0], pooled[1] / pooled[1].sum() * len(outcomes)).pvalue > LEVEL


@pytest.mark.parametrize("broadcasts", [True, False], ids=["broadcast", "vmap"])
def test_the_paths_of_a_hidden_chain_are_summed_and_drawn_jointly(broadcasts):
    y, model = torch.tensor([0.1, 1.4, -0.3, 1.0]), hidden_chain(broadcasts)
    paths, of_paths = log_joint_of_paths(y)
    prior = Normal(0.0, 1.0).log_prob(LOCS).sum()
    weights = log_weights(model, at_locs, (y,), particles=7)
    torch.testing.assert_close(weights, (prior + of_paths.logsumexp(0)).expand(7, 1))
    (traces,) = particle_traces(model, at_locs, (y,), particles=4000)
    states = torch.stack([traces.with_sampled_discrete.nodes[f"state_{t}"]["value"] for t in range(4)], -1)
    numbers = {path: number for number, path in enumerate(paths)}
    outcomes = torch.tensor([numbers[tuple(path)] for path in states.tolist()])
    check_frequencies(outcomes, of_paths.softmax(0))


@pytest.mark.parametrize("broadcasts", [True, False], ids=["broadcast", "vmap"])
def test_each_sequence_of_a_plate_has_its_own_sum_and_its_own_states(broadcasts):
    y, model = torch.tensor([[0.1, 1.4, -0.3], [2.0, 2.2, 1.9]]), hidden_chain(broadcasts, rows=2)
    (traces,) = particle_traces(model, at_locs, (y,), particles=2000)
    of_rows = [log_joint_of_paths(row) for row in y]
    factor = traces.with_summed_discrete[0].nodes["y_0+y_1+y_2"]["log_prob"]
    expected = torch.stack([of_paths.logsumexp(0) for _, of_paths in of_rows])
    torch.testing.assert_close(factor, expected.expand(2000, 2))
    for row, (paths, of_paths) in enumerate(of_rows):
        last = torch.tensor([path[-1] for path in paths])
        shares = torch.stack([of_paths.softmax(0)[last == state].sum() for state in range(3)])
        check_frequencies(traces.with_sampled_discrete.nodes["state_2"]["value"][:, row], shares)


@pytest.mark.parametrize("broadcasts", [True, False], ids=["broadcast", "vmap"])
def test_predictions_are_drawn_at_the_assignments_that_the_data_have(broadcasts):
    """The gap between a prediction and the location of its own component is standard normal, within 5 errors."""

    def model(x):
        locs = locations()
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(INITIAL), infer=parallel)
            pyro.sample("x", Normal(pick(locs, c, broadcasts), 1.0), obs=x)

    x = torch.tensor([-2.0, 0.3, 0.9, 4.0, 1.2])
    (traces,) = particle_traces(model, at_locs, (x,), particles=2000)
    log_joint = INITIAL.log() + Normal(LOCS, 1.0).log_prob(x[:, None])
    torch.testing.assert_close(
        traces.with_summed_discrete[0].nodes["x"]["log_prob"], log_joint.logsumexp(-1).expand(2000, 5)
    )
    c = traces.with_sampled_discrete.nodes["c"]["value"]
    for row, shares in enumerate(log_joint.softmax(-1)):
        check_frequencies(c[:, row], shares)
    gap = traces.posterior_predictive.nodes["x"]["value"] - LOCS[c]
    assert abs(gap.mean()) < 5 / gap.numel() ** 0.5
    assert abs(gap.square().mean() - 1) < 5 * (2 / gap.numel()) ** 0.5


@pytest.mark.parametrize("broadcasts", [True, False], ids=["broadcast", "vmap"])
def test_a_latent_of_all_rows_and_one_of_each_row_are_drawn_jointly(broadcasts):
    x, row_probs = torch.tensor([0.2, -1.0]), torch.tensor([0.3, 0.8])

    def model(x):
        locs = locations()
        kind = pyro.sample("kind", dist.Bernoulli(0.4), infer=parallel)
        with pyro.plate("data", len(x)):
            part = pyro.sample("part", dist.Bernoulli(Vindex(row_probs)[kind.long()]), infer=parallel)
            ends = (locs[..., 0], locs[..., 2]) if broadcasts else (locs[0], locs[2])
            pyro.sample("x", Normal(torch.where(part == 1, ends[1], ends[0]), 1.0), obs=x)

    outcomes = list(itertools.product((0, 1), repeat=3))
    log_joint = torch.stack(
        [
            dist.Bernoulli(0.4).log_prob(torch.tensor(float(kind)))
            + sum(
                dist.Bernoulli(row_probs[kind]).log_prob(torch.tensor(float(part)))
                + Normal(LOCS[2 * part], 1.0).log_prob(value)
                for part, value in zip(parts, x, strict=True)
            )
            for kind, *parts in outcomes
        ]
    )
    (traces,) = particle_traces(model, at_locs, (x,), particles=4000)
    factor = traces.with_summed_discrete[0].nodes["x"]["log_prob"]
    torch.testing.assert_close(factor.flatten(), log_joint.logsumexp(0).expand(4000))
    nodes = traces.with_sampled_discrete.nodes
    kind, part = nodes["kind"]["value"].reshape(4000).long(), nodes["part"]["value"].long()
    check_frequencies(4 * kind + 2 * part[:, 0] + part[:, 1], log_joint.softmax(0))


def test_values_with_event_dimensions_and_single_values_can_be_enumerated():
    def model(x):
        locs = locations()
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(INITIAL), infer=parallel)
            only = pyro.sample("only", dist.Categorical(torch.ones(1)), infer=parallel)
            pyro.sample("x", Normal(c @ locs + only, 1.0), obs=x)

    x = torch.tensor([-2.0, 0.3])
    (traces,) = particle_traces(model, at_locs, (x,), particles=2000)
    log_joint = INITIAL.log() + Normal(LOCS, 1.0).log_prob(x[:, None])
    torch.testing.assert_close(
        traces.with_summed_discrete[0].nodes["x"]["log_prob"], log_joint.logsumexp(-1).expand(2000, 2)
    )
    nodes = traces.with_sampled_discrete.nodes
    assert nodes["c"]["value"].shape == (2000, 2, 3)
    assert not nodes["only"]["value"].any()
    check_frequencies(nodes["c"]["value"][:, 0].argmax(-1), log_joint[0].softmax(-1))


@pytest.mark.parametrize("broadcasts", [True, False], ids=["broadcast", "vmap"])
def test_a_row_whose_latent_and_observation_are_masked_counts_nowhere(broadcasts):
    x, keep = torch.tensor([0.4, 99.0, -1.0]), torch.tensor([True, False, True])

    def model(x):
        locs = locations()
        with pyro.plate("data", len(x)), poutine.mask(mask=keep):
            c = pyro.sample("c", dist.Categorical(INITIAL), infer=parallel)
            pyro.sample("x", Normal(pick(locs, c, broadcasts), 1.0), obs=x)

    rows = (INITIAL.log() + Normal(LOCS, 1.0).log_prob(x[:, None])).logsumexp(-1)
    expected = Normal(0.0, 1.0).log_prob(LOCS).sum() + rows[keep].sum()
    torch.testing.assert_close(log_weights(model, at_locs, (x,), particles=3), expected.expand(3, 1))


def test_impossible_values_are_not_drawn_and_an_impossible_draw_does_not_stop_the_others():
    """The first value is impossible for the data; at half of the particles every value is."""

    def model(x):
        top = pyro.sample("top", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(INITIAL), infer=parallel)
            pyro.sample("x", dist.Uniform(0.0, top * c + 1e-3, validate_args=False), obs=x)

    def guide(x):
        pyro.sample("top", dist.LogNormal(-0.9, 0.5))

    x = torch.tensor([0.2, 0.9])
    (traces,) = particle_traces(model, guide, (x,), particles=100)
    top = traces.guide_trace.nodes["top"]["value"].reshape(100, 1, 1)
    high = top * torch.arange(3) + 1e-3
    density = (INITIAL * (x[:, None] < high) / high).sum(-1)
    factor = traces.with_summed_discrete[0].nodes["x"]["log_prob"]
    torch.testing.assert_close(factor, density.log())
    c, possible = traces.with_sampled_discrete.nodes["c"]["value"], density > 0
    assert possible.any()
    assert not possible.all()
    assert (x < (top[..., 0] * c + 1e-3))[possible].all()


def test_a_guide_that_enumerates_draws_its_latents_when_it_runs():
    """The weight is p(x, c) / q(c); their mean is p(x), within 5 standard errors."""

    @config_enumerate
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(INITIAL))
            pyro.sample("x", Normal(LOCS[c], 1.0), obs=x)

    @config_enumerate
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))

    x = torch.tensor([0.4, 1.5])
    exact = (INITIAL.log() + Normal(LOCS, 1.0).log_prob(x[:, None])).logsumexp(-1)
    ratio = (log_weights(model, guide, (x,), particles=4000) - exact).exp()
    assert ratio.shape == (4000, 2)
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / 4000**0.5).all()
    assert TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x) >= -exact.sum() - 1e-4


def test_a_wrong_broadcast_is_refused_before_it_fills_the_memory():
    """``transition[..., state, :]`` would join the draws of every step with those of all steps before."""
    y, draws, sizes = torch.randn(4, 6), 40, []

    def model(y):
        transition = pyro.sample("transition", dist.Dirichlet(torch.ones(3)).expand([3]).to_event(1))
        with pyro.plate("data", len(y)):
            state = 0
            for t in pyro.markov(range(y.shape[1])):
                probs = transition[..., state, :]
                sizes.append(probs.numel())
                state = pyro.sample(f"state_{t}", dist.Categorical(probs), infer=parallel)
                pyro.sample(f"y_{t}", Normal(LOCS[state], 1.0), obs=y[:, t])

    def guide(y):
        pyro.sample("transition", dist.Delta(TRANSITION, event_dim=2))

    (traces,) = particle_traces(model, guide, (y,), particles=draws)
    alpha = TRANSITION[0].log() + Normal(LOCS, 1.0).log_prob(y[:, 0, None])
    for t in range(1, y.shape[1]):
        step = alpha[:, :, None] + TRANSITION.log()
        alpha = step.logsumexp(1) + Normal(LOCS, 1.0).log_prob(y[:, t, None])
    factor = next(s for k, s in traces.with_summed_discrete[0].nodes.items() if k.startswith("y_0"))
    torch.testing.assert_close(factor["log_prob"], alpha.logsumexp(-1).expand(draws, 4))
    assert max(sizes) <= draws * 4 * 9


def test_a_scale_keeps_its_precision():
    """A batch of 3 of 4 rows has the scale 4 / 3, which float32 does not hold in double precision."""
    x = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    half = torch.tensor(0.5, dtype=torch.float64)

    def model():
        shift = pyro.sample("shift", Normal(half, 1.0))
        with pyro.plate("rows", 4, subsample=x):
            c = pyro.sample("c", dist.Bernoulli(half), infer=parallel)
            pyro.sample("x", Normal(shift + c, 1.0), obs=x)

    def guide():
        pyro.sample("shift", dist.Delta(half))

    rows = torch.stack([Normal(half + c, 1.0).log_prob(x) for c in (0, 1)]).logsumexp(0) + half.log()
    expected = Normal(half, 1.0).log_prob(half) + rows.sum() * 4 / 3
    torch.testing.assert_close(log_weights(model, guide, (), particles=1), expected.expand(1, 1), rtol=1e-12, atol=0)


def test_dimensions_that_no_plate_declares_are_refused():
    """Two rows and two values of c: the rows would be taken for the values, without an error."""

    def model(x):
        s = pyro.sample("s", Normal(0.0, 1.0))
        c = pyro.sample("c", dist.Bernoulli(0.4), infer=parallel)
        pyro.sample("x", Normal(s * (2 * c - 1), 1.0), obs=x)

    x = torch.tensor([0.3, -1.0])
    says = r"site 'x' has the shape \(2,\).*to_event.*pyro.plate"
    with pytest.raises(ValueError, match=says):
        log_weights(model, lambda x: pyro.sample("s", dist.Delta(torch.tensor(0.7))), (x,), particles=2)
    with pytest.raises(ValueError, match=says):
        JointDensity(model, (x,), lambda site: torch.zeros(()))


def test_a_sample_of_the_values_of_a_latent_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(INITIAL), infer={**parallel, "num_samples": 2})
            pyro.sample("x", Normal(LOCS[c], 1.0), obs=x)

    with pytest.raises(ValueError, match=r"'c' is enumerated by a sample .*num_samples=2.*leave num_samples out"):
        log_weights(model, lambda x: None, (torch.zeros(3),), particles=2)


@pytest.mark.parametrize("rows", [None, 3])
def test_a_latent_that_depends_on_an_enumerated_one_is_weighted_over_its_values(rows):
    """k ~ Bernoulli, mu ~ Normal(8 k, 1), y ~ Normal(mu, 1): p(mu, y) is a sum over k, and k has the odds of mu."""
    y = torch.tensor([3.9]) if rows is None else torch.tensor([3.9, -1.0, 8.0])

    @config_enumerate
    def model(y):
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            mu = pyro.sample("mu", Normal(8 * k, 1.0))
            pyro.sample("y", Normal(mu, 1.0), obs=y)

    @config_enumerate
    def model_of_one(y):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        mu = pyro.sample("mu", Normal(8 * k, 1.0))
        pyro.sample("y", Normal(mu, 1.0), obs=y[0])

    def guide(y):
        with pyro.plate("data", len(y)):
            pyro.sample("mu", Normal(4.0, 1.0))

    def guide_of_one(y):
        pyro.sample("mu", Normal(4.0, 1.0))

    programs = (model_of_one, guide_of_one) if rows is None else (model, guide)
    torch.manual_seed(0)
    (traces,) = particle_traces(*programs, (y,), particles=2000)
    mu = traces.guide_trace.nodes["mu"]["value"].reshape(2000, -1)
    log_p = torch.stack([Normal(8.0 * k, 1.0).log_prob(mu) + math.log(p) for k, p in ((0, 0.7), (1, 0.3))])
    found, _ = traces.with_summed_discrete
    expected = log_p.logsumexp(0) + Normal(mu, 1.0).log_prob(y)
    total = sum(s["log_prob"].reshape(2000, -1) for s in found.nodes.values() if s["type"] == "sample")
    assert torch.allclose(total, expected, atol=1e-4)
    k = traces.with_sampled_discrete.nodes["k"]["value"].reshape(2000, -1)
    odds = log_p.softmax(0)[1]
    error = (k.mean(0) - odds.mean(0)).abs()
    assert (error < 4 * (odds * (1 - odds)).mean(0).div(2000).sqrt()).all()
