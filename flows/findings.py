"""What `hearken check` found, for the terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.table import Table

from flows.terminal import counted, shown, table
from pipeline.check import Checked
from pipeline.check_spectra import moment
from pipeline.findings import Finding, Severity

COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}
ORDER = {severity: place for place, severity in enumerate(Severity)}


def findings_table(findings: Sequence[Finding]) -> Table:
    """A row per finding, file by file, the worst first; nothing in a name is taken for markup or a command."""
    made = table()
    for name in ("severity", "file", "line", "what", "got", "expected"):
        made.add_column(name, overflow="fold", no_wrap=name in ("severity", "line"))
    for finding in sorted(findings, key=lambda finding: ORDER[finding.severity]):
        row = (finding.file, finding.place, finding.what, finding.got, finding.expected)
        colour = COLOURS[finding.severity]
        made.add_row(f"[{colour}]{finding.severity}[/{colour}]", *(shown(text) for text in row))
    return made


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
    looked = f"{counted(len(survey.files), 'file')}, {counted(len(machines), 'machine')}, {counted(survey.rows, 'row')}"
    counts = ", ".join(counted(checked.count(severity), severity.value) for severity in Severity)
    entries = "1 log entry" if checked.entries == 1 else f"{checked.entries:,} log entries"
    return f"{looked}{span}; {entries}: {counts}"
