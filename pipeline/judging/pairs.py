"""Detectors in pairs: what the difference between two of them is worth, over failures and over machine-days.

Both catch the same failures and watch the same machines, so their difference is resampled as one: failures with
replacement for the difference in failures caught, machines and then days for that in false episodes. How failures are
resampled says little where they are few or where the two hardly ever disagree; there the exact test of McNemar (1947)
stands on the failures that only one of them caught.

Shape legend: F failures, B machine-days, M machines, K pairs, D draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from pipeline.judging.breakdown import MachineDays
from pipeline.judging.judged import Event, Outcome, rounded
from pipeline.schema import FloatN, IntN

BASELINES = ("pca", "energy_zscore", "squared_distance")
DRAWS = 1_000
CONFIDENCE = 0.9
FEW_FAILURES = 10  # fewer are not resampled
FEW_MACHINES = 2
CAUGHT_FIGURES = (
    "both", "only_detector", "only_against", "neither", "exact_p", "events_caught_difference",
    "events_caught_difference_ci",
)  # fmt: skip
RATE = "false_episodes_per_machine_day_difference"


def pair_figures(
    outcomes: Mapping[str, Outcome],
    events: Sequence[Event],
    days: MachineDays,
    release_detector: str,
    nulls: dict[str, str],
    *,
    calendar: bool,
    seed: int,
) -> dict[str, Any]:
    """Every detector against the release's, and against the best baseline; what cannot be told is null with its reason.

    Args:
        outcomes: of each detector at the comparison's budget.
        events: failures that were judged.
        days: machine-days of the test rows.
        release_detector: whose alerts are in service.
        nulls: reasons are added here.
        calendar: False where days mean nothing.
        seed: of the draws.

    Returns:
        {"against_release": {"against", "detectors"}, "against_best_baseline": the same}; `against` is null where there
        is none.
    """
    best = best_baseline(outcomes)
    if best is None:
        nulls["pairs.against_best_baseline.against"] = f"None of the baselines {', '.join(BASELINES)} was judged."
    false_by_detector = {name: days.false_episodes(outcome) for name, outcome in outcomes.items()}
    sides = (("against_release", release_detector), ("against_best_baseline", best))
    found: dict[str, Any] = {}
    for side, against in sides:
        found[side] = {"against": against, "detectors": {}}
        others = [name for name in outcomes if name != against]
        if against is None or not others:
            continue
        rates = _rate_pairs(false_by_detector, days, others, against, nulls, calendar, seed)
        found[side]["detectors"] = {
            name: _caught_pair(outcomes[name], outcomes[against], events, nulls, seed) | rates[name] for name in others
        }
    return found


def best_baseline(outcomes: Mapping[str, Outcome]) -> str | None:
    """The baseline that caught most, with the fewest false episodes among equals; the first of those.

    It is chosen on the failures that judge it, to its own advantage: a detector that beats it beats each of them.
    """
    known = [name for name in BASELINES if name in outcomes]
    return min(known, key=lambda name: (-len(outcomes[name].caught), outcomes[name].false_episodes), default=None)


def _caught_pair(
    own: Outcome, other: Outcome, events: Sequence[Event], nulls: dict[str, str], seed: int
) -> dict[str, Any]:
    """Failures that only one of two caught, the exact test on them, and the difference with its interval."""
    if not events:
        nulls.update(dict.fromkeys(CAUGHT_FIGURES, "There is no failure to judge in the test rows."))
        return dict.fromkeys(CAUGHT_FIGURES)
    own_F, other_F = (np.array([event.failure_id in each.caught for event in events]) for each in (own, other))
    only, less = int((own_F & ~other_F).sum()), int((other_F & ~own_F).sum())
    interval = None
    if len(events) < FEW_FAILURES:
        few = f"{len(events)} failures are too few to resample ({FEW_FAILURES} are needed): see the exact test."
        nulls["events_caught_difference_ci"] = few
    elif not only + less:
        same = "Where two caught the same failures, resampling them can show no difference."
        nulls["events_caught_difference_ci"] = same
    else:
        draws_DF = np.random.default_rng(seed).multinomial(len(events), np.full(len(events), 1 / len(events)), DRAWS)
        interval = _ends(draws_DF @ (own_F.astype(np.int64) - other_F))
    both, neither = int((own_F & other_F).sum()), int((~own_F & ~other_F).sum())
    values = (both, only, less, neither, rounded(exact_p(only, less)), only - less, interval)
    return dict(zip(CAUGHT_FIGURES, values, strict=True))


def exact_p(only: int, less: int) -> float:
    """Two-sided exact test that two detectors catch equally often, on the failures that only one of them caught.

    Under it each of them is either's with a chance of one half (McNemar 1947; the exact form is a sign test).

    >>> exact_p(5, 0), exact_p(2, 2), exact_p(0, 0)
    (0.0625, 1.0, 1.0)
    """
    return float(stats.binomtest(only, only + less, 0.5).pvalue) if only + less else 1.0


def _rate_pairs(
    false_by_detector: Mapping[str, FloatN],
    days: MachineDays,
    names: Sequence[str],
    against: str,
    nulls: dict[str, str],
    calendar: bool,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Differences in false episodes per machine-day with their intervals, by detector."""
    observed, machines = float(days.healthy_days_B.sum()), len(np.unique(days.machine_B))
    if not calendar or observed <= 0:
        synthetic = "Dates are synthetic (--time relative): rates per day mean nothing."
        nulls[RATE] = nulls[f"{RATE}_ci"] = "There are no healthy test rows." if calendar else synthetic
        return {name: {RATE: None, f"{RATE}_ci": None} for name in names}
    value_BK = np.stack([false_by_detector[name] - false_by_detector[against] for name in names], axis=1)
    rates_K = value_BK.sum(axis=0) / observed
    intervals: list[list[float] | None] = [None] * len(names)
    if machines < FEW_MACHINES:
        nulls[f"{RATE}_ci"] = "An interval resamples machines, and there is only one."
    else:
        drawn_DK = resampled_rates(value_BK, days.healthy_days_B, days.machine_B, DRAWS, seed)
        intervals = [_ends(drawn_DK[:, place]) if value_BK[:, place].any() else None for place in range(len(names))]
        if None in intervals:
            same = "Where two raised as many on every machine-day, resampling them can show no difference."
            nulls[f"{RATE}_ci"] = same
    return {
        name: {RATE: rounded(rate), f"{RATE}_ci": interval}
        for name, rate, interval in zip(names, rates_K, intervals, strict=True)
    }


