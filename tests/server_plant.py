"""A plant on a real Prefect server: repository, remote, and workers in folders, homes and caches of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

from flows.repository import run_git
from flows.settings import Settings, child_environment
from flows.workspace import override_params

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerPlant:
    """Folders, processes and the client's side of one plant."""

    def __init__(self, folder: Path, database: str | None = None) -> None:
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
            "HEARKEN_DATABASE_URL": database or f"sqlite:///{folder / 'hearken.db'}",
            "HEARKEN_LANDING": str(self.landing),
        }

    def environment(self, name: str) -> dict[str, str]:
        """Of one machine: its own home, and so its own cache, workspaces and Prefect profile."""
        values = self.common | {"HEARKEN_HOME": str(self.folder / name / "home")}
        return child_environment(Settings.of(self.folder / name, values), values)

    def publish_repository(self, settings: Mapping[str, object]) -> None:
        """The working tree as a bare repository, with these settings."""
        source = self.folder / "source"
        names = run_git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
        for name in sorted({name for name in names if name and (ROOT / name).is_file()}):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
        override_params(source / "params.yaml", settings)
        deployments = source / "prefect.yaml"  # a schedule that falls into the test would start runs of its own
        deployments.write_text(deployments.read_text().replace("active: true", "active: false"))
        run_git(source, "init", "-q", "-b", "main")
        run_git(source, "add", "-A")
        run_git(source, "commit", "-q", "-m", "plant")
        run_git(self.folder, "clone", "-q", "--bare", str(source), str(self.folder / "repository.git"))

    def start(self, name: str, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        """A process in a session of its own, which obeys SIGINT also where we were started in the background."""
        (self.folder / name).mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder / name,
                env=self.environment(name) | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.processes.append(process)
        return process

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

    @property
    def settings(self) -> Settings:
        """Of the default worker, where releases and score log are."""
        return Settings.of(self.folder / "default", self.environment("default"))

    def serve(self, deadline: float) -> None:
        """Server, deployments, and a worker of each pool."""
        self.start("server", ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)])
        self.wait_for_server(deadline)
        program = "from flows.deploy import deploy; from flows.settings import Settings; deploy(Settings.of('.'))"
        source, environment = self.folder / "source", self.environment("client")
        subprocess.run([sys.executable, "-c", program], cwd=source, env=environment, check=True, timeout=120)
        for name in ("default", "gpu"):
            self.start_worker(name)

    def start_worker(self, pool: str) -> subprocess.Popen[bytes]:
        """A worker of a pool, in the folder of that name."""
        return self.start(pool, ["prefect", "worker", "start", "--pool", pool, "--name", f"{pool}-worker"])

    def run(self, client: Any, deployment: str, deadline: float, **parameters: object) -> Any:
        """A run of a deployment, once it has ended well."""
        found = client.read_deployment_by_name(deployment)
        run = client.create_flow_run_from_deployment(found.id, parameters=parameters)
        return self.finish(client, run.id, deadline)

    def trainings(self, client: Any) -> list[Any]:
        """Runs of `train-on-gpu`, the newest last."""
        named = DeploymentFilter(name=DeploymentFilterName(any_=["train-on-gpu"]))
        return sorted(client.read_flow_runs(deployment_filter=named), key=lambda run: run.created)

    def hearken(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of a person in the checkout, with the default worker's home."""
        values = self.environment("default")
        command = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.run(
            command, cwd=self.folder / "source", env=values, capture_output=True, text=True, check=False, timeout=900
        )
