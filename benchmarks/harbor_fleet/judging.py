"""Thresholds and policies of a scored fleet, and what they come to: nothing is known here but scores and times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from harbor_fleet.plan import Part
from harbor_fleet.plant import DAY, FLEET, LEVELS_OF, Setup
from harbor_fleet.scoring import ScoredFleet, Scores
from pipeline.alerts import AlertPolicy, Episodes, Timeline, chains, enough_of_last
from pipeline.calibrate import crossed_statistic, ensemble_rule, matched_scale, tail_table
from pipeline.counts import overdispersion, upper_bound
from pipeline.ensemble import TailTables
from pipeline.intervals import rate_with_interval, wilson
from pipeline.judging.judged import Outcome
from pipeline.judging.outcomes import caught_by_chance, only_caught, outcome_at, outcome_of, shifted_catches
from pipeline.levels import group_levels
from pipeline.params import Params
from pipeline.pareto import TailFit, tier_threshold
from pipeline.policy_choice import ScoredRows, TuneFailureRows, choose_policy
from pipeline.policy_state import page_episodes
from pipeline.schema import (
    ENSEMBLE,
    Baseline,
    BoolN,
    FloatN,
    IntN,
)

BUDGET = 12.0  # false page episodes a day of FLEET machines: 0.02 per machine-day
CONFIDENCE = 0.9
POLICIES = ((1, 1), (12, 20), (30, 120), (36, 360), (90, 360), (72, 720))  # k of n rows
GAP_MINUTES, WINDOW_SLACK = 30.0, 1.5  # rows are lost: a window holds half as many again as it needs
CANDIDATES = np.r_[np.linspace(0.5, 0.99, 50), 1 - np.geomspace(0.01, 1e-7, 100)]  # at which thresholds are looked for
FEW = 1  # false episodes that count as within a budget too small to be shown
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Judged:
    """Rows of a part in the order of circles and time, with comparable scores per detector; higher is odder."""

    part: Part
    stretch_N: npt.NDArray[np.int32]
    time_us_N: IntN
    scores: Mapping[str, Float32]
    interval_us: int

    @cached_property
    def machine_S(self) -> IntN:
        """Machine of each stretch."""
        return np.array([stretch.machine for stretch in self.part.stretches], np.int64)

    @cached_property
    def day_S(self) -> IntN:
        """Day of each stretch."""
        return np.array([int(stretch.begin) for stretch in self.part.stretches], np.int64)

    @cached_property
    def circle_S(self) -> npt.NDArray[np.int32]:
        """Circle of each stretch."""
        return np.array([stretch.circle for stretch in self.part.stretches], np.int32)

    @property
    def since_start_us(self) -> IntN:
        """Times since the fleet's start, of a part whose stretches are days with a circle each."""
        return self.time_us_N + self.day_S[self.stretch_N] * DAY

    @cached_property
    def ill_S(self) -> BoolN:
        """Stretches in which the machine is faulty in truth."""
        return np.array([stretch.ill for stretch in self.part.stretches])

    @cached_property
    def healthy_N(self) -> BoolN:
        """Rows at which a page is false: healthy days, and a failure's week before its onset."""
        window_S = np.array([stretch.window for stretch in self.part.stretches])
        healthy_N = ~window_S[self.stretch_N]
        onset_us = {event.machine: event.start_us for event in self.part.events}
        for place in np.flatnonzero(window_S).tolist():
            low, high = np.searchsorted(self.stretch_N, [place, place + 1])
            healthy_N[low:high] = self.time_us_N[low:high] < onset_us[self.part.stretches[place].circle]
        return healthy_N

    @cached_property
    def days_M(self) -> FloatN:
        """Healthy days heard of each machine."""
        rows_S = np.bincount(self.stretch_N[self.healthy_N], minlength=len(self.machine_S))
        return np.asarray(np.bincount(self.machine_S, rows_S) * (self.interval_us / DAY), np.float64)

    @property
    def days(self) -> float:
        """Healthy machine-days."""
        return float(self.days_M.sum())

    @property
    def blocks(self) -> tuple[IntN, IntN]:
        """Machine and day of each healthy row, as intervals want them."""
        mine_N = self.stretch_N[self.healthy_N]
        return self.machine_S[mine_N], self.day_S[mine_N]

    def without_ill(self) -> Judged:
        """The same without stretches that are ill in truth."""
        kept_N = ~self.ill_S[self.stretch_N]
        scores = {name: values[kept_N] for name, values in self.scores.items()}
        return Judged(self.part, self.stretch_N[kept_N], self.time_us_N[kept_N], scores, self.interval_us)

    def line(self, policy: AlertPolicy) -> Timeline:
        """The time line of all circles, as a policy looks back on it."""
        return Timeline.of(self.circle_S[self.stretch_N], self.time_us_N, policy)

    def false_pages(self, episodes: Episodes, false_E: BoolN) -> tuple[float, float, float]:
        """Their number, the dispersion over machines, and the upper bound of the number."""
        stretch_E = self.stretch_N[episodes.first[false_E]]
        weight_E = episodes.weight()[false_E].astype(np.float64)
        count_M = np.asarray(np.bincount(self.machine_S[stretch_E], weight_E, len(self.days_M)), np.float64)
        count, dispersion = float(weight_E.sum()), overdispersion(count_M, self.days_M)
        return count, dispersion, upper_bound(count, dispersion, CONFIDENCE)


