"""Alembic's entry: runs the revisions on the connection that flows.database hands over."""

from alembic import context

from flows import registry  # noqa: F401  (its tables belong to Base.metadata)
from flows.database import Base
from flows.service import tables  # noqa: F401  (and these)

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
