"""Masked observations count nowhere: a program that masks rows is the program without them."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from scipy import stats
from support import untrained_fit

import ppgen
from ppgen.diagnostics import loo, loo_pit, pit, predictive_check
from ppgen.utils import arviz_versions as versions

N, FILLER = 12, 1e3
KEEP = torch.ones(N, dtype=torch.bool)
KEEP[[2, 7]] = False
X = torch.linspace(-1, 1, N, dtype=torch.double)
Y = 0.5 + X + torch.tensor([0.3, -0.7, 0.1, 0.9, -0.2, 0.4, -1.1, 0.6, -0.3, 0.2, -0.5, 0.8], dtype=torch.double)
FILLED, MISSING = Y.masked_fill(~KEEP, FILLER), Y.masked_fill(~KEEP, torch.nan)


def handler(mean, keep):
    with poutine.mask(mask=keep):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=FILLED[: len(keep)])


def distribution(mean, keep):
    pyro.sample("y", dist.Normal(mean, 1.0).mask(keep), obs=FILLED[: len(keep)])


def nan_masked(mean, keep):
    pyro.sample("y", dist.NanMaskedNormal(mean, 1.0), obs=MISSING)


def of_one_latent(observe, keep=KEEP, x=X):
    def model():
        b = pyro.sample("b", dist.Normal(torch.zeros((), dtype=torch.double), 1.0))
        with pyro.plate("data", len(x)):
            observe(b * x, keep)

    return model


def of_a_design(observe, keep=KEEP, x=X):
    """It does not broadcast over particles, so that they run under vmap."""

    def model():
        b = pyro.sample("b", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            observe(torch.stack([torch.ones_like(x), x], -1) @ b, keep)

    return model


def guide_of(model):
    like = poutine.trace(model).get_trace().nodes["b"]["value"]
    center, scale = torch.full_like(like, 0.6), torch.full_like(like, 0.4)
    return lambda: pyro.sample("b", dist.Normal(center, scale).to_event(like.dim()))


def without_rows(build):
    def observe(mean, keep):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=Y[KEEP])

    return build(observe, x=X[KEEP])


def to_arviz(model, draws=500, **options):
    return untrained_fit(model, guide_of(model)).to_arviz(draws=draws, chunk=draws, **options)


@pytest.mark.parametrize("observe", [handler, distribution, nan_masked])
@pytest.mark.parametrize("build", [of_one_latent, of_a_design])
def test_masked_rows_are_left_out_of_densities_leave_one_out_and_checks(build, observe):
    """All but the predictive draws, whose random numbers are others, are the same as without the rows."""
    found, expected = to_arviz(build(observe)), to_arviz(without_rows(build))
    for name in ("lp", "log_weight"):
        np.testing.assert_allclose(found.sample_stats[name], expected.sample_stats[name], rtol=1e-10)
    np.testing.assert_allclose(found.log_likelihood.y.values, expected.log_likelihood.y.values, rtol=1e-10)
    np.testing.assert_allclose(found.vi_stats.log_marginal, expected.vi_stats.log_marginal, rtol=1e-10)
    np.testing.assert_array_equal(found.observed_data.y.values, Y[KEEP])
    np.testing.assert_array_equal(found.observed_data.y_data, np.flatnonzero(KEEP))
    ours, theirs = loo(found), loo(expected)
    assert str(ours) == str(theirs)
    assert ours.n_data_points == N - 2
    of_arviz = az.loo(found, pointwise=True)
    assert str(of_arviz).splitlines()[1] == str(az.loo(expected, pointwise=True)).splitlines()[1]
    assert of_arviz.n_data_points == N - 2
    # 500 replicates: within five standard errors
    assert abs(loo_pit(found).values - loo_pit(expected).values).max() < 0.15
    assert abs(pit(found).values - pit(expected).values).max() < 0.15
    table, others = predictive_check(found), predictive_check(expected)
    np.testing.assert_allclose(table["observed"], others["observed"])
    assert abs(table["mean"] - others["mean"]).max() < 0.3
    assert found.prior_predictive.y.dims == ("chain", "draw", "y_observed")


def test_the_evidence_is_that_of_the_observed_rows_in_closed_form():
    x, y = X[KEEP].numpy(), Y[KEEP].numpy()
    exact = stats.multivariate_normal(np.zeros(N - 2), np.eye(N - 2) + np.outer(x, x)).logpdf(y)
    fit = ppgen.fit(of_one_latent(handler), "auto", None, progress=False)
    assert fit.to_arviz(predictive=False).vi_stats.log_marginal.values == pytest.approx(exact, abs=0.01)
    bounds = ppgen.diagnostics.bidirectional_ais(fit, draws=32, temperatures=20)
    assert bounds.lower == pytest.approx(exact, abs=0.2)
    assert bounds.upper == pytest.approx(exact, abs=0.2)


def test_what_varies_along_two_plates_has_one_dimension():
    keep = torch.ones(3, 4, dtype=torch.bool)
    keep[0, 1] = keep[2, 3] = keep[2, 0] = False
    values = torch.arange(12.0).reshape(3, 4)

    def model():
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("time", 4, dim=-1), pyro.plate("data", 3, dim=-2), poutine.mask(mask=keep):
            pyro.sample("y", dist.Normal(b, 1.0).expand([3, 4]), obs=values)
            pyro.sample("pair", dist.Normal(b, 1.0).expand([3, 4, 2]).to_event(1), obs=torch.zeros(3, 4, 2))

    idata = to_arviz(model, draws=25, dims={"y": ["county", "month"]}, coords={"month": list("abcd")})
    assert idata.log_likelihood.y.dims == ("chain", "draw", "y_observed")
    assert idata.posterior_predictive.pair.dims == ("chain", "draw", "pair_observed", "pair_dim")
    assert idata.observed_data.y.values.tolist() == values[keep].tolist()
    assert idata.observed_data.y_county.values.tolist() == keep.nonzero()[:, 0].tolist()
    assert "".join(idata.observed_data.y_month.values) == "acdabcdbc"
    np.testing.assert_allclose(
        idata.log_likelihood.y.values[0],
        stats.norm(idata.posterior.b.values[0][:, None], 1).logpdf(values[keep].numpy()),
        rtol=1e-4,
    )


def test_a_mask_of_one_plate_leaves_the_others():
    keep = torch.tensor([True, False, True])

    def model():
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("time", 4, dim=-1), pyro.plate("data", 3, dim=-2), poutine.mask(mask=keep[:, None]):
            pyro.sample("y", dist.Normal(b, 1.0).expand([3, 4]), obs=torch.arange(12.0).reshape(3, 4))

    idata = to_arviz(model, draws=25)
    assert idata.observed_data.y.dims == ("y_observed", "time")
    assert idata.log_likelihood.y.shape == (1, 25, 2, 4)
    assert idata.observed_data.y_data.values.tolist() == [0, 2]


NAN = torch.nan
EVENTS = torch.tensor([[0.1, 0.2, 3.4], [0.5, 0.1, NAN], [NAN, 0.5, NAN], [NAN, NAN, NAN], [1.0, -1.0, 0.3]])


def masked_within_event(mean):
    return dist.Normal(mean, 1.0).mask(~EVENTS.isnan()).to_event(1), EVENTS.nan_to_num(FILLER)


def nan_masked_event(mean):
    return dist.NanMaskedNormal(mean, 1.0).to_event(1), EVENTS


def nan_masked_joint(mean):
    return dist.NanMaskedMultivariateNormal(mean, torch.eye(3)), EVENTS


@pytest.mark.parametrize("observe", [masked_within_event, nan_masked_event, nan_masked_joint])
def test_numbers_that_are_masked_within_an_event_are_nan_and_no_check_uses_them(observe):
    def model():
        b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 5):
            fn, obs = observe(b)
            pyro.sample("y", fn, obs=obs)

    idata = to_arviz(model, draws=200)
    rows = [0, 1, 2, 4]  # nothing is observed of row 3
    assert idata.observed_data.y_data.values.tolist() == rows
    np.testing.assert_array_equal(idata.observed_data.y.values, EVENTS[rows])
    assert np.isfinite(idata.posterior_predictive.y.values).all()
    b = idata.posterior.b.values[0][:, None]
    exact = np.nansum(stats.norm(b, 1).logpdf(EVENTS[rows].numpy()), -1)
    np.testing.assert_allclose(idata.log_likelihood.y.values[0], exact, rtol=1e-4)
    assert loo(idata).n_data_points == 4
    found, values = predictive_check(idata), EVENTS[~EVENTS.isnan()].numpy()
    np.testing.assert_allclose(found.observed[["mean", "sd", "max"]], [values.mean(), values.std(), 3.4], rtol=1e-5)
    assert np.isnan(pit(idata).values).tolist() == EVENTS[rows].isnan().tolist()
    first = predictive_check(idata, statistics={"first": lambda y: np.nanmean(y[:, 0])})
    assert first.observed["first"] == pytest.approx((0.1 + 0.5 + 1.0) / 3)
    with pytest.raises(ValueError, match=r"'first' of the data is NaN.*np\.nanmean"):
        predictive_check(idata, statistics={"first": lambda y: y[:, 0].mean()})


def test_a_site_that_is_masked_as_a_whole_is_no_data():
    def model():
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            with poutine.mask(mask=False):
                pyro.sample("y", dist.Normal(b, 1.0), obs=torch.full((3,), FILLER))
            pyro.sample("x", dist.Normal(b, 1.0), obs=torch.zeros(3))

    idata = to_arviz(model, draws=25)
    for group in ("observed_data", "log_likelihood", "posterior_predictive", "prior_predictive"):
        assert list(idata[group].data_vars) == ["x"]
    assert loo(idata).n_data_points == 3


def test_masks_under_a_subsampling_plate_and_a_scale():
    """Log p has Pyro's scale and mask; the pointwise likelihood is that of each observed datum alone."""

    def model():
        b = pyro.sample("b", dist.Normal(torch.zeros((), dtype=torch.double), 1.0))
        with pyro.plate("data", N, subsample_size=4) as rows, poutine.mask(mask=KEEP[rows]), poutine.scale(scale=0.5):
            pyro.sample("y", dist.Normal(b, 1.0), obs=FILLED[rows])

    idata = to_arviz(model, draws=25)
    b = idata.posterior.b.values[0]
    pointwise = stats.norm(b[:, None], 1).logpdf(Y[KEEP].numpy())
    np.testing.assert_allclose(idata.log_likelihood.y.values[0], pointwise, rtol=1e-10)
    log_p = stats.norm(0, 1).logpdf(b) + 0.5 * pointwise.sum(-1)
    np.testing.assert_allclose(idata.sample_stats.lp.values[0], log_p, rtol=1e-10)


