"""From a landing zone to the snapshot `data/raw`: spectra by UTC day, each file sorted by machine and time.

Memory does not grow with the source: rows are spilled by day, and one day is sorted at a time. Everything is made and
checked beside the snapshot first; then only files that are new or changed are moved in, and days that the source no
longer explains are removed. Doing it again changes nothing.

Shape legend: N rows, F frequency bins.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from pipeline.answers import ADDED_LOG, CORRECTIONS, FEEDBACK, carry_answers
from pipeline.clock import Clock
from pipeline.errors import ContractError, printable, run_reporting_errors
from pipeline.landing import Source, SourceFile, open_source
from pipeline.landing.axes import join_axes
from pipeline.landing.contract import context_of
from pipeline.landing.frame import axis_warning, fleet_of, row_axes, source_warnings
from pipeline.landing.plausible import Energies
from pipeline.landing.source import nothing_whole
from pipeline.layout import SourceLayout
from pipeline.maintenance import (
    checked_labels,
    failures_of,
    log_from_labels,
    read_maintenance,
    sorted_log,
    with_added,
)
from pipeline.params import IngestParams, SplitParams, load_params
from pipeline.quarantine import RELEASES, carry_releases
from pipeline.sampling import Sample, sampled
from pipeline.schema import (
    FAILURE_SCHEMA,
    MAINTENANCE_SCHEMA,
    TRUTH_SCHEMA,
    FleetSpec,
    codes_and_names,
    times_us,
)
from pipeline.spill import DaySpill, write_day
from pipeline.store import read_table, sha256_file, write_fleet_spec, write_json, write_table

BUFFER_BYTES = 96 << 20  # of rows held in memory before they go to the spill
DAYS_AT_ONCE = 2  # that are sorted and written side by side: compression takes one core each
MODE_COLUMN = "fault_type"  # beside a label column: what kind of fault it is


@dataclass(frozen=True)
class IngestSummary:
    """What a snapshot holds, and what changed."""

    folder: Path
    rows: int
    machines: int
    bins: int
    days: int
    written: int  # day files that are new or changed
    deleted: int  # day files that the source no longer explains
    failures: int
    first: str | None
    last: str | None
    set_aside: dict[str, str]  # files that are wrong, each with its error
    warnings: tuple[str, ...]


def ingest(
    source: Path | str,
    out: Path | str,
    params: IngestParams,
    *,
    horizon_hours: float,
    tune_share: float,
    unseen_share: float = 0.0,
    layout: SourceLayout | None = None,
    unit: str | None = None,
    kind: Literal["spectrum", "features"] | None = None,
    only: Sequence[SourceFile] | None = None,
    trains: SplitParams | None = None,
) -> IngestSummary:
    """Bring the snapshot `out` in line with `source`: a data set, a file, a folder of files, or a URI.

    A file that is wrong is set aside with its error, and none of its rows kept. `layout`, `unit` and `kind` stand in
    for what fleet.yaml says. `only`: these of its files, and no others. `trains`: how a build will split the rows;
    where they are more than `params.max_rows`, single minutes of its training span are kept beside whole hours.

    Raises:
        ContractError: the source, its log or every file breaks the contract; `out` is then as it was.
    """
    out = Path(out)
    opened = open_source(source, timezone=params.timezone, layout=layout, unit=unit, kind=kind, only=only)
    set_aside = dict(opened.problems)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name[:60]}.", suffix=".tmp", dir=out.parent))
    try:
        stored = _stored_failures(out)
        sizes = {"horizon_hours": horizon_hours, "tune_share": tune_share, "unseen_share": unseen_share}
        while True:  # again where a file turned out broken after its labels or hours had counted
            log, warnings = _maintenance(opened, params, set_aside, horizon_hours)
            failures = failures_of(log, stored, **sizes)
            keep = sampled(opened, log, params, horizon_hours, trains)
            with DaySpill(staging / "spill", BUFFER_BYTES) as spill:
                energies, axes, broken = _spill_rows(opened, spill, keep)
                set_aside |= broken
                opened.files = [file for file in opened.files if file.name not in broken]
                if not opened.files:
                    raise nothing_whole(set_aside, opened.place.label)
                if broken and (keep is not None or params.label_column is not None):
                    opened.clock = Clock(opened.clock.zone)
                    continue
                facts = _write_days(spill, staging, opened, axes)
            break
        warnings += [
            *opened.clock.warnings(),
            *source_warnings(opened, set_aside),
            *energies.warnings(opened.unit_name),
        ]
        warnings += [*axis_warning(facts.lacking), *([] if keep is None else [keep.warning])]
        spec = fleet_of(opened, facts.bins, axes)
        spec = spec.model_copy(update={"time": "relative"}) if params.time == "relative" else spec
        if opened.times_are_counted and spec.time == "absolute":
            warnings.append("times were counted from a start: if that date is made up, say --time relative")
        _stage_rest(opened, staging, spec, log, failures)
        snapshot = {"rows": facts.rows, "machines": len(facts.machines), "bins": facts.bins, "days": facts.days}
        snapshot |= {"first": facts.first, "last": facts.last, "warnings": warnings}
        snapshot["set_aside"] = [{"file": name, "error": error} for name, error in sorted(set_aside.items())]
        write_json(staging / "snapshot.json", snapshot)
        written, deleted = _move_in(staging, out, facts.days)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return IngestSummary(
        folder=out,
        rows=facts.rows,
        machines=len(facts.machines),
        bins=facts.bins,
        days=len(facts.days),
        written=written,
        deleted=deleted,
        failures=failures.num_rows,
        first=facts.first,
        last=facts.last,
        set_aside=set_aside,
        warnings=tuple(warnings),
    )


def ingest_for(
    source: Path | str,
    out: Path | str,
    params: IngestParams,
    split: SplitParams,
    *,
    layout: SourceLayout | None = None,
    unit: str | None = None,
    kind: Literal["spectrum", "features"] | None = None,
    only: Sequence[SourceFile] | None = None,
    trains: bool = False,
) -> IngestSummary:
    """The same with the horizon and the roles of failures as section `split` has them: what builds and service take in.

    `trains`: a build will split the rows.

    Raises:
        ContractError: see `ingest`.
    """
    return ingest(
        source,
        out,
        params,
        horizon_hours=split.horizon_hours,
        tune_share=split.tune_failure_share,
        unseen_share=split.unseen_machine_share,
        layout=layout,
        unit=unit,
        kind=kind,
        only=only,
        trains=split if trains else None,
    )


def _spill_rows(
    source: Source, spill: DaySpill, keep: Sample | None
) -> tuple[Energies, tuple[str, ...] | None, dict[str, str]]:
    """Gather every whole file's rows by day; its energies, the axes that rows hold one of, and files that broke."""
    energies, axes, broken = Energies(), set[str](), dict[str, str]()
    for file in source.files:
        looked_at = Energies()
        seen = set[str]()
        try:
            for table in source.tables(file):
                looked_at.add(file.name, table)
                if "axis" in table.column_names:
                    seen |= set(table["axis"].unique().to_pylist())
                spill.add(table if keep is None else keep.select(table), source.place.where(file.name))
        except ContractError as error:
            spill.drop()
            broken[file.name] = str(error)
            continue
        spill.keep()
        energies.extend(looked_at)
        axes |= seen
    return energies, row_axes(source, axes) if source.axis_by_row else None, broken


