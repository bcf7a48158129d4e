"""What follows a monitoring run in the database and on disk; the flow itself runs in test_drift_story.py."""

from __future__ import annotations

import datetime as dt
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from service_rows import shard_of
from sqlalchemy.orm import Session
from written_alerts import heard, hour

from flows.monitor import follow_up, forget_reports
from flows.service.drifts import Found, enter_drift, list_drifts
from flows.service.retrainings import MOST_WHY, Wish, ask, list_retrainings
from flows.service.tables import RetrainingState, ShardState
from pipeline.drift import ColumnDrift, DriftDecision
from pipeline.params import MonitorParams
from pipeline.release import Release, load_release

PARAMS = MonitorParams()


@pytest.fixture
def release(built: Path) -> Release:
    return load_release(built / "data/release")


def decision(verdict: str, *machines: str, alone: tuple[str, ...] = (), share: float = 0.3) -> DriftDecision:
    return DriftDecision(
        verdict=verdict, machines=machines, alone=alone, group=None, share=share, compared=10, rows=100,
        changed_at=hour(0) if verdict != "none" else None, history="", reason="they moved",
        columns={"energy": ColumnDrift(statistic=2.0, limit=1.0, drifted=True, method="wasserstein")},
    )  # fmt: skip


def follow(engine: sa.Engine, release: Release, found: DriftDecision) -> None:
    follow_up(engine, found, release, Path("drift/20250301-000000.html"), PARAMS)


def test_a_drift_asks_once_however_often_it_is_seen(engine: sa.Engine, release: Release) -> None:
    heard(engine, "a", "b", "c")
    for _ in range(3):
        follow(engine, release, decision("group", "a", "b"))
    (wish,) = list_retrainings(engine)
    assert (wish.state, wish.machines, wish.changed_at) == (RetrainingState.WAITING, ["a", "b"], hour(0))
    (drift,) = list_drifts(engine)
    assert (drift.id, drift.verdict, drift.report) == (wish.drift_id, "group", "drift/20250301-000000.html")


def test_where_most_that_can_be_compared_moved_the_others_did_too(engine: sa.Engine, release: Release) -> None:
    heard(engine, "a", "b", "c", "ill")
    follow(engine, release, decision("group", "a", "b", alone=("ill",), share=PARAMS.fleet_share))
    assert list_drifts(engine)[0].machines == ["a", "b", "c"]
    assert list_drifts(engine)[0].verdict == "fleet"
    assert list_retrainings(engine)[0].machines is None


def test_a_fault_asks_for_nothing_and_leaves_the_open_drift(engine: sa.Engine, release: Release) -> None:
    heard(engine, "a", "b", "c")
    follow(engine, release, decision("none", alone=("a",)))
    assert not list_drifts(engine)
    assert not list_retrainings(engine)
    follow(engine, release, decision("group", "a", "b", "c"))
    follow(engine, release, decision("group", "b", "c", alone=("a",)))
    assert list_drifts(engine)[0].machines == ["b", "c"]


def test_old_pages_go_but_for_those_of_a_drift(engine: sa.Engine, tmp_path: Path) -> None:
    folder = tmp_path / "drift"
    folder.mkdir()
    for name in ("20250301-000000.html", "20250301-000000.json", "20250302-000000.html", "20250501-000000.html"):
        (folder / name).write_text("x")
    enter_drift(engine, Found("r" * 16, "fleet", ("a",), hour(0), 1.0, {}, "drift/20250302-000000.html"))
    now = dt.datetime(2025, 5, 2, tzinfo=dt.UTC)
    assert forget_reports(engine, tmp_path, 30, now) == ["20250301-000000.html", "20250301-000000.json"]
    assert sorted(path.name for path in folder.iterdir()) == ["20250302-000000.html", "20250501-000000.html"]
    shutil.rmtree(folder)
    assert forget_reports(engine, tmp_path, 30, now) == []


def test_a_provisional_release_is_built_fully_once_failures_have_had_time(engine: sa.Engine, release: Release) -> None:
    manifest = release.manifest | {"changed_at": hour(0).isoformat(), "provisional": True}
    young = replace(release, manifest=manifest)
    horizon = float(manifest["params"]["split"]["horizon_hours"])
    shard = shard_of("000000001-aa", ShardState.DONE, hour(2 * horizon - 1))
    shard.planned_at, shard.last_at = hour(9 * horizon), hour(2 * horizon - 1)
    with Session(engine) as session, session.begin():
        session.add(shard)
    follow(engine, young, decision("none"))
    assert not list_retrainings(engine)
    with Session(engine) as session, session.begin():
        later = shard_of("000000002-bb", ShardState.DONE, hour(2 * horizon + 1))
        later.planned_at, later.last_at = hour(9 * horizon), hour(2 * horizon + 1)
        session.add(later)
    ask(engine, Wish("ann", "y" * 2 * MOST_WHY))  # merged reasons end within it
    for _ in range(2):
        follow(engine, young, decision("none"))
    wish, other = list_retrainings(engine)
    assert (wish.changed_at, wish.drift_id, release.id in wish.why, wish.merged_into) == (None, None, True, other.id)
    follow(engine, release, decision("none"))
    assert len(list_retrainings(engine)) == 2
