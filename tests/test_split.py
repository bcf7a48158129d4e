"""Log status, epochs and roles on hand-made logs."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from pipeline.epochs import EpochStarts, epoch_of_rows
from pipeline.errors import ContractError
from pipeline.params import SplitParams
from pipeline.roles import unseen_machines
from pipeline.schema import FAILURE_SCHEMA, MACHINE, MAINTENANCE_SCHEMA, SPLIT_SCHEMA, TEXT, TIME
from pipeline.split import split

START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
DAYS = 100
SEEN = SplitParams(unseen_machine_share=0.0)


def day(number: float) -> dt.datetime:
    return START + dt.timedelta(days=number)


def status_table(
    machines=("a", "b"), days=DAYS, per_day=4, quarantined=(), machine_type=MACHINE, first: float = 0
) -> pa.Table:
    """Day by day, all machines, rows evenly spaced; `quarantined` are row numbers."""
    names, times = [], []
    for number in range(days):
        for machine in machines:
            for row in range(per_day):
                names.append(machine)
                times.append(day(first + number + row / per_day))
    count = len(names)
    return pa.table(
        {
            "file": pa.array([f"{t:%Y-%m-%d}.parquet" for t in times]).cast(TEXT),
            "row": pa.array(np.arange(count) % (per_day * len(machines)), pa.int32()),
            "machine_id": pa.array(names).cast(machine_type),
            "timestamp": pa.array(times, TIME),
            "status": pa.array(["quarantined" if i in quarantined else "ok" for i in range(count)]).cast(TEXT),
        }
    )


def log(*entries) -> pa.Table:
    rows = [
        {"machine_id": m, "start": day(s), "end": day(e), "tag": t, "failure_mode": None, "note": None}
        for m, t, s, e in entries
    ]
    return pa.Table.from_pylist(rows, schema=MAINTENANCE_SCHEMA)


def failure_table(*entries) -> pa.Table:
    rows = [
        {
            "failure_id": f"f{i}",
            "machine_id": m,
            "time": day(s),
            "end": day(e),
            "failure_mode": "outer race",
            "role": role,
        }
        for i, (m, s, e, role) in enumerate(entries)
    ]
    return pa.Table.from_pylist(rows, schema=FAILURE_SCHEMA)


def column(table: pa.Table, name: str, machine: str, number: float) -> object:
    """The value of the row of a machine at a day."""
    rows = [
        i
        for i, (m, t) in enumerate(zip(table["machine_id"].to_pylist(), table["timestamp"].to_pylist(), strict=True))
        if m == machine and t == day(number)
    ]
    assert len(rows) == 1
    return table[name][rows[0]].as_py()


def test_the_cut_is_in_time_with_gaps_and_keeps_rows_and_order():
    status = status_table()
    result = split(status, log(), failure_table(), SEEN)
    table = result.table
    assert table.schema.equals(SPLIT_SCHEMA)
    for name in ("file", "row", "machine_id", "timestamp"):
        assert table[name].to_pylist() == status[name].to_pylist()
    roles = np.array(table["role"].to_pylist())
    days = np.array([(t - START) / dt.timedelta(days=1) for t in table["timestamp"].to_pylist()])
    fitted = days[np.isin(roles, ["train", "validation"])]
    calibrated, tested = days[roles == "calibration"], days[roles == "test"]
    assert calibrated.min() - fitted.max() >= 7
    assert tested.min() - calibrated.max() >= 7
    assert 0.15 < (roles == "validation").sum() / np.isin(roles, ["train", "validation"]).sum() < 0.25
    validation_days = {d // 1 for d in days[roles == "validation"]}
    train_days = {d // 1 for d in days[roles == "train"]}
    assert not validation_days & train_days
    assert set(table["label"].to_pylist()) == {"healthy", "unknown"}
    assert column(table, "log_status", "a", 99) == "unconfirmed"
    assert column(table, "role", "a", 99) == "test"
    assert result.metrics["rows"]["by_role"]["test"] == (roles == "test").sum()
    assert result.metrics["boundaries"]["start"] == "2025-01-01T00:00:00Z"
    assert any("no failure" in note for note in result.metrics["notes"])


def test_log_status_of_each_part_of_a_failure():
    entries = log(
        ("a", "failure", 20, 21),
        ("a", "repair", 21, 22),
        ("a", "off", 40, 41),
        ("b", "sensor", 30, 30.5),
        ("zz", "off", 1, 2),
    )
    result = split(status_table(quarantined={8}), entries, failure_table(("a", 20, 21, "tune")), SEEN)
    table = result.table
    assert column(table, "log_status", "a", 12.75) == "healthy"
    assert column(table, "log_status", "a", 13) == "horizon"
    assert column(table, "log_status", "a", 19.75) == "horizon"
    assert column(table, "log_status", "a", 20) == "down"
    assert column(table, "log_status", "a", 21) == "repair"
    assert column(table, "log_status", "a", 22) == "run_in"
    assert column(table, "log_status", "a", 23) == "healthy"
    assert column(table, "log_status", "a", 40.5) == "off"
    assert column(table, "log_status", "b", 30) == "repair"
    assert column(table, "log_status", "b", 30.5) == "healthy"
    assert column(table, "log_status", "b", 20) == "healthy"
    assert column(table, "log_status", "a", 1) == "quarantined"
    assert column(table, "role", "a", 1) == "none"
    assert column(table, "epoch", "a", 21.75) == 0
    assert column(table, "epoch", "a", 22) == 1
    assert column(table, "epoch", "b", 30.25) == 0
    assert column(table, "epoch", "b", 30.5) == 1
    assert column(table, "failure_id", "a", 13) == "f0"
    assert column(table, "failure_id", "a", 12.75) is None
    assert column(table, "role", "a", 15) == "tune"
    assert column(table, "label", "a", 15) == "faulty"
    assert column(table, "label", "a", 20.5) == "unknown"
    assert any("without spectra" in note for note in result.metrics["notes"])


def test_failures_tune_or_judge_and_the_others_say_why():
    failures = failure_table(
        ("a", 5, 5, "tune"),
        ("a", 30, 30, "tune"),
        ("b", 40, 40, "test"),
        ("b", 95, 95, "test"),
        ("ghost", 50, 50, "test"),
    )
    result = split(status_table(), log(), failures, SEEN)
    found = result.metrics["failures"]
    assert (found["total"], found["tune"], found["test"], found["judged"], found["unused"]) == (5, 1, 3, 1, 3)
    why = {entry["failure_id"]: entry["why"] for entry in found["unused_why"]}
    assert why == {
        "f0": "its horizon lies in the first tenth of the span",
        "f2": "its horizon lies before the test span",
        "f4": "its machine has no spectra",
    }
    assert column(result.table, "role", "b", 36) == "none"
    assert column(result.table, "role", "b", 95) == "test"
    assert column(result.table, "label", "b", 95) == "faulty"


def test_the_next_failure_owns_a_row_in_two_horizons():
    result = split(status_table(), log(), failure_table(("a", 34, 34, "tune"), ("a", 30, 30, "tune")), SEEN)
    assert column(result.table, "failure_id", "a", 29) == "f1"
    assert column(result.table, "failure_id", "a", 33.75) == "f0"
    # back from the first failure and already in the horizon of the next
    assert column(result.table, "log_status", "a", 30.25) == "horizon"


def test_healthy_tags_count_alone_and_confirm():
    result = split(status_table(), log(("a", "healthy", 0, 99.75)), failure_table(), SEEN)
    assert column(result.table, "log_status", "a", 99.75) == "healthy"
    assert column(result.table, "log_status", "b", 10) == "untagged"
    assert column(result.table, "role", "b", 90) == "none"


def test_unseen_machines_never_train_and_their_failures_judge():
    machines = tuple(f"m{i}" for i in range(20))
    params = SplitParams(unseen_machine_share=0.3)
    hidden = [m for m, unseen in zip(machines, unseen_machines(machines, 0.3), strict=True) if unseen]
    assert 1 <= len(hidden) < 15
    first = hidden[0]
    result = split(status_table(machines, per_day=2), log(), failure_table((first, 60, 60, "tune")), params)
    assert result.metrics["unseen_machines"] == hidden
    roles = {
        (m, r) for m, r in zip(result.table["machine_id"].to_pylist(), result.table["role"].to_pylist(), strict=True)
    }
    assert {r for m, r in roles if m in hidden} == {"baseline", "test", "none"}
    assert {r for m, r in roles if m not in hidden} == {"train", "validation", "calibration", "test", "none"}
    assert column(result.table, "role", first, 58) == "test"
    assert result.metrics["failures"]["judged"] == 1
    more = unseen_machines([*machines, "another"], 0.3)
    assert more[:20].tolist() == unseen_machines(machines, 0.3).tolist()


def test_one_machine_is_seen_whatever_its_hash():
    result = split(status_table(("only",)), log(), failure_table(), SplitParams(unseen_machine_share=0.99))
    assert result.metrics["unseen_machines"] == []
    assert result.metrics["rows"]["by_role"]["train"] > 0


def test_ten_rows_split():
    result = split(
        status_table(("a",), days=10, per_day=1), log(), failure_table(), SplitParams(horizon_hours=12, run_in_hours=0)
    )
    counts = result.metrics["rows"]["by_role"]
    assert all(counts[role] >= 1 for role in ("train", "validation", "calibration", "test"))


def test_a_machine_with_ten_rows_does_not_disturb_others():
    long, short = status_table(("a",)), status_table(("new",), days=10, per_day=1, first=80)
    result = split(pa.concat_tables([long, short]), log(), failure_table(), SEEN)
    assert column(result.table, "role", "new", 80) == "test"
    assert column(result.table, "role", "a", 3) == "train"


def test_machine_boundaries_follow_each_life():
    params = SplitParams(boundaries="machine", unseen_machine_share=0.0, horizon_hours=24)
    early, late = status_table(("a",), days=40), status_table(("b",), days=40, first=200)
    result = split(pa.concat_tables([early, late]), log(), failure_table(), params)
    for machine, first in (("a", 0), ("b", 200)):
        assert column(result.table, "role", machine, first + 0.5) == "train"
        assert column(result.table, "role", machine, first + 16) == "calibration"
        assert column(result.table, "role", machine, first + 30) == "test"
    assert set(result.metrics["boundaries"]["machines"]) == {"a", "b"}


@pytest.mark.parametrize(
    ("status", "entries", "params", "message"),
    [
        (status_table(), [("a", "off", 0, 101), ("b", "off", 0, 101)], SEEN, "healthy rows: got none of 800"),
        (status_table(), [("a", "off", 0, 50), ("b", "off", 0, 50)], SEEN, "train rows: got none of .*100 % off"),
        (status_table(), [("a", "off", 31, 80), ("b", "off", 31, 80)], SEEN, "calibration rows: got none of"),
        (status_table(days=2, quarantined=range(16)), [], SEEN, "all quarantined"),
        (status_table(), [], SplitParams(changed_at=day(300)), "changed_at: got 2025-10-28"),
        (
            status_table(),
            [("a", "off", 98, 101), ("b", "off", 98, 101)],
            SplitParams(changed_at=day(96)),
            r"calibration rows: got none of .*100 % off.*split\.after_change\.calibration_share",
        ),
        (status_table(days=4), [], SEEN, "healthy rows: .*unconfirmed.*horizon_hours"),
    ],
)
def test_what_cannot_be_split_is_said(status, entries, params, message):
    with pytest.raises(ContractError, match=message):
        split(status, log(*entries), failure_table(), params)


def test_a_quarantined_clock_does_not_stretch_the_span():
    far = status_table(("a",), days=1, per_day=1, first=20_000, quarantined={0})
    result = split(pa.concat_tables([status_table(), far]), log(), failure_table(), SEEN)
    assert result.metrics["boundaries"]["end"].startswith("2025-04-10")


def test_epochs_are_the_same_in_service():
    entries = log(("a", "repair", 3, 4), ("a", "firmware", 9, 9), ("a", "sensor", 8, 9), ("b", "off", 1, 2))
    times = np.array([int(day(d).timestamp() * 1e6) for d in (3, 4, 8.5, 9, 50)])
    machine = np.zeros(5, np.int32)
    assert epoch_of_rows(machine, times, ["a"], entries).tolist() == [0, 1, 1, 2, 2]
    assert epoch_of_rows(machine, times, ["b"], entries, day(8)).tolist() == [0, 0, 1, 1, 1]
    starts = EpochStarts.of_log(entries, day(8))
    again = EpochStarts.from_json(starts.to_json())
    assert again.of_rows(machine, times, ["a"]).tolist() == [0, 1, 2, 3, 3]
    # an entry added to the past later moves nothing; one after the build's newest row counts
    later = EpochStarts.of_log(log(("a", "repair", 1, 2), ("a", "repair", 20, 21)))
    assert again.extended_by(later, int(times[3])).of_rows(machine, times, ["a"]).tolist() == [0, 1, 2, 3, 4]


def test_plain_text_columns_split_too():
    result = split(status_table(machine_type=pa.string()), log(), failure_table(), SEEN)
    assert result.table.schema.equals(SPLIT_SCHEMA)


def test_a_suspect_row_is_judged_and_teaches_nothing():
    table = status_table()
    moments, names = table["timestamp"].to_pylist(), table["machine_id"].to_pylist()
    suspect = [m == "a" for m in names]  # a silent sensor, from the first row to the last
    statuses = pa.array(["suspect" if yes else "ok" for yes in suspect]).cast(TEXT)
    table = table.set_column(table.schema.get_field_index("status"), "status", statuses)
    # a log that ends with a failure of each machine
    failures = failure_table(("a", 95, 96, "test"), ("b", 95, 96, "test"))
    result = split(table, log(), failures, SEEN)
    plain = split(status_table(), log(), failures, SEEN)
    rows = dict(zip(zip(names, moments, strict=True), range(len(names)), strict=True))
    roles, labels = result.table["role"].to_pylist(), result.table["label"].to_pylist()
    assert {roles[row] for (machine, _), row in rows.items() if machine == "a"} == {"none", "test"}
    assert {roles[row] for (machine, _), row in rows.items() if machine == "b"} >= {"train", "calibration", "test"}
    # the horizon, its label, its failure and every judged row are those of a set without suspects
    for name in ("log_status", "label", "failure_id", "epoch"):
        assert result.table[name].to_pylist() == plain.table[name].to_pylist()
    judged = [role == "test" for role in plain.table["role"].to_pylist()]
    assert [role == "test" for role in roles] == judged
    assert labels[rows["a", day(94)]] == "faulty"
    count = sum(yes and test for yes, test in zip(suspect, judged, strict=True))
    assert result.metrics["rows"]["suspect_judged"] == count > 0
