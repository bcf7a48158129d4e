"""Scoring under faults: killed scorers, files twice, late and cut off, a database that goes away, a full disk.

Each run is a plant of its own: an empty home, a release in service, and a landing zone into which two weeks of a small
simulated fleet arrive in rounds, by a random plan. In each round some scorers come to grief, each in its own process:

- killed (SIGKILL) after a random part of the time that a scorer takes, two at once now and then;
- the disk is full: no file of the process may grow beyond a random size;
- the database goes away while the scorer works (PostgreSQL: its connections are ended and new ones refused);
- uploads are cut off when the scorer comes, whole in the next round; some come a second time under another name, or
  again without some of their rows; some come days late.

Then a scorer that nothing disturbs works off what is left. At the end the score log must hold every good row once, and
the alerts, their stories and their notices must equal those of a plant to which the same whole files came in the same
rounds and nothing else happened. Runs with an even number use SQLite, the others PostgreSQL where there is one.
Usage: python benchmarks/faults.py [--runs 50] [--seed 1] [--postgres URL, default HEARKEN_TEST_POSTGRES_URL]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from rich.console import Console
from rich.progress import track
from sqlalchemy.orm import Session
from stages_here import build_release

from flows import registry
from flows.database import open_database
from flows.service.scorer import score_arrivals
from flows.service.tables import Alert, Notice, Shard, ShardState, Upload, UploadState
from flows.settings import Settings
from pipeline.params import Params, load_params
from pipeline.schema import codes_and_names, times_us
from pipeline.store import day_files, read_table, write_table

DAYS, ROUNDS = 14, 5
PARAMS = """
seed: 5
simulate: {machines: 8, days: 34, interval_seconds: 3600, bins: 32, failures: 8, mislabelled_share: 0.02, seed: 12}
detectors: [autoencoder, pca, energy_zscore]
split: {horizon_hours: 48, train_share: 0.4, calibration_share: 0.2, unseen_machine_share: 0}
train: {threads: 1, score_batch_rows: 256, autoencoder: {latent: 4, channels: [4, 8], optimiser: {max_epochs: 2}}}
calibrate:
  draws: 50
  low_percentile: 93
  page_percentile: 97
  policy: {k: 2, n: 4, window_minutes: 400, gap_minutes: 150, no_data_hours: 20}
  choice: {enabled: false}
