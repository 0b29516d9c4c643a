"""Resampling of draws by their importance weights."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import Conjugate, P

import ppgen
from ppgen.diagnostics import khat_threshold


def fitted(model, guide, *data, steps=1, **options):
    return ppgen.fit(model, guide, data or None, steps=steps, progress=False, compile=False, **options)


def test_rows_with_unreliable_weights_are_not_resampled():
    """Rows with a guide as wide as the posterior, and rows with one a fifth as wide."""
    n = 10
    widen = torch.tensor([1.2] * 5 + [0.2] * 5)

    def model(x):
        with pyro.plate("data", n):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, pyro.param("s", torch.tensor(1.0))), obs=x)

    def guide(x):
        with pyro.plate("data", n):
            pyro.sample("z", dist.Normal(x / 2, widen * 0.5**0.5))

    idata = fitted(model, guide, torch.randn(n), optim=lambda p: torch.optim.SGD(p, lr=0.0)).to_arviz(
        torch.randn(n), draws=1000, chunk=1000, predictive=False
    )
    bad = idata.vi_stats.pareto_k.values[0] > 1 - 1 / 3
    assert not bad[:5].any()
    assert bad[5:].any()
    assert idata.posterior_resampled.z.dims == idata.posterior.z.dims
    found = idata.posterior_resampled.z.values[0]
    assert np.array_equal(np.isnan(found).all(0), bad)
    assert np.isfinite(found[:, ~bad]).all()
    ratio = found[:, :5].std(0) / idata.posterior.z.values[0][:, :5].std(0)
    np.testing.assert_allclose(ratio, 1 / 1.2, atol=0.08)  # four standard errors of the ratio


@pytest.mark.parametrize("resampled", ["with", "without"])
def test_resampling_corrects_a_mildly_wrong_guide(resampled):
    """Draws are half a standard deviation off, and within .1 (of 4000) or .25 (of 400) after: four standard errors."""
    torch.manual_seed(0)
    pair = Conjugate(shift=0.5, widen=1.1)
    idata = pair.to_arviz(resampled=resampled, predictive=False)
    sds = np.sqrt(np.diag(pair.covariance))
    plain, corrected = (idata[g].b.values.reshape(-1, P) for g in ("posterior", "posterior_resampled"))
    assert len(corrected) == {"with": 4000, "without": 400}[resampled]
    assert np.abs((plain.mean(0) - pair.mean) / sds).max() > 0.45
    assert np.abs((corrected.mean(0) - pair.mean) / sds).max() < {"with": 0.1, "without": 0.25}[resampled]
    assert np.abs(np.log(corrected.std(0) / sds)).max() < {"with": 0.1, "without": 0.2}[resampled]
    assert len(np.unique(corrected, axis=0)) == len(corrected) or resampled == "with"
    assert set(map(tuple, corrected)) <= set(map(tuple, plain))


def test_draws_with_unreliable_weights_are_not_resampled():
    """A guide a quarter as wide as the posterior has weights of infinite variance."""
    torch.manual_seed(0)
    narrow, good = Conjugate(widen=0.25), Conjugate(widen=1.2)
    idata = narrow.to_arviz(draws=400, predictive=False)
    assert not hasattr(idata, "posterior_resampled")
    assert "k-hat is above 0.62" in idata.posterior.attrs["resampled"]
    assert idata.vi_stats.pareto_k.item() > khat_threshold(400)
    assert "resampled" not in good.to_arviz(draws=400, predictive=False).posterior.attrs
