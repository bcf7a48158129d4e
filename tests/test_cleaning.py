"""The parts of cleaning: levels, episodes, cross-fitting, agreement, growth, and the gate's figures."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from cleaning_fleet import BINS, HOURS, Fleet

from pipeline.clean import clean
from pipeline.cleaning.episodes import episode_vectors, select
from pipeline.cleaning.gate import baselines_of, drawn_auroc, drawn_instability, quick_scores, win_table
from pipeline.cleaning.refinement import GROUPS, LEFT_OUT, contaminated_share, groups_of, grown, protected, refine
from pipeline.cleaning.regimes import fit_levels
from pipeline.cleaning.residuals import fit_model, kinds_of, standardised
from pipeline.params import BaselineParams, CleanParams
from pipeline.rows import load_rows
from pipeline.schema import FleetSpec, times_us


def rows_and_vectors(fleet: Fleet, folder: Path):
    split = fleet.write(folder)
    rows = select(split, np.ones(split.num_rows, bool), times_us(split["timestamp"]), 6.0)
    return rows, episode_vectors(folder, rows, BINS, condition_column="condition", log=True, seed=0)


def test_vectors_are_the_means_of_their_rows(tmp_path: Path) -> None:
    fleet = Fleet()
    rows, vectors = rows_and_vectors(fleet, tmp_path)
    assert sorted(vectors.conditions[:2]) == ["idle", "work"]
    assert vectors.rows_V.sum() == len(rows) == fleet.role_MH.size
    work = vectors.conditions.index("work")
    first = np.flatnonzero((vectors.episode_V == 0) & (vectors.condition_V == work))[0]
    expected = np.log(fleet.spectra[0, :6][~fleet.idle_H[:6]]).mean(axis=0)
    np.testing.assert_allclose(vectors.mean_VG[first, :BINS], expected, atol=0.05)


def test_a_shock_in_one_row_hardly_moves_its_episode(tmp_path: Path) -> None:
    fleet = Fleet()
    fleet.spectra[0, 1] *= 100.0
    _, vectors = rows_and_vectors(fleet, tmp_path)
    _, calm = rows_and_vectors(Fleet(), tmp_path / "calm")
    assert np.abs(vectors.mean_VG - calm.mean_VG).max() < 0.5  # unheld: 4.6 / 4 rows


def test_standardised_vectors_of_a_healthy_fleet_have_unit_spread(tmp_path: Path) -> None:
    _, vectors = rows_and_vectors(Fleet(), tmp_path)
    z_VG = standardised(vectors, kinds_of(vectors), np.ones(len(vectors.rows_V), bool))
    assert 0.8 < np.std(z_VG) < 1.2


def test_an_episode_is_judged_only_by_models_that_never_saw_its_day(tmp_path: Path) -> None:
    rows, _ = rows_and_vectors(Fleet(), tmp_path)
    group_E = groups_of(rows, 0)
    for machine in range(3):
        of_day = {}
        for group, day in zip(
            group_E[rows.machine_E == machine], rows.block_E[rows.machine_E == machine] // 4, strict=True
        ):
            assert of_day.setdefault(day, group) == group
        assert set(of_day.values()) == set(range(GROUPS))
    judges = [pair for pair in combinations(range(GROUPS), LEFT_OUT) if 0 in pair]
    assert len(judges) == 4


def test_neighbours_go_on_less_evidence_and_gaps_are_filled(tmp_path: Path) -> None:
    rows, _ = rows_and_vectors(Fleet(), tmp_path)
    evidence = np.zeros(len(rows.block_E))
    evidence[10:16] = [3, 5, 1, 1, 6, 3]
    evidence[40] = 3
    assert np.flatnonzero(grown(rows, evidence, 4.5)).tolist() == [10, 11, 12, 13, 14, 15]


def test_a_machine_keeps_its_protected_share_the_least_odd(tmp_path: Path) -> None:
    rows, _ = rows_and_vectors(Fleet(), tmp_path)
    evidence = np.arange(len(rows.block_E), dtype=float)
    removed, spared = protected(rows, evidence, rows.machine_E == 4, 0.75)
    of_machine = removed[rows.machine_E == 4]
    assert spared == [rows.machines[4]]
    assert of_machine.mean() == 0.25
    assert of_machine[-24:].all()
    nothing, none = protected(rows, evidence, evidence < 5, 0.75)
    assert (nothing.sum(), none) == (5, [])


def test_the_estimate_counts_what_stands_above_the_bulk() -> None:
    evidence = np.random.default_rng(0).normal(size=2000)
    weights = np.ones(2000, np.int64)
    assert contaminated_share(evidence, weights, evidence > 9) < 0.01
    evidence[:100] += 8
    assert 0.04 < contaminated_share(evidence, weights, evidence > 9) < 0.06


def removed_by_clean(fleet: Fleet, folder: Path, **settings):
    found = clean(folder, fleet.write(folder), FleetSpec(bins=BINS), CleanParams(**settings), 0, BaselineParams())
    return fleet.grid(found.table["removed"]).astype(bool), found.metrics


def test_a_fault_that_grows_for_days_does_not_hide_in_the_spread_that_it_causes(tmp_path: Path) -> None:
    fleet = Fleet()
    begin = HOURS * 3 // 5
    fleet.spectra[2, begin:, 5] *= np.linspace(1.0, 2.0, HOURS - begin)
    removed, _ = removed_by_clean(fleet, tmp_path)
    assert removed[2, HOURS * 4 // 5 :].mean() > 0.95
    assert removed[2, :begin].mean() < 0.05
    assert np.delete(removed, 2, axis=0).mean() < 0.01


def test_a_machine_keeps_its_protected_share_of_rows(tmp_path: Path) -> None:
    fleet = Fleet()
    fleet.spectra[2, 240:288, 5] *= 2.0
    removed, metrics = removed_by_clean(fleet, tmp_path, min_kept_share=0.95)
    assert 0.03 < removed[2].mean() <= 0.05
    assert not removed[2, :216].any()
    assert [text.split(":")[0] for text in metrics["warnings"]] == ["m2"]


def test_a_machine_that_was_never_well_is_named_and_keeps_its_rows(tmp_path: Path) -> None:
    fleet = Fleet()
    fleet.spectra /= np.median(fleet.spectra, axis=1, keepdims=True)  # one make of machine
    fleet.spectra[6, :, 3:5] *= 8.0
    removed, metrics = removed_by_clean(fleet, tmp_path)
    assert not removed[6].any()
    assert any(text.startswith("m6:") and "Its rows stay" in text for text in metrics["warnings"])


@pytest.mark.parametrize("fits", [0.5, 1.0])
def test_rows_relative_to_their_own_baseline_are_those_of_known_machines(tmp_path: Path, fits: float) -> None:
    fleet = Fleet()
    split = fleet.write(tmp_path)
    rows = load_rows(tmp_path, split, np.ones(split.num_rows, bool), BINS, "condition")
    describes = rows.machine < fits * len(rows.machines)
    baselines = baselines_of(rows, describes, log=True)
    np.testing.assert_array_equal(baselines.is_own(baselines.codes(rows.keys)), describes)
    judged = np.arange(len(rows)) % 7 == 0
    score = quick_scores(rows, describes, baselines, judged)
    assert score.shape == (judged.sum(),)
    assert np.isfinite(score).all()


def test_an_autoencoder_can_take_the_place_of_the_components() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(120, 1)) * np.ones(BINS + 1) + 0.1 * rng.normal(size=(120, BINS + 1))).astype(
        np.float32
    )
    found = fit_model("autoencoder", vectors, 2, 0).coordinates(vectors)
    assert found.shape == (120, 2 + BINS + 1)
    assert np.isfinite(found).all()


def test_refinement_settles(tmp_path: Path) -> None:
    fleet = Fleet()
    fleet.spectra[2, 240:288, 5] *= 2.0
    found = refine(*rows_and_vectors(fleet, tmp_path), CleanParams(), 0)
    assert found.rounds[-1]["changed_share"] <= 0.001
    assert len(found.rounds) < CleanParams().max_rounds


def test_a_level_that_does_not_come_back_is_no_regime() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(480, 4)).astype(np.float32)
    rows[100:148] += 30  # two days of twenty
    levels = fit_levels(rows, np.zeros(480, int), np.arange(480) // 24, 1)
    assert set(levels.codes(rows, np.zeros(480, int))) == {0}


def test_the_auroc_of_the_table_is_that_of_the_scores() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    positive, group = rng.random(500) < 0.3, rng.integers(4, size=500)
    score = rng.normal(size=500) + positive
    table = win_table(score, group, positive)
    raw, cleaned = drawn_auroc(table, table, 0)
    np.testing.assert_allclose(raw[0], roc_auc_score(positive, score))
    np.testing.assert_array_equal(raw, cleaned)


def test_tails_that_hold_are_stable() -> None:
    rows = np.full(5, 1000)
    holds, breaks = drawn_instability((np.full(5, 10.0), rows), (np.full(5, 40.0), rows), 0)
    assert np.isclose(holds[0], 0)
    assert np.isclose(breaks[0], np.log(4))
