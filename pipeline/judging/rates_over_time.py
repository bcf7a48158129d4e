"""Does a threshold keep its rate? The share of healthy rows above it, week by week after calibration.

In weeks that resemble the calibration rows a percentile lets through what it was asked for; drift shows as weeks that
do not. So the rate of the first half of the test span stands apart from that of the second, and that of epochs that
began after calibration (a repair, a moved sensor, new firmware, a change of the fleet) apart from the others.

Shape legend: N calibration rows, M healthy test rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.intervals import rate_with_interval
from pipeline.judging.judged import HEALTHY, JudgedRows, rounded
from pipeline.moments import iso
from pipeline.params import CalibrateParams
from pipeline.pareto import TailFit
from pipeline.schema import MICROSECONDS_PER_DAY, BoolN, IntN

WEEK_US = 7 * MICROSECONDS_PER_DAY
MOST_SPANS = 26  # longer tests have spans of several weeks


def rates_over_time(
    test: JudgedRows,
    calibration: JudgedRows,
    detector: str,
    params: CalibrateParams,
    nulls: dict[str, str],
    *,
    calendar: bool,
    seed: int,
) -> tuple[dict[str, Any], list[str]]:
    """The page tier's rate on healthy test rows by week after calibration, by half of the span, and by epoch.

    Args:
        test: rows that are judged; with `epoch` where epochs are known.
        calibration: healthy rows from which the threshold comes.
        detector: whose page tier it is.
        params: percentile, draws and confidence.
        nulls: reasons are added here.
        calendar: False where dates mean nothing; spans then have no dates.
        seed: of the draws.

    Returns:
        Figures, and notes for a person: where later rows do not keep the rate that was asked for.
    """
    healthy = test.label == HEALTHY
    spans = _Spans(test, calibration, detector, params, calendar, seed)
    asked = 1 - params.page_percentile / 100
    figures: dict[str, Any] = {"tier": "page", "detector": detector, "asked": rounded(asked, 9), "weeks": []}
    figures |= dict.fromkeys(("first_half", "second_half", "epochs_of_calibration", "epochs_since"))
    if not healthy.any():
        for key in ("weeks", "first_half", "second_half", "epochs_of_calibration", "epochs_since"):
            nulls[f"rates_over_time.{key}"] = "There are no healthy test rows."
        return figures, []
    week = weeks_after(test, calibration)
    known = healthy & (week > 0)
    if known.any():
        each = math.ceil(int(week[known].max()) / MOST_SPANS)
        span = (week - 1) // each
        figures["weeks"] = [
            {"week": int(number) * each + 1, "weeks": each, **spans.of(known & (span == number))}
            for number in np.unique(span[known])
        ]
    else:
        nulls["rates_over_time.weeks"] = "No healthy test row is later than the calibration rows."
    first, last = int(test.time_us[healthy].min()), int(test.time_us[healthy].max())
    late = test.time_us > (first + last) // 2
    figures["first_half"] = spans.of(healthy & ~late)
    figures["second_half"] = spans.of(healthy & late)
    since = epochs_since(test, calibration)
    if since is None:
        nulls["rates_over_time.epochs_since"] = nulls["rates_over_time.epochs_of_calibration"] = (
            "Baseline epochs of the rows are not known here."
        )
    else:
        figures["epochs_of_calibration"] = spans.of(healthy & ~since)
        figures["epochs_since"] = spans.of(healthy & since)
    return figures, _notes(figures, asked, params.confidence)


class _Spans:
    """Rates of chosen test rows above the page threshold; a tail is fitted once."""

    def __init__(
        self,
        test: JudgedRows,
        calibration: JudgedRows,
        detector: str,
        params: CalibrateParams,
        calendar: bool,
        seed: int,
    ) -> None:
        self.test, self.calibration, self.detector = test, calibration, detector
        self.params, self.calendar, self.seed = params, calendar, seed
        self.tail: TailFit | None = None

    def of(self, chosen_M: BoolN) -> dict[str, Any]:
        """Rows, machines, rate and interval of some test rows."""
        test, calibration, params = self.test, self.calibration, self.params
        machine, time_us = test.machine[chosen_M], test.time_us[chosen_M]
        found = rate_with_interval(
            calibration.scores[self.detector],
            (calibration.machine, calibration.time_us // MICROSECONDS_PER_DAY),
            test.scores[self.detector][chosen_M],
            (machine, time_us // MICROSECONDS_PER_DAY),
            params.page_percentile,
            draws=params.draws, confidence=params.confidence, seed=self.seed, tail=self.tail,
        )  # fmt: skip
        self.tail = found.tail
        asked = 1 - params.page_percentile / 100
        kept = None if found.low is None or found.high is None else found.low <= asked <= found.high
        dated = self.calendar and len(time_us) > 0
        return {
            "start": iso(int(time_us.min())) if dated else None,
            "end": iso(int(time_us.max())) if dated else None,
            "rows": len(time_us),
            "machines": len(np.unique(machine)),
            "false_positive_rate": found.rate,
            "ci_low": found.low,
            "ci_high": found.high,
            "holds_asked": kept,  # whether the interval holds the rate that was asked for
            "note": found.note,
        }


def weeks_after(test: JudgedRows, calibration: JudgedRows) -> IntN:
    """The week, from 1 on, in which each test row lies after the last calibration row; 0 or less: it is no later.

    The fleet's last calibration row where all test rows are later; else each machine's own, or the fleet's where a
    machine has none.

    >>> def rows(machines, days):
    ...     day = np.array(days, np.int64) * MICROSECONDS_PER_DAY
    ...     return JudgedRows(np.array(machines, np.int32), day, np.zeros(len(day), np.int8), {})
    >>> weeks_after(rows([0, 0, 1], [11, 18, 12]), rows([0, 1], [5, 10])).tolist()
    [1, 2, 1]
    >>> weeks_after(rows([0, 0, 2], [6, 18, 12]), rows([0, 1], [5, 10])).tolist()
    [1, 2, 1]
    """
    if not len(calibration) or not len(test):
        return np.zeros(len(test), np.int64)
    last = int(calibration.time_us.max())
    if int(test.time_us.min()) > last:
        reference: IntN | int = last
    else:
        codes = 1 + int(max(test.machine.max(), calibration.machine.max()))
        of_machine = np.full(codes, np.iinfo(np.int64).min)
        np.maximum.at(of_machine, calibration.machine, calibration.time_us)
        of_machine[of_machine == np.iinfo(np.int64).min] = last
        reference = of_machine[test.machine]
    weeks: IntN = -((reference - test.time_us) // WEEK_US)  # rounded up: the first week ends with its seventh day
    return weeks


def epochs_since(test: JudgedRows, calibration: JudgedRows) -> BoolN | None:
    """Test rows whose baseline epoch is later than the last of their machine's calibration rows.

    A machine without calibration rows is measured by its first test epoch. None where epochs are not known.
    """
    if test.epoch is None:
        return None
    unknown = np.iinfo(np.int64).max
    codes = 1 + int(max(test.machine.max(initial=0), calibration.machine.max(initial=0)))
    first: npt.NDArray[np.int64] = np.full(codes, unknown)
    np.minimum.at(first, test.machine, test.epoch)
    if calibration.epoch is not None:
        known: npt.NDArray[np.int64] = np.full(codes, -1)
        np.maximum.at(known, calibration.machine, calibration.epoch)
        first = np.where(known >= 0, known, first)
    later: BoolN = test.epoch > first[test.machine]
    return later


def _notes(figures: dict[str, Any], asked: float, confidence: float) -> list[str]:
    """Sentences on later rows whose interval excludes the rate that was asked for."""
    notes = []
    later = {"second_half": "the second half of the test span", "epochs_since": "baseline epochs since calibration"}
    for key, what in later.items():
        entry = figures[key]
        if entry and entry["holds_asked"] is False:
            notes.append(
                f"In {what} the page tier lets {entry['false_positive_rate']:.3%} of healthy rows through (interval "
                f"{entry['ci_low']:.3%} to {entry['ci_high']:.3%}); {asked:.3%} was asked for: these rows are not like "
                "those of the calibration."
            )
    told = [entry for entry in figures["weeks"] if entry["holds_asked"] is not None]
    off = [entry["week"] for entry in told if not entry["holds_asked"]]
    if len(off) > (1 - confidence) * len(told):  # as many exclude it by chance
        listed = ", ".join(str(week) for week in off[:8]) + (", ..." if len(off) > 8 else "")
        notes.append(
            f"In {len(off)} of {len(told)} weeks with an interval the page tier's rate excludes what was asked for "
            f"(week {listed} after calibration)."
        )
    return notes
