"""Random bytes, cuts and flipped bytes at every door: the outcome is data or one message, never a traceback."""

from __future__ import annotations

import gzip
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat, wavfile

from pipeline.errors import ContractError
from pipeline.landing import open_source
from pipeline.layout import SourceLayout

LAYOUT = SourceLayout.model_validate(
    {
        "machine_id": "m",
        "start": "2024-01-01T00:00:00Z",
        "interval_seconds": 1,
        "waveform": {"window_samples": 64, "bands": 8},
    }
)
SAMPLES = np.random.default_rng(1).standard_normal(500).astype(np.float32) / 5


def with_rate(layout: SourceLayout) -> SourceLayout:
    waveform = layout.waveform.model_copy(update={"sample_rate_hz": 1000.0}) if layout.waveform else None
    return layout.model_copy(update={"waveform": waveform})


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


TABLE = pa.table(
    {
        "machine_id": pa.array(["a", "b"] * 50).dictionary_encode(),
        "timestamp": pa.array(np.arange(100) * 1_000_000, pa.timestamp("us")),
        "spectrum": pa.array(SAMPLES.reshape(100, 5).tolist(), pa.list_(pa.float32())),
        "load": pa.array(range(100)),
    }
)
TEXT = "machine_id,timestamp,bin_0,bin_1,load\n" + "".join(f"m,2024-01-01T00:00:{s:02d},{s},2.5,x\n" for s in range(60))
DOORS = {
    "parquet": written(lambda file: pq.write_table(TABLE, file)),
    "csv": TEXT.encode(),
    "csv.gz": gzip.compress(TEXT.encode(), mtime=0),
    "wav": written(lambda file: wavfile.write(file, 1000, (SAMPLES * 2**15).astype(np.int16))),
    "npy": written(lambda file: np.save(file, SAMPLES)),
    "mat": written(lambda file: savemat(file, {"x": SAMPLES, "rpm": 3}, do_compression=True)),
    "waveform.csv": ("t,acc\n" + "".join(f"{n},{value}\n" for n, value in enumerate(SAMPLES))).encode(),
}


def read(door: str, content: bytes) -> int:
    """Rows, or -1 where there was one message."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{door.removeprefix('waveform.')}"
        path.write_bytes(content)
        table = door in ("parquet", "csv", "csv.gz")
        layout = LAYOUT if table or door == "wav" else with_rate(LAYOUT)
        message = ""
        try:
            source = open_source(path, timezone="Europe/Berlin", layout=layout)
            return sum(table.num_rows for file in source.files for table in source.tables(file))
        except ContractError as error:
            message = str(error)
        assert "\n" not in message
        return -1


@pytest.mark.parametrize("door", DOORS)
def test_whole_files_are_read(door: str) -> None:
    assert read(door, DOORS[door]) > 0


@pytest.mark.parametrize("door", DOORS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_files_are_data_or_one_message(door: str, data: st.DataObject) -> None:
    whole = DOORS[door]
    what = data.draw(st.sampled_from(["bytes", "cut", "flipped", "overwritten"]))
    if what == "bytes":
        content = data.draw(st.binary(max_size=300))
    elif what == "cut":
        content = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif what == "flipped":
        content = bytearray(whole)
        for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=8)):
            content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        begin = data.draw(st.integers(0, len(whole) - 1))
        content = whole[:begin] + data.draw(st.binary(min_size=1, max_size=50)) + whole[begin + 20 :]
    read(door, bytes(content))
