"""What is odd about a plant's spectra, from the survey of its files: values, times, steps, gaps, units that differ."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pipeline.findings import Finding, Severity
from pipeline.maintenance_entries import DOWN_TAGS, LogEntry
from pipeline.schema import MICROSECONDS_PER_HOUR, FleetSpec
from pipeline.survey import FileFacts, MachineFacts, Survey

SPECTRA = "spectra"
GAP_HOURS = 24  # a shorter silence is nothing to look at
GAP_STEPS = 20  # of the machine's own steps
STEP_RATIO = 1.5  # between the steps that are stated and those that are
MANY = 0.05  # of a file's rows: fewer odd ones are noted, not warned of
FEW = 5  # names that are listed


def spectra_findings(
    survey: Survey, spec: FleetSpec, entries: Sequence[LogEntry], now: dt.datetime, future_hours: float
) -> list[Finding]:
    """Everything that is odd about the spectra.

    Args:
        survey: of all files.
        spec: what fleet.yaml says.
        entries: of the log: they explain gaps.
        now: and `future_hours` later no row can be.
        future_hours: see `now`.
    """
    if not survey.rows:
        return []
    latest_us = int((now.timestamp() + future_hours * 3600) * 1e6) if spec.time == "absolute" else None
    return [
        *_values(survey, spec),
        *_times(survey, latest_us),
        *_steps(survey, spec),
        *_gaps(survey, entries),
        *_units(survey, spec),
        *_names(survey),
        *_description(survey, spec),
    ]


def moment(time_us: int) -> str:
    """A time for people, in UTC.

    >>> moment(0)
    '1970-01-01 00:00'
    """
    return str(np.datetime64(time_us, "us").astype("datetime64[m]")).replace("T", " ")


def _values(survey: Survey, spec: FleetSpec) -> Iterator[Finding]:
    for file in survey.files:
        if file.whole and not file.rows:
            yield Finding(Severity.WARNING, file.name, "", "rows", "none", "at least one")
    finite, magnitudes = "numbers: such rows are set aside", "magnitudes from 0 on, or kind: features"
    yield from _odd_rows(survey, "spectrum", "values that are NaN or infinite", finite, lambda file: file.nonfinite)
    if spec.kind == "spectrum":
        yield from _odd_rows(survey, "spectrum", "values that are negative", magnitudes, lambda file: file.negative)
        expected = "a spectrum: such rows are set aside"
        yield from _odd_rows(survey, "spectrum", "values that are all the same", expected, lambda file: file.flat)


def _odd_rows(
    survey: Survey, what: str, odd: str, expected: str, count: Callable[[FileFacts], int]
) -> Iterator[Finding]:
    """A warning for each file with many odd rows, and one note for all others with some."""
    some = [file for file in survey.files if count(file)]
    few = [file for file in some if count(file) < MANY * file.rows]
    for file in some:
        if file not in few:
            got = f"{odd} in {count(file):,} of {file.rows:,} rows ({count(file) / file.rows:.0%})"
            yield Finding(Severity.WARNING, file.name, "", what, got, expected)
    if few:
        rows, worst = sum(map(count, few)), max(few, key=count)
        got = f"{odd} in {rows:,} of {survey.rows:,} rows, most in {worst.name!r} ({count(worst):,})"
        yield Finding(Severity.NOTE, SPECTRA, "", what, got, expected)


def _times(survey: Survey, latest_us: int | None) -> Iterator[Finding]:
    for file in survey.files:
        if latest_us is not None and file.newest_us is not None and file.newest_us > latest_us:
            got = f"{moment(file.newest_us)}, which is yet to come"
            yield Finding(Severity.WARNING, file.name, "", "timestamp", got, "times of the past")
    odd, expected = "two rows of a machine at one time", "one row per machine and time"
    yield from _odd_rows(survey, "timestamp", odd, expected, lambda file: file.repeated)
    unordered = [file.name for file in survey.files if file.unordered]
    if unordered:
        got = f"rows out of order in {_listed(unordered)}"
        yield Finding(Severity.NOTE, SPECTRA, "", "timestamp", got, "any order: ingest sorts them")


def _steps(survey: Survey, spec: FleetSpec) -> Iterator[Finding]:
    steps = {name: step for name, machine in survey.machines.items() if (step := machine.steps.median) is not None}
    if not steps:
        return
    usual, stated = float(np.median(list(steps.values()))), spec.interval_seconds
    if stated is None:
        got, expected = "nothing", f"{usual:g}, as rows come"
        yield Finding(Severity.NOTE, "fleet.yaml", "", "interval_seconds", got, expected)
    elif _differ(usual, stated):
        expected = f"{usual:g}, as rows come"
        yield Finding(Severity.WARNING, "fleet.yaml", "", "interval_seconds", f"{stated:g}", expected)
    others = [name for name, step in sorted(steps.items()) if _differ(step, usual)]
    for name in others:
        got = f"a row every {steps[name]:g} s of {name!r}"
        yield Finding(Severity.WARNING, SPECTRA, "", "timestamp", got, f"{usual:g} s, as most machines have")


def _differ(step: float, other: float) -> bool:
    return not 1 / STEP_RATIO < step / other < STEP_RATIO


def _gaps(survey: Survey, entries: Sequence[LogEntry]) -> Iterator[Finding]:
    down: dict[str, list[LogEntry]] = {}
    for entry in entries:
        if entry.tag in DOWN_TAGS:
            down.setdefault(entry.machine, []).append(entry)
    for name, machine in sorted(survey.machines.items()):
        gaps = _silences(machine, down.get(name, []))
        if gaps:
            hours, begin = max(gaps)
            got = f"{len(gaps)} gaps of {name!r}, the longest {hours / 24:.1f} days from {moment(begin)}"
            got = got if len(gaps) > 1 else f"a gap of {name!r} of {hours / 24:.1f} days from {moment(begin)}"
            yield Finding(
                Severity.WARNING,
                SPECTRA,
                "",
                "timestamp",
                got,
                "rows, an entry off or repair in the log, or a right clock",
            )


def _silences(machine: MachineFacts, down: Sequence[LogEntry]) -> list[tuple[int, int]]:
    """Hours without rows that no entry explains, and their begins (microseconds)."""
    hours_H = machine.hours_H
    least = max(GAP_HOURS, GAP_STEPS * (machine.steps.median or 0.0) / 3600)
    found = []
    for place in np.flatnonzero(np.diff(hours_H) > least):
        begin, end = ((int(hours_H[place + side]) + 1 - side) * MICROSECONDS_PER_HOUR for side in (0, 1))
        if not any(entry.start < end and entry.end > begin for entry in down):
            found.append(((end - begin) // MICROSECONDS_PER_HOUR, begin))
    return found


def _units(survey: Survey, spec: FleetSpec) -> Iterator[Finding]:
    if spec.kind == "spectrum":
        for said in survey.energies.warnings(spec.unit):
            yield Finding(Severity.WARNING, SPECTRA, "", "unit", said, f"one unit ({spec.unit}) for all")


def _names(survey: Survey) -> Iterator[Finding]:
    """Names that differ only in case or blanks: most often one machine."""
    folded: dict[str, list[str]] = {}
    for name in sorted(survey.machines):
        folded.setdefault(" ".join(name.casefold().split()), []).append(name)
    for names in folded.values():
        if len(names) > 1:
            got = f"{' and '.join(map(repr, names))} as different machines"
            yield Finding(Severity.WARNING, SPECTRA, "", "machine_id", got, "one spelling, if they are one")


def _description(survey: Survey, spec: FleetSpec) -> Iterator[Finding]:
    if spec.kind == "spectrum" and spec.band_edges_hz is None and (spec.source is None or spec.source.waveform is None):
        bands = survey.bins if survey.by_axis else survey.bins // len(spec.axes or ("",))
        expected = f"{bands + 1} frequencies, so that reports name bands in Hz"
        yield Finding(Severity.NOTE, "fleet.yaml", "", "band_edges_hz", "nothing", expected)


def _listed(names: Sequence[str]) -> str:
    """A few names, and how many more.

    >>> _listed(["a", "b"]), _listed(list("abcdefg"))
    ("'a', 'b'", "'a', 'b', 'c', 'd', 'e' and 2 more")
    """
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(map(repr, names[:FEW])) + more
