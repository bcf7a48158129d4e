"""The ensemble: agreement of detectors, calibrated on other machines than its members, and its way to disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.calibrate import crossed_statistic, ensemble_rule, tail_table
from pipeline.ensemble import EnsembleRule, TailTables, load_tails
from pipeline.errors import ParamsError
from pipeline.params import EnsembleParams, parse_params
from pipeline.schema import ENSEMBLE
from pipeline.tails import TailTable

MACHINES, ROWS = 20, 400


def fleet(rng: np.random.Generator, shared: float = 0.3) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Scores of three detectors that agree a little, of machines that differ, by machine and day."""
    machine, day = np.repeat(np.arange(MACHINES), ROWS), np.tile(np.arange(ROWS) // 20, MACHINES)
    common = rng.normal(size=MACHINES * ROWS)
    level = np.linspace(-0.3, 0.3, MACHINES)[machine]  # the same at every call
    scores = {
        name: np.exp(level + shared * common + np.sqrt(1 - shared**2) * rng.normal(size=MACHINES * ROWS))
        for name in ("pca", "vae", "energy_zscore")
    }
    return scores, machine, machine * 1000 + day


def made(scores: dict[str, np.ndarray], machine: np.ndarray, day: np.ndarray, agree: int) -> TailTables:
    rule = EnsembleRule(tuple(scores), agree)
    tables = {name: tail_table(name, values, day)[0] for name, values in scores.items()}
    statistic = crossed_statistic(rule, scores, machine, day)
    assert statistic is not None
    return TailTables(tables, rule, tail_table(ENSEMBLE, statistic, day)[0])


def comparable(tails: TailTables, scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    zeros = np.zeros(len(next(iter(scores.values()))), np.int32)
    return tails.comparable(scores, zeros, zeros)


@pytest.mark.parametrize("agree", [1, 2, 3])
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_the_percentile_of_an_ensemble_means_what_it_says_however_its_members_agree(
    rng: np.random.Generator, agree: int, shared: float
) -> None:
    tails = made(*fleet(rng, shared), agree)
    later, _, _ = fleet(rng, shared)
    probability = tails.probabilities(comparable(tails, later))[ENSEMBLE]
    for rate in (0.2, 0.02):
        assert (probability <= rate).mean() == pytest.approx(rate, rel=0.35)


def test_a_fault_that_one_member_hears_is_heard_by_the_smallest_and_not_by_two_that_must_agree(
    rng: np.random.Generator,
) -> None:
    scores, machine, day = fleet(rng)
    fault = {name: np.full(1, np.exp(6.0 if name == "vae" else 0.0)) for name in scores}
    one, two = (made(scores, machine, day, agree) for agree in (1, 2))
    assert one.probabilities(comparable(one, fault))[ENSEMBLE][0] < 1e-3
    assert two.probabilities(comparable(two, fault))[ENSEMBLE][0] > 0.1


def test_rows_are_calibrated_by_tables_that_their_machine_has_no_part_in(rng: np.random.Generator) -> None:
    scores, machine, day = fleet(rng)
    rule = EnsembleRule(tuple(scores))
    found = crossed_statistic(rule, scores, machine, day)
    loud = {name: np.where(machine == 4, values * 1e6, values) for name, values in scores.items()}
    moved = crossed_statistic(rule, loud, machine, day)
    assert found is not None
    assert moved is not None
    even = machine % 2 == 0
    np.testing.assert_array_equal(found[even & (machine != 4)], moved[even & (machine != 4)])
    assert (found[~even] != moved[~even]).any()
    few = machine < 3
    assert (
        crossed_statistic(rule, {name: values[few] for name, values in scores.items()}, machine[few], day[few]) is None
    )


def test_an_ensemble_needs_all_its_members_and_comes_back_from_disk(rng: np.random.Generator, tmp_path: Path) -> None:
    scores, machine, day = fleet(rng)
    tails = made(scores, machine, day, 2)
    assert ENSEMBLE not in comparable(tails, {"pca": scores["pca"]})
    tails.save(tmp_path)
    again = load_tails(tmp_path, tuple(scores), {"ensemble": {"members": list(scores), "agree": 2}})
    assert again.names == ("pca", "vae", "energy_zscore", ENSEMBLE)
    for name, values in comparable(tails, scores).items():
        np.testing.assert_array_equal(comparable(again, scores)[name], values)
    assert load_tails(tmp_path, ("pca",), {"ensemble": None}).names == ("pca",)


def test_members_are_those_that_there_are() -> None:
    assert ensemble_rule(EnsembleParams(), ("pca",)) is None
    assert ensemble_rule(EnsembleParams(members=("pca", "vae"), agree=2), ("vae", "energy_zscore", "pca")) == (
        EnsembleRule(("pca", "vae"), 2)
    )
    assert ensemble_rule(EnsembleParams(members=("pca", "vae"), agree=2), ("vae", "energy_zscore")) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("detectors: [pca]\nrelease: {detector: ensemble}", "release.detector=ensemble of 1, expected at least 2"),
        ("calibrate: {ensemble: {members: [pca, absolute_limit]}}", "expected some of detectors"),
        ("calibrate: {ensemble: {members: [pca, vae], agree: 3}}", "agree=3 of 2 members"),
        ("release: {detector: choir}", "got 'choir'"),
    ],
)
def test_an_ensemble_that_cannot_be_is_refused_at_the_door(text: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        parse_params(text)


def test_a_score_no_healthy_row_reached_is_rarer_than_any(rng: np.random.Generator) -> None:
    table = TailTable.of(rng.exponential(size=500))
    rule = EnsembleRule(("pca", "vae"))
    far = {"pca": table.probability(np.array([1e9])), "vae": table.probability(np.array([1.0]))}
    assert rule.statistic(far)[0] == pytest.approx(np.log10(501))
