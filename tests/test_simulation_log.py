"""What is written down: failures under the name and at the time that the plan says, the truth as it was."""

from __future__ import annotations

import datetime as dt

import numpy as np
from test_simulation_plan import BUSY

from pipeline.schema import MAINTENANCE_SCHEMA, TRUTH_SCHEMA
from pipeline.simulation.log import logged_failures, maintenance_table, truth_table
from pipeline.simulation.plan import plan_fleet

START = dt.date(2025, 1, 1)


def days(moments: list[dt.datetime]) -> list[float]:
    return [(moment - dt.datetime(2025, 1, 1, tzinfo=dt.UTC)) / dt.timedelta(days=1) for moment in moments]


def test_the_log_holds_what_the_plan_says_and_no_more() -> None:
    plan = plan_fleet(BUSY.model_copy(update={"firmware_day": 9.0, "firmware_logged": 0.5}))
    log = maintenance_table(plan, START, 100.0)
    assert log.schema == MAINTENANCE_SCHEMA
    tags = log["tag"].to_pylist()
    told = [work for work in (*plan.works, *plan.never_done) if work.told_of is not None]
    assert tags.count("failure") == sum(work.broke is not None for work in told) == len(logged_failures(plan, 100.0))
    assert tags.count("sensor") == sum(work.tag == "sensor" for work in told)
    assert tags.count("off") == sum(work.tag == "off" for work in told)
    assert tags.count("firmware") == sum(plan.firmware.values())
    starts = days(log["start"].to_pylist())
    assert starts == sorted(starts)


def test_a_late_entry_keeps_its_length_and_a_wrong_one_names_another_machine() -> None:
    plan = plan_fleet(BUSY)
    rows = [row for row in maintenance_table(plan, START, 100.0).to_pylist() if row["tag"] == "failure"]
    logged = {
        (row["machine_id"], round(day, 6)) for row, day in zip(rows, days([r["start"] for r in rows]), strict=True)
    }
    late = next(work for work in plan.works if work.late > 0)
    assert (plan.names[late.machine], round(late.broke + late.late, 6)) in logged
    assert (plan.names[late.machine], round(late.broke, 6)) not in logged
    wrong = next(work for work in plan.works if work.told_of not in (None, work.machine))
    assert (plan.names[wrong.told_of], round(wrong.broke, 6)) in logged
    assert (plan.names[wrong.machine], round(wrong.broke, 6)) not in logged


def test_entries_appear_when_their_beginning_has_passed() -> None:
    plan = plan_fleet(BUSY)
    early, whole = maintenance_table(plan, START, 20.0), maintenance_table(plan, START, 100.0)
    assert 0 < early.num_rows < whole.num_rows
    assert max(days(early["start"].to_pylist())) < 20
    assert early.to_pylist() == whole.to_pylist()[: early.num_rows]


def test_the_truth_knows_every_fault_logged_or_not() -> None:
    plan = plan_fleet(BUSY)
    truth = truth_table(plan, START, 60.0)
    assert truth.schema == TRUTH_SCHEMA
    assert truth.num_rows == len(plan.faults)
    assert sum(truth["logged"].to_pylist()) == sum(fault.logged for fault in plan.faults)
    ill = next(fault for fault in plan.faults if np.isinf(fault.end))
    row = next(row for row in truth.to_pylist() if row["machine_id"] == plan.names[ill.machine])
    assert days([row["onset"], row["end"]]) == [0.0, 60.0]
