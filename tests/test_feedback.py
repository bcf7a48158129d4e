"""What people answer: the story, the version, the maintenance log, and the files that builds read."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pytest
import sqlalchemy as sa
from pyarrow import fs
from sqlalchemy.orm import Session
from written_alerts import START, heard, hour, write_alert

from flows.database import open_database
from flows.service import answers_export, feedback
from flows.service.answers_export import added_log, export_answers
from flows.service.feedback import (
    Failure,
    Wanted,
    acknowledge,
    alert_story,
    confirm,
    dismiss,
    list_alerts,
    reopen,
    reset_baseline,
    take_back_reset,
)
from flows.service.tables import Alert, AlertEvent, Answer, LogEntry, Standing
from pipeline.answers import ADDED_LOG, CORRECTIONS, FEEDBACK, exported_note, read_corrections, read_feedback
from pipeline.epochs import EpochStarts
from pipeline.errors import ContractError, UserError
from pipeline.landing.places import Place, list_files, place_of
from pipeline.moments import microseconds
from pipeline.schema import MAINTENANCE_SCHEMA, Tag
from pipeline.store import read_table

HOSTILE = ["../x", "a'b\"c", "[red]loud[/red]", "<script>alert(1)</script>", "=1+1", "# no", "line\nbreak", "a,b;c"]


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[sa.Engine]:
    """A SQLite database, for what no database decides."""
    engine = open_database(f"sqlite:///{tmp_path / 'lite.db'}")
    yield engine
    engine.dispose()


def said(engine: sa.Engine, number: int) -> list[tuple[str, str, str]]:
    return [(str(event.kind), event.who, event.note) for event in alert_story(engine, number).events[1:]]


def entries(engine: sa.Engine) -> list[LogEntry]:
    with Session(engine) as session:
        return list(session.scalars(sa.select(LogEntry).order_by(LogEntry.id)))


# --- lists ---


def test_the_newest_alerts_come_first_and_every_filter_holds(engine: sa.Engine) -> None:
    old = write_alert(engine, "a", hour(0))
    low = write_alert(engine, "b", hour(5), paged=False)
    silent = write_alert(engine, "a", hour(7), cause="no_data")
    still = write_alert(engine, "a", hour(1), standing=Standing.OPEN)
    gone = write_alert(engine, "a", hour(9), standing=Standing.WITHDRAWN)
    dismiss(engine, low, who="ada")

    def numbers(**wanted: object) -> list[int]:
        return [alert.id for alert in list_alerts(engine, Wanted(**wanted))[0]]

    assert numbers() == [silent, low, still, old]
    assert numbers(standing=Standing.OPEN) == [still]
    assert numbers(standing=Standing.WITHDRAWN) == [gone]
    assert numbers(answer=Answer.DISMISSED) == [low]
    assert numbers(answer="none") == [silent, still, old]
    assert numbers(tier="page") == [still, old]
    assert numbers(tier="low") == [low]
    assert numbers(machine="b") == [low]
    assert numbers(since=hour(6)) == [silent, low, still], "what still stands stood then too"
    assert list_alerts(engine, limit=10**20)[1] == list_alerts(engine)[1]
    newest, total = list_alerts(engine, limit=1)
    assert ([alert.id for alert in newest], total) == ([silent], 4)
    with pytest.raises(UserError, match=r"answer: got 'maybe', expected one of .*, none"):
        list_alerts(engine, Wanted(answer="maybe"))
    with pytest.raises(UserError, match="tier: got 'loud', expected one of page, low"):
        list_alerts(engine, Wanted(tier="loud"))


def test_an_unknown_alert_is_named(engine: sa.Engine) -> None:
    with pytest.raises(UserError, match="got 7, expected the number of one \\(there are none\\)"):
        alert_story(engine, 7)
    number = write_alert(engine, "a")
    for wrong in (0, -1, number + 1, 2**40):
        with pytest.raises(UserError, match=rf"got {wrong}, .*the newest is {number}"):
            acknowledge(engine, wrong, who="ada")


# --- answers ---


def test_each_answer_writes_one_line_of_the_story_and_the_same_again_none(engine: sa.Engine) -> None:
    number = write_alert(engine, "a")
    for answer, note in ((acknowledge, "on my way"), (dismiss, "was loud, is fine"), (confirm, "outer race after all")):
        first = answer(engine, number, who="ada", note=note, now=hour(20))
        assert first.changed
        assert not answer(engine, number, who="bob", note=note).changed
        assert not answer(engine, number, who="bob").changed
    story = alert_story(engine, number)
    assert said(engine, number) == [
        ("acknowledged", "ada", "on my way"),
        ("dismissed", "ada", "was loud, is fine"),
        ("confirmed", "ada", "outer race after all"),
    ]
    assert [event.at for event in story.events[1:]] == [hour(20)] * 3
    assert story.alert.answer is Answer.CONFIRMED
    seen = alert_story(engine, number).alert.version
    again = confirm(engine, number, who="bob", note="and the inner one")
    assert again.changed, "another note is something new"
    assert again.story.alert.version == seen + 1, "and who saw the alert before has not seen it"
    assert said(engine, number)[-1] == ("confirmed", "bob", "and the inner one")


def test_an_answer_can_be_taken_back(engine: sa.Engine) -> None:
    number = write_alert(engine, "a")
    assert not reopen(engine, number, who="ada").changed
    confirm(engine, number, who="ada", note="x")
    assert len(entries(engine)) == 1
    again = reopen(engine, number, who="bob", note="wrong machine")
    assert (again.story.alert.answer, again.story.failure, entries(engine)) == (None, None, [])
    assert said(engine, number)[-1] == ("reopened", "bob", "wrong machine")
    assert confirm(engine, number, who="ada", note="x").changed


def test_seeing_an_alert_takes_no_answer_away(engine: sa.Engine) -> None:
    number = write_alert(engine, "a")
    dismiss(engine, number, who="ada")
    with pytest.raises(UserError, match=f"alert {number}: got one that is dismissed already"):
        acknowledge(engine, number, who="bob")
    assert len(said(engine, number)) == 1


def test_a_confirmed_alert_is_a_failure_at_its_last_row_until_its_time_is_known(engine: sa.Engine) -> None:
    number = write_alert(engine, "a", hour(1), hour(4), standing=Standing.OPEN)
    confirm(engine, number, who="ada", note="outer race", now=hour(5))
    (entry,) = entries(engine)
    assert (entry.start_at, entry.end_at, entry.tag, entry.failure_mode) == (hour(4), hour(4), "failure", "")
    assert (entry.machine_id, entry.who, entry.note, entry.alert_id) == ("a", "ada", "outer race", number)
    with Session(engine) as session, session.begin():  # the policy goes on
        session.get(Alert, number).last_at = hour(30)
    assert not confirm(engine, number, who="ada", note="outer race").changed, "the failure stays where it was said"
    known = Failure(hour(40), hour(44), "outer race")
    assert confirm(engine, number, who="bob", failure=known, now=hour(50)).changed
    assert not confirm(engine, number, who="bob", failure=known, now=hour(51)).changed
    (entry,) = entries(engine)
    assert (entry.start_at, entry.end_at, entry.failure_mode) == (hour(40), hour(44), "outer race")
    assert (entry.who, entry.note) == ("bob", "outer race")
    assert [event.of for event in alert_story(engine, number).events[1:]] == [hour(4), hour(40)]
    dismiss(engine, number, who="ada")
    assert entries(engine) == []


def test_a_no_data_alert_is_a_failure_only_where_somebody_says_so(engine: sa.Engine) -> None:
    number = write_alert(engine, "a", cause="no_data")
    assert confirm(engine, number, who="ada").story.failure is None
    assert confirm(engine, number, who="ada", failure=Failure(hour(1))).story.failure is not None


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (Failure(hour(11)), "failure: got 2025-03-01T11:00:00Z, which is yet to come"),
        (Failure(hour(2), hour(11)), "failure's end: got .*yet to come"),
        (Failure(hour(2), hour(1)), "failure's end: got a time before its beginning"),
        (Failure(None, hour(1)), "got an end without a beginning"),
        (Failure(hour(1), mode="x" * 121), "failure mode: got 'xxx.*at most 120 characters"),
    ],
)
def test_a_failure_that_cannot_be_is_refused(lite: sa.Engine, failure: Failure, message: str) -> None:
    number = write_alert(lite, "a")
    with pytest.raises(UserError, match=message):
        confirm(lite, number, who="ada", failure=failure, now=hour(10))
    assert said(lite, number) == []


@pytest.mark.parametrize("who", ["", "  ", "policy", "x" * 121, "nul\x00", "\udcff"])
def test_somebody_answers(lite: sa.Engine, who: str) -> None:
    number = write_alert(lite, "a")
    with pytest.raises(UserError, match="who: got"):
        dismiss(lite, number, who=who)


def test_the_second_of_two_who_answer_what_they_saw_is_told(engine: sa.Engine) -> None:
    number = write_alert(engine, "a")
    seen = alert_story(engine, number).alert.version
    confirm(engine, number, who="ada", version=seen)
    with pytest.raises(UserError, match=rf"got version {seen + 1}; ada confirmed it at .*expected version {seen}"):
        dismiss(engine, number, who="bob", version=seen)
    assert not confirm(engine, number, who="bob", version=seen).changed, "the same is no contradiction"
    assert alert_story(engine, number).alert.answer is Answer.CONFIRMED
    assert dismiss(engine, number, who="bob", version=seen + 1).changed


@pytest.mark.parametrize("rival", ["person", "policy"])
def test_a_change_between_reading_and_writing_is_noticed(engine: sa.Engine, rival: str) -> None:
    """On PostgreSQL two transactions read the same version; on SQLite the second waits for the first."""
    number = write_alert(engine, "a", standing=Standing.OPEN)
    has_read, has_written = threading.Event(), threading.Event()
    failed: list[UserError] = []

    def change_first() -> None:
        with Session(engine) as session, session.begin():
            alert = session.get(Alert, number)
            if rival == "person":
                alert.answer = Answer.CONFIRMED
                alert.events.append(AlertEvent(kind="confirmed", at=hour(9), who="ada", note=""))
            else:
                alert.last_at = hour(30)
            session.flush()
            has_written.set()
            has_read.wait(5 if engine.dialect.name == "postgresql" else 0.2)

    def answer() -> None:
        try:
            dismiss(engine, number, who="bob")
        except UserError as error:
            failed.append(error)

    write = feedback._write

    def slow(*arguments: object) -> None:
        has_read.set()  # ours is read, theirs is not committed: ours is written against an old version
        write(*arguments)

    first, second = threading.Thread(target=change_first), threading.Thread(target=answer)
    with mock.patch.object(feedback, "_write", slow):
        first.start()
        has_written.wait(5)
        second.start()
        first.join(20)
        second.join(20)
    alert = alert_story(engine, number).alert
    if rival == "policy":
        assert (failed, alert.answer, alert.last_at) == ([], Answer.DISMISSED, hour(30))
    elif engine.dialect.name == "postgresql":
        assert "another answer meanwhile; ada confirmed it" in str(failed[0])
        assert alert.answer is Answer.CONFIRMED
    else:
        assert (failed, alert.answer) == ([], Answer.DISMISSED), "it was read after the first was written"


# --- baselines ---


def test_two_people_who_enter_the_same_reset_at_once_enter_it_once(engine: sa.Engine) -> None:
    heard(engine, "pump 1")
    for number in range(5):
        together = threading.Barrier(2)

        def enter(number: int = number, together: threading.Barrier = together) -> None:
            together.wait()
            reset_baseline(engine, "pump 1", at=hour(number), reason=Tag.REPAIR, who="ada")

        people = [threading.Thread(target=enter) for _ in range(2)]
        for person in people:
            person.start()
        for person in people:
            person.join()
    assert len(entries(engine)) == 5


def test_a_reset_begins_an_epoch_at_the_end_of_the_work(engine: sa.Engine) -> None:
    heard(engine, "pump 1")
    entry, new = reset_baseline(engine, "pump 1", at=hour(5), since=hour(3), reason=Tag.REPAIR, who="ada", note="seal")
    assert (new, entry.start_at, entry.end_at, entry.tag, entry.note) == (True, hour(3), hour(5), "repair", "seal")
    assert not reset_baseline(engine, "pump 1", at=hour(5), since=hour(3), reason=Tag.REPAIR, who="bob")[1]
    reset_baseline(engine, "pump 1", at=hour(9), reason=Tag.SENSOR, who="ada")
    log = added_log(engine)
    assert log.schema.equals(MAINTENANCE_SCHEMA)
    starts = EpochStarts.of_log(log).of_machine("pump 1").tolist()
    assert starts == [round(hour(number).timestamp() * 1e6) for number in (5, 9)]
    assert log["note"].to_pylist() == ["by ada: seal", "by ada"]
    with pytest.raises(UserError, match=r"sensor: got 2025-03-01T05:00:00Z, expected an entry .*2025-03-01T09:00:00Z"):
        take_back_reset(engine, "pump 1", at=hour(5), reason=Tag.SENSOR)
    take_back_reset(engine, "pump 1", at=hour(9), reason=Tag.SENSOR)
    assert len(entries(engine)) == 1


@pytest.mark.parametrize(
    ("machine", "given", "message"),
    [
        ("Pump 1", {}, "got 'Pump 1', which was never scored, expected 'pump 1'"),
        ("zzz", {}, "expected one of the 2 that were scored"),
        ("pump 1", {"reason": Tag.OFF}, "reason: got 'off', expected one of repair, sensor, firmware"),
        ("pump 1", {"at": hour(11)}, "at: got .*yet to come"),
        ("pump 1", {"since": hour(6)}, "since: got a time after the end"),
    ],
)
def test_a_reset_that_would_do_nothing_is_refused(
    lite: sa.Engine, machine: str, given: dict[str, object], message: str
) -> None:
    heard(lite, "pump 1", "other")
    values = {"at": hour(5), "reason": Tag.REPAIR, "who": "ada", "now": hour(10)} | given
    with pytest.raises(UserError, match=message):
        reset_baseline(lite, machine, **values)
    assert entries(lite) == []


# --- the files of a data set ---


@pytest.fixture
def plant(tmp_path: Path) -> Path:
    (tmp_path / "plant").mkdir()
    return tmp_path / "plant"


def states(plant: Path) -> list[tuple[str, str, dt.datetime | None]]:
    return [(row["machine_id"], row["state"], row["closed"]) for row in read_feedback(plant).to_pylist()]


def test_without_alerts_nothing_is_written(engine: sa.Engine, plant: Path) -> None:
    assert export_answers(engine, plant).written == ()
    assert list(plant.iterdir()) == []


def test_what_builds_are_told_of_each_alert(engine: sa.Engine, plant: Path) -> None:
    """Nobody's word on a closed alert leaves it open; a withdrawn one is gone, but not a failure that a person saw."""
    write_alert(engine, "a", standing=Standing.OPEN)
    write_alert(engine, "b")
    acknowledge(engine, write_alert(engine, "c"), who="ada")
    confirm(engine, write_alert(engine, "d", standing=Standing.OPEN), who="ada")
    dismiss(engine, write_alert(engine, "e"), who="ada")
    dismiss(engine, write_alert(engine, "e2", standing=Standing.OPEN), who="ada")
    write_alert(engine, "f", standing=Standing.WITHDRAWN)
    dismiss(engine, write_alert(engine, "g", standing=Standing.WITHDRAWN), who="ada")
    confirm(engine, write_alert(engine, "h", standing=Standing.WITHDRAWN), who="ada")
    confirm(engine, write_alert(engine, "i", cause="no_data"), who="ada")
    assert export_answers(engine, plant).written == (FEEDBACK, ADDED_LOG, CORRECTIONS)
    assert states(plant) == [
        ("a", "open", None),
        ("b", "open", hour(2)),
        ("c", "open", hour(2)),
        ("d", "confirmed", None),
        ("e", "dismissed", hour(2)),
        ("e2", "dismissed", None),
    ]
    kept = read_corrections(plant, ["e", "e2"])
    first, last = (round(hour(number).timestamp() * 1e6) for number in (0, 2))
    assert [(each.machine, each.start_us, each.end_us, each.keep) for each in kept] == [
        ("e", first, last, True),
        ("e2", first, last, True),
    ]
    log = read_table(plant / ADDED_LOG, schema=MAINTENANCE_SCHEMA)
    assert log.equals(added_log(engine))
    assert log["machine_id"].to_pylist() == ["d", "h"]


