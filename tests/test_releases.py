"""Releases at work: the way into service and back, what is said of them, what two have not in common, what is kept."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from safetensors.numpy import load_file, save_file
from service_plant import ServicePlant
from sqlalchemy.orm import Session

from flows import registry
from flows.chosen_release import chosen_release
from flows.database import Base, open_database
from flows.registry import ReleaseRow, find_release, in_service, list_releases, promote, put_in_shadow, refuse
from flows.releases import prune as pruning
from flows.releases.compared import compare
from flows.releases.described import described
from flows.releases.entry import go_back, put_into_service
from flows.releases.prune import plan_pruning, prune
from flows.repository import run_git
from flows.service.tables import Shard
from pipeline.errors import ContractError, ReleaseError, UserError
from pipeline.params import KeepParams
from pipeline.release import load_release
from pipeline.score_log import compact_day, log_days, releases_of, remove_days
from pipeline.store import read_json, sha256_file, write_json

KEEP = KeepParams(newest=1, service_days=1, candidate_days=1)
NOT_THE_REGISTRY = ("releases", "promotions")


def other_weights(built: Path, folder: Path, factor: float = 1.01, **manifest: object) -> Path:
    """The release of a build with other weights in one detector of its ensemble, as another training would give."""
    release = folder / f"weights-{factor}"
    shutil.copytree(built / "data/release", release)
    weights = release / "detectors/pca/weights.safetensors"
    arrays = load_file(weights)
    name = next(name for name, array in arrays.items() if array.dtype.kind == "f" and array.ndim == 2)
    save_file({**arrays, name: (arrays[name] * factor).astype(arrays[name].dtype)}, weights)
    told = read_json(release / "manifest.json") | manifest
    told["files"]["detectors/pca/weights.safetensors"] = told["models"]["pca"] = sha256_file(weights)
    told["params"]["train"]["pca"]["max_components"] = 7
    write_json(release / "manifest.json", told)
    return release


def register(plant: ServicePlant, folder: Path, days_old: float = 0.0, **more: str) -> ReleaseRow:
    row = registry.register_release(plant.engine, plant.settings.releases, folder, commit="abc", **more)
    if days_old:
        with Session(plant.engine) as session, session.begin():
            found = session.get_one(ReleaseRow, row.id)
            found.created_at = found.created_at - dt.timedelta(days=days_old)
    return row


def in_a_fresh_log(plant: ServicePlant, name: str) -> None:
    """Nothing has been scored yet, and the next scores go to a log of their own."""
    with plant.engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            if table.name not in NOT_THE_REGISTRY:
                connection.execute(sa.delete(table))
    plant.settings = dataclasses.replace(plant.settings, score_log=plant.folder / name)


@pytest.fixture
def plant(tmp_path: Path, built: Path, engine: sa.Engine) -> ServicePlant:
    return ServicePlant.of(tmp_path, built, engine)


# --- into service and back ---


def test_a_rollback_restores_the_scores_bit_for_bit(plant: ServicePlant, built: Path, tmp_path: Path) -> None:
    plant.upload("first", plant.all_rows(slice(2)))
    one = in_service(plant.engine)
    assert one is not None
    two = register(plant, other_weights(built, tmp_path))
    plant.score()
    before = plant.log(), plant.alerts()

    put_into_service(plant.settings, plant.engine, two.id, who="ann")
    in_a_fresh_log(plant, "with two")
    plant.score()
    between = plant.log()
    assert set(between["release"].to_pylist()) == {two.id}
    assert not between.drop(["release"]).equals(before[0].drop(["release"]))

    assert go_back(plant.settings, plant.engine, None, who="ben", note="shouts").id == one.id
    in_a_fresh_log(plant, "back")
    plant.score()
    after = plant.log(), plant.alerts()
    assert after[0].equals(before[0])
    assert after[1] == before[1]
    assert set(after[0]["release"].to_pylist()) == {one.id}
    files = [sorted(folder.glob("*/*.parquet")) for folder in (plant.folder / "home/score_log", plant.folder / "back")]
    columns = [{path.parent.name: path.stat().st_size for path in found} for found in files]
    assert columns[0] == columns[1]


@pytest.mark.parametrize("damage", ["byte", "missing", "more"])
def test_a_damaged_release_is_neither_promoted_nor_loaded(
    plant: ServicePlant, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    row = register(plant, other_weights(built, tmp_path))
    weights = plant.settings.releases / row.id / "detectors/vae/weights.safetensors"
    if damage == "byte":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "missing":
        weights.unlink()
    else:
        (weights.parent / "more").write_text("")
    before, history = in_service(plant.engine), registry.promotions(plant.engine)
    for force in (False, True):
        with pytest.raises(ReleaseError, match=f"expected {row.id}"):
            put_into_service(plant.settings, plant.engine, row.id, who="ann", force=force, note="I insist")
    with pytest.raises(ReleaseError, match=f"expected {row.id}"):
        load_release(plant.settings.releases / row.id, row.id)
    assert before is not None
    found = in_service(plant.engine)
    assert found is not None
    assert (found.id, found.note) == (before.id, before.note)
    assert len(registry.promotions(plant.engine)) == len(history)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").touch()
    monkeypatch.setenv("HEARKEN_HOME", str(plant.settings.home))
    monkeypatch.setenv("HEARKEN_DATABASE_URL", plant.engine.url.render_as_string(hide_password=False))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReleaseError, match=f"expected {row.id}"):
        chosen_release(row.id)


def test_a_release_whose_detectors_do_not_load_is_not_promoted(
    plant: ServicePlant, built: Path, tmp_path: Path
) -> None:
    """Its hashes are right: it was made by a version that this one does not know, say."""
    release = other_weights(built, tmp_path)
    weights, manifest = release / "detectors/pca/weights.safetensors", read_json(release / "manifest.json")
    arrays = load_file(weights)
    save_file(dict(list(arrays.items())[:1]), weights)
    manifest["files"]["detectors/pca/weights.safetensors"] = sha256_file(weights)
    write_json(release / "manifest.json", manifest)
    row = register(plant, release)
    with pytest.raises(ReleaseError):
        put_into_service(plant.settings, plant.engine, row.id, who="ann")
    assert getattr(in_service(plant.engine), "id", None) == plant.release


def test_a_damaged_release_is_not_gone_back_to(plant: ServicePlant, built: Path, tmp_path: Path) -> None:
    two = register(plant, other_weights(built, tmp_path))
    promote(plant.engine, two.id)
    (plant.settings.releases / plant.release / "calibration.json").write_text("{}")
    with pytest.raises(ReleaseError, match=f"expected {plant.release}"):
        go_back(plant.settings, plant.engine, None, who="ann")
    assert getattr(in_service(plant.engine), "id", None) == two.id


def test_what_the_gate_did_not_let_through_needs_force_and_a_note(
    plant: ServicePlant, built: Path, tmp_path: Path
) -> None:
    two = register(plant, other_weights(built, tmp_path))
    promoted = {"settings": plant.settings, "engine": plant.engine, "name": two.id, "who": "ann"}
    refuse(plant.engine, two.id, "two failures lost")
    with pytest.raises(ReleaseError, match="got one that is refused, expected another, or --force"):
        put_into_service(**promoted)
    with pytest.raises(UserError, match="got it without --note"):
        put_into_service(**promoted, force=True, note=" ")
    assert getattr(in_service(plant.engine), "id", None) == plant.release
    assert put_into_service(**promoted, force=True, note="both were sensors").state == "in_service"
    last = registry.promotions(plant.engine)[-1]
    assert (last.release_id, last.who, last.note) == (two.id, "ann", "both were sensors")
    three = register(plant, other_weights(built, tmp_path, 1.02))
    put_in_shadow(plant.engine, three.id, dt.datetime(2030, 1, 1, tzinfo=dt.UTC), "too few rows")
    with pytest.raises(ReleaseError, match="got one that is shadow"):
        put_into_service(plant.settings, plant.engine, three.id, who="ann")


def test_while_a_challenger_waits_other_weights_need_a_word(plant: ServicePlant, built: Path, tmp_path: Path) -> None:
    two, three = (register(plant, other_weights(built, tmp_path, factor)) for factor in (1.01, 1.02))
    anew = register(plant, other_weights(built, tmp_path, 1.03, recalibrated_from=plant.release))
    put_in_shadow(plant.engine, three.id, dt.datetime(2030, 1, 1, tzinfo=dt.UTC), "too few rows")
    said = (
        r"v2 .*got it while v3 .*waits in shadow until 2030-01-01 00:00 UTC, .*`hearken releases promote v2 --anyway`"
    )
    with pytest.raises(UserError, match=said):
        put_into_service(plant.settings, plant.engine, two.id, who="ann")
    assert getattr(in_service(plant.engine), "id", None) == plant.release
    assert put_into_service(plant.settings, plant.engine, anew.id, who="recalibrate").state == "in_service"
    assert put_into_service(plant.settings, plant.engine, two.id, who="ann", anyway=True).state == "in_service"
    assert put_into_service(plant.settings, plant.engine, three.id, who="ann", force=True, note="now").id == three.id
    assert put_into_service(plant.settings, plant.engine, anew.id, who="ann").id == anew.id, "nobody waits any more"


ROLLER = """
import sys
from pathlib import Path
from flows.database import open_database
from flows.releases.entry import go_back
from flows.settings import Settings
from pipeline.errors import ReleaseError
settings = Settings.of(Path.cwd(), {"HEARKEN_HOME": sys.argv[2]})
try:
    print(go_back(settings, open_database(sys.argv[1]), None, who="roller").version)
