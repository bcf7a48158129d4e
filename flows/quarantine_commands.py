"""`hearken quarantine list|release`: what validation set aside, and giving rows back."""

from __future__ import annotations

import datetime as dt
import getpass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

quarantine = typer.Typer(no_args_is_help=True, help="Rows that validation set aside, and giving them back.")

DataOption = Annotated[Path, typer.Option("--data", help="The snapshot that was validated.")]
SNAPSHOT = Path("data/raw")
MachineOption = Annotated[str | None, typer.Option(help="Only this machine.")]
ReasonOption = Annotated[str | None, typer.Option(help="Only this reason, as `list` shows it.")]


def _status_file(snapshot: Path) -> Path:
    """Where stage validate writes beside a snapshot."""
    return snapshot.parent / "status/validate.parquet"


@quarantine.command("list")
def list_command(
    data: DataOption = SNAPSHOT,
    reason: ReasonOption = None,
    machine: MachineOption = None,
    limit: Annotated[int, typer.Option(min=1, help="As many lines, the largest intervals.")] = 50,
) -> None:
    """Rows that are quarantined or suspect, by reason, machine and interval."""
    from pipeline.quarantine import iso, set_aside

    found = set_aside(_status_file(data), machine, reason)
    console = Console()
    if not found:
        console.print("no row is set aside")
        return
    table = Table("reason", "machine", "from", "to", "rows", "status")
    largest = sorted(found, key=lambda item: -item.rows)[:limit]
    for item in sorted(largest, key=lambda item: (item.reason, item.machine_id, item.start_us)):
        times = (iso(item.start_us)[:19], iso(item.end_us)[:19])
        table.add_row(escape(item.reason), escape(item.machine_id), *times, f"{item.rows:,}", item.status)
    console.print(table)
    rows = sum(item.rows for item in found)
    left = f"; {len(found) - len(largest)} smaller intervals are not shown (--limit)" if len(found) > limit else ""
    console.print(f"{rows:,} rows in {len(found):,} intervals (UTC){left}")


@quarantine.command("release")
def release_command(
    data: DataOption = SNAPSHOT,
    reason: ReasonOption = None,
    machine: MachineOption = None,
    start: Annotated[dt.datetime | None, typer.Option(help="Rows from here on (UTC).")] = None,
    end: Annotated[dt.datetime | None, typer.Option(help="Rows up to here (UTC).")] = None,
    note: Annotated[str, typer.Option(help="Why; for people.")] = "",
    by: Annotated[str | None, typer.Option(help="Who; default: your user name.")] = None,
    source: Annotated[
        Path | None, typer.Option(help="The data set's folder; default: source.path of params.yaml.")
    ] = None,
) -> None:
    """Give rows back: written into the data set's folder, and applied by the next build."""
    from pipeline.params import load_params
    from pipeline.quarantine import add_release

    given = add_release(
        source if source is not None else Path(load_params().source.path),
        _status_file(data),
        machine=machine,
        reason=reason,
        start=_utc(start),
        end=_utc(end),
        note=note,
        by=by if by is not None else getpass.getuser(),
        at=dt.datetime.now(dt.UTC),
    )
    console = Console(soft_wrap=True)
    if not given.added:
        console.print(f"this release stands in {escape(str(given.path))} already", highlight=False)
        return
    refused = f"; {given.refused:,} rows stay: they are no numbers, or negative" if given.refused else ""
    path = escape(str(given.path))
    console.print(f"the next build gives {given.rows:,} rows back{refused}: {path}", highlight=False)


def _utc(time: dt.datetime | None) -> dt.datetime | None:
    """A time without a zone is UTC."""
    return time.replace(tzinfo=dt.UTC) if time is not None and time.tzinfo is None else time
