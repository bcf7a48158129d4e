"""The alerts of a scoring run: the release's policy over its rows, and what the score log says of each alert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.alert_details import described
from pipeline.log_status import Intervals
from pipeline.policy_state import Alerts, Cause, PolicyRows, advance
from pipeline.release import Release
from pipeline.schema import ENSEMBLE, FloatN, IntN, Tag, times_us
from pipeline.sensor_clocks import EARLIEST_US, newest_believed
from pipeline.store import read_table

ALERTS = "_alerts.json"  # readers of Parquet folders pass over names that begin so
TIER_NAMES = ("none", "low", "page")


@dataclass(frozen=True)
class DayScores:
    """What a run keeps of a day: machine, time and tier of each row, and how rare the release's detector finds it.

    `row` is the place in the day file; `rarity` is minus the decimal logarithm of the tail probability, NaN: no score.
    """

    file: str
    row: IntN
    machine: np.ndarray
    machines: list[str]
    time_us: IntN
    tier: npt.NDArray[np.int8]
    rarity: FloatN


def run_alerts(
    release: Release, log: Path, days: Sequence[DayScores], maintenance: pa.Table | None
) -> list[dict[str, Any]]:
    """Alerts of the policy over the rows of a run, with everything that a crew is told.

    A machine that has been silent until the run's newest row has a no-data alert, unless it was logged off. Rows of a
    clock that jumped ahead raise no alert and make no other machine silent.

    Args:
        release: that scored.
        log: folder of the score log.
        days: in order.
        maintenance: log of the data set; None: there is none.
    """
    if not days:
        return []
    names = sorted({machine for day in days for machine in day.machines})
    index = {name: code for code, name in enumerate(names)}
    machine = np.concatenate([np.array([index[name] for name in day.machines], np.int32)[day.machine] for day in days])
    time_us, tier, rarity = (
        np.concatenate([getattr(day, name) for day in days]) for name in ("time_us", "tier", "rarity")
    )
    low, page = (tier >= TIER_NAMES.index(name) for name in ("low", "page"))
    newest_us = int(time_us.max())
    now_us = newest_believed(time_us, newest_us) if newest_us > EARLIEST_US else newest_us  # dates may be synthetic
    believed = time_us <= now_us
    rows = PolicyRows(machine, time_us, low & believed, page & believed, believed & ~np.isnan(rarity), rarity)
    _, alerts = advance(None, rows, release.policy, now_us=now_us, off=off_intervals(maintenance, index))
    ends = np.cumsum([len(day.row) for day in days])
    first, peak = (_rows_at(rows, alerts, moment_us) for moment_us in (alerts.opened_us, alerts.peak_us))
    first_rows = [None if row is None else _place(days, ends, row) for row in first]
    peaks = _peaks(release, log, days, ends, peak)
    return described(alerts, names, release.fleet, first_rows, peaks, release.page_rate)


def off_intervals(maintenance: pa.Table | None, index: dict[str, int]) -> Intervals | None:
    """When machines were logged off."""
    if maintenance is None:
        return None
    off = maintenance.filter(pa.array(np.array(maintenance["tag"].to_pylist()) == str(Tag.OFF), pa.bool_()))
    codes = np.array([index.get(name, -1) for name in off["machine_id"].to_pylist()], np.int32)
    return Intervals(codes, times_us(off["start"]), times_us(off["end"]))


def _rows_at(rows: PolicyRows, alerts: Alerts, moment_us: IntN) -> list[int | None]:
    """The row of the run at a moment of each alert, the oddest of those at one time; None for a silence."""
    found: list[int | None] = []
    for machine, cause, moment in zip(alerts.machine.tolist(), alerts.cause.tolist(), moment_us.tolist(), strict=True):
        here = np.flatnonzero((rows.machine == machine) & (rows.time_us == moment) & rows.low)
        silent = cause == Cause.NO_DATA or not len(here)
        found.append(None if silent else int(here[np.argmax(rows.score[here])]))
    return found


def _place(days: Sequence[DayScores], ends: IntN, row: int) -> dict[str, Any]:
    """File and row of a row of the run."""
    day = int(np.searchsorted(ends, row, side="right"))
    begin = int(ends[day - 1]) if day else 0
    return {"file": days[day].file, "row": int(days[day].row[row - begin])}


def _peaks(
    release: Release, log: Path, days: Sequence[DayScores], ends: IntN, peak_rows: Sequence[int | None]
) -> list[dict[str, Any] | None]:
    """What the score log says of each peak row, each file of it read once."""
    found: list[dict[str, Any] | None] = [None] * len(peak_rows)
    places = [None if row is None else _place(days, ends, row) for row in peak_rows]
    members = [name for name in release.manifest["members"] if name != release.detector]
    detectors = [release.detector, *members]
    columns = [f"tail_{name}" for name in detectors if name == ENSEMBLE or name in release.detectors]
    for file in sorted({place["file"] for place in places if place is not None}):
        table = read_table(log / file, ["row", "top_bins", *columns])
        where = {row: at for at, row in enumerate(table["row"].to_pylist())}
        for at, place in enumerate(places):
            if place is None or place["file"] != file:
                continue
            line = table.slice(where[place["row"]], 1).to_pylist()[0]
            tails = {name: line[f"tail_{name}"] for name in detectors}
            found[at] = place | {"tail": tails, "top_bins": line["top_bins"] or []}
    return found
