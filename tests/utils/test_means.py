"""Means of distributions for which torch has none."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions.transforms import ExpTransform, ReshapeTransform

from ppgen.utils.means import mean

GRID = ReshapeTransform((4,), (2, 2))
PROBS = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (dist.Normal(torch.tensor([1.0, 2.0]), 3.0).to_event(1), torch.tensor([1.0, 2.0])),
        (dist.Categorical(probs=PROBS), torch.tensor([1.3, 0.0])),
        (dist.Categorical(probs=PROBS).to_event(1), torch.tensor([1.3, 0.0])),
        (
            dist.TransformedDistribution(
                dist.Normal(torch.arange(4.0), 1.0).to_event(1), ReshapeTransform((4,), (2, 2))
            ),
            torch.arange(4.0).reshape(2, 2),
        ),
    ],
)
def test_means_are_exact(distribution, expected):
    torch.testing.assert_close(mean(distribution), expected)


def test_other_transforms_are_refused():
    with pytest.raises(ValueError, match="only reshapes its base, got ExpTransform"):
        mean(dist.TransformedDistribution(dist.Normal(0.0, 1.0), ExpTransform()))
