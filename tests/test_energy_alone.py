"""Energy alone catches between 30 and 70 % of the failures of the default mix: neither side is flattered."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from pipeline.params import load_params

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def energy_alone():
    spec = importlib.util.spec_from_file_location("energy_alone", ROOT / "benchmarks/energy_alone.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_z_score_is_that_of_its_group(energy_alone) -> None:
    rng = np.random.default_rng(1)
    group = np.repeat([0, 1, 2], [500, 500, 10])
    value = rng.normal(np.array([0.0, 50.0, 0.0])[group], np.array([1.0, 5.0, 1.0])[group])
    score = energy_alone.z_scores(value, group, np.arange(len(group)) % 2 == 0)
    assert np.std(score[:1000]) == pytest.approx(1, abs=0.1)
    assert np.isnan(score[group == 2]).all()  # too few rows to say


@pytest.mark.slow
def test_energy_alone_catches_some_and_misses_some(energy_alone) -> None:
    judged, caught, _, rate = energy_alone.measure(load_params(ROOT / "params.yaml"), 31, 200, 170)
    assert judged.total() >= 100
    assert 0.3 <= caught.total() / judged.total() <= 0.7
    assert rate <= 0.02
    assert caught["energy"] / judged["energy"] > 0.9
    assert caught["resonance_shift"] / judged["resonance_shift"] < 0.3
