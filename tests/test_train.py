"""What the training stage reads, leaves behind, and survives."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
import yaml

from pipeline import training_rows
from pipeline.detectors import Detector, Fitting, TrainingRows, fit_baselines, load_detector
from pipeline.detectors.base import restore_detector
from pipeline.detectors.linear import DistanceDetector, PcaDetector
from pipeline.engine import rows as engine_rows
from pipeline.errors import ContractError, ReleaseError, UserError
from pipeline.params import TrainParams, load_params
from pipeline.rows import RowKeys, Rows, has_role, load_rows
from pipeline.schema import MICROSECONDS_PER_HOUR, FleetSpec, Role, load_fleet_spec
from pipeline.store import read_json, read_spectra, sha256_folder, write_json
from pipeline.train import run, train_detector, training_table
from pipeline.training_rows import divide, material_in, material_of, read_bounded

BINS = 4
ALL = np.s_[:]


def keys_and_times(hours: int, rows_per_hour: int = 6, machines: int = 3) -> tuple[RowKeys, npt.NDArray[np.int64]]:
    """Rows by machine and time, a row in every part of every hour."""
    machine_N = np.repeat(np.arange(machines), hours * rows_per_hour)
    time_N = np.tile(np.arange(hours * rows_per_hour) * MICROSECONDS_PER_HOUR // rows_per_hour, machines)
    names = [f"m{index}" for index in range(machines)]
    return RowKeys.of(names, machine_N, np.zeros(len(machine_N), int)), time_N


def roles(count: int, **parts: Any) -> npt.NDArray[np.object_]:
    role_N = np.full(count, str(Role.TRAIN), dtype=object)
    for name, where in parts.items():
        role_N[where] = str(Role[name.upper()])
    return role_N


class TestDivide:
    def test_a_sample_holds_whole_hours_and_no_more_rows_than_asked_for(self) -> None:
        keys, time_N = keys_and_times(hours=400)
        role_N = roles(len(keys), validation=time_N >= 300 * MICROSECONDS_PER_HOUR)
        parts = divide(keys, time_N, role_N, TrainParams(max_rows=1200), seed=1)
        assert 900 < parts.train_N.sum() < 1500
        assert 200 < parts.validation_N.sum() < 400
        hour_N = keys.machine_N * 400 + time_N // MICROSECONDS_PER_HOUR
        assert set(np.bincount(hour_N, parts.train_N | parts.validation_N)) == {0, 6}
        assert not np.any(parts.train_N & parts.validation_N)
        assert set(role_N[parts.train_N]) == {Role.TRAIN}

    def test_every_machine_is_described_by_evenly_spaced_rows(self) -> None:
        keys, time_N = keys_and_times(hours=2000, machines=2)  # 12,000 rows each
        keys = keys.take(np.r_[0:12_000, 12_000:12_025])
        time_N = time_N[: len(keys)]
        params = TrainParams(max_rows=1000)
        chosen = np.flatnonzero(divide(keys, time_N, roles(len(keys)), params, seed=1).describes_N)
        many, few = chosen[chosen < 12_000], chosen[chosen >= 12_000]
        assert len(few) == 25
        assert 300 < len(many) <= 1000
        steps = np.diff(many)
        assert steps.max() - steps.min() <= 1
        assert many[0] == 0

    def test_all_rows_describe_where_they_are_few(self) -> None:
        keys, time_N = keys_and_times(hours=50)
        assert divide(keys, time_N, roles(len(keys)), TrainParams(), seed=1).describes_N.all()

    def test_a_machine_with_rows_that_only_describe_it_is_described_by_those_alone(self) -> None:
        keys, time_N = keys_and_times(hours=50)
        role_N = roles(len(keys), baseline=np.s_[:60])
        describes_N = divide(keys, time_N, role_N, TrainParams(), seed=1).describes_N
        assert describes_N[:60].all()
        assert not describes_N[60:300].any()
        assert describes_N[300:].all()

    def test_without_validation_rows_the_last_tenth_in_time_says_when_to_stop(self) -> None:
        keys, time_N = keys_and_times(hours=50)
        parts = divide(keys, time_N, roles(len(keys)), TrainParams(), seed=1)
        assert parts.validation_N.sum() == len(keys) // 10
        assert time_N[parts.validation_N].min() >= time_N[parts.train_N].max()
        assert not np.any(parts.train_N & parts.validation_N)

    @pytest.mark.parametrize(("count", "got"), [(0, "got 0"), (8, "got 8")])
    def test_too_few_rows_are_an_error(self, count: int, got: str) -> None:
        keys, time_N = keys_and_times(hours=50)
        role_N = roles(len(keys), calibration=np.s_[count:], validation=np.s_[100:110])
        with pytest.raises(ContractError, match=got):
            divide(keys, time_N, role_N, TrainParams(), seed=1)


@pytest.fixture(scope="module")
def snapshot(built: Path) -> tuple[Path, pa.Table, np.ndarray, FleetSpec]:
    """The small fleet's raw data, its split table, and which rows train, validate or describe."""
    split, kept = training_table(built / "data/status")
    selected_N = has_role(split, Role.TRAIN, Role.VALIDATION, Role.BASELINE) & kept
    return built / "data/raw", split, selected_N, load_fleet_spec(built / "data/raw/fleet.yaml")


