"""One machine's services in the background: Prefect server, a worker for each pool, and the deployments.

Each process runs in a session of its own, writes to `<home>/logs/<name>.log`, and stands in `<home>/run/<name>.json`
with its pid and the time of its start: a pid alone may be somebody else's by the time that it is to be stopped.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from flows.deploy import POOLS
from flows.settings import Settings, child_environment
from pipeline.errors import ContractError, WorkspaceError
from pipeline.store import read_json, write_json

HOST = "127.0.0.1"
SERVER = "server"
WORKERS = {f"worker-{pool}": pool for pool in POOLS}
READY_SECONDS = 180.0  # until the server answers, or a worker is heard
END_SECONDS = 30.0  # for a flow run to end itself and say so; then it is killed
SAME_START_SECONDS = 5.0  # the clock may have been set a little since
SHOWN_BYTES = 1500

AUTH, SERVER_AUTH = "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"

Say = Callable[[str], None]


@dataclass(frozen=True)
class PlantServices:
    """The services of one home."""

    settings: Settings
    environment: Mapping[str, str]  # of the processes; see `services_of`

    @property
    def run(self) -> Path:
        """Which processes were started."""
        return self.settings.home / "run"

    @property
    def logs(self) -> Path:
        """What they said; of the time before their last start in `<name>.log.1`."""
        return self.settings.home / "logs"

    def up(self, port: int, say: Say) -> str:
        """Start what does not run yet, and wait until it answers; safe to repeat.

        Args:
            port: of the server; one that runs already keeps its own.
            say: takes each line for people.

        Returns:
            The address of the user interface.

        Raises:
            WorkspaceError: the port is taken, or a service does not come up; what was started is stopped again then.
        """
        with self._alone():
            running = {name: found for name in (SERVER, *WORKERS) if (found := self._process(name)) is not None}
            if SERVER in running:
                port = int(read_json(self._record(SERVER))["port"])
            address = f"http://{HOST}:{port}"
            if len(running) == 1 + len(WORKERS):
                say(f"runs already: {address}")
                return address
            if SERVER not in running:
                refuse_taken(port)
                self._stop(list(WORKERS))  # they ask a server that is gone
                running = {}
            started = [name for name in (SERVER, *WORKERS) if name not in running]
            try:
                self._start_all(started, port, say)
            except BaseException:
                self._stop([name for name in started if name != SERVER])
                self._stop([name for name in started if name == SERVER])
                raise
        return address

    def down(self, say: Say) -> None:
        """Stop the processes that `up` started, with all their children, and no others; safe to repeat."""
        with self._alone():
            stopped = self._stop(list(WORKERS)) + self._stop([SERVER])
            say(f"stopped: {', '.join(stopped)}" if stopped else "nothing runs")

    def _start_all(self, names: Sequence[str], port: int, say: Say) -> None:
        values = {**self.environment, "PREFECT_API_URL": f"http://{HOST}:{port}/api"}
        if SERVER in names:
            say("starting the Prefect server")
            self._start(SERVER, ["server", "start", "--host", HOST, "--port", str(port)], values, port)
            self._wait(SERVER, lambda: ask(port, "GET", "/api/health") is True)
            say("creating pools, slot, watch and deployments")
            deploy_in_child(self.settings, values)
        workers = {name: pool for name, pool in WORKERS.items() if name in names}
        begun = time.time()
        for name, pool in workers.items():
            say(f"starting the worker of pool {pool}")
            self._start(name, ["worker", "start", "--pool", pool, "--name", name], values, port)
        for name, pool in workers.items():
            self._wait(name, lambda pool=pool: heard_since(port, pool, begun, values.get(AUTH)))  # type: ignore[misc]

    def _start(self, name: str, arguments: Sequence[str], values: Mapping[str, str], port: int) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        self.run.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{name}.log"
        if log.exists():
            log.replace(self.logs / f"{name}.log.1")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments],
                cwd=self.settings.home,
                env=dict(values),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # a worker started where SIGINT is ignored (a script's background) would never stop
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        record = {"pid": process.pid, "started": psutil.Process(process.pid).create_time(), "port": port}
        write_json(self._record(name), record)

    def _wait(self, name: str, is_ready: Callable[[], bool]) -> None:
        """Until a service is ready.

        Raises:
            WorkspaceError: it ended, or it takes too long.
        """
        deadline = time.monotonic() + READY_SECONDS
        while self._process(name) is not None and time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                if is_ready():
                    return
            time.sleep(0.2)
        got = "a process that ended" if self._process(name) is None else f"no answer in {READY_SECONDS:g} s"
        log = self.logs / f"{name}.log"
        said = log.read_bytes()[-SHOWN_BYTES:].decode(errors="replace").strip()
        raise WorkspaceError(f"{name}: got {got}, expected one that runs. Its last words, in {log}:\n{said}")

    def _record(self, name: str) -> Path:
        return self.run / f"{name}.json"

    def _process(self, name: str) -> psutil.Process | None:
        """The process of a service while it runs; a record of one that does not is removed."""
        path = self._record(name)
        try:
            record = read_json(path)
            process = psutil.Process(int(record["pid"]))
            same = abs(process.create_time() - float(record["started"])) < SAME_START_SECONDS
            if same and is_alive(process):
                return process
        except (ContractError, psutil.Error, ValueError, KeyError, TypeError):  # no record, a damaged one, no process
            pass
        path.unlink(missing_ok=True)
        return None

    def _stop(self, names: Sequence[str]) -> list[str]:
        """Stop services at the same time: flow runs of workers first, so that they end well while the server hears."""
        found = {name: process for name in names if (process := self._process(name)) is not None}
        families = {name: family_of(process) for name, process in found.items()}
        runs = [member for name in found if name in WORKERS for member in families[name][1:]]
        end(runs, END_SECONDS)
        end(list(found.values()), END_SECONDS)
        rest = [member for family in families.values() for member in family]
        end([*rest, *(member for process in found.values() for member in session_of(process.pid))], 5.0)
        for name in found:
            self._record(name).unlink(missing_ok=True)
        return list(found)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self.run.mkdir(parents=True, exist_ok=True)
        with (self.run / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WorkspaceError(
                    f"services: got another `hearken up` or `down` at work, expected none, in {self.run}."
                ) from None
            yield


def services_of(settings: Settings, landing: Path | str, environment: Mapping[str, str] | None = None) -> PlantServices:
    """The services of a home; the flows of their workers find the same places as this checkout's commands do.

    Args:
        settings: of the checkout.
        landing: the landing zone: a path in params.yaml counts from this checkout, not from the clone of a run.
        environment: what to start from instead of os.environ.
    """
    places = {
        "HEARKEN_DATABASE_URL": settings.database_url,
        "HEARKEN_DVC_REMOTE": settings.remote,
        "HEARKEN_LANDING": str(landing),
        "HEARKEN_REPOSITORY": settings.repository,
        "HEARKEN_SCORE_LOG": str(settings.score_log),
    }
    values = child_environment(settings, environment) | places
    if values.get(SERVER_AUTH):  # our own server asks for it: the workers know it
        values.setdefault(AUTH, values[SERVER_AUTH])
    return PlantServices(settings, values)


def deploy_in_child(settings: Settings, values: Mapping[str, str]) -> None:
    """`hearken deploy` in a process of its own: Prefect reads its server's address when it is imported.

    Raises:
        WorkspaceError: what it said.
    """
    command = [sys.executable, "-m", "flows.cli", "deploy"]
    done = subprocess.run(command, cwd=settings.checkout, env=dict(values), capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-SHOWN_BYTES:]
        raise WorkspaceError(said.removeprefix("error: ") or f"deploy: got exit code {done.returncode}, expected 0.")


def refuse_taken(port: int) -> None:
    """Say so where a port is not free.

    Raises:
        WorkspaceError: another program listens there, or it may not be used.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            probe.listen(1)
    except (OSError, OverflowError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise WorkspaceError(
            f"port: got {port} ({said}), expected a free one: --port, or HEARKEN_PREFECT_PORT."
        ) from None


def ask(port: int, method: str, path: str, body: object = None, auth: str | None = None) -> Any:
    """What the Prefect server of this machine answers, from JSON; `auth` is its `user:password`, where it has one.

    Raises:
        OSError: nobody answers.
        ValueError: no JSON.
    """
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        text = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        if auth:
            headers["Authorization"] = f"Basic {base64.b64encode(auth.encode()).decode()}"
        connection.request(method, path, text, headers)
        answer = connection.getresponse()
        found = answer.read()
        return json.loads(found) if answer.status == 200 else None
    finally:
        connection.close()


def heard_since(port: int, pool: str, moment: float, auth: str | None = None) -> bool:
    """Whether a worker of a pool has given a sign of life since a moment (seconds since 1970)."""
    workers = ask(port, "POST", f"/api/work_pools/{pool}/workers/filter", {}, auth) or []
    heard = [dt.datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() for worker in workers]
    return any(each >= moment for each in heard)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs: one that has ended and that nobody has asked after does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def family_of(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that it has started."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return [process]


def session_of(pid: int) -> list[psutil.Process]:
    """What is left of a session."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) == pid:
                left.append(process)
    return left


def end(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Ask processes to end, and make them after some time."""
    for force in (False, True):
        alive = [process for process in processes if is_alive(process)]
        for process in alive:
            with contextlib.suppress(psutil.Error):
                (process.kill if force else process.terminate)()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(is_alive(process) for process in alive):
            time.sleep(0.05)
