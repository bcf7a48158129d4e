"""What becomes of rows before and after a change of the fleet, or of a group of it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_split import START, column, day, failure_table, log, status_table
from test_split_roles import alerts

from pipeline.epochs import EpochStarts
from pipeline.params import SplitParams, parse_params
from pipeline.roles import unseen_machines
from pipeline.split import SplitResult, split

CHANGED = 92.0  # of 100 days
PARAMS = SplitParams(changed_at=day(CHANGED), purge_hours=6, unseen_machine_share=0.0)
STATUS = status_table(per_day=24)


def done(
    entries: tuple[Any, ...] = (),
    failures: tuple[Any, ...] = (),
    feedback: pa.Table | None = None,
    params: SplitParams = PARAMS,
    status: pa.Table = STATUS,
) -> SplitResult:
    return split(status, log(*entries), failure_table(*failures), params, feedback)


def arrays(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Machine, day, role and epoch of the rows."""
    days = np.array([(time - START) / dt.timedelta(days=1) for time in table["timestamp"].to_pylist()])
    return (
        np.array(table["machine_id"].to_pylist()),
        days,
        np.array(table["role"].to_pylist()),
        table["epoch"].to_numpy(),
    )


class TestRoles:
    def test_only_rows_after_the_change_calibrate_and_later_ones_test(self) -> None:
        result = done()
        _, days, role, _ = arrays(result.table)
        fits = np.isin(role, ["train", "validation"])
        for old in (days < CHANGED, days >= CHANGED):
            assert set(role[fits & old]) == {"train", "validation"}
        assert days[role == "calibration"].min() - days[fits].max() >= 0.25
        assert days[role == "test"].min() - days[role == "calibration"].max() >= 0.25
        assert days[role == "calibration"].min() > CHANGED
        assert days[fits & (days >= CHANGED)].max() == pytest.approx(CHANGED + 4, abs=0.1)  # half of eight days
        edges = result.metrics["boundaries"]
        assert (edges["start"], edges["cut_from"]) == tuple(
            f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in (START, day(CHANGED))
        )

    def test_unconfirmed_rows_fit_after_the_change_and_not_before_it(self) -> None:
        params = PARAMS.model_copy(update={"changed_at": day(96)})
        table = done(params=params).table
        assert column(table, "log_status", "a", 95.75) == column(table, "log_status", "a", 97) == "unconfirmed"
        assert column(table, "role", "a", 95.75) == "none"
        assert column(table, "label", "a", 95.75) == "unknown"
        assert column(table, "role", "a", 97) in ("train", "validation")
        assert column(table, "label", "a", 97) == "healthy"

    def test_the_hours_after_a_change_both_train_and_validate(self) -> None:
        params = PARAMS.model_copy(update={"changed_at": day(98)})
        _, days, role, _ = arrays(done(params=params).table)
        new = role[(days >= 98) & np.isin(role, ["train", "validation"])]
        assert 0.1 < (new == "validation").mean() < 0.35

    def test_a_machine_without_rows_after_the_change_trains(self) -> None:
        status = pa.concat_tables([STATUS, status_table(("gone",), days=50, per_day=24)])
        for boundaries in ("calendar", "machine"):
            result = done(status=status, params=PARAMS.model_copy(update={"boundaries": boundaries}))
            machine, _, role, _ = arrays(result.table)
            assert set(role[machine == "gone"]) - {"none"} == {"train", "validation"}
            assert result.metrics["change"]["machines"] == 2
            young = "unconfirmed" if boundaries == "machine" else "healthy"  # its own newest row, or the fleet's
            assert column(result.table, "log_status", "gone", 49) == young

    def test_a_machine_that_is_new_after_the_change_is_described(self) -> None:
        status = pa.concat_tables([STATUS, status_table(("new",), days=6, per_day=24, first=94)])
        for boundaries, last in (("calendar", 96), ("machine", 97)):
            result = done(status=status, params=PARAMS.model_copy(update={"boundaries": boundaries}))
            machine, days, role, epoch = arrays(result.table)
            fits = (machine == "new") & np.isin(role, ["train", "validation"])
            assert days[fits].max() == pytest.approx(last, abs=0.1)
            assert set(epoch[machine == "new"]) == {1}

    def test_unseen_machines_are_described_on_both_sides_and_never_train(self) -> None:
        machines = tuple(f"m{number}" for number in range(12))
        params = PARAMS.model_copy(update={"unseen_machine_share": 0.3})
        hidden = [name for name, unseen in zip(machines, unseen_machines(machines, 0.3), strict=True) if unseen]
        machine, days, role, _ = arrays(done(status=status_table(machines, per_day=12), params=params).table)
        mine = np.isin(machine, hidden)
        assert set(role[mine]) == {"baseline", "none", "test"}
        for old in (days < CHANGED, days >= CHANGED):
            assert (role[mine & old] == "baseline").any()
        assert days[mine & (role == "test")].min() > CHANGED

    def test_tags_that_end_before_the_change_say_nothing_of_what_came_after(self) -> None:
        table = done(entries=(("a", "healthy", 0, 60), ("b", "healthy", 0, 60))).table
        assert column(table, "log_status", "a", 70) == "untagged"
        assert column(table, "log_status", "a", 95) == "unconfirmed"
        assert column(table, "role", "a", 93) in ("train", "validation")
        later = done(entries=(("a", "healthy", 0, 99), ("b", "healthy", 0, 60))).table
        assert column(later, "log_status", "b", 95) == "untagged"


