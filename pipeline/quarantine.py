"""Rows that people give back from quarantine.

A person's releases stand in `quarantine_releases.csv` in the data set's folder, beside the maintenance log, and are
applied whenever the set is validated. What is no number stays out, whoever asks.

Shape legend: N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.clock import Clock
from pipeline.findings import Finding, Severity
from pipeline.interval_file import FileForm
from pipeline.interval_lines import MACHINE, in_order, interval_lines, refuse
from pipeline.schema import BoolN, IntN

RELEASES = "quarantine_releases.csv"
COLUMNS = ("machine_id", "start", "end", "reason", "note", "by", "at")
FORM = FileForm(
    what="releases", required=COLUMNS[:4], optional=COLUMNS[4:], may_be_empty=frozenset({MACHINE})
)  # without a machine: of all
NEVER_RELEASED = ("nonfinite", "negative")  # no detector can take the logarithm of them


@dataclass(frozen=True)
class GivenBack:
    """Rows that a person gives back: of one machine or all, in [start, end], for one reason or any."""

    machine: str  # empty: all
    start_us: int
    end_us: int
    reason: str  # empty: any
    note: str = ""
    by: str = ""
    at: str = ""

    def covers(self, machine: str, reason: str) -> bool:
        """Whether rows of a machine with a reason can be meant."""
        return self.machine in ("", machine) and self.reason in ("", reason) and reason not in NEVER_RELEASED


def read_releases(data_set: Path) -> list[GivenBack]:
    """The releases of a data set's folder; none where it has no such file.

    Raises:
        ContractError: the first error of examine_releases.
    """
    path = data_set / RELEASES
    if not path.is_file():
        return []
    releases, findings = examine_releases(path)
    refuse(findings)
    return releases


def examine_releases(path: Path, data: bytes | None = None) -> tuple[list[GivenBack], tuple[Finding, ...]]:
    """The right lines of a file of releases, and everything that is wrong with the others.

    Wrong are a missing column, a time that cannot be read, an interval that ends before it starts, and a release of
    numbers that are none. Times without a zone are UTC. `data` are the file's bytes where they have been read already.
    """
    lines, findings = interval_lines(path, FORM, Clock("UTC"), data)
    found = []
    for line in lines:
        reason = (line.texts["reason"] or "").strip()
        if reason in NEVER_RELEASED:
            expected = f"another reason than {' and '.join(NEVER_RELEASED)}: such rows cannot be scored"
            findings.append(Finding(Severity.ERROR, str(path), line.place, "reason", repr(reason), expected))
        elif line.span is not None and line.span.end is not None:
            extra = {name: line.texts.get(name) or "" for name in FORM.optional}
            found.append(GivenBack(line.span.machine, line.span.start, line.span.end, reason, **extra))
    return found, in_order(findings)


def carry_releases(source: Path, staging: Path) -> None:
    """Copy the releases of a data set's folder, checked, into a snapshot that is being made.

    Raises:
        ContractError: the first error of examine_releases.
    """
    path = source / RELEASES
    if path.is_file():
        data = path.read_bytes()
        refuse(examine_releases(path, data)[1])  # here, before anything is built on it
        (staging / RELEASES).write_bytes(data)


def released(
    releases: Sequence[GivenBack],
    reason: str,
    machine_N: npt.NDArray[np.integer],
    machines: Sequence[str],
    time_us_N: IntN,
) -> BoolN:
    """Which rows (N,) people have given back from a reason.

    >>> given = [GivenBack("pump", 0, 10, "flat")]
    >>> released(given, "flat", np.array([0, 0, 1]), ["pump", "fan"], np.array([5, 11, 5])).tolist()
    [True, False, False]
    """
    released_N = np.zeros(len(machine_N), bool)
    for release in releases:
        meant_M = np.array([release.covers(machine, reason) for machine in machines], bool)
        if meant_M.any():
            released_N |= meant_M[machine_N] & (time_us_N >= release.start_us) & (time_us_N <= release.end_us)
    return released_N
