"""`hearken releases`: what was built, what each release is, what is in service, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.terminal import JsonOption, print_json, say, say_markup, shown, wide_console

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from flows.releases.described import Described
    from flows.settings import Settings

releases = typer.Typer(no_args_is_help=True, help="Releases: what was built, and what is in service.")

NameArgument = Annotated[str, typer.Argument(help="An id, v3 or 3.")]
WhoOption = Annotated[str | None, typer.Option(help="Who decides; default: your login name.")]
DIFFERS = 1


@releases.command("list")
def list_command(as_json: JsonOption = False) -> None:
    """All releases, newest last: state, what each came from, and the share of healthy rows above its page threshold."""
    from flows.releases.tables import release_json, releases_table

    settings, engine = _places()
    found, versions = _all(settings, engine)
    if as_json:
        print_json([release_json(each, versions) for each in found])
        return
    if not found:
        say("no release yet: hearken build")
        return
    wide_console().print(releases_table(found, versions))
    say("times are UTC; page rate: share of healthy test rows above the page threshold, with its interval")


@releases.command("show")
def show_command(release: NameArgument, as_json: JsonOption = False) -> None:
    """One release in words: what made it, its settings, detectors, thresholds, figures, and what it has scored."""
    from flows.database import utc_now
    from flows.registry import find_release, promotions
    from flows.releases.described import Described, spells, tag_in_repository, work_of
    from flows.releases.tables import release_json, sections_of, sections_table

    settings, engine = _places()
    known, versions = _all(settings, engine)
    each = Described.of(settings, find_release(engine, release)).with_bytes_checked()
    serving = next((other for other in known if other.row.state == "in_service"), None)
    against = serving if serving is not None and serving.row.id != each.row.id and serving.manifest else None
    work, now = work_of(engine, each.row.id), utc_now()
    history = spells(promotions(engine), now)
    if each.manifest.get("recalibrated_from"):
        tag = "none: a recalibrated release has none, its weights stand under that of the release it came from"
    else:
        tag = tag_in_repository(settings, each.row)
    if as_json:
        told = release_json(each, versions) | {
            "manifest": each.manifest,
            "calibration": each.calibration,
            "decision": each.row.decision,
            "tag": tag,
            "rows_scored": work.rows,
            "shards_scored": work.shards,
            "alerts": work.alerts,
            "in_service": [
                {"from": line.at.isoformat(), "to": None if end == now else end.isoformat(), "who": line.who,
                 "note": line.note, "rollback": line.rollback}
                for line, end in history if line.release_id == each.row.id
            ],
        }  # fmt: skip
        print_json(told)
        return
    console = wide_console()
    for section in sections_of(each, versions, against=against, work=work, tag=tag, history=history, now=now):
        console.print(sections_table(section))
        console.print()


@releases.command("diff")
def diff_command(
    one: NameArgument,
    other: Annotated[str | None, typer.Argument(help="Default: the release in service.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Two releases side by side: settings, detectors, thresholds, policy, figures, epochs and files that differ."""
    from flows.registry import find_release, in_service
    from flows.releases.compared import compare
    from flows.releases.described import described
    from flows.releases.tables import diff_tables
    from pipeline.errors import ReleaseError

    settings, engine = _places()
    second = in_service(engine) if other is None else find_release(engine, other)
    if second is None:
        raise ReleaseError("diff: got one release, and none is in service, expected two.")
    pair = described(settings, find_release(engine, one)), described(settings, second)
    versions = {each.row.id: each.row.version for each in _all(settings, engine)[0]}
    found = compare(*pair, versions)
    if as_json:
        print_json({section: {name: list(sides) for name, sides in lines.items()} for section, lines in found.items()})
        return
    if not found:
        say("no difference")
        return
    console = wide_console()
    for table in diff_tables(found, pair[0].name, pair[1].name):
        console.print(table)


