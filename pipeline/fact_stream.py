"""Keys and facts of every row of a snapshot, in order: row groups are decoded and described on several threads.

NumPy and Arrow let go of the interpreter while they work, so two threads keep two cores busy; what needs the order of
rows (repeats, time since the previous row) is joined on the way out. In memory are the spectra of a row group per
thread and the facts of some thirty, whatever the set.

Shape legend: N rows, F frequency bins, R runs: rows of one machine on one day that stand together in a file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.errors import ContractError
from pipeline.facts import Columns, FloatRF, History, Links, facts_and_log_sums
from pipeline.schema import MICROSECONDS_PER_DAY, IntN, codes_and_names, spectra_view, times_us
from pipeline.store import read_row_group, row_group_rows

THREADS = 2
AHEAD = 16  # row groups described before their turn, per thread: facts are small, and the suite takes 2,000,000 rows

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class FactBatch:
    """Some rows of one file, in its order.

    `machine_N` are codes into `machines`, which holds only names of this batch; `facts` has one array (N,) per fact.
    Run r begins at row `starts_R[r]`; `log_sum_RF` is the sum of its log spectra over `log_rows_R` rows (no columns
    where there are no logs).
    """

    file: str
    row: int  # of the first row, in its file
    machine_N: npt.NDArray[np.int32]
    machines: Sequence[str]
    time_us_N: IntN
    facts: Columns
    starts_R: IntN
    log_sum_RF: FloatRF
    log_rows_R: IntN

    def __len__(self) -> int:
        return len(self.machine_N)


def fact_batches(files: Sequence[Path], bins: int, *, logs: bool = True, threads: int = THREADS) -> Iterator[FactBatch]:
    """Keys and facts of all rows, a row group at a time, in the order of files and rows.

    Args:
        files: day files, rows sorted by machine and time.
        bins: F.
        logs: whether to sum log spectra.
        threads: that decode and describe.

    Raises:
        ContractError: a damaged file, another number of bins, rows without key.
    """
    history = History()
    groups = []
    for path in files:
        row = 0
        for group, rows in enumerate(row_group_rows(path)):
            groups.append((path, group, row))
            row += rows

    def described(place: tuple[Path, int, int]) -> tuple[FactBatch, Links]:
        return _described(*place, bins, logs)

    for batch, links in ordered_map(described, groups, threads):
        if not len(batch):
            continue
        batch.facts.update(history.facts(batch.machine_N, batch.machines, batch.time_us_N, links))
        yield batch


def _described(path: Path, group: int, row: int, bins: int, logs: bool) -> tuple[FactBatch, Links]:
    """One row group: what can be said of it without the rows before."""
    table = read_row_group(path, group, ["machine_id", "timestamp", "spectrum"])
    machine_N, machines = codes_and_names(table["machine_id"])
    if (machine_N < 0).any() or table["timestamp"].null_count:
        got = f"{int((machine_N < 0).sum())} rows without machine_id, {table['timestamp'].null_count} without timestamp"
        raise ContractError.of("keys", got=got, expected="none", where=path)
    time_us_N = times_us(table["timestamp"])
    spectra_NF = spectra_view(table["spectrum"], bins, path)
    day_N = time_us_N // MICROSECONDS_PER_DAY
    first_N = np.r_[len(day_N) > 0, (machine_N[1:] != machine_N[:-1]) | (day_N[1:] != day_N[:-1])][: len(day_N)]
    starts_R = np.flatnonzero(first_N)
    facts, log_sum_RF, log_rows_R = facts_and_log_sums(spectra_NF, starts_R if logs else None)
    batch = FactBatch(path.name, row, machine_N, machines, time_us_N, facts, starts_R, log_sum_RF, log_rows_R)
    return batch, Links.of(machine_N, spectra_NF)


def ordered_map(work: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """Results of `work` in the order of the items, computed on threads, a few ahead of the reader and never more.

    >>> list(ordered_map(lambda number: number * number, range(5), threads=2))
    [0, 1, 4, 9, 16]
    """
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def joined(batches: Iterable[FactBatch], rows: int) -> Iterator[list[FactBatch]]:
    """Lists of batches of at least `rows` rows together; one empty list where there are none at all."""
    waiting: list[FactBatch] = []
    yielded = False
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= rows:
            yield waiting
            waiting, yielded = [], True
    if waiting or not yielded:
        yield waiting


class Names:
    """Codes of names across batches.

    >>> names = Names()
    >>> names.codes(np.array([0, 1]), ["a", "b"]).tolist(), names.codes(np.array([0, 0]), ["b"]).tolist()
    ([0, 1], [1, 1])
    """

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def names(self) -> list[str]:
        """All names so far, by code."""
        return list(self._codes)

    def codes(self, code_N: npt.NDArray[np.integer], names: Sequence[str]) -> npt.NDArray[np.int32]:
        """Codes (N,) that hold across batches, from codes into a batch's own names; unused names get none."""
        translated = np.zeros(len(names), np.int32)
        for code in np.unique(code_N).tolist():
            translated[code] = self._codes.setdefault(names[code], len(self._codes))
        return np.asarray(translated[code_N])


def no_rows(bins: int) -> FactBatch:
    """A batch without rows: the columns of every other."""
    nothing = np.empty(0, np.int64)
    spectra = np.empty((0, bins), np.float32)
    facts, sums, rows = facts_and_log_sums(spectra, nothing)
    facts |= History().facts(nothing, [], nothing, Links.of(nothing, spectra))
    return FactBatch("", 0, nothing.astype(np.int32), [], nothing, facts, nothing, sums, rows)
