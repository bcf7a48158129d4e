"""What validation has set aside, as intervals and on the command line, and giving rows of it back."""

from __future__ import annotations

import datetime as dt
import io
import re
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from quarantined_plant import EVERYTHING, HOUR, NASTY, START, built, write_plant

from flows import cli
from pipeline.errors import ContractError, UserError
from pipeline.quarantine import RELEASES, GivenBack, read_releases
from pipeline.schema import MACHINE, VALIDATE_SCHEMA, dictionary_column, time_column
from pipeline.set_aside import JOIN_GAP_US, Proposal, Wanted, proposed, set_aside
from pipeline.store import write_tables

AT = dt.datetime(2025, 2, 1, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plant and its validated snapshot."""
    folder = tmp_path_factory.mktemp("template")
    assert built(write_plant(folder / "plant")) == EVERYTHING
    return folder


@pytest.fixture
def plant(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path / "plant"


def status_of(plant: Path) -> Path:
    return plant.parent / "data/status/validate.parquet"


def release(plant: Path, **wanted: str | int) -> Proposal:
    return proposed(plant, status_of(plant), Wanted(**wanted), by="me", at=AT)


def test_rows_of_one_reason_and_machine_are_intervals(plant: Path) -> None:
    found = set_aside(status_of(plant))
    assert [(item.machine_id, item.reason, item.rows) for item in found] == [
        (NASTY, "flat", 1),
        ("a", "energy", 2),
        ("a", "nonfinite", 1),
    ]
    assert (found[1].start_us, found[1].end_us) == (START + 5 * HOUR, START + 7 * HOUR)
    assert not any(item.returns for item in found)


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [
        (Wanted(machine="a"), 3),
        (Wanted(reason="flat"), 1),
        (Wanted(machine="a", reason="flat"), 0),
        (Wanted(start_us=START + 6 * HOUR), 3),
        (Wanted(machine="a", start_us=START + 6 * HOUR, end_us=START + 6 * HOUR), 1),
        (Wanted(end_us=START + 5 * HOUR), 1),
        (Wanted(end_us=START), 0),
    ],
)
def test_filters_count_rows_and_not_whole_intervals(plant: Path, wanted: Wanted, rows: int) -> None:
    assert sum(item.rows for item in set_aside(status_of(plant), wanted)) == rows


def test_mistyped_names_are_errors_that_name_the_nearest(plant: Path) -> None:
    with pytest.raises(UserError, match=r"reason: got 'flatt', expected flat\?"):
        set_aside(status_of(plant), Wanted(reason="flatt"))
    with pytest.raises(UserError, match=r"machine: got 'A', expected a\?"):
        set_aside(status_of(plant), Wanted(machine="A"))
    with pytest.raises(ContractError, match="got no file"):
        set_aside(plant / "none.parquet")


def status_table(machine: str, hours: np.ndarray, statuses: list[str], reasons: list[str], day: int) -> pa.Table:
    """VALIDATE_SCHEMA of one machine's rows, facts left out."""
    count = len(hours)
    columns = {
        "file": dictionary_column(np.zeros(count, np.int16), [f"{day}.parquet"]),
        "row": pa.array(np.arange(count, dtype=np.int32)),
        "machine_id": dictionary_column(np.zeros(count, np.int32), [machine], MACHINE),
        "timestamp": time_column(START + (hours * HOUR).astype(np.int64)),
        "status": pa.array(statuses).dictionary_encode(),
        "reason": pa.array(reasons).dictionary_encode(),
    }
    arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in VALIDATE_SCHEMA]
    return pa.table(arrays, names=VALIDATE_SCHEMA.names).cast(VALIDATE_SCHEMA)


def test_intervals_go_on_over_batches_and_days_and_end_at_gaps(tmp_path: Path) -> None:
    """Rows every hour for 30 days, written day by day: one interval; each row 7 hours after the other: one each."""
    gap = JOIN_GAP_US / HOUR + 1

    def tables() -> list[pa.Table]:
        found = []
        for day in range(30):
            hours = np.arange(24.0) + 24 * day
            found.append(status_table("a", hours, ["suspect"] * 24, ["stuck"] * 24, day))
            rare = np.arange(3) * gap + 24 * day
            found.append(status_table("b", rare, ["quarantined", "ok", "quarantined"], ["energy", "", "energy"], day))
        return found

    write_tables(tmp_path / "status.parquet", VALIDATE_SCHEMA, tables())
    found = set_aside(tmp_path / "status.parquet")
    long, *short = found
    assert (long.machine_id, long.rows, long.start_us, long.end_us) == ("a", 720, START, START + 719 * HOUR)
    assert [(item.machine_id, item.rows) for item in short] == [("b", 1)] * 60


