"""The verdict: champion and challengers on the same later rows, by every condition of the gate.

Failures that tested can only refuse: gains count on tune failures and on false pages.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import ContractError
from pipeline.gate.checks import (
    check_another,
    check_baselines,
    check_failures,
    check_false_pages,
    check_seeds,
    check_time,
    gain_in_catches,
    gain_in_pages,
    gain_of_rates,
    shouts,
)
from pipeline.gate.record import TITLES, Check, GateDecision, Verdict
from pipeline.gate.rows import GateRows, rows_of_build, rows_since
from pipeline.gate.sides import Side, sides_of
from pipeline.intervals import MIN_MACHINES
from pipeline.params import EvaluateParams, GateParams, ValidateParams
from pipeline.release import Release


def judge_build(
    champion: Release,
    challengers: Sequence[Release],
    data_raw: Path,
    status_split: Path,
    params: GateParams,
    evaluate: EvaluateParams,
) -> GateDecision:
    """Judge a new build on its own test rows that are later than every row that made the champion.

    Args:
        champion: in service.
        challengers: one per seed, of the same split; the first is the candidate.
        data_raw: snapshot of the build.
        status_split: its split.
        params: section `gate`.
        evaluate: section `evaluate`, for the budget of false pages.

    Raises:
        ContractError: no challenger, a split that is not the challengers' own, another number of bins.
    """
    releases = _all(champion, challengers)
    return _judged(releases, rows_of_build(releases, data_raw, status_split), params, evaluate)


def judge_later(
    champion: Release,
    challengers: Sequence[Release],
    data_set: Path,
    since: dt.datetime | None,
    params: GateParams,
    evaluate: EvaluateParams,
    validate: ValidateParams,
) -> GateDecision:
    """Judge a challenger in shadow: on rows of a data set that are later than every row that made either.

    Args:
        champion: in service.
        challengers: one per seed; the first is the candidate.
        data_set: that `hearken ingest` wrote; its own log labels the rows.
        since: rows from here on (UTC); None: all that are later.
        params: section `gate`.
        evaluate: section `evaluate`, for the budget of false pages.
        validate: section `validate`: limits of the rows' facts, where no status table stands beside the data set.

    Raises:
        ContractError: no challenger, no maintenance log, another number of bins.
    """
    releases = _all(champion, challengers)
    return _judged(releases, rows_since(releases, data_set, since, validate), params, evaluate)


def _all(champion: Release, challengers: Sequence[Release]) -> list[Release]:
    if not challengers:
        raise ContractError.of("challengers", got="none", expected="at least one", where="the gate")
    return [champion, *challengers]


def _judged(releases: Sequence[Release], rows: GateRows, params: GateParams, evaluate: EvaluateParams) -> GateDecision:
    sides, seconds_T2 = sides_of(releases, rows, params)
    seconds = [None, None] if seconds_T2 is None else np.median(seconds_T2, axis=0).tolist()
    champion, challenger = sides[:2]
    checks = (
        check_another(champion, challenger),
        check_failures(champion, challenger, params, evaluate),
        check_false_pages(champion, challenger, params, evaluate),
        check_baselines(challenger, params, evaluate),
        check_seeds(champion, sides[1:], params, evaluate),
        check_time(seconds_T2, len(rows), params),
    )
    gains = (
        gain_in_pages(champion, challenger, params),
        gain_in_catches(champion, challenger, params),
        gain_of_rates(champion),
    )
    gain = next((check for check in gains if check.passed), None)
    budget = evaluate.false_episodes_per_machine_day
    days, needed = rows.healthy_days, challenger.pages.bounds(params.confidence)[1] / budget
    verdict, reason = _verdict(checks, gain, days, needed)
    old, new = champion.pages.caught(rows.judging), challenger.pages.caught(rows.judging)
    return GateDecision(
        verdict=verdict,
        reason=reason,
        checks=checks,
        gain=gain,
        champion=champion.figures(params, evaluate, seconds[0]),
        challenger=challenger.figures(params, evaluate, seconds[1]),
        healthy_machine_days=round(days, 3),
        needed_machine_days=round(needed, 3),
        caught={
            "both": sorted(old & new),
            "champion": sorted(old - new),
            "challenger": sorted(new - old),
            "neither": sorted(rows.judging - old - new),
            "failures": rows.failures_told(),
        },
        gains=gains,
        asked={
            **rows.told(),
            "champion": champion.release.id,
            "challengers": [side.release.id for side in sides[1:]],
            "false_pages_per_machine_day": budget,
            "confidence": params.confidence,
            "shadow_days": params.shadow_days,
        },
        notes=tuple(_notes(champion, rows, params)),
    )


def _verdict(checks: Sequence[Check], gain: Check | None, days: float, needed: float) -> tuple[Verdict, str]:
    """What has failed refuses, what more rows can tell or mend waits, and who gains nothing is refused in the end."""
    few = days < needed
    failed = [check for check in checks if check.passed is False and not (few and check.waits)]
    if failed:  # other seeds say the same again
        own = [check for check in failed if check.name != "seeds"] or failed
        return Verdict.REFUSE, " ".join(check.words for check in own)
    waiting = [TITLES[check.name] for check in checks if not check.passed and check.waits]
    if gain is None and few:
        waiting.append("a gain")
    if waiting:
        told = f"{', '.join(waiting[:-1])} and {waiting[-1]}" if len(waiting) > 1 else waiting[0]
        count = f"{days:,.1f} of {needed:,.1f} healthy machine-days"
        return Verdict.WAIT, f"There are too few later rows yet ({count}) to tell {told}."
    if gain is None:
        return Verdict.REFUSE, "It is not worse than the champion, and it gains nothing."
    return Verdict.PROMOTE, f"No condition failed, and there is a gain: {gain.words}"


def _notes(champion: Side, rows: GateRows, params: GateParams) -> list[str]:
    """What a person must know of the judgement."""
    notes = []
    if shouts(champion, params):
        notes.append(
            f"The champion lets at least {champion.times_page_rate:.3g} times as many healthy rows above its page tier "
            "as it was calibrated for: what it catches so is not held against the challenger."
        )
    machines = int(rows.told()["machines"])
    if 0 < machines < MIN_MACHINES:
        noun = "machine" if machines == 1 else "machines"
        notes.append(f"Intervals resample {machines} {noun}, fewer than {MIN_MACHINES}: they are too narrow.")
    confirmed, days = rows.days(rows.confirmed_S), rows.healthy_days
    if confirmed < days:
        notes.append(
            f"{days - confirmed:,.1f} of {days:,.1f} machine-days are younger than the horizon: a page there counts as "
            "false, though a failure may yet prove it right, and none there counts as a gain."
        )
    return notes
