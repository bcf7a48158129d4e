"""Counts of rare events: how far they may lie from the mean behind them, where machines differ from each other.

Shape legend: M machines.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from pipeline.schema import FloatN, IntN

CONFIDENCE = 0.9


def overdispersion(count_M: IntN | FloatN, days_M: IntN | FloatN | None = None) -> float:
    """How many times the variance of counts between machines is that of Poisson counts, at least 1.

    Pearson's chi-squared over its degrees of freedom, as corrected by Fletcher (2012) for expected counts near 0: a
    single event of a machine that was hardly watched says next to nothing.

    Args:
        count_M: events of each machine.
        days_M: how long each was watched, in any unit; None: all the same.

    >>> [overdispersion(np.array(counts)) for counts in ([0, 0, 0], [1, 1, 1], [0, 0, 6])]
    [1.0, 1.0, 6.0]
    >>> overdispersion(np.array([0, 0, 6]), np.array([1, 1, 28]))
    1.0
    """
    count = np.asarray(count_M, np.float64)
    days = np.ones(len(count)) if days_M is None else np.asarray(days_M, np.float64)
    watched = days > 0
    count, days = count[watched], days[watched]
    if len(count) < 2 or not count.sum():
        return 1.0
    expected = count.sum() * days / days.sum()
    beyond = (count - expected) / expected
    pearson = float((beyond * (count - expected)).sum() / (len(count) - 1))
    return max(1.0, pearson / (1 + float(beyond.mean())))


def overdispersion_among(machine_E: npt.NDArray[np.integer], weight_E: IntN | FloatN, machines: int) -> float:
    """`overdispersion` of E events by the code of their machine, among so many that were watched alike.

    >>> overdispersion_among(np.array([7, 7, 7]), np.array([1, 1, 4]), 3)
    6.0
    """
    _, code_E = np.unique(machine_E, return_inverse=True)
    count = np.bincount(code_E, weights=weight_E)
    return overdispersion(np.r_[count, np.zeros(max(0, machines - len(count)))])


def mean_interval(count: float, dispersion: float = 1.0, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Two-sided interval of the mean behind a count: Garwood's (1936) of the count over its dispersion, times it.

    With a dispersion above 1 quasi-Poisson (Wedderburn 1974).

    >>> [round(end, 2) for end in mean_interval(0)], [round(end, 2) for end in mean_interval(6, 3.0)]
    ([0.0, 3.0], [1.07, 18.89])
    """
    tail, size = (1 - confidence) / 2, count / dispersion
    low = float(stats.chi2.ppf(tail, 2 * size) / 2) if count else 0.0
    return dispersion * low, dispersion * float(stats.chi2.ppf(1 - tail, 2 * size + 2) / 2)


def upper_bound(count: float, dispersion: float = 1.0, confidence: float = CONFIDENCE) -> float:
    """One-sided upper bound of the mean behind a count; see `mean_interval`.

    >>> round(upper_bound(0), 2), round(upper_bound(12), 2), upper_bound(12, 2.0) > upper_bound(12)
    (2.3, 17.78, True)
    """
    return mean_interval(count, dispersion, 2 * confidence - 1)[1]
