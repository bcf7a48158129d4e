"""New thresholds for the weights in service, every week, from what the landing zone holds that is later than they.

The rows are taken into a folder of the home, the release that comes out is registered, and it enters service only where
params.yaml says so and its thresholds stand on rows enough; else it waits as a candidate for a person.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flows import registry
from flows.database import open_database, reading
from flows.registry import ReleaseRow, ReleaseState
from flows.releases.entry import put_into_service
from flows.runs import failed, settings_of_run
from flows.service.tables import Upload, UploadState
from flows.settings import Settings
from flows.workspace import held
from pipeline.errors import ContractError, HearkenError
from pipeline.ingest import ingest_for
from pipeline.landing import SourceFile
from pipeline.moments import microseconds
from pipeline.params import Params, RecalibrateParams, load_params
from pipeline.recalibrate import Recalibration, TierChange, recalibrate
from pipeline.recent_rows import TooFewRows
from pipeline.release import Release, load_release
from pipeline.store import read_json
from pipeline.uploads import LandingZone

TIMEOUT_SECONDS = 6 * 3600  # the rows of months are read, validated and scored; only a hung run is stopped by it
RETRIES = [30.0, 120.0, 600.0]  # seconds, for a landing zone that does not answer
WHO = "recalibrate"


@dataclass(frozen=True, kw_only=True)
class FinishedRecalibration:
    """What came of it: `release` is None where there was nothing to calibrate with yet."""

    parent: str
    release: str | None
    promoted: bool
    reason: str


@flow(name="recalibrate", persist_result=False, timeout_seconds=TIMEOUT_SECONDS)
def recalibrate_in_service(checkout: str | None = None) -> FinishedRecalibration | State[Any]:
    """Recalibrate the release in service with later rows, register what comes out, and promote it where that is safe.

    Args:
        checkout: whose params.yaml to use; None: the current folder.
    """
    try:
        settings = settings_of_run(checkout)
        params = load_params(settings.checkout / "params.yaml")
        engine = open_database(settings.database_url)
        try:
            champion = registry.serving(engine)
            with held(settings, settings.recalibration):
                done, made = recalibrated(settings, engine, params, champion)
        finally:
            engine.dispose()
        get_run_logger().info(done.reason)
        create_markdown_artifact(as_markdown(done, made), key="recalibration", description=done.reason)
        return done
    except HearkenError as error:
        return failed(error)


def recalibrated(
    settings: Settings, engine: Engine, params: Params, champion: ReleaseRow
) -> tuple[FinishedRecalibration, Recalibration | None]:
    """The body of a run, in a folder that is held."""
    release = load_release(settings.releases / champion.id, champion.id)
    name = f"v{champion.version}"
    files = take_in(settings, params, int(release.manifest["newest_row_us"]))
    if not files:
        return _nothing(champion, f"no rows are later than those of {name}: nothing to recalibrate with yet"), None
    try:
        made, row = calibrate_and_register(settings, engine, params, release, champion)
    except TooFewRows as error:
        return _nothing(champion, f"too few rows to recalibrate {name} with yet: {error}"), None
    against = too_little(made, params.recalibrate)
    if row.state != ReleaseState.CANDIDATE:
        reason = f"the same rows gave v{row.version} again, which is {str(row.state).replace('_', ' ')}"
    elif params.recalibrate.promote == "manual":
        reason = f"v{row.version} is a candidate: recalibrate.promote is manual"
    elif (back := registry.taken_back(engine)) is not None:
        reason = f"v{row.version} is a candidate: {back.who} took service back to v{back.version}, so a person promotes"
    elif against:
        reason = f"v{row.version} is a candidate: {'; '.join(against)}"
    else:
        note = f"{row.note}, promoted by the schedule"
        put_into_service(settings, engine, row.id, who=WHO, note=note, instead_of=champion.id)
        reason = f"v{row.version}, {name} recalibrated with {made.rows:,} rows, is in service"
        return FinishedRecalibration(parent=champion.id, release=row.id, promoted=True, reason=reason), made
    return FinishedRecalibration(parent=champion.id, release=row.id, promoted=False, reason=reason), made


def _nothing(champion: ReleaseRow, reason: str) -> FinishedRecalibration:
    return FinishedRecalibration(parent=champion.id, release=None, promoted=False, reason=reason)


@task(name="take in later rows", cache_policy=NO_CACHE, retries=len(RETRIES), retry_delay_seconds=RETRIES)
def take_in(settings: Settings, params: Params, newest_us: int) -> int:
    """Bring the data set of recalibrations in line with the files of the landing zone that are later; their number."""
    place = settings.landing_place(params.source.path)
    engine = open_database(settings.database_url)
    try:
        files = later_files(engine, LandingZone.at(place, params.ingest.timezone), newest_us)
    finally:
        engine.dispose()
    if files:
        summary = ingest_for(place, settings.recalibration, params.ingest, params.split, only=files)
        get_run_logger().info("%d rows of %d files, to %s", summary.rows, len(files), summary.last)
    return len(files)


def later_files(engine: Engine, zone: LandingZone, newest_us: int) -> list[SourceFile]:
    """Files of a landing zone with rows later than a moment; one that cannot be read is told of by ingest.

    Files that the ledger knows, and that have not changed since, are not opened.

    Raises:
        ContractError: the landing zone cannot be listed.
    """
    with Session(reading(engine)) as session:
        columns = (Upload.path, Upload.size, Upload.modified_ns, Upload.last_at)
        scored = sa.select(*columns).where(Upload.state == UploadState.SCORED, Upload.last_at.is_not(None))
        known = {(path, size, modified): last for path, size, modified, last in session.execute(scored)}
    found = []
    for file in zone.files()[0]:
        last = known.get((file.name, file.size, file.modified_ns))
        try:
            last_us = microseconds(last) if last is not None else zone.facts(file).last_us
        except ContractError:
            last_us = newest_us + 1
        if last_us > newest_us:
            found.append(file)
    return found


def calibrate_and_register(
    settings: Settings, engine: Engine, params: Params, release: Release, champion: ReleaseRow
) -> tuple[Recalibration, ReleaseRow]:
    """Calibrate into a folder of the home, and enter the release under the commit that its weights came from."""
    out = settings.recalibration.parent / "release"
    shutil.rmtree(out, ignore_errors=True)
    made = recalibrate(release, settings.recalibration, out, params.validate_, calibrate=params.calibrate)
    note = f"recalibrated from v{champion.version}"
    row = registry.register_release(engine, settings.releases, made.folder, commit=champion.commit, note=note)
    return made, row


def too_little(made: Recalibration, params: RecalibrateParams) -> list[str]:
    """Why thresholds may not enter service by themselves: each stands on rows enough, or a person decides."""
    calibration = read_json(made.folder / "calibration.json")
    page, said = calibration["detectors"][made.detector]["page"], []
    if made.rows < page["rows_needed"]:
        said.append(f"the page tier stands on {made.rows:,} rows, fewer than {page['rows_needed']:,}: {page['basis']}")
    days = (calibration.get("choice") or {}).get("machine_days")
    if days is None:
        said.append("calibrate.choice is off, so that machine-days are not counted")
    elif days < params.min_machine_days:
        said.append(f"{days:,.0f} healthy machine-days, fewer than {params.min_machine_days:g}")
    return said


def as_markdown(done: FinishedRecalibration, made: Recalibration | None) -> str:
    """What was decided, and what becomes of the tiers."""
    lines = [f"# Recalibration: {'promoted' if done.promoted else 'not promoted'}", "", done.reason, ""]
    if done.release is not None and not done.promoted:
        lines += [f"To put it into service: `hearken releases promote {done.release}`", ""]
    if made is not None:
        lines += [f"{made.rows:,} healthy rows of {made.machines} machines, {made.first} to {made.last}.", ""]
        lines += ["| detector | tier | threshold before | now | the old one lets through |", "|---|---|---|---|---|"]
        lines += [_line(change) for change in made.tiers]
        lines += ["", *(f"- {note}" for note in dict.fromkeys(made.notes))]
    return "\n".join(lines)


def _line(change: TierChange) -> str:
    old = "—" if change.old_threshold is None else f"{change.old_threshold:.4g}"
    rate = "—" if change.rate is None else f"{change.rate:.3%}"
    if change.rate_low is not None and change.rate_high is not None:
        rate += f" ({change.rate_low:.3%} to {change.rate_high:.3%})"
    return f"| {change.detector} | {change.tier} | {old} | {change.threshold:.4g} | {rate} |"
