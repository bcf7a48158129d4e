"""What machines do: every instant once, regimes with their dwells, runs that hold what they say."""

from __future__ import annotations

import datetime as dt
import itertools

import numpy as np
import pytest

from pipeline.schema import MICROSECONDS_PER_DAY, Tag
from pipeline.simulation import physics
from pipeline.simulation.history import Fault, History, Work
from pipeline.simulation.machine import PARTS, make_machine
from pipeline.simulation.operation import HEAVY, IDLE, LIGHT, OFF, Day, instants_us, live_day

START = dt.date(2025, 1, 1)
MACHINES = [make_machine(3, index, 16, 1000.0) for index in range(12)]


def lived(index: int, day: int, interval: float = 60.0, history: History | None = None) -> tuple[Day, np.ndarray]:
    machine = MACHINES[index]
    time_us = instants_us(machine, interval, day)
    rng = np.random.default_rng([1, index, day])
    return live_day(machine, history or History(), START, day, time_us, rng), time_us


@pytest.mark.parametrize("interval", [10.0, 700.0, 3600.0, 86_400.0, 1e-3 * 86_399_999])
def test_every_instant_belongs_to_one_day(interval: float) -> None:
    for machine in MACHINES[:3]:
        moments = np.concatenate([instants_us(machine, interval, day) for day in range(5)])
        assert np.unique(np.diff(moments)).tolist() == [round(interval * 1e6)]
        for day in range(5):
            inside = instants_us(machine, interval, day) // MICROSECONDS_PER_DAY
            assert (inside == day).all()


def test_dwells_come_near_their_means() -> None:
    around = next(index for index, machine in enumerate(MACHINES) if machine.shift_hours == 24)
    lengths: dict[int, list[float]] = {IDLE: [], LIGHT: [], HEAVY: []}
    for day in range(60):
        made, _ = lived(around, day)
        regime_N = made.regime_R[made.run_N]
        edges = np.flatnonzero(np.diff(regime_N))
        for first, last in itertools.pairwise(edges):
            lengths[int(regime_N[last])].append(last - first)
    for regime, minutes in lengths.items():
        assert np.mean(minutes) == pytest.approx(physics.DWELL_MINUTES[regime], rel=0.12)


def test_off_outside_of_the_shift_and_while_somebody_works_on_it() -> None:
    one = next(index for index, machine in enumerate(MACHINES) if machine.shift_hours == 9)
    made, _ = lived(one, 3)
    regime_N = made.regime_R[made.run_N]
    assert (regime_N != OFF).mean() == pytest.approx(9 / 24, abs=0.02)
    work = Work(one, 3.0, 4.0, Tag.OFF, None)
    stopped, _ = lived(one, 3, history=History(works=(work,)))
    assert (stopped.regime_R == OFF).all()
    assert (stopped.force_PR == 0).all()


def test_a_run_never_spans_what_changes_at_once() -> None:
    around = next(index for index, machine in enumerate(MACHINES) if machine.shift_hours == 24)
    fault = Fault(around, "energy", 2.301, 2.702, 0.1, 2.0)
    made, time_us = lived(around, 2, 10.0, History(faults=(fault,), firmware_day=2.555))
    day_N = time_us / MICROSECONDS_PER_DAY
    for moment in (2.301, 2.702, 2.555):
        before, after = np.flatnonzero(day_N < moment)[-1], np.flatnonzero(day_N >= moment)[0]
        assert made.run_N[before] != made.run_N[after]
        assert made.day_R[made.run_N[after]] >= moment
    assert np.bincount(made.run_N).max() <= 90  # a quarter of an hour
    assert len(made.day_R) < 200


def test_speed_and_force_belong_to_the_regime() -> None:
    for index in range(len(MACHINES)):
        made, _ = lived(index, 5)
        for regime in range(len(physics.REGIMES)):
            mine = made.regime_R == regime
            low, high = physics.REGIME_SPEED[regime]
            assert ((made.speed_R[mine] >= low) & (made.speed_R[mine] <= high)).all()
        assert (made.force_PR[PARTS.index("mesh"), made.regime_R <= IDLE] == 0).all()
        assert (made.force_PR[PARTS.index("tool"), made.regime_R >= LIGHT] > 0).all()


def test_a_tool_grows_louder_until_it_is_changed() -> None:
    machine = next(machine for machine in MACHINES if machine.shift_hours == 24)
    ratio, day = [], []
    for number in range(12):
        made, _ = lived(machine.index, number, 300.0)
        cutting = made.regime_R >= LIGHT
        tool, mesh = (made.force_PR[PARTS.index(part), cutting] for part in ("tool", "mesh"))
        ratio += (tool / mesh).tolist()
        day += made.day_R[cutting].tolist()
    steps = np.diff(ratio)
    changes = np.flatnonzero(steps < -0.05)
    assert len(changes) >= 12 / machine.tool_days / 2
    assert (np.abs(steps[steps > -0.05]) < 0.3).all()
    assert np.median(np.delete(steps, changes)) > 0
    assert np.mean(np.diff(np.array(day)[changes])) < 4 * machine.tool_days


def test_the_season_is_the_same_for_the_fleet_and_back_after_a_year() -> None:
    level = np.array([[lived(index, day, 3600.0)[0].level_R.mean() for day in (10, 190)] for index in range(12)])
    assert (level[:, 1] / level[:, 0]).mean() > 1.02
