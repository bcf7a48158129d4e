"""The score log on fleet-days of 5,184,000 rows: bytes per row, compaction's time and memory, one machine's week.

Scores are made up, tail probabilities come from a real table of 200,000 calibration scores. Shards hold an hour of the
whole fleet, the worst that reading one machine can meet.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.run_alerts import TIER_NAMES
from pipeline.schema import (
    BASELINE_NAMES,
    ENSEMBLE,
    MACHINE,
    MICROSECONDS_PER_DAY,
    MICROSECONDS_PER_HOUR,
    dictionary_column,
    score_log_schema,
    time_column,
)
from pipeline.score_log import keys_between, log_days, machine_rows, over_days
from pipeline.store import write_table
from pipeline.tails import TailTable

MEMBERS = ("autoencoder", "pca", "energy_zscore")
FIRST = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
CALIBRATION_ROWS = 200_000
COMPACT = """
import json, resource, sys, time
from pathlib import Path
from pipeline.score_log import compact_day
start = time.perf_counter()
compact_day(Path(sys.argv[1]), sys.argv[2])
seconds = time.perf_counter() - start
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))
"""


def write_hour(log: Path, day: int, hour: int, machines: list[str], interval_us: int, tails: TailTable) -> None:
    """One shard: an hour of every machine, machine by machine."""
    generator = np.random.default_rng([day, hour])
    each = MICROSECONDS_PER_HOUR // interval_us
    rows = each * len(machines)
    machine = np.repeat(np.arange(len(machines), dtype=np.int32), each)
    start = int(FIRST.timestamp() * 1e6) + day * MICROSECONDS_PER_DAY + hour * MICROSECONDS_PER_HOUR
    jitter = generator.integers(0, interval_us // 10, rows)
    time_us = start + np.tile(np.arange(each, dtype=np.int64) * interval_us, len(machines)) + jitter
    level = np.repeat(np.random.default_rng(1).normal(0, 0.2, len(machines)), each)
    columns: dict[str, object] = {
        "file": dictionary_column(np.zeros(rows, np.int16), [f"spectra/day-{day:02}-{hour:02}.parquet"]),
        "row": pa.array(np.arange(rows, dtype=np.int32)),
        "machine_id": dictionary_column(machine, machines, MACHINE),
        "timestamp": time_column(time_us),
        "epoch": pa.array(np.zeros(rows, np.int32)),
        "baseline": dictionary_column(np.full(rows, 2), BASELINE_NAMES),
        "release": dictionary_column(np.zeros(rows, np.int16), ["0123456789abcdef"]),
    }
    for name in (*MEMBERS, ENSEMBLE):
        score = np.exp(level + 0.3 * generator.normal(size=rows))
        columns[f"score_{name}"], columns[f"tail_{name}"] = pa.array(score), pa.array(tails.probability(score))
    tail = np.asarray(columns[f"tail_{ENSEMBLE}"])
    tier = (tail < 0.005).astype(np.int8) + (tail < 0.0005)
    columns["tier"] = dictionary_column(tier, TIER_NAMES)
    offsets = np.r_[0, np.cumsum(5 * (tier > 0))].astype(np.int32)
    bins = pa.array(generator.integers(0, 64, int(offsets[-1])).astype(np.int32))
    columns["top_bins"] = pa.ListArray.from_arrays(pa.array(offsets), bins, mask=pa.array(tier == 0))
    schema = score_log_schema(MEMBERS)
    table = pa.table([columns[name] for name in schema.names], schema=schema)
    write_table(log / f"{FIRST + dt.timedelta(days=day):%Y-%m-%d}" / f"{day * 24 + hour:09}-ab12cd34.parquet", table)


def bytes_of(log: Path) -> int:
    """Of all files of the log."""
    return sum(path.stat().st_size for path in log.rglob("*.parquet"))


def main() -> None:
    """Write a log, compact it day by day, read one machine before and after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", type=int, default=600)
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--interval-seconds", type=int, default=10)
    given = parser.parse_args()
    machines = [f"machine-{number:05}" for number in range(given.machines)]
    calibration = np.random.default_rng(7)
    tails = TailTable.of(np.exp(calibration.normal(0, 0.36, CALIBRATION_ROWS)))
    with tempfile.TemporaryDirectory(prefix="score-log-") as folder:
        log = Path(folder)
        for day in range(given.days):
            for hour in range(24):
                write_hour(log, day, hour, machines, given.interval_seconds * 1_000_000, tails)
        rows = given.days * 24 * len(machines) * (3600 // given.interval_seconds)
        found: dict[str, object] = {"rows_per_day": rows // given.days, "machines": len(machines), "days": given.days}
        found["bytes_per_row_shards"] = round(bytes_of(log) / rows, 1)
        until = FIRST + dt.timedelta(days=given.days)

        def read_ms(machine: str) -> float:
            start = time.perf_counter()
            week = machine_rows(log, machine, FIRST, until)
            assert week.num_rows == rows // len(machines)
            return (time.perf_counter() - start) * 1000

        found["machine_week_ms_shards"] = round(read_ms(machines[len(machines) // 2]))
        first_us = int(FIRST.timestamp() * 1e6)
        start = time.perf_counter()
        _, code_N, _ = keys_between(log, first_us, first_us + MICROSECONDS_PER_DAY, machines, "")
        assert len(code_N) == rows // given.days
        found["keys_of_a_day_s"] = round(time.perf_counter() - start, 2)
        start = time.perf_counter()
        keys_between(log, first_us, first_us + MICROSECONDS_PER_HOUR, machines, "")
        found["keys_of_an_hour_s"] = round(time.perf_counter() - start, 3)
        spent = []
        for day in range(given.days):
            command = [sys.executable, "-c", COMPACT, str(log), f"{FIRST + dt.timedelta(days=day):%Y-%m-%d}"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            spent.append(json.loads(said))
        found["compact_s"] = round(statistics.median(seconds for seconds, _ in spent), 1)
        found["compact_peak_gib"] = round(max(peak for _, peak in spent), 2)
        assert over_days(log, log_days(log), len) == [1] * given.days
        found["bytes_per_row"] = round(bytes_of(log) / rows, 1)
        chosen = machines[:: max(1, len(machines) // 20)]
        found["machine_week_ms"] = round(statistics.median(read_ms(machine) for machine in chosen))
        start = time.perf_counter()
        keys_between(log, first_us, first_us + MICROSECONDS_PER_DAY, machines, "")
        found["keys_of_a_compacted_day_s"] = round(time.perf_counter() - start, 2)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