class TestFailuresBeforeTheChange:
    FAILURES = (("a", 30, 31, "tune"), ("b", 40, 41, "test"), ("a", 70, 71, "test"), ("b", 4, 5, "test"))

    def test_they_tune_and_judge_whole_and_in_their_own_epoch(self) -> None:
        repairs = (("a", "repair", 31, 32), ("b", "repair", 41, 42))
        result = done(entries=repairs, failures=self.FAILURES)
        table = result.table
        for failure, (machine, time, _, role) in enumerate(self.FAILURES[:3]):
            horizon = [number for number in range(len(table)) if table["failure_id"][number].as_py() == f"f{failure}"]
            assert len(horizon) == 7 * 24
            assert {table["role"][number].as_py() for number in horizon} == {role}
            assert {table["label"][number].as_py() for number in horizon} == {"faulty"}
            assert {table["epoch"][number].as_py() for number in horizon} == {1 if time == 70 else 0}, machine
        assert column(table, "epoch", "a", 95) == 2
        found = result.metrics["failures"]
        assert (found["tune"], found["judged"], found["unused"]) == (1, 2, 1)
        assert found["unused_why"][0]["why"] == "its horizon lies in the first tenth of the span"

    def test_no_row_of_a_horizon_fits_and_no_healthy_row_before_the_change_judges(self) -> None:
        result = done(failures=self.FAILURES)
        _, days, role, _ = arrays(result.table)
        faulty = np.array(result.table["label"].to_pylist()) == "faulty"
        assert not set(role[faulty]) & {"train", "validation", "baseline", "calibration"}
        assert not set(role[~faulty & (days < CHANGED)]) & {"tune", "test", "calibration"}

    def test_a_horizon_across_the_change_is_judged_whole_each_part_in_its_epoch(self) -> None:
        table = done(failures=(("a", 94, 94.5, "test"),)).table
        for number, epoch in ((88, 0), (93, 1)):
            assert column(table, "role", "a", number) == "test"
            assert column(table, "epoch", "a", number) == epoch
        assert column(table, "role", "b", 93) in ("train", "validation")

    def test_without_a_change_they_still_do_not_judge(self) -> None:
        params = SplitParams(unseen_machine_share=0.0)
        assert column(done(failures=self.FAILURES, params=params).table, "role", "b", 36) == "none"


class TestGroup:
    PARAMS = PARAMS.model_copy(update={"changed_machines": ("a", "not here")})

    def test_only_the_named_machines_begin_an_epoch(self) -> None:
        result = done(params=self.PARAMS)
        machine, days, role, epoch = arrays(result.table)
        assert set(epoch[machine == "b"]) == {0}
        assert set(epoch[(machine == "a") & (days >= CHANGED)]) == {1}
        calibrates = role == "calibration"  # the plant as it is: everybody, and only after the change
        assert set(machine[calibrates]) == {"a", "b"}
        assert days[calibrates].min() > CHANGED
        assert result.metrics["change"]["machines"] == 1
        assert result.metrics["change"]["unknown_machines"] == ["not here"]
        assert any("names 1 machines without spectra" in note for note in result.metrics["notes"])

    def test_names_without_a_time_are_refused(self) -> None:
        with pytest.raises(Exception, match="got changed_machines without changed_at"):
            parse_params("split:\n  changed_machines: [a]\n")

    def test_service_and_split_count_epochs_alike(self) -> None:
        entries = (("a", "repair", 20, 21), ("a", "sensor", 95, 95.5), ("b", "repair", 97, 98))
        table = done(entries=entries, params=self.PARAMS).table
        starts = EpochStarts.of_log(log(*entries), self.PARAMS.changed_at, self.PARAMS.changed_machines)
        in_service = EpochStarts.from_json(starts.to_json())
        machine, days, _, epoch = arrays(table)
        codes = (machine == "b").astype(np.int32)
        times = np.array([int(day(number).timestamp() * 1e6) for number in days])
        assert in_service.of_rows(codes, times, ["a", "b"]).tolist() == epoch.tolist()
        assert [starts.of_machine(name).shape[0] for name in ("a", "b", "not here", "x")] == [3, 1, 1, 0]

    def test_what_a_log_adds_later_does_not_shift_numbers_that_a_release_knows(self) -> None:
        champion = EpochStarts.of_log(log(("a", "repair", 20, 21)), day(CHANGED), ("a",))
        newest = int(day(100).timestamp() * 1e6)
        # the change is logged afterwards, a repair before it too, and the next change comes
        later = EpochStarts.of_log(
            log(("a", "firmware", CHANGED, CHANGED), ("a", "repair", 50, 51)), day(110), ("a", "b")
        )
        extended = champion.extended_by(later, newest)
        times = np.array([int(day(number).timestamp() * 1e6) for number in (10, 60, 95, 109, 111)])
        known = champion.of_rows(np.zeros(5, int), times, ["a"])
        assert extended.of_rows(np.zeros(5, int), times, ["a"]).tolist() == [*known[:4].tolist(), 3]
        assert extended.of_rows(np.zeros(5, int), times, ["b"]).tolist() == [0, 0, 0, 0, 1]

    def test_a_change_that_the_log_has_too_is_one_epoch(self) -> None:
        entries = (("a", "firmware", CHANGED, CHANGED),)
        for machines in (None, ("a",)):
            params = PARAMS.model_copy(update={"changed_machines": machines})
            assert column(done(entries=entries, params=params).table, "epoch", "a", 99) == 1


