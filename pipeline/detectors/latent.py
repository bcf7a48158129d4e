"""What is usual of a network's codes and residuals on healthy rows, and how unusual a row's are.

Shape legend: N rows, B rows of a batch, F bins, L latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.schema import FloatN

LEAST_VARIANCE = 1e-6  # of a direction of the codes, as a share of the mean one: beyond it is rounding
NEIGHBOURS = 5
LEAST_RESIDUAL = 0.05  # variance of a bin, as a share of the mean one: no bin counts more than 20 times another
HEALTHY_SHARES = (0.5, 0.1, 0.01)  # of healthy rows that lie beyond the knots of a tail


@dataclass(frozen=True)
class Tail:
    """How rare a value is among healthy rows: minus the log of the share of healthy rows that lie beyond it.

    Exact at the median and at the 90th and 99th percentile (`knots`), linear between them; beyond the last it goes on
    as it came, an exponential tail, so that values which no healthy row reaches keep their order. Zero at zero.

    >>> tail = Tail.of(np.random.default_rng(0).exponential(size=100_000))
    >>> [round(value) for value in tail(torch.tensor([0.0, 1.0, 5.0, 20.0])).tolist()]
    [0, 1, 5, 20]
    """

    knots: tuple[float, ...]

    @classmethod
    def of(cls, values_N: FloatN) -> Tail:
        """The tail of healthy, non-negative values; at least one.

        Equal percentiles, of values that do not vary, are moved apart by a millionth.
        """
        percentiles = [100 * (1 - share) for share in HEALTHY_SHARES]
        knots = np.percentile(values_N, percentiles)  # torch.quantile refuses more than 2^24 values
        step = max(1e-6 * float(knots[-1]), 1e-12)
        return cls(tuple((knots + step * np.arange(1, len(knots) + 1)).tolist()))

    def __call__(self, values_B: torch.Tensor) -> torch.Tensor:
        """Minus the natural log of the share of healthy rows beyond each value: (B,) float64, rising with the value."""
        values_B = values_B.double()
        result_B = torch.zeros_like(values_B)
        low, rarity, slope = 0.0, 0.0, 0.0
        for knot, share in zip(self.knots, HEALTHY_SHARES, strict=True):
            slope = (-math.log(share) - rarity) / (knot - low)
            result_B = result_B + slope * (values_B.clamp(max=knot) - low).clamp(min=0.0)
            low, rarity = knot, -math.log(share)
        return result_B + slope * (values_B - low).clamp(min=0.0)


def nearest_codes(white_BL: torch.Tensor, near_KL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared distance (B,) from the NEIGHBOURS nearest of some codes, and the place of the nearest (B,).

    Distances to neighbours (Ramaswamy, Rastogi and Shim, SIGMOD 2000) take no shape for granted: healthy codes may lie
    in several clouds, with nothing usual between them.

    >>> near = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
    >>> [value.tolist() for value in nearest_codes(torch.tensor([[0.0, 2.0]]), near[:2])]
    [[2.5], [1]]
    """
    squared_BK = white_BL.square().sum(1, keepdim=True) + near_KL.square().sum(1) - 2.0 * white_BL @ near_KL.T
    nearest = squared_BK.clamp_min(0.0).topk(min(NEIGHBOURS, len(near_KL)), dim=1, largest=False)
    return nearest.values.mean(1), nearest.indices[:, 0]


def code_statistics(codes_NL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (L,) of healthy codes and the symmetric root (L, L) of the inverse of their covariance, float64.

    `((code - mean) @ root).square().sum()` is the squared Mahalanobis distance. The covariance is shrunk by
    `ledoit_wolf`, and none of its variances is below LEAST_VARIANCE of their mean.

    Args:
        codes_NL: of healthy rows.
    """
    codes_NL = codes_NL.double()
    mean_L = codes_NL.mean(0)
    values_L, vectors_LL = torch.linalg.eigh(ledoit_wolf(codes_NL - mean_L))
    values_L = values_L.clamp_min(LEAST_VARIANCE * float(values_L.mean()) + 1e-12)
    return mean_L, vectors_LL / values_L.sqrt() @ vectors_LL.T


def ledoit_wolf(centred_NL: torch.Tensor) -> torch.Tensor:
    """Covariance (L, L) shrunk to a multiple of the identity: few rows make eigenvalues too small and too large.

    The share of the identity minimises the expected squared error (Ledoit and Wolf, J. Multivariate Anal. 88 (2004)
    365, lemma 3.2 to 3.5). It goes to zero as rows become many.

    >>> from sklearn.covariance import ledoit_wolf as reference
    >>> rows = torch.randn(30, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> expected, _ = reference((rows - rows.mean(0)).numpy(), assume_centered=True)
    >>> bool(np.allclose(ledoit_wolf(rows - rows.mean(0)).numpy(), expected))
    True
    """
    rows, size = centred_NL.shape
    covariance_LL = centred_NL.T @ centred_NL / max(1, rows)
    identity_LL = torch.eye(size, dtype=centred_NL.dtype, device=centred_NL.device)
    target_LL = covariance_LL.diagonal().mean() * identity_LL
    dispersion = (covariance_LL - target_LL).square().sum()
    # mean squared distance of a row's own product from the covariance, over the rows: the error of the covariance
    error = (centred_NL.square().sum(1).square().mean() - covariance_LL.square().sum()) / max(1, rows)
    share = float(torch.minimum(error, dispersion) / dispersion) if float(dispersion) > 0 else 1.0
    return share * target_LL + (1 - share) * covariance_LL


def residual_variance(parts: Iterable[torch.Tensor], bins: int, limit: float) -> torch.Tensor:
    """Mean square (F,) of the residual of each bin on healthy rows, none far below the mean of all bins; float32.

    Args:
        parts: residuals (n, F).
        bins: F.
        limit: residuals beyond it count as it.
    """
    total_F, rows = torch.zeros(bins, dtype=torch.float64), 0
    for part in parts:
        total_F = total_F.to(part.device) + part.clamp(-limit, limit).double().square().sum(0)
        rows += len(part)
    variance_F = total_F / max(1, rows)
    return variance_F.clamp_min(LEAST_RESIDUAL * float(variance_F.mean()) + 1e-12).float()