def resampled_rates(
    value_BK: npt.NDArray[np.float64], days_B: FloatN, machine_B: IntN, draws: int, seed: int
) -> npt.NDArray[np.float64]:
    """Values per day (D, K) when machines are drawn with replacement, and the days of some of them anew.

    A machine drawn whole varies by its days already, so one drawn machine in as many as there are has its days drawn
    anew (see `pipeline.intervals`). A draw without any day is left out.

    >>> value, machine = np.array([[1.0], [0.0], [1.0], [0.0]]), np.array([0, 0, 1, 1])
    >>> drawn = resampled_rates(value, np.ones(4), machine, 500, seed=1)
    >>> bool(0.45 < drawn.mean() < 0.55), drawn.shape
    (True, (500, 1))
    """
    generator = np.random.default_rng(seed)
    machines, begins = np.unique(machine_B, return_index=True)
    order = np.argsort(machine_B, kind="stable")
    value_BK, days_B, begins = value_BK[order], days_B[order], np.searchsorted(machine_B[order], machines)
    count = len(machines)
    drawn_DM = generator.multinomial(count, np.full(count, 1 / count), size=draws)
    anew_DM = generator.binomial(drawn_DM, 1 / count)
    whole_DM = (drawn_DM - anew_DM).astype(np.float64)
    total_DK = whole_DM @ np.add.reduceat(value_BK, begins, axis=0)
    days_D = whole_DM @ np.add.reduceat(days_B, begins)
    for place, (begin, end) in enumerate(zip(begins, np.r_[begins[1:], len(days_B)], strict=True)):
        again = np.flatnonzero(anew_DM[:, place])
        size = int(end - begin)
        weight_AB = generator.multinomial(anew_DM[again, place] * size, np.full(size, 1 / size))
        total_DK[again] += weight_AB @ value_BK[begin:end]
        days_D[again] += weight_AB @ days_B[begin:end]
    usable = days_D > 0
    rates_DK: npt.NDArray[np.float64] = total_DK[usable] / days_D[usable, None]
    return rates_DK


def _ends(values_D: npt.ArrayLike) -> list[float]:
    low, high = np.quantile(np.asarray(values_D, np.float64), [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return [rounded(low), rounded(high)]