def test_masks_of_sites_that_share_an_enumerated_latent():
    """A row of their joint likelihood is observed if one of the sites is; each site has its own rows of data."""
    keep_x, keep_y = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    x, y = torch.tensor([0.5, -1.0, FILLER, FILLER]), torch.tensor([-0.2, FILLER, 1.5, FILLER])

    def model():
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            with poutine.mask(mask=keep_x):
                pyro.sample("x", dist.Normal(b + c, 1.0), obs=x)
            pyro.sample("y", dist.Normal(b - c, 1.0).mask(keep_y), obs=y)

    guide = AutoNormal(poutine.block(model, hide=["c"]))
    loss = ppgen.ELBO(elbo=TraceEnum_ELBO(max_plate_nesting=1))
    fit = ppgen.fit(model, guide, None, steps=1, loss=loss, progress=False, compile=False)
    idata = fit.to_arviz(draws=100)
    b = idata.posterior.b.values[0][:, None]
    terms = [
        np.log(p)
        + np.where(keep_x, stats.norm(b + c, 1).logpdf(x.numpy()), 0.0)
        + np.where(keep_y, stats.norm(b - c, 1).logpdf(y.numpy()), 0.0)
        for c, p in enumerate((0.3, 0.7))
    ]
    exact = np.logaddexp(*terms)[:, :3]
    np.testing.assert_allclose(idata.log_likelihood["x+y"].values[0], exact, rtol=1e-4)
    assert idata.log_likelihood["x+y_data"].values.tolist() == [0, 1, 2]
    assert idata.observed_data.x_data.values.tolist() == [0, 1]
    assert idata.observed_data.y_data.values.tolist() == [0, 2]
    assert loo(idata).n_data_points == 3
    log_p = stats.norm(0, 1).logpdf(b[:, 0]) + exact.sum(-1)
    np.testing.assert_allclose(idata.sample_stats.lp.values[0], log_p, rtol=1e-4)


