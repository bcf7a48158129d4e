"""Stages `validate` and `clean` on millions of spectra: rows per second, peak memory, and the naive suite beside them.

A fleet of 600 machines over 60 days is written as day files of random log-normal spectra, then the stages run as in a
build, each in a process of its own, from Parquet to status table with everything they write. `clean_rows_per_s` counts
the rows that cleaning looks at (four fifths of all), not those it passes on. The naive suite checks each bin with two
expectations and names the rows that fail, as ours does, on a sample small enough to finish, in the same run; its frame
is in memory already.
Usage: python benchmarks/validate_scale.py [--rows 1000000 4000000 18000000] [--naive-rows 400000] [--no-clean]
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
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from pipeline.expectations import RESULT_FORMAT
from pipeline.schema import (
    FAILURE_SCHEMA,
    MACHINE,
    MAINTENANCE_SCHEMA,
    MICROSECONDS_PER_DAY,
    dictionary_column,
    spectra_column,
    spectra_schema,
    time_column,
)
from pipeline.store import write_table, write_text

MACHINES, DAYS = 600, 60
START = 1_735_689_600_000_000  # 2025-01-01
GIB = 2**20  # of the kilobytes that the system reports
# most rows train, so that cleaning has most rows to look at
PARAMS = """
split: {horizon_hours: 24, run_in_hours: 0, train_share: 0.8, calibration_share: 0.1, unseen_machine_share: 0}
"""
GOALS = {"validate_rows_per_s": "≥ 400,000", "clean_rows_per_s": "≥ 150,000", "speedup_vs_naive": "≥ 100"}
GOALS |= {"peak_rss_gib": "< 4"}


def write_data_set(root: Path, rows: int, bins: int) -> int:
    """A snapshot below `root` with at least as many rows; how many it has."""
    rng, raw = np.random.default_rng(1), root / "data/raw"
    per_day = max(1, -(-rows // (MACHINES * DAYS)))
    names = [f"machine-{code:03d}" for code in range(MACHINES)]
    machine_N = np.repeat(np.arange(MACHINES), per_day)
    level_MF = rng.normal(0, 0.5, (MACHINES, bins)).astype(np.float32)
    interval = MICROSECONDS_PER_DAY // per_day
    for day in range(DAYS):
        spectra_NF = rng.standard_normal((len(machine_N), bins), dtype=np.float32)
        spectra_NF *= 0.3
        spectra_NF += level_MF[machine_N]
        np.exp(spectra_NF, out=spectra_NF)
        time_us_N = START + day * MICROSECONDS_PER_DAY + np.tile(np.arange(per_day) * interval, MACHINES)
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


def run_naive(rows: int, bins: int) -> dict[str, float]:
    """Two expectations for each bin on a frame of as many rows."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    import pandas as pd
    from great_expectations import expectations as gxe
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    names = [f"bin_{index:02d}" for index in range(bins)]
    spectra_NF = np.random.default_rng(1).lognormal(size=(rows, bins)).astype(np.float32)
    frame = pd.DataFrame(spectra_NF, columns=names)
    suite = gx.ExpectationSuite(name="naive")
    for name in names:
        suite.add_expectation(gxe.ExpectColumnValuesToNotBeNull(column=name))
        suite.add_expectation(gxe.ExpectColumnValuesToBeBetween(column=name, min_value=0))
    asset = context.data_sources.add_or_update_pandas("memory").add_dataframe_asset("bins")
    data = asset.add_batch_definition_whole_dataframe("all")
    definition = gx.ValidationDefinition(name="naive", data=data, suite=context.suites.add_or_update(suite))
    definition = context.validation_definitions.add_or_update(definition)
    begin = time.perf_counter()
    outcome = definition.run(batch_parameters={"dataframe": frame}, result_format=RESULT_FORMAT)
    seconds = time.perf_counter() - begin
    assert outcome.success
    assert len(outcome.results) == 2 * bins
    return {"seconds": seconds}


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
        # split reads a narrow table whole and is no part of this measurement; its memory stands beside
        return result | {"peak_rss_gib": max(stages[stage]["peak_rss_gib"] for stage in stages if stage != "split")}


def main() -> None:
    """Print a table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 4_000_000, 18_000_000])
    parser.add_argument("--bins", type=int, default=64)
    parser.add_argument("--naive-rows", type=int, default=400_000)
    parser.add_argument("--no-clean", action="store_true", help="only validate")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--naive", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage or options.naive:
        print(json.dumps(run_stage(options.stage) if options.stage else run_naive(options.naive_rows, options.bins)))
        return
    sizes = [measure(rows, options.bins, not options.no_clean) for rows in sorted(options.rows)]
    naive = apart(Path.cwd(), "--naive", "--naive-rows", str(options.naive_rows), "--bins", str(options.bins))
    naive_rows_per_s = options.naive_rows / naive["seconds"]
    result = dict(sizes[-1]) | {"bins": options.bins, "naive_rows_per_s": naive_rows_per_s}
    result["speedup_vs_naive"] = result["validate_rows_per_s"] / naive_rows_per_s
    table = Table(title=f"{int(result['rows']):,} x {options.bins} from Parquet to status table", width=80)
    for heading in ("figure", "value", "goal"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for key, value in result.items():
        table.add_row(key, f"{value:,.2f}" if value < 1000 else f"{value:,.0f}", GOALS.get(key, ""))
    Console().print(table)
    report: dict[str, list[float]] = {}
    for stage in ("validate", "clean")[: 1 if options.no_clean else 2]:
        # seconds per million rows that one size has more than the one before: equal numbers are linear growth
        steps = [
            1e6 * (larger[f"{stage}_seconds"] - smaller[f"{stage}_seconds"]) / (larger["rows"] - smaller["rows"])
            for smaller, larger in pairwise(sizes)
        ]
        report[f"{stage}_seconds_per_added_million"] = steps
    print(json.dumps(result | report | {"sizes": sizes}))


if __name__ == "__main__":
    main()
