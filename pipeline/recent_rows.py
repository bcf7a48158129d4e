"""The rows of a data set that calibrate a release anew: healthy by its log, sound, and later than the release.

Shape legend: N rows, M machines, K failures.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.calibrate import FEW_ROWS
from pipeline.epochs import microseconds
from pipeline.errors import ContractError
from pipeline.judging.judged import iso
from pipeline.log_status import LOG_STATUSES, LogStatus
from pipeline.params import Params, ValidateParams
from pipeline.plant_log import SOUND, PlantLog
from pipeline.release import Release
from pipeline.roles import boundaries_of, unseen_machines
from pipeline.row_counts import OK, STATUSES, SUSPECT
from pipeline.schema import (
    KEY_FIELDS,
    MICROSECONDS_PER_HOUR,
    VALIDATE_SCHEMA,
    BoolN,
    codes_and_names,
    dictionary_column,
    times_us,
)
from pipeline.store import day_files, read_table, row_count


class TooFewRows(ContractError):
    """No rows are later than the release, or too few of them are healthy: time may mend it."""


@dataclass(frozen=True)
class RecentRows:
    """Rows of a data set in the order of its files, with epochs as the release knows them, and what they are for."""

    table: pa.Table  # keys, epoch, failure_id
    healthy_N: BoolN
    unconfirmed_N: BoolN  # of the healthy
    tune_N: BoolN
    tuned_us: Mapping[str, int]  # when each tune failure of their span failed, those without rows too
    notes: tuple[str, ...]

    @property
    def span(self) -> tuple[str, str]:
        """Times of the first and the last healthy row."""
        time_us_N = times_us(self.table["timestamp"])[self.healthy_N]
        return iso(int(time_us_N.min())), iso(int(time_us_N.max()))


def recent_rows(
    release: Release,
    data_set: Path,
    settings: Params,
    since: dt.datetime | None,
    until: dt.datetime | None,
    validate: ValidateParams,
) -> RecentRows:
    """Which rows calibrate and tune.

    Raises:
        TooFewRows: no rows in the span, or fewer than 100 healthy ones.
    """
    table, split = row_quality(data_set, validate), settings.split
    machine_N, machines = codes_and_names(table["machine_id"])
    time_us_N = times_us(table["timestamp"])
    quality_N, names = codes_and_names(table["status"])
    kept_N, trusted_N = (
        np.isin(quality_N, [names.index(STATUSES[rank]) for rank in ranks if STATUSES[rank] in names])
        for ranks in ((OK, SUSPECT), (OK,))
    )
    low, high, notes = _span(release, since, until)
    inside_N = (time_us_N > low) & (time_us_N < high)
    if not inside_N.any():
        span = f"rows after {iso(low)}" + ("" if until is None else f" and before {iso(high)}")
        newest = f"none (the newest is of {iso(int(time_us_N.max()))})" if len(time_us_N) else "none"
        raise TooFewRows.of(span, got=newest, expected="rows later than those of the release", where=data_set)
    plant = PlantLog.of(data_set, split.horizon_hours)
    if kept_N.any():
        newest_N = boundaries_of(machine_N, time_us_N, kept_N, len(machines), split).end[machine_N]
    else:
        newest_N = time_us_N
    status_N, owner_N = plant.statuses(machine_N, time_us_N, machines, kept_N, newest_N, split)
    unseen_M = unseen_machines(machines, split.unseen_machine_share)
    held_N = unseen_M[machine_N]
    healthy_N = inside_N & np.isin(status_N, SOUND) & trusted_N & ~held_N
    _refuse_few(healthy_N, inside_N, held_N, status_N, data_set)
    held_out = [name for name, held in zip(machines, unseen_M, strict=True) if held]
    tunes_K = plant.tunes(held_out, settings.train.teaching_share)
    tune_N = np.r_[tunes_K, False][owner_N] & (status_N == LogStatus.HORIZON) & (time_us_N < high)
    begun_K = plant.times_us() - round(split.horizon_hours * MICROSECONDS_PER_HOUR)
    spanned_K = (plant.times_us() >= time_us_N.min()) & (begun_K <= time_us_N[time_us_N < high].max())
    unconfirmed_N = healthy_N & (status_N == LogStatus.UNCONFIRMED)
    if unconfirmed_N.any():
        notes.append(
            f"{int(unconfirmed_N.sum()):,} of {int(healthy_N.sum()):,} rows are younger than the horizon of "
            f"{split.horizon_hours:g} h: no failure has had time to show. The release is provisional."
        )
    held = len(np.unique(machine_N[inside_N & held_N]))
    if held:
        which = "one machine that is" if held == 1 else f"{held} machines that are"
        notes.append(f"Rows of {which} held out do not count.")
    epoch_N = release.epochs_with(plant.maintenance).of_rows(machine_N, time_us_N, machines)
    columns = {
        **{field.name: table[field.name] for field in KEY_FIELDS},
        "epoch": pa.array(epoch_N),
        "failure_id": dictionary_column(owner_N, plant.failures["failure_id"].to_pylist()),
    }
    tuned_us = plant.failed_us(tunes_K & spanned_K)
    return RecentRows(pa.table(columns), healthy_N, unconfirmed_N, tune_N, tuned_us, tuple(notes))


def _refuse_few(
    healthy_N: BoolN, inside_N: BoolN, held_N: BoolN, status_N: npt.NDArray[np.int8], data_set: Path
) -> None:
    """Refuse fewer than 100 healthy rows, and say what took the others."""
    if int(healthy_N.sum()) >= FEW_ROWS:
        return
    counts = np.bincount(status_N[inside_N], minlength=len(LOG_STATUSES)).tolist()
    told = ", ".join(f"{count:,} {name}" for name, count in zip(LOG_STATUSES, counts, strict=True) if count)
    held = f"; {int((inside_N & held_N).sum()):,} of machines held out" if (inside_N & held_N).any() else ""
    got = f"{int(healthy_N.sum())} of {int(inside_N.sum()):,} rows in the span ({told}{held})"
    raise TooFewRows.of("healthy rows", got=got, expected=f"at least {FEW_ROWS}", where=data_set)


def _span(release: Release, since: dt.datetime | None, until: dt.datetime | None) -> tuple[int, int, list[str]]:
    """Rows count after the first and before the second moment; and a note where that is later than was asked for."""
    newest = int(release.manifest["newest_row_us"])
    high = np.iinfo(np.int64).max if until is None else microseconds(until)
    if since is None:
        return newest, int(high), []
    asked = microseconds(since) - 1  # from here on, itself included
    if asked < newest:
        return newest, int(high), [f"Rows up to {iso(newest)} made or judged release {release.id} and do not count."]
    return asked, int(high), []


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
