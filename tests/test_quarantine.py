"""Giving rows back from quarantine: by the file, by the command line, and what is refused."""

from __future__ import annotations

import datetime as dt
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from flows import cli
from pipeline.errors import ContractError, UserError
from pipeline.ingest import ingest
from pipeline.params import IngestParams, ValidateParams
from pipeline.quarantine import RELEASES, Release, add_release, read_releases, set_aside
from pipeline.schema import spectra_column, spectra_schema, time_column
from pipeline.store import read_table, write_table
from pipeline.validate import validate

START = 1_735_689_600_000_000  # 2025-01-01
HOUR = 3_600_000_000
NASTY = "[red]../x"
AT = dt.datetime(2025, 2, 1, tzinfo=dt.UTC)
HEAD = "machine_id,start,end,reason,note,by,at\n"


@pytest.fixture
def plant(tmp_path: Path) -> Path:
    """A plant's folder: machine `a` is too loud for three hours, and for one of them no number; NASTY is flat once."""
    values = np.random.default_rng(0).lognormal(size=(48, 8)).astype(np.float32)
    values[5:8] *= 1e8
    values[6, 2] = np.nan
    values[30] = 1.0
    times = START + np.tile(np.arange(24), 2) * HOUR
    columns = {"machine_id": ["a"] * 24 + [NASTY] * 24, "timestamp": time_column(times)}
    table = pa.table(columns | {"spectrum": spectra_column(values)}).cast(spectra_schema(8))
    write_table(tmp_path / "plant/spectra/2025-01-01.parquet", table)
    (tmp_path / "plant/fleet.yaml").write_text("bins: 8\n")
    return tmp_path / "plant"


def built(plant: Path) -> dict[tuple[str, int], tuple[str, str]]:
    """Ingest and validate; status and reason of what is set aside, by machine and hour."""
    root = plant.parent
    ingest(plant, root / "data/raw", IngestParams(), horizon_hours=1, tune_share=0.5)
    validate(root / "data/raw", root / "data/status/validate.parquet", ValidateParams())
    table = read_table(root / "data/status/validate.parquet").to_pandas()
    aside = table[table.status != "ok"]
    hours = [time.hour for time in aside.timestamp]
    return dict(
        zip(zip(aside.machine_id, hours, strict=True), zip(aside.status, aside.reason, strict=True), strict=True)
    )


EVERYTHING = {
    ("a", 5): ("quarantined", "energy"),
    ("a", 6): ("quarantined", "nonfinite"),
    ("a", 7): ("quarantined", "energy"),
    (NASTY, 6): ("suspect", "flat"),
}


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


def test_rows_of_one_reason_and_machine_are_intervals(plant):
    built(plant)
    found = set_aside(plant.parent / "data/status/validate.parquet")
    assert [(item.machine_id, item.reason, item.rows) for item in found] == [
        (NASTY, "flat", 1),
        ("a", "energy", 2),
        ("a", "nonfinite", 1),
    ]
    assert (found[1].start_us, found[1].end_us) == (START + 5 * HOUR, START + 7 * HOUR)
    assert set_aside(plant.parent / "data/status/validate.parquet", machine="b") == []
    assert len(set_aside(plant.parent / "data/status/validate.parquet", reason="flat")) == 1


def release(plant: Path, **given):
    wanted = {"machine": None, "reason": None, "start": None, "end": None, "note": "", "by": "me", "at": AT} | given
    return add_release(plant, plant.parent / "data/status/validate.parquet", **wanted)


def test_a_release_is_written_once(plant):
    built(plant)
    first = release(plant, machine="a")
    assert (first.rows, first.refused, first.added) == (2, 1, True)
    text = (plant / RELEASES).read_text()
    assert not release(plant, machine="a").added
    assert (plant / RELEASES).read_text() == text
    assert read_releases(plant) == [Release("a", START + 5 * HOUR, START + 7 * HOUR, "", "", "me", AT.isoformat())]
    left = {key: value for key, value in EVERYTHING.items() if key not in (("a", 5), ("a", 7))}
    assert built(plant) == left
    release(plant, reason="flat", note='a, "quoted" note')
    assert [given.note for given in read_releases(plant)] == ["", 'a, "quoted" note']
    assert built(plant) == {("a", 6): EVERYTHING["a", 6]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "got nothing"),
        ({"machine": "b"}, "no row that is set aside"),
        ({"reason": "nonfinite"}, "no numbers or negative"),
        ({"machine": "a", "start": dt.datetime(2025, 1, 2, tzinfo=dt.UTC)}, "end before the start"),
    ],
)
def test_what_cannot_be_released_is_said(plant, given, message):
    built(plant)
    with pytest.raises(UserError, match=message):
        release(plant, **given)
    assert not (plant / RELEASES).exists()


def test_a_simulated_set_or_a_file_takes_no_releases(plant, monkeypatch):
    built(plant)
    monkeypatch.chdir(plant.parent)
    (plant.parent / "data/demo").mkdir()
    for source in (Path("data/demo"), plant / "fleet.yaml"):
        with pytest.raises(UserError, match="release: got"):
            add_release(
                source,
                Path("data/status/validate.parquet"),
                machine="a",
                reason=None,
                start=None,
                end=None,
                note="",
                by="",
                at=AT,
            )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("machine_id,start\n", "no end, reason"),
        (HEAD + "a,2025-01-02,2025-01-01,,,,\n", r"time before start.*line 2"),
        (HEAD + "a,2025-01-01,2025-01-02,,,,\na,soon,2025-01-01,,,,\n", r"'soon'.*line 3"),
        (HEAD + "a,2025-01-01,2025-01-02,nonfinite,,,\n", "cannot be scored"),
        (HEAD + "a,2025-01-01,2025-01-02,negative,,,\n", "cannot be scored"),
        ("", "a CSV file"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_is_built(plant, text, message):
    (plant / RELEASES).write_text(text)
    with pytest.raises(ContractError, match=message):
        ingest(plant, plant.parent / "data/raw", IngestParams(), horizon_hours=1, tune_share=0.5)
    assert not (plant.parent / "data/raw/snapshot.json").exists()


def test_the_command_line_lists_and_gives_back(plant, monkeypatch, capsys):
    built(plant)
    monkeypatch.chdir(plant.parent)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["hearken", "quarantine", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return f"{ended.value.code} {printed.out}{printed.err}"

    listed = run("list")
    assert listed.startswith("0")
    assert NASTY in listed
    assert "4 rows in 3 intervals" in listed
    assert "energy" not in run("list", "--reason", "flat")
    assert "no row is set aside" in run("list", "--machine", "nobody")
    given = run("release", "--machine", NASTY, "--note", "a test", "--by", "me", "--source", "plant")
    assert given.startswith("0 the next build gives 1 rows back: plant/quarantine_releases.csv")
    assert "already" in run("release", "--machine", NASTY, "--note", "again", "--source", "plant")
    assert run("release", "--reason", "nonfinite", "--source", "plant").startswith("2 error: release: got 1 rows")
    shutil.rmtree("data/status")
    assert run("list").startswith("2 error: Parquet: got no file")


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
