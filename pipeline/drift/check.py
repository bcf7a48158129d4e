"""Has the plant changed, or is a machine failing? The decision on one window, with its figures.

A drift needs machines that moved together and columns beyond their limits on those machines. A machine that left its
peers alone, or several that each went their own way, are faults: alerts see to them, and nothing is retrained.

Shape legend: N rows, M machines, K conditions, D columns of `SHAPE`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.drift.change_point import changed_at
from pipeline.drift.columns import CONDITION, Heard, Judge, describe
from pipeline.drift.consensus import (
    Array,
    Compared,
    common_shift,
    compare,
    lengths_along,
    moved_by,
    size_of,
    together,
)
from pipeline.drift.distances import DISTANCES
from pipeline.drift.evidently_page import evidently_report
from pipeline.drift.limits import Limits, is_evidence, method_of, paired_columns
from pipeline.drift.reference import read_reference
from pipeline.drift.window import Window
from pipeline.moments import microseconds
from pipeline.params import MonitorParams
from pipeline.schema import MICROSECONDS_PER_HOUR, BoolN, FloatN

if TYPE_CHECKING:
    from pipeline.release import Release

LEAST_WINDOW = 0.25  # of the window's length must have rows: an hour is no fair sample of a day
MADE = 0.5  # of the common shift, that a machine of a drift has made
TOLD_BY = 0.8  # of a group's machines have the value, and of the machines with the value belong to the group
ELSEWHERE = 0.3  # of the change in one condition: as much in another, and it is no change of the condition
NAMED = 5  # machines and columns named in a reason
Verdict = Literal["none", "group", "fleet"]
Pairs = dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class ColumnDrift:
    """One column: its distance from the reference, the limit, and whether it is beyond."""

    statistic: float
    limit: float
    drifted: bool
    method: str


@dataclass(frozen=True)
class DriftDecision:
    """What was decided, and the figures behind it."""

    verdict: Verdict
    machines: tuple[str, ...]  # that moved together; empty where the verdict is none
    alone: tuple[str, ...]  # that left their peers on their own: faults, not drift
    group: dict[str, str] | None  # the context column and value that tell the group, where one does
    changed_at: dt.datetime | None  # UTC, to the hour
    share: float  # of the machines compared, that moved together
    compared: int
    columns: dict[str, ColumnDrift]
    history: str
    rows: int
    reason: str
    before_window: bool = False  # the change lies before the window, whose begin `changed_at` is then

    @property
    def drifted(self) -> bool:
        """Whether the fleet or a group of it has changed."""
        return self.verdict != "none"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {
            "drifted": self.drifted,
            "machines": list(self.machines),
            "alone": list(self.alone),
            "changed_at": self.changed_at.isoformat() if self.changed_at else None,
        }


@dataclass(frozen=True)
class Consensus:
    """Who moved together (M,), who alone (M,), along what (K, D), and in words."""

    verdict: Verdict
    member_M: BoolN
    alone_M: BoolN
    common_KD: Array
    words: str


def check_drift(release: Release, window: Window, params: MonitorParams, report_html: Path, seed: int) -> DriftDecision:
    """Compare a window with the release's reference, and write Evidently's page of it.

    Args:
        release: in service.
        window: recent rows, from `service_window`.
        params: section `monitor`.
        report_html: where Evidently's page is written.
        seed: of the drawn reference rows.

    Raises:
        ContractError: a release without a reference.
    """
    decision, pairs = decide(release, window, params, seed)
    methods = {name: column.method for name, column in decision.columns.items()}
    limits = {name: column.limit for name, column in decision.columns.items()}
    found = evidently_report(pairs, methods, limits, report_html)
    columns = {name: replace(column, statistic=round(found[name], 6)) for name, column in decision.columns.items()}
    return replace(decision, columns=columns)


def decide(release: Release, window: Window, params: MonitorParams, seed: int) -> tuple[DriftDecision, Pairs]:
    """The decision without a page, and the values of each column that it rests on (current, reference)."""
    reference, limits = read_reference(release.folder)
    judge = Judge.of(release.detectors, release.tails, release.calibration, release.detector)
    current = describe(window.rows, judge, window.speed_N, window.context)
    return decide_on(current, reference, limits, params, seed, window.start_us)


def decide_on(
    current: Heard, reference: Heard, limits: Limits, params: MonitorParams, seed: int, start_us: int
) -> tuple[DriftDecision, Pairs]:
    """As `decide`, of compared quantities; `start_us` is where the window begins."""
    compared = compare(current, reference, limits.days)
    consensus = _consensus(compared, limits, params)
    moment, consensus = _when(compared, consensus, start_us, params)
    suspects_M = consensus.member_M if consensus.verdict != "none" else np.ones(len(compared.machine_M), bool)
    since_us = _columns_since(current, moment, LEAST_WINDOW * 24 * min(params.days, limits.days))
    pairs, columns = _columns(compared, reference, suspects_M, since_us, limits, params, seed)
    evidence = [column.drifted for name, column in columns.items() if is_evidence(name)]
    beyond = float(np.mean(evidence)) if evidence else 0.0
    hours = float(np.ptp(current.time_us_N)) / MICROSECONDS_PER_HOUR if len(current) else 0.0
    short = hours < LEAST_WINDOW * 24 * min(params.days, limits.days)
    if consensus.verdict != "none" and (beyond < params.drift_share or short):
        nobody = np.zeros(len(compared.machine_M), bool)
        why = f"only {hours:.1f} h of rows" if short else "too few columns are beyond their limits"
        consensus = replace(consensus, verdict="none", member_M=nobody, words=f"{consensus.words}, but {why}")
    group, verdict = None, consensus.verdict
    if verdict != "none":
        group = told_by(compared, consensus.member_M) if verdict == "group" else None
        condition = _one_condition(compared, consensus.member_M)
        if group is None and condition is not None:
            group, verdict = {"column": CONDITION, "value": condition}, "group"
    names = np.array(compared.names, dtype=object)
    decision = DriftDecision(
        verdict=verdict,
        machines=tuple(names[consensus.member_M].tolist()),
        alone=tuple(names[consensus.alone_M].tolist()),
        group=group,
        changed_at=moment if verdict != "none" else None,
        share=round(float(consensus.member_M.mean()), 6) if len(names) else 0.0,
        compared=len(names),
        columns=columns,
        history=_history(limits, params),
        rows=len(current),
        reason=_reason(consensus, columns, group, names, params),
        before_window=verdict != "none" and moment is not None and microseconds(moment) <= start_us,
    )
    return decision, pairs


def _consensus(compared: Compared, limits: Limits, params: MonitorParams) -> Consensus:
    """Who moved together, by the limits of single machines and of the fleet's common shift."""
    shift_MKD = compared.shift_MKD
    size_M = moved_by(shift_MKD)
    moved_M = np.asarray(size_M > limits.moved)
    common_KD = common_shift(shift_MKD)
    size, machines = size_of(common_KD), len(size_M)
    nobody_M = np.zeros(machines, bool)
    if not machines:
        return Consensus("none", nobody_M, nobody_M, common_KD, "no machine can be compared with its past")
    group_M = together(shift_MKD, moved_M)
    needed = _needed(compared, group_M, params)
    fleet = f"the fleet's common shift is {size:.2f} (limit {limits.common:.2f})"
    if group_M.sum() >= needed and group_M.mean() < params.fleet_share:
        rest = size_of(common_shift(shift_MKD[~group_M]))
        if rest <= limits.common:
            words = f"{int(group_M.sum())} of {machines} machines moved together, the others did not"
            return Consensus("group", group_M, moved_M & ~group_M, _mean(shift_MKD[group_M]), words)
    member_M = np.asarray(lengths_along(shift_MKD, common_KD) >= MADE)
    if size > limits.common and member_M.mean() >= params.fleet_share and member_M.sum() >= params.min_group_machines:
        words = f"{int(member_M.sum())} of {machines} machines moved together: {fleet}"
        return Consensus("fleet", member_M, moved_M & ~member_M, common_KD, words)
    if group_M.sum() >= needed:
        verdict: Verdict = "fleet" if group_M.mean() >= params.fleet_share else "group"
        words = f"{int(group_M.sum())} of {machines} machines moved together"
        return Consensus(verdict, group_M, moved_M & ~group_M, _mean(shift_MKD[group_M]), words)
    told = f"{int(moved_M.sum())} of {machines} machines left their past, no {needed} of them together; {fleet}"
    return Consensus("none", nobody_M, moved_M, common_KD, told)