class TestReading:
    def test_a_spooled_part_is_the_part_and_leaves_no_file(
        self, snapshot: tuple[Path, pa.Table, np.ndarray, FleetSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        raw, split, selected_N, fleet = snapshot
        expected = read_spectra(raw, split, selected_N, fleet.bins)
        monkeypatch.setattr(training_rows, "fits_in_memory", lambda _size, _device: False)
        got = read_bounded(raw, split, selected_N, fleet.bins, tmp_path)
        assert isinstance(got, np.memmap)
        assert np.array_equal(got, expected)
        assert list(tmp_path.iterdir()) == []

    def test_a_day_without_a_chosen_row_is_not_opened(
        self, snapshot: tuple[Path, pa.Table, np.ndarray, FleetSpec], tmp_path: Path
    ) -> None:
        raw, split, selected_N, fleet = snapshot
        rows = load_rows(raw, split, selected_N, fleet.bins)
        params = TrainParams(max_rows=20)
        parts = divide(rows.keys, rows.time_us, rows.column("role"), params, seed=2)
        shutil.copytree(raw, tmp_path / "raw")
        read_N = parts.train_N | parts.validation_N
        unread = set(rows.column("file")) - set(rows.column("file")[read_N])
        assert unread
        for name in unread:
            (tmp_path / "raw/spectra" / name).unlink()
        material = material_in(
            tmp_path / "raw", split, selected_N, fleet.bins, rows.keys, rows.time_us, parts, tmp_path
        )
        expected = material_of(rows, parts)
        for mask_N in (parts.train_N, parts.validation_N):
            assert np.array_equal(material.read(mask_N), expected.read(mask_N))
        assert np.array_equal(material.train_hour, expected.train_hour)
        with pytest.raises(ContractError):
            material.read(parts.describes_N)

    def test_a_data_set_larger_than_memory_gives_the_same_detectors(
        self, snapshot: tuple[Path, pa.Table, np.ndarray, FleetSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        raw = snapshot[0]
        for name in ("pca", "autoencoder"):
            run_in_copy(raw.parents[1], tmp_path / "whole", name)
        monkeypatch.setattr(training_rows, "fits_in_memory", lambda _size, _device: False)
        monkeypatch.setattr(engine_rows, "fits_in_memory", lambda _size, _device: False)
        for name in ("pca", "autoencoder"):
            run_in_copy(raw.parents[1], tmp_path / "streamed", name)
            models = [sha256_folder(tmp_path / how / "data/models" / name) for how in ("whole", "streamed")]
            assert models[0] == models[1]


def copy_of(built: Path, folder: Path) -> Path:
    """Everything that the stage reads, without what it writes."""
    if not folder.exists():
        (folder / "data").mkdir(parents=True)
        settings = yaml.safe_load((built / "params.yaml").read_text())
        settings["train"]["threads"] = 1  # so small a network gains nothing from two
        settings["train"]["vae"]["optimiser"] |= {"max_epochs": 12, "patience": 12}  # time enough to be killed in
        (folder / "params.yaml").write_text(yaml.safe_dump(settings))
        for part in ("raw", "status"):
            shutil.copytree(built / "data" / part, folder / "data" / part)
    return folder


def run_in_copy(built: Path, folder: Path, name: str) -> None:
    copy_of(built, folder)
    run(name, load_params(folder / "params.yaml"), folder)


class TestStage:
    def test_the_model_folder_holds_no_clock_and_the_checkpoint_is_gone(self, built: Path, tmp_path: Path) -> None:
        for name in ("first", "again"):
            run_in_copy(built, tmp_path / name, "autoencoder")
        first, again = (tmp_path / name / "data/models/autoencoder" for name in ("first", "again"))
        assert sha256_folder(first) == sha256_folder(again)
        assert (again / "live/metrics.json").is_file()
        assert "rows_per_s" not in read_json(again / "history.json")
        assert [path for path in (tmp_path / "again/.hearken").rglob("*") if path.is_file()] == []

    def test_a_killed_stage_goes_on_and_leaves_the_same_bytes(self, built: Path, tmp_path: Path) -> None:
        folder = copy_of(built, tmp_path / "killed")
        command = [sys.executable, "-m", "pipeline.train", "vae"]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not list(folder.glob(".hearken/training/vae/checkpoints/*/checkpoint.safetensors")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (folder / "data/models/vae").exists()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        assert "goes on after epoch" in done.stdout
        whole = copy_of(built, tmp_path / "whole")
        run("vae", load_params(folder / "params.yaml"), whole)
        assert sha256_folder(folder / "data/models/vae") == sha256_folder(tmp_path / "whole/data/models/vae")

    def test_an_unknown_detector_is_said(self, built: Path) -> None:
        with pytest.raises(UserError, match="expected one of autoencoder"):
            run("lof", load_params(built / "params.yaml"), built)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_cuda_asked_for_and_absent_is_said(self, built: Path, tmp_path: Path) -> None:
        folder = copy_of(built, tmp_path / "cuda")
        params = load_params(folder / "params.yaml")
        wanted = params.model_copy(update={"train": params.train.model_copy(update={"device": "cuda"})})
        with pytest.raises(UserError, match=r"train\.device: got cuda, expected a CUDA device"):
            run("pca", wanted, folder)


class HalfPrecise(DistanceDetector):
    """Scores by a product of matrices, whose precision shows in its type."""

    name = "half_precise"

    def score_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:
        product = relative_BG @ torch.ones(relative_BG.shape[1], 1)
        return torch.full((len(spectra_BF),), 16.0 if product.dtype == torch.bfloat16 else 32.0)


def small_detector(kind: type[Detector] = DistanceDetector) -> tuple[Detector, np.ndarray]:
    spectra = np.exp(np.random.default_rng(3).normal(size=(300, BINS))).astype(np.float32)
    keys = RowKeys.of(["pump"], np.zeros(300, int), np.zeros(300, int))
    return kind(fit_baselines(spectra, keys), 64), spectra


class TestPrecision:
    def test_scores_are_computed_in_the_precision_of_the_manifest(self, tmp_path: Path) -> None:
        detector, spectra = small_detector(HalfPrecise)
        codes = np.ones(300, np.int32)
        assert set(detector.score(spectra, codes)) == {32.0}
        detector.precision = "bfloat16"
        detector.save(tmp_path)
        assert read_json(tmp_path / "manifest.json")["precision"] == "bfloat16"
        restored = restore_detector(HalfPrecise, tmp_path)
        assert restored.precision == "bfloat16"
        assert set(restored.score(spectra, codes)) == {16.0}

    def test_only_networks_leave_float32(self, built: Path) -> None:
        params = load_params(built / "params.yaml").train.model_copy(update={"precision": "bfloat16"})
        for name, expected in (("autoencoder", "bfloat16"), ("pca", "float32")):
            detector, history = trained_on_few(name, params)
            assert detector.precision == history["precision"] == expected


def trained_on_few(name: str, params: TrainParams) -> tuple[Detector, dict[str, Any]]:
    keys, time_N = keys_and_times(hours=60)
    spectra = np.exp(np.random.default_rng(1).normal(size=(len(keys), 8))).astype(np.float32)
    rows = Rows(
        spectra=spectra,
        machine=keys.machine_N,
        machines=keys.machines,
        epoch=keys.epoch_N,
        condition=keys.condition_N,
        conditions=keys.conditions,
        time_us=time_N,
        status=pa.table({"row": np.arange(len(keys))}),
    )
    fleet = FleetSpec.model_construct(kind="spectrum")
    return train_detector(name, rows, roles(len(keys)), fleet, params, seed=1)


class TestBadModels:
    def test_weights_for_another_number_of_bins_are_refused(self, tmp_path: Path) -> None:
        detector, _ = small_detector()
        detector.save(tmp_path)
        manifest = read_json(tmp_path / "manifest.json")
        write_json(tmp_path / "manifest.json", manifest | {"bins": 63})
        with pytest.raises(ReleaseError, match="got baselines of 4 bins, expected 63"):
            load_detector(tmp_path)

    def test_layers_that_do_not_fit_the_manifest_are_refused(self, built: Path, tmp_path: Path) -> None:
        shutil.copytree(built / "data/models/autoencoder", tmp_path / "model")
        manifest = read_json(tmp_path / "model/manifest.json")
        manifest["settings"]["params"]["latent"] += 1
        write_json(tmp_path / "model/manifest.json", manifest)
        with pytest.raises(ReleaseError, match="expected weights that fit the manifest"):
            load_detector(tmp_path / "model")

    def test_spectra_with_another_number_of_bins_are_refused(self) -> None:
        detector, spectra = small_detector()
        with pytest.raises(ContractError, match=r"expected \(N, 4\)"):
            detector.score(spectra[:, :3], np.zeros(300, np.int32))


def test_principal_components_come_from_all_parts_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, spectra = small_detector(PcaDetector)
    codes = np.ones(300, np.int32)
    rows = TrainingRows(spectra, codes, spectra[:50], codes[:50])
    detector.fit(rows, Fitting(1, torch.device("cpu")))
    whole = detector.arrays()
    monkeypatch.setattr("pipeline.detectors.linear.PART_ROWS", 70)
    again, _ = small_detector(PcaDetector)
    again.fit(rows, Fitting(1, torch.device("cpu")))
    for name, value in again.arrays().items():
        assert np.allclose(np.abs(value), np.abs(whole[name]), rtol=1e-5, atol=1e-6), name
