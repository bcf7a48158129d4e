"""What stands behind a detector's totals: failures by mode, lead times, and how much of the time a machine is in alert.

Shape legend: N rows, B machine-days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.alerts import Timeline
from pipeline.intervals import wilson
from pipeline.judging.judged import Event, Outcome, rounded
from pipeline.schema import MICROSECONDS_PER_DAY, BoolN, FloatN, IntN

UNKNOWN_MODE = "unknown"
CONFIDENCE = 0.9


@dataclass(frozen=True)
class MachineDays:
    """UTC days of machines that hold test rows: the day of each sorted row (N,), and of each day (B,) what it holds."""

    day_N: IntN
    machine_B: IntN
    healthy_days_B: FloatN  # how much of it is time in which an alert can be false, in days

    @classmethod
    def of(cls, line: Timeline, healthy_N: BoolN, interval_us: int) -> MachineDays:
        """The days of a timeline's rows.

        Args:
            line: of all test rows.
            healthy_N: rows in which an alert can be false, in the caller's order.
            interval_us: time that a row stands for.
        """
        day = line.time_us // MICROSECONDS_PER_DAY
        new = np.r_[True, (np.diff(line.machine) != 0) | (np.diff(day) != 0)][: len(day)]
        day_N = np.cumsum(new) - 1
        rows_B = np.bincount(day_N, weights=healthy_N[line.order], minlength=int(new.sum()))
        healthy_days_B = np.asarray(rows_B * (interval_us / MICROSECONDS_PER_DAY), np.float64)
        return cls(day_N, line.machine[new].astype(np.int64), healthy_days_B)

    def __len__(self) -> int:
        return len(self.machine_B)

    def with_alert(self, alert_rows_N: BoolN) -> int:
        """How many hold an alert row; `alert_rows_N` in the order of the timeline."""
        return len(np.unique(self.day_N[alert_rows_N]))

    def false_episodes(self, outcome: Outcome) -> FloatN:
        """False episodes that opened on each (B,), counted as `Episodes.weight` says."""
        if outcome.episodes is None or not len(outcome.episodes):
            return np.zeros(len(self))
        false = np.array(outcome.kinds, object) == "false"
        days, weight = self.day_N[outcome.episodes.first[false]], outcome.episodes.weight()[false]
        return np.asarray(np.bincount(days, weights=weight, minlength=len(self)), np.float64)


def by_failure_mode(events: Sequence[Event], outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Of each failure mode how many were judged, and how many each detector caught, with Wilson's interval.

    >>> events = [Event(name, 0, 0, 1, 0, mode) for name, mode in (("a", "wear"), ("b", "wear"), ("c", None))]
    >>> found = by_failure_mode(events, {"pca": Outcome(caught={"a": (0, 1.0)})})
    >>> found["wear"]["events"], found["wear"]["detectors"]["pca"]["events_caught"], found["unknown"]["events"]
    (2, 1, 1)
    """
    modes: dict[str, list[str]] = {}
    for event in events:
        modes.setdefault(event.failure_mode or UNKNOWN_MODE, []).append(event.failure_id)
    found: dict[str, Any] = {}
    for mode, failures in sorted(modes.items()):
        detectors = {}
        for name, outcome in outcomes.items():
            caught = sum(failure in outcome.caught for failure in failures)
            interval = [rounded(end) for end in wilson(caught, len(failures), CONFIDENCE)]
            detectors[name] = {"events_caught": caught, "events_caught_ci": interval}
        found[mode] = {"events": len(failures), "detectors": detectors}
    return found


def spread_metrics(outcome: Outcome, alert_rows_N: BoolN, days: MachineDays, nulls: dict[str, str]) -> dict[str, Any]:
    """Quartiles of the lead time in hours, and the share of machine-days with at least one alert row."""
    leads = [lead for _, lead in outcome.caught.values()]
    quartiles = [rounded(value) for value in np.quantile(leads, [0.25, 0.5, 0.75])] if leads else None
    if quartiles is None:
        nulls.setdefault("lead_time_quartiles_hours", "Where no failure was caught there is no lead time.")
    with_alert = days.with_alert(alert_rows_N)
    return {
        "lead_time_quartiles_hours": quartiles,
        "machine_days_observed": len(days),
        "machine_days_with_alert": with_alert,
        "machine_days_with_alert_share": rounded(with_alert / len(days)) if len(days) else None,
    }
