"""The build: every stage of dvc.yaml that is out of date, as one Prefect task each, in the order that DVC knows."""

from __future__ import annotations

import datetime as dt
import secrets
import time
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows import registry
from flows.database import open_database
from flows.deploy import GPU_POOL
from flows.plan import RELEASE, Plan, make_plan
from flows.repository import commit_build, delete_branch, next_release_number, tag_release
from flows.runs import failed, settings_of_run, value_of
from flows.stages import Outcome, StageResult, run_stage
from flows.summary import DATA_DOCS, REPORT, BuildResult, evaluation_rows, shown, stage_rows
from flows.train_on_gpu import RETRIES, WorkerGone, move_data, train_elsewhere, worker_comes
from flows.workspace import Workspace, open_workspace
from pipeline.errors import HearkenError, WorkspaceError
from pipeline.params import Params

# Training millions of rows on two cores takes hours; only a hung build is stopped by it, and what its stages made is
# in the cache.
TIMEOUT_SECONDS = 12 * 3600


@flow(name="build", persist_result=False, timeout_seconds=TIMEOUT_SECONDS)
def build(
    checkout: str | None = None,
    clone: bool = True,
    name: str = "build",
    revision: str | None = None,
    params_overrides: dict[str, Any] | None = None,
    gpu_deployment: str | None = None,
) -> BuildResult | State[object]:
    """Bring a workspace up to date and register its release.

    Args:
        checkout: a person's checkout; None: run by a worker, which clones HEARKEN_REPOSITORY.
        clone: build in a private clone; False: in the checkout, where nothing is committed.
        name: of the private clone.
        revision: what to clone; None: see open_workspace.
        params_overrides: settings by dotted name, in a private clone only.
        gpu_deployment: `<flow>/<deployment>` that trains the neural detectors; None: here.
    """
    try:
        settings = settings_of_run(checkout)
        with open_workspace(
            settings, clone=clone, name=name, revision=revision, params_overrides=params_overrides
        ) as workspace:
            return build_workspace(workspace, gpu_deployment=gpu_deployment)
    except HearkenError as error:
        return failed(error)


def build_workspace(workspace: Workspace, *, gpu_deployment: str | None = None, register: bool = True) -> BuildResult:
    """The body of a build, inside a flow run, in a workspace that is held.

    Args:
        workspace: see open_workspace.
        gpu_deployment: `<flow>/<deployment>` that trains the neural detectors; None: here.
        register: enter the release in the registry, under a tag of its own.

    Raises:
        UserError: a person's mistake, found here or by a stage.
        StageFailed: a stage ended with an error.
    """
    started = time.monotonic()
    plan = make_plan(workspace)
    outdated = plan.outdated
    branch = f"build/{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    gpu = gpu_deployment if plan.neural and _gpu_is_there(gpu_deployment, plan.params) else None
    if outdated and _remote_has_something(workspace):
        move_data(workspace, ["fetch", "--run-cache", *outdated])
    try:
        stages = run_stages(workspace, plan, gpu, branch)
    finally:
        if gpu:
            delete_branch(workspace.folder, branch)
    # also where an earlier build made everything and then could not push: a release leads to a commit with its dvc.lock
    new = bool(outdated) or (register and workspace.origin is not None and not is_registered(workspace))
    if new:
        move_data(workspace, ["push", "--run-cache"])
    commit = workspace.commit
    if new and workspace.origin is not None:
        commit = commit_build(
            workspace.folder, branch, "Built: " + (", ".join(outdated) or "what a cut-off build made")
        )
    there = register and (workspace.folder / RELEASE).is_dir()
    row, note = publish_release(workspace, commit, branch) if there else (None, "")
    result = BuildResult(
        folder=workspace.folder,
        commit=commit,
        branch=branch if new and workspace.origin is not None else "",
        stages=stages,
        seconds=time.monotonic() - started,
        release_id=row.id if row else None,
        version=row.version if row else None,
        note=note,
    )
    publish_artifacts(result)
    return result


def is_registered(workspace: Workspace) -> bool:
    """Whether the registry knows the release that lies in a workspace, if one does."""
    if not (workspace.folder / RELEASE).is_dir():
        return True
    engine = open_database(workspace.settings.database_url)
    try:
        identity = registry.content_id(workspace.folder / RELEASE)
        return any(row.id == identity for row in registry.list_releases(engine))
    finally:
        engine.dispose()


