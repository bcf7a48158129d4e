"""Changes of the fleet, wishes for new releases, and what the gate decided of a release."""

import sqlalchemy as sa
from alembic import op

from flows.database import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

EVENT_KINDS = (
    "opened", "escalated", "closed", "reopened", "withdrawn", "acknowledged", "confirmed", "dismissed", "notified",
    "not_notified",
)  # fmt: skip
RELEASE_STATES = ("candidate", "in_service", "retired", "refused")


def _one_of(*names: str, name: str) -> sa.Enum:
    return sa.Enum(*names, name=name, native_enum=False, create_constraint=True, length=16)


def _allow(table: str, column: str, name: str, values: tuple[str, ...]) -> None:
    """Let a column of text hold these values; SQLite copies the table for it, so none that others refer to."""
    full, said = op.f(f"ck_{table}_{name}"), ", ".join(f"'{value}'" for value in values)
    with op.batch_alter_table(table) as batch:
        batch.drop_constraint(full, type_="check")
        batch.create_check_constraint(full, sa.text(f"{column} IN ({said})"))


def upgrade() -> None:
    op.create_table(
        "drifts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("found_at", UtcDateTime(), nullable=False),
        sa.Column("changed_at", UtcDateTime(), nullable=False),
        sa.Column("release_id", sa.String(16), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("machines", sa.JSON(), nullable=False),
        sa.Column("share", sa.Float(), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("report", sa.Text(), nullable=True),
        sa.Column("state", _one_of("open", "settled", "dismissed", name="drift_state"), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_drifts"),
    )
    states = ("waiting", "running", "shadow", "promoted", "refused", "failed", "cancelled", "merged")
    op.create_table(
        "retrainings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("asked_at", UtcDateTime(), nullable=False),
        sa.Column("who", sa.String(120), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("drift_id", sa.Integer(), nullable=True),
        sa.Column("changed_at", UtcDateTime(), nullable=True),
        sa.Column("machines", sa.JSON(), nullable=True),
        sa.Column("state", _one_of(*states, name="retraining_state"), nullable=False),
        sa.Column("owner", sa.String(80), nullable=True),
        sa.Column("lease_until", UtcDateTime(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("begun_at", UtcDateTime(), nullable=True),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.Column("flow_run", sa.String(64), nullable=True),
        sa.Column("champion_id", sa.String(16), nullable=True),
        sa.Column("challenger_id", sa.String(16), nullable=True),
        sa.Column("merged_into", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["drift_id"], ["drifts.id"], name="fk_retrainings_drift_id_drifts"),
        sa.ForeignKeyConstraint(["merged_into"], ["retrainings.id"], name="fk_retrainings_merged_into_retrainings"),
        sa.PrimaryKeyConstraint("id", name="pk_retrainings"),
    )
    for table, column in (("drifts", "state"), ("retrainings", "state"), ("retrainings", "drift_id")):
        op.create_index(f"ix_{table}_{column}", table, [column])
    _allow("alert_events", "kind", "event_kind", (*EVENT_KINDS, "attributed"))
    _allow("releases", "state", "release_state", (*RELEASE_STATES, "shadow"))
    op.add_column("releases", sa.Column("shadow_until", UtcDateTime(), nullable=True))
    op.add_column("releases", sa.Column("decision", sa.JSON(), nullable=True))
    # no foreign key: SQLite would copy `alerts` for it, and dropping the old copy takes the stories along
    op.add_column("alerts", sa.Column("drift_id", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("alerts", "drift_id")
    op.drop_column("releases", "decision")
    op.drop_column("releases", "shadow_until")
    op.execute("DELETE FROM alert_events WHERE kind = 'attributed'")
    op.execute("UPDATE releases SET state = 'candidate' WHERE state = 'shadow'")
    _allow("releases", "state", "release_state", RELEASE_STATES)
    _allow("alert_events", "kind", "event_kind", EVENT_KINDS)
    op.drop_table("retrainings")
    op.drop_table("drifts")
