"""The column that names operating conditions reaches cleaning and its gate from the settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cleaning_fleet import BINS, HOURS, ROLES, Fleet

from pipeline.clean import Cleaning, clean, main
from pipeline.cleaning.episodes import episode_vectors, select
from pipeline.cleaning.gate import judge_cleaning
from pipeline.errors import ContractError
from pipeline.params import BaselineParams, CleanParams
from pipeline.schema import FleetSpec, Role, times_us
from pipeline.store import day_files, read_json, read_table, write_table, write_text

SPEC = FleetSpec(bins=BINS)
LEVELS = "levels of the spectrum"


@pytest.fixture
def fleet() -> Fleet:
    """Two days of a fault, and judged rows: the gate has something to say."""
    fleet = Fleet()
    fleet.spectra[2, 240:288, 5] *= 2.0
    later = slice(16 * 24, HOURS)
    fleet.role_MH[:, later] = ROLES.index(Role.CALIBRATION)
    fleet.role_MH[7, later], fleet.failure_MH[7, later] = ROLES.index(Role.TUNE), 0
    fleet.spectra[7, later, 3] *= 1.3
    return fleet


def with_column(folder: Path, name: str, change=lambda column: column) -> None:
    """Give the condition column of every day file another name, and perhaps other values."""
    for path in day_files(folder):
        table = read_table(path)
        column = change(table["condition"])
        write_table(path, table.drop_columns("condition").append_column(name, column))


def cleaned(folder: Path, split: pa.Table, **baseline: str) -> Cleaning:
    return clean(folder, split, SPEC, CleanParams(), 0, BaselineParams(**baseline))


def test_the_column_may_have_any_name(fleet: Fleet, tmp_path: Path) -> None:
    split = fleet.write(tmp_path)
    expected = cleaned(tmp_path, split)
    assert expected.metrics["gate"]["figure"] == "auroc"
    with_column(tmp_path, "mode")
    found = cleaned(tmp_path, split, condition_column="mode")
    assert (expected.metrics["regimes"], found.metrics["regimes"]) == ("condition", "mode")
    assert found.table.equals(expected.table)
    assert found.metrics["gate"] == expected.metrics["gate"]
    assert cleaned(tmp_path, split).metrics["regimes"] == LEVELS  # of `condition` there is nothing now


def test_where_models_ignore_conditions_cleaning_uses_them_and_its_gate_does_not(fleet: Fleet, tmp_path: Path) -> None:
    split = fleet.write(tmp_path)
    aware, blind = (cleaned(tmp_path, split, scope=scope) for scope in ("machine+condition", "machine"))
    assert blind.metrics["regimes"] == "condition"
    assert blind.table["evidence"].equals(aware.table["evidence"])
    assert blind.metrics["gate"]["raw"] != aware.metrics["gate"]["raw"]
    for found, column in ((aware, "condition"), (blind, None)):
        removed_N = blind.table["removed"].to_numpy()
        verdict = judge_cleaning(tmp_path, split, removed_N, SPEC, CleanParams().gate_rows, 0, condition_column=column)
        assert verdict.to_json() == found.metrics["gate"]


def test_a_file_without_the_column_is_of_a_condition_of_its_own(tmp_path: Path) -> None:
    split = Fleet().write(tmp_path)
    first = day_files(tmp_path)[3]
    write_table(first, read_table(first).drop_columns("condition"))
    rows = select(split, np.ones(split.num_rows, bool), times_us(split["timestamp"]), 6.0)
    vectors = episode_vectors(tmp_path, rows, BINS, condition_column="condition", log=True, seed=0)
    assert sorted(vectors.conditions) == ["", "idle", "work"]
    of_none = vectors.condition_V == vectors.conditions.index("")
    assert set(rows.block_E[vectors.episode_V[of_none]] // 4) == {3}
    assert vectors.rows_V[of_none].sum() == 24 * len(rows.machines)


@pytest.mark.parametrize(
    ("change", "regimes"),
    [
        (lambda column: pa.array([1 if value == "idle" else 2 for value in column.to_pylist()]), "condition"),
        (lambda column: pa.array(np.arange(len(column)) * 1.5), LEVELS),  # a speed: no handful of conditions
        (lambda column: pa.nulls(len(column), pa.string()), LEVELS),
    ],
)
def test_numbers_may_name_conditions(fleet: Fleet, tmp_path: Path, change, regimes: str) -> None:
    split = fleet.write(tmp_path)
    with_column(tmp_path, "condition", change)
    assert cleaned(tmp_path, split, scope="machine").metrics["regimes"] == regimes


def test_a_column_of_lists_is_refused_and_named(fleet: Fleet, tmp_path: Path) -> None:
    split = fleet.write(tmp_path)
    with pytest.raises(ContractError, match=r"type of spectrum: got .*expected a plain value.*1970-01-01.parquet"):
        cleaned(tmp_path, split, condition_column="spectrum")


def test_the_stage_takes_it_from_the_settings(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = fleet.write(tmp_path / "data/raw")
    with_column(tmp_path / "data/raw", "mode")
    write_table(tmp_path / "data/status/split.parquet", split)
    monkeypatch.chdir(tmp_path)
    write_text("params.yaml", "seed: 1\ntrain: {baseline: {condition_column: mode}}\n")
    main()
    assert read_json("metrics/cleaning.json")["regimes"] == "mode"
