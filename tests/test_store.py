"""store: whole files or none, streams that do not grow, and one clear message for a damaged file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline import store
from pipeline.errors import ContractError
from pipeline.schema import (
    KEY_FIELDS,
    MACHINE,
    TEXT,
    FleetSpec,
    codes_and_names,
    dictionary_column,
    load_fleet_spec,
    spectra_column,
    spectra_schema,
    time_column,
)

BINS = 4


def day(first: int, rows: int) -> pa.Table:
    """Rows whose bins all hold the row's number."""
    numbers = np.arange(first, first + rows)
    spectra = np.repeat(numbers[:, None], BINS, axis=1).astype(np.float32)
    columns = [dictionary_column(numbers % 2, ["a", "b"], MACHINE), time_column(numbers), spectra_column(spectra)]
    return pa.Table.from_arrays(columns, schema=spectra_schema(BINS))


def status(files: list[tuple[str, list[int]]]) -> pa.Table:
    """The keys of rows as a status table has them."""
    names = [name for name, _ in files]
    codes = np.concatenate([np.full(len(rows), index) for index, (_, rows) in enumerate(files)])
    rows = np.concatenate([rows for _, rows in files]).astype(np.int32)
    machine = dictionary_column(np.zeros(len(rows), np.int32), ["a"], MACHINE)
    columns = [
        dictionary_column(codes, names, TEXT),
        pa.array(rows),
        machine,
        time_column(np.zeros(len(rows), np.int64)),
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema(list(KEY_FIELDS)))


# --- atomic writes -------------------------------------------------------------------------------------------------

KILLED_FILE = """
import sys, time
from pipeline.store import atomic_file
with atomic_file(sys.argv[1]) as temporary:
    with temporary.open("w") as file:
        file.write("half of the new")
        file.flush()
        print("half", flush=True)
        time.sleep(60)
"""
KILLED_TABLE = """
import sys, time
import numpy as np, pyarrow as pa
from pipeline.store import write_tables
def tables():
    table = pa.table({"x": np.random.default_rng(1).random(200_000)})
    yield table
    yield table
    print("half", flush=True)
    time.sleep(60)
write_tables(sys.argv[1], pa.schema({"x": pa.float64()}), tables())
"""
KILLED_FOLDER = """
import sys, time
from pipeline.store import atomic_folder
with atomic_folder(sys.argv[1]) as folder:
    (folder / "one").write_text("half of the new")
    print("half", flush=True)
    time.sleep(60)
"""