def test_an_export_changes_nothing_where_nothing_changed(engine: sa.Engine, plant: Path) -> None:
    first, second = write_alert(engine, "a"), write_alert(engine, "b")
    dismiss(engine, first, who="ada")
    confirm(engine, second, who="ada")
    export_answers(engine, plant)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in plant.iterdir()}
    assert export_answers(engine, plant).written == ()
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in plant.iterdir()}
    assert after == before
    reopen(engine, first, who="ada")
    reopen(engine, second, who="ada")
    assert export_answers(engine, plant).written == (FEEDBACK, ADDED_LOG, CORRECTIONS)
    assert read_table(plant / ADDED_LOG).num_rows == 0
    assert read_corrections(plant, []) == []


THEIRS = (
    "\ufeff# mine\r\nmachine_id;start;end;action\r\n"
    '"x\ny";2025-01-01;2025-01-02;keep\r\n\r\na;2025-03-09;2025-03-10;remove'
)


@pytest.mark.parametrize(
    "theirs",
    [
        THEIRS,
        "note,machine_id,start,end,action,more\nalert 1,a,2025-01-01,2025-01-02,remove,x\n# the end\n",
        "machine_id,start,end,action,note\n",
        "# nothing yet",
    ],
)
def test_lines_that_people_wrote_stay_as_they_are_and_where_they_are(lite: sa.Engine, plant: Path, theirs: str) -> None:
    (plant / CORRECTIONS).write_bytes(theirs.encode())
    (plant / CORRECTIONS).chmod(0o664)
    number, other = write_alert(lite, "=1+1"), write_alert(lite, "b,;c")
    dismiss(lite, number, who="ada")
    dismiss(lite, other, who="ada")
    export_answers(lite, plant)
    text = (plant / CORRECTIONS).read_bytes().decode()
    assert text.startswith(theirs)
    assert (plant / CORRECTIONS).stat().st_mode & 0o777 == 0o664
    known = ["x\ny", "a", "=1+1", "b,;c"]
    kept = [each.machine for each in read_corrections(plant, known) if each.keep]
    assert kept[-2:] == ["=1+1", "b,;c"]
    line = "b;2025-05-01;2025-05-02;keep\r\n" if ";" in theirs else "b,2025-05-01,2025-05-02,keep,\n"
    if not theirs.startswith("note"):
        (plant / CORRECTIONS).write_bytes((text + line).encode())
        assert export_answers(lite, plant).written == (CORRECTIONS,), "theirs first, ours behind them"
        assert line.encode() in (plant / CORRECTIONS).read_bytes()
        assert [each.machine for each in read_corrections(plant, [*known, "b"])][-2:] == ["=1+1", "b,;c"]
        assert export_answers(lite, plant).written == ()
    reopen(lite, number, who="ada")
    reopen(lite, other, who="ada")
    export_answers(lite, plant)
    left = (plant / CORRECTIONS).read_bytes().decode()
    assert left.startswith(theirs)
    assert "dismissed in hearken" not in left