except ReleaseError as error:
    print(error)
"""


def test_two_people_who_roll_back_at_once_do_not_go_back_twice_unseen(
    plant: ServicePlant, built: Path, tmp_path: Path, url: str
) -> None:
    for factor in (1.01, 1.02):
        promote(plant.engine, register(plant, other_weights(built, tmp_path, factor)).id)
    command = [sys.executable, "-c", ROLLER, url, str(plant.settings.home)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(each.communicate(timeout=120)[0].strip() for each in both)
    found = in_service(plant.engine)
    assert found is not None
    if said == ["1", "2"]:  # one began after the other was done
        assert found.version == 1
    else:
        assert said[0] == "2"
        assert "another has entered service since" in said[1]
        assert found.version == 2


# --- what is kept ---


def test_only_what_nothing_needs_is_deleted(plant: ServicePlant, built: Path, tmp_path: Path) -> None:
    plant.upload("first", plant.all_rows(slice(2)))
    plant.score()  # with v1
    child = {"recalibrated_from": "", "recalibration": {}}
    old = register(plant, other_weights(built, tmp_path, 1.01), days_old=9)  # v2: nothing needs it
    parent = register(plant, other_weights(built, tmp_path, 1.02), days_old=9)  # v3: v6 was made from it
    young = register(plant, other_weights(built, tmp_path, 1.03))  # v4
    refused = register(plant, other_weights(built, tmp_path, 1.04), days_old=9)  # v5
    newest = register(plant, other_weights(built, tmp_path, 1.05, **(child | {"recalibrated_from": parent.id})), 9)
    refuse(plant.engine, refused.id, "worse")
    put_into_service(plant.settings, plant.engine, newest.id, who="ann")
    plan = plan_pruning(plant.settings, plant.engine, KEEP)
    assert [row.version for row in plan.gone] == [2, 5]
    assert len(list_releases(plant.engine)) == 6  # nothing has changed yet
    why = {row.version: said for row, said in plan.kept.values()}
    assert any(said.startswith("rows of the score log name it") for said in why[1])
    assert "a rollback leads to it" in why[1]
    assert why[3] == ["v6 was made from it"]
    assert why[4] == [f"it is a candidate of {young.created_at:%Y-%m-%d}"]
    assert "it is in service" in why[6]

    done = prune(plant.settings, plant.engine, KEEP)
    assert [row.id for row in done.gone] == [old.id, refused.id]
    assert [row.version for row in list_releases(plant.engine)] == [1, 3, 4, 6]
    there = {each.name for each in plant.settings.releases.iterdir()}
    assert there == {row.id for row in list_releases(plant.engine)}
    assert prune(plant.settings, plant.engine, KEEP).gone == []
    plant.upload("second", plant.all_rows(slice(2, 3)))
    assert plant.score().release == newest.id


def test_rows_of_the_score_log_keep_their_release_as_long_as_they_stand(
    plant: ServicePlant, built: Path, tmp_path: Path
) -> None:
    """However old, however refused: also after compaction, and until retention has removed the last of its days."""
    plant.upload("first", plant.all_rows(slice(2)))
    plant.score()
    days = log_days(plant.settings.score_log)
    for factor in (1.01, 1.02):
        put_into_service(
            plant.settings, plant.engine, register(plant, other_weights(built, tmp_path, factor)).id, who="ann"
        )
    with plant.engine.begin() as connection:
        # v1 has left service long ago, and no alert names it
        connection.execute(sa.update(registry.Promotion).values(at=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)))
        for table in ("alert_events", "notices", "alerts"):
            connection.execute(sa.text(f"DELETE FROM {table}"))
    for _ in range(2):
        assert releases_of(plant.settings.score_log) == {plant.release}
        kept = plan_pruning(plant.settings, plant.engine, KEEP).kept[plant.release][1]
        assert kept == [
            f"rows of the score log name it ({plant.settings.score_log})",
            "a shard whose days stand in the score log names it",
        ]
        for day in days:
            compact_day(plant.settings.score_log, day)
    remove_days(plant.settings.score_log, "9999-01-01")
    assert [row.id for row in prune(plant.settings, plant.engine, KEEP).gone] == [plant.release]
    assert not (plant.settings.releases / plant.release).exists()


def test_a_shard_that_is_not_done_and_a_log_of_its_own_keep_a_release(
    plant: ServicePlant, built: Path, tmp_path: Path
) -> None:
    plant.upload("first", plant.all_rows(slice(1)))
    plant.score()
    shadow = register(plant, other_weights(built, tmp_path, 1.01), days_old=9)
    register(plant, other_weights(built, tmp_path, 1.02))
    assert [row.id for row in plan_pruning(plant.settings, plant.engine, KEEP).gone] == [shadow.id]
    with Session(plant.engine) as session, session.begin():
        session.scalars(sa.select(Shard)).one().release_id = shadow.id
        session.scalars(sa.select(Shard)).one().state = "scored"
    assert plan_pruning(plant.settings, plant.engine, KEEP).kept[shadow.id][1] == ["a shard that is not done names it"]
    with Session(plant.engine) as session, session.begin():
        session.scalars(sa.select(Shard)).one().release_id = plant.release
    own = plant.settings.home / "shadows" / shadow.id
    shutil.copytree(plant.settings.score_log, own)
    assert releases_of(own) == {plant.release}  # rows of another release: they keep that one
    assert [row.id for row in plan_pruning(plant.settings, plant.engine, KEEP).gone] == [shadow.id]


def test_a_log_that_cannot_be_read_deletes_nothing(plant: ServicePlant, built: Path, tmp_path: Path) -> None:
    register(plant, other_weights(built, tmp_path, 1.01), days_old=9)
    register(plant, other_weights(built, tmp_path, 1.02))
    day = plant.settings.score_log / "2025-01-01"
    day.mkdir(parents=True)
    (day / "000000001-ab.parquet").write_bytes(b"PAR1")
    with pytest.raises(ContractError, match="cut off or no Parquet"):
        prune(plant.settings, plant.engine, KEEP)
    assert len(list_releases(plant.engine)) == 3


def test_a_kill_between_row_and_folder_leaves_a_folder_that_the_next_call_removes(
    plant: ServicePlant, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = other_weights(built, tmp_path, 1.01)
    old = register(plant, release, days_old=9)
    register(plant, other_weights(built, tmp_path, 1.02))
    with monkeypatch.context() as patch:
        patch.setattr(pruning, "_remove", lambda engine, folder: None)  # killed here
        prune(plant.settings, plant.engine, KEEP)
    folder = plant.settings.releases / old.id
    assert folder.is_dir()
    assert old.id not in {row.id for row in list_releases(plant.engine)}
    assert plan_pruning(plant.settings, plant.engine, KEEP).orphans == []  # it may be about to be entered
    monkeypatch.setattr(pruning, "ORPHAN_HOURS", 0.0)
    monkeypatch.setattr(pruning.orphans, "__defaults__", (0.0,))
    assert plan_pruning(plant.settings, plant.engine, KEEP).orphans == [folder]
    # a build of the same bytes meanwhile takes it as its own
    again = register(plant, release)
    assert prune(plant.settings, plant.engine, KEEP).orphans == []
    assert load_release(folder, again.id).id == again.id
    refuse(plant.engine, again.id, "worse")
    register(plant, other_weights(built, tmp_path, 1.03))
    gone = prune(plant.settings, plant.engine, KEEP)
    assert again.id in {row.id for row in gone.gone}
    assert not folder.exists()


# --- what is said of them ---


@pytest.fixture
def installed(tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> ServicePlant:
    """A checkout with a home and two releases, the first in service."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(Path(__file__).parents[1] / name, checkout / name)
    run_git(checkout, "init", "-q", "-b", "main")
    run_git(checkout, "add", "-A")
    run_git(checkout, "commit", "-q", "-m", "plant")
    for name in [name for name in os.environ if name.startswith("HEARKEN_") and "TEST" not in name]:
        if name != "HEARKEN_REFUSED_CONNECTIONS":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HEARKEN_HOME", str(tmp_path / "home"))
    made = ServicePlant.of(tmp_path, built, open_database(f"sqlite:///{tmp_path / 'home' / 'hearken.db'}"))
    register(made, other_weights(built, tmp_path), note="with [bold]brackets[/bold]\x1b[2J")
    return made


