"""What holds a network's code beside its width: sparsity, contraction, few winners, and failure modes that it tells.

Shape legend: B rows of a batch, F bins, L latent, T rows that teach, K failure modes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

CodeActivation = Literal["identity", "sigmoid", "tanh", "relu"]
LEAST_MEAN = 1e-6  # of an activation in (0, 1): the divergence of one that is never on would be infinite
PROJECTIONS_SEED = 20_110_628  # of the projections of an evaluation, which draws nothing
LESSON_ROWS = 128  # that teach in each step

IntN = npt.NDArray[np.integer]


def activated(name: CodeActivation, raw_BL: torch.Tensor) -> torch.Tensor:
    """Codes of what the encoder's last layer says.

    >>> activated("relu", torch.tensor([[-1.0, 2.0]])).tolist()
    [[0.0, 2.0]]
    """
    match name:
        case "sigmoid":
            return torch.sigmoid(raw_BL)
        case "tanh":
            return torch.tanh(raw_BL)
        case "relu":
            return torch.relu(raw_BL)
        case "identity":
            return raw_BL


def slope(name: CodeActivation, code_BL: torch.Tensor) -> torch.Tensor:
    """Derivative of the activation, from its value.

    >>> slope("sigmoid", torch.tensor([[0.5]])).tolist(), slope("tanh", torch.tensor([[0.5]])).tolist()
    ([[0.25]], [[0.75]])
    """
    match name:
        case "sigmoid":
            return code_BL * (1 - code_BL)
        case "tanh":
            return 1 - code_BL.square()
        case "relu":
            return (code_BL > 0).float()
        case "identity":
            return torch.ones_like(code_BL)


def sparsity(name: CodeActivation, code_BL: torch.Tensor, target: float) -> torch.Tensor:
    """KL divergence of each number's mean activation over the batch from a target, summed over the code.

    rho log(rho / mean) + (1 - rho) log((1 - rho) / (1 - mean)), as between two coins (Ng, CS294A lecture notes, 2011,
    section 3). Target and mean of a tanh, in (-1, 1), are mapped to (0, 1) first, as H2O does.

    Args:
        name: sigmoid or tanh.
        code_BL: activations.
        target: in the range of the activation.

    >>> round(float(sparsity("sigmoid", torch.full((4, 2), 0.25), 0.25)), 6)
    0.0
    >>> round(float(sparsity("tanh", torch.full((4, 2), 0.5), 0.0)), 3)  # 2 (log 1/2 - (log 3/4 + log 1/4) / 2)
    0.288
    """
    mean_L, rho = code_BL.mean(0), target
    if name == "tanh":
        mean_L, rho = (mean_L + 1) / 2, (target + 1) / 2
    mean_L = mean_L.clamp(LEAST_MEAN, 1 - LEAST_MEAN)
    divergence_L = rho * (rho / mean_L).log() + (1 - rho) * ((1 - rho) / (1 - mean_L)).log()
    return divergence_L.sum()


def layer_contraction(name: CodeActivation, weight_LF: torch.Tensor, code_BL: torch.Tensor) -> torch.Tensor:
    """Squared Frobenius norm (B,) of the Jacobian of one layer with an activation: exact (Rifai et al. 2011, eq. 4).

    >>> layer_contraction("identity", torch.tensor([[3.0, 4.0]]), torch.zeros(2, 1)).tolist()
    [25.0, 25.0]
    """
    norm_B: torch.Tensor = slope(name, code_BL).square() @ weight_LF.square().sum(1)
    return norm_B


def projected_contraction(
    code_BL: torch.Tensor, x_BF: torch.Tensor, projections: int, generator: torch.Generator, *, differentiable: bool
) -> torch.Tensor:
    """Squared Frobenius norm (B,) of the Jacobian of codes by rows, estimated without bias.

    The squared length of a random vector of signs times the Jacobian has the norm as its expectation (Hutchinson 1989):
    one backward pass a projection, whatever the width of the code.

    Args:
        code_BL: of the rows, with its graph.
        x_BF: rows that require gradients; a row's code depends on it alone.
        projections: whose mean is taken.
        generator: of the signs, on the rows' device.
        differentiable: whether the estimate itself is to be differentiated.
    """
    total_B = torch.zeros(len(x_BF), device=x_BF.device)
    for _ in range(projections):
        drawn_BL = torch.rand(code_BL.shape, generator=generator, device=code_BL.device)
        signs_BL = torch.where(drawn_BL < 0.5, -1.0, 1.0)
        (pulled_BF,) = torch.autograd.grad(code_BL, x_BF, signs_BL, create_graph=differentiable, retain_graph=True)
        total_B = total_B + pulled_BF.float().square().sum(1)
    return total_B / projections


def winners(code_BL: torch.Tensor, share: float) -> torch.Tensor:
    """The code with each number's largest values of the batch, at least one of them, and zeros elsewhere.

    Lifetime sparsity (Makhzani and Frey, NeurIPS 2015, section 2). Equal values win together.

    >>> winners(torch.tensor([[1.0, 0.0], [3.0, 2.0], [2.0, 5.0]]), 0.34).tolist()
    [[0.0, 0.0], [3.0, 0.0], [0.0, 5.0]]
    """
    return winning(code_BL, winning_level(code_BL, share))


def winning_level(codes_NL: torch.Tensor, share: float) -> torch.Tensor:
    """What a number (L,) must reach to be among the largest of its share of rows."""
    count = max(1, round(share * len(codes_NL)))
    return codes_NL.topk(count, dim=0).values[-1]


def winning(code_BL: torch.Tensor, level_L: torch.Tensor) -> torch.Tensor:
    """The code with zeros where it does not reach a level.

    >>> winning(torch.tensor([[1.0, 2.0]]), torch.tensor([1.5, 1.5])).tolist()
    [[0.0, 2.0]]
    """
    return torch.where(code_BL >= level_L, code_BL, torch.zeros_like(code_BL))


def only_layer(encoder: nn.Module) -> nn.Linear | None:
    """The layer of an encoder that is one linear layer; None where it is deeper."""
    layers = encoder.layers
    first = layers[0] if isinstance(layers, nn.ModuleList) and len(layers) == 1 else None
    return first if isinstance(first, nn.Linear) else None


@dataclass(frozen=True)
class Lessons:
    """Rows that carry a failure mode, on the device, sorted by mode and failure; rows of other modes are no lesson.

    Each draw takes a mode, then a failure of it, then a row of that: a frequent mode, or a failure with a long horizon,
    teaches no more than another.
    """

    features_TF: torch.Tensor
    mode_T: torch.Tensor
    modes: tuple[str, ...]
    first_failure_K: torch.Tensor  # of each mode, among all failures
    failures_K: torch.Tensor
    first_row: torch.Tensor  # of each failure
    rows: torch.Tensor

    @classmethod
    def of(cls, features_TF: torch.Tensor, failure_T: IntN, mode_T: IntN, modes: tuple[str, ...]) -> Lessons:
        """Lessons from rows in any order.

        Args:
            features_TF: rows as the network sees them.
            failure_T: a number for each failure.
            mode_T: codes into `modes`; each has a row.
            modes: names.
        """
        order = np.lexsort((failure_T, mode_T))
        mode_T, failure_T, device = mode_T[order], failure_T[order], features_TF.device
        first_row = np.flatnonzero(np.r_[True, failure_T[1:] != failure_T[:-1]])
        rows = np.diff(np.r_[first_row, len(failure_T)])
        first_failure_K = np.searchsorted(mode_T[first_row], np.arange(len(modes)))
        failures_K = np.diff(np.r_[first_failure_K, len(first_row)])
        numbers = [
            torch.from_numpy(n.astype(np.int64)).to(device) for n in (first_failure_K, failures_K, first_row, rows)
        ]
        placed = features_TF[torch.from_numpy(order).to(device)]
        return cls(placed, torch.from_numpy(mode_T.astype(np.int64)).to(device), modes, *numbers)

    def __len__(self) -> int:
        return len(self.features_TF)

    def draw(self, generator: torch.Generator, count: int = LESSON_ROWS) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (count, F) and their modes (count,)."""
        device = self.features_TF.device
        mode, failure, row = torch.rand(3, count, generator=generator, device=device, dtype=torch.float64)
        mode_B = (mode * len(self.modes)).long()
        failure_B = self.first_failure_K[mode_B] + (failure * self.failures_K[mode_B]).long()
        row_B = self.first_row[failure_B] + (row * self.rows[failure_B]).long()
        return self.features_TF[row_B], self.mode_T[row_B]

    def digest(self) -> str:
        """Hex SHA-256 of rows and modes: they decide the weights."""
        parts = (self.features_TF, self.mode_T, self.first_row)
        found = hashlib.sha256(repr(self.modes).encode())
        for part in parts:
            found.update(part.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


def mode_loss(head: nn.Module, code_BL: torch.Tensor, mode_B: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the modes of rows.

    >>> round(float(mode_loss(lambda code: torch.zeros(len(code), 4), torch.zeros(3, 2), torch.tensor([0, 1, 3]))), 4)
    1.3863
    """
    return functional.cross_entropy(head(code_BL).float(), mode_B)
