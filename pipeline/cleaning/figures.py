"""What cleaning tells people: removed intervals with a reason each, counts, and the worst of them beside the normal.

Shape legend: N rows (those looked at), E episodes, I intervals, T spectra of a heat map, F bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.answers import COLUMNS, corrections_csv
from pipeline.cleaning.episodes import Selection
from pipeline.moments import iso, iso_exact
from pipeline.schema import MICROSECONDS_PER_DAY, BoolN, FleetSpec, FloatN
from pipeline.store import read_spectra

RESIDUAL, CORRECTION = "residual", "correction"
LISTED = 10
WORST = 6  # intervals drawn as heat maps
DRAWN = 48  # spectra of each
DRAWN_DAYS = 12  # that the normal ones come from: each day file is decoded whole
CSV_COLUMNS = (*COLUMNS, "rows", "evidence", "reason", "state")


@dataclass(frozen=True)
class Interval:
    """Rows in a row of one machine that are removed, or were meant to be."""

    machine: str
    start_us: int
    end_us: int
    rows: int
    evidence: float | None  # the largest of its episodes
    reason: str
    removed: bool


def intervals_of(rows: Selection, marked_N: BoolN, removed_N: BoolN, reason: str, evidence_E: FloatN) -> list[Interval]:
    """Runs of marked rows of each machine, worst first; `removed` where most of a run's rows are gone in the end.

    Args:
        rows: looked at.
        marked_N: rows that are removed, or that the statistics or a person meant.
        removed_N: what is removed in the end.
        reason: of all of them.
        evidence_E: of the episodes.
    """
    with_marked_M = np.bincount(rows.machine_N[marked_N], minlength=len(rows.machines)) > 0
    looked_through = np.flatnonzero(with_marked_M[rows.machine_N])
    order = looked_through[np.lexsort((rows.time_us_N[looked_through], rows.machine_N[looked_through]))]
    marked, machine = marked_N[order], rows.machine_N[order]
    joined = marked[1:] & marked[:-1] & (machine[1:] == machine[:-1])
    starts, ends = np.flatnonzero(marked & ~np.r_[False, joined]), np.flatnonzero(marked & ~np.r_[joined, False])
    found = []
    for start, end in zip(starts, ends, strict=True):
        run = order[start : end + 1]
        evidence = evidence_E[np.unique(rows.episode_N[run])]
        known = evidence[np.isfinite(evidence)]
        found.append(
            Interval(
                machine=rows.machines[machine[start]],
                start_us=int(rows.time_us_N[run[0]]),
                end_us=int(rows.time_us_N[run[-1]]),
                rows=len(run),
                evidence=round(float(known.max()), 3) if len(known) else None,
                reason=reason,
                removed=bool(removed_N[run].mean() > 0.5),
            )
        )
    return sorted(found, key=lambda each: (-(each.evidence or 0.0), each.machine, each.start_us))


def removed_csv(intervals: Sequence[Interval]) -> str:
    """Every interval as a line whose first columns are those of corrections.csv, to be copied there and corrected."""
    lines = [
        [
            each.machine,
            iso_exact(each.start_us),
            iso_exact(each.end_us),
            "remove",
            "",
            str(each.rows),
            "" if each.evidence is None else f"{each.evidence:g}",
            each.reason,
            "removed" if each.removed else "kept",
        ]
        for each in intervals
    ]
    return corrections_csv(lines, CSV_COLUMNS)


def counts(rows: Selection, removed_N: BoolN, reason_N: npt.NDArray[np.int8], reasons: Sequence[str]) -> dict[str, Any]:
    """Removed rows in all, by reason, by machine (the most first) and by day."""
    by_machine = np.bincount(rows.machine_N[removed_N], minlength=len(rows.machines))
    most = sorted(range(len(by_machine)), key=lambda code: (-by_machine[code], rows.machines[code]))[:LISTED]
    days, of_days = np.unique(rows.time_us_N[removed_N] // MICROSECONDS_PER_DAY, return_counts=True)
    of_reasons = np.bincount(reason_N[removed_N], minlength=len(reasons))
    return {
        "looked_at": len(rows),
        "removed": int(removed_N.sum()),
        "share": round(float(removed_N.mean()), 6),
        "by_reason": {name: int(count) for name, count in zip(reasons, of_reasons, strict=True) if name and count},
        "by_machine": {rows.machines[code]: int(by_machine[code]) for code in most if by_machine[code]},
        "by_day": {iso(int(day) * MICROSECONDS_PER_DAY)[:10]: int(n) for day, n in zip(days, of_days, strict=True)},
    }


def listed(intervals: Sequence[Interval]) -> list[dict[str, Any]]:
    """The worst intervals for the metrics."""
    return [
        {
            "machine": each.machine,
            "start": iso_exact(each.start_us),
            "end": iso_exact(each.end_us),
            "rows": each.rows,
            "error": each.evidence,
            "reason": each.reason,
            "removed": each.removed,
        }
        for each in intervals[:LISTED]
    ]


def heat_maps(
    data_set: Path,
    split: pa.Table,
    looked_at_N: BoolN,
    rows: Selection,
    removed_N: BoolN,
    worst: Sequence[Interval],
    fleet: FleetSpec,
) -> list[dict[str, Any]]:
    """Spectra of the worst removed intervals, and of kept rows of the same machines: what a person compares.

    Returns:
        Per interval: machine, start, end, evidence, band names, and `removed` and `normal`, each with `times` and
        `spectra` (T lists of F numbers: log10 of the magnitude, or the features themselves).
    """
    chosen = [each for each in worst if each.removed][:WORST]
    picked: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for each in chosen:
        mine = np.flatnonzero(rows.machine_N == rows.machines.index(each.machine))
        inside = (rows.time_us_N[mine] >= each.start_us) & (rows.time_us_N[mine] <= each.end_us)
        normal = _of_some_days(rows, mine[~inside & ~removed_N[mine]], np.unique(rows.file_N))
        picked.append((_spread(rows, mine[inside]), _spread(rows, normal)))
    if not picked:
        return []
    taken = np.unique(np.concatenate([part for pair in picked for part in pair]))
    wanted_N = np.zeros(len(looked_at_N), bool)
    wanted_N[np.flatnonzero(looked_at_N)[taken]] = True
    spectra_NF = read_spectra(data_set, split, wanted_N, fleet.bins)
    shown_NF = np.log10(np.maximum(spectra_NF, 1e-12)) if fleet.kind == "spectrum" else spectra_NF
    names = [fleet.band_name(index) for index in range(fleet.bins)]

    def part(index: npt.NDArray[np.int64]) -> dict[str, Any]:
        spectra = shown_NF[np.searchsorted(taken, index)]
        return {
            "times": [iso_exact(int(time)) for time in rows.time_us_N[index]],
            "spectra": [[round(float(value), 4) for value in spectrum] for spectrum in spectra],
        }

    return [
        {
            "machine": each.machine,
            "start": iso_exact(each.start_us),
            "end": iso_exact(each.end_us),
            "rows": each.rows,
            "evidence": each.evidence,
            "bands": names,
            "removed": part(inside),
            "normal": part(outside),
        }
        for each, (inside, outside) in zip(chosen, picked, strict=True)
    ]


def _of_some_days(rows: Selection, index: npt.NDArray[np.int64], files: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Those of the rows that are of DRAWN_DAYS days, evenly spread and the same for every machine; all if none is."""
    days = files[np.unique(np.linspace(0, len(files) - 1, DRAWN_DAYS).round().astype(np.int64))]
    found = index[np.isin(rows.file_N[index], days)]
    return found if len(found) else index


def _spread(rows: Selection, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """At most DRAWN of these rows, evenly spread in time."""
    ordered = index[np.argsort(rows.time_us_N[index], kind="stable")]
    if len(ordered) <= DRAWN:
        return ordered
    return ordered[np.linspace(0, len(ordered) - 1, DRAWN).round().astype(np.int64)]