@dataclass(frozen=True)
class _Facts:
    """Of all days together."""

    rows: int
    machines: set[str]
    bins: int
    days: dict[str, str]  # name of the day file: hash of its bytes
    first: str | None
    last: str | None
    lacking: int  # rows without one of their axes


@dataclass(frozen=True)
class _Day:
    """Of one day file."""

    name: str
    rows: int
    machines: set[str]
    bins: int
    sha256: str
    first_us: int
    last_us: int
    lacking: int


def _write_days(spill: DaySpill, staging: Path, source: Source, axes: tuple[str, ...] | None) -> _Facts:
    def write(name: str) -> _Day | None:
        table, lacking, path = spill.read(name), 0, staging / "spectra" / name
        if not table.num_rows:
            return None
        if axes is not None:
            table, lacking = join_axes(table, axes, source.place.label)
        write_day(table, path)
        machines = set(codes_and_names(table["machine_id"])[1])
        bins = table.schema.field("spectrum").type.list_size
        moments = times_us(table["timestamp"])
        first, last = int(moments.min()), int(moments.max())
        return _Day(name, table.num_rows, machines, bins, sha256_file(path), first, last, lacking)

    with ThreadPoolExecutor(DAYS_AT_ONCE) as pool:
        days = [day for day in pool.map(write, spill.days()) if day is not None]
    if not days:
        raise ContractError.of("spectra", got="no rows", expected="at least one", where=source.place.label)
    ends_us = min(day.first_us for day in days), max(day.last_us for day in days)
    first, last = (f"{np.datetime64(moment, 'us')}Z" for moment in ends_us)
    return _Facts(
        rows=sum(day.rows for day in days),
        machines=set[str]().union(*(day.machines for day in days)),
        bins=days[0].bins,
        days={day.name: day.sha256 for day in days},
        first=first,
        last=last,
        lacking=sum(day.lacking for day in days),
    )


