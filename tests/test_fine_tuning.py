"""The stage `base_release`, and networks that start from the weights of another release."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipeline import base_release
from pipeline.base_release import FACTS, OUTPUT, base_network, copy_networks
from pipeline.detectors import Fitting, NeuralDetector, TrainingRows, fit_baselines, make_detector
from pipeline.detectors.base import load_arrays
from pipeline.engine.checkpoint import checkpoint_file
from pipeline.errors import ParamsError, ReleaseError
from pipeline.params import FineTuneParams, OptimiserParams, TrainParams, VaeParams, load_params, parse_params
from pipeline.release import release_id
from pipeline.rows import RowKeys
from pipeline.store import read_json, sha256_folder
from pipeline.train import run

ROOT = Path(__file__).resolve().parent.parent
BINS, ROWS = 8, 600
SMALL = {"latent": 2, "channels": [4], "kernel": 3, "optimiser": {"max_epochs": 8, "batch_rows": 64}}
UNKNOWN = "0123456789abcdef"


@pytest.fixture
def releases(built: Path, tmp_path: Path) -> tuple[Path, str]:
    """A folder of releases that holds the small build's, and its id."""
    identity = release_id(built / "data/release")
    shutil.copytree(built / "data/release", tmp_path / "home/releases" / identity)
    return tmp_path / "home/releases", identity


class TestStage:
    def test_it_copies_the_networks_byte_for_byte(self, releases: tuple[Path, str], tmp_path: Path) -> None:
        folder, identity = releases
        (tmp_path / "out").mkdir()
        assert copy_networks(folder, identity, tmp_path / "out") == ["autoencoder", "vae"]
        for name in ("autoencoder", "vae"):
            assert sha256_folder(tmp_path / "out" / name) == sha256_folder(folder / identity / "detectors" / name)
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"autoencoder", "vae", FACTS}

    def test_without_a_base_release_nothing_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        assert copy_networks(tmp_path / "nowhere", None, tmp_path / "out") == []
        assert read_json(tmp_path / "out" / FACTS) == {"base_release": None, "networks": []}

    def test_an_unknown_release_is_said(self, releases: tuple[Path, str], tmp_path: Path) -> None:
        with pytest.raises(ReleaseError, match=f"got base_release {UNKNOWN}, expected the id of a release"):
            copy_networks(releases[0], UNKNOWN, tmp_path)

    def test_a_damaged_release_is_refused(self, releases: tuple[Path, str], tmp_path: Path) -> None:
        folder, identity = releases
        weights = folder / identity / "detectors/vae/weights.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(bytes(data))
        with pytest.raises(ReleaseError, match=f"got bytes with the id .*, expected {identity}"):
            copy_networks(folder, identity, tmp_path)
        assert not (tmp_path / FACTS).exists()

    def test_an_id_is_no_path(self) -> None:
        with pytest.raises(ParamsError, match="base_release"):
            parse_params("base_release: ../../etc\n")

    def test_the_command_reads_the_home(
        self, releases: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, identity = releases
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HEARKEN_HOME", str(folder.parent))
        (tmp_path / "params.yaml").write_text(f"base_release: '{identity}'\n")
        base_release.main()
        assert base_network(tmp_path, identity, "vae") == tmp_path / OUTPUT / "vae"
        assert base_network(tmp_path, None, "vae") is None
        with pytest.raises(ReleaseError, match=f"got weights of {identity}, expected {UNKNOWN}"):
            base_network(tmp_path, UNKNOWN, "vae")
        (tmp_path / "params.yaml").write_text("base_release: null\n")
        base_release.main()
        assert [path.name for path in (tmp_path / OUTPUT).iterdir()] == [FACTS]

    def test_training_without_the_stage_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ReleaseError, match=f"got weights of none, expected {UNKNOWN}"):
            base_network(tmp_path, UNKNOWN, "vae")


