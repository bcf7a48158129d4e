"""Drift or fault on fleets of numbers: many together are drift, one alone is a fault, a known season is neither."""

import datetime as dt
import json
from dataclasses import replace

import numpy as np
import pytest
from drift_fleet import PARAMS, decided, heard, moved, past

from pipeline.drift.columns import Heard
from pipeline.drift.limits import ENOUGH_DAYS, Limits, calibrate, matched_rows
from pipeline.errors import ContractError, ParamsError
from pipeline.params import MonitorParams, parse_params

MACHINES = 20
LATER = 40


@pytest.fixture(scope="module")
def known() -> tuple[Heard, Limits]:
    return past(MACHINES)


def test_quiet_fleets_have_not_drifted(known: tuple[Heard, Limits]) -> None:
    found = [decided(heard(MACHINES, [LATER], seed), *known) for seed in range(100, 160)]
    assert sum(one.drifted for one in found) == 0
    assert sum(len(one.alone) for one in found) <= 60 * MACHINES * 0.005, "single machines stay within their limits"
    assert all(one.changed_at is None and one.machines == () and one.group is None for one in found)


def test_a_fleet_that_moved_together_has(known: tuple[Heard, Limits]) -> None:
    found = decided(moved(heard(MACHINES, [LATER], 7), range(MACHINES), "louder", 2.0), *known)
    assert found.verdict == "fleet"
    assert found.group is None
    assert found.share > 0.9
    assert found.compared == MACHINES
    assert found.columns["energy"].drifted
    assert "moved together" in found.reason


def test_a_small_shift_of_all_is_seen_though_no_machine_stands_out(known: tuple[Heard, Limits]) -> None:
    found = decided(moved(heard(MACHINES, [LATER], 7), range(MACHINES), "louder", 0.6), *known)
    assert found.verdict == "fleet"


def test_one_machine_that_left_its_peers_is_a_fault(known: tuple[Heard, Limits]) -> None:
    found = decided(moved(heard(MACHINES, [LATER], 7), [4], "louder", 9.0), *known)
    assert found.verdict == "none"
    assert found.alone == ("m04",)
    assert "on their own: m04" in found.reason


@pytest.mark.parametrize("way", ["louder", "brighter"])
def test_a_machine_that_degrades_slowly_is_a_fault_at_every_size(known: tuple[Heard, Limits], way: str) -> None:
    sizes = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    found = [decided(moved(heard(MACHINES, [LATER], 7), [4], way, size), *known) for size in sizes]
    assert {one.verdict for one in found} == {"none"}
    assert all("m04" in one.alone for one in found[2:])


def test_two_machines_with_different_faults_are_two_faults(known: tuple[Heard, Limits]) -> None:
    window = moved(moved(heard(MACHINES, [LATER], 7), [4], "louder", 3.0), [9], "brighter", 4.0)
    found = decided(window, *known)
    assert (found.verdict, found.alone) == ("none", ("m04", "m09"))


def test_two_machines_with_the_same_fault_are_no_group(known: tuple[Heard, Limits]) -> None:
    found = decided(moved(heard(MACHINES, [LATER], 7), [4, 9], "louder", 3.0), *known)
    assert (found.verdict, set(found.alone)) == ("none", {"m04", "m09"})


def test_a_group_that_no_context_tells_needs_its_share(known: tuple[Heard, Limits]) -> None:
    group = [1, 5, 8, 13, 16, 19]
    found = decided(moved(heard(MACHINES, [LATER], 7), group, "brighter", 2.5), *known)
    assert found.verdict == "group"
    assert found.machines == tuple(f"m{index:02d}" for index in group)
    assert found.group is None
    assert found.share == pytest.approx(0.3)
    few = decided(moved(heard(MACHINES, [LATER], 7), group, "brighter", 2.5), *known, MonitorParams(group_share=0.4))
    assert few.verdict == "none"


def test_a_small_group_that_its_firmware_tells_is_drift(known: tuple[Heard, Limits]) -> None:
    params = MonitorParams(group_share=0.3)
    group = [1, 5, 8]
    untold = decided(moved(heard(MACHINES, [LATER], 7), group, "brighter", 2.5), *known, params)
    assert untold.verdict == "none"
    window = moved(heard(MACHINES, [LATER], 7, firmware=group), group, "brighter", 2.5)
    found = decided(window, *known, params)
    assert found.verdict == "group"
    assert found.group == {"column": "firmware", "value": "2"}