def test_the_table_streams_by(tmp_path: Path) -> None:
    """What is held are the intervals, not the rows: four times the rows take no more memory."""
    rows = 5_000
    every, statuses, reasons = np.arange(rows) / rows, ["quarantined"] * rows, ["energy"] * rows
    peaks = []
    for days in (20, 80):
        tables = (status_table("a", every + day, statuses, reasons, day) for day in range(days))
        write_tables(tmp_path / "status.parquet", VALIDATE_SCHEMA, tables)
        tracemalloc.start()
        (found,) = set_aside(tmp_path / "status.parquet")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.rows == rows * days
    assert peaks[1] < 1.5 * peaks[0]


def test_a_release_is_written_once_and_given_back_by_the_next_build(plant: Path) -> None:
    first = release(plant, machine="a")
    assert (first.rows, first.refused, first.is_new) == (2, 1, True)
    assert not (plant / RELEASES).exists()  # it is only proposed
    first.write()
    assert read_releases(plant) == [GivenBack("a", START + 5 * HOUR, START + 7 * HOUR, "", "", "me", AT.isoformat())]
    assert not release(plant, machine="a").is_new
    assert not release(plant, machine="a", reason="energy").is_new  # the wider one holds it
    waiting = {
        (item.machine_id, item.reason): item.returns for item in set_aside(status_of(plant), None, [first.release])
    }
    assert waiting == {(NASTY, "flat"): False, ("a", "energy"): True, ("a", "nonfinite"): False}
    left = {key: value for key, value in EVERYTHING.items() if key not in (("a", 5), ("a", 7))}
    assert built(plant) == left
    assert built(plant) == left
    with pytest.raises(UserError, match="no numbers or negative"):
        release(plant, machine="a")
    release(plant, reason="flat").write()
    assert built(plant) == {("a", 6): EVERYTHING["a", 6]}


def test_a_release_keeps_the_file_as_the_person_wrote_it(plant: Path) -> None:
    text = "# ours\r\nstart;end;machine_id;reason;note\r\n2020-01-01;2020-01-02;;;old\r\n"
    (plant / RELEASES).write_text(text, newline="")
    wanted = Wanted(machine=NASTY)
    proposed(plant, status_of(plant), wanted, note='a; "quoted" note', by="me", at=AT).write()
    assert (plant / RELEASES).read_bytes().decode().startswith(text)
    old, new = read_releases(plant)
    assert (old.note, new.note, new.machine) == ("old", 'a; "quoted" note', NASTY)
    assert built(plant) == {key: value for key, value in EVERYTHING.items() if key[0] != NASTY}


def test_only_the_rows_within_the_times_are_counted_and_given_back(plant: Path) -> None:
    given = release(plant, machine="a", reason="energy", start_us=START + 6 * HOUR, end_us=START + 30 * HOUR)
    assert (given.rows, given.refused) == (1, 0)
    given.write()
    assert ("a", 7) not in built(plant)