evaluate: {chance_shifts: 20}
release: {reference_rows: 500}
score: {shard_rows: 400, lease_minutes: 0.02, attempts: 100}
"""


@dataclass
class Plant:
    """One plant: its folders and its database."""

    folder: Path
    built: Path
    url: str
    settings: Settings = field(init=False)
    params: Params = field(init=False)

    def __post_init__(self) -> None:
        values = {"HEARKEN_HOME": str(self.folder / "home"), "HEARKEN_LANDING": str(self.folder / "landing")}
        self.settings = Settings.of(self.folder, values | {"HEARKEN_DATABASE_URL": self.url})
        self.params = load_params(self.built / "params.yaml")
        (self.folder / "landing/spectra").mkdir(parents=True)
        for name in ("fleet.yaml", "maintenance.parquet"):
            shutil.copyfile(self.built / "data/raw" / name, self.folder / "landing" / name)
        with self.database() as engine:
            row = registry.register_release(engine, self.settings.releases, self.built / "data/release", commit="a")
            registry.promote(engine, row.id)

    @contextmanager
    def database(self) -> Iterator[sa.Engine]:
        """An engine for a moment."""
        engine = open_database(self.url)
        try:
            yield engine
        finally:
            engine.dispose()

    def put(self, name: str, data: bytes) -> None:
        """Let a file arrive, or change, as a sensor gateway does: whatever is there already is replaced."""
        (self.folder / "landing/spectra" / f"{name}.parquet").write_bytes(data)

    def score(self) -> None:
        """A scorer that nothing disturbs, until nothing is left: leases of dead ones run out within seconds."""
        deadline = time.monotonic() + 60
        while True:
            with self.database() as engine:
                summary = score_arrivals(engine, self.settings, self.params)
                with Session(engine) as session:
                    open_ones = sa.select(sa.func.count()).where(
                        Shard.state.in_((ShardState.PLANNED, ShardState.SCORED))
                    )
                    left = session.scalar(open_ones)
            if not left and not summary.failures:
                return
            if time.monotonic() > deadline:
                sys.exit(f"shards were left over: {left}, {summary}")
            time.sleep(0.3)

    def log_keys(self) -> Counter[tuple[str, int]]:
        """Machine and time of every row of the log, and how often it stands there."""
        found: Counter[tuple[str, int]] = Counter()
        for path in self.settings.score_log.glob("*/[!._]*.parquet"):
            found.update(keys_of(read_table(path, ["machine_id", "timestamp"])))
        return found

    def stories(self) -> list[tuple[object, ...]]:
        """Every alert with its times, what happened to it, and what people were due to be told."""
        with self.database() as engine, Session(engine) as session:
            told = []
            for alert in session.scalars(sa.select(Alert)):
                moments = (alert.opened_at, alert.paged_at, alert.last_at, alert.closed_at, alert.peak_at)
                events = tuple((event.kind.value, str(event.of)) for event in alert.events)
                notices = tuple(sorted(notice.kind.value for notice in alert.notices))
                identity = (alert.machine_id, alert.cause, alert.standing.value, *map(str, moments))
                told.append((*identity, json.dumps(alert.details, sort_keys=True), events, notices))
            return sorted(told)

    def announced_twice(self) -> int:
        """Notices of one alert and kind beyond the first."""
        with self.database() as engine, Session(engine) as session:
            kinds = Counter(tuple(row) for row in session.execute(sa.select(Notice.alert_id, Notice.kind)))
            return sum(kinds.values()) - len(kinds)

    def unsettled(self) -> int:
        """Uploads that are neither scored nor the same as a scored one."""
        settled = (UploadState.SCORED, UploadState.DUPLICATE)
        with self.database() as engine, Session(engine) as session:
            return session.scalar(sa.select(sa.func.count()).where(Upload.state.notin_(settled))) or 0


def keys_of(table: pa.Table) -> list[tuple[str, int]]:
    """Machine and time of each row."""
    code_N, names = codes_and_names(table["machine_id"])
    return [
        (names[code], time) for code, time in zip(code_N.tolist(), times_us(table["timestamp"]).tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Schedule:
    """Which whole files come in which round, and which of them are cut off at first (a round earlier)."""

    rounds: list[dict[str, bytes]]
    cut: list[dict[str, bytes]]


def make_schedule(built: Path, rng: np.random.Generator, scratch: Path) -> Schedule:
    """Two weeks in pieces of half the fleet's day: most in order, some late, twice, overlapping, or cut at first."""
    rounds: list[dict[str, bytes]] = [{} for _ in range(ROUNDS)]
    cut: list[dict[str, bytes]] = [{} for _ in range(ROUNDS)]
    for number, path in enumerate(day_files(built / "data/raw")[-DAYS:]):
        day = read_table(path)
        code_N, _ = codes_and_names(day["machine_id"])
        for half in range(2):
            part = day.filter(pa.array(code_N % 2 == half))
            due = min(ROUNDS - 1, number * ROUNDS // DAYS + int(rng.random() < 0.15) * int(rng.integers(1, 3)))
            name, data = f"day-{number:02}-{half}", as_bytes(part, scratch)
            rounds[due][name] = data
            if rng.random() < 0.1:
                rounds[min(due + int(rng.integers(0, 2)), ROUNDS - 1)][f"{name}-again"] = data
            if rng.random() < 0.1:
                rounds[min(due + 1, ROUNDS - 1)][f"{name}-more"] = as_bytes(part.slice(3), scratch)
            if due and rng.random() < 0.15:
                cut[due - 1][name] = data[: int(rng.integers(1, len(data)))]
    return Schedule(rounds, cut)


def as_bytes(table: pa.Table, scratch: Path) -> bytes:
    """A table as the bytes of a Parquet file."""
    write_table(scratch / "part.parquet", table)
    return (scratch / "part.parquet").read_bytes()


def in_a_child(work: Callable[[], object]) -> int:
    """Fork a process that does some work; its errors are its own."""
    child = os.fork()
    if child == 0:
        try:
            with Path(os.devnull).open("w") as nowhere:  # what it has to say is expected
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            work()
        finally:
            os._exit(0)
    return child


def scorer(plant: Plant, bytes_at_most: int | None = None) -> Callable[[], object]:
    """A scorer for a child, on a disk that may be full."""

    def work() -> None:
        if bytes_at_most is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_at_most, bytes_at_most))
        with plant.database() as engine:
            score_arrivals(engine, plant.settings, plant.params)

    return work


