"""The parts of benchmarks/harbor.py that decide what its figures mean, on a fleet of twelve machines."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.policy_state import page_episodes

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))  # they are not installed

import harbor  # noqa: E402
from harbor_fleet import scoring  # noqa: E402
from harbor_fleet.judging import calibrated, chosen_by_build, machine_of_rows, pages_of  # noqa: E402
from harbor_fleet.plan import CALIBRATION_LOOK_DAYS, LOOK_DAYS, Failure, plan, spread, taken_in_turn  # noqa: E402
from harbor_fleet.plant import DAY, HORIZON, LEVELS_OF, Plant, Setup  # noqa: E402
from harbor_fleet.scoring import scored_fleet  # noqa: E402
from harbor_fleet.training import settings_of  # noqa: E402

REPORTED = (
    "events",
    "events_by_chance",
    "events_caught_energy",
    "events_caught_ensemble",
    "events_caught_pca",
    "false_pages_per_day",
    "false_pages_upper",
    "low_fpr",
    "low_fpr_ci",
    "median_lead_time_hours",
    "naive_pages_per_day",
    "page_fpr",
    "page_fpr_ci",
    "peak_rss_gib",
    "physics",
    "wall_s",
)


@pytest.fixture(scope="module")
def setup():
    return Setup(
        seed=1,
        machines=12,
        interval_seconds=600,
        days=120,
        train_days=50,
        calibration_days=21,
        train_rows=3_600,
        calibration_hours=96,
        budget_days=24,
        healthy_days=36,
        tune_failures=2,
        test_failures=2,
        detectors=("pca", "energy_zscore"),
        levels=LEVELS_OF,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("scores")


@pytest.fixture(scope="module")
def result(setup, cache):
    return harbor.measured([setup], cache)


def test_a_fleet_goes_through_the_real_stages_to_every_reported_figure(result, setup) -> None:
    fleet = result["by_fleet"][0]
    assert all(result[key] is not None for key in REPORTED if key != "median_lead_time_hours")
    assert result["physics_as_closed"]
    assert set(fleet["detectors"]) == {*setup.detectors, "ensemble"}
    assert fleet["training"]["cleaned"]
    assert fleet["training"]["train_rows"] > 2_000
    assert 0 < fleet["training"]["ill_share"] < 0.2
    assert 30 < fleet["machine_days"] < 36 + 2 * 7
    for figures in fleet["detectors"].values():
        assert figures["events_caught"] <= fleet["events"] == 2
        assert figures["false_pages_upper"] > figures["false_pages_per_day"]
        assert 99.5 < figures["page_percentile"] < 100
        assert figures["cool_down_hours"] in (0, 24)
    json.dumps(result, allow_nan=False)


def test_scores_in_the_cache_give_the_same_figures_without_training(setup, cache, result, monkeypatch) -> None:
    monkeypatch.setattr(scoring, "train_all", None)
    monkeypatch.setattr(scoring, "score_part", None)
    again = harbor.measured([setup], cache)["by_fleet"][0]
    first = result["by_fleet"][0]
    assert {key: again[key] for key in again if key != "wall_s"} == {
        key: first[key] for key in first if key != "wall_s"
    }


def test_confirmed_pages_leave_only_truly_healthy_days_to_the_budget(setup, cache, result) -> None:
    confirmed = harbor.measured([setup], cache, confirmed=True)
    assert confirmed["confirmed"]
    fleet = scored_fleet(setup, cache)
    budget = calibrated(fleet, 600_000_000, settings_of(setup), "fleet").judged["budget"]
    ill = result["by_fleet"][0]["budget_days_ill_in_truth"]
    assert 0 < ill == budget.ill_S.sum()
    assert budget.days - ill - 0.5 < budget.without_ill().days < budget.days - 0.5


def test_levels_of_machines_judge_the_same_scores(setup, cache, result, monkeypatch) -> None:
    monkeypatch.setattr(scoring, "train_all", None)
    assert dataclasses.replace(setup, levels=("machine",)).key() == setup.key()
    params, fleet = settings_of(setup), scored_fleet(setup, cache)
    plain, leveled = (calibrated(fleet, 600_000_000, params, levels) for levels in LEVELS_OF)
    machine = machine_of_rows(fleet.plan.parts["calibration"], fleet.scores["calibration"])
    scores, brought = (each.references["pca"].scores for each in (plain, leveled))
    for one in range(setup.machines):
        ratio = (scores / brought)[machine == one]
        assert np.ptp(ratio) < 1e-9 * ratio.max(), "a machine has one level"
    assert np.ptp(_high(brought, machine)) < np.ptp(_high(scores, machine)), "their machines lie closer together"
    assert set(leveled.judged["test"].scores) == {*setup.detectors, "ensemble"}
    figures = result["by_fleet"][0]["detectors"]["pca"]
    assert {name.split(", ")[1] for name in figures["policies"]} <= set(LEVELS_OF)
    if figures["within_budget"]:
        assert figures["tune_caught"] == max(figures["policies"].values())


def _high(values, group):
    return [np.log(np.percentile(values[group == one], 90)) for one in np.unique(group)]


def test_what_judges_is_later_and_nothing_is_used_twice(setup) -> None:
    plant = Plant(setup)
    planned = plan(plant)
    assert max(stretch.end for stretch in planned.training) <= setup.train_days
    parts = planned.parts
    for what in ("calibration", "budget"):
        days = [stretch.begin for stretch in parts[what].stretches]
        assert setup.train_days + HORIZON <= min(days)
        assert max(days) < setup.calibration[1]
    assert min(stretch.begin for stretch in parts["test"].stretches) >= setup.calibration[1] + HORIZON
    early = [(each.machine, int(each.begin)) for what in ("calibration", "budget") for each in parts[what].stretches]
    looks = CALIBRATION_LOOK_DAYS * setup.machines
    assert len(set(early)) == len(early) == looks + setup.budget_days
    minutes = [len(stretch.minutes) for stretch in parts["calibration"].stretches]
    assert sum(minutes) == pytest.approx(setup.calibration_hours * 60, rel=0.01)
    assert not {event.failure_id for event in parts["tune"].events} & {
        event.failure_id for event in parts["test"].events
    }
    for windows in (parts["tune"], parts["test"]):
        for week in windows.stretches:
            for what in ("calibration", "budget", "test"):
                for each in parts[what].stretches:
                    apart = each.machine != week.machine or each.end <= week.begin or each.begin >= week.end
                    assert apart or each == week or not week.window
    for stretch in parts["test"].stretches:
        if not stretch.window:
            mine = [fault for fault in plant.history.faults if fault.machine == stretch.machine]
            assert all(fault.end <= stretch.begin or fault.onset >= stretch.end for fault in mine)


def test_a_share_of_the_rows_that_train_are_minutes_of_many_days(setup) -> None:
    wanted = dataclasses.replace(setup, train_rows=setup.machines * 240, interval_seconds=60.0, looks_share=0.75)
    plant = Plant(wanted)
    minutes = [stretch for stretch in plan(plant).training if stretch.minutes]
    mine = [stretch for stretch in minutes if stretch.machine == 1]
    assert len(mine) == len({stretch.begin for stretch in mine}) == min(LOOK_DAYS, wanted.train_days)
    assert sum(len(stretch.minutes) for stretch in mine) == 180
    assert all(stretch.begin <= at < stretch.end for stretch in mine for at in stretch.minutes)
    heard = sum(table.num_rows for stretch in mine for table in plant.tables(stretch))
    assert 0.9 * 180 < heard <= 1.02 * 180, "a row a minute, but for those that got lost"
    hours = [stretch for stretch in plan(plant).training if not stretch.minutes]
    assert len(hours) == wanted.machines


def test_training_hours_are_each_machines_own_or_the_same_of_all(setup) -> None:
    for hours, same in (("machine", False), ("fleet", True)):
        planned = plan(Plant(dataclasses.replace(setup, hours=hours, looks_share=0.0)))
        begins = [{s.begin for s in planned.training if s.machine == machine} for machine in range(12)]
        assert {len(mine) for mine in begins} == {50}  # 3,600 rows of 12 machines and 6 an hour
        assert (begins[0] == begins[1]) is same


def test_rows_of_a_stretch_are_those_that_a_scorer_takes(setup) -> None:
    plant = Plant(setup)
    first = plan(plant).parts["test"].stretches[0]
    heard = plant.hear(first)
    assert 900 < len(heard) <= 1_008  # seven days, an hour lost now and then
    assert (np.diff(heard.time_us_N) > 0).all()
    assert np.isfinite(heard.spectra_NF).all()
    assert (heard.spectra_NF >= 0).all()


def test_a_failure_is_positive_from_its_true_onset(setup) -> None:
    plant = Plant(setup)
    part = plan(plant).parts["test"]
    windows = {stretch.circle: stretch for stretch in part.stretches if stretch.window}
    for event in part.events:
        window = windows[event.machine]
        fault = next(f for f in plant.history.faults if f.machine == window.machine and f.end == window.end)
        onset = max(0.0, fault.onset - window.begin)
        assert event.start_us == pytest.approx(onset * DAY, abs=1)
        assert event.end_us == round(HORIZON * DAY)


def test_pages_of_the_rows_above_the_low_tier_are_those_of_all_rows(setup, cache, result) -> None:
    params, fleet = settings_of(setup), scored_fleet(setup, cache)
    mine = calibrated(fleet, 600_000_000, params, "fleet")
    chosen, test = chosen_by_build(mine, "pca", "fleet", params), mine.judged["test"]
    score, line = test.scores["pca"], test.line(chosen.choice.policy)
    assert (line.order == np.arange(len(score))).all()
    for page in (chosen.page, (chosen.page + chosen.low) / 2, chosen.low):
        loud = dataclasses.replace(chosen, page=page)
        found, every = pages_of(test, "pca", loud), page_episodes(line, score > chosen.low, score > page)
        np.testing.assert_array_equal(found.first, every.first)
        np.testing.assert_array_equal(found.last, every.last)
    assert len(found)


def test_every_mode_has_its_turn_and_too_few_failures_are_refused() -> None:
    pool = [Failure(index, mode, 1.0, 9.0, True) for mode in "abc" for index in range(6 if mode == "a" else 2)]
    rng = np.random.default_rng(0)
    modes = [failure.mode for failure in taken_in_turn(pool, 6, rng, "x")]
    assert sorted(modes) == ["a", "a", "b", "b", "c", "c"]
    with pytest.raises(UserError, match="got 10 failures, expected 11"):
        taken_in_turn(pool, 11, rng, "x")


def test_machine_days_are_spread_over_machines_and_weeks() -> None:
    free = np.ones((20, 28), bool)
    free[3, 4:] = False
    chosen = spread(free, 80, np.random.default_rng(1), "x")
    assert len(set(chosen)) == 80
    machine, day = np.array(chosen).T
    assert (np.bincount(machine) == 4).all()
    assert (np.bincount(day[machine != 3] // 7) == 19).all()
    with pytest.raises(UserError, match="expected 600"):
        spread(free, 600, np.random.default_rng(1), "x")


def test_epochs_change_the_networks_and_nothing_else(setup) -> None:
    few = settings_of(dataclasses.replace(setup, epochs=4)).train
    usual = settings_of(setup).train
    assert (few.autoencoder.optimiser.max_epochs, few.vae.optimiser.max_epochs, few.vae.warmup_epochs) == (4, 4, 2)
    assert few.pca == usual.pca
    assert few.autoencoder.latent == usual.autoencoder.latent
