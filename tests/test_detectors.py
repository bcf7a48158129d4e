import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from pipeline.detectors import CLASSES, Detector, Fitting, TrainingRows, fit_baselines, load_detector, make_detector
from pipeline.detectors.baseline import BaselineTable
from pipeline.detectors.linear import PcaDetector
from pipeline.errors import ContractError, ReleaseError, UserError
from pipeline.params import WINDOW_DETECTORS, TrainParams
from pipeline.rows import RowKeys
from pipeline.schema import FleetSpec

BINS = 16
FLEET = FleetSpec.model_validate(
    {
        "band_edges_hz": list(range(0, 1601, 100)),
        "limits": {"amplitude": "rms", "zones": "iso20816-3-group2-rigid", "machines": {"a": [2.3, 4.5, 7.1]}},
    }
)
NAMES = ["a", "b"]
QUICK = TrainParams.model_validate(
    {
        "score_batch_rows": 64,
        "autoencoder": {
            "latent": 3,
            "channels": [4, 8],
            "optimiser": {"max_epochs": 12, "batch_rows": 64, "learning_rate": 0.01},
        },
        "vae": {
            "latent": 3,
            "channels": [4, 8],
            "optimiser": {"max_epochs": 12, "batch_rows": 64, "learning_rate": 0.01},
        },
    }
)


