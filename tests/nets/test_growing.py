"""Growing networks: what they compute while a scale fades in, and at each scale."""

import copy
import math
from functools import partial

import pyro
import pytest
import torch
import torch.nn.functional as F

from ppgen import nets
from ppgen.nets import Growing, GrowingCritic, GrowingDecoder, GrowingEncoder

SHAPES = [(1, 8, 8), (2, 16, 16), (1, 13, 9), (3, 17, 30)]
DECODERS = {"each": {}, "pyramid": {"pyramid": True}, "pixel": {"norm": "pixel"}}
ENCODERS = {"one": {}, "multi-scale": {"multi_scale": True}, "minibatch_std": {"minibatch_std": True}}

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_decoder = pytest.mark.parametrize("options", DECODERS.values(), ids=DECODERS)
every_encoder = pytest.mark.parametrize("options", ENCODERS.values(), ids=ENCODERS)


@pytest.fixture(autouse=True)
def _seeded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pyro.clear_param_store()
    yield
    torch.set_num_threads(threads)


def fade(network: Growing, stage: int, weight: float) -> None:
    """Sets the network to a stage that has faded in by a weight, with both branches computed."""
    network.grow(float(stage), fading=True)
    with torch.no_grad():
        network.level.fill_(stage - 1 + weight)
    network._known, network._version = stage - 1 + weight, network.level._version


def of_scale(network: Growing, x: torch.Tensor, scale: int) -> torch.Tensor:
    """Whole images as what blocks of a scale's size have for a mean, written out."""
    block = 2 ** (network.top - scale)
    height, width = x.shape[-2:]
    x = F.pad(x, (0, -width % block, 0, -height % block), mode="replicate")
    means = x.unfold(-2, block, block).unfold(-2, block, block).mean((-2, -1))
    whole = means.repeat_interleave(block, -2).repeat_interleave(block, -1)
    return whole[..., :height, :width]


def within_blocks(network: Growing, scale: int) -> bool:
    """Whether no block of a scale lies in the padding alone: it would then be made of a mean in place of a pixel."""
    return max(network._padding) < 2 ** (network.top - scale)


@every_shape
@every_decoder
def test_a_decoder_at_fade_0_equals_the_smaller_decoder_upsampled(shape, options):
    decoder, z = GrowingDecoder(3, shape, **options), torch.randn(5, 3)
    for stage in range(1, decoder.top + 1):
        decoder.grow(stage - 1)
        smaller = decoder(z)
        block = 2 ** (decoder.top - stage + 1)
        assert torch.equal(smaller, smaller[..., ::block, ::block].repeat_interleave(block, -2).repeat_interleave(
            block, -1
        )[..., : shape[1], : shape[2]])  # fmt: skip
        fade(decoder, stage, 0.0)
        assert torch.equal(decoder(z), smaller)
        decoder.grow(stage)
        assert not torch.equal(decoder(z), smaller)


@every_shape
@every_encoder
def test_an_encoder_at_fade_0_equals_the_smaller_encoder(shape, options):
    encoder, x = GrowingEncoder(shape, 2, **options), torch.randn(5, *shape)
    for stage in range(1, encoder.top + 1):
        encoder.grow(stage - 1)
        smaller = encoder(x)
        fade(encoder, stage, 0.0)
        assert torch.equal(encoder(x), smaller)
        encoder.grow(stage)
        assert not torch.allclose(encoder(x), smaller)


@every_shape
@pytest.mark.parametrize("make", [partial(GrowingDecoder, 3), lambda shape: GrowingEncoder(shape, 3)])
def test_at_fade_1_the_old_branch_has_no_effect(shape, make):
    """Neither on the value nor on a gradient, whether the branch is computed or not."""
    network = make(shape)
    value = torch.randn(4, *network.in_shape)
    for stage in range(1, network.top + 1):
        layers = network.rgb if isinstance(network, GrowingDecoder) else network.from_rgb
        network.grow(stage)
        settled = network(value)
        network.grow(stage, fading=True)
        assert torch.equal(network(value), settled)
        old = list(layers[stage - 1].parameters())
        gradients = torch.autograd.grad(network(value).sum(), old, allow_unused=True)
        assert all(gradient is None or not gradient.any() for gradient in gradients)
        with torch.no_grad():
            for parameter in old:
                parameter.add_(1.0)
        assert torch.equal(network(value), settled)
        network.grow(stage - 1)
        changed = network(value)
        with torch.no_grad():
            for parameter in old:
                parameter.sub_(1.0)
        assert not torch.equal(network(value), changed)


@every_shape
def test_at_fade_one_half_a_decoder_is_the_mean_of_both_scales(shape):
    decoder, z = GrowingDecoder(3, shape), torch.randn(5, 3)
    for stage in range(1, decoder.top + 1):
        ends = []
        for level in (stage - 1, stage):
            decoder.grow(level)
            ends.append(decoder(z))
        decoder.grow(stage - 0.5)
        torch.testing.assert_close(decoder(z), (ends[0] + ends[1]) / 2)


@every_shape
def test_data_are_averaged_to_the_resolution_of_the_level(shape):
    decoder, x = GrowingDecoder(3, shape), torch.randn(6, *shape)
    assert decoder.seen(x) is x
    for stage in range(decoder.top + 1):
        decoder.grow(stage)
        torch.testing.assert_close(decoder.seen(x), of_scale(decoder, x, stage))
        if within_blocks(decoder, stage):
            torch.testing.assert_close(decoder.seen(decoder.seen(x)), decoder.seen(x))
        if stage:
            decoder.grow(stage - 0.25)
            mixed = 0.25 * of_scale(decoder, x, stage - 1) + 0.75 * of_scale(decoder, x, stage)
            torch.testing.assert_close(decoder.seen(x), mixed)
    decoder.grow(decoder.top, fading=True)
    assert torch.equal(decoder.seen(x), x)


