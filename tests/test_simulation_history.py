"""What happens to a machine: still while it is worked on, changed afterwards, and told apart from its neighbours."""

from __future__ import annotations

import numpy as np

from pipeline.schema import Tag
from pipeline.simulation.history import NOTHING, Fault, FleetHistory, History, Work

FAULT = Fault(1, "outer_race", 3.0, 5.0, 0.1, 4.0, fails=True, logged=True)
REPAIR = Work(1, 5.2, 5.5, Tag.REPAIR, 1, broke=5.0, mode="outer_race", gain=1.2)
STOP = Work(2, 7.0, 8.0, Tag.OFF, 2)
FLEET = FleetHistory(("a", "b", "c", "d"), (FAULT,), (REPAIR, STOP), firmware_day=6.0, firmware={2: False})


def test_a_machine_has_its_own_history_alone() -> None:
    assert FLEET.of(1) == History((FAULT,), (REPAIR,))
    assert FLEET.of(2) == History((), (STOP,), 6.0)
    assert FLEET.of(3) is NOTHING


def test_it_stands_still_from_the_failure_to_the_end_of_the_repair() -> None:
    days = np.array([4.9, 5.0, 5.3, 5.49, 5.5, 7.5])
    assert FLEET.of(1).down(days).tolist() == [False, True, True, True, False, False]
    assert FLEET.of(2).down(days).tolist() == [False] * 5 + [True]


def test_a_fault_is_there_between_onset_and_end() -> None:
    amplitude = FAULT.amplitude(np.array([2.9, 3.0, 4.0, 4.999, 5.0]))
    assert amplitude[[0, 4]].tolist() == [0, 0]
    assert np.allclose(amplitude[1:4], [0.1, 0.1 * 40**0.5, 4.0], rtol=0.01)


def test_every_sudden_change_is_known() -> None:
    assert FLEET.of(1).changes.tolist() == [3.0, 5.0, 5.5]
    assert FLEET.of(2).changes.tolist() == [6.0, 8.0]
    assert NOTHING.changes.tolist() == []


def test_a_work_leaves_its_mark_in_every_bin() -> None:
    assert np.allclose(REPAIR.response(8), 1.2)
    assert np.allclose(STOP.response(8), 1.0)
    moved = Work(0, 1.0, 1.1, Tag.SENSOR, None, gain=1.0, tilt=0.4, ripple=0.2)
    assert np.ptp(moved.response(64)) > 0.3
