"""What a split has to go on after a change of the fleet: rows that describe its machines anew, and rows that calibrate.

Shape legend: N rows, M machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.moments import microseconds
from pipeline.params import SplitParams
from pipeline.roles import ROLE, StatusRows
from pipeline.schema import MICROSECONDS_PER_HOUR, Role

LISTED = 50  # machines named in the metrics


def change_figures(
    rows: StatusRows,
    role_N: npt.NDArray[np.int8],
    epoch_N: npt.NDArray[np.int32],
    machines: Sequence[str],
    params: SplitParams,
    min_looks: int,
) -> dict[str, Any] | None:
    """What there is to describe and calibrate the machines after a change of the fleet; None where there was none.

    Rows of an hour are alike, so the looks that describe an epoch are between its hours and its rows: a machine with
    fewer rows than `min_looks` has no baseline of its own for certain, one with as many hours has one.
    """
    if params.changed_at is None:
        return None
    count, hour_N = len(machines), rows.time_us_N // MICROSECONDS_PER_HOUR
    new_N = rows.time_us_N >= microseconds(params.changed_at)
    is_M = np.ones(count, bool) if params.changed_machines is None else np.isin(machines, params.changed_machines)
    is_M &= np.bincount(rows.machine_N[new_N], minlength=count) > 0
    newest_M = np.zeros(count, np.int64)
    np.maximum.at(newest_M, rows.machine_N, epoch_N)
    describes_N = np.isin(role_N, [ROLE[Role.TRAIN], ROLE[Role.BASELINE]]) & is_M[rows.machine_N]
    describes_N &= new_N & (epoch_N == newest_M[rows.machine_N])
    rows_M = np.bincount(rows.machine_N[describes_N], minlength=count)
    seen = np.unique(rows.machine_N[describes_N].astype(np.int64) * (hour_N.max() + 1) + hour_N[describes_N])
    hours_M = np.bincount(seen // (hour_N.max() + 1), minlength=count)
    calibrates_N = role_N == ROLE[Role.CALIBRATION]
    hours_after = (rows.edges.end - rows.edges.cut_from).max() / MICROSECONDS_PER_HOUR
    return {
        "at": params.changed_at.isoformat(),
        "hours_after": round(float(hours_after), 2),
        "machines": int(is_M.sum()),
        "unknown_machines": sorted(set(params.changed_machines or ()) - set(machines)),
        "describing_rows": _spread(rows_M[is_M]),
        "describing_hours": _spread(hours_M[is_M]),
        "certainly_wider": [machines[code] for code in np.flatnonzero(is_M & (rows_M < min_looks))[:LISTED].tolist()],
        "machines_certainly_wider": int((is_M & (rows_M < min_looks)).sum()),
        "machines_perhaps_wider": int((is_M & (rows_M >= min_looks) & (hours_M < min_looks)).sum()),
        "calibration_rows": int(calibrates_N.sum()),
        "min_looks": min_looks,
    }


def _spread(values_M: npt.NDArray[np.integer]) -> dict[str, float] | None:
    """The least, the middle and the most; None of none."""
    if not len(values_M):
        return None
    return {"least": int(values_M.min()), "median": float(np.median(values_M)), "most": int(values_M.max())}


def change_notes(change: dict[str, Any] | None, params: SplitParams) -> list[str]:
    """What a reader must know about a split after a change, in sentences."""
    if change is None:
        return []
    whom = "every machine" if params.changed_machines is None else f"{change['machines']} machines"
    notes = [
        f"Provisional: a new epoch of {whom} begins at {change['at']}. Only rows after it calibrate and count as "
        "healthy in the test, older ones train; failures before it tune and judge relative to their own epoch."
    ]
    if change["unknown_machines"]:
        notes.append(f"split.changed_machines names {len(change['unknown_machines'])} machines without spectra.")
    short, least = change["machines_certainly_wider"], change["min_looks"]
    if short or change["machines_perhaps_wider"]:
        notes.append(
            f"Of {change['machines']} changed machines {short} are described by fewer than {least} rows after the "
            f"change and have no baseline of their own in it; {change['machines_perhaps_wider']} more by rows of fewer "
            f"than {least} hours, which may not do. Theirs is wider: it leans on their epochs before the change and on "
            "the fleet. A build some hours later has more."
        )
    return notes
