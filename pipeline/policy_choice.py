"""The choice of an alert policy: most tune failures caught within the budget of false pages, ties to the simplest.

Each candidate of a small grid runs over healthy calibration rows and over the rows before each tune failure, by the
same `advance` that serves. Its false page episodes are counted on the healthy rows as the protocol does, and the upper
bound of their expected number must stay within the budget. Thresholds come from healthy rows alone, through the
caller's function from percentile to threshold; a failure only ever picks among them.

Shape legend: N healthy rows, T rows before tune failures, M machines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.alerts import MINUTE, AlertPolicy, MachineN, chains, typical_interval_us
from pipeline.counts import overdispersion, upper_bound
from pipeline.errors import ContractError
from pipeline.params import CalibrateParams, ChoiceParams, PolicyParams
from pipeline.policy_state import Alerts, PolicyRows, advance
from pipeline.schema import MICROSECONDS_PER_DAY, MICROSECONDS_PER_HOUR, FloatN, IntN

SAME_LEAD_HOURS = 1.0  # lead times that differ by less are the same
FEW_FAILURES = 5


@dataclass(frozen=True)
class ScoredRows:
    """Rows (N,): machine code, time, comparable score (higher is more anomalous)."""

    machine: MachineN
    time_us: IntN
    score: FloatN


@dataclass(frozen=True)
class TuneFailureRows:
    """Rows (T,) before tune failures: failure id, time, comparable score (NaN: null).

    `failed_us` is the time of every tune failure by its id, those without rows too. A failure that it does not name is
    taken to be at its last row.
    """

    failure: npt.NDArray[Any]  # text
    time_us: IntN
    score: FloatN
    failed_us: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def none(cls) -> TuneFailureRows:
        """Where nothing ever failed."""
        return cls(np.empty(0, np.str_), np.empty(0, np.int64), np.empty(0))


@dataclass(frozen=True)
class PolicyChoice:
    """The chosen policy, and every candidate.

    `table` has a row per candidate, as JSON: `page_percentile`, `threshold`, `k`, `n`, `cool_down_hours`,
    `window_minutes`, `caught` (failure ids), `median_lead_time_hours` (null where none is caught),
    `false_page_episodes`, `overdispersion`, `upper` and `upper_per_machine_day` (of the expected false page episodes),
    `within_budget`, `chosen`.
    """

    policy: AlertPolicy
    page_percentile: float
    table: list[dict[str, Any]]
    notes: tuple[str, ...]
    failures: tuple[str, ...]  # of tuning
    machine_days: float  # of the healthy rows
    allowed: float  # false page episodes in them, by the budget

    @property
    def chosen(self) -> dict[str, Any]:
        """The row of the chosen candidate."""
        return next(row for row in self.table if row["chosen"])

    def settings(self, params: CalibrateParams) -> CalibrateParams:
        """The settings with the chosen page percentile."""
        return params.model_copy(update={"page_percentile": self.page_percentile})

    def to_json(self) -> dict[str, Any]:
        """As it stands in calibration.json."""
        return {
            "policy": self.policy.to_json(),
            "page_percentile": self.page_percentile,
            "failures": list(self.failures),
            "machine_days": round(self.machine_days, 3),
            "allowed_false_page_episodes": round(self.allowed, 3),
            "table": self.table,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class _Exceeding:
    """Rows (E,) above the low tier by machine and time, and where each stands among all rows."""

    machine: MachineN
    time_us: IntN
    score: FloatN
    place: IntN

    @classmethod
    def of(cls, rows: ScoredRows, low: float) -> _Exceeding:
        """Every candidate looks at the same ones: rows below the low tier take part by their place alone."""
        order = np.lexsort((rows.time_us, rows.machine))
        place = np.flatnonzero(rows.score[order] > low)
        kept = order[place]
        return cls(rows.machine[kept], rows.time_us[kept], rows.score[kept], place)


@dataclass(frozen=True)
class _Candidate:
    policy: AlertPolicy
    percentile: float
    row: dict[str, Any]

    @property
    def lead(self) -> float:
        lead = self.row["median_lead_time_hours"]
        return float("-inf") if lead is None else float(lead)


def choose_policy(
    healthy: ScoredRows,
    tune: TuneFailureRows,
    threshold_of: Callable[[float], float],
    choice: ChoiceParams,
    base: PolicyParams,
    *,
    low_percentile: float,
    page_percentile: float,
    budget: float,
    confidence: float = 0.9,
) -> PolicyChoice:
    """Choose an alert policy and the page tier's percentile.

    Most caught among the candidates within the budget, then the largest median lead time (differences below an hour do
    not count), then the simplest: smallest n, smallest k, no cool-down, the percentile nearest to the default. Where
    none is within the budget, the smallest upper bound comes first. Where nothing can be tuned, the most sensitive
    candidate within the budget: the lowest percentile, then the simplest; and with too few calibration rows besides, to
    show that any policy keeps the budget, that of params.yaml.

    Args:
        healthy: calibration rows, later than all that fitted.
        tune: rows before tune failures; each failure's are a sequence of their own.
        threshold_of: the score above which a percentile's tier begins, from healthy rows.
        choice: the grid; not enabled: the default is the only candidate.
        base: the policy of params.yaml, from which candidates take window, gap and no-data time.
        low_percentile: of the low tier.
        page_percentile: the default.
        budget: false page episodes per machine-day.
        confidence: of the one-sided upper bound.

    Raises:
        ContractError: no healthy rows, scores that are no numbers or all equal, a threshold that is no number, no
            candidate above the low percentile.
    """
    _check(healthy)
    notes: list[str] = []
    interval_us = typical_interval_us(healthy.machine, healthy.time_us)
    days = len(healthy.machine) * interval_us / MICROSECONDS_PER_DAY
    allowed = budget * days
    sequences, names, failed_us = _sequences(tune)
    if names or allowed >= upper_bound(0, confidence=confidence):
        together = _rows_together(healthy, AlertPolicy.fitted_to(base, interval_us).gap_us)
        percentiles, policies = _grid(choice, base, low_percentile, page_percentile, interval_us, together, notes)
    else:  # nothing tells candidates apart
        percentiles, policies = [page_percentile], [base]
    thresholds = {percentile: _threshold(threshold_of, percentile) for percentile in (low_percentile, *percentiles)}
    machines, rows_M = np.unique(healthy.machine, return_counts=True)
    exceeding, before_failures = (_Exceeding.of(rows, thresholds[low_percentile]) for rows in (healthy, sequences))
    candidates = []
    for percentile, params in product(percentiles, policies):
        policy = AlertPolicy.fitted_to(params, interval_us)
        tiers = (thresholds[low_percentile], thresholds[percentile])
        row: dict[str, Any] = {
            "page_percentile": percentile,
            "threshold": tiers[1],
            "k": params.k,
            "n": params.n,
            "cool_down_hours": params.cool_down_hours,
            "window_minutes": policy.window_us / MINUTE,
        }
        row |= _caught(before_failures, names, failed_us, tiers, policy)
        row |= _false_pages(exceeding, machines, rows_M, tiers, policy, confidence)
        row |= {"upper_per_machine_day": round(row["upper"] / days, 6), "within_budget": row["upper"] <= allowed}
        candidates.append(_Candidate(policy, percentile, row))
    failures = tuple(sorted({*tune.failed_us, *np.unique(np.asarray(tune.failure, np.str_)).tolist()}))
    if choice.enabled:
        notes += _notes(failures, names, len(machines), days, allowed, confidence, candidates)
    best = _best(candidates, page_percentile, tunable=bool(names))
    table = [candidate.row | {"chosen": candidate is best} for candidate in candidates]
    return PolicyChoice(best.policy, best.percentile, table, tuple(notes), failures, days, allowed)


def _check(healthy: ScoredRows) -> None:
    """Can thresholds and rates come from these rows?"""
    where = "the choice of the alert policy"
    if not len(healthy.score):
        raise ContractError.of("healthy calibration rows", got=0, expected="some", where=where)
    broken = int((~np.isfinite(healthy.score)).sum())
    if broken:
        got = f"{broken} that are no finite numbers"
        raise ContractError.of("healthy scores", got=got, expected="finite scores", where=where)
    if healthy.score.min() == healthy.score.max():
        got = f"{len(healthy.score)} scores, all {healthy.score[0]:g}"
        raise ContractError.of("healthy scores", got=got, expected="scores that differ", where=where)


def _sequences(tune: TuneFailureRows) -> tuple[ScoredRows, list[str], list[int]]:
    """Usable rows before failures as those of machines, the failures' names, and when they failed."""
    usable = np.flatnonzero(~np.isnan(tune.score))
    ids, codes = np.unique(np.asarray(tune.failure[usable], np.str_), return_inverse=True)
    time_us = tune.time_us[usable]
    names = [str(name) for name in ids]
    failed_us = [
        tune.failed_us[name] if name in tune.failed_us else int(time_us[codes == code].max())
        for code, name in enumerate(names)
    ]
    return ScoredRows(codes.astype(np.int32), time_us, tune.score[usable]), names, failed_us


