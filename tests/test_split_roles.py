"""What alerts, repairs, stops and failures change in the roles of rows: which rows, in every phase, and no other."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from test_split import day, failure_table, log, status_table

from pipeline.params import SplitParams
from pipeline.roles import unseen_machines
from pipeline.schema import FEEDBACK_SCHEMA
from pipeline.split import split

SHARE = 0.3
MACHINES = tuple(f"m{number}" for number in range(8))
HIDDEN = [name for name, unseen in zip(MACHINES, unseen_machines(MACHINES, SHARE), strict=True) if unseen]
SEEN = [name for name in MACHINES if name not in HIDDEN]
KINDS = {"seen": SEEN[0], "unseen": HIDDEN[0]}
PHASES = {"train": 20.0, "calibration": 62.0, "test": 86.0}  # a day in each
PARAMS = SplitParams(
    unseen_machine_share=SHARE, horizon_hours=120, run_in_hours=24, train_share=0.45, calibration_share=0.2
)
HORIZON, ROW = 5.0, 0.25  # days
STATUS = status_table(MACHINES)
FITTING = {"train", "validation", "calibration", "baseline"}

every_place = pytest.mark.parametrize(("kind", "phase"), [(kind, phase) for kind in KINDS for phase in PHASES])


@dataclass(frozen=True)
class Table:
    """A split as arrays."""

    machine: np.ndarray
    days: np.ndarray
    role: np.ndarray
    status: np.ndarray
    label: np.ndarray
    failure: np.ndarray
    epoch: np.ndarray

    def within(self, machine: str, start: float, end: float) -> np.ndarray:
        """Rows of a machine from start to end, both included."""
        return (self.machine == machine) & (self.days >= start) & (self.days <= end)


def done(feedback: pa.Table | None = None, entries: tuple = (), failures: tuple = (), params=PARAMS) -> Table:
    result = split(STATUS, log(*entries), failure_table(*failures), params, feedback)
    columns = [np.array(result.table[name].to_pylist(), object) for name in result.table.column_names]
    named = dict(zip(result.table.column_names, columns, strict=True))
    days = np.array([(time - day(0)) / dt.timedelta(days=1) for time in named["timestamp"]])
    names = ("role", "log_status", "label", "failure_id", "epoch")
    return Table(named["machine_id"].astype(str), days, *(named[name] for name in names))


def alerts(*entries: tuple[str, float, float | None, str]) -> pa.Table:
    rows = [
        {
            "machine_id": machine,
            "opened": day(opened),
            "closed": None if closed is None else day(closed),
            "state": state,
        }
        for machine, opened, closed, state in entries
    ]
    return pa.Table.from_pylist(rows, schema=FEEDBACK_SCHEMA)


PLAIN = done()


def test_every_phase_of_both_kinds_has_the_role_that_the_tests_ask_for() -> None:
    for kind, roles in (("seen", [{"train", "validation"}, {"calibration"}]), ("unseen", [{"baseline"}, {"none"}])):
        for day_of, expected in zip(PHASES.values(), [*roles, {"test"}], strict=True):
            assert set(PLAIN.role[PLAIN.within(KINDS[kind], day_of - HORIZON, day_of + 1)]) <= expected, (kind, day_of)


@every_place
def test_an_open_alert_takes_rows_from_what_learns_and_describes_only(kind: str, phase: str) -> None:
    machine, opened = KINDS[kind], PHASES[phase]
    found = done(alerts((machine, opened, opened + 1, "open")))
    inside = found.within(machine, opened, opened + 1)
    taken = inside & np.isin(PLAIN.role, ["train", "validation", "baseline"])
    assert taken.any() == (phase == "train")
    assert set(found.role[taken]) <= {"none"}
    assert (found.role[~taken] == PLAIN.role[~taken]).all()
    assert (found.status == PLAIN.status).all()


def test_an_open_alert_takes_rows_from_training_and_from_validation() -> None:
    machine = KINDS["seen"]
    found = done(alerts((machine, 10, 30, "open")))
    inside = found.within(machine, 10, 30)
    assert set(PLAIN.role[inside]) == {"train", "validation"}
    assert set(found.role[inside]) == {"none"}


@every_place
def test_a_confirmed_alert_and_its_horizon_are_out_everywhere(kind: str, phase: str) -> None:
    machine, opened = KINDS[kind], PHASES[phase]
    found = done(alerts((machine, opened, opened + 1, "confirmed")))
    inside = found.within(machine, opened - HORIZON, opened + 1)
    assert set(found.status[inside]) == {"alert"}
    assert set(found.role[inside]) == {"none"}
    assert set(found.label[inside]) == {"unknown"}
    for name in ("status", "role", "label", "epoch", "failure"):
        assert (getattr(found, name)[~inside] == getattr(PLAIN, name)[~inside]).all()


@every_place
def test_a_dismissed_alert_changes_nothing(kind: str, phase: str) -> None:
    found = done(alerts((KINDS[kind], PHASES[phase], PHASES[phase] + 1, "dismissed")))
    for name in ("status", "role", "label", "epoch", "failure"):
        assert (getattr(found, name) == getattr(PLAIN, name)).all()


def test_an_alert_that_nobody_closed_lasts_to_the_newest_row() -> None:
    machine = KINDS["seen"]
    found = done(alerts((machine, 30, None, "confirmed")))
    assert set(found.role[found.within(machine, 30 - HORIZON, 100)]) == {"none"}
    assert set(found.role[found.within(machine, 0, 30 - HORIZON - ROW)]) == {"train", "validation"}


def test_a_confirmed_alert_leaves_the_failures_that_it_announced_as_they_are() -> None:
    machine = KINDS["seen"]
    failures = ((machine, 20, 20.5, "tune"), (machine, 90, 90.5, "test"))
    plain = done(failures=failures)
    found = done(alerts((machine, 18, 21, "confirmed"), (machine, 88, 91, "confirmed")), failures=failures)
    for name in ("status", "role", "label", "failure"):
        for end in (20, 90):
            rows = found.within(machine, end - HORIZON, end + 1.25)  # horizon, down, and the run-in
            assert (getattr(found, name)[rows] == getattr(plain, name)[rows]).all()
    assert set(found.role[found.within(machine, 90 - HORIZON, 90 - ROW)]) == {"test"}
    assert set(found.status[found.within(machine, 88 - HORIZON, 90 - HORIZON - ROW)]) == {"alert"}


def test_alerts_of_machines_without_spectra_are_counted() -> None:
    feedback = alerts(("gone", 20, 21, "confirmed"), ("gone", 22, 23, "open"))
    result = split(STATUS, log(), failure_table(), PARAMS, feedback)
    assert "Feedback has 2 alerts of machines without spectra (1)." in result.metrics["notes"]
    assert result.metrics["rows"]["by_log_status"]["alert"] == 0


@every_place
@pytest.mark.parametrize(
    ("tag", "statuses"), [("off", ["off"] * 4), ("repair", ["repair"] * 4 + ["run_in"] * 4), ("sensor", ["repair"] * 4)]
)
def test_work_stops_and_run_in_are_out_everywhere(kind: str, phase: str, tag: str, statuses: list[str]) -> None:
    machine, start = KINDS[kind], PHASES[phase]
    found = done(entries=((machine, tag, start, start + 1),))
    inside = found.within(machine, start, start + len(statuses) * ROW - ROW)
    assert found.status[inside].tolist() == statuses
    assert set(found.role[inside]) == {"none"}
    assert set(found.label[inside]) == {"unknown"}
    assert (found.role[~inside] == PLAIN.role[~inside]).all()
    later = found.within(machine, start + 1, 100)
    assert set(found.epoch[later]) == ({0} if tag == "off" else {1})
    assert set(found.epoch[~later]) == {0}


@every_place
@pytest.mark.parametrize("role", ["tune", "test"])
def test_a_failures_horizon_tunes_or_judges_and_fits_nowhere(kind: str, phase: str, role: str) -> None:
    machine, time = KINDS[kind], PHASES[phase]
    found = done(failures=((machine, time, time + 1, role),))
    horizon = found.within(machine, time - HORIZON, time - ROW)
    assert set(found.status[horizon]) == {"horizon"}
    assert set(found.label[horizon]) == {"faulty"}
    if role == "tune" and kind == "seen":
        expected = "tune"
    else:  # a failure of an unseen machine judges, and it never trained: also before the test span
        expected = "test" if phase == "test" or (kind == "unseen" and phase != "train") else "none"
    assert set(found.role[horizon]) == {expected}
    down = found.within(machine, time, time + 1 - ROW)
    assert set(found.status[down]) == {"down"}
    assert found.status[found.within(machine, time + 1, time + 2 - ROW)].tolist() == ["run_in"] * 4
    assert set(found.role[found.within(machine, time, time + 2 - ROW)]) == {"none"}
    rest = ~found.within(machine, time - HORIZON, time + 2 - ROW)
    assert (found.role[rest] == PLAIN.role[rest]).all()


def test_unconfirmed_rows_are_judged_and_fit_nowhere() -> None:
    """A horizon of 45 days reaches back into the calibration span."""
    found = done(params=PARAMS.model_copy(update={"horizon_hours": 45 * 24.0, "purge_hours": 120.0}))
    young = found.days > 99.75 - 45
    assert set(found.status[young]) == {"unconfirmed"}
    assert not set(found.role[young]) & FITTING
    assert set(found.role[~young]) & FITTING == FITTING
    assert set(found.label[young]) == {"unknown"}
    assert set(found.role[found.days > 90]) == {"test"}
    # a tag says that they are healthy, however young
    tagged = done(
        entries=tuple((machine, "healthy", 0, 100) for machine in MACHINES),
        params=PARAMS.model_copy(update={"horizon_hours": 45 * 24.0, "purge_hours": 120.0}),
    )
    assert set(tagged.status) == {"healthy"}
    assert "calibration" in tagged.role[young]