def kill_in_mid_write(program: str, target: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
    finally:
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL


@pytest.mark.parametrize("program", [KILLED_FILE, KILLED_TABLE], ids=["file", "table"])
def test_a_process_killed_in_mid_write_leaves_the_old_file(tmp_path: Path, program: str) -> None:
    target = tmp_path / "spectra" / "2025-01-01.parquet"
    store.write_text(target, "the old")
    kill_in_mid_write(program, target)
    assert target.read_text() == "the old"
    assert store.day_files(tmp_path) == [target]  # what the dead left behind is no day file
    store.write_text(target, "the new")
    assert target.read_text() == "the new"


def test_a_process_killed_in_mid_write_leaves_no_file_where_none_was(tmp_path: Path) -> None:
    kill_in_mid_write(KILLED_TABLE, tmp_path / "new.parquet")
    assert not (tmp_path / "new.parquet").exists()


def test_a_process_killed_in_mid_write_leaves_the_old_folder(tmp_path: Path) -> None:
    with store.atomic_folder(tmp_path / "models") as folder:
        (folder / "one").write_text("the old")
    kill_in_mid_write(KILLED_FOLDER, tmp_path / "models")
    assert (tmp_path / "models" / "one").read_text() == "the old"


def test_an_error_in_mid_write_leaves_the_old_and_nothing_beside_it(tmp_path: Path) -> None:
    def tables() -> Iterator[pa.Table]:
        yield day(0, 2)
        raise ValueError("the source broke")

    store.write_table(tmp_path / "a.parquet", day(0, 3))
    with pytest.raises(ValueError, match="the source broke"):
        store.write_tables(tmp_path / "a.parquet", spectra_schema(BINS), tables())
    with pytest.raises(ValueError, match="stop"), store.atomic_folder(tmp_path / "folder"):
        raise ValueError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 3


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with store.atomic_folder(tmp_path / "x") as folder:
            (folder / content).write_text(content)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["x", "x/two"]


# --- tables --------------------------------------------------------------------------------------------------------


def test_tables_written_as_a_stream_are_one_file(tmp_path: Path) -> None:
    store.write_tables(tmp_path / "a.parquet", spectra_schema(BINS), (day(first, 3) for first in (0, 3, 6)))
    store.write_table(tmp_path / "b.parquet", day(0, 9))
    a, b = (pq.read_table(tmp_path / name) for name in ("a.parquet", "b.parquet"))
    assert a.equals(b)
    assert a.schema.equals(spectra_schema(BINS))


def test_nulls_where_the_contract_has_none_are_refused(tmp_path: Path) -> None:
    for name in ("machine_id", "timestamp", "spectrum"):
        table = day(0, 2)
        columns = [pa.nulls(2, field.type) if field.name == name else table[field.name] for field in table.schema]
        broken = pa.Table.from_arrays(columns, schema=table.schema)
        with pytest.raises(ContractError, match=f"{name}: got 2 nulls, expected none"):
            store.write_table(tmp_path / "a.parquet", broken)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_or_missing_file_is_one_message(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    store.write_table(whole, day(0, 5000))
    content = whole.read_bytes()
    half, holed = tmp_path / "half.parquet", tmp_path / "holed.parquet"
    half.write_bytes(content[: len(content) // 2])
    holed.write_bytes(content[:4] + b"\0" * (len(content) // 2) + content[4 + len(content) // 2 :])
    for path, message in ((half, "cut off or no Parquet"), (tmp_path / "none.parquet", "no file")):
        with pytest.raises(ContractError, match=message) as caught:
            store.read_table(path)
        assert str(path) in str(caught.value)
    for read in (store.read_table, lambda path: list(store.read_batches(path))):
        with pytest.raises(ContractError):
            read(holed)


def test_missing_and_wrong_columns_are_named(tmp_path: Path) -> None:
    store.write_table(tmp_path / "a.parquet", pa.table({"x": ["text"]}))
    with pytest.raises(ContractError, match="got no column y, expected x, y"):
        store.read_table(tmp_path / "a.parquet", columns=["x", "y"])
    with pytest.raises(ContractError, match="expected the contract's columns"):
        store.read_table(tmp_path / "a.parquet", schema=pa.schema({"x": pa.float64()}))


def test_json_keeps_to_numbers_that_json_has(tmp_path: Path) -> None:
    store.write_json(tmp_path / "a.json", {"b": 1, "a": None})
    assert store.read_json(tmp_path / "a.json") == {"a": None, "b": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json(tmp_path / "a.json", {"a": float("nan")})
    (tmp_path / "bad.json").write_text("{")
    for name in ("bad.json", "none.json"):
        with pytest.raises(ContractError, match="JSON: got"):
            store.read_json(tmp_path / name)


def test_fleet_yaml_comes_back_as_it_went(tmp_path: Path) -> None:
    spec = FleetSpec(bins=2, band_edges_hz=(0, 0.1, 200.5), name="a-plant", time="relative")
    store.write_fleet_spec(tmp_path / "fleet.yaml", spec)
    assert load_fleet_spec(tmp_path / "fleet.yaml") == spec


def test_day_files_are_oldest_first_and_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="got no Parquet file"):
        store.day_files(tmp_path)
    for name in ("2025-01-10", "2025-01-09"):
        store.write_table(tmp_path / "spectra" / f"{name}.parquet", day(0, 1))
    assert [path.stem for path in store.day_files(tmp_path)] == ["2025-01-09", "2025-01-10"]


# --- spectra -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_rows", [7, 1000])
def test_selected_spectra_come_in_the_order_of_the_status_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_rows: int
) -> None:
    monkeypatch.setattr(store, "ROW_GROUP_ROWS", group_rows)  # batches smaller and larger than a file
    store.write_table(tmp_path / "spectra" / "a.parquet", day(0, 50))
    store.write_table(tmp_path / "spectra" / "b.parquet", day(50, 50))
    keys = status([("a.parquet", list(range(50))), ("b.parquet", list(range(50)))])
    chosen = np.random.default_rng(1).random(100) < 0.3
    spectra_NF = store.read_spectra(tmp_path, keys, chosen, BINS)
    assert spectra_NF.dtype == np.float32
    assert spectra_NF.tolist() == [[float(n)] * BINS for n in np.flatnonzero(chosen)]
    assert store.read_spectra(tmp_path, keys, np.zeros(100, bool), BINS).shape == (0, BINS)


def test_selected_spectra_come_from_any_row_group_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "spectra").mkdir()
    for name, first in (("a.parquet", 0), ("b.parquet", 50)):
        pq.write_table(day(first, 50), tmp_path / "spectra" / name, row_group_size=8)
    keys = status([("a.parquet", list(range(50))), ("b.parquet", list(range(50)))])
    chosen = np.zeros(100, bool)
    chosen[[0, 7, 8, 30, 49, 50, 65, 99]] = True
    spectra_NF = store.read_spectra(tmp_path, keys, chosen, BINS)
    assert spectra_NF[:, 0].tolist() == [0, 7, 8, 30, 49, 50, 65, 99]


def test_context_comes_as_text_in_the_order_of_the_status_table(tmp_path: Path) -> None:
    (tmp_path / "spectra").mkdir()
    contexts = {"d1": pa.array(["cut", None, "idle"]).dictionary_encode(), "d2": None, "d3": pa.array([7, 8, 7])}
    for name, values in contexts.items():
        table = day(0, 3) if values is None else day(0, 3).append_column("mode", values)
        pq.write_table(table, tmp_path / f"spectra/{name}")
    wanted = status([("d1", [0, 1, 2]), ("d2", [0, 1]), ("d3", [1, 2])])
    selected = np.array([True, True, False, False, True, True, True])
    found = store.read_context(tmp_path, wanted, selected, "mode")
    assert codes_and_names(found)[1] == ["cut", "", "8", "7"]
    assert found.to_pylist() == ["cut", "", "", "8", "7"]
    assert store.read_context(tmp_path, wanted, selected & False, "mode").to_pylist() == []
    with pytest.raises(ContractError, match="type of spectrum: got fixed_size_list"):
        store.read_context(tmp_path, wanted, selected, "spectrum")


def test_files_without_a_selected_row_are_not_opened(tmp_path: Path) -> None:
    store.write_table(tmp_path / "spectra" / "a.parquet", day(0, 2))
    keys = status([("a.parquet", [0, 1]), ("gone.parquet", [0])])
    assert len(store.read_spectra(tmp_path, keys, np.array([True, True, False]), BINS)) == 2
    with pytest.raises(ContractError, match="no file"):
        store.read_spectra(tmp_path, keys, np.ones(3, bool), BINS)


def test_a_status_table_that_does_not_fit_its_files_is_refused(tmp_path: Path) -> None:
    store.write_table(tmp_path / "spectra" / "a.parquet", day(0, 3))
    for rows, message in (([0, 5], "expected more than 5"), ([1, 0], "got unsorted")):
        with pytest.raises(ContractError, match=message):
            store.read_spectra(tmp_path, status([("a.parquet", rows)]), np.ones(2, bool), BINS)
    with pytest.raises(ContractError, match="type of spectrum"):
        store.read_spectra(tmp_path, status([("a.parquet", [0])]), np.ones(1, bool), BINS + 1)


def test_read_spectra_are_a_torch_tensor_without_a_copy(tmp_path: Path) -> None:
    store.write_table(tmp_path / "spectra" / "a.parquet", day(0, 3))
    spectra_NF = store.read_spectra(tmp_path, status([("a.parquet", [0, 2])]), np.ones(2, bool), BINS)
    tensor = torch.from_numpy(spectra_NF)  # writeable, so torch does not warn
    tensor[0, 0] = 9
    assert spectra_NF[0, 0] == 9


# --- hashes --------------------------------------------------------------------------------------------------------


def test_a_folders_hash_sees_bytes_and_names_and_refuses_links(tmp_path: Path) -> None:
    def folder(name: str, files: dict[str, str]) -> str:
        for path, text in files.items():
            store.write_text(tmp_path / name / path, text)
        return store.sha256_folder(tmp_path / name)

    one = folder("one", {"a": "1", "b/c": "2"})
    assert one == folder("same", {"b/c": "2", "a": "1"})
    assert len({one, folder("bytes", {"a": "1", "b/c": "3"}), folder("names", {"a": "1", "b/d": "2"})}) == 3
    (tmp_path / "one" / "link").symlink_to(tmp_path / "same")
    with pytest.raises(ContractError, match="link or device"):
        store.sha256_folder(tmp_path / "one")
