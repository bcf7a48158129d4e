"""`hearken status` and `hearken metrics`: how the service stands, for people and for Prometheus."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.checkout import checkout_above, database
from flows.settings import Settings
from flows.terminal import JsonOption, print_json, say, say_markup, shown, table, wide_console
from pipeline.errors import UserError

if TYPE_CHECKING:
    from flows.service.standing import Figures, ServiceStatus

PARAMS = Path("params.yaml")
LATE = 1


def status(
    as_json: JsonOption = False,
    params: Annotated[Path | None, typer.Option("--params", help="Settings to use; default: the checkout's.")] = None,
) -> None:
    """Say what was scored, what waits and what failed; exit code 1 where scoring is late."""
    from flows.service.standing import service_status
    from pipeline.landing.places import list_files, place_of
    from pipeline.params import load_params

    checkout = checkout_above()
    chosen = load_params(params or checkout / PARAMS)
    landed, _ = list_files(place_of(Settings.of(checkout).landing_place(chosen.source.path)))
    found = service_status(
        database(), dt.datetime.now(dt.UTC), dt.timedelta(minutes=chosen.score.late_after_minutes), landed
    )
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
    if found.late:
        raise typer.Exit(LATE)


def metrics(
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Serve at http://HOST:PORT/metrics.")] = 9108,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: on every network.")] = "127.0.0.1",
    once: Annotated[bool, typer.Option("--once", help="Print the metrics instead.")] = False,
) -> None:
    """Serve the service's metrics to Prometheus, counted from the database at every scrape."""
    from prometheus_client import generate_latest, start_http_server

    from flows.service.metrics import registry_of

    registry = registry_of(database())
    if once:
        typer.echo(generate_latest(registry).decode(), nl=False)
        return
    try:
        _, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise UserError(f"--host, --port: got {host}:{port} ({error.strerror}), expected a free port.") from None
    say(f"http://{host}:{port}/metrics")
    thread.join()


def _print(found: ServiceStatus) -> None:
    for heading, line in figure_lines(found):
        say_markup(f"[bold]{heading:<12}[/bold]{shown(line)}")
    tables = {
        "Broken uploads": (found.broken_uploads, ("path", "error")),
        "Shards in trouble": (found.failing_shards, ("name", "state", "attempts", "error")),
    }
    for title, (rows, columns) in tables.items():
        if rows:
            made = table(*columns, title=title)
            for row in rows:
                made.add_row(*(shown(row[column]) for column in columns))
            wide_console().print(made)
    for error in found.notice_errors:
        say_markup(f"[yellow]notices:[/yellow] {shown(error)}")
    for reason in found.late:
        say_markup(f"[red]late:[/red] {shown(reason)}")
    if not found.late:
        say_markup("[green]scoring is on time[/green]")


def figure_lines(found: ServiceStatus) -> list[tuple[str, str]]:
    """A heading and a line of each figure."""
    figures, last = found.figures, found.last_shard
    release, day = figures.release, figures.rows_last_day
    lines = [
        (
            "release",
            f"v{release['version']} ({release['id']}), in service since {_moment(release['promoted_at'])}"
            if release
            else "none is in service",
        ),
        (
            "last shard",
            f"{last['name']}, finished {_moment(last['finished_at'])}, {last['rows']:,} rows"
            + (f" in {last['seconds']:.1f} s" if last["seconds"] is not None else "")
            if last
            else "none is finished",
        ),
        (
            "last day",
            f"{day.scored:,} rows, of these {day.unusable:,} without a score, {day.early:,} from the future, "
            f"{day.late:,} late; {day.repeated:,} repeated",
        ),
        ("lag", _lag(figures)),
        ("uploads", _counts(figures.uploads)),
        ("shards", _counts(figures.shards)),
    ]
    alerts = {f"{tier} {cause}" if tier != "none" else cause: n for (tier, cause), n in figures.open_alerts.items()}
    lines.append(("open alerts", _counts({name.replace("_", " "): n for name, n in alerts.items()})))
    lines.append(("drifts", _counts({name: figures.drifts[name] for name in ("open", "settled", "dismissed")})))
    retrainings = {name: n for name, n in figures.retrainings.items() if name != "merged"}
    lines.append(("retrainings", _counts(retrainings)))
    lines.append(("notices", _counts({f"{kind} {state}": n for (kind, state), n in figures.notices.items()})))
    return lines


def _lag(figures: Figures) -> str:
    from flows.service.standing import in_words

    newest = f"newest row scored {_moment(figures.newest_scored_at)}"
    if not figures.waiting:
        return f"none; {newest}"
    waits = f"uploads waiting: {figures.waiting:,}, the oldest for {in_words(figures.oldest_waiting_seconds)}"
    return f"{in_words(figures.lag_seconds)} of data; {newest}; {waits}"


def _counts(counts: dict[str, int]) -> str:
    """What there is of each.

    >>> _counts({"done": 1200, "failed": 0, "planned": 3}), _counts({"done": 0})
    ('1,200 done, 3 planned', 'none')
    """
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "none"


def _moment(moment: dt.datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"
