"""The weekly recalibration: a candidate or a promotion from later rows of the landing zone; nothing where none came."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from service_plant import ServicePlant
from test_score_flow import Checkout, server  # noqa: F401  (a fixture)

from flows.deploy import GPU_POOL, POOLS
from flows.registry import ReleaseState, in_service, list_releases, promote, register_release, rollback
from flows.releases.rebuild import rebuild
from flows.workspace import override_params
from pipeline.errors import ReleaseError
from pipeline.simulate import simulate
from pipeline.store import read_json, write_table

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[1]


class Later(Checkout):
    """A plant whose landing zone goes on after the release in service."""

    def live(self, first: int, days: int) -> None:
        """More days arrive."""
        landing = self.plant.landing
        for name in ("maintenance.parquet", "fleet.yaml"):
            (landing / name).unlink(missing_ok=True)
        simulate(self.plant.params.simulate, landing, from_day=first, days=days)

    def recalibrate(self, patch: pytest.MonkeyPatch, **settings: object):
        from flows.recalibrate_flow import recalibrate_in_service

        override_params(self.checkout / "params.yaml", {f"recalibrate.{key}": value for key, value in settings.items()})
        patch.setenv("HEARKEN_HOME", str(self.folder / "home"))
        patch.setenv("HEARKEN_DATABASE_URL", self.database)
        patch.setenv("HEARKEN_LANDING", str(self.plant.landing))
        return recalibrate_in_service(checkout=str(self.checkout))


@pytest.fixture
def plant(tmp_path, built):
    made = Later(tmp_path / "plant", built)
    yield made
    made.engine.dispose()


def test_later_rows_make_a_candidate_and_with_rows_enough_a_release_in_service(server, plant, monkeypatch):  # noqa: F811
    service: ServicePlant = plant.plant
    service.upload("old", service.days[0])
    found = plant.recalibrate(monkeypatch)
    assert (found.release, found.promoted) == (None, False)
    assert "no rows are later than those of v1" in found.reason

    plant.live(40, 1)
    found = plant.recalibrate(monkeypatch)
    if found.release is None:
        assert "too few rows to recalibrate v1 with yet" in found.reason
    plant.live(41, 7)
    found = plant.recalibrate(monkeypatch)
    assert "is a candidate: recalibrate.promote is manual" in found.reason
    days = {path.name for path in (service.settings.recalibration / "spectra").iterdir()}
    assert len(days) == 8  # of the landing zone only what is later than the release
    row = next(row for row in list_releases(plant.engine) if row.id == found.release)
    assert (row.state, row.note, row.commit) == (ReleaseState.CANDIDATE, "recalibrated from v1", "abc")
    assert rebuild(service.settings, row).equal

    again = plant.recalibrate(monkeypatch, promote="auto")
    assert again.release == row.id
    assert "the page tier stands on" in again.reason
    assert "healthy machine-days, fewer than 115" in again.reason
    assert getattr(in_service(plant.engine), "id", None) == service.release

    override_params(plant.checkout / "params.yaml", {"calibrate.low_percentile": 90, "calibrate.page_percentile": 99,
                                                     "calibrate.choice.enabled": False})  # fmt: skip
    enough = plant.recalibrate(monkeypatch, promote="auto", min_machine_days=5)
    assert enough.promoted, enough.reason
    serving = in_service(plant.engine)
    assert serving is not None
    assert (serving.id, serving.version) == (enough.release, row.version + 1)
    assert read_json(service.settings.releases / serving.id / "manifest.json")["recalibrated_from"] == service.release


def test_files_that_the_ledger_knows_are_not_opened(plant):
    from flows.recalibrate_flow import later_files
    from pipeline.uploads import LandingZone

    service: ServicePlant = plant.plant
    path = service.upload("known", service.days[0])
    service.score()
    stamp = path.stat()
    path.write_bytes(bytes(stamp.st_size))  # unreadable now, with the size and the time of what was scored
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    zone = LandingZone.at(service.landing)
    newest_us = 1_900_000_000_000_000
    assert later_files(plant.engine, zone, newest_us) == []
    write_table(service.spectra / "odd.parquet", service.days[1].drop(["timestamp"]))
    assert [file.name for file in later_files(plant.engine, zone, newest_us)] == ["spectra/odd.parquet"]


def test_without_a_release_in_service_it_says_so(server, plant, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr(plant, "database", f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(ReleaseError, match="got none in service"):
        plant.recalibrate(monkeypatch)


def test_another_release_that_enters_service_meanwhile_stays_there(server, plant, built, monkeypatch):  # noqa: F811
    from flows import recalibrate_flow

    plant.live(40, 8)
    other = register_release(plant.engine, plant.plant.settings.releases, built / "data/release", commit="abc")

    def while_somebody_promotes(*arguments):
        made = calibrate(*arguments)
        promote(plant.engine, other.id)
        return made

    calibrate = recalibrate_flow.calibrate_and_register
    monkeypatch.setattr(recalibrate_flow, "calibrate_and_register", while_somebody_promotes)
    monkeypatch.setattr(recalibrate_flow, "too_little", lambda made, params: [])
    with pytest.raises(ReleaseError, match="another has entered service since"):
        plant.recalibrate(monkeypatch, promote="auto")
    assert getattr(in_service(plant.engine), "id", None) == other.id


def test_while_a_person_s_rollback_stands_new_thresholds_wait(server, plant, built, monkeypatch):  # noqa: F811
    from flows import recalibrate_flow

    plant.live(40, 8)
    champion = in_service(plant.engine)
    assert champion is not None
    other = register_release(plant.engine, plant.plant.settings.releases, built / "data/release", commit="abc")
    promote(plant.engine, other.id)
    rollback(plant.engine, who="ann", note="too loud")
    monkeypatch.setattr(recalibrate_flow, "too_little", lambda made, params: [])
    found = plant.recalibrate(monkeypatch, promote="auto")
    assert not found.promoted
    assert f"ann took service back to v{champion.version}, so a person promotes" in found.reason
    assert getattr(in_service(plant.engine), "id", None) == champion.id


def test_every_deployment_has_a_pool_a_description_and_where_it_runs_by_itself_a_limit():
    found = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert {each["name"] for each in found} >= {"build", "score", "monitor", "recalibrate", "retrain", "train-on-gpu"}
    assert {each["work_pool"]["name"] for each in found} == set(POOLS), "workers of other pools would never come"
    assert next(each for each in found if each["name"] == "train-on-gpu")["work_pool"]["name"] == GPU_POOL
    for each in found:
        assert each["description"].strip()
        assert (ROOT / each["entrypoint"].split(":")[0]).is_file()
        if each.get("schedules") or each.get("triggers"):
            assert each["concurrency_limit"]["limit"] == 1, each["name"]
        if each.get("triggers"):
            assert each["concurrency_limit"]["collision_strategy"] == "ENQUEUE"
