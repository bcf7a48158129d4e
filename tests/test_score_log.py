"""The score log as a folder: each row once for every reader, whatever is written, merged or killed meanwhile."""

from __future__ import annotations

import datetime as dt
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import store
from pipeline.errors import ContractError
from pipeline.schema import (
    ENSEMBLE,
    MACHINE,
    MICROSECONDS_PER_DAY,
    TEXT,
    dictionary_column,
    score_log_schema,
    time_column,
    times_us,
)
from pipeline.score_log import (
    compact,
    compact_day,
    days_between,
    keys_between,
    machine_names,
    machine_rows,
    newest_row_us,
    over_days,
    remove_days,
)
from pipeline.store import write_table

DAY = "2025-03-01"
START = int(np.datetime64(DAY, "us").astype(np.int64))
SINCE = dt.datetime(2025, 3, 1, tzinfo=dt.UTC)
UNTIL = SINCE + dt.timedelta(days=1)
EVERYTHING = (START - 30 * MICROSECONDS_PER_DAY, START + 30 * MICROSECONDS_PER_DAY)


def scored(
    keys: list[tuple[str, int]], file: str, members: tuple[str, ...] = ("pca",), release: str = "a" * 16
) -> pa.Table:
    """Rows of a score log for (machine, seconds into the day)."""
    rows = len(keys)
    names = sorted({name for name, _ in keys})
    columns: dict[str, object] = {
        "file": dictionary_column(np.zeros(rows, np.int16), [file]),
        "row": pa.array(np.arange(rows, dtype=np.int32)),
        "machine_id": dictionary_column(np.array([names.index(name) for name, _ in keys], np.int32), names, MACHINE),
        "timestamp": time_column(np.array([START + 1_000_000 * seconds for _, seconds in keys], np.int64)),
        "epoch": pa.array(np.zeros(rows, np.int32)),
        "baseline": pa.nulls(rows, TEXT),
        "tier": dictionary_column(np.zeros(rows, np.int16), ["none"]),
        "top_bins": pa.array([[1, 2]] * rows, pa.list_(pa.int32())),
        "release": dictionary_column(np.zeros(rows, np.int16), [release]),
    }
    for name in (*members, ENSEMBLE):
        columns[f"score_{name}"] = columns[f"tail_{name}"] = pa.array(np.linspace(0.1, 0.9, rows))
    schema = score_log_schema(members)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def write_shard(log: Path, name: str, keys: list[tuple[str, int]], **more: object) -> Path:
    path = log / DAY / f"{name}.parquet"
    write_table(path, scored(keys, f"spectra/{name}.parquet", **more))  # type: ignore[arg-type]
    return path


def log_files(log: Path, since_us: int, until_us: int) -> list[Path]:
    return [path for day in over_days(log, days_between(log, since_us, until_us), list) for path in day]


def rows_of(log: Path) -> Counter[tuple[object, ...]]:
    """Every row that a reader counts, as text."""
    found: Counter[tuple[object, ...]] = Counter()
    for path in log_files(log, *EVERYTHING):
        for row in pq.read_table(
            path, columns=["file", "row", "machine_id", "timestamp", "score_ensemble"]
        ).to_pylist():
            found[tuple(str(value) for value in row.values())] += 1
    return found


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def zero_pages(path: Path, group: int) -> None:
    """Make a row group unreadable; its statistics stand in the footer and stay."""
    columns = pq.ParquetFile(path).metadata.row_group(group)
    content = bytearray(path.read_bytes())
    for place in range(columns.num_columns):
        chunk = columns.column(place)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(content)


# --- files ---------------------------------------------------------------------------------------------------------


