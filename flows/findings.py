"""What `hearken check` found, for the terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from pipeline.check import Checked
from pipeline.check_spectra import moment
from pipeline.errors import printable
from pipeline.findings import Finding, Severity

COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}
ORDER = {severity: place for place, severity in enumerate(Severity)}


def findings_table(findings: Sequence[Finding]) -> Table:
    """A row per finding, file by file, the worst first; nothing in a name is taken for markup or a command."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("severity", "file", "line", "what", "got", "expected"):
        table.add_column(name, overflow="fold", no_wrap=name in ("severity", "line"))
    for finding in sorted(findings, key=lambda finding: ORDER[finding.severity]):
        row = (finding.file, finding.place, finding.what, finding.got, finding.expected)
        colour = COLOURS[finding.severity]
        table.add_row(f"[{colour}]{finding.severity}[/{colour}]", *(escape(printable(text)) for text in row))
    return table


def findings_json(checked: Checked) -> str:
    """All findings and what was looked at, as one JSON object in ASCII."""
    survey = checked.survey
    values = {
        "findings": [finding.to_json() for finding in checked.findings],
        "counts": {severity.value: checked.count(severity) for severity in Severity},
        "files": len(survey.files),
        "machines": len(survey.machines),
        "rows": survey.rows,
        "bins": survey.bins,
        "log_entries": checked.entries,
    }
    return json.dumps(values, indent=1)


def summary_line(checked: Checked) -> str:
    """What was looked at, and how many findings there are, in a sentence."""
    survey = checked.survey
    machines = survey.machines.values()
    span = ""
    if machines:
        first, last = (min(m.first_us for m in machines), max(m.last_us for m in machines))
        span = f", {survey.bins} bins{' of an axis' if survey.by_axis else ''}, {moment(first)} to {moment(last)} UTC"
    looked = f"{_number(len(survey.files), 'file')}, {_number(len(machines), 'machine')}, {_number(survey.rows, 'row')}"
    counts = ", ".join(_number(checked.count(severity), severity.value) for severity in Severity)
    entries = "1 log entry" if checked.entries == 1 else f"{checked.entries:,} log entries"
    return f"{looked}{span}; {entries}: {counts}"


def _number(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"
