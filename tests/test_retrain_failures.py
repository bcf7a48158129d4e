"""What a retraining does when something fails under it: a stated state, the champion serves, nothing half-released."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from server_plant import ServerPlant

from flows import registry
from flows.database import open_database
from flows.repository import run_git
from flows.service.retrainings import list_retrainings
from flows.service.tables import Retraining, RetrainingState
from pipeline.params import load_params
from pipeline.release import load_release
from pipeline.simulate import simulate

pytestmark = [pytest.mark.server, pytest.mark.slow]

DAYS = 16
TINY = {
    "simulate.machines": 6,
    "simulate.days": DAYS,
    "simulate.interval_seconds": 1800,
    "simulate.failures": 4,
    "split.horizon_hours": 24,
    "split.run_in_hours": 6,
    "split.unseen_machine_share": 0.0,
    "train.autoencoder.optimiser.max_epochs": 2,
    "train.vae.optimiser.max_epochs": 2,
    "train.threads": 1,
    "train.baseline.min_rows": 5,
    "calibrate.draws": 50,
    "evaluate.chance_shifts": 20,
    "evaluate.false_episodes_per_machine_day": 0.3,
    "release.reference_rows": 1000,
    "retrain.attempts": 2,
    "gate.seeds": 1,
}
ALMOST_FULL = 4_600_000  # bytes of a file: the report is larger, the databases are not
ENDED = (RetrainingState.PROMOTED, RetrainingState.REFUSED, RetrainingState.SHADOW)


class TinyPlant(ServerPlant):
    """A plant without a server: a person retrains in the checkout."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.common.pop("PREFECT_API_URL")
        self.publish_repository(TINY)
        simulate(load_params(folder / "source" / "params.yaml").simulate, self.landing)
        build = self.person("build", "--clone", "--promote")
        assert build.returncode == 0, build.stdout + build.stderr
        self.engine = open_database(self.common["HEARKEN_DATABASE_URL"])

    def person(
        self, *arguments: str, file_bytes: int | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """A command of a person; no file may grow beyond `file_bytes`, as on a disk that is full."""

        def limit() -> None:
            if file_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

        values = self.environment("default") | environment
        command = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.run(
            command, cwd=self.folder / "source", env=values, capture_output=True, text=True, check=False, timeout=500,
            preexec_fn=limit,
        )  # fmt: skip

    def retrain(self, day: int, **more: object) -> subprocess.CompletedProcess[str]:
        """A retraining after a change on a day: another one, so that no stage is up to date."""
        return self.person("retrain", "--why", f"change on day {day}", "--changed-at", f"2025-01-{day:02}", **more)

    @property
    def newest(self) -> Retraining:
        """The newest wish."""
        return list_retrainings(self.engine)[0]

    def whole(self, champion: str) -> None:
        """The champion serves, every release of the registry can be loaded, and no other folder looks like one."""
        row = registry.in_service(self.engine)
        assert row is not None
        assert row.id == champion
        known = {each.id for each in registry.list_releases(self.engine)}
        folder = self.settings.releases
        assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == known
        for identity in known:
            load_release(folder / identity, identity)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyPlant]:
    plant = TinyPlant(tmp_path_factory.mktemp("tiny"))
    yield plant
    plant.engine.dispose()


@pytest.fixture
def champion(plant: TinyPlant) -> str:
    """The release in service, and no wish that waits."""
    with plant.engine.begin() as connection:
        connection.execute(sa.delete(Retraining))
    row = registry.in_service(plant.engine)
    assert row is not None
    return row.id


def test_a_remote_that_cannot_be_reached_leaves_the_wish_for_another_try(plant: TinyPlant, champion: str) -> None:
    releases = len(registry.list_releases(plant.engine))
    said = plant.retrain(8, HEARKEN_DVC_REMOTE="/dev/null/remote")
    assert said.returncode != 0
    assert "dvc" in said.stderr
    assert "Traceback" not in said.stderr
    assert (plant.newest.state, plant.newest.attempts) == (RetrainingState.WAITING, 1)
    assert "dvc" in str(plant.newest.error)
    assert len(registry.list_releases(plant.engine)) == releases
    plant.whole(champion)
    said = plant.retrain(8)
    assert said.returncode == 0, said.stderr
    first = next(each for each in list_retrainings(plant.engine) if each.state is not RetrainingState.MERGED)
    assert (first.state in ENDED, first.attempts) == (True, 2)


def test_a_full_disk_leaves_the_champion_in_service(plant: TinyPlant, champion: str) -> None:
    said = plant.retrain(9, file_bytes=ALMOST_FULL)
    assert said.returncode != 0
    assert plant.newest.state is RetrainingState.WAITING
    plant.whole(champion)
    said = plant.retrain(9, file_bytes=ALMOST_FULL)
    assert said.returncode != 0
    failed = [each for each in list_retrainings(plant.engine) if each.state is RetrainingState.FAILED]
    assert len(failed) == 1
    assert failed[0].error
    plant.whole(champion)


def test_a_refused_push_is_said_and_leaves_no_tag(plant: TinyPlant, champion: str) -> None:
    repository = plant.folder / "repository.git"
    hook = repository / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho 'no' >&2\nexit 1\n")
    hook.chmod(0o755)
    before = run_git(repository, "tag").splitlines()
    try:
        said = plant.retrain(10)
    finally:
        hook.unlink()
    assert said.returncode == 0, said.stderr
    assert plant.newest.state in ENDED
    row = registry.find_release(plant.engine, str(plant.newest.challenger_id))
    assert row.id == champion or "refused" in row.note or row.state != registry.ReleaseState.IN_SERVICE
    assert run_git(repository, "tag").splitlines() == before
    workspace = plant.settings.workspaces / "retrain"
    assert set(run_git(workspace, "tag").splitlines()) <= set(before)
    assert (plant.settings.releases / row.id).is_dir()


def test_a_person_s_mistake_fails_at_once(plant: TinyPlant, champion: str) -> None:
    said = plant.retrain(31)  # after the last row
    assert said.returncode == 2
    assert "changed_at" in said.stderr
    assert plant.newest.state is RetrainingState.FAILED
    plant.whole(champion)