@dataclass(frozen=True)
class Reference:
    """Calibration rows of one detector: scores (n,) and the machines and days they come from; their tail, if fitted."""

    scores: FloatN
    blocks: tuple[IntN, IntN]
    tail: TailFit | None = None


@dataclass(frozen=True)
class Calibrated:
    """Comparable scores of every detector and of the ensemble: calibration rows, and the parts that are judged."""

    references: Mapping[str, Reference]
    judged: Mapping[str, Judged]

    def confirmed(self) -> Calibrated:
        """The same, without budget days that are ill in truth."""
        return Calibrated(self.references, {**self.judged, "budget": self.judged["budget"].without_ill()})


def calibrated(fleet: ScoredFleet, interval_us: int, params: Params, levels: str) -> Calibrated:
    """Tails from the calibration rows, and every part brought to them.

    Args:
        fleet: with raw scores.
        interval_us: between rows.
        params: section `calibrate` is read, but for its levels.
        levels: `fleet`, or `machine`: each machine's healthy scores are brought to the fleet's level.
    """
    scores, part = fleet.scores["calibration"], fleet.plan.parts["calibration"]
    machine_N = machine_of_rows(part, scores)
    day_N = np.array([int(stretch.begin) for stretch in part.stretches], np.int64)[scores.stretch_N]
    machine_day_N = machine_N * (int(day_N.max()) + 1) + day_N
    references, tables, comparable = {}, {}, {}
    for name, raw in scores.raw.items():
        scale = matched_scale(scores.wider[name])
        comparable[name] = scale.comparable(raw.astype(np.float64), scores.state_N, machine_N)
        if levels == "machine":  # here a row's code is its machine: a level has no other key
            levels_found = group_levels(comparable[name], machine_N, scores.time_us_N)
            level_M = np.array([levels_found.get(machine, 1.0) for machine in range(fleet.setup.machines)])
            scale = replace(scale, level=level_M)
            comparable[name] /= level_M[machine_N]
        tables[name], fit = tail_table(name, comparable[name], machine_day_N, scale)
        references[name] = Reference(comparable[name], (machine_N, day_N), fit)
    tails = TailTables(tables)
    rule = ensemble_rule(params.calibrate.ensemble, tuple(scores.raw))
    statistic_N = None if rule is None else crossed_statistic(rule, comparable, machine_N, machine_day_N)
    if statistic_N is not None:
        table, fit = tail_table(ENSEMBLE, statistic_N, machine_day_N)
        tails = TailTables(tables, rule, table)
        references[ENSEMBLE] = Reference(statistic_N, (machine_N, day_N), fit)
    judged = {}
    for what in ("budget", "tune", "test"):
        given = fleet.scores[what]
        found = comparable_scores(tails, given, machine_of_rows(fleet.plan.parts[what], given))
        judged[what] = Judged(fleet.plan.parts[what], given.stretch_N, given.time_us_N, found, interval_us)
    return Calibrated(references, judged)


def machine_of_rows(part: Part, scores: Scores) -> IntN:
    """The machine (N,) of each row of a part."""
    return np.array([stretch.machine for stretch in part.stretches], np.int64)[scores.stretch_N]


