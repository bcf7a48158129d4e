"""Rows of a snapshot with what the stages decided about them, as arrays: the input of detectors and judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import BoolN, FloatNF, IntN, codes_and_names, times_us
from pipeline.store import read_spectra


@dataclass(frozen=True)
class Rows:
    """N rows: their spectra (N, F) and keys, in the order of the status table.

    `machine` holds codes into `machines`; `time_us` microseconds since 1970 (UTC).
    """

    spectra: FloatNF
    machine: np.ndarray
    machines: Sequence[str]
    epoch: np.ndarray
    time_us: IntN
    status: pa.Table

    def __len__(self) -> int:
        return len(self.spectra)

    def column(self, name: str) -> np.ndarray:
        """A text column of the status table as an array of str (null: empty)."""
        codes, names = codes_and_names(self.status[name])
        return np.array([*names, ""], dtype=object)[codes]


def load_rows(data_set: Path, status: pa.Table, selected_N: BoolN, bins: int) -> Rows:
    """Read the selected rows of a status table (with the columns of `split`) and their spectra."""
    kept = status.filter(pa.array(selected_N))
    machine, machines = codes_and_names(kept["machine_id"])
    return Rows(
        spectra=read_spectra(data_set, status, selected_N, bins),
        machine=machine,
        machines=machines,
        epoch=kept["epoch"].to_numpy(),
        time_us=times_us(kept["timestamp"]),
        status=kept,
    )


def has_role(split: pa.Table, *roles: str) -> BoolN:
    """Which rows of a split table have one of the roles."""
    mask = pc.is_in(split["role"].cast(pa.string()), value_set=pa.array([str(role) for role in roles]))
    return np.asarray(mask.to_numpy(zero_copy_only=False), dtype=bool)
