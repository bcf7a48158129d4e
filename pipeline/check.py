"""What is wrong with a plant's folder: its description, its maintenance log, its spectra, and the three together.

Everything is found at once and nothing is changed. What ingest would refuse is an error, found by the same code.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from pipeline.answers import ADDED_LOG, CORRECTIONS, Correction, examine_corrections
from pipeline.check_spectra import moment, spectra_findings
from pipeline.clock import Clock
from pipeline.errors import ContractError, UserError
from pipeline.findings import Finding, Severity, nearest
from pipeline.landing import Source, open_source
from pipeline.maintenance import horizons
from pipeline.maintenance_entries import OPEN_END, ExaminedLog, LogEntry, examine_log
from pipeline.quarantine import RELEASES, GivenBack, examine_releases
from pipeline.schema import FleetSpec, Tag
from pipeline.survey import Survey
from pipeline.yaml_model import checked_model

FLEET_FILE = "fleet.yaml"
LOG_FILES = ("maintenance.parquet", "maintenance.csv")


@dataclass(frozen=True)
class Checked:
    """All that a check found, and what it looked at."""

    findings: tuple[Finding, ...]
    survey: Survey
    entries: int  # right ones, of the log

    def count(self, severity: Severity) -> int:
        """Number of findings of a severity."""
        return sum(finding.severity is severity for finding in self.findings)


def check_plant(
    plant: Path, *, horizon_hours: float, now: dt.datetime, timezone: str | None = None, future_hours: float = 24.0
) -> Checked:
    """Look at a plant's folder and say everything that is wrong with it.

    Args:
        plant: a folder with spectra, and perhaps fleet.yaml and a maintenance log.
        horizon_hours: over which failures announce themselves.
        now: rows later than this and `future_hours` come from a wrong clock.
        timezone: instead of what fleet.yaml says.
        future_hours: see `now`.

    Raises:
        UserError: there is no such folder, or an unknown `timezone`.
    """
    if not plant.is_dir():
        raise UserError(f"{plant}: got no folder, expected a plant's data; `hearken init {plant}` makes one.")
    spec, fleet_findings = _fleet(plant / FLEET_FILE)
    stated = spec.timezone if "timezone" in spec.model_fields_set else None
    clock = Clock(timezone or stated)
    log, log_findings = _log(plant, clock, spec)
    survey = Survey(horizons(log.table(), horizon_hours))
    if any(finding.severity is Severity.ERROR for finding in fleet_findings):
        expected = f"{FLEET_FILE} to be right first: it says how they are read"
        found = [Finding(Severity.NOTE, "spectra", "", "spectra", "not looked at", expected)]
    else:
        found = _read_spectra(plant, timezone, survey, clock)
        found += spectra_findings(survey, spec, log.entries, now, future_hours)
        found += log_against_spectra(log.entries, survey, _log_name(plant))
        found += _answers(plant, survey)
    if clock.assumed:
        expected = "timezone, if they are local"
        found.append(Finding(Severity.NOTE, FLEET_FILE, "", "timezone", "times without a zone, taken as UTC", expected))
    findings = [*fleet_findings, *log_findings, *found]
    return Checked(tuple(_relative(findings, plant)), survey, len(log.entries))


def _relative(findings: Sequence[Finding], plant: Path) -> list[Finding]:
    """Files named as below the plant's folder."""
    return [replace(finding, file=finding.file.removeprefix(f"{plant}/")) for finding in findings]


def _fleet(path: Path) -> tuple[FleetSpec, list[Finding]]:
    """What fleet.yaml says; where it is wrong, what is right of it."""
    if not path.exists():
        note = Finding(
            Severity.NOTE, FLEET_FILE, "", FLEET_FILE, "no file", "a description (`hearken init` writes one)"
        )
        return FleetSpec(), [note]
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        return FleetSpec(), [Finding(Severity.ERROR, FLEET_FILE, "", FLEET_FILE, str(error), "a text in UTF-8")]
    spec, findings = checked_model(text, FleetSpec, FLEET_FILE)
    if spec is None:
        wrong = {finding.what.split(".")[0] for finding in findings}
        spec, _ = checked_model(_without(text, wrong), FleetSpec, FLEET_FILE)
    return spec or FleetSpec(), findings