def _grid(
    choice: ChoiceParams,
    base: PolicyParams,
    low_percentile: float,
    page_percentile: float,
    interval_us: int,
    together: int,
    notes: list[str],
) -> tuple[list[float], list[PolicyParams]]:
    """Percentiles and policies to be tried."""
    if not choice.enabled:
        notes.append("The choice is switched off: percentile and policy are those of params.yaml.")
        return [page_percentile], [base]
    percentiles = sorted({value for value in choice.page_percentiles if value > low_percentile})
    dropped = sorted({value for value in choice.page_percentiles if value <= low_percentile})
    if not percentiles:
        expected = f"one above low_percentile={low_percentile:g}"
        where = "params.yaml, calibrate.choice"
        raise ContractError.of("page_percentiles", got=list(choice.page_percentiles), expected=expected, where=where)
    if dropped:
        listed = ", ".join(f"{value:g}" for value in dropped)
        notes.append(f"Left out, not above low_percentile={low_percentile:g}: page percentile {listed}.")
    shapes = dict.fromkeys(product(_short_enough(choice, interval_us, together, notes), choice.cool_down_hours))
    return percentiles, [base.model_copy(update={"k": k, "n": n, "cool_down_hours": hours}) for (k, n), hours in shapes]


def _short_enough(choice: ChoiceParams, interval_us: int, together: int, notes: list[str]) -> list[tuple[int, int]]:
    """Each k of n whose n rows span `longest_hours` at most, and stand together; the shortest where all are longer.

    Healthy rows that are a sample (`ingest.max_rows`) come in pieces, in which a longer policy raises fewer pages than
    it would in service.
    """
    shortest = min(n for _, n in choice.k_of_n)
    hours = max(shortest, int(choice.longest_hours * MICROSECONDS_PER_HOUR / max(1, interval_us)))
    longer = [f"{k} of {n}" for k, n in choice.k_of_n if n > hours]
    apart = [f"{k} of {n}" for k, n in choice.k_of_n if max(shortest, together) < n <= hours]
    if longer:
        rows = f"rows {interval_us / MINUTE:.4g} minutes apart"
        notes.append(f"Left out, longer than {choice.longest_hours:g} h of {rows}: {', '.join(longer)}.")
    if apart:
        notes.append(f"Left out, as healthy rows come in pieces of some {together} rows: {', '.join(apart)}.")
    return [(k, n) for k, n in choice.k_of_n if n <= min(hours, max(shortest, together))]


