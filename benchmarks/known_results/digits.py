"""Known results: handwritten digits as rows of pixels in 0 to 1, apart from those that judge.

MNIST where HEARKEN_REAL_DATA or ../shared/data has `mnist.parquet`, in its own split; else scikit-learn's 8 x 8 digits,
a third of which judge.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parents[2]
SMALL_LARGEST, SMALL_TEST_SHARE = 16.0, 1 / 3
VALIDATION_PART = 10  # of the training rows: one in ten says which epoch was best


@dataclass(frozen=True)
class Digits:
    """Pixels (N, F) float32 in 0 to 1 and digits (N,) int64; `source` says which set it is."""

    source: str
    train: torch.Tensor
    train_digit: torch.Tensor
    test: torch.Tensor
    test_digit: torch.Tensor

    @property
    def pixels(self) -> int:
        """F."""
        return self.train.shape[1]

    def fitting(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Training rows that fit, and every tenth, which says which epoch was best: two masks (N,)."""
        held_N = torch.arange(len(self.train)) % VALIDATION_PART == 0
        return ~held_N, held_N


def real_folder() -> Path:
    """Where recordings are, if there are any."""
    return Path(os.environ.get("HEARKEN_REAL_DATA") or ROOT.parent / "shared" / "data")


def read_digits(train_rows: int | None, test_rows: int | None, seed: int) -> Digits:
    """Rows drawn at random from either part of the split; None: all of them."""
    rng, path = np.random.default_rng(seed), real_folder() / "mnist.parquet"
    if path.is_file():
        table = pq.read_table(path)
        test_N = np.array(table["split"].to_pylist()) == "test"
        digit_N = table["digit"].to_numpy().astype(np.int64)
        names = [name for name in table.column_names if name.startswith("f_")]
        pixel_NF = np.stack([table[name].to_numpy() for name in names], axis=1)
        source, largest = "MNIST", 255.0
    else:
        bunch = load_digits()
        pixel_NF, digit_N = bunch.data, bunch.target.astype(np.int64)
        test_N = np.isin(np.arange(len(digit_N)), rng.permutation(len(digit_N))[: int(len(digit_N) * SMALL_TEST_SHARE)])
        source, largest = f"scikit-learn's 8 x 8 digits (no {path.name} in {path.parent.name}/)", SMALL_LARGEST
    parts = []
    for mask_N, most in ((~test_N, train_rows), (test_N, test_rows)):
        index = rng.permutation(np.flatnonzero(mask_N))[:most]
        parts += [torch.from_numpy((pixel_NF[index] / largest).astype(np.float32)), torch.from_numpy(digit_N[index])]
    return Digits(source, *parts)
