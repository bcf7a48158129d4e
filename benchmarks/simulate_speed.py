"""The simulator's speed and memory: spectra per second with everything written, peak memory at 1 and 5 million rows.

The fleet is the preset `harbor` (64 bins, ten seconds, its dirt and mistakes) with a seed that development never used;
each size runs in a fresh process, so that memory which one took does not hide what another needs.
Usage: python benchmarks/simulate_speed.py [--rows 1000000 5000000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.simulate import simulate
from pipeline.simulation.presets import preset_of

SEED = 9_100
GOAL_ROWS_PER_S = 500_000
ROWS_PER_MACHINE_DAY = 8_640


def measure(rows: int, out: Path) -> dict[str, float]:
    """One data set of about so many rows, one day of as many machines as it takes."""
    fleet = preset_of("harbor").model_copy(update={"seed": SEED, "machines": round(rows / ROWS_PER_MACHINE_DAY)})
    begin, used = time.perf_counter(), time.process_time()
    summary = simulate(fleet, out, days=1)
    seconds, used = time.perf_counter() - begin, time.process_time() - used
    size = sum(path.stat().st_size for path in out.rglob("*.parquet"))
    return {
        "rows": summary.rows,
        "rows_per_s": summary.rows / seconds,
        "cpu_us_per_row": 1e6 * used / summary.rows,
        "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "bytes_per_row": size / summary.rows,
    }


def main() -> None:
    """Print a table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(options.measure, Path(folder))))
        return
    result: dict[str, object] = {"repeats": options.repeats, "goal_rows_per_s": GOAL_ROWS_PER_S}
    table = Table(title="simulated and written, preset harbor", width=80)
    for heading in ("rows", "rows/s", "CPU µs/row", "peak GiB", "bytes/row"):
        table.add_column(heading, justify="right")
    speeds, peaks = [], []
    for rows in options.rows:
        runs = [_in_fresh_process(rows) for _ in range(options.repeats)]
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        name = f"{rows / 1e6:g}m"
        speeds, peaks = [*speeds, middle["rows_per_s"]], [*peaks, middle["peak_rss_gib"]]
        result |= {f"rows_per_s_{name}": round(speeds[-1]), f"peak_rss_gib_{name}": round(peaks[-1], 3)}
        result[f"rows_per_s_{name}_range"] = [
            round(extreme(run["rows_per_s"] for run in runs)) for extreme in (min, max)
        ]
        result |= {key: round(middle[key], 2) for key in ("cpu_us_per_row", "bytes_per_row")}
        figures = f"{speeds[-1]:,.0f}", f"{middle['cpu_us_per_row']:.2f}", f"{peaks[-1]:.2f}"
        table.add_row(f"{rows:,}", *figures, f"{middle['bytes_per_row']:.0f}")
    result |= {"rows_per_s": round(speeds[-1]), "peak_rss_ratio": round(peaks[-1] / peaks[0], 3)}
    Console().print(table)
    print(json.dumps(result))


def _in_fresh_process(rows: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", str(rows)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: float(value) for name, value in json.loads(output).items()}


if __name__ == "__main__":
    main()
