"""Stages `validate` and `clean` on millions of spectra: rows per second, peak memory, and the naive suite beside them.

A fleet of 600 machines over 60 days, and smaller fleets over the same days, are written as day files of random spectra
with faults, missing numbers and days in another unit. Then the stages run as in a build, each in a process of its own,
from Parquet to status table with everything they write. `clean_rows_per_s` counts the rows that cleaning looks
at (four fifths of all), not those it passes on. `split` stands between the two; its memory is told apart.

The naive suite checks each of the 64 bins with two expectations. It answers in the result format of the stage, which
names the rows that fail: quarantine has to know them, and a suite that only says that 3 rows of 18,000,000 fail would
not do the stage's work. Its frame is in memory already; ours reads Parquet and writes the status table. Both run in one
process, in turns, on samples small enough to finish; medians count, and of the naive samples the fastest per row.
Seconds of the processor stand beside all others: they say what a machine that others use as well would have given.
Usage: python benchmarks/validate_scale.py [--rows 1000000 4000000 18000000] [--naive-rows 50000 200000 800000]
[--repeats 3] [--no-clean]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from pipeline.expectations import RESULT_FORMAT
from pipeline.expectations import context as quiet_context
from pipeline.params import load_params
from pipeline.schema import (
    FAILURE_SCHEMA,
    MACHINE,
    MAINTENANCE_SCHEMA,
    MICROSECONDS_PER_DAY,
    FloatNF,
    dictionary_column,
    spectra_column,
    spectra_schema,
    spectra_view,
    time_column,
)
from pipeline.store import day_files, read_table, row_count, write_table, write_text
from pipeline.validate import validate

DAYS, ROWS_PER_DAY = 60, 500  # of a machine: a spectrum every 173 s; 600 machines have 18,000,000 rows
START = 1_735_689_600_000_000  # 2025-01-01
GIB = 2**20  # of the kilobytes that the system reports
# every fourth machine has a fault of four days that no log knows, one row in 10,000 a bin without a number, and one
# machine-day in 1,000 another unit: every path of both stages is taken
FAULTY_EVERY, FAULT_DAYS, FAULT_BINS, FAULT_FACTOR = 4, 4, 3, 2.0
NAN_SHARE, OTHER_UNIT_EVERY = 1e-4, 1000
# most rows train, so that cleaning has most rows to look at
PARAMS = """
split: {horizon_hours: 24, run_in_hours: 0, train_share: 0.8, calibration_share: 0.1, unseen_machine_share: 0}
"""
GOALS = {"validate_rows_per_s": "≥ 400,000", "clean_rows_per_s": "≥ 150,000", "speedup_vs_naive": "≥ 100"}
GOALS |= {"peak_rss_gib": "< 4"}


def write_data_set(root: Path, rows: int, bins: int) -> int:
    """A snapshot below `root` with at least as many rows; how many it has."""
    rng, raw = np.random.default_rng(1), root / "data/raw"
    machines = -(-rows // (DAYS * ROWS_PER_DAY))
    names = [f"machine-{code:04d}" for code in range(machines)]
    machine_N = np.repeat(np.arange(machines), ROWS_PER_DAY)
    level_MF = rng.normal(0, 0.5, (machines, bins)).astype(np.float32)
    begins_M = rng.integers(5, DAYS // 2, machines)
    interval = MICROSECONDS_PER_DAY // ROWS_PER_DAY
    for day in range(DAYS):
        log_MF = level_MF.copy()
        faulty_M = (np.arange(machines) % FAULTY_EVERY == 0) & (begins_M <= day) & (day < begins_M + FAULT_DAYS)
        log_MF[faulty_M, :FAULT_BINS] += np.log(FAULT_FACTOR)
        log_MF[(np.arange(machines) * DAYS + day) % OTHER_UNIT_EVERY == 0] += np.log(1000)
        spectra_NF = rng.standard_normal((len(machine_N), bins), dtype=np.float32)
        spectra_NF *= 0.3
        spectra_NF += log_MF[machine_N]
        np.exp(spectra_NF, out=spectra_NF)
        spectra_NF[rng.random(len(spectra_NF)) < NAN_SHARE, -1] = np.nan
        time_us_N = START + day * MICROSECONDS_PER_DAY + np.tile(np.arange(ROWS_PER_DAY) * interval, machines)
        columns = [dictionary_column(machine_N, names, MACHINE), time_column(time_us_N), spectra_column(spectra_NF)]
        table = pa.Table.from_arrays(columns, schema=spectra_schema(bins))
        write_table(raw / f"spectra/{np.datetime64('2025-01-01') + day}.parquet", table)
    write_text(raw / "fleet.yaml", f"bins: {bins}\ninterval_seconds: {interval / 1e6}\n")
    write_table(raw / "maintenance.parquet", MAINTENANCE_SCHEMA.empty_table())
    write_table(raw / "failures.parquet", FAILURE_SCHEMA.empty_table())
    write_text(root / "params.yaml", PARAMS)
    return len(machine_N) * DAYS


def run_stage(stage: str) -> dict[str, float]:
    """One stage in this process, in the folder that it stands in."""
    begin = time.perf_counter()
    import_module(f"pipeline.{stage}").main()
    seconds, used = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
    return {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_rss_gib": used.ru_maxrss / GIB}


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall and of the processor."""
    begin, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begin, time.process_time() - used


