"""`hearken history`: what the score log says of one machine, its alerts, and a page with the spectra around one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flows.checkout import installation
from flows.terminal import DASH, say, say_markup, shown, table, typed_time, wide_console
from pipeline.errors import UserError, WorkspaceError

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from flows.settings import Settings
    from pipeline.history import History, MachineAlert


def history(
    machine: Annotated[str, typer.Argument(help="Its name.")],
    since: Annotated[
        str | None, typer.Option("--from", help="ISO time, without a zone UTC; default: seven days before the end.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", help="Rows before this; default: the machine's newest row.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="A score log; default: that of this installation.")] = None,
    landing: Annotated[str | None, typer.Option(help="Where the uploads lie; default: the landing zone.")] = None,
    output: Annotated[Path | None, typer.Option(help="An HTML file to write, with charts and spectra.")] = None,
    alert: Annotated[int | None, typer.Option(help="To look at closely; default: the newest of the span.")] = None,
) -> None:
    """Print and plot what the score log says of a machine: rows, rarity, alerts, and the spectra around an alert."""
    from pipeline.history import chosen_alert, history_of, span_of
    from pipeline.moments import microseconds

    settings, folder = _places(log)
    since_us = None if since is None else microseconds(typed_time(since, "--from"))
    until_us = None if until is None else microseconds(typed_time(until, "--to"))
    span = span_of(folder, machine, since_us, until_us)
    if output is not None and output.is_dir():
        raise UserError(f"--output: got the folder {output}, expected a file.")
    alerts, warning = _alerts(folder, machine, settings)
    if alert is not None:
        span = span_of(folder, machine, since_us, until_us, chosen_alert(alerts, alert, None))
    chosen = chosen_alert(alerts, alert, span)
    told = history_of(folder, machine, span, alerts, chosen, None if settings is None else settings.releases)
    console = wide_console()
    if warning:
        say_markup(f"[yellow]warning:[/yellow] {shown(warning)}")
    console.print(periods_table(told))
    console.print(alerts_table(told) if told.alerts else f"no alert of {shown(machine)} in this span", highlight=False)
    if output is not None:
        _write_page(output, folder, landing or _landing(settings), told)
        say(str(output))


def _places(log: Path | None) -> tuple[Settings | None, Path]:
    """The installation of the checkout around us, and the score log; outside of a checkout a log must be given."""
    try:
        settings = installation()
    except WorkspaceError as error:
        if log is None:
            raise WorkspaceError(f"{error} Or give a score log: --log.") from None
        return None, log
    return settings, log or settings.score_log


def _landing(settings: Settings | None) -> Path | None:
    if settings is None:
        return None
    from pipeline.params import load_params

    return settings.landing_zone(load_params(settings.checkout / "params.yaml").source.path)


def _alerts(log: Path, machine: str, settings: Settings | None) -> tuple[list[MachineAlert], str]:
    """The machine's alerts: of the list beside the log where there is one, else of the database; and what is amiss."""
    from pipeline.history import alerts_beside

    found = alerts_beside(log, machine)
    if found is not None or settings is None:
        return found or [], ""
    from flows.database import open_database

    if _not_made_yet(settings.database_url):
        return [], ""
    try:
        engine = open_database(settings.database_url)
    except WorkspaceError as error:  # the log still tells what happened
        return [], f"alerts are not known: {error}"
    try:
        return alerts_of_database(engine, machine), ""
    finally:
        engine.dispose()


def _not_made_yet(url: str) -> bool:
    """Whether it is a SQLite database that is not there: who only reads makes none."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        address = make_url(url)
    except ArgumentError:
        return False  # opening it says what is wrong
    return address.get_backend_name() == "sqlite" and not Path(address.database or "").is_file()


def alerts_of_database(engine: Engine, machine: str) -> list[MachineAlert]:
    """A machine's alerts, the oldest first, without those that rows which came late took back."""
    from sqlalchemy import select
    from sqlalchemy.orm import Session

    from flows.service.tables import Alert, Standing
    from pipeline.history import MachineAlert
    from pipeline.moments import microseconds

    wanted = select(Alert).where(Alert.machine_id == machine, Alert.standing != Standing.WITHDRAWN)
    with Session(engine) as session:
        return [
            MachineAlert(
                id=row.id,
                cause=row.cause,
                tier=row.tier,
                opened_us=microseconds(row.opened_at),
                paged_us=None if row.paged_at is None else microseconds(row.paged_at),
                last_us=microseconds(row.last_at),
                closed_us=None if row.closed_at is None else microseconds(row.closed_at),
                answer=None if row.answer is None else str(row.answer),
                details=row.details,
            )
            for row in session.scalars(wanted.order_by(Alert.opened_at, Alert.id))
        ]


def _write_page(output: Path, log: Path, landing: str | Path | None, told: History) -> None:
    from pipeline.close_look import look_closely
    from pipeline.history_page import render_history
    from pipeline.store import write_text

    look = None if landing is None else look_closely(log, landing, told)
    write_text(output, render_history(told, look))


def periods_table(told: History) -> Table:
    """A row per hour or day."""
    from pipeline.history import by_hour, one_in, periods
    from pipeline.moments import moment_of

    found = periods(told)
    span = f"{told.span.since:%Y-%m-%d %H:%M} to {told.span.until:%Y-%m-%d %H:%M} UTC"
    title = f"{shown(told.machine)}, {span}, alerts by {shown(told.detector)}"
    made = table(title=title)
    made.add_column("from (UTC)", no_wrap=True)
    for heading in ("rows", "unusable", "rarest", "above low", "above page"):
        made.add_column(heading, justify="right")
    made.add_column("baseline")
    made.add_column("release")
    for period in found:
        made.add_row(
            f"{moment_of(period.start_us):{'%Y-%m-%d %H:%M' if by_hour(found) else '%Y-%m-%d'}}",
            f"{period.rows:,}",
            f"{period.unusable:,}" if period.unusable else DASH,
            one_in(period.rarity),
            f"{period.low:,}" if period.low else DASH,
            f"[red]{period.page:,}[/red]" if period.page else DASH,
            shown(", ".join(period.baselines)) or DASH,
            shown(", ".join(period.releases)),
        )
    return made


def alerts_table(told: History) -> Table:
    """A row per alert, the newest last."""
    from pipeline.moments import moment_of

    made = table(title="alerts")
    for heading in ("alert", "tier", "opened (UTC)", "last", "bands", "answer"):
        made.add_column(heading, no_wrap=heading in ("alert", "opened (UTC)", "last"))
    for alert in told.alerts:
        bands = [str(band.get("band", "")) for band in alert.details.get("top_bins") or []]
        made.add_row(
            str(alert.id),
            {"page": "[red]page[/red]", "low": "low"}.get(str(alert.tier), "no data"),
            f"{moment_of(alert.opened_us):%Y-%m-%d %H:%M}",
            "open" if alert.closed_us is None else f"{moment_of(alert.end_us):%Y-%m-%d %H:%M}",
            shown(", ".join(bands[:3])) or DASH,
            shown(alert.answer or DASH),
        )
    return made
