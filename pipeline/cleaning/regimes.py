"""Regimes of a machine where no column tells them: levels of its spectrum that come back day after day.

A machine that stands, idles or works has levels far apart. So has one with a fault, but that level does not come back:
a level counts only where it is found on half of the machine's days, and a fault never becomes a regime.

Shape legend: N rows, M machines, G features, K levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.schema import FloatN, IntN

MAX_CONDITIONS = 64  # a power of two; slots are numbered with it
MAX_LEVELS = 4
MIN_ROWS = 40  # of a machine, to look for levels
TWO_LEVELS = 0.8  # share of the variance between two parts; .64 for one normal level, .75 for an even one
COMES_BACK = 0.5  # of a machine's days


@dataclass(frozen=True)
class Levels:
    """Each machine's direction in which its rows differ most (M, G), and cuts along it (M, K - 1)."""

    direction_MG: npt.NDArray[np.float32]
    cuts_MK: FloatN

    def codes(self, feature_NG: npt.NDArray[np.float32], machine_N: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Level of each row (N,), 0 the lowest."""
        place_N = np.einsum("ng,ng->n", feature_NG, self.direction_MG[machine_N])
        return np.asarray((place_N[:, None] > self.cuts_MK[machine_N]).sum(axis=1), np.int32)


def fit_levels(
    feature_NG: npt.NDArray[np.float32], machine_N: npt.NDArray[np.integer], day_N: IntN, machines: int
) -> Levels:
    """Find each machine's levels in a sample of its rows.

    Args:
        feature_NG: log spectra and energy.
        machine_N: machine codes.
        day_N: number of the day, or of another stretch in which a regime comes back.
        machines: M.

    >>> rng = np.random.default_rng(0)
    >>> rows = rng.normal(size=(400, 3)) + 20.0 * (np.arange(400) % 4 == 0)[:, None]
    >>> levels = fit_levels(rows.astype(np.float32), np.zeros(400, int), np.arange(400) // 40, 1)
    >>> levels.codes(rows.astype(np.float32), np.zeros(400, int))[:5].tolist()
    [1, 0, 0, 0, 1]
    """
    direction_MG = np.zeros((machines, feature_NG.shape[1]), np.float32)
    cuts_MK = np.full((machines, MAX_LEVELS - 1), np.inf)
    order = np.argsort(machine_N, kind="stable")
    bounds = np.searchsorted(machine_N[order], np.arange(machines + 1))
    for code in range(machines):
        mine = order[bounds[code] : bounds[code + 1]]
        if len(mine) < MIN_ROWS:
            continue
        centred = feature_NG[mine].astype(np.float64)
        centred -= np.median(centred, axis=0)
        _, vectors = np.linalg.eigh(centred.T @ centred)
        direction = vectors[:, -1] * (np.sign(vectors[:, -1].sum()) or 1.0)
        direction_MG[code] = direction
        place_N = feature_NG[mine] @ direction_MG[code]
        cuts = sorted(_cuts(place_N.astype(np.float64), day_N[mine], np.unique(day_N[mine]).size, MAX_LEVELS))
        cuts_MK[code, : len(cuts)] = cuts[: MAX_LEVELS - 1]
    return Levels(direction_MG, cuts_MK)


def _cuts(place_N: FloatN, day_N: IntN, days: int, levels: int) -> list[float]:
    """Where to cut into at most so many levels."""
    if levels < 2 or len(place_N) < MIN_ROWS:
        return []
    cut, share = best_cut(place_N)
    high_N = place_N > cut
    if share < TWO_LEVELS or any(np.unique(day_N[part]).size < COMES_BACK * days for part in (high_N, ~high_N)):
        return []
    below = _cuts(place_N[~high_N], day_N[~high_N], days, levels // 2)
    return [*below, cut, *_cuts(place_N[high_N], day_N[high_N], days, levels // 2)]


def best_cut(place_N: FloatN) -> tuple[float, float]:
    """The cut that explains most of the variance, and the share that it explains (Otsu 1979, eq. 12).

    >>> best_cut(np.array([0.0, 1.0, 9.0, 10.0]))[0]
    5.0
    """
    value = np.sort(place_N)
    total = float(value.var())
    if total <= 0:
        return float(value[0]), 0.0
    count = np.arange(1, len(value))
    low = np.cumsum(value)[:-1] / count
    high = (value.sum() - count * low) / (len(value) - count)
    between = count * (len(value) - count) * (high - low) ** 2 / len(value) ** 2
    best = int(between.argmax())
    return float((value[best] + value[best + 1]) / 2), float(between[best] / total)
