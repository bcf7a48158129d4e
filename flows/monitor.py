"""Has the plant changed? Scores the newest days with the release in service and asks Evidently; a drift is an event.

The event starts `retrain` through the trigger in prefect.yaml; this flow knows nothing of it.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.events import emit_event

from flows import registry
from flows.database import open_database
from flows.runs import failed, settings_of_run
from flows.settings import Settings
from pipeline.drift import DriftDecision, check_drift, window_start
from pipeline.errors import HearkenError, ReleaseError
from pipeline.params import Params, load_params
from pipeline.release import load_release
from pipeline.score import score_data_set

DRIFT_EVENT = "hearken.drift.detected"
FLEET_RESOURCE = "hearken.fleet"
WORST_COLUMNS = 20


@flow(name="monitor", persist_result=False)
def monitor(checkout: str | None = None) -> DriftDecision | State[Any]:
    """Score the last `monitor.days` of the landing zone, decide whether the fleet drifted, and say so.

    Args:
        checkout: whose params.yaml to use; None: the current folder.

    Returns:
        The decision; where it is a drift, the event `hearken.drift.detected` was emitted.
    """
    try:
        settings = settings_of_run(checkout)
        params = load_params(settings.checkout / "params.yaml")
        landing = settings.landing_zone(params.source.path)
        release = release_in_service(settings)
        report = settings.home / "drift" / f"{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}.html"
        decision = score_and_compare(settings, release, landing, params, report)
        publish_decision(decision, report, release, landing)
        logger = get_run_logger()
        logger.info("%s: %s", "drift" if decision.drifted else "no drift", decision.reason)
        if decision.drifted:
            announce_drift(decision, report, release, landing)
        return decision
    except HearkenError as error:
        return failed(error)


def release_in_service(settings: Settings) -> str:
    """The id of the release in service.

    Raises:
        ReleaseError: there is none.
    """
    engine = open_database(settings.database_url)
    try:
        row = registry.in_service(engine)
    finally:
        engine.dispose()
    if row is None:
        raise ReleaseError("registry: got no release in service, expected one (`hearken releases promote`).")
    return row.id


@task(name="score and compare", cache_policy=NO_CACHE)
def score_and_compare(settings: Settings, release: str, landing: Path, params: Params, report: Path) -> DriftDecision:
    """Write the score log of the window, and compare it with the release's reference."""
    loaded = load_release(settings.releases / release, release)
    since = window_start(landing, params.monitor.days)
    score_log = settings.home / "scores" / release
    summary = score_data_set(loaded, landing, score_log, since=since)
    get_run_logger().info("%d rows of %d machines since %s scored", summary.rows, summary.machines, since.isoformat())
    report.parent.mkdir(parents=True, exist_ok=True)
    return check_drift(loaded, landing, score_log, params.monitor, report, params.seed)


def publish_decision(decision: DriftDecision, report: Path, release: str, landing: Path) -> None:
    """Prefect's artifacts: the columns that differ most, and Evidently's page."""
    worst = sorted(decision.columns.items(), key=lambda item: -item[1])[:WORST_COLUMNS]
    description = (
        f"{'Drift' if decision.drifted else 'No drift'} of {landing} against release {release}: {decision.reason}"
    )
    table = [{"column": name, "distance": round(value, 4)} for name, value in worst]
    create_table_artifact(table, key="drift-columns", description=description)
    if report.is_file():
        create_link_artifact(report.resolve().as_uri(), link_text="Evidently report", key="drift-report")


def announce_drift(decision: DriftDecision, report: Path, release: str, landing: Path) -> None:
    """Emit the event that starts retraining."""
    emit_event(
        DRIFT_EVENT,
        resource={"prefect.resource.id": f"{FLEET_RESOURCE}.{landing.name}", "prefect.resource.name": landing.name},
        payload={
            "changed_at": decision.changed_at.isoformat() if decision.changed_at else "",
            "share": decision.share,
            "machines_share": decision.machines_share,
            "reason": decision.reason,
            "release": release,
            "report": report.resolve().as_uri(),
        },
    )
