"""Calibration: what thresholds rest on, in pieces as at once, and rows that no threshold can come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.calibrate import (
    Calibration,
    calibrate,
    calibrate_measured,
    load_calibration,
)
from pipeline.detectors.baseline import fit_baselines
from pipeline.errors import ContractError, ParamsError
from pipeline.measure import Measured, condition_column, load_detectors, measure
from pipeline.params import CalibrateParams, Params, parse_params
from pipeline.rows import RowKeys, Rows, has_role, load_rows, rows_without_spectra, spectra_pieces
from pipeline.schema import MICROSECONDS_PER_DAY, Role, load_fleet_spec
from pipeline.store import read_table

PARAMS = Params(seed=3, calibrate=CalibrateParams(draws=60))
NAMES = ("pca", "energy_zscore")


def measured(scores: np.ndarray, machines: int = 20, rows_a_day: int = 24) -> Measured:
    """Rows of machines that take turns, and their scores by one detector."""
    count = len(scores)
    zeros = np.zeros(count, np.int32)
    rows = Rows(
        spectra=np.empty((count, 0), np.float32),
        machine=(np.arange(count) % machines).astype(np.int32),
        machines=[f"m{index}" for index in range(machines)],
        epoch=zeros,
        condition=zeros,
        conditions=("",),
        time_us=np.arange(count) // machines * (MICROSECONDS_PER_DAY // rows_a_day),
        status=pa.table({"failure_id": pa.nulls(count, pa.string())}),
    )
    some = np.exp(np.random.default_rng(0).normal(size=(machines * 30, 3))).astype(np.float32)
    told = RowKeys.of(rows.machines, np.arange(len(some)) % machines, np.zeros(len(some), int))
    table = fit_baselines(some, told)
    code = table.codes(rows.keys)
    return Measured(rows, {"pca": scores}, table.states(code), code, {"pca": np.empty((0, 3))}, table)


def calibrated(scores: np.ndarray, **changes: object) -> Calibration:
    params = Params(calibrate=CalibrateParams.model_validate({"draws": 60, "choice": {"enabled": False}, **changes}))
    return calibrate_measured(measured(scores), measured(np.empty(0)), params)


def test_what_is_counted_and_what_is_extrapolated_is_said(rng) -> None:
    found = calibrated(rng.exponential(size=5000))
    low, page = found.detectors["pca"]["low"], found.detectors["pca"]["page"]
    assert (low["basis"], page["basis"]) == ("rows", "Pareto tail")
    assert (low["rows_needed"], page["rows_needed"]) == (2000, 20_000)
    assert low["rows_above"] == 24
    assert 10 < low["machine_days_above"] <= 24
    assert page["threshold"] == pytest.approx(-np.log(5e-4), abs=1.0)
    assert found.detectors["pca"]["tail"]["kind"] == "pareto"
    told = [note for note in found.notes if "99.95" in note]
    assert len(told) == 1
    assert "needs 20,000 calibration rows" in told[0]
    assert "there are 5,000: its threshold is extrapolated, Pareto tail (pca)" in told[0]
    # scores of the table and thresholds of the tiers mean the same
    at_page = found.tails.table("pca").probability(np.array([page["threshold"]]))[0]
    assert at_page == pytest.approx(5e-4, rel=1e-6)


def test_any_percentile_is_a_tier(rng) -> None:
    found = calibrated(rng.exponential(size=5000), low_percentile=90.0, page_percentile=99.9999)
    assert found.detectors["pca"]["low"]["threshold"] == pytest.approx(-np.log(0.1), abs=0.2)
    assert found.detectors["pca"]["page"]["threshold"] == pytest.approx(-np.log(1e-6), abs=4)


def test_further_percentiles_are_told_in_order(rng) -> None:
    found = calibrated(rng.exponential(size=5000), more_percentiles=[99.9, 98.0])
    told = found.detectors["pca"]["percentiles"]
    assert [one["percentile"] for one in told] == [98.0, 99.9]
    assert told[0]["threshold"] == pytest.approx(-np.log(0.02), abs=0.2)
    assert told[0]["rate_low"] < 0.02 < told[0]["rate_high"]
    assert [one["basis"] for one in told] == ["rows", "Pareto tail"]


@pytest.mark.parametrize("percentile", [50, 100, 101, 20])
def test_percentiles_out_of_range_are_refused_at_the_door(percentile: float) -> None:
    with pytest.raises(ParamsError, match=r"calibrate.page_percentile: got \d+, expected (less|greater) than"):
        parse_params(f"calibrate: {{page_percentile: {percentile}}}\n")


def test_a_tail_that_does_not_hold_is_said(rng) -> None:
    scores = np.r_[rng.exponential(size=3000) / 100, 100 + rng.normal(size=60), 200 + rng.normal(size=40)]
    found = calibrated(rng.permutation(scores))
    page = found.detectors["pca"]["page"]
    assert page["basis"] == "largest scores"
    assert page["threshold"] >= 200
    assert any("no tail holds" in note and "(pca)" in note for note in found.notes)


def test_fewer_than_a_hundred_rows_are_said_and_fewer_than_twenty_refused(rng) -> None:
    found = calibrated(rng.exponential(size=99))
    assert any("99 calibration rows, fewer than 100" in note for note in found.notes)
    assert found.detectors["pca"]["low"]["basis"] == "largest scores"
    assert not any("fewer than 100" in note for note in calibrated(rng.exponential(size=100)).notes)
    for count in (0, 19):
        with pytest.raises(ContractError, match=f"calibration rows: got {count}, expected at least 20 healthy rows"):
            calibrated(rng.exponential(size=count))


def test_equal_and_infinite_scores_are_refused() -> None:
    with pytest.raises(ContractError, match="scores of pca: got 500 scores, all 2, expected scores that differ"):
        calibrated(np.full(500, 2.0))
    for broken in (np.inf, np.nan):
        with pytest.raises(ContractError, match="scores of pca: got 3 that are no finite numbers"):
            calibrated(np.r_[np.arange(500.0), np.full(3, broken)])


def test_pieces_of_files_give_what_all_rows_at_once_give(built: Path) -> None:
    raw, split = built / "data/raw", read_table(built / "data/status/split.parquet")
    detectors, bins = load_detectors(built, NAMES, "cpu"), load_fleet_spec(raw / "fleet.yaml").bins
    column = condition_column(detectors)
    healthy, tune = has_role(split, Role.CALIBRATION), has_role(split, Role.TUNE)
    whole, before = (load_rows(raw, split, chosen, bins, column) for chosen in (healthy, tune))
    pieces = list(spectra_pieces(raw, split, healthy, bins, piece_rows=300))
    assert len(pieces) > 3
    assert max(len(part) for _, part in pieces) < 300 + len(whole) / 4
    np.testing.assert_array_equal(np.concatenate([part for _, part in pieces]), whole.spectra)
    streamed = measure(detectors, rows_without_spectra(raw, split, healthy, column), pieces)
    assert streamed.rows.spectra.size == 0
    of_tune = measure(detectors, rows_without_spectra(raw, split, tune, column), spectra_pieces(raw, split, tune, bins))
    found = calibrate_measured(streamed, of_tune, PARAMS)
    at_once = calibrate(detectors, whole, before, PARAMS)
    assert found.to_json() == at_once.to_json()
    for name in NAMES:
        np.testing.assert_array_equal(found.healthy.scores[name], at_once.healthy.scores[name])
        here, there = found.tails.table(name), at_once.tails.table(name)
        np.testing.assert_array_equal(here.scale.fleet_from, there.scale.fleet_from)
        np.testing.assert_array_equal(here.scale.level, there.scale.level)
        assert here.tail == there.tail
    tables, figures = load_calibration(built / "data/calibration", NAMES)
    for name in NAMES:
        page = figures["detectors"][name]["page"]
        if page["basis"] != "rows" and tables.table(name).tail is not None:
            assert tables.table(name).tail.score_at(5e-4) == pytest.approx(page["threshold"])
