"""The service: uploads and shards, memory of the alert policy, alerts and their story, notices, log entries."""

import sqlalchemy as sa
from alembic import op

from flows.database import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "alerts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("machine_id", sa.String(length=255), nullable=False),
        sa.Column("cause", sa.String(length=16), nullable=False),
        sa.Column(
            "standing",
            sa.Enum(
                "open", "closed", "withdrawn", name="standing", native_enum=False, create_constraint=True, length=16
            ),
            nullable=False,
        ),
        sa.Column("final", sa.Boolean(), nullable=False),
        sa.Column(
            "answer",
            sa.Enum(
                "acknowledged",
                "confirmed",
                "dismissed",
                name="answer",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=True,
        ),
        sa.Column("opened_at", UtcDateTime(), nullable=False),
        sa.Column("paged_at", UtcDateTime(), nullable=True),
        sa.Column("last_at", UtcDateTime(), nullable=False),
        sa.Column("closed_at", UtcDateTime(), nullable=True),
        sa.Column("peak_at", UtcDateTime(), nullable=True),
        sa.Column("peak_rarity", sa.Float(), nullable=True),
        sa.Column("judged_until", UtcDateTime(), nullable=True),
        sa.Column("release_id", sa.String(length=16), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alerts"),
    )
    with op.batch_alter_table("alerts") as batch:
        batch.create_index("ix_alerts_answer", ["answer"], unique=False)
        batch.create_index("ix_alerts_final", ["final"], unique=False)
        batch.create_index("ix_alerts_machine_id_cause_opened_at", ["machine_id", "cause", "opened_at"], unique=False)
        batch.create_index("ix_alerts_standing", ["standing"], unique=False)

    op.create_table(
        "policy_memories",
        sa.Column("machine_id", sa.String(length=255), nullable=False),
        sa.Column("newest_at", UtcDateTime(), nullable=False),
        sa.Column("pending", sa.Boolean(), nullable=False),
        sa.Column("memory", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("machine_id", name="pk_policy_memories"),
    )
    with op.batch_alter_table("policy_memories") as batch:
        batch.create_index("ix_policy_memories_newest_at", ["newest_at"], unique=False)
        batch.create_index("ix_policy_memories_pending", ["pending"], unique=False)

    op.create_table(
        "shards",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "planned",
                "scored",
                "done",
                "failed",
                name="shard_state",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("planned_at", UtcDateTime(), nullable=False),
        sa.Column("believed_until", UtcDateTime(), nullable=False),
        sa.Column("first_at", UtcDateTime(), nullable=False),
        sa.Column("last_at", UtcDateTime(), nullable=False),
        sa.Column("owner", sa.String(length=80), nullable=True),
        sa.Column("lease_until", UtcDateTime(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("release_id", sa.String(length=16), nullable=True),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("unusable", sa.BigInteger(), nullable=False),
        sa.Column("repeated", sa.BigInteger(), nullable=False),
        sa.Column("early", sa.BigInteger(), nullable=False),
        sa.Column("late", sa.BigInteger(), nullable=False),
        sa.Column("days", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_shards"),
        sa.UniqueConstraint("name", name="uq_shards_name"),
    )
    with op.batch_alter_table("shards") as batch:
        batch.create_index("ix_shards_state", ["state"], unique=False)

    op.create_table(
        "alert_events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("alert_id", sa.Integer(), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(
                "opened",
                "escalated",
                "closed",
                "reopened",
                "withdrawn",
                "acknowledged",
                "confirmed",
                "dismissed",
                "notified",
                "not_notified",
                name="event_kind",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("of", UtcDateTime(), nullable=True),
        sa.Column("who", sa.String(length=120), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["alert_id"], ["alerts.id"], name="fk_alert_events_alert_id_alerts", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_alert_events"),
    )
    with op.batch_alter_table("alert_events") as batch:
        batch.create_index("ix_alert_events_alert_id", ["alert_id"], unique=False)

    op.create_table(
        "log_entries",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("machine_id", sa.String(length=255), nullable=False),
        sa.Column("start_at", UtcDateTime(), nullable=False),
        sa.Column("end_at", UtcDateTime(), nullable=False),
        sa.Column("tag", sa.String(length=16), nullable=False),
        sa.Column("failure_mode", sa.String(length=120), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("who", sa.String(length=120), nullable=False),
        sa.Column("written_at", UtcDateTime(), nullable=False),
        sa.Column("alert_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["alert_id"], ["alerts.id"], name="fk_log_entries_alert_id_alerts"),
        sa.PrimaryKeyConstraint("id", name="pk_log_entries"),
    )
    with op.batch_alter_table("log_entries") as batch:
        batch.create_index("ix_log_entries_alert_id", ["alert_id"], unique=False)
        batch.create_index("ix_log_entries_machine_id", ["machine_id"], unique=False)

    op.create_table(
        "notices",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("alert_id", sa.Integer(), nullable=False),
        sa.Column(
            "kind",
            sa.Enum("page", "digest", name="notice_kind", native_enum=False, create_constraint=True, length=16),
            nullable=False,
        ),
        sa.Column(
            "state",
            sa.Enum(
                "pending", "sent", "unsent", name="notice_state", native_enum=False, create_constraint=True, length=16
            ),
            nullable=False,
        ),
        sa.Column("due_at", UtcDateTime(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(length=80), nullable=True),
        sa.Column("lease_until", UtcDateTime(), nullable=True),
        sa.Column("told", sa.JSON(), nullable=False),
        sa.Column("sent_at", UtcDateTime(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["alert_id"], ["alerts.id"], name="fk_notices_alert_id_alerts", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_notices"),
        sa.UniqueConstraint("alert_id", "kind", name="uq_notices_alert_id"),
    )
    with op.batch_alter_table("notices") as batch:
        batch.create_index("ix_notices_state", ["state"], unique=False)

    op.create_table(
        "uploads",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("modified_ns", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "planned",
                "scored",
                "broken",
                "duplicate",
                name="upload_state",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("read_as", sa.String(16), nullable=True),
        sa.Column("rows", sa.BigInteger(), nullable=True),
        sa.Column("first_at", UtcDateTime(), nullable=True),
        sa.Column("last_at", UtcDateTime(), nullable=True),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.Column("shard_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["shard_id"], ["shards.id"], name="fk_uploads_shard_id_shards"),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
        sa.UniqueConstraint("path", "sha256", name="uq_uploads_path"),
    )
    with op.batch_alter_table("uploads") as batch:
        batch.create_index("ix_uploads_path", ["path"], unique=False)
        batch.create_index("ix_uploads_sha256", ["sha256"], unique=False)
        batch.create_index("ix_uploads_shard_id", ["shard_id"], unique=False)
        batch.create_index("ix_uploads_state", ["state"], unique=False)


def downgrade() -> None:
    for table in ("uploads", "notices", "log_entries", "alert_events", "shards", "policy_memories", "alerts"):
        op.drop_table(table)
