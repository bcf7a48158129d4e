"""How many independent looks at a machine its rows are: rows a few seconds apart say much the same.

Shape legend: N rows, K keys (machine, epoch, condition), S stretches (an hour of a key that has rows), G features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.schema import MICROSECONDS_PER_HOUR, BoolN, FloatN, FloatNF, IntN

UNFAIR = 1.25  # times the looks that fair rows of a key would be worth: then long stretches are thinned
MIN_FREEDOM = 20  # stretches beyond the first of their key: fewer do not tell how alike the rows of a stretch are


@dataclass(frozen=True)
class Stretches:
    """Rows of each key by the hour: `key_N` and `stretch_N` are codes of the rows, `key_S` and `rows_S` of stretches.

    >>> hour = np.array([0, 1, 2, 2, 3, 9]) * MICROSECONDS_PER_HOUR // 2
    >>> found = Stretches.of(np.array([0, 0, 0, 0, 1, 1]), hour)
    >>> found.rows_S.tolist(), found.key_S.tolist()
    ([2, 2, 1, 1], [0, 0, 1, 1])
    """

    key_N: IntN
    stretch_N: IntN
    key_S: IntN
    rows_S: IntN

    @classmethod
    def of(cls, key_N: IntN, time_us_N: IntN) -> Stretches:
        """From the key of each row (codes from 0 to K - 1, each with a row) and its time in microseconds."""
        hour_N = time_us_N // MICROSECONDS_PER_HOUR
        hour_N -= hour_N.min(initial=0)
        hours = int(hour_N.max(initial=0)) + 1
        packed_S, stretch_N, rows_S = np.unique(key_N * hours + hour_N, return_inverse=True, return_counts=True)
        return cls(key_N, stretch_N, packed_S // hours, rows_S)

    def design_effect_K(self, likeness: float) -> FloatN:
        """Variance of each key's mean (K,) over that of as many independent rows; at least 1.

        1 + (m - 1) likeness (Kish, Survey Sampling, 1965), for stretches of m_i rows with m = sum m_i^2 / sum m_i
        (Gabler, Haeder and Lahiri, Survey Methodology 25 (1999) 105).
        """
        size_K = np.bincount(self.key_S, self.rows_S.astype(np.float64) ** 2) / np.bincount(self.key_S, self.rows_S)
        return np.asarray(1.0 + (size_K - 1.0) * likeness)

    def looks_K(self, likeness: float) -> FloatN:
        """Rows of each key (K,) over their design effect; rows themselves where no stretch has two rows of a key."""
        return np.asarray(np.bincount(self.key_N) / self.design_effect_K(likeness))

    def fair_N(self, likeness: float) -> BoolN:
        """Which rows (N,) should describe their key, so that an hour of rows does not outweigh many single minutes.

        A mean over clusters has the least variance where a row of a cluster of m weighs 1 / (1 + (m - 1) likeness)
        (Searle, Casella and McCulloch, Variance Components, 1992, chapter 3), and is then worth the sum of m times that
        in looks. Where rows that all weigh the same are worth less by UNFAIR, every key's stretches keep rows in
        proportion to it, evenly spaced and at least one; elsewhere all rows stay.

        >>> minutes, hour = np.repeat(np.arange(20), 6), np.full(360, 20)
        >>> mixed = Stretches.of(np.zeros(480, int), np.r_[minutes, hour] * MICROSECONDS_PER_HOUR)
        >>> np.bincount(mixed.stretch_N[mixed.fair_N(0.7)])[[0, 19, 20]]
        array([6, 6, 7])
        """
        weight_S = 1.0 / (1.0 + (self.rows_S - 1.0) * likeness)
        worth_K = np.bincount(self.key_S, self.rows_S * weight_S)
        unfair_K = worth_K > UNFAIR * self.looks_K(likeness)
        most_K = np.zeros(len(worth_K))
        np.maximum.at(most_K, self.key_S, weight_S)
        share_S = np.where(unfair_K[self.key_S], weight_S / most_K[self.key_S], 1.0)
        order = np.argsort(self.stretch_N, kind="stable")
        begin_S = np.cumsum(self.rows_S) - self.rows_S
        place_n = np.arange(len(order)) - np.repeat(begin_S, self.rows_S)
        share_n = np.repeat(share_S, self.rows_S)
        fair_N = np.zeros(len(order), bool)
        fair_N[order] = np.ceil(place_n * share_n) != np.ceil((place_n - 1) * share_n)
        return fair_N


def likeness_within(
    features_NG: npt.NDArray[np.float32], stretches: Stretches, location_KG: FloatNF, scale_KG: FloatNF
) -> float:
    """Part of the variance of a key's rows that lies between its stretches (intraclass correlation), from 0 to 1.

    One-way analysis of variance within keys, all keys of two stretches or more together, for unequal stretches (Searle,
    Casella and McCulloch, Variance Components, 1992, chapter 3); the median over features. 0 where fewer than
    MIN_FREEDOM stretches can be compared or none has two rows.
    """
    keys = np.flatnonzero(np.bincount(stretches.key_S, minlength=len(location_KG)) > 1)
    rows_S = stretches.rows_S[np.isin(stretches.key_S, keys)]
    between, within = len(rows_S) - len(keys), int(rows_S.sum()) - len(rows_S)
    if between < MIN_FREEDOM or within < 1:
        return 0.0
    order = np.argsort(stretches.stretch_N, kind="stable")  # stretches of a key follow each other
    begin_S = np.cumsum(stretches.rows_S) - stretches.rows_S
    of_rows_G, of_stretches_G, of_keys_G = np.zeros((3, features_NG.shape[1]))  # sums of squares
    usual_rows = 0.0  # of a stretch
    for key in keys.tolist():
        begin, end = np.searchsorted(stretches.key_S, [key, key + 1])
        rows_s = stretches.rows_S[begin:end]
        mine = order[begin_S[begin] : begin_S[begin] + rows_s.sum()]
        apart_nG = (features_NG[mine] - location_KG[key]) / np.maximum(scale_KG[key], 1e-12)
        sum_sG = np.add.reduceat(apart_nG, np.cumsum(rows_s) - rows_s)
        of_rows_G += np.square(apart_nG).sum(axis=0)
        of_stretches_G += (np.square(sum_sG) / rows_s[:, None]).sum(axis=0)
        of_keys_G += np.square(sum_sG.sum(axis=0)) / len(mine)
        usual_rows += (len(mine) - float(np.square(rows_s).sum()) / len(mine)) / between
    between_G = (of_stretches_G - of_keys_G) / between
    within_G = np.maximum(of_rows_G - of_stretches_G, 0.0) / within
    total_G = between_G + (usual_rows - 1.0) * within_G
    likeness_G = np.divide(between_G - within_G, total_G, out=np.zeros_like(total_G), where=total_G > 0)
    return float(np.clip(np.median(likeness_G), 0.0, 1.0))
