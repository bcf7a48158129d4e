"""schema: spectra are views into Arrow's memory; slices, nulls and dictionaries keep their meaning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.errors import ContractError
from pipeline.schema import (
    MACHINE,
    TEXT,
    FleetSpec,
    codes_and_names,
    dictionary_column,
    load_fleet_spec,
    spectra_column,
    spectra_schema,
    spectra_view,
    time_column,
    times_us,
)

SPECTRA_NF = np.arange(20, dtype=np.float32).reshape(5, 4)


def test_spectra_go_to_arrow_numpy_and_torch_without_a_copy() -> None:
    column = spectra_column(SPECTRA_NF)
    assert column.flatten().buffers()[1].address == SPECTRA_NF.ctypes.data
    view = spectra_view(column, 4)
    assert np.shares_memory(view, SPECTRA_NF)
    assert torch.from_dlpack(column.flatten()).data_ptr() == SPECTRA_NF.ctypes.data
    assert np.shares_memory(spectra_view(pa.chunked_array([column]), 4), SPECTRA_NF)


def test_a_slice_is_the_rows_it_names() -> None:
    column = spectra_column(SPECTRA_NF)
    for sliced in (
        column.slice(3, 2),
        pa.chunked_array([column]).slice(3, 2),
        pa.table({"s": column}).slice(3, 2)["s"],
    ):
        view = spectra_view(sliced, 4)
        assert view.tolist() == SPECTRA_NF[3:5].tolist()
        assert np.shares_memory(view, SPECTRA_NF)


def test_chunks_are_joined_in_order_and_no_chunk_is_no_row() -> None:
    column = spectra_column(SPECTRA_NF)
    assert spectra_view(pa.chunked_array([column.slice(2), column.slice(0, 2)]), 4).tolist() == [
        *SPECTRA_NF[2:].tolist(),
        *SPECTRA_NF[:2].tolist(),
    ]
    assert spectra_view(pa.chunked_array([], pa.list_(pa.float32(), 4)), 4).shape == (0, 4)


def test_a_null_row_is_refused_and_a_null_bin_is_nan() -> None:
    kind = pa.list_(pa.float32(), 2)
    with pytest.raises(ContractError, match="spectrum: got 1 null rows, expected none"):
        spectra_view(pa.array([[1, 2], None, [3, 4]], kind), 2)
    view = spectra_view(pa.array([[1, None], [3, 4]], kind), 2)
    assert np.isnan(view).tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32(), 3), pa.list_(pa.float64(), 2), pa.list_(pa.float32()), pa.float32()]
)
def test_another_type_is_named(kind: pa.DataType) -> None:
    with pytest.raises(ContractError, match=r"type of spectrum: got .*, expected fixed_size_list<float>\[2\]"):
        spectra_view(pa.array([], kind), 2)


def test_a_view_that_is_not_contiguous_is_copied_right() -> None:
    assert spectra_view(spectra_column(SPECTRA_NF[:, ::2]), 2).tolist() == SPECTRA_NF[:, ::2].tolist()


def test_dictionaries_of_different_files_are_unified() -> None:
    one = dictionary_column(np.array([0, 1]), ["a", "b"], MACHINE)
    two = dictionary_column(np.array([0, 1, -1]), ["b", "c"], MACHINE)  # the same codes mean other names
    codes, names = codes_and_names(pa.chunked_array([one, two]))
    assert [names[code] if code >= 0 else None for code in codes] == ["a", "b", "b", "c", None]
    assert codes_and_names(pa.chunked_array([], TEXT))[0].tolist() == []


def test_more_names_than_codes_are_refused() -> None:
    names = [str(n) for n in range(70_000)]
    with pytest.raises(ContractError, match="got 70000, expected at most 32768"):
        dictionary_column(np.array([65_536]), names, TEXT)  # as int16 this code would be 0, another name
    assert dictionary_column(np.array([65_536]), names, MACHINE)[0].as_py() == "65536"


def test_times_are_microseconds_of_utc() -> None:
    column = time_column(np.array([0, 1_000_001], np.int64))
    assert times_us(column).tolist() == [0, 1_000_001]
    assert column[1].as_py().isoformat() == "1970-01-01T00:00:01.000001+00:00"


def test_the_schema_of_a_day_file_has_keys_that_are_never_null() -> None:
    schema = spectra_schema(4, [pa.field("load", pa.float32())])
    assert schema.names == ["machine_id", "timestamp", "spectrum", "load"]
    assert [field.nullable for field in schema] == [False, False, False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bins: 0", "bins: got 0"),
        ("bins: many", "bins: got 'many'"),
        ("kind: sound", "kind: got 'sound'"),
        ("kind: spectrum\ncolour: red", "colour: got an unknown key, .*line 2"),
        ("name: ../up", "name: got"),
        ("[", "got text that is not YAML"),
    ],
)
def test_a_wrong_fleet_yaml_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "fleet.yaml").write_text(text)
    with pytest.raises(ContractError, match=message):
        load_fleet_spec(tmp_path / "fleet.yaml")


def test_a_missing_fleet_yaml_is_named_and_an_empty_one_is_the_default(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="got no file"):
        load_fleet_spec(tmp_path / "fleet.yaml")
    (tmp_path / "fleet.yaml").write_text("")
    assert load_fleet_spec(tmp_path / "fleet.yaml") == FleetSpec()