def _needed(compared: Compared, group_M: BoolN, params: MonitorParams) -> int:
    """How many machines make a group: fewer where a context column tells them from all others."""
    if told_by(compared, group_M) is not None:
        return params.min_group_machines
    return max(params.min_group_machines, int(np.ceil(params.group_share * len(group_M))))


def _mean(shift_MKD: Array) -> Array:
    known = np.isfinite(shift_MKD)
    total = np.where(known, shift_MKD, 0.0).sum(axis=0)
    return np.asarray(total / np.maximum(known.sum(axis=0), 1))


def _when(
    compared: Compared, consensus: Consensus, start_us: int, params: MonitorParams
) -> tuple[dt.datetime | None, Consensus]:
    """When the members moved; those that had moved long before the others moved alone."""
    if consensus.verdict == "none":
        return None, consensus
    moment, earlier_M = changed_at(compared, consensus.common_KD, consensus.member_M, start_us)
    if not 0 < earlier_M.sum() < params.min_group_machines:  # as many as a group: a change in steps
        return moment, consensus
    member_M = consensus.member_M & ~earlier_M
    kept = replace(consensus, member_M=member_M, alone_M=consensus.alone_M | earlier_M)
    if member_M.sum() >= _needed(compared, member_M, params):
        return moment, kept
    nobody_M = np.zeros(len(member_M), bool)
    words = f"{consensus.words}, but not at one time"
    return None, replace(kept, verdict="none", member_M=nobody_M, words=words)