@releases.command("promote")
def promote_command(
    release: NameArgument,
    note: Annotated[str | None, typer.Option(help="Why; stands in the history.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also one that the gate refused or that is in shadow; with --note.")
    ] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also where a challenger waits in shadow, which is refused then.")
    ] = False,
    who: WhoOption = None,
) -> None:
    """Put a release into service after checking every byte of it; from the next scoring run on it scores."""
    from flows.person import person
    from flows.releases.entry import put_into_service

    settings, engine = _places()
    row = put_into_service(settings, engine, release, who=person(who), note=note, force=force, anyway=anyway)
    say(f"release {row.id} (v{row.version}) is in service from the next scoring run on")


@releases.command("rollback")
def rollback_command(
    release: Annotated[str | None, typer.Argument(help="An id, v3 or 3; default: what was in service before.")] = None,
    note: Annotated[str, typer.Option(help="Why; stands in the history.")] = "",
    who: WhoOption = None,
) -> None:
    """Put back the release that was in service before; from the next scoring run on it scores.

    Again: the one before that. The way forward is `promote`.
    """
    from flows.person import person
    from flows.registry import in_service
    from flows.releases.entry import go_back

    settings, engine = _places()
    left = in_service(engine)
    row = go_back(settings, engine, release, who=person(who), note=note)
    gone = f"; v{left.version} ({left.id}) is retired" if left is not None and left.id != row.id else ""
    say(f"release {row.id} (v{row.version}) is in service again from the next scoring run on{gone}")


@releases.command("rebuild")
def rebuild_command(
    release: NameArgument,
    weights: Annotated[bool, typer.Option("--weights", help="Train its detectors anew too.")] = False,
    data_set: Annotated[
        Path | None, typer.Option("--data-set", help="For a recalibrated release: what it was recalibrated with.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a release again in a private clone of its commit, and compare; exit code 1 where anything differs."""
    from flows.registry import find_release
    from flows.releases.rebuild import rebuild
    from flows.releases.tables import rebuilt_table

    settings, engine = _places()
    row = find_release(engine, release)

    def log(line: str) -> None:
        if not as_json:
            say_markup(f"[dim]{shown(line)}[/dim]")

    found = rebuild(settings, row, weights=weights, data_set=data_set, log=log)
    if as_json:
        compared = [{"what": each.what, "then": each.then, "now": each.now} for each in found.compared]
        print_json(
            {"release": found.release, "equal": found.equal, "how": found.how, "notes": found.notes}
            | {"compared": compared}
        )
    else:
        wide_console().print(rebuilt_table(found))
        for note in found.notes:
            say_markup(f"[yellow]note:[/yellow] {shown(note)}")
        differ = sum(not each.equal for each in found.compared)
        said = f"{len(found.compared)} compared, " + (f"{differ} differ" if differ else "all equal")
        say(f"v{found.version} ({found.release}): {found.how}: {said}")
    if not found.equal:
        raise typer.Exit(DIFFERS)


@releases.command("prune")
def prune_command(
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it nothing changes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say which old releases nothing needs any more (`releases.keep` in params.yaml), and with --yes delete them."""
    from flows.releases.prune import plan_pruning, prune
    from flows.releases.tables import pruning_table
    from pipeline.params import load_params

    settings, engine = _places()
    params = load_params(settings.checkout / "params.yaml")
    work = prune if yes else plan_pruning
    found = work(settings, engine, params.releases.keep, params.base_release)
    if as_json:
        print_json(
            {
                "deleted": found.done,
                "gone": [row.id for row in found.gone],
                "orphans": [str(folder) for folder in found.orphans],
                "kept": {identity: why for identity, (_, why) in found.kept.items()},
            }
        )
        return
    wide_console().print(pruning_table(found))
    count = len(found.gone) + len(found.orphans)
    hint = "" if yes or not count else "; to delete: hearken releases prune --yes"
    say(f"{len(found.kept)} kept, {count} {'deleted' if yes else 'to delete'}{hint}")


def _places() -> tuple[Settings, Engine]:
    from flows.checkout import installation
    from flows.database import open_database

    settings = installation()
    return settings, open_database(settings.database_url)


def _all(settings: Settings, engine: Engine) -> tuple[list[Described], dict[str, int]]:
    """Every release, newest last, and the versions by id."""
    from flows.registry import list_releases
    from flows.releases.described import Described

    found = [Described.of(settings, row) for row in list_releases(engine)]
    return found, {each.row.id: each.row.version for each in found}
