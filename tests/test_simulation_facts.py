"""The figures beside a data set: per mode the noise at onset and the days to failure, and how the log is wrong."""

from __future__ import annotations

import json

import pytest
from test_simulation_plan import BUSY

from pipeline.params import FAULT_MODES
from pipeline.simulation import physics
from pipeline.simulation.facts import simulation_facts
from pipeline.simulation.plan import plan_fleet
from pipeline.simulation.presets import PRESETS


@pytest.mark.parametrize("params", [BUSY, PRESETS["harbor"]], ids=["busy", "harbor"])
def test_each_mode_tells_how_hard_it_is(params) -> None:
    facts = simulation_facts(params, plan_fleet(params))
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert set(facts["modes"]) == set(FAULT_MODES)
    for mode, told in facts["modes"].items():
        low, high = physics.ONSET_DB
        assert low <= told["snr_at_onset_db"]["0.1"] <= told["snr_at_onset_db"]["0.9"] <= high
        assert told["snr_at_failure_db"]["0.1"] > 1
        assert 0 < told["days_from_onset_to_failure"]["0.5"] <= physics.GROWTH_DAYS[mode][1] + 1


def test_the_counts_add_up() -> None:
    facts = simulation_facts(BUSY, plan_fleet(BUSY))
    told = facts["failures"]
    assert told["logged_right"] + told["logged_under_another_name"] + told["not_logged"] == told["happened"]
    assert sum(mode["failures"] for mode in facts["modes"].values()) == told["happened"]
    assert facts["never_well"] == 1
    assert facts["works"]["sensor"]["done"] > facts["works"]["sensor"]["logged"] > 0


def test_a_mode_without_failures_is_null() -> None:
    params = BUSY.model_copy(update={"failures": 1})
    modes = simulation_facts(params, plan_fleet(params))["modes"]
    assert sum(told["snr_at_onset_db"] is None for told in modes.values()) == len(FAULT_MODES) - 1


def test_the_harbor_has_28_failures() -> None:
    plan = plan_fleet(PRESETS["harbor"])
    assert sum(fault.fails for fault in plan.faults) == 28
    assert len(plan.names) == 600