def _rows_together(rows: ScoredRows, gap_us: int) -> int:
    """Rows of the piece that the middle row stands in: pieces of a machine are further apart than the gap."""
    order = np.lexsort((rows.time_us, rows.machine))
    first, stop = chains(rows.machine[order], rows.time_us[order], gap_us)
    return int(np.median(np.repeat(stop - first, stop - first)))


def _threshold(threshold_of: Callable[[float], float], percentile: float) -> float:
    threshold = float(threshold_of(percentile))
    if not np.isfinite(threshold):
        what, where = f"threshold of percentile {percentile:g}", "the choice of the alert policy"
        raise ContractError.of(what, got=threshold, expected="a finite score", where=where)
    return threshold


def _alerts(rows: _Exceeding, tiers: tuple[float, float], policy: AlertPolicy) -> Alerts:
    """Alerts that were pages; silence says nothing of a policy."""
    judged = PolicyRows.above(rows.machine, rows.time_us, rows.score, *tiers)
    _, alerts = advance(None, judged, replace(policy, no_data_us=None), place_N=rows.place)
    return alerts.take(alerts.paged_us >= 0)


def _false_pages(
    healthy: _Exceeding,
    machines_M: MachineN,
    rows_M: IntN,
    tiers: tuple[float, float],
    policy: AlertPolicy,
    confidence: float,
) -> dict[str, Any]:
    """False page episodes on healthy rows, as the protocol counts them, and how many more there may be."""
    alerts = _alerts(healthy, tiers, policy)
    count_M = np.zeros(len(machines_M), np.int64)
    np.add.at(count_M, np.searchsorted(machines_M, alerts.machine), alerts.page_weight())
    count, dispersion = int(count_M.sum()), overdispersion(count_M, rows_M)
    return {
        "false_page_episodes": count,
        "overdispersion": round(dispersion, 3),
        "upper": round(upper_bound(count, dispersion, confidence), 6),
    }


