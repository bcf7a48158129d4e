"""Failures that teach networks their mode: whole, of the tune failures alone, and they choose and judge nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_fleet import SMALL_PARAMS

from pipeline import calibrate as calibrate_stage
from pipeline import split as split_stage
from pipeline.gate.rows import _sorted_out
from pipeline.params import TrainParams, load_params
from pipeline.plant_log import PlantLog
from pipeline.release import load_release
from pipeline.roles import teaching
from pipeline.rows import has_role
from pipeline.schema import FAILURE_SCHEMA, Role
from pipeline.store import read_json, read_table
from pipeline.train import run
from pipeline.training_rows import teaching_in

SHARE = 0.6
SETTINGS = SMALL_PARAMS.replace("autoencoder: {latent", f"autoencoder: {{supervised: {{failures: {SHARE}}}, latent")


@pytest.fixture(scope="module")
def taught(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small fleet, divided anew, with an autoencoder that failures taught, and calibrated."""
    folder = tmp_path_factory.mktemp("taught")
    for name in ("raw", "status", "models", "base_release"):
        if (built / "data" / name).exists():
            shutil.copytree(built / "data" / name, folder / "data" / name)
    (folder / "params.yaml").write_text(f"{SETTINGS}detectors: [autoencoder, pca, energy_zscore]\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        split_stage.main()
        run("autoencoder", load_params(), Path())
        calibrate_stage.main()
    return folder


def failures_of(folder: Path) -> pa.Table:
    return read_table(folder / "data/raw/failures.parquet", schema=FAILURE_SCHEMA)


def ids(split: pa.Table, role: Role) -> set[str]:
    return set(split.filter(pa.array(has_role(split, role)))["failure_id"].cast(pa.string()).to_pylist())


def test_an_event_is_wholly_on_one_side_and_nothing_else_moves(taught: Path, built: Path) -> None:
    before, after = (read_table(folder / "data/status/split.parquet") for folder in (built, taught))
    teach, tune = ids(after, Role.TEACH), ids(after, Role.TUNE)
    assert teach
    assert tune
    assert not teach & tune
    assert teach | tune == ids(before, Role.TUNE)
    for role in (Role.TRAIN, Role.VALIDATION, Role.CALIBRATION, Role.TEST, Role.BASELINE):
        np.testing.assert_array_equal(has_role(after, role), has_role(before, role))
    failures = failures_of(taught)
    roles = dict(zip(failures["failure_id"].to_pylist(), failures["role"].to_pylist(), strict=True))
    assert {roles[name] for name in teach} == {"tune"}
    metrics = read_json(taught / "metrics/split.json")
    assert metrics["failures"]["teach"] == len(teach)
    assert metrics["failures"]["tune"] == len(tune)
    assert metrics["rows"]["by_role"]["teach"] == int(has_role(after, Role.TEACH).sum())
    assert "teach" not in read_json(built / "metrics/split.json")["rows"]["by_role"]


def test_what_teaches_chooses_no_policy(taught: Path) -> None:
    split = read_table(taught / "data/status/split.parquet")
    choice = read_json(taught / "data/calibration/calibration.json")["choice"]
    assert not set(choice["failures"]) & ids(split, Role.TEACH)
    assert set(choice["failures"]) >= ids(split, Role.TUNE)


def test_a_recalibration_leaves_them_out_too(taught: Path) -> None:
    plant = PlantLog.of(taught / "data/raw", 48)
    names = np.array(plant.failures["failure_id"].to_pylist())
    teach = ids(read_table(taught / "data/status/split.parquet"), Role.TEACH)
    assert teach <= set(names[plant.tunes(())])
    assert not teach & set(names[plant.tunes((), SHARE)])


def test_the_gate_counts_them_neither_as_lost_nor_as_gained(taught: Path, built: Path) -> None:
    failures, release = failures_of(taught), load_release(built / "data/release", device="cpu")
    machines = sorted({*failures["machine_id"].to_pylist()})
    params = release.manifest["params"]
    train = {**params["train"], "autoencoder": {**params["train"]["autoencoder"], "supervised": {"failures": SHARE}}}
    learned = replace(release, manifest={**release.manifest, "params": {**params, "train": train}})
    judging, tuning = _sorted_out([release, release], failures, machines)
    again, gains = _sorted_out([release, learned], failures, machines)
    teach = ids(read_table(taught / "data/status/split.parquet"), Role.TEACH)
    assert again == judging
    assert teach <= tuning
    assert not teach & (gains | again)
    assert tuning - gains == set(np.array(failures["failure_id"].to_pylist())[teaching(failures, SHARE)]) & tuning


def test_the_network_learned_their_modes(taught: Path) -> None:
    history = read_json(taught / "data/models/autoencoder/history.json")
    split = read_table(taught / "data/status/split.parquet")
    teach = ids(split, Role.TEACH)
    assert history["taught"]["failures"] == len(teach)
    assert history["taught"]["rows"] == int(has_role(split, Role.TEACH).sum())
    mode_of = dict(
        zip(*(failures_of(taught)[name].to_pylist() for name in ("failure_id", "failure_mode")), strict=True)
    )
    assert history["taught"]["modes"] == sorted({mode_of[name] for name in teach})


def test_long_horizons_are_thinned_evenly(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training_rows.LESSON_ROWS", 10)
    split = read_table(taught / "data/status/split.parquet")
    found = teaching_in(taught / "data/raw", split, failures_of(taught), 32, "condition")
    assert found is not None
    rows = np.bincount(found.failure_n)
    assert rows.max() <= 10
    assert rows.min() >= 5
    assert found.read().shape == (len(found.keys), 32)


def test_an_id_decides_and_a_larger_share_keeps_those_of_a_smaller() -> None:
    names = [f"failure-{number}" for number in range(400)]
    table = pa.table({"failure_id": names, "failure_mode": ["wear"] * 400, "role": ["tune"] * 200 + ["test"] * 200})
    few, many = teaching(table, 0.3), teaching(table, 0.7)
    assert 40 < few.sum() < 80
    assert not (few & ~many).any()
    assert not many[200:].any()
    np.testing.assert_array_equal(teaching(table.slice(5), 0.3), few[5:])
    assert TrainParams().teaching_share == 0