def test_files_of_both_layouts_come_by_day_and_nothing_else_counts(tmp_path: Path) -> None:
    write_shard(tmp_path, "000000002-b", [("m", 1)])
    write_shard(tmp_path, "000000001-a", [("m", 2)])
    write_table(tmp_path / "2025-03-02.parquet", scored([("m", 86_401)], "x"))
    for name in ("_alerts.json", ".hidden.parquet", "2025-02-30.parquet", "other.parquet"):
        (tmp_path / name).write_text("none of the log")
    (tmp_path / "2025-13-01").mkdir()
    for name in (".000000003.tmp.parquet", "_half.parquet", "note.txt"):
        (tmp_path / DAY / name).write_text("none of the log")
    found = log_files(tmp_path, *EVERYTHING)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        f"{DAY}/000000001-a.parquet",
        f"{DAY}/000000002-b.parquet",
        "2025-03-02.parquet",
    ]
    assert len(log_files(tmp_path, START, START + 1)) == 2
    assert len(log_files(tmp_path, START + MICROSECONDS_PER_DAY, START + MICROSECONDS_PER_DAY + 1)) == 1
    assert log_files(tmp_path, START - 1, START) == []
    assert log_files(tmp_path / "none", *EVERYTHING) == []


# --- keys ----------------------------------------------------------------------------------------------------------


