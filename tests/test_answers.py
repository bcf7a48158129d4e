"""Corrections and feedback: what a person may write, what is refused with its line, and how it reaches a snapshot."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.answers import carry_answers, corrections_csv, examine_corrections, read_corrections, read_feedback
from pipeline.errors import ContractError
from pipeline.log_status import alerts_of
from pipeline.schema import FEEDBACK_SCHEMA
from pipeline.store import write_table, write_text

HEADER = "machine_id,start,end,action,note\n"


def written(folder: Path, *entries: str) -> Path:
    write_text(folder / "corrections.csv", HEADER + "".join(f"{entry}\n" for entry in entries))
    return folder


def test_times_are_utc_unless_they_have_a_zone_and_blank_lines_say_nothing(tmp_path: Path) -> None:
    entries = "m1,1970-01-01T01:00:00+01:00,1970-01-01T00:00:01,keep,", "", "m2,1970-01-02,1970-01-03,remove,why"
    first, second = read_corrections(written(tmp_path, *entries), ["m1", "m2"])
    assert (first.start_us, first.end_us, first.keep) == (0, 1_000_000, True)
    assert (second.machine, second.action, second.note, second.place) == ("m2", "remove", "why", "line 4")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["m1,1970-01-02,1970-01-01,keep,"], r"end: got a time before start.*csv, line 2"),
        (["m1,1970-01-01,1970-01-02,keep,", "m1,yesterday,1970-01-02,keep,"], r"start: got 'yesterday'.*line 3"),
        (["m1,1970-01-01,,keep,"], r"end: got nothing.*line 2"),
        (["m1,,1970-01-01,keep,"], r"start: got nothing.*line 2"),
        (["m1,1970-01-01,1970-01-02,drop,"], r"action: got 'drop', expected keep or remove.*line 2"),
        (["m1,1970-01-01,1970-01-02,,"], r"action: got nothing.*line 2"),
        ([",1970-01-01,1970-01-02,keep,"], r"machine_id: got nothing.*line 2"),
        (["M1,1970-01-01,1970-01-02,keep,"], r"machine_id: got 'M1', expected a machine .*; m1 is near.*line 2"),
        (
            ["m1,1970-01-01,1970-01-05,keep,", "m2,1970-01-01,1970-01-05,remove,", "m1,1970-01-04,1970-01-06,remove,"],
            r"action: got remove where line 2 says keep of the same time.*line 4",
        ),
        (["m1,1970-01-01,1970-01-01,keep,", "m1,1970-01-01,1970-01-02,remove,"], r"line 2 says keep.*line 3"),
    ],
)
def test_wrong_intervals_name_their_line(tmp_path: Path, entries: list[str], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        read_corrections(written(tmp_path, *entries), ["m1", "m2"])


def test_all_that_is_wrong_is_found_at_once(tmp_path: Path) -> None:
    wrong = ["m1,1970-01-02,1970-01-01,drop,", "m1,1970-01-02,1970-01-03,keep,", "m1,x,1970-01-03,keep,"]
    right, findings = examine_corrections(written(tmp_path, *wrong) / "corrections.csv")
    assert [each.place for each in right] == ["line 3"]
    assert [(found.place, found.what) for found in findings] == [
        ("line 2", "end"),
        ("line 2", "action"),
        ("line 4", "start"),
    ]


def test_intervals_that_touch_do_not_contradict_each_other(tmp_path: Path) -> None:
    entries = "m1,1970-01-02,1970-01-03,remove,", "m1,1970-01-01,1970-01-02,keep,"
    assert len(read_corrections(written(tmp_path, *entries), ["m1"])) == 2


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    write_text(tmp_path / "corrections.csv", "machine_id,start,END\n")
    with pytest.raises(ContractError, match=r"got no end \(but END\), no action"):
        read_corrections(tmp_path, [])


def test_lines_of_the_list_of_removed_intervals_can_be_copied(tmp_path: Path) -> None:
    columns = ["machine_id", "start", "end", "action", "note", "rows", "evidence", "reason", "state"]
    names = ["m1", "=m", "# m", "'=m", 'm,"x"']
    removed = corrections_csv(
        [[name, "1970-01-01", "1970-01-02", "remove", "", "4", "7.5", "residual", "removed"] for name in names], columns
    )
    write_text(tmp_path / "corrections.csv", removed)
    assert [each.machine for each in read_corrections(tmp_path, names)] == names
    write_text(tmp_path / "corrections.csv", HEADER + removed.split("\n", 1)[1])  # below a shorter first line
    assert [each.machine for each in read_corrections(tmp_path, names)] == names


def feedback(*alerts: tuple[str, int, int | None, str]) -> pa.Table:
    columns = [
        pa.array(list(values), kind.type)
        for values, kind in zip(zip(*alerts, strict=True), FEEDBACK_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=FEEDBACK_SCHEMA)


def test_answers_are_carried_as_they_are(tmp_path: Path) -> None:
    source, staging = tmp_path / "source", tmp_path / "raw"
    written(source, "# a comment", "m1,1970-01-01,1970-01-02,keep,")
    write_table(source / "feedback.parquet", feedback(("m1", 1, 2, "open")))
    staging.mkdir()
    carry_answers(source, staging)
    assert read_feedback(staging).num_rows == 1
    assert (staging / "corrections.csv").read_bytes() == (source / "corrections.csv").read_bytes()


def test_feedback_is_checked(tmp_path: Path) -> None:
    write_table(tmp_path / "feedback.parquet", feedback(("m1", 1, 2, "open"), ("m1", 1, 2, "maybe")))
    with pytest.raises(ContractError, match=r"state: got 'maybe'.*row 1"):
        read_feedback(tmp_path)
    write_table(tmp_path / "feedback.parquet", feedback(("m1", 3, 2, "open")))
    with pytest.raises(ContractError, match=r"closed: got a time before opened.*row 0"):
        read_feedback(tmp_path)


def test_an_alert_that_nobody_closed_lasts_until_the_newest_row() -> None:
    table = feedback(("m1", 1, None, "open"), ("m2", 3, 4, "confirmed"), ("gone", 3, 4, "open"))
    found = alerts_of(table, "open", 9, ["m1", "m2"])
    assert (found.machine_K.tolist(), found.start_K.tolist(), found.end_K.tolist()) == ([0, -1], [1, 3], [9, 4])
