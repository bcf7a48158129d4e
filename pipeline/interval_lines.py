"""Lines with a machine and an interval, read from a file that a person wrote, and all that is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.clock import Clock, is_text
from pipeline.errors import ContractError
from pipeline.findings import Finding, Severity, errors_of
from pipeline.interval_file import TIMES, FileForm, FileLines, UnreadableFile, read_lines
from pipeline.schema import IntN

MACHINE = "machine_id"
MOST_SHOWN = 80  # characters of a value
CALENDAR = [int(np.datetime64(day, "us").astype(np.int64)) for day in ("0001-01-01", "9999-12-31T23:59:59")]


@dataclass(frozen=True)
class Span:
    """An interval of a machine; times in microseconds since 1970 (UTC)."""

    machine: str  # empty: none is named
    start: int
    end: int | None  # None: none is written

    @property
    def ends_early(self) -> bool:
        """Whether it ends before it starts."""
        return self.end is not None and self.end < self.start


@dataclass(frozen=True)
class IntervalLine:
    """One line of a file: where it stands, its interval, and its other columns (blank: None)."""

    place: str  # "line 3" of a CSV file, "row 2" of a Parquet file
    span: Span | None  # None: machine or interval are wrong, and a finding says why
    texts: Mapping[str, str | None]


def interval_lines(
    path: Path, form: FileForm, clock: Clock, data: bytes | None = None
) -> tuple[list[IntervalLine], list[Finding]]:
    """The lines of a file that say anything, and all that is wrong with their machines and intervals.

    Args:
        path: the file.
        form: its columns, and how it is written.
        clock: whose zone times without one are in.
        data: the file's bytes where they have been read already: `path` is then only its name.
    """
    try:
        lines = read_lines(path, form, data)
    except UnreadableFile as error:
        return [], [error.finding]
    found: list[IntervalLine] = []
    findings = list(lines.findings)
    moments = {}
    for name in TIMES:
        moments[name], said = _moments(lines, name, clock, form, str(path))
        findings += said
    broken = {finding.place for finding in findings if finding.severity is Severity.ERROR}
    texts = {name: column.to_pylist() for name, column in lines.columns.items() if name not in TIMES}
    machines = texts.pop(MACHINE)
    for row, place in enumerate(lines.places):
        machine, start, end = machines[row], moments["start"][row], moments["end"][row]
        problems = []
        if machine is None and MACHINE not in form.may_be_empty:
            problems.append((MACHINE, "nothing", "a name"))
        for name, moment in zip(TIMES, (start, end), strict=True):
            if moment is None and name not in form.may_be_empty and place not in broken:
                problems.append((name, "nothing", "a time"))
        span = None if start is None else Span(machine or "", start, end)
        if span is not None and span.ends_early:
            problems.append(("end", "a time before start", "start <= end"))
        findings += [Finding(Severity.ERROR, str(path), place, *problem) for problem in problems]
        whole = not problems and place not in broken
        others = {name: values[row] for name, values in texts.items()}
        found.append(IntervalLine(place, span if whole else None, others))
    return found, findings


def shown(text: str) -> str:
    """A value of a file as messages show it: quoted, and not longer than a line.

    >>> shown("soon"), len(shown("x" * 1000))
    ("'soon'", 85)
    """
    return repr(text) if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]!r}..."


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings of one file by their lines."""
    return tuple(sorted(findings, key=lambda finding: int(finding.place.rpartition(" ")[2] or 0)))


def refuse(findings: Iterable[Finding]) -> None:
    """Raise the first error of these findings.

    Raises:
        ContractError: there is one.
    """
    for finding in errors_of(findings):
        raise finding.error()


def _moments(
    lines: FileLines, name: str, clock: Clock, form: FileForm, file: str
) -> tuple[list[int | None], list[Finding]]:
    """Microseconds since 1970 of a time column, None where there is none, and a finding per time that is none."""
    column = lines.columns[name]
    if is_text(column.type):
        column = pa.array([text.strip() if text else None for text in column.to_pylist()], pa.string())
    encoded = column.dictionary_encode()
    times = _Times(encoded.dictionary, clock, form.timestamp_format)
    times.read(np.arange(len(times.values)))
    moments, findings = list[int | None](), []
    for place, code in zip(lines.places, encoded.indices.to_pylist(), strict=True):
        severity, got, expected = times.said.get(code, (None, "", ""))
        if severity is None and code is not None and not CALENDAR[0] <= times.found[code] <= CALENDAR[1]:
            severity, got, expected = Severity.ERROR, str(times.values[code]), "a time of the years 1 to 9999"
        if severity is not None:
            findings.append(Finding(severity, file, place, name, got, expected))
        moments.append(None if code is None or severity is Severity.ERROR else int(times.found[code]))
    return moments, findings


class _Times:
    """Different times of a file as microseconds since 1970, and what is to be said of them."""

    def __init__(self, values: pa.Array, clock: Clock, form: str | None) -> None:
        self.values, self.clock, self.form = values, clock, form
        self.found = np.zeros(len(values), np.int64)
        self.said: dict[int | None, tuple[Severity, str, str]] = {}

    def read(self, wanted: IntN) -> None:
        """Read the wanted values; what does not read whole is halved until it is one value, of which that is said."""
        if not len(wanted):
            return
        trial, broken = replace(self.clock, assumed=False, ambiguous=0, skipped=0, mixed=[]), False
        try:
            self.found[wanted] = trial.to_utc_us(self.values.take(pa.array(wanted)), "the file", form=self.form)
        except ContractError:
            broken = True
        if not (broken or trial.ambiguous or trial.skipped):
            self.clock.assumed |= trial.assumed
        elif len(wanted) > 1:
            self.read(wanted[: len(wanted) // 2])
            self.read(wanted[len(wanted) // 2 :])
        else:
            self._say(int(wanted[0]), broken, trial)

    def _say(self, code: int, broken: bool, trial: Clock) -> None:
        value, zone = self.values[code].as_py(), self.clock.zone
        got = shown(value) if isinstance(value, str) else str(value)
        with_offset = "a time with its offset, such as +02:00"
        if broken:
            example = f"the form {self.form}" if self.form else "a time such as 2025-03-01 14:30"
            self.said[code] = (Severity.ERROR, got, example)
        elif trial.ambiguous:
            got += f", which clocks of {zone} show twice (the first is taken)"
            self.said[code] = (Severity.WARNING, got, with_offset)
        else:
            got += f", which clocks of {zone} never show (moved to the end of the gap)"
            self.said[code] = (Severity.WARNING, got, with_offset)