def _caught(
    tune: _Exceeding, names: Sequence[str], failed_us: Sequence[int], tiers: tuple[float, float], policy: AlertPolicy
) -> dict[str, Any]:
    """Failures before which a page opens, and the median time from the first one to the failure."""
    alerts = _alerts(tune, tiers, policy)
    # by machine and time: the first alert of each failure
    codes, first = np.unique(alerts.machine, return_index=True)
    paged_us = alerts.paged_us[first].tolist()
    leads = [failed_us[code] - paged for code, paged in zip(codes.tolist(), paged_us, strict=True)]
    return {
        "caught": [names[code] for code in codes.tolist()],
        "median_lead_time_hours": round(float(np.median(leads)) / MICROSECONDS_PER_HOUR, 3) if leads else None,
    }


def _best(candidates: Sequence[_Candidate], page_percentile: float, tunable: bool) -> _Candidate:
    """The rule of `choose_policy`."""
    pool = [candidate for candidate in candidates if candidate.row["within_budget"]]
    if not pool:
        least = min(candidate.row["upper"] for candidate in candidates)
        pool = [candidate for candidate in candidates if candidate.row["upper"] == least]
    if tunable:
        most = max(len(candidate.row["caught"]) for candidate in pool)
        pool = [candidate for candidate in pool if len(candidate.row["caught"]) == most]
        longest = max(candidate.lead for candidate in pool)
        pool = [candidate for candidate in pool if most == 0 or longest - candidate.lead < SAME_LEAD_HOURS]
    else:
        lowest = min(candidate.percentile for candidate in pool)
        pool = [candidate for candidate in pool if candidate.percentile == lowest]

    def complexity(candidate: _Candidate) -> tuple[float, ...]:
        policy, percentile = candidate.policy, candidate.percentile
        from_default = round(abs(percentile - page_percentile), 9)
        return policy.n, policy.k, policy.cool_down_us, from_default, -percentile

    return min(pool, key=complexity)


def _notes(
    failures: Sequence[str],
    with_rows: Sequence[str],
    machines: int,
    days: float,
    allowed: float,
    confidence: float,
    candidates: Sequence[_Candidate],
) -> list[str]:
    """What a person must know of the choice."""
    notes = []
    without = [name for name in failures if name not in with_rows]
    if not with_rows:
        decided = "the budget alone decided" if len(candidates) > 1 else "the policy is that of params.yaml"
        notes.append(f"There is no tune failure with rows before it: nothing could be tuned, {decided}.")
    elif len(with_rows) < FEW_FAILURES:
        counted = "one tune failure" if len(with_rows) == 1 else f"{len(with_rows)} tune failures"
        notes.append(f"The policy was chosen on {counted}: it may be luck.")
    if without:
        told = ", ".join(without[:FEW_FAILURES]) + (", ..." if len(without) > FEW_FAILURES else "")
        notes.append(f"{len(without)} of {len(failures)} tune failures have no row before them: {told}.")
    if machines == 1:
        notes.append("There is one machine: how much the rate differs between machines is not known.")
    within = [candidate for candidate in candidates if candidate.row["within_budget"]]
    if within and with_rows and not any(candidate.row["caught"] for candidate in within):
        notes.append("No policy within the budget catches a tune failure.")
    if not within:
        told = f"The budget allows {allowed:.2f} false page episodes on {days:.1f} machine-days of calibration rows"
        least = upper_bound(0, confidence=confidence)
        if allowed < least:
            why = f"too few to show that a policy keeps it: even without one the upper bound is {least:.2f}"
        else:
            why = "and no policy keeps it"
        decided = " The smallest upper bound decided." if len(candidates) > 1 else ""
        notes.append(f"{told}, {why}.{decided}")
    return notes
