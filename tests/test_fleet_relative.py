"""A machine against its peers: one that was never well cannot hide behind its own baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from pipeline.calibrate import tail_table
from pipeline.detectors import Detector, Fitting, TrainingRows, fit_baselines, load_detector, make_detector
from pipeline.detectors.baseline import BaselineTable
from pipeline.detectors.fleet_relative import against_peers, factor_covariance, peers_of
from pipeline.params import TrainParams
from pipeline.rows import RowKeys

BINS, ROWS, CPU = 24, 120, torch.device("cpu")
ILL, BROKEN = 5, slice(8, 13)
PARAMS = TrainParams.model_validate({"score_batch_rows": 128})


def rows_of(machines: int, seed: int, *, ill: int | None = ILL) -> tuple[np.ndarray, RowKeys]:
    """Machines that differ by a gain, a tilt and a little in each bin; one of them is louder in some bins, always."""
    rng, differ = np.random.default_rng(seed), np.random.default_rng(77)
    gain, tilt = differ.normal(size=(machines, 1)), differ.normal(size=(machines, 1)) * np.linspace(-1, 1, BINS)
    level = 0.6 * gain + 0.4 * tilt + 0.15 * differ.normal(size=(machines, BINS))
    if ill is not None:
        level[ill, BROKEN] += 1.2
    machine, condition = np.repeat(np.arange(machines), ROWS), np.tile([0, 1], machines * ROWS // 2)
    logs = level[machine] + 2 * condition[:, None] + 0.15 * rng.normal(size=(len(machine), BINS))
    names = [f"m{index}" for index in range(machines)]
    keys = RowKeys(names, machine, np.zeros(len(machine), int), ["idle", "cut"], condition)
    return np.exp(logs).astype(np.float32), keys


def fitted(
    name: str, machines: int, *, ill: int | None = ILL, scope: str = "machine+condition"
) -> tuple[Detector, dict]:
    spectra, keys = rows_of(machines, 1, ill=ill)
    table = fit_baselines(spectra, keys, scope=scope)
    code = table.codes(keys)
    detector = make_detector(name, table, PARAMS, CPU)
    return detector, detector.fit(TrainingRows(spectra, code, spectra[:8], code[:8]), Fitting(0, CPU))


@pytest.fixture(scope="module")
def detector() -> Detector:
    return fitted("fleet_relative", 20)[0]


@pytest.mark.parametrize("machines", [20, 40, 60])
def test_a_machine_that_was_never_well_stands_out_against_its_peers_and_not_against_itself(machines: int) -> None:
    spectra, keys = rows_of(machines, 2)
    ill = keys.machine_N == ILL
    found = {}
    for name in ("fleet_relative", "squared_distance"):
        each, _ = fitted(name, machines)
        found[name] = roc_auc_score(ill, each.score(spectra, each.baselines.codes(keys)))
    assert found["fleet_relative"] > 0.95
    assert abs(found["squared_distance"] - 0.5) < 0.1


def test_it_is_named_and_its_bins_are_shown(detector: Detector) -> None:
    _, history = fitted("fleet_relative", 40)
    assert history["far_from_peers"][0] == f"m{ILL}"
    assert f"m{ILL}" in history["warnings"][0]
    for machines in (10, 60):
        assert fitted("fleet_relative", machines, ill=None)[1]["far_from_peers"] == []
    spectra, keys = rows_of(20, 2)
    mine = keys.machine_N == ILL
    share_F = detector.explain(spectra[mine], detector.baselines.codes(keys.take(mine))).mean(0)
    assert share_F[BROKEN].sum() > 0.5 * share_F.sum()


def test_the_false_rate_on_later_healthy_rows_is_what_was_calibrated() -> None:
    """One threshold for the fleet; the ill machine is among the calibration rows, as it would be."""
    each, _ = fitted("fleet_relative", 20)
    spectra, keys = rows_of(20, 3)
    code = each.baselines.codes(keys)
    assert not each.matched, "scores do not depend on a machine's own baseline: there is nothing to match"
    score, days = each.score(spectra, code), keys.machine_N.astype(np.int64)
    table, _ = tail_table(each.name, score, days)
    later, same = rows_of(20, 4)
    tail = table.probability(each.score(later, each.baselines.codes(same)))
    healthy = same.machine_N != ILL
    assert (tail[healthy] < 0.01).mean() < 0.01
    assert np.median(tail[~healthy]) < 0.05


def test_new_machines_and_epochs_are_held_against_the_same_peers(detector: Detector) -> None:
    spectra, keys = rows_of(20, 2)
    known = detector.score(spectra, detector.baselines.codes(keys))
    repaired = detector.score(spectra, detector.baselines.next_epoch_codes(keys))
    np.testing.assert_allclose(repaired, known, rtol=1e-6)
    unknown = detector.score(spectra, detector.baselines.fleet_codes(keys))
    assert np.corrcoef(np.log(unknown), np.log(known))[0, 1] > 0.9


def test_a_machine_is_left_out_of_its_own_peers_where_there_are_few() -> None:
    spectra, keys = rows_of(4, 1, ill=2)
    own = fit_baselines(spectra, keys)
    table = against_peers(own, peers_of(own))
    first = len(own.location) - len(own.keys)
    idle = {key[0]: row for row, key in enumerate(own.keys[: own.own], start=first) if key[2] == "idle"}
    mine, others = [idle["m2"]], [row for machine, row in idle.items() if machine != "m2"]
    np.testing.assert_allclose(table.location[mine[0]], np.median(own.location[others], axis=0), rtol=1e-5)
    assert (table.scale[mine] > own.scale[mine]).all()


def test_one_machine_far_from_all_does_not_make_its_difference_usual() -> None:
    rng = np.random.default_rng(0)
    apart_KF = rng.normal(size=(30, BINS)) * 0.5
    machines = tuple(f"m{index}" for index in range(30))
    clean, _ = factor_covariance(apart_KF, machines)
    apart_KF[3] = 40.0
    loud, factors = factor_covariance(apart_KF, machines)
    assert factors == 3
    assert np.trace(loud) < 1.3 * np.trace(clean)
    assert (np.linalg.eigvalsh(loud) > -1e-9).all()


@pytest.mark.parametrize("machines", [1, 2])
def test_too_few_peers_are_said_and_scores_stay_finite(machines: int) -> None:
    each, history = fitted("fleet_relative", machines, ill=None)
    assert "too few" in history["warnings"][0]
    spectra, keys = rows_of(machines, 2, ill=None)
    assert np.isfinite(each.score(spectra, each.baselines.codes(keys))).all()


def test_without_baselines_of_machines_it_is_the_distance_from_the_fleet() -> None:
    each, history = fitted("fleet_relative", 20, scope="global")
    assert history["machines"] == 0
    spectra, keys = rows_of(20, 2)
    assert np.isfinite(each.score(spectra, each.baselines.codes(keys))).all()


def test_saved_it_keeps_its_peers(detector: Detector, tmp_path: Path) -> None:
    spectra, keys = rows_of(20, 2)
    detector.save(tmp_path)
    again = load_detector(tmp_path)
    assert isinstance(again.baselines, BaselineTable)
    np.testing.assert_array_equal(
        again.score(spectra, again.baselines.codes(keys)), detector.score(spectra, detector.baselines.codes(keys))
    )