def test_a_line_that_a_person_wrote_to_the_contrary_counts(lite: sa.Engine, plant: Path) -> None:
    number = write_alert(lite, "a")
    dismiss(lite, number, who="ada")
    (plant / CORRECTIONS).write_text(f"machine_id,start,end,action\na,{START:%Y-%m-%d},{hour(1).isoformat()},remove\n")
    done = export_answers(lite, plant)
    assert done.notes == (
        f"alert {number} is dismissed, but corrections.csv, line 2, removes rows of the same time: "
        "the line written by hand counts",
    )
    assert [each.keep for each in read_corrections(plant, ["a"])] == [False]


def test_corrections_that_are_none_are_said_and_left(lite: sa.Engine, plant: Path) -> None:
    dismiss(lite, write_alert(lite, "a"), who="ada")
    (plant / CORRECTIONS).write_bytes(b"machine_id,start,end,action\n\xff\xfe,x\n")
    with pytest.raises(ContractError, match=r"text that is not UTF-8 .*corrections.csv, line 2"):
        export_answers(lite, plant)
    assert (plant / CORRECTIONS).read_bytes().endswith(b"\xff\xfe,x\n")
    assert read_feedback(plant).num_rows == 1, "the others are told all the same"


def test_rows_after_a_dismissal_are_judged_by_nobody(lite: sa.Engine, plant: Path) -> None:
    number = write_alert(lite, "a", standing=Standing.OPEN)
    dismiss(lite, number, who="ada")
    with Session(lite) as session, session.begin():  # the policy goes on
        session.get_one(Alert, number).last_at = hour(9)
    export_answers(lite, plant)
    assert [each.end_us for each in read_corrections(plant, ["a"])] == [microseconds(hour(2))]
    reopen(lite, number, who="ada")
    dismiss(lite, number, who="ada", note="this too")
    export_answers(lite, plant)
    assert [each.end_us for each in read_corrections(plant, ["a"])] == [microseconds(hour(9))]


