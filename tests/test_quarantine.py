"""Giving rows back from quarantine by the file of releases, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from quarantined_plant import EVERYTHING, built, write_plant

from pipeline.errors import ContractError
from pipeline.ingest import ingest
from pipeline.params import IngestParams, ValidateParams
from pipeline.quarantine import RELEASES
from pipeline.store import write_table
from pipeline.validate import validate

HEAD = "machine_id,start,end,reason,note,by,at\n"


@pytest.fixture
def plant(tmp_path: Path) -> Path:
    return write_plant(tmp_path / "plant")


def test_a_line_of_the_file_gives_rows_back_and_taking_it_out_takes_them(plant):
    assert built(plant) == EVERYTHING
    (plant / RELEASES).write_text(HEAD + "a,2025-01-01T00:00:00Z,2025-01-01T05:30:00Z,energy,new sensor,me,\n")
    left = {key: value for key, value in EVERYTHING.items() if key != ("a", 5)}
    assert built(plant) == left
    assert built(plant) == left
    (plant / RELEASES).unlink()
    assert built(plant) == EVERYTHING
    assert not (plant.parent / "data/raw" / RELEASES).exists()


def test_any_reason_gives_back_all_but_what_is_no_number(plant):
    (plant / RELEASES).write_text(HEAD + ",2025-01-01,2025-01-02,,,,\n")
    assert built(plant) == {("a", 6): EVERYTHING["a", 6]}


def test_a_release_that_meets_nothing_is_said(plant):
    (plant / RELEASES).write_text(HEAD + "b,2025-01-01,2025-01-02,flatt,,,\n")
    ingest(plant, plant.parent / "data/raw", IngestParams(), horizon_hours=1, tune_share=0.5)
    result = validate(plant.parent / "data/raw", plant.parent / "status.parquet", ValidateParams())
    notes = " ".join(result.metrics["notes"])
    assert "name 1 machine without spectra: b." in notes
    assert "name 1 reason that no rule has: flatt." in notes
    assert result.metrics["given_back"] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("machine_id,start\n", "no end, no reason"),
        (HEAD + "a,2025-01-02,2025-01-01,,,,\n", r"time before start.*line 2"),
        (HEAD + "a,2025-01-01,2025-01-02,,,,\na,soon,2025-01-01,,,,\n", r"'soon'.*line 3"),
        (HEAD + "a,2025-01-01,2025-01-02,nonfinite,,,\n", r"reason: got 'nonfinite'.*cannot be scored.*line 2"),
        (HEAD + "a,2025-01-01,2025-01-02,negative,,,\n", "cannot be scored"),
        ("", "got an empty file"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_is_built(plant, text, message):
    (plant / RELEASES).write_text(text)
    with pytest.raises(ContractError, match=message):
        ingest(plant, plant.parent / "data/raw", IngestParams(), horizon_hours=1, tune_share=0.5)
    assert not (plant.parent / "data/raw/snapshot.json").exists()


def test_ingest_carries_releases_and_takes_away_what_the_source_no_longer_has(tmp_path: Path) -> None:
    source, out, params = tmp_path / "in", tmp_path / "raw", IngestParams(timezone="UTC")
    times = pa.array([0, 10_000_000], pa.int64()).cast(pa.timestamp("us"))
    table = pa.table({"machine_id": ["pump", "pump"], "timestamp": times, "bin_0": [1.0, 2.0], "bin_1": [1.0, 2.0]})
    write_table(source / "a.parquet", table)
    given = source / RELEASES
    given.write_text("machine_id,start,end,reason\n,1970-01-01,1970-01-02,flat\n")
    ingest(source, out, params, horizon_hours=1.0, tune_share=0.0)
    assert (out / RELEASES).read_text() == given.read_text()
    given.unlink()
    ingest(source, out, params, horizon_hours=1.0, tune_share=0.0)
    assert not (out / RELEASES).exists()
