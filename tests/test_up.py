"""`hearken up` and `hearken down` on a plant of its own: server, workers, a scored landing zone, no leftovers."""

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

import psutil
import pytest
from service_plant import ServicePlant

from flows.database import open_database
from flows.plant_services import PlantServices, end, refuse_taken, services_of
from flows.repository import run_git
from flows.settings import Settings
from pipeline.errors import WorkspaceError

ROOT = Path(__file__).parents[1]
NAMES = {"server", "worker-default", "worker-gpu"}
PASSWORD = "plant:k3y"  # of the server; its workers and the deployments know it


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Plant:
    """A repository that is its own checkout, a home beside it, a release in service and a landing zone."""

    def __init__(self, folder: Path, built: Path) -> None:
        self.folder, self.checkout, self.home = folder, folder / "checkout", folder / "home"
        names = run_git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
        for name in sorted({name for name in names if name and (ROOT / name).is_file()}):
            (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, self.checkout / name)
        deployments = self.checkout / "prefect.yaml"  # a schedule that falls into the test would start runs of its own
        deployments.write_text(deployments.read_text().replace("active: true", "active: false"))
        run_git(self.checkout, "init", "-q", "-b", "main")
        run_git(self.checkout, "add", "-A")
        run_git(self.checkout, "commit", "-q", "-m", "plant")
        self.engine = open_database(f"sqlite:///{self.home / 'hearken.db'}")
        self.plant = ServicePlant.of(folder, built, self.engine)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "HEARKEN_"))}
        self.environment = kept | {
            "HEARKEN_HOME": str(self.home),
            "HEARKEN_LANDING": str(self.plant.landing),
            "HEARKEN_REFUSED_CONNECTIONS": os.environ["HEARKEN_REFUSED_CONNECTIONS"],
            "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }

    def hearken(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.run(
            command, cwd=self.checkout, env=self.environment, capture_output=True, text=True, timeout=400, check=False
        )

    def processes(self) -> list[psutil.Process]:
        """All that runs for this home, however it was started."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HEARKEN_HOME") == str(self.home) and process.pid != os.getpid():
                    found.append(process)
        return found

    def pids(self) -> dict[str, int]:
        """Of the services, from their records."""
        records = {path.stem: json.loads(path.read_text()) for path in (self.home / "run").glob("*.json")}
        return {name: record["pid"] for name, record in records.items()}

    def run_deployment(self, port: int, name: str):
        """The last state of a run that a person starts in the user interface."""
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        deadline = time.monotonic() + 240
        with (
            temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api", PREFECT_API_AUTH_STRING: PASSWORD}),
            get_client(sync_client=True) as client,
        ):
            deployments = {each.name for each in client.read_deployments()}
            assert deployments == {"build", "monitor", "recalibrate", "retrain", "score", "train-on-gpu"}
            run = client.create_flow_run_from_deployment(client.read_deployment_by_name(name).id)
            while time.monotonic() < deadline:
                run = client.read_flow_run(run.id)
                if run.state is not None and run.state.is_final():
                    return run.state
                time.sleep(0.5)
        raise AssertionError(f"flow run {run.id} has not ended: {run.state}\n{self.logs()}")

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in (self.home / "logs").glob("*.log"))


@pytest.fixture
def plant(tmp_path, built):
    made = Plant(tmp_path, built)
    try:
        yield made
    finally:
        end(made.processes(), 5.0)
        made.engine.dispose()


@pytest.mark.server
def test_up_scores_what_arrives_and_down_leaves_nothing(plant):
    port = free_port()
    plant.plant.upload("first", plant.plant.days[0])
    up = plant.hearken("up", "--port", str(port))
    assert up.returncode == 0, up.stderr + plant.logs()
    assert f"Prefect: http://127.0.0.1:{port}" in up.stdout
    pids = plant.pids()
    assert set(pids) == NAMES

    again = plant.hearken("up", "--port", str(free_port()))
    assert (again.returncode, f"runs already: http://127.0.0.1:{port}" in again.stdout) == (0, True)
    assert plant.pids() == pids

    state = plant.run_deployment(port, "score/score")
    assert state.is_completed(), f"{state.name}: {state.message}\n{plant.logs()}"
    assert plant.plant.log().num_rows == plant.plant.days[0].num_rows

    down = plant.hearken("down")
    assert (down.returncode, set(down.stdout.strip().removeprefix("stopped: ").split(", "))) == (0, NAMES)
    assert plant.processes() == []
    assert plant.pids() == {}
    assert plant.hearken("down").stdout == "nothing runs\n"

    assert plant.hearken("up", "--port", str(port)).returncode == 0, plant.logs()
    os.kill(plant.pids()["worker-gpu"], signal.SIGKILL)
    before = plant.pids()
    mended = plant.hearken("up")
    assert mended.returncode == 0, mended.stderr + plant.logs()
    after = plant.pids()
    assert after["worker-gpu"] != before["worker-gpu"]
    assert (after["server"], after["worker-default"]) == (before["server"], before["worker-default"])
    assert plant.hearken("down").returncode == 0
    assert plant.processes() == []


def test_deploying_to_a_server_that_does_not_answer_is_one_line(tmp_path):
    for name in ("dvc.yaml", "params.yaml", "prefect.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    environment = os.environ | {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "deploy"], cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "expected a server that answers" in done.stderr


def services(folder: Path) -> PlantServices:
    return services_of(Settings.of(folder, {"HEARKEN_HOME": str(folder / "home")}), folder / "landing", {})


def test_a_port_that_is_taken_is_one_clear_error_and_nothing_is_started(tmp_path):
    said: list[str] = []
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        with pytest.raises(WorkspaceError, match=rf"port: got {port} \(Address already in use\), expected a free one"):
            services(tmp_path).up(port, said.append)
    assert said == []
    assert list((tmp_path / "home" / "run").glob("*.json")) == []
    refuse_taken(port)


def test_a_pid_that_is_anothers_by_now_is_left_alone(tmp_path):
    """The record of a service whose pid, after a restart of the machine, is that of a stranger."""
    found = services(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        try:
            found.run.mkdir(parents=True)
            started = psutil.Process(stranger.pid).create_time() - 3600
            record = {"pid": stranger.pid, "started": started, "port": 4200}
            (found.run / "worker-gpu.json").write_text(json.dumps(record))
            said: list[str] = []
            found.down(said.append)
            assert said == ["nothing runs"]
            assert stranger.poll() is None
            assert not (found.run / "worker-gpu.json").exists()
        finally:
            stranger.kill()


def test_a_service_is_stopped_with_all_its_children(tmp_path):
    """One that ignores the request to end, and a child of it in a session of its own, as stages of a build are."""
    found = services(tmp_path)
    found.run.mkdir(parents=True)
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    program = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)"
    )
    command = [sys.executable, "-c", program + "\ntime.sleep(60)"]
    with subprocess.Popen(command, start_new_session=True) as service:
        process = psutil.Process(service.pid)
        while not (children := process.children()):
            time.sleep(0.05)
        time.sleep(0.5)  # until the child has learned to ignore
        record = {"pid": service.pid, "started": process.create_time(), "port": 4200}
        (found.run / "server.json").write_text(json.dumps(record))
        said: list[str] = []
        found.down(said.append)
        assert said == ["stopped: server"]
        assert service.wait(5) == -signal.SIGTERM
        assert not [each for each in children if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_two_at_once_are_refused(tmp_path):
    found = services(tmp_path)
    with found._alone(), pytest.raises(WorkspaceError, match="another `hearken up` or `down` at work"):
        found.down(print)
