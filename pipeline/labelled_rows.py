"""Every row of a data set with what its own files say of it: quality, log status, the failure that it lies before.

Shape legend: N rows, K failures.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.params import SplitParams, ValidateParams
from pipeline.plant_log import PlantLog
from pipeline.roles import boundaries_of
from pipeline.row_counts import OK, STATUSES, SUSPECT
from pipeline.schema import KEY_FIELDS, VALIDATE_SCHEMA, BoolN, IntN, codes_and_names, dictionary_column, times_us
from pipeline.store import day_files, read_table, row_count


@dataclass(frozen=True)
class LabelledRows:
    """Rows in the order of the data set's files, as stage `split` labels them."""

    table: pa.Table  # keys and status (VALIDATE_SCHEMA)
    machines: tuple[str, ...]
    machine_N: npt.NDArray[np.int32]  # codes into `machines`
    time_us_N: IntN  # microseconds since 1970 UTC
    trusted_N: BoolN  # by validation neither quarantined nor suspect
    status_N: npt.NDArray[np.int8]  # LogStatus
    owner_N: npt.NDArray[np.int32]  # the failure whose horizon it lies in; -1: none
    plant: PlantLog

    def keyed(self, epoch_N: npt.NDArray[np.int32]) -> pa.Table:
        """Keys, epoch and failure_id of the rows."""
        columns = {
            **{field.name: self.table[field.name] for field in KEY_FIELDS},
            "epoch": pa.array(epoch_N),
            "failure_id": dictionary_column(self.owner_N, self.plant.failures["failure_id"].to_pylist()),
        }
        return pa.table(columns)


def labelled(data_set: Path, split: SplitParams, validate: ValidateParams) -> LabelledRows:
    """What the files of a data set say of its rows.

    Args:
        data_set: that `hearken ingest` wrote, or `data/raw` of a build.
        split: horizon, run-in, boundaries, and since when the fleet is as it is.
        validate: limits of the rows' facts, where no status table stands beside the data set.

    Raises:
        ContractError: no maintenance log, or damaged files.
    """
    table = row_quality(data_set, validate)
    machine_N, machines = codes_and_names(table["machine_id"])
    time_us_N = times_us(table["timestamp"])
    quality_N, names = codes_and_names(table["status"])
    kept_N, trusted_N = (
        np.isin(quality_N, [names.index(STATUSES[rank]) for rank in ranks if STATUSES[rank] in names])
        for ranks in ((OK, SUSPECT), (OK,))
    )
    plant = PlantLog.of(data_set, split.horizon_hours)
    newest_N = time_us_N
    if kept_N.any():
        newest_N = boundaries_of(machine_N, time_us_N, kept_N, len(machines), split).end[machine_N]
    status_N, owner_N = plant.statuses(machine_N, time_us_N, machines, kept_N, newest_N, split)
    return LabelledRows(table, tuple(machines), machine_N, time_us_N, trusted_N, status_N, owner_N, plant)


def row_quality(data_set: Path, params: ValidateParams) -> pa.Table:
    """Keys and status of every row: from the status table of a build beside the data set, else validated here."""
    names = [*(field.name for field in KEY_FIELDS), "status"]
    beside = data_set.parent / "status/validate.parquet"
    if beside.is_file():
        table = read_table(beside, names, VALIDATE_SCHEMA)
        if _is_of(table, day_files(data_set)):
            return table
    from pipeline.validate import validate  # only here: Great Expectations takes seconds to load

    with tempfile.TemporaryDirectory(prefix="hearken-") as folder:
        file = Path(folder) / "validate.parquet"
        validate(data_set, file, params)
        return read_table(file, names, VALIDATE_SCHEMA)


def _is_of(table: pa.Table, files: list[Path]) -> bool:
    """Whether a status table holds the rows of these files: the same numbers of rows, and the same times."""
    file_N, names = codes_and_names(table["file"])
    counts = dict(zip(names, np.bincount(file_N, minlength=len(names)).tolist(), strict=True))
    if counts != {path.name: row_count(path) for path in files}:
        return False
    begin, time_us_N = 0, times_us(table["timestamp"])
    for path in files:
        found_N = times_us(read_table(path, ["timestamp"])["timestamp"])
        if not np.array_equal(time_us_N[begin : begin + len(found_N)], found_N):
            return False
        begin += len(found_N)
    return True
