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
from pipeline.facts import History, newest_of_the_fleet, spectrum_facts
from pipeline.params import ValidateParams
from pipeline.schema import VALIDATE_SCHEMA, spectra_column, spectra_schema, time_column
from pipeline.store import write_table
from pipeline.validate import EXPECTATIONS, Rule, Validator, load_rules, validate

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
    hours = np.r_[np.arange(20), np.arange(20)].astype(float)
    hours[17] = hours[16]
    first = day_table(values, hours, ["a"] * 20 + ["b"] * 20)
    second = day_table(spectra(40, 1), hours + 24, ["a"] * 20 + ["b"] * 20)
    return data_set(tmp_path, [first, second])


def reasons_of(table: pa.Table) -> dict[tuple[str, int], str]:
    rows = zip(*(table[name].to_pylist() for name in ("file", "row", "reason")), strict=True)
    return {(file[:10], row): reason for file, row, reason in rows if reason}


def test_each_fault_is_quarantined_with_its_reason(broken_set):
    result = validate(broken_set, ValidateParams())
    assert result.table.schema.equals(VALIDATE_SCHEMA)
    day = "2025-01-01"
    assert reasons_of(result.table) == {
        (day, 3): "nonfinite",
        (day, 4): "nonfinite",
        (day, 5): "negative",
        (day, 6): "flat",
        (day, 7): "flat",
        (day, 8): "energy",
        (day, 13): "stuck",
        (day, 14): "stuck",
        (day, 17): "duplicate",
        ("2025-01-02", 17): "duplicate",
    }
    statuses = result.table["status"].to_pylist()
    assert [status == "quarantined" for status in statuses] == [bool(r) for r in result.table["reason"].to_pylist()]
    assert result.metrics["rows"] == 80
    assert result.metrics["quarantined"] == 10
    assert result.metrics["by_reason"]["flat"] == 2
    assert result.metrics["by_machine"] == {"a": 10}
    assert result.table["row"].to_pylist() == [*range(40), *range(40)]
    assert result.table["energy"][3].as_py() is None
    assert result.table["seconds_since_previous"].null_count == 2
    assert result.table["seconds_since_previous"][40].as_py() == 5 * 3600


def test_chunks_and_files_change_nothing(broken_set):
    whole = validate(broken_set, ValidateParams())
    chunked = validate(broken_set, ValidateParams(), rows_per_validation=40)
    assert whole.table.to_pylist() == chunked.table.to_pylist()
    assert whole.summary == chunked.summary
    text = json.dumps(whole.summary, allow_nan=False)
    assert text == json.dumps(validate(broken_set, ValidateParams()).summary)
    assert {rule["reason"]: rule["unexpected_count"] for rule in whole.summary["expectations"]}["stuck"] == 2


def test_a_rule_added_to_the_file_quarantines_other_rows(broken_set, tmp_path):
    before = reasons_of(validate(broken_set, ValidateParams()).table)
    entries = json.loads(EXPECTATIONS.read_text())
    entries.append(
        {
            "type": "expect_column_values_to_be_in_set",
            "kwargs": {"column": "machine_id", "value_set": ["a"]},
            "severity": "critical",
            "meta": {"reason": "stranger"},
        }
    )
    (tmp_path / "more.json").write_text(json.dumps(entries))
    result = validate(broken_set, ValidateParams(max_quarantined_share=0.9), rules=load_rules(tmp_path / "more.json"))
    after = reasons_of(result.table)
    added = {key for key in after if key not in before}
    assert added == {(day, row) for day in ("2025-01-01", "2025-01-02") for row in range(20, 40)}
    assert {after[key] for key in added} == {"stranger"}
    assert {key: after[key] for key in before} == before


def test_a_rule_taken_from_the_suite_frees_its_rows(broken_set):
    rules = [rule for rule in load_rules() if rule.reason != "flat"]
    assert "flat" not in set(reasons_of(validate(broken_set, ValidateParams(), rules=rules).table).values())


def test_parameters_reach_the_suite_and_reasons_join(broken_set):
    params = ValidateParams(stuck_repeats=1, max_energy=1e-3, max_quarantined_share=1.0)
    found = reasons_of(validate(broken_set, params).table)
    assert found[("2025-01-01", 11)] == "energy+stuck"
    assert found[("2025-01-01", 17)] == "energy+duplicate"


