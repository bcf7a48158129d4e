"""How detectors are judged: rows by their ranking, failures by their alerts, all at the same budget of false alarms.

Nothing here knows files or stages; `evaluate` and `backtest` bring rows, scores and events. Thresholds come from
calibration rows only; test rows are counted, never tuned on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from pipeline.alerts import AlertPolicy, Timeline, typical_interval_us
from pipeline.intervals import rate_with_interval, wilson
from pipeline.params import CalibrateParams, EvaluateParams
from pipeline.schema import MICROSECONDS_PER_DAY, MICROSECONDS_PER_HOUR, FloatN, IntN

HEALTHY, FAULTY, UNKNOWN = 0, 1, -1
PARTIAL_FALSE_POSITIVES = 0.005
PARTIAL_MIN_HEALTHY = 2_000
MIN_EXPECTED_EPISODES = 5.0  # below this many a budget is too small to tell detectors apart
FEW_EPISODES = (0, 1, 3)  # what is compared then; the middle one stands in the table
HISTOGRAM_BINS = 2_000
AUROC_DRAWS = 300


@dataclass(frozen=True)
class JudgedRows:
    """Rows of one role: machine codes, times, labels (0 healthy, 1 faulty, -1 unknown) and scores per detector (N,)."""

    machine: npt.NDArray[np.int32]
    time_us: IntN
    label: npt.NDArray[np.int8]
    scores: Mapping[str, FloatN]

    def __len__(self) -> int:
        return len(self.machine)

    def machine_days(self, interval_us: int, among: npt.NDArray[np.bool_] | None = None) -> float:
        """Observed time in days: rows times the interval between them."""
        rows = len(self) if among is None else int(among.sum())
        return rows * interval_us / MICROSECONDS_PER_DAY


@dataclass(frozen=True)
class Event:
    """A failure to be judged: an alert that opens from `start_us` on, before `end_us`, catches it.

    From `grace_us` to `start_us` nothing is known: an alert that opens there is not false, and catches the failure only
    if it is still open at `start_us`; its lead time then counts from there.
    """

    failure_id: str
    machine: int
    start_us: int
    end_us: int
    grace_us: int
    failure_mode: str | None = None


@dataclass(frozen=True)
class Judgement:
    """Figures in the project's published form, and what the report draws."""

    figures: dict[str, Any]
    events: list[dict[str, Any]]
    episodes: list[dict[str, Any]]
    roc: list[dict[str, Any]]


@dataclass
class Outcome:
    """What alerts at one threshold come to."""

    caught: dict[str, tuple[int, float]] = field(default_factory=dict)  # failure: first alert, lead time in hours
    false_episodes: int = 0
    kinds: list[str] = field(default_factory=list)  # of each episode: caught | false | ignored
    by_chance: float | None = None


