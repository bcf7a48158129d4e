"""Who uses the command line: stands beside what people answer and decide."""

from __future__ import annotations

import getpass

from pipeline.errors import UserError


def person(given: str | None) -> str:
    """The name given with --who, else the login name.

    Raises:
        UserError: neither is known.

    >>> person("ann")
    'ann'
    """
    if given is not None:
        return given
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container may have no user of that number
        raise UserError("--who: got none, and no login name is known, expected your name.") from None