def _maintenance(
    source: Source, params: IngestParams, set_aside: dict[str, str], horizon_hours: float
) -> tuple[pa.Table, list[str]]:
    """The log, from a file, from labels, or both, and from answered alerts; and what a person should know of it."""
    tables, warnings = [], list[str]()
    found = source.place.beside("maintenance.parquet", "maintenance.csv")
    if found is not None:
        layout = source.spec.maintenance if source.spec is not None else None
        path = Path(source.place.where(found[0]))
        log, said = read_maintenance(path, source.clock, layout, found[1])
        tables.append(log)
        warnings += said
    if params.label_column is not None:
        tables.append(_labelled(source, params.label_column, set_aside))
    if not tables:
        warnings.append("there is no maintenance log: every row counts as healthy")
        if any("label" in form.context for form in source.forms.values()):
            warnings.append("a column `label` is not used as a log: set ingest.label_column to use it")
        tables.append(MAINTENANCE_SCHEMA.empty_table())
    plant, added = sorted_log(pa.concat_tables(tables)), source.place.beside(ADDED_LOG)
    if added is None:
        return plant, warnings
    entries, said = read_maintenance(Path(source.place.where(ADDED_LOG)), Clock("UTC"), None, added[1])
    log, told_twice = with_added(plant, entries, horizon_hours)
    if told_twice:
        warnings.append(f"{told_twice} failures of {ADDED_LOG} stand in the plant's own log too: its times count")
    return log, warnings + said


def _labelled(source: Source, label: str, set_aside: dict[str, str]) -> pa.Table:
    """The log that labels tell; a file whose labels cannot be read is set aside."""
    keys, labels = list[pa.Table](), list[np.ndarray]()
    for file in source.files:
        try:
            read = _labels_of(source, file, label)
        except ContractError as error:
            set_aside[file.name] = str(error)
            continue
        keys += [table for table, _ in read]
        labels += [values for _, values in read]
    source.files = [file for file in source.files if file.name not in set_aside]
    if not source.files:
        raise nothing_whole(set_aside, source.place.label)
    if not keys:
        return MAINTENANCE_SCHEMA.empty_table()
    table = pa.concat_tables(keys)
    machine_N, names = codes_and_names(table["machine_id"])
    mode_N, modes = codes_and_names(table[MODE_COLUMN].cast(pa.string()))
    return log_from_labels(machine_N, names, times_us(table["timestamp"]), np.concatenate(labels), mode_N, modes)