def judge(
    test: JudgedRows,
    calibration: JudgedRows,
    events: Sequence[Event],
    machines: Sequence[str],
    policy: AlertPolicy,
    *,
    release_detector: str,
    evaluate: EvaluateParams,
    calibrate: CalibrateParams,
    calendar: bool = True,
    thresholds: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Judgement:
    """Judge every detector of `test.scores` on the same rows at the same budget.

    Args:
        test: rows that fitted and tuned nothing, later than calibration.
        calibration: healthy rows from which thresholds come.
        events: failures to be judged.
        machines: names of the machine codes.
        policy: the alert policy.
        release_detector: whose tiers are reported.
        evaluate: budget and chance draws.
        calibrate: percentiles of the tiers.
        calendar: False where dates are synthetic; rates per day are null then.
        thresholds: of each detector, where they were already found on calibration rows; None: found here.
        seed: of the bootstrap and of the chance shifts.
    """
    nulls: dict[str, str] = {}
    interval_us = typical_interval_us(test.machine, test.time_us)
    # where an alert can be false: time in which every alert is forgiven is no time of observation
    healthy = (test.label != FAULTY) & ~forgiven_rows(test, events)
    days = {"calibration": calibration.machine_days(interval_us), "test": test.machine_days(interval_us, healthy)}
    expected = evaluate.false_episodes_per_machine_day * days["calibration"]
    few = thresholds is not None or expected < MIN_EXPECTED_EPISODES
    allowed = float(FEW_EPISODES[1]) if few else expected
    test_line = Timeline.of(test.machine, test.time_us, policy)
    calibration_line = Timeline.of(calibration.machine, calibration.time_us, policy)
    if not events:
        nulls["events"] = "There is no failure to judge in the test rows."
    detectors: dict[str, Any] = {}
    outcomes: dict[str, Outcome] = {}
    for name in test.scores:
        if thresholds is None:
            threshold = budget_threshold(calibration.scores[name], calibration_line, allowed)
        else:
            threshold = thresholds[name]
        outcome = outcome_at(test.scores[name] > threshold, test_line, events)
        outcome.by_chance = caught_by_chance(
            test.scores[name] > threshold, test_line, events, evaluate.chance_shifts, seed
        )
        outcomes[name] = outcome
        detectors[name] = row_metrics(test, name, nulls, seed) | event_metrics(
            outcome, events, days["test"], len(np.unique(test.machine)), nulls, calendar
        )
        detectors[name]["threshold"] = threshold
        if few and thresholds is None:
            detectors[name]["at_false_episodes"] = {
                str(count): _at_count(
                    count, calibration.scores[name], test.scores[name], calibration_line, test_line, events
                )
                for count in FEW_EPISODES
            }
    notes = _notes(few and thresholds is None, allowed, expected, len(np.unique(calibration.machine)))
    operating, tiers, episodes = judge_tiers(
        test, calibration, events, test_line, machines, release_detector, calibrate, days["test"], seed, nulls
    )
    figures = {
        "dataset": {
            "rows": len(test) + len(calibration),
            "machines": len(np.unique(np.r_[test.machine, calibration.machine])),
            "test_rows": len(test),
            "calibration_rows": len(calibration),
            "failures": len(events),
            "machine_days": round(days["test"], 3),
        },
        "budget": {
            "false_episodes_per_machine_day": evaluate.false_episodes_per_machine_day,
            "false_episodes_on_calibration": allowed,
            "rule": "few" if few else "rate",
        },
        "release_detector": release_detector,
        "detectors": detectors,
        "tiers": tiers,
        "in_service": operating,
        "pairs": {"only": only_caught(outcomes)},
        "null_reasons": nulls,
        "notes": notes,
    }
    return Judgement(figures, _event_list(events, outcomes, machines), episodes, roc_points(test))


def budget_threshold(scores_N: FloatN, line: Timeline, allowed: float) -> float:
    """The lowest threshold at which healthy rows raise no more than `allowed` episodes, and every higher one too."""
    ordered = np.sort(scores_N)
    levels = np.unique(np.r_[np.linspace(0.5, 0.99, 25), 1 - np.geomspace(0.01, 0.5 / max(2, len(ordered)), 60)])
    candidates = np.unique(np.r_[np.quantile(ordered, levels, method="higher"), ordered[-1]])
    best = float(ordered[-1])
    for candidate in candidates[::-1]:
        episodes = line.episodes(line.alert_rows(scores_N > candidate))
        if episodes.weight().sum() > allowed:
            break
        best = float(candidate)
    return best


def forgiven_rows(test: JudgedRows, events: Sequence[Event]) -> npt.NDArray[np.bool_]:
    """Rows of the judged failures' windows, the unknown stretch before them included."""
    forgiven = np.zeros(len(test), bool)
    for event in events:
        inside = (test.time_us >= event.grace_us) & (test.time_us <= event.end_us)
        forgiven |= inside & (test.machine == event.machine)
    return forgiven


def outcome_at(exceeds_N: npt.NDArray[np.bool_], line: Timeline, events: Sequence[Event]) -> Outcome:
    """Caught failures and false episodes of alerts at one threshold."""
    episodes = line.episodes(line.alert_rows(exceeds_N))
    outcome = Outcome()
    kind = np.full(len(episodes), "false", dtype=object)
    opened, closed, machine = episodes.opened_us, episodes.closed_us, episodes.machine
    for event in events:
        mine = machine == event.machine
        inside = mine & (opened >= event.start_us) & (opened <= event.end_us)
        before = mine & (opened >= event.grace_us) & (opened < event.start_us)
        standing = before & (closed >= event.start_us)
        kind[before & (kind == "false")] = "ignored"
        kind[inside | standing] = "caught"
        hits = np.flatnonzero(inside | standing)
        if len(hits):
            first = max(int(opened[hits].min()), event.start_us)
            outcome.caught[event.failure_id] = (first, (event.end_us - first) / MICROSECONDS_PER_HOUR)
    outcome.kinds = [str(value) for value in kind]
    outcome.false_episodes = int(episodes.weight()[kind == "false"].sum()) if len(episodes) else 0
    return outcome


def caught_by_chance(
    exceeds_N: npt.NDArray[np.bool_], line: Timeline, events: Sequence[Event], shifts: int, seed: int
) -> float | None:
    """Mean number of failures caught when each machine's alerts are shifted in a circle by a random number of rows.

    The rule is that of `outcome_at`: an alert opens in the window, or opened in the stretch before it and still stands.
    """
    if not events:
        return None
    episodes = line.episodes(line.alert_rows(exceeds_N))
    rng, total = np.random.default_rng(seed), 0.0
    for event in events:
        low, high = np.searchsorted(line.machine, [event.machine, event.machine + 1])
        length = int(high - low)
        mine = (episodes.first >= low) & (episodes.first < high)
        opened, lasts = episodes.first[mine] - low, (episodes.last - episodes.first)[mine]
        if not length or not len(opened):
            continue
        times = line.time_us[low:high]
        before, first, last = np.searchsorted(times, [event.grace_us, event.start_us, event.end_us + 1])
        moved = (opened[None, :] + rng.integers(0, length, size=(shifts, 1))) % length
        standing = (moved >= before) & (moved < first) & (moved + lasts[None, :] >= first)
        total += float((((moved >= first) & (moved < last)) | standing).any(1).mean())
    return round(total, 3)


def row_metrics(test: JudgedRows, name: str, nulls: dict[str, str], seed: int) -> dict[str, Any]:
    """AUROC with an interval over machines, average precision, partial AUROC (McClish, standardised)."""
    known = test.label != UNKNOWN
    label, score = test.label[known], test.scores[name][known]
    healthy, faulty = int((label == HEALTHY).sum()), int((label == FAULTY).sum())
    figures: dict[str, Any] = {"auroc": None, "auroc_ci": None, "average_precision": None, "partial_auroc": None}
    if not healthy or not faulty:
        nulls["auroc"] = f"The test rows hold {healthy} healthy and {faulty} faulty rows; both are needed."
        nulls["average_precision"] = nulls["partial_auroc"] = nulls["auroc_ci"] = nulls["auroc"]
        return figures
    figures["auroc"] = _round(roc_auc_score(label, score))
    figures["auroc_ci"] = auroc_interval(label, score, test.machine[known], seed)
    figures["average_precision"] = _round(average_precision_score(label, score))
    if healthy >= PARTIAL_MIN_HEALTHY:
        figures["partial_auroc"] = _round(roc_auc_score(label, score, max_fpr=PARTIAL_FALSE_POSITIVES))
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
    return [_round(low), _round(high)]


def event_metrics(
    outcome: Outcome, events: Sequence[Event], days: float, machines: int, nulls: dict[str, str], calendar: bool
) -> dict[str, Any]:
    """Failures caught with a Wilson interval, false episodes per fleet-day with a Poisson interval, lead time."""
    caught, leads = len(outcome.caught), [lead for _, lead in outcome.caught.values()]
    figures: dict[str, Any] = {
        "events": len(events),
        "events_caught": caught if events else None,
        "events_caught_ci": [_round(value) for value in wilson(caught, len(events), 0.9)] if events else None,
        "events_by_chance": outcome.by_chance,
        "false_episodes": outcome.false_episodes,
        "false_episodes_per_day": None,
        "false_episodes_per_day_ci": None,
        "median_lead_time_hours": _round(np.median(leads)) if leads else None,
    }
    if not events:
        for key in ("events_caught", "events_caught_ci", "events_by_chance"):
            nulls[key] = "There is no failure to judge in the test rows."
    if not leads:
        nulls.setdefault("median_lead_time_hours", "Where no failure was caught there is no lead time.")
    if not calendar:
        nulls["false_episodes_per_day_ci"] = "Dates are synthetic (--time relative): rates per day mean nothing."
        nulls["false_episodes_per_day"] = "Dates are synthetic (--time relative): rates per day mean nothing."
    elif days <= 0:
        nulls["false_episodes_per_day"] = nulls["false_episodes_per_day_ci"] = "There are no healthy test rows."
    else:
        scale = machines / days
        low, high = poisson_interval(outcome.false_episodes)
        figures["false_episodes_per_day"] = _round(outcome.false_episodes * scale)
        figures["false_episodes_per_day_ci"] = [_round(low * scale), _round(high * scale)]
    return figures


def judge_tiers(
    test: JudgedRows,
    calibration: JudgedRows,
    events: Sequence[Event],
    line: Timeline,
    machines: Sequence[str],
    detector: str,
    params: CalibrateParams,
    days: float,
    seed: int,
    nulls: dict[str, str],
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """The release's own detector as it would serve: tiers with the rates they reach, and the page tier's alerts."""
    healthy = test.label == HEALTHY
    score, healthy_score = test.scores[detector], calibration.scores[detector]
    blocks = (calibration.machine, calibration.time_us // MICROSECONDS_PER_DAY)
    later = (test.machine[healthy], test.time_us[healthy] // MICROSECONDS_PER_DAY)
    tiers: dict[str, Any] = {}
    for tier, percentile in (("low", params.low_percentile), ("page", params.page_percentile)):
        found = rate_with_interval(
            healthy_score, blocks, score[healthy], later, percentile,
            draws=params.draws, confidence=params.confidence, seed=seed,
        )  # fmt: skip
        tiers[tier] = {
            "percentile": percentile,
            "threshold": found.threshold,
            "false_positive_rate": found.rate,
            "ci_low": found.low,
            "ci_high": found.high,
            "note": found.note,
        }
        if found.low is None:
            nulls["tiers"] = found.note or "There are no later healthy rows."
    exceeds = score > tiers["page"]["threshold"]
    outcome = outcome_at(exceeds, line, events)
    episodes = line.episodes(line.alert_rows(exceeds))
    listed = [
        {
            "machine_id": machines[m],
            "start": iso(a),
            "end": iso(b),
            "kind": kind,
            "failure_id": _failure_of(m, a, b, events),
        }
        for m, a, b, kind in zip(episodes.machine, episodes.opened_us, episodes.closed_us, outcome.kinds, strict=True)
    ]
    operating = {
        "tier": "page",
        "events": len(events),
        "events_caught": len(outcome.caught),
        "false_episodes": outcome.false_episodes,
        "machine_days": round(days, 3),
        "caught": {name: round(lead, 3) for name, (_, lead) in sorted(outcome.caught.items())},
    }
    return operating, tiers, listed


def only_caught(outcomes: Mapping[str, Outcome]) -> dict[str, list[str]]:
    """Failures that only one detector caught."""
    return {
        name: sorted(
            failure
            for failure in outcome.caught
            if all(failure not in other.caught for rival, other in outcomes.items() if rival != name)
        )
        for name, outcome in outcomes.items()
    }


def roc_points(test: JudgedRows, points: int = 150) -> list[dict[str, Any]]:
    """The receiver operating characteristic of each detector, thinned for plots."""
    known = test.label != UNKNOWN
    label = test.label[known]
    if not (label == HEALTHY).any() or not (label == FAULTY).any():
        return []
    listed = []
    for name, scores in test.scores.items():
        false_rate, true_rate, _ = roc_curve(label, scores[known])
        grid = np.unique(np.r_[0.0, np.geomspace(1e-5, 1, points)])
        for x, y in zip(grid, np.interp(grid, false_rate, true_rate), strict=True):
            listed.append({"detector": name, "false_positive_rate": _round(x, 8), "true_positive_rate": _round(y)})
    return listed


def poisson_interval(count: int, confidence: float = 0.9) -> tuple[float, float]:
    """Exact interval of a Poisson mean (Garwood 1936).

    >>> [round(value, 2) for value in poisson_interval(0)]
    [0.0, 3.0]
    """
    tail = (1 - confidence) / 2
    low = float(stats.chi2.ppf(tail, 2 * count) / 2) if count else 0.0
    return low, float(stats.chi2.ppf(1 - tail, 2 * count + 2) / 2)


def iso(time_us: int) -> str:
    """ISO 8601 in UTC, to the second."""
    return str(np.datetime64(int(time_us), "us").astype("datetime64[s]")) + "Z"


def _at_count(
    count: int, healthy: FloatN, scores: FloatN, healthy_line: Timeline, line: Timeline, events: Sequence[Event]
) -> dict[str, Any]:
    threshold = budget_threshold(healthy, healthy_line, float(count))
    outcome = outcome_at(scores > threshold, line, events)
    return {"events_caught": len(outcome.caught), "false_episodes": outcome.false_episodes}


def _notes(few: bool, allowed: float, expected: float, machines: int) -> list[str]:
    notes = []
    if few:
        counts = ", ".join(str(count) for count in FEW_EPISODES)
        notes.append(
            f"The budget allows {expected:.2f} false episodes on the calibration rows, fewer than "
            f"{MIN_EXPECTED_EPISODES:g}: detectors are compared at {counts} in all; the table shows {allowed:g}."
        )
    if machines < 20:
        notes.append(f"Intervals resample {machines} machines; fewer than 20 make them unsure.")
    return notes


def _event_list(
    events: Sequence[Event], outcomes: Mapping[str, Outcome], machines: Sequence[str]
) -> list[dict[str, Any]]:
    listed = []
    for event in events:
        detectors = {}
        for name, outcome in outcomes.items():
            found = outcome.caught.get(event.failure_id)
            detectors[name] = {
                "caught": found is not None,
                "first_alert": iso(found[0]) if found else None,
                "lead_time_hours": round(found[1], 3) if found else None,
            }
        listed.append(
            {
                "failure_id": event.failure_id,
                "machine_id": machines[event.machine],
                "failure_mode": event.failure_mode,
                "window_start": iso(event.start_us),
                "time": iso(event.end_us),
                "role": "test",
                "detectors": detectors,
            }
        )
    return listed


def _failure_of(machine: int, opened: int, closed: int, events: Sequence[Event]) -> str | None:
    for event in events:
        if event.machine == machine and opened <= event.end_us and closed >= event.start_us:
            return event.failure_id
    return None


def _round(value: Any, digits: int = 6) -> float:
    return round(float(value), digits)
