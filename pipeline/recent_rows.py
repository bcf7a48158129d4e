"""The rows of a data set that calibrate a release anew: healthy by its log, sound, and later than the release.

Shape legend: N rows, M machines, K failures.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.calibrate import FEW_ROWS
from pipeline.errors import ContractError
from pipeline.labelled_rows import labelled
from pipeline.log_status import LOG_STATUSES, LogStatus
from pipeline.moments import iso, microseconds
from pipeline.params import Params, ValidateParams
from pipeline.plant_log import SOUND
from pipeline.release import Release
from pipeline.roles import unseen_machines
from pipeline.schema import (
    MICROSECONDS_PER_HOUR,
    BoolN,
    times_us,
)


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
    split, rows = settings.split, labelled(data_set, settings.split, validate)
    plant, machines, machine_N, time_us_N = rows.plant, rows.machines, rows.machine_N, rows.time_us_N
    status_N = rows.status_N
    low, high, notes = _span(release, since, until)
    inside_N = (time_us_N > low) & (time_us_N < high)
    if not inside_N.any():
        span = f"rows after {iso(low)}" + ("" if until is None else f" and before {iso(high)}")
        newest = f"none (the newest is of {iso(int(time_us_N.max()))})" if len(time_us_N) else "none"
        raise TooFewRows.of(span, got=newest, expected="rows later than those of the release", where=data_set)
    unseen_M = unseen_machines(machines, split.unseen_machine_share)
    held_N = unseen_M[machine_N]
    healthy_N = inside_N & np.isin(status_N, SOUND) & rows.trusted_N & ~held_N
    _refuse_few(healthy_N, inside_N, held_N, status_N, data_set)
    held_out = [name for name, held in zip(machines, unseen_M, strict=True) if held]
    tunes_K = plant.tunes(held_out, settings.train.teaching_share)
    tune_N = np.r_[tunes_K, False][rows.owner_N] & (status_N == LogStatus.HORIZON) & (time_us_N < high)
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
    tuned_us = plant.failed_us(tunes_K & spanned_K)
    return RecentRows(rows.keyed(epoch_N), healthy_N, unconfirmed_N, tune_N, tuned_us, tuple(notes))


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
