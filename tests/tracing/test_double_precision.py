"""Programs in double precision, whatever the precision of the tensors that they hold or make."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.tracing.double_precision import double_precision

HELD = torch.zeros(3)


def set_entry(means, z):
    means[1] = z


def fill_view(means, z):
    means[1:2].fill_(2.0)
    means[1:2].mul_(z)


def add(means, z):
    means += torch.stack([torch.zeros(()), z, torch.zeros(())])


@pytest.mark.parametrize("write", [set_entry, fill_view, add])
@pytest.mark.parametrize(
    "make", [lambda: torch.zeros(3, dtype=torch.float32), lambda: torch.zeros(3).float(), lambda: HELD]
)
def test_what_is_written_into_a_tensor_is_read_there_later(make, write):
    with double_precision():
        means = make()
        write(means, torch.tensor(1.5))
        total = means.sum()
    assert total.dtype == torch.float64
    assert float(total) == (3.0 if write is fill_view else 1.5)
    assert not HELD.any()


@pytest.mark.parametrize("reads_values", [False, True], ids=["vmap", "one by one"])
@pytest.mark.filterwarnings("ignore:.*runs once for each draw")
def test_a_density_reads_what_the_program_has_written(reads_values):
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        means = torch.zeros(3, dtype=torch.float32)
        means[0] = 4.0
        means[1] = z
        loc = means.sum() + (1.0 if reads_values and z > 0 else 0.0)
        pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.tensor(0.3))

    u = torch.tensor([[-1.0], [0.7]], dtype=torch.float64)
    z = u[:, 0]
    loc = 4 + z + (z > 0) * reads_values
    expected = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(loc, 1.0).log_prob(torch.tensor(0.3))
    torch.testing.assert_close(UnconstrainedLogDensity(model).log_prob(u), expected, rtol=1e-6, atol=1e-6)
