"""`hearken alerts`: what stands in alert, the story of one, and what people answer; answers reach the next build."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.alert_tables import (
    alert_json,
    alerts_table,
    details_table,
    entry_text,
    events_table,
    sentence,
    story_json,
)
from flows.checkout import database, installation
from flows.person import person
from flows.terminal import JsonOption, counted, print_json, say, say_markup, shown, typed_time, wide_console
from pipeline.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from flows.service.feedback import Answered

alerts = typer.Typer(no_args_is_help=True, help="Alerts: what stands, its story, and what people answer.")

AlertNumber = Annotated[int, typer.Argument(help="Number of the alert, as `list` shows it.")]
AlertNumbers = Annotated[list[int], typer.Argument(help="Numbers of alerts, as `list` shows them.")]
WhoOption = Annotated[str | None, typer.Option(help="Who answers; default: your login name.")]
NoteOption = Annotated[str, typer.Option(help="For people; stands in the alert's story.")]
VersionOption = Annotated[
    int | None, typer.Option(help="As `show` told it: refuse where the alert has changed since then.")
]
LandingOption = Annotated[
    str | None, typer.Option(help="The data set's folder or URI; default: HEARKEN_LANDING, else source.path.")
]


@alerts.command("list")
def list_command(
    standing: Annotated[str | None, typer.Option(help="open, closed or withdrawn; default: open and closed.")] = None,
    answer: Annotated[str | None, typer.Option(help="acknowledged, confirmed, dismissed, or none.")] = None,
    tier: Annotated[str | None, typer.Option(help="page or low.")] = None,
    machine: Annotated[str | None, typer.Option(help="Only this machine.")] = None,
    since: Annotated[str | None, typer.Option(help="Alerts that stood here or later: 2025-03-01T14:30.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="As many, the newest.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """The newest alerts: how bad, which machine, since when, how rare, who agrees, where in the spectrum, answers."""
    from flows.service.feedback import UNANSWERED, Wanted, list_alerts
    from flows.service.tables import Answer, Standing

    wanted = Wanted(
        standing=None if standing is None else Standing(_one_of(standing, "--standing", Standing)),
        answer=_one_of(answer, "--answer", [*Answer, UNANSWERED]) if answer is not None else None,
        tier=tier,
        machine=machine,
        since=None if since is None else typed_time(since, "--since", tell=not as_json),
    )
    found, total = list_alerts(database(), wanted, limit)
    if as_json:
        print_json({"alerts": [alert_json(alert) for alert in found], "total": total})
        return
    if not found:
        say(f"{total} alerts" if total else "no alert")
        return
    wide_console().print(alerts_table(found))
    left = f"; the newest {len(found)} are shown (--limit)" if len(found) < total else ""
    say(f"{counted(total, 'alert')} (UTC){left}; rarity is that of its oddest row among healthy ones")


@alerts.command("show")
def show_command(alert: AlertNumber, as_json: JsonOption = False) -> None:
    """One alert: what it says, its details, and all that happened to it."""
    from flows.service.feedback import alert_story

    story = alert_story(database(), alert)
    if as_json:
        print_json(story_json(story))
        return
    say(sentence(story.alert))
    console = wide_console()
    console.print(details_table(story))
    console.print(events_table(story))


def _answering(function: str) -> Callable[..., None]:
    """A command that answers alerts one by one with a function of `flows.service.feedback`."""

    def command(
        alert: AlertNumbers,
        who: WhoOption = None,
        note: NoteOption = "",
        version: VersionOption = None,
        landing: LandingOption = None,
    ) -> None:
        from flows.service import feedback

        answer = getattr(feedback, function)
        _each(alert, version, landing, lambda engine, one: answer(engine, one, **_said_by(who, note, version)))

    return command


alerts.command("ack", help="Say that somebody has seen these alerts and looks after them.")(_answering("acknowledge"))


@alerts.command("confirm")
def confirm_command(
    alert: AlertNumber,
    failure_at: Annotated[
        str | None, typer.Option(help="The machine failed or was stopped; default: the alert's last row so far.")
    ] = None,
    failure_until: Annotated[str | None, typer.Option(help="It ran again.")] = None,
    failure_mode: Annotated[str | None, typer.Option(help="What failed: outer race, imbalance.")] = None,
    who: WhoOption = None,
    note: NoteOption = "",
    version: VersionOption = None,
    landing: LandingOption = None,
) -> None:
    """The alert was right: it becomes a failure in the maintenance log of the next build."""
    from flows.service.feedback import Failure, confirm

    known = Failure(
        at=None if failure_at is None else typed_time(failure_at, "--failure-at", tell=True),
        until=None if failure_until is None else typed_time(failure_until, "--failure-until", tell=True),
        mode=failure_mode,
    )
    _each(
        [alert],
        version,
        landing,
        lambda engine, one: confirm(engine, one, failure=known, **_said_by(who, note, version)),
    )


alerts.command("dismiss", help="The alerts were wrong: their rows are healthy and may train in the next build.")(
    _answering("dismiss")
)


alerts.command("reopen", help="Take an answer back; the story keeps it.")(_answering("reopen"))


@alerts.command("reset-baseline")
def reset_baseline_command(
    machine: Annotated[str, typer.Argument(help="Its name, letter by letter.")],
    at: Annotated[str, typer.Option(help="The work was done: 2025-03-01T14:30. A new baseline begins here.")],
    reason: Annotated[str, typer.Option(help="repair, sensor (moved or changed) or firmware.")],
    since: Annotated[str | None, typer.Option("--from", help="The work began; default: it took a moment.")] = None,
    take_back: Annotated[bool, typer.Option("--take-back", help="Take such an entry out again.")] = False,
    who: WhoOption = None,
    note: NoteOption = "",
    landing: LandingOption = None,
) -> None:
    """A repair, a moved sensor or new firmware: the machine is compared with itself from then on."""
    from flows.service.feedback import RESET_TAGS, reset_baseline, take_back_reset
    from pipeline.schema import Tag

    tag = Tag(_one_of(reason, "--reason", RESET_TAGS))
    end = typed_time(at, "--at", tell=True)
    start = None if since is None else typed_time(since, "--from", tell=True)
    engine = database()
    if take_back:
        entry = take_back_reset(engine, machine, at=end, reason=tag)
        say_markup(f"taken back: {entry_text(entry)}")
    else:
        entry, new = reset_baseline(engine, machine, at=end, reason=tag, who=person(who), note=note, since=start)
        say_markup(f"{'entered' if new else 'entered already'}: {entry_text(entry)}")
    _export(engine, landing)


@alerts.command("export")
def export_command(landing: LandingOption = None) -> None:
    """Write all answers into the data set's folder, where the next build finds them."""
    _export(database(), landing)