def test_rows_with_another_reason_stay_and_are_counted(tmp_path: Path) -> None:
    reasons = ["flat", "flat+stuck", "flat+single_line", "flat+nonfinite"]
    table = status_table("a", np.arange(4.0), ["quarantined"] * 4, reasons, 0)
    write_tables(tmp_path / "status.parquet", VALIDATE_SCHEMA, [table])
    (tmp_path / "plant").mkdir()
    given = proposed(tmp_path / "plant", tmp_path / "status.parquet", Wanted(reason="flat"), at=AT)
    assert [item.reason for item in given.given] == ["flat", "flat+single_line"]  # a single line is only warned of
    assert [item.reason for item in given.held] == ["flat+stuck"]
    assert given.refused == 1
    with pytest.raises(UserError, match=r"for another reason too \(flat\+stuck\)"):
        proposed(tmp_path / "plant", tmp_path / "status.parquet", Wanted(reason="stuck"), at=AT)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "got nothing"),
        ({"machine": "b"}, "got 'b'"),
        ({"machine": "a", "reason": "flat"}, "no row that is set aside"),
        ({"reason": "nonfinite"}, "rows that are nonfinite"),
        ({"start_us": START + 6 * HOUR, "end_us": START}, "end before the start"),
        ({"machine": "a", "start_us": START + 9 * HOUR}, "no row that is set aside"),
    ],
)
def test_what_cannot_be_released_is_said(plant: Path, wanted: dict[str, str | int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        release(plant, **wanted)
    assert not (plant / RELEASES).exists()


def test_a_simulated_set_or_a_file_takes_no_releases(plant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plant.parent)
    Path("data/demo").mkdir()
    for source in (Path("data/demo"), plant.parent / "data/demo", plant / "fleet.yaml"):
        with pytest.raises(UserError, match="release: got"):
            proposed(source, status_of(plant), Wanted(machine="a"), at=AT)


# --- the command line ---


@pytest.fixture
def run(plant: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`hearken quarantine ...` in the folder above the plant's; exit code and what it printed."""
    monkeypatch.chdir(plant.parent)

    def run(*arguments: str, answer: str = "") -> str:
        monkeypatch.setattr(sys, "argv", ["hearken", "quarantine", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return f"{ended.value.code} {printed.out}{printed.err}"

    return run


def test_list_counts_by_reason_and_shows_the_largest_intervals(run: Callable[..., str]) -> None:
    listed = run("list")
    assert listed.startswith("0")
    assert NASTY in listed
    assert re.search(r"energy +a +2025-01-01T05:00:00Z +2025-01-01T07:00:00Z +quarantined +2\b", listed)
    assert "4 rows in 3 intervals (UTC)" in listed
    few = run("list", "--limit", "1")
    assert "4 rows in 3 intervals (UTC); 2 smaller ones are not shown (--limit)" in few
    assert (few.count("energy"), few.count("nonfinite")) == (2, 1)  # counted, and one of them shown
    assert "energy" not in run("list", "--reason", "flat")
    assert "1 row in 1 interval" in run("list", "--machine", "a", "--start", "2025-01-01T06:30", "--end", "2025-01-02")
    assert "no row is set aside" in run("list", "--machine", "a", "--start", "2025-01-01T09:00:00+01:00")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--machine", "nobody"], "machine: got 'nobody', expected a machine with rows, in data/status"),
        (["--reason", "eneregy"], "reason: got 'eneregy', expected energy?"),
        (
            ["--start", "monday"],
            "--start: got 'monday', expected ISO 8601, such as 2025-03-01T14:30 or 2025-03-01T14:30+01:00.",
        ),
        (["--data", "nowhere/raw"], "Parquet: got no file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run: Callable[..., str], arguments: list[str], message: str) -> None:
    for command in ("list", "release"):
        said = run(command, *arguments, *(["--source", "plant"] if command == "release" else []))
        if command == "list" or "--data" not in arguments:
            assert said.startswith(f"2 error: {message}")
            assert said.count("\n") == 1


def test_release_asks_and_writes_only_what_was_agreed_to(run: Callable[..., str], plant: Path) -> None:
    wanted = ["release", "--machine", "a", "--note", "a test", "--by", "me", "--source", "plant"]
    refused = run(*wanted, answer="n\n")
    assert refused.startswith("1 2 rows of 1 machine, 2025-01-01T05:00:00Z to 2025-01-01T07:00:00Z: energy\n")
    assert "kept out, as no numbers or negative: 1 row\n" in refused
    assert "nothing is written" in refused
    assert run(*wanted).endswith("2 error: release: got no answer, expected y or n; --yes does not ask.\n"[2:])
    assert not (plant / RELEASES).exists()
    assert "the next build gives 2 rows back" in run(*wanted, answer="y\n")
    assert "stands in plant/quarantine_releases.csv already" in run(*wanted)
    listed = run("list", "--source", "plant")
    assert "quarantined, released" in listed
    assert "the next build gives 2 rows back" in listed
    assert run("release", "--reason", "flat", "--yes", "--source", "plant").startswith("0 1 row of 1 machine")
    assert built(plant) == {("a", 6): EVERYTHING["a", 6]}
    assert "released" not in run("list", "--source", "plant")


def test_a_wrong_file_of_releases_is_said_before_anything_is_written(run: Callable[..., str], plant: Path) -> None:
    text = "machine_id,start,end,reason\na,2025-01-02,2025-01-01,\n"
    (plant / RELEASES).write_text(text)
    for command in (["list"], ["release", "--machine", "a", "--yes"]):
        said = run(*command, "--source", "plant")
        assert said == "2 error: end: got a time before start, expected start <= end, in " + (
            "plant/quarantine_releases.csv, line 2.\n"
        )
    assert (plant / RELEASES).read_text() == text
