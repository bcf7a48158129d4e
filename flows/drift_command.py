"""`hearken monitor`, `hearken drifts`, `hearken retrain`: has the plant changed, what follows, and a person's say."""

from __future__ import annotations

import datetime as dt
import difflib
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.alert_tables import time_text
from flows.checkout import database, installation
from flows.terminal import DASH, JsonOption, facts_table, print_json, say, shown, table, typed_time
from pipeline.errors import HearkenError, UserError

if TYPE_CHECKING:
    from flows.service.tables import Drift, Retraining
    from flows.settings import Settings

drifts = typer.Typer(no_args_is_help=True, help="Changes of the plant: what was found, and what a person says of it.")

DriftNumber = Annotated[int, typer.Argument(help="Number of the drift, as `list` shows it.")]
SHOWN_MACHINES = 10
LIKE_NAMES = 5  # that are shown where one is unknown


def monitor() -> None:
    """Ask whether the plant has changed or machines fail on their own, and see to what follows."""
    settings = _configured()
    from flows.monitor import monitor as flow  # imports prefect, which configure() has to come before
    from pipeline.drift import DriftDecision

    decision = flow(checkout=str(settings.checkout))
    if not isinstance(decision, DriftDecision):
        raise HearkenError(f"monitor: {decision}")
    say(f"{'drift' if decision.drifted else 'no drift'}: {decision.reason}")


def retrain(
    why: Annotated[str, typer.Option(help="The reason; stands in the decision.")],
    changed_at: Annotated[
        str | None, typer.Option(help="The plant changed here (ISO, UTC where no zone is given).")
    ] = None,
    machine: Annotated[list[str] | None, typer.Option(help="Only these changed; repeat it. Default: all.")] = None,
) -> None:
    """Ask for a new release and build it here: promoted, refused, or in shadow, as the gate decides."""
    settings = _configured()
    if not why.strip():
        raise UserError("--why: got nothing, expected a reason.")
    from flows.database import open_database, utc_now
    from flows.person import person
    from flows.retrain import Retrained, names_of
    from flows.retrain import retrain as flow
    from flows.service.drifts import known_machines
    from flows.service.retrainings import Wish, ask

    moment = None if changed_at is None else typed_time(changed_at, "--changed-at", tell=True)
    if machine and moment is None:
        raise UserError("--machine: got names without --changed-at, expected since when they are another.")
    engine = open_database(settings.database_url)
    try:
        check_change(moment, machine or (), known_machines(engine), utc_now())
        asked = ask(engine, Wish(person(None), why, None, moment, names_of(machine)))
    finally:
        engine.dispose()
    result = flow(gpu_deployment=None, checkout=str(settings.checkout))
    if not isinstance(result, Retrained):
        raise HearkenError(f"retrain: {result}")
    if result.state is None:
        say(f"retraining {asked.id} waits: {result.reason}")
        return
    say(f"release {result.challenger}: {result.state.value}: {result.reason}")


@drifts.command("list")
def list_command(as_json: JsonOption = False) -> None:
    """All changes of the plant and all retrainings, newest first."""
    from flows.service.drifts import list_drifts
    from flows.service.retrainings import list_retrainings

    engine = database()
    found, wishes = list_drifts(engine), list_retrainings(engine)
    if as_json:
        told = {"drifts": [drift_json(each) for each in found], "retrainings": [wish_json(each) for each in wishes]}
        print_json(told)
        return
    console = Console()
    console.print(_drift_table(found) if found else "no drift was found")
    if wishes:
        console.print(_wish_table(wishes))


@drifts.command("show")
def show_command(number: DriftNumber, as_json: JsonOption = False) -> None:
    """What was decided, on which figures, and which machines changed."""
    from sqlalchemy.orm import Session

    from flows.database import reading
    from flows.service.drifts import found_drift

    with Session(reading(database())) as session:
        drift = found_drift(session, number)
    if as_json:
        print_json(drift_json(drift))
        return
    report = DASH if drift.report is None else str(installation().home / drift.report)
    rows = {
        "drift": f"{drift.id}, {drift.state}",
        "what": drift.verdict,
        "changed": f"{time_text(drift.changed_at)} UTC, found {time_text(drift.found_at)} UTC",
        "release": drift.release_id,
        "why": str(drift.figures.get("reason", DASH)),
        "machines": f"{len(drift.machines)} ({drift.share:.0%}): {', '.join(drift.machines)}",
        "report": report,
        "note": drift.note or DASH,
    }
    made = facts_table()
    for name, value in rows.items():
        made.add_row(name, shown(value))
    Console().print(made)
    Console().print(_column_table(drift.figures.get("columns") or {}))