# --- answering ---


def _said_by(who: str | None, note: str, version: int | None) -> dict[str, Any]:
    return {"who": person(who), "note": note, "version": version}


def _each(
    numbers: Sequence[int], version: int | None, landing: str | None, answer: Callable[[Engine, int], Answered]
) -> None:
    """Answer alerts one by one, and export what was answered even where a later one fails."""
    if version is not None and len(numbers) > 1:
        raise UserError(f"--version: got it with {len(numbers)} alerts, expected one alert.")
    engine, stored = database(), 0
    try:
        for number in numbers:
            _tell(answer(engine, number))
            stored += 1
    finally:
        if stored:
            _export(engine, landing)


def _tell(answered: Answered) -> None:
    alert, failure = answered.story.alert, answered.story.failure
    state = str(alert.answer) if alert.answer is not None else "without an answer"
    already = "" if answered.changed else " already"
    entered = f"; in the maintenance log: {entry_text(failure)}" if failure is not None else ""
    say_markup(f"alert {alert.id} of {shown(alert.machine_id)} is {state}{already}{entered}")


def _export(engine: Engine, landing: str | None) -> None:
    from flows.service.answers_export import export_answers

    try:
        place = landing if landing is not None else _landing_zone()
        done = export_answers(engine, place)
    except UserError as error:
        raise UserError(
            f"export: {error} Answers stand in the database; when it is mended: hearken alerts export"
        ) from None
    for note in done.notes:
        say_markup(f"[yellow]note:[/yellow] {shown(note)}")
    what = f"{', '.join(done.written)} written" if done.written else "nothing new to write"
    say(f"{what}: {place}")


# --- what people type, and what they see ---


def _one_of(text: str, option: str, known: Iterable[str]) -> str:
    names = [str(name) for name in known]
    if text not in names:
        raise UserError(f"{option}: got {text!r}, expected one of {', '.join(names)}.")
    return text


def _landing_zone() -> Path:
    from pipeline.params import load_params

    settings = installation()
    return settings.landing_zone(load_params(settings.checkout / "params.yaml").source.path)
