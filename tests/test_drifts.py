"""Changes of the plant in the service: which alerts they explain, what happens to those, and what a person may say."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from service_plant import ServicePlant
from service_rows import shard_of
from sqlalchemy.orm import Session
from written_alerts import heard, hour, write_alert

from flows import registry
from flows.monitor import follow_up
from flows.registry import ReleaseState
from flows.releases.entry import promote_checked
from flows.service.answers_export import added_log, export_answers
from flows.service.drifts import (
    Entered,
    Found,
    dismiss_drift,
    enter_drift,
    let_pass,
    list_drifts,
    open_drifts,
    take_out,
)
from flows.service.feedback import alert_story, confirm
from flows.service.retrainings import Wish, ask, claim, end
from flows.service.tables import (
    Alert,
    DriftState,
    Notice,
    NoticeKind,
    NoticeState,
    PolicyMemory,
    Retraining,
    RetrainingState,
    ShardState,
    Standing,
)
from pipeline import store
from pipeline.answers import FEEDBACK, read_feedback
from pipeline.drift import DriftDecision
from pipeline.errors import ReleaseError, UserError
from pipeline.params import MonitorParams, RetrainParams
from pipeline.schema import spectra_column

RELEASE = "0123456789abcdef"


def found(*machines: str, at: dt.datetime | None = None, verdict: str = "group") -> Found:
    return Found(RELEASE, verdict, machines, at or hour(0), 0.5, {"reason": "they moved"})


def kinds(engine: sa.Engine, number: int) -> list[str]:
    return [str(event.kind) for event in alert_story(engine, number).events]


def alert(engine: sa.Engine, number: int) -> Alert:
    return alert_story(engine, number).alert


def test_alerts_of_its_machines_from_the_change_on_close_and_say_so(engine: sa.Engine) -> None:
    one = write_alert(engine, "a", hour(1), standing=Standing.OPEN)
    before = write_alert(engine, "b", hour(-20), standing=Standing.OPEN)
    other = write_alert(engine, "c", hour(1), standing=Standing.OPEN)
    silent = write_alert(engine, "a", hour(1), cause="no_data", standing=Standing.OPEN)
    entered = enter_drift(engine, found("a", "b"))
    assert (entered.new, entered.explained) == (True, 1)
    assert kinds(engine, one) == ["opened", "attributed", "closed"]
    assert "2 machines changed together" in alert_story(engine, one).events[1].note
    assert (alert(engine, one).standing, alert(engine, one).final) == (Standing.CLOSED, True)
    for number in (before, other, silent):
        assert (alert(engine, number).standing, alert(engine, number).drift_id) == (Standing.OPEN, None)


def test_the_same_change_found_again_adds_to_the_drift(engine: sa.Engine) -> None:
    first = enter_drift(engine, found("a", "b"))
    again = enter_drift(engine, found("b", "c", at=hour(5), verdict="fleet"))
    still = enter_drift(engine, replace(found("a", "b", "c", at=hour(90)), before_window=True))
    later = enter_drift(engine, found("d", at=hour(100)))
    assert (again.new, again.drift.id) == (False, first.drift.id)
    assert (still.new, still.drift.id) == (False, first.drift.id)
    assert later.new
    newest, oldest = list_drifts(engine)
    assert (oldest.machines, oldest.verdict, newest.machines) == (["a", "b", "c"], "fleet", ["d"])
    assert oldest.changed_at == hour(0)


def test_a_change_before_the_window_is_no_new_drift_as_the_window_moves_on(engine: sa.Engine) -> None:
    first = enter_drift(engine, found("a", "b", "c"))
    moved = replace(found("b", "c", "d", at=hour(100)), before_window=True, release_id="fedcba9876543210")
    assert enter_drift(engine, moved).drift.id == first.drift.id
    assert enter_drift(engine, replace(moved, machines=("x", "y", "a"))).new
    assert enter_drift(engine, replace(found("a", "b", at=hour(150)))).new


def decided(verdict: str, *machines: str, at: dt.datetime | None = None) -> DriftDecision:
    return DriftDecision(verdict, machines, (), None, at, 0.4, 5, {}, "", 100, verdict)  # type: ignore[arg-type]


def test_a_drift_that_is_over_and_that_nothing_is_built_for_explains_no_more(engine: sa.Engine) -> None:
    release: Any = SimpleNamespace(id=RELEASE, manifest={})
    look = partial(follow_up, engine, release=release, report=Path("drift/x.html"), params=MonitorParams())
    entered = look(decided("group", "a", "b", at=hour(0)))
    assert entered is not None
    with Session(engine) as session, session.begin():
        shard = shard_of("000000001-aa", ShardState.DONE, hour(90))
        shard.last_at, shard.planned_at = hour(90), hour(99)
        session.add(shard)
    look(decided("none"))
    assert list_drifts(engine)[0].state is DriftState.OPEN, "its wish waits"
    look(decided("group", "a", "c", at=hour(1)))
    held = claim(engine, RetrainParams(), "me")
    assert isinstance(held, Retraining)
    assert held.machines == ["a", "b", "c"]
    end(engine, held.id, "me", RetrainingState.REFUSED)
    look(decided("none"))
    assert list_drifts(engine)[0].state is DriftState.SETTLED
    assert "again" in list_drifts(engine)[0].note
    with Session(engine) as session:
        assert open_drifts(session) == {}
    assert added_log(engine).num_rows == 0


def test_what_a_person_has_said_stands(engine: sa.Engine) -> None:
    number = write_alert(engine, "a", hour(1), standing=Standing.OPEN)
    confirm(engine, number, who="ann", note="bearing", now=hour(9))
    assert enter_drift(engine, found("a")).explained == 0
    assert (alert(engine, number).drift_id, alert(engine, number).standing) == (None, Standing.OPEN)


def test_rows_of_explained_alerts_are_given_back_to_training(engine: sa.Engine, tmp_path: Path) -> None:
    write_alert(engine, "a", hour(1))
    other = write_alert(engine, "b", hour(1))
    (tmp_path / "zone").mkdir()
    export_answers(engine, tmp_path / "zone")
    assert read_feedback(tmp_path / "zone")["machine_id"].to_pylist() == ["a", "b"]
    enter_drift(engine, found("a"))
    assert FEEDBACK in export_answers(engine, tmp_path / "zone").written
    assert read_feedback(tmp_path / "zone")["machine_id"].to_pylist() == ["b"]
    assert alert(engine, other).drift_id is None


def test_a_dismissed_drift_explains_nothing_and_pages_are_told_again(engine: sa.Engine) -> None:
    number = write_alert(engine, "a", hour(1), standing=Standing.OPEN)
    drift = enter_drift(engine, found("a", "b")).drift
    assert dismiss_drift(engine, drift.id, "ann", "it is the pump").state is DriftState.DISMISSED
    assert alert(engine, number).drift_id is None
    assert kinds(engine, number)[-1] == "reopened"
    with Session(engine) as session:
        (notice,) = session.scalars(sa.select(Notice))
        assert (notice.alert_id, notice.kind, notice.state) == (number, NoticeKind.PAGE, NoticeState.PENDING)
    for wrong in (drift.id, drift.id + 7, 2**40, 0):
        with pytest.raises(UserError, match="drift"):
            dismiss_drift(engine, wrong, "ann", "")
    with pytest.raises(UserError, match="who"):
        dismiss_drift(engine, drift.id, " ", "")


def test_a_machine_that_leaves_its_changed_peers_is_taken_out(engine: sa.Engine) -> None:
    numbers = {name: write_alert(engine, name, hour(1)) for name in ("a", "b")}
    enter_drift(engine, found("a", "b"))
    assert take_out(engine, ["b", "z"], "b has left its peers") == ["b"]
    assert list_drifts(engine)[0].machines == ["a"]
    assert alert(engine, numbers["a"]).drift_id is not None
    assert (alert(engine, numbers["b"]).drift_id, kinds(engine, numbers["b"])[-1]) == (None, "reopened")


@pytest.fixture
def plant(tmp_path: Path, built: Path, engine: sa.Engine) -> ServicePlant:
    return ServicePlant.of(tmp_path, built, engine)


def enter(plant: ServicePlant, machines: list[str], at: dt.datetime) -> Entered:
    return enter_drift(plant.engine, Found(plant.release, "fleet", tuple(machines), at, 1.0, {}))


def first_and_last(plant: ServicePlant, days: slice) -> tuple[dt.datetime, dt.datetime]:
    times = plant.all_rows(days)["timestamp"].to_pylist()
    return min(times), max(times)


def changed(table: pa.Table) -> pa.Table:
    """The same rows after a change of the plant: louder, and more so in the upper bins."""
    spectra = table["spectrum"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    louder = spectra * np.linspace(1.5, 4, spectra.shape[1], dtype=np.float32)
    index = table.column_names.index("spectrum")
    return table.set_column(index, table.schema.field("spectrum"), spectra_column(louder))


def test_while_a_drift_is_open_its_machines_page_nobody_and_nothing_is_told_twice(plant: ServicePlant) -> None:
    plant.upload("healthy", plant.all_rows(slice(0, 20)))
    plant.upload("changed", changed(plant.all_rows(slice(20, 23))))
    first = plant.score()
    start = first_and_last(plant, slice(20, 23))[0]
    assert first.paged
    machines = sorted(set(plant.all_rows()["machine_id"].to_pylist()))
    with Session(plant.engine) as session:
        since = (Alert.cause == "vibration", Alert.opened_at >= start)
        standing = session.scalars(sa.select(Alert.machine_id).where(*since)).all()
    entered = enter(plant, machines, start)
    assert entered.explained == len(standing) > len(machines) / 2
    again = enter(plant, machines, start)
    assert (again.new, again.explained) == (False, 0)
    plant.upload("changed on", changed(plant.all_rows(slice(23, 26))))
    summary = plant.score()
    assert summary.opened
    assert summary.paged == 0
    with Session(plant.engine) as session:
        alerts = session.scalars(sa.select(Alert).where(*since, Alert.standing != Standing.WITHDRAWN)).all()
        assert {each.drift_id for each in alerts} == {entered.drift.id}
        assert len(alerts) == len(standing) + summary.opened
        later = {each.id for each in alerts if each.opened_at > first_and_last(plant, slice(20, 23))[1]}
        paged = session.scalars(sa.select(Notice.alert_id).where(Notice.kind == NoticeKind.PAGE)).all()
        assert later
        assert not later & set(paged)
        keys = Counter((each.machine_id, each.opened_at) for each in alerts)
        assert max(keys.values()) == 1, "an alert that was explained is told once"


def test_a_confirmed_alert_that_stands_goes_on_beside_a_drift(plant: ServicePlant) -> None:
    plant.upload("healthy", plant.all_rows(slice(0, 20)))
    plant.upload("changed", changed(plant.all_rows(slice(20, 23))))
    plant.score()
    with Session(plant.engine) as session:
        standing = session.scalars(sa.select(Alert).where(Alert.cause == "vibration", Alert.final.is_(False))).first()
    assert standing is not None
    confirm(plant.engine, standing.id, who="ann", note="it is ill")
    enter(plant, [standing.machine_id], first_and_last(plant, slice(20, 23))[0])
    plant.upload("changed on", changed(plant.all_rows(slice(23, 26))))
    plant.score()
    after = alert(plant.engine, standing.id)
    assert after.standing is not Standing.WITHDRAWN
    assert after.drift_id is None
    assert after.last_at > standing.last_at


def _challenger(plant: ServicePlant, name: str = "challenger") -> str:
    folder = plant.folder / name
    store.write_json(folder / "manifest.json", {"metrics": {"name": name}})
    return registry.register_release(plant.engine, plant.settings.releases, folder, commit="c").id


def test_a_promoted_challenger_settles_its_drift_and_later_builds_know_the_change(plant: ServicePlant) -> None:
    at = hour(3)
    heard(plant.engine, "a")
    number = write_alert(plant.engine, "a", hour(4), standing=Standing.OPEN)
    drift = enter(plant, ["a"], at).drift
    ask(plant.engine, Wish("monitor", "it changed", drift.id, at, ("a",)))
    held = claim(plant.engine, RetrainParams(), "me")
    assert isinstance(held, Retraining)
    challenger = _challenger(plant)
    assert end(plant.engine, held.id, "me", RetrainingState.SHADOW, champion=plant.release, challenger=challenger)
    with pytest.raises(ReleaseError, match="another has entered service"):
        promote_checked(plant.engine, challenger, who="ann", instead_of="another")
    assert list_drifts(plant.engine)[0].state is DriftState.OPEN
    promote_checked(plant.engine, challenger, who="ann", instead_of=plant.release)
    assert registry.find_release(plant.engine, plant.release).state == ReleaseState.RETIRED
    assert list_drifts(plant.engine)[0].state is DriftState.SETTLED
    log = added_log(plant.engine).to_pylist()
    assert [(line["machine_id"], line["end"], line["tag"]) for line in log] == [("a", at, "firmware")]
    assert alert(plant.engine, number).drift_id == drift.id
    with Session(plant.engine) as session:
        wish = session.get(Retraining, held.id)
        assert wish is not None
        assert wish.state is RetrainingState.PROMOTED
        assert session.get(PolicyMemory, "a") is not None


def settled_by(plant: ServicePlant, name: str, drift_id: int, at: dt.datetime) -> str:
    """A challenger that was built for a drift, in service."""
    ask(plant.engine, Wish("monitor", f"drift {drift_id} for {name}", drift_id, at, ("a", "b")))
    held = claim(plant.engine, RetrainParams(cool_down_hours=0), "me")
    assert isinstance(held, Retraining)
    challenger = _challenger(plant, name)
    end(plant.engine, held.id, "me", RetrainingState.SHADOW, challenger=challenger)
    promote_checked(plant.engine, challenger, who="ann")
    return challenger


def test_a_change_that_is_found_again_after_a_rollback_is_the_same_one_and_enters_the_log_once(
    plant: ServicePlant,
) -> None:
    first = enter(plant, ["a", "b"], hour(0)).drift
    two = settled_by(plant, "two", first.id, hour(0))
    assert enter_drift(plant.engine, replace(found("a", at=hour(1)), release_id=two)).new, "by a release that knew it"
    registry.rollback(plant.engine, who="ben", note="shouts")
    window = Found(plant.release, "fleet", ("a", "b", "c"), hour(99), 1.0, {}, before_window=True)
    again = enter_drift(plant.engine, window)
    assert (again.new, again.drift.id, again.drift.state) == (False, first.id, DriftState.OPEN)
    assert enter_drift(plant.engine, window).drift.id == first.id
    settled_by(plant, "three", first.id, hour(0))
    log = [(line["machine_id"], line["start"]) for line in added_log(plant.engine).to_pylist()]
    assert sorted(log) == [(name, hour(0)) for name in "abc"]


def test_a_change_that_passed_by_itself_is_not_taken_up_again(plant: ServicePlant) -> None:
    drift = enter(plant, ["a", "b"], hour(0)).drift
    let_pass(plant.engine, drift.id, "the season is over")
    assert enter(plant, ["a", "b"], hour(1)).new
