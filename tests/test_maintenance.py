"""The maintenance log: every wrong line is named, real logs are read, and what is open stays open."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import Clock
from pipeline.errors import ContractError
from pipeline.findings import Finding, Severity
from pipeline.layout import MaintenanceLayout
from pipeline.log_status import Timeline, intervals_of
from pipeline.maintenance import read_maintenance, with_added
from pipeline.maintenance_entries import OPEN_END, examine_log
from pipeline.schema import MICROSECONDS_PER_HOUR, Tag, times_us

HEAD = "machine_id,start,end,tag,failure_mode,note\n"
GOOD = "m,2024-01-01,2024-01-02,repair,,\n"


def log(tmp_path: Path, text: str, **how: object) -> Path:
    path = tmp_path / "maintenance.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def said(findings: tuple[Finding, ...]) -> list[tuple[str, str, str]]:
    return [(finding.severity.value, finding.place, finding.what) for finding in findings]


def layout(**values: object) -> MaintenanceLayout:
    return MaintenanceLayout.model_validate(values)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("m,2024-01-02,2024-01-01,repair,,", "end: got a time before start"),
        ("m,2024-01-01,2024-01-02,mended,,", "tag: got 'mended', expected one of healthy, .*maintenance.tags"),
        ("m,2024-01-01,2024-01-02,Failur,,", r"tag: got 'Failur', .*failure \(the nearest\)"),
        ("m,2024-01-01,2024-01-02,,,", "tag: got nothing"),
        (",2024-01-01,2024-01-02,repair,,", "machine_id: got nothing"),
        ("m,yesterday,2024-01-02,repair,,", "start: got 'yesterday', expected a time such as"),
        ("m,2024-01-01,2024-02-30,repair,,", "end: got '2024-02-30'"),
        ("m,,2024-01-02,repair,,", "start: got nothing"),
        ("m,2024-01-01,2024-01-02,repair,,,more", "the line: got 7 values, expected 6"),
    ],
)
def test_a_wrong_line_is_an_error_that_names_it(tmp_path: Path, line: str, message: str) -> None:
    path = log(tmp_path, f"{HEAD}{GOOD}{line}\n")
    with pytest.raises(ContractError, match=f"{message}.*maintenance.csv, line 3"):
        read_maintenance(path, Clock("UTC"))
    examined = examine_log(path, Clock("UTC"))
    assert [entry.place for entry in examined.entries] == ["line 2"]


def test_all_wrong_lines_are_found_at_once(tmp_path: Path) -> None:
    lines = ["m,2024-01-01,2024-01-02,mended,,", "m,x,y,repair,,", ",2024-01-02,2024-01-01,repair,,"]
    examined = examine_log(log(tmp_path, HEAD + "\n".join(lines) + "\n"), Clock("UTC"))
    assert said(examined.findings) == [
        ("error", "line 2", "tag"),
        ("error", "line 3", "start"),
        ("error", "line 3", "end"),
        ("error", "line 4", "machine_id"),
        ("error", "line 4", "end"),
    ]


def test_comments_blank_lines_and_lines_within_quotes_keep_the_numbers_right(tmp_path: Path) -> None:
    text = (
        '# a comment, with "quotes\r\n'
        "\r\n"
        f"{HEAD}"
        "#example,2024-01-01\n"
        '# m,2024-01-01,,failure,,"an example\n'
        'm,2024-01-01,,failure,bearing,"first\n'
        '# no comment\u2028 ""second"""\n'
        "#3,2024-01-05,,failure,,\n"
        ",,,,,\n"
        "m,2024-01-09,,broken,,\n"
    )
    examined = examine_log(log(tmp_path, text), Clock("UTC"))
    assert said(examined.findings) == [("error", "line 10", "tag")]
    assert [(entry.machine, entry.place) for entry in examined.entries] == [("m", "line 6"), ("#3", "line 8")]
    assert examined.entries[0].note == 'first\n# no comment\u2028 "second"'