def test_releases_are_listed_and_shown_in_words(installed: ServicePlant, hearken) -> None:
    checkout = installed.folder / "checkout"
    code, said, _ = hearken("releases", checkout, "list")
    assert code == 0
    assert "in service" in said
    assert "candidate" in said
    assert "with [bold]brackets[/bold]\\x1b[2J" in said
    code, said, _ = hearken("releases", checkout, "list", "--json")
    told = json.loads(said)
    assert [(each["version"], each["state"], each["from"]) for each in told] == [
        (1, "in_service", "build"),
        (2, "candidate", "build"),
    ]
    assert 0 <= told[0]["page_rate"] < 0.5

    decision = {
        "verdict": "shadow",
        "reason": "too few rows",
        "checks": [{"name": "failures", "passed": None, "champion": 2, "challenger": 1, "limit": 1}],
    }
    put_in_shadow(installed.engine, 2, dt.datetime(2031, 5, 6, tzinfo=dt.UTC), "waits", decision)
    installed.upload("first", installed.all_rows(slice(1)))
    rows = installed.score().rows
    code, said, _ = hearken("releases", checkout, "show", "v1")
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert code == 0
    assert "state in service" in lines
    assert any(line.startswith(f"rows {rows:,} in 1 shard,") for line in lines)
    assert any(line.startswith("split.horizon_hours 48.0 (there: 168.0)") for line in lines)
    assert any(line.startswith("ensemble, page") and "99.95th percentile" in line for line in lines)
    assert "tag none: the repository has no release/v1" in lines
    code, said, _ = hearken("releases", checkout, "show", "2")
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "in shadow until 2031-05-06 00:00" in lines
    assert "train.pca.max_components 7 (there: 32)" in lines
    assert not any(line.startswith("split.horizon_hours") for line in lines)  # as in the one in service
    assert "failures not judged: champion 2, challenger 1, limit 1" in lines
    code, said, _ = hearken("releases", checkout, "show", "2", "--json")
    told = json.loads(said)
    assert (told["decision"], told["rows_scored"], told["damage"]) == (decision, 0, None)
    (installed.settings.releases / told["id"] / "fleet.yaml").write_text("kind: features\n")
    code, said, _ = hearken("releases", checkout, "show", "2")
    assert (code, "other bytes than its manifest says: fleet.yaml" in " ".join(said.split())) == (0, True)