def _columns_since(current: Heard, moment: dt.datetime | None, least_hours: float) -> int:
    """From when on rows are compared: the change, where there are rows enough after it; 0: all."""
    since_us = 0 if moment is None else microseconds(moment)
    enough = int(current.time_us_N.max(initial=0)) - since_us >= least_hours * MICROSECONDS_PER_HOUR
    return since_us if enough else 0


def _columns(
    compared: Compared,
    reference: Heard,
    suspects_M: BoolN,
    since_us: int,
    limits: Limits,
    params: MonitorParams,
    seed: int,
) -> tuple[Pairs, dict[str, ColumnDrift]]:
    """Each column on the suspects, against as many reference rows of theirs in the same conditions."""
    suspects = compared.machine_M[suspects_M]
    now = compared.now.take(compared.now.time_us_N >= since_us)
    now = now.take(np.isin(now.machine_N, suspects)) if len(suspects) else now
    names = [name for name in reference.compared if name == CONDITION or name in now.columns]
    share = len(suspects) / max(1, len(np.unique(reference.machine_N)))
    methods = {name: column.method for name, column in params.columns.items() if column.method is not None}
    pairs = paired_columns(now, reference, names, np.random.default_rng(seed))
    columns = {}
    for name, (here, past) in pairs.items():
        asked = params.columns[name].threshold if name in params.columns else None
        limit = asked if asked is not None else limits.column(name, share)
        if limit is None:
            continue
        method = method_of(name, methods)
        statistic = round(DISTANCES[method](here, past), 6)
        columns[name] = ColumnDrift(statistic, limit, statistic >= limit, method)
    return {name: pairs[name] for name in columns}, columns


def told_by(compared: Compared, member_M: BoolN) -> dict[str, str] | None:
    """The context column and value that tell a group from all other machines, by each machine's newest row."""
    if not member_M.any() or member_M.all():
        return None
    now = compared.now
    newest_M = np.zeros(len(now.machines), np.int64)
    order = np.argsort(now.time_us_N, kind="stable")
    newest_M[now.machine_N[order]] = order
    rows_M = newest_M[compared.machine_M]
    found: list[tuple[float, str, str]] = []
    for column, values in now.context.items():
        of_machine = values[rows_M]
        for value in sorted(set(of_machine[member_M].tolist()) - {""}):
            has_M = np.asarray(of_machine == value, bool)
            both = (has_M & member_M).sum()
            covered, pure = both / member_M.sum(), both / has_M.sum()
            if min(covered, pure) >= TOLD_BY and column != CONDITION:
                found.append((float(covered * pure), column, str(value)))
    if not found:
        return None
    _, column, value = max(found, key=lambda one: (one[0], one[1]))
    return {"column": column, "value": value}


def _one_condition(compared: Compared, member_M: BoolN) -> str | None:
    """The only condition in which the members' sound changed, where others could have shown it and did not."""
    size_K = np.sqrt((_mean(compared.apart_MKD[member_M]) ** 2).mean(axis=1))
    told_K = np.isfinite(compared.apart_MKD[member_M]).any(axis=(0, 2))
    best = int(size_K.argmax())
    if told_K.sum() < 2 or (size_K[np.arange(len(size_K)) != best] > ELSEWHERE * size_K[best]).any():
        return None
    return compared.now.conditions[best] or None


def _history(limits: Limits, params: MonitorParams) -> str:
    if params.days == limits.days:
        return limits.history
    return f"{limits.history} They are for windows of {limits.days:g} days, not {params.days:g}."


def _reason(
    consensus: Consensus,
    columns: Mapping[str, ColumnDrift],
    group: dict[str, str] | None,
    names: FloatN,
    params: MonitorParams,
) -> str:
    """A sentence with figures."""
    told = {name: column for name, column in columns.items() if is_evidence(name)}
    worst = sorted((name for name in told if told[name].drifted), key=lambda name: -told[name].statistic)
    figures = f"{len(worst)} of {len(told)} columns are beyond their limits ({params.drift_share:.0%} are a drift)"
    if worst:
        figures += f", most {worst[0]} ({told[worst[0]].statistic:.2f}, limit {told[worst[0]].limit:.2f})"
    words = consensus.words[0].upper() + consensus.words[1:]
    if group is not None:
        words += f"; {group['column']} {group['value']} tells them"
    alone = names[consensus.alone_M].tolist()
    more = "" if len(alone) <= NAMED else f" and {len(alone) - NAMED} more"
    left = f"; on their own: {', '.join(alone[:NAMED])}{more}" if alone else ""
    return f"{words}; {figures}{left}."