def test_an_entry_without_an_end_is_a_moment_or_stays_open(tmp_path: Path) -> None:
    text = HEAD + "".join(f"{tag.value},2024-01-01,,{tag.value},,\n" for tag in Tag)
    table, _ = read_maintenance(log(tmp_path, text), Clock("UTC"))
    lasting = dict(zip(table["tag"].to_pylist(), (times_us(table["end"]) == OPEN_END).tolist(), strict=True))
    moments = {tag.value: False for tag in (Tag.FAILURE, Tag.SENSOR, Tag.FIRMWARE)}
    assert lasting == moments | {tag.value: True for tag in (Tag.HEALTHY, Tag.REPAIR, Tag.OFF)}
    failure = next(row for row in table.to_pylist() if row["tag"] == "failure")
    assert failure["end"] == failure["start"]


def test_a_log_with_its_own_words_is_read(tmp_path: Path) -> None:
    text = 'Anlage;Von;Bis;Art;Text\nPumpe 1;03.02.2024 14:00;;Ausfall;"Lager; innen"\n'
    how = layout(
        columns={"machine_id": "Anlage", "start": "Von", "end": "Bis", "tag": "Art", "note": "Text"},
        tags={"Ausfall": "failure"},
        timestamp_format="%d.%m.%Y %H:%M",
    )
    (entry,) = read_maintenance(log(tmp_path, text), Clock("Europe/Berlin"), how)[0].to_pylist()
    assert entry["machine_id"] == "Pumpe 1"
    assert entry["start"] == dt.datetime(2024, 2, 3, 13, tzinfo=dt.UTC)
    assert (entry["tag"], entry["note"]) == ("failure", "Lager; innen")


def test_missing_columns_name_the_nearest_and_the_setting(tmp_path: Path) -> None:
    with pytest.raises(
        ContractError, match=r"no machine_id \(but machineid\), no end \(but End\).*maintenance.columns"
    ):
        read_maintenance(log(tmp_path, "machineid,start,End,tag\n"), Clock("UTC"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b"# only a comment\n", "got an empty file"),
        (b"machine_id,start\nm\xfcller,2024", "not UTF-8 .*line 2"),
        (b"a,a\n", "'a' twice"),
    ],
)
def test_a_file_that_is_no_log_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "maintenance.csv"
    path.write_bytes(content)
    with pytest.raises(ContractError, match=message):
        read_maintenance(path, Clock("UTC"))


def test_local_times_that_are_twice_or_never_are_warned_of(tmp_path: Path) -> None:
    lines = ["m,2024-10-27 02:30,2024-10-27T04:00,repair,,", "m,2024-03-31 02:30,2024-03-31T04:00+02:00,repair,,"]
    clock = Clock("Europe/Berlin")
    examined = examine_log(log(tmp_path, HEAD + "\n".join(lines) + "\n"), clock)
    assert said(examined.findings) == [("warning", "line 2", "start"), ("warning", "line 3", "start")]
    assert ["twice" in examined.findings[0].got, "never" in examined.findings[1].got] == [True, True]
    assert [entry.start for entry in examined.entries] == [1729989000_000_000, 1711846800_000_000]


def test_what_contradicts_and_what_repeats_is_warned_of(tmp_path: Path) -> None:
    lines = [
        "a,2024-01-01,2024-02-01,healthy,,",
        "a,2024-01-10,2024-01-12,repair,,",
        "a,2024-01-10,2024-01-12,repair,,again",
        "a,2024-02-01,2024-02-03,failure,,",
        "a,2024-02-02,,failure,,",
        "a,2024-02-01,2024-02-05,repair,,",
        "b,2024-01-10,2024-01-12,repair,,",
    ]
    path = log(tmp_path, HEAD + "\n".join(lines) + "\n")
    examined = examine_log(path, Clock("UTC"))
    assert said(examined.findings) == [
        ("warning", "line 3", "tag"),
        ("warning", "line 4", "the entry"),
        ("warning", "line 6", "tag"),
    ]
    assert "line 2 says healthy" in examined.findings[0].got
    table, warnings = read_maintenance(path, Clock("UTC"))
    assert table.num_rows == 6  # a repeat says nothing new
    assert [text.rpartition(", ")[2] for text in warnings] == ["line 3.", "line 4.", "line 6."]


def test_of_many_warnings_the_first_are_repeated(tmp_path: Path) -> None:
    path = log(tmp_path, HEAD + GOOD * 20)
    table, warnings = read_maintenance(path, Clock("UTC"))
    assert (table.num_rows, len(warnings)) == (1, 6)
    assert warnings[-1] == "maintenance.csv: 14 more warnings, which `hearken check` lists"


