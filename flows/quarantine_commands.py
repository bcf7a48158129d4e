"""`hearken quarantine list|release`: what validation set aside, and giving rows back."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flows.checkout import chosen_params, params_file, work_folder
from flows.person import person
from flows.terminal import counted, say, say_markup, shown, table, typed_time, wide_console
from pipeline.errors import UserError

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
    console = wide_console()
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
    console.print(f"{counted(rows, 'row')} in {counted(len(found), 'interval')} (UTC){left}{waiting}")


def _by_reason(found: Sequence[SetAside]) -> Table:
    """Rows, machines and intervals of each reason; a row with several reasons counts under each."""
    made = table("reason", "status")
    for heading in ("machines", "intervals", "rows"):
        made.add_column(heading, justify="right")
    for reason, status in sorted({(reason, item.status) for item in found for reason in item.reasons}):
        mine = [item for item in found if reason in item.reasons and item.status == status]
        counts = (len({item.machine_id for item in mine}), len(mine), sum(item.rows for item in mine))
        made.add_row(shown(reason), status, *(f"{count:,}" for count in counts))
    return made


def _intervals(items: Sequence[SetAside]) -> Table:
    from pipeline.moments import iso_exact

    made = table("reason", "machine")
    for heading in ("from", "to"):
        made.add_column(heading, no_wrap=True)
    made.add_column("status")
    made.add_column("rows", justify="right")
    for item in items:
        state = f"{item.status}, released" if item.returns else item.status
        times = (iso_exact(item.start_us), iso_exact(item.end_us))
        made.add_row(shown(item.reason), shown(item.machine_id), *times, state, f"{item.rows:,}")
    return made


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
    from pipeline.moments import iso_exact
    from pipeline.set_aside import proposed

    wanted = _wanted(machine, reason, start, end)
    who, now = person(by), dt.datetime.now(dt.UTC)
    given = proposed(_source(source), _status_file(data), wanted, note=note, by=who, at=now)
    path = shown(given.path)
    if not given.is_new:
        say_markup(f"a release of these rows stands in {path} already: the next build applies it")
        return
    machines = counted(len({item.machine_id for item in given.given}), "machine")
    span = f"{iso_exact(given.release.start_us)} to {iso_exact(given.release.end_us)}"
    reasons = ", ".join(sorted({shown(item.reason) for item in given.given}))
    say_markup(f"{counted(given.rows, 'row')} of {machines}, {span}: {reasons}")
    if given.refused:
        say_markup(f"kept out, as no numbers or negative: {counted(given.refused, 'row')}")
    if given.held:
        held = ", ".join(sorted({shown(item.reason) for item in given.held}))
        rows = counted(sum(item.rows for item in given.held), "row")
        say_markup(f"kept out, as set aside for another reason too: {rows} ({held})")
    if not (yes or _agreed(f"write this release into {path}?")):
        say("nothing is written")
        raise typer.Exit(1)
    given.write()
    back = f"the next build gives {counted(given.rows, 'row')} back"
    say_markup(f"{back}; to take it back, delete the line in {path}")


def _agreed(question: str) -> bool:
    try:
        return typer.confirm(question)
    except typer.Abort:
        raise UserError("release: got no answer, expected y or n; --yes does not ask.") from None


def _wanted(machine: str | None, reason: str | None, start: str | None, end: str | None) -> Wanted:
    from pipeline.moments import microseconds
    from pipeline.set_aside import Wanted

    start_us = None if start is None else microseconds(typed_time(start, "--start"))
    end_us = None if end is None else microseconds(typed_time(end, "--end"))
    return Wanted(machine, reason, start_us, end_us)


def _source(given: Path | None) -> Path:
    return given if given is not None else work_folder() / chosen_params().source.path


def _status_file(snapshot: Path | None) -> Path:
    """Where stage validate writes beside a snapshot."""
    return (snapshot or work_folder() / SNAPSHOT).parent / "status/validate.parquet"
