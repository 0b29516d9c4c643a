"""Integers and observations out of range are found before training, with the site or argument and what to do."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import ppgen
from ppgen.training.first_run import after_first_run

X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3


def observing(distribution):
    """A program that observes y from a distribution with the predictor x @ b."""

    def model(x, y=None):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", distribution(x @ b), obs=y)

    return model


def categorical(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=x @ w), obs=y)


NORMAL = observing(lambda eta: dist.Normal(eta, 1.0))
BERNOULLI = observing(lambda eta: dist.Bernoulli(logits=eta))
POISSON = observing(lambda eta: dist.Poisson(eta.exp()))
GAMMA = observing(lambda eta: dist.Gamma(2.0, eta.exp()))


def run(model, *data, guide=None, size=None):
    return after_first_run(model, guide, data, size=size, dtype=torch.float32)


def fit(model, *data, **options):
    return ppgen.fit(model, AutoNormal(model), data, steps=2, compile=False, progress=False, **options)


# the program, its data, and which parts are cast
CAST = {
    "integer covariates": (NORMAL, (LABELS[:, None].expand(12, 2), X[:, 0]), [0]),
    "boolean covariates": (NORMAL, (X > 0, X[:, 0]), [0]),
    "both": (BERNOULLI, (X > 0, X[:, 0] > 0), [0, 1]),
    "integers for a Bernoulli": (BERNOULLI, (X, LABELS % 2), [1]),
    "booleans for a Bernoulli": (BERNOULLI, (X, LABELS == 1), [1]),
    "labels": (categorical, (X, LABELS), []),
    "counts": (POISSON, (X, LABELS), []),
    "floats": (categorical, (X, LABELS.float()), []),
}


@pytest.mark.parametrize("case", CAST)
def test_integers_are_cast_with_a_warning_where_the_programs_need_floats(case):
    model, data, cast = CAST[case]
    if cast:
        with pytest.warns(UserWarning, match=r"data\[\d\]: torch.(int64|bool).* cast to torch.float32, without which"):
            found = run(model, *data)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = run(model, *data)
    for i, (part, given) in enumerate(zip(found, data, strict=True)):
        assert part.dtype == (torch.float32 if i in cast else given.dtype)
        assert torch.equal(part, given.to(part.dtype))


def test_a_fit_with_integers_equals_the_fit_with_floats():
    x, y = LABELS[:, None].expand(12, 2), X[:, 0]
    with pytest.warns(UserWarning, match=r"data\[0\]: torch.int64 cast"):
        found = fit(NORMAL, x, y)
    assert found.history["loss"].tolist() == fit(NORMAL, x.float(), y).history["loss"].tolist()
    assert found.predict(x[:3], draws=4).y.shape == (1, 4, 3)
    with pytest.warns(UserWarning, match=r"data\[0\]: torch.int64 cast to torch.float64"):
        auto = ppgen.fit(NORMAL, "auto", (x, y), progress=False)
    assert auto.diagnose(x, y).level == "good"


def test_a_guide_that_needs_floats_is_seen():
    encoder = torch.nn.Linear(2, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x)[:, 0], 1.0))

    with pytest.warns(UserWarning, match="data: torch.int64 cast"):
        (x,) = run(model, torch.ones(4, 2, dtype=torch.int64), guide=guide)
    assert x.dtype == torch.float32


def test_integers_that_are_both_indices_and_numbers_are_named():
    def model(g, y):
        a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(g)):
            pyro.sample("y", dist.Normal(a[g] + torch.mv(g[:, None], a[:1]), 1.0), obs=y)

    with pytest.raises(TypeError, match=r"do not run with data\[0\] \(torch.int64\): .* in the program, x.float\(\)"):
        run(model, LABELS, X[:, 0])


def test_integers_that_floats_do_not_hold_are_refused():
    with pytest.raises(ValueError, match=r"data\[0\]: 24 values, such as 16777217, are not exact in torch.float32"):
        run(NORMAL, torch.full((12, 2), 2**24 + 1), X[:, 0])


# the program, the response, and the error
OUTSIDE = {
    "labels from 1": (categorical, LABELS + 1, r"Categorical takes integers from 0 to 2, and 4 of 12 observations, data"
                      r"\[1\], are others: the first is 3, in row 2; labels count from 0: give y - 1"),
    "an unknown label": (categorical, LABELS - 1, "the first is -1, in row 0"),
    "a fraction": (categorical, LABELS + 0.5, "integers from 0 to 2, .* the first is 0.5, in row 0"),
    "one-hot labels": (categorical, torch.eye(3)[LABELS], r"shape \(12,\), got \(12, 3\); give labels, y.argmax\(-1\)"),
    "labels for a Bernoulli": (BERNOULLI, LABELS.float(), "takes 0 or 1, and 4 of 12 .* the first is 2.0, in row 2"),
    "negative counts": (POISSON, LABELS - 2, "takes integers of at least 0, and 8 of 12 .* the first is -2, in row 0"),
    "negative numbers": (GAMMA, -1 - LABELS.float(), "takes numbers of at least 0.0, and 12 of 12"),
}  # fmt: skip


@pytest.mark.parametrize("case", OUTSIDE)
def test_observations_outside_of_the_support_are_named(case):
    model, y, message = OUTSIDE[case]
    for call in (lambda: fit(model, X, y), lambda: ppgen.fit(model, "auto", (X, y), progress=False)):
        with pytest.raises(ValueError, match=f"site 'y': .*{message}"):
            call()


def test_all_rows_are_checked_before_the_first_step():
    y = LABELS.clone()
    y[-1] = 7
    with pytest.raises(ValueError, match=r"1 of 12 observations, .* the first is 7, in row 11"):
        fit(categorical, X, y, batch_size=4)
    with pytest.raises(ValueError, match="the first is 7, in row 11"):
        fit(categorical, X, LABELS, validation=(X, y))


def test_masked_observations_and_distributions_that_do_not_validate_are_left_alone():
    def masked(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=y >= 0):
            pyro.sample("y", dist.Categorical(logits=x @ w), obs=y)

    def gray(x, y):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ b, validate_args=False), obs=y)

    run(masked, X, LABELS - 1)
    with pytest.raises(ValueError, match="the first is 3, in row 2"):
        run(masked, X, torch.where(LABELS == 2, 3, -1))
    run(gray, X, torch.rand(12))


def test_a_first_run_changes_nothing():
    model = observing(lambda eta: dist.Normal(eta, pyro.param("s", lambda: torch.rand(()))))
    state = torch.get_rng_state()
    run(model, X, X[:, 0])
    assert torch.equal(state, torch.get_rng_state())
    assert not list(pyro.get_param_store().keys())


def binomial(k, n):
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(k)):
        pyro.sample("k", dist.Binomial(n, p), obs=k)


def test_counts_above_their_own_totals_are_named():
    n = torch.tensor([5, 5, 6])
    after_first_run(binomial, None, (torch.tensor([3, 0, 6]), n), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"site 'k': Binomial takes integers from 0 to data\[1\].*1 of 3.*7, in row 2"):
        ppgen.fit(binomial, "auto", (torch.tensor([3, 0, 7]), n), progress=False)


def test_totals_above_that_of_a_multinomial_are_named():
    def model(k):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(k)):
            pyro.sample("k", dist.Multinomial(total_count=10, probs=p), obs=k)

    with pytest.raises(
        ValueError, match=r"site 'k': Multinomial takes vectors of counts.*at most 10.*\[2 2 7\], in row 1"
    ):
        after_first_run(model, None, (torch.tensor([[3, 4, 3], [2, 2, 7]]),), dtype=torch.float32)


def groups(index, y):
    with pyro.plate("groups", 3):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean[index.long()], 1.0), obs=y)


def test_indices_out_of_range_are_named():
    for index in (LABELS + 1, (LABELS + 1).int()):
        with pytest.raises(
            IndexError, match=r"index 3 is out of bounds.*data\[0\] has integers from 1 to 3.*subtract 1"
        ):
            ppgen.fit(groups, "auto", (index, X[:, 0]), progress=False)


def test_negative_indices_are_reported():
    with pytest.warns(UserWarning, match=r"data\[0\]: 4 of 12 indices are negative.*-1 is the last.*missing"):
        after_first_run(groups, None, ((LABELS - 1).int(), X[:, 0]), dtype=torch.float32)
    with pytest.warns(UserWarning, match=r"data\[0\]: 1 of 12 indices"):  # a row that is not in the first batch
        after_first_run(
            groups, None, (torch.cat([LABELS[:-1], LABELS.new_tensor([-1])]), X[:, 0]), size=4, dtype=torch.float32
        )


def test_indices_in_range_and_negative_numbers_are_not_reported():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after_first_run(groups, None, (LABELS, X[:, 0]), dtype=torch.float32)
        after_first_run(NORMAL, None, (X, LABELS - 1), dtype=torch.float32)
