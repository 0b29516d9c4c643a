"""A network whose output is zero: under prediction_type="edm" the exact denoiser of data from N(0, d^2 I)."""

import torch
from torch import Tensor, nn


class ZeroNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, context: Tensor) -> Tensor:
        return torch.zeros_like(z) + self.zero
