"""Log status and baseline epoch of every row, then its role: train, validation, calibration, tune or test.

The log speaks before anything is cleaned, and the cut is in time: train and validation, a purge gap, calibration, a
purge gap, test. A share of the machines, known by a hash of the name, is held out as never seen. After a change of the
fleet, or of a group of it, the time after the change is cut so; all that is before it trains, and its failures judge.

Shape legend: N rows, M machines, K failures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.after_change import change_figures, change_notes
from pipeline.answers import read_feedback
from pipeline.epochs import epoch_of_rows
from pipeline.errors import ContractError, run_reporting_errors
from pipeline.log_status import LOG_STATUSES, IntegerN, LogStatus, Timeline, alerts_of, intervals_of
from pipeline.moments import iso, microseconds
from pipeline.params import BaselineParams, SplitParams, load_params
from pipeline.plant_log import PlantLog
from pipeline.roles import (
    CALIBRATION,
    ROLE,
    ROLES,
    TRAIN,
    Boundaries,
    StatusRows,
    boundaries_of,
    roles_of,
    teaching,
    unseen_machines,
)
from pipeline.schema import (
    FAILURE_SCHEMA,
    FEEDBACK_SCHEMA,
    KEY_FIELDS,
    MAINTENANCE_SCHEMA,
    MICROSECONDS_PER_HOUR,
    SPLIT_SCHEMA,
    VALIDATE_SCHEMA,
    BoolN,
    Label,
    Role,
    codes_and_names,
    dictionary_column,
    times_us,
)
from pipeline.store import read_table, write_json, write_table

LABELS = tuple(str(label) for label in Label)
LISTED = 50  # machines and failures named in the metrics
KEPT, TRUSTED = ("ok", "suspect"), ("ok",)  # by validation: judged, and learned from
WHERE = "data/raw and its maintenance log"
SPELL_HOURS = 48.0  # unanswered alerts of a machine no further apart are one: a cool-down parts those of one fault


@dataclass(frozen=True)
class SplitResult:
    """SPLIT_SCHEMA in the rows and order of `validate`, and what metrics/split.json says."""

    table: pa.Table
    metrics: dict[str, Any]


def split(
    status: pa.Table,
    maintenance: pa.Table,
    failures: pa.Table,
    params: SplitParams,
    feedback: pa.Table | None = None,
    min_looks: int = BaselineParams().min_rows,
    teaching_share: float = 0.0,
) -> SplitResult:
    """Log status, epoch, role and label of every row.

    Args:
        status: VALIDATE_SCHEMA (the keys and `status` are read); quarantined rows play no part, suspect ones judge.
        maintenance: MAINTENANCE_SCHEMA; entries of unknown machines are ignored and counted.
        failures: FAILURE_SCHEMA, with the role (tune or test) that each failure has for ever.
        params: split section.
        feedback: FEEDBACK_SCHEMA; rows of a confirmed alert and of the horizon before it are not healthy, those of an
            open one neither train, validate nor describe, a dismissed one changes nothing. Unknown ones are counted.
        min_looks: rows below which an epoch has no baseline of its own (`train.baseline.min_rows`), for the notes.
        teaching_share: of the tune failures, those that teach networks their mode (`supervised.failures`).

    Raises:
        ContractError: no healthy rows, or none left to train or to calibrate on.
    """
    machine_N, machines = codes_and_names(status["machine_id"])
    feedback = FEEDBACK_SCHEMA.empty_table() if feedback is None else feedback
    rows = _rows(status, machine_N, machines, maintenance, failures, feedback, params)
    # a failure of a machine that trains nothing can judge, so it does not tune
    tunes_K = np.array([role == Role.TUNE for role in failures["role"].to_pylist()], bool)
    tunes_K &= ~np.r_[rows.unseen_M, False][intervals_of(failures, "time", "end", machines).machine_K]
    teaches_K = tunes_K & teaching(failures, teaching_share)
    role_N, recut = roles_of(rows, tunes_K, params.validation_share, teaches_K)
    _check_roles(rows, role_N)
    label_N = np.full(len(role_N), LABELS.index(Label.UNKNOWN), np.int8)
    label_N[rows.healthy_N] = LABELS.index(Label.HEALTHY)
    label_N[rows.status_N == LogStatus.HORIZON] = LABELS.index(Label.FAULTY)
    epoch_N = epoch_of_rows(
        machine_N, rows.time_us_N, machines, maintenance, params.changed_at, params.changed_machines
    )
    change = change_figures(rows, role_N, epoch_N, machines, params, min_looks)
    columns = [
        *(status[field.name].cast(field.type) for field in KEY_FIELDS),
        dictionary_column(rows.status_N, LOG_STATUSES),
        pa.array(epoch_N),
        dictionary_column(role_N, ROLES),
        dictionary_column(label_N, LABELS),
        dictionary_column(rows.owner_N, failures["failure_id"].to_pylist()),
    ]
    metrics = {
        "rows": _counts(role_N, rows.status_N) | {"suspect_judged": _suspect_judged(rows, role_N)},
        "machines": len(machines),
        "unseen_machines": [name for name, unseen in zip(machines, rows.unseen_M, strict=True) if unseen],
        "failures": _failure_metrics(rows, role_N, tunes_K, teaches_K, failures, machines),
        "machine_epochs": _pairs(machine_N, epoch_N),
        "boundaries": _boundary_metrics(rows.edges, machines, params),
        "change": change,
        "notes": [
            *_notes(rows, role_N, recut, machines, maintenance, failures, feedback, params),
            *change_notes(change, params),
        ],
    }
    return SplitResult(pa.Table.from_arrays(columns, schema=SPLIT_SCHEMA), metrics)


def _rows(
    status: pa.Table,
    machine_N: IntegerN,
    machines: Sequence[str],
    maintenance: pa.Table,
    failures: pa.Table,
    feedback: pa.Table,
    params: SplitParams,
) -> StatusRows:
    """Log status, phase and held-out machines of the rows."""
    time_us_N = times_us(status["timestamp"])
    quality_N, names = codes_and_names(status["status"])
    # a suspect row may be the failure itself: it is judged like any other, and no model learns from it
    kept_N, trusted_N = (np.isin(quality_N, [names.index(n) for n in names if n in kept]) for kept in (KEPT, TRUSTED))
    change = None if params.changed_at is None else microseconds(params.changed_at)
    new_N = time_us_N >= (np.iinfo(np.int64).min if change is None else change)
    _check_usable(kept_N, kept_N & new_N, params)
    edges = boundaries_of(machine_N, time_us_N, kept_N, len(machines), params)
    timeline = Timeline(machine_N, time_us_N, len(machines))
    plant = PlantLog(maintenance, failures, feedback)
    newest_N = edges.end[machine_N]
    status_N, owner_N = plant.statuses(machine_N, time_us_N, machines, kept_N, newest_N, params, timeline)
    opened = alerts_of(feedback, "open", int(time_us_N.max(initial=0)), machines)
    open_N = timeline.covered(opened.joined(round(SPELL_HOURS * MICROSECONDS_PER_HOUR)), closed=True)
    healthy_N = status_N == LogStatus.HEALTHY
    if change is not None:  # so soon after it nothing is confirmed; what is before it can wait for its confirmation
        healthy_N |= new_N & (status_N == LogStatus.UNCONFIRMED)
    fit_N = healthy_N & trusted_N
    if not fit_N.any():
        got = f"none of {len(fit_N)} rows ({_shares(status_N)})"
        hint = "at least one; a shorter split.horizon_hours leaves more rows confirmed"
        raise ContractError.of("healthy rows", got=got, expected=hint, where=WHERE)
    unseen_M = unseen_machines(machines, params.unseen_machine_share)
    phase_N = edges.phase(machine_N, time_us_N)
    return StatusRows(
        machine_N,
        time_us_N,
        status_N,
        owner_N,
        healthy_N,
        trusted_N,
        phase_N,
        edges,
        unseen_M,
        open_N,
        change is not None,
    )


def _check_usable(kept_N: BoolN, new_N: BoolN, params: SplitParams) -> None:
    if not kept_N.any():
        got = f"none ({len(kept_N)} rows, all quarantined)"
        raise ContractError.of("healthy rows", got=got, expected="at least one", where="data/status/validate.parquet")
    if not new_N.any():
        got, expected = str(params.changed_at), "a time before the newest row"
        raise ContractError.of("changed_at", got=got, expected=expected, where="params.yaml, split")


def _check_roles(rows: StatusRows, role_N: npt.NDArray[np.int8]) -> None:
    """Refuse a split that can train or calibrate nothing, and say what took the rows."""
    for role, phase, key in ((Role.TRAIN, TRAIN, "train_share"), (Role.CALIBRATION, CALIBRATION, "calibration_share")):
        if (role_N == ROLE[role]).any():
            continue
        in_span_N = rows.phase_N == phase
        in_span_N &= rows.status_N != LogStatus.QUARANTINED
        unseen = int((in_span_N & rows.unseen_M[rows.machine_N]).sum())
        shares = _shares(rows.status_N[in_span_N])
        got = f"none of {int(in_span_N.sum())} in its span ({shares}; {unseen} of unseen machines)"
        share = f"split.after_change.{key}" if rows.changed else f"split.{key}"
        expected = f"at least one; see {share}, split.horizon_hours and split.unseen_machine_share"
        raise ContractError.of(f"{role} rows", got=got, expected=expected, where=WHERE)


def _shares(status_N: npt.NDArray[np.int8]) -> str:
    counts = np.bincount(status_N, minlength=len(LOG_STATUSES))
    total = max(1, int(counts.sum()))
    parts = [f"{100 * n / total:.0f} % {name}" for name, n in zip(LOG_STATUSES, counts, strict=True) if n]
    return ", ".join(parts) or "no rows at all"


def _counts(role_N: npt.NDArray[np.int8], status_N: npt.NDArray[np.int8]) -> dict[str, Any]:
    roles = dict(zip(ROLES, np.bincount(role_N, minlength=len(ROLES)).tolist(), strict=True))
    statuses = np.bincount(status_N, minlength=len(LOG_STATUSES)).tolist()
    return {
        "total": len(role_N),
        "by_role": {role: count for role, count in roles.items() if count or role != Role.TEACH},
        "by_log_status": dict(zip(LOG_STATUSES, statuses, strict=True)),
    }


def _suspect_judged(rows: StatusRows, role_N: npt.NDArray[np.int8]) -> int:
    """Rows of a suspect sensor that tune or judge: outside a horizon they count as healthy, as the log has them."""
    return int((np.isin(role_N, [ROLE[Role.TUNE], ROLE[Role.TEST]]) & ~rows.trusted_N).sum())


def _pairs(machine_N: IntegerN, epoch_N: npt.NDArray[np.int32]) -> int:
    """How many (machine, epoch) have rows."""
    return len(np.unique(machine_N.astype(np.int64) * (int(epoch_N.max()) + 1) + epoch_N))


def _failure_metrics(
    rows: StatusRows,
    role_N: npt.NDArray[np.int8],
    tunes_K: BoolN,
    teaches_K: BoolN,
    failures: pa.Table,
    machines: Sequence[str],
) -> dict[str, Any]:
    """How many failures tune, teach and judge, and why the others do not."""
    count, in_horizon_N = failures.num_rows, rows.owner_N >= 0
    horizon_K = np.bincount(rows.owner_N[in_horizon_N], minlength=count)
    used_K = np.bincount(rows.owner_N[in_horizon_N & (role_N != ROLE[Role.NONE])], minlength=count)
    machine_K = intervals_of(failures, "time", "end", machines).machine_K
    unused = []
    for index in np.flatnonzero(used_K == 0).tolist():
        if machine_K[index] < 0:
            why = "its machine has no spectra"
        elif horizon_K[index] == 0:
            why = "no usable row lies in its horizon"
        elif tunes_K[index] or rows.changed:
            why = "its horizon lies in the first tenth of the span"
        else:
            why = "its horizon lies before the test span"
        names = {key: failures[key][index].as_py() for key in ("failure_id", "machine_id")}
        unused.append({**names, "role": str(Role.TUNE if tunes_K[index] else Role.TEST), "why": why})
    return {
        "total": count,
        "tune": int((tunes_K & ~teaches_K & (used_K > 0)).sum()),
        "test": int((~tunes_K).sum()),
        "judged": int((~tunes_K & (used_K > 0)).sum()),
        "unused": len(unused),
        "unused_why": unused[:LISTED],
        **({"teach": int((teaches_K & (used_K > 0)).sum())} if teaches_K.any() else {}),
    }


def _boundary_metrics(edges: Boundaries, machines: Sequence[str], params: SplitParams) -> dict[str, Any]:
    names = ("start", "cut_from", "train_end", "calibration_start", "calibration_end", "test_start", "end")

    def of(code: int) -> dict[str, str]:
        return {name: iso(int(getattr(edges, name)[code])) for name in names}

    if params.boundaries == "calendar":
        return {"scope": "calendar", **of(0)}
    return {"scope": "machine", "machines": {name: of(code) for code, name in enumerate(machines[:LISTED])}}


def _notes(
    rows: StatusRows,
    role_N: npt.NDArray[np.int8],
    recut: bool,
    machines: Sequence[str],
    maintenance: pa.Table,
    failures: pa.Table,
    feedback: pa.Table,
    params: SplitParams,
) -> list[str]:
    """What a reader must know about this split, in sentences."""
    notes, edges = [], rows.edges
    gaps = (edges.calibration_start - edges.train_end)[edges.end > edges.cut_from]
    if len(gaps) and gaps.min() < round(params.purge * MICROSECONDS_PER_HOUR):
        shortest = gaps.min() / MICROSECONDS_PER_HOUR
        notes.append(f"The data are short: purge gaps of {shortest:.4g} h instead of {params.purge:g} h.")
    if params.unseen_machine_share > 0 and not rows.unseen_M.any():
        notes.append("No machine is held out as unseen: the hash takes none of them, or would take all.")
    known = set(machines)
    for what, table in (("The maintenance log has {} entries", maintenance), ("Feedback has {} alerts", feedback)):
        strangers = [name for name in table["machine_id"].to_pylist() if name not in known]
        if strangers:
            notes.append(f"{what.format(len(strangers))} of machines without spectra ({len(set(strangers))}).")
    if not failures.num_rows:
        notes.append("The log holds no failure: nothing can be tuned, and no failure can be caught or missed.")
    if recut:
        notes.append("The train span is too short for validation days: its latest rows validate.")
    if not (role_N == ROLE[Role.TEST]).any():
        notes.append("No row is left for the test.")
    return notes


def main() -> None:
    """Read data/raw and the status of `validate`; write data/status/split.parquet and metrics/split.json."""
    raw, params = Path("data/raw"), load_params()
    names = [*(field.name for field in KEY_FIELDS), "status"]
    result = split(
        read_table("data/status/validate.parquet", names, VALIDATE_SCHEMA),
        read_table(raw / "maintenance.parquet", schema=MAINTENANCE_SCHEMA),
        read_table(raw / "failures.parquet", schema=FAILURE_SCHEMA),
        params.split,
        read_feedback(raw),
        params.train.baseline.min_rows,
        params.train.teaching_share,
    )
    write_table("data/status/split.parquet", result.table)
    write_json("metrics/split.json", result.metrics)


if __name__ == "__main__":
    run_reporting_errors(main)
