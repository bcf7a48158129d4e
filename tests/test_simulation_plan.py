"""The plan of a fleet: failures spread, mistakes within their budget, nothing at the same time on one machine."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline.params import FAULT_MODES, LogParams, SimulateParams, UpkeepParams
from pipeline.schema import Tag
from pipeline.simulation.plan import plan_fleet

BUSY = SimulateParams(
    machines=30,
    days=60,
    failures=40,
    mislabelled_share=0.15,
    log=LogParams(late=0.3, missing=0.15, wrong=0.25),
    upkeep=UpkeepParams(never_well=0.034, bearing_swaps=0.3, moved_sensors=0.4, planned_stops=0.3),
    seed=4,
)


def test_failures_are_spread_over_time_modes_and_machines() -> None:
    plan = plan_fleet(SimulateParams(failures=20))
    failures = [fault for fault in plan.faults if fault.fails]
    assert len(failures) == 20
    assert len({fault.machine for fault in failures}) == 20  # everyone once before anyone twice
    assert {mode: sum(fault.mode == mode for fault in failures) for mode in FAULT_MODES} == dict.fromkeys(
        FAULT_MODES, 2
    )
    ends = np.array([fault.end for fault in failures])
    assert ends.min() >= 0.08 * 60 - 1
    assert ends.max() <= 60
    assert np.diff(np.sort(ends)).max() < 8
    assert all(0 < fault.start < 0.2 < 1 < fault.peak for fault in failures)


@pytest.mark.parametrize("params", [SimulateParams(), BUSY], ids=["plain", "busy"])
def test_nothing_overlaps_on_a_machine(params: SimulateParams) -> None:
    plan = plan_fleet(params)
    mends = {(work.machine, work.broke): work for work in plan.works if work.broke is not None}
    spans = []
    for fault in plan.faults:
        work = mends.pop((fault.machine, fault.end), None)
        assert (work is not None) == fault.fails
        spans.append((fault.machine, fault.onset, work.end if work else fault.end))
        if work is not None:
            assert fault.onset < fault.end < work.begin < work.end
    assert not mends
    spans += [(work.machine, work.begin, work.end) for work in plan.works if work.broke is None]
    assert all(b[0] != a[0] or b[1] >= a[2] for a, b in itertools.pairwise(sorted(spans)))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1])
def test_mislabelled_rows_come_near_their_share(share: float) -> None:
    params = SimulateParams(mislabelled_share=share)
    plan = plan_fleet(params)
    assert plan.mislabelled_share == pytest.approx(share, abs=0.3 * share)
    assert any(not fault.fails for fault in plan.faults) == (share > 0)


def test_failures_stay_where_they_are_whatever_else_changes() -> None:
    def failures(params: SimulateParams) -> list[tuple[int, float, str]]:
        return [(fault.machine, fault.end, fault.mode) for fault in plan_fleet(params).faults if fault.fails]

    plain = SimulateParams(machines=30, failures=20)
    changed = plain.model_copy(update={"mislabelled_share": 0.3, "log": BUSY.log, "dirt": BUSY.dirt})
    assert failures(plain) == failures(changed)


def test_every_kind_of_mistake_is_made_within_the_budget() -> None:
    plan = plan_fleet(BUSY)
    mends = [work for work in plan.works if work.broke is not None]
    assert any(work.told_of is None for work in mends)
    assert any(work.told_of not in (None, work.machine) for work in mends)
    assert any(work.late > 0 for work in mends)
    assert plan.never_done
    assert plan.mislabelled_share == pytest.approx(0.15, abs=0.04)
    unseen = {(fault.machine, fault.end) for fault in plan.faults if fault.fails and not fault.logged}
    assert unseen == {(work.machine, work.broke) for work in mends if work.told_of != work.machine}


def test_a_machine_that_was_never_well_is_ill_from_day_zero_and_fails_never() -> None:
    plan = plan_fleet(BUSY)
    (ill,) = [fault for fault in plan.faults if np.isinf(fault.end)]
    assert (ill.onset, ill.fails, ill.logged) == (0.0, False, False)
    assert not plan.of(ill.machine).works
    assert ill.amplitude(np.array([0.0, 59.0, 500.0])).tolist() == [ill.peak] * 3
    none = plan_fleet(BUSY.model_copy(update={"mislabelled_share": 0.02}))  # no room in the budget
    assert not [fault for fault in none.faults if np.isinf(fault.end)]


def test_upkeep_changes_what_it_should() -> None:
    works = [work for work in plan_fleet(BUSY).works if work.broke is None]
    moved = [work for work in works if work.tag == Tag.SENSOR]
    assert {work.told_of is None for work in moved} == {True, False}
    assert all(work.ripple > 0 and not work.swap for work in moved)
    assert all(work.swap for work in works if work.tag == Tag.REPAIR)
    assert all(work.gain == 1 and work.tilt == 0 for work in works if work.tag == Tag.OFF)
    assert {work.tag for work in works} == {Tag.SENSOR, Tag.REPAIR, Tag.OFF}


def test_only_the_chosen_modes_happen() -> None:
    plan = plan_fleet(BUSY.model_copy(update={"modes": ("energy", "saturation")}))
    assert {fault.mode for fault in plan.faults} == {"energy", "saturation"}


def test_firmware_reaches_its_share_and_part_of_it_is_logged() -> None:
    params = SimulateParams(machines=200, firmware_day=5.0, firmware_share=0.5, firmware_logged=0.3, failures=0)
    firmware = plan_fleet(params).firmware
    assert 70 < len(firmware) < 130
    assert 0.15 < np.mean(list(firmware.values())) < 0.45
    assert plan_fleet(params).of(next(iter(firmware))).updated(np.array([4.9, 5.0])).tolist() == [False, True]
    assert not plan_fleet(SimulateParams()).firmware
