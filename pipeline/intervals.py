"""Intervals for rates of rows that are not independent: machines are drawn, then days of each machine.

Neighbouring spectra resemble each other and so do the days of a machine, so rows are no sample of their own: drawing
machine-days alone called 1.6 % what drawing machines called 7.7 %. The threshold is drawn anew with its rows; where it
is extrapolated, its tail is fitted anew.

A machine drawn whole already varies by its days: days drawn anew within every drawn machine count that twice (Davison
and Hinkley 1997, section 3.8), and intervals of 90 % held the rate in 97 %. So one drawn machine in as many as there
are has its days drawn anew, for what the variance between machines leaves out; a lone machine always has.

Score contract: float64 of shape (n,), higher is more anomalous, alarm when `score > threshold`.
Shape legend: N calibration rows, M later rows, B blocks (days of a machine), D draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from pipeline.errors import ContractError
from pipeline.pareto import TailFit, fit_tail, rows_needed, tail_beyond, tier_threshold
from pipeline.schema import FloatN, IntN

MIN_MACHINES = 20  # below this the interval is too narrow, which is said
MIN_MACHINE_DAYS = 20  # below this there is no interval
TAIL_FACTOR = 5.0  # of the share above the percentile that every draw looks at; doubled where a draw needs more
DESIGN_PERCENTILE = 95.0
CELLS = 8_000_000  # draws times rows held at once
MOST_CELLS = 1_000_000  # machines times days that are counted in one table
Blocks = tuple[npt.NDArray[Any], npt.NDArray[Any]]
LARGEST = 1e300  # a score that is ranked: scikit-learn refuses infinite ones


def rankable(scores_N: FloatN) -> FloatN:
    """Scores (N,) in the same order, infinite ones large.

    >>> rankable(np.array([1.0, np.inf])).tolist()
    [1.0, 1e+300]
    """
    return np.clip(scores_N, -LARGEST, LARGEST)


def wilson(successes: int, n: int, confidence: float) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927); (0, 1) for n = 0.

    >>> low, high = wilson(24, 28, 0.95)
    >>> round(low, 3), round(high, 3)
    (0.685, 0.943)
    """
    if n == 0:
        return 0.0, 1.0
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    share, spread = successes / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * float(np.sqrt(share * (1 - share) / n + spread / (4 * n)))
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    return low, 1.0 if successes == n else min(1.0, middle + half)


@dataclass(frozen=True)
class RateInterval:
    """Share of later rows above the calibration rows' percentile, and an interval; a note says what is missing.

    `tail` is the fit that the threshold comes from where calibration rows are too few for the percentile.
    """

    rate: float | None
    low: float | None
    high: float | None
    threshold: float
    note: str | None
    tail: TailFit | None = None