def disturb(plant: Plant, rng: np.random.Generator, takes: float, counts: Counter[str]) -> None:
    """One scorer, or two, that come to grief."""
    kinds = ["kill", "kill", "kill", "kill two", "full disk"] + (["database"] if "postgresql" in plant.url else [])
    kind = str(rng.choice(kinds))
    counts[kind] += 1
    limit = int(rng.integers(1, 200_000)) if kind == "full disk" else None
    children = [in_a_child(scorer(plant, limit)) for _ in range(2 if kind == "kill two" else 1)]
    if kind == "database":
        time.sleep(float(rng.uniform(0, takes)))
        with away(plant.url):
            time.sleep(0.2)
    elif kind != "full disk":
        for child in children:
            time.sleep(float(rng.uniform(0, takes)))
            os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)


@contextmanager
def away(url: str) -> Iterator[None]:
    """A PostgreSQL database that ends its connections and takes no new ones."""
    name = sa.make_url(url).database
    engine = sa.create_engine(sa.make_url(url).set(database="postgres"), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(sa.text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
            ended = sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
            connection.execute(ended, {"name": name})
            yield
            connection.execute(sa.text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'))
    finally:
        engine.dispose()


@contextmanager
def fresh_database(folder: Path, server: str | None) -> Iterator[str]:
    """The URL of an empty database."""
    if server is None:
        yield f"sqlite:///{folder / 'hearken.db'}"
        return
    name = f"hearken_faults_{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
    try:
        yield sa.make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))
        engine.dispose()


def run(folder: Path, built: Path, server: str | None, seed: int, counts: Counter[str]) -> dict[str, int]:
    """One plant with faults and its undisturbed twin."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    schedule = make_schedule(built, rng, folder)
    expected = {key for files in schedule.rounds for data in files.values() for key in keys_of(read_bytes(data))}
    with fresh_database(folder, server) as url:
        (folder / "twin").mkdir()
        twin = Plant(folder / "twin", built, f"sqlite:///{folder / 'twin.db'}")
        begun = time.monotonic()
        for files in schedule.rounds:
            for name, data in files.items():
                twin.put(name, data)
            twin.score()
        takes = (time.monotonic() - begun) / ROUNDS
        (folder / "plant").mkdir()
        plant = Plant(folder / "plant", built, url)
        for whole, cut in zip(schedule.rounds, schedule.cut, strict=True):
            for name, data in {**cut, **whole}.items():
                plant.put(name, data)
            for _ in range(int(rng.integers(1, 4))):
                disturb(plant, rng, takes * 1.3, counts)
            plant.score()
        found, stories, others = plant.log_keys(), plant.stories(), twin.stories()
        mismatches = len(set(stories) ^ set(others)) + abs(len(stories) - len(others)) + plant.announced_twice()
        return {
            "lost_rows": len(expected - set(found)),
            "duplicate_rows": sum(found.values()) - len(found),
            "strange_rows": len(set(found) - expected),
            "alert_mismatches": mismatches,
            "unsettled_uploads": plant.unsettled(),
            "alerts": len(stories),
            "rows": len(expected),
        }


def read_bytes(data: bytes) -> pa.Table:
    """A Parquet file's table."""
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(data), columns=["machine_id", "timestamp"])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--postgres", default=os.environ.get("HEARKEN_TEST_POSTGRES_URL"))
    options = parser.parse_args()
    totals: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="hearken-faults-") as temporary:
        built = Path(temporary) / "built"
        child = in_a_child(lambda: build_release(built, PARAMS))  # this process stays without threads: it is forked
        os.waitpid(child, 0)
        for number in track(range(options.runs), description="runs", console=Console(stderr=True)):
            server = options.postgres if number % 2 else None
            folder = Path(temporary) / f"run-{number}"
            outcome = run(folder, built, server, options.seed * 100_000 + number, faults)
            totals.update(outcome)
            wrong = {name: count for name, count in outcome.items() if count and name not in ("alerts", "rows")}
            if wrong:
                Console().print(f"run {number} ({'SQLite' if server is None else 'PostgreSQL'}): {wrong}")
            shutil.rmtree(folder)
    figures = {name: totals[name] for name in ("lost_rows", "duplicate_rows", "strange_rows", "alert_mismatches")}
    figures |= {"unsettled_uploads": totals["unsettled_uploads"], "rows": totals["rows"], "alerts": totals["alerts"]}
    print(json.dumps({"runs": options.runs, **figures, "faults": dict(sorted(faults.items()))}))


if __name__ == "__main__":
    main()