def test_a_dismissed_machine_whose_spectra_are_gone_stops_no_build(engine: sa.Engine, plant: Path) -> None:
    dismiss(engine, write_alert(engine, "retired"), who="ada")
    export_answers(engine, plant)
    assert read_corrections(plant, ["another"]) == []
    (plant / CORRECTIONS).write_text((plant / CORRECTIONS).read_text().replace(", dismissed in hearken", ""))
    with pytest.raises(ContractError, match="got 'retired'"):
        read_corrections(plant, ["another"])


def test_names_of_the_data_come_back_exact(engine: sa.Engine, plant: Path) -> None:
    numbers = {machine: write_alert(engine, machine) for machine in HOSTILE}
    for machine, number in numbers.items():
        dismiss(engine, number, who="[red]", note=machine)
        reset_baseline(engine, machine, at=hour(9), reason=Tag.SENSOR, who="=1+1", note=machine)
    export_answers(engine, plant)
    assert {path.name for path in plant.iterdir()} == {FEEDBACK, ADDED_LOG, CORRECTIONS}
    lines = read_corrections(plant, HOSTILE)
    assert [(line.machine, line.note) for line in lines] == [
        (machine, exported_note(numbers[machine])) for machine in sorted(HOSTILE)
    ]
    assert [row[0] for row in states(plant)] == sorted(HOSTILE)
    log = read_table(plant / ADDED_LOG)
    assert log["machine_id"].to_pylist() == sorted(HOSTILE)
    assert log["note"].to_pylist() == [f"by =1+1: {machine}" for machine in sorted(HOSTILE)]
    for text in (plant / CORRECTIONS).read_text().splitlines():
        assert not text.startswith(("=", "+", "@")), "a spreadsheet would calculate it"
    assert export_answers(engine, plant).written == ()


