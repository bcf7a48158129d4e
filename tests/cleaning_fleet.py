"""A fleet for the tests of cleaning: machines with shapes of their own that work and idle, a row an hour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.schema import (
    MACHINE,
    MICROSECONDS_PER_DAY,
    MICROSECONDS_PER_HOUR,
    SPLIT_SCHEMA,
    TEXT,
    FleetSpec,
    Role,
    dictionary_column,
    spectra_column,
    spectra_schema,
    time_column,
)
from pipeline.store import write_fleet_spec, write_table

MACHINES, DAYS, BINS = 10, 24, 12
HOURS = 24 * DAYS
ROLES = tuple(role.value for role in Role)
NAMES = [f"m{code}" for code in range(MACHINES)]


class Fleet:
    """Spectra (M, hours, F) that a test may change, the role of each row, and the data set made from them."""

    def __init__(self, seed: int = 3) -> None:
        rng = np.random.default_rng(seed)
        shape_MF = rng.normal(size=(MACHINES, BINS))
        hour = np.arange(HOURS) % 24
        self.idle_H = hour % 3 == 0
        level_H = np.where(self.idle_H, -2.0, 0.0)
        load_MH = 0.1 * rng.normal(size=(MACHINES, HOURS))
        noise = 0.12 * rng.normal(size=(MACHINES, HOURS, BINS))
        self.spectra = np.exp(shape_MF[:, None] + (level_H + load_MH)[..., None] + noise).astype(np.float32)
        self.role_MH = np.full((MACHINES, HOURS), ROLES.index(Role.TRAIN), np.int16)
        self.failure_MH = np.full((MACHINES, HOURS), -1, np.int16)
        self.epoch_MH = np.zeros((MACHINES, HOURS), np.int32)

    def write(self, folder: Path, *, condition: bool = True, names: Sequence[str] = tuple(NAMES)) -> pa.Table:
        """Write the data set; the split table of its rows."""
        files, parts = [], []
        for day in range(DAYS):
            hours = slice(24 * day, 24 * day + 24)
            machines = dictionary_column(np.repeat(np.arange(MACHINES), 24), names, MACHINE)
            time_N = np.tile(np.arange(24) * MICROSECONDS_PER_HOUR, MACHINES) + day * MICROSECONDS_PER_DAY
            spectra = self.spectra[:, hours].reshape(-1, BINS)
            files.append(f"{np.datetime64('1970-01-01') + day}.parquet")
            columns = [machines, time_column(time_N), spectra_column(spectra)]
            schema = spectra_schema(BINS)
            if condition:
                codes = np.tile(self.idle_H[hours], MACHINES).astype(np.int16)
                columns.append(dictionary_column(codes, ["work", "idle"]))
                schema = spectra_schema(BINS, [pa.field("condition", TEXT)])
            write_table(folder / "spectra" / files[-1], pa.Table.from_arrays(columns, schema=schema))
            rows = len(time_N)
            columns = [
                dictionary_column(np.full(rows, day, np.int16), [*files]),
                pa.array(np.arange(rows, dtype=np.int32)),
                machines,
                time_column(time_N),
                dictionary_column(np.zeros(rows, np.int16), ["healthy"]),
                pa.array(self.epoch_MH[:, hours].reshape(-1)),
                dictionary_column(self.role_MH[:, hours].reshape(-1), ROLES),
                dictionary_column(np.zeros(rows, np.int16), ["healthy"]),
                dictionary_column(self.failure_MH[:, hours].reshape(-1), ["failure-1", "failure-2"]),
            ]
            parts.append(pa.Table.from_arrays(columns, schema=SPLIT_SCHEMA))
        write_fleet_spec(folder / "fleet.yaml", FleetSpec(bins=BINS))
        return pa.concat_tables(parts).unify_dictionaries()

    def grid(self, column: pa.ChunkedArray) -> np.ndarray:
        """A column of the split's rows as (M, hours)."""
        values = np.array(column.to_pylist(), dtype=object)
        return values.reshape(DAYS, MACHINES, 24).transpose(1, 0, 2).reshape(MACHINES, HOURS)
