"""Drift of the fleet: called when the fleet moved, not when it is quiet, not when one machine fails."""

import datetime as dt
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.drift import DriftDecision, change_point, check_drift, stratified_sample
from pipeline.errors import ContractError
from pipeline.params import MonitorParams, load_params
from pipeline.reference import compared_columns
from pipeline.release import load_release
from pipeline.schema import spectra_column, time_column
from pipeline.score import score_data_set
from pipeline.simulate import simulate
from pipeline.store import day_files, read_table, write_table

PARAMS = MonitorParams(days=6, max_rows=2000)  # the reference's days: 60 rows a machine would be chance


def decide(built: Path, data: Path, folder: Path, params: MonitorParams = PARAMS) -> DriftDecision:
    release = load_release(built / "data/release")
    log = folder / "log"
    score_data_set(release, data, log)
    return check_drift(release, data, log, params, folder / "drift.html", seed=1)


def calibration_only(built: Path, out: Path) -> Path:
    """The days of the calibration rows alone: what the reference was made of."""
    scores = read_table(built / "data/calibration/scores.parquet", ["file"])
    days = {str(name) for name in scores["file"].to_pylist()}
    shutil.copytree(built / "data/raw", out)
    for path in day_files(out):
        if path.name not in days:
            path.unlink()
    return out


@pytest.fixture(scope="module")
def quiet(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibration_only(built, tmp_path_factory.mktemp("quiet") / "data")


def test_a_quiet_fleet_has_not_drifted(built: Path, quiet: Path, tmp_path: Path) -> None:
    found = decide(built, quiet, tmp_path)
    assert not found.drifted
    assert found.changed_at is None
    page = (tmp_path / "drift.html").read_text()
    assert len(page) > 100_000


def test_a_fleet_that_moved_together_has(built: Path, quiet: Path, tmp_path: Path) -> None:
    found = decide(built, _louder_from(quiet, tmp_path / "data", slice(None)), tmp_path)
    assert found.drifted
    assert found.machines_share > 0.8
    assert found.changed_at is not None


def test_one_machine_that_left_its_peers_is_no_drift(built: Path, quiet: Path, tmp_path: Path) -> None:
    found = decide(built, _louder_from(quiet, tmp_path / "data", slice(0, 1)), tmp_path)
    assert not found.drifted
    assert found.machines_share < 0.5


def _louder_from(source: Path, out: Path, machines: slice) -> Path:
    shutil.copytree(source, out)
    for path in day_files(out):
        table = read_table(path)
        spectra = table["spectrum"].combine_chunks().flatten().to_numpy().reshape(-1, 32).copy()
        names = np.array(table["machine_id"].to_pylist())
        spectra[np.isin(names, np.unique(names)[machines])] *= np.linspace(1.5, 4, 32, dtype=np.float32)
        index = table.column_names.index("spectrum")
        write_table(path, table.set_column(index, table.schema.field("spectrum"), spectra_column(spectra)))
    return out


def test_the_threshold_of_params_decides(built: Path, quiet: Path, tmp_path: Path) -> None:
    moved = _louder_from(quiet, tmp_path / "data", slice(None))
    assert decide(built, moved, tmp_path).drifted
    deaf = PARAMS.model_copy(update={"column_threshold": 1e6})
    assert not decide(built, moved, tmp_path, deaf).drifted


def test_evidently_and_the_decision_agree(built: Path, quiet: Path, tmp_path: Path) -> None:
    found = decide(built, _louder_from(quiet, tmp_path / "data", slice(None)), tmp_path)
    above = [value >= PARAMS.column_threshold for value in found.columns.values()]
    assert found.share == pytest.approx(np.mean(above))
    assert set(found.columns) == set(compared_columns(read_table(built / "data/release/reference.parquet")))


def test_the_change_is_found_to_the_hour(rng) -> None:
    hours = np.repeat(np.arange(96), 20)
    values = rng.normal(size=len(hours)) + np.where(hours >= 60, 3.0, 0.0)
    start = int(dt.datetime(2025, 3, 1, tzinfo=dt.UTC).timestamp() * 1e6)
    current = pa.table({"timestamp": time_column(start + hours * 3_600_000_000), "band_1": values})
    reference = pa.table({"timestamp": time_column(np.zeros(500, np.int64)), "band_1": rng.normal(size=500)})
    found = change_point(current, reference, ["band_1"])
    assert found == dt.datetime(2025, 3, 3, 12, tzinfo=dt.UTC)


def test_the_sample_is_seeded_and_fair() -> None:
    machine = np.repeat([0, 1, 2], [1000, 50, 5])
    one, two = (stratified_sample(machine, 90, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert np.bincount(machine[one]).tolist() == [30, 30, 5]


def test_no_scored_rows_is_an_error(built: Path, quiet: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="score log"):
        check_drift(load_release(built / "data/release"), quiet, tmp_path, PARAMS, tmp_path / "d.html", seed=1)


def test_a_continued_fleet_with_new_firmware_is_called_drift(built: Path, tmp_path: Path) -> None:
    params = load_params(built / "params.yaml").simulate
    data = tmp_path / "landing"
    simulate(params.model_copy(update={"firmware_day": 36.0, "days": 40.0}), data)
    release = load_release(built / "data/release")
    score_data_set(release, data, tmp_path / "log")
    found = check_drift(release, data, tmp_path / "log", PARAMS, tmp_path / "d.html", seed=1)
    assert found.drifted, found.reason