def training_rows(seed: int = 3) -> tuple[np.ndarray, TrainingRows, Any]:
    """Correlated healthy spectra of a pump, and its baseline."""
    rng = np.random.default_rng(seed)
    shape = np.linspace(0, 2, BINS)
    level = rng.normal(size=(ROWS, 1)) * np.sin(shape) + rng.normal(size=(ROWS, 1)) * np.cos(shape)
    spectra = np.exp(level + 0.1 * rng.normal(size=(ROWS, BINS))).astype(np.float32)
    baselines = fit_baselines(spectra, RowKeys.of(["pump"], np.zeros(ROWS, int), np.zeros(ROWS, int)))
    codes = np.ones(ROWS, np.int32)
    return spectra, TrainingRows(spectra[:500], codes[:500], spectra[500:], codes[500:]), baselines


def made(name: str, baselines: Any, **settings: Any) -> NeuralDetector:
    params = TrainParams.model_validate({name: SMALL | settings})
    detector = make_detector(name, baselines, params, torch.device("cpu"))
    assert isinstance(detector, NeuralDetector)
    return detector


CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["autoencoder", "vae"])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Any]]:
    """A network's name, where it is saved, and its history."""
    _, rows, baselines = training_rows()
    detector = made(request.param, baselines)
    history = detector.fit(rows, Fitting(1, CPU))
    folder = tmp_path_factory.mktemp(request.param)
    detector.save(folder)
    return request.param, folder, history


