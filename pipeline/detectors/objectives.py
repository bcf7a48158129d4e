"""What the networks minimise: losses per bin, corruption of training rows, annealing of the KL divergence.

Shape legend: N rows, B rows of a batch, F bins, L latent.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

from pipeline.params import NoiseParams

LossName = Literal["mse", "huber", "gaussian", "bce"]
Annealing = Literal["none", "linear", "cyclical"]
INPUT_LIMIT = 10.0  # robust deviations; a failing machine may be hundreds away, and the encoder never saw that
HUBER_KNEE = 1.0  # robust deviations: beyond it the loss grows linearly
BIN_LOG_VARIANCE = (-7.0, 5.0)  # of a bin: from a standard deviation of 0.03 to one of 12, beyond the input's limit
CODE_LOG_VARIANCE = (-8.0, 4.0)  # of a code
RISING_SHARE = 0.5  # of a cycle (R of Fu et al.); the rest of it at the full weight


def bin_losses(
    name: LossName, x_BF: torch.Tensor, output_BF: torch.Tensor, log_variance_F: torch.Tensor | None = None
) -> torch.Tensor:
    """Loss (B, F) of each bin: a negative log-likelihood up to a constant.

    - `mse`: half the squared error (a normal distribution of variance one).
    - `huber`: the same up to HUBER_KNEE, beyond it linear (Huber, Ann. Math. Stat. 35 (1964) 73).
    - `gaussian`: a normal distribution whose variance is learned for each bin: (error^2 / variance + log variance) / 2.
    - `bce`: binary cross-entropy of the input mapped to (0, 1) by `as_probability`, less the entropy of the mapped
      input, so that a perfect output costs nothing (the gradient is the same). The output is a logit: it lies on the
      scale of the input.

    Args:
        name: of the loss.
        x_BF: input, in robust deviations.
        output_BF: of the decoder, on the same scale.
        log_variance_F: for `gaussian`, bounded.

    >>> x, output = torch.tensor([[0.0, 3.0]]), torch.tensor([[0.0, 0.0]])
    >>> bin_losses("mse", x, output).tolist(), bin_losses("huber", x, output).tolist()
    ([[0.0, 4.5]], [[0.0, 2.5]])
    """
    if name == "huber":
        return functional.huber_loss(output_BF, x_BF, reduction="none", delta=HUBER_KNEE)
    if name == "gaussian":
        if log_variance_F is None:
            raise ValueError("got no log_variance_F, expected one with the loss gaussian")
        return 0.5 * ((x_BF - output_BF).square() * (-log_variance_F).exp() + log_variance_F)
    if name == "bce":
        target_BF = as_probability(x_BF)
        perfect_BF = x_BF.clamp(-INPUT_LIMIT, INPUT_LIMIT)
        entropy_BF = functional.binary_cross_entropy_with_logits(perfect_BF, target_BF, reduction="none")
        return functional.binary_cross_entropy_with_logits(output_BF, target_BF, reduction="none") - entropy_BF
    return 0.5 * (x_BF - output_BF).square()


def mean_loss(
    name: LossName, x_BF: torch.Tensor, output_BF: torch.Tensor, log_variance_F: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over rows and bins of `bin_losses`, in one pass over the numbers where torch has one.

    >>> float(mean_loss("mse", torch.zeros(1, 2), torch.tensor([[1.0, 3.0]])))
    2.5
    """
    if name == "mse":
        return 0.5 * functional.mse_loss(output_BF, x_BF)
    if name == "huber":
        return functional.huber_loss(output_BF, x_BF, delta=HUBER_KNEE)
    return bin_losses(name, x_BF, output_BF, log_variance_F).mean()


def as_probability(x_BF: torch.Tensor) -> torch.Tensor:
    """The input of the cross-entropy: the logistic function of robust deviations, held within INPUT_LIMIT.

    >>> as_probability(torch.tensor([0.0, -1e9, 1e9])).round(decimals=4).tolist()
    [0.5, 0.0, 1.0]
    """
    return torch.sigmoid(x_BF.clamp(-INPUT_LIMIT, INPUT_LIMIT))


def bounded(raw: torch.Tensor, limits: tuple[float, float]) -> torch.Tensor:
    """A log variance held softly within limits: unlike a hard limit, it has a gradient on both sides.

    The form of Chua et al. (NeurIPS 2018, appendix A.1).

    >>> [round(value, 2) for value in bounded(torch.tensor([-1e6, 0.0, 1e6]), (-8.0, 4.0)).tolist()]
    [-8.0, -0.02, 4.0]
    """
    low, high = limits
    below = high - functional.softplus(high - raw)
    # at the upper end the second softplus lifts the value by log(1 + exp(low - high)), and the clamp takes that off
    return (low + functional.softplus(below - low)).clamp(low, high)


def corrupted(x_BF: torch.Tensor, noise: NoiseParams, generator: torch.Generator) -> torch.Tensor:
    """Training rows as the encoder sees them; the network must restore what they were.

    Bins are dropped, and numbers masked, by setting them to zero: their healthy location (masking noise of Vincent et
    al., ICML 2008, section 2.3). The Gaussian noise is added first, so what is dropped is exactly zero.

    Args:
        x_BF: rows, in robust deviations.
        noise: how much of what.
        generator: of the same device.

    >>> noise = NoiseParams(bin_dropout=0.5)
    >>> dropped = corrupted(torch.ones(3, 100), noise, torch.Generator().manual_seed(0))
    >>> bool((dropped[0] == dropped[2]).all()), 30 < int(dropped[0].sum()) < 70
    (True, True)
    """
    rows, bins = x_BF.shape
    if noise.gaussian:
        x_BF = x_BF + noise.gaussian * torch.randn(x_BF.shape, generator=generator, device=x_BF.device)
    if noise.masking:
        x_BF = x_BF * (torch.rand(rows, bins, generator=generator, device=x_BF.device) >= noise.masking)
    if noise.bin_dropout:
        x_BF = x_BF * (torch.rand(1, bins, generator=generator, device=x_BF.device) >= noise.bin_dropout)
    return x_BF


def kl_divergence(mean_BL: torch.Tensor, log_variance_BL: torch.Tensor) -> torch.Tensor:
    """KL divergence (B, L) of each code from the standard normal prior (Kingma and Welling 2014, appendix B).

    >>> kl_divergence(torch.zeros(1, 2), torch.zeros(1, 2)).tolist()
    [[0.0, 0.0]]
    """
    return 0.5 * (mean_BL.square() + log_variance_BL.exp() - 1 - log_variance_BL)


def annealed(annealing: Annealing, epoch: int, *, warmup_epochs: int, cycles: int, max_epochs: int) -> float:
    """Share of beta in an epoch (from 1).

    `linear` rises until `warmup_epochs`; `cyclical` rises over the first half of each of `cycles` parts of
    `max_epochs` and stays for the other (Fu et al., NAACL 2019, eq. 6 and 7, with R = 0.5).

    >>> [annealed("linear", epoch, warmup_epochs=4, cycles=1, max_epochs=8) for epoch in (1, 2, 4, 8)]
    [0.25, 0.5, 1.0, 1.0]
    >>> [annealed("cyclical", epoch, warmup_epochs=0, cycles=2, max_epochs=8) for epoch in range(1, 9)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0]
    """
    if annealing == "linear":
        return min(1.0, epoch / max(1, warmup_epochs))
    if annealing == "cyclical":
        period = max_epochs / cycles
        return min(1.0, ((epoch - 1) % period) / period / RISING_SHARE)
    return 1.0
