"""How a detector ranks rows: AUROC with an interval over machines, average precision, partial AUROC, the curve."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from pipeline.intervals import rankable
from pipeline.judging.judged import FAULTY, HEALTHY, UNKNOWN, JudgedRows, rounded
from pipeline.schema import FloatN

PARTIAL_FALSE_POSITIVES = 0.005
PARTIAL_MIN_HEALTHY = 2_000
HISTOGRAM_BINS = 2_000
AUROC_DRAWS = 300


def row_metrics(test: JudgedRows, name: str, nulls: dict[str, str], seed: int) -> dict[str, Any]:
    """AUROC with an interval over machines, average precision, partial AUROC (McClish, standardised)."""
    known = test.label != UNKNOWN
    label, score = test.label[known], rankable(test.scores[name][known])
    healthy, faulty = int((label == HEALTHY).sum()), int((label == FAULTY).sum())
    figures: dict[str, Any] = {"auroc": None, "auroc_ci": None, "average_precision": None, "partial_auroc": None}
    if not healthy or not faulty:
        nulls["auroc"] = f"The test rows hold {healthy} healthy and {faulty} faulty rows; both are needed."
        nulls["average_precision"] = nulls["partial_auroc"] = nulls["auroc_ci"] = nulls["auroc"]
        return figures
    figures["auroc"] = rounded(roc_auc_score(label, score))
    figures["auroc_ci"] = auroc_interval(label, score, test.machine[known], seed)
    figures["average_precision"] = rounded(average_precision_score(label, score))
    if healthy >= PARTIAL_MIN_HEALTHY:
        figures["partial_auroc"] = rounded(roc_auc_score(label, score, max_fpr=PARTIAL_FALSE_POSITIVES))
    else:
        nulls["partial_auroc"] = f"{healthy} healthy test rows; {PARTIAL_MIN_HEALTHY} are needed below 0.5 %."
    if figures["auroc_ci"] is None:
        nulls["auroc_ci"] = "An interval resamples machines, and fewer than 2 machines have rows of both kinds."
    return figures


def auroc_interval(
    label_N: npt.NDArray[np.int8], score_N: FloatN, machine_N: npt.NDArray[np.int32], seed: int
) -> list[float] | None:
    """5th and 95th percentile of the pooled AUROC when machines are drawn with replacement.

    Scores are ranked into 2,000 bins once; a draw then is a weighted sum of histograms.
    """
    machines, codes = np.unique(machine_N, return_inverse=True)
    if len(machines) < 2:
        return None
    ranks = np.minimum((stats.rankdata(score_N) / len(score_N) * HISTOGRAM_BINS).astype(np.int64), HISTOGRAM_BINS - 1)
    shape = (len(machines), HISTOGRAM_BINS)
    counts = [
        np.bincount(codes[label_N == kind] * HISTOGRAM_BINS + ranks[label_N == kind], minlength=shape[0] * shape[1])
        for kind in (HEALTHY, FAULTY)
    ]
    healthy, faulty = (count.reshape(shape).astype(np.float64) for count in counts)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(machines), np.full(len(machines), 1 / len(machines)), size=AUROC_DRAWS)
    below, above = weights @ healthy, weights @ faulty
    usable = (below.sum(1) > 0) & (above.sum(1) > 0)
    if usable.sum() < AUROC_DRAWS // 2:
        return None
    below, above = below[usable], above[usable]
    wins = (above * (np.cumsum(below, 1) - below / 2)).sum(1) / (below.sum(1) * above.sum(1))
    low, high = np.percentile(wins, [5, 95])
    return [rounded(low), rounded(high)]


def roc_points(test: JudgedRows, points: int = 150) -> list[dict[str, Any]]:
    """The receiver operating characteristic of each detector, thinned for plots."""
    known = test.label != UNKNOWN
    label = test.label[known]
    if not (label == HEALTHY).any() or not (label == FAULTY).any():
        return []
    listed = []
    for name, scores in test.scores.items():
        false_rate, true_rate, _ = roc_curve(label, rankable(scores[known]))
        grid = np.unique(np.r_[0.0, np.geomspace(1e-5, 1, points)])
        for x, y in zip(grid, np.interp(grid, false_rate, true_rate), strict=True):
            listed.append({"detector": name, "false_positive_rate": rounded(x, 8), "true_positive_rate": rounded(y)})
    return listed
