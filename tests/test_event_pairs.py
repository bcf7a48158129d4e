"""Differences between two detectors: exact on few failures, resampled on many, else null with a reason."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.alerts import MINUTE, AlertPolicy, Timeline
from pipeline.judging.breakdown import MachineDays, by_failure_mode, spread_metrics
from pipeline.judging.judged import Event, Outcome
from pipeline.judging.outcomes import outcome_at
from pipeline.judging.pairs import RATE, best_baseline, exact_p, pair_figures, resampled_rates

HOUR = 60 * MINUTE
POLICY = AlertPolicy(1, 1, MINUTE, 30 * MINUTE)
MACHINES, DAYS = 12, 20


def plant(machines: int = MACHINES) -> tuple[Timeline, MachineDays]:
    hours = DAYS * 24
    line = Timeline.of(
        np.repeat(np.arange(machines, dtype=np.int32), hours), np.tile(np.arange(hours) * HOUR, machines), POLICY
    )
    return line, MachineDays.of(line, np.ones(len(line.machine), bool), HOUR)


def alarms(line: Timeline, *places: tuple[int, int]) -> Outcome:
    """An outcome whose alerts open at (machine, hour)."""
    exceeds = np.zeros(len(line.machine), bool)
    exceeds[[machine * DAYS * 24 + hour for machine, hour in places]] = True
    return outcome_at(exceeds, line, [])


def failures(count: int) -> list[Event]:
    return [Event(f"f{index}", 0, 0, 1, 0, None) for index in range(count)]


def catching(*indices: int) -> Outcome:
    return Outcome(caught={f"f{index}": (0, 5.0) for index in indices})


def compared(outcomes: dict[str, Outcome], count: int, release: str = "own", **more: bool) -> tuple[dict, dict]:
    nulls: dict[str, str] = {}
    options = {"calendar": True, "seed": 3} | more
    found = pair_figures(outcomes, failures(count), plant()[1], release, nulls, **options)
    json.dumps(found, allow_nan=False)
    return found, nulls


def test_each_detector_stands_against_the_release_and_the_best_baseline() -> None:
    outcomes = {"own": catching(0, 1, 2), "pca": catching(0, 3), "energy_zscore": catching(0), "ensemble": catching(4)}
    found, _ = compared(outcomes, 5)
    assert found["against_release"]["against"] == "own"
    assert set(found["against_release"]["detectors"]) == {"pca", "energy_zscore", "ensemble"}
    assert found["against_best_baseline"]["against"] == "pca"
    own = found["against_best_baseline"]["detectors"]["own"]
    assert (own["only_detector"], own["only_against"], own["events_caught_difference"]) == (2, 1, 1)
    assert own["exact_p"] == 1.0
    mirrored = found["against_release"]["detectors"]["pca"]
    assert (mirrored["only_detector"], mirrored["only_against"], mirrored["events_caught_difference"]) == (1, 2, -1)


def test_few_failures_have_the_exact_test_and_no_interval() -> None:
    found, nulls = compared({"own": catching(0, 1, 2, 3, 4), "pca": catching()}, 6)
    figures = found["against_release"]["detectors"]["pca"]
    assert figures["events_caught_difference"] == -5
    assert figures["events_caught_difference_ci"] is None
    assert figures["exact_p"] == exact_p(0, 5) == 0.0625
    assert "6 failures are too few" in nulls["events_caught_difference_ci"]


def test_many_failures_are_resampled() -> None:
    found, _ = compared({"own": catching(*range(24)), "pca": catching(*range(4, 22))}, 28)
    low, high = found["against_best_baseline"]["detectors"]["own"]["events_caught_difference_ci"]
    assert 1 <= low < 6 < high <= 12
    # the mirrored comparison has the mirrored interval
    other = found["against_release"]["detectors"]["pca"]["events_caught_difference_ci"]
    assert other == [-high, -low]


def test_two_that_caught_the_same_have_no_interval_but_a_reason() -> None:
    found, nulls = compared({"own": catching(*range(20)), "pca": catching(*range(20))}, 28)
    figures = found["against_release"]["detectors"]["pca"]
    assert (figures["events_caught_difference"], figures["exact_p"]) == (0, 1.0)
    assert figures["events_caught_difference_ci"] is None
    assert "same failures" in nulls["events_caught_difference_ci"]


def test_without_failures_nothing_is_compared_but_false_episodes() -> None:
    line, _ = plant()
    found, nulls = compared({"own": alarms(line, (0, 5), (3, 9)), "pca": alarms(line, (1, 9))}, 0)
    figures = found["against_release"]["detectors"]["pca"]
    assert figures["events_caught_difference"] is None
    assert figures["exact_p"] is None
    assert "no failure" in nulls["exact_p"]
    assert figures[RATE] == pytest.approx(-1 / (MACHINES * DAYS), abs=1e-6)
    assert figures[f"{RATE}_ci"][0] < figures[RATE] < figures[f"{RATE}_ci"][1]


def test_a_difference_that_every_machine_shows_is_sure_and_one_of_a_single_machine_is_not() -> None:
    line, _ = plant()
    everywhere = alarms(line, *((machine, 30 * day) for machine in range(MACHINES) for day in range(4)))
    once = alarms(line, *((5, 30 * day) for day in range(15)))
    quiet = alarms(line, (0, 1))
    found, _ = compared({"own": quiet, "pca": everywhere, "energy_zscore": once}, 0)
    sure, unsure = (found["against_release"]["detectors"][name][f"{RATE}_ci"] for name in ("pca", "energy_zscore"))
    assert sure[0] > 0.1
    assert unsure[0] <= 0 < unsure[1]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"calendar": False}, "Dates are synthetic"), ({}, "as many on every machine-day")],
)
def test_what_false_episodes_cannot_tell_is_null_with_its_reason(changed: dict[str, bool], reason: str) -> None:
    line, _ = plant()
    found, nulls = compared({"own": alarms(line, (0, 5)), "pca": alarms(line, (0, 5))}, 0, **changed)
    figures = found["against_release"]["detectors"]["pca"]
    assert figures[f"{RATE}_ci"] is None
    assert (figures[RATE] is None) == bool(changed)
    assert any(key.endswith(f"{RATE}_ci") and reason in told for key, told in nulls.items())


def test_one_machine_has_a_difference_and_no_interval() -> None:
    line, days = plant(1)
    nulls: dict[str, str] = {}
    outcomes = {"own": alarms(line, (0, 5)), "pca": alarms(line)}
    found = pair_figures(outcomes, [], days, "own", nulls, calendar=True, seed=0)
    figures = found["against_release"]["detectors"]["pca"]
    assert (figures[RATE], figures[f"{RATE}_ci"]) == (-0.05, None)
    assert "only one" in nulls[f"{RATE}_ci"]


def test_the_best_baseline_caught_most_then_raised_fewest_and_may_be_missing() -> None:
    outcomes = {"energy_zscore": catching(0, 1), "pca": catching(0, 1), "ensemble": catching(0, 1, 2)}
    outcomes["energy_zscore"].false_episodes, outcomes["pca"].false_episodes = 2, 3
    assert best_baseline(outcomes) == "energy_zscore"
    found, nulls = compared({"own": catching(0), "ensemble": catching(1)}, 2)
    assert found["against_best_baseline"] == {"against": None, "detectors": {}}
    assert "None of the baselines" in nulls["pairs.against_best_baseline.against"]


@pytest.mark.parametrize("shape", [0.5, 1000.0])
def test_resampled_rates_keep_the_mean_and_know_how_far_machines_differ(rng, shape: float) -> None:
    machine = np.repeat(np.arange(30), 20)
    by_machine = rng.gamma(shape, 0.1 / shape, 30)  # machines that differ, and machines that differ by their days alone
    value = rng.poisson(by_machine[machine])[:, None].astype(float)
    order = rng.permutation(len(machine))
    drawn = resampled_rates(value[order], np.ones(len(machine)), machine[order], 1000, seed=1)
    assert drawn.mean() == pytest.approx(value.mean(), rel=0.05)
    means = value[:, 0].reshape(30, 20).mean(axis=1)
    assert drawn.std() == pytest.approx(means.std() / np.sqrt(30), rel=0.15)


def test_days_without_healthy_time_are_no_observation() -> None:
    drawn = resampled_rates(np.array([[2.0], [0.0]]), np.array([0.5, 0.0]), np.array([0, 1]), 200, seed=0)
    assert len(drawn) < 200  # draws of the second machine alone
    assert np.allclose(drawn, 4.0)


def test_machine_days_with_an_alert_and_lead_time_quartiles() -> None:
    line, days = plant()
    outcome = alarms(line, (0, 5), (0, 7), (0, 30), (4, 5))
    outcome.caught = {f"f{index}": (0, float(lead)) for index, lead in enumerate((10, 20, 30, 40, 50))}
    exceeds = np.zeros(len(line.machine), bool)
    exceeds[[5, 7, 30, 4 * DAYS * 24 + 5]] = True
    nulls: dict[str, str] = {}
    found = spread_metrics(outcome, line.alert_rows(exceeds), days, nulls)
    assert found["lead_time_quartiles_hours"] == [20.0, 30.0, 40.0]
    assert (found["machine_days_with_alert"], found["machine_days_observed"]) == (3, MACHINES * DAYS)
    assert found["machine_days_with_alert_share"] == pytest.approx(3 / 240)
    assert nulls == {}
    assert spread_metrics(Outcome(), np.zeros(0, np.int64), days, nulls)["lead_time_quartiles_hours"] is None
    assert "no lead time" in nulls["lead_time_quartiles_hours"]


def test_machine_days_count_rows_and_false_episodes_where_they_open() -> None:
    line, days = plant(2)
    assert len(days) == 2 * DAYS
    assert np.allclose(days.healthy_days_B, 1)
    outcome = alarms(line, (0, 25), (0, 26), (1, 3))
    assert np.flatnonzero(days.false_episodes(outcome)).tolist() == [1, DAYS]
    assert days.false_episodes(outcome).sum() == outcome.false_episodes
    assert days.false_episodes(Outcome()).tolist() == [0] * 2 * DAYS
    # an episode that catches is not false
    exceeds = np.zeros(len(line.machine), bool)
    exceeds[[25, 99]] = True
    caught = outcome_at(exceeds, line, [Event("f", 0, 99 * HOUR, 120 * HOUR, 99 * HOUR)])
    assert np.flatnonzero(days.false_episodes(caught)).tolist() == [1]


def test_failure_modes_are_told_apart_and_one_without_a_name_is_unknown() -> None:
    events = [Event(str(index), 0, 0, 1, 0, mode) for index, mode in enumerate(("wear", "wear", None, ""))]
    found = by_failure_mode(events, {"pca": Outcome(caught={"0": (0, 1.0), "3": (0, 1.0)})})
    assert {mode: row["events"] for mode, row in found.items()} == {"unknown": 2, "wear": 2}
    caught = found["wear"]["detectors"]["pca"]
    assert caught["events_caught"] == 1
    assert caught["events_caught_ci"][0] < 0.5 < caught["events_caught_ci"][1]
