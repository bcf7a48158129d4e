"""Seeded samples that do not depend on how rows are divided into files: numbers without pattern, ranks and quotas.

Shape legend: N rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.rows import Codes
from pipeline.schema import IntN


def fair_sample(machine_N: Codes, rank_N: IntN, random_N: npt.NDArray[np.uint64], max_rows: int) -> IntN:
    """Sorted places of at most `max_rows` rows: the same number of each machine where it has them, then by `rank_N`.

    >>> machine = np.array([0] * 90 + [1] * 10)
    >>> picked = fair_sample(machine, np.arange(100), np.arange(100, dtype=np.uint64), 40)
    >>> int((picked < 90).sum()), int((picked >= 90).sum())
    (30, 10)
    """
    if len(machine_N) <= max_rows:
        return np.arange(len(machine_N))
    order = np.lexsort((random_N, rank_N, machine_N))
    counts = np.unique(machine_N, return_counts=True)[1]
    first = np.cumsum(counts) - counts
    place_N = np.arange(len(order)) - np.repeat(first, counts)  # of each row among its machine's
    # the largest quota that all machines together can fill
    low, high = 0, int(counts.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(counts, middle).sum() <= max_rows else (low, middle - 1)
    return np.sort(order[place_N < max(1, low)])


def mixed(time_us_N: IntN, salt_N: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """A number without pattern per row (the finaliser of SplitMix64: Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        state = time_us_N.astype(np.uint64) + (salt_N + np.uint64(seed & 0xFFFFFFFF)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(state ^ (state >> np.uint64(31)))


def ranks(stratum_N: IntN, random_N: npt.NDArray[np.uint64]) -> IntN:
    """Place of each row in its stratum by its random number, from 0."""
    order = np.lexsort((random_N, stratum_N))
    stratum = stratum_N[order]
    new = np.r_[True, stratum[1:] != stratum[:-1]][: len(order)]
    first = np.flatnonzero(new)
    rank_N = np.empty(len(order), np.int64)
    rank_N[order] = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))
    return rank_N
