"""The alert book of a large fleet: seconds per shard, bytes of policy memory, and the score log's bytes per row.

Shards of made-up scores (uniform tail probabilities: 0.5 % of rows above the low tier, 0.05 % above the page tier) in
which every machine of the fleet appears go through the alert policy, as `score` applies them: the score log is read,
memories and alerts are brought up to date in one transaction. The first shard makes the memories, the others change
them; the median of these counts. A small release of PCA and energy is built first; its policy is the default one.
`shard_cpu_s` is the processor time of this process: what a machine that others use as well would have given.
On SQLite, and on PostgreSQL where `--postgres` names a server on which databases may be created.
Usage: python benchmarks/alert_book_speed.py [--machines 10000 100000] [--shards 4] [--rows-per-machine 20]
[--postgres postgresql+psycopg://postgres@127.0.0.1:5432/test]
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import resource
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.orm import Session
from stages_here import build_release

from flows.database import open_database
from flows.service.alert_book import apply_next
from flows.service.tables import Alert, PolicyMemory, Shard, ShardState
from pipeline.moments import moment_of
from pipeline.release import Release, load_release
from pipeline.schema import MACHINE, MAINTENANCE_SCHEMA, dictionary_column, score_log_schema, time_column
from pipeline.store import write_table

START_US, INTERVAL_US = 1_735_689_600_000_000, 10_000_000  # 2025-01-01; a spectrum every ten seconds
LOW, PAGE = 5e-3, 5e-4
PARAMS = """
seed: 5
detectors: [pca, energy_zscore]
simulate: {machines: 10, days: 40, interval_seconds: 3600, bins: 64, failures: 6, seed: 12}
split: {horizon_hours: 48, train_share: 0.4, calibration_share: 0.2, unseen_machine_share: 0.0}
calibrate: {draws: 50, choice: {enabled: false}, ensemble: {members: [pca, energy_zscore], agree: 1}}
evaluate: {chance_shifts: 20}
release: {reference_rows: 500}
"""


def scored_rows(release: Release, machines: int, each: int, number: int, rng: np.random.Generator) -> pa.Table:
    """Rows of the score log: `each` of every machine, the shard `number` following those before it in time."""
    rows = machines * each
    names = [f"machine-{code:06d}" for code in range(machines)]
    time_us_N = START_US + (np.arange(rows) // machines + number * each) * INTERVAL_US
    tail_N = rng.uniform(1e-9, 1, rows)
    tier_N = (tail_N < LOW).astype(np.int32) + (tail_N < PAGE)
    one = np.zeros(rows, np.int32)
    schema = score_log_schema(release.manifest["members"])
    columns: dict[str, Any] = {
        "file": dictionary_column(one, [f"spectra/{number:06d}.parquet"]),
        "row": pa.array(np.arange(rows, dtype=np.int32)),
        "machine_id": dictionary_column(np.arange(rows) % machines, names, MACHINE),
        "timestamp": time_column(time_us_N),
        "epoch": pa.array(one),
        "baseline": dictionary_column(one, ["own"]),
        "tier": dictionary_column(tier_N, ["none", "low", "page"]),
        "top_bins": pa.array([[1, 2, 3] if tier else None for tier in tier_N.tolist()], pa.list_(pa.int32())),
        "release": dictionary_column(one, [release.id]),
    }
    for field in schema:
        if field.name.startswith("score_"):
            columns[field.name] = pa.array(rng.normal(1, 0.3, rows))
        elif field.name.startswith("tail_"):
            columns[field.name] = pa.array(tail_N)
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


@contextmanager
def database(kind: str, folder: Path, server: str | None) -> Iterator[sa.Engine]:
    """An empty database of its own."""
    if server is None or kind == "sqlite":
        engine = open_database(f"sqlite:///{folder / 'hearken.db'}")
        yield engine
        engine.dispose()
        return
    name = f"hearken_benchmark_{uuid.uuid4().hex[:12]}"
    administrator = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        engine = open_database(sa.make_url(server).set(database=name).render_as_string(hide_password=False))
        yield engine
        engine.dispose()
    finally:
        with administrator.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        administrator.dispose()


def measure(engine: sa.Engine, log: Path, release: Release, machines: int, each: int, shards: int) -> dict[str, Any]:
    """Apply shards one after the other."""
    rng, seconds, computed, written = np.random.default_rng(3), list[float](), list[float](), 0
    for number in range(shards):
        table = scored_rows(release, machines, each, number, rng)
        first_us = START_US + number * each * INTERVAL_US
        day, name = str(moment_of(first_us).date()), f"{number:09d}-0badcafe"
        path = log / day / f"{name}.parquet"
        write_table(path, table)
        written += path.stat().st_size
        moment = dt.datetime.now(dt.UTC)
        with Session(engine) as session, session.begin():
            session.add(
                Shard(
                    name=name,
                    state=ShardState.SCORED,
                    planned_at=moment,
                    believed_until=moment,
                    first_at=moment_of(first_us),
                    last_at=moment_of(first_us + (each - 1) * INTERVAL_US),
                    release_id=release.id,
                    rows=table.num_rows,
                    days=[day],
                )
            )
        begun, busy = time.perf_counter(), time.process_time()
        applied = apply_next(engine, log, lambda _: release, MAINTENANCE_SCHEMA.empty_table())
        seconds.append(time.perf_counter() - begun)
        computed.append(time.process_time() - busy)
        if applied is None:
            raise SystemExit(f"shard {name} was not applied")
    with Session(engine) as session:
        memories = [len(json.dumps(memory)) for memory in session.scalars(sa.select(PolicyMemory.memory).limit(1000))]
        alerts = session.scalar(sa.select(sa.func.count(Alert.id)))
    later = statistics.median(seconds[1:])
    return {
        "machines": machines,
        "rows_per_shard": machines * each,
        "first_shard_s": round(seconds[0], 2),
        "shard_s": round(later, 2),
        "shard_cpu_s": round(statistics.median(computed[1:]), 2),
        "memories_per_s": round(machines / later),
        "book_rows_per_s": round(machines * each / later),
        "bytes_per_memory": round(statistics.mean(memories)),
        "log_bytes_per_row": round(written / (machines * each * shards), 1),
        "alerts": alerts,
    }


def main() -> None:
    """Measure both databases at each size of the fleet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rows-per-machine", type=int, default=20)
    parser.add_argument("--postgres")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="hearken-book-") as root:
        release = load_release(build_release(Path(root) / "release", PARAMS), device="cpu")
        for kind in ("sqlite", "postgresql") if options.postgres else ("sqlite",):
            for machines in options.machines:
                folder = Path(root) / f"{kind}-{machines}"
                folder.mkdir()
                with database(kind, folder, options.postgres) as engine:
                    found = measure(engine, folder / "log", release, machines, options.rows_per_machine, options.shards)
                results.append({"database": kind} | found)
                print(results[-1], flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"benchmark": "alert_book_speed", "peak_rss_gib": round(peak, 2), "results": results}))


if __name__ == "__main__":
    main()
