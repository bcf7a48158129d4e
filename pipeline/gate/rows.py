"""The rows and failures on which champion and challenger are judged: they fitted, calibrated and tuned neither.

Shape legend: N rows, S rows that are scored, K failures.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.alerts import typical_interval_us
from pipeline.errors import ContractError
from pipeline.evaluate import events_of
from pipeline.judging.judged import Event
from pipeline.labelled_rows import labelled
from pipeline.log_status import LOG_STATUSES, LogStatus
from pipeline.moments import iso, microseconds, to_us
from pipeline.params import SplitParams, TrainParams, ValidateParams
from pipeline.plant_log import SOUND
from pipeline.release import Release
from pipeline.roles import teaching, unseen_machines
from pipeline.rows import Rows, has_role, rows_without_spectra
from pipeline.schema import (
    FAILURE_SCHEMA,
    MAINTENANCE_SCHEMA,
    MICROSECONDS_PER_DAY,
    BoolN,
    Role,
    codes_and_names,
    times_us,
)
from pipeline.store import read_table, sha256_file


@dataclass(frozen=True)
class GateRows:
    """Rows to score, and what counts on them.

    A page that opens in a row of `healthy_S` is false; `confirmed_S` are those of them that are older than the horizon,
    where no later failure can prove it right. Rows up to `after_us` are scored where a test failure needs them, and no
    page counts as false there.
    """

    data_set: Path
    table: pa.Table  # of all rows: keys, epoch, failure_id
    selected_N: BoolN
    rows: Rows  # the selected ones, without spectra
    maintenance: pa.Table
    events: list[Event]  # every failure with rows: pages before it are not false
    judging: frozenset[str]  # failures that neither was tuned on
    tuning: frozenset[str]  # tune failures that both were tuned on, or neither
    healthy_S: BoolN
    confirmed_S: BoolN
    after_us: int
    interval_us: int
    source: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def healthy_days(self) -> float:
        """Machine-days in which a page is false."""
        return self.days(self.healthy_S)

    def days(self, among_S: BoolN) -> float:
        """Machine-days of some rows: rows times the interval between them."""
        return float(among_S.sum()) * self.interval_us / MICROSECONDS_PER_DAY

    def told(self) -> dict[str, Any]:
        """Which rows, as JSON."""
        time_us_S = self.rows.time_us[self.healthy_S]
        return {
            "rows": self.source,
            "after": iso(self.after_us),
            "first": iso(int(time_us_S.min())) if len(time_us_S) else None,
            "last": iso(int(time_us_S.max())) if len(time_us_S) else None,
            "healthy_rows": int(self.healthy_S.sum()),
            "confirmed_machine_days": round(self.days(self.confirmed_S), 3),
            "machines": len(np.unique(self.rows.machine[self.healthy_S])),
        }

    def failures_told(self) -> dict[str, dict[str, Any]]:
        """What the ids of the judged failures stand for, as JSON."""
        return {
            event.failure_id: {
                "machine_id": self.rows.machines[event.machine],
                "time": iso(event.end_us),
                "failure_mode": event.failure_mode,
            }
            for event in self.events
            if event.failure_id in self.judging | self.tuning
        }


def last_row_us(release: Release) -> int:
    """The newest row that made a release, that of its recalibration included."""
    newest = int(release.manifest["newest_row_us"])
    anew = release.manifest.get("recalibration")
    if anew is None:
        return newest
    # written to the second: the row itself may be a fraction later
    return max(newest, to_us(anew["last"]) + 1_000_000)


def rows_of_build(releases: Sequence[Release], data_raw: Path, status_split: Path) -> GateRows:
    """Test rows of the challengers' own split that are later than every row that made the champion.

    Test failures count wherever the split tests them: their horizons fit nothing and tune nothing in any build. Tune
    failures are there for gains: those that the champion was tuned on too.

    Args:
        releases: the champion, then the challengers.
        data_raw: snapshot of the build.
        status_split: its split.

    Raises:
        ContractError: a split that is not the challengers' own.
    """
    champion, *challengers = releases
    digest = sha256_file(status_split)
    for release in challengers:
        if release.manifest["inputs"]["split"] != digest:
            expected = f"the split that made challenger {release.id}"
            raise ContractError.of("split", got="another one", expected=expected, where=status_split)
    split = read_table(status_split)
    selected_N = has_role(split, Role.TEST, Role.TUNE)
    anew = [last_row_us(release) for release in challengers if "recalibration" in release.manifest]
    status_N, names = codes_and_names(split["log_status"])
    healthy = LOG_STATUSES[LogStatus.HEALTHY]
    confirmed_N = status_N == (names.index(healthy) if healthy in names else -2)
    return _gate_rows(
        releases,
        data_raw,
        split,
        selected_N,
        np.asarray(confirmed_N, bool),
        read_table(data_raw / "failures.parquet", schema=FAILURE_SCHEMA),
        read_table(data_raw / "maintenance.parquet", schema=MAINTENANCE_SCHEMA),
        max([last_row_us(champion), *anew]),
        "test rows of the challenger's build",
    )


def rows_since(
    releases: Sequence[Release], data_set: Path, since: dt.datetime | None, validate: ValidateParams
) -> GateRows:
    """Rows of a data set that are later than every row that made either, with the labels of its own log.

    Args:
        releases: the champion, then the challengers.
        data_set: that `hearken ingest` wrote.
        since: rows from here on (UTC); None: all that are later.
        validate: limits of the rows' facts, where no status table stands beside the data set.

    Raises:
        ContractError: no maintenance log, or damaged files.
    """
    split = SplitParams.model_validate(releases[1].manifest["params"]["split"])
    rows = labelled(data_set, split, validate)
    after_us = max(last_row_us(release) for release in releases)
    if since is not None:
        after_us = max(after_us, microseconds(since) - 1)
    return _gate_rows(
        releases,
        data_set,
        rows.keyed(np.zeros(len(rows.time_us_N), np.int32)),  # each release knows its own epochs
        (rows.time_us_N > after_us) & np.isin(rows.status_N, [*SOUND, LogStatus.HORIZON]),
        rows.status_N == LogStatus.HEALTHY,
        rows.plant.failures,
        rows.plant.maintenance,
        after_us,
        "rows of the data set that are later than all that made either",
    )


def _gate_rows(
    releases: Sequence[Release],
    data_set: Path,
    table: pa.Table,
    selected_N: BoolN,
    confirmed_N: npt.NDArray[np.bool_],
    failures: pa.Table,
    maintenance: pa.Table,
    after_us: int,
    source: str,
) -> GateRows:
    """What counts on the selected rows."""
    rows = rows_without_spectra(data_set, table, selected_N, None)
    horizon = float(releases[1].manifest["params"]["split"]["horizon_hours"])
    events, _ = events_of(failures, rows, horizon, None)
    judging, tuning = _sorted_out(releases, failures, rows.machines)
    healthy_S = (rows.time_us > after_us) & (rows.column("failure_id") == "")
    for event in events:  # the horizon to the last microsecond, rows that no failure owns included
        inside = (rows.time_us >= event.start_us) & (rows.time_us <= event.end_us)
        healthy_S &= ~(inside & (rows.machine == event.machine))
    known = {event.failure_id for event in events}
    return GateRows(
        data_set=data_set,
        table=table,
        selected_N=selected_N,
        rows=rows,
        maintenance=maintenance,
        events=events,
        judging=frozenset(known & judging),
        tuning=frozenset(known & tuning),
        healthy_S=np.asarray(healthy_S, bool),
        confirmed_S=np.asarray(healthy_S & confirmed_N[selected_N], bool),
        after_us=after_us,
        interval_us=typical_interval_us(rows.machine, rows.time_us),
        source=source,
    )


def _sorted_out(releases: Sequence[Release], failures: pa.Table, machines: Sequence[str]) -> tuple[set[str], set[str]]:
    """Failures that no side was tuned on, and tune failures that all were tuned on, or none, and that taught none."""
    tune_K = np.array([role == Role.TUNE for role in failures["role"].to_pylist()], bool)
    time_us_K, machine_K = times_us(failures["time"]), failures["machine_id"].to_pylist()
    tuned_RK = []
    taught_K = np.zeros(len(tune_K), bool)
    for release in releases:
        taught_K |= teaching(failures, TrainParams.model_validate(release.manifest["params"]["train"]).teaching_share)
        split = SplitParams.model_validate(release.manifest["params"]["split"])
        unseen_M = unseen_machines(machines, split.unseen_machine_share)
        held = {machine for machine, unseen in zip(machines, unseen_M, strict=True) if unseen}
        mine_K = np.array([machine not in held for machine in machine_K], bool)
        # a release after a change is tuned on the failures before it too (roles_of)
        tuned_RK.append(tune_K & mine_K & (time_us_K <= last_row_us(release)))
    none_K = ~np.any(tuned_RK, axis=0)
    all_K = np.all(tuned_RK, axis=0)
    ids = np.array(failures["failure_id"].to_pylist(), dtype=object)
    return set(ids[none_K].tolist()), set(ids[tune_K & (none_K | all_K) & ~taught_K].tolist())
