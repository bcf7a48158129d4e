"""Stage `simulate`: a fleet's day files, its maintenance log, the truth that only judging reads, and what it is.

Threads make the rows of some machines each, one writer takes them in order: the files do not depend on how many.
"""

from __future__ import annotations

import datetime as dt
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pipeline.errors import ParamsError, run_reporting_errors
from pipeline.params import SimulateParams, load_params
from pipeline.schema import FleetSpec
from pipeline.simulation.days import Fleet, day_table
from pipeline.simulation.facts import simulation_facts
from pipeline.simulation.history import FleetHistory
from pipeline.simulation.hours import kept_hours
from pipeline.simulation.log import logged_failures, maintenance_table, truth_table
from pipeline.simulation.plan import plan_fleet
from pipeline.store import atomic_folder, write_fleet_spec, write_json, write_table, write_tables

BATCH_VALUES = 1 << 22  # 16 MiB of spectra, 65,536 rows of 64 bins; a few more batches than threads are alive
THREADS = min(4, os.cpu_count() or 1) + 1  # one more than cores: the writer waits for the disk now and then
HORIZON_HOURS = 168.0

T = TypeVar("T")


@dataclass(frozen=True)
class SimulationSummary:
    """What was written."""

    folder: Path
    rows: int
    machines: int
    days: int  # day files
    failures: int  # of the maintenance log
    mislabelled_share: float  # of the machine-days of the plan: faulty, and the log knows nothing of it at that time


@dataclass(frozen=True)
class Batch:
    """Some machines on one day, from `begin` to `end`."""

    day: int
    begin: float
    end: float
    machines: range


def simulate(
    params: SimulateParams,
    out: Path | str,
    *,
    from_day: float = 0.0,
    days: float | None = None,
    plan: FleetHistory | None = None,
    max_rows: int | None = None,
    horizon_hours: float = HORIZON_HOURS,
) -> SimulationSummary:
    """Write the data set of days `from_day` to `from_day + days` (default: up to the planned end) into `out`.

    Day files that `out` already holds stay, or are replaced where they are simulated again; logs are written up to the
    end of the stretch. Days beyond the plan bring no new failures. `plan` replaces what the parameters plan. Beyond
    `max_rows` only whole hours are kept, the same of all machines, and the horizon before each failure of the log.

    Raises:
        ParamsError: the stretch is empty or begins before the first day, or `max_rows` has no room for an hour.
    """
    out = Path(out)
    end_day = (from_day + days) if days is not None else params.days
    if not 0 <= from_day < end_day:
        raise ParamsError(f"simulate: got days {from_day:g} to {end_day:g}, expected 0 <= from_day < end.")
    history = plan or plan_fleet(params)
    told = logged_failures(history, end_day)
    kept = kept_hours(params, told, from_day, end_day, max_rows, horizon_hours) if max_rows is not None else None
    fleet, rows, files = Fleet(params, history, kept), 0, 0
    with ThreadPoolExecutor(THREADS) as pool:
        made = _in_order(pool, lambda batch: (batch, _table_of(fleet, batch)), _batches(fleet, out, from_day, end_day))
        for day, group in itertools.groupby(made, key=lambda item: item[0].day):
            tables = _Counted(table for _, table in group if table is not None)
            first = next(tables, None)
            if first is not None:
                write_tables(_day_file(out, params, day), fleet.schema, itertools.chain([first], tables))
                rows, files = rows + tables.rows, files + 1
    write_table(out / "maintenance.parquet", maintenance_table(history, params.start, end_day))
    write_table(out / "truth.parquet", truth_table(history, params.start, end_day))
    write_json(out / "simulation.json", simulation_facts(params, history))
    edges = tuple(float(edge) for edge in np.linspace(0, params.max_hz, params.bins + 1))
    spec = FleetSpec(bins=params.bins, band_edges_hz=edges, interval_seconds=params.interval_seconds, name="demo")
    write_fleet_spec(out / "fleet.yaml", spec)
    return SimulationSummary(out, rows, params.machines, files, len(told), history.mislabelled_share)


def _day_file(out: Path, params: SimulateParams, day: int) -> Path:
    return out / "spectra" / f"{params.start + dt.timedelta(days=day)}.parquet"


def _batches(fleet: Fleet, out: Path, from_day: float, end_day: float) -> Iterator[Batch]:
    """What is to be made, by day and machine."""
    params = fleet.params
    per_day = max(1.0, 86_400 / params.interval_seconds * (1.0 if fleet.kept is None else fleet.kept.share))
    size = max(1, min(params.machines, int(BATCH_VALUES / params.bins / per_day)))
    for day in range(int(from_day), int(np.ceil(end_day))):
        begun = _day_file(out, params, day).exists()  # then it is completed, not cut
        begin = day if begun else max(from_day, day)
        for first in range(0, params.machines, size):
            machines = range(first, min(first + size, params.machines))
            yield Batch(day, begin, min(end_day, day + 1), machines)


def _table_of(fleet: Fleet, batch: Batch) -> pa.Table | None:
    return day_table(fleet, batch.machines, batch.day, batch.begin, batch.end)


def _in_order(pool: ThreadPoolExecutor, function: Callable[[Batch], T], batches: Iterable[Batch]) -> Iterator[T]:
    """The function's results in the order of the batches, a few of them made ahead."""
    waiting: deque[Future[T]] = deque()
    for batch in batches:
        waiting.append(pool.submit(function, batch))
        if len(waiting) > THREADS + 1:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _Counted(Iterator[pa.Table]):
    """Tables that are counted as they pass."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self.tables, self.rows = iter(tables), 0

    def __next__(self) -> pa.Table:
        table = next(self.tables)
        self.rows += table.num_rows
        return table


def main() -> None:
    """Write data/demo from params.simulate."""
    params = load_params().simulate
    with atomic_folder("data/demo") as folder:
        summary = simulate(params, folder)
    print(f"simulated {summary.rows:,} spectra of {summary.machines} machines, {summary.failures} failures")


if __name__ == "__main__":
    run_reporting_errors(main)