def run_in_turns(sizes: Sequence[int], repeats: int, bins: int) -> dict[str, float]:
    """The naive suite on samples of each size, and `validate` on the set in this folder, in turns; rates and ratio."""
    raw, params = Path("data/raw"), load_params().validate_
    files = day_files(raw)
    rows = sum(map(row_count, files))
    parts = list[FloatNF]()
    while sum(map(len, parts)) < min(rows, max(sizes)):
        parts.append(spectra_view(read_table(files[len(parts)], ["spectrum"])["spectrum"], bins))
    spectra_NF, names = np.concatenate(parts), [f"bin_{index:02d}" for index in range(bins)]
    naive = naive_suite(names)
    seconds: dict[int, list[tuple[float, float]]] = {size: [] for size in (*sizes, rows)}
    validate(raw, Path("status.parquet"), params)  # imports are no part of either
    for _ in range(repeats):
        for size in sizes:
            frame = pd.DataFrame(spectra_NF[:size], columns=names)
            seconds[size].append(timed(lambda frame=frame: naive(frame)))
        seconds[rows].append(timed(lambda: validate(raw, Path("status.parquet"), params)))
    rates = {size: size / np.median(values, axis=0) for size, values in seconds.items()}
    found = {f"naive_rows_per_s_{size}": float(rates[size][0]) for size in sizes}
    found |= {f"naive_rows_per_cpu_s_{size}": float(rates[size][1]) for size in sizes}
    fastest, cpu_fastest = (max(float(rates[size][place]) for size in sizes) for place in (0, 1))
    ours, cpu_ours = (float(rates[rows][place]) for place in (0, 1))
    found |= {"naive_rows_per_s": fastest, "validate_rows_per_s_in_turns": ours}
    found |= {"validate_rows_per_cpu_s_in_turns": cpu_ours}
    return found | {"speedup_vs_naive": ours / fastest, "speedup_vs_naive_by_cpu": cpu_ours / cpu_fastest}


def naive_suite(names: Sequence[str]) -> Callable[[pd.DataFrame], None]:
    """Two expectations for each bin, as a function of a frame."""
    context = quiet_context()
    import great_expectations as gx
    from great_expectations import expectations as gxe

    suite = gx.ExpectationSuite(name="naive")
    for name in names:
        suite.add_expectation(gxe.ExpectColumnValuesToNotBeNull(column=name))
        suite.add_expectation(gxe.ExpectColumnValuesToBeBetween(column=name, min_value=0))
    asset = context.data_sources.add_or_update_pandas("memory").add_dataframe_asset("bins")
    data = asset.add_batch_definition_whole_dataframe("all")
    definition = gx.ValidationDefinition(name="naive", data=data, suite=context.suites.add_or_update(suite))
    definition = context.validation_definitions.add_or_update(definition)

    def check(frame: pd.DataFrame) -> None:
        outcome = definition.run(batch_parameters={"dataframe": frame}, result_format=RESULT_FORMAT)
        named = {row for result in outcome.results for row in result.result.get("unexpected_index_list") or []}
        assert len(outcome.results) == 2 * len(names)
        assert named == set(np.flatnonzero(frame.isna().any(axis=1)).tolist())

    return check


