"""Known results: small coders of the project's dense layers, with sparse codes or a head that learns labels beside.

Everything trains in the project's own loop, and codes are made sparse as the project makes them. The supervised term
stands here, as the published one weighs the reconstruction against the labels.

Shape legend: N rows, B rows of a batch, F inputs, L units of the code, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pipeline.detectors import codes
from pipeline.detectors.networks import Activation, DenseStack
from pipeline.engine import FeatureRows, Loss, Run, train_network
from pipeline.params import OptimiserParams

PART_ROWS = 8192


class Coder(nn.Module):
    """Encoder, decoder, and a head over the code where labels are learned.

    Args:
        widths: of the encoder, from the inputs to the code; the decoder mirrors them.
        activation: between hidden layers.
        code_activation: of the code itself.
        head: widths over the code, the last one the number of classes; empty: no head.
        seed: of the weights.

    >>> coder = Coder([784, 392, 98, 16], "relu", head=[40, 40, 10], seed=1)
    >>> coder(torch.zeros(2, 784)).shape, coder.logits(coder.code(torch.zeros(2, 784))).shape
    (torch.Size([2, 784]), torch.Size([2, 10]))
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: Activation,
        *,
        code_activation: codes.CodeActivation = "identity",
        head: Sequence[int] = (),
        seed: int,
    ) -> None:
        super().__init__()
        self.code_activation = code_activation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = DenseStack(widths, activation)
            self.decoder = DenseStack(widths[::-1], activation)
            # last: with a head or without, encoder and decoder begin alike
            self.head = DenseStack([widths[-1], *head], activation) if head else None

    def code(self, x_BF: torch.Tensor) -> torch.Tensor:
        """(B, L)."""
        raw_BL: torch.Tensor = self.encoder(x_BF)
        return codes.activated(self.code_activation, raw_BL)

    def logits(self, code_BL: torch.Tensor) -> torch.Tensor:
        """(B, K) of the head."""
        if self.head is None:
            raise ValueError("got a coder without a head, expected one whose head has widths")
        result_BK: torch.Tensor = self.head(code_BL)
        return result_BK

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        """Reconstructions (B, F)."""
        output_BF: torch.Tensor = self.decoder(self.code(x_BF))
        return output_BF


def sparsity(code_BL: torch.Tensor, target: float) -> torch.Tensor:
    """The project's divergence of a tanh code's mean activations from a target between -1 and 1; a number.

    >>> float(sparsity(torch.tensor([[-0.1], [-0.1]]), -0.1))
    0.0
    >>> round(float(sparsity(torch.tensor([[0.4], [0.2]]), -0.1)), 4)
    0.0831
    """
    if not -1 < target < 1:
        raise ValueError(f"got target={target}, expected -1 < target < 1")
    return codes.sparsity("tanh", code_BL, target)


def supervised(
    reconstruction: torch.Tensor, logits_BK: torch.Tensor, label_B: torch.Tensor, alpha: float
) -> torch.Tensor:
    """alpha * reconstruction + (1 - alpha) * cross-entropy of the labels, a mean over rows.

    >>> round(float(supervised(torch.tensor(0.5), torch.zeros(3, 2), torch.tensor([0, 1, 1]), 0.5)), 4)  # ln 2
    0.5966
    """
    return alpha * reconstruction + (1 - alpha) * functional.cross_entropy(logits_BK, label_B)


def squared_error(coder: nn.Module) -> Loss:
    """The mean squared error of inputs and reconstructions, as a loss of the training loop."""

    def loss(x_BF: torch.Tensor, _epoch: int, _noise: torch.Generator | None) -> dict[str, torch.Tensor]:
        return {"loss": functional.mse_loss(coder(x_BF), x_BF)}

    return loss


def optimiser(epochs: int, **changes: Any) -> OptimiserParams:
    """Settings that see every epoch through: the published runs stop nowhere early.

    >>> optimiser(3, learning_rate=0.1).patience
    3
    """
    settings = {"max_epochs": epochs, "patience": epochs, "batch_rows": 256, "weight_decay": 0.0, "min_improvement": 0}
    return OptimiserParams.model_validate(settings | changes)


def fit(
    network: nn.Module, loss: Loss, rows_NF: torch.Tensor, held_NF: torch.Tensor, settings: OptimiserParams, seed: int
) -> dict[str, Any]:
    """Train on the CPU; the weights of the best epoch on the held-out rows stay. See pipeline.engine.train_network."""
    run = Run(name="known_result", seed=seed, device=torch.device("cpu"))
    return train_network(network, loss, FeatureRows.resident(rows_NF), held_NF, settings, run)


@torch.inference_mode()
def in_parts(function: Callable[[torch.Tensor], torch.Tensor], rows_NF: torch.Tensor) -> torch.Tensor:
    """A function of many rows, a part at a time."""
    return torch.cat([function(part) for part in rows_NF.split(PART_ROWS)])


def row_errors(coder: Coder, rows_NF: torch.Tensor, seen_NF: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error (N,) of each row and the reconstruction of what was seen of it (None: all of it)."""
    output_NF = in_parts(coder, rows_NF if seen_NF is None else seen_NF)
    return (output_NF - rows_NF).square().mean(1)