def test_answers_reach_an_object_store_through_its_file_system(
    engine: sa.Engine, plant: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Place("s3://plant", fs.SubTreeFileSystem(str(plant.parent), fs.LocalFileSystem()), "plant", False, None)
    monkeypatch.setattr(answers_export, "place_of", lambda _: store)
    dismiss(engine, write_alert(engine, "a"), who="ada")
    confirm(engine, write_alert(engine, "b"), who="ada")
    assert export_answers(engine, "s3://plant").written == (FEEDBACK, ADDED_LOG, CORRECTIONS)
    assert export_answers(engine, "s3://plant").written == ()
    assert [row[:2] for row in states(plant)] == [("a", "dismissed"), ("b", "confirmed")]
    assert list_files(place_of(plant))[0] == [], "none of them is taken for spectra"


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_no_folder_to_write_to_is_said(lite: sa.Engine, plant: Path, kind: str) -> None:
    dismiss(lite, write_alert(lite, "a"), who="ada")
    place = plant / "here"
    if kind == "file":
        place.write_text("x")
    with pytest.raises(ContractError, match="got no such file or folder" if kind == "missing" else "got a file"):
        export_answers(lite, place)


def test_exports_at_once_leave_the_newest_answers(engine: sa.Engine, plant: Path) -> None:
    numbers = [write_alert(engine, f"m{number}") for number in range(6)]

    def work(mine: list[int]) -> None:
        for number in mine:
            dismiss(engine, number, who="ada")
            export_answers(engine, plant)

    workers = [threading.Thread(target=work, args=(numbers[part::2],)) for part in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [row[1] for row in states(plant)] == ["dismissed"] * 6
    assert len(read_corrections(plant, [f"m{number}" for number in range(6)])) == 6
    assert export_answers(engine, plant).written == ()


def test_the_log_of_answers_is_in_order_whatever_came_first(engine: sa.Engine) -> None:
    heard(engine, "b", "a")
    for machine, at in (("b", 5), ("a", 5), ("a", 1)):
        reset_baseline(engine, machine, at=hour(at), reason=Tag.FIRMWARE, who="ada")
    table: pa.Table = added_log(engine)
    assert [(row["machine_id"], row["start"]) for row in table.to_pylist()] == [
        ("a", hour(1)),
        ("a", hour(5)),
        ("b", hour(5)),
    ]