class TestWeights:
    def test_training_starts_where_the_other_ended(self, trained: tuple[str, Path, dict[str, Any]]) -> None:
        name, folder, history = trained
        spectra, rows, baselines = training_rows()
        detector = made(name, baselines)
        fitting = Fitting(2, CPU, base=folder, fine_tune=FineTuneParams(max_epochs=3))
        tuned = detector.fit(rows, fitting)
        assert tuned["fine_tuned"]
        assert not history["fine_tuned"]
        assert len(tuned["epochs"]) == 3
        scratch = made(name, baselines).fit(rows, Fitting(2, CPU))["epochs"]
        assert tuned["epochs"][0]["validation_loss"] < 0.9 * scratch[0]["validation_loss"]
        assert tuned["epochs"][0]["validation_loss"] == pytest.approx(history["epochs"][-1]["validation_loss"], rel=0.2)
        scores = detector.score(spectra, np.ones(ROWS, np.int32))
        assert np.isfinite(scores).all()
        assert np.median(scores[500:]) == pytest.approx(np.median(scores[:500]), rel=0.5)  # statistics are its own

    def test_no_step_leaves_the_weights_as_they_were(self, trained: tuple[str, Path, dict[str, Any]]) -> None:
        name, folder, _ = trained
        _, rows, baselines = training_rows()
        detector = made(name, baselines)
        tiny = FineTuneParams(learning_rate_factor=1e-12, max_epochs=1)
        detector.fit(rows, Fitting(9, CPU, base=folder, fine_tune=tiny))
        _, expected = load_arrays(folder)
        found = detector.arrays()
        for key in (key for key in expected if key.startswith("network.")):
            assert np.allclose(found[key], expected[key], atol=1e-6), key

    def test_a_vae_begins_with_the_whole_beta(self) -> None:
        _, _, baselines = training_rows()
        detector = made("vae", baselines, annealing="linear", warmup_epochs=5)
        assert detector._annealed(1) == pytest.approx(0.2)  # type: ignore[attr-defined]
        detector.fine_tunes = True
        assert detector._annealed(1) == 1.0  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"latent": 3}, r"train\.{name}\.latent: got 3, expected 2 as the weights of base_release"),
            ({"channels": [4, 8]}, r"train\.{name}\.channels: got \[4, 8\], expected \[4\]"),
            ({"kernel": 5}, r"train\.{name}\.kernel: got 5, expected 3"),
            ({"activation": "relu"}, r"train\.{name}\.activation: got relu, expected gelu"),
            ({"architecture": "dense"}, r"train\.{name}\.architecture: got dense, expected convolutional"),
            ({"loss": "gaussian"}, r"train\.{name}\.loss: got gaussian, expected mse"),
        ],
    )
    def test_another_architecture_says_which_setting(
        self, trained: tuple[str, Path, dict[str, Any]], settings: dict[str, Any], message: str
    ) -> None:
        name, folder, _ = trained
        _, rows, baselines = training_rows()
        with pytest.raises(ReleaseError, match=message.replace("{name}", name)):
            made(name, baselines, **settings).fit(rows, Fitting(1, CPU, base=folder))

    def test_settings_that_weights_do_not_know_may_differ(self, trained: tuple[str, Path, dict[str, Any]]) -> None:
        name, folder, _ = trained
        _, rows, baselines = training_rows()
        other = made(name, baselines, loss="huber", score="residual", layers=[5])
        assert other.fit(rows, Fitting(1, CPU, base=folder))["fine_tuned"]

    def test_spectra_of_another_width_are_said(self, trained: tuple[str, Path, dict[str, Any]]) -> None:
        name, folder, _ = trained
        _, rows, _ = training_rows()
        wide = np.repeat(rows.spectra, 2, axis=1)
        baselines = fit_baselines(wide, RowKeys.of(["pump"], np.zeros(500, int), np.zeros(500, int)))
        twice = replace(rows, spectra=wide, validation=np.repeat(rows.validation, 2, axis=1))
        with pytest.raises(ReleaseError, match="bins of the data: got 16, expected 8"):
            made(name, baselines).fit(twice, Fitting(1, CPU, base=folder))

    def test_a_dead_network_is_trained_again_from_random_weights(
        self, trained: tuple[str, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name, folder, _ = trained
        _, rows, baselines = training_rows()
        detector = made(name, baselines)
        died = iter(["all rows have the same code", ""])
        monkeypatch.setattr(detector, "what_is_dead", lambda _probe: next(died, ""))
        history = detector.fit(rows, Fitting(1, CPU, base=folder, fine_tune=FineTuneParams(max_epochs=2)))
        assert history["restarts"] == 1
        assert not history["fine_tuned"]
        assert len(history["epochs"]) > 2


class TestCheckpoints:
    def test_a_checkpoint_from_random_weights_is_not_taken_up(
        self, trained: tuple[str, Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        name, folder, _ = trained
        _, rows, baselines = training_rows()
        scratch = Fitting(1, CPU, checkpoint=tmp_path)
        said: list[str] = []
        made(name, baselines).fit(rows, scratch)
        assert checkpoint_file(tmp_path / "1").is_file()
        # even where the optimiser is the same
        same = FineTuneParams(learning_rate_factor=1, max_epochs=8)
        tuned = replace(scratch, base=folder, fine_tune=same, say=said.append)
        first = made(name, baselines)
        first.fit(rows, tuned)
        assert any("is of other parameters, data or code" in line for line in said)
        again, alone = made(name, baselines), made(name, baselines)
        said.clear()
        again.fit(rows, tuned)
        alone.fit(rows, replace(tuned, checkpoint=None))
        assert any("goes on after epoch" in line for line in said)
        for key, value in first.arrays().items():
            assert np.array_equal(value, again.arrays()[key]), key
            assert np.array_equal(value, alone.arrays()[key]), key


class TestSettings:
    def test_fewer_and_smaller_steps_and_never_more(self) -> None:
        optimiser = OptimiserParams(max_epochs=5, learning_rate=0.01)
        tuned = optimiser.fine_tuning(FineTuneParams(learning_rate_factor=0.5, max_epochs=9))
        assert (tuned.max_epochs, tuned.learning_rate) == (5, 0.005)
        assert tuned.patience == optimiser.patience

    def test_cycles_of_beta_need_no_room_in_fine_tuning(self) -> None:
        params = VaeParams(annealing="cyclical", cycles=4, optimiser=OptimiserParams(max_epochs=8))
        assert params.optimiser.fine_tuning(FineTuneParams(max_epochs=2)).max_epochs == 2


class TestTrainStage:
    def test_networks_start_from_the_base_and_others_do_not_ask(
        self,
        built: Path,
        releases: tuple[Path, str],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        folder, identity = releases
        root = tmp_path / "root"
        for name in ("raw", "status"):
            shutil.copytree(built / "data" / name, root / "data" / name)
        params = load_params(built / "params.yaml").model_copy(update={"base_release": identity})
        (root / OUTPUT).mkdir()
        copy_networks(folder, identity, root / OUTPUT)
        run("autoencoder", params, root)
        assert f"base release {identity}: training starts from its weights" in capsys.readouterr().out
        history = read_json(root / "data/models/autoencoder/history.json")
        assert history["fine_tuned"]
        assert 0 < history["baselines"]["own_share_newest_epochs"] <= 1
        run("pca", params, root)
        assert sha256_folder(root / "data/models/pca") == sha256_folder(built / "data/models/pca")

    def test_a_network_that_the_base_has_not_starts_anew(
        self, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = tmp_path / "root"
        for name in ("raw", "status"):
            shutil.copytree(built / "data" / name, root / "data" / name)
        params = load_params(built / "params.yaml").model_copy(update={"base_release": UNKNOWN})
        (root / OUTPUT).mkdir()
        (root / OUTPUT / FACTS).write_text(f'{{"base_release": "{UNKNOWN}", "networks": []}}')
        run("autoencoder", params, root)
        assert "starts from random weights, since it has no such network" in capsys.readouterr().out
        weights = [where / "data/models/autoencoder/weights.safetensors" for where in (root, built)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


class TestGraph:
    def test_training_depends_on_the_base_and_on_what_fine_tuning_is(self) -> None:
        assert str(OUTPUT) in GRAPH["train"]["deps"]
        assert {"base_release", "train.fine_tune"} <= set(GRAPH["train"]["params"])
        assert GRAPH["base_release"]["outs"] == [str(OUTPUT)]
        assert "base_release" in GRAPH["release"]["params"]  # it stands in the manifest

    @pytest.mark.server
    def test_a_worker_without_the_releases_gets_the_weights_from_the_remote(
        self, releases: tuple[Path, str], tmp_path: Path
    ) -> None:
        folder, identity = releases
        builder, worker = tmp_path / "builder", tmp_path / "worker"
        stage = {**GRAPH["base_release"], "deps": []}
        trains = {"cmd": f"cp -r {OUTPUT} trained", "deps": [str(OUTPUT)], "outs": ["trained"]}
        environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}

        def dvc(place: Path, *arguments: str, home: Path) -> None:
            values = environment | {"HEARKEN_HOME": str(home)}
            subprocess.run(["dvc", *arguments], cwd=place, env=values, check=True, capture_output=True)

        for place in (builder, worker):
            subprocess.run(["git", "init", "-q", str(place)], check=True)
            (place / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"base_release": stage, "train": trains}}))
            (place / "params.yaml").write_text(f"base_release: '{identity}'\n")
            dvc(place, "init", "-q", home=tmp_path)
            dvc(place, "remote", "add", "-d", "here", str(tmp_path / "remote"), home=tmp_path)
        dvc(builder, "repro", "base_release", home=folder.parent)
        dvc(builder, "push", "base_release", home=folder.parent)
        shutil.copyfile(builder / "dvc.lock", worker / "dvc.lock")
        dvc(worker, "repro", "--single-item", "--pull", "train", home=tmp_path / "nowhere")
        for name in ("autoencoder", "vae"):
            assert sha256_folder(worker / "trained" / name) == sha256_folder(folder / identity / "detectors" / name)


class TestSeed:
    def test_another_seed_changes_the_networks_and_neither_split_nor_plain_detectors(
        self, built: Path, tmp_path: Path
    ) -> None:
        root = tmp_path / "root"
        for name in ("raw", "status"):
            shutil.copytree(built / "data" / name, root / "data" / name)
        params = load_params(built / "params.yaml")
        other = params.model_copy(update={"seed": params.seed + 1})
        for name, same in (("autoencoder", False), ("squared_distance", True)):
            run(name, other, root)
            files = [where / "data/models" / name / "weights.safetensors" for where in (root, built)]
            assert (files[0].read_bytes() == files[1].read_bytes()) == same
