"""Evidence of failures: the band that is broken stands out, gaps stay gaps, and no size of data makes it large."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.detectors import Detector, Fitting, TrainingRows, fit_baselines, make_detector
from pipeline.evidence import (
    EVIDENCE_SCHEMA,
    HISTORY_ROWS,
    PROFILE_ROWS,
    SPANS,
    Groups,
    error_profile,
    evidence_table,
    history_mask,
)
from pipeline.judging.judged import Judgement
from pipeline.moments import iso, to_us
from pipeline.params import TrainParams
from pipeline.report_page.failure_evidence import spectrum_chart
from pipeline.rows import Rows
from pipeline.schema import MICROSECONDS_PER_HOUR, FleetSpec

HOURS, LOUD, MACHINES = 200, 5, ("press/../1", "press-2")
START_US = to_us("2025-01-01T00:00:00Z")


def rows_of(hours: int, machine: int, bins: int, seed: int, loud_from: int | None = None) -> Rows:
    """A row an hour of one machine; from an hour on one band is thirty times as loud."""
    spectra = np.random.default_rng(seed).lognormal(0, 0.2, (hours, bins)).astype(np.float32)
    if loud_from is not None:
        spectra[loud_from:, LOUD] *= 30
    codes = np.full(hours, machine, np.int32)
    time_us = START_US + np.arange(hours) * MICROSECONDS_PER_HOUR
    zeros = np.zeros(hours, np.int32)
    return Rows(spectra, codes, list(MACHINES), zeros, zeros, [""], time_us, pa.table({}))


def joined(*parts: Rows) -> Rows:
    names = ("spectra", "machine", "epoch", "condition", "time_us")
    return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def judged(caught: bool = True) -> Judgement:
    """The first machine fails in its last hour, a page 20 hours ahead."""
    end = START_US + (HOURS - 1) * MICROSECONDS_PER_HOUR
    event = {"failure_id": "F1", "machine_id": MACHINES[0], "time": iso(end), "detectors": {}}
    event["window_start"] = iso(end - 80 * MICROSECONDS_PER_HOUR)
    in_service = {"caught": {"F1": 20.0}} if caught else None
    return Judgement({"in_service": in_service}, [event], [], [])


def distance(bins: int) -> Detector:
    rows = joined(rows_of(HOURS, 0, bins, 1), rows_of(HOURS, 1, bins, 2))
    baselines = fit_baselines(rows.spectra, rows.keys)
    code = baselines.codes(rows.keys)
    params = TrainParams.model_validate({"score_batch_rows": 64})
    detector = make_detector("squared_distance", baselines, params, torch.device("cpu"))
    detector.fit(TrainingRows(rows.spectra, code, rows.spectra[:8], code[:8]), Fitting(0, torch.device("cpu")))
    return detector


def fleet_of(bins: int) -> FleetSpec:
    return FleetSpec(bins=bins, band_edges_hz=tuple(float(edge) for edge in range(0, 10 * bins + 1, 10)))


@pytest.fixture(scope="module")
def row() -> dict:
    test = joined(rows_of(HOURS, 0, 16, 3, loud_from=HOURS - 30), rows_of(HOURS, 1, 16, 4))
    table = evidence_table(distance(16), test, rows_of(HOURS, 0, 16, 1), judged(), fleet_of(16))
    assert table.schema.equals(EVIDENCE_SCHEMA)
    (only,) = table.to_pylist()
    return only


def test_the_broken_band_stands_out_in_time_and_frequency(row: dict) -> None:
    error_TC = np.array(row["error_TC"]).reshape(SPANS, 16)
    assert (row["begin_us"], row["end_us"]) == (
        START_US + (HOURS - 101) * MICROSECONDS_PER_HOUR,
        START_US + (HOURS - 1) * MICROSECONDS_PER_HOUR,
    )
    assert int(np.nanargmax(np.nanmean(error_TC, axis=0))) == LOUD
    assert np.nanmin(error_TC[-20:, LOUD]) > 10 * np.nanmax(error_TC[: SPANS // 2])
    assert np.isnan(error_TC).all(1).sum() == SPANS - 101  # a row an hour leaves spans without rows


def test_the_spectrum_at_the_alert_is_compared_with_the_healthy_one(row: dict) -> None:
    assert row["shown"] == "page"
    assert row["baseline"] == "own"
    assert row["shown_us"] == START_US + (HOURS - 21) * MICROSECONDS_PER_HOUR
    assert row["top_bands"][0] == "50-60 Hz"
    assert row["top_share"][0] > 0.5
    assert row["top_alert"][0] > 20 * row["top_healthy"][0]
    assert np.all(np.array(row["healthy_low_S"]) < row["healthy_S"])
    assert np.all(np.array(row["healthy_S"]) < row["healthy_high_S"])
    assert max(a / h for i, (a, h) in enumerate(zip(row["alert_S"], row["healthy_S"], strict=True)) if i != LOUD) < 2


def test_without_an_alert_the_last_rows_stand_for_it() -> None:
    test = rows_of(HOURS, 0, 16, 3, loud_from=HOURS - 30)
    nothing = replace(rows_of(0, 0, 16, 3), machines=[])
    (only,) = evidence_table(distance(16), test, nothing, judged(caught=False), fleet_of(16)).to_pylist()
    assert only["shown"] == "last"
    assert only["healthy_rows"] == 0
    assert np.isnan(only["healthy_S"]).all()


def test_a_wider_baseline_is_said(row: dict) -> None:
    repaired = rows_of(HOURS, 0, 16, 3, loud_from=HOURS - 30)
    repaired = replace(repaired, epoch=np.ones(HOURS, np.int32))
    (only,) = evidence_table(distance(16), repaired, rows_of(HOURS, 0, 16, 1), judged(), fleet_of(16)).to_pylist()
    assert only["baseline"] == "shrunk"
    assert "wider, shrunk baseline" in spectrum_chart(only, 0, "g").caption
    assert "baseline" not in spectrum_chart(row, 0, "g").caption


def test_a_failure_without_rows_is_left_out() -> None:
    table = evidence_table(distance(16), rows_of(50, 1, 16, 3), rows_of(9, 0, 16, 1), judged(), fleet_of(16))
    assert table.num_rows == 0


def test_wide_spectra_are_grouped_and_keep_their_sums_and_peaks() -> None:
    groups = Groups.of(fleet_of(1000), 128)
    values = np.random.default_rng(0).random((3, 1000))
    assert len(groups.first) == len(groups.names) == 125
    assert np.allclose(groups.sums(values).sum(1), values.sum(1))
    assert np.array_equal(groups.peaks(values).max(1), values.max(1))
    assert groups.names[-1] == "9920-10000 Hz"


def test_history_is_healthy_earlier_and_of_the_same_epoch() -> None:
    hours = np.arange(1000)
    machine = np.zeros(1000, np.int32)
    time_us = START_US + hours * MICROSECONDS_PER_HOUR
    healthy = hours % 2 == 0
    event = {"machine_id": "a", "window_start": iso(int(time_us[900])), "time": iso(int(time_us[999]))}
    epoch = (hours >= 600).astype(np.int32)
    chosen = history_mask(machine, ["a"], epoch, time_us, healthy, [event])
    assert set(np.flatnonzero(chosen)) == set(range(600, 900, 2))
    epoch = (hours >= 880).astype(np.int32)  # ten rows of the new epoch are too few
    chosen = np.flatnonzero(history_mask(machine, ["a"], epoch, time_us, healthy, [event]))
    assert len(chosen) == HISTORY_ROWS
    assert chosen.max() < 900
    assert not (chosen % 2).any()
    assert not history_mask(machine, ["b"], epoch, time_us, healthy, [event]).any()


def test_the_profile_knows_what_it_does_not_know() -> None:
    rows = joined(rows_of(PROFILE_ROWS + 100, 0, 16, 3), rows_of(20, 1, 16, 4, loud_from=0))
    faulty = rows.machine == 1
    profile = error_profile(distance(16), rows, ~faulty, faulty, fleet_of(16))
    assert profile["healthy"]["rows"] == PROFILE_ROWS
    assert int(np.argmax(profile["faulty"]["median"])) == LOUD
    assert all(low <= high for low, high in zip(profile["healthy"]["median"], profile["healthy"]["high"], strict=True))
    assert error_profile(distance(16), rows, ~faulty, faulty & ~faulty, fleet_of(16))["faulty"] is None
