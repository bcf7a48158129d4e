"""What validation has set aside, as intervals for people, and giving rows of it back.

The status table streams by: memory grows with the intervals, not with the rows.

Shape legend: N rows of a batch, n of them that are meant, M machines, I intervals.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import ContractError, UserError
from pipeline.expectations import load_rules
from pipeline.findings import nearest
from pipeline.interval_file import with_line
from pipeline.moments import iso_exact
from pipeline.quarantine import COLUMNS, FORM, NEVER_RELEASED, RELEASES, GivenBack, read_releases, released
from pipeline.schema import MICROSECONDS_PER_HOUR, BoolN, IntN, codes_and_names, times_us
from pipeline.store import open_parquet, read_batches, write_text

MADE_BY_SIMULATE = "demo"  # beside the snapshot
JOIN_GAP_US = 6 * MICROSECONDS_PER_HOUR  # rows of one reason closer than this are one interval


@dataclass(frozen=True)
class Wanted:
    """Which of the rows that are set aside are meant; None: any."""

    machine: str | None = None
    reason: str | None = None
    start_us: int | None = None
    end_us: int | None = None

    def among(self, machine_N: npt.NDArray[np.integer], machines: Sequence[str], time_us_N: IntN) -> BoolN:
        """Rows (N,) of the machine, in [start, end]."""
        meant_N = np.ones(len(time_us_N), bool)
        if self.machine is not None:
            meant_N &= np.array([name == self.machine for name in machines], bool)[machine_N]
        if self.start_us is not None:
            meant_N &= time_us_N >= self.start_us
        if self.end_us is not None:
            meant_N &= time_us_N <= self.end_us
        return meant_N


@dataclass(frozen=True)
class SetAside:
    """Rows of one machine, close to each other, that are set aside for the same reasons."""

    machine_id: str
    start_us: int
    end_us: int
    status: str  # quarantined | suspect
    reason: str  # several are joined by "+"
    rows: int
    returns: bool  # with the next build: releases cover all of its reasons

    @property
    def reasons(self) -> list[str]:
        """One by one."""
        return self.reason.split("+")


def set_aside(status_file: Path, wanted: Wanted | None = None, releases: Sequence[GivenBack] = ()) -> list[SetAside]:
    """Intervals of rows that validation set aside, by machine and time.

    Args:
        status_file: `data/status/validate.parquet`.
        wanted: which of them; by default all.
        releases: that the next build applies.

    Raises:
        ContractError: there is no such file: the set was never validated.
        UserError: a machine without rows, or a reason that no rule has.
    """
    open_parquet(status_file)
    wanted = wanted or Wanted()
    rules = [rule for suite in load_rules().values() for rule in suite]
    names, met = set[str](), {rule.reason for rule in rules if rule.action != "warn"}
    warned = {rule.reason for rule in rules} - met  # they set no row aside
    runs: dict[tuple[str, str, str, bool], list[tuple[int, int, int]]] = {}
    for table in read_batches(status_file, ["machine_id", "timestamp", "status", "reason"]):
        status_N, statuses = codes_and_names(table["status"])
        names.update(codes_and_names(table["machine_id"])[1])
        aside_N = np.array([name != "ok" for name in statuses], bool)[status_N]
        for key, run in _runs(table.filter(pa.array(aside_N)), wanted, releases, warned):
            runs.setdefault(key, []).append(run)
    met.update(reason for _, _, joined, _ in runs for reason in joined.split("+"))
    if wanted.machine is not None and wanted.machine not in names:
        raise _unknown("machine", wanted.machine, "a machine with rows", sorted(names), status_file)
    if wanted.reason is not None and wanted.reason not in met:
        raise _unknown("reason", wanted.reason, f"one of {', '.join(sorted(met))}", sorted(met), status_file)
    found = [SetAside(key[0], *run[:2], *key[1:3], run[2], key[3]) for key in runs for run in _joined(runs[key])]
    return sorted(found, key=lambda item: (item.machine_id, item.start_us, item.reason, item.status))


def _unknown(what: str, got: str, expected: str, known: Sequence[str], where: Path) -> UserError:
    likely = nearest(got, known)
    return ContractError.of(what, got=repr(got), expected=f"{likely}?" if likely else expected, where=where)


def _runs(
    table: pa.Table, wanted: Wanted, releases: Sequence[GivenBack], warned: set[str]
) -> Iterator[tuple[tuple[str, str, str, bool], tuple[int, int, int]]]:
    """Machine, status, reason and fate of the runs of a batch's meant rows; first and last time, and rows of each."""
    machine_N, machines = codes_and_names(table["machine_id"])
    status_N, statuses = codes_and_names(table["status"])
    reason_N, reasons = codes_and_names(table["reason"])
    time_N = times_us(table["timestamp"])
    meant_N = wanted.among(machine_N, machines, time_N)
    if wanted.reason is not None:
        meant_N &= np.array([wanted.reason in joined.split("+") for joined in reasons], bool)[reason_N]
    machine, status, reason, time = machine_N[meant_N], status_N[meant_N], reason_N[meant_N], time_N[meant_N]
    if not len(time):
        return
    returns = np.zeros(len(time), bool)
    for code in np.unique(reason) if releases else ():
        mine = reason == code
        for each in set(reasons[code].split("+")) - warned:
            mine &= released(releases, each, machine, machines, time)
        returns |= mine
    shape = (len(machines), len(statuses), len(reasons), 2)
    key = np.ravel_multi_index((machine, status, reason, returns.astype(np.int64)), shape)
    order = np.lexsort((time, key))
    key, time = key[order], time[order]
    first = np.flatnonzero(np.r_[True, (key[1:] != key[:-1]) | (np.diff(time) > JOIN_GAP_US)])
    last = np.r_[first[1:], len(key)] - 1
    for begin, end in zip(first.tolist(), last.tolist(), strict=True):
        m, s, r, back = (int(code) for code in np.unravel_index(int(key[begin]), shape))
        name = (machines[m], statuses[s], reasons[r], bool(back))
        yield name, (int(time[begin]), int(time[end]), end - begin + 1)


