"""The whole loop on a real Prefect server with two workers in folders, homes and caches of their own.

A fleet is learned and put into service; its firmware changes; `monitor` says so; the trigger starts `retrain`; the
worker of the gpu pool trains; the release that enters service holds, byte for byte, the models that it trained.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import registry
from flows.database import open_database
from flows.repository import run_git
from flows.settings import Settings, child_environment
from flows.workspace import override_params
from pipeline.params import load_params
from pipeline.simulate import simulate
from pipeline.store import read_json, sha256_file

ROOT = Path(__file__).parents[1]
FIRMWARE_DAY = 21
SMALL = {
    "simulate.machines": 8,
    "simulate.days": 24,
    "simulate.interval_seconds": 1800,
    "simulate.failures": 4,
    "split.horizon_hours": 24,
    "split.run_in_hours": 6,
    "split.unseen_machine_share": 0.0,
    "train.autoencoder.optimiser.max_epochs": 12,
    "train.autoencoder.optimiser.batch_rows": 64,
    "train.vae.optimiser.max_epochs": 2,
    "train.baseline.min_rows": 8,  # three days after the change hold few rows of each condition
    "train.threads": 1,
    "calibrate.low_percentile": 95,
    "calibrate.page_percentile": 99,
    "calibrate.draws": 50,
    "evaluate.chance_shifts": 20,
    "release.reference_rows": 1000,
    "monitor.days": 3,
    "monitor.max_rows": 1000,
    "retrain.cpu_fallback": False,
    "retrain.max_false_rate_ratio": 1.0,
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Plant:
    """Folders, processes and the client's side of one plant."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.landing = folder / "landing"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.port = free_port()
        self.common = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "HEARKEN_", "GIT_"))
        } | {
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "HEARKEN_REPOSITORY": str(folder / "repository.git"),
            "HEARKEN_DVC_REMOTE": str(folder / "remote"),
            "HEARKEN_DATABASE_URL": f"sqlite:///{folder / 'hearken.db'}",
            "HEARKEN_LANDING": str(self.landing),
        }

    def environment(self, name: str) -> dict[str, str]:
        """Of one machine: its own home, and so its own cache, workspaces and Prefect profile."""
        values = self.common | {"HEARKEN_HOME": str(self.folder / name / "home")}
        return child_environment(Settings.of(self.folder / name, values), values)

    def publish_repository(self) -> None:
        """The working tree as a bare repository, with small settings."""
        source = self.folder / "source"
        names = run_git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
        for name in sorted({name for name in names if name and (ROOT / name).is_file()}):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
        override_params(source / "params.yaml", SMALL)
        deployments = source / "prefect.yaml"  # a schedule that falls into the test would start runs of its own
        deployments.write_text(deployments.read_text().replace("active: true", "active: false"))
        run_git(source, "init", "-q", "-b", "main")
        run_git(source, "add", "-A")
        run_git(source, "commit", "-q", "-m", "plant")
        run_git(self.folder, "clone", "-q", "--bare", str(source), str(self.folder / "repository.git"))

    def start(self, name: str, command: list[str]) -> None:
        """A process in a session of its own, which obeys SIGINT also where we were started in the background."""
        (self.folder / name).mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder / name,
                env=self.environment(name),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.processes.append(process)

    def stop(self) -> None:
        """Ask every process to end, newest first, then make sure."""
        for process in reversed(self.processes):
            process.send_signal(signal.SIGINT)
        for process in reversed(self.processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def wait_for_server(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            if self.processes[0].poll() is not None:
                break
            time.sleep(0.2)
        raise AssertionError("the server did not start:\n" + self.logs())

    def logs(self) -> str:
        """The end of every process' log."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {file.name}\n" + "\n".join(file.read_text().splitlines()[-60:]) for file in files)

    def finish(self, client, run_id, deadline: float):
        """The flow run once it has ended, which must be well."""
        while time.monotonic() < deadline:
            run = client.read_flow_run(run_id)
            if run.state is not None and run.state.is_final():
                assert run.state.is_completed(), f"{run.state.name}: {run.state.message}\n{self.logs()}"
                return run
            time.sleep(0.5)
        raise AssertionError(f"flow run {run_id} has not ended\n" + self.logs())


@pytest.fixture
def plant(tmp_path):
    plant = Plant(tmp_path)
    plant.publish_repository()
    try:
        yield plant
    finally:
        plant.stop()


def simulate_days(plant: Plant, first: float, last: float, firmware_day: float | None) -> None:
    settings = load_params(plant.folder / "source" / "params.yaml").simulate
    settings = type(settings).model_validate(settings.model_dump() | {"firmware_day": firmware_day})
    simulate(settings, plant.landing, from_day=first, days=last - first)


@pytest.mark.server
def test_a_drift_makes_the_gpu_worker_train_what_enters_service(plant):
    from prefect.artifacts import Artifact
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
    from prefect.settings import PREFECT_API_URL, temporary_settings

    deadline = time.monotonic() + 700
    plant.start("server", ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(plant.port)])
    simulate_days(plant, 0, FIRMWARE_DAY, None)
    plant.wait_for_server(deadline)
    program = "from flows.deploy import deploy; from flows.settings import Settings; deploy(Settings.of('.'))"
    source, environment = plant.folder / "source", plant.environment("client")
    subprocess.run([sys.executable, "-c", program], cwd=source, env=environment, check=True, timeout=120)
    for name in ("default", "gpu"):
        plant.start(name, ["prefect", "worker", "start", "--pool", name, "--name", f"{name}-worker"])

    with temporary_settings({PREFECT_API_URL: plant.common["PREFECT_API_URL"]}), get_client(sync_client=True) as client:

        def start(deployment, **parameters):
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters).id

        here = {"source.path": str(plant.landing)}
        plant.finish(client, start("build/build", gpu_deployment=None, params_overrides=here), deadline)
        database = open_database(plant.common["HEARKEN_DATABASE_URL"])
        first = registry.promote(database, "v1")

        simulate_days(plant, FIRMWARE_DAY, 24, FIRMWARE_DAY)
        plant.finish(client, start("monitor/monitor"), deadline)
        retrainings = []
        while not retrainings and time.monotonic() < deadline:
            time.sleep(0.5)
            named = DeploymentFilter(name=DeploymentFilterName(any_=["retrain"]))
            retrainings = client.read_flow_runs(deployment_filter=named)
        assert len(retrainings) == 1, plant.logs()
        assert retrainings[0].parameters["release"] == first.id
        plant.finish(client, retrainings[0].id, deadline)
        trained = client.read_flow_runs(
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=["train-on-gpu"]))
        )
        assert [run.state.name for run in trained] == ["Completed"]
        stages = {row["stage"]: row["what happened"] for row in json.loads(Artifact.get("build-stages").data)}

    assert {stage for stage, what in stages.items() if what == "trained on gpu"} == {"train@autoencoder", "train@vae"}
    second = registry.in_service(database)
    database.dispose()
    assert second.id != first.id
    assert second.provisional
    assert not first.provisional
    release = plant.folder / "default" / "home" / "releases" / second.id
    models = read_json(release / "manifest.json")["models"]
    before = read_json(release.parent / first.id / "manifest.json")["models"]
    worker = plant.folder / "gpu" / "home" / "workspaces" / "train-on-gpu" / "data" / "models"
    for name in ("autoencoder", "vae"):
        assert models[name] == sha256_file(worker / name / "weights.safetensors") != before[name]
    assert not (plant.folder / "gpu" / "home" / "releases").exists()
    assert run_git(plant.folder / "repository.git", "tag").splitlines() == ["release/v1", "release/v2"]
    assert run_git(plant.folder / "repository.git", "branch", "--list", "build/*") == ""
