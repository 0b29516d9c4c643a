"""The section on training."""

from reports import chain, context_of, fit_of

from ppgen.report.sections.training import training


def test_an_elbo_among_the_terms_is_called_a_loss():
    """Its curve falls, where a reader expects that of a bound to rise."""
    elbo = chain()
    elbo.history["ELBO"] = elbo.history.pop("Rate")
    captions = [training(context_of(fit_of(one))).items[1].caption for one in (chain(), elbo)]
    assert ["minus the evidence lower bound" in caption for caption in captions] == [False, True]
