"""Setting up a Prefect server for Hearken: work pools, the training slot, a watch over dead runs, the deployments."""

from __future__ import annotations

import contextlib
import subprocess
from datetime import timedelta
from typing import Any, cast

from flows.settings import Settings, child_environment
from pipeline.errors import WorkspaceError

GPU_POOL = "gpu"
POOLS = ("default", GPU_POOL)  # as prefect.yaml has them
WATCH = "hearken: runs without a heartbeat have crashed"
SILENT_SECONDS = 100  # three missed heartbeats of 30 s


def deploy(settings: Settings, *, all_deployments: bool = True) -> None:
    """Create what the deployments of prefect.yaml need and deploy them; safe to repeat.

    Raises:
        WorkspaceError: PREFECT_API_URL is not set, no server answers there or it wants another password, or Prefect
            refuses prefect.yaml.
    """
    environment = child_environment(settings)
    address = environment.get("PREFECT_API_URL")
    if not address:
        raise WorkspaceError("PREFECT_API_URL: got no value, expected a Prefect server's address.")
    from httpx import HTTPStatusError, TransportError

    try:
        create_pools()
        create_slot()
        create_watch()
    except HTTPStatusError as error:
        if error.response.status_code not in (401, 403):
            raise
        got = "another than the server's" if environment.get("PREFECT_API_AUTH_STRING") else "none"
        raise WorkspaceError(
            f"PREFECT_API_AUTH_STRING: got {got}, expected PREFECT_SERVER_API_AUTH_STRING of the server at {address}."
        ) from None
    except TransportError as error:
        said = str(error) or type(error).__name__
        raise WorkspaceError(f"PREFECT_API_URL: got '{said}', expected a server that answers, at {address}.") from None
    if all_deployments:
        command = ["prefect", "--no-prompt", "deploy", "--all"]
        result = subprocess.run(
            command, cwd=settings.checkout, env=environment, capture_output=True, text=True, check=False
        )
        if result.returncode:
            said = " ".join((result.stdout + result.stderr).split())[-500:]
            raise WorkspaceError(f"prefect deploy: got '{said}', expected success, in {settings.checkout}.")


def create_pools() -> None:
    """The work pools of prefect.yaml, where they are missing."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with get_client(sync_client=True) as client:
        for pool in POOLS:
            try:
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
            except ObjectAlreadyExists:
                continue


def create_slot() -> None:
    """The concurrency limit that lets one training run at a time; `strict` needs it to exist."""
    from prefect.client.orchestration import get_client

    from flows.train_on_gpu import SLOT

    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(SLOT, 1)


def create_watch() -> None:
    """An automation that marks a run as crashed when its process died without a word (a power cut, kill -9)."""
    from prefect.automations import Automation
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture

    with contextlib.suppress(ValueError):  # there is none of this name
        cast(Any, Automation.read(name=WATCH))
        return
    ends = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed", "Suspended")}
    watch = Automation(
        name=WATCH,
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ends},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENT_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                name=None, state=StateType.CRASHED, message=f"no heartbeat for {SILENT_SECONDS} s", force=False
            )
        ],
    )
    cast(Any, watch.create())