def test_rows_whose_latents_are_integrated_out():
    """Log N(y_i; b, sqrt 2) of the observed rows, by the exact conditional of each row's latent."""

    def model():
        b = pyro.sample("b", dist.Normal(torch.zeros((), dtype=torch.double), 1.0))
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(b, 1.0))
            with poutine.mask(mask=KEEP):
                pyro.sample("y", dist.Normal(z, 1.0), obs=FILLED)

    def guide():
        b = pyro.sample("b", dist.Normal(torch.zeros((), dtype=torch.double), 1.0))
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(torch.where(KEEP, (b + FILLED) / 2, b), torch.where(KEEP, 0.5**0.5, 1.0)))

    idata = untrained_fit(model, guide).to_arviz(draws=25, integrate=2)
    exact = stats.norm(idata.posterior.b.values[0][:, None], 2**0.5).logpdf(Y[KEEP].numpy())
    np.testing.assert_allclose(idata.log_likelihood.y.values[0], exact, rtol=1e-6)


def test_a_masked_latent_has_no_prior_density():
    """A latent of which a row is masked in model and guide counts in neither density; that of the other rows does."""

    def program(scale, obs=None):
        with pyro.plate("data", N), poutine.mask(mask=KEEP):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.double), scale))
            if obs is not None:
                pyro.sample("y", dist.Normal(z, 1.0), obs=obs)

    idata = untrained_fit(lambda: program(1.0, FILLED), lambda: program(0.9)).to_arviz(draws=25)
    z = idata.posterior.z.values[0]
    log_p = np.where(KEEP, stats.norm(0, 1).logpdf(z) + stats.norm(z, 1).logpdf(Y.numpy()), 0.0)
    np.testing.assert_allclose(idata.sample_stats.lp.values[0], log_p, rtol=1e-10)
    np.testing.assert_allclose(idata.sample_stats.log_q.values[0], np.where(KEEP, stats.norm(0, 0.9).logpdf(z), 0.0))
    assert idata.posterior_predictive.y.sizes["y_observed"] == N - 2


