"""The release's own detector as it would serve: tiers with the rates that they reach, and the page tier's alerts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.alerts import Timeline
from pipeline.intervals import rate_with_interval
from pipeline.judging.judged import HEALTHY, Event, JudgedRows
from pipeline.judging.outcomes import failure_of, outcome_of
from pipeline.moments import iso
from pipeline.params import CalibrateParams
from pipeline.policy_state import page_episodes
from pipeline.schema import MICROSECONDS_PER_DAY


def judge_tiers(
    test: JudgedRows,
    calibration: JudgedRows,
    events: Sequence[Event],
    line: Timeline,
    machines: Sequence[str],
    detector: str,
    params: CalibrateParams,
    days: float,
    seed: int,
    nulls: dict[str, str],
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """The release's own detector as it would serve: tiers with the rates they reach, and the policy's pages.

    A page stands from the row that pages to the last low alert row of its alert (`policy_state`).
    """
    healthy = test.label == HEALTHY
    score, healthy_score = test.scores[detector], calibration.scores[detector]
    blocks = (calibration.machine, calibration.time_us // MICROSECONDS_PER_DAY)
    later = (test.machine[healthy], test.time_us[healthy] // MICROSECONDS_PER_DAY)
    tiers: dict[str, Any] = {}
    for tier, percentile in (("low", params.low_percentile), ("page", params.page_percentile)):
        found = rate_with_interval(
            healthy_score, blocks, score[healthy], later, percentile,
            draws=params.draws, confidence=params.confidence, seed=seed,
        )  # fmt: skip
        tiers[tier] = {
            "percentile": percentile,
            "threshold": found.threshold,
            "false_positive_rate": found.rate,
            "ci_low": found.low,
            "ci_high": found.high,
            "note": found.note,
        }
        if found.low is None:
            nulls["tiers"] = found.note or "There are no later healthy rows."
    low, page = (score > tiers[tier]["threshold"] for tier in ("low", "page"))
    episodes = page_episodes(line, low, page)
    outcome = outcome_of(episodes, events)
    listed = [
        {
            "machine_id": machines[m],
            "start": iso(a),
            "end": iso(b),
            "kind": kind,
            "failure_id": failure_of(m, a, b, events),
        }
        for m, a, b, kind in zip(episodes.machine, episodes.opened_us, episodes.closed_us, outcome.kinds, strict=True)
    ]
    operating = {
        "tier": "page",
        "events": len(events),
        "events_caught": len(outcome.caught),
        "false_episodes": outcome.false_episodes,
        "machine_days": round(days, 3),
        "caught": {name: round(lead, 3) for name, (_, lead) in sorted(outcome.caught.items())},
    }
    return operating, tiers, listed