def _labels_of(source: Source, file: SourceFile, label: str) -> list[tuple[pa.Table, np.ndarray]]:
    """Keys and fault type of a file's rows, and their labels."""
    context, where = context_of(source.forms[file.name]), source.place.where(file.name)
    if label not in context:
        got = f"no column {label}"
        raise ContractError.of("label_column", got=got, expected=f"one of {', '.join(context)}", where=where)
    columns = [label, *([MODE_COLUMN] if MODE_COLUMN in context and label != MODE_COLUMN else [])]
    found = []
    # a clock of its own: these times are read a second time with the spectra
    for table in source.tables(file, columns, Clock(source.clock.zone)):
        values = checked_labels(table[label], label, where)
        if MODE_COLUMN not in columns:
            table = table.append_column(MODE_COLUMN, pa.nulls(len(table), pa.string()))
        table = table.set_column(0, "machine_id", table["machine_id"].dictionary_encode())
        found.append((table.select(["machine_id", "timestamp", MODE_COLUMN]), values))
    return found


def _stored_failures(out: Path) -> pa.Table | None:
    path = out / "failures.parquet"
    return read_table(path, schema=FAILURE_SCHEMA) if path.exists() else None


def _stage_rest(source: Source, staging: Path, spec: FleetSpec, log: pa.Table, failures: pa.Table) -> None:
    write_fleet_spec(staging / "fleet.yaml", spec)
    write_table(staging / "maintenance.parquet", log)
    write_table(staging / "failures.parquet", failures)
    truth = source.place.beside("truth.parquet")
    if truth is not None:
        (staging / "truth.given").write_bytes(truth[1])
        write_table(staging / "truth.parquet", read_table(staging / "truth.given", schema=TRUTH_SCHEMA))
    folder = _folder_of_answers(source, staging)
    try:
        carry_releases(folder, staging)
        carry_answers(folder, staging)
    except ContractError as error:
        raise ContractError(str(error).replace(str(folder), source.place.label)) from None


def _folder_of_answers(source: Source, staging: Path) -> Path:
    """Where the files of people's answers can be read; those of an object store are copied first."""
    place = source.place
    if place.local is not None:
        return place.local if "://" in place.label else Path(place.label)
    folder = staging / "given"
    folder.mkdir()
    for name in (RELEASES, CORRECTIONS, FEEDBACK):
        found = place.beside(name)
        if found is not None:
            (folder / name).write_bytes(found[1])
    return folder


def _move_in(staging: Path, out: Path, days: dict[str, str]) -> tuple[int, int]:
    """Move what is new or changed into `out`; the numbers of day files written and deleted."""
    (out / "spectra").mkdir(parents=True, exist_ok=True)
    written = sum(_replace(staging / "spectra" / name, out / "spectra" / name) for name in days)
    stale = [path for path in sorted((out / "spectra").glob("*.parquet")) if path.name not in days]
    for path in stale:
        path.unlink()
    names: Sequence[str] = ("fleet.yaml", "maintenance.parquet", "failures.parquet", "snapshot.json")
    for name in names:  # the snapshot's description last: it is right only when all else is there
        _replace(staging / name, out / name)
    for name in ("truth.parquet", RELEASES, CORRECTIONS, FEEDBACK):  # which a source may have or not
        if (staging / name).exists():
            _replace(staging / name, out / name)
        else:
            (out / name).unlink(missing_ok=True)
    return written, len(stale)


def _replace(new: Path, old: Path) -> bool:
    """Move `new` over `old` unless their bytes are the same."""
    if old.exists() and sha256_file(old) == sha256_file(new):
        return False
    new.replace(old)
    return True


def main() -> None:
    """Write data/raw from params.source and params.ingest."""
    params = load_params()
    summary = ingest_for(params.source.path, Path("data/raw"), params.ingest, params.split, trains=True)
    print(
        f"ingested {summary.rows:,} spectra of {summary.machines} machines in {summary.days} days: "
        f"{summary.written} day files written, {summary.deleted} removed; {summary.failures} failures"
        + (f"; {len(summary.set_aside)} files set aside" if summary.set_aside else "")
    )
    for warning in summary.warnings:
        print(f"warning: {printable(warning)}")


if __name__ == "__main__":
    run_reporting_errors(main)
