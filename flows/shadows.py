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
from flows.releases.entry import promote_checked, weights_of
from flows.service.ledger import newest_time
from flows.service.tables import Retraining, RetrainingState
from flows.settings import Settings
from pipeline.errors import HearkenError
from pipeline.gate import GateDecision, Verdict, decision_page, judge_later
from pipeline.ingest import ingest_for
from pipeline.moments import moment_of
from pipeline.params import Params
from pipeline.release import Release, load_release
from pipeline.score import score_data_set
from pipeline.store import atomic_folder, read_json, write_json, write_text

DATA, LOG, LOOKED = "data", "score_log", "looked.json"
BETWEEN_LOOKS = dt.timedelta(days=1)  # of the data: a judgement takes in, scores and compares all later rows


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
            forget_shadow(settings, row.id)
        else:
            try:
                lines.append(judge_shadow(engine, settings, params, row))
            except (HearkenError, OSError) as error:
                lines.append(f"shadow {row.id}: {error}")
                _end_when_due(engine, row, f"it could not be judged until its deadline: {error}")
    return lines


def forget_shadow(settings: Settings, identity: str) -> None:
    """Delete what only judging needs; the releases of other seeds stay with the record."""
    folder = shadow_folder(settings, identity)
    for name in (DATA, LOG):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / LOOKED).unlink(missing_ok=True)


def judge_shadow(engine: Engine, settings: Settings, params: Params, row: ReleaseRow) -> str:
    """See whether a shadow has ended, and once a day of the data bring its data and log up to date and judge it.

    Raises:
        HearkenError: it cannot be judged now.
    """
    champion_row = registry.in_service(engine)
    if champion_row is None:
        load_release(settings.releases / row.id, row.id)
        promote_checked(engine, row.id, who="monitor", note="no other release was in service", unasked=True)
        return f"shadow {row.id}: promoted, no other release was in service"
    against = _why_ended(engine, settings, row, champion_row)
    if against is not None:
        refuse(engine, row.id, against)
        return f"shadow {row.id}: refused: {against}"
    newest = newest_time(engine)
    if not look_is_due(settings, row, champion_row, newest):
        return f"shadow {row.id}: waits: it was judged with rows of less than a day ago"
    folder = shadow_folder(settings, row.id)
    ingest_for(settings.landing_place(params.source.path), folder / DATA, params.ingest, params.split)
    challengers = challengers_of(settings, row.id)
    since = moment_of(int(challengers[0].manifest["newest_row_us"]))
    score_data_set(challengers[0], folder / DATA, folder / LOG, since=since)
    champion = load_release(settings.releases / champion_row.id, champion_row.id)
    settled = (params.gate, params.evaluate, params.validate_)
    decision = judge_later(champion, challengers, folder / DATA, None, *settled)
    registry.keep_decision(engine, row.id, decision.to_dict())
    keep_record(settings, row.id, decision, f"Release v{row.version} against v{champion_row.version}", row.shadow_until)
    said = _carry_out(engine, params, row, champion_row, decision)
    if newest is not None:  # after what was decided was carried out: a crash between them looks again
        write_json(folder / LOOKED, {"newest": newest.isoformat(), "champion": champion_row.id})
    return f"shadow {row.id}: {said}"


def _carry_out(engine: Engine, params: Params, row: ReleaseRow, champion: ReleaseRow, decision: GateDecision) -> str:
    """Do with a shadow what was decided, and say so; what the gate accepts may have to wait for a person."""
    if decision.verdict is Verdict.PROMOTE:
        waits_for = waits_for_a_person(engine, params)
        if waits_for is not None:
            return f"waits for `hearken releases promote`, as {waits_for}: {decision.reason}"
        note = decision.reason
        promote_checked(engine, row.id, who="monitor", note=note, instead_of=champion.id, unasked=True)
        return f"promoted: {decision.reason}"
    if decision.verdict is Verdict.REFUSE:
        refuse(engine, row.id, decision.reason)
        return f"refused: {decision.reason}"
    if _end_when_due(engine, row, f"deadline passed: {decision.reason}"):
        return f"refused, its deadline has passed: {decision.reason}"
    return f"waits: {decision.reason}"


def waits_for_a_person(engine: Engine, params: Params) -> str | None:
    """Why what the gate has accepted does not enter service unasked; None: it does."""
    if params.retrain.promote == "manual":
        return "retrain.promote is manual"
    back = registry.taken_back(engine)
    return None if back is None else f"{back.who} took service back to v{back.version} and promoted nothing since"


def _why_ended(engine: Engine, settings: Settings, row: ReleaseRow, champion: ReleaseRow) -> str | None:
    """Why a shadow needs no judgement any more: its retraining was cancelled, or other weights are in service."""
    query = sa.select(Retraining).where(Retraining.challenger_id == row.id).order_by(Retraining.id.desc()).limit(1)
    with Session(reading(engine)) as session:
        asked = session.scalar(query)  # the newest: the same bytes may have been built before
    if asked is None:
        return None
    if asked.state is RetrainingState.CANCELLED:
        return str(asked.error)
    if asked.champion_id is not None and weights_of(settings, asked.champion_id) != weights_of(settings, champion.id):
        return f"release v{champion.version} has entered service since: with other weights there nothing compares"
    return None


def look_is_due(settings: Settings, row: ReleaseRow, champion: ReleaseRow, newest: dt.datetime | None) -> bool:
    """Whether there may be something new to judge with: a day of rows, the deadline, other thresholds in service.

    One that the gate has accepted and that waits for a person outlives its deadline, and has no second one.
    """
    looked = shadow_folder(settings, row.id) / LOOKED
    if newest is None or not looked.is_file():
        return True
    told = read_json(looked)
    last = dt.datetime.fromisoformat(told["newest"])
    if row.shadow_until is not None and last < row.shadow_until <= newest:
        return True
    return told["champion"] != champion.id or newest >= last + BETWEEN_LOOKS


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
