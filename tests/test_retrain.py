"""What retraining asks for and decides, without a server; the whole of it runs in test_loop.py."""

from __future__ import annotations

import datetime as dt

import pytest

from flows import registry
from flows.database import open_database
from flows.registry import ReleaseState
from flows.retrain import decide, overrides_of
from flows.settings import Settings
from flows.train_on_gpu import locked_outputs
from pipeline import store
from pipeline.errors import ParamsError, StageFailed
from pipeline.gate import GateDecision
from pipeline.params import Params
from pipeline.release import release_id

GOOD = GateDecision(True, "not worse", {}, {})
BAD = GateDecision(False, "twice the false pages", {}, {})


@pytest.fixture
def settings(tmp_path):
    return Settings.of(tmp_path, {"HEARKEN_HOME": str(tmp_path / "home"), "HEARKEN_LANDING": str(tmp_path / "zone")})


@pytest.fixture
def add(settings, tmp_path):
    engine = open_database(settings.database_url)

    def add(text):
        folder = tmp_path / text
        store.write_json(folder / "manifest.json", {"metrics": {"text": text}})
        return registry.register_release(engine, settings.releases, folder, commit="c")

    yield add
    engine.dispose()


@pytest.fixture
def engine(settings):
    engine = open_database(settings.database_url)
    yield engine
    engine.dispose()


def test_a_change_replaces_three_settings(settings, tmp_path):
    assert overrides_of(settings, Params(), "2025-02-01T06:00:00+00:00") == {
        "source.path": str(tmp_path / "zone"),
        "split.changed_at": "2025-02-01T06:00:00+00:00",
        "split.purge_hours": 6.0,
    }
    assert (
        overrides_of(settings, Params(), None)
        == overrides_of(settings, Params(), "")
        == {"source.path": str(tmp_path / "zone")}
    )
    for wrong in ("yesterday", "2025-02-01T06:00:00"):
        with pytest.raises(ParamsError, match="expected ISO 8601 with a zone"):
            overrides_of(settings, Params(), wrong)


def test_the_first_release_enters_service_and_a_better_one_replaces_it(settings, add, engine):
    one, two = add("one"), add("two")
    assert decide(settings, None, one.id, None, "start").promoted
    result = decide(settings, registry.in_service(engine), two.id, GOOD, "drift")
    assert (result.promoted, result.reason) == (True, "drift: not worse")
    assert registry.in_service(engine).id == two.id
    assert registry.find_release(engine, one.id).state == ReleaseState.RETIRED


def test_a_worse_challenger_is_refused_with_the_reason(settings, add, engine):
    one, two = add("one"), add("two")
    registry.promote(engine, one.id)
    assert not decide(settings, one, two.id, BAD, "drift").promoted
    row = registry.find_release(engine, two.id)
    assert (row.state, row.note) == (ReleaseState.REFUSED, "drift: twice the false pages")
    assert registry.in_service(engine).id == one.id


def test_a_champion_that_changed_meanwhile_is_left_to_a_person(settings, add, engine):
    one, two, three = add("one"), add("two"), add("three")
    registry.promote(engine, two.id)
    result = decide(settings, one, three.id, GOOD, "drift")
    assert not result.promoted
    assert "by hand" in result.reason
    assert registry.in_service(engine).id == two.id
    assert registry.find_release(engine, three.id).state == ReleaseState.CANDIDATE


def test_the_same_bytes_again_stay_in_service(settings, add, engine):
    one = registry.promote(engine, add("one").id)
    assert decide(settings, one, one.id, None, "drift").promoted
    assert registry.in_service(engine).promoted_at == one.promoted_at
    assert one.promoted_at <= dt.datetime.now(dt.UTC)


def test_registry_and_release_agree_on_the_id(tmp_path):
    store.write_text(tmp_path / "a" / "b", "c")
    assert registry.content_id(tmp_path) == release_id(tmp_path)


def test_locked_outputs_are_read_by_path(tmp_path):
    (tmp_path / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  train@vae:\n    cmd: x\n    outs:\n    - {path: data/models/vae, md5: abc.dir}\n"
    )
    assert locked_outputs(tmp_path, ["train@vae"]) == {"data/models/vae": "abc.dir"}
    with pytest.raises(StageFailed, match=r"not in dvc\.lock"):
        locked_outputs(tmp_path, ["train@pca"])
