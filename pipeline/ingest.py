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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.answers import carry_answers
from pipeline.clock import Clock
from pipeline.errors import ContractError, run_reporting_errors
from pipeline.landing import (
    Form,
    WideFrame,
    checked_forms,
    contract_batches,
    dropped_warning,
    load_frame,
    source_clock,
    source_files,
    source_spec,
)
from pipeline.maintenance import checked_labels, failures_of, log_from_labels, read_maintenance, sorted_log
from pipeline.params import IngestParams, load_params
from pipeline.quarantine import carry_releases
from pipeline.sampling import sampled_hours
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

__all__ = ["IngestSummary", "WideFrame", "ingest", "load_frame"]

BUFFER_BYTES = 96 << 20  # of rows held in memory before they go to the spill
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
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A landing zone that has been looked at: its files, their forms, its clock."""

    path: Path
    files: list[Path]
    forms: list[Form]
    clock: Clock
    spec: FleetSpec | None


def ingest(
    source: Path | str,
    out: Path | str,
    params: IngestParams,
    *,
    horizon_hours: float,
    tune_share: float,
    unseen_share: float = 0.0,
) -> IngestSummary:
    """Bring the snapshot `out` in line with `source`: a data set, a Parquet file, or a folder of Parquet files.

    Raises:
        ContractError: the source breaks the contract; `out` is then as it was.
    """
    source, out = Path(source), Path(out)
    spec, files = source_spec(source), source_files(source)
    opened = Source(source, files, checked_forms(files, spec), source_clock(params.timezone, spec), spec)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name[:60]}.", suffix=".tmp", dir=out.parent))
    try:
        log, warnings = _maintenance(opened, params)
        stored = _stored_failures(out)
        sizes = {"horizon_hours": horizon_hours, "tune_share": tune_share, "unseen_share": unseen_share}
        failures = failures_of(log, stored, **sizes)
        keep = sampled_hours(opened.files, opened.forms, opened.clock, log, params.max_rows, horizon_hours)
        with DaySpill(staging / "spill", BUFFER_BYTES) as spill:
            for path, form in zip(opened.files, opened.forms, strict=True):
                for table in contract_batches(path, form, opened.clock):
                    spill.add(table if keep is None else keep.select(table), path)
            facts = _write_days(spill, staging, source)
        spec = _written_spec(opened, params, facts.bins)
        warnings += opened.clock.warnings() + dropped_warning(opened.forms)
        warnings += [] if keep is None else [keep.warning]
        _stage_rest(opened, staging, spec, log, failures)
        snapshot = {"rows": facts.rows, "machines": len(facts.machines), "bins": facts.bins, "days": facts.days}
        snapshot |= {"first": facts.first, "last": facts.last, "warnings": warnings}
        write_json(staging / "snapshot.json", snapshot)
        carry_releases(source, out)
        written, deleted = _move_in(staging, out, facts.days)
        carry_answers(source, out)
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
        warnings=tuple(warnings),
    )


@dataclass(frozen=True)
class _Facts:
    """Of all days together."""

    rows: int
    machines: set[str]
    bins: int
    days: dict[str, str]  # name of the day file: hash of its bytes
    first: str | None
    last: str | None


def _write_days(spill: DaySpill, staging: Path, source: Path) -> _Facts:
    rows, machines, bins, days, ends = 0, set[str](), set[int](), dict[str, str](), list[int]()
    for name in spill.days():
        table = spill.read(name)
        write_day(table, staging / "spectra" / name)
        rows += table.num_rows
        machines |= set(codes_and_names(table["machine_id"])[1])
        bins.add(table.schema.field("spectrum").type.list_size)
        days[name] = sha256_file(staging / "spectra" / name)
        moments = times_us(table["timestamp"])
        ends += [int(moments.min()), int(moments.max())]
    if not rows:
        raise ContractError.of("spectra", got="no rows", expected="at least one", where=source)
    if len(bins) > 1:
        raise ContractError.of("number of bins", got=sorted(bins), expected="one number", where=source)
    first, last = (str(np.datetime64(moment, "us")) + "Z" for moment in (min(ends), max(ends)))
    return _Facts(rows, machines, bins.pop(), days, first, last)


def _maintenance(source: Source, params: IngestParams) -> tuple[pa.Table, list[str]]:
    """The log, from a file, from labels, or both; and what a person should know of it."""
    tables, warnings = [], list[str]()
    for name in ("maintenance.parquet", "maintenance.csv"):
        if source.path.is_dir() and (source.path / name).exists():
            tables.append(read_maintenance(source.path / name, source.clock))
            break
    if params.label_column is not None:
        tables.append(_labelled(source, params.label_column))
    if not tables:
        warnings.append("there is no maintenance log: every row counts as healthy")
        if any("label" in form.context for form in source.forms):
            warnings.append("a column `label` is not used as a log: set ingest.label_column to use it")
        tables.append(MAINTENANCE_SCHEMA.empty_table())
    return sorted_log(pa.concat_tables(tables)), warnings


def _labelled(source: Source, label: str) -> pa.Table:
    keys, labels = [], []
    for path, form in zip(source.files, source.forms, strict=True):
        if label not in form.context:
            got = f"no column {label}"
            raise ContractError.of("label_column", got=got, expected=f"one of {', '.join(form.context)}", where=path)
        columns = [label, *([MODE_COLUMN] if MODE_COLUMN in form.context and label != MODE_COLUMN else [])]
        # a clock of its own: these times are read a second time with the spectra
        for table in contract_batches(path, form, Clock(source.clock.zone), columns):
            labels.append(checked_labels(table[label], label, path))
            named = (
                table if MODE_COLUMN in columns else table.append_column(MODE_COLUMN, pa.nulls(len(table), pa.string()))
            )
            named = named.set_column(0, "machine_id", named["machine_id"].dictionary_encode())
            keys.append(named.select(["machine_id", "timestamp", MODE_COLUMN]))
    if not keys:
        return MAINTENANCE_SCHEMA.empty_table()
    table = pa.concat_tables(keys)
    machine_N, names = codes_and_names(table["machine_id"])
    mode_N, modes = codes_and_names(table[MODE_COLUMN].cast(pa.string()))
    return log_from_labels(machine_N, names, times_us(table["timestamp"]), np.concatenate(labels), mode_N, modes)


def _stored_failures(out: Path) -> pa.Table | None:
    path = out / "failures.parquet"
    return read_table(path, schema=FAILURE_SCHEMA) if path.exists() else None


def _written_spec(source: Source, params: IngestParams, bins: int) -> FleetSpec:
    spec = source.spec or FleetSpec(kind=source.forms[0].kind, bins=bins)
    if params.timezone is not None:
        spec = spec.model_copy(update={"timezone": params.timezone})
    return spec.model_copy(update={"time": "relative"}) if params.time == "relative" else spec


def _stage_rest(source: Source, staging: Path, spec: FleetSpec, log: pa.Table, failures: pa.Table) -> None:
    write_fleet_spec(staging / "fleet.yaml", spec)
    write_table(staging / "maintenance.parquet", log)
    write_table(staging / "failures.parquet", failures)
    truth = source.path / "truth.parquet"
    if source.path.is_dir() and truth.exists():
        write_table(staging / "truth.parquet", read_table(truth, schema=TRUTH_SCHEMA))


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
    if (staging / "truth.parquet").exists():
        _replace(staging / "truth.parquet", out / "truth.parquet")
    else:
        (out / "truth.parquet").unlink(missing_ok=True)
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
    summary = ingest(
        Path(params.source.path),
        Path("data/raw"),
        params.ingest,
        horizon_hours=params.split.horizon_hours,
        tune_share=params.split.tune_failure_share,
        unseen_share=params.split.unseen_machine_share,
    )
    print(
        f"ingested {summary.rows:,} spectra of {summary.machines} machines in {summary.days} days: "
        f"{summary.written} day files written, {summary.deleted} removed; {summary.failures} failures"
    )
    for warning in summary.warnings:
        print(f"warning: {warning}")


if __name__ == "__main__":
    run_reporting_errors(main)
