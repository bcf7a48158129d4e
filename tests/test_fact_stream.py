"""Facts as a stream: the same rows whatever the threads and row groups, and machine-days gathered from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.day_tally import DayTally
from pipeline.errors import ContractError
from pipeline.fact_stream import FactBatch, Names, fact_batches, ordered_map
from pipeline.facts import facts_and_log_sums, spectrum_facts
from pipeline.schema import MICROSECONDS_PER_DAY, dictionary_column, spectra_column, spectra_schema, time_column
from pipeline.store import write_table

BINS, ROWS = 8, 300
START = 1_735_689_600_000_000  # 2025-01-01
FAR = 2**62


def spectra(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(size=(ROWS, BINS)).astype(np.float32)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two days of three machines, in row groups of 64 rows; the last row of machine 0 comes again the next day."""
    days = [spectra(0), spectra(1)]
    days[1][0] = days[0][99]
    for day, values in enumerate(days):
        times = START + day * MICROSECONDS_PER_DAY + np.tile(np.arange(100) * 1_000_000, 3)
        machine = dictionary_column(np.repeat([0, 1, 2], 100), ["a", "b", "c"])
        table = pa.table({"machine_id": machine, "timestamp": time_column(times), "spectrum": spectra_column(values)})
        write_table(tmp_path / f"{day}.parquet", table.cast(spectra_schema(BINS)))
        # smaller groups than the project writes, so that machines span them
        pq.write_table(pq.read_table(tmp_path / f"{day}.parquet"), tmp_path / f"{day}.parquet", row_group_size=64)
    return sorted(tmp_path.glob("*.parquet"))


def whole(batches: list[FactBatch], name: str) -> np.ndarray:
    return np.concatenate([batch.facts[name] for batch in batches])


def test_threads_and_row_groups_change_nothing(files):
    one, three = (list(fact_batches(files, BINS, threads=threads)) for threads in (1, 3))
    assert [len(batch) for batch in one] == [64, 64, 64, 64, 44] * 2
    assert [batch.row for batch in three] == [0, 64, 128, 192, 256] * 2
    expected = spectrum_facts(np.concatenate([spectra(0), spectra(1)]))
    for name in one[0].facts:
        np.testing.assert_array_equal(whole(one, name), whole(three, name))
    np.testing.assert_array_equal(np.delete(whole(one, "energy"), ROWS), np.delete(expected["energy"], ROWS))
    assert np.flatnonzero(whole(one, "repeats")).tolist() == [ROWS]
    assert whole(one, "seconds_since_previous")[ROWS] == 86_400 - 99


def test_a_machine_day_is_the_same_whatever_pieces_it_comes_in(files):
    names = Names()
    tally = DayTally(names)
    for batch in fact_batches(files, BINS):
        tally.add(batch, FAR)
    days = tally.finish()
    assert days.rows_D.tolist() == [100] * 6
    assert [days.machines[code] for code in days.machine_D] == ["a", "a", "b", "b", "c", "c"]
    values = spectra(0)[100:200]  # machine b, first day
    energies = np.sort(np.linalg.norm(values, axis=1))
    np.testing.assert_allclose(days.energy_DQ[2], energies[[10, 50, 89]], rtol=1e-6)
    np.testing.assert_allclose(days.log_DF[2], np.log(values).mean(axis=0), rtol=1e-4, atol=1e-5)


def test_rows_beyond_the_newest_are_no_days(files):
    tally = DayTally(Names())
    for batch in fact_batches(files, BINS, logs=False):
        tally.add(batch, START + MICROSECONDS_PER_DAY - 1)
    days = tally.finish()
    assert len(days.day_D) == 3
    assert np.isnan(days.log_DF).all()


def test_a_reader_that_stops_stops_the_work():
    begun = []
    results = ordered_map(lambda number: begun.append(number) or number, range(1000), threads=2)
    assert [next(results), next(results)] == [0, 1]
    results.close()
    assert len(begun) < 100


def test_an_error_comes_where_its_result_would():
    def work(number: int) -> float:
        return 1 / (3 - number)

    results = ordered_map(work, range(10), threads=2)
    assert [round(next(results), 2) for _ in range(3)] == [0.33, 0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_damaged_files_are_named(files):
    text = files[1].read_bytes()
    files[1].write_bytes(text[:200] + b"\0" * 3000 + text[3200:])
    with pytest.raises(ContractError, match=r"whole Parquet file.*1\.parquet"):
        list(fact_batches(files, BINS))
    pq.write_table(pa.table({"machine_id": ["a"]}), files[1])
    with pytest.raises(ContractError, match="no column timestamp, spectrum"):
        list(fact_batches(files, BINS))


@pytest.mark.parametrize("shape", [(1, 8), (8, 1)])
def test_a_lone_row_or_bin_is_not_written_over(shape: tuple[int, int]) -> None:
    spectra = np.arange(1, 9, dtype=np.float32).reshape(shape)
    spectra.flags.writeable = False
    _, sums, rows = facts_and_log_sums(spectra, np.array([0]))
    np.testing.assert_allclose(sums, np.log(spectra).sum(axis=0, keepdims=True), rtol=1e-6)
    assert rows.tolist() == [shape[0]]
