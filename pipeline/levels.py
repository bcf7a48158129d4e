"""How much higher one machine, or one condition, scores than the fleet when healthy, shrunk as its days allow.

A machine whose healthy scores lie above the others' would spend the fleet's budget of false alarms alone, and one whose
scores lie below would need a larger fault to be heard. Scores are divided by the machine's level before their tail is
fitted. Levels are empirical Bayes estimates: the logarithm of the 90th percentile of a machine's days has a mean, the
variance of the days says how sure it is, and the variance between machines beyond that (DerSimonian and Laird 1986, eq.
8) how much of it to believe (Efron and Morris 1975). A machine with few or restless days keeps the fleet's level.

Levels of machines pay where machines differ for good. Where a machine's scores wander over weeks its calibration days
tell little of later ones, and false alarms become more: `fleet` is the default, and the report shows what was reached.

Shape legend: N rows, U units (days of a machine, or machines in a condition), G groups, R rows of the baseline table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.detectors.baseline import BaselineTable
from pipeline.schema import FloatN, IntN

PERCENTILE = 90.0
LEAST_UNIT_ROWS = 20  # fewer have no 90th percentile
LEAST_UNITS = 2
FURTHEST = 4.0  # times the fleet's level at most, or at least its inverse: beyond that something is wrong


def group_levels(scores_N: FloatN, group_N: IntN, unit_N: IntN) -> dict[int, float]:
    """Level of each group that has enough units, 1 being the fleet's.

    Args:
        scores_N: healthy scores, positive ones count.
        group_N: code of each row's group.
        unit_N: code of each row's unit; a unit belongs to one group.

    >>> rng = np.random.default_rng(0)
    >>> group, day = np.repeat([0, 1, 2], 2000), np.repeat(np.arange(60), 100)
    >>> levels = group_levels(rng.exponential(size=6000) * np.array([1.0, 1.0, 2.0])[group], group, day)
    >>> round(levels[2] / levels[0], 1)
    2.0
    """
    order = np.lexsort((scores_N, unit_N))
    _, begin_U, rows_U = np.unique(unit_N[order], return_index=True, return_counts=True)
    place_U = begin_U + np.minimum(rows_U - 1, (rows_U * PERCENTILE / 100).astype(np.int64))
    high_U, group_U = scores_N[order[place_U]], group_N[order[begin_U]]
    usable = (rows_U >= LEAST_UNIT_ROWS) & (high_U > 0)
    log_U, groups, group_U = np.log(high_U[usable]), *np.unique(group_U[usable], return_inverse=True)
    units_G = np.bincount(group_U, minlength=len(groups))
    if np.sum(units_G >= LEAST_UNITS) < 2:
        return {}
    mean_G = np.bincount(group_U, log_U) / units_G
    within = float(np.sum((log_U - mean_G[group_U]) ** 2)) / (len(log_U) - len(groups))
    variance_G = np.maximum(within / units_G, _variance_of_halves(log_U, group_U, units_G))
    weight_G = 1 / np.maximum(variance_G, 1e-12)
    fleet = float(np.sum(weight_G * mean_G) / weight_G.sum())
    excess = float(np.sum(weight_G * (mean_G - fleet) ** 2)) - (len(groups) - 1)
    between = max(0.0, excess / float(weight_G.sum() - np.sum(weight_G**2) / weight_G.sum()))
    share_G = between / (between + variance_G) if between > 0 else np.zeros(len(groups))
    level_G = np.exp(np.clip(share_G * (mean_G - fleet), -np.log(FURTHEST), np.log(FURTHEST)))
    return {
        int(group): float(level) for group, level, n in zip(groups, level_G, units_G, strict=True) if n >= LEAST_UNITS
    }


def _variance_of_halves(log_U: FloatN, group_U: IntN, units_G: IntN) -> float:
    """Variance of a group's mean, by what the first and the second half of its units differ by.

    A machine's days are in order and resemble each other: they say less than as many independent ones.
    """
    place_U = np.arange(len(group_U)) - np.searchsorted(group_U, group_U)
    half_U = 2 * group_U + (2 * place_U >= units_G[group_U])
    count_G2 = np.bincount(half_U, minlength=2 * len(units_G)).reshape(-1, 2)
    total_G2 = np.bincount(half_U, log_U, 2 * len(units_G)).reshape(-1, 2)
    halved = count_G2.min(axis=1) > 0
    apart_G = np.diff(total_G2[halved] / count_G2[halved], axis=1)
    return float(np.mean(apart_G**2)) / 4  # of the difference of two halves; a quarter of it of the mean of both


def baseline_levels(baselines: BaselineTable, by: str, names: Any, levels: dict[int, float]) -> npt.NDArray[np.float64]:
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