def comparable_scores(tails: TailTables, given: Scores, machine_N: IntN) -> dict[str, Float32]:
    """Comparable scores (N,) of every detector and of the ensemble, made in pieces."""
    rows = len(given.state_N)
    found = {name: np.empty(rows, np.float32) for name in tails.names}
    for first in range(0, rows, 1 << 20):
        piece = slice(first, first + (1 << 20))
        raw = {name: values[piece].astype(np.float64) for name, values in given.raw.items()}
        for name, values in tails.comparable(raw, given.state_N[piece], machine_N[piece]).items():
            found[name][piece] = values
    return found


def policies(interval_us: int) -> list[AlertPolicy]:
    """The grid: k of the last n rows, where a machine-day holds several such windows."""
    gap_us = max(round(GAP_MINUTES * 60e6), round(2.5 * interval_us))
    return [
        AlertPolicy(k, n, round(WINDOW_SLACK * n * interval_us), gap_us)
        for k, n in POLICIES
        if n * interval_us <= DAY / 8
    ]


def episodes_above(line: Timeline, score_N: Float32, threshold: float) -> Episodes:
    """As `line.episodes(line.alert_rows(score_N > threshold))`, with work only where rows exceed.

    Rows stand in the line's order.
    """
    hit = np.flatnonzero(score_N > threshold)
    alert = hit[enough_of_last(line.place[hit], line.machine[hit], line.time_us[hit], line.policy)]
    first, stop = chains(line.machine[alert], line.time_us[alert], line.policy.gap_us)
    return Episodes(alert[first], alert[stop - 1], line)


def threshold_within(budget: Judged, line: Timeline, score_N: Float32, candidates: FloatN) -> float:
    """The lowest of the candidates whose upper bound of false episodes stays within the budget, as do all higher ones.

    A budget that few machine-days cannot show allows FEW.
    """
    allowed = max(BUDGET / FLEET * budget.days, upper_bound(FEW, confidence=CONFIDENCE))
    best = float(candidates[-1])
    for candidate in candidates[::-1].tolist():
        episodes = episodes_above(line, score_N, candidate)
        if budget.false_pages(episodes, np.ones(len(episodes), bool))[2] > allowed:
            break
        best = candidate
    return best


@dataclass(frozen=True)
class Choice:
    """Levels and a policy with its threshold, and what they came to on the rows that chose them."""

    levels: str
    policy: AlertPolicy
    threshold: float
    tune_caught: int
    lead_hours: float
    budget_pages: int
    budget_pages_ill: int  # in machine-days that only the log calls healthy

    @property
    def rank(self) -> tuple[int, float, int, bool]:
        """Larger is better: failures caught, then lead time, then the simpler policy and levels."""
        return self.tune_caught, round(self.lead_hours, 1), -self.policy.n, self.levels == LEVELS_OF[0]

    @property
    def name(self) -> str:
        """For the record."""
        return f"{self.policy.k} of {self.policy.n}, {self.levels}"


def choices_of(judged: Mapping[str, Judged], interval_us: int, levels: str) -> dict[str, list[Choice]]:
    """Every detector's policies: thresholds from budget rows, what they catch of the tune failures."""
    budget, tune = judged["budget"], judged["tune"]
    found: dict[str, list[Choice]] = {name: [] for name in budget.scores}
    candidates = {}
    for name, score_N in budget.scores.items():
        place = np.unique(np.ceil(CANDIDATES * (len(score_N) - 1)).astype(np.int64))
        candidates[name] = np.unique(np.r_[np.partition(score_N, place)[place], score_N.max()]).astype(np.float64)
    for policy in policies(interval_us):
        lines = budget.line(policy), tune.line(policy)
        for name, choices in found.items():
            threshold = threshold_within(budget, lines[0], budget.scores[name], candidates[name])
            outcome = outcome_at(tune.scores[name] > threshold, lines[1], tune.part.events)
            leads = [lead for _, lead in outcome.caught.values()]
            lead = float(np.median(leads)) if leads else 0.0
            pages = episodes_above(lines[0], budget.scores[name], threshold)
            ill = int(budget.ill_S[budget.stretch_N[pages.first]].sum())
            choices.append(Choice(levels, policy, threshold, len(leads), lead, len(pages), ill))
    return found


