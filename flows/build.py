"""Starting a build from the command line: Prefect is not even imported where nothing has changed."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from flows import registry
from flows.database import open_database
from flows.plan import RELEASE, Plan, make_plan
from flows.repository import untracked_files
from flows.settings import Settings, configure
from flows.stages import Outcome, StageResult
from flows.summary import BuildResult, copy_outputs, print_summary
from flows.workspace import Workspace, open_workspace


def run_build(
    checkout: Path | str,
    *,
    clone: bool,
    name: str = "build",
    params_overrides: Mapping[str, object] | None = None,
    gpu_deployment: str | None = None,
    copy: bool = True,
    show: bool = True,
) -> BuildResult:
    """Build, and show what happened.

    Args:
        checkout: a git checkout of the project.
        clone: build in a private clone, uncommitted edits of tracked files included, tag the release, and copy report
            and metrics to the checkout; False: build in the checkout itself, where nothing is committed.
        name: of the private clone; the same name again finds what it built before.
        params_overrides: settings by dotted name, in a private clone only.
        gpu_deployment: `<flow>/<deployment>` that trains the neural detectors; None: here.
        copy: the report and metrics of a private clone, to the checkout's git-ignored folders.
        show: print the summary.

    Raises:
        UserError: a person's mistake.
        StageFailed: a stage ended with an error.
    """
    started = time.monotonic()
    settings = Settings.of(checkout)
    configure(settings)
    if clone:
        _warn_of_untracked(settings)
    with open_workspace(settings, clone=clone, name=name, params_overrides=params_overrides) as workspace:
        plan = make_plan(workspace)
        result = _nothing_to_do(workspace, plan, started)
    if result is None:
        from flows.build_flow import build  # imports prefect, which configure() has to come before

        built = build(
            checkout=str(settings.checkout),
            clone=clone,
            name=name,
            revision=workspace.commit if clone else None,
            params_overrides=dict(params_overrides) if params_overrides else None,
            gpu_deployment=gpu_deployment,
        )
        if not isinstance(built, BuildResult):
            raise TypeError(f"got {type(built).__name__} from the build flow, expected a BuildResult")
        result = built
    if clone and copy:
        copy_outputs(result.folder, settings.checkout)
    if show:
        print_summary(result)
    return result


def _nothing_to_do(workspace: Workspace, plan: Plan, started: float) -> BuildResult | None:
    """The result of a build whose stages are all up to date and whose release is registered; else None."""
    if plan.outdated:
        return None
    row = None
    if (workspace.folder / RELEASE).is_dir():
        engine = open_database(workspace.settings.database_url)
        try:
            identity = registry.content_id(workspace.folder / RELEASE)
            row = next((row for row in registry.list_releases(engine) if row.id == identity), None)
        finally:
            engine.dispose()
        if row is None:
            return None
    return BuildResult(
        folder=workspace.folder,
        commit=workspace.commit,
        branch="",
        stages=tuple(StageResult(stage=stage, outcome=Outcome.UNCHANGED) for stage in plan.graph.order),
        seconds=time.monotonic() - started,
        release_id=row.id if row else None,
        version=row.version if row else None,
    )


def _warn_of_untracked(settings: Settings) -> None:
    """A private clone lacks files that git does not know; say so before a stage misses one."""
    if settings.repository != str(settings.checkout) or not (settings.checkout / ".git").exists():
        return
    missing = untracked_files(settings.checkout)
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        print(f"note: the private clone does not get files that git does not track: {shown}", file=sys.stderr)
