"""Features that stay the same where light and dark are exchanged."""

import torch
from torch import Tensor, nn

from ppgen.nets.domain_norm import DomainNorm

__all__ = ["ContrastInvariant"]


class ContrastInvariant(nn.Module):
    """F(x) = (G(z) + G(-z)) / 2 of images z = (x - mu_d) / (v_d + eps)^1/2, normalized by domain as in `DomainNorm`.

    If the images of one domain are a x + b, for any a other than zero, z changes its sign at most and F is the same.
    Otherwise what is nearest to a negative, in the features of a network that was trained on images, is often of
    another class, and alignment exchanges classes. The mean over a group of transformations is invariant to it (Cohen &
    Welling 2016, https://arxiv.org/abs/1602.07576); the other way is to invert training images at random (French et al.
    2018, https://arxiv.org/abs/1706.05208).

    Args:
        channels: The channels of the images.
        network: G, a module (2 n, channels, height, width) -> (2 n, width).
    """

    def __init__(self, channels: int, network: nn.Module) -> None:
        super().__init__()
        self.norm, self.network = DomainNorm(channels, affine=False), network

    def forward(self, value: Tensor) -> Tensor:
        """The features (n, width).

        Args:
            value: Images (n, channels, height, width).
        """
        z = self.norm(value)
        there, back = self.network(torch.cat([z, -z])).chunk(2)
        return (there + back) / 2
