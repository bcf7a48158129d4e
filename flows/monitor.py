"""Has the plant changed? Compares the newest scored rows with the release's reference; a drift is an event.

What is decided is entered in the database first, and the event only wakes the deployment `retrain`: an event that is
lost loses nothing, because every run of the monitor looks whether a retraining is due.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from sqlalchemy.engine import Engine

from flows import registry
from flows.database import open_database
from flows.runs import failed, settings_of_run, value_of
from flows.service.drifts import (
    SAME_CHANGE,
    Entered,
    Found,
    enter_drift,
    known_machines,
    let_pass,
    list_drifts,
    take_out,
)
from flows.service.ledger import newest_time
from flows.service.retrainings import Wish, ask, due, is_at_work, list_retrainings, widen
from flows.service.tables import AT_WORK, MONITOR, DriftState, RetrainingState
from flows.settings import Settings
from flows.shadows import judge_shadows
from pipeline.drift import DriftDecision, check_drift, service_window
from pipeline.errors import HearkenError
from pipeline.moments import moment_of
from pipeline.params import MonitorParams, Params, load_params
from pipeline.release import Release, load_release
from pipeline.report_page.names import visible
from pipeline.store import write_json
from pipeline.uploads import LandingZone

DRIFT_EVENT, DUE_EVENT = "hearken.drift.detected", "hearken.retraining.due"
FLEET_RESOURCE = "hearken.fleet"
TIMEOUT_SECONDS = 1800
SHOWN_MACHINES = 20


@flow(name="monitor", persist_result=False, timeout_seconds=TIMEOUT_SECONDS)
def monitor(checkout: str | None = None) -> DriftDecision | State[Any]:
    """Decide whether the fleet drifted or machines fail on their own, and see to what follows.

    A drift is entered, explains the alerts of its machines, and asks for a retraining; machines that left their peers
    are taken out of the open drifts; shadows are judged; a retraining that is due is announced.

    Args:
        checkout: whose params.yaml to use; None: the current folder.
    """
    try:
        settings = settings_of_run(checkout)
        params = load_params(settings.checkout / "params.yaml")
        engine = open_database(settings.database_url)
        try:
            return _monitor(engine, settings, params)
        finally:
            engine.dispose()
    except HearkenError as error:
        return failed(error)


def _monitor(engine: Engine, settings: Settings, params: Params) -> DriftDecision:
    logger = get_run_logger()
    release = release_in_service(engine, settings)
    report = settings.home / "drift" / f"{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}.html"
    try:
        decision = value_of(compare(settings, release.id, params, report))
    except HearkenError:  # shadows have their deadlines, and wishes wait, whether or not there is something to compare
        _see_to_the_rest(engine, settings, params, None, None, release.id, report)
        raise
    publish_decision(decision, report, release.id)
    logger.info("%s: %s", "drift" if decision.drifted else "no drift", decision.reason)
    entered = follow_up(engine, decision, release, report.relative_to(settings.home), params.monitor)
    if entered is not None:
        drift, known = entered.drift, "new" if entered.new else "known"
        logger.info("drift %d (%s) explains %d more alerts", drift.id, known, entered.explained)
    forget_reports(engine, settings.home, params.monitor.keep_days)
    _see_to_the_rest(engine, settings, params, decision, entered, release.id, report)
    return decision


def _see_to_the_rest(
    engine: Engine,
    settings: Settings,
    params: Params,
    decision: DriftDecision | None,
    entered: Entered | None,
    release: str,
    report: Path,
) -> None:
    """Announce a retraining that is due, and judge shadows, which may take long."""
    if due(engine, params.retrain):
        announce(decision, entered, release, report)
    for line in judge_shadows(engine, settings, params):
        get_run_logger().info(line)


def release_in_service(engine: Engine, settings: Settings) -> Release:
    """The release in service, checked and loaded.

    Raises:
        ReleaseError: there is none, or it is damaged.
    """
    row = registry.serving(engine)
    return load_release(settings.releases / row.id, row.id)


@task(name="compare", cache_policy=NO_CACHE)
def compare(settings: Settings, release: str, params: Params, report: Path) -> DriftDecision | State[object]:
    """Compare the newest rows of the score log, and the spectra behind them, with the release's reference."""
    try:
        loaded = load_release(settings.releases / release, release)
        zone = LandingZone.at(settings.landing_place(params.source.path), params.ingest.timezone)
        window = service_window(loaded, settings.score_log, zone, params.monitor, params.seed)
        report.parent.mkdir(parents=True, exist_ok=True)
        decision = check_drift(loaded, window, params.monitor, report, params.seed)
        write_json(report.with_suffix(".json"), decision.to_dict() | {"release": release})
    except HearkenError as error:
        return failed(error)
    return decision