def test_a_change_in_one_condition_names_it(known: tuple[Heard, Limits]) -> None:
    window = heard(MACHINES, [LATER], 7)
    here = window.condition_N == 1
    window.values_NC[here, :7] += 2.0
    found = decided(window, *known)
    assert found.verdict == "group"
    assert found.group == {"column": "condition", "value": "cut"}


def test_a_fault_beside_a_drift_is_named_apart(known: tuple[Heard, Limits]) -> None:
    window = moved(heard(MACHINES, [LATER], 7), [m for m in range(MACHINES) if m != 3], "louder", 2.0)
    found = decided(moved(window, [3], "brighter", 6.0), *known)
    assert found.verdict == "fleet"
    assert found.alone == ("m03",)
    assert "m03" not in found.machines


def test_another_mix_of_regimes_is_no_drift(known: tuple[Heard, Limits]) -> None:
    found = decided(heard(MACHINES, [LATER], 7, mix=(0.85, 0.1, 0.05)), *known)
    assert found.verdict == "none"
    assert found.columns["condition"].drifted, "it is told, and decides nothing"
    assert not any(found.columns[name].drifted for name in ("energy", "band_1", "log_score_ensemble"))


def test_a_season_that_the_reference_has_heard_is_no_drift() -> None:
    year = past(MACHINES, 360, season=1.0, per_day=12)
    assert year[1].span_days > ENOUGH_DAYS
    assert "fewer than" not in year[1].history
    for day in (365 + 91, 365 + 274):  # the height of summer and of winter
        assert decided(heard(MACHINES, [day], 7, season=1.0), *year).verdict == "none"
    assert decided(heard(MACHINES, [365 + 91], 7, season=3.0), *year).verdict == "fleet"
    spring = past(MACHINES, 16, season=1.0)
    assert decided(heard(MACHINES, [91], 7, season=1.0), *spring).verdict == "fleet", "a season that nobody has heard"


def test_the_change_is_found_to_the_hour(known: tuple[Heard, Limits]) -> None:
    for hour in (5, 12, 17):
        window = moved(heard(MACHINES, [LATER], hour), range(MACHINES), "louder", 3.0, from_hour=hour)
        found = decided(window, *known)
        assert found.changed_at == dt.datetime(1970, 2, 10, hour, tzinfo=dt.UTC)


def test_a_change_before_the_window_begins_with_it(known: tuple[Heard, Limits]) -> None:
    found = decided(moved(heard(MACHINES, [LATER], 7), range(MACHINES), "louder", 2.0), *known)
    assert found.changed_at == dt.datetime(1970, 2, 10, tzinfo=dt.UTC)


def test_a_machine_that_had_moved_before_the_others_moved_alone(known: tuple[Heard, Limits]) -> None:
    window = moved(heard(MACHINES, [LATER], 7), [2], "louder", 3.0)
    group = [1, 5, 8, 13, 16, 19]
    found = decided(moved(window, group, "louder", 3.0, from_hour=12), *known)
    assert found.machines == tuple(f"m{index:02d}" for index in group)
    assert found.alone == ("m02",)
    assert found.changed_at == dt.datetime(1970, 2, 10, 12, tzinfo=dt.UTC)


def test_an_hour_is_too_little(known: tuple[Heard, Limits]) -> None:
    window = moved(heard(MACHINES, [LATER], 7, per_day=480), range(MACHINES), "louder", 3.0)
    early = window.take(window.time_us_N < window.time_us_N.min() + 3_600_000_000)
    found = decided(early, *known)
    assert found.verdict == "none"
    assert "only 0.9 h of rows" in found.reason


def test_machines_in_an_epoch_that_nobody_has_heard_do_not_vote(known: tuple[Heard, Limits]) -> None:
    window = moved(heard(MACHINES, [LATER], 7), range(8), "louder", 4.0)
    window.epoch_N[window.machine_N < 8] = 1
    found = decided(window, *known)
    assert found.verdict == "none"
    assert found.compared == MACHINES - 8


