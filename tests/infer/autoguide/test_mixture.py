"""A mixture of Gaussians as a guide: its density and its draws; tests/posterior/test_auto.py fits it."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.infer import AutoMixture


def scales():
    pyro.sample("s", dist.Gamma(2.0, 1.0))
    pyro.sample("w", dist.Dirichlet(torch.ones(3)))


def placed(components: int = 3) -> AutoMixture:
    guide = AutoMixture(scales, components=components)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        guide()
        with torch.no_grad():
            guide.logits.copy_(torch.randn(components))
            guide.loc.copy_(torch.randn(components, 3))
        root = (0.3 * torch.randn(components, 3, 3)).tril(-1) + torch.eye(3)
        guide.scale, guide.scale_tril = 0.5 + torch.rand(components, 3), root
    return guide


def test_density_is_the_sum_over_components():
    guide, u = placed(), torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    parts = [
        log_weight + dist.MultivariateNormal(loc, scale_tril=scale[:, None] * root).log_prob(u)
        for log_weight, loc, scale, root in zip(
            guide.logits.log_softmax(0), guide.loc, guide.scale, guide.scale_tril, strict=True
        )
    ]
    torch.testing.assert_close(guide.get_posterior().log_prob(u), torch.stack(parts).logsumexp(0))


def test_draws_have_the_mean_of_the_mixture():
    """Within 5 standard errors."""
    guide = placed()
    weights = guide.logits.softmax(0)
    torch.manual_seed(0)
    u = guide.get_posterior().sample((20_000,))
    error = u.std(0) / math.sqrt(len(u))
    assert ((u.mean(0) - weights @ guide.loc).abs() < 5 * error).all()


def test_one_component_is_a_gaussian():
    guide = placed(1)
    root = guide.scale[0, :, None] * guide.scale_tril[0]
    u = torch.randn(20, 3)
    expected = dist.MultivariateNormal(guide.loc[0], scale_tril=root).log_prob(u)
    torch.testing.assert_close(guide.get_posterior().log_prob(u), expected)


@pytest.mark.parametrize("options", [{"components": 0}, {"init_scale": 0.0}])
def test_invalid_options_are_errors(options):
    with pytest.raises(ValueError, match="AutoMixture"):
        AutoMixture(scales, **options)
