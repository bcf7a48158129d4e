"""The way into service: a release is checked byte by byte and loaded first, else the registry stays as it is."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flows import registry
from flows.database import POLICY_LOCK, take_lock, utc_now
from flows.registry import ReleaseRow, ReleaseState
from flows.service.drifts import settle_drift
from flows.service.tables import Drift, DriftState, Retraining, RetrainingState
from flows.settings import Settings
from pipeline.errors import ReleaseError, UserError
from pipeline.store import read_json

if TYPE_CHECKING:
    from pipeline.release import Release

ACCEPTED = "promote"  # pipeline.gate.Verdict.PROMOTE, whose import takes seconds
NOT_UNASKED = (ReleaseState.REFUSED, ReleaseState.SHADOW)
UNPROMOTED = (RetrainingState.RUNNING, RetrainingState.SHADOW, RetrainingState.REFUSED)


def put_into_service(
    settings: Settings,
    engine: Engine,
    name: str | int,
    *,
    who: str,
    note: str | None = None,
    force: bool = False,
    anyway: bool = False,
    instead_of: str | None = None,
) -> ReleaseRow:
    """Check a release and promote it; it takes effect at the next scoring run.

    Args:
        settings: where releases lie.
        engine: of the registry.
        name: an id or a version.
        who: a person, or a flow; stands in the history.
        note: why; stands in the history and replaces the release's own note.
        force: also one that the gate refused or that is still in shadow, with a note; never a damaged one.
        anyway: also one with other weights than those in service while a challenger waits in shadow.
        instead_of: the id that must be in service until now; None: any.

    Raises:
        ReleaseError: no such release, one whose files differ from its manifest, or one that may not enter service.
        UserError: force without a note; the challenger that waits would have nothing to be compared with.
    """
    if force and not (note or "").strip():
        raise UserError("--force: got it without --note, expected a note that says why.")
    row = registry.find_release(engine, name)
    checked(settings, row)
    if not anyway:
        _leave_shadows_their_champion(settings, engine, row)
    but_not = () if force else may_not_enter(row)
    return promote_checked(engine, row.id, who=who, note=note, but_not=but_not, instead_of=instead_of)


def _leave_shadows_their_champion(settings: Settings, engine: Engine, row: ReleaseRow) -> None:
    """A challenger in shadow is compared with the weights in service; a recalibration of those may enter meanwhile.

    Raises:
        UserError: other weights, and one waits.
    """
    champion = registry.in_service(engine)
    if champion is None or weights_of(settings, champion.id) == weights_of(settings, row.id):
        return
    known = registry.list_releases(engine)
    for waits in (each for each in known if each.state == ReleaseState.SHADOW and each.id != row.id):
        until = "" if waits.shadow_until is None else f" until {waits.shadow_until:%Y-%m-%d %H:%M} UTC"
        raise UserError(
            f"release v{row.version} ({row.id}): got it while v{waits.version} ({waits.id}) waits in shadow{until}, "
            f"expected that to end first; `hearken releases promote v{row.version} --anyway` does it all the same, and "
            f"v{waits.version} is refused then, as it is compared with v{champion.version}."
        )


def weights_of(settings: Settings, identity: str) -> str:
    """The release that a release has its weights of: itself, or the one that was recalibrated, perhaps repeatedly."""
    manifest = settings.releases / identity / "manifest.json"
    while manifest.is_file() and (before := read_json(manifest).get("recalibrated_from")):
        identity, manifest = str(before), settings.releases / str(before) / "manifest.json"
    return identity


def may_not_enter(row: ReleaseRow) -> tuple[ReleaseState, ...]:
    """States in which a release may not enter service unasked; a shadow that the gate has accepted waits for that."""
    return () if (row.decision or {}).get("verdict") == ACCEPTED else NOT_UNASKED


def promote_checked(
    engine: Engine,
    identity: str,
    *,
    who: str,
    note: str | None = None,
    but_not: Collection[ReleaseState] = (),
    instead_of: str | None = None,
    unasked: bool = False,
) -> ReleaseRow:
    """Promote a release whose files have been checked; end the retraining that made it, and settle the drift behind it.

    All in one transaction. See `put_into_service` and `registry.promote`.

    Args:
        engine: of the registry.
        identity: the id of the release.
        who: a person, or a flow; stands in the history.
        note: for people; None: the release keeps its own.
        but_not: states whose releases may not enter service.
        instead_of: the id that must be in service until now; None: any or none.
        unasked: no person decides just now; what a person has cancelled or taken back meanwhile is left alone.

    Raises:
        ReleaseError: no such release, one that may not enter service, or another in service than `instead_of`.
    """

    def belongs(session: Session) -> None:
        take_lock(session, POLICY_LOCK)  # alerts and what the policy remembers change with it
        mine = sa.select(Retraining).where(Retraining.challenger_id == identity).order_by(Retraining.id)
        retrainings = session.scalars(mine).all()
        if unasked and retrainings and retrainings[-1].state is RetrainingState.CANCELLED:
            raise ReleaseError(f"retraining {retrainings[-1].id}: got it cancelled: {retrainings[-1].error}")
        for retraining in retrainings:
            if retraining.state in UNPROMOTED:
                retraining.state, retraining.finished_at = RetrainingState.PROMOTED, utc_now()
                retraining.owner = retraining.lease_until = None
            asked = sa.or_(Retraining.id == retraining.id, Retraining.merged_into == retraining.id)
            behind = sa.select(Retraining.drift_id).where(asked, Retraining.drift_id.is_not(None))
            for drift in session.scalars(sa.select(Drift).where(Drift.id.in_(behind)).order_by(Drift.id)):
                if drift.state is DriftState.OPEN:
                    settle_drift(session, drift, f"release {identity} knows the change")

    return registry.promote(engine, identity, note=note, who=who, but_not=but_not, instead_of=instead_of, also=belongs)


def go_back(settings: Settings, engine: Engine, name: str | int | None, *, who: str, note: str = "") -> ReleaseRow:
    """Put back the release that was in service before, or a named one that once was, after the same checks.

    Raises:
        ReleaseError: see registry.rollback; the files of the release differ from its manifest.
    """
    serving = registry.in_service(engine)
    if name is None:
        known = {row.id for row in registry.list_releases(engine)}
        target = registry.before(registry.promotions(engine), known)
        name = target if target is not None else name
    if name is not None:
        checked(settings, registry.find_release(engine, name))
    instead_of = None if serving is None else serving.id
    return registry.rollback(engine, name, note=note, who=who, instead_of=instead_of)


def checked(settings: Settings, row: ReleaseRow) -> Release:
    """Load a release with every byte of it compared with its id and its manifest.

    Raises:
        ReleaseError: its folder is missing or damaged, or its detectors cannot be loaded.
    """
    from pipeline.release import load_release

    try:
        return load_release(settings.releases / row.id, row.id)
    except (ReleaseError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (weights that fit no detector of this version raise what they like)
        got = f"{type(error).__name__}: {error}"
        raise ReleaseError(f"release v{row.version} ({row.id}): got {got}, expected one that loads.") from None
