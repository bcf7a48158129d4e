"""How much higher one machine, or one condition, scores than the fleet when healthy, shrunk as its rows allow.

A machine whose healthy scores lie above the others' would spend the fleet's budget of false alarms alone, and one whose
scores lie below would need a larger fault to be heard. Scores are divided by the machine's level before their tail is
fitted. Levels are empirical Bayes estimates: the logarithm of the 90th percentile of a machine's pieces of time has a
mean, what the pieces differ by says how sure it is, and what machines differ by beyond that how much of it to believe
(Efron and Morris 1975). A machine with few or restless pieces keeps the fleet's level.

Levels of machines pay where machines differ for good. Where a machine's scores wander over weeks its calibration days
tell little of later ones, and false alarms become more: the fleet's level is the default.

Shape legend: N rows, P pieces, G groups, R rows of the baseline table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.detectors.baseline import BaselineTable
from pipeline.schema import FloatN, IntN

PERCENTILE = 90.0
PIECE_ROWS = 20  # at least: fewer have no 90th percentile
PIECES = 10  # of a group at most
LEAST_PIECES = 2
FURTHEST = 4.0  # times the fleet's level at most, or at least its inverse: beyond that something is wrong


def group_levels(scores_N: FloatN, group_N: IntN, order_N: IntN) -> dict[int, float]:
    """Level of each group that has enough rows, 1 being the fleet's.

    Args:
        scores_N: healthy scores; pieces whose percentile is not positive do not count.
        group_N: code of each row's group.
        order_N: what puts a group's rows in order: neighbours resemble each other.

    >>> rng = np.random.default_rng(0)
    >>> group = np.repeat([0, 1, 2], 2000)
    >>> scores = rng.exponential(size=6000) * np.array([1.0, 1.0, 2.0])[group]
    >>> levels = group_levels(scores, group, np.arange(6000))
    >>> round(levels[2] / levels[0], 1)
    2.0
    """
    log_P, group_P = _log_percentiles(scores_N, group_N, order_N)
    groups, group_P = np.unique(group_P, return_inverse=True)
    pieces_G = np.bincount(group_P, minlength=len(groups))
    enough_G = pieces_G >= LEAST_PIECES
    if enough_G.sum() < 2:
        return {}
    mean_G = np.bincount(group_P, log_P) / pieces_G
    within = float(np.sum((log_P - mean_G[group_P]) ** 2)) / max(1, len(log_P) - len(groups))
    variance_G = np.maximum(np.maximum(within / pieces_G, _variance_of_halves(log_P, group_P, pieces_G)), 1e-12)
    apart_G = mean_G - float(np.sum(mean_G / variance_G) / np.sum(1 / variance_G))
    between = max(0.0, float(np.mean((apart_G**2 - variance_G)[enough_G])))
    share_G = between / (between + variance_G)
    level_G = np.exp(np.clip(share_G * apart_G, -np.log(FURTHEST), np.log(FURTHEST)))
    return {int(groups[place]): float(level_G[place]) for place in np.flatnonzero(enough_G)}


def _log_percentiles(scores_N: FloatN, group_N: IntN, order_N: IntN) -> tuple[FloatN, IntN]:
    """Logarithm of the percentile (P,) of each piece of a group's rows, in order, and the group of each."""
    sorted_N = np.lexsort((order_N, group_N))
    group, begin_G, rows_G = np.unique(group_N[sorted_N], return_index=True, return_counts=True)
    pieces_G = np.minimum(PIECES, rows_G // PIECE_ROWS)
    place_N = np.arange(len(sorted_N)) - np.repeat(begin_G, rows_G)
    piece_N = place_N * np.repeat(pieces_G, rows_G) // np.repeat(rows_G, rows_G)
    piece_N += np.repeat(np.cumsum(pieces_G) - pieces_G, rows_G)
    kept = np.repeat(pieces_G > 0, rows_G)
    scores_n, piece_n = scores_N[sorted_N][kept], piece_N[kept]
    by_score = np.lexsort((scores_n, piece_n))
    rows_P = np.bincount(piece_n, minlength=int(pieces_G.sum()))
    place_P = np.cumsum(rows_P) - rows_P + (rows_P * PERCENTILE / 100).astype(np.int64)
    high_P, group_P = scores_n[by_score][place_P], np.repeat(group, pieces_G)
    positive = high_P > 0
    return np.log(high_P[positive]), group_P[positive]


def _variance_of_halves(log_P: FloatN, group_P: IntN, pieces_G: IntN) -> float:
    """Variance of a group's mean, by what the first and the second half of its pieces differ by.

    Pieces in order resemble each other: they say less than as many independent ones.
    """
    place_P = np.arange(len(group_P)) - np.searchsorted(group_P, group_P)
    half_P = 2 * group_P + (2 * place_P >= pieces_G[group_P])
    count_G2 = np.bincount(half_P, minlength=2 * len(pieces_G)).reshape(-1, 2)
    total_G2 = np.bincount(half_P, log_P, 2 * len(pieces_G)).reshape(-1, 2)
    halved = count_G2.min(axis=1) > 0
    if not halved.any():
        return 0.0
    apart_G = np.diff(total_G2[halved] / count_G2[halved], axis=1)
    return float(np.mean(apart_G**2)) / 4  # of the difference of two halves; a quarter of it of the mean of both


def baseline_levels(
    baselines: BaselineTable, by: str, names: Sequence[str], levels: Mapping[int, float]
) -> npt.NDArray[np.float64]:
    """The level (R,) of each row of the baseline table: of its machine or condition, 1 for all others and the fleet's.

    Args:
        baselines: that describe the rows.
        by: `machine` or `condition`.
        names: of the groups.
        levels: from `group_levels`.
    """
    by_name = {str(names[group]): level for group, level in levels.items()}
    first = ["", *baselines.conditions] if by == "condition" else [""] * (1 + len(baselines.conditions))
    of_keys = [condition if by == "condition" else machine for machine, _, condition in baselines.keys]
    return np.array([by_name.get(name, 1.0) if name else 1.0 for name in (*first, *of_keys)])
