"""Challengers that wait for rows: they score beside the release in service, to a log of their own, until a deadline.

Each has a folder `<home>/shadows/<id>`: the releases of the other seeds, the landing zone's rows as a data set, and the
score log, which raises no alert.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flows import registry
from flows.database import reading, utc_now
from flows.registry import ReleaseRow, ReleaseState
from flows.releases.entry import promote_checked
from flows.service.ledger import newest_time
from flows.service.tables import Retraining, RetrainingState
from flows.settings import Settings
from pipeline.epochs import moment_of
from pipeline.errors import HearkenError
from pipeline.gate import GateDecision, Verdict, decision_page, judge_later
from pipeline.ingest import ingest
from pipeline.params import Params
from pipeline.release import Release, load_release
from pipeline.score import score_data_set
from pipeline.store import atomic_folder, read_json, write_json, write_text

DATA, LOG = "data", "score_log"


def shadow_folder(settings: Settings, identity: str) -> Path:
    """Where a challenger keeps what it needs beside its release."""
    return settings.home / "shadows" / identity


def keep_seeds(settings: Settings, identity: str, folders: Sequence[Path]) -> None:
    """Copy the releases of the other seeds, which agree or not whenever the challenger is judged."""
    for folder in folders:
        place = shadow_folder(settings, identity) / folder.parent.parent.name
        if not place.exists():
            with atomic_folder(place) as temporary:
                shutil.copytree(folder, temporary, dirs_exist_ok=True)


def challengers_of(settings: Settings, identity: str) -> list[Release]:
    """The challenger, and its like of other seeds.

    Raises:
        ReleaseError: a damaged one.
    """
    folder = shadow_folder(settings, identity)
    seeds = sorted(path for path in folder.glob("*/manifest.json")) if folder.is_dir() else []
    return [load_release(settings.releases / identity, identity), *(load_release(path.parent) for path in seeds)]


def deadline_of(engine: Engine, params: Params) -> dt.datetime:
    """When a shadow that begins now is given up, in the time of the data."""
    return (newest_time(engine) or utc_now()) + dt.timedelta(days=params.gate.shadow_days)


def keep_record(
    settings: Settings, identity: str, decision: GateDecision, title: str, until: dt.datetime | None = None
) -> Path:
    """Write the record of the gate as JSON and as a page, with the deadline of one that waits; the page."""
    folder = settings.home / "decisions"
    write_json(folder / f"{identity}.json", decision.to_dict())
    page = folder / f"{identity}.html"
    write_text(page, decision_page(decision, title, until))
    return page


def judge_shadows(engine: Engine, settings: Settings, params: Params) -> list[str]:
    """Score and judge every challenger in shadow; what became of each, in a line.

    One that cannot be judged just now (a damaged file, an unreadable landing zone) is told and stays until its
    deadline.
    """
    lines = []
    for row in registry.list_releases(engine):
        if row.state != ReleaseState.SHADOW:
            for name in (DATA, LOG):  # nobody judges it any more
                shutil.rmtree(shadow_folder(settings, row.id) / name, ignore_errors=True)
        else:
            try:
                lines.append(judge_shadow(engine, settings, params, row))
            except (HearkenError, OSError) as error:
                lines.append(f"shadow {row.id}: {error}")
                _end_when_due(engine, row, f"it could not be judged until its deadline: {error}")
    return lines


def judge_shadow(engine: Engine, settings: Settings, params: Params, row: ReleaseRow) -> str:
    """Bring a shadow's data and log up to date and judge it once more.

    Raises:
        HearkenError: it cannot be judged now.
    """
    champion_row = registry.in_service(engine)
    folder = shadow_folder(settings, row.id)
    split = params.split
    ingest(
        settings.landing_place(params.source.path),
        folder / DATA,
        params.ingest,
        horizon_hours=split.horizon_hours,
        tune_share=split.tune_failure_share,
        unseen_share=split.unseen_machine_share,
    )
    challengers = challengers_of(settings, row.id)
    since = moment_of(int(challengers[0].manifest["newest_row_us"]))
    score_data_set(challengers[0], folder / DATA, folder / LOG, since=since)
    if champion_row is None:
        promote_checked(engine, row.id, who="monitor", note="no other release was in service")
        return f"shadow {row.id}: promoted, no other release was in service"
    champion = load_release(settings.releases / champion_row.id, champion_row.id)
    first = _champion_of(engine, row.id)
    if first is not None and weights_of(settings, first) != weights_of(settings, champion.id):
        why = f"release v{champion_row.version} has entered service since: with other weights there nothing compares"
        refuse(engine, row.id, why)
        return f"shadow {row.id}: refused: {why}"
    decision = judge_later(champion, challengers, folder / DATA, None, params.gate, params.evaluate)
    registry.keep_decision(engine, row.id, decision.to_dict())
    keep_record(settings, row.id, decision, f"Release v{row.version} against v{champion_row.version}", row.shadow_until)
    if decision.verdict is Verdict.PROMOTE and params.retrain.promote == "auto":
        promote_checked(engine, row.id, who="monitor", note=decision.reason, instead_of=champion_row.id)
        return f"shadow {row.id}: promoted: {decision.reason}"
    if decision.verdict is Verdict.REFUSE:
        refuse(engine, row.id, decision.reason)
        return f"shadow {row.id}: refused: {decision.reason}"
    if decision.verdict is Verdict.WAIT and _end_when_due(engine, row, f"deadline passed: {decision.reason}"):
        return f"shadow {row.id}: refused, its deadline has passed: {decision.reason}"
    return f"shadow {row.id}: waits: {decision.reason}"


def _champion_of(engine: Engine, identity: str) -> str | None:
    """The release that was in service when a challenger was built; the same bytes may have been built before."""
    query = sa.select(Retraining.champion_id).where(Retraining.challenger_id == identity)
    with Session(reading(engine)) as session:
        return session.scalar(query.order_by(Retraining.id.desc()).limit(1))


def weights_of(settings: Settings, identity: str) -> str:
    """The release that a release has its weights of: itself, or the one that was recalibrated, perhaps repeatedly."""
    manifest = settings.releases / identity / "manifest.json"
    while manifest.is_file() and (before := read_json(manifest).get("recalibrated_from")):
        identity, manifest = str(before), settings.releases / str(before) / "manifest.json"
    return identity


def _end_when_due(engine: Engine, row: ReleaseRow, why: str) -> bool:
    """Refuse a shadow whose deadline has passed, in the time of the data."""
    newest = newest_time(engine)
    if row.shadow_until is None or newest is None or newest < row.shadow_until:
        return False
    refuse(engine, row.id, why)
    return True


def refuse(engine: Engine, identity: str, why: str) -> None:
    """A challenger does not enter service; its retraining has ended, first: a shadow is judged again after a crash."""
    with Session(engine) as session, session.begin():
        mine = (Retraining.challenger_id == identity, Retraining.state == RetrainingState.SHADOW)
        session.execute(sa.update(Retraining).where(*mine).values(state=RetrainingState.REFUSED, error=why[:2000]))
    registry.refuse(engine, identity, why)