def test_without_masks_nothing_changes():
    idata = to_arviz(without_rows(of_one_latent), draws=25)
    assert idata.log_likelihood.y.dims == ("chain", "draw", "data")
    assert "y_data" not in idata.observed_data.coords
    assert versions.group(idata, "observed_data")["y"].dtype == np.float64


def test_a_likelihood_of_rows_that_share_a_latent_leaves_out_groups_that_are_masked_whole():
    """Three groups of two rows with one enumerated latent each; the first has one row masked, the second both."""
    keep = torch.tensor([[False, False, True], [True, False, True]])
    y = torch.tensor([[0.3, 0.1, -1.0], [0.8, -0.4, 1.5]])

    def model():
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 3):
            c = pyro.sample("c", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            with pyro.plate("members", 2), poutine.mask(mask=keep):
                pyro.sample("y", dist.Normal(shift + c, 1.0), obs=y)

    def guide():
        pyro.sample("shift", dist.Normal(0.1, 1.0))

    idata = untrained_fit(model, guide).to_arviz(draws=30)
    shift = idata["posterior"]["shift"].values[0, :, None]
    terms = []
    for c, p in ((0, 0.7), (1, 0.3)):
        rows = stats.norm.logpdf(y.numpy(), shift[..., None] + c) * keep.numpy()
        terms.append(np.log(p) + rows.sum(-2))
    likelihood = idata["log_likelihood"]["y"]
    assert likelihood.dims == ("chain", "draw", "y_groups")
    np.testing.assert_allclose(likelihood.values[0], np.logaddexp(*terms)[:, [0, 2]], atol=1e-5)
    assert idata["observed_data"]["y"].dims == ("y_observed",)
