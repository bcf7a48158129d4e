"""Layers over windows of spectra: long short-term memory, and convolutions over time and frequency.

Shape legend: B windows, W rows of a window, F bins, D = W * F, H hidden, L latent, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from pipeline.detectors.networks import Activation, activate

ROWS_KERNEL = 3  # consecutive rows that a convolution sees


def _remembered(memory: nn.LSTM, x_BWF: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """What an LSTM makes of rows; on processors in float32, since not all of them have one in bfloat16."""
    if x_BWF.device.type != "cpu":
        states, last = memory(x_BWF)
        return states, last
    with torch.autocast("cpu", enabled=False):
        states, last = memory(x_BWF.float())
    return states, last


class LstmEncoder(nn.Module):
    """(B, D) -> (B, outputs): the last state of an LSTM that reads the window's rows, oldest first.

    Long short-term memory (Hochreiter and Schmidhuber, Neural Computation 9 (1997) 1735).

    >>> LstmEncoder(rows=8, bins=64, hidden=32, outputs=12)(torch.zeros(2, 8 * 64)).shape
    torch.Size([2, 12])
    """

    def __init__(self, rows: int, bins: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.rows, self.bins = rows, bins
        self.memory = nn.LSTM(bins, hidden, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Codes."""
        _, (state_1BH, _) = _remembered(self.memory, x_BD.view(-1, self.rows, self.bins))
        result: torch.Tensor = self.head(state_1BH[0])
        return result


class LstmDecoder(nn.Module):
    """(B, L) -> (B, D): an LSTM that is given the code at each row of the window (Malhotra et al., 2016, decode so)."""

    def __init__(self, rows: int, bins: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.rows = rows
        self.memory = nn.LSTM(latent, hidden, batch_first=True)
        self.head = nn.Linear(hidden, bins)

    def forward(self, z_BL: torch.Tensor) -> torch.Tensor:
        """Reconstructions."""
        states_BWH, _ = _remembered(self.memory, z_BL[:, None].expand(-1, self.rows, -1))
        result: torch.Tensor = self.head(states_BWH)
        return result.flatten(1)


class PlaneEncoder(nn.Module):
    """(B, D) -> (B, outputs): convolutions over rows and bins, of stride 2 along the bins, then one linear layer.

    >>> PlaneEncoder(rows=8, bins=63, channels=(4, 8), kernel=5, outputs=12, activation="gelu")(
    ...     torch.zeros(2, 8 * 63)
    ... ).shape
    torch.Size([2, 12])
    """

    def __init__(
        self, rows: int, bins: int, channels: Sequence[int], kernel: int, outputs: int, activation: Activation
    ) -> None:
        super().__init__()
        self.rows, self.bins, self.activation = rows, bins, activation
        self.padding = -bins % 2 ** len(channels)
        size = (ROWS_KERNEL, kernel)
        around = (ROWS_KERNEL // 2, kernel // 2)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, size, stride=(1, 2), padding=around) for before, after in pairwise([1, *channels])
        )
        length = (bins + self.padding) // 2 ** len(channels)
        self.head = nn.Linear(channels[-1] * rows * length, outputs)

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Codes."""
        x = x_BD.view(-1, self.rows, self.bins)
        x = functional.pad(x, (0, self.padding), mode="replicate")[:, None] if self.padding else x[:, None]
        for layer in self.layers:
            x = activate(self.activation, layer(x))
        result: torch.Tensor = self.head(x.flatten(1))
        return result


class PlaneDecoder(nn.Module):
    """(B, L) -> (B, D): the mirror of the encoder."""

    def __init__(
        self, rows: int, bins: int, channels: Sequence[int], kernel: int, latent: int, activation: Activation
    ) -> None:
        super().__init__()
        self.rows, self.bins, self.first, self.activation = rows, bins, channels[-1], activation
        self.length = (bins + -bins % 2 ** len(channels)) // 2 ** len(channels)
        self.head = nn.Linear(latent, self.first * rows * self.length)
        size = (ROWS_KERNEL, kernel)
        around = (ROWS_KERNEL // 2, kernel // 2)
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(before, after, size, stride=(1, 2), padding=around, output_padding=(0, 1))
            for before, after in pairwise([*reversed(channels), 1])
        )

    def forward(self, z_BL: torch.Tensor) -> torch.Tensor:
        """Reconstructions."""
        x = activate(self.activation, self.head(z_BL)).view(-1, self.first, self.rows, self.length)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index + 1 < len(self.layers):
                x = activate(self.activation, x)
        return x[:, 0, :, : self.bins].flatten(1)
