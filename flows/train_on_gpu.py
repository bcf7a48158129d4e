"""Training on another machine: the flow that a worker of the gpu pool runs, and the build's side of it.

Code and inputs travel as a branch of the build (its dvc.lock names every input by hash) and through the DVC remote; the
models come back through the remote's run-cache, so the build restores them byte for byte instead of training again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.client.schemas.objects import FlowRun, State, WorkerStatus
from prefect.concurrency.sync import concurrency
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Completed

from flows.graph import read_graph, run_dvc
from flows.repository import LOCK, commit_build
from flows.runs import failed, settings_of_run, value_of
from flows.stages import Outcome, StageResult, run_stage
from flows.workspace import Workspace, create_workspace, end_leftovers, held
from pipeline.errors import HearkenError, StageFailed

RETRIES = [2.0, 5.0, 15.0]  # seconds, for what goes over a network; a stage is never retried
SLOT = "gpu"  # the global concurrency limit: one training at a time
LEASE_SECONDS = 60.0  # a killed holder gives its slot back after this
JOBS = 3  # for one training: a worker that was killed leaves a checkpoint, and another goes on from there
LOOK_SECONDS = 5.0  # between two looks for a worker


class WorkerGone(StageFailed):
    """No worker of the pool is left to train: whoever asked may train itself."""


def locked_outputs(folder: Path | str, stages: Sequence[str]) -> dict[str, str]:
    """The hash of every output of these stages, by path, as dvc.lock has it.

    Raises:
        StageFailed: a stage is not in dvc.lock.
    """
    lock = yaml.safe_load((Path(folder) / LOCK).read_text(encoding="utf-8"))["stages"]
    outputs: dict[str, str] = {}
    for stage in stages:
        if stage not in lock:
            raise StageFailed(stage, 1, f"it is not in {LOCK} of {folder}")
        outputs.update({str(out["path"]): str(out["md5"]) for out in lock[stage].get("outs", [])})
    return outputs


@task(name="train", task_run_name="{stage}", cache_policy=NO_CACHE)
def train_stage(workspace: Workspace, stage: str) -> StageResult | State[object]:
    """One stage on this machine, its inputs pulled from the DVC remote."""
    logger = get_run_logger()
    try:
        return run_stage(
            workspace.folder,
            stage,
            environment=workspace.environment,
            log=logger.info,
            detail=logger.debug,
            pull=True,
            group_file=workspace.group_file,
        )
    except HearkenError as error:
        return failed(error)


@task(name="dvc", task_run_name="dvc {arguments[0]}", cache_policy=NO_CACHE, retries=3, retry_delay_seconds=RETRIES)
def move_data(workspace: Workspace, arguments: list[str]) -> None:
    """A `dvc push` or `dvc fetch`, tried again where the remote does not answer."""
    run_dvc(workspace.folder, arguments, workspace.environment)


@task(name="take inputs", cache_policy=NO_CACHE, retries=3, retry_delay_seconds=RETRIES)
def take_inputs(workspace: Workspace, stages: list[str]) -> None:
    """Make what these stages read what dvc.lock says, from the DVC remote.

    `dvc repro --pull` takes only what is missing: in a clone that is used again it would train on what the training
    before has left there.
    """
    inputs = read_graph(workspace.folder, workspace.environment).inputs_of(stages)
    run_dvc(workspace.folder, ["pull", "--force", *inputs], workspace.environment)


@flow(name="train-on-gpu", persist_result=False)
def train_on_gpu(branch: str, stages: list[str]) -> State[Any]:
    """Train the named stages of a build branch in one job, and push models and run-cache to the DVC remote.

    Returns:
        The hash of every output by path: as the flow's value, and as JSON in the message of its final state, which a
        build on another machine can read.
    """
    try:
        settings = settings_of_run()
        folder = settings.workspaces / "train-on-gpu"
        with concurrency(SLOT, strict=True, lease_duration=LEASE_SECONDS), held(settings, folder):
            end_leftovers(Workspace(folder=folder, commit="", origin=None, settings=settings))
            repository, cache, remote = settings.repository, settings.cache, settings.remote
            commit = create_workspace(repository, branch, folder, cache, remote, keep_lock=False)
            workspace = Workspace(folder=folder, commit=commit, origin=repository, settings=settings)
            take_inputs(workspace, stages)
            for stage in stages:
                value_of(train_stage(workspace, stage))
            move_data(workspace, ["push", "--run-cache", *stages])
            outputs = locked_outputs(folder, stages)
        return Completed(message=json.dumps(outputs, sort_keys=True), data=outputs)
    except HearkenError as error:
        return failed(error)


def workers_online(pool: str) -> bool:
    """Whether a worker of this pool has been heard lately."""
    online = WorkerFilter(status=WorkerFilterStatus(any_=[WorkerStatus.ONLINE]))
    with get_client(sync_client=True) as client:
        try:
            return bool(client.read_workers_for_work_pool(pool, worker_filter=online))
        except ObjectNotFound:
            return False


def worker_comes(pool: str, minutes: float) -> bool:
    """Whether a worker of this pool is online, or comes online within some minutes."""
    until = time.monotonic() + 60 * minutes
    while not workers_online(pool):
        left = until - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(LOOK_SECONDS, left))
    return True


@task(
    name="hand over",
    task_run_name="hand over to {branch}",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=RETRIES,
)
def hand_over(workspace: Workspace, branch: str, inputs: list[str]) -> None:
    """Push the inputs of training: dvc.lock on the build's branch, the data to the DVC remote."""
    commit_build(workspace.folder, branch, "Inputs of training", push=True)
    run_dvc(workspace.folder, ["push", *inputs], workspace.environment)


