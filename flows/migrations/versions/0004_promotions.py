"""The history of what was in service, since when, and who put it there."""

import sqlalchemy as sa
from alembic import op

from flows.database import UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    promotions = op.create_table(
        "promotions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("release_id", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("who", sa.String(120), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("rollback", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_promotions"),
    )
    op.create_index("ix_promotions_release_id", "promotions", ["release_id"])
    # what is known of the time before: each release's last promotion, in their order
    releases = sa.table(
        "releases", sa.column("id"), sa.column("version"), sa.column("promoted_at", UtcDateTime()), sa.column("note")
    )
    known = sa.select(
        releases.c.id, releases.c.version, releases.c.promoted_at, sa.literal(""), releases.c.note, sa.false()
    )
    known = known.where(releases.c.promoted_at.is_not(None)).order_by(releases.c.promoted_at)
    names = ["release_id", "version", "at", "who", "note", "rollback"]
    op.execute(promotions.insert().from_select(names, known))


def downgrade() -> None:
    op.drop_table("promotions")