def _without(text: str, keys: set[str]) -> str:
    """A YAML text without some of its keys; empty where it is no mapping at all."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return ""
    kept = {key: value for key, value in values.items() if key not in keys} if isinstance(values, dict) else {}
    return yaml.safe_dump(kept) if kept else ""


def _log_name(plant: Path) -> str:
    return next((name for name in LOG_FILES if (plant / name).exists()), LOG_FILES[-1])


def _log(plant: Path, clock: Clock, spec: FleetSpec) -> tuple[ExaminedLog, list[Finding]]:
    name = _log_name(plant)
    if not (plant / name).exists():
        got, expected = "no file: every row counts as healthy", "the plant's failures and repairs"
        return ExaminedLog((), ()), [Finding(Severity.WARNING, name, "", "maintenance log", got, expected)]
    log = examine_log(plant / name, clock, spec.maintenance)
    findings = list(log.findings)
    if all((plant / other).exists() for other in LOG_FILES):
        got = f"{' and '.join(LOG_FILES)}: only {name} is read"
        findings.append(Finding(Severity.WARNING, name, "", "maintenance log", got, "one of them"))
    if not any(entry.tag is Tag.FAILURE for entry in log.entries):
        got, expected = "no failure", "failures, to judge detectors by"
        findings.append(Finding(Severity.NOTE, name, "", "maintenance log", got, expected))
    return log, findings


def _answers(plant: Path, survey: Survey) -> list[Finding]:
    """What is wrong with the files of people's answers, and machines in them that have no spectra."""
    findings = list[Finding]()
    corrections, releases, added = plant / CORRECTIONS, plant / RELEASES, plant / ADDED_LOG
    if added.is_file():
        findings += examine_log(added, Clock("UTC")).findings
    answered: list[tuple[Path, Sequence[Correction | GivenBack], Sequence[Finding]]] = []
    if corrections.is_file():
        answered.append((corrections, *examine_corrections(corrections)))
    if releases.is_file():
        answered.append((releases, *examine_releases(releases)))
    for path, answers, wrong in answered:
        findings += wrong
        for machine in sorted({answer.machine for answer in answers} - {"", *survey.machines}):
            likely = nearest(machine, list(survey.machines))
            got, expected = f"{machine!r}, which has no spectra", f"{likely!r}?" if likely else "a machine's name"
            findings.append(Finding(Severity.WARNING, str(path), "", "machine_id", got, expected))
    return findings


def _read_spectra(plant: Path, timezone: str | None, survey: Survey, clock: Clock) -> list[Finding]:
    """Read every file into the survey; what cannot be read, and what the clock had to assume."""
    try:
        source = open_source(plant, timezone=timezone)
    except ContractError as error:
        return [Finding.of_message(str(error), "spectra")]
    findings = [Finding.of_message(message, name) for name, message in source.problems.items()]
    for file in source.files:
        try:
            survey.add_file(file.name, source.tables(file))
        except ContractError as error:
            findings.append(Finding.of_message(str(error), file.name))
    return findings + _said_by(source, clock)


def _said_by(source: Source, clock: Clock) -> list[Finding]:
    clock.assumed |= source.clock.assumed
    said = replace(source.clock, assumed=False).warnings()
    findings = [Finding(Severity.WARNING, "spectra", "", "timestamp", text, "times with a zone") for text in said]
    for name in source.left_out:
        findings.append(Finding(Severity.NOTE, name, "", "the file", "another kind of file: not read", "spectra"))
    return findings


def log_against_spectra(entries: Sequence[LogEntry], survey: Survey, file: str) -> list[Finding]:
    """Entries of machines without spectra, outside of their machine's rows, or failures that nothing announces.

    >>> entry = LogEntry("line 2", "pump 1", 0, 0, Tag.FAILURE, None, None)
    >>> log_against_spectra([entry], Survey(), "maintenance.csv")[0].got
    "'pump 1', which has no spectra"
    """
    findings = []
    failures: dict[str, int] = {}  # met so far, of each machine
    for entry in entries:
        number = failures.get(entry.machine, 0)
        failures[entry.machine] = number + (entry.tag is Tag.FAILURE)
        machine = survey.machines.get(entry.machine)
        if machine is None:
            likely = nearest(entry.machine, list(survey.machines))
            got, expected = f"{entry.machine!r}, which has no spectra", f"{likely!r}?" if likely else "a machine's name"
            findings.append(Finding(Severity.WARNING, file, entry.place, "machine_id", got, expected))
            continue
        lived = f"{moment(machine.first_us)} to {moment(machine.last_us)}, when the machine has rows"
        outside = entry.start > machine.last_us or entry.end < machine.first_us
        if entry.tag is not Tag.FAILURE:
            if outside:
                lasts = entry.end not in (entry.start, OPEN_END)
                got = f"{moment(entry.start)} to {moment(entry.end)}" if lasts else moment(entry.start)
                findings.append(Finding(Severity.NOTE, file, entry.place, entry.tag.value, got, lived))
        elif len(machine.before_failures_K) > number and not machine.before_failures_K[number]:
            got, expected = f"{moment(entry.start)}, with no rows in the horizon before it", "rows that may announce it"
            got, expected = (moment(entry.start), lived) if outside else (got, expected)
            findings.append(Finding(Severity.WARNING, file, entry.place, "failure", got, expected))
    return findings
