"""Releases for people and programs: tables for the terminal, and the same as JSON; names are shown and never obeyed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from flows.registry import Promotion, ReleaseRow
from flows.releases.compared import value_text
from flows.releases.described import AtWork, Described, default_settings, different, number, percent
from flows.releases.prune import Pruning
from flows.releases.rebuild import Rebuilt
from flows.terminal import DASH, shown, table
from pipeline.moments import iso_exact, microseconds

STATES = {"in_service": "[bold green]in service[/bold green]", "refused": "[red]refused[/red]"}
LONG = 90  # characters of a value beside another
Section = tuple[str, list[tuple[str, str]]]


def releases_table(found: Sequence[Described], versions: Mapping[str, int]) -> Table:
    """A row per release, newest last."""
    made = table("state", "version", "id", "created", "promoted", "from", "page rate", "note")
    for each in found:
        row = each.row
        state = STATES.get(str(row.state), str(row.state).replace("_", " "))
        state += " (provisional)" if row.provisional else ""
        until = f" until {row.shadow_until:%Y-%m-%d}" if row.shadow_until is not None else ""
        made.add_row(
            state + until,
            f"v{row.version}",
            row.id,
            moment(row.created_at),
            moment(row.promoted_at),
            shown(each.origin(versions)),
            page_rate(row),
            shown(row.note),
        )
    return made


def release_json(each: Described, versions: Mapping[str, int]) -> dict[str, Any]:
    """A release of the list as JSON."""
    row = each.row
    return {
        "id": row.id,
        "version": row.version,
        "state": str(row.state),
        "provisional": row.provisional,
        "created_at": _iso(row.created_at),
        "promoted_at": _iso(row.promoted_at),
        "shadow_until": _iso(row.shadow_until),
        "from": each.origin(versions),
        "parents": each.parents,
        "page_rate": _page(row).get("false_positive_rate"),
        "commit": row.commit,
        "branch": row.branch,
        "note": row.note,
        "damage": each.damage,
    }


def sections_of(
    each: Described,
    versions: Mapping[str, int],
    *,
    against: Described | None,
    work: AtWork,
    tag: str,
    history: Iterable[tuple[Promotion, dt.datetime]],
    now: dt.datetime,
) -> list[Section]:
    """A release in words, section by section."""
    row, manifest = each.row, each.manifest
    newest = each.newest_row()
    facts = [
        ("state", str(row.state).replace("_", " ") + (", provisional" if row.provisional else "")),
        ("created", moment(row.created_at)),
        ("files", each.damage or f"as its manifest says ({len(manifest.get('files') or {})} and the manifest)"),
        ("note", row.note or DASH),
    ]
    if row.shadow_until is not None:
        facts.insert(1, ("in shadow until", moment(row.shadow_until)))
    times = [
        (f"{moment(line.at)} to {'now' if end == now else moment(end)}", " ".join(_by(line)))
        for line, end in history
        if line.release_id == row.id
    ]
    made = [
        ("from", each.origin(versions)),
        ("commit", row.commit or "not known"),
        ("branch", row.branch or DASH),
        ("tag", tag),
        ("seed", value_text(manifest.get("seed"))),
        ("newest row", DASH if newest is None else moment(newest)),
        ("trained on", f"{manifest.get('device', DASH)}, {manifest.get('threads', DASH)} threads"),
        ("scores", f"in batches of {manifest.get('batch_rows', DASH)} rows"),
    ]
    recalibration = manifest.get("recalibration")
    if recalibration:
        made.append(
            (
                "calibrated on",
                f"{recalibration['rows']:,} rows of {recalibration['machines']} machines, "
                f"{recalibration['first']} to {recalibration['last']}",
            )
        )
    own = each.settings()
    other = default_settings(own) if against is None else against.settings()
    beside = "the defaults" if against is None else f"v{against.row.version}, in service"
    settings = [(name, f"{_short(a)} (there: {_short(b)})") for name, (a, b) in different(own, other).items()]
    thresholds = [
        (
            name,
            f"{tier['threshold']:.5g} at the {tier['percentile']:g}th percentile; {tier['basis']}"
            + (
                f"; lets through {percent(tier.get('rate'), [tier.get('rate_low'), tier.get('rate_high')])}"
                if tier.get("rate") is not None
                else ""
            ),
        )
        for name, tier in each.thresholds().items()
        if name.startswith(f"{each.detector}, ")
    ]
    span = f", {moment(work.first_at)} to {moment(work.last_at)}" if work.shards else ""
    sections: list[Section] = [
        (f"release v{row.version} ({row.id})", facts),
        ("in service", times or [("never", "")]),
        ("made by", made),
        (
            f"settings that are not {beside}'s" if against else "settings that are not the defaults",
            settings or [("none", "")],
        ),
        ("detectors", _detectors(each)),
        (f"thresholds of {each.detector}", thresholds),
        ("alert policy", [("", each.policy())]),
        (f"figures of {each.detector}{_confidence(each)}", _figures(each)),
        (
            "scored",
            [
                ("rows", f"{work.rows:,} in {work.shards:,} shard{'' if work.shards == 1 else 's'}{span}"),
                ("alerts", f"{work.alerts:,}"),
            ],
        ),
    ]
    if row.decision is not None:
        sections.append(("decision of the gate", decision_lines(row.decision)))
    return sections


def _figures(each: Described) -> list[tuple[str, str]]:
    lines = list(each.figures().items())
    lines += [(f"no {name}", why) for name, why in each.null_reasons().items()]
    return lines or [("none", "")]


def _confidence(each: Described) -> str:
    confidence = each.settings().get("calibrate.confidence")
    return "" if confidence is None else f", {confidence:.0%} intervals"


def _detectors(each: Described) -> list[tuple[str, str]]:
    weights, precision = each.manifest.get("models") or {}, each.manifest.get("precision") or {}
    deciding = (each.calibration.get("ensemble") or {}).get("members") or []
    lines = []
    for name in each.manifest.get("members") or []:
        said = f"weights {weights.get(name, DASH)[:12]}, {precision.get(name, DASH)}"
        auroc = each.figures(name).get("AUROC")
        said += f", AUROC {auroc}" if auroc else ""
        lines.append((name, said + (", in the ensemble" if name in deciding else "")))
    if deciding:
        agree = each.calibration["ensemble"].get("agree", 1)
        lines.append(("ensemble", f"{agree} of {', '.join(deciding)}"))
    return lines


def decision_lines(decision: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The record of the gate: verdict, reason, and every check with both sides' figures, whatever else it holds.

    >>> decision_lines({"verdict": "refused", "checks": [{"name": "failures", "passed": False, "words": "2 lost"}]})
    [('verdict', 'refused'), ('failures', 'not passed: 2 lost')]
    """
    lines = []
    for key, value in decision.items():
        if key == "checks" and isinstance(value, Sequence) and not isinstance(value, str):
            lines += [_check_line(check) for check in value if isinstance(check, Mapping)]
        elif isinstance(value, Mapping | list | tuple):
            lines.append((key, _short(value)))
        else:
            lines.append((key, number(value) if not isinstance(value, bool) else value_text(value)))
    return lines