@every_shape
@every_encoder
def test_an_encoder_depends_only_on_the_resolution_of_its_level(shape, options):
    encoder, x = GrowingEncoder(shape, 2, **options), torch.randn(6, *shape)
    for stage in range(encoder.top + 1):
        encoder.grow(stage)
        if within_blocks(encoder, stage):
            torch.testing.assert_close(encoder(of_scale(encoder, x, stage)), encoder(x), atol=1e-5, rtol=1e-4)


@every_shape
def test_scales_halve_down_to_four_pixels_a_side(shape):
    decoder = GrowingDecoder(3, shape)
    assert decoder.sides[-1] == tuple(math.ceil(side / 2**decoder.top) * 2**decoder.top for side in shape[1:])
    assert 4 <= min(decoder.sides[0]) < 8
    assert all(b == (2 * a[0], 2 * a[1]) for a, b in zip(decoder.sides, decoder.sides[1:], strict=False))
    assert nets.GrowingDecoder(3, shape, hidden=(4, 4, 4)).top == 2


def test_the_scales_of_a_pyramid_sum_to_the_image():
    decoder, z = GrowingDecoder(3, (1, 16, 16), pyramid=True), torch.randn(5, 3)
    images = []
    for level in range(3):
        decoder.grow(level)
        images.append(decoder(z))
    decoder.grow(1.25)
    torch.testing.assert_close(decoder(z), images[1] + 0.25 * (images[2] - images[1]))


@torch.no_grad()
def test_a_step_of_all_terms_of_a_pyramid_moves_the_image_as_far_as_a_step_of_one():
    decoder, z = GrowingDecoder(3, (1, 16, 16), pyramid=True), torch.randn(5, 3)
    before = decoder(z)
    for rgb in decoder.rgb:
        rgb.bias += 0.3
    torch.testing.assert_close(decoder(z), before + 0.3)


def test_the_minibatch_standard_deviation_detects_a_batch_of_equal_images():
    encoder = GrowingEncoder((1, 8, 8), 1, minibatch_std=True)
    x = torch.randn(16, 1, 8, 8)
    alone = encoder(x[:1].expand(16, 1, 8, 8))[0]
    assert not torch.allclose(encoder(x)[0], alone)
    plain = GrowingEncoder((1, 8, 8), 1)
    torch.testing.assert_close(plain(x)[0], plain(x[:1].expand(16, 1, 8, 8))[0])


@torch.no_grad()
def test_equalized_layers_preserve_the_mean_square_at_initialization():
    """Weights are N(0, 1) whatever the width, and a layer of gain one keeps the mean square of white noise."""
    for width in (8, 512):
        layer = nets.growing.EqualLinear(width, 4096, gain=1.0)
        assert abs(float(layer.weight.std()) - 1) < 0.05
        assert abs(float(layer(torch.randn(64, width)).square().mean()) - 1) < 0.15
        conv = nets.growing.EqualConv2d(width, 64, 3, gain=1.0)
        inner = conv(torch.randn(16, width, 8, 8))[..., 1:-1, 1:-1]
        assert abs(float(inner.square().mean()) - 1) < 0.15


@pytest.mark.parametrize("make", [partial(GrowingDecoder, 3, (1, 16, 16)), partial(GrowingEncoder, (1, 16, 16), 3)])
def test_a_state_dict_contains_the_level(make):
    trained, value = make(), None
    for level in (0.0, 1.0, 1.5, 2.0):
        trained.grow(level)
        fresh = make()
        fresh.load_state_dict(trained.state_dict())
        value = torch.randn(2, *trained.in_shape) if value is None else value
        assert (fresh.stage, fresh.fading) == (trained.stage, trained.fading) == (math.ceil(level), level == 1.5)
        assert torch.equal(fresh(value), trained(value))
        assert torch.equal(copy.deepcopy(trained)(value), trained(value))
    trained.grow(1.0, fading=True)
    trained.level.copy_(trained.level.clone())  # as when weights are swapped and put back
    assert trained.fading


def test_particle_dimensions_and_a_context_are_supported():
    decoder, encoder = GrowingDecoder(3, (1, 8, 8), context_dim=2), GrowingEncoder((1, 8, 8), 3, context_dim=2)
    z, context = torch.randn(4, 5, 3), torch.randn(5, 2)
    x = decoder(z, context)
    assert x.shape == (4, 5, 1, 8, 8)
    torch.testing.assert_close(x[1], decoder(z[1], context))
    assert not torch.allclose(decoder(z, context + 1), x)
    torch.testing.assert_close(encoder(x, context)[2], encoder(x[2], context))
    assert not torch.allclose(encoder(x, context + 1), encoder(x, context))


@pytest.mark.parametrize("options", ENCODERS.values(), ids=ENCODERS)
def test_a_critic_returns_one_number_per_row_with_second_derivatives(options):
    critic = GrowingCritic((1, 9, 9), (3,), **{"minibatch_std": False, **options})
    x, z = torch.randn(6, 1, 9, 9, requires_grad=True), torch.randn(6, 3)
    critic.network.grow(0.5)
    value = critic(x, z)
    assert value.shape == (6,)
    (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in critic.parameters())
