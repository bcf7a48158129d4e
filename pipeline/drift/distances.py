"""How far two samples of a column lie apart: Evidently's statistics in NumPy, to the last digits.

Limits are calibrated with thousands of comparisons, for which Evidently itself would take hours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.schema import FloatN

Column = npt.NDArray[Any]
LEAST_SPREAD = 0.001  # Evidently's floor of the reference's standard deviation
FEW_VALUES = 20  # Evidently counts a numeric column with at most so many different values one by one


def normed_wasserstein(current_N: FloatN, reference_M: FloatN) -> float:
    """First Wasserstein distance of two samples over the standard deviation of the reference.

    With equally many values it is the mean difference of the sorted ones; otherwise the area between the two
    distribution functions (Vallender 1974).

    >>> normed_wasserstein(np.array([1.0, 2.0]), np.array([0.0, 2.0]))
    0.5
    >>> normed_wasserstein(np.array([1.0]), np.array([0.0, 2.0]))
    1.0
    """
    current_N, reference_M = np.sort(current_N.astype(np.float64)), np.sort(reference_M.astype(np.float64))
    spread = max(float(np.std(reference_M)), LEAST_SPREAD)
    if len(current_N) == len(reference_M):
        return float(np.abs(current_N - reference_M).mean() / spread)
    both = np.sort(np.concatenate([current_N, reference_M]))
    share_of = [np.searchsorted(side, both[:-1], side="right") / len(side) for side in (current_N, reference_M)]
    return float((np.abs(share_of[0] - share_of[1]) * np.diff(both)).sum() / spread)


def jensen_shannon(current_N: Column, reference_M: Column) -> float:
    """Jensen-Shannon distance (root of the divergence, Lin 1991, natural logarithm) of two samples.

    Numbers are counted in bins of Sturges' rule over both samples; kinds, and numbers with at most 20 values in the
    reference, one by one.

    >>> jensen_shannon(np.array(["a", "b"]), np.array(["b", "a"]))
    0.0
    >>> round(jensen_shannon(np.array(["a", "a"]), np.array(["b", "b"])) ** 2, 6)  # the logarithm of 2
    0.693147
    """
    both = np.concatenate([reference_M, current_N])
    if np.issubdtype(both.dtype, np.number) and len(np.unique(reference_M)) > FEW_VALUES:
        edges = np.histogram_bin_edges(both, bins="sturges")
        counts = [np.histogram(side, edges)[0] for side in (current_N, reference_M)]
    else:
        kinds, code = np.unique(both, return_inverse=True)
        sides = (code[len(reference_M) :], code[: len(reference_M)])
        counts = [np.bincount(side, minlength=len(kinds)) for side in sides]
    p, q = (count / count.sum() for count in counts)
    middle = (p + q) / 2
    divergence = sum(float((x[x > 0] * np.log(x[x > 0] / middle[x > 0])).sum()) for x in (p, q)) / 2
    return float(np.sqrt(max(divergence, 0.0)))


DISTANCES: dict[str, Callable[[Column, Column], float]] = {
    "wasserstein": normed_wasserstein,
    "jensenshannon": jensen_shannon,
}
