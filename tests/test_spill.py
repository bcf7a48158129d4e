"""spill: what was kept stays and what came later goes, wherever the rows lie when a file breaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ContractError
from pipeline.schema import MICROSECONDS_PER_DAY, time_column
from pipeline.spill import DaySpill


def rows(rng: np.random.Generator, first: int) -> pa.Table:
    day_N = rng.integers(0, 4, rng.integers(0, 30))
    number_N = np.arange(first, first + len(day_N))
    return pa.table({"timestamp": time_column(day_N * MICROSECONDS_PER_DAY + number_N), "row": pa.array(number_N)})


def numbers(spill: DaySpill) -> dict[str, list[int]]:
    found = {name: spill.read(name)["row"].to_pylist() for name in spill.days()}
    return {name: values for name, values in found.items() if values}


@pytest.mark.parametrize("buffer_bytes", [1, 300, 2000, 1 << 20])
@pytest.mark.parametrize("seed", range(5))
def test_rows_of_broken_files_leave_no_trace(tmp_path: Path, buffer_bytes: int, seed: int) -> None:
    rng, first, expected = np.random.default_rng(seed), 0, dict[str, list[int]]()
    with DaySpill(tmp_path / "spill", buffer_bytes) as spill:
        for _ in range(30):
            tables = [rows(rng, first + 100 * part) for part in range(rng.integers(0, 5))]
            first += 1000
            for table in tables:
                spill.add(table, "a file")
            if rng.random() < 0.5:
                spill.drop()
                continue
            spill.keep()
            for table in tables:
                for time, number in zip(table["timestamp"].to_pylist(), table["row"].to_pylist(), strict=True):
                    expected.setdefault(f"{time:%Y-%m-%d}.parquet", []).append(number)
        assert {name: sorted(found) for name, found in numbers(spill).items()} == {
            name: sorted(values) for name, values in expected.items()
        }
    assert not (tmp_path / "spill").exists()


def test_a_time_that_no_day_file_can_be_named_after_is_refused(tmp_path: Path) -> None:
    with DaySpill(tmp_path / "spill", 1) as spill, pytest.raises(ContractError, match="outside the years 1 to 9999"):
        spill.add(pa.table({"timestamp": time_column(np.array([2**62]))}), "a file")
