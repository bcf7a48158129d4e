"""What a maintenance log says, entry by entry, and everything that is wrong with it.

An entry without an end: a `failure`, `sensor` or `firmware` entry is then a moment; `healthy`, `repair` and `off` last
until somebody writes their end (OPEN_END).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.clock import Clock
from pipeline.findings import Finding, Severity, nearest
from pipeline.interval_file import FileForm
from pipeline.interval_lines import IntervalLine, in_order, interval_lines, shown
from pipeline.layout import MaintenanceLayout
from pipeline.schema import MAINTENANCE_SCHEMA, Tag, time_column

REQUIRED = ("machine_id", "start", "end", "tag")
OPTIONAL = ("failure_mode", "note")
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
    lines, findings = interval_lines(path, _form(layout), clock, data)
    entries, wrong = _entries(lines, layout, str(path))
    kept, repeats = _without_repeats(entries, str(path))
    findings = [*findings, *wrong, *repeats, *_contradictions(kept, str(path))]
    return ExaminedLog(tuple(kept), in_order(findings))


def _form(layout: MaintenanceLayout) -> FileForm:
    named = layout.columns.model_fields_set  # a column that fleet.yaml names has to be there
    return FileForm(
        what="maintenance",
        required=(*REQUIRED, *(name for name in OPTIONAL if name in named)),
        optional=tuple(name for name in OPTIONAL if name not in named),
        names=layout.columns.model_dump(),
        or_else=", or fleet.yaml's maintenance.columns to say what they are called",
        delimiter=layout.delimiter,
        timestamp_format=layout.timestamp_format,
        may_be_empty=frozenset({"end"}),
    )


# --- what the lines say ---


def _entries(
    lines: Sequence[IntervalLine], layout: MaintenanceLayout, file: str
) -> tuple[list[LogEntry], list[Finding]]:
    entries, findings = [], []
    for line in lines:
        tag, problem = _tag_of(line.texts["tag"], layout)
        if problem is not None:
            findings.append(Finding(Severity.ERROR, file, line.place, "tag", *problem))
        if tag is None or line.span is None:
            continue
        start, end = line.span.start, line.span.end
        if end is None:
            end = max(OPEN_END, start) if tag in LASTING_TAGS else start
        optional = {name: line.texts.get(name) for name in OPTIONAL}
        entries.append(LogEntry(line.place, line.span.machine, start, end, tag, **optional))
    return entries, findings


def _tag_of(text: str | None, layout: MaintenanceLayout) -> tuple[Tag | None, tuple[str, str] | None]:
    """The tag that a text means; or what was got and what expected."""
    if text is None:
        return None, ("nothing", f"one of {', '.join(KNOWN_TAGS)}")
    name = layout.tags.get(text, layout.tags.get(text.strip(), text.strip()))
    if name in KNOWN_TAGS:
        return Tag(name), None
    likely = nearest(name, [*KNOWN_TAGS, *layout.tags])
    hint = f"{likely} (the nearest)" if likely else "or fleet.yaml's maintenance.tags to say what it means"
    return None, (shown(text), f"one of {', '.join(KNOWN_TAGS)}; {hint}")


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
