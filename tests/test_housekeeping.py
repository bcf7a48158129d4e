"""Days of the score log that become one file, or go, while shards are scored and people read."""

import fcntl
from pathlib import Path

import pytest
import sqlalchemy as sa
from service_plant import ServicePlant
from sqlalchemy.orm import Session

from flows.service.housekeeping import LOCK, keep_house
from flows.service.tables import Shard, ShardState
from pipeline.errors import ContractError


@pytest.fixture
def plant(tmp_path: Path, built: Path, engine: sa.Engine) -> ServicePlant:
    plant = ServicePlant.of(tmp_path, built, engine)
    for at, day in enumerate(plant.days[:6]):
        for half in range(2):
            middle = day.num_rows // 2
            plant.upload(f"day-{at}-{half}", day.slice(half * middle, middle + half))
    plant.score(shard_rows=1)
    return plant


def files_of(plant: ServicePlant) -> dict[str, int]:
    log = plant.settings.score_log
    return {
        folder.name: len(list(folder.glob("[!._]*.parquet"))) for folder in sorted(log.iterdir()) if folder.is_dir()
    }


def test_past_days_become_one_file_and_late_rows_join_them(plant: ServicePlant) -> None:
    log, before = plant.settings.score_log, plant.log()
    params = plant.params.score.model_copy(update={"compact_after_days": 2})
    done = keep_house(plant.engine, log, params)
    assert list(done.compacted.values()) == [2, 2, 2]
    assert list(files_of(plant).values()) == [1, 1, 1, 2, 2, 2]
    assert plant.log().to_pydict() == before.to_pydict()
    assert not keep_house(plant.engine, log, params).compacted
    plant.upload("again", plant.days[0])  # known rows: none is written twice
    assert (plant.score().rows, plant.log().num_rows) == (0, before.num_rows)


def test_the_file_of_a_shard_that_is_not_done_stays(plant: ServicePlant) -> None:
    with Session(plant.engine) as session, session.begin():
        session.execute(sa.update(Shard).where(Shard.id == 1).values(state=ShardState.SCORED))
    done = keep_house(plant.engine, plant.settings.score_log, plant.params.score)
    assert list(done.compacted.values()) == [1, 2, 2]
    assert files_of(plant)[min(files_of(plant))] == 2


def test_days_beyond_retention_go(plant: ServicePlant) -> None:
    params = plant.params.score.model_copy(update={"keep_days": 3, "compact_after_days": None})
    done = keep_house(plant.engine, plant.settings.score_log, params)
    assert len(done.removed) == 2
    assert list(files_of(plant).values()) == [2, 2, 2, 2]


def test_a_day_that_the_policy_has_still_to_read_stays_beyond_retention(plant: ServicePlant) -> None:
    with Session(plant.engine) as session, session.begin():
        session.execute(sa.update(Shard).where(Shard.id == 3).values(state=ShardState.SCORED))
    params = plant.params.score.model_copy(update={"keep_days": 3, "compact_after_days": None})
    assert len(keep_house(plant.engine, plant.settings.score_log, params).removed) == 1
    plant.score()
    assert {shard.state for shard in plant.shards()} == {ShardState.DONE}
    assert len(keep_house(plant.engine, plant.settings.score_log, params).removed) == 1


def test_a_damaged_day_does_not_keep_the_others_from_being_compacted(plant: ServicePlant) -> None:
    first = min(plant.settings.score_log.glob("*/*.parquet"))
    first.write_bytes(b"damaged")
    with pytest.raises(ContractError, match="whole Parquet file"):
        keep_house(plant.engine, plant.settings.score_log, plant.params.score)
    assert list(files_of(plant).values()) == [2, 1, 1, 2, 2, 2]


def test_one_process_keeps_house(plant: ServicePlant) -> None:
    with (plant.settings.score_log / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not keep_house(plant.engine, plant.settings.score_log, plant.params.score).compacted
    assert keep_house(plant.engine, plant.settings.score_log, plant.params.score).compacted


def test_no_log_is_nothing_to_do(tmp_path: Path, built: Path, engine: sa.Engine) -> None:
    plant = ServicePlant.of(tmp_path / "empty", built, engine)
    assert not keep_house(engine, plant.settings.score_log, plant.params.score).compacted
