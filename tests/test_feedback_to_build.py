"""From people's answers to the next build: export, ingest, split and cleaning of a small fleet."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from pyarrow import fs
from written_alerts import heard, write_alert

from flows.database import open_database
from flows.service.answers_export import added_log, export_answers
from flows.service.feedback import Failure, confirm, dismiss, reopen, reset_baseline
from flows.service.tables import Standing
from pipeline import landing
from pipeline.answers import ADDED_LOG, read_corrections, read_feedback
from pipeline.clean import correct
from pipeline.cleaning.episodes import select
from pipeline.epochs import EpochStarts
from pipeline.errors import ContractError
from pipeline.ingest import IngestSummary, ingest
from pipeline.landing.places import Place
from pipeline.log_status import LOG_STATUSES, LogStatus
from pipeline.params import IngestParams, SimulateParams, SplitParams
from pipeline.plant_log import PlantLog
from pipeline.rows import has_role
from pipeline.schema import FAILURE_SCHEMA, KEY_FIELDS, MAINTENANCE_SCHEMA, Role, Tag, times_us
from pipeline.simulate import simulate
from pipeline.split import SplitResult, split
from pipeline.store import day_files, read_table

FLEET = SimulateParams(machines=5, days=30, interval_seconds=3600, bins=8, failures=1, mislabelled_share=0, seed=5)
SPLIT = SplitParams(horizon_hours=48, unseen_machine_share=0.0, train_share=0.5, calibration_share=0.2)
FAULTY, FINE, MENDED, ASKED, OTHER = (f"machine-00{number}" for number in range(5))


def day(number: float) -> dt.datetime:
    return dt.datetime(2025, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=number)


@pytest.fixture(scope="module")
def spectra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    simulate(FLEET, folder)
    return folder / "spectra"


@pytest.fixture
def plant(tmp_path: Path, spectra: Path) -> Path:
    """A landing zone with spectra and a log of one sensor change."""
    folder = tmp_path / "plant"
    folder.mkdir()
    (folder / "spectra").symlink_to(spectra)
    (folder / "fleet.yaml").write_text((spectra.parent / "fleet.yaml").read_text())
    (folder / "maintenance.csv").write_text(f"machine_id,start,end,tag\n{OTHER},2025-01-02T00:00Z,,sensor\n")
    return folder


@pytest.fixture
def engine(tmp_path: Path) -> sa.Engine:
    return open_database(f"sqlite:///{tmp_path / 'test.db'}")


def ingested(plant: Path) -> IngestSummary:
    return ingest(plant, plant.parent / "raw", IngestParams(), horizon_hours=SPLIT.horizon_hours, tune_share=0.5)


def split_of(raw: Path) -> SplitResult:
    """The split of a snapshot in which validation found nothing."""
    tables = []
    for path in day_files(raw):
        keys = read_table(path, ["machine_id", "timestamp"])
        rows = {
            "file": [path.name] * len(keys),
            "row": np.arange(len(keys), dtype=np.int32),
            "status": ["ok"] * len(keys),
        }
        tables.append(pa.table({**rows, "machine_id": keys["machine_id"], "timestamp": keys["timestamp"]}))
    status = pa.concat_tables(tables).select([*(field.name for field in KEY_FIELDS), "status"])
    log = read_table(raw / "maintenance.parquet", schema=MAINTENANCE_SCHEMA)
    failures = read_table(raw / "failures.parquet", schema=FAILURE_SCHEMA)
    return split(status, log, failures, SPLIT, read_feedback(raw))


def rows_of(table: pa.Table, machine: str, first: dt.datetime, last: dt.datetime) -> list[dict[str, object]]:
    return [row for row in table.to_pylist() if row["machine_id"] == machine and first <= row["timestamp"] <= last]


def test_answers_are_what_the_next_build_knows(engine: sa.Engine, plant: Path) -> None:
    raw = plant.parent / "raw"
    ingested(plant)
    before = split_of(raw).table
    heard(engine, MENDED)
    ill = write_alert(engine, FAULTY, day(9), day(10), standing=Standing.OPEN)
    fine = write_alert(engine, FINE, day(5), day(5.5))
    write_alert(engine, ASKED, day(6), day(7))
    confirm(engine, ill, who="ada", failure=Failure(mode="outer race"))
    dismiss(engine, fine, who="ada")
    reset_baseline(engine, MENDED, at=day(8), since=day(7.5), reason=Tag.REPAIR, who="ada")
    export_answers(engine, plant)
    summary = ingested(plant)
    assert summary.failures == 1
    assert summary.set_aside == {}
    after = split_of(raw).table

    # the failure stands at the alert's last row: horizon before it, and nothing healthy while the alert stands
    (failure,) = read_table(raw / "failures.parquet", schema=FAILURE_SCHEMA).to_pylist()
    assert (failure["machine_id"], failure["time"], failure["failure_mode"]) == (FAULTY, day(10), "outer race")
    horizon = rows_of(after, FAULTY, day(8.05), day(9.95))
    assert {row["log_status"] for row in horizon} == {"horizon"}
    assert {row["failure_id"] for row in horizon} == {failure["failure_id"]}
    assert {row["label"] for row in rows_of(before, FAULTY, day(8.05), day(9.95))} == {"healthy"}
    assert {row["log_status"] for row in rows_of(after, FAULTY, day(12), day(20))} == {"alert"}

    # nobody has said what this was: it trains nothing
    assert {row["role"] for row in rows_of(before, ASKED, day(6), day(7))} <= {"train", "validation"}
    assert {row["role"] for row in rows_of(after, ASKED, day(6), day(7))} == {"none"}

    # a false alarm trains, whatever the statistics make of it
    kept = rows_of(after, FINE, day(5), day(5.5))
    assert {row["role"] for row in kept} <= {"train", "validation"}
    looked_at_N = has_role(after, Role.TRAIN, Role.VALIDATION)
    rows = select(after, looked_at_N, times_us(after["timestamp"]), 24)
    removed_L = np.ones(len(rows), bool)
    correct(rows, read_corrections(raw, rows.machines), removed_L, np.zeros(len(rows), np.int8))
    assert (~removed_L).sum() == len(kept) > 5

    # a repair begins an epoch at its end, here and in the scorer's log
    assert {row["log_status"] for row in rows_of(after, MENDED, day(7.5), day(7.99))} == {"repair"}
    assert {row["epoch"] for row in rows_of(before, MENDED, day(8), day(9))} == {0}
    assert {row["epoch"] for row in rows_of(after, MENDED, day(7), day(7.99))} == {0}
    assert {row["epoch"] for row in rows_of(after, MENDED, day(8), day(9))} == {1}
    starts = EpochStarts.of_log(added_log(engine))
    assert set(starts.machines) == {MENDED}
    assert {row["epoch"] for row in rows_of(after, OTHER, day(3), day(9))} == {1}, "the plant's own log is there too"

    # recalibration and what-if read the snapshot through PlantLog
    known = PlantLog.of(raw, SPLIT.horizon_hours)
    assert known.failures["failure_id"].to_pylist() == [failure["failure_id"]]
    moment = np.array([times_us(pa.chunked_array([pa.array([day(9)])]))[0]])
    status_N, _ = known.statuses(np.zeros(1, np.int32), moment, [FAULTY], np.ones(1, bool), int(moment[0]), SPLIT)
    assert LOG_STATUSES[status_N[0]] == LOG_STATUSES[LogStatus.HORIZON]
    assert (ingested(plant).written, export_answers(engine, plant).written) == (0, ())


def test_a_failure_keeps_its_id_while_people_learn_its_time(engine: sa.Engine, plant: Path) -> None:
    number = write_alert(engine, FAULTY, day(9), day(10))

    def failures() -> list[tuple[str, dt.datetime]]:
        export_answers(engine, plant)
        ingested(plant)
        table = read_table(plant.parent / "raw" / "failures.parquet", schema=FAILURE_SCHEMA)
        return list(zip(table["failure_id"].to_pylist(), table["time"].to_pylist(), strict=True))

    confirm(engine, number, who="ada")
    ((identity, time),) = failures()
    assert time == day(10)
    confirm(engine, number, who="ada", failure=Failure(day(10.5), day(10.6)))
    assert failures() == [(identity, day(10.5))]
    with (plant / "maintenance.csv").open("a") as log:
        log.write(f"{FAULTY},{day(11).isoformat()},{day(11.5).isoformat()},failure\n")
    assert failures() == [(identity, day(11))], "the plant's own entry is the same failure, and its time counts"
    assert any("stand in the plant's own log too" in warning for warning in ingested(plant).warnings)
    reopen(engine, number, who="ada")
    assert failures() == [(identity, day(11))]
    assert not any("too: its times count" in warning for warning in ingested(plant).warnings)


def test_answers_are_read_from_an_object_store(
    engine: sa.Engine, plant: Path, spectra: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirm(engine, write_alert(engine, FAULTY, day(9), day(10)), who="ada")
    dismiss(engine, write_alert(engine, FINE, day(5), day(6)), who="ada")
    export_answers(engine, plant)
    (plant / "spectra").unlink()
    shutil.copytree(spectra, plant / "spectra")  # a store follows no links
    store = Place("s3://plant", fs.SubTreeFileSystem(str(plant.parent), fs.LocalFileSystem()), "plant", False, None)
    monkeypatch.setattr(landing.source, "place_of", lambda _: store)
    ingested(plant)
    raw = plant.parent / "raw"
    assert read_feedback(raw)["state"].to_pylist() == ["confirmed", "dismissed"]
    assert len(read_corrections(raw, [FINE])) == 1
    assert read_table(raw / "failures.parquet").num_rows == 1


def test_an_added_log_that_is_damaged_is_refused_with_its_name(plant: Path) -> None:
    (plant / ADDED_LOG).write_bytes(b"PAR1 no")
    with pytest.raises(ContractError, match=r"plant/maintenance_added\.parquet"):
        ingested(plant)
    assert not (plant.parent / "raw" / "snapshot.json").exists()
