"""The registry of releases."""

import sqlalchemy as sa
from alembic import op

from flows.database import UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    states = sa.Enum(
        "candidate", "in_service", "retired", "refused", name="release_state", native_enum=False, create_constraint=True
    )
    op.create_table(
        "releases",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", states, nullable=False),
        sa.Column("provisional", sa.Boolean(), nullable=False),
        sa.Column("commit", sa.String(64), nullable=False),
        sa.Column("branch", sa.String(255), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("promoted_at", UtcDateTime(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_releases"),
        sa.UniqueConstraint("version", name="uq_releases_version"),
    )
    with op.batch_alter_table("releases") as batch:
        batch.create_index(
            "ux_releases_one_in_service",
            ["state"],
            unique=True,
            sqlite_where=sa.text("state = 'in_service'"),
            postgresql_where=sa.text("state = 'in_service'"),
        )


def downgrade() -> None:
    op.drop_table("releases")
