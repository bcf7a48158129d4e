"""The networks' layers. Shape legend: B rows, F bins, L latent, C channels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional


class ConvolutionalEncoder(nn.Module):
    """(B, F) -> (B, outputs): convolutions of stride 2, then one linear layer.

    F is padded with its last value to a multiple of 2 to the power of the number of layers.

    >>> ConvolutionalEncoder(63, (4, 8), 5, 3)(torch.zeros(2, 63)).shape
    torch.Size([2, 3])
    """

    def __init__(self, bins: int, channels: Sequence[int], kernel: int, outputs: int) -> None:
        super().__init__()
        self.padding = -bins % 2 ** len(channels)
        self.length = (bins + self.padding) // 2 ** len(channels)
        sizes = [1, *channels]
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, kernel, stride=2, padding=kernel // 2) for before, after in pairwise(sizes)
        )
        self.head = nn.Linear(channels[-1] * self.length, outputs)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        """Codes, or what a head makes of them."""
        x = functional.pad(x_BF[:, None], (0, self.padding), mode="replicate") if self.padding else x_BF[:, None]
        for layer in self.layers:
            x = functional.gelu(layer(x))
        result: torch.Tensor = self.head(x.flatten(1))
        return result


class ConvolutionalDecoder(nn.Module):
    """(B, L) -> (B, F): the mirror of the encoder."""

    def __init__(self, bins: int, channels: Sequence[int], kernel: int, latent: int) -> None:
        super().__init__()
        self.bins, self.first = bins, channels[-1]
        self.length = (bins + -bins % 2 ** len(channels)) // 2 ** len(channels)
        self.head = nn.Linear(latent, channels[-1] * self.length)
        sizes = [*reversed(channels), 1]
        self.layers = nn.ModuleList(
            nn.ConvTranspose1d(before, after, kernel, stride=2, padding=kernel // 2, output_padding=1)
            for before, after in pairwise(sizes)
        )

    def forward(self, z_BL: torch.Tensor) -> torch.Tensor:
        """Reconstructions."""
        x = functional.gelu(self.head(z_BL)).view(len(z_BL), self.first, self.length)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index + 1 < len(self.layers):
                x = functional.gelu(x)
        return x[:, 0, : self.bins]
