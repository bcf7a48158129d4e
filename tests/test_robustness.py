"""The parts of benchmarks/robustness.py that decide what its figures mean."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.params import Params, load_params
from pipeline.schema import Role

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def robustness():
    spec = importlib.util.spec_from_file_location("robustness", ROOT / "benchmarks/robustness.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["robustness"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def plant(robustness):
    params = load_params(ROOT / "params.yaml")
    return robustness.simulated_plant(params, 3, 8, 60)


def test_noise_has_the_level_of_each_bin_and_leaves_the_middle_alone(robustness) -> None:
    spectra = np.full((20_000, 2), 3.0, np.float32)
    moved = np.log(robustness.jittered(spectra, np.array([[0.1, 0.4]], np.float32), 0.5, 1) / 3)
    np.testing.assert_allclose(moved.std(0), [0.05, 0.2], rtol=0.03)
    np.testing.assert_allclose(np.median(moved, 0), 0, atol=0.005)
    np.testing.assert_array_equal(robustness.jittered(spectra, np.ones((1, 2), np.float32), 0.0, 1), spectra)


def test_what_fits_is_earlier_than_what_calibrates_and_judges(plant) -> None:
    assert set(plant.fitting_role) >= {str(Role.TRAIN), str(Role.VALIDATION)}
    assert plant.fitting.time_us.max() < plant.calibration.time_us.min()
    assert plant.calibration.time_us.max() < plant.test.time_us.min()
    assert {0, 1} <= set(plant.label)
    for event in plant.events:
        mine = (plant.test.machine == event.machine) & (plant.label == 1)
        times = plant.test.time_us[mine]
        assert ((times >= event.start_us) & (times <= event.end_us)).any()


def test_noise_raises_alarms_and_thresholds_stay(robustness, plant) -> None:
    params = robustness.with_autoencoder(Params())
    detector, _ = robustness.trained("squared_distance", plant, params, 1)
    at = robustness.calibrated(detector, plant, params)
    scale = detector.baselines.scale[detector.baselines.codes(plant.test.keys), :-1]
    clean, noisy = (
        robustness.figures(detector, plant, at, robustness.jittered(plant.test.spectra, scale, level, 1))
        for level in (0.0, 2.0)
    )
    assert noisy["healthy_above_low_tier"] > 0.2 > 0.05 > clean["healthy_above_low_tier"]
    assert noisy["auroc"] < clean["auroc"] + 0.02


def test_variants_differ_from_the_settings_in_what_they_name_only(robustness) -> None:
    changed = robustness.with_autoencoder(Params(), noise={"gaussian": 0.5}, latent=3).train.autoencoder
    assert (changed.noise.gaussian, changed.latent) == (0.5, 3)
    assert changed.optimiser == Params().train.autoencoder.optimiser


def test_the_page_opens_without_a_network(robustness, tmp_path: Path) -> None:
    point = dict.fromkeys(robustness.FIGURES, 0.5) | {"auroc_range": [0.4, 0.6]}
    result = {
        "jitter": {name: [point | {"level": level} for level in (0, 1)] for name in (*robustness.VARIANTS, "x")},
        "bottleneck": [point | {"latent": latent, "validation_error": 0.2} for latent in (2, 48)],
    }
    robustness.drawn(result).write_html(tmp_path / "page.html", include_plotlyjs=True)
    page = (tmp_path / "page.html").read_text()
    assert "<script src=" not in page
    assert "Bottleneck: validation error" in page
    assert "gaussian 0.5" in page
