"""The one reader of lines with a machine and an interval: the log, corrections and releases are read alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.answers import examine_corrections
from pipeline.clock import Clock
from pipeline.findings import Finding, Severity
from pipeline.interval_file import FileForm, csv_line, read_lines, with_line, with_lines, without_lines
from pipeline.maintenance_entries import examine_log
from pipeline.quarantine import examine_releases

Examine = Callable[[Path, bytes], tuple[Sequence[object], Sequence[Finding]]]


def maintenance(path: Path, data: bytes) -> tuple[Sequence[object], Sequence[Finding]]:
    log = examine_log(path, Clock("UTC"), data=data)
    return log.entries, log.findings


# how each file is examined, its fourth column, and a value of that
READERS: dict[str, tuple[Examine, str, str]] = {
    "maintenance.csv": (maintenance, "tag", "repair"),
    "corrections.csv": (examine_corrections, "action", "keep"),
    "quarantine_releases.csv": (examine_releases, "reason", "flat"),
}
every_reader = pytest.mark.parametrize("name", READERS)


def read(name: str, text: str | bytes) -> tuple[Sequence[object], list[tuple[str, str, str]]]:
    """What is right, and severity, place and message of what is not."""
    examine, column, value = READERS[name]
    data = text if isinstance(text, bytes) else text.encode()
    found, findings = examine(Path(name), data.replace(b"WORD", column.encode()).replace(b"word", value.encode()))
    return found, [(each.severity.value, each.place, str(each.error())) for each in findings]


@every_reader
@pytest.mark.parametrize(
    "text",
    [
        "machine_id,start,end,WORD\nm,2024-01-01,2024-01-02,word\n",
        "\ufeffmachine_id;start;end;WORD\r\nm;2024-01-01;2024-01-02;word\r\n",
        "# said by, the plant\n\nWORD\tend\tstart\tmachine_id\nword\t2024-01-02\t2024-01-01\tm",
        "machine_id,start,end,WORD,\n#,,\nm,2024-01-01T01:00+01:00, 2024-01-02T00:00:00Z , word ,\n,,,,\n",
    ],
)
def test_every_form_of_a_file_is_the_same_line(name: str, text: str) -> None:
    (entry,), findings = read(name, text)
    plain, _ = read(name, "machine_id,start,end,WORD\nm,2024-01-01,2024-01-02,word\n")
    values = {key: value for key, value in vars(entry).items() if key != "place"}
    assert values == {key: value for key, value in vars(plain[0]).items() if key != "place"}
    assert findings == []


@every_reader
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("m,2024-01-02,2024-01-01,word", "end: got a time before start, expected start <= end, in "),
        ("m,soon,2024-01-01,word", "start: got 'soon', expected a time such as 2025-03-01 14:30, in "),
        ("m,2024-02-30,2024-03-01,word", "start: got '2024-02-30'"),
        ("m,,2024-03-01,word", "start: got nothing, expected a time, in "),
        ("m,0000-01-01,2024-03-01,word", "start: got 0000-01-01, expected a time of the years 1 to 9999, in "),
        ("m,2024-03-01,9999-12-31T23:59:59-05:00,word", "end: got 9999-12-31T23:59:59-05:00, expected a time of"),
    ],
)
def test_a_wrong_line_is_said_alike(name: str, line: str, message: str) -> None:
    found, findings = read(name, f"# first\nmachine_id,start,end,WORD\n\nm,2024-01-01,2024-01-02,word\n{line}\n")
    ((severity, place, said),) = findings
    assert (len(found), severity, place) == (1, "error", "line 5")
    assert said.startswith(message)
    assert said.endswith(f"in {name}, line 5.")


@every_reader
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "got an empty file, expected a first line machine_id,start,end,"),
        (b"machine_id,start\n", "columns: got no end, no "),
        (b"machine_id,start,end,WORD\nM\xfcller,,,\n", "got text that is not UTF-8 (byte 0xfc), expected UTF-8"),
        (b"# x\nstart,start\n", "columns: got 'start' twice"),
    ],
)
def test_a_file_that_is_none_of_them_is_one_error(name: str, data: bytes, message: str) -> None:
    found, findings = read(name, data)
    ((severity, _, said),) = findings
    assert (list(found), severity) == ([], "error")
    assert message in said


@every_reader
def test_a_long_value_is_cut_in_the_message(name: str) -> None:
    _, findings = read(name, f"machine_id,start,end,WORD\nm,{'x' * 10_000},2024-01-01,word\n")
    assert ["start: got 'xxx" in said and len(said) < 300 for _, _, said in findings] == [True]


def test_only_a_release_may_be_of_all_machines() -> None:
    for name in READERS:
        found, findings = read(name, "machine_id,start,end,WORD\n,2024-01-01,2024-01-02,word\n")
        assert len(found) == (name == "quarantine_releases.csv")
        assert len(findings) == (name != "quarantine_releases.csv")


def test_only_an_entry_of_the_log_may_lack_its_end() -> None:
    for name in READERS:
        found, _ = read(name, "machine_id,start,end,WORD\nm,2024-01-01,,word\n")
        assert len(found) == (name == "maintenance.csv")


LINES = st.lists(
    st.lists(
        st.sampled_from(["m", "2024-01-01", "2024-02-30", "0001-01-01", "keep", "flat", '"', "#", "'=", "", "\x00"]),
        max_size=6,
    ),
    max_size=5,
)


@every_reader
@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        LINES.map(lambda rows: ("machine_id,start,end,WORD\n" + "\n".join(map(",".join, rows))).encode()),
    )
)
def test_any_bytes_are_findings_and_never_a_traceback(name: str, data: bytes) -> None:
    _, findings = read(name, data)
    assert all("\n" not in said for _, _, said in findings)


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(CELLS, min_size=2, max_size=2), st.sampled_from([",", ";"]))
def test_what_is_written_is_read_again(values: list[str], delimiter: str) -> None:
    form = FileForm("the file", ("machine_id", "note"))
    text = csv_line(["machine_id", "note"], delimiter) + csv_line(values, delimiter)
    lines = read_lines(Path("file.csv"), form, text.encode())
    expected = [[value if value.strip() else None] for value in values]
    if any(value is not None for (value,) in expected):
        assert [column.to_pylist() for column in lines.columns.values()] == expected
    else:
        assert lines.places == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", "machine_id,note\n=x,\n"),
        (b"# nothing yet", "# nothing yet\nmachine_id,note\n=x,\n"),
        (b"note;machine_id;more\n# c\nold;m;1", "note;machine_id;more\n# c\nold;m;1\nsaid;'=x;\n"),
        (b"\xef\xbb\xbfmachine_id\r\nm\r\n", "machine_id\r\nm\r\n'=x\r\n"),
    ],
)
def test_a_line_more_is_written_as_the_file_is(before: bytes, after: str) -> None:
    form = FileForm("the file", ("machine_id",), ("note",))
    values = {"machine_id": "=x", "note": "said" if b"note" in before else ""}
    assert with_line(Path("file.csv"), before, form, values) == after.replace("\n=x", "\n'=x")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.just("# c\n"), st.just("\r\n"), st.lists(CELLS, min_size=2, max_size=2).map(csv_line))))
def test_lines_that_come_and_go_leave_the_others_as_they_are(theirs: list[str]) -> None:
    form, path = FileForm("the file", ("machine_id", "note")), Path("file.csv")
    before = "machine_id,note\n" + "".join(theirs)
    ours = [{"machine_id": "=x\n", "note": "ours"}, {"machine_id": "# y", "note": "ours"}]
    for _ in range(2):
        after = with_lines(path, before.encode(), form, ours)
        assert after.startswith(before)
        assert without_lines(path, after.encode(), form, lambda values: "ours" in values) == before


def test_what_cannot_be_opened_is_a_finding(tmp_path: Path) -> None:
    _, (finding,) = examine_corrections(tmp_path)
    assert (finding.severity, finding.what) == (Severity.ERROR, "corrections")
