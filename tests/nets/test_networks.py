"""Networks: leading dimensions, activations, dropout, and images of any size."""

import pytest
import torch

from ppgen import nets
from ppgen.nets.networks import Doubling

every_network = pytest.mark.parametrize("network", [nets.Dense, nets.ConvEncoder, nets.ConvDecoder, nets.ConvMap])


def small(network, **options):
    image = (2, 5, 4)
    shapes = {
        nets.Dense: (5, (2, 3)),
        nets.ConvEncoder: (image, 3),
        nets.ConvDecoder: (3, image),
        nets.ConvMap: (image, 3),
    }
    net = network(*shapes[network], hidden=(4, 6), **options)
    if network is nets.ConvMap:
        assert not net.layers[-1].weight.any()
        torch.nn.init.normal_(net.layers[-1].weight)  # away from zero, where it starts
    return net


@every_network
@pytest.mark.parametrize("norm", [None, *nets.NORMS])
def test_leading_dimensions_are_batches(network, norm):
    net = small(network, norm=norm, context_dim=2)
    flat, context = torch.randn(6, *net.in_shape), torch.randn(6, 2)
    net(flat, context)  # in training mode: updates the running averages
    net.eval()
    out = net(flat, context)
    assert out.shape == (6, *net.out_shape)
    for batch in ((6,), (2, 3), (1, 3, 2)):
        reshaped = net(flat.reshape(*batch, *net.in_shape), context.reshape(*batch, 2))
        torch.testing.assert_close(reshaped, out.reshape(*batch, *net.out_shape))
    torch.testing.assert_close(net(flat[0], context[0]), out[0])
    assert net(flat[:0], context[:0]).shape == (0, *net.out_shape)
    torch.testing.assert_close(net(flat[0].expand(6, *net.in_shape), context), net(flat[0], context))
    assert not torch.allclose(net(flat, context + 1), out)


@every_network
@pytest.mark.parametrize("activation", nets.ACTIVATIONS)
def test_networks_are_nonlinear_and_drop_out_in_training(network, activation):
    net = small(network, activation=activation, dropout=0.5)
    x = torch.randn(8, *net.in_shape)
    assert not torch.equal(net(x), net(x))
    with nets.eval_mode(net):
        assert torch.equal(net(x), net(x))
    assert net.training
    # No activation is affine, so neither is the network.
    net.eval()
    assert not torch.allclose(net(x) + net(-x), 2 * net(torch.zeros_like(x)), atol=1e-4)


@pytest.mark.parametrize("side", [(1, 1), (2, 3), (8, 8), (13, 9), (28, 28), (32, 32)])
def test_images_of_any_size(side):
    """The decoder has the shape of the encoder's input, and all pixels of both depend on the vector between them."""
    shape = (2, *side)
    encode, decode = (
        nets.ConvEncoder(shape, 3, hidden=(4, 5, 6)),
        nets.ConvDecoder(3, shape, hidden=(6, 5, 4)),
    )
    x = torch.randn(1, *shape, requires_grad=True)
    code = encode(x)
    assert code.shape == (1, 3)
    (gradient,) = torch.autograd.grad(code.square().sum(), x)
    assert (gradient != 0).all()
    assert (decode(code) != decode(code + 1)).all()
    assert decode(code).shape == x.shape


def test_a_context_must_be_given_if_and_only_if_it_is_expected():
    with pytest.raises(ValueError, match=r"context of width 2 .*, got none"):
        nets.Dense(3, 2, context_dim=2)(torch.zeros(3))
    with pytest.raises(ValueError, match=r"context of width 0 .*, got one of shape \(4,\)"):
        nets.Dense(3, 2)(torch.zeros(3), torch.zeros(4))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("norm", ["group", "batch", None])
def test_an_untrained_decoder_of_images_returns_values_near_zero(norm, channels):
    """Within the range of data in [0, 1]; with torch's initialization gray images had a root mean square above 1."""
    torch.manual_seed(0)
    decoder = nets.ConvDecoder(32, (channels, 28, 28), hidden=(128, 64, 32), norm=norm)
    assert decoder(torch.randn(64, 32)).square().mean().sqrt() < 0.1


def test_a_doubling_keeps_the_size_of_its_input():
    """U(-b, b) has the variance b^2/3, and a pixel is the sum of 4 n products: the variance is 1/3 of the input's."""
    torch.manual_seed(0)
    out = Doubling(64, 1)(torch.randn(200, 64, 9, 9)).detach()[..., 2:-2, 2:-2]
    assert out.var() == pytest.approx(1 / 3, rel=0.15)
    assert Doubling(64, 1, gain=0.1).weight.abs().max() <= 0.1 / 16