def _check_line(check: Mapping[str, Any]) -> tuple[str, str]:
    verdict = {True: "passed", False: "not passed", None: "not judged"}.get(check.get("passed"), DASH)
    words = str(check.get("words") or "")
    if not words:
        told = [f"{key} {_short(check[key])}" for key in ("champion", "challenger", "limit") if key in check]
        words = ", ".join(told)
    return str(check.get("name", "")), f"{verdict}: {words}" if words else verdict


def sections_table(section: Section) -> Table:
    """A section as a table of two columns."""
    heading, lines = section
    made = Table(
        title=shown(heading),
        title_justify="left",
        title_style="bold",
        box=None,
        show_header=False,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for name, text in lines:
        made.add_row(shown(name), shown(text))
    return made


def diff_tables(found: Mapping[str, Mapping[str, tuple[str, str]]], one: str, other: str) -> list[Table]:
    """A table per section, both sides beside each other."""
    tables = []
    for section, lines in found.items():
        made = table(shown(section), shown(one), shown(other))
        for name, (a, b) in lines.items():
            made.add_row(shown(name), shown(a[:LONG]), shown(b[:LONG]))
        tables.append(made)
    return tables


def pruning_table(found: Pruning) -> Table:
    """What is kept and why, and what goes."""
    made = table("version", "id", "state", "created", "what becomes of it", "why")
    gone = "deleted" if found.done else "would be deleted"
    lines = [(row, "kept", "; ".join(why)) for row, why in found.kept.values()]
    lines += [(row, f"[red]{gone}[/red]", "nothing refers to it") for row in found.gone]
    for row, fate, why in sorted(lines, key=lambda line: line[0].version):
        made.add_row(
            f"v{row.version}", row.id, str(row.state).replace("_", " "), moment(row.created_at), fate, shown(why)
        )
    for folder in found.orphans:
        made.add_row(DASH, shown(folder.name), "no row", DASH, f"[red]{gone}[/red]", "a folder that no row names")
    return made


def rebuilt_table(found: Rebuilt) -> Table:
    """What was compared."""
    made = table("compared", "then", "now", "")
    for each in found.compared:
        equal = "equal" if each.equal else "[bold red]differs[/bold red]"
        sides = [text if len(text) < 40 else f"{text[:12]}…" for text in (each.then, each.now)]
        made.add_row(shown(each.what), *map(shown, sides), equal)
    return made


def page_rate(row: ReleaseRow) -> str:
    """The share of healthy rows that the page tier let through when the release was judged."""
    page = _page(row)
    return percent(page.get("false_positive_rate"), [page.get("ci_low"), page.get("ci_high")])


def _page(row: ReleaseRow) -> dict[str, Any]:
    return dict((row.metrics.get("tiers") or {}).get("page") or {})


def moment(found: dt.datetime | None) -> str:
    """A time, UTC."""
    return DASH if found is None else f"{found:%Y-%m-%d %H:%M}"


def _by(line: Promotion) -> list[str]:
    said = ["rolled back to" if line.rollback else "promoted", f"by {line.who}" if line.who else ""]
    return [word for word in [*said, f"({line.note})" if line.note else ""] if word]


def _short(value: Any) -> str:
    text = value_text(value)
    return text if len(text) <= LONG else text[: LONG - 1] + "…"


def _iso(found: dt.datetime | None) -> str | None:
    return None if found is None else iso_exact(microseconds(found))