def test_keys_are_those_of_the_span_and_of_the_machines_in_their_order(tmp_path: Path) -> None:
    write_shard(tmp_path, "one", [("b", 10), ("a", 20), ("c", 30)])
    write_shard(tmp_path, "two", [("a", 40), ("b", 50)])
    second = 1_000_000

    def found(since: int, until: int, machines: list[str] | None, without: str = "") -> set[tuple[str, int]]:
        names, code_N, time_us_N = keys_between(
            tmp_path, START + since * second, START + until * second, machines, without
        )
        assert code_N.dtype == np.int32
        assert time_us_N.dtype == np.int64
        assert machines is None or names == machines
        pairs = [(names[code], (time - START) // second) for code, time in zip(code_N, time_us_N, strict=True)]
        assert len(set(pairs)) == len(pairs)
        return set(pairs)

    everything = {("b", 10), ("a", 20), ("c", 30), ("a", 40), ("b", 50)}
    assert found(0, 100, None) == everything
    assert found(20, 50, None) == {("a", 20), ("c", 30), ("a", 40)}
    assert found(0, 100, ["c", "not there", "a"]) == {("c", 30), ("a", 20), ("a", 40)}
    assert found(0, 100, None, without="one") == {("a", 40), ("b", 50)}
    assert found(0, 100, []) == set()
    compact_day(tmp_path, DAY)
    assert found(0, 100, None) == everything


def test_row_groups_outside_the_span_or_the_machines_are_not_read(tmp_path: Path) -> None:
    late = write_shard(tmp_path, "late", [("a", 5000), ("z", 5001)])
    write_shard(tmp_path, "early", [("b", 1)])
    zero_pages(late, 0)
    assert len(keys_between(tmp_path, START, START + 1_000_000_000, None, "")[1]) == 1
    zero_pages(write_shard(tmp_path, "early", [("b", 1)]), 0)
    write_shard(tmp_path, "third", [("c", 2)])
    assert len(keys_between(tmp_path, START, START + 1_000_000_000, ["c", "d"], "")[1]) == 1
    with pytest.raises(ContractError, match="score log: got"):
        keys_between(tmp_path, START, START + 1_000_000_000, None, "")


# --- one machine ---------------------------------------------------------------------------------------------------


def test_a_machines_rows_come_in_time_order_with_the_members_of_every_release(tmp_path: Path) -> None:
    write_shard(tmp_path, "old", [("m", 30), ("n", 31), ("m", 10)], members=("pca", "vae"))
    write_shard(tmp_path, "new", [("m", 20), ("n", 21)], members=("energy_zscore",), release="b" * 16)
    write_table(tmp_path / "2025-03-02.parquet", scored([("m", 86_400), ("m", 86_410)], "x"))
    for _ in range(2):
        found = machine_rows(tmp_path, "m", SINCE, UNTIL)
        assert ((times_us(found["timestamp"]) - START) // 1_000_000).tolist() == [10, 20, 30]
        assert found["score_energy_zscore"].is_null().to_pylist() == [True, False, True]
        assert found["score_vae"].is_null().to_pylist() == [False, True, False]
        assert found["score_ensemble"].null_count == 0
        assert [release[0] for release in found["release"].to_pylist()] == ["a", "b", "a"]
        assert found["file"].to_pylist() == ["spectra/old.parquet", "spectra/new.parquet", "spectra/old.parquet"]
        assert set(found["machine_id"].to_pylist()) == {"m"}
        compact_day(tmp_path, DAY)
    assert machine_rows(tmp_path, "m", SINCE, UNTIL + dt.timedelta(seconds=1)).num_rows == 4
    assert machine_rows(tmp_path, "nobody", SINCE, UNTIL).num_rows == 0
    assert newest_row_us(tmp_path, "m") == START + 86_410_000_000
    assert newest_row_us(tmp_path, "n") == START + 31_000_000
    assert newest_row_us(tmp_path, "nobody") is None
    assert machine_names(tmp_path) == ["m", "n"]
    assert machine_names(tmp_path, 1) == ["m"]


def test_of_a_compacted_day_only_the_machines_row_group_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (store, compact):
        monkeypatch.setattr(module, "ROW_GROUP_ROWS", 5)
    write_shard(tmp_path, "one", [(name, second) for second in range(4) for name in ("a", "b", "c", "d")])
    done = compact_day(tmp_path, DAY)
    assert done is not None
    assert pq.ParquetFile(done.file).metadata.num_row_groups == 4  # cut between machines, though five rows would fit
    for group in (0, 1, 3):
        zero_pages(done.file, group)
    assert machine_rows(tmp_path, "c", SINCE, UNTIL).num_rows == 4
    with pytest.raises(ContractError):
        machine_rows(tmp_path, "b", SINCE, UNTIL)


# --- compaction ----------------------------------------------------------------------------------------------------


def test_a_day_becomes_one_sorted_file_and_late_shards_join_it(tmp_path: Path) -> None:
    write_shard(tmp_path, "one", [("b", 2), ("a", 3), ("a", 1)])
    write_shard(tmp_path, "two", [("c", 1), ("a", 2)])
    before = rows_of(tmp_path)
    done = compact_day(tmp_path, DAY)
    assert done is not None
    assert (done.rows, done.merged) == (5, 2)
    assert rows_of(tmp_path) == before
    assert names_in(tmp_path / DAY) == [done.file.name]
    table = pq.read_table(done.file)
    seconds = ((times_us(table["timestamp"]) - START) // 1_000_000).tolist()
    assert list(zip(table["machine_id"].to_pylist(), seconds, strict=True)) == [
        ("a", 1), ("a", 2), ("a", 3), ("b", 2), ("c", 1),
    ]  # fmt: skip
    content = done.file.read_bytes()
    assert compact_day(tmp_path, DAY) is None
    assert done.file.read_bytes() == content
    write_shard(tmp_path, "late", [("a", 4)])
    again = compact_day(tmp_path, DAY)
    assert again is not None
    assert (again.rows, again.merged) == (6, 2)
    assert names_in(tmp_path / DAY) == [again.file.name]
    assert sum(rows_of(tmp_path).values()) == 6
    assert names_in(tmp_path) == [DAY]


def test_a_shard_that_may_be_written_anew_stays_as_it_is(tmp_path: Path) -> None:
    open_shard = write_shard(tmp_path, "open", [("a", 1)])
    assert compact_day(tmp_path, DAY, {"open"}.__contains__) is None
    write_shard(tmp_path, "done", [("a", 2)])
    before, content = rows_of(tmp_path), open_shard.read_bytes()
    compact_day(tmp_path, DAY, {"open"}.__contains__)
    assert names_in(tmp_path / DAY) == ["compacted-000001.parquet", "open.parquet"]
    assert open_shard.read_bytes() == content
    assert rows_of(tmp_path) == before


def test_a_merged_shard_that_is_scored_again_does_not_count_twice(tmp_path: Path) -> None:
    write_shard(tmp_path, "one", [("a", 1), ("b", 2)])
    before = rows_of(tmp_path)
    compact_day(tmp_path, DAY)
    for _ in range(2):  # nor when the day was compacted once more since
        write_shard(tmp_path, "one", [("a", 1), ("b", 2)])
        assert rows_of(tmp_path) == before
        rows = sum(count for row, count in before.items() if "a" in row)
        assert machine_rows(tmp_path, "a", SINCE, UNTIL).num_rows == rows
        late = write_shard(tmp_path, "late", [("a", 9)])
        compact_day(tmp_path, DAY)
        assert not late.exists()
        before = rows_of(tmp_path)
        assert sum(before.values()) == 3


def test_a_damaged_shard_leaves_the_day_as_it_is(tmp_path: Path) -> None:
    write_shard(tmp_path, "one", [("a", 1)])
    zero_pages(write_shard(tmp_path, "two", [("b", 2)]), 0)
    content = {path.name: path.read_bytes() for path in (tmp_path / DAY).iterdir()}
    with pytest.raises(ContractError, match=r"two\.parquet"):
        compact_day(tmp_path, DAY)
    assert {path.name: path.read_bytes() for path in (tmp_path / DAY).iterdir()} == content
    for name in ("../outside", "2025-02-30", ""):
        with pytest.raises(ContractError, match="day: got"):
            compact_day(tmp_path, name)


@settings(deadline=None, max_examples=25)
@given(
    shards=st.lists(
        st.lists(st.tuples(st.sampled_from(["a", "b", "c/../d", "ü", "z"]), st.integers(0, 86_399)), max_size=12),
        min_size=1,
        max_size=5,
    ),
    part_rows=st.integers(1, 20),
    group_rows=st.integers(1, 9),
    opened=st.sets(st.integers(0, 4)),
)
def test_compaction_loses_and_doubles_nothing(
    shards: list[list[tuple[str, int]]], part_rows: int, group_rows: int, opened: set[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(compact, "PART_ROWS", part_rows)
        for module in (store, compact):
            patch.setattr(module, "ROW_GROUP_ROWS", group_rows)
        log, written = Path(folder), Counter[tuple[str, int]]()
        for number, keys in enumerate(shards):
            members = ("pca",) if number % 2 else ("vae", "pca")
            write_shard(log, f"{number:09}", keys, members=members)
            written.update(keys)
            before = rows_of(log)
            keep_open = {f"{place:09}" for place in opened}
            compact_day(log, DAY, keep_open.__contains__)
            assert rows_of(log) == before
            counted = names_in(log / DAY)
            merged = [name for name in counted if name.startswith("compacted-")]
            assert len(merged) <= 1
            assert set(counted) - set(merged) <= {f"{name}.parquet" for name in keep_open}
        for machine in {name for name, _ in written}:
            found = (times_us(machine_rows(log, machine, SINCE, UNTIL)["timestamp"]) - START) // 1_000_000
            assert found.tolist() == sorted(second for name, second in written.elements() if name == machine)
        names, code_N, time_us_N = keys_between(log, START, START + MICROSECONDS_PER_DAY, None, "")
        pairs = zip(code_N.tolist(), ((time_us_N - START) // 1_000_000).tolist(), strict=True)
        assert Counter((names[code], second) for code, second in pairs) == written


# --- killed --------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import pyarrow.parquet as pq
from pipeline.score_log import compact, compact_day
log, day, step, wanted = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
compact.PART_ROWS = 3  # rows are dealt to files first
calls = 0
def dying(own):
    def called(*arguments, **named):
        global calls
        calls += 1
        if calls == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        return own(*arguments, **named)
    return called
owner, name = {"write": (pq.ParquetWriter, "write_table"), "move": (Path, "replace"), "remove": (Path, "unlink")}[step]
setattr(owner, name, dying(getattr(owner, name)))
compact_day(log, day)
print("lived")
"""


# rows dealt to files, the new file half written, whole but not in its place, in its place, some of the old ones removed
@pytest.mark.parametrize(("step", "call"), [("write", 2), ("write", 8), ("move", 1), ("remove", 1), ("remove", 3)])
def test_a_compaction_that_is_killed_leaves_every_row_once(tmp_path: Path, step: str, call: int) -> None:
    write_shard(tmp_path, "zero", [("a", 90), ("b", 91)])
    compact_day(tmp_path, DAY)  # so that an older compacted file is merged too
    write_shard(tmp_path, "one", [("b", 2), ("a", 3), ("a", 1), ("c", 5)])
    write_shard(tmp_path, "two", [("c", 1), ("a", 2), ("d", 7)])
    before = rows_of(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), DAY, step, str(call)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(names_in(tmp_path / DAY) + names_in(tmp_path)) > 2, "it left something behind"
    assert rows_of(tmp_path) == before
    assert machine_rows(tmp_path, "a", SINCE, UNTIL).num_rows == 4
    assert len(keys_between(tmp_path, START, START + MICROSECONDS_PER_DAY, None, "")[1]) == 9
    write_shard(tmp_path, "late", [("e", 1)])
    compact_day(tmp_path, DAY)
    assert sum(rows_of(tmp_path).values()) == 10
    assert rows_of(tmp_path) >= before
    assert len(names_in(tmp_path / DAY)) == 1
    assert names_in(tmp_path) == [DAY]  # nothing of the dead is left


COMPACTING = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_score_log import DAY, write_shard
from pipeline.score_log import compact_day
log, end, number = Path(sys.argv[1]), time.monotonic() + 2, 0
while time.monotonic() < end:
    number += 1
    write_shard(log, f"{number:09}", [("m", 60 + number), ("n", 60 + number)])
    if number % 3 == 0:
        compact_day(log, DAY)
print(number)
"""


def test_a_reader_beside_compactions_sees_every_row_once(tmp_path: Path) -> None:
    write_shard(tmp_path, "000000000", [("m", 1), ("n", 2)])
    command = [sys.executable, "-c", COMPACTING, str(tmp_path), str(Path(__file__).parent)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    counts, moved = [1], False
    while child.poll() is None:
        times = times_us(machine_rows(tmp_path, "m", SINCE, UNTIL)["timestamp"])
        assert len(np.unique(times)) == len(times)
        counts.append(len(times))
        _, code_N, time_us_N = keys_between(tmp_path, START, START + MICROSECONDS_PER_DAY, ["n"], "")
        assert len(np.unique(time_us_N)) == len(code_N) >= len(times) - 1
        moved = moved or any((tmp_path / DAY).glob("compacted-*"))
    assert child.returncode == 0
    assert child.stdout is not None
    written = int(child.stdout.read())
    assert counts == sorted(counts), "rows that were seen have gone"
    assert machine_rows(tmp_path, "m", SINCE, UNTIL).num_rows == written + 1
    assert len(set(counts)) > 3
    assert moved


# --- retention -----------------------------------------------------------------------------------------------------


def test_days_before_one_are_removed_and_named(tmp_path: Path) -> None:
    write_shard(tmp_path, "one", [("a", 1)])
    for day in ("2025-02-27", "2025-02-28", "2025-03-02"):
        (tmp_path / day).mkdir()
        write_table(tmp_path / day / "x.parquet", scored([("a", 1)], "x"))
    write_table(tmp_path / "2025-02-20.parquet", scored([("a", 1)], "x"))
    (tmp_path / ".removed-dead").mkdir()  # left by one that was killed
    (tmp_path / "2025-01-01 notes").mkdir()
    assert remove_days(tmp_path, DAY) == ["2025-02-20", "2025-02-27", "2025-02-28"]
    assert names_in(tmp_path) == ["2025-01-01 notes", DAY, "2025-03-02"]
    assert remove_days(tmp_path, DAY) == []
    assert remove_days(tmp_path / "none", DAY) == []
    with pytest.raises(ContractError, match="day: got 'yesterday', expected YYYY-MM-DD"):
        remove_days(tmp_path, "yesterday")
