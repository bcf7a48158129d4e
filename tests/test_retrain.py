"""What retraining asks for and carries out, without a server; the whole of it runs in test_drift_story.py."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from flows import registry, shadows
from flows.database import open_database
from flows.registry import ReleaseRow, ReleaseState
from flows.releases.entry import may_not_enter
from flows.retrain import Retrained, conclude, overrides_of
from flows.service.drifts import Found, enter_drift, list_drifts
from flows.service.retrainings import Waits, Wish, ask, claim, is_at_work, list_retrainings
from flows.service.tables import DriftState, Retraining, RetrainingState
from flows.settings import Settings
from flows.shadows import judge_shadows, shadow_folder, weights_of
from flows.train_on_gpu import locked_outputs
from pipeline import store
from pipeline.errors import StageFailed
from pipeline.gate import GateDecision, Verdict
from pipeline.params import Params, RetrainParams
from pipeline.release import release_id

CHANGED = dt.datetime(2025, 2, 1, 6, tzinfo=dt.UTC)
GOOD = GateDecision(Verdict.PROMOTE, "fewer false pages", (), None, {}, {}, 200.0, 115.1, {})
BAD = replace(GOOD, verdict=Verdict.REFUSE, reason="twice the false pages")
EARLY = replace(GOOD, verdict=Verdict.WAIT, reason="too few rows")
Add = Callable[[str], ReleaseRow]


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

    monkeypatch.setattr(shadows, "ingest", full)
    (line,) = judge_shadows(engine, settings, Params())
    assert "No space left" in line
    assert [(shadow_folder(settings, row.id) / "data").exists() for row in (one, two)] == [False, True]
