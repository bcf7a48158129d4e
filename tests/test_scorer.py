"""Scoring what arrives: once and only once, in any order, with the alerts of one pass over everything."""

import datetime as dt
import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
import yaml
from service_plant import ServicePlant, loud_release, of_machines
from sqlalchemy.orm import Session

from flows import registry
from flows.database import utc_now
from flows.service import ledger, scorer
from flows.service.tables import Alert, EventKind, Notice, NoticeKind, Shard, ShardState, Upload, UploadState
from pipeline.errors import ContractError, ReleaseError
from pipeline.release import load_release
from pipeline.schema import MAINTENANCE_SCHEMA, dictionary_column, spectra_column, spectra_view, time_column, times_us
from pipeline.score import score_data_set
from pipeline.score_shard import ShardJob, ShardResult, discard, first_of_keys, publish, score_shard
from pipeline.store import read_json, read_table

COMPARED = (
    "machine_id",
    "timestamp",
    "epoch",
    "baseline",
    "tier",
    "score_ensemble",
    "tail_ensemble",
    "score_autoencoder",
)
UTC = dt.UTC


def clear_nothing(_: str) -> None:
    """For shards of which no attempt has left anything."""


@pytest.fixture
def plant(tmp_path: Path, built: Path, engine: sa.Engine) -> ServicePlant:
    return ServicePlant.of(tmp_path, built, engine)


