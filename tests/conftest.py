"""What every test shares: no telemetry, no connection beyond loopback, the folder of real recordings, a small fleet."""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from small_fleet import SMALL_PARAMS, run_stages

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = Path(__file__).parent / "loopback"
REFUSED = Path(tempfile.mkdtemp(prefix="hearken-tests-")) / "refused-connections"

os.environ["HEARKEN_REFUSED_CONNECTIONS"] = str(REFUSED)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(LOOPBACK), os.environ.get("PYTHONPATH", "")]))
os.environ.update(
    DO_NOT_TRACK="1",
    OMP_WAIT_POLICY="passive",
    GX_ANALYTICS_ENABLED="false",
    DVC_NO_ANALYTICS="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
)
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
sys.path.insert(0, str(LOOPBACK))
import sitecustomize  # noqa: E402  (another sitecustomize may have been imported at start: load ours by its path)

if Path(getattr(sitecustomize, "__file__", "")).parent != LOOPBACK:
    import importlib.util

    spec = importlib.util.spec_from_file_location("loopback_guard", LOOPBACK / "sitecustomize.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))

collect_ignore = ["loopback"]  # Debian's Python has a sitecustomize of its own, and no two modules have one name


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A refused connection that a test has not accounted for fails the suite, whoever swallowed the error."""
    if REFUSED.exists() and REFUSED.read_text():
        print(f"\nconnections beyond this machine were refused:\n{REFUSED.read_text()}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def refused() -> Path:
    """The list of refused connections; a test that provokes one empties it again."""
    return REFUSED


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings: HEARKEN_REAL_DATA, then ../shared/data; a skip with a reason where neither is."""
    named = os.environ.get("HEARKEN_REAL_DATA")
    if named:
        assert Path(named).is_dir(), f"HEARKEN_REAL_DATA: got {named}, expected a folder"
        return Path(named)
    beside = ROOT.parent / "shared" / "data"
    if not beside.is_dir():
        pytest.skip("no real recordings: HEARKEN_REAL_DATA is not set and ../shared/data does not exist")
    return beside


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(20250101)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage has run on a small simulated fleet."""
    folder = tmp_path_factory.mktemp("built")
    run_stages(folder, SMALL_PARAMS)
    return folder


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of its own: on SQLite, and on PostgreSQL where HEARKEN_TEST_POSTGRES_URL names a server."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'h' / 'test.db'}"
        return
    server = os.environ.get("HEARKEN_TEST_POSTGRES_URL")
    if not server:
        pytest.skip("HEARKEN_TEST_POSTGRES_URL is not set: no PostgreSQL to test on")
    name = f"hearken_test_{uuid.uuid4().hex[:12]}"
    administrator = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield sa.make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with administrator.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        administrator.dispose()


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    """A database whose schema is up to date."""
    from flows.database import open_database

    engine = open_database(url)
    yield engine
    engine.dispose()


@pytest.fixture
def hearken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A command of the command line in a folder: exit code, output, errors."""
    from flows import cli

    def run(command: str, folder: Path, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["hearken", command, *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
