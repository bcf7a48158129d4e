"""Scoring what arrives: once and only once, in any order, with the alerts of one pass over everything."""

from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa
from service_plant import ServicePlant

from flows.service.tables import ShardState, UploadState
from pipeline.release import load_release
from pipeline.score import score_data_set
from pipeline.store import read_json, read_table


@pytest.fixture
def plant(tmp_path: Path, built: Path, engine: sa.Engine) -> ServicePlant:
    return ServicePlant.of(tmp_path, built, engine)


@pytest.fixture(scope="module")
def expected(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The score log and alerts of one pass over the same rows."""
    out = tmp_path_factory.mktemp("expected")
    score_data_set(load_release(built / "data/release"), built / "data/raw", out)
    return out


def expected_alerts(expected: Path) -> list[tuple[str, ...]]:
    told = read_json(expected / "_alerts.json")
    return sorted((a["machine_id"], a["cause"], a["opened"], a["paged"], a["last"], a["closed"]) for a in told)


def test_days_that_arrive_one_by_one_make_the_log_and_the_alerts_of_one_pass(
    plant: ServicePlant, expected: Path
) -> None:
    for begin in range(0, len(plant.days), 10):
        for at, day in enumerate(plant.days[begin : begin + 10], start=begin):
            plant.upload(f"day-{at:03}", day)
        summary = plant.score(shard_rows=500)
        assert not summary.failures
    log = plant.log()
    once = pa.concat_tables([read_table(path) for path in sorted(expected.glob("*.parquet"))]).unify_dictionaries()
    assert log.num_rows == once.num_rows == sum(day.num_rows for day in plant.days)
    left, right = (
        table.to_pandas().sort_values(["machine_id", "timestamp"]).reset_index(drop=True) for table in (log, once)
    )
    for name in log.column_names:
        if name not in ("file", "row", "top_bins"):
            assert (left[name].isna() == right[name].isna()).all()
            kept = ~left[name].isna()
            assert (left[name][kept].astype(str) == right[name][kept].astype(str)).all(), name
    assert {shard.state for shard in plant.shards()} == {ShardState.DONE}
    assert {upload.state for upload in plant.uploads().values()} == {UploadState.SCORED}
    print(plant.alerts()[:3], expected_alerts(expected)[:3])
