"""The checkout that a command works in: its folder, its settings, its installation, its database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flows.settings import Settings
from pipeline.errors import WorkspaceError

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from pipeline.params import Params

PARAMS = "params.yaml"


def checkout_above(folder: Path | None = None) -> Path:
    """The checkout that a folder (None: the current one) lies in.

    Raises:
        WorkspaceError: it lies in none.
    """
    start = folder or Path.cwd()
    for place in (start, *start.parents):
        if (place / "dvc.yaml").is_file() and (place / PARAMS).is_file():
            return place
    raise WorkspaceError(f"checkout: got {start}, expected a folder with dvc.yaml and params.yaml, or one below it.")


def work_folder() -> Path:
    """Where `params.yaml` and `data/` of a command lie: the current folder where it has settings of its own, else the
    checkout above, else the current folder."""
    here = Path()
    if (here / PARAMS).is_file():
        return here
    try:
        return checkout_above()
    except WorkspaceError:
        return here


def params_file(given: Path | None) -> Path | None:
    """The settings that a command works with: those of --params, else of its work folder; None: there are none."""
    found = given or work_folder() / PARAMS
    return found if given is not None or found.is_file() else None


def chosen_params(given: Path | None = None) -> Params:
    """The settings that a command works with; the built-in ones where there is no file.

    Raises:
        ParamsError: the file of --params is not there, or one is damaged.
    """
    from pipeline.params import Params, load_params

    path = params_file(given)
    return Params() if path is None else load_params(path)


def installation() -> Settings:
    """The places of the checkout around us.

    Raises:
        WorkspaceError: there is none.
    """
    return Settings.of(checkout_above())


def database() -> Engine:
    """The database of the checkout around us.

    Raises:
        WorkspaceError: there is none, or it cannot be opened.
    """
    from flows.database import open_database

    return open_database(installation().database_url)
