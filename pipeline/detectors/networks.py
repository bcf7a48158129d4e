"""The networks' layers: symmetric stacks of dense layers, and convolutions of stride 2; both for any number of bins.

Convolutions have a second form: a layer as the one matrix that its kernel makes of a whole row. The parameters, their
names and the outputs (to rounding) stay the same. It costs a few times the multiplications, most of them by zero, and
pays where matrix units make those cheap (`always`: in bfloat16), and in float32 on a CPU, while nothing trains, for
transposed convolutions and those of many channels, which torch has no fast kernels for (`where_faster`).

Shape legend: B rows, F bins, L latent, C channels, W width of a row of one channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import nn
from torch.nn import functional

from pipeline.params import NetworkParams

Activation = Literal["gelu", "relu", "tanh", "identity"]
Convolution = nn.Conv1d | nn.ConvTranspose1d
Matrices = Literal["never", "where_faster", "always"]
MANY, FASTER_WIDTH = 16, {False: 16, True: 32}  # input channels of a convolution, and width of it or a transposed one
DENSE_WIDTH = 128  # of a row of one channel: beyond it the matrix is almost all zeros, and the convolution is faster

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


def activate(name: Activation, x: torch.Tensor) -> torch.Tensor:
    """The activation of this name.

    >>> activate("relu", torch.tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    return _ACTIVATIONS[name](x)


class DenseStack(nn.Module):
    """(B, first width) -> (B, last width): linear layers with the activation between them, none after the last.

    >>> DenseStack([64, 32, 12], "relu")(torch.zeros(2, 64)).shape
    torch.Size([2, 12])
    """

    def __init__(self, widths: Sequence[int], activation: Activation) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The last layer's outputs."""
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            x = layer(x) if index == last else activate(self.activation, layer(x))
        return x


def dense_encoder(bins: int, layers: Sequence[int], activation: Activation, outputs: int) -> DenseStack:
    """(B, F) -> (B, outputs) through hidden layers of these widths; none: one linear map.

    >>> [tuple(layer.weight.shape) for layer in dense_encoder(64, (32, 16), "relu", 12).layers]
    [(32, 64), (16, 32), (12, 16)]
    """
    return DenseStack([bins, *layers, outputs], activation)


def dense_decoder(bins: int, layers: Sequence[int], activation: Activation, latent: int) -> DenseStack:
    """(B, L) -> (B, F): the mirror of `dense_encoder` with the same `layers`.

    >>> [tuple(layer.weight.shape) for layer in dense_decoder(64, (32, 16), "relu", 12).layers]
    [(16, 12), (32, 16), (64, 32)]
    """
    return DenseStack([latent, *reversed(layers), bins], activation)


class ConvolutionalEncoder(nn.Module):
    """(B, F) -> (B, outputs): convolutions of stride 2, then one linear layer.

    F is padded with its last value to a multiple of 2 to the power of the number of layers.

    Args:
        bins: F.
        channels: of each convolution.
        kernel: odd, of every convolution.
        outputs: of the linear layer.
        activation: after each convolution.
        matrices: which convolutions run as matrices; may be changed at any time.

    >>> ConvolutionalEncoder(63, (4, 8), 5, 3)(torch.zeros(2, 63)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        bins: int,
        channels: Sequence[int],
        kernel: int,
        outputs: int,
        activation: Activation = "gelu",
        *,
        matrices: Matrices = "never",
    ) -> None:
        super().__init__()
        self.padding = -bins % 2 ** len(channels)
        self.activation, self.matrices, self.forms = activation, matrices, DenseForms()
        length = (bins + self.padding) // 2 ** len(channels)
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, kernel, stride=2, padding=kernel // 2)
            for before, after in pairwise([1, *channels])
        )
        self.head = nn.Linear(channels[-1] * length, outputs)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        """Codes, or what a head makes of them."""
        x = functional.pad(x_BF[:, None], (0, self.padding), mode="replicate") if self.padding else x_BF[:, None]
        for index, layer in enumerate(self.layers):
            x = self.forms.convolved(index, cast(Convolution, layer), x, self.matrices)
            x = activate(self.activation, x)
        result: torch.Tensor = self.head(x.flatten(1))
        return result


class ConvolutionalDecoder(nn.Module):
    """(B, L) -> (B, F): the mirror of the encoder."""

    def __init__(
        self,
        bins: int,
        channels: Sequence[int],
        kernel: int,
        latent: int,
        activation: Activation = "gelu",
        *,
        matrices: Matrices = "never",
    ) -> None:
        super().__init__()
        self.bins, self.first = bins, channels[-1]
        self.activation, self.matrices, self.forms = activation, matrices, DenseForms()
        self.length = (bins + -bins % 2 ** len(channels)) // 2 ** len(channels)
        self.head = nn.Linear(latent, channels[-1] * self.length)
        self.layers = nn.ModuleList(
            nn.ConvTranspose1d(before, after, kernel, stride=2, padding=kernel // 2, output_padding=1)
            for before, after in pairwise([*reversed(channels), 1])
        )

    def forward(self, z_BL: torch.Tensor) -> torch.Tensor:
        """Reconstructions."""
        x = activate(self.activation, self.head(z_BL)).view(len(z_BL), self.first, self.length)
        for index, layer in enumerate(self.layers):
            x = self.forms.convolved(index, cast(Convolution, layer), x, self.matrices)
            if index + 1 < len(self.layers):
                x = activate(self.activation, x)
        return x[:, 0, : self.bins]


def make_layers(params: NetworkParams, bins: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    """Encoder (B, F) -> (B, outputs) and decoder (B, L) -> (B, F), as the parameters say."""
    latent, activation = params.latent, params.activation
    if params.architecture == "dense":
        layers = params.layers
        return dense_encoder(bins, layers, activation, outputs), dense_decoder(bins, layers, activation, latent)
    channels, kernel = params.channels, params.kernel
    encoder = ConvolutionalEncoder(bins, channels, kernel, outputs, activation)
    return encoder, ConvolutionalDecoder(bins, channels, kernel, latent, activation)


def use_matrices(network: nn.Module, which: Matrices) -> None:
    """Say which convolutions of a network run as matrices."""
    for part in network.modules():
        if isinstance(part, ConvolutionalEncoder | ConvolutionalDecoder):
            part.matrices = which


class DenseForms:
    """Convolutions as matrices, made from their kernels at every step of a training and kept while nothing trains."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[tuple[object, ...], torch.Tensor, torch.Tensor]] = {}

    def convolved(self, place: int, layer: Convolution, x_BCW: torch.Tensor, matrices: Matrices) -> torch.Tensor:
        """What the convolution at a place, transposed or not, makes of rows (B, C, W)."""
        channels, width = x_BCW.shape[1:]
        if torch.is_grad_enabled():
            self._kept.clear()  # a training: the version of a kernel does not tell the steps of a fused optimiser
        if not _as_a_matrix(layer, width, matrices):
            result: torch.Tensor = layer(x_BCW)
            return result
        matrix, bias = self._form(place, layer, channels, width)
        flat = torch.addmm(bias, x_BCW.flatten(1), matrix)
        return flat.view(len(x_BCW), layer.out_channels, -1)

    def _form(self, place: int, layer: Convolution, channels: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or layer.weight.is_inference():
            return _as_matrix(layer, channels, width)
        bias = cast(torch.Tensor, layer.bias)
        state = (layer.weight.data_ptr(), layer.weight._version, bias.data_ptr(), bias._version, layer.weight.device)
        kept = self._kept.get(place)  # one look: pieces are scored in several threads
        if kept is None or kept[0] != state:
            with torch.autocast(layer.weight.device.type, enabled=False):
                kept = (state, *_as_matrix(layer, channels, width))
            self._kept[place] = kept
        return kept[1:]


def _as_a_matrix(layer: Convolution, width: int, matrices: Matrices) -> bool:
    """Whether a convolution of rows of so many values a channel runs as a matrix."""
    transposed = isinstance(layer, nn.ConvTranspose1d)
    if matrices == "never" or width * (1 + transposed) > DENSE_WIDTH:
        return False
    fast = width <= FASTER_WIDTH[transposed] and (transposed or layer.in_channels >= MANY)
    return matrices == "always" or (fast and not torch.is_grad_enabled())


def _as_matrix(layer: Convolution, channels: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrix (C * W, C' * W') and bias (C' * W') that do to flat rows what a convolution of stride 2 does."""
    weight, padding = layer.weight, layer.weight.shape[2] // 2
    unit = torch.eye(channels * width, dtype=weight.dtype, device=weight.device).view(-1, channels, width)
    if isinstance(layer, nn.ConvTranspose1d):
        made = functional.conv_transpose1d(unit, weight, None, 2, padding, 1)
    else:
        made = functional.conv1d(unit, weight, None, 2, padding)
    return made.flatten(1), cast(torch.Tensor, layer.bias).repeat_interleave(made.shape[2])
