"""A release enters service with all that belongs to it: its retraining has ended well, and its drift is settled."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flows import registry
from flows.database import utc_now
from flows.registry import ReleaseRow
from flows.service.drifts import settle_drift
from flows.service.tables import Drift, DriftState, Retraining, RetrainingState


def put_into_service(
    engine: Engine, name: str | int, *, note: str | None = None, instead_of: str | None = None
) -> ReleaseRow:
    """Promote a release; in the same transaction end the retraining that made it, and settle the drift behind that.

    Args:
        engine: of the database.
        name: id or version.
        note: for people; None: as it stands.
        instead_of: id of the release that must be in service now; None: whichever is.

    Raises:
        ReleaseError: no such release, or another in service than `instead_of`; nothing has changed then.
    """
    identity = registry.find_release(engine, name).id

    def belongs(session: Session) -> None:
        for retraining in session.scalars(sa.select(Retraining).where(Retraining.challenger_id == identity)):
            if retraining.state in (RetrainingState.RUNNING, RetrainingState.SHADOW, RetrainingState.REFUSED):
                retraining.state, retraining.finished_at = RetrainingState.PROMOTED, utc_now()
                retraining.owner = retraining.lease_until = None
            drift = None if retraining.drift_id is None else session.get(Drift, retraining.drift_id)
            if drift is not None and drift.state is DriftState.OPEN:
                settle_drift(session, drift, f"release {identity} knows the change")

    return registry.promote(engine, identity, note=note, instead_of=instead_of, also=belongs)
