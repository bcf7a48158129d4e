"""Ingest of wide Parquet, CSV and raw waveforms: rows per second, peak memory, and the ratio to a plain pyarrow copy.

The plain copy reads the same files and writes them as Parquet with pyarrow's defaults: no check, no order, no days.
Each measurement runs in a fresh process, ingest and copy in turn, because memory that one took would hide the other's.
Usage: python benchmarks/ingest_speed.py [--rows 500000] [--csv-rows 100000] [--records 400] [--bins 64] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv
from rich.console import Console
from rich.table import Table

from pipeline.ingest import ingest
from pipeline.layout import SourceLayout
from pipeline.params import IngestParams

MACHINES, ROWS_PER_FILE, INTERVAL = 50, 50_000, 60
WINDOW, WINDOWS_PER_RECORD, RATE = 2048, 64, 25_600.0
LAYOUT = SourceLayout.model_validate(
    {
        "path": "{machine_id}/{timestamp}.npy",
        "timestamp_format": "%Y%m%d%H%M%S",
        "waveform": {"sample_rate_hz": RATE, "window_samples": WINDOW},
    }
)


def wide_table(first: int, rows: int, bins: int) -> pa.Table:
    """Rows of a fleet in the order of time, machines interleaved; numbers have six digits, as a logger writes them."""
    rng = np.random.default_rng(first)
    spectra_FN = np.exp(0.5 * rng.standard_normal((bins, rows), dtype=np.float32)).round(6)
    number_N = np.arange(first, first + rows)
    times = np.datetime64("2025-01-01", "s") + (number_N // MACHINES * INTERVAL).astype("timedelta64[s]")
    columns = {"machine_id": [f"machine-{n % MACHINES:03d}" for n in number_N], "timestamp": pa.array(times)}
    return pa.table(columns | {f"bin_{k:02d}": spectra_FN[k] for k in range(bins)})


def write_sources(folder: Path, rows: int, csv_rows: int, records: int, bins: int) -> dict[str, int]:
    """The three sources; the rows of each."""
    for kind, total in (("parquet", rows), ("csv", csv_rows)):
        (folder / kind).mkdir()
        for first in range(0, total, ROWS_PER_FILE):
            table = wide_table(first, min(ROWS_PER_FILE, total - first), bins)
            if kind == "parquet":
                pq.write_table(table, folder / kind / f"{first:09d}.parquet")
            else:
                csv.write_csv(table, folder / kind / f"{first:09d}.csv")
    rng = np.random.default_rng(1)
    for number in range(records):
        path = folder / "waveforms" / f"machine-{number % MACHINES:03d}" / f"2025010100{number // MACHINES:02d}00.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rng.standard_normal(WINDOW * WINDOWS_PER_RECORD, dtype=np.float32))
    return {"parquet": rows, "csv": csv_rows, "waveforms": records * WINDOWS_PER_RECORD}


def plain_copy(source: Path, out: Path) -> None:
    """Read every file and write it as Parquet, with pyarrow's defaults."""
    out.mkdir()
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        target = out / f"{path.parent.name}-{path.stem}.parquet"
        if path.suffix == ".parquet":
            pq.write_table(pq.read_table(path), target)
        elif path.suffix == ".csv":
            pq.write_table(csv.read_csv(path), target)
        else:
            pq.write_table(pa.table({"sample": np.load(path)}), target)


def measure(what: str, source: Path, out: Path) -> dict[str, float]:
    """One ingest or copy in this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    if what == "copy":
        plain_copy(source, out)
    else:
        layout = LAYOUT if source.name == "waveforms" else None
        ingest(source, out, IngestParams(timezone="UTC"), horizon_hours=24, tune_share=0.5, layout=layout)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_rss_gib": peak / 2**20, "taken_gib": (peak - before) / 2**20}


def main() -> None:
    """Print a table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--csv-rows", type=int, default=100_000)
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--bins", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, source, out = options.measure
        print(json.dumps(measure(what, Path(source), Path(out))))
        return
    result: dict[str, object] = {"bins": options.bins, "repeats": options.repeats}
    table = Table(title=f"ingest, {options.bins} bins, median of {options.repeats}", width=80)
    for heading in ("source", "rows", "rows/s", "copy rows/s", "time / copy's", "peak GiB", "copy's"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_sources(folder, options.rows, options.csv_rows, options.records, options.bins)
        for kind, count in rows.items():
            runs: dict[str, list[dict[str, float]]] = {"ingest": [], "copy": []}
            for _ in range(options.repeats):
                for what, found in runs.items():
                    out = folder / "out"
                    command = [sys.executable, __file__, "--measure", what, str(folder / kind), str(out)]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    found.append(json.loads(done.stdout))
                    shutil.rmtree(out)
            mine, copy = (
                {key: float(np.median([run[key] for run in found])) for key in found[0]} for found in runs.values()
            )
            ratios = [one["seconds"] / other["seconds"] for one, other in zip(*runs.values(), strict=True)]
            figures = {
                "rows": count,
                "rows_per_s": count / mine["seconds"],
                "copy_rows_per_s": count / copy["seconds"],
                "time_ratio": float(np.median(ratios)),
                "time_ratios": sorted(ratios),
                "peak_rss_gib": mine["peak_rss_gib"],
                "copy_peak_rss_gib": copy["peak_rss_gib"],
            }
            result[kind] = figures
            table.add_row(
                kind,
                f"{count:,}",
                f"{figures['rows_per_s']:,.0f}",
                f"{figures['copy_rows_per_s']:,.0f}",
                f"{figures['time_ratio']:.2f}",
                f"{figures['peak_rss_gib']:.2f}",
                f"{figures['copy_peak_rss_gib']:.2f}",
            )
    Console().print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
