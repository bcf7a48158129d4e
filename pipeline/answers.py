"""What people have answered, as files of the data set: corrections of the cleaning, and alerts confirmed or dismissed.

`corrections.csv` has a line per interval: machine_id, start, end, action (keep or remove), note; times are ISO 8601,
without a zone UTC, as in the list of removed intervals that it corrects. People write lines of their own, and each
dismissed alert has one, whose note is `exported_note`: every export replaces those and leaves the others as they are.
`feedback.parquet` has a row per alert. `maintenance_added.parquet` (MAINTENANCE_SCHEMA) is what people added to the
maintenance log by answering: failures, repairs, moved sensors, firmware; ingest merges it with the plant's own log,
which nobody but the plant writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.clock import Clock
from pipeline.errors import ContractError
from pipeline.findings import Finding, Severity, nearest
from pipeline.interval_file import FileForm, csv_line
from pipeline.interval_lines import in_order, interval_lines, refuse, shown
from pipeline.schema import FEEDBACK_SCHEMA
from pipeline.store import read_table, write_table

CORRECTIONS, FEEDBACK, ADDED_LOG = "corrections.csv", "feedback.parquet", "maintenance_added.parquet"
COLUMNS = ("machine_id", "start", "end", "action", "note")
ACTIONS = ("keep", "remove")
STATES = ("open", "confirmed", "dismissed")
# lines are copied from the list of removed intervals, which says more of each
FORM = FileForm(what="corrections", required=COLUMNS[:-1], optional=COLUMNS[-1:], wider_lines=True)


@dataclass(frozen=True)
class Correction:
    """Rows of one machine in [start, end] are kept or removed, whatever the statistics say."""

    place: str  # "line 3"
    machine: str
    start_us: int
    end_us: int
    keep: bool
    note: str

    @property
    def action(self) -> str:
        """What a person wrote."""
        return ACTIONS[0] if self.keep else ACTIONS[1]

    def contradicts(self, other: Correction) -> bool:
        """Whether both say the contrary of the same time of a machine.

        >>> keep = Correction("line 2", "pump", 0, 10, True, "")
        >>> [keep.contradicts(Correction("line 3", "pump", start, 20, False, "")) for start in (5, 10)]
        [True, False]
        """
        if self.machine != other.machine or self.keep == other.keep:
            return False
        overlap = self.start_us < other.end_us and other.start_us < self.end_us
        return overlap or self.start_us == other.start_us


def exported_note(alert_id: int) -> str:
    """The note of a dismissed alert's line in corrections.csv: by it an export knows its own lines.

    >>> is_exported(exported_note(12)), is_exported("alert 12 was nothing")
    (True, False)
    """
    return f"alert {alert_id}, dismissed in hearken"


def is_exported(note: str) -> bool:
    """Whether a note is one of `exported_note`."""
    return re.fullmatch(r"alert \d+, dismissed in hearken", note) is not None


def carry_answers(source: Path, staging: Path) -> None:
    """Copy the answers of a data set's folder, checked, into a snapshot that is being made.

    Raises:
        ContractError: see examine_corrections and read_feedback.
    """
    corrections = source / CORRECTIONS
    if corrections.is_file():
        data = corrections.read_bytes()
        refuse(examine_corrections(corrections, data)[1])
        (staging / CORRECTIONS).write_bytes(data)
    if (source / FEEDBACK).is_file():
        write_table(staging / FEEDBACK, read_feedback(source))


def read_corrections(data_set: Path, machines: Sequence[str]) -> list[Correction]:
    """The corrections of a data set; none where it has no such file.

    A dismissed alert of a machine whose spectra are gone says nothing, and stops no build.

    Raises:
        ContractError: the first error of examine_corrections; or a person's line names a machine without rows in the
            data set.
    """
    path = data_set / CORRECTIONS
    if not path.is_file():
        return []
    found, findings = examine_corrections(path)
    refuse(findings)
    known = set(machines)
    found = [each for each in found if each.machine in known or not is_exported(each.note)]
    for each in found:
        if each.machine not in known:
            likely = nearest(each.machine, machines)
            expected = f"a machine of the data set (it has {len(known)})" + (f"; {likely} is near" if likely else "")
            where = f"{path}, {each.place}"
            raise ContractError.of("machine_id", got=shown(each.machine), expected=expected, where=where)
    return found


def examine_corrections(path: Path, data: bytes | None = None) -> tuple[list[Correction], tuple[Finding, ...]]:
    """The right lines of a file of corrections, and everything that is wrong with the others.

    Wrong are a missing column, a machine that is not named, a time that cannot be read, an interval that ends before it
    starts, an action that is neither keep nor remove, and two intervals of a machine that overlap and say the contrary.
    `data` are the file's bytes where they have been read already.

    >>> lines = b"machine_id,start,end,action\\npump,2025-01-01T00:00Z,2025-01-02T00:00Z,keep\\n"
    >>> examine_corrections(Path("corrections.csv"), lines)[0][0].keep
    True
    """
    lines, findings = interval_lines(path, FORM, Clock("UTC"), data)
    found = []
    for line in lines:
        action = (line.texts["action"] or "").strip()
        if action not in ACTIONS:
            got = shown(action) if action else "nothing"
            findings.append(Finding(Severity.ERROR, str(path), line.place, "action", got, "keep or remove"))
        elif line.span is not None and line.span.end is not None:
            span, note = line.span, line.texts.get("note") or ""
            found.append(Correction(line.place, span.machine, span.start, line.span.end, action == "keep", note))
    return found, in_order([*findings, *_contradictions(found, str(path))])


def read_feedback(data_set: Path) -> pa.Table:
    """Alerts that people have answered or that stand open (FEEDBACK_SCHEMA); empty where there is no such file.

    Raises:
        ContractError: a column is missing, a state is unknown, or an alert closes before it opens; with the row.
    """
    path = data_set / FEEDBACK
    if not path.is_file():
        return FEEDBACK_SCHEMA.empty_table()
    table = read_table(path, schema=FEEDBACK_SCHEMA)
    for row, alert in enumerate(table.to_pylist()):
        place = f"{path}, row {row}"
        if alert["state"] not in STATES:
            raise ContractError.of("state", got=repr(alert["state"]), expected=f"one of {STATES}", where=place)
        if alert["closed"] is not None and alert["closed"] < alert["opened"]:
            raise ContractError.of("closed", got="a time before opened", expected="opened <= closed", where=place)
    return table


def corrections_csv(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Lines of a CSV file; names of the data are quoted where they need it, and never read as formulas.

    >>> corrections_csv([["=pump,1", "x"]], ["machine_id", "note"])
    'machine_id,note\\n"\\'=pump,1",x\\n'
    """
    return "".join(csv_line(row) for row in [header, *rows])


def _contradictions(found: Sequence[Correction], file: str) -> list[Finding]:
    """Corrections that say the contrary of an earlier one of their machine for the same time."""
    findings = []
    reach: dict[tuple[str, bool], Correction] = {}  # of each machine and action, the one that ends last
    for each in sorted(found, key=lambda each: each.start_us):
        other = reach.get((each.machine, not each.keep))
        if other is not None and (each.start_us < other.end_us or each.start_us == other.start_us):
            got = f"{each.action} where {other.place} says {other.action} of the same time"
            findings.append(Finding(Severity.ERROR, file, each.place, "action", got, "one action for one time"))
        mine = reach.get((each.machine, each.keep))
        if mine is None or mine.end_us < each.end_us:
            reach[each.machine, each.keep] = each
    return findings
