"""The release that a command works with: a folder, an id or a version of the registry, or the one in service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flows.checkout import installation
from pipeline.errors import ReleaseError

if TYPE_CHECKING:
    from pipeline.release import Release


def chosen_release(name: str | None, device: str = "auto") -> Release:
    """Load and check a release.

    Args:
        name: a folder, or an id or version (`v3`, `3`); None: the release in service.
        device: where scores are computed.

    Raises:
        ReleaseError: no such release, or a damaged one.
        WorkspaceError: no checkout, where a registry is needed.
    """
    from pipeline.release import load_release

    if name is not None and Path(name).is_dir():
        return load_release(Path(name), device=device)
    from flows.database import open_database
    from flows.registry import find_release, in_service

    settings = installation()
    engine = open_database(settings.database_url)
    try:
        row = in_service(engine) if name is None else find_release(engine, name)
    finally:
        engine.dispose()
    if row is None:
        raise ReleaseError("--release: got none, and no release is in service, expected one: hearken releases list.")
    return load_release(settings.releases / row.id, row.id, device)