def follow_up(
    engine: Engine, decision: DriftDecision, release: Release, report: Path, params: MonitorParams
) -> Entered | None:
    """Enter what was decided in the database, and ask for a new release where one is needed.

    Where as many of the machines that can be compared moved as make a fleet, the others (new, or with too little past)
    changed with them, but for those that left their peers.

    Args:
        engine: of the database.
        decision: of this run.
        release: in service.
        report: Evidently's page, below the home.
        params: section `monitor`.
    """
    if decision.drifted and decision.alone:  # without a drift all that moved stand alone, its own machines too
        take_out(engine, decision.alone, "the machine has left even the machines that changed with it")
    entered = None
    if decision.drifted and decision.changed_at is not None:
        fleet = decision.verdict == "fleet" or decision.share >= params.fleet_share
        others = set(known_machines(engine)) - set(decision.alone) if fleet else set()
        found = Found(
            release_id=release.id,
            verdict="fleet" if fleet else "group",
            machines=tuple(sorted({*decision.machines, *others})),
            changed_at=decision.changed_at,
            share=decision.share,
            figures=decision.to_dict(),
            report=report.as_posix(),
            before_window=decision.before_window,
        )
        entered = enter_drift(engine, found)
        drift = entered.drift
        machines = None if drift.verdict == "fleet" else tuple(drift.machines)
        if is_at_work(engine, drift.id):
            widen(engine, drift.id, machines)
        else:
            ask(engine, Wish(MONITOR, f"drift {drift.id}: {decision.reason}", drift.id, drift.changed_at, machines))
    elif not decision.drifted:
        if decision.compared:
            _let_pass(engine, release)
        _ask_for_the_full_build(engine, release)
    return entered


def forget_reports(engine: Engine, home: Path, keep_days: float, now: dt.datetime | None = None) -> list[str]:
    """Delete pages and figures of runs that are older, but for those that a drift refers to; their names."""
    oldest = (now or dt.datetime.now(dt.UTC)) - dt.timedelta(days=keep_days)
    kept = {Path(drift.report).stem for drift in list_drifts(engine) if drift.report is not None}
    gone = []
    for path in sorted((home / "drift").glob("*-*.*")):
        if path.stem not in kept and path.stem < f"{oldest:%Y%m%d-%H%M%S}":
            path.unlink(missing_ok=True)
            gone.append(path.name)
    return gone


def _let_pass(engine: Engine, release: Release) -> None:
    """A drift that nothing is built for, and that the release in service no longer sees, explains alerts no more."""
    newest = newest_time(engine)
    for drift in list_drifts(engine):
        old = newest is not None and newest >= drift.changed_at + SAME_CHANGE
        if drift.state is DriftState.OPEN and old and not is_at_work(engine, drift.id):
            let_pass(engine, drift.id, f"the plant is as release {release.id} knows it again")


def _ask_for_the_full_build(engine: Engine, release: Release) -> None:
    """A provisional release is rebuilt once its change is older than the horizon: by then failures have had time."""
    changed_at = release.manifest.get("changed_at")
    if not changed_at:
        return
    changed = dt.datetime.fromisoformat(changed_at)
    horizon = dt.timedelta(hours=float(release.manifest["params"]["split"]["horizon_hours"]))
    newest, late = newest_time(engine), changed + horizon + horizon
    # one that was merged into another has said why in its own row: the other's reason may be too long for it
    over = (RetrainingState.REFUSED, RetrainingState.FAILED, RetrainingState.CANCELLED, RetrainingState.MERGED)
    known = list_retrainings(engine, [*AT_WORK, *over])
    why = f"release {release.id} is provisional, and the horizon after its change has passed"
    if newest is None or newest < late or any(why in each.why for each in known):
        return
    if moment_of(int(release.manifest["newest_row_us"])) >= late:  # it is the full build
        return
    ask(engine, Wish(MONITOR, why))  # the change stands in the log by now: no setting has to tell it


def publish_decision(decision: DriftDecision, report: Path, release: str) -> None:
    """Prefect's artifacts: the decision in words, the columns, and Evidently's page."""
    title = {"none": "No drift", "group": "Drift of a group", "fleet": "Drift of the fleet"}[decision.verdict]
    lines = [f"# {title}", "", visible(decision.reason), "", f"Compared with release {release}. {decision.history}", ""]
    for what, names in (("Moved together", decision.machines), ("Left their peers alone", decision.alone)):
        if names:
            more = f" and {len(names) - SHOWN_MACHINES} more" if len(names) > SHOWN_MACHINES else ""
            lines.append(f"{what}: {', '.join(visible(name) for name in names[:SHOWN_MACHINES])}{more}.")
    create_markdown_artifact("\n".join(lines), key="drift-decision", description=title)
    table = [
        {"column": name, "distance": round(each.statistic, 4), "limit": round(each.limit, 4), "beyond": each.drifted}
        for name, each in sorted(decision.columns.items(), key=lambda item: -item[1].statistic / item[1].limit)
    ]
    create_table_artifact(table, key="drift-columns", description=title)
    if report.is_file():
        create_link_artifact(report.resolve().as_uri(), link_text="Evidently report", key="drift-report")


def announce(decision: DriftDecision | None, entered: Entered | None, release: str, report: Path) -> None:
    """Emit the event that wakes `retrain`; `decision` is None where nothing could be compared."""
    changed_at = None if decision is None else decision.changed_at
    emit_event(
        DRIFT_EVENT if entered is not None else DUE_EVENT,
        resource={"prefect.resource.id": f"{FLEET_RESOURCE}.{release}", "prefect.resource.name": "fleet"},
        payload={
            "drift": entered.drift.id if entered is not None else None,
            "group": None if decision is None else decision.group,
            "share": None if decision is None else decision.share,
            "machines": 0 if decision is None else len(decision.machines),
            "changed_at": None if changed_at is None else changed_at.isoformat(),
            "reason": "a retraining is due" if decision is None else decision.reason,
            "release": release,
            "report": report.resolve().as_uri(),
        },
    )
