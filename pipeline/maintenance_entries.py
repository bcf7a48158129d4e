"""What a maintenance log says, entry by entry, and everything that is wrong with it.

An entry without an end: a `failure`, `sensor` or `firmware` entry is then a moment; `healthy`, `repair` and `off` last
until somebody writes their end (OPEN_END).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.clock import Clock, is_text
from pipeline.errors import ContractError
from pipeline.findings import Finding, Severity, nearest
from pipeline.layout import MaintenanceLayout
from pipeline.maintenance_file import OPTIONAL, LogLines, UnreadableLog, read_lines
from pipeline.schema import MAINTENANCE_SCHEMA, IntN, Tag, time_column

KNOWN_TAGS = tuple(tag.value for tag in Tag)
DOWN_TAGS = frozenset({Tag.FAILURE, Tag.REPAIR, Tag.OFF})  # a machine under one of these is not healthy
LASTING_TAGS = frozenset({Tag.HEALTHY, Tag.REPAIR, Tag.OFF})  # without an end they go on
OPEN_END = int(np.datetime64("2200-01-01", "us").astype(np.int64))


@dataclass(frozen=True)
class LogEntry:
    """One right line of a log; times in microseconds since 1970 (UTC)."""

    place: str  # "line 3" of a CSV file, "row 2" of a Parquet file
    machine: str
    start: int
    end: int
    tag: Tag
    failure_mode: str | None
    note: str | None


@dataclass(frozen=True)
class ExaminedLog:
    """The right entries of a log, in the order of its file, and what a person should know of the others."""

    entries: tuple[LogEntry, ...]
    findings: tuple[Finding, ...]

    def table(self) -> pa.Table:
        """The entries as a table of MAINTENANCE_SCHEMA."""
        columns = [
            pa.array([entry.machine for entry in self.entries], pa.string()),
            time_column(np.array([entry.start for entry in self.entries], np.int64)),
            time_column(np.array([entry.end for entry in self.entries], np.int64)),
            pa.array([entry.tag.value for entry in self.entries], pa.string()),
            pa.array([entry.failure_mode for entry in self.entries], pa.string()),
            pa.array([entry.note for entry in self.entries], pa.string()),
        ]
        return pa.Table.from_arrays(columns, schema=MAINTENANCE_SCHEMA)


def examine_log(
    path: Path, clock: Clock, layout: MaintenanceLayout | None = None, data: bytes | None = None
) -> ExaminedLog:
    """Read a log and say everything that is wrong with it; times without a zone are the clock's.

    `data` are the file's bytes where they have been read already: `path` is then only its name.
    """
    layout = layout or MaintenanceLayout()
    try:
        lines = read_lines(path, layout, data)
    except UnreadableLog as error:
        return ExaminedLog((), (error.finding,))
    entries, findings = _entries(lines, clock, layout, str(path))
    kept, repeats = _without_repeats(entries, str(path))
    findings = [*lines.findings, *findings, *repeats, *_contradictions(kept, str(path))]
    return ExaminedLog(tuple(kept), tuple(sorted(findings, key=_line_number)))


def _line_number(finding: Finding) -> int:
    return int(finding.place.rpartition(" ")[2] or 0)


# --- what the lines say ---


def _entries(
    lines: LogLines, clock: Clock, layout: MaintenanceLayout, file: str
) -> tuple[list[LogEntry], list[Finding]]:
    starts, start_findings = _moments(lines, "start", clock, layout, file)
    ends, end_findings = _moments(lines, "end", clock, layout, file)
    findings = [*start_findings, *end_findings]
    broken = {finding.place for finding in findings if finding.severity is Severity.ERROR}
    texts = {name: column.to_pylist() for name, column in lines.columns.items() if name not in ("start", "end")}
    entries = []
    for row, place in enumerate(lines.places):
        tag, problems = _tag_of(texts["tag"][row], layout)
        problems += [("machine_id", "nothing", "a name")] if texts["machine_id"][row] is None else []
        problems += [("start", "nothing", "a time")] if starts[row] is None and place not in broken else []
        start, end = starts[row], ends[row]
        if start is not None and end is not None and end < start:
            problems.append(("end", "a time before start", "start <= end"))
        findings += [Finding(Severity.ERROR, file, place, *problem) for problem in problems]
        if problems or tag is None or start is None or place in broken:
            continue
        if end is None:
            end = max(OPEN_END, start) if tag in LASTING_TAGS else start
        optional = {name: texts[name][row] if name in texts else None for name in OPTIONAL}
        entries.append(LogEntry(place, texts["machine_id"][row], start, end, tag, **optional))
    return entries, findings


def _tag_of(text: str | None, layout: MaintenanceLayout) -> tuple[Tag | None, list[tuple[str, str, str]]]:
    if text is None:
        return None, [("tag", "nothing", f"one of {', '.join(KNOWN_TAGS)}")]
    name = layout.tags.get(text, layout.tags.get(text.strip(), text.strip()))
    if name in KNOWN_TAGS:
        return Tag(name), []
    likely = nearest(name, [*KNOWN_TAGS, *layout.tags])
    hint = f"{likely} (the nearest)" if likely else "or fleet.yaml's maintenance.tags to say what it means"
    return None, [("tag", repr(text), f"one of {', '.join(KNOWN_TAGS)}; {hint}")]


def _moments(
    lines: LogLines, name: str, clock: Clock, layout: MaintenanceLayout, file: str
) -> tuple[list[int | None], list[Finding]]:
    """Microseconds since 1970 of a time column, None where there is none, and a finding per time that is none."""
    column = lines.columns[name]
    if is_text(column.type):
        column = pa.array([text.strip() if text else None for text in column.to_pylist()], pa.string())
    encoded = column.dictionary_encode()
    times = _Times(encoded.dictionary, clock, layout.timestamp_format)
    times.read(np.arange(len(times.values)))
    moments, findings = list[int | None](), []
    for place, code in zip(lines.places, encoded.indices.to_pylist(), strict=True):
        severity, got, expected = times.said.get(code, (None, "", ""))
        if severity is not None:
            findings.append(Finding(severity, file, place, name, got, expected))
        moments.append(None if code is None or severity is Severity.ERROR else int(times.found[code]))
    return moments, findings


class _Times:
    """Different times of a log as microseconds since 1970, and what is to be said of them."""

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
            self.found[wanted] = trial.to_utc_us(self.values.take(pa.array(wanted)), "the log", form=self.form)
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
        got = repr(value) if isinstance(value, str) else str(value)
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


# --- what the entries say together ---


def _without_repeats(entries: list[LogEntry], file: str) -> tuple[list[LogEntry], list[Finding]]:
    first: dict[tuple[str, int, int, Tag], LogEntry] = {}
    findings = []
    for entry in entries:
        known = first.setdefault((entry.machine, entry.start, entry.end, entry.tag), entry)
        if known is not entry:
            got = f"the entry of {known.place} again"
            findings.append(Finding(Severity.WARNING, file, entry.place, "the entry", got, "each entry once"))
    return list(first.values()), findings


def _contradictions(entries: list[LogEntry], file: str) -> list[Finding]:
    """Entries that contradict an earlier one of their machine: healthy while it is down, or failing while it is failed.

    Which one counts does not depend on the order: down is down.
    """
    findings = []
    of_machine: dict[str, list[LogEntry]] = {}
    for entry in entries:
        if entry.tag is Tag.HEALTHY or entry.tag in DOWN_TAGS:
            of_machine.setdefault(entry.machine, []).append(entry)
    for mine in of_machine.values():
        lasting = dict[str, LogEntry]()  # of each kind, the entry that ends last
        for entry in sorted(mine, key=lambda entry: (entry.start, entry.end)):
            kind, opposite = ("healthy", "down") if entry.tag is Tag.HEALTHY else ("down", "healthy")
            failed, other = lasting.get(Tag.FAILURE), lasting.get(opposite)
            if entry.tag is Tag.FAILURE and failed and failed.end > entry.start:
                got = f"a failure during that of {failed.place}"
                findings.append(Finding(Severity.WARNING, file, entry.place, "tag", got, "one failure at a time"))
            elif other and other.end > entry.start:
                got = f"{entry.tag} while {other.place} says {other.tag}"
                expected = "one of them: rows under both are not taken as healthy"
                findings.append(Finding(Severity.WARNING, file, entry.place, "tag", got, expected))
            for name in (kind, entry.tag.value):
                if name not in lasting or lasting[name].end < entry.end:
                    lasting[name] = entry
    return findings