class TestSlowDegradation:
    def test_an_open_alert_neither_learns_nor_describes_on_either_side_of_the_change(self) -> None:
        machines = tuple(f"m{number}" for number in range(12))
        params = PARAMS.model_copy(update={"unseen_machine_share": 0.3})
        unseen = unseen_machines(machines, 0.3)
        status = status_table(machines, per_day=12)
        for ill in (machines[int(np.argmax(unseen))], machines[int(np.argmin(unseen))]):
            plain = done(status=status, params=params).table
            table = done(status=status, params=params, feedback=alerts((ill, 80, None, "open"))).table
            machine, days, role, _ = arrays(table)
            since = (machine == ill) & (days >= 80)
            assert set(arrays(plain)[2][since]) & {"train", "validation", "baseline"}
            assert not set(role[since]) & {"train", "validation", "baseline"}
            assert (role[~since] == arrays(plain)[2][~since]).all()

    def test_what_lies_between_unanswered_alerts_of_two_days_goes_with_them(self) -> None:
        params = PARAMS.model_copy(update={"unseen_machine_share": 0.0, "changed_at": None})
        pages = [("a", day, day + 0.1, "open") for day in (10, 11.5, 13, 20)]
        table = done(params=params, feedback=alerts(*pages)).table
        machine, days, role, _ = arrays(table)
        learns = np.isin(role, ["train", "validation"])
        spell = (machine == "a") & (days >= 10) & (days <= 13.1)
        assert not learns[spell].any()
        assert learns[(machine == "a") & (days > 13.2) & (days < 20)].all(), "a week apart they are two"
        assert learns[(machine == "b") & (days >= 10) & (days <= 13.1)].all()

    def test_a_machine_that_did_not_change_with_its_group_keeps_its_epoch(self) -> None:
        params = PARAMS.model_copy(update={"changed_machines": ("a",)})
        table = done(params=params, feedback=alerts(("b", 60, None, "open"))).table
        machine, days, role, epoch = arrays(table)
        ill = (machine == "b") & (days >= 60)
        assert set(epoch[machine == "b"]) == {0}
        assert set(role[ill]) == {"none", "calibration", "test"}


class TestFigures:
    def test_what_describes_the_new_epoch_is_counted(self) -> None:
        change = done().metrics["change"]
        assert change["describing_rows"]["median"] == change["describing_hours"]["median"]  # a row an hour
        assert 70 < change["describing_rows"]["least"] <= 97  # of four days, some of which validate
        assert (change["machines_certainly_wider"], change["machines_perhaps_wider"]) == (0, 0)
        assert done(params=SplitParams(unseen_machine_share=0.0)).metrics["change"] is None

    def test_a_change_of_some_hours_ago_says_whose_baseline_is_wider(self) -> None:
        result = done(params=PARAMS.model_copy(update={"changed_at": day(98.5)}))
        assert result.metrics["change"]["certainly_wider"] == ["a", "b"]
        assert any("have no baseline of their own in it" in note for note in result.metrics["notes"])
        assert any(
            note.startswith("Provisional: a new epoch of every machine begins") for note in result.metrics["notes"]
        )
        dense = done(params=PARAMS.model_copy(update={"changed_at": day(98.5)}), status=status_table(per_day=96))
        assert dense.metrics["change"]["machines_perhaps_wider"] == 2