def test_a_parquet_log_names_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "maintenance.parquet"
    start = dt.datetime(2024, 1, 1)
    columns = {"machine_id": [7, None, 7], "start": [start, None, start], "end": [None] * 3}
    columns["tag"] = pa.array(["off", None, "of"]).dictionary_encode()
    pq.write_table(pa.table(columns), path)
    examined = examine_log(path, Clock("UTC"))
    assert [(entry.machine, entry.tag.value, entry.end) for entry in examined.entries] == [("7", "off", OPEN_END)]
    assert said(examined.findings) == [("error", "row 2", "tag")]


def test_columns_that_nobody_reads_are_noted(tmp_path: Path) -> None:
    examined = examine_log(log(tmp_path, "machine_id,start,end,tag,cost\n" + "m,2024-01-01,,failure,9\n"), Clock("UTC"))
    assert [(finding.severity, finding.got) for finding in examined.findings] == [
        (Severity.NOTE, "cost, which nobody reads")
    ]


LINES = st.lists(
    st.lists(
        st.sampled_from(["m", "2024-01-01", "2024-02-30", "off", "failure", '"', "#", "", "\x00", "ü"]), max_size=7
    ),
    max_size=6,
)


@settings(max_examples=80, deadline=None)
@given(st.one_of(st.binary(max_size=200), LINES.map(lambda rows: (HEAD + "\n".join(map(",".join, rows))).encode())))
def test_any_bytes_are_findings_and_never_a_traceback(data: bytes) -> None:
    for name in ("maintenance.csv", "maintenance.parquet"):
        log = examine_log(Path(name), Clock("Europe/Berlin"), data=data)
        assert log.table().num_rows == len(log.entries)
        for finding in log.findings:
            assert finding.file == name


def test_every_cut_of_a_parquet_log_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "maintenance.parquet"
    pq.write_table(pa.table({"machine_id": ["m"], "start": ["2024-01-01"], "end": [None], "tag": ["off"]}), path)
    whole = path.read_bytes()
    assert examine_log(path, Clock("UTC"), data=whole).findings == ()
    for length in range(0, len(whole), 7):
        (finding,) = examine_log(path, Clock("UTC"), data=whole[:length]).findings
        assert finding.severity is Severity.ERROR


def test_a_machine_that_is_off_without_an_end_stays_off(tmp_path: Path) -> None:
    table, _ = read_maintenance(log(tmp_path, HEAD + "m,2024-01-02,,off,,\n"), Clock("UTC"))
    day = 24 * MICROSECONDS_PER_HOUR
    times = int(pd.Timestamp("2024-01-01").value // 1000) + np.arange(400) * day
    timeline = Timeline(np.zeros(400, np.int32), times, 1)
    assert timeline.covered(intervals_of(table, "start", "end", ["m"])).tolist() == [False] + [True] * 399


def test_what_answers_add_is_merged_and_no_failure_counts_twice(tmp_path: Path) -> None:
    def table(*lines: str) -> pa.Table:
        return read_maintenance(log(tmp_path, HEAD + "".join(f"{line}\n" for line in lines)), Clock("UTC"))[0]

    plant = table("m,2024-01-10,2024-01-11,failure,seal,", "m,2024-02-01,2024-02-02,repair,,")
    added = table(
        "m,2024-01-10,2024-01-11,failure,,the same",
        "m,2024-01-08,2024-01-08,failure,,two days before",
        "m,2024-01-12,2024-01-12,failure,,two days after",
        "m,2024-01-07,2024-01-07,failure,,another",
        "n,2024-01-10,2024-01-11,failure,,another machine",
        "m,2024-02-01,2024-02-02,repair,,the same",
        "m,2024-02-01,2024-02-03,repair,,longer",
    )
    merged, told_twice = with_added(plant, added, horizon_hours=48)
    assert [note for note in merged["note"].to_pylist() if note] == ["another", "another machine", "longer"]
    assert (merged.num_rows, told_twice) == (5, 2)
    assert merged["start"].to_pylist() == sorted(merged["start"].to_pylist())
    assert with_added(plant, added.slice(0, 0), horizon_hours=48)[0].equals(plant)
