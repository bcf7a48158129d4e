"""How detectors are judged: rows by their ranking, failures by their alerts, all at the same budget of false alarms.

Nothing here knows files or stages; `evaluate` and `backtest` bring rows, scores and events. Thresholds come from
calibration rows only; test rows are counted, never tuned on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.alerts import AlertPolicy, Timeline, typical_interval_us
from pipeline.intervals import MIN_MACHINES
from pipeline.judging.breakdown import MachineDays, by_failure_mode, spread_metrics
from pipeline.judging.curves import LEAST_FALSE, TIMES_BUDGET, curve_rows, swept
from pipeline.judging.judged import FAULTY, Event, JudgedRows, Judgement, Outcome
from pipeline.judging.outcomes import (
    budget_threshold,
    caught_by_chance,
    event_list,
    event_metrics,
    forgiven_rows,
    only_caught,
    outcome_at,
)
from pipeline.judging.pairs import pair_figures
from pipeline.judging.rates_over_time import rates_over_time
from pipeline.judging.row_ranking import roc_points, row_metrics
from pipeline.judging.tiers import judge_tiers
from pipeline.params import CalibrateParams, EvaluateParams
from pipeline.schema import FloatN

MIN_EXPECTED_EPISODES = 5.0  # below this many a budget is too small to tell detectors apart
FEW_EPISODES = (0, 1, 3)  # what is compared then; the middle one stands in the table


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
        seed: of the bootstraps and of the chance shifts.

    Returns:
        Figures in the form that `docs/data.md` explains, with the reason of each that is null; the failures with every
        detector's verdict; the page tier's episodes; the curves of rows and of events.
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
    if not healthy.any():
        nulls["curves"] = "There are no healthy test rows."
    if not events:
        nulls["events"] = nulls["failure_modes"] = "There is no failure to judge in the test rows."
    test_days = MachineDays.of(test_line, healthy, interval_us)
    most_false = max(TIMES_BUDGET * evaluate.false_episodes_per_machine_day * days["test"], LEAST_FALSE)
    test_machines = len(np.unique(test.machine))
    per_day = test_machines / days["test"] if calendar and days["test"] > 0 else None
    detectors: dict[str, Any] = {}
    outcomes: dict[str, Outcome] = {}
    curves: list[dict[str, Any]] = []
    for name in test.scores:
        if thresholds is None:
            threshold = budget_threshold(calibration.scores[name], calibration_line, allowed)
        else:
            threshold = thresholds[name]
        exceeds = test.scores[name] > threshold
        outcome = outcome_at(exceeds, test_line, events)
        outcome.by_chance = caught_by_chance(exceeds, test_line, events, evaluate.chance_shifts, seed)
        outcomes[name] = outcome
        detectors[name] = (
            row_metrics(test, name, nulls, seed)
            | event_metrics(outcome, events, days["test"], test_machines, nulls, calendar)
            | spread_metrics(outcome, test_line.alert_rows(exceeds), test_days, nulls)
        )
        detectors[name]["threshold"] = threshold
        points = swept(test.scores[name], test_line, events, healthy, most_false)
        curves += curve_rows(name, points, outcome, threshold, len(events), per_day)
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
    over_time, drifted = rates_over_time(
        test, calibration, release_detector, calibrate, nulls, calendar=calendar, seed=seed
    )
    pairs = pair_figures(outcomes, events, test_days, release_detector, nulls, calendar=calendar, seed=seed)
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
        "failure_modes": by_failure_mode(events, outcomes) if events else None,
        "rates_over_time": over_time,
        "pairs": {"only": only_caught(outcomes), **pairs},
        "null_reasons": nulls,
        "notes": [*notes, *drifted],
    }
    return Judgement(figures, event_list(events, outcomes, machines), episodes, roc_points(test), curves)


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
    if machines < MIN_MACHINES:
        notes.append(f"Intervals resample {machines} machines; fewer than {MIN_MACHINES} make them unsure.")
    return notes
