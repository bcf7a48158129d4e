"""A threshold's rate week by week: rows that changed after calibration stand apart, and are told of."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.judging.judged import FAULTY, HEALTHY, JudgedRows
from pipeline.judging.rates_over_time import MOST_SPANS, epochs_since, rates_over_time
from pipeline.params import CalibrateParams
from pipeline.schema import MICROSECONDS_PER_DAY

MACHINES, HOUR = 24, 3_600_000_000
SETTINGS = CalibrateParams(draws=120, page_percentile=99.0, low_percentile=95.0)


def rows(first_day: int, days: int, rng: np.random.Generator, epoch: bool = True) -> JudgedRows:
    hours = days * 24
    machine = np.repeat(np.arange(MACHINES, dtype=np.int32), hours)
    time = np.tile(first_day * MICROSECONDS_PER_DAY + np.arange(hours) * HOUR, MACHINES)
    score = rng.normal(size=len(machine)) + 0.1 * rng.normal(size=MACHINES)[machine]
    epochs = np.zeros(len(machine), np.int32) if epoch else None
    return JudgedRows(machine, time, np.full(len(machine), HEALTHY, np.int8), {"pca": score}, epochs)


def told(test: JudgedRows, calibration: JudgedRows, calendar: bool = True) -> tuple[dict, list[str], dict[str, str]]:
    nulls: dict[str, str] = {}
    figures, notes = rates_over_time(test, calibration, "pca", SETTINGS, nulls, calendar=calendar, seed=1)
    json.dumps(figures, allow_nan=False)
    return figures, notes, nulls


def test_weeks_like_the_calibration_keep_the_rate_and_nothing_is_said(rng) -> None:
    figures, notes, nulls = told(rows(20, 21, rng), rows(0, 20, rng))
    assert [entry["week"] for entry in figures["weeks"]] == [1, 2, 3]
    assert sum(entry["rows"] for entry in figures["weeks"]) == MACHINES * 21 * 24
    for key in ("first_half", "second_half"):
        assert figures[key]["false_positive_rate"] == pytest.approx(0.01, abs=0.005)
        assert figures[key]["holds_asked"] is True
    assert figures["weeks"][0]["start"] == "1970-01-21T00:00:00Z"
    assert figures["asked"] == pytest.approx(0.01)
    assert notes == []
    assert "rates_over_time.epochs_since" not in nulls


def test_drift_raises_the_second_half_alone_and_a_note_says_so(rng) -> None:
    test = rows(20, 28, rng)
    test.scores["pca"][test.time_us > 34 * MICROSECONDS_PER_DAY] += 0.8
    figures, notes, _ = told(test, rows(0, 20, rng))
    assert figures["first_half"]["holds_asked"] is True
    assert figures["second_half"]["holds_asked"] is False
    assert figures["second_half"]["false_positive_rate"] > 3 * figures["first_half"]["false_positive_rate"]
    assert [entry["week"] for entry in figures["weeks"] if entry["holds_asked"] is False][:2] == [3, 4]
    assert "second half" in notes[0]
    assert "1.000% was asked for" in notes[0]
    assert any("week 3, 4" in note for note in notes)


def test_epochs_that_began_after_calibration_stand_apart(rng) -> None:
    test, calibration = rows(20, 14, rng), rows(0, 20, rng)
    assert test.epoch is not None
    changed = (test.machine < 8) & (test.time_us > 27 * MICROSECONDS_PER_DAY)
    test.epoch[changed] = 1
    test.scores["pca"][changed] += 1.0
    figures, notes, _ = told(test, calibration)
    assert figures["epochs_since"]["rows"] == changed.sum()
    assert figures["epochs_since"]["machines"] == 8
    assert figures["epochs_since"]["holds_asked"] is False
    assert figures["epochs_of_calibration"]["holds_asked"] is True
    assert any("epochs since calibration" in note for note in notes)


def test_an_epoch_that_calibration_knows_is_no_change(rng) -> None:
    test, calibration = rows(20, 7, rng), rows(0, 20, rng)
    assert test.epoch is not None
    assert calibration.epoch is not None
    test.epoch[test.machine == 1] = 4
    calibration.epoch[(calibration.machine == 1) & (calibration.time_us > 9 * MICROSECONDS_PER_DAY)] = 4
    test.epoch[test.machine == 3] = 1  # a change between calibration and test
    since = epochs_since(test, calibration)
    assert since is not None
    assert set(test.machine[since]) == {3}
    # without epochs of the calibration rows a machine's first test epoch is what it was
    test.epoch[(test.machine == 2) & (test.time_us > 23 * MICROSECONDS_PER_DAY)] = 2
    bare = JudgedRows(calibration.machine, calibration.time_us, calibration.label, calibration.scores)
    since = epochs_since(test, bare)
    assert since is not None
    assert set(test.machine[since]) == {2}


def test_unknown_epochs_and_synthetic_dates_are_null(rng) -> None:
    figures, _, nulls = told(rows(20, 7, rng, epoch=False), rows(0, 20, rng), calendar=False)
    assert figures["epochs_since"] is None
    assert figures["epochs_of_calibration"] is None
    assert "not known" in nulls["rates_over_time.epochs_since"]
    assert {entry["start"] for entry in figures["weeks"]} == {None}


def test_only_healthy_rows_count_and_without_them_there_is_a_reason(rng) -> None:
    test = rows(20, 7, rng)
    test.label[test.machine > 3] = FAULTY
    figures, _, _ = told(test, rows(0, 20, rng))
    assert figures["first_half"]["machines"] == 4
    test.label[:] = FAULTY
    figures, notes, nulls = told(test, rows(0, 20, rng))
    assert (figures["weeks"], figures["first_half"], notes) == ([], None, [])
    assert "no healthy test rows" in nulls["rates_over_time.second_half"]


def test_rows_no_later_than_the_calibration_have_no_week(rng) -> None:
    figures, _, nulls = told(rows(0, 7, rng), rows(0, 20, rng))
    assert figures["weeks"] == []
    assert "later than the calibration" in nulls["rates_over_time.weeks"]
    assert figures["first_half"]["false_positive_rate"] is not None


def test_a_long_test_has_spans_of_several_weeks(rng) -> None:
    long = rows(20, 60 * 7, rng)
    kept = np.flatnonzero(np.arange(len(long)) % 60 == 0)
    thin = JudgedRows(long.machine[kept], long.time_us[kept], long.label[kept], {"pca": long.scores["pca"][kept]})
    figures, _, _ = told(thin, rows(0, 20, rng))
    assert len(figures["weeks"]) <= MOST_SPANS
    assert {entry["weeks"] for entry in figures["weeks"]} == {3}
    assert sum(entry["rows"] for entry in figures["weeks"]) == len(thin)


def test_few_machine_days_have_a_rate_and_no_interval(rng) -> None:
    test = rows(20, 7, rng)
    mine = test.machine < 2
    few = JudgedRows(test.machine[mine], test.time_us[mine], test.label[mine], {"pca": test.scores["pca"][mine]})
    figures, notes, _ = told(few, rows(0, 20, rng))
    assert figures["first_half"]["holds_asked"] is None
    assert "machine-days" in figures["first_half"]["note"]
    assert notes == []
