"""`hearken alerts`: what a person sees, types and is told; names of the data are shown and never obeyed."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from test_feedback import HOSTILE
from written_alerts import heard, hour, write_alert

from flows.database import open_database
from flows.service.feedback import alert_story, confirm, dismiss
from flows.service.tables import Answer, Standing
from pipeline.answers import ADDED_LOG, CORRECTIONS, FEEDBACK, read_corrections, read_feedback
from pipeline.store import read_table

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose landing zone is `plant`."""
    folder = tmp_path / "checkout"
    (folder / "plant").mkdir(parents=True)
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / "params.yaml").write_text("source: {path: plant}\n")
    for name in ("HEARKEN_HOME", "HEARKEN_LANDING", "HEARKEN_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def database(checkout: Path) -> Iterator[sa.Engine]:
    engine = open_database(f"sqlite:///{checkout / '.hearken' / 'hearken.db'}")
    yield engine
    engine.dispose()


@pytest.fixture
def alerts(hearken: Command, checkout: Path) -> Command:
    return lambda *arguments: hearken("alerts", checkout, *arguments)


def test_the_list_says_what_an_engineer_looks_at_first(alerts: Command, database: sa.Engine) -> None:
    page = write_alert(database, "pump 7", hour(1.5), standing=Standing.OPEN)
    low = write_alert(database, "fan", hour(5), paged=False)
    write_alert(database, "fan", hour(4), cause="no_data")
    dismiss(database, low, who="ada")
    code, said, errors = alerts("list")
    assert (code, errors) == (0, "")
    lines = [line.split() for line in said.splitlines()]
    (of_page,) = [line for line in lines if "pump" in line]
    words = [str(page), "page", "pump", "7", "2025-03-01", "01:30", "open", "1", "in", "12,000", "pca,", "autoencoder"]
    assert of_page[: len(words)] == words
    assert "300-400 Hz, near BPFO (310 Hz)" in said
    assert "no data" in said
    assert "dismissed" in said
    assert "3 alerts (UTC)" in said
    assert alerts("list", "--tier", "low", "--answer", "none") == (0, "no alert\n", "")
    assert "1 shown" not in alerts("list", "--limit", "1")[1]
    assert "3 alerts (UTC); the newest 1 are shown" in alerts("list", "--limit", "1")[1]


def test_lists_and_stories_are_json_for_machines(alerts: Command, database: sa.Engine) -> None:
    number = write_alert(database, "pump 7")
    confirm(database, number, who="ada", note="seal", now=hour(9))
    told = json.loads(alerts("list", "--json", "--since", "2025-03-01")[1])
    assert told["total"] == 1
    (alert,) = told["alerts"]
    assert (alert["id"], alert["tier"], alert["standing"], alert["answer"]) == (number, "page", "closed", "confirmed")
    assert (alert["opened"], alert["closed"]) == ("2025-03-01T00:00:00Z", "2025-03-01T02:00:00Z")
    assert alert["details"]["agreed"] == ["pca", "autoencoder"]
    story = json.loads(alerts("show", number, "--json")[1])
    assert story["version"] == alert["version"] == 2
    assert [event["kind"] for event in story["events"]] == ["opened", "confirmed"]
    assert story["failure"]["start"] == "2025-03-01T02:00:00Z"


def test_the_story_of_one_alert(alerts: Command, database: sa.Engine) -> None:
    number = write_alert(database, "pump 7")
    confirm(database, number, who="ada", note="outer race", now=hour(9))
    said = alerts("show", number)[1]
    assert "Page: pump 7 sounds unlike its healthy self since 2025-03-01 00:00 UTC." in said
    assert "1 in 12,000 healthy rows scores as high. pca, autoencoder agree. Mostly in 300-400 Hz" in said
    assert "not a diagnosis" in said
    assert "2025-03-01.parquet, row 9" in said
    assert "failure of pump 7, 2025-03-01 02:00 UTC" in said
    assert "outer race" in said
    silent = write_alert(database, "fan", cause="no_data")
    assert "fan has sent no usable spectrum since 2025-03-01 00:00 UTC. No usable" in alerts("show", silent)[1]


def test_answers_are_stored_and_written_for_the_next_build(
    alerts: Command, database: sa.Engine, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "grace")
    first, second, third = (write_alert(database, f"m{number}") for number in range(3))
    code, said, _ = alerts("ack", first, second)
    assert code == 0
    assert f"alert {first} of m0 is acknowledged\nalert {second} of m1 is acknowledged\n" in said
    assert f"feedback.parquet written: {checkout / 'plant'}" in said
    said = alerts("confirm", first, "--failure-at", "2025-03-01T01:30+01:00", "--failure-mode", "seal")[1]
    assert "in the maintenance log: failure of m0, 2025-03-01 00:30 UTC (seal)" in said
    said = alerts("confirm", second, "--failure-at", "2025-03-01 03:00", "--failure-until", "2025-03-01T04:00Z")[1]
    assert "--failure-at: 2025-03-01 03:00 is taken as UTC\n" in said
    assert "--failure-until" not in said
    assert "failure of m1, 2025-03-01 03:00 to 2025-03-01 04:00 UTC" in said
    alerts("dismiss", third, "--note", "forklift", "--who", "ada")
    events = alert_story(database, third).events
    assert [(event.who, event.note) for event in events[1:]] == [("ada", "forklift")]
    assert alert_story(database, first).events[1].who == "grace"
    plant = checkout / "plant"
    assert read_feedback(plant)["state"].to_pylist() == ["confirmed", "confirmed", "dismissed"]
    assert [line.machine for line in read_corrections(plant, ["m2"])] == ["m2"]
    assert read_table(plant / ADDED_LOG)["failure_mode"].to_pylist() == ["seal", None]
    assert "is dismissed already" in alerts("dismiss", third)[1]
    assert "is without an answer" in alerts("reopen", third)[1]
    assert read_corrections(plant, []) == []
    assert "nothing new to write" in alerts("export")[1]


def test_a_baseline_begins_anew_and_a_mistake_is_taken_back(
    alerts: Command, database: sa.Engine, checkout: Path
) -> None:
    heard(database, "-5+@SUM(1)")
    given = ("--at", "2025-03-02T10:00Z", "--reason", "sensor", "--who", "ada", "--", "-5+@SUM(1)")
    assert "entered: sensor of -5+@SUM(1), 2025-03-02 10:00 UTC" in alerts("reset-baseline", *given)[1]
    assert "entered already" in alerts("reset-baseline", *given)[1]
    log = read_table(checkout / "plant" / ADDED_LOG).to_pylist()
    assert [(row["tag"], row["end"]) for row in log] == [("sensor", dt.datetime(2025, 3, 2, 10, tzinfo=dt.UTC))]
    assert "taken back" in alerts("reset-baseline", "--take-back", *given)[1]
    assert read_table(checkout / "plant" / ADDED_LOG).num_rows == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", 9), "alert: got 9, expected the number of one (the newest is 1)"),
        (("list", "--tier", "loud"), "tier: got 'loud', expected one of page, low"),
        (("list", "--standing", "x"), "--standing: got 'x', expected one of open, closed, withdrawn"),
        (
            ("list", "--answer", "maybe"),
            "--answer: got 'maybe', expected one of acknowledged, confirmed, dismissed, none",
        ),
        (("list", "--since", "soon"), "--since: got 'soon', expected ISO 8601"),
        (("confirm", 1, "--failure-at", "99999-01-01"), "--failure-at: got '99999-01-01', expected ISO 8601"),
        (("confirm", 1, "--failure-at", "2999-01-01T00:00Z"), "yet to come"),
        (("ack", 1, "--version", 7), "got version 1, expected version 7, as it was seen; look again"),
        (("ack", 1, 1, "--version", 1), "--version: got it with 2 alerts, expected one alert"),
        (("dismiss", 1, "--who", ""), "who: got ''"),
        (
            ("reset-baseline", "zz", "--at", "2025-03-02", "--reason", "tea"),
            "--reason: got 'tea', expected one of repair",
        ),
        (("reset-baseline", "zz", "--at", "2025-03-02", "--reason", "repair"), "got 'zz', which was never scored"),
    ],
)
def test_a_mistake_is_one_message_and_changes_nothing(
    alerts: Command, database: sa.Engine, checkout: Path, arguments: tuple[object, ...], message: str
) -> None:
    number = write_alert(database, "m")
    code, _, errors = alerts(*arguments)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors
    assert alert_story(database, number).alert.answer is None
    assert list((checkout / "plant").iterdir()) == []


