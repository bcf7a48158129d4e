"""`hearken quarantine list|release`: what validation set aside, and giving rows back."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.checkout import chosen_params, params_file, work_folder
from flows.person import person
from pipeline.errors import UserError, printable

if TYPE_CHECKING:
    from pipeline.set_aside import SetAside, Wanted

quarantine = typer.Typer(no_args_is_help=True, help="Rows that validation set aside, and giving them back.")

DataOption = Annotated[
    Path | None, typer.Option("--data", help="The snapshot that was validated; default: data/raw of the checkout.")
]
SNAPSHOT = Path("data/raw")
MachineOption = Annotated[str | None, typer.Option(help="Only this machine.")]
ReasonOption = Annotated[str | None, typer.Option(help="Only this reason, as `list` shows it.")]
StartOption = Annotated[str | None, typer.Option(help="Rows from here on: 2025-03-01T14:30, UTC without a zone.")]
EndOption = Annotated[str | None, typer.Option(help="Rows up to here.")]
SourceOption = Annotated[Path | None, typer.Option(help="The data set's folder; default: source.path of params.yaml.")]


@quarantine.command("list")
def list_command(
    data: DataOption = None,
    reason: ReasonOption = None,
    machine: MachineOption = None,
    start: StartOption = None,
    end: EndOption = None,
    limit: Annotated[int, typer.Option(min=0, help="As many lines, the largest intervals.")] = 50,
    source: SourceOption = None,
) -> None:
    """Rows that are quarantined or suspect: counts by reason, then machines and intervals."""
    from pipeline.quarantine import read_releases
    from pipeline.set_aside import set_aside

    folder = _source(source) if source is not None or params_file(None) is not None else None
    releases = read_releases(folder) if folder is not None else []
    found = set_aside(_status_file(data), _wanted(machine, reason, start, end), releases)
    # where nobody's window limits the width, an interval stands on one line if it can
    console = Console(width=None if sys.stdout.isatty() else 160)
    if not found:
        console.print("no row is set aside")
        return
    console.print(_by_reason(found))
    largest = sorted(found, key=lambda item: -item.rows)[:limit]
    if largest:
        console.print(_intervals(sorted(largest, key=lambda item: (item.reason, item.machine_id, item.start_us))))
    left = f"; {len(found) - len(largest):,} smaller ones are not shown (--limit)" if len(found) > limit else ""
    rows, back = (sum(item.rows for item in part) for part in (found, [item for item in found if item.returns]))
    waiting = f"; the next build gives {back:,} rows back" if back else ""
    console.print(f"{_number(rows, 'row')} in {_number(len(found), 'interval')} (UTC){left}{waiting}")


def _by_reason(found: Sequence[SetAside]) -> Table:
    """Rows, machines and intervals of each reason; a row with several reasons counts under each."""
    table = _table("reason", "status")
    for heading in ("machines", "intervals"):
        table.add_column(heading, justify="right")
    for reason, status in sorted({(reason, item.status) for item in found for reason in item.reasons}):
        mine = [item for item in found if reason in item.reasons and item.status == status]
        counts = (sum(item.rows for item in mine), len({item.machine_id for item in mine}), len(mine))
        table.add_row(_shown(reason), status, *(f"{count:,}" for count in counts))
    return table


def _intervals(items: Sequence[SetAside]) -> Table:
    from pipeline.set_aside import iso

    table = _table("reason", "machine", "from", "to", "status")
    for item in items:
        state = f"{item.status}, released" if item.returns else item.status
        times = (iso(item.start_us), iso(item.end_us))
        table.add_row(_shown(item.reason), _shown(item.machine_id), *times, state, f"{item.rows:,}")
    return table


def _table(*headings: str) -> Table:
    """A table with columns of text, then one of numbers of rows."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading in ("from", "to"))
    table.add_column("rows", justify="right")
    return table


@quarantine.command("release")
def release_command(
    data: DataOption = None,
    reason: ReasonOption = None,
    machine: MachineOption = None,
    start: StartOption = None,
    end: EndOption = None,
    note: Annotated[str, typer.Option(help="Why; for people.")] = "",
    by: Annotated[str | None, typer.Option(help="Who; default: your user name.")] = None,
    source: SourceOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Give rows back: written into the data set's folder, and applied by the next build."""
    from pipeline.set_aside import iso, proposed

    wanted = _wanted(machine, reason, start, end)
    who, now = person(by), dt.datetime.now(dt.UTC)
    given = proposed(_source(source), _status_file(data), wanted, note=note, by=who, at=now)
    console, path = Console(soft_wrap=True), escape(printable(str(given.path)))
    if not given.is_new:
        console.print(f"a release of these rows stands in {path} already: the next build applies it", highlight=False)
        return
    machines = _number(len({item.machine_id for item in given.given}), "machine")
    span = f"{iso(given.release.start_us)} to {iso(given.release.end_us)}"
    reasons = ", ".join(sorted({_shown(item.reason) for item in given.given}))
    console.print(f"{_number(given.rows, 'row')} of {machines}, {span}: {reasons}", highlight=False)
    if given.refused:
        console.print(f"kept out, as no numbers or negative: {_number(given.refused, 'row')}", highlight=False)
    if given.held:
        held = ", ".join(sorted({_shown(item.reason) for item in given.held}))
        rows = _number(sum(item.rows for item in given.held), "row")
        console.print(f"kept out, as set aside for another reason too: {rows} ({held})", highlight=False)
    if not (yes or _agreed(f"write this release into {path}?")):
        console.print("nothing is written")
        raise typer.Exit(1)
    given.write()
    back = f"the next build gives {_number(given.rows, 'row')} back"
    console.print(f"{back}; to take it back, delete the line in {path}", highlight=False)


def _agreed(question: str) -> bool:
    try:
        return typer.confirm(question)
    except typer.Abort:
        raise UserError("release: got no answer, expected y or n; --yes does not ask.") from None


def _wanted(machine: str | None, reason: str | None, start: str | None, end: str | None) -> Wanted:
    from pipeline.set_aside import Wanted, moment_of

    start_us = None if start is None else moment_of(start, "--start")
    end_us = None if end is None else moment_of(end, "--end")
    return Wanted(machine, reason, start_us, end_us)


def _source(given: Path | None) -> Path:
    return given if given is not None else work_folder() / chosen_params().source.path


def _status_file(snapshot: Path | None) -> Path:
    """Where stage validate writes beside a snapshot."""
    return (snapshot or work_folder() / SNAPSHOT).parent / "status/validate.parquet"


def _number(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def _shown(text: str) -> str:
    """A name of the data, taken neither for markup nor for a command of the terminal."""
    return escape(printable(text))