def test_features_may_be_negative(tmp_path):
    values = np.random.default_rng(0).normal(size=(20, BINS)).astype(np.float32)
    table = day_table(values, np.arange(20.0), ["a"] * 20)
    folder = data_set(tmp_path, [table], "kind: features\nbins: 8\n")
    assert validate(folder, ValidateParams()).metrics["quarantined"] == 0


def test_a_warning_counts_and_quarantines_nothing(tmp_path):
    values = spectra(20)
    values[4] = np.eye(BINS, dtype=np.float32)[3] * 50 + 1e-3
    folder = data_set(tmp_path, [day_table(values, np.arange(20.0), ["a"] * 20)])
    metrics = validate(folder, ValidateParams()).metrics
    assert metrics["quarantined"] == 0
    assert metrics["warnings"] == {"single_line": 1}


def test_a_wrong_clock_is_quarantined(tmp_path):
    hours = np.r_[np.arange(100.0), np.arange(99.0), 9000.0, np.arange(100.0)]
    table = day_table(spectra(300), hours, ["a"] * 100 + ["b"] * 100 + ["c"] * 100)
    assert reasons_of(validate(data_set(tmp_path, [table]), ValidateParams()).table) == {("2025-01-01", 199): "future"}


def test_too_many_bad_rows_stop_the_build(broken_set):
    with pytest.raises(ContractError, match=r"quarantined rows: got 10 of 80 rows \(duplicate 2, energy 1, flat 2"):
        validate(broken_set, ValidateParams(max_quarantined_share=0.1))


def test_no_rows_are_refused(tmp_path):
    table = day_table(spectra(0), np.empty(0), [])
    with pytest.raises(ContractError, match="no_rows"):
        validate(data_set(tmp_path, [table]), ValidateParams())


def test_wrong_number_of_bins_is_refused(tmp_path):
    folder = data_set(tmp_path, [day_table(spectra(4), np.arange(4.0), ["a"] * 4)], "bins: 16\n")
    with pytest.raises(ContractError, match="type of spectrum"):
        validate(folder, ValidateParams())


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({"type": "expect_wonders", "kwargs": {}}, ContractError, "expect_wonders not found"),
        ({"type": "expect_column_values_to_be_between", "kwargs": {"colum": "x"}}, ContractError, "expectation: got"),
        ({"kwargs": {}}, ContractError, "expected type, kwargs"),
        ({"type": "expect_x", "kwargs": {}, "severity": "fatal"}, ContractError, "severity: got fatal"),
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
        validate(broken_set, ValidateParams(), rules=[Rule.of(entry, "test")])


def test_facts_of_the_stream_do_not_depend_on_its_cut():
    values = spectra(60)
    values[20:26] = values[20]
    values[40] = values[39]
    machine = np.repeat([0, 1, 2], 20)
    names, times = ["a", "b", "c"], np.tile(np.arange(20) * 1_000_000, 3)
    whole = History().facts(machine, names, times, values)
    assert whole["repeats"][20:27].tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert whole["repeats"][40] == 0  # another machine
    for cut in (21, 23, 26, 40):
        history = History()
        parts = [
            history.facts(machine[part], names, times[part], values[part]) for part in (slice(cut), slice(cut, None))
        ]
        for name, expected in whole.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), expected)


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


def test_great_expectations_is_silent(tmp_path):
    code = (
        "import os, numpy as np, pandas as pd\n"
        "from pipeline.validate import Validator, load_rules\n"
        "from pipeline.schema import FleetSpec\n"
        "from pipeline.params import ValidateParams\n"
        "frame = pd.DataFrame({n: np.ones(3) for n in ('nonfinite','negative','energy','relative_range','repeats',"
        "'seconds_since_previous','hours_ahead','top_share')} | {'machine_id': list('abc'), 'timestamp': 0})\n"
        "codes, reasons = Validator(load_rules(), FleetSpec(), ValidateParams()).reasons(frame)\n"
        "assert (codes > 0).all() and reasons[codes[0]] == 'nonfinite+negative', reasons\n"
        "assert os.environ['GX_ANALYTICS_ENABLED'] == 'false'\n"
    )
    done = subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert Validator
