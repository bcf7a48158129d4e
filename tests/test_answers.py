"""Corrections and feedback: what a person may write, what is refused with its line, and how it reaches a snapshot."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.answers import carry_answers, parse_corrections, read_corrections, read_feedback
from pipeline.errors import ContractError
from pipeline.log_status import alerts_of
from pipeline.schema import FEEDBACK_SCHEMA
from pipeline.store import write_table, write_text

HEADER = "machine_id,start,end,action,note\n"
WHERE = Path("corrections.csv")


def lines(*entries: str) -> str:
    return HEADER + "".join(f"{entry}\n" for entry in entries)


def test_times_are_utc_unless_they_have_a_zone_and_blank_lines_say_nothing() -> None:
    text = lines("m1,1970-01-01T01:00:00+01:00,1970-01-01T00:00:01,keep,", "", "m2,1970-01-02,1970-01-03,remove,why")
    first, second = parse_corrections("\n".join(text.splitlines()), WHERE)
    assert (first.start_us, first.end_us, first.keep) == (0, 1_000_000, True)
    assert (second.machine, second.keep, second.note, second.line) == ("m2", False, "why", 4)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["m1,1970-01-02,1970-01-01,keep,"], r"end: got a time before start.*line 2"),
        (["m1,1970-01-01,1970-01-02,keep,", "m1,yesterday,1970-01-02,keep,"], r"start: got 'yesterday'.*line 3"),
        (["m1,1970-01-01,,keep,"], r"end: got nothing.*line 2"),
        (["m1,1970-01-01,1970-01-02,drop,"], r"action: got 'drop', expected keep or remove.*line 2"),
        ([",1970-01-01,1970-01-02,keep,"], r"machine_id: got nothing.*line 2"),
        (
            ["m1,1970-01-01,1970-01-05,keep,", "m2,1970-01-01,1970-01-05,remove,", "m1,1970-01-04,1970-01-06,remove,"],
            r"line 2 says the contrary of the same time.*line 4",
        ),
    ],
)
def test_wrong_intervals_name_their_line(entries: list[str], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        parse_corrections(lines(*entries), WHERE)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ContractError, match="got no end, action"):
        parse_corrections("machine_id,start\n", WHERE)


def test_unknown_machines_are_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "corrections.csv", lines("m1,1970-01-01,1970-01-02,keep,"))
    assert len(read_corrections(tmp_path, ["m1"])) == 1
    with pytest.raises(ContractError, match=r"machine_id: got 'm1'.*line 2"):
        read_corrections(tmp_path, ["m2"])


def feedback(*alerts: tuple[str, int, int | None, str]) -> pa.Table:
    columns = [
        pa.array(list(values), kind.type)
        for values, kind in zip(zip(*alerts, strict=True), FEEDBACK_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=FEEDBACK_SCHEMA)


def test_answers_are_carried_and_go_when_they_are_gone(tmp_path: Path) -> None:
    source, snapshot = tmp_path / "source", tmp_path / "raw"
    write_text(source / "corrections.csv", lines("m1,1970-01-01,1970-01-02,keep,"))
    write_table(source / "feedback.parquet", feedback(("m1", 1, 2, "open")))
    snapshot.mkdir()
    carry_answers(source, snapshot)
    assert read_feedback(snapshot).num_rows == len(read_corrections(snapshot, ["m1"])) == 1
    (source / "corrections.csv").unlink()
    (source / "feedback.parquet").unlink()
    carry_answers(source, snapshot)
    assert not list(snapshot.iterdir())


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
