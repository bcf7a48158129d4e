"""The protocol of benchmarks/quality.py: who trains, who is judged, and how differences are tested."""

from __future__ import annotations

import importlib.util
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.backtest import BacktestRequest, LabelledRecording, read_recording
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.schema import Role

ROOT = Path(__file__).resolve().parent.parent
FITS = (Role.BASELINE, Role.TRAIN, Role.VALIDATION, Role.CALIBRATION)


@pytest.fixture(scope="module")
def quality():
    spec = importlib.util.spec_from_file_location("quality", ROOT / "benchmarks/quality.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["quality"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lives(tmp_path: Path, rng: np.random.Generator) -> LabelledRecording:
    """Four bearings run to failure, labelled as FEMTO is; bins rise at the end of each life."""
    frames = []
    for machine in range(4):
        life = (np.arange(200 + 40 * machine) + 1) / (200 + 40 * machine)
        logs = rng.normal(size=8) + 0.3 * rng.normal(size=(len(life), 8)) + 8 * np.clip(life - 0.8, 0, 1)[:, None]
        frame = pd.DataFrame(np.exp(logs).astype(np.float32), columns=[f"bin_{i:02d}" for i in range(8)])
        frame["machine_id"], frame["life_frac"] = f"bearing {machine}", life
        frame["timestamp"] = pd.Timestamp("2000-01-01") + pd.to_timedelta(np.arange(len(life)) * 10, unit="s")
        frame["label"] = np.select([life <= 0.5, life <= 0.9], [0, -1], 1)
        frames.append(frame)
    pd.concat(frames).to_parquet(tmp_path / "lives.parquet", index=False)
    return read_recording(BacktestRequest(tmp_path / "lives.parquet", timezone="UTC", time="relative"))


def in_roles(role: np.ndarray, *names: Role) -> np.ndarray:
    return np.isin(role, [str(name) for name in names])


def test_a_bearing_is_judged_by_models_that_never_saw_it_beyond_its_baseline(quality, lives: LabelledRecording) -> None:
    folds = quality.leave_one_machine_out(lives)
    life, machine = lives.frame["life_frac"].to_numpy(), lives.rows.machine
    assert len(folds) == 4
    for left, fold in enumerate(folds):
        test = fold.role == Role.TEST
        assert np.unique(machine[test]).tolist() == [left]
        assert left not in machine[in_roles(fold.role, Role.TRAIN, Role.VALIDATION, Role.CALIBRATION)]
        assert set(machine[fold.role == Role.BASELINE]) == {0, 1, 2, 3}
        assert life[fold.role == Role.BASELINE].max() < 0.15 <= life[test].min()
        assert (lives.label[in_roles(fold.role, *FITS)] == 0).all()
        assert (test == ((machine == left) & (life >= 0.15))).all()


@pytest.mark.parametrize("new_groups_only", [True, False])
def test_records_that_train_are_never_judged(quality, rng: np.random.Generator, new_groups_only: bool) -> None:
    label, number = np.repeat([0, 1], 60), np.tile(np.repeat(np.arange(12), 5), 2)
    group = number + 12 * label
    folds = quality.every_other(label, group, number, new_groups_only=new_groups_only)
    for parity, fold in zip((1, 0), folds, strict=True):
        fits, test = in_roles(fold.role, Role.TRAIN, Role.VALIDATION), fold.role == Role.TEST
        assert not np.intersect1d(group[fits], group[test]).size
        assert not np.intersect1d(group[fold.role == Role.TRAIN], group[fold.role == Role.VALIDATION]).size
        assert (fits == ((label == 0) & (number % 2 == parity))).all()
        assert (fold.role == Role.VALIDATION).sum() == 5
        judged = number % 2 != parity if new_groups_only else ~fits
        assert (test == judged).all()
    both = np.stack([fold.role == Role.TEST for fold in folds])
    assert both.any(0)[label == 0].all()  # every healthy record is judged once, by models that did not see it
    assert both.sum(0)[label == 0].max() == 1


def test_windows_that_train_come_before_those_that_are_judged(quality) -> None:
    label, group = np.tile(np.repeat([0, 1], [15, 10]), 3), np.repeat([0, 1, 2], 25)
    (fold,) = quality.first_half_of_each(label, group)
    place = np.arange(len(label))
    for mine in (group == part for part in range(3)):
        fits = mine & in_roles(fold.role, Role.TRAIN, Role.VALIDATION)
        healthy = mine & (fold.role == Role.TEST) & (label == 0)
        assert (fits.sum(), healthy.sum()) == (7, 7)
        assert place[fits].max() + 2 == place[healthy].min()
        assert (fold.role[mine & (label == 1)] == str(Role.TEST)).all()
        assert place[mine & (fold.role == Role.VALIDATION)].min() > place[mine & (fold.role == Role.TRAIN)].max()


def test_half_of_the_normal_rows_train_and_large_tables_keep_their_share_of_faults(quality) -> None:
    label = np.repeat([0, 1], [900, 100])
    (whole,) = quality.half_of_normals(label, 1, 10_000)
    fits, test = in_roles(whole.role, Role.TRAIN, Role.VALIDATION), whole.role == Role.TEST
    assert (fits.sum(), test.sum(), label[fits].sum()) == (450, 550, 0)
    (part,) = quality.half_of_normals(label, 1, 500)
    used = in_roles(part.role, Role.TRAIN, Role.VALIDATION, Role.TEST)
    assert (used.sum(), label[used].sum()) == (500, 50)
    (other,) = quality.half_of_normals(label, 2, 500)
    assert (other.role != part.role).any()


def test_the_sign_flip_test_is_exact(quality, rng: np.random.Generator) -> None:
    for size in (1, 4, 6):
        values = rng.normal(0.3, 1, size)
        means = [np.mean(values * np.array(signs)) for signs in product((1, -1), repeat=size)]
        assert quality.sign_flip_p(values) == np.mean(np.array(means) >= values.mean() - 1e-12)
    assert quality.sign_flip_p([0.1] * 6) == 1 / 64
    assert quality.sign_flip_p([0.0] * 6) == 1
    assert quality.sign_flip_p([-0.1] * 6) == 1


def test_an_interval_holds_the_figure_and_is_wider_where_groups_are_alike_inside(quality, rng) -> None:
    label = np.tile([0, 1], 300)
    score = label + rng.normal(size=600)
    whole = roc_auc_score(label, score)
    rows = quality.drawn_interval([quality.Judged(label, np.arange(600), score)], 1)
    group = np.arange(600) // 100
    shifted = score + rng.normal(size=6)[group] * 2 * label
    groups = quality.drawn_interval([quality.Judged(label, group, shifted)], 1)
    assert rows[0] < whole < rows[1]
    assert 0.03 < rows[1] - rows[0] < 0.1  # the standard error of an AUROC of 0.76 over 300 pairs of rows is 0.02
    assert groups[1] - groups[0] > 2 * (rows[1] - rows[0])
    assert quality.drawn_interval([quality.Judged(label, np.zeros(600, int), score)], 1) is None


def test_detectors_and_references_judge_the_same_rows(quality, lives: LabelledRecording) -> None:
    data = quality.DataSet("femto_x", lives, lambda _seed: quality.leave_one_machine_out(lives), pooled=True)
    for name in ("squared_distance", "sklearn_pca"):
        found = quality.measure(data, name, Params())
        assert found.auroc[0] > 0.9
        figures = found.to_json(lives.rows.machines)
        assert list(figures["auroc_per_machine"]) == [f"bearing {index}" for index in range(4)]
        assert figures["auroc_ci"][0] <= figures["auroc"] <= figures["auroc_ci"][1]
    fold = quality.leave_one_machine_out(lives)[1]
    ours, reference = (
        judge(name, lives, fold, Params(), 1)
        for judge, name in ((quality.by_detector, "pca"), (quality.by_scikit_learn, "sklearn_pca"))
    )
    assert len(ours.label) == int(((fold.role == Role.TEST) & (lives.label >= 0)).sum())
    np.testing.assert_array_equal(ours.label, reference.label)


def test_goals_are_said_to_be_missed(quality) -> None:
    sets = {
        "femto_h": {"autoencoder": {"auroc": 0.94}},
        "adbench": {"autoencoder": {"auroc": 0.8}, "isolation_forest": {"auroc": 0.9}},
    }
    tests = {"femto_h": {"against": "squared_distance", "autoencoder": {"p_better": 0.02}}}
    met = {name: found["met"] for name, found in quality.goals(sets, tests, "autoencoder").items()}
    assert met == {"femto_h": False, "femto_h_better_than_squared_distance": True, "adbench": False}


def test_an_unknown_set_is_refused(quality, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got femto, expected some of femto_h"):
        quality.data_sets(tmp_path, ["femto"], Params())


def test_real_tables_are_read_as_numbers_and_lives_as_spectra(quality, real_data: Path) -> None:
    table, femto = quality.data_sets(real_data, ["adbench/thyroid", "femto_v"], Params())
    assert (table.recording.fleet.kind, femto.recording.fleet.kind) == ("features", "spectrum")
    assert quality.measure(table, "squared_distance", Params()).auroc[0] > 0.6
    assert len(femto.folds(0)) == 6
