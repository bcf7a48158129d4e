"""Ends with one line unless PostgreSQL answers at HEARKEN_TEST_POSTGRES_URL: its half of the tests is never skipped."""

import os
import sys

import sqlalchemy as sa

from flows.database import make_engine
from pipeline.errors import WorkspaceError


def main() -> None:
    """Connect, and see that databases may be created there."""
    expected = "expected PostgreSQL, where tests may create databases"
    try:
        engine = make_engine(os.environ["HEARKEN_TEST_POSTGRES_URL"])
    except WorkspaceError as error:
        sys.exit(f"ci: {error}")
    shown = engine.url.render_as_string(hide_password=True)
    if engine.dialect.name != "postgresql":
        sys.exit(f"ci: HEARKEN_TEST_POSTGRES_URL: got {shown}, {expected}.")
    try:
        with engine.connect() as connection:
            query = "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"
            if not connection.scalar(sa.text(query)):
                sys.exit(f"ci: HEARKEN_TEST_POSTGRES_URL: got a role that may not, {expected}, at {shown}.")
    except sa.exc.OperationalError as error:
        said = str(error.orig).strip().splitlines()[0]
        sys.exit(f"ci: HEARKEN_TEST_POSTGRES_URL: got '{said}', {expected}, at {shown}.")


if __name__ == "__main__":
    main()