def _joined(runs: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Runs of the same rows' kind, those joined that are close.

    >>> _joined([(50, 60, 2), (0, 9, 3), (JOIN_GAP_US + 61, JOIN_GAP_US + 61, 1)])
    [(0, 60, 5), (21600000061, 21600000061, 1)]
    """
    found = list[tuple[int, int, int]]()
    for start, end, rows in sorted(runs):
        if found and start - found[-1][1] <= JOIN_GAP_US:
            found[-1] = (found[-1][0], max(end, found[-1][1]), found[-1][2] + rows)
        else:
            found.append((start, end, rows))
    return found


@dataclass(frozen=True)
class Proposal:
    """A release that a person may write, and what it comes to."""

    path: Path
    release: GivenBack
    given: tuple[SetAside, ...]  # what the next build gives back
    refused: int  # rows that are no numbers, or negative
    held: tuple[SetAside, ...]  # what is set aside for another reason too, and stays
    is_new: bool  # False: releases that stand there do it already

    @property
    def rows(self) -> int:
        """Rows that the next build gives back."""
        return sum(item.rows for item in self.given)

    def write(self) -> None:
        """Add the line to the file of releases, as one atomic write."""
        data = self.path.read_bytes() if self.path.is_file() else b""
        values = (
            self.release.machine,
            iso_exact(self.release.start_us),
            iso_exact(self.release.end_us),
            self.release.reason,
            self.release.note,
            self.release.by,
            self.release.at,
        )
        write_text(self.path, with_line(self.path, data, FORM, dict(zip(COLUMNS, values, strict=True))))


def proposed(
    source: Path, status_file: Path, wanted: Wanted, *, note: str = "", by: str = "", at: dt.datetime
) -> Proposal:
    """The release of the rows that are wanted, from the first of them to the last.

    Raises:
        UserError: nothing is named, no such row is set aside, or none can be given back; or no folder to write to.
    """
    if not source.is_dir():
        expected = "the folder of a data set (params.yaml, source.path)"
        raise UserError(f"release: got {source}, expected {expected}.")
    if source.resolve() == (status_file.parent.parent / MADE_BY_SIMULATE).resolve():
        hint = "stage simulate makes it anew; copy it to a folder of your own and set source.path to that"
        raise UserError(f"release: got source {source}, expected a plant's own data set: {hint}.")
    if wanted == Wanted():
        raise UserError("release: got nothing, expected at least one of --machine, --reason, --start, --end.")
    if wanted.start_us is not None and wanted.end_us is not None and wanted.end_us < wanted.start_us:
        raise UserError("release: got an end before the start, expected start <= end.")
    if wanted.reason in NEVER_RELEASED:
        raise UserError(f"release: got rows that are {wanted.reason}, expected rows that can be scored.")
    known = read_releases(source)
    before = set_aside(status_file, wanted, known)
    if not before:
        raise UserError("release: got no row that is set aside there, expected at least one; see: quarantine list.")
    low, high = min(item.start_us for item in before), max(item.end_us for item in before)
    low = low if wanted.start_us is None else wanted.start_us
    high = high if wanted.end_us is None else wanted.end_us
    release = GivenBack(
        wanted.machine or "", low, high, wanted.reason or "", note, by, at.isoformat(timespec="seconds")
    )
    after = set_aside(status_file, wanted, [*known, release])
    given = tuple(item for item in after if item.returns)
    stay = [item for item in after if not item.returns]
    refused = sum(item.rows for item in stay if set(item.reasons) & set(NEVER_RELEASED))
    held = tuple(item for item in stay if not set(item.reasons) & set(NEVER_RELEASED))
    if not given:
        also = f"rows that are set aside for another reason too ({held[0].reason})" if held else ""
        got = f"{refused} rows that are no numbers or negative" if refused else also
        raise UserError(f"release: got {got}, expected rows that can be scored.")
    is_new = sum(item.rows for item in before if item.returns) < sum(item.rows for item in given)
    return Proposal(source / RELEASES, release, given, refused, held, is_new)
