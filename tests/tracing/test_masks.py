"""Densities of programs that mask, scale, subsample and enumerate at once: those of Pyro, and what is refused."""

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from scipy.special import logsumexp
from scipy.stats import norm
from support import untrained_fit

import ppgen
from ppgen.tracing.particles import log_weights

N, FILLER = 6, 1e3
Y = torch.tensor([0.3, -1.2, 0.8, 2.0, -0.4, 1.1], dtype=torch.double)
KEEP = torch.tensor([True, False, True, True, False, True])
FILLED = Y.masked_fill(~KEEP, FILLER)
SCALE = 0.3
B, SHARE = torch.tensor([0.7, 0.3], dtype=torch.double)


def masked_by(kind, fn, keep):
    """A context and a distribution under which what is not kept is masked."""
    handlers = {"handler": keep, "none of it": torch.zeros_like(keep), "all by a number": False}
    return poutine.mask(mask=handlers.get(kind, True)), fn.mask(keep) if kind == "distribution" else fn


def program(kind, subsampled, scaled, enumerated):
    def model():
        b = pyro.sample("b", dist.Normal(torch.zeros((), dtype=torch.double), 1.0))
        plate = pyro.plate("data", N, subsample_size=N if not subsampled else 4)
        with plate as rows, poutine.scale(scale=SCALE if scaled else 1.0):
            shift = b
            if enumerated:
                c = pyro.sample("c", dist.Bernoulli(SHARE), infer={"enumerate": "parallel"})
                shift = b + 2 * c
            context, fn = masked_by(kind, dist.Normal(shift, 1.0), KEEP[rows])
            with context:
                pyro.sample("y", fn, obs=FILLED[rows])

    return model


def at_b():
    pyro.sample("b", dist.Delta(B))


def exact(kind, scaled, enumerated):
    """Log p(b, y) of all rows."""
    parts = [norm(0.7 + 2 * c, 1).logpdf(FILLED) * (kind != "nothing") for c in (0, 1)]
    if kind in ("handler", "distribution"):
        parts = [np.where(KEEP, part, 0.0) for part in parts]
    elif kind in ("none of it", "all by a number"):
        parts = [np.zeros(N)] * 2
    rows = logsumexp([np.log(0.7) + parts[0], np.log(0.3) + parts[1]], axis=0) if enumerated else parts[0]
    return norm(0, 1).logpdf(0.7) + (SCALE if scaled else 1.0) * rows.sum()


KINDS = ("handler", "distribution", "none of it", "all by a number")
CASES = list(itertools.product(KINDS, (False, True), (False, True), (False, True)))


@pytest.mark.parametrize(("kind", "subsampled", "scaled", "enumerated"), CASES)
def test_the_density_of_all_rows(kind, subsampled, scaled, enumerated):
    """In closed form, and where no rows are subsampled that of Pyro's ELBO at the same value of b."""
    model = program(kind, subsampled, scaled, enumerated)
    found = log_weights(model, at_b, (), particles=3)
    np.testing.assert_allclose(found, exact(kind, scaled, enumerated), rtol=1e-6)
    if not subsampled:
        stock = (TraceEnum_ELBO if enumerated else Trace_ELBO)(max_plate_nesting=1).loss(model, at_b)
        np.testing.assert_allclose(-stock, found[0, 0], rtol=1e-6)


@pytest.mark.parametrize(("kind", "scaled"), list(itertools.product(("handler", "distribution"), (False, True))))
def test_a_subsample_is_unbiased(kind, scaled):
    """The mean ELBO of random halves of the rows is that of all rows: 400 steps, five standard errors."""
    model = program(kind, True, scaled, False)
    pyro.set_rng_seed(0)
    losses = np.array([ppgen.ELBO().loss(model, at_b) for _ in range(400)]) * -N
    assert losses.mean() == pytest.approx(exact(kind, scaled, False), abs=5 * losses.std() / 400**0.5)


@pytest.mark.parametrize("what", ["mask", "scale"])
@pytest.mark.parametrize("of_latent", [False, True])
def test_a_mask_or_scale_that_broadcasts_densities_is_refused(what, of_latent):
    """A column (n, 1) under a plate of n rows would count each row n times."""
    column = KEEP[:, None]
    handler = poutine.mask(mask=column) if what == "mask" else poutine.scale(scale=1.0 + column.double())

    def model():
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            if of_latent:
                with handler:
                    b = pyro.sample("z", dist.Normal(b, 1.0))
                pyro.sample("y", dist.Normal(b, 1.0), obs=Y)
            else:
                with handler:
                    pyro.sample("y", dist.Normal(b, 1.0), obs=Y)

    site = "z" if of_latent else "y"
    with pytest.raises(ValueError, match=rf"site '{site}': a {what} of shape \(6, 1\) .*\(6, 6\), .* shape \(6,\)"):
        ppgen.fit(model, "auto", None, progress=False)


def test_nan_that_a_program_holds_is_refused_by_name():
    missing = Y.masked_fill(~KEEP, torch.nan)

    def model():
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N), poutine.mask(mask=KEEP):
            pyro.sample("y", dist.Normal(b, 1.0), obs=missing)

    with pytest.raises(ValueError, match=r"2 of 6 observations at 'y' are NaN, where Normal .*nan_to_num"):
        ppgen.fit(model, "auto", None, progress=False)


def test_a_masked_latent_has_no_posterior_to_find_and_the_message_says_why():
    def model():
        with pyro.plate("data", N), poutine.mask(mask=KEEP):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=FILLED)

    with pytest.raises(ValueError, match=r"z\[1\].*a proper prior, which a mask takes away"):
        ppgen.fit(model, "auto", None, progress=False)


@pytest.mark.parametrize("handler", [lambda: poutine.mask(mask=KEEP), lambda: poutine.scale(scale=SCALE)])
@pytest.mark.parametrize("of_guide", [False, True])
def test_the_rate_of_a_latent_that_the_model_masks_or_scales(handler, of_guide):
    """Exact if the guide has the same handler; otherwise E[log q - log p] by draws, which is no KL divergence."""

    def program(loc, scale, handled):
        with pyro.plate("data", N), handled:
            pyro.sample("z", dist.Normal(torch.full((N,), loc, dtype=torch.double), scale))

    shared = handler()
    model = lambda: program(0.0, 1.0, shared)  # noqa: E731
    guide = lambda: program(0.5, 0.5, shared if of_guide else poutine.mask(mask=True))  # noqa: E731
    entropy, cross = -norm(0, 0.5).entropy(), norm(0, 1).logpdf(0) - 0.5 * (0.5**2 + 0.5**2)
    weight = KEEP.numpy().astype(float) if shared.__class__.__name__ == "MaskMessenger" else np.full(N, SCALE)
    expected = ((weight if of_guide else 1.0) * entropy - weight * cross).mean()
    pyro.set_rng_seed(0)
    found = np.mean([ppgen.Rate().loss(model, guide) for _ in range(1 if of_guide else 2000)])
    assert found == pytest.approx(expected, abs=1e-6 if of_guide else 0.05)


def test_a_fit_of_masked_data_has_a_report(tmp_path):
    model = program("handler", False, False, False)
    fit = untrained_fit(model, lambda: pyro.sample("b", dist.Normal(B, 0.4)))
    assert fit.report(tmp_path / "page.html", draws=200, starts=1).stat().st_size > 1000
