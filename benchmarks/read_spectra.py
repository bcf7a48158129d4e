"""1,000,000 x 64 spectra from Parquet to a torch tensor: rows per second, and peak memory over the tensor's bytes.

Each repeat runs in a fresh process, because memory that an earlier repeat took would hide what this one needs.
Usage: python benchmarks/read_spectra.py [--rows 1000000] [--bins 64] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from pipeline.schema import KEY_FIELDS, MACHINE, TEXT, dictionary_column, spectra_column, spectra_schema, time_column
from pipeline.store import read_spectra, read_table, write_table

ROWS_PER_DAY = 100_000
GOAL_RATIO = 2.5


def write_data_set(folder: Path, rows: int, bins: int) -> None:
    """Day files of log-normal spectra, and a status table that selects every row."""
    rng = np.random.default_rng(1)
    files: list[str] = []
    counts: list[int] = []
    for first in range(0, rows, ROWS_PER_DAY):
        count = min(ROWS_PER_DAY, rows - first)
        spectra_NF = np.exp(0.5 * rng.standard_normal((count, bins), dtype=np.float32))
        machines = dictionary_column(np.arange(count) * 50 // count, [f"machine-{i:03d}" for i in range(50)], MACHINE)
        columns = [machines, time_column(np.arange(first, first + count)), spectra_column(spectra_NF)]
        files.append(f"{np.datetime64('2025-01-01') + len(files)}.parquet")
        counts.append(count)
        write_table(folder / "spectra" / files[-1], pa.Table.from_arrays(columns, schema=spectra_schema(bins)))
    columns = [
        dictionary_column(np.repeat(np.arange(len(files)), counts), files, TEXT),
        pa.array(np.concatenate([np.arange(count, dtype=np.int32) for count in counts])),
        dictionary_column(np.zeros(rows, np.int32), ["machine-000"], MACHINE),
        time_column(np.arange(rows)),
    ]
    write_table(folder / "status.parquet", pa.Table.from_arrays(columns, schema=pa.schema(list(KEY_FIELDS))))


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Peak:
    """The most memory held while the block runs, looked at every two milliseconds."""

    def __enter__(self) -> Peak:
        self.start = self.most = resident_bytes()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.most = max(self.most, resident_bytes())

    def _watch(self) -> None:
        while not self.done.wait(0.002):
            self.most = max(self.most, resident_bytes())


def measure(folder: Path, bins: int) -> dict[str, float]:
    """One read in this process; the status table is there already, as it is in a stage."""
    status = read_table(folder / "status.parquet")
    selected_N = np.ones(status.num_rows, np.bool_)
    torch.zeros(1)
    with Peak() as peak:
        begin = time.perf_counter()
        tensor = torch.from_numpy(read_spectra(folder, status, selected_N, bins))
        seconds = time.perf_counter() - begin
    size = tensor.numel() * tensor.element_size()
    return {"rows_per_s": len(tensor) / seconds, "peak_rss_ratio": (peak.most - peak.start) / size}


def main() -> None:
    """Print a table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--bins", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options.bins)))
        return
    with tempfile.TemporaryDirectory() as name:
        write_data_set(Path(name), options.rows, options.bins)
        command = [sys.executable, __file__, "--measure", name, "--bins", str(options.bins)]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(options.repeats)
        ]
    result: dict[str, object] = {"rows": options.rows, "bins": options.bins, "repeats": options.repeats}
    table = Table(title=f"{options.rows:,} x {options.bins} from Parquet to a torch tensor", width=80)
    for heading in ("figure", "lower quartile", "median", "upper quartile", "goal"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for key, goal in (("rows_per_s", ""), ("peak_rss_ratio", f"< {GOAL_RATIO}")):
        quartiles = [float(value) for value in np.percentile([run[key] for run in runs], [25, 50, 75])]
        result[key], result[f"{key}_quartiles"] = quartiles[1], [quartiles[0], quartiles[2]]
        table.add_row(key, *(f"{value:,.2f}" if value < 100 else f"{value:,.0f}" for value in quartiles), goal)
    Console().print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
