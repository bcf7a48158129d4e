"""Where this installation keeps its things, from environment variables; everything else stands in params.yaml.

| variable | what | default |
|---|---|---|
| HEARKEN_HOME | cache, remote, workspaces, releases, database | `<checkout>/.hearken` |
| HEARKEN_DATABASE_URL | registry, alerts | SQLite `<home>/hearken.db` |
| HEARKEN_DVC_REMOTE | where builds push to and pull from | `<home>/remote` |
| HEARKEN_REPOSITORY | the git repository that workers clone | the checkout |
| HEARKEN_LANDING | the landing zone that `score`, `monitor` and `retrain` read | `source.path` of params.yaml |
| HEARKEN_SCORE_LOG | the score log of the service | `<home>/score_log` |
| HEARKEN_NOTIFY_PAGE, HEARKEN_NOTIFY_LOW | Apprise URLs that pages and digests go to | none |
| HEARKEN_PREFECT_PORT | the Prefect server that `hearken up` starts | 4200 |

Nothing happens at import, and nothing is read twice: a command makes one `Settings` and hands it on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import WorkspaceError

# For every process that we start, and our own: no telemetry; a heartbeat of 180 s (the default) is too slow to see a
# dead run.
QUIET = {
    "DO_NOT_TRACK": "1",
    # threads that wait must not spin: beside one other busy process two spinning threads train ten times slower
    "OMP_WAIT_POLICY": "passive",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The places of one installation, all absolute.

    >>> places = Settings.of("/plant", {"HEARKEN_HOME": "/srv/hearken"})
    >>> str(places.cache), places.database_url
    ('/srv/hearken/cache', 'sqlite:////srv/hearken/hearken.db')
    """

    checkout: Path
    home: Path
    database_url: str
    remote: str
    repository: str
    landing: Path | str | None  # text: a place in an object store
    score_log: Path

    @classmethod
    def of(
        cls, checkout: Path | str, environment: Mapping[str, str] | None = None, *, worker: bool = False
    ) -> Settings:
        """Read the environment.

        Args:
            checkout: a git checkout of the project.
            environment: what to read instead of os.environ.
            worker: in a flow that a worker runs the checkout is a passing clone, so HEARKEN_HOME and
                HEARKEN_REPOSITORY must be set.

        Raises:
            WorkspaceError: one of them is not set where it must be.
        """
        values = os.environ if environment is None else environment
        checkout = Path(checkout).resolve()
        needed = {"HEARKEN_HOME": "a folder that outlives one run", "HEARKEN_REPOSITORY": "the repository to clone"}
        for name, expected in needed.items():
            if worker and not values.get(name):
                raise WorkspaceError(f"{name}: got no value, expected {expected}, in the environment of the worker.")
        home = Path(values.get("HEARKEN_HOME") or checkout / ".hearken").expanduser().resolve()
        landing = values.get("HEARKEN_LANDING")
        return cls(
            checkout=checkout,
            home=home,
            database_url=values.get("HEARKEN_DATABASE_URL") or f"sqlite:///{home / 'hearken.db'}",
            remote=values.get("HEARKEN_DVC_REMOTE") or str(home / "remote"),
            repository=values.get("HEARKEN_REPOSITORY") or str(checkout),
            landing=_place(landing) if landing else None,
            score_log=Path(values.get("HEARKEN_SCORE_LOG") or home / "score_log").expanduser().resolve(),
        )

    @property
    def cache(self) -> Path:
        """The DVC cache that all private clones of this home share."""
        return self.home / "cache"

    @property
    def workspaces(self) -> Path:
        """Private clones, by name."""
        return self.home / "workspaces"

    @property
    def releases(self) -> Path:
        """Releases, by id; never changed there."""
        return self.home / "releases"

    @property
    def recalibration(self) -> Path:
        """The data set of the last scheduled recalibration: rows of the landing zone later than the release's."""
        return self.home / "recalibration" / "raw"

    def landing_place(self, source_path: str) -> Path | str:
        """The landing zone: HEARKEN_LANDING, else `source.path` of params.yaml; text is a place in an object store."""
        if self.landing is not None:
            return self.landing
        return source_path if "://" in source_path else (self.checkout / source_path).resolve()

    def landing_zone(self, source_path: str) -> Path:
        """The landing zone where it must be a folder.

        Raises:
            WorkspaceError: it is a place in an object store.
        """
        place = self.landing_place(source_path)
        if isinstance(place, str):
            raise WorkspaceError("landing zone: got a place in an object store, expected a folder, which this reads.")
        return place


def _place(text: str) -> Path | str:
    return text if "://" in text else Path(text).expanduser().resolve()


def child_environment(settings: Settings, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process that we start: the caller's, without telemetry, with this installation's places.

    PREFECT_HOME is made where it is missing: Prefect opens its database there without looking.
    """
    values = dict(os.environ if environment is None else environment)
    values.update(QUIET)
    Path(values.setdefault("PREFECT_HOME", str(settings.home / "prefect"))).mkdir(parents=True, exist_ok=True)
    values["HEARKEN_HOME"] = str(settings.home)
    # dvc and the stages' python stand beside the interpreter that runs us, activated or not
    programs = str(Path(sys.executable).parent)
    if values.get("PATH", "").split(os.pathsep)[0] != programs:
        values["PATH"] = os.pathsep.join(filter(None, [programs, values.get("PATH", os.defpath)]))
    return values


def configure(settings: Settings, environment: MutableMapping[str, str] | None = None) -> None:
    """The same for this process; call it before prefect, great_expectations or evidently are imported."""
    values = os.environ if environment is None else environment
    values.update(QUIET)
    Path(values.setdefault("PREFECT_HOME", str(settings.home / "prefect"))).mkdir(parents=True, exist_ok=True)
