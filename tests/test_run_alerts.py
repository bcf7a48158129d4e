"""What a scoring run tells of its alerts: rows, peaks, agreement, bands, and the fault frequencies near them."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipeline.alert_details import NOT_A_DIAGNOSIS, frequencies_within
from pipeline.alerts import Timeline
from pipeline.policy_state import page_episodes
from pipeline.release import Release, load_release
from pipeline.run_alerts import DayScores, run_alerts
from pipeline.schema import BearingSpec, FleetSpec, codes_and_names, times_us
from pipeline.score import score_data_set
from pipeline.store import read_table

HOUR = 3_600_000_000
BEARING = BearingSpec(rolling_elements=9, diameter_ratio=0.2, contact_degrees=0, speed_rpm=1800)


@pytest.fixture(scope="module")
def release(built: Path) -> Release:
    """The release, with a policy and thresholds that do raise alerts, and bearings."""
    found = load_release(built / "data/release")
    name = found.detector
    loud = {
        tier: found.calibration["detectors"][name][tier] | {"threshold": at}
        for tier, at in (("low", 0.9), ("page", 1.8))
    }
    detectors = found.calibration["detectors"] | {name: found.calibration["detectors"][name] | loud}
    fleet = found.fleet.model_copy(update={"bearings": {"*": BEARING}})
    return replace(found, calibration=found.calibration | {"detectors": detectors}, fleet=fleet)


@pytest.fixture(scope="module")
def log(built: Path, release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    score_data_set(release, built / "data/raw", folder)
    return folder


def test_every_page_of_the_policy_is_told_with_its_rows(release: Release, log: Path) -> None:
    alerts = json.loads((log / "_alerts.json").read_text())
    table = pa.concat_tables([read_table(path) for path in sorted(log.glob("*.parquet"))]).unify_dictionaries()
    machine, names = codes_and_names(table["machine_id"])
    tier = np.array(table["tier"].to_pylist())
    told = np.array([value is not None for value in table[f"tail_{release.detector}"].to_pylist()])
    line = Timeline.of(machine[told], times_us(table["timestamp"])[told], release.policy)
    pages = page_episodes(line, (tier != "none")[told], (tier == "page")[told])
    paged = [alert for alert in alerts if alert["paged"]]
    assert len(paged) == len(pages) > 3
    assert {alert["machine_id"] for alert in paged} == {names[code] for code in pages.machine}
    rows = {(row["file"], row["row"]): row for row in table.to_pylist()}
    assert [alert["opened"] for alert in alerts] == sorted(alert["opened"] for alert in alerts)
    for alert in (alert for alert in alerts if alert["cause"] == "vibration"):
        first = rows[alert["first_row"]["file"], alert["first_row"]["row"]]
        peak = rows[alert["peak"]["file"], alert["peak"]["row"]]
        assert (first["machine_id"], peak["machine_id"]) == (alert["machine_id"], alert["machine_id"])
        assert f"{first['timestamp']:%Y-%m-%dT%H:%M:%SZ}" == alert["opened"]
        assert peak[f"tail_{release.detector}"] == alert["peak"]["tail_probability"]
        assert [one["bin"] for one in alert["top_bins"]] == peak["top_bins"]
        agreed = {name for name in release.tails.names if peak[f"tail_{name}"] <= release.page_rate}
        assert set(alert["agreed"]) == agreed
        assert alert["note"] == NOT_A_DIAGNOSIS
        assert alert["tier"] == ("page" if alert["paged"] else "low")
    assert any("Hz)" in near for alert in paged for one in alert["top_bins"] for near in one["near"])


def test_a_machine_that_falls_silent_has_an_alert_unless_it_is_off(release: Release, tmp_path: Path) -> None:
    policy = release.calibration["policy"] | {"no_data_us": 6 * HOUR}
    patient = replace(release, calibration=release.calibration | {"policy": policy})
    start = int(dt.datetime(2025, 3, 1, tzinfo=dt.UTC).timestamp() * 1e6)
    time_us = start + np.r_[np.arange(20), np.arange(10), np.arange(10)] * HOUR
    machine = np.repeat([0, 1, 2], [20, 10, 10])
    quiet, scored = np.zeros(40, np.int8), np.zeros(40)
    scored[25:30] = np.nan  # rows of the second machine that nothing could score
    day = DayScores("2025-03-01.parquet", np.arange(40), machine, ["a", "b", "c"], time_us, quiet, scored)
    moments = [dt.datetime.fromtimestamp((start + hours * HOUR) / 1e6, tz=dt.UTC) for hours in (8, 40)]
    off = pa.table({"machine_id": ["c"], "tag": ["off"], "start": [moments[0]], "end": [moments[1]]})
    found = run_alerts(
        patient, tmp_path, [day], off.set_column(2, "start", off["start"].cast(pa.timestamp("us", "UTC")))
    )
    assert [(alert["machine_id"], alert["cause"], alert["tier"], alert["closed"]) for alert in found] == [
        ("b", "no_data", None, None)
    ]
    assert found[0]["opened"] == "2025-03-01T10:00:00Z", "six hours after the last row that could be scored"
    assert found[0]["peak"] is None
    assert run_alerts(patient, tmp_path, [], None) == []


def test_a_clock_that_jumps_ahead_makes_no_machine_silent(release: Release, tmp_path: Path) -> None:
    policy = release.calibration["policy"] | {"no_data_us": 6 * HOUR}
    patient = replace(release, calibration=release.calibration | {"policy": policy})
    start = int(dt.datetime(2025, 3, 1, tzinfo=dt.UTC).timestamp() * 1e6)
    machine, time_us = np.repeat([0, 1, 2], 50), start + np.tile(np.arange(50), 3) * HOUR
    time_us[-1] += 365 * 24 * HOUR
    quiet, tier = np.zeros(150), np.zeros(150, np.int8)
    tier[-1] = 2
    day = DayScores("2025-03-01.parquet", np.arange(150), machine, ["a", "b", "c"], time_us, tier, quiet)
    assert run_alerts(patient, tmp_path, [day], None) == []
    time_us[-10:] += 365 * 24 * HOUR  # a tenth of all rows is no jump of one clock
    told = run_alerts(patient, tmp_path, [replace(day, tier=np.zeros(150, np.int8))], None)
    assert {alert["machine_id"] for alert in told} == {"a", "b", "c"}


def test_fault_frequencies_of_a_bearing() -> None:
    # SKF 6205-like: 9 balls, shaft 30 Hz
    assert frequencies_within(29, 31, BEARING) == ["shaft (30 Hz)"]
    assert frequencies_within(321, 325, BEARING) == ["3 x BPFO (324 Hz)", "2 x BPFI (324 Hz)"]
    assert frequencies_within(5000, 6000, BEARING) == []


def test_bands_and_bearings_of_fleet_yaml() -> None:
    fleet = FleetSpec(bins=4, band_edges_hz=(0, 100, 200), axes=("x", "y"), bearings={"pump 7": BEARING})
    assert fleet.band_hz(3) == (100, 200)
    assert (fleet.bearing_of("pump 7"), fleet.bearing_of("fan 2")) == (BEARING, None)
    assert FleetSpec(bins=2).band_hz(0) is None
    with pytest.raises(ValidationError, match="diameter_ratio"):
        FleetSpec.model_validate(
            {"bins": 2, "bearings": {"*": {"rolling_elements": 9, "diameter_ratio": 2, "speed_rpm": 9}}}
        )
