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
from harbor_fleet.plant import DAY, FLEET, Setup
from harbor_fleet.scoring import ScoredFleet, Scores
from pipeline.alerts import AlertPolicy, Episodes, Timeline
from pipeline.calibrate import crossed_statistic, ensemble_rule, matched_scale, tail_table
from pipeline.counts import overdispersion, upper_bound
from pipeline.ensemble import TailTables
from pipeline.intervals import rate_with_interval, wilson
from pipeline.judging.judged import Outcome
from pipeline.judging.outcomes import only_caught, outcome_of, shifted_catches
from pipeline.levels import group_levels
from pipeline.params import Params
from pipeline.pareto import TailFit, tier_threshold
from pipeline.policy_choice import PolicyChoice, ScoredRows, TuneFailureRows, choose_policy
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
        """Times (N,) since the fleet's start, of a part whose stretches are days with a circle each."""
        return self.time_us_N + self.day_S[self.stretch_N] * DAY

    @property
    def machine_N(self) -> IntN:
        """Machine of each row."""
        return self.machine_S[self.stretch_N]

    @property
    def circle_N(self) -> npt.NDArray[np.int32]:
        """Circle of each row."""
        return self.circle_S[self.stretch_N]

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
        return Timeline.of(self.circle_N, self.time_us_N, policy)

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


@dataclass(frozen=True)
class Chosen:
    """How one detector raises pages: whose levels its scores have, its tiers' thresholds, the choice behind them."""

    levels: str
    low: float
    page: float
    choice: PolicyChoice

    @property
    def rank(self) -> tuple[bool, int, float]:
        """Larger is better: the budget kept, failures caught, then lead time."""
        row = self.choice.chosen
        return row["within_budget"], len(row["caught"]), row["median_lead_time_hours"] or 0.0


def chosen_by_build(mine: Calibrated, name: str, levels: str, params: Params) -> Chosen:
    """What a build whose release raises alerts by this detector chooses: its tiers and policy.

    Thresholds are percentiles of the calibration rows; policy and page percentile are chosen from `calibrate.choice` on
    budget rows and tune failures.
    """
    reference, section = mine.references[name], params.calibrate
    budget, tune = mine.judged["budget"], mine.judged["tune"]
    tail = None if reference.tail is None else reference.tail.tail
    identity_C = np.array([event.failure_id for event in tune.part.events])

    def threshold(percentile: float) -> float:
        return tier_threshold(reference.scores, percentile, tail)

    choice = choose_policy(
        ScoredRows(budget.machine_N.astype(np.int32), budget.since_start_us, budget.scores[name].astype(np.float64)),
        TuneFailureRows(identity_C[tune.circle_N], tune.time_us_N, tune.scores[name].astype(np.float64)),
        threshold,
        section.choice,
        section.policy,
        low_percentile=section.low_percentile,
        page_percentile=section.page_percentile,
        budget=BUDGET / FLEET,
        confidence=CONFIDENCE,
    )
    return Chosen(levels, threshold(section.low_percentile), threshold(choice.page_percentile), choice)


def pages_of(test: Judged, name: str, chosen: Chosen) -> Episodes:
    """Pages of the policy's state machine: each stands as long as the low tier goes on."""
    score_N, line = test.scores[name], test.line(chosen.choice.policy)
    hit = np.flatnonzero(score_N > chosen.low)  # rows stand in the line's order
    pages = page_episodes(line.only(hit), np.ones(len(hit), bool), score_N[hit] > chosen.page)
    return Episodes(hit[pages.first], hit[pages.last], line)


def judge_fleet(fleet: ScoredFleet, params: Params, *, confirmed: bool = False) -> dict[str, Any]:
    """All figures of one fleet; `confirmed`: budget days that are ill in truth are left out."""
    setup = fleet.setup
    interval_us = round(setup.interval_seconds * 1e6)
    by_levels = {levels: calibrated(fleet, interval_us, params, levels) for levels in setup.levels}
    if confirmed:
        by_levels = {levels: each.confirmed() for levels, each in by_levels.items()}
    judged = by_levels[setup.levels[0]].judged
    detectors: dict[str, Any] = {}
    outcomes: dict[str, Outcome] = {}
    for name in judged["test"].scores:
        tried = [chosen_by_build(each, name, levels, params) for levels, each in by_levels.items()]
        chosen = max(tried, key=lambda one: one.rank)
        mine = by_levels[chosen.levels]
        episodes = pages_of(mine.judged["test"], name, chosen)
        outcomes[name] = outcome_of(episodes, mine.judged["test"].part.events)
        outcomes[name].by_chance = shifted_catches(
            episodes, mine.judged["test"].part.events, params.evaluate.chance_shifts, setup.seed
        )
        detectors[name] = _pages(outcomes[name], episodes, mine.judged["test"]) | _chosen(chosen, tried)
        detectors[name] |= _rates(mine.references[name], mine.judged, name, setup, params)
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
        "detectors": detectors,
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


def _chosen(best: Chosen, tried: Sequence[Chosen]) -> dict[str, Any]:
    """The policy, and the most that each k of n within the budget came to on the tune failures."""
    row, policies = best.choice.chosen, dict[str, int]()
    for one in tried:
        for candidate in one.choice.table:
            name = f"{candidate['k']} of {candidate['n']}, {one.levels}"
            if candidate["within_budget"]:
                policies[name] = max(policies.get(name, 0), len(candidate["caught"]))
    return {
        "policy": [row["k"], row["n"]],
        "cool_down_hours": row["cool_down_hours"],
        "levels": best.levels,
        "page_percentile": best.choice.page_percentile,
        "threshold": best.page,
        "tune_caught": len(row["caught"]),
        "budget_pages": row["false_page_episodes"],
        "within_budget": row["within_budget"],
        "policies": policies,
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
