"""`hearken status` and `hearken metrics`, on SQLite and PostgreSQL."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from service_rows import HOUR, NOON, alert_of, announced, shard_of, upload_of
from sqlalchemy.orm import Session

from flows.database import make_engine
from flows.registry import ReleaseRow, ReleaseState
from flows.service.metrics import registry_of
from flows.service.standing import figures_of, service_status
from flows.service.tables import Answer, ShardState, Standing, UploadState
from pipeline.landing.places import SourceFile

ROOT = Path(__file__).resolve().parent.parent
HALF_AN_HOUR = dt.timedelta(minutes=30)
HOSTILE = "spectra/[red]a[/red]\x1b[2J.parquet"


def store(engine, *rows):
    with Session(engine) as session, session.begin():
        session.add_all(rows)


def release_row(**values):
    given = {
        "id": "0123456789abcdef",
        "version": 3,
        "state": ReleaseState.IN_SERVICE,
        "provisional": False,
        "commit": "abc",
        "branch": "",
        "created_at": NOON,
        "promoted_at": NOON,
        "metrics": {},
        "note": "",
    }
    return ReleaseRow(**(given | values))


@pytest.fixture
def busy(engine):
    """Two finished shards (one long ago), one that waits, one broken upload that was replaced and one that was not."""
    old = shard_of("000000001-aa", ShardState.DONE, NOON - 30 * HOUR, rows=1000, unusable=10, repeated=1, attempts=1)
    new = shard_of(
        "000000002-bb", ShardState.DONE, NOON - HOUR, rows=500, unusable=5, early=2, late=3, repeated=4, attempts=2
    )
    waits = shard_of("000000003-cc", ShardState.PLANNED, error="disk full", attempts=3)
    store(
        engine,
        release_row(),
        upload_of("spectra/1.parquet", UploadState.SCORED, old, last_at=NOON - 30 * HOUR),
        upload_of("spectra/2.parquet", UploadState.SCORED, new, last_at=NOON - 2 * HOUR),
        upload_of("spectra/3.parquet", UploadState.PLANNED, waits, last_at=NOON, seen_at=NOON - 10 * HOUR / 60),
        upload_of("spectra/4.parquet", UploadState.BROKEN, error="was replaced"),
        upload_of(HOSTILE, UploadState.BROKEN, error="spectra: got 3 bins, expected 64"),
    )
    store(engine, upload_of("spectra/4.parquet", UploadState.DUPLICATE))
    announced(engine, alert_of("<script>"))
    announced(engine, alert_of("b", "low"))
    announced(engine, alert_of("c", None))
    announced(engine, alert_of("d", answer=Answer.DISMISSED))
    announced(engine, alert_of("e", standing=Standing.CLOSED))


def test_figures(engine, busy):
    found = figures_of(engine, NOON)
    assert (found.release["version"], found.last_finished_at) == (3, NOON - HOUR)
    rows, day = found.rows, found.rows_last_day
    assert (rows.scored, rows.unusable, rows.early, rows.late, rows.repeated) == (1500, 15, 2, 3, 5)
    assert (day.scored, day.unusable, day.early, day.late, day.repeated) == (500, 5, 2, 3, 4)
    assert (found.newest_known_at, found.newest_scored_at) == (NOON, NOON - 2 * HOUR)
    assert (found.lag_seconds, found.waiting, found.oldest_waiting_seconds) == (7200, 1, 600)
    assert found.uploads == {"planned": 1, "scored": 2, "broken": 1, "duplicate": 1}
    assert found.shards == {"planned": 1, "scored": 0, "done": 2, "failed": 0}
    assert (found.shard_attempts, found.shards_failing, found.leases_expired) == (6, 1, 0)
    assert found.open_alerts == {("page", "vibration"): 1, ("low", "vibration"): 1, ("none", "no_data"): 1}
    assert found.notices[("page", "pending")] == 3
    assert found.notices[("digest", "pending")] == 2


def test_an_empty_database_has_no_lag_and_is_on_time(engine):
    found = service_status(engine, NOON, HALF_AN_HOUR)
    figures = found.figures
    assert (figures.lag_seconds, figures.waiting, figures.newest_known_at, figures.release) == (0.0, 0, None, None)
    assert found.late == []


def test_rows_from_the_future_hide_no_lag(engine):
    future = shard_of("1", ShardState.DONE, NOON, believed_until=NOON - 3 * HOUR)
    waits = shard_of("2", ShardState.PLANNED)
    store(
        engine,
        upload_of("a", UploadState.SCORED, future, last_at=NOON + 9000 * HOUR),
        upload_of("b", UploadState.PLANNED, waits, last_at=NOON),
    )
    assert figures_of(engine, NOON).lag_seconds == 3 * 3600


def test_where_nothing_is_scored_yet_the_lag_is_all_that_waits(engine):
    waits = shard_of("1", ShardState.PLANNED)
    store(engine, upload_of("a", UploadState.PLANNED, waits, first_at=NOON - 5 * HOUR, last_at=NOON))
    assert figures_of(engine, NOON).lag_seconds == 5 * 3600


def test_scoring_is_late_when_an_upload_waits_too_long(engine, busy):
    assert service_status(engine, NOON + dt.timedelta(minutes=20), HALF_AN_HOUR).late == []
    (reason,) = service_status(engine, NOON + dt.timedelta(minutes=21), HALF_AN_HOUR).late
    assert reason == "uploads waiting: 1, the oldest for 31 min, expected at most 30 min."


def test_scoring_is_late_when_a_lease_ran_out(engine):
    alive = shard_of("alive", ShardState.PLANNED, owner="a", lease_until=NOON + HOUR, attempts=1)
    dead = shard_of("dead", ShardState.SCORED, owner="b", lease_until=NOON - HOUR, attempts=1)
    done = shard_of("done", ShardState.DONE, NOON - 2 * HOUR, owner="c", lease_until=NOON - HOUR, attempts=1)
    store(engine, alive, dead, done)
    found = service_status(engine, NOON, HALF_AN_HOUR)
    assert found.late == ["shard dead: the lease of its scorer ran out 60 min ago."]
    assert [shard["name"] for shard in found.failing_shards] == ["dead"]
    assert found.figures.leases_expired == 1


def test_scoring_is_late_when_nobody_looks_into_the_landing_zone(engine):
    def file(name, age, size=10):
        return SourceFile(name, size, name, int((NOON - age).timestamp() * 1e9))

    landed = [file("spectra/a.parquet", HOUR), file("spectra/new.parquet", HOUR / 60), file("notes.txt", HOUR)]
    (reason,) = service_status(engine, NOON, HALF_AN_HOUR, landed).late
    assert reason == "files in the landing zone that the ledger does not know: 1, and it has no news at all."
    known = shard_of("1", ShardState.DONE, NOON - 5 * HOUR, planned_at=NOON - 5 * HOUR)
    store(engine, upload_of("spectra/a.parquet", UploadState.SCORED, known, seen_at=NOON - 5 * HOUR))
    assert service_status(engine, NOON, HALF_AN_HOUR, landed).late == []
    other = [file("spectra/a.parquet", HOUR, size=11)]  # it was replaced
    (reason,) = service_status(engine, NOON, HALF_AN_HOUR, other).late
    assert reason.endswith("its last news is of 2025-03-01 07:00 UTC.")
    store(engine, shard_of("2", ShardState.DONE, NOON, planned_at=NOON))  # somebody looks, and will come to it
    assert service_status(engine, NOON, HALF_AN_HOUR, other).late == []


def scraped(text):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def exposition(engine):
    from prometheus_client import generate_latest

    return generate_latest(registry_of(engine, lambda: NOON)).decode()


def test_metrics(engine, busy):
    text = exposition(engine)
    found = scraped(text)
    assert found[("hearken_database_up", ())] == 1
    assert found[("hearken_rows_scored_total", ())] == 1500
    assert found[("hearken_rows_unusable_total", ())] == 15
    assert found[("hearken_rows_repeated_total", ())] == 5
    assert found[("hearken_lag_seconds", ())] == 7200
    assert found[("hearken_oldest_waiting_seconds", ())] == 600
    assert found[("hearken_last_finished_timestamp_seconds", ())] == (NOON - HOUR).timestamp()
    assert found[("hearken_uploads", (("state", "broken"),))] == 1
    assert found[("hearken_shards", (("state", "done"),))] == 2
    assert found[("hearken_shards_failing", ())] == 1
    assert found[("hearken_alerts_open", (("cause", "vibration"), ("tier", "page")))] == 1
    assert found[("hearken_notices", (("kind", "page"), ("state", "pending")))] == 3
    assert found[("hearken_release_info", (("id", "0123456789abcdef"), ("version", "v3")))] == 1
    assert "script" not in text


def test_the_labels_are_as_many_whatever_the_data_hold(engine):
    before = len(scraped(exposition(engine)))
    for number in range(30):
        announced(engine, alert_of(f"machine {number}", ("page", "low", None)[number % 3]))
        store(engine, upload_of(f"spectra/{number}.parquet", UploadState.BROKEN, error=f"error {number}"))
    assert len(scraped(exposition(engine))) == before


def test_a_database_that_does_not_answer_is_a_metric():
    engine = make_engine("postgresql+psycopg://me:secret@127.0.0.1:1/none")
    assert scraped(exposition(engine)) == {("hearken_database_up", ()): 0}


@pytest.fixture
def plant(tmp_path, url, monkeypatch):
    """A checkout with a landing zone."""
    checkout = tmp_path / "checkout"
    (checkout / "zone" / "spectra").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, checkout)
    monkeypatch.setenv("HEARKEN_DATABASE_URL", url)
    monkeypatch.setenv("HEARKEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HEARKEN_LANDING", str(checkout / "zone"))
    return checkout


def test_the_command_says_how_it_stands(engine, busy, plant, hearken):
    code, out, _ = hearken("status", plant)
    assert code == 1  # the upload has waited for years
    for words in (
        "v3 (0123456789abcdef)",
        "000000002-bb, finished 2025-03-01 11:00 UTC, 500 rows",
        "2.0 h of data; newest row scored 2025-03-01 10:00 UTC; uploads waiting: 1",
        "1 page vibration, 1 low vibration, 1 no data",
        "3 page pending, 2 digest pending",
        "got 3 bins, expected 64",
        "disk full",
        "[red]a[/red]\\x1b",
        "late: uploads waiting: 1",
    ):
        assert words in " ".join(out.split()), words
    assert "\x1b[2J" not in out
    code, out, _ = hearken("status", plant, "--json")
    told = json.loads(out)
    assert code == 1
    assert told["figures"]["open_alerts"] == {"page/vibration": 1, "low/vibration": 1, "none/no_data": 1}
    assert told["figures"]["lag_seconds"] == 7200
    assert told["broken_uploads"][0]["path"] == HOSTILE
    assert len(told["late"]) == 1


def test_the_exit_code_is_0_on_time_1_when_nobody_scores_2_for_a_mistake(engine, plant, hearken, monkeypatch):
    code, out, _ = hearken("status", plant)
    assert (code, "scoring is on time" in out) == (0, True)
    file = plant / "zone" / "spectra" / "a.parquet"
    file.write_bytes(b"x")
    assert hearken("status", plant)[0] == 0  # it has just come
    os.utime(file, (NOON.timestamp(), NOON.timestamp()))
    code, out, _ = hearken("status", plant)
    assert (code, "that the ledger does not know" in out) == (1, True)
    monkeypatch.setenv("HEARKEN_LANDING", str(plant / "nowhere"))
    code, _, err = hearken("status", plant)
    assert (code, "expected a source" in err) == (2, True)
    assert hearken("status", plant, "--params", plant / "none.yaml")[0] == 2
    assert hearken("status", plant.parent)[0] == 2


def test_metrics_are_printed_and_served(engine, busy, plant, hearken):
    code, out, _ = hearken("metrics", plant, "--once")
    assert code == 0
    assert scraped(out)[("hearken_rows_scored_total", ())] == 1500
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = hearken("metrics", plant, "--port", taken.getsockname()[1])
        assert (code, "expected a free port" in err) == (2, True)
        port = taken.getsockname()[1]
    program = [sys.executable, "-m", "flows.cli", "metrics", "--port", str(port)]
    server = subprocess.Popen(program, cwd=plant, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline().strip() == f"http://127.0.0.1:{port}/metrics"
        for rows in (1500, 1507):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                assert scraped(answer.read().decode())[("hearken_rows_scored_total", ())] == rows
            store(engine, shard_of(f"later {rows}", ShardState.DONE, NOON, rows=7))  # counted at the next scrape
    finally:
        server.terminate()
        server.wait(30)
        server.stdout.close()