def choose(by_levels: Mapping[str, Calibrated], interval_us: int) -> dict[str, list[Choice]]:
    """Every detector's levels and policies, the best on the tune failures first."""
    found: dict[str, list[Choice]] = {}
    for levels, each in by_levels.items():
        for name, choices in choices_of(each.judged, interval_us, levels).items():
            found.setdefault(name, []).extend(choices)
    return {name: sorted(choices, key=lambda choice: choice.rank, reverse=True) for name, choices in found.items()}


def judge_fleet(fleet: ScoredFleet, params: Params, *, confirmed: bool = False) -> dict[str, Any]:
    """All figures of one fleet; `confirmed`: budget days that are ill in truth are left out."""
    setup = fleet.setup
    interval_us = round(setup.interval_seconds * 1e6)
    by_levels = {levels: calibrated(fleet, interval_us, params, levels) for levels in setup.levels}
    if confirmed:
        by_levels = {levels: each.confirmed() for levels, each in by_levels.items()}
    chosen, shifts = choose(by_levels, interval_us), params.evaluate.chance_shifts
    detectors: dict[str, Any] = {}
    outcomes: dict[str, Outcome] = {}
    by_policy: dict[AlertPolicy, list[str]] = {}
    for name, choices in chosen.items():
        by_policy.setdefault(choices[0].policy, []).append(name)
    for policy, names in by_policy.items():
        line = by_levels[setup.levels[0]].judged["test"].line(policy)
        for name in names:
            test = by_levels[chosen[name][0].levels].judged["test"]
            exceeds = test.scores[name] > chosen[name][0].threshold
            outcomes[name] = outcome_at(exceeds, line, test.part.events)
            outcomes[name].by_chance = caught_by_chance(exceeds, line, test.part.events, shifts, setup.seed)
            episodes = line.episodes(line.alert_rows(exceeds))
            detectors[name] = _pages(outcomes[name], episodes, test) | _chosen(chosen[name])
    built = as_built(by_levels[setup.levels[0]], params)
    for name in detectors:
        mine = by_levels[chosen[name][0].levels]
        detectors[name] |= _rates(mine.references[name], mine.judged, name, setup, params)
    judged = by_levels[setup.levels[0]].judged
    test = judged["test"]
    return {
        "seed": setup.seed,
        "events": len(test.part.events),
        "tune_events": len(judged["tune"].part.events),
        "modes": dict(sorted(Counter(event.failure_mode for event in test.part.events).items())),
        "machine_days": round(test.days, 1),
        "rows": {what: len(scores.time_us_N) for what, scores in fleet.scores.items()},
        "own_baseline_share": round(float((fleet.scores["test"].state_N == Baseline.OWN).mean()), 4),
        "budget_days_ill_in_truth": sum(stretch.ill for stretch in fleet.plan.parts["budget"].stretches),
        "only_caught_by": only_caught(outcomes),
        "missed_by_ensemble": [
            f"{event.failure_id} {event.failure_mode}"
            for event in test.part.events
            if event.failure_id not in outcomes[ENSEMBLE].caught
        ],
        "training": dict(fleet.facts),
        "as_built": built,
        "detectors": detectors,
    }


def as_built(mine: Calibrated, params: Params) -> dict[str, Any]:
    """The ensemble as a build calibrates it: tiers, choice of the policy and state machine are those of the project.

    Its thresholds are percentiles of the calibration rows; the policy and the page tier's percentile are chosen from
    `calibrate.choice` on budget rows and tune failures. Pages stand as long as the low tier goes on.
    """
    reference, section = mine.references[ENSEMBLE], params.calibrate
    budget, tune, test = (mine.judged[what] for what in ("budget", "tune", "test"))
    tail = None if reference.tail is None else reference.tail.tail
    scores_of = {what: mine.judged[what].scores[ENSEMBLE].astype(np.float64) for what in ("budget", "tune")}
    identity_C = np.array([event.failure_id for event in tune.part.events])

    def threshold(percentile: float) -> float:
        return tier_threshold(reference.scores, percentile, tail)

    choice = choose_policy(
        ScoredRows(budget.machine_S[budget.stretch_N].astype(np.int32), budget.since_start_us, scores_of["budget"]),
        TuneFailureRows(identity_C[tune.circle_S[tune.stretch_N]], tune.time_us_N, scores_of["tune"]),
        threshold,
        section.choice,
        section.policy,
        low_percentile=section.low_percentile,
        page_percentile=section.page_percentile,
        budget=BUDGET / FLEET,
        confidence=CONFIDENCE,
    )
    score_N, low, page = test.scores[ENSEMBLE], threshold(section.low_percentile), threshold(choice.page_percentile)
    hit, line = np.flatnonzero(score_N > low), test.line(choice.policy)  # rows stand in the line's order
    pages = page_episodes(line.only(hit), np.ones(len(hit), bool), score_N[hit] > page)
    episodes = Episodes(hit[pages.first], hit[pages.last], line)
    outcome, row = outcome_of(episodes, test.part.events), choice.chosen
    outcome.by_chance = shifted_catches(episodes, test.part.events, params.evaluate.chance_shifts, params.seed)
    return _pages(outcome, episodes, test) | {
        "policy": [row["k"], row["n"]],
        "cool_down_hours": row["cool_down_hours"],
        "page_percentile": choice.page_percentile,
        "tune_caught": len(row["caught"]),
        "budget_pages": row["false_page_episodes"],
        "within_budget": row["within_budget"],
    }


