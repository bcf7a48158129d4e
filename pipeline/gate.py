"""The first, simple gate: a challenger enters service when it is not worse than the champion on the same later rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.alerts import Timeline
from pipeline.errors import ContractError
from pipeline.evaluate import events_of, label_codes
from pipeline.judging.judged import FAULTY, Event
from pipeline.judging.outcomes import outcome_at
from pipeline.measure import score_rows
from pipeline.release import Release
from pipeline.rows import Rows, has_role, load_conditions, load_rows
from pipeline.schema import FAILURE_SCHEMA, MAINTENANCE_SCHEMA, Role
from pipeline.store import read_table
from pipeline.train import use_threads

SHOUTS = 10.0  # times the rate that the page tier was calibrated for


@dataclass(frozen=True)
class GateDecision:
    """Whether the challenger enters service, why, and each side's figures on the same rows."""

    accepted: bool
    reason: str
    champion: dict[str, Any]
    challenger: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def compare_releases(
    champion: Release, challenger: Release, data_raw: Path, status_split: Path, max_rate_ratio: float = 1.0
) -> GateDecision:
    """Judge both on the challenger's test rows: later than its calibration, seen by neither.

    The challenger is accepted when it catches no failure less and its share of healthy rows above the page threshold
    and its false page episodes are at most `max_rate_ratio` times the champion's. A champion with more than SHOUTS
    times the healthy rows above its page threshold that it was calibrated for (the fleet has changed) catches failures
    by shouting, and they are not held against the challenger.

    Raises:
        ContractError: there is no test row.
    """
    split = read_table(status_split)
    selected = has_role(split, Role.TEST)
    if not selected.any():
        raise ContractError.of("test rows", got=0, expected="rows after calibration", where=status_split)
    rows = load_rows(data_raw, split, selected, int(challenger.manifest["bins"]))
    failures = read_table(data_raw / "failures.parquet", schema=FAILURE_SCHEMA)
    horizon = float(challenger.manifest["params"]["split"]["horizon_hours"])
    events, _ = events_of(failures, rows, horizon, None)
    maintenance = read_table(data_raw / "maintenance.parquet", schema=MAINTENANCE_SCHEMA)
    sides = []
    for release in (champion, challenger):
        epoch = release.epochs_with(maintenance).of_rows(rows.machine, rows.time_us, rows.machines)
        condition, conditions = load_conditions(data_raw, split, selected, release.condition_column)
        known = replace(rows, epoch=epoch, condition=condition, conditions=conditions)
        sides.append(figures_of(release, known, events))
    old, new = sides
    reasons = []
    shouts = old["false_positive_rate"] > SHOUTS * champion.page_rate
    if new["events_caught"] < old["events_caught"] and not shouts:
        reasons.append(f"it catches {new['events_caught']} failures, the champion {old['events_caught']}")
    for key, what in (
        ("false_positive_rate", "share of healthy rows above its page threshold"),
        ("false_episodes", "false pages"),
    ):
        if new[key] > max_rate_ratio * old[key]:
            reasons.append(f"its {what} is {new[key]:g}, the champion's {old[key]:g}")
    accepted = not reasons
    reason = "not worse than the champion on the same later rows" if accepted else "; ".join(reasons)
    return GateDecision(accepted, reason, old, new)


def figures_of(release: Release, rows: Rows, events: list[Event]) -> dict[str, Any]:
    """What a release's page tier does on rows with the epochs that it knows: failures caught, false pages, rates."""
    use_threads(int(release.manifest["threads"]))
    scored = score_rows(release.deciding, rows, release.tails)
    exceeds = scored.scores[release.detector] > release.threshold("page")
    line = Timeline.of(rows.machine, rows.time_us, release.policy)
    outcome = outcome_at(exceeds, line, events)
    healthy = label_codes(rows.column("label")) != FAULTY
    return {
        "release": release.id,
        "rows": len(rows),
        "events": len(events),
        "events_caught": len(outcome.caught),
        "false_episodes": outcome.false_episodes,
        "false_positive_rate": float(exceeds[healthy].mean()) if healthy.any() else 0.0,
    }
