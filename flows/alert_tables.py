"""Alerts for people and programs: tables for the terminal, a sentence, JSON; names are shown and never obeyed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.table import Table

from flows.terminal import DASH, facts_table, shown, table
from pipeline.errors import printable

if TYPE_CHECKING:
    from flows.service.feedback import Story
    from flows.service.tables import Alert, LogEntry

RAREST = 1e9  # beyond it a number says no more
SHOWN_BANDS = 3


def alerts_table(found: Iterable[Alert]) -> Table:
    """A row per alert, with what a crew looks at first."""
    made = table()
    made.add_column("alert", justify="right")
    made.add_column("tier")
    made.add_column("machine", overflow="fold")
    for heading in ("since", "until"):
        made.add_column(heading, no_wrap=True)
    made.add_column("how rare", justify="right", no_wrap=True)
    for heading in ("agree", "mostly in"):
        made.add_column(heading, overflow="fold")
    made.add_column("answer", no_wrap=True)
    for alert in found:
        ends = {"open": "[bold]open[/bold]", "withdrawn": "withdrawn"}
        until = ends.get(str(alert.standing), time_text(alert.closed_at or alert.last_at))
        made.add_row(
            str(alert.id),
            _tier(alert),
            shown(alert.machine_id),
            time_text(alert.opened_at),
            until,
            rarity_text(alert.peak_rarity),
            shown(", ".join(map(str, alert.details.get("agreed") or [])) or DASH),
            shown("; ".join(_bands(alert)[:SHOWN_BANDS]) or DASH),
            str(alert.answer or (DASH if alert.drift_id is None else f"drift {alert.drift_id}")),
        )
    return made


def rarity_text(rarity: float | None) -> str:
    """How rare a row is among healthy ones, from minus the logarithm of its tail probability, to two digits.

    >>> rarity_text(4.079), rarity_text(12.0), rarity_text(None)
    ('1 in 12,000', '1 in 10^9 or more', '—')
    """
    if rarity is None:
        return DASH
    rows = 10 ** min(rarity, 300.0)
    return "1 in 10^9 or more" if rows >= RAREST else f"1 in {float(f'{rows:.2g}'):,.0f}"


def sentence(alert: Alert) -> str:
    """What an alert says, in words."""
    machine, since = printable(alert.machine_id), f"since {time_text(alert.opened_at)} UTC"
    note = str(alert.details.get("note") or "")
    if alert.cause != "vibration":
        return f"{machine} has sent no usable spectrum {since}. {note}".rstrip()
    said = [f"{'Page' if alert.paged_at else 'Low alert'}: {machine} sounds unlike its healthy self {since}."]
    if alert.peak_rarity is not None:
        when = f" ({time_text(alert.peak_at)})" if alert.peak_at is not None else ""
        said.append(f"At its oddest{when}, {rarity_text(alert.peak_rarity)} healthy rows scores as high.")
    agreed = [str(name) for name in alert.details.get("agreed") or []]
    said.append(f"{', '.join(agreed)} agree{'s' if len(agreed) == 1 else ''}." if agreed else "No detector agrees.")
    bands = _bands(alert)
    return printable(" ".join([*said, *([f"Mostly in {'; '.join(bands)}."] if bands else []), note]).rstrip())


def _bands(alert: Alert) -> list[str]:
    """Bands of the peak's top bins, each with what turns there."""
    found = []
    for each in alert.details.get("top_bins") or []:
        near = ", ".join(map(str, each.get("near") or []))
        found.append(f"{each.get('band')}{f', near {near}' if near else ''}")
    return found


def _tier(alert: Alert) -> str:
    return {"page": "[red]page[/red]", "low": "low"}.get(alert.tier or "", "no data")


def details_table(story: Story) -> Table:
    """What the database says of one alert."""
    alert, peak = story.alert, story.alert.details.get("peak") or {}
    first = alert.details.get("first_row") or {}
    rows = {
        "alert": f"{alert.id}, version {alert.version}",
        "standing": f"{alert.standing}{'' if alert.final else ', not final'}",
        "answer": str(alert.answer or DASH),
        "explained by": DASH if alert.drift_id is None else f"drift {alert.drift_id}",
        "opened, paged": f"{time_text(alert.opened_at)}, {time_text(alert.paged_at)}",
        "last, closed": f"{time_text(alert.last_at)}, {time_text(alert.closed_at)}",
        "first row": _row_text(first),
        "peak row": _row_text(peak),
        "release": alert.release_id,
    }
    made = facts_table()
    for name, value in rows.items():
        made.add_row(name, shown(value))
    made.add_row("in the log", DASH if story.failure is None else entry_text(story.failure))
    return made


def _row_text(row: dict[str, Any]) -> str:
    return f"{row.get('file')}, row {row.get('row')}" if row else DASH


def events_table(story: Story) -> Table:
    """What happened to an alert, oldest first."""
    made = table()
    for heading in ("when", "what", "of", "who", "note"):
        made.add_column(heading, no_wrap=heading in ("when", "of"), overflow="fold")
    for event in story.events:
        made.add_row(time_text(event.at), str(event.kind), time_text(event.of), shown(event.who), shown(event.note))
    return made


def story_json(story: Story) -> dict[str, Any]:
    """An alert, its story, and the failure that it added to the log; times ISO 8601, UTC."""
    failure = story.failure
    entered = None
    if failure is not None:
        entered = {"start": _iso(failure.start_at), "end": _iso(failure.end_at), "failure_mode": failure.failure_mode}
        entered |= {"note": failure.note, "who": failure.who, "written": _iso(failure.written_at)}
    events = [
        {"kind": str(event.kind), "at": _iso(event.at), "of": _iso(event.of), "who": event.who, "note": event.note}
        for event in story.events
    ]
    return alert_json(story.alert) | {"events": events, "failure": entered}


def alert_json(alert: Alert) -> dict[str, Any]:
    """One alert; times ISO 8601, UTC."""
    times = {name: _iso(getattr(alert, f"{name}_at")) for name in ("opened", "paged", "last", "closed", "peak")}
    plain = (
        "id",
        "machine_id",
        "cause",
        "tier",
        "final",
        "peak_rarity",
        "release_id",
        "version",
        "drift_id",
        "details",
    )
    named = {"standing": str(alert.standing), "answer": None if alert.answer is None else str(alert.answer)}
    return {name: getattr(alert, name) for name in plain} | named | times


def _iso(moment: dt.datetime | None) -> str | None:
    from flows.service.feedback import utc_text

    return None if moment is None else utc_text(moment)


def entry_text(entry: LogEntry) -> str:
    """An entry of the maintenance log on one line, as markup."""
    mode = f" ({shown(entry.failure_mode)})" if entry.failure_mode else ""
    span = time_text(entry.start_at)
    span += f" to {time_text(entry.end_at)}" if entry.end_at != entry.start_at else ""
    return f"{shown(entry.tag)} of {shown(entry.machine_id)}, {span} UTC{mode}"


def time_text(moment: dt.datetime | None) -> str:
    """To the minute, UTC."""
    return DASH if moment is None else f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M}"