def test_an_answer_is_kept_where_the_folder_cannot_be_written(
    alerts: Command, database: sa.Engine, checkout: Path
) -> None:
    number = write_alert(database, "m")
    code, said, errors = alerts("dismiss", number, "--landing", "gone")
    assert code == 2
    assert f"alert {number} of m is dismissed" in said
    assert "got no such file or folder" in errors
    assert "when it is mended: hearken alerts export" in errors
    assert alert_story(database, number).alert.answer is Answer.DISMISSED
    assert alerts("export")[0] == 0
    assert (checkout / "plant" / FEEDBACK).is_file()


def test_what_was_answered_before_a_mistake_is_exported(alerts: Command, database: sa.Engine, checkout: Path) -> None:
    number = write_alert(database, "m")
    code, _, errors = alerts("dismiss", number, 77)
    assert (code, "got 77" in errors) == (2, True)
    assert read_feedback(checkout / "plant")["state"].to_pylist() == ["dismissed"]


def test_names_are_shown_and_not_obeyed(alerts: Command, database: sa.Engine, checkout: Path) -> None:
    names = [*HOSTILE, "\x1b[2J\u202egone"]
    numbers = {write_alert(database, name): name for name in names}
    seen = alerts("list")[1] + "".join(alerts("show", number)[1] for number in numbers)
    for number, name in numbers.items():
        seen += alerts("dismiss", number, "--note", name, "--who", "[blue]")[1]
    assert "\x1b" not in seen
    assert "\u202e" not in seen
    for text in ("../x", "a'b\"c", "[red]loud[/red]", "<script>alert(1)</script>", "=1+1", r"\x1b[2J\u202egone"):
        assert f"{text} sounds unlike" in seen
        assert f"of {text} is dismissed" in seen
    before = {Path(root, name) for root, _, files in os.walk(checkout.parent) for name in files}
    assert alerts("export")[0] == 0
    after = {Path(root, name) for root, _, files in os.walk(checkout.parent) for name in files}
    assert after == before
    assert sorted(line.machine for line in read_corrections(checkout / "plant", names)) == sorted(names)
    assert "'=1+1" in (checkout / "plant" / CORRECTIONS).read_text()
