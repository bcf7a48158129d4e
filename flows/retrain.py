"""A new release after a change of the plant, or because a person asks: built beside what runs, judged, and carried out.

It is promoted, refused, or left in shadow until there are rows enough to judge it.

Wishes stand in the database (flows/service/retrainings.py); this flow takes the one that is next. A run that is cut
off leaves its wish and its workspace, and the next run goes on from both: stages that are done are not done again, and
a training goes on from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flows import registry
from flows.build_flow import TIMEOUT_SECONDS as BUILD_SECONDS
from flows.build_flow import build_workspace
from flows.database import open_database
from flows.plan import RELEASE
from flows.registry import ReleaseRow, ReleaseState
from flows.releases.entry import promote_checked
from flows.runs import failed, settings_of_run, value_of
from flows.service.leases import signs_of_life
from flows.service.ledger import new_owner
from flows.service.retrainings import Waits, claim, end, renew, try_again
from flows.service.tables import Retraining, RetrainingState
from flows.settings import Settings
from flows.shadows import challengers_of, deadline_of, keep_record, keep_seeds, waits_for_a_person
from flows.workspace import Workspace, open_workspace
from pipeline.errors import HearkenError, ReleaseError, UserError, WorkspaceError
from pipeline.gate import GateDecision, Verdict, judge_build
from pipeline.params import MOST_SEEDS, Params, load_params
from pipeline.release import load_release
from pipeline.report_page.names import visible

GPU_DEPLOYMENT = "train-on-gpu/train-on-gpu"
NAME = "retrain"  # of the private clone; those of other seeds have a number behind it
TIMEOUT_SECONDS = MOST_SEEDS * BUILD_SECONDS  # each seed is a build; only a hung run is stopped by it


@dataclass(frozen=True, kw_only=True)
class Retrained:
    """What came of a run: `challenger` is None where nothing was built; `state`, of the wish, where none was due."""

    challenger: str | None
    state: RetrainingState | None
    reason: str

    @property
    def promoted(self) -> bool:
        """Whether the challenger is in service now."""
        return self.state is RetrainingState.PROMOTED


@flow(name="retrain", persist_result=False, timeout_seconds=TIMEOUT_SECONDS)
def retrain(gpu_deployment: str | None = GPU_DEPLOYMENT, checkout: str | None = None) -> Retrained | State[Any]:
    """Take the next wish for a new release, build a challenger, and let the gate decide.

    Args:
        gpu_deployment: that trains the neural detectors; None: here.
        checkout: whose params.yaml to use; None: the current folder.
    """
    try:
        settings = settings_of_run(checkout)
        params = load_params(settings.checkout / "params.yaml")
        engine = open_database(settings.database_url)
        try:
            return _retrain(engine, settings, params, gpu_deployment)
        finally:
            engine.dispose()
    except HearkenError as error:
        return failed(error)


def _retrain(engine: Engine, settings: Settings, params: Params, gpu_deployment: str | None) -> Retrained:
    owner, logger = new_owner(), get_run_logger()
    claimed = claim(engine, params.retrain, owner, str(runtime.flow_run.id or ""))
    if isinstance(claimed, Waits):
        until = "" if claimed.until is None else f", until {claimed.until:%Y-%m-%d %H:%M} UTC"
        logger.info("nothing to do: %s%s", claimed.why, until)
        return Retrained(challenger=None, state=None, reason=claimed.why)
    logger.info("retraining %d, attempt %d: %s", claimed.id, claimed.attempts, claimed.why)
    try:
        with signs_of_life(params.retrain.lease_minutes, lambda: renew(engine, claimed.id, params.retrain, owner)):
            result = _work(engine, settings, params, claimed, owner, gpu_deployment)
    except (HearkenError, OSError) as error:
        if isinstance(error, UserError) and not isinstance(error, WorkspaceError):
            # a person's mistake: the same again would be the same again
            end(engine, claimed.id, owner, RetrainingState.FAILED, error=str(error))
            raise
        state = try_again(engine, claimed.id, owner, params.retrain, str(error))
        logger.warning("retraining %d is %s: %s", claimed.id, state.value, error)
        raise error if isinstance(error, HearkenError) else HearkenError(f"retraining: {error}") from None
    except BaseException as error:
        if _is_cancelled():
            end(engine, claimed.id, owner, RetrainingState.CANCELLED, error="the flow run was cancelled")
        else:
            try_again(engine, claimed.id, owner, params.retrain, f"the run ended: {type(error).__name__}")
        raise
    publish_retraining(result, claimed)
    return result


def _is_cancelled() -> bool:
    """Whether a person cancels this flow run, so that what ends it is no accident."""
    with suppress(Exception), get_client(sync_client=True) as client:
        if runtime.flow_run.id is None:
            return False
        state = client.read_flow_run(runtime.flow_run.id).state
        return state is not None and (state.is_cancelling() or state.is_cancelled())
    return False


def _work(
    engine: Engine,
    settings: Settings,
    params: Params,
    wish: Retraining,
    owner: str,
    gpu_deployment: str | None,
) -> Retrained:
    """Build, judge, and carry out what is decided."""
    champion = registry.in_service(engine)
    overrides = overrides_of(settings, params, wish, champion)
    with open_workspace(settings, clone=True, name=NAME, params_overrides=overrides) as workspace:
        built = build_workspace(workspace, gpu_deployment=gpu_deployment)
        if built.release_id is None:
            raise ReleaseError(f"build: got no data/release, expected one, in {built.folder}.")
        challenger = built.release_id
        if champion is None or champion.id == challenger:
            why = "no release was in service" if champion is None else "the build gives the release in service again"
            return conclude(engine, params, wish, owner, champion, challenger, None, why)
        seeds = build_seeds(settings, params, overrides, gpu_deployment)
        keep_seeds(settings, challenger, seeds)
        decision = value_of(judge(workspace, champion.id, challenger, params))
    until = deadline_of(engine, params) if decision.verdict is Verdict.WAIT else None
    page = keep_record(settings, challenger, decision, f"Retraining {wish.id}: release v{built.version}", until)
    create_link_artifact(page.resolve().as_uri(), link_text="Decision of the gate", key="gate-decision")
    return conclude(engine, params, wish, owner, champion, challenger, decision, decision.reason)


def overrides_of(
    settings: Settings, params: Params, wish: Retraining, champion: ReleaseRow | None
) -> dict[str, object]:
    """The settings of params.yaml that a retraining replaces."""
    overrides: dict[str, object] = {"source.path": str(settings.landing_place(params.source.path))}
    if wish.changed_at is not None:
        overrides |= {
            "split.changed_at": wish.changed_at.isoformat(),
            "split.changed_machines": wish.machines,
            "split.purge_hours": params.retrain.purge_hours,
        }
    if params.retrain.start == "champion" and champion is not None:
        overrides["base_release"] = champion.id
    return overrides


def build_seeds(
    settings: Settings, params: Params, overrides: dict[str, object], gpu_deployment: str | None
) -> list[Path]:
    """The same build with other seeds, each in a clone of its own; their release folders."""
    folders = []
    for number in range(1, params.gate.seeds):
        mine = overrides | {"seed": params.seed + number}
        with open_workspace(settings, clone=True, name=f"{NAME}-{number + 1}", params_overrides=mine) as workspace:
            build_workspace(workspace, gpu_deployment=gpu_deployment, register=False)
            folders.append(workspace.folder / RELEASE)
    return folders


@task(name="gate", cache_policy=NO_CACHE)
def judge(workspace: Workspace, champion: str, challenger: str, params: Params) -> GateDecision | State[object]:
    """Compare champion and challengers on the rows and failures that neither has seen."""
    try:
        settings = workspace.settings
        return judge_build(
            load_release(settings.releases / champion, champion),
            challengers_of(settings, challenger),
            workspace.folder / "data/raw",
            workspace.folder / "data/status/split.parquet",
            params.gate,
            params.evaluate,
        )
    except HearkenError as error:
        return failed(error)


def conclude(
    engine: Engine,
    params: Params,
    wish: Retraining,
    owner: str,
    champion: ReleaseRow | None,
    challenger: str,
    decision: GateDecision | None,
    why: str,
) -> Retrained:
    """Carry out what was decided; a champion that is another by now is left to a person."""
    note = f"{wish.why}: {why}" if wish.why else why
    was = None if champion is None else champion.id

    def ended(state: RetrainingState, error: str | None = None) -> Retrained:
        end(engine, wish.id, owner, state, champion=was, challenger=challenger, error=error)
        return Retrained(challenger=challenger, state=state, reason=note)

    # first: whoever promotes the challenger from here on, after a crash too, ends this wish and settles its drift
    with Session(engine) as session, session.begin():
        held = session.get(Retraining, wish.id, with_for_update=True)
        if held is not None and held.state is RetrainingState.CANCELLED:  # a person dismissed the drift behind it
            return Retrained(challenger=challenger, state=held.state, reason=str(held.error))
        if held is None or held.owner != owner:
            return Retrained(challenger=challenger, state=None, reason="another run has taken over")
        held.champion_id, held.challenger_id = was, challenger
    if decision is not None:
        registry.keep_decision(engine, challenger, decision.to_dict())
    if was == challenger:
        return ended(RetrainingState.REFUSED)
    waits_for = waits_for_a_person(engine, params)
    if decision is None or (decision.verdict is Verdict.PROMOTE and waits_for is None):
        try:
            promote_checked(engine, challenger, who="retrain", note=note, instead_of=was, unasked=True)
        except ReleaseError as error:
            return ended(RetrainingState.REFUSED, str(error))
        return Retrained(challenger=challenger, state=RetrainingState.PROMOTED, reason=note)
    if decision.verdict is Verdict.REFUSE:
        registry.refuse(engine, challenger, note)
        return ended(RetrainingState.REFUSED)
    if decision.verdict is Verdict.PROMOTE:
        note = f"{note}; it waits for `hearken releases promote`, as {waits_for}"
    row = registry.put_in_shadow(engine, challenger, deadline_of(engine, params), note)
    if row.state != ReleaseState.SHADOW:  # the same bytes were refused, or left service, before
        return ended(RetrainingState.REFUSED, f"release v{row.version} is {row.state}: it cannot be a shadow again")
    return ended(RetrainingState.SHADOW)


def publish_retraining(result: Retrained, wish: Retraining) -> None:
    """Prefect's artifact: what was asked, and what became of it."""
    title = f"Retraining {wish.id}: {result.state or 'taken over by another run'}"
    lines = [
        f"# {title}",
        "",
        visible(result.reason),
        "",
        f"Asked for by {visible(wish.who)}: {visible(wish.why)}.",
        "",
    ]
    lines += [f"Challenger: release {result.challenger}."]
    create_markdown_artifact("\n".join(lines), key="retraining", description=title)


def names_of(machines: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names that a person gave, sorted; None: all machines."""
    return None if not machines else tuple(sorted(set(machines)))
