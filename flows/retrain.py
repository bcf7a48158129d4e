"""A new release after a change of the fleet: built beside what runs, judged against it, promoted if it is not worse."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows import registry
from flows.build_flow import build_workspace
from flows.database import open_database
from flows.registry import ReleaseRow
from flows.runs import failed, settings_of_run, value_of
from flows.settings import Settings
from flows.workspace import Workspace, open_workspace
from pipeline.errors import HearkenError, ParamsError, ReleaseError
from pipeline.gate import GateDecision, compare_releases
from pipeline.params import Params, load_params
from pipeline.release import load_release

GPU_DEPLOYMENT = "train-on-gpu/train-on-gpu"


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """What came of it: `challenger` is None where nothing was built; `promoted` says whether it is in service now."""

    challenger: str | None
    promoted: bool
    reason: str


@flow(name="retrain", persist_result=False)
def retrain(
    changed_at: str | None = None,
    reason: str = "",
    release: str | None = None,
    gpu_deployment: str | None = GPU_DEPLOYMENT,
    checkout: str | None = None,
) -> Retraining | State[Any]:
    """Build a challenger from the landing zone and put it into service if the gate accepts it.

    Args:
        changed_at: the fleet changed here (ISO 8601 with a zone): only later rows train, and the release is
            provisional; None or empty: all rows.
        reason: why; stands in the registry.
        release: the release that drifted; if another is in service by now, nothing is done.
        gpu_deployment: that trains the neural detectors; None: here.
        checkout: see build; None: the current folder.
    """
    try:
        settings = settings_of_run(checkout)
        champion = _champion(settings)
        if release and champion is not None and champion.id != release:
            text = f"release {release} is no longer in service ({champion.id} is): nothing to do"
            get_run_logger().info(text)
            return Retraining(challenger=None, promoted=False, reason=text)
        overrides = overrides_of(settings, load_params(settings.checkout / "params.yaml"), changed_at)
        with open_workspace(settings, clone=True, name="retrain", params_overrides=overrides) as workspace:
            built = build_workspace(workspace, gpu_deployment=gpu_deployment)
            if built.release_id is None:
                raise ReleaseError(f"build: got no data/release, expected one, in {built.folder}.")
            decision = None
            if champion is not None and champion.id != built.release_id:
                decision = value_of(judge(workspace, champion.id, built.release_id))
        result = decide(settings, champion, built.release_id, decision, reason)
        publish_retraining(result, decision, overrides, reason)
        return result
    except HearkenError as error:
        return failed(error)


def overrides_of(settings: Settings, params: Params, changed_at: str | None) -> dict[str, object]:
    """The settings of params.yaml that a retraining replaces.

    Raises:
        ParamsError: changed_at is no time with a zone.
    """
    overrides: dict[str, object] = {"source.path": str(settings.landing_zone(params.source.path))}
    if changed_at:
        try:
            moment = dt.datetime.fromisoformat(changed_at)
        except ValueError:
            moment = dt.datetime.min
        if moment.tzinfo is None:
            raise ParamsError(
                f"changed_at: got {changed_at!r}, expected ISO 8601 with a zone (2025-03-01T06:00+00:00)."
            )
        overrides |= {"split.changed_at": moment.isoformat(), "split.purge_hours": params.retrain.purge_hours}
    return overrides


def _champion(settings: Settings) -> ReleaseRow | None:
    engine = open_database(settings.database_url)
    try:
        return registry.in_service(engine)
    finally:
        engine.dispose()


@task(name="gate", cache_policy=NO_CACHE)
def judge(workspace: Workspace, champion: str, challenger: str) -> GateDecision | State[object]:
    """Compare both on the challenger's test rows."""
    try:
        params = load_params(workspace.folder / "params.yaml")
        releases = workspace.settings.releases
        return compare_releases(
            load_release(releases / champion, champion),
            load_release(releases / challenger, challenger),
            workspace.folder / "data/raw",
            workspace.folder / "data/status/split.parquet",
            params.retrain.max_false_rate_ratio,
        )
    except HearkenError as error:
        return failed(error)


def decide(
    settings: Settings, champion: ReleaseRow | None, challenger: str, decision: GateDecision | None, reason: str
) -> Retraining:
    """Promote or refuse the challenger in the registry; with no champion to compare with, it enters service.

    A champion that was replaced while we built is no longer what the gate compared with: then a person decides.
    """
    engine = open_database(settings.database_url)
    try:
        now = registry.in_service(engine)
        if now is not None and now.id == challenger:
            return Retraining(challenger=challenger, promoted=True, reason="the build gave the release in service")
        if (now.id if now else None) != (champion.id if champion else None):
            text = "another release entered service meanwhile: compare and promote by hand"
            return Retraining(challenger=challenger, promoted=False, reason=text)
        why = decision.reason if decision else "no release was in service"
        note = f"{reason}: {why}" if reason else why
        if decision is None or decision.accepted:
            registry.promote(engine, challenger, note=note)
            return Retraining(challenger=challenger, promoted=True, reason=note)
        registry.refuse(engine, challenger, note)
        return Retraining(challenger=challenger, promoted=False, reason=note)
    finally:
        engine.dispose()


def publish_retraining(
    result: Retraining, decision: GateDecision | None, overrides: Mapping[str, object], reason: str
) -> None:
    """Prefect's artifact: what was asked, both sides' figures, what was decided."""
    lines = [f"# Retraining: {'promoted' if result.promoted else 'not promoted'}", "", result.reason, ""]
    lines += [f"Asked because: {reason or 'no reason given'}.", ""]
    lines += [f"- `{name}`: {value}" for name, value in overrides.items()] + [""]
    if decision is not None:
        lines += ["| figure | champion | challenger |", "|---|---|---|"]
        names = sorted(decision.champion.keys() | decision.challenger.keys())
        lines += [f"| {name} | {decision.champion.get(name)} | {decision.challenger.get(name)} |" for name in names]
    create_markdown_artifact("\n".join(lines), key="retraining", description=result.reason)