@dataclass(frozen=True)
class _Blocks:
    """Days of machines: the block of each row, and the machine and number of rows of each block (B,)."""

    block_N: IntN
    machine_B: IntN
    rows_B: IntN

    @classmethod
    def of(cls, machine_N: npt.NDArray[Any], day_N: npt.NDArray[Any]) -> _Blocks:
        first = int(day_N.min(initial=0))
        days = int(day_N.max(initial=0)) - first + 1
        key_N = machine_N.astype(np.int64) * days + (day_N.astype(np.int64) - first)
        cells = int(key_N.max(initial=0)) + 1
        if cells > max(len(key_N), MOST_CELLS):
            keys_B, block_N, rows_B = np.unique(key_N, return_inverse=True, return_counts=True)
            return cls(block_N, keys_B // days, rows_B)
        # counted and not sorted: rows are millions, machine-days thousands
        rows_K = np.bincount(key_N, minlength=cells)
        keys_B = np.flatnonzero(rows_K)
        place_K = np.zeros(cells, np.int64)
        place_K[keys_B] = np.arange(len(keys_B))
        return cls(place_K[key_N], keys_B // days, rows_K[keys_B])

    def weights(
        self, drawn_DM: npt.NDArray[np.int64], machines: IntN, generator: np.random.Generator
    ) -> npt.NDArray[Any]:
        """How often each block counts (D, B): a machine drawn c times brings c times its number of days.

        Each time its days are its own ones, or with a chance of one in the number of machines drawn anew.
        """
        weight_DB = np.zeros((len(drawn_DM), len(self.rows_B)), np.int64)
        begins = np.searchsorted(self.machine_B, machines, side="left").tolist()
        ends = np.searchsorted(self.machine_B, machines, side="right").tolist()
        anew_DM = generator.binomial(drawn_DM, 1 / len(machines))
        for index, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            if begin < end:
                shares = np.full(end - begin, 1 / (end - begin))
                anew_D = anew_DM[:, index]
                weight_DB[:, begin:end] = generator.multinomial(anew_D * (end - begin), shares)
                weight_DB[:, begin:end] += (drawn_DM[:, index] - anew_D)[:, None]
        return weight_DB


def rate_with_interval(
    calibration_scores_N: FloatN,
    calibration_blocks: Blocks,
    later_scores_M: FloatN | None,
    later_blocks: Blocks | None,
    percentile: float,
    *,
    draws: int,
    confidence: float,
    seed: int,
    tail: TailFit | None = None,
) -> RateInterval:
    """The false-positive rate that a percentile of calibration rows really has on later rows.

    The threshold is the smallest score that leaves at most 1 - q of the calibration rows above it; where fewer than ten
    would lie there, it comes from a Pareto tail of them, if one holds. Each draw takes as many machines as there are,
    with replacement, the same for calibration and later rows, and for each as many days as it has; threshold and rate
    are computed anew. Where `later_scores_M` is None or the calibration rows themselves, the drawn thresholds meet the
    rows as they are: what a threshold from such rows is worth.

    Where no later row exceeds, the upper end is exact (Clopper and Pearson 1934) on the effective rows: rows over the
    design effect, the variance of the calibration rows' exceedance between machines over that of independent rows
    (Kish 1965), the larger of those at the threshold and at the 95th percentile; and never below what the draws say.

    Args:
        calibration_scores_N: healthy calibration scores.
        calibration_blocks: machine codes and day numbers of the rows; codes mean the same machine in both blocks.
        later_scores_M: healthy later scores.
        later_blocks: their machines and days.
        percentile: of the tier.
        draws: number of draws.
        confidence: of the two-sided interval.
        seed: of the draws.
        tail: of the calibration scores, where it is already fitted (`fit_tail` on their machine-days).

    Raises:
        ContractError: no calibration scores, a score that is not finite, a percentile out of range.

    >>> scores = np.random.default_rng(0).normal(size=4000)
    >>> blocks = (np.arange(4000) % 40, np.arange(4000) // 400)
    >>> found = rate_with_interval(
    ...     scores[:2000], (blocks[0][:2000], blocks[1][:2000]), scores[2000:], (blocks[0][2000:], blocks[1][2000:]),
    ...     99.0, draws=200, confidence=0.9, seed=0,
    ... )
    >>> found.low < 0.01 < found.high, found.note
    (True, None)
    """
    itself = later_scores_M is None or later_blocks is None or later_scores_M is calibration_scores_N
    later = calibration_scores_N if later_scores_M is None else later_scores_M
    _check(calibration_scores_N, later)
    calibration = _Blocks.of(*calibration_blocks)
    extrapolated = len(calibration_scores_N) < rows_needed(percentile)
    fit = (tail or fit_tail(calibration_scores_N, calibration.block_N)) if extrapolated else None
    threshold = tier_threshold(calibration_scores_N, percentile, fit.tail if fit else None)
    if not len(later):
        return RateInterval(None, None, None, threshold, "There are no later rows.", fit)
    rate = float(np.mean(later > threshold))
    judged = calibration if itself or later_blocks is None else _Blocks.of(*later_blocks)
    machine_days = min(len(calibration.rows_B), len(judged.rows_B))
    if machine_days < MIN_MACHINE_DAYS:
        note = f"{machine_days} machine-days are too few for an interval ({MIN_MACHINE_DAYS} are needed)."
        return RateInterval(rate, None, None, threshold, note, fit)
    rates_D = _drawn_rates(calibration_scores_N, calibration, later, judged, itself, percentile, fit, draws, seed)
    low, high = (float(end) for end in np.quantile(rates_D, [0.5 - confidence / 2, 0.5 + confidence / 2]))
    machines = min(len(np.unique(calibration.machine_B)), len(np.unique(judged.machine_B)))
    notes = []
    if fit is not None:
        what = "among the largest scores" if fit.tail is None else "extrapolated"
        needed = rows_needed(percentile)
        notes.append(f"{len(calibration_scores_N):,} calibration rows, fewer than {needed:,}: the threshold is {what}.")
    if machines < MIN_MACHINES:
        plural = "machine" if machines == 1 else "machines"
        notes.append(f"{machines} {plural}, fewer than {MIN_MACHINES}: the interval is too narrow.")
    if rate == 0.0:
        effect = max(
            design_effect(calibration_scores_N > limit, calibration_blocks[0])
            for limit in (threshold, float(np.percentile(calibration_scores_N, DESIGN_PERCENTILE, method="higher")))
        )
        bound = zero_bound(len(later) / effect, confidence)
        low, high = 0.0, max(high, bound)
        notes.append(f"No row exceeds: exact bound on {len(later) / effect:.0f} effective rows of {len(later)}.")
    return RateInterval(rate, low, high, threshold, " ".join(notes) or None, fit)


def rate_above(
    scores_N: FloatN,
    threshold: float,
    machine_N: npt.NDArray[Any],
    day_N: IntN,
    *,
    draws: int,
    confidence: float,
    seed: int,
) -> tuple[float, float | None, float | None, str | None]:
    """Share of rows above a threshold that stands, an interval, and what must be known of it.

    Each draw takes as many machines as there are, with replacement, and for each its own days, or with a chance of one
    in the number of machines as many of its days drawn anew, as `rate_with_interval` does. Where no row exceeds, the
    upper end is exact (Clopper and Pearson 1934) on the rows over their design effect at the 95th percentile.

    >>> scores, machine, day = np.arange(4000) % 100 * 1.0, np.arange(4000) % 40, np.arange(4000) // 400
    >>> rate, low, high, note = rate_above(scores, 98.0, machine, day, draws=200, confidence=0.9, seed=0)
    >>> rate, low < 0.01 < high, note
    (0.01, True, None)
    """
    above_N = scores_N > threshold
    rate = float(above_N.mean())
    blocks = _Blocks.of(machine_N, day_N)
    if len(blocks.rows_B) < MIN_MACHINE_DAYS:
        few = f"{len(blocks.rows_B)} machine-days are too few for an interval ({MIN_MACHINE_DAYS} are needed)."
        return rate, None, None, few
    above_B = np.bincount(blocks.block_N, weights=above_N, minlength=len(blocks.rows_B))
    generator, machines = np.random.default_rng(seed), np.unique(blocks.machine_B)
    weight_DB = blocks.weights(_drawn_machines(machines, draws, generator), machines, generator)
    rates_D = (weight_DB @ above_B) / (weight_DB @ blocks.rows_B)
    low, high = (float(end) for end in np.quantile(rates_D, [0.5 - confidence / 2, 0.5 + confidence / 2]))
    note = None
    if rate == 0.0:
        limit = float(np.percentile(scores_N, DESIGN_PERCENTILE, method="higher"))
        effective = len(scores_N) / design_effect(scores_N > limit, machine_N)
        low, high = 0.0, max(high, zero_bound(effective, confidence))
        note = f"No row exceeds: exact bound on {effective:.0f} effective rows of {len(scores_N)}."
    return rate, low, high, note


def _check(*scores: FloatN) -> None:
    if not len(scores[0]):
        raise ContractError.of("calibration scores", got="none", expected="at least one", where="the interval")
    broken = sum(int((~np.isfinite(part)).sum()) for part in scores)
    if broken:
        raise ContractError.of("scores", got=f"{broken} not finite", expected="finite", where="the interval")


def zero_bound(effective_rows: float, confidence: float) -> float:
    """Upper end of the exact two-sided interval of a rate after no event in so many independent rows.

    >>> round(zero_bound(1000, 0.9), 5)  # the rule of three
    0.00299
    """
    return 1.0 - float(((1 - confidence) / 2) ** (1 / max(effective_rows, 1.0)))


def design_effect(event_N: npt.NDArray[np.bool_], machine_N: npt.NDArray[Any]) -> float:
    """Variance of a share whose rows come in machines over that of independent rows; at least 1.

    The ratio estimator's linearised variance (Cochran 1977, eq. 11.30) over p (1 - p) / n; 1 where there is one machine
    or no event.

    >>> machine = np.repeat(np.arange(10), 100)
    >>> round(design_effect(machine == 3, machine))
    111
    """
    _, codes, rows_K = np.unique(machine_N, return_inverse=True, return_counts=True)
    share, count, groups = float(event_N.mean()), len(event_N), len(rows_K)
    if groups < 2 or share in (0.0, 1.0):
        return 1.0
    off_K = np.bincount(codes, weights=event_N, minlength=groups) - share * rows_K
    variance = float(np.sum(off_K**2)) * groups / (groups - 1)
    return max(1.0, variance / (count * share * (1 - share)))


def _drawn_machines(machines: IntN, draws: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """How often each machine is drawn (D, M), as many as there are in each draw."""
    return generator.multinomial(len(machines), np.full(len(machines), 1 / len(machines)), size=draws)


def _drawn_rates(
    scores_N: FloatN,
    calibration: _Blocks,
    later_M: FloatN,
    judged: _Blocks,
    itself: bool,
    percentile: float,
    fit: TailFit | None,
    draws: int,
    seed: int,
) -> FloatN:
    """The rate of each draw (D,)."""
    generator = np.random.default_rng(seed)
    machines = np.union1d(calibration.machine_B, judged.machine_B)
    drawn_DM = _drawn_machines(machines, draws, generator)
    weight_DB = calibration.weights(drawn_DM, machines, generator)
    # a draw may miss every machine of one side: it says nothing of a rate
    usable_D = weight_DB.sum(axis=1) > 0
    if itself:
        later_DB = np.ones((draws, len(judged.rows_B)), np.int64)
    else:
        later_DB = judged.weights(drawn_DM, machines, generator)
        usable_D &= later_DB.sum(axis=1) > 0
    weight_DB, later_DB = weight_DB[usable_D], later_DB[usable_D]
    if fit is not None and fit.tail is not None:
        thresholds_D = _drawn_tail_thresholds(scores_N, calibration, weight_DB, percentile, fit)
    else:
        thresholds_D = _drawn_thresholds(scores_N, calibration, weight_DB, percentile)
    rates_D: FloatN = _weighted_exceedances(later_M, judged, later_DB, thresholds_D) / (later_DB @ judged.rows_B)
    return rates_D


def _drawn_thresholds(scores_N: FloatN, blocks: _Blocks, weight_DB: npt.NDArray[Any], percentile: float) -> FloatN:
    """The percentile of each draw's rows (D,), as NumPy's method "higher" of the repeated rows; from the tail alone."""
    total_D = weight_DB @ blocks.rows_B
    # rows above the threshold: its place from the top
    above_D = total_D - 1 - np.ceil(percentile / 100 * (total_D - 1)).astype(np.int64)
    share = TAIL_FACTOR * (1 - percentile / 100)
    while True:
        kept = min(len(scores_N), max(100, int(share * len(scores_N))))
        rows = np.argpartition(scores_N, len(scores_N) - kept)[len(scores_N) - kept :]
        rows = rows[np.argsort(-scores_N[rows], kind="stable")]
        place_D = np.empty(len(weight_DB), np.int64)
        for part in _parts(len(weight_DB), kept):
            reached = np.cumsum(weight_DB[part][:, blocks.block_N[rows]], axis=1)
            place_D[part] = np.sum(reached <= above_D[part, None], axis=1)
        if kept == len(scores_N) or (place_D < kept).all():
            thresholds_D: FloatN = scores_N[rows[np.minimum(place_D, kept - 1)]]
            return thresholds_D
        share *= 2


def _drawn_tail_thresholds(
    scores_N: FloatN, blocks: _Blocks, weight_DB: npt.NDArray[Any], percentile: float, fit: TailFit
) -> FloatN:
    """The extrapolated percentile of each draw's rows (D,), each from a tail of its own.

    A draw whose largest scores are too alike has its largest one.
    """
    rows = np.argsort(-scores_N, kind="stable")
    block_N, sorted_N = blocks.block_N[rows], scores_N[rows]
    thresholds_D = np.empty(len(weight_DB))
    for draw, weight_B in enumerate(weight_DB):
        total = int(weight_B @ blocks.rows_B)
        excesses = min(round(fit.excesses * total / len(scores_N)), total - 1)
        repeats_N = weight_B[block_N]
        enough = int(np.searchsorted(np.cumsum(repeats_N), excesses + 1)) + 1
        highest = np.repeat(sorted_N[:enough], repeats_N[:enough])
        tail = tail_beyond(highest, excesses, total, fit.kind)
        thresholds_D[draw] = highest[0] if tail is None else tail.score_at(1 - percentile / 100)
    return thresholds_D


def _weighted_exceedances(
    scores_M: FloatN, blocks: _Blocks, weight_DB: npt.NDArray[Any], thresholds_D: FloatN
) -> npt.NDArray[np.int64]:
    """Weighted number of rows above each draw's threshold (D,)."""
    lowest, highest = float(thresholds_D.min()), float(thresholds_D.max())
    always_B = np.bincount(blocks.block_N[scores_M > highest], minlength=len(blocks.rows_B))
    count_D = weight_DB @ always_B
    rows = np.flatnonzero((scores_M > lowest) & (scores_M <= highest))
    rows = rows[np.argsort(-scores_M[rows], kind="stable")]
    # rows strictly above a threshold stand before its place in descending order
    place_D = np.searchsorted(-scores_M[rows], -thresholds_D, side="left")
    for part in _parts(len(weight_DB), len(rows)):
        reached = np.cumsum(weight_DB[part][:, blocks.block_N[rows]], axis=1)
        reached = np.concatenate([np.zeros((len(reached), 1), reached.dtype), reached], axis=1)
        count_D[part] += np.take_along_axis(reached, place_D[part, None], axis=1)[:, 0]
    return np.asarray(count_D, np.int64)


def _parts(draws: int, rows: int) -> Iterator[slice]:
    step = max(1, CELLS // max(1, rows))
    for begin in range(0, draws, step):
        yield slice(begin, begin + step)