def test_a_fleet_of_new_epochs_stands_against_the_fleets_past(known: tuple[Heard, Limits]) -> None:
    quiet, loud = heard(MACHINES, [LATER], 7), moved(heard(MACHINES, [LATER], 7), range(MACHINES), "louder", 4.0)
    for window in (quiet, loud):
        window.epoch_N[:] = 1
    assert decided(quiet, *known).verdict == "none"
    assert decided(loud, *known).verdict == "fleet"


def test_conditions_that_nobody_has_heard_tell_nothing(known: tuple[Heard, Limits]) -> None:
    window = moved(heard(MACHINES, [LATER], 7), range(MACHINES), "louder", 4.0)
    found = decided(replace(window, conditions=("new", "newer", "newest")), *known)
    assert (found.verdict, found.compared) == ("none", 0)
    assert "No machine can be compared" in found.reason


def test_machines_of_which_the_reference_holds_too_little_do_not_vote(known: tuple[Heard, Limits]) -> None:
    reference = known[0]
    few = reference.take((reference.machine_N >= 5) | (reference.time_us_N < 8 * 3_600_000_000 // 2))
    window = moved(heard(MACHINES, [LATER], 7), range(MACHINES), "louder", 2.0)
    found = decided(window, few, known[1])
    assert found.verdict == "fleet"
    assert set(found.machines) <= {f"m{index:02d}" for index in range(5, MACHINES)}


def test_params_may_set_a_columns_threshold_and_method(known: tuple[Heard, Limits]) -> None:
    window = moved(heard(MACHINES, [LATER], 7), range(MACHINES), "louder", 2.0)
    deaf = MonitorParams.model_validate({"columns": {name: {"threshold": 1e6} for name in known[0].compared}})
    found = decided(window, *known, deaf)
    assert found.verdict == "none"
    assert "too few columns" in found.reason
    other = MonitorParams.model_validate({"columns": {"energy": {"method": "jensenshannon", "threshold": 0.1}}})
    column = decided(window, *known, other).columns["energy"]
    assert (column.method, column.limit, column.drifted) == ("jensenshannon", 0.1, True)
    with pytest.raises(ParamsError, match="without a threshold"):
        parse_params("monitor:\n  columns: {energy: {method: jensenshannon}}\n")


def test_limits_say_how_they_came_about(known: tuple[Heard, Limits]) -> None:
    limits = known[1]
    assert "16 days of healthy history, fewer than 90" in limits.history
    assert "320 blocks of 1 days of 20 machines" in limits.history
    assert "with a margin of 1.4" in limits.history
    assert Limits.from_json(json.loads(json.dumps(limits.to_json()))) == limits
    assert calibrate(known[0], 1.0, seed=2) == limits, "the same rows and seed give the same limits"
    for values in limits.columns.values():
        assert list(values) == sorted(values), "few machines stray further than many"
    with pytest.raises(ContractError, match="limits of drift"):
        Limits.from_json({"days": 1})


def test_a_decision_is_plain_json(known: tuple[Heard, Limits]) -> None:
    found = decided(moved(heard(MACHINES, [LATER], 7), range(MACHINES), "louder", 2.0), *known)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["drifted"] is True
    assert told["changed_at"] == "1970-02-10T00:00:00+00:00"
    assert set(told["columns"]["energy"]) == {"statistic", "limit", "drifted", "method"}


def test_reference_rows_match_machine_and_condition_where_there_are_such(known: tuple[Heard, Limits]) -> None:
    reference = known[0]
    window = heard(MACHINES, [LATER], 7)
    rows = matched_rows(window, reference, np.random.default_rng(1), by_condition=True)
    np.testing.assert_array_equal(reference.machine_N[rows], window.machine_N)
    np.testing.assert_array_equal(reference.condition_N[rows], window.condition_N)
    without = reference.take((reference.machine_N != 3) | (reference.condition_N != 2))
    rows = matched_rows(window, without, np.random.default_rng(1), by_condition=True)
    here = (window.machine_N == 3) & (window.condition_N == 2)
    assert set(without.condition_N[rows[here]]) == {2}


def test_at_most_twenty_columns_are_compared() -> None:
    from pipeline.drift import columns

    numbers = len(columns.SHAPE) + columns.ERROR_BANDS + columns.MOST_SCORES + 1
    assert numbers + len(columns.CONTEXT) <= 20


def test_the_defaults_are_those_of_params_yaml() -> None:
    assert MonitorParams() == PARAMS