@pytest.fixture(scope="module")
def expected(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The score log and alerts of one pass over the same rows."""
    out = tmp_path_factory.mktemp("expected")
    score_data_set(load_release(loud_release(built, tmp_path_factory.mktemp("release"))), built / "data/raw", out)
    return out


def expected_alerts(expected: Path) -> list[tuple[str | None, ...]]:
    told = read_json(expected / "_alerts.json")
    return sorted((a["machine_id"], a["cause"], a["opened"], a["paged"], a["last"], a["closed"]) for a in told)


def standing_alerts(plant: ServicePlant) -> list[tuple[str | None, ...]]:
    def told(moment: dt.datetime | None) -> str | None:
        return None if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")

    with Session(plant.engine) as session:
        alerts = session.scalars(sa.select(Alert).where(Alert.standing != "withdrawn"))
        return sorted(
            (a.machine_id, a.cause, told(a.opened_at), told(a.paged_at), told(a.last_at), told(a.closed_at))
            for a in alerts
        )


def same_rows(log: pa.Table, expected: Path) -> None:
    """The log holds the rows of one pass, with the same bits."""
    once = pa.concat_tables([read_table(path) for path in sorted(expected.glob("*.parquet"))]).unify_dictionaries()
    assert log.num_rows == once.num_rows
    left, right = (table.select(COMPARED).to_pandas().astype(str) for table in (log, once))
    keys = ["machine_id", "timestamp"]
    left, right = (frame.sort_values(keys).reset_index(drop=True) for frame in (left, right))
    for name in COMPARED:
        assert (left[name] == right[name]).all(), name


def upload_all(plant: ServicePlant, days: slice = slice(None)) -> None:
    for at, day in list(enumerate(plant.days))[days]:
        plant.upload(f"day-{at:03}", day)


# ---- once ----


def test_days_that_arrive_bit_by_bit_make_the_log_and_the_alerts_of_one_pass(
    plant: ServicePlant, expected: Path
) -> None:
    for begin in range(0, len(plant.days), 10):
        upload_all(plant, slice(begin, begin + 10))
        assert not plant.score(shard_rows=700).failures
    same_rows(plant.log(), expected)
    assert {shard.state for shard in plant.shards()} == {ShardState.DONE}
    assert {upload.state for upload in plant.uploads().values()} == {UploadState.SCORED}
    found = standing_alerts(plant)
    assert found == expected_alerts(expected)
    assert any(alert[3] for alert in found)
    with Session(plant.engine) as session:
        for alert in session.scalars(sa.select(Alert)):
            kinds = [event.kind for event in alert.events]
            assert kinds[0] == EventKind.OPENED
            assert kinds.count(EventKind.OPENED) == 1
            assert kinds.count(EventKind.ESCALATED) == (alert.paged_at is not None)
            if alert.cause == "vibration":
                assert alert.details["first_row"]["file"].startswith("spectra/day-")
                assert alert.details["peak"]["tail_probability"] == pytest.approx(10**-alert.peak_rarity)
                assert alert.details["top_bins"]


def test_nothing_new_is_nothing_to_do(plant: ServicePlant) -> None:
    upload_all(plant, slice(0, 3))
    first = plant.score()
    log, alerts = plant.log(), plant.alerts()
    again = plant.score()
    assert (first.intake.planned, again.intake.planned, again.rows, again.shards) == (3, 0, 0, 0)
    assert plant.log().equals(log)
    assert plant.alerts() == alerts


def test_files_that_come_twice_count_once(plant: ServicePlant) -> None:
    path = plant.upload("a", plant.days[0])
    shutil.copyfile(path, plant.spectra / "b.parquet")  # the same bytes
    plant.upload("c", pa.concat_tables([plant.days[0].slice(5), plant.days[1]]))  # some of the rows again, and more
    summary = plant.score()
    assert plant.uploads()["spectra/b.parquet"].state == UploadState.DUPLICATE
    assert plant.log().num_rows == plant.days[0].num_rows + plant.days[1].num_rows
    assert summary.repeated == plant.days[0].num_rows - 5
    plant.upload("d", plant.days[0].take(pa.array(np.arange(plant.days[0].num_rows)[::-1])))  # later, in another order
    summary = plant.score()
    assert (summary.rows, summary.repeated) == (0, plant.days[0].num_rows)
    assert plant.log().num_rows == plant.days[0].num_rows + plant.days[1].num_rows


def test_late_days_are_scored_and_the_log_is_whole(plant: ServicePlant, expected: Path) -> None:
    upload_all(plant, slice(20, None))
    plant.score()
    upload_all(plant, slice(0, 20))
    plant.score()
    same_rows(plant.log(), expected)
    assert sum(shard.late for shard in plant.shards()) > 0


def test_the_first_of_equal_keys_counts() -> None:
    rng = np.random.default_rng(3)
    code, time_us = rng.integers(0, 3, 500), rng.integers(0, 60, 500)
    seen, first = set(), []
    for key in zip(code.tolist(), time_us.tolist(), strict=True):
        first.append(key not in seen)
        seen.add(key)
    np.testing.assert_array_equal(first_of_keys(code, time_us), first)
    np.testing.assert_array_equal(first_of_keys(code, time_us * (2**62 // 60)), first)


# ---- broken, changed, refused ----


def test_a_broken_file_is_set_aside_and_tried_again_when_it_changes(plant: ServicePlant) -> None:
    upload_all(plant, slice(0, 3))
    broken = plant.spectra / "day-001.parquet"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    summary = plant.score()
    assert (summary.intake.planned, summary.intake.broken, summary.shards) == (2, 1, 1)
    upload = plant.uploads()["spectra/day-001.parquet"]
    assert upload.state == UploadState.BROKEN
    assert "cut off" in (upload.error or "")
    assert plant.score().intake.broken == 0  # it is known
    broken.write_bytes(whole)
    assert plant.score().rows == plant.days[1].num_rows
    assert [u.state for u in plant.uploads().values()] == [UploadState.SCORED] * 3


def test_what_was_broken_by_settings_is_tried_again_when_they_are_mended(plant: ServicePlant) -> None:
    whole = (plant.landing / "fleet.yaml").read_text()
    plant.upload("day", plant.days[0])
    spec = yaml.safe_load(whole)
    wrong = spec | {"bins": 31, "band_edges_hz": spec["band_edges_hz"][:-1]}
    (plant.landing / "fleet.yaml").write_text(yaml.safe_dump(wrong))
    plant.score()
    assert plant.uploads()["spectra/day.parquet"].state == UploadState.BROKEN
    assert plant.score().intake.broken == 0  # known under these settings
    (plant.landing / "fleet.yaml").write_text(whole)
    assert plant.score().rows == plant.days[0].num_rows
    assert [upload.state for upload in plant.uploads().values()] == [UploadState.SCORED]


def test_a_file_damaged_inside_is_set_aside_and_the_shard_goes_on(plant: ServicePlant) -> None:
    upload_all(plant, slice(0, 3))
    path = plant.spectra / "day-001.parquet"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)  # in the spectra: the footer is whole
    path.write_bytes(data)
    summary = plant.score()
    assert list(summary.set_aside) == ["spectra/day-001.parquet"]
    assert plant.log().num_rows == plant.days[0].num_rows + plant.days[2].num_rows
    assert not list(plant.settings.score_log.rglob("*.tmp"))


def test_a_file_that_changes_after_it_was_planned_is_found_anew(plant: ServicePlant) -> None:
    upload_all(plant, slice(0, 2))
    ledger.take_in(plant.engine, scorer.LandingZone.at(plant.landing), plant.params.score)
    plant.upload("day-000", plant.days[4])
    plant.score()
    plant.score()
    assert plant.log().num_rows == plant.days[1].num_rows + plant.days[4].num_rows
    (plant.spectra / "day-009.parquet").touch()  # empty: broken
    assert plant.score().intake.broken == 1


def test_another_number_of_bins_is_set_aside(plant: ServicePlant) -> None:
    day = plant.days[0]
    wider = spectra_column(np.ones((day.num_rows, 48), np.float32))
    plant.upload("wide", day.set_column(day.schema.get_field_index("spectrum"), "spectrum", wider))
    plant.upload("right", plant.days[1])
    plant.score()
    states = {name: (upload.state, upload.error) for name, upload in plant.uploads().items()}
    assert states["spectra/right.parquet"][0] == UploadState.SCORED
    assert states["spectra/wide.parquet"][0] == UploadState.BROKEN
    assert "bins" in (states["spectra/wide.parquet"][1] or "")


def test_strange_machines_clocks_and_names(plant: ServicePlant) -> None:
    day = plant.days[0]
    hostile = ["../../x", "<script>alert(1)</script>", 'a"b', "[red]", "ü", "m'; DROP TABLE alerts; --"]
    rows = len(hostile) * 4
    spectra = spectra_column(np.tile(np.linspace(1e4, 2e4, 32, dtype=np.float32), (rows, 1)))
    begin = int(times_us(day["timestamp"]).min())
    times = np.repeat(begin + np.arange(4) * 3_600_000_000, len(hostile))
    table = pa.table(
        {
            "machine_id": dictionary_column(np.tile(np.arange(len(hostile)), 4), hostile),
            "timestamp": time_column(times),
            "spectrum": spectra,
            **{name: pa.array(["x"] * rows) for name in day.column_names if name == "condition"},
        }
    )
    future = time_column(times + 400 * 365 * 86_400_000_000)
    plant.upload("hostile", table)
    plant.upload("future", table.set_column(1, "timestamp", future))
    plant.upload("long ago", table.set_column(1, "timestamp", time_column(times % 1_000_000_000)))
    summary = plant.score()
    assert summary.rows == 3 * rows
    alerts = plant.alerts()
    assert {alert[0] for alert in alerts if alert[1] == "vibration"} == set(hostile)
    assert {alert[2][:4] for alert in alerts} == {"2025"}
    assert sum(shard.early for shard in plant.shards()) == 2 * rows
    inside = {
        path.relative_to(plant.settings.score_log).parts[0] for path in plant.settings.score_log.rglob("*.parquet")
    }
    assert len(inside) == 3
    assert plant.log()["baseline"].unique().to_pylist() == ["fleet"]


def test_a_link_that_leads_out_is_refused(plant: ServicePlant, tmp_path: Path) -> None:
    outside = tmp_path / "outside.parquet"
    shutil.copyfile(plant.upload("day-000", plant.days[0]), outside)
    (plant.spectra / "link.parquet").symlink_to(outside)
    summary = plant.score()
    assert summary.intake.planned == 1
    assert list(summary.intake.refused) == ["spectra/link.parquet"]


def test_no_release_no_landing_zone_or_a_changed_release(plant: ServicePlant) -> None:
    upload_all(plant, slice(0, 1))
    weights = next((plant.settings.releases / plant.release).rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes() + b" ")
    scorer.checked_release.cache_clear()
    with pytest.raises(ReleaseError, match="id"):
        plant.score()
    assert not plant.shards()
    with sa.orm.Session(plant.engine) as session, session.begin():
        session.execute(sa.update(registry.ReleaseRow).values(state="retired"))
    with pytest.raises(ReleaseError, match="none in service"):
        plant.score()


# ---- several scorers, dead scorers ----


def test_a_dead_scorers_shard_is_taken_over_when_its_lease_runs_out(plant: ServicePlant, expected: Path) -> None:
    upload_all(plant)
    params = plant.params.score.model_copy(update={"shard_rows": 2000})
    ledger.take_in(plant.engine, scorer.LandingZone.at(plant.landing), params)
    dead = ledger.claim(plant.engine, params, ledger.new_owner(), clear_nothing)
    assert dead is not None
    summary = plant.score(shard_rows=2000)
    assert summary.rows == sum(day.num_rows for day in plant.days) - of_shard(plant, dead.shard_id)
    assert all(shard.state != ShardState.DONE for shard in plant.shards())  # the policy waits for the first shard
    with Session(plant.engine) as session, session.begin():
        session.execute(sa.update(Shard).where(Shard.id == dead.shard_id).values(lease_until=utc_now()))
    plant.score()
    same_rows(plant.log(), expected)
    assert standing_alerts(plant) == expected_alerts(expected)
    late = ShardResult(rows=1, days=("2025-01-01",))
    assert not ledger.settle(plant.engine, dead, late, plant.release, lambda: pytest.fail("it lost its lease"))


def of_shard(plant: ServicePlant, number: int) -> int:
    return sum(upload.rows or 0 for upload in plant.uploads().values() if upload.shard_id == number)


def test_two_scorers_at_once_write_every_row_and_open_every_alert_once(plant: ServicePlant, expected: Path) -> None:
    upload_all(plant)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            plant.score(shard_rows=700)
        except BaseException as error:  # noqa: BLE001 (told below)
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    plant.score()
    same_rows(plant.log(), expected)
    assert standing_alerts(plant) == expected_alerts(expected)
    with Session(plant.engine) as session:
        notices = list(session.execute(sa.select(Notice.alert_id, Notice.kind)))
        assert len(set(notices)) == len(notices)


def test_a_shard_that_kills_its_scorers_is_taken_apart_until_its_upload_is_set_aside(plant: ServicePlant) -> None:
    upload_all(plant, slice(0, 4))
    params = plant.params.score.model_copy(update={"attempts": 1, "lease_minutes": 1e-9})
    zone = scorer.LandingZone.at(plant.landing)
    read_as = scorer.reading_of(zone, plant.release)
    ledger.take_in(plant.engine, zone, params, read_as)
    poisoned, lease = "spectra/day-002.parquet", ledger.claim(plant.engine, params, "a", clear_nothing, read_as)
    while lease is not None:  # a scorer dies with each shard that holds the poisoned upload
        names = [file.name for file in lease.uploads]
        if poisoned not in names:
            job = plant_job(plant, lease)
            result = score_shard(job)
            ledger.settle(
                plant.engine,
                lease,
                result,
                plant.release,
                lambda j=job, r=result: scorer.publish(j.log, j.name, r.token, r.days),
            )
        lease = ledger.claim(plant.engine, params, "a", clear_nothing, read_as)
    assert plant.uploads()[poisoned].state == UploadState.BROKEN
    assert "scorers died" in (plant.uploads()[poisoned].error or "")
    plant.score()
    assert plant.log().num_rows == sum(plant.days[at].num_rows for at in (0, 1, 3))


def plant_job(plant: ServicePlant, lease: ledger.Lease) -> ShardJob:
    return ShardJob(
        name=lease.name,
        landing=str(plant.landing),
        timezone=None,
        uploads=lease.uploads,
        release=str(plant.settings.releases / plant.release),
        release_id=plant.release,
        log=str(plant.settings.score_log),
        believed_until_us=int(lease.believed_until.timestamp() * 1e6),
        added_log=MAINTENANCE_SCHEMA.empty_table(),
    )


def test_a_log_that_cannot_be_written_gives_the_shard_back(plant: ServicePlant) -> None:
    upload_all(plant, slice(0, 2))
    plant.settings.score_log.parent.mkdir(parents=True, exist_ok=True)
    plant.settings.score_log.write_text("a file where the folder should be")
    summary = plant.score()
    assert len(summary.failures) == 1
    shard = plant.shards()[0]
    assert (shard.state, shard.owner, shard.attempts) == (ShardState.PLANNED, None, 0)
    plant.settings.score_log.unlink()
    assert plant.score().rows == plant.days[0].num_rows + plant.days[1].num_rows


# ---- releases and people ----


def test_the_log_says_which_release_wrote_each_row_after_a_rollback(plant: ServicePlant, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(plant.settings.releases / plant.release, other)
    manifest = read_json(other / "manifest.json")
    (other / "manifest.json").write_text(json.dumps(manifest | {"seed": 99}))
    second = registry.register_release(plant.engine, plant.settings.releases, other, commit="def").id
    for at, release in enumerate([plant.release, second, plant.release]):
        registry.promote(plant.engine, release)
        plant.upload(f"day-{at}", plant.days[at])
        plant.score()
    by_day = {
        path.parent.name: read_table(path)["release"][0].as_py()
        for path in plant.settings.score_log.glob("*/*.parquet")
    }
    assert [by_day[day] for day in sorted(by_day)] == [plant.release, second, plant.release]


def test_a_page_is_due_at_once_and_an_old_one_with_the_digest(plant: ServicePlant) -> None:
    upload_all(plant)
    plant.score()
    with Session(plant.engine) as session:
        newest = session.scalar(sa.select(sa.func.max(Shard.last_at)))
        for alert in session.scalars(sa.select(Alert)):
            fresh = newest - alert.last_at <= dt.timedelta(days=1)
            kinds = {notice.kind for notice in alert.notices}
            assert kinds == {NoticeKind.PAGE if alert.paged_at is not None and fresh else NoticeKind.DIGEST}


def flat(table: pa.Table, name: str) -> pa.Table:
    """The same rows, those of a machine with all bins alike: its sensor is dead."""
    spectra = spectra_view(table["spectrum"], 32).copy()
    spectra[np.array(table["machine_id"].to_pylist()) == name] = 0.25
    return table.set_column(table.schema.get_field_index("spectrum"), "spectrum", spectra_column(spectra))


@pytest.mark.parametrize("dead", [False, True])
def test_a_machine_that_falls_silent_has_one_alert_that_closes_when_it_is_heard(
    plant: ServicePlant, dead: bool
) -> None:
    names = sorted(set(plant.all_rows()["machine_id"].to_pylist()))
    for at in range(6):
        day = plant.days[at]
        if at not in (0, 5):
            day = flat(day, names[0]) if dead else of_machines(day, *names[1:])
        plant.upload(f"day-{at}", day)
        plant.score()
        mine = [alert for alert in plant.alerts() if alert[:2] == (names[0], "no_data")]
        assert len(mine) == (at >= 2)
        assert all((alert[5] != "None") == (at == 5) for alert in mine)


def test_a_landing_zone_named_by_a_uri_is_the_same(plant: ServicePlant) -> None:
    upload_all(plant, slice(0, 2))
    plant.settings = replace(plant.settings, landing=plant.landing.as_uri())
    assert plant.score().rows == plant.days[0].num_rows + plant.days[1].num_rows
    plant.settings = replace(
        plant.settings, landing="s3://nobody@nowhere.invalid/x?endpoint_override=127.0.0.1:1&scheme=http"
    )
    with pytest.raises(ContractError, match="object store"):
        plant.score()


# ---- what no run may lose, and what must not stop a run ----


def with_time(table: pa.Table, moment_us: int) -> pa.Table:
    """The same rows, the first of another time."""
    times = times_us(table["timestamp"]).copy()
    times[0] = moment_us
    return table.set_column(table.schema.get_field_index("timestamp"), "timestamp", time_column(times))


def take_in(plant: ServicePlant) -> ledger.Intake:
    return ledger.take_in(plant.engine, scorer.LandingZone.at(plant.landing), plant.params.score)


def end_leases(plant: ServicePlant) -> None:
    with Session(plant.engine) as session, session.begin():
        session.execute(sa.update(Shard).values(lease_until=utc_now()))


def test_a_file_that_is_moved_before_it_is_scored_is_not_lost(plant: ServicePlant) -> None:
    path = plant.upload("a", plant.days[0])
    shutil.copyfile(path, plant.spectra / "b.parquet")
    take_in(plant)  # b is a duplicate of a
    path.unlink()
    plant.score()
    plant.score()
    assert plant.log().num_rows == plant.days[0].num_rows
    assert plant.uploads()["spectra/b.parquet"].state == UploadState.SCORED


def test_equal_bytes_of_two_machines_are_no_duplicates_where_paths_name_the_machine(plant: ServicePlant) -> None:
    (plant.landing / "fleet.yaml").write_text('source: {path: "{machine_id}/day.parquet"}\n')
    one = of_machines(plant.days[0], "machine-000").drop_columns(["machine_id"])
    for name in ("machine-000", "machine-001"):  # a hung recorder, say
        (plant.spectra / name).mkdir()
        plant.upload(f"{name}/day", one)
    plant.score()
    assert {upload.state for upload in plant.uploads().values()} == {UploadState.SCORED}
    assert plant.log().num_rows == 2 * one.num_rows


def test_what_a_failed_publication_left_is_cleared_though_the_next_attempt_has_fewer_days(
    plant: ServicePlant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant.upload("a", plant.days[0])
    plant.upload("b", plant.days[1])

    def full(log: Path | str, name: str, token: str, days: list[str]) -> None:
        publish(log, name, token, days)
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(scorer, "publish", full)
        assert plant.score().failures
    plant.upload("b", plant.days[1].slice(3))  # changes before the next run
    plant.score()
    plant.score()
    assert [shard.rows for shard in plant.shards()] == [plant.days[0].num_rows, plant.days[1].num_rows - 3]
    assert plant.log().num_rows == plant.days[0].num_rows + plant.days[1].num_rows - 3


def test_what_attempts_left_is_cleared_while_nobody_else_can_hold_the_shard(plant: ServicePlant) -> None:
    plant.upload("a", plant.days[0])
    take_in(plant)
    params, cleared = plant.params.score, list[str]()
    assert ledger.claim(plant.engine, params, "dead", cleared.append) is not None
    assert not cleared  # of its first attempt
    end_leases(plant)

    def clear(name: str) -> None:
        cleared.append(name)
        discard(plant.settings.score_log, name)

    stopped = ledger.claim(plant.engine, params, "stopped", clear)  # and it is stopped right then
    assert stopped is not None
    assert cleared == [stopped.name]
    end_leases(plant)
    plant.score()
    late = score_shard(plant_job(plant, stopped))
    assert not ledger.settle(plant.engine, stopped, late, plant.release, lambda: pytest.fail("it lost its lease"))
    assert plant.log().num_rows == plant.days[0].num_rows


def test_a_scorer_that_lost_its_lease_leaves_no_file(plant: ServicePlant) -> None:
    plant.upload("a", plant.days[0])

    class Slow(scorer.InThisProcess):
        def result(self) -> ShardResult:
            end_leases(plant)
            assert plant.score().shards == 1
            return super().result()

    summary = scorer.score_arrivals(plant.engine, plant.settings, plant.params, submit=Slow)
    assert summary.shards == 0
    assert not list(plant.settings.score_log.rglob("*.tmp"))
    assert plant.log().num_rows == plant.days[0].num_rows


@pytest.mark.parametrize(
    "moment_us", [-79_000_000_000_000_000, 315_576_000_000_000_000], ids=["year -534", "year 11970"]
)
def test_times_that_no_calendar_holds_stop_nobody(plant: ServicePlant, moment_us: int) -> None:
    plant.upload("a", plant.days[0])
    plant.upload("wrong", with_time(plant.days[1], moment_us))
    assert plant.score().rows == plant.days[0].num_rows
    wrong = plant.uploads()["spectra/wrong.parquet"]
    assert wrong.state == UploadState.BROKEN
    assert "years of four digits" in (wrong.error or "")


def test_names_that_are_not_utf_8_stop_nobody(plant: ServicePlant) -> None:
    plant.upload("a", plant.days[0])
    rows = plant.days[1]
    names = pa.array([b"\xff\xfe"] * rows.num_rows, pa.binary()).view(pa.string())
    pq.write_table(
        rows.set_column(rows.schema.get_field_index("machine_id"), "machine_id", names), plant.spectra / "wrong.parquet"
    )
    assert plant.score().rows == plant.days[0].num_rows
    assert "expected UTF-8" in (plant.uploads()["spectra/wrong.parquet"].error or "")


def test_a_path_that_no_index_holds_is_refused_alone(plant: ServicePlant) -> None:
    rng, folder = np.random.default_rng(1), plant.spectra
    for _ in range(11):
        folder /= "".join(map(chr, rng.integers(0x4E00, 0x9FFF, 80)))
    folder.mkdir(parents=True)
    plant.upload("a", plant.days[0])
    shutil.copyfile(plant.spectra / "a.parquet", folder / "b.parquet")
    summary = plant.score()
    assert (summary.rows, len(summary.intake.refused)) == (plant.days[0].num_rows, 1)


def test_a_file_that_is_as_it_was_before_it_broke_is_broken_no_more(plant: ServicePlant) -> None:
    path = plant.upload("a", plant.days[0])
    whole = path.read_bytes()
    plant.score()
    path.write_bytes(whole[:100])
    plant.score()
    assert plant.uploads()["spectra/a.parquet"].state == UploadState.BROKEN
    path.write_bytes(whole)
    os.utime(path, (1, 1))
    plant.score()
    assert plant.uploads()["spectra/a.parquet"].state == UploadState.SCORED


def test_one_wrong_clock_does_not_bring_the_keys_of_all_days_between(plant: ServicePlant) -> None:
    for at in range(3):
        plant.upload(f"day-{at}", plant.days[at])
        plant.score()
    between = plant.settings.score_log / plant.shards()[1].days[0] / f"{plant.shards()[1].name}.parquet"
    between.write_bytes(b"not to be read")
    plant.upload("wide", with_time(plant.days[3], int(times_us(plant.days[0]["timestamp"]).min()) + 1))
    assert plant.score().rows == plant.days[3].num_rows


def test_rows_from_the_future_hide_no_silence_and_make_none(plant: ServicePlant) -> None:
    future = int(utc_now().timestamp() * 1e6) + 400 * 86_400_000_000
    names = [f"machine-{number:03}" for number in range(1, 10)]  # machine-000 falls silent
    for at, day in enumerate(plant.days[:6]):
        heard = day if at < 2 else of_machines(day, *names)
        plant.upload(f"day-{at}", with_time(heard, future + at))
        plant.score()
    silent = [alert[0] for alert in plant.alerts() if alert[1] == "no_data"]
    assert silent == ["machine-000"]


def test_a_clock_that_is_fast_makes_nobody_silent(plant: ServicePlant) -> None:
    moment = int(utc_now().timestamp() * 1e6)
    day = plant.days[0]
    times = times_us(day["timestamp"])
    times = times - times.max() + moment - 60_000_000
    now = day.set_column(day.schema.get_field_index("timestamp"), "timestamp", time_column(times))
    plant.upload("now", with_time(now, moment + 40 * 3_600_000_000))
    plant.score(future_hours=48)
    assert {alert[0] for alert in plant.alerts() if alert[1] == "no_data"} <= {"machine-000"}  # whose clock it is


def test_a_shard_of_very_many_uploads_is_planned_in_linear_time(engine: sa.Engine, plant: ServicePlant) -> None:
    moment, count = utc_now(), 6000
    made = [
        Upload(
            path=f"{at:06}", size=1, modified_ns=1, sha256=f"{at:064}", seen_at=moment, state=UploadState.PLANNED,
            rows=60, first_at=moment + dt.timedelta(seconds=at), last_at=moment + dt.timedelta(seconds=at + 5),
        )
        for at in range(count)
    ]  # fmt: skip
    with ledger.exclusive(engine) as session:
        session.add_all(made)
        session.flush()
        begun = time.process_time()
        assert ledger.plan_shards(session, made, plant.params.score, moment) == 1
        assert time.process_time() - begun < 4  # 15 s where each upload sums up those before it


def test_few_rows_that_stand_alone_at_the_end_of_an_upload_are_not_believed(
    plant: ServicePlant, expected: Path
) -> None:
    for at, day in enumerate(plant.days):
        plant.upload(f"day-{at:03}", day)
    wrong = with_time(plant.days[2].slice(7, 1), int(times_us(plant.days[-1]["timestamp"]).max()) + 90 * 86_400_000_000)
    plant.upload("day-002", pa.concat_tables([plant.days[2], wrong.cast(plant.days[2].schema)]))
    plant.score(shard_rows=2000)
    assert plant.log().num_rows == sum(day.num_rows for day in plant.days) + 1
    assert standing_alerts(plant) == expected_alerts(expected)
    assert sum(shard.early for shard in plant.shards()) == 1
