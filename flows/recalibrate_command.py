"""`hearken recalibrate`: new thresholds for the weights of a release, as a release of its own."""

from __future__ import annotations

import datetime as dt
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.errors import ReleaseError, UserError, WorkspaceError, printable

if TYPE_CHECKING:
    from flows.registry import ReleaseRow
    from flows.settings import Settings
    from pipeline.params import Params
    from pipeline.recalibrate import Recalibration, TierChange

PARAMS = Path("params.yaml")
DASH = "—"
NONE_ABOVE = "Where the old threshold lets none through, the upper end is an exact bound on the effective rows."


def recalibrate(
    release: Annotated[str, typer.Argument(help="A release folder, or an id, v3 or 3 of the registry.")],
    data_set: Annotated[
        Path, typer.Option("--data-set", help="That ingest wrote, or data/raw of a build; later than the release.")
    ],
    since: Annotated[dt.datetime | None, typer.Option(help="Rows from here on (UTC).")] = None,
    until: Annotated[dt.datetime | None, typer.Option(help="Rows before this (UTC).")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the release here too: a new or empty folder.")] = None,
    promote: Annotated[bool, typer.Option(help="Put the new release into service.")] = False,
    params: Annotated[
        Path,
        typer.Option("--params", help="For calibrate and validate; without it the release's own, and built-in limits."),
    ] = PARAMS,
    as_json: Annotated[bool, typer.Option("--json", help="Print what changes as JSON.")] = False,
) -> None:
    """Make a new release with the same weights and new thresholds, from recent healthy rows; nothing is trained."""
    from flows.chosen_release import chosen_release
    from pipeline.params import Params
    from pipeline.recalibrate import recalibrate as run

    if since is not None and until is not None and since >= until:
        raise UserError(f"--until: got {until:%Y-%m-%dT%H:%M}, expected a time after --since.")
    settings = _settings(out, promote)
    loaded, chosen = chosen_release(release), _params(params)
    with tempfile.TemporaryDirectory(prefix="hearken-") as folder:
        made = run(
            loaded,
            data_set,
            out or Path(folder) / "release",
            (chosen or Params()).validate_,
            since=since,
            until=until,
            calibrate=None if chosen is None else chosen.calibrate,
        )
        row = None if settings is None else register(settings, made, promote)
    if as_json:
        told = made.to_json() | {"folder": None if out is None else str(out)}
        typer.echo(json.dumps(told | {"version": row.version if row else None}, indent=1, allow_nan=False))
        return
    # where nobody's window limits the width, a tier stands on one line if it can
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(changes_table(made))
    for line in last_lines(made, row, out):
        console.print(escape(printable(line)), highlight=False, soft_wrap=True)


def _settings(out: Path | None, promote: bool) -> Settings | None:
    """Where the registry is; None: outside of a checkout, where only a folder can be written."""
    from flows.chosen_release import checkout_above
    from flows.settings import Settings

    try:
        return Settings.of(checkout_above())
    except WorkspaceError:
        if out is None or promote:
            raise
        return None


def _params(path: Path) -> Params | None:
    from pipeline.params import load_params

    return None if path == PARAMS and not path.exists() else load_params(path)


def register(settings: Settings, made: Recalibration, promote: bool) -> ReleaseRow:
    """Enter the release in the registry, under the commit that its weights came from."""
    from flows import registry
    from flows.database import open_database
    from flows.person import person
    from flows.releases.entry import put_into_service

    engine = open_database(settings.database_url)
    try:
        try:
            commit = registry.find_release(engine, made.recalibrated_from).commit
        except ReleaseError:  # built elsewhere
            commit = ""
        note = f"recalibrated from {made.recalibrated_from}"
        row = registry.register_release(engine, settings.releases, made.folder, commit=commit, note=note)
        return put_into_service(settings, engine, row.id, who=person(None)) if promote else row
    finally:
        engine.dispose()


def changes_table(made: Recalibration) -> Table:
    """A row per detector and tier, the release's own first."""
    title = (
        f"{made.recalibrated_from} calibrated on {made.rows:,} rows of {made.machines} machines, {made.first} to "
        f"{made.last} (before: {made.old_rows:,} rows)"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("detector", "tier"):
        table.add_column(heading, overflow="fold")
    for heading in ("percentile", "threshold", "asked for", "the old one lets through"):
        table.add_column(heading, justify="right")
    table.add_column("comes from")
    for change in made.tiers:
        style = "bold" if change.detector == made.detector else ""
        table.add_row(*_cells(change), style=style)
    return table


def _cells(change: TierChange) -> list[str]:
    old = change.old_percentile
    percentile = f"{change.percentile:g}" if old in (None, change.percentile) else f"{old:g} → {change.percentile:g}"
    threshold = f"{DASH if change.old_threshold is None else f'{change.old_threshold:.4g}'} → {change.threshold:.4g}"
    asked = DASH if old is None else f"{1 - old / 100:.3%}"
    rate = DASH if change.rate is None else f"{change.rate:.3%}"
    if change.rate_low is not None and change.rate_high is not None:
        rate += f" ({change.rate_low:.3%} to {change.rate_high:.3%})"
    name = escape(printable(change.detector))
    return [name, change.tier, percentile, threshold, asked, rate, change.basis]


def last_lines(made: Recalibration, row: ReleaseRow | None, out: Path | None) -> list[str]:
    """Policy, notes, and where the release is."""
    from pipeline.recalibrate import policy_words

    old, new = policy_words(made.old_policy), policy_words(made.policy)
    lines = [f"policy: {new}" if old == new else f"policy: {old} → {new}"]
    lines.append(f"tune failures: {made.tune_failures}; the reference of drift is renewed from the same rows")
    # of tiers that no row exceeds each has a bound of its own; told once
    bounded = [change for change in made.tiers if change.rate == 0 and change.rate_high is not None]
    said = [change.note for change in made.tiers if change.note and change not in bounded]
    lines += [f"note: {note}" for note in dict.fromkeys([*made.notes, *said, *([NONE_ABOVE] if bounded else [])])]
    where = f" in {out}" if out is not None else ""
    if row is None:
        return [*lines, f"release {made.id}{where}; there is no checkout here, so it is not in a registry"]
    state = str(row.state).replace("_", " ")
    hint = "" if row.state == "in_service" else f"; to put it into service: hearken releases promote v{row.version}"
    return [*lines, f"release {made.id} (v{row.version}){where}: {state}{hint}"]
