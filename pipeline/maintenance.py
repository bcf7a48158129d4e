"""The maintenance log of a data set: read and checked, or made from a label column; and its failures, known for ever.

A log is a table of MAINTENANCE_SCHEMA; a failure keeps its id and its role (tune or test) from when it was first seen.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipeline.clock import Clock, is_text
from pipeline.errors import ContractError
from pipeline.findings import Severity
from pipeline.interval_lines import refuse
from pipeline.layout import MaintenanceLayout
from pipeline.maintenance_entries import examine_log
from pipeline.schema import (
    FAILURE_SCHEMA,
    MAINTENANCE_SCHEMA,
    MICROSECONDS_PER_HOUR,
    IntN,
    Role,
    Tag,
    time_column,
    times_us,
)

UNKNOWN, HEALTHY, FAULTY = -1, 0, 1
MOST_SAID = 5  # warnings of a log that ingest repeats


def read_maintenance(
    path: Path, clock: Clock, layout: MaintenanceLayout | None = None, data: bytes | None = None
) -> tuple[pa.Table, list[str]]:
    """A log from Parquet or CSV, sorted by start, and what a person should know of it.

    Times without a zone are the clock's. `data` are the file's bytes where they have been read already: `path` is then
    only its name.

    Raises:
        ContractError: the first of the errors that `examine_log` finds, with its line.
    """
    log = examine_log(path, clock, layout, data)
    refuse(log.findings)
    said = [str(finding.error()) for finding in log.findings if finding.severity is Severity.WARNING]
    more = [f"{path.name}: {len(said) - MOST_SAID} more warnings, which `hearken check` lists"]
    return sorted_log(log.table()), said[:MOST_SAID] + (more if len(said) > MOST_SAID else [])


def sorted_log(table: pa.Table) -> pa.Table:
    """A log by start, machine, and tag, so that equal logs have equal bytes."""
    return table.sort_by(
        [("start", "ascending"), ("machine_id", "ascending"), ("end", "ascending"), ("tag", "ascending")]
    )


def with_added(log: pa.Table, added: pa.Table, horizon_hours: float) -> tuple[pa.Table, int]:
    """A plant's log and what people added to it by answering alerts, sorted; and how many failures the plant had too.

    An added entry that the log has already (machine, start, end, tag) is left out. So is an added failure of a machine
    that has one in the log within the horizon: it is the same failure, as in `failures_of`, and the plant knows its
    time better than an answer does.

    Args:
        log: MAINTENANCE_SCHEMA, of the plant.
        added: MAINTENANCE_SCHEMA.
        horizon_hours: over which failures announce themselves.
    """
    reach = round(horizon_hours * MICROSECONDS_PER_HOUR)
    known, failures = set(_keys(log)), dict[str, list[int]]()
    for machine, start, _, tag in known:
        if tag == Tag.FAILURE:
            failures.setdefault(machine, []).append(start)
    kept, told_twice = [], 0
    for key in _keys(added):
        machine, start, _, tag = key
        same = tag == Tag.FAILURE and any(abs(start - other) <= reach for other in failures.get(machine, []))
        told_twice += same and key not in known
        kept.append(not same and key not in known)
    return sorted_log(pa.concat_tables([log, added.filter(pa.array(kept, pa.bool_()))])), told_twice


def _keys(log: pa.Table) -> list[tuple[str, int, int, str]]:
    """What makes entries of a log the same: machine, start, end, tag."""
    times = (times_us(log[name]).tolist() for name in ("start", "end"))
    return list(zip(log["machine_id"].to_pylist(), *times, log["tag"].to_pylist(), strict=True))


def log_from_labels(
    machine_N: npt.NDArray[np.int32],
    names: list[str],
    time_us_N: IntN,
    label_N: npt.NDArray[np.int8],
    mode_N: npt.NDArray[np.int32] | None = None,
    modes: list[str] | None = None,
) -> pa.Table:
    """A log from a label per row: 1 faulty, 0 healthy, -1 unknown.

    In the order of machine and time, each run of 1 becomes a failure at its last row (what the fault led to, the labels
    do not say), each run of 0 an interval tagged healthy; -1 gives nothing.

    >>> times, machine = np.arange(4), np.zeros(4, np.int32)
    >>> log_from_labels(machine, ["a"], times, np.array([0, 0, 1, -1], np.int8))["tag"].to_pylist()
    ['healthy', 'failure']
    """
    rank = np.argsort(np.argsort(names)) if names else np.empty(0, np.int64)
    order = np.lexsort((time_us_N, rank[machine_N]))
    machine, time_us, label = machine_N[order], time_us_N[order], label_N[order]
    changed = (machine[1:] != machine[:-1]) | (label[1:] != label[:-1])
    first = np.flatnonzero(np.r_[len(label) > 0, changed])
    last = np.r_[first[1:], len(label)] - 1 if len(first) else first
    known = label[first] != UNKNOWN
    first, last = np.asarray(first[known]), np.asarray(last[known])
    failed = label[first] == FAULTY
    mode: npt.NDArray[np.object_] = np.full(len(first), None, object)
    if mode_N is not None and modes:
        codes = mode_N[order][last]
        named = failed & (codes >= 0)
        mode[named] = np.array(modes, object)[codes[named]]
    columns = [
        pa.array(np.array(names, object)[machine[first]], pa.string()),
        time_column(np.where(failed, time_us[last], time_us[first])),
        time_column(time_us[last]),
        pa.array(np.where(failed, Tag.FAILURE.value, Tag.HEALTHY.value), pa.string()),
        pa.array(mode, pa.string()),
        pa.array(["from labels"] * len(first), pa.string()),
    ]
    return sorted_log(pa.Table.from_arrays(columns, schema=MAINTENANCE_SCHEMA))


def checked_labels(column: pa.ChunkedArray, name: str, where: object) -> npt.NDArray[np.int8]:
    """Labels as int8; null is unknown.

    Raises:
        ContractError: another value than 1, 0 and -1.
    """
    if is_text(column.type) or pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        raise ContractError.of(f"type of {name}", got=column.type, expected="numbers 1, 0, -1", where=where)
    values = np.nan_to_num(column.cast(pa.float64()).to_numpy(), nan=UNKNOWN)
    wrong = values[~np.isin(values, (UNKNOWN, HEALTHY, FAULTY))]
    if len(wrong):
        raise ContractError.of(name, got=wrong[0], expected="1 faulty, 0 healthy, -1 unknown", where=where)
    return np.asarray(values, dtype=np.int8)


def share_of(text: str) -> float:
    """A number from 0 to 1 that belongs to a text for ever.

    >>> 0 <= share_of("machine-000") < 1
    True
    """
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def failures_of(
    log: pa.Table, stored: pa.Table | None, *, horizon_hours: float, tune_share: float, unseen_share: float = 0.0
) -> pa.Table:
    """The failures of a log with their ids and roles (FAILURE_SCHEMA), by time.

    A failure within the horizon of a stored one of its machine is that failure: it keeps id and role, though its time
    was corrected. Machines held out by the hash of their name are always tested. Entries of one machine at one time are
    one failure.
    """
    stored_rows = stored.to_pylist() if stored is not None else []
    wanted: dict[tuple[str, pd.Timestamp], dict[str, object]] = {}
    for entry in log.to_pylist():
        if entry["tag"] == Tag.FAILURE.value:
            known = wanted.setdefault((entry["machine_id"], entry["start"]), entry)
            if entry["end"] > known["end"]:
                wanted[entry["machine_id"], entry["start"]] = entry
    pairs = sorted(
        (abs(time - old["time"]), key, index)
        for index, old in enumerate(stored_rows)
        for key in wanted
        for machine, time in [key]
        if machine == old["machine_id"] and abs(time - old["time"]).total_seconds() <= horizon_hours * 3600
    )
    kept: dict[tuple[str, pd.Timestamp], dict[str, object]] = {}
    used: set[int] = set()
    for _, key, index in pairs:  # nearest first; each stored failure is one failure of the log
        if key not in kept and index not in used:
            kept[key] = stored_rows[index]
            used.add(index)
    rows = []
    taken = {str(old["failure_id"]) for old in kept.values()}
    for (machine, time), entry in sorted(wanted.items(), key=lambda item: (item[0][1], item[0][0])):
        old_row = kept.get((machine, time))
        identity = str(old_row["failure_id"]) if old_row else _identity(machine, time, taken)
        tune = share_of(machine) >= unseen_share and share_of(identity + "role") < tune_share
        role = old_row["role"] if old_row else (Role.TUNE if tune else Role.TEST).value
        rows.append({"failure_id": identity, "time": time, "role": role, **_rest(entry)})
    return pa.Table.from_pylist(rows, schema=FAILURE_SCHEMA)


def _identity(machine: str, time: pd.Timestamp, taken: set[str]) -> str:
    """A new id; a failure that was moved away may have left its id's time to another."""
    text = f"{machine}|{time.isoformat()}"
    identity = hashlib.sha256(text.encode()).hexdigest()[:12]
    while identity in taken:
        text += "|again"
        identity = hashlib.sha256(text.encode()).hexdigest()[:12]
    taken.add(identity)
    return identity


def _rest(entry: dict[str, object]) -> dict[str, object]:
    return {name: entry[name] for name in ("machine_id", "end", "failure_mode")}


def horizons(log: pa.Table, horizon_hours: float) -> dict[str, IntN]:
    """Per machine the intervals (K, 2) in microseconds that lead up to its failures."""
    found: dict[str, list[tuple[int, int]]] = {}
    starts = log["start"].cast(pa.int64()).to_pylist()
    for machine, start, tag in zip(log["machine_id"].to_pylist(), starts, log["tag"].to_pylist(), strict=True):
        if tag == Tag.FAILURE.value:
            found.setdefault(machine, []).append((start - round(horizon_hours * MICROSECONDS_PER_HOUR), start))
    return {machine: np.array(intervals, np.int64) for machine, intervals in found.items()}
