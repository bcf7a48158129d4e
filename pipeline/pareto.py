"""The tail of healthy scores where rows are too few to count: peaks over a threshold, with a check that the fit holds.

Excesses over a high threshold are nearly generalised Pareto (Pickands 1975; for streams of scores Siffer et al., KDD
2017), and so are those over any higher one: beyond the score x_k, the k-th largest, the probability goes on from its
rank as p(x_k) (1 + shape (s - x_k) / scale)^(-1 / shape). The shape is held at 0 or more there, so that nothing is
called impossible.

Rows of a machine-day resemble each other: fit and check count as many independent excesses as (sum m)^2 / sum m^2 of
the m excesses of each machine-day (Kish 1965), one where a single day of one machine holds them all.

Shape legend: N calibration rows, E excesses, D samples, G grid.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.errors import ContractError
from pipeline.schema import FloatN, IntN

JOINT = 10  # largest scores that only the Pareto tail tells apart; a percentile needs as many rows above it
LARGEST_SHARE = 0.1  # of the rows that count as a tail
MOST_EXCESSES, LEAST_EXCESSES = 2000, 2 * JOINT
ENOUGH_FOR_A_SHAPE = 30.0  # independent excesses: its standard error is about 0.2 there
ENOUGH_FOR_A_TAIL = 10.0
SAMPLES, LARGEST_SAMPLE = 199, 300  # of the check
SIGNIFICANCE = 0.05
LARGEST_SHAPE = 1.0  # from here on excesses have no mean: two humps, and no tail
SMALLEST = 1e-300  # a probability is never 0
TailKind = Literal["pareto", "exponential", "none"]


@dataclass(frozen=True)
class ParetoTail:
    """From the score `start` on, which a healthy row reaches with probability `at_start`: shape >= 0 and scale.

    >>> tail = ParetoTail(start=5.0, at_start=0.01, shape=0.5, scale=2.0)
    >>> tail.probability(np.array([5.0, 9.0, np.inf])).tolist()
    [0.01, 0.0025, 1e-300]
    >>> tail.score_at(0.0025)
    9.0
    """

    start: float
    at_start: float
    shape: float
    scale: float

    def probability(self, scores_N: FloatN) -> FloatN:
        """How often a healthy row scores at least as high (N,), for scores from `start` on; never 0."""
        over_N = np.maximum(scores_N - self.start, 0.0) / self.scale
        with np.errstate(over="ignore"):
            log_N = -np.log1p(self.shape * over_N) / self.shape if self.shape > 0 else -over_N
        return np.maximum(self.at_start * np.exp(log_N), SMALLEST)

    def score_at(self, probability: float) -> float:
        """The score that a healthy row reaches with a probability of at most `at_start`."""
        fall = np.log(self.at_start / probability)
        over = np.expm1(self.shape * fall) / self.shape if self.shape > 0 else fall
        return float(self.start + self.scale * max(over, 0.0))


@dataclass(frozen=True)
class TailFit:
    """What was fitted to which excesses, and whether it holds; `tail` is None where nothing may be extrapolated.

    `shape` is the fitted one, before it is held at 0 or more; `p_value` that of the check.
    """

    tail: ParetoTail | None
    kind: TailKind
    excesses: int
    independent: float
    shape: float | None
    p_value: float | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """For calibration.json."""
        return asdict(self)


def fit_pareto(excesses_DE: FloatN) -> tuple[FloatN, FloatN]:
    """Shape and scale (D,) of generalised Pareto samples (D, E), each sorted upwards.

    The estimate of Zhang and Stephens (2009, section 3): the mean of shape over scale under the profile likelihood and
    a weak prior. It always exists, and is as efficient as maximum likelihood.

    >>> sample = np.sort(np.random.default_rng(0).pareto(4.0, 4000))[None]  # shape 1/4, scale 1/4
    >>> [round(float(value[0]), 2) for value in fit_pareto(sample)]
    [0.27, 0.25]
    """
    count = excesses_DE.shape[1]
    grid = 20 + int(np.sqrt(count))
    largest_D = excesses_DE[:, -1]
    share_DE = excesses_DE / largest_D[:, None]
    spread_G = 1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))
    quartile_D = np.maximum(share_DE[:, int(count / 4 + 0.5) - 1], 1e-12)
    ratio_DG = 1 + spread_G / (3 * quartile_D[:, None])
    ratio_DG[np.abs(ratio_DG) < 1e-9] = 1e-9
    shape_DG = np.stack([np.log1p(-ratio_D[:, None] * share_DE).mean(axis=1) for ratio_D in ratio_DG.T], axis=1)
    likelihood_DG = count * (np.log(-ratio_DG / shape_DG) - shape_DG - 1)
    weight_DG = np.exp(likelihood_DG - likelihood_DG.max(axis=1, keepdims=True))
    ratio_D = np.sum(ratio_DG * weight_DG, axis=1) / weight_DG.sum(axis=1)
    ratio_D[np.abs(ratio_D) < 1e-9] = 1e-9
    shape_D = np.log1p(-ratio_D[:, None] * share_DE).mean(axis=1)
    return shape_D, -shape_D / ratio_D * largest_D


def anderson_darling(excesses_DE: FloatN, shape_D: FloatN, scale_D: FloatN) -> FloatN:
    """Distance (D,) of sorted samples (D, E) from generalised Pareto distributions (Anderson and Darling 1954, eq. 3).

    >>> middles = (np.arange(200) + 0.5) / 200
    >>> bool(anderson_darling(-np.log1p(-middles)[None], np.zeros(1), np.ones(1))[0] < 0.01)
    True
    """
    count = excesses_DE.shape[1]
    log_above_DE = _log_survival(excesses_DE, shape_D[:, None], scale_D[:, None])
    log_below_DE = np.log(np.maximum(-np.expm1(log_above_DE), 1e-300))
    weight_E = 2 * np.arange(1, count + 1) - 1
    return np.asarray(-count - np.sum(weight_E * (log_below_DE + log_above_DE[:, ::-1]), axis=1) / count)


def _log_survival(excesses: FloatN, shape: FloatN, scale: FloatN) -> FloatN:
    over = excesses / scale
    small = np.abs(shape) < 1e-9
    safe = np.where(small, 1.0, shape)
    general = -np.log(np.maximum(1 + safe * over, 1e-300)) / safe
    return np.where(small, -over, general)


def _fit(excesses_DE: FloatN, kind: TailKind) -> tuple[FloatN, FloatN]:
    if kind == "pareto":
        return fit_pareto(excesses_DE)
    return np.zeros(len(excesses_DE)), excesses_DE.mean(axis=1)


def check_fit(excesses_E: FloatN, independent: float, kind: TailKind, seed: int = 0) -> float:
    """How often samples of the fitted tail lie as far from their own fit as the sorted excesses (E,) do from theirs.

    The distance counts the independent excesses only (as Rao and Scott 1981 do for a chi-square of clustered rows); as
    many are drawn, at most 300, and fitted anew.
    """
    shape_1, scale_1 = _fit(excesses_E[None], kind)
    distance = anderson_darling(excesses_E[None], shape_1, scale_1)[0] * independent / len(excesses_E)
    size = int(np.clip(independent, ENOUGH_FOR_A_TAIL, LARGEST_SAMPLE))
    exponential_DE = np.random.default_rng(seed).exponential(size=(SAMPLES, size))
    shape = float(shape_1[0])
    drawn_DE = np.sort(np.expm1(shape * exponential_DE) / shape if abs(shape) > 1e-9 else exponential_DE, axis=1)
    distance_D = anderson_darling(drawn_DE, *_fit(drawn_DE, kind))
    return float((1 + np.sum(distance_D >= distance)) / (1 + SAMPLES))


def tail_beyond(highest_E: FloatN, excesses: int, rows: float, kind: TailKind) -> ParetoTail | None:
    """The tail from the JOINT-th largest score on, fitted to so many excesses.

    Args:
        highest_E: the largest scores in descending order, at least `excesses` + 1 of them.
        excesses: how many of them to fit, over the next one.
        rows: all scores.
        kind: `pareto`, or `exponential`, whose shape is 0.

    Returns:
        None where the scores are too alike.
    """
    threshold = highest_E[excesses]
    over_E = highest_E[:excesses][::-1] - threshold
    over_E = over_E[over_E > 0]
    if len(over_E) < LEAST_EXCESSES or over_E[len(over_E) // 4] <= 1e-9 * over_E[-1]:
        return None
    shape_1, scale_1 = _fit(over_E[None], kind)
    shape, scale = float(shape_1[0]), float(scale_1[0])
    start = float(highest_E[JOINT - 1])
    # threshold stability (Coles 2001, eq. 4.2): excesses over a higher score have the same shape and this scale
    scale_there = scale + shape * (start - threshold)
    if not (np.isfinite(scale_there) and scale_there > 0):
        return None
    at_start = (1 + int(np.sum(highest_E >= start))) / (rows + 1)
    return ParetoTail(start, at_start, max(0.0, shape), float(scale_there))


def fit_tail(scores_N: FloatN, machine_day_N: npt.NDArray[Any], seed: int = 0) -> TailFit:
    """Fit the tail of calibration scores: the lowest threshold at which the fit holds, from a tenth of the rows up.

    Args:
        scores_N: healthy calibration scores, finite.
        machine_day_N: code of each row's machine and day.
        seed: of the check.

    Raises:
        ContractError: scores that are not finite.

    >>> scores = np.random.default_rng(0).exponential(size=5000)
    >>> fit = fit_tail(scores, np.arange(5000) // 10)
    >>> fit.kind, round(fit.tail.score_at(1e-5), 1)  # -log(1e-5) is 11.5
    ('pareto', 11.6)
    """
    if not np.isfinite(scores_N).all():
        raise ContractError.of("calibration scores", got="scores not finite", expected="finite", where="the tail")
    rows = len(scores_N)
    excesses = min(int(LARGEST_SHARE * rows), MOST_EXCESSES)
    if excesses < LEAST_EXCESSES:
        needed = int(np.ceil(LEAST_EXCESSES / LARGEST_SHARE))
        return TailFit(None, "none", excesses, 0.0, None, None, f"{rows:,} rows are too few for a tail ({needed:,}).")
    top_E = np.argpartition(scores_N, rows - excesses - 1)[rows - excesses - 1 :]
    top_E = top_E[np.argsort(-scores_N[top_E], kind="stable")]
    highest_E, day_E = scores_N[top_E], machine_day_N[top_E]
    reason = ""
    last: TailFit | None = None
    while excesses >= LEAST_EXCESSES:
        independent = independent_rows(day_E[:excesses])
        if independent < ENOUGH_FOR_A_TAIL:
            reason = reason or (
                f"The {excesses:,} largest scores count as {independent:.1f} independent ones, fewer than "
                f"{ENOUGH_FOR_A_TAIL:g}: too few machine-days for a tail."
            )
            break
        kind: TailKind = "pareto" if independent >= ENOUGH_FOR_A_SHAPE else "exponential"
        tail = tail_beyond(highest_E, excesses, rows, kind)
        if tail is None:
            reason = "The largest scores are too alike for a tail."
            break
        over_E = highest_E[:excesses][::-1] - highest_E[excesses]
        over_E = over_E[over_E > 0]
        shape = float(_fit(over_E[None], kind)[0][0])
        p_value = check_fit(over_E, independent, kind, seed) if shape < LARGEST_SHAPE else None
        if p_value is not None and p_value >= SIGNIFICANCE:
            few = f"{independent:.0f} independent excesses are too few for a shape." if kind == "exponential" else ""
            return TailFit(tail, kind, len(over_E), independent, shape, p_value, few)
        last = TailFit(None, "none", len(over_E), independent, shape, p_value, "")
        reason = "No generalised Pareto or exponential tail fits the largest scores."
        excesses //= 2
    if last is None:
        return TailFit(None, "none", excesses, independent_rows(day_E[:excesses]), None, None, reason)
    return TailFit(None, "none", last.excesses, last.independent, last.shape, last.p_value, reason)


def rows_needed(percentile: float) -> int:
    """Calibration rows from which on a percentile is counted and not extrapolated: JOINT of them lie above it.

    Raises:
        ContractError: a percentile that is not above 50 and below 100.

    >>> rows_needed(99.5), rows_needed(99.95)
    (2000, 20000)
    """
    if not 50 < percentile < 100:
        raise ContractError.of("percentile", got=percentile, expected="above 50 and below 100", where="the threshold")
    return int(np.ceil(round(JOINT / (1 - percentile / 100), 6)))


def tier_threshold(scores_N: FloatN, percentile: float, tail: ParetoTail | None) -> float:
    """The score above which a healthy row lies in at most 1 - q of the cases; from the tail where rows are too few.

    Counted, it is the smallest score that leaves at most 1 - q of the rows above it (NumPy's method "higher").

    Raises:
        ContractError: see rows_needed.

    >>> tier_threshold(np.arange(101.0), 90.0, None)
    90.0
    """
    if len(scores_N) < rows_needed(percentile) and tail is not None:
        return tail.score_at(1 - percentile / 100)
    return float(np.percentile(scores_N, percentile, method="higher"))


def independent_rows(machine_day_E: IntN) -> float:
    """Rows that count, where those of one machine-day count together.

    >>> independent_rows(np.array([1, 1, 2, 2])), independent_rows(np.array([1, 1, 1, 1]))
    (2.0, 1.0)
    """
    _, counts = np.unique(machine_day_E, return_counts=True)
    return float(counts.sum() ** 2 / np.sum(counts.astype(np.float64) ** 2))