def _pages(outcome: Outcome, episodes: Episodes, test: Judged) -> dict[str, Any]:
    """Failures caught and false pages at the chosen policy."""
    events = test.part.events
    kind = np.array(outcome.kinds, object)
    false_E = kind == "false"
    count, spread_out, upper = test.false_pages(episodes, false_E)
    scale = FLEET / test.days
    paged = len(np.unique(test.stretch_N[episodes.first[false_E]]))
    leads = [lead for _, lead in outcome.caught.values()]
    return {
        "events_caught": len(outcome.caught),
        "events_caught_ci": [round(end, 4) for end in wilson(len(outcome.caught), len(events), CONFIDENCE)],
        "events_by_chance": outcome.by_chance,
        "by_mode": {
            mode: [sum(event.failure_id in outcome.caught for event in events if event.failure_mode == mode), total]
            for mode, total in sorted(Counter(event.failure_mode for event in events).items())
        },
        "median_lead_time_hours": round(float(np.median(leads)), 2) if leads else None,
        "false_pages": count,
        "false_pages_per_day": round(count * scale, 3),
        "false_pages_upper": round(upper * scale, 3),
        "dispersion": round(spread_out, 3),
        "paged_share_of_healthy_days": round(paged / max(1, sum(not s.window for s in test.part.stretches)), 5),
    }


def _chosen(choices: Sequence[Choice]) -> dict[str, Any]:
    """The policy, and what the others came to on the tune failures."""
    best = choices[0]
    return {
        "policy": [best.policy.k, best.policy.n],
        "levels": best.levels,
        "threshold": best.threshold,
        "tune_caught": best.tune_caught,
        "budget_pages": best.budget_pages,
        "budget_pages_ill_in_truth": best.budget_pages_ill,
        "policies": {each.name: each.tune_caught for each in choices},
    }


def _rates(
    reference: Reference, judged: Mapping[str, Judged], name: str, setup: Setup, params: Params
) -> dict[str, Any]:
    """Share of healthy rows above each tier's percentile, on exchangeable weeks and later; pages of the bare one."""
    found: dict[str, Any] = {}
    section = params.calibrate
    for tier, percentile in (("low", section.low_percentile), ("page", section.page_percentile)):
        for what, suffix in (("budget", ""), ("test", "_later")):
            part = judged[what]
            later = part.scores[name][part.healthy_N].astype(np.float64)
            rate = rate_with_interval(
                reference.scores, reference.blocks, later, part.blocks, percentile,
                draws=section.draws, confidence=section.confidence, seed=setup.seed, tail=reference.tail,
            )  # fmt: skip
            found[f"{tier}_fpr{suffix}"] = None if rate.rate is None else float(f"{rate.rate:.3g}")
            ends = None if rate.low is None or rate.high is None else [float(f"{e:.3g}") for e in (rate.low, rate.high)]
            found[f"{tier}_fpr{suffix}_ci"] = ends
            if rate.note:
                found[f"{tier}_fpr{suffix}_note"] = rate.note
    later_rate = found["page_fpr_later"] or 0.0
    found["naive_pages_per_day"] = round(later_rate * FLEET * setup.rows_per_day, 1)
    return found
