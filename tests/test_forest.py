from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest

from pipeline.detectors import Fitting, TrainingRows, fit_baselines, load_detector
from pipeline.detectors.baseline import BaselineTable
from pipeline.detectors.forest import ForestDetector, average_path_length, complete_tree, rounded_down
from pipeline.errors import ParamsError
from pipeline.params import ForestParams, parse_params
from pipeline.rows import RowKeys

BINS, CPU = 12, torch.device("cpu")


@pytest.fixture
def rows(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, BaselineTable]:
    """One machine whose bins follow two loads."""
    logs = rng.normal(size=(1200, 2)) @ rng.normal(size=(2, BINS)) + 0.3 * rng.normal(size=(1200, BINS))
    spectra = np.exp(logs).astype(np.float32)
    keys = RowKeys.of(["pump"], np.zeros(1200, int), np.zeros(1200, int))
    table = fit_baselines(spectra, keys)
    return spectra, table.codes(keys), table


def fitted(rows: tuple[np.ndarray, np.ndarray, BaselineTable], **settings: float) -> ForestDetector:
    spectra, code, table = rows
    detector = ForestDetector(table, 256, params=ForestParams.model_validate(settings))
    detector.fit(TrainingRows(spectra, code, spectra[:0], code[:0]), Fitting(5, CPU))
    return detector


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"trees": 7, "sample_rows": 64, "max_features": 0.4},
        {"trees": 30, "sample_rows": 4096},
        {"trees": 60, "sample_rows": 2},
    ],
)
def test_scores_are_those_of_scikit_learn(settings: dict[str, float], rows) -> None:
    spectra, code, _ = rows
    detector, params = fitted(rows, **settings), ForestParams.model_validate(settings)
    seen = detector.relative(spectra, code)[:, :-1].numpy()
    wanted = min(len(seen), params.trees * params.sample_rows)
    picked = np.sort(np.random.default_rng(5).choice(len(seen), wanted, replace=False))
    reference = IsolationForest(
        n_estimators=params.trees,
        max_samples=min(params.sample_rows, wanted),
        max_features=params.max_features,
        random_state=5,
    ).fit(seen[picked])
    odd = np.concatenate([spectra, spectra * 40, spectra[:, ::-1]])
    far = detector.relative(odd, np.resize(code, len(odd)))[:, :-1].numpy()
    np.testing.assert_allclose(
        detector.score(odd, np.resize(code, len(odd))), -reference.score_samples(far), rtol=0, atol=1e-6
    )


def test_a_row_on_a_threshold_goes_where_scikit_learn_sends_it(rng: np.random.Generator) -> None:
    """Few-valued numbers fall on thresholds often; float32 rows meet float64 thresholds."""
    seen = rng.integers(0, 4, (400, 3)).astype(np.float32)
    seen += rng.choice([0.0, 0.1, 1e-7], (400, 3)).astype(np.float32)
    grown = IsolationForest(n_estimators=20, max_samples=128, random_state=1).fit(seen)
    for tree, bins in zip(grown.estimators_, grown.estimators_features_, strict=True):
        feature, threshold, path_length = complete_tree(tree.tree_, bins, 9)
        values = np.concatenate([seen, np.tile(threshold[np.isfinite(threshold)][:, None], 3)])
        place = np.zeros(len(values), int)
        for _ in range(9):
            place = 2 * place + 1 + (values[np.arange(len(values)), feature[place]] > threshold[place])
        leaf = tree.tree_.apply(values)
        expected = tree.tree_.compute_node_depths()[leaf] - 1 + average_path_length(tree.tree_.n_node_samples[leaf])
        np.testing.assert_allclose(path_length[place], expected, rtol=1e-6)


def test_a_fault_in_one_bin_is_explained_by_that_bin(rows) -> None:
    spectra, code, _ = rows
    detector = fitted(rows)
    faulty = spectra.copy()
    faulty[:, 4] *= 100
    before, after = detector.explain(spectra, code), detector.explain(faulty, code)
    assert (after.argmax(1) == 4).mean() > 0.7  # of 12 bins that move together
    assert after[:, 4].mean() > 5 * before[:, 4].mean()
    assert (after >= 0).all()
    np.testing.assert_allclose(after.sum(1), detector.score(faulty, code), rtol=1e-9)


def test_path_lengths_of_places_are_means_of_the_training_rows_below(rows) -> None:
    detector = fitted(rows, trees=4, sample_rows=4096)
    spectra, code, _ = rows
    seen = detector.relative(spectra, code)[:, :-1].T.contiguous()
    for tree in range(4):
        part = slice(tree, tree + 1)
        *_, (_, _, leaf) = detector._walk(seen, part)
        lengths = detector.path_length[part].gather(1, leaf)
        assert float(lengths.mean()) == pytest.approx(float(detector.path_length[tree, 0]), rel=1e-5)


def test_few_and_constant_rows_and_a_single_bin_have_finite_scores() -> None:
    for spectra in (np.ones((12, BINS), np.float32), np.linspace(1, 2, 12, dtype=np.float32)[:, None]):
        keys = RowKeys.of(["pump"], np.zeros(12, int), np.zeros(12, int))
        table = fit_baselines(spectra, keys)
        detector = fitted((spectra, table.codes(keys), table), trees=5)
        scores = detector.score(spectra * 3, table.codes(keys))
        assert np.isfinite(scores).all()
        assert ((scores > 0) & (scores <= 1)).all()
        np.testing.assert_allclose(
            detector.explain(spectra, table.codes(keys)).sum(1), detector.score(spectra, table.codes(keys))
        )


def test_restored_from_arrays_it_gives_the_same_bits_and_another_seed_other_trees(rows, tmp_path: Path) -> None:
    spectra, code, table = rows
    detector = fitted(rows, trees=15)
    detector.save(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    np.testing.assert_array_equal(load_detector(tmp_path).score(spectra, code), detector.score(spectra, code))
    other = ForestDetector(table, 256, params=detector.params)
    other.fit(TrainingRows(spectra, code, spectra[:0], code[:0]), replace(Fitting(5, CPU), seed=6))
    assert not np.array_equal(other.score(spectra, code), detector.score(spectra, code))


def test_thresholds_round_down_to_float32(rng: np.random.Generator) -> None:
    values = rng.normal(size=1000)
    down = rounded_down(values)
    assert (down <= values).all()
    assert (np.nextafter(down, np.float32(np.inf)) > values).all()


def test_settings_out_of_range_name_their_line() -> None:
    with pytest.raises(ParamsError, match=r"line 3, train\.isolation_forest\.max_features: got 0"):
        parse_params("train:\n  isolation_forest:\n    max_features: 0\n")
