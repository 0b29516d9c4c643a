"""Denoisers: one posterior mean for every prediction type, level and path."""

import pytest
import torch
from torch import nn

from ppgen.diffusion import PREDICTION_TYPES, SCHEDULES, Denoiser, NoiseLevel, make_schedule
from ppgen.models import Diffusion

FINITE = [name for name in (*SCHEDULES, "learned") if name != "straight"]


def schedule(name):
    return make_schedule(name).double().requires_grad_(False)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", FINITE)
def test_every_prediction_type_gives_the_posterior_mean(prediction_type, name):
    torch.manual_seed(0)
    level, d = schedule(name)(torch.rand(50).double()), 0.7
    x, e = d * torch.randn(50, 3).double(), torch.randn(50, 3).double()
    a, s, _ = level.unsqueeze_like(x)
    p, q = PREDICTION_TYPES[prediction_type](a, s, d)

    class Oracle(nn.Module):
        def forward(self, z, context):
            return p * x + q * e

    denoiser = Denoiser(Oracle(), (3,), prediction_type=prediction_type, sigma_data=d)
    torch.testing.assert_close(denoiser(a * x + s * e, level), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_denoiser_depends_on_the_noise_level_and_not_on_the_scale_of_the_path(prediction_type):
    torch.manual_seed(0)
    model = Diffusion((3,), prediction_type=prediction_type, hidden=(16,)).double()
    level = schedule("cosine")(torch.rand(20).double())
    z, c = torch.randn(20, 3).double(), 1 / (level.signal + level.noise)
    scaled = NoiseLevel(level.signal * c, level.noise * c, level.log_snr)
    torch.testing.assert_close(model.denoiser(z, level), model.denoiser(z * c[:, None], scaled))


def test_a_network_with_the_wrong_output_shape_is_refused():
    class Wrong(nn.Module):
        def forward(self, z, context):
            return z[..., :1]

    denoiser = Denoiser(Wrong(), (3,))
    with pytest.raises(ValueError, match=r"expected the network to return \(5, 3\) .* got \(5, 1\)"):
        denoiser(torch.zeros(5, 3), schedule("cosine")(torch.rand(5)))


def test_one_level_broadcasts_over_leading_dimensions():
    torch.manual_seed(0)
    model = Diffusion((3,), hidden=(16,))
    one, z = make_schedule("cosine")(torch.tensor(0.3)), torch.randn(4, 5, 3)
    many = NoiseLevel(*(rate.expand(4, 5) for rate in one))
    torch.testing.assert_close(model.denoiser(z, one), model.denoiser(z, many))
