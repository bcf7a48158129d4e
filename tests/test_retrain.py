"""What retraining asks for and carries out, without a server; the whole of it runs in test_drift_story.py."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from written_alerts import heard

from flows import registry, shadows
from flows.build_flow import build
from flows.database import open_database
from flows.drift_command import check_change
from flows.registry import ReleaseRow, ReleaseState
from flows.releases.entry import may_not_enter, promote_checked, weights_of
from flows.retrain import Retrained, conclude, overrides_of, retrain
from flows.service.drifts import Found, dismiss_drift, enter_drift, list_drifts
from flows.service.retrainings import Waits, Wish, ask, claim, is_at_work, list_retrainings
from flows.service.tables import DriftState, Retraining, RetrainingState
from flows.settings import Settings
from flows.shadows import LOOKED, judge_shadows, look_is_due, shadow_folder
from flows.train_on_gpu import locked_outputs
from pipeline import store
from pipeline.errors import ReleaseError, StageFailed
from pipeline.gate import GateDecision, Verdict
from pipeline.params import MOST_SEEDS, GateParams, Params, RetrainParams
from pipeline.release import release_id

ROOT = Path(__file__).parents[1]
CHANGED = dt.datetime(2025, 2, 1, 6, tzinfo=dt.UTC)
GOOD = GateDecision(Verdict.PROMOTE, "fewer false pages", (), None, {}, {}, 200.0, 115.1, {})
BAD = replace(GOOD, verdict=Verdict.REFUSE, reason="twice the false pages")
EARLY = replace(GOOD, verdict=Verdict.WAIT, reason="too few rows")
Add = Callable[[str], ReleaseRow]
Hearken = Callable[..., tuple[int, str, str]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.of(tmp_path, {"HEARKEN_HOME": str(tmp_path / "home"), "HEARKEN_LANDING": str(tmp_path / "zone")})


@pytest.fixture
def engine(settings: Settings) -> Iterator[sa.Engine]:
    engine = open_database(settings.database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def add(settings: Settings, engine: sa.Engine, tmp_path: Path) -> Add:
    def add(text: str) -> ReleaseRow:
        folder = tmp_path / text
        store.write_json(folder / "manifest.json", {"metrics": {"text": text}})
        return registry.register_release(engine, settings.releases, folder, commit="c")

    return add


def wished(engine: sa.Engine, wish: Wish | None = None) -> Retraining:
    ask(engine, wish or Wish("ann", "new spindles"))
    held = claim(engine, RetrainParams(), "me")
    assert not isinstance(held, Waits)
    return held


def carried_out(
    engine: sa.Engine,
    was: ReleaseRow | None,
    challenger: ReleaseRow,
    decision: GateDecision | None,
    wish: Wish | None = None,
    **retrain: object,
) -> Retrained:
    params = Params.model_validate({"retrain": retrain})
    return conclude(engine, params, wished(engine, wish), "me", was, challenger.id, decision, "why")


def test_what_changed_replaces_settings(settings: Settings, engine: sa.Engine, add: Add, tmp_path: Path) -> None:
    here = {"source.path": str(tmp_path / "zone")}
    assert overrides_of(settings, Params(), wished(engine), None) == here
    group = Retraining(changed_at=CHANGED, machines=["a", "b"])
    assert overrides_of(settings, Params(), group, None) == here | {
        "split.changed_at": CHANGED.isoformat(),
        "split.changed_machines": ["a", "b"],
        "split.purge_hours": 6.0,
    }
    champion, tuned = add("one"), Params.model_validate({"retrain": {"start": "champion"}})
    assert overrides_of(settings, tuned, Retraining(), champion) == here | {"base_release": champion.id}
    assert overrides_of(settings, tuned, Retraining(), None) == here


def test_the_first_release_enters_service_and_a_better_one_replaces_it(engine: sa.Engine, add: Add) -> None:
    one, two = add("one"), add("two")
    assert carried_out(engine, None, one, None).promoted
    result = carried_out(engine, registry.in_service(engine), two, GOOD)
    assert (result.promoted, result.reason) == (True, "new spindles: why")
    row = registry.find_release(engine, two.id)
    assert (row.state, row.decision) == (ReleaseState.IN_SERVICE, GOOD.to_dict())
    assert registry.find_release(engine, one.id).state == ReleaseState.RETIRED
    assert {each.state for each in list_retrainings(engine)} == {RetrainingState.PROMOTED}


def test_a_worse_challenger_is_refused_with_the_reason(engine: sa.Engine, add: Add) -> None:
    one, two = add("one"), add("two")
    registry.promote(engine, one.id)
    assert not carried_out(engine, one, two, BAD).promoted
    row = registry.find_release(engine, two.id)
    assert (row.state, row.note) == (ReleaseState.REFUSED, "new spindles: why")
    assert registry.in_service(engine) is not None
    assert list_retrainings(engine)[0].state is RetrainingState.REFUSED


@pytest.mark.parametrize("decision", [EARLY, GOOD])
def test_one_that_waits_is_a_shadow_with_a_deadline(engine: sa.Engine, add: Add, decision: GateDecision) -> None:
    one, two = add("one"), add("two")
    registry.promote(engine, one.id)
    result = carried_out(engine, one, two, decision, promote="manual")
    assert result.state is RetrainingState.SHADOW
    row = registry.find_release(engine, two.id)
    assert row.state == ReleaseState.SHADOW
    assert row.shadow_until is not None
    assert list_retrainings(engine)[0].challenger_id == two.id


def test_a_champion_that_changed_meanwhile_is_left_to_a_person(engine: sa.Engine, add: Add) -> None:
    one, two, three = add("one"), add("two"), add("three")
    registry.promote(engine, two.id)
    result = carried_out(engine, one, three, GOOD)
    assert not result.promoted
    assert "another has entered service" in str(list_retrainings(engine)[0].error)
    found = registry.in_service(engine)
    assert found is not None
    assert found.id == two.id
    assert registry.find_release(engine, three.id).state == ReleaseState.CANDIDATE


def test_the_same_bytes_again_stay_in_service(engine: sa.Engine, add: Add) -> None:
    one = registry.promote(engine, add("one").id)
    assert not carried_out(engine, one, one, None).promoted
    found = registry.in_service(engine)
    assert found is not None
    assert (found.id, found.promoted_at) == (one.id, one.promoted_at)


def test_who_has_lost_the_wish_changes_nothing(engine: sa.Engine, add: Add) -> None:
    one, two = add("one"), add("two")
    registry.promote(engine, one.id)
    wish = wished(engine)
    result = conclude(engine, Params(), wish, "another", one, two.id, GOOD, "why")
    assert result.state is None
    assert registry.find_release(engine, two.id).state == ReleaseState.CANDIDATE
    assert list_retrainings(engine)[0].state is RetrainingState.RUNNING


def test_promotion_settles_the_drift_that_asked(engine: sa.Engine, add: Add) -> None:
    one, two = add("one"), add("two")
    registry.promote(engine, one.id)
    drift = enter_drift(engine, Found(one.id, "fleet", ("a",), CHANGED, 1.0, {})).drift
    carried_out(engine, one, two, GOOD, Wish("monitor", "drift", drift.id, CHANGED))
    assert list_drifts(engine)[0].state is DriftState.SETTLED


def test_registry_and_release_agree_on_the_id(tmp_path: Path) -> None:
    store.write_text(tmp_path / "a" / "b", "c")
    assert registry.content_id(tmp_path) == release_id(tmp_path)


def test_locked_outputs_are_read_by_path(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  train@vae:\n    cmd: x\n    outs:\n    - {path: data/models/vae, md5: abc.dir}\n"
    )
    assert locked_outputs(tmp_path, ["train@vae"]) == {"data/models/vae": "abc.dir"}
    with pytest.raises(StageFailed, match=r"not in dvc\.lock"):
        locked_outputs(tmp_path, ["train@pca"])


def test_bytes_that_were_refused_before_cannot_wait_again(engine: sa.Engine, add: Add) -> None:
    one, two = add("one"), add("two")
    registry.promote(engine, one.id)
    registry.refuse(engine, two.id, "its deadline has passed")
    assert carried_out(engine, one, two, EARLY).state is RetrainingState.REFUSED
    assert list_retrainings(engine)[0].state is RetrainingState.REFUSED


def test_a_person_promotes_what_the_gate_accepted_without_force(engine: sa.Engine, add: Add) -> None:
    one, two = add("one"), add("two")
    registry.promote(engine, one.id)
    carried_out(engine, one, two, GOOD, promote="manual")
    assert may_not_enter(registry.find_release(engine, two.id)) == ()
    carried_out(engine, one, two, EARLY)
    assert ReleaseState.SHADOW in may_not_enter(registry.find_release(engine, two.id))


def test_promotion_settles_every_drift_that_was_merged_into_its_wish(engine: sa.Engine, add: Add) -> None:
    one, two = add("one"), add("two")
    registry.promote(engine, one.id)
    for days, machine in ((0, "a"), (5, "b")):
        at = CHANGED + dt.timedelta(days=days)
        drift = enter_drift(engine, Found(one.id, "group", (machine,), at, 0.2, {})).drift
        ask(engine, Wish("monitor", f"drift {drift.id}", drift.id, at, (machine,)))
        assert is_at_work(engine, drift.id)
    carried_out(engine, one, two, GOOD)
    assert {each.state for each in list_drifts(engine)} == {DriftState.SETTLED}


def test_weights_are_those_of_the_release_that_was_recalibrated_first(settings: Settings) -> None:
    for identity, before in (("c", "b"), ("b", "a"), ("a", None), ("d", None)):
        manifest = {"recalibrated_from": before} if before else {}
        store.write_json(settings.releases / identity / "manifest.json", manifest)
    assert [weights_of(settings, identity) for identity in "abcdx"] == ["a", "a", "a", "d", "x"]


def test_a_full_disk_under_one_shadow_is_told_and_what_ended_leaves_no_data(
    settings: Settings, engine: sa.Engine, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = add("one"), add("two")
    registry.promote(engine, one.id)
    registry.put_in_shadow(engine, two.id, CHANGED, "waits")
    for row in (one, two):
        (shadow_folder(settings, row.id) / "data").mkdir(parents=True)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shadows, "ingest_for", full)
    (line,) = judge_shadows(engine, settings, Params())
    assert "No space left" in line
    assert [(shadow_folder(settings, row.id) / "data").exists() for row in (one, two)] == [False, True]


def drifted(engine: sa.Engine, release: ReleaseRow, machine: str = "a") -> tuple[int, Wish]:
    """An open drift, and its wish as the monitor makes it."""
    drift = enter_drift(engine, Found(release.id, "group", (machine,), CHANGED, 0.2, {})).drift
    return drift.id, Wish("monitor", f"drift {drift.id}", drift.id, CHANGED, (machine,))


def never(*_: object, **__: object) -> None:
    raise AssertionError("a shadow that has ended was taken in, scored or judged")


def test_while_a_rollback_stands_what_the_gate_accepts_waits_for_a_person(engine: sa.Engine, add: Add) -> None:
    one, two, three, four = (add(name) for name in ("one", "two", "three", "four"))
    for row in (one, two):
        registry.promote(engine, row.id)
    registry.rollback(engine, who="ann", note="shouts")
    assert carried_out(engine, registry.in_service(engine), three, GOOD).state is RetrainingState.SHADOW
    row = registry.find_release(engine, three.id)
    assert "ann took service back to v1" in row.note
    assert may_not_enter(row) == ()
    registry.promote(engine, three.id, who="ann")
    assert carried_out(engine, registry.in_service(engine), four, GOOD).promoted


def test_a_drift_that_is_dismissed_while_its_release_is_built_promotes_nothing(engine: sa.Engine, add: Add) -> None:
    one, two = add("one"), add("two")
    registry.promote(engine, one.id)
    number, wish = drifted(engine, one)
    held = wished(engine, wish)
    dismiss_drift(engine, number, "ann", "the pump")
    result = conclude(engine, Params(), held, "me", one, two.id, GOOD, "why")
    assert (result.state, result.reason) == (RetrainingState.CANCELLED, f"drift {number} was dismissed by ann")
    assert (list_retrainings(engine)[0].state, list_retrainings(engine)[0].error) == (result.state, result.reason)
    assert getattr(registry.in_service(engine), "id", None) == one.id
    assert isinstance(claim(engine, RetrainParams(), "you"), Waits)


def test_a_dismissal_between_the_gate_and_the_promotion_counts(engine: sa.Engine, add: Add) -> None:
    one, two = add("one"), add("two")
    registry.promote(engine, one.id)
    wish = drifted(engine, one)[1]
    carried_out(engine, one, two, EARLY, wish)
    with Session(engine) as session, session.begin():
        session.execute(sa.update(Retraining).values(state=RetrainingState.CANCELLED, error="dismissed by ann"))
    with pytest.raises(ReleaseError, match="got it cancelled: dismissed by ann"):
        promote_checked(engine, two.id, who="monitor", unasked=True)
    assert list_drifts(engine)[0].state is DriftState.OPEN
    assert promote_checked(engine, two.id, who="ann").id == two.id


def test_the_shadow_of_a_dismissed_drift_is_refused_for_that_reason(
    settings: Settings, engine: sa.Engine, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadows, "ingest_for", never)
    one, two = add("one"), add("two")
    registry.promote(engine, one.id)
    number, wish = drifted(engine, one)
    carried_out(engine, one, two, EARLY, wish)
    dismiss_drift(engine, number, "ann", "the pump")
    row, why = registry.find_release(engine, two.id), f"drift {number} was dismissed by ann"
    assert (row.state, row.note) == (ReleaseState.REFUSED, why)
    assert (list_retrainings(engine)[0].state, list_retrainings(engine)[0].error) == (RetrainingState.CANCELLED, why)
    with Session(engine) as session, session.begin():  # as after a crash between the two
        session.get_one(ReleaseRow, two.id).state = ReleaseState.SHADOW
    assert judge_shadows(engine, settings, Params()) == [f"shadow {two.id}: refused: {why}"]
    assert registry.find_release(engine, two.id).state == ReleaseState.REFUSED


def test_a_dismissed_drift_leaves_what_a_person_asked_for(engine: sa.Engine, add: Add) -> None:
    one, two = add("one"), add("two")
    registry.promote(engine, one.id)
    ask(engine, Wish("ann", "new spindles"))
    number, wish = drifted(engine, one)
    ask(engine, wish)
    held = claim(engine, RetrainParams(hours_after_change=0), "me")
    assert isinstance(held, Retraining)
    dismiss_drift(engine, number, "ben", "the pump")
    assert conclude(engine, Params(), held, "me", one, two.id, GOOD, "why").promoted
    assert list_drifts(engine)[0].state is DriftState.DISMISSED


def test_a_shadow_whose_champion_has_gone_costs_nothing(
    settings: Settings, engine: sa.Engine, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadows, "ingest_for", never)
    one, two, three = add("one"), add("two"), add("three")
    registry.promote(engine, one.id)
    carried_out(engine, one, two, EARLY)
    registry.promote(engine, three.id)
    (line,) = judge_shadows(engine, settings, Params())
    assert "v3 has entered service since" in line
    assert registry.find_release(engine, two.id).state == ReleaseState.REFUSED
    assert list_retrainings(engine)[0].state is RetrainingState.REFUSED


def test_each_seed_of_a_retraining_has_the_time_of_a_build() -> None:
    assert build.timeout_seconds is not None
    assert retrain.timeout_seconds == MOST_SEEDS * build.timeout_seconds
    with pytest.raises(ValueError, match="less than or equal to 5"):
        GateParams(seeds=MOST_SEEDS + 1)


def test_a_change_to_come_and_a_machine_that_nobody_heard_are_refused_at_the_command(
    engine: sa.Engine, settings: Settings, hearken: Hearken, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HEARKEN_HOME", str(settings.home))
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    heard(engine, "cnc-017", "pump 7")
    why = ("--why", "new spindles")
    code, _, said = hearken("retrain", tmp_path, *why, "--changed-at", "2999-01-01T06:00")
    assert (code, "--changed-at: got 2999-01-01 06:00 UTC, expected a time that has passed" in said) == (2, True)
    code, _, said = hearken("retrain", tmp_path, *why, "--changed-at", "0001-01-01T00:00+05:00")
    assert (code, "expected ISO 8601" in said) == (2, True)
    code, _, said = hearken("retrain", tmp_path, *why, "--changed-at", "2025-02-01", "--machine", "cnc-17")
    assert (code, "--machine: got 'cnc-17', expected one that has been scored: cnc-017, and 1 more" in said) == (
        2,
        True,
    )
    assert list_retrainings(engine) == []
    check_change(CHANGED, ["new"], [], CHANGED)  # where nothing has been scored names cannot be checked


def test_a_shadow_is_looked_at_after_a_day_of_rows_at_its_deadline_and_under_other_thresholds(
    settings: Settings, engine: sa.Engine, add: Add
) -> None:
    one, two, three = add("one"), add("two"), add("three")
    row = registry.put_in_shadow(engine, two.id, CHANGED + dt.timedelta(hours=30), "waits")
    looked = shadow_folder(settings, row.id) / LOOKED

    def due(after_hours: float, last_hours: float, champion: ReleaseRow = one) -> bool:
        store.write_json(looked, {"newest": (CHANGED + dt.timedelta(hours=last_hours)).isoformat(), "champion": one.id})
        return look_is_due(settings, row, champion, CHANGED + dt.timedelta(hours=after_hours))

    assert look_is_due(settings, row, one, CHANGED), "never looked at"
    assert [due(23, 0), due(24, 0), due(29, 20), due(30, 20), due(31, 30), due(54, 30)] == [False, True] * 3
    assert due(23, 0, three)
    assert look_is_due(settings, row, one, None), "nothing says how far the data are"