def test_two_releases_side_by_side(installed: ServicePlant, built: Path, hearken) -> None:
    rows = [find_release(installed.engine, version) for version in (1, 2)]
    found = compare(*(described(installed.settings, row) for row in rows), {})
    assert found["settings"] == {"train.pca.max_components": ("32", "7")}
    assert list(found["detectors"]) == ["pca, weights"]
    assert list(found["thresholds"]) == ["ensemble, page"]  # the one in service has a lower one
    assert sorted(found["files"]) == ["calibration.json", "detectors/pca/weights.safetensors"]
    assert "figures" not in found
    code, said, _ = hearken("releases", installed.folder / "checkout", "diff", "2")
    assert code == 0
    assert "train.pca.max_components" in said
    code, said, _ = hearken("releases", installed.folder / "checkout", "diff", "v1", "v1")
    assert (code, said) == (0, "no difference\n")
    code, said, _ = hearken("releases", installed.folder / "checkout", "diff", "1", "2", "--json")
    assert json.loads(said)["settings"] == {"train.pca.max_components": ["32", "7"]}


def test_promote_rollback_and_prune_from_the_command_line(installed: ServicePlant, hearken) -> None:
    checkout = installed.folder / "checkout"
    assert hearken("releases", checkout, "rollback")[0] == 2
    code, said, _ = hearken("releases", checkout, "promote", "2", "--who", "ann", "--note", "better")
    assert (code, "is in service from the next scoring run on" in said) == (0, True)
    code, said, _ = hearken("releases", checkout, "rollback", "--note", "shouts")
    assert (code, "v2" in said, "(v1) is in service again" in said) == (0, True, True)
    code, _, said = hearken("releases", checkout, "rollback")
    assert (code, "got none before v1" in said) == (2, True)
    code, said, _ = hearken("releases", checkout, "show", "2")
    assert "promoted by ann (better)" in " ".join(said.split())
    code, said, _ = hearken("releases", checkout, "prune", "--json")
    told = json.loads(said)
    assert (told["deleted"], told["gone"], len(told["kept"])) == (False, [], 2)
    code, said, _ = hearken("releases", checkout, "prune", "--yes")
    assert (code, "2 kept, 0 deleted" in said) == (0, True)
