"""Rows of a snapshot with what the stages decided about them, as arrays: the input of detectors and judges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import BoolN, FloatNF, IntN, codes_and_names, times_us
from pipeline.store import context_text, read_context, read_spectra

ONE_CONDITION = ("",)
PIECE_ROWS = 200_000  # spectra held at once, rounded up to whole day files
Codes = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class RowKeys:
    """What decides a row's baseline: its machine, baseline epoch and operating condition.

    `machine_N` holds codes into `machines`, `condition_N` codes into `conditions`. Rows whose condition nobody wrote
    down have one, with an empty name.

    >>> keys = RowKeys.of(["pump", "fan"], np.array([0, 0, 1]), np.array([0, 1, 0]))
    >>> keys.take(np.array([2])).machine_N, keys.conditions
    (array([1]), ('',))
    """

    machines: Sequence[str]
    machine_N: Codes
    epoch_N: Codes
    conditions: Sequence[str]
    condition_N: Codes

    @classmethod
    def of(cls, machines: Sequence[str], machine_N: Codes, epoch_N: Codes) -> RowKeys:
        """Keys of rows that are all of one condition."""
        return cls(machines, machine_N, epoch_N, ONE_CONDITION, np.zeros(len(machine_N), np.int32))

    def __len__(self) -> int:
        return len(self.machine_N)

    def take(self, index: Codes | BoolN | slice) -> RowKeys:
        """The keys of some rows."""
        machine, epoch, condition = self.machine_N[index], self.epoch_N[index], self.condition_N[index]
        return RowKeys(self.machines, machine, epoch, self.conditions, condition)

    def of_one_condition(self) -> RowKeys:
        """The same rows as if their condition were not known."""
        return RowKeys.of(self.machines, self.machine_N, self.epoch_N)


@dataclass(frozen=True)
class Rows:
    """N rows: their spectra (N, F) and keys, in the order of the status table.

    `machine` holds codes into `machines`, `condition` into `conditions`; `time_us` microseconds since 1970 (UTC).

    >>> none = np.zeros(3, np.int32)
    >>> time_us, status = np.array([10, 20, 30]), pa.table({"row": [0, 1, 2]})
    >>> rows = Rows(np.eye(3), none, ["pump"], none, none, ONE_CONDITION, time_us, status)
    >>> Rows.concatenate([rows.take(np.array([2])), rows.take(rows.time_us < 20)]).time_us
    array([30, 10])
    """

    spectra: FloatNF
    machine: np.ndarray
    machines: Sequence[str]
    epoch: np.ndarray
    condition: np.ndarray
    conditions: Sequence[str]
    time_us: IntN
    status: pa.Table

    def __len__(self) -> int:
        return len(self.spectra)

    def take(self, index: Codes | BoolN | slice) -> Rows:
        """Some of the rows."""
        return replace(
            self,
            spectra=self.spectra[index],
            machine=self.machine[index],
            epoch=self.epoch[index],
            condition=self.condition[index],
            time_us=self.time_us[index],
            status=self.status.take(pa.array(np.arange(len(self))[index])),
        )

    @staticmethod
    def concatenate(parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, one after the other; the parts share machines and conditions."""
        return replace(
            parts[0],
            spectra=np.concatenate([part.spectra for part in parts]),
            machine=np.concatenate([part.machine for part in parts]),
            epoch=np.concatenate([part.epoch for part in parts]),
            condition=np.concatenate([part.condition for part in parts]),
            time_us=np.concatenate([part.time_us for part in parts]),
            status=pa.concat_tables([part.status for part in parts]),
        )

    @property
    def keys(self) -> RowKeys:
        """What decides each row's baseline."""
        return RowKeys(self.machines, self.machine, self.epoch, self.conditions, self.condition)

    def column(self, name: str) -> np.ndarray:
        """A text column of the status table as an array of str (null: empty)."""
        codes, names = codes_and_names(self.status[name])
        return np.array([*names, ""], dtype=object)[codes]


def load_rows(
    data_set: Path, status: pa.Table, selected_N: BoolN, bins: int, condition_column: str | None = None
) -> Rows:
    """Read the selected rows of a status table (with the columns of `split`), their spectra and conditions.

    Without a `condition_column` all rows are of one condition.
    """
    rows = rows_without_spectra(data_set, status, selected_N, condition_column)
    return replace(rows, spectra=read_spectra(data_set, status, selected_N, bins))


def rows_without_spectra(data_set: Path, status: pa.Table, selected_N: BoolN, condition_column: str | None) -> Rows:
    """As `load_rows`, with spectra of no bins: for what is read piece by piece."""
    kept = status.filter(pa.array(selected_N))
    machine, machines = codes_and_names(kept["machine_id"])
    condition, conditions = load_conditions(data_set, status, selected_N, condition_column)
    return Rows(
        spectra=np.empty((len(kept), 0), np.float32),
        machine=machine,
        machines=machines,
        epoch=kept["epoch"].to_numpy(),
        condition=condition,
        conditions=conditions,
        time_us=times_us(kept["timestamp"]),
        status=kept,
    )


def spectra_pieces(
    data_set: Path, status: pa.Table, selected_N: BoolN, bins: int, piece_rows: int = PIECE_ROWS
) -> Iterator[tuple[slice, FloatNF]]:
    """The spectra of the selected rows in pieces of whole day files, each with its place among those rows."""
    file_N, _ = codes_and_names(status["file"])
    ends = [*(np.flatnonzero(np.diff(file_N)) + 1).tolist(), len(file_N)]
    begin = done = 0
    for end in ends:
        rows = int(selected_N[begin:end].sum())
        if rows >= piece_rows or (rows and end == len(file_N)):
            part = read_spectra(data_set, status.slice(begin, end - begin), selected_N[begin:end], bins)
            yield slice(done, done + rows), part
            begin, done = end, done + rows


def load_conditions(
    data_set: Path, status: pa.Table, selected_N: BoolN, column: str | None
) -> tuple[np.ndarray, Sequence[str]]:
    """Codes (n,) and names of the selected rows' conditions; one for all where no column tells them."""
    if column is None:
        return np.zeros(int(selected_N.sum()), np.int32), ONE_CONDITION
    return codes_and_names(read_context(data_set, status, selected_N, column))


def conditions_of(table: pa.Table, column: str | None, where: object) -> tuple[np.ndarray, Sequence[str]]:
    """Codes (N,) and names of the conditions of a table's rows; one for all where no column tells them.

    >>> conditions_of(pa.table({"mode": ["cut", "idle", "cut"]}), "mode", "")
    (array([0, 1, 0], dtype=int32), ['cut', 'idle'])
    """
    if column is None:
        return np.zeros(table.num_rows, np.int32), ONE_CONDITION
    return codes_and_names(context_text(table, column, where))


def has_role(split: pa.Table, *roles: str) -> BoolN:
    """Which rows of a split table have one of the roles."""
    mask = pc.is_in(split["role"].cast(pa.string()), value_set=pa.array([str(role) for role in roles]))
    return np.asarray(mask.to_numpy(zero_copy_only=False), dtype=bool)
