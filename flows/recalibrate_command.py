"""`hearken recalibrate`: new thresholds for the weights of a release, as a release of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flows.checkout import installation, params_file
from flows.terminal import DASH, JsonOption, print_json, say, shown, table, typed_time, wide_console
from pipeline.errors import ReleaseError, UserError, WorkspaceError

if TYPE_CHECKING:
    from flows.registry import ReleaseRow
    from flows.settings import Settings
    from pipeline.recalibrate import Recalibration, TierChange

NONE_ABOVE = "Where the old threshold lets none through, the upper end is an exact bound on the effective rows."


def recalibrate(
    release: Annotated[str, typer.Argument(help="A release folder, or an id, v3 or 3 of the registry.")],
    data_set: Annotated[
        Path, typer.Option("--data-set", help="That ingest wrote, or data/raw of a build; later than the release.")
    ],
    since: Annotated[str | None, typer.Option(help="Rows from here on: 2025-03-01T14:30, UTC without a zone.")] = None,
    until: Annotated[str | None, typer.Option(help="Rows before this.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the release here too: a new or empty folder.")] = None,
    promote: Annotated[bool, typer.Option(help="Put the new release into service.")] = False,
    params: Annotated[
        Path | None,
        typer.Option(
            "--params",
            help="For calibrate and validate; default: the checkout's, else the release's own, and built-in limits.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new release with the same weights and new thresholds, from recent healthy rows; nothing is trained."""
    from flows.chosen_release import chosen_release
    from pipeline.params import Params, load_params
    from pipeline.recalibrate import recalibrate as run

    low = None if since is None else typed_time(since, "--since")
    high = None if until is None else typed_time(until, "--until")
    if low is not None and high is not None and low >= high:
        raise UserError(f"--until: got {high:%Y-%m-%dT%H:%M} UTC, expected a time after --since.")
    settings = _registry(out, promote)
    file = params_file(params)
    chosen = None if file is None else load_params(file)
    loaded = chosen_release(release)
    with tempfile.TemporaryDirectory(prefix="hearken-") as folder:
        made = run(
            loaded,
            data_set,
            out or Path(folder) / "release",
            (chosen or Params()).validate_,
            since=low,
            until=high,
            calibrate=None if chosen is None else chosen.calibrate,
        )
        row = None if settings is None else register(settings, made, promote)
    if as_json:
        told = made.to_json() | {"folder": None if out is None else str(out)}
        print_json(told | {"version": row.version if row else None})
        return
    wide_console().print(changes_table(made))
    for line in last_lines(made, row, out):
        say(line)


def _registry(out: Path | None, promote: bool) -> Settings | None:
    """Where the registry is; None: outside of a checkout, where only a folder can be written."""
    try:
        return installation()
    except WorkspaceError:
        if out is None or promote:
            raise
        return None


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
    told = table("detector", "tier", title=title)
    for heading in ("percentile", "threshold", "asked for", "the old one lets through"):
        told.add_column(heading, justify="right")
    told.add_column("comes from")
    for change in made.tiers:
        style = "bold" if change.detector == made.detector else ""
        told.add_row(*_cells(change), style=style)
    return told


def _cells(change: TierChange) -> list[str]:
    old = change.old_percentile
    percentile = f"{change.percentile:g}" if old in (None, change.percentile) else f"{old:g} → {change.percentile:g}"
    threshold = f"{DASH if change.old_threshold is None else f'{change.old_threshold:.4g}'} → {change.threshold:.4g}"
    asked = DASH if old is None else f"{1 - old / 100:.3%}"
    rate = DASH if change.rate is None else f"{change.rate:.3%}"
    if change.rate_low is not None and change.rate_high is not None:
        rate += f" ({change.rate_low:.3%} to {change.rate_high:.3%})"
    name = shown(change.detector)
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
