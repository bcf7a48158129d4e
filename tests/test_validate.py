"""Facts, the suite, and quarantine from the failing rows of its result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ContractError, HearkenError
from pipeline.expectations import EXPECTATIONS, Rule, load_rules
from pipeline.facts import History, Links, facts_and_log_sums, newest_of_files, newest_of_the_fleet, spectrum_facts
from pipeline.params import ValidateParams
from pipeline.schema import MAINTENANCE_SCHEMA, VALIDATE_SCHEMA, spectra_column, spectra_schema, time_column
from pipeline.store import read_table, write_table
from pipeline.validate import ValidateResult, validate

BINS = 8
HOUR = 3_600_000_000
START = 1_735_689_600_000_000  # 2025-01-01


def spectra(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(size=(rows, BINS)).astype(np.float32)


def day_table(values: np.ndarray, hours: np.ndarray, machines: list[str]) -> pa.Table:
    return pa.table(
        {
            "machine_id": pa.array(machines),
            "timestamp": time_column(START + (hours * HOUR).astype(np.int64)),
            "spectrum": spectra_column(values),
        }
    ).cast(spectra_schema(BINS))


def data_set(folder: Path, tables: list[pa.Table], fleet: str = "kind: spectrum\nbins: 8\n") -> Path:
    for number, table in enumerate(tables):
        write_table(folder / "spectra" / f"2025-01-{number + 1:02d}.parquet", table)
    (folder / "fleet.yaml").write_text(fleet)
    return folder


def checked(folder: Path, params: ValidateParams | None = None, **options) -> tuple[ValidateResult, pa.Table]:
    """The result, and the status table that was written."""
    result = validate(folder, folder / "status.parquet", params or ValidateParams(), **options)
    return result, read_table(folder / "status.parquet", schema=VALIDATE_SCHEMA)


@pytest.fixture
def broken_set(tmp_path: Path) -> Path:
    """Two machines, two days of 20 rows each; one row of each kind of fault, on machine `a` of day one."""
    values = spectra(40)
    values[3, 2] = np.nan
    values[4, 0] = np.inf
    values[5, 1] = -0.5
    values[6] = 0.0
    values[7] = 2.0
    values[8] *= 1e8
    values[10:15] = values[10]
    values[15, [1, 3, 6]] = 50.0
    hours = np.r_[np.arange(20), np.arange(20)].astype(float)
    hours[17] = hours[16]
    first = day_table(values, hours, ["a"] * 20 + ["b"] * 20)
    second = day_table(spectra(40, 1), hours + 24, ["a"] * 20 + ["b"] * 20)
    return data_set(tmp_path, [first, second])


def reasons_of(table: pa.Table) -> dict[tuple[str, int], str]:
    rows = zip(*(table[name].to_pylist() for name in ("file", "row", "reason")), strict=True)
    return {(file[:10], row): reason for file, row, reason in rows if reason}


def test_each_fault_is_quarantined_with_its_reason(broken_set):
    result, table = checked(broken_set)
    day = "2025-01-01"
    assert reasons_of(table) == {
        (day, 3): "nonfinite",
        (day, 4): "nonfinite",
        (day, 5): "negative",
        (day, 6): "flat",
        (day, 7): "flat",
        (day, 8): "energy",
        (day, 13): "stuck",
        (day, 14): "stuck",
        (day, 15): "saturated",
        (day, 17): "duplicate",
        ("2025-01-02", 17): "duplicate",
    }
    status = dict(zip(reasons_of(table), (s for s in table["status"].to_pylist() if s != "ok"), strict=True))
    # what a sensor shows may be the failure itself; what is no number, time or unit is nothing
    suspect = {key for key, reason in reasons_of(table).items() if reason in ("flat", "stuck", "saturated")}
    assert status == {key: "suspect" if key in suspect else "quarantined" for key in status}
    assert result.metrics["rows"] == 80
    assert (result.metrics["quarantined"], result.metrics["suspect"]) == (6, 5)
    assert result.metrics["by_reason"] == {"duplicate": 2, "energy": 1, "negative": 1, "nonfinite": 2}
    assert result.metrics["suspect_by_reason"] == {"flat": 2, "saturated": 1, "stuck": 2}
    assert result.metrics["by_machine"] == {"a": 11}
    assert table["row"].to_pylist() == [*range(40), *range(40)]
    assert table["energy"][3].as_py() is None
    assert table["clipped"][15].as_py() == 3
    assert table["seconds_since_previous"].null_count == 2
    assert table["seconds_since_previous"][40].as_py() == 5 * 3600


def test_chunks_and_files_change_nothing(broken_set):
    whole, table = checked(broken_set)
    chunked, same = checked(broken_set, rows_per_validation=40)
    assert table.to_pylist() == same.to_pylist()
    assert whole.summary == chunked.summary
    assert json.dumps(whole.summary, allow_nan=False) == json.dumps(checked(broken_set)[0].summary)


def test_great_expectations_counts_what_the_facts_say(broken_set):
    result, table = checked(broken_set)
    counted = {rule["reason"]: rule["unexpected_count"] for rule in result.summary["expectations"]["rows"]}
    frame = table.to_pandas()
    masks = {
        "nonfinite": frame.nonfinite > 0,
        "negative": frame.negative > 0,
        "energy": frame.energy > 1e6,
        "duplicate": frame.seconds_since_previous == 0,
        "unordered": frame.seconds_since_previous < 0,
        "flat": frame.relative_range <= 1e-6,
        "silent": frame.energy < 0,
        "stuck": frame.repeats >= 3,
        "saturated": frame.clipped >= 3,
        "single_line": frame.top_share > 0.95,
    }
    assert {reason: int(mask.sum()) for reason, mask in masks.items()} == {name: counted[name] for name in masks}
    assert set(counted) - set(masks) == {"no_rows", "columns", "future"}


def test_a_rule_added_to_the_file_quarantines_other_rows(broken_set, tmp_path):
    before = reasons_of(checked(broken_set)[1])
    entries = json.loads(EXPECTATIONS.read_text())
    entries["rows"].append(
        {
            "type": "expect_column_values_to_be_in_set",
            "kwargs": {"column": "machine_id", "value_set": ["a"]},
            "severity": "critical",
            "meta": {"reason": "stranger"},
        }
    )
    (tmp_path / "more.json").write_text(json.dumps(entries))
    rules = load_rules(tmp_path / "more.json")
    after = reasons_of(checked(broken_set, ValidateParams(max_quarantined_share=0.9), rules=rules)[1])
    added = {key for key in after if key not in before}
    assert added == {(day, row) for day in ("2025-01-01", "2025-01-02") for row in range(20, 40)}
    assert {after[key] for key in added} == {"stranger"}
    assert {key: after[key] for key in before} == before


def test_a_rule_taken_from_the_suite_frees_its_rows(broken_set):
    rules = load_rules()
    rules["rows"] = [rule for rule in rules["rows"] if rule.reason != "flat"]
    assert "flat" not in set(reasons_of(checked(broken_set, rules=rules)[1]).values())


def test_parameters_reach_the_suite_and_reasons_join(broken_set):
    params = ValidateParams(stuck_repeats=1, max_energy=1e-3, max_quarantined_share=1.0)
    with pytest.raises(ContractError, match=r"rows to learn from: got none of 80 rows: all are .*energy 77"):
        checked(broken_set, params)
    found = reasons_of(read_table(broken_set / "status.parquet"))  # stands, so that people can look
    assert found[("2025-01-01", 11)] == "energy+stuck"
    assert found[("2025-01-01", 17)] == "energy+duplicate"


def test_features_may_be_negative(tmp_path):
    values = np.random.default_rng(0).normal(size=(20, BINS)).astype(np.float32)
    table = day_table(values, np.arange(20.0), ["a"] * 20)
    folder = data_set(tmp_path, [table], "kind: features\nbins: 8\n")
    assert checked(folder)[0].metrics["quarantined"] == 0


def test_a_warning_counts_and_quarantines_nothing(tmp_path):
    values = spectra(20)
    values[4] = np.eye(BINS, dtype=np.float32)[3] * 50 + 1e-3
    folder = data_set(tmp_path, [day_table(values, np.arange(20.0), ["a"] * 20)])
    metrics = checked(folder)[0].metrics
    assert metrics["quarantined"] == 0
    assert metrics["warnings"] == {"single_line": 1}


def test_a_wrong_clock_is_quarantined(tmp_path):
    hours = np.r_[np.arange(100.0), np.arange(99.0), 9000.0, np.arange(100.0)]
    table = day_table(spectra(300), hours, ["a"] * 100 + ["b"] * 100 + ["c"] * 100)
    result, table = checked(data_set(tmp_path, [table]))
    assert reasons_of(table) == {("2025-01-01", 199): "future"}
    assert result.metrics["last"].startswith("2025-01-05")  # the set does not end where the wrong clock says
    assert result.days.num_rows == 15  # the row of the wrong clock is no day of its machine


def test_too_many_bad_rows_stop_the_build(broken_set):
    with pytest.raises(ContractError, match=r"quarantined rows: got 6 of 80 rows \(duplicate 2, energy 1, flat 2"):
        checked(broken_set, ValidateParams(max_quarantined_share=0.05))


def test_no_rows_are_refused(tmp_path):
    table = day_table(spectra(0), np.empty(0), [])
    with pytest.raises(ContractError, match="no_rows"):
        checked(data_set(tmp_path, [table]))


def test_wrong_number_of_bins_is_refused(tmp_path):
    folder = data_set(tmp_path, [day_table(spectra(4), np.arange(4.0), ["a"] * 4)], "bins: 16\n")
    with pytest.raises(ContractError, match="type of spectrum"):
        checked(folder)


def test_an_unordered_file_is_said(tmp_path):
    hours = np.r_[np.arange(10.0), 5.5, np.arange(10.0, 19)]
    _, table = checked(data_set(tmp_path, [day_table(spectra(20), hours, ["a"] * 20)]))
    assert reasons_of(table) == {("2025-01-01", 10): "unordered"}


def test_the_limits_of_a_sensor_make_rows_suspect(tmp_path):
    values = np.clip(spectra(30), 0.5, 4.0)
    values[3, 2] = 9.0
    values[5] *= 1e-3
    folder = data_set(tmp_path, [day_table(values, np.arange(30.0) / 2, ["a"] * 30)])
    assert set(reasons_of(checked(folder, ValidateParams(saturated_bins=8))[1])) == set()
    found = reasons_of(checked(folder, ValidateParams(saturated_bins=8, saturation=9.0, min_energy=0.1))[1])
    assert found == {("2025-01-01", 3): "saturated", ("2025-01-01", 5): "silent"}


def test_the_set_is_told_what_it_lacks(tmp_path):
    folder = data_set(tmp_path, [day_table(spectra(40), np.tile(np.arange(20.0), 2), ["a"] * 20 + ["b"] * 20)])
    entries = {name: [None] for name in MAINTENANCE_SCHEMA.names}
    entries |= {"machine_id": ["[red]x"], "start": [START], "end": [START], "tag": ["off"]}
    write_table(folder / "maintenance.parquet", pa.table(entries).cast(MAINTENANCE_SCHEMA))
    notes = " ".join(checked(folder)[0].metrics["notes"])
    assert "names 1 machine without spectra: [red]x." in notes
    assert "less than 2 (validate.min_days)" in notes
    assert "2 machines with fewer than 100 usable rows" in notes


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({"type": "expect_wonders", "kwargs": {}}, ContractError, "expect_wonders not found"),
        ({"type": "expect_column_values_to_be_between", "kwargs": {"colum": "x"}}, ContractError, "expectation: got"),
        ({"kwargs": {}}, ContractError, "expected type, kwargs"),
        ({"type": "expect_x", "kwargs": {}, "severity": "fatal"}, ContractError, "severity: got fatal"),
        ({"type": "expect_x", "kwargs": {}, "meta": {"action": "burn"}}, ContractError, "meta.action: got burn"),
        (
            {"type": "expect_column_values_to_be_between", "kwargs": {"column": "nothing", "max_value": 1}},
            HearkenError,
            "is broken: .*nothing",
        ),
        (
            {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "energy", "max_value": 0}},
            HearkenError,
            "cannot quarantine",
        ),
    ],
)
def test_a_broken_rule_is_no_good_data(broken_set, entry, error, message):
    with pytest.raises(error, match=message):
        checked(broken_set, rules={"rows": [Rule.of(entry, "test")], "days": load_rules()["days"]})


@pytest.mark.parametrize("text", ["[]", '{"rows": []}', '{"rows": [], "days": []}', '{"rows": 1, "days": []}', "{"])
def test_a_file_that_is_no_two_suites_is_refused(tmp_path, text):
    (tmp_path / "rules.json").write_text(text)
    with pytest.raises(ContractError):
        load_rules(tmp_path / "rules.json")


def test_facts_of_the_stream_do_not_depend_on_its_cut():
    values = spectra(60)
    values[20:26] = values[20]
    values[40] = values[39]
    machine = np.repeat([0, 1, 2], 20)
    names, times = ["a", "b", "c"], np.tile(np.arange(20) * 1_000_000, 3)

    def facts_of(history: History, part: slice):
        return history.facts(machine[part], names, times[part], Links.of(machine[part], values[part]))

    whole = facts_of(History(), slice(None))
    assert whole["repeats"][20:27].tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert whole["repeats"][40] == 0  # another machine
    for cut in (21, 23, 26, 40):
        history = History()
        parts = [facts_of(history, part) for part in (slice(cut), slice(cut, None))]
        for name, expected in whole.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), expected)


def test_log_sums_do_not_depend_on_blocks_and_leave_out_what_has_no_log(monkeypatch):
    values = spectra(50)
    values[3], values[4, 1], values[5, 2] = 0, np.nan, -1
    starts = np.array([0, 7, 8, 30])
    monkeypatch.setattr("pipeline.facts.BLOCK_VALUES", 9 * BINS)
    facts, sums_RF, rows_R = facts_and_log_sums(values, starts)
    good = np.ones(50, bool)
    good[3:6] = False
    logs = np.where(good[:, None], np.log(np.where(good[:, None], values, 1)), 0)
    np.testing.assert_allclose(sums_RF, np.add.reduceat(logs, starts, axis=0), rtol=1e-4, atol=1e-4)
    assert rows_R.tolist() == [4, 1, 22, 20]
    np.testing.assert_array_equal(facts["energy"], spectrum_facts(values)["energy"])
    expected = np.where(np.isfinite(values).all(axis=1), np.linalg.norm(values, axis=1), np.nan)
    np.testing.assert_allclose(facts["energy"], expected, rtol=1e-6)


def test_facts_warn_of_nothing_and_survive_overflow():
    values = np.array([[np.nan, np.inf], [3e38, 3e38], [0, 0], [-1, 1]], np.float32)
    facts = spectrum_facts(values)
    assert facts["nonfinite"].tolist() == [2, 0, 0, 0]
    assert facts["energy"][1] == np.inf
    assert facts["relative_range"][2] == 0
    assert facts["top_share"][3] == 0.5


def test_a_shutdown_of_the_plant_is_no_wrong_clock():
    times = np.r_[np.repeat(np.arange(1000), 3), [1200] * 3] * HOUR
    machine = np.r_[np.tile([0, 1, 2], 1000), [0, 1, 2]]
    assert newest_of_the_fleet(machine, times, 24.0) == 1200 * HOUR


def test_the_newest_row_of_files_is_that_of_all_rows(tmp_path):
    hours = np.arange(200.0) / 10
    tables = [day_table(spectra(200), hours + 24 * day, ["a"] * 100 + ["b"] * 100) for day in range(3)]
    files = sorted((data_set(tmp_path, tables) / "spectra").iterdir())
    assert newest_of_files(files, 24.0) == int(START + (48 + 19.9) * HOUR)
    write_table(tmp_path / "spectra/2036-01-01.parquet", day_table(spectra(2), np.full(2, 96_000.0), ["a"] * 2))
    files = sorted((tmp_path / "spectra").iterdir())
    assert newest_of_files(files, 24.0) == int(START + (48 + 19.9) * HOUR)


def test_great_expectations_is_silent(tmp_path):
    code = (
        "import os, numpy as np, pandas as pd\n"
        "from pipeline.expectations import Suite, context, load_rules\n"
        "from pipeline.params import ValidateParams\n"
        "names = ('nonfinite','negative','energy','relative_range','repeats','seconds_since_previous','hours_ahead',\n"
        "         'top_share', 'clipped', 'peak')\n"
        "frame = pd.DataFrame({n: np.ones(3) for n in names} | {'machine_id': list('abc'), 'timestamp': 0})\n"
        "suite = Suite('rows', load_rules()['rows'], 'spectrum', ValidateParams().model_dump(), context())\n"
        "bits = suite.failures(frame)\n"
        "assert bits.tolist() == [1 << 2 | 1 << 3] * 3, bits\n"
        "assert os.environ['GX_ANALYTICS_ENABLED'] == 'false'\n"
    )
    done = subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