def apart(folder: Path, *arguments: str) -> dict[str, float]:
    """Run a part of this program in a process of its own, in a folder; what its last line says."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(rows: int, bins: int, clean: bool) -> dict[str, float]:
    """Every stage on one data set."""
    with tempfile.TemporaryDirectory(prefix="validate-scale-") as name:
        folder = Path(name)
        written = write_data_set(folder, rows, bins)
        stages = {
            stage: apart(folder, "--stage", stage) for stage in ("validate", "split", "clean")[: 3 if clean else 1]
        }
        result = {"rows": written, "validate_rows_per_s": written / stages["validate"]["seconds"]}
        if clean:
            looked_at = json.loads((folder / "metrics/cleaning.json").read_text())["looked_at"]
            result |= {"clean_rows_per_s": looked_at / stages["clean"]["seconds"], "clean_looked_at": looked_at}
        result |= {f"{stage}_{key}": value for stage, run in stages.items() for key, value in run.items()}
        result["peak_rss_gib"] = max(stages[stage]["peak_rss_gib"] for stage in stages if stage != "split")
        return result


def measure_in_turns(rows: int, naive_rows: Sequence[int], repeats: int, bins: int) -> dict[str, float]:
    """The naive suite and `validate` on one data set."""
    with tempfile.TemporaryDirectory(prefix="validate-scale-") as name:
        write_data_set(Path(name), rows, bins)
        options = ("--repeats", str(repeats), "--bins", str(bins), "--naive-rows", *map(str, naive_rows))
        return apart(Path(name), "--in-turns", *options)


def growth(sizes: Sequence[dict[str, float]], key: str) -> list[float]:
    """Seconds per million rows that one size has more than the one before: equal numbers are linear growth."""
    return [1e6 * (b[key] - a[key]) / (b["rows"] - a["rows"]) for a, b in pairwise(sizes)]


def main() -> None:
    """Print a table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 4_000_000, 18_000_000])
    parser.add_argument("--bins", type=int, default=64)
    parser.add_argument("--naive-rows", type=int, nargs="+", default=[50_000, 200_000, 800_000])
    parser.add_argument("--repeats", type=int, default=3, help="of the naive suite and of ours, in turns")
    parser.add_argument("--no-clean", action="store_true", help="only validate")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--in-turns", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage or options.in_turns:
        turns = (options.naive_rows, options.repeats, options.bins)
        print(json.dumps(run_stage(options.stage) if options.stage else run_in_turns(*turns)))
        return
    load_before = os.getloadavg()[0]
    sizes: list[dict[str, float]] = []
    for rows in sorted(options.rows):
        sizes.append(measure(rows, options.bins, not options.no_clean))
        print(json.dumps(sizes[-1]), flush=True)
    turns = measure_in_turns(min(options.rows), options.naive_rows, options.repeats, options.bins)
    result = sizes[-1] | turns | {"load_before": load_before, "load_after": os.getloadavg()[0]}
    table = Table(title=f"{int(result['rows']):,} x {options.bins} from Parquet to status table", width=80)
    for heading in ("figure", "value", "goal"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for key, value in result.items():
        table.add_row(key, f"{value:,.2f}" if value < 1000 else f"{value:,.0f}", GOALS.get(key, ""))
    Console().print(table)
    report = {
        f"{stage}_{key}_per_added_million": growth(sizes, f"{stage}_{key}")
        for stage in ("validate", "clean")[: 1 if options.no_clean else 2]
        for key in ("seconds", "cpu_seconds")
    }
    print(json.dumps(result | report | {"sizes": sizes}))


if __name__ == "__main__":
    main()