def run_stages(workspace: Workspace, plan: Plan, gpu: str | None, branch: str) -> tuple[StageResult, ...]:
    """Every stage of the graph in order; those that are up to date are not started."""
    done: dict[str, StageResult] = {}
    for stage in plan.graph.order:
        if stage in done:
            continue
        if stage not in plan.outdated:
            done[stage] = StageResult(stage=stage, outcome=Outcome.UNCHANGED)
        elif gpu and stage in plan.neural:  # all of them in one job
            try:
                trained = train_elsewhere(
                    workspace,
                    plan.neural,
                    plan.inputs_of_training,
                    deployment=gpu,
                    branch=branch,
                    timeout=plan.params.retrain.gpu_timeout_minutes * 60,
                    pool=GPU_POOL,
                    wait_minutes=plan.params.retrain.wait_for_worker_minutes,
                )
            except WorkerGone as error:
                if not plan.params.retrain.cpu_fallback:
                    raise
                get_run_logger().warning("%s: training here", error)
                gpu = None
                done[stage] = value_of(stage_task(workspace, stage))
            else:
                done.update({result.stage: result for result in trained})
        else:
            done[stage] = value_of(stage_task(workspace, stage))
    return tuple(done[stage] for stage in plan.graph.order)


@task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE)
def stage_task(workspace: Workspace, stage: str) -> StageResult | State[object]:
    """One stage; DVC alone decides whether it runs, and it is never retried."""
    logger = get_run_logger()
    try:
        result = run_stage(
            workspace.folder,
            stage,
            environment=workspace.environment,
            log=logger.info,
            detail=logger.debug,
            pull=workspace.origin is not None,
            group_file=workspace.group_file,
        )
    except HearkenError as error:
        return failed(error)
    logger.info("%s: %s in %.1f s", stage, result.outcome.value, result.seconds)
    return result


def _gpu_is_there(deployment: str | None, params: Params) -> bool:
    """Whether to hand training over; without a worker the same stages run here, where params.yaml allows it."""
    wait = params.retrain.wait_for_worker_minutes
    if deployment is None or worker_comes(GPU_POOL, wait):
        return deployment is not None
    if not params.retrain.cpu_fallback:
        raise WorkspaceError(
            f"work pool {GPU_POOL}: got no worker online in {wait:g} min, expected one "
            "(or retrain.cpu_fallback: true in params.yaml, to train where the build runs)."
        )
    get_run_logger().warning("no worker of pool %s is online: training here", GPU_POOL)
    return False


def _remote_has_something(workspace: Workspace) -> bool:
    """False for a local remote that does not exist yet; an address is asked."""
    if workspace.origin is None:  # a checkout's own DVC settings rule there; a person pulls when they want to
        return False
    remote = workspace.settings.remote
    return "://" in remote or (Path(remote).is_dir() and any(Path(remote).iterdir()))


@task(name="register release", cache_policy=NO_CACHE, retries=3, retry_delay_seconds=RETRIES)
def publish_release(workspace: Workspace, commit: str, branch: str) -> tuple[registry.ReleaseRow, str]:
    """Copy the release to the home, tag its commit, enter it in the registry; a known one is left alone."""
    settings, folder, note = workspace.settings, workspace.folder, ""
    engine = open_database(settings.database_url)
    try:
        rows = registry.list_releases(engine)
        identity = registry.content_id(folder / RELEASE)
        known = next((row for row in rows if row.id == identity), None)
        version = None
        if known is None:
            taken = [row.version for row in rows]
            version = next_release_number(folder, "origin" if workspace.origin else ".", taken)
            if workspace.origin is not None:
                version, refusal = tag_release(folder, version, f"Release {identity}")
                note = refusal or ""
            else:
                note = "built in a checkout: the release has no tag, and its commit may lack uncommitted edits"
        row = registry.register_release(
            engine, settings.releases, folder / RELEASE, commit=commit, branch=branch, version=version, note=note
        )
        return row, note
    finally:
        engine.dispose()


def publish_artifacts(result: BuildResult) -> None:
    """Prefect's artifacts of a build: stages, detectors, links to the report and to the Data Docs."""
    create_table_artifact(stage_rows(result.stages), key="build-stages", description=f"Build in {result.folder}")
    detectors = evaluation_rows(result.folder)
    if detectors:
        table = [{name: shown(value) for name, value in row.items()} for row in detectors]
        title = f"Detectors of release v{result.version} ({result.release_id})"
        create_table_artifact(table, key="build-detectors", description=title)
    for page, text, key in ((REPORT, "Report", "build-report"), (DATA_DOCS, "Data Docs", "build-data-docs")):
        file = result.folder / page
        if file.is_file():
            create_link_artifact(file.resolve().as_uri(), link_text=text, key=key)