def healthy(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Two machines that differ, three hidden loads that move the bins together."""
    machine = rng.integers(0, 2, rows)
    mixing = np.random.default_rng(1).normal(size=(3, BINS))
    offset = np.random.default_rng(2).normal(size=(2, BINS))
    logs = rng.normal(size=(rows, 3)) @ mixing + offset[machine] + 0.1 * rng.normal(size=(rows, BINS))
    return np.exp(logs).astype(np.float32), machine


def keys_of(machine_N: np.ndarray, condition_N: np.ndarray | None = None) -> RowKeys:
    """Keys of rows of epoch 0, of the conditions `idle` and `cut` or of one."""
    keys = RowKeys.of(NAMES, machine_N, np.zeros(len(machine_N), int))
    return keys if condition_N is None else replace(keys, conditions=["idle", "cut"], condition_N=condition_N)


AllRows = tuple[np.ndarray, np.ndarray, BaselineTable]


@pytest.fixture(scope="module")
def rows() -> AllRows:
    spectra, machine = healthy(np.random.default_rng(0), 1500)
    keys = keys_of(machine)
    table = fit_baselines(spectra, keys)
    return spectra, table.codes(keys), table


def newly_fitted(name: str, rows: AllRows) -> Detector:
    spectra, code, table = rows
    detector = make_detector(name, table, QUICK, torch.device("cpu"), FLEET)
    training = TrainingRows(spectra[:1000], code[:1000], spectra[1000:], code[1000:])
    detector.fit(training, Fitting(3, torch.device("cpu")))
    return detector


@pytest.fixture(scope="module")
def fitted(rows: AllRows) -> Callable[[str], Detector]:
    """A detector by name, fitted once."""
    return cache(lambda name: newly_fitted(name, rows))


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in WINDOW_DETECTORS])
class TestEveryDetector:
    def test_a_row_scores_the_same_wherever_it_stands(self, name, rows, fitted) -> None:
        spectra, code, _ = rows
        detector = fitted(name)
        whole = detector.score(spectra, code)
        assert whole.dtype == np.float64
        assert np.isfinite(whole).all()
        for begin, end in ((1, 1500), (63, 66), (700, 701)):
            np.testing.assert_array_equal(detector.score(spectra[begin:end], code[begin:end]), whole[begin:end])

    def test_shares_of_the_bins_sum_to_the_score(self, name, rows, fitted) -> None:
        spectra, code, _ = rows
        detector = fitted(name)
        shares = detector.explain(spectra[:200], code[:200])
        assert shares.shape == (200, BINS)
        assert (shares >= 0).all()
        np.testing.assert_allclose(shares.sum(1), detector.score(spectra[:200], code[:200]), rtol=1e-5)

    def test_saved_and_loaded_it_gives_the_same_bits(self, name, rows, fitted, tmp_path: Path) -> None:
        spectra, code, _ = rows
        detector = fitted(name)
        detector.save(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"weights.safetensors", "manifest.json"}
        np.testing.assert_array_equal(load_detector(tmp_path).score(spectra, code), detector.score(spectra, code))

    def test_the_same_seed_gives_the_same_bytes(self, name, rows, fitted, tmp_path: Path) -> None:
        for part in ("one", "two"):
            (tmp_path / part).mkdir()
            newly_fitted(name, rows).save(tmp_path / part)
        first, second = ((tmp_path / part / "weights.safetensors").read_bytes() for part in ("one", "two"))
        assert first == second

    def test_a_fault_scores_higher_than_health(self, name, rows, fitted) -> None:
        spectra, code, _ = rows
        detector = fitted(name)
        faulty = spectra[1000:].copy()
        faulty[:, 5:8] *= 60
        scores = np.r_[detector.score(spectra[1000:], code[1000:]), detector.score(faulty, code[1000:])]
        assert roc_auc_score(np.repeat([0, 1], 500), scores) > 0.85

    def test_another_number_of_bins_is_refused(self, name, rows, fitted) -> None:
        detector = fitted(name)
        with pytest.raises(ContractError, match=r"got \(4, 15\), expected \(N, 16\)"):
            detector.score(np.ones((4, 15), np.float32), np.zeros(4, np.int32))


def test_pca_spans_the_hidden_loads(fitted) -> None:
    detector = fitted("pca")
    assert isinstance(detector, PcaDetector)
    assert detector.vectors.shape == (BINS, 3)


def test_baselines_make_machines_alike_and_unknown_ones_get_the_fleets(rng) -> None:
    spectra, machine = healthy(rng, 2000)
    table = fit_baselines(spectra, keys_of(machine), shrink_rows=1)  # these rows are independent
    code = table.codes(RowKeys.of([*NAMES, "new"], np.array([0, 1, 2, 0]), np.array([0, 0, 0, 3])))
    assert code.tolist() == [1, 2, 0, 3]
    relative = table.relative(
        torch.from_numpy(spectra), torch.from_numpy(machine + 1), table.tables(torch.device("cpu"))
    ).numpy()
    assert np.abs(np.median(relative[machine == 0], axis=0)).max() < 0.05
    assert 0.7 < relative.std() < 1.4
    # the fleet's baseline is wider than a machine's own wherever machines differ
    assert (table.scale[0] >= 0.9 * np.sqrt(np.median(table.scale[1:3] ** 2, axis=0))).all()
    assert table.scale[0].mean() > table.scale[3:].mean() > table.scale[1:3].mean()


def test_short_history_leans_on_the_fleet(rng) -> None:
    spectra, machine = healthy(rng, 1030)
    machine[:] = 0
    machine[1000:] = 1
    few = fit_baselines(spectra, keys_of(machine), shrink_rows=1000, min_rows=20)
    alone = fit_baselines(spectra, keys_of(machine), shrink_rows=0, min_rows=20)
    assert np.abs(np.log(few.scale[2] / few.scale[1])).mean() < np.abs(np.log(alone.scale[2] / alone.scale[1])).mean()
    short = fit_baselines(spectra, keys_of(machine), min_rows=40)
    assert short.keys[: short.own] == (("a", 0, ""),)
    assert ("b", 0, "") in short.keys[short.own :]


def test_zero_magnitudes_and_constant_bins_stay_finite() -> None:
    spectra = np.ones((100, BINS), np.float32)
    spectra[:, 3] = 0
    table = fit_baselines(spectra, keys_of(np.zeros(100, int)))
    detector = make_detector("squared_distance", table, QUICK, torch.device("cpu"))
    assert np.isfinite(detector.score(np.zeros((5, BINS), np.float32), np.ones(5, np.int32))).all()


def test_damaged_and_unknown_detectors_are_refused(rows, fitted, tmp_path: Path) -> None:
    detector = fitted("pca")
    detector.save(tmp_path)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ReleaseError, match=r"damaged weights|expected weights"):
        load_detector(tmp_path)
    detector.save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"detector": "oracle"}))
    with pytest.raises(ReleaseError, match="got 'oracle'"):
        load_detector(tmp_path)
    with pytest.raises(UserError, match="got 'oracle'"):
        make_detector("oracle", rows[2], QUICK, torch.device("cpu"))
