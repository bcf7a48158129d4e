"""Quarantined and suspect rows as intervals for people, and the rows that people give back.

A person's releases stand in `quarantine_releases.csv` in the data set's folder, beside the maintenance log, and are
applied whenever the set is validated. What is no number stays out, whoever asks.

Shape legend: N rows.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipeline.clock import Clock
from pipeline.errors import ContractError, UserError
from pipeline.schema import MICROSECONDS_PER_HOUR, BoolN, IntN, codes_and_names, times_us
from pipeline.store import open_parquet, read_batches, write_text

RELEASES = "quarantine_releases.csv"
COLUMNS = ("machine_id", "start", "end", "reason", "note", "by", "at")
NEVER_RELEASED = ("nonfinite", "negative")  # no detector can take the logarithm of them
MADE_BY_SIMULATE = "data/demo"
JOIN_GAP_US = 6 * MICROSECONDS_PER_HOUR  # rows of one reason closer than this are one interval


@dataclass(frozen=True)
class Release:
    """Rows that a person gives back: of one machine or all, in [start, end], for one reason or any."""

    machine_id: str  # empty: all
    start_us: int
    end_us: int
    reason: str  # empty: any
    note: str = ""
    by: str = ""
    at: str = ""

    def covers(self, machine: str, reason: str) -> bool:
        """Whether rows of a machine with a reason can be meant."""
        return self.machine_id in ("", machine) and self.reason in ("", reason) and reason not in NEVER_RELEASED


def read_releases(data_set: Path) -> list[Release]:
    """The releases of a data set's folder; none where it has no such file.

    Raises:
        ContractError: a column is missing, an interval is wrong, or numbers that are none shall be released; with line.
    """
    path = data_set / RELEASES
    if not path.exists():
        return []
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ContractError.of("releases", got=str(error).splitlines()[0], expected="a CSV file", where=path) from None
    missing = [name for name in COLUMNS[:4] if name not in frame]
    if missing:
        got = f"no {', '.join(missing)}"
        raise ContractError.of("columns", got=got, expected=", ".join(COLUMNS), where=path)
    clock = Clock("UTC")
    releases = []
    for line, entry in enumerate(frame.to_dict("records"), start=2):
        where = f"{path}, line {line}"
        times = [int(clock.to_utc_us(pa.array([str(entry[name])]), where)[0]) for name in ("start", "end")]
        extra = {name: str(entry.get(name, "")) for name in ("note", "by", "at")}
        found = Release(str(entry["machine_id"]).strip(), times[0], times[1], str(entry["reason"]).strip(), **extra)
        if found.end_us < found.start_us:
            raise ContractError.of("end", got="a time before start", expected="start <= end", where=where)
        if found.reason in NEVER_RELEASED:
            expected = f"another reason than {' and '.join(NEVER_RELEASED)}: such rows cannot be scored"
            raise ContractError.of("reason", got=found.reason, expected=expected, where=where)
        releases.append(found)
    return releases


def carry_releases(source: Path, staging: Path) -> None:
    """Copy the releases of a source, checked, into a snapshot that is being made."""
    path = source / RELEASES
    if path.is_file():
        read_releases(source)  # refused here, before anything is built on it
        write_text(staging / RELEASES, path.read_text(encoding="utf-8-sig"))


def released(
    releases: Sequence[Release],
    reason: str,
    machine_N: npt.NDArray[np.integer],
    machines: Sequence[str],
    time_us_N: IntN,
) -> BoolN:
    """Which rows (N,) people have given back from a reason.

    >>> given = [Release("pump", 0, 10, "flat")]
    >>> released(given, "flat", np.array([0, 0, 1]), ["pump", "fan"], np.array([5, 11, 5])).tolist()
    [True, False, False]
    """
    released_N = np.zeros(len(machine_N), bool)
    for release in releases:
        meant_M = np.array([release.covers(machine, reason) for machine in machines], bool)
        if meant_M.any():
            released_N |= meant_M[machine_N] & (time_us_N >= release.start_us) & (time_us_N <= release.end_us)
    return released_N


@dataclass(frozen=True)
class SetAside:
    """Consecutive rows of one machine that are set aside for the same reasons."""

    machine_id: str
    start_us: int
    end_us: int
    status: str  # quarantined | suspect
    reason: str
    rows: int


def set_aside(status_file: Path, machine: str | None = None, reason: str | None = None) -> list[SetAside]:
    """Intervals of rows that validation set aside, by machine and time; read in batches.

    Args:
        status_file: `data/status/validate.parquet`.
        machine: only this one.
        reason: only rows with this one among their reasons.

    Raises:
        ContractError: there is no such file: the set was never validated.
    """
    open_parquet(status_file)
    parts: list[pd.DataFrame] = []
    for table in read_batches(status_file, ["machine_id", "timestamp", "status", "reason"]):
        code_N, names = codes_and_names(table["status"])
        aside_N = np.isin(code_N, [code for code, name in enumerate(names) if name != "ok"])
        if aside_N.any():
            kept = table.filter(pa.array(aside_N))
            columns = {name: kept[name].cast(pa.string()).to_pandas() for name in ("machine_id", "status", "reason")}
            parts.append(pd.DataFrame(columns | {"time": times_us(kept["timestamp"])}))
    if not parts:
        return []
    rows = pd.concat(parts, ignore_index=True)
    if machine is not None:
        rows = rows[rows["machine_id"] == machine]
    if reason is not None:
        rows = rows[[reason in joined.split("+") for joined in rows["reason"]]]
    if rows.empty:
        return []
    rows = rows.sort_values(["machine_id", "status", "reason", "time"], kind="stable")
    keys = rows[["machine_id", "status", "reason"]]
    new = (keys != keys.shift()).any(axis=1) | (rows["time"].diff() > JOIN_GAP_US)
    grouped = rows.groupby(new.cumsum().to_numpy(), sort=False)
    found = grouped.agg(
        machine_id=("machine_id", "first"),
        start_us=("time", "min"),
        end_us=("time", "max"),
        status=("status", "first"),
        reason=("reason", "first"),
        rows=("time", "size"),
    )
    return sorted(_intervals(found), key=lambda item: (item.machine_id, item.start_us, item.reason))


def _intervals(frame: pd.DataFrame) -> Iterator[SetAside]:
    for values in frame.itertuples(index=False, name=None):
        machine, start, end, status, reason, rows = values
        yield SetAside(str(machine), int(start), int(end), str(status), str(reason), int(rows))


@dataclass(frozen=True)
class Released:
    """What a release came to: rows that the next build gives back, and rows that stay out."""

    path: Path
    rows: int
    refused: int
    added: bool  # False: the same release stood there already


def add_release(
    source: Path,
    status_file: Path,
    *,
    machine: str | None,
    reason: str | None,
    start: dt.datetime | None,
    end: dt.datetime | None,
    note: str,
    by: str,
    at: dt.datetime,
) -> Released:
    """Write a release into the folder of a data set; the next build gives the rows back. Twice is as good as once.

    Raises:
        UserError: nothing is named, no such row is set aside, or all of them are no numbers; or no folder to write to.
    """
    if not source.is_dir():
        expected = "the folder of a data set (params.yaml, source.path)"
        raise UserError(f"release: got {source}, expected {expected}.")
    if source == Path(MADE_BY_SIMULATE):
        hint = "stage simulate makes it anew; copy it to a folder of your own and set source.path to that"
        raise UserError(f"release: got source {source}, expected a plant's own data set: {hint}.")
    if machine is None and reason is None and start is None and end is None:
        raise UserError("release: got nothing, expected at least one of --machine, --reason, --start, --end.")
    found = set_aside(status_file, machine, reason)
    low = int(start.timestamp() * 1e6) if start else min((item.start_us for item in found), default=0)
    high = int(end.timestamp() * 1e6) if end else max((item.end_us for item in found), default=0)
    if high < low:
        raise UserError("release: got an end before the start, expected start <= end.")
    found = [item for item in found if item.start_us <= high and item.end_us >= low]
    stays = [item for item in found if set(item.reason.split("+")) & set(NEVER_RELEASED)]
    rows, refused = sum(item.rows for item in found), sum(item.rows for item in stays)
    if not rows:
        raise UserError("release: got no row that is set aside there, expected at least one; see: quarantine list.")
    if rows == refused or reason in NEVER_RELEASED:
        raise UserError(
            f"release: got {refused} rows that are no numbers or negative, expected rows that can be scored."
        )
    wanted = Release(machine or "", low, high, reason or "", note, by, at.isoformat(timespec="seconds"))
    key = (wanted.machine_id, wanted.start_us, wanted.end_us, wanted.reason)
    known = {(old.machine_id, old.start_us, old.end_us, old.reason) for old in read_releases(source)}
    if key not in known:
        _append(source / RELEASES, wanted)
    return Released(source / RELEASES, rows - refused, refused, key not in known)


def _append(path: Path, release: Release) -> None:
    """One line more, as one atomic write."""
    old = pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else pd.DataFrame(columns=list(COLUMNS))
    values: Mapping[str, Any] = {
        "machine_id": release.machine_id,
        "start": iso(release.start_us),
        "end": iso(release.end_us),
        "reason": release.reason,
        "note": release.note,
        "by": release.by,
        "at": release.at,
    }
    write_text(path, pd.concat([old, pd.DataFrame([values])], ignore_index=True).fillna("").to_csv(index=False))


def iso(time_us: int) -> str:
    """A time in microseconds since 1970 as ISO text, UTC.

    >>> iso(0)
    '1970-01-01T00:00:00Z'
    """
    text = (dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=time_us)).isoformat()
    return f"{text}Z"
