"""Retraining on a real server: two events at once, a cancelled run, a power cut at the worker that trains."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from server_plant import ServerPlant
from test_retrain_failures import ENDED, TINY

from flows import registry
from flows.database import open_database
from flows.monitor import DUE_EVENT, FLEET_RESOURCE
from flows.service.retrainings import Wish, ask, list_retrainings
from flows.service.tables import Retraining, RetrainingState
from pipeline.params import load_params
from pipeline.simulate import simulate

pytestmark = [pytest.mark.server, pytest.mark.slow]
LONG = TINY | {"train.autoencoder.optimiser.max_epochs": 40, "train.autoencoder.optimiser.patience": 40}


class Served:
    """A plant with a release in service, a server and two workers."""

    def __init__(self, folder: Path) -> None:
        self.plant = ServerPlant(folder)
        self.plant.publish_repository(LONG)
        simulate(load_params(folder / "source" / "params.yaml").simulate, self.plant.landing)
        self.engine = open_database(self.plant.common["HEARKEN_DATABASE_URL"])
        self.deadline = time.monotonic() + 2400
        self.plant.serve(self.deadline)
        self.gpu = self.plant.processes[-1]

    def wait(self, until: Callable[[], Any], what: str) -> Any:
        """What a look gives, once it gives something."""
        while time.monotonic() < self.deadline:
            if found := until():
                return found
            time.sleep(0.2)
        raise AssertionError(f"{what} was not seen\n{self.plant.logs()}")

    def wished(self, why: str) -> int:
        """A person's wish; its number."""
        return ask(self.engine, Wish("ann", why)).id

    def wish(self, number: int) -> Retraining:
        """As it stands now."""
        return next(each for each in list_retrainings(self.engine) if each.id == number)

    @property
    def clone(self) -> Path:
        """Where the gpu worker trains."""
        return self.plant.folder / "gpu" / "home" / "workspaces" / "train-on-gpu"

    def at_work(self) -> list[psutil.Process]:
        """Processes that work in the clone of the gpu worker."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if Path(process.cwd()).is_relative_to(self.clone):
                    found.append(process)
        return found

    def training(self) -> list[psutil.Process]:
        """Those at work, once a training among them has left a checkpoint of its own.

        One that was cancelled before has left another's.
        """
        found = self.at_work()
        begun = [process.create_time() for process in found if "pipeline.train" in _command(process)]
        left = list[float]()
        for path in self.clone.glob("**/checkpoint.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # a training that is done deletes its own
                left.append(path.stat().st_mtime)
        return found if begun and left and max(left) >= max(begun) else []


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"))
    try:
        with client_of(served) as client:
            here = {"source.path": str(served.plant.landing)}
            served.plant.run(client, "build/build", served.deadline, gpu_deployment=None, params_overrides=here)
        registry.promote(served.engine, "v1")
        yield served
    finally:
        served.engine.dispose()
        served.plant.stop()


@contextlib.contextmanager
def client_of(served: Served) -> Iterator[Any]:
    address = {PREFECT_API_URL: served.plant.common["PREFECT_API_URL"]}
    with temporary_settings(address), get_client(sync_client=True) as client:
        yield client


def start(client: Any, deployment: str) -> Any:
    return client.create_flow_run_from_deployment(client.read_deployment_by_name(deployment).id).id


def seed_of(served: Served, seed: int) -> None:
    """Another seed in the repository, so that a retraining has something to train."""
    from flows.repository import run_git
    from flows.workspace import override_params

    source = served.plant.folder / "source"
    override_params(source / "params.yaml", {"seed": seed})
    run_git(source, "commit", "-q", "-a", "-m", f"seed {seed}")
    run_git(source, "push", "-q", str(served.plant.folder / "repository.git"), "HEAD:main")


def champion(served: Served) -> str:
    row = registry.in_service(served.engine)
    assert row is not None
    return row.id


def test_two_events_at_once_are_one_retraining(served: Served) -> None:
    from prefect.events import emit_event

    seed_of(served, 101)
    with client_of(served) as client:
        number = served.wished("two at once")
        for _ in range(2):
            emit_event(DUE_EVENT, resource={"prefect.resource.id": f"{FLEET_RESOURCE}.x"}, payload={})
        named = DeploymentFilter(name=DeploymentFilterName(any_=["retrain"]))
        runs = served.wait(
            lambda: found if len(found := client.read_flow_runs(deployment_filter=named)) == 2 else None, "two runs"
        )
        ended = [served.plant.finish(client, run.id, served.deadline) for run in runs]
    assert [run.state.name for run in ended] == ["Completed", "Completed"]
    assert served.wish(number).state in ENDED
    assert served.wish(number).attempts == 1
    assert len(registry.list_releases(served.engine)) == 2


def test_a_cancelled_retraining_ends_its_training_and_changes_nothing(served: Served) -> None:
    seed_of(served, 102)
    before, releases = champion(served), len(registry.list_releases(served.engine))
    with client_of(served) as client:
        number, run = served.wished("to be cancelled"), start(client, "retrain/retrain")
        served.wait(served.training, "a training")
        client.set_flow_run_state(run, Cancelling(message="a person"))
        served.wait(lambda: client.read_flow_run(run).state.is_final(), "the end of the run")
        assert client.read_flow_run(run).state.is_cancelled()
        served.wait(
            lambda: all(run.state.is_final() for run in served.plant.trainings(client)),
            "the end of the run that trains",
        )
        assert served.plant.trainings(client)[-1].state.is_cancelled()
        served.wait(lambda: not served.at_work(), "the end of the training")
    assert served.wish(number).state is RetrainingState.CANCELLED
    assert champion(served) == before
    assert len(registry.list_releases(served.engine)) == releases


def test_after_a_power_cut_at_the_gpu_worker_another_goes_on(served: Served) -> None:
    seed_of(served, 103)
    with client_of(served) as client:
        number, run = served.wished("power cut"), start(client, "retrain/retrain")
        training = served.wait(served.training, "a training")
        worker = psutil.Process(served.gpu.pid)
        for process in [worker, *worker.children(recursive=True), *training]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        served.gpu.wait()
        served.gpu = served.plant.start_worker("gpu")
        served.plant.finish(client, run, served.deadline)
        states = [each.state.name for each in served.plant.trainings(client)]
    assert states.count("Crashed") == 1
    assert served.wish(number).state in ENDED
    assert served.wish(number).attempts == 1
    assert "from its checkpoint" in (served.plant.folder / "gpu.log").read_text()


def test_nothing_waits_and_nothing_is_half_released_at_the_end(served: Served) -> None:
    with sa.orm.Session(served.engine) as session:
        left = session.scalars(
            sa.select(Retraining).where(Retraining.state.in_((RetrainingState.WAITING, RetrainingState.RUNNING)))
        ).all()
    assert not left
    known = {row.id for row in registry.list_releases(served.engine)}
    assert {path.name for path in served.plant.settings.releases.iterdir()} == known