@drifts.command("dismiss")
def dismiss_command(
    number: DriftNumber,
    note: Annotated[str, typer.Option(help="Why it is none; for people.")] = "",
    who: Annotated[str | None, typer.Option(help="Who says so; default: your login name.")] = None,
) -> None:
    """Say that the plant has not changed: the alerts that the drift explained count again, and pages are told."""
    from flows.person import person
    from flows.service.drifts import dismiss_drift

    drift = dismiss_drift(database(), number, person(who), note)
    say(f"drift {drift.id} is dismissed; its alerts count again")


def drift_json(drift: Drift) -> dict[str, Any]:
    """One drift; times ISO 8601, UTC."""
    plain = ("id", "release_id", "verdict", "machines", "share", "figures", "report", "note")
    times = {"changed": _iso(drift.changed_at), "found": _iso(drift.found_at)}
    return {name: getattr(drift, name) for name in plain} | {"state": str(drift.state)} | times


def wish_json(wish: Retraining) -> dict[str, Any]:
    """One retraining; times ISO 8601, UTC."""
    plain = ("id", "who", "why", "drift_id", "machines", "attempts", "flow_run", "champion_id", "challenger_id")
    times = {name: _iso(getattr(wish, f"{name}_at")) for name in ("asked", "begun", "finished", "changed")}
    more = {"state": str(wish.state), "error": wish.error, "merged_into": wish.merged_into}
    return {name: getattr(wish, name) for name in plain} | more | times


def _iso(moment: dt.datetime | None) -> str | None:
    from flows.service.feedback import utc_text

    return None if moment is None else utc_text(moment)


def _drift_table(found: list[Drift]) -> Table:
    made = table("drift", "what", "changed", "found", "machines", "state", "note", title="Changes of the plant")
    for drift in found:
        names = ", ".join(drift.machines[:SHOWN_MACHINES])
        more = f" and {len(drift.machines) - SHOWN_MACHINES} more" if len(drift.machines) > SHOWN_MACHINES else ""
        times = (time_text(drift.changed_at), time_text(drift.found_at))
        cells = (str(drift.id), drift.verdict, *times, f"{len(drift.machines)}: {names}{more}", drift.state, drift.note)
        made.add_row(*(shown(cell) for cell in cells))
    return made


def _wish_table(wishes: list[Retraining]) -> Table:
    made = table("retraining", "asked", "by", "state", "challenger", "why", "error", title="Retrainings")
    for wish in wishes:
        state = f"{wish.state} into {wish.merged_into}" if wish.merged_into is not None else str(wish.state)
        cells = (str(wish.id), time_text(wish.asked_at), wish.who, state, wish.challenger_id or DASH, wish.why)
        made.add_row(*(shown(cell) for cell in (*cells, wish.error or DASH)))
    return made


def _column_table(columns: dict[str, dict[str, Any]]) -> Table:
    made = table("column", "distance", "limit", "")
    for name, each in sorted(columns.items(), key=lambda item: -float(item[1]["statistic"]) / float(item[1]["limit"])):
        beyond = "beyond" if each["drifted"] else ""
        made.add_row(shown(name), f"{each['statistic']:.3f}", f"{each['limit']:.3f}", beyond)
    return made


def check_change(
    changed_at: dt.datetime | None, machines: Iterable[str], known: Collection[str], now: dt.datetime
) -> None:
    """Refuse what no stage has to find out hours later: a change that is still to come, machines that nobody heard.

    Args:
        changed_at: since when the plant is another; None: nothing changed.
        machines: that changed.
        known: that the service has heard; none where it has scored nothing yet, and names cannot be checked.
        now: the present.

    Raises:
        UserError: one of them.
    """
    if changed_at is not None and changed_at > now:
        got, expected = f"{changed_at:%Y-%m-%d %H:%M} UTC", f"a time that has passed (it is {now:%Y-%m-%d %H:%M} UTC)"
        raise UserError(f"--changed-at: got {got}, expected {expected}.")
    for name in (each for each in machines if known and each not in known):
        like = difflib.get_close_matches(name, known, LIKE_NAMES) or sorted(known)[:LIKE_NAMES]
        more = f", and {len(known) - len(like)} more" if len(known) > len(like) else ""
        raise UserError(f"--machine: got {name!r}, expected one that has been scored: {', '.join(like)}{more}.")


def _configured() -> Settings:
    from flows.settings import configure

    settings = installation()
    configure(settings)
    return settings