def train_elsewhere(
    workspace: Workspace,
    stages: Sequence[str],
    inputs: Sequence[str],
    *,
    deployment: str,
    branch: str,
    timeout: float,
    pool: str,
    wait_minutes: float,
) -> list[StageResult]:
    """Have a worker train these stages, and restore what it trained.

    Args:
        workspace: of the build.
        stages: to train, in one job.
        inputs: stages whose outputs they read.
        deployment: `train-on-gpu/<name>`.
        branch: of the build; pushed here, deleted by the caller.
        timeout: seconds to wait for a job.
        pool: of the workers that may train.
        wait_minutes: for one of them to come online after a job crashed.

    Raises:
        WorkerGone: a job crashed, and no worker is left.
        StageFailed: the job failed or took too long (it is cancelled then), or other bytes came back.
    """
    hand_over(workspace, branch, list(inputs))
    logger = get_run_logger()
    label, said = ", ".join(stages), ""
    for job in range(1, JOBS + 1):
        logger.info("training %s by %s", label, deployment)
        parameters = {"branch": branch, "stages": list(stages)}
        run = cast(FlowRun, run_deployment(deployment, parameters=parameters, timeout=timeout, poll_interval=2))
        state = run.state
        if state is None or not state.is_final():  # run_deployment returns, without an error, when its time is over
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(run.id, Cancelling(message="The build waited too long."))
            raise StageFailed(label, 1, f"{deployment} has not ended after {timeout:g} s and was cancelled")
        if state.is_completed():
            said = state.message or "{}"
            break
        if not state.is_crashed() or job == JOBS:
            raise StageFailed(label, 1, f"{deployment} ended as {state.name}: {state.message}")
        logger.warning("%s crashed (%s): once more", deployment, state.message)
        if not worker_comes(pool, wait_minutes):
            raise WorkerGone(label, 1, f"{deployment} crashed, and no worker of pool {pool} is online")
    trained: dict[str, str] = json.loads(said)
    move_data(workspace, ["fetch", "--run-cache", *stages])
    results = [value_of(restore_stage(workspace, stage)) for stage in stages]
    restored = locked_outputs(workspace.folder, stages)
    for path, digest in trained.items():
        if restored.get(path) != digest:
            raise StageFailed(label, 1, f"restored {path} with hash {restored.get(path)}, the worker trained {digest}")
    return results


@task(name="restore", task_run_name="restore {stage}", cache_policy=NO_CACHE)
def restore_stage(workspace: Workspace, stage: str) -> StageResult | State[object]:
    """Take a stage's outputs from the run-cache; training it again here would be another model."""
    logger = get_run_logger()

    def no_training(line: str) -> None:
        logger.debug(line)
        if f"{stage}: Running stage" in line:
            got = "the DVC remote has nothing that was trained with these inputs"
            raise StageFailed(stage, 1, f"{got}; is it the remote of the worker, too?")

    try:
        result = run_stage(
            workspace.folder,
            stage,
            environment=workspace.environment,
            log=logger.info,
            detail=no_training,
            pull=True,
            group_file=workspace.group_file,
        )
    except HearkenError as error:
        return failed(error)
    return StageResult(stage=stage, outcome=Outcome.TRAINED_ELSEWHERE, seconds=result.seconds)
