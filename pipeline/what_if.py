"""What other settings of the alerts would have done: alerts, failures caught and false pages, replayed without a model.

Shape legend: N rows, K failures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from pipeline.alerts import MINUTE, AlertPolicy, Episodes
from pipeline.counts import mean_interval, overdispersion_among
from pipeline.errors import UserError
from pipeline.judging.judged import Event, JudgedRows
from pipeline.judging.outcomes import event_metrics, outcome_of
from pipeline.moments import iso
from pipeline.params import MOST_ROWS, PolicyParams
from pipeline.pareto import ParetoTail, rows_needed, tier_threshold
from pipeline.policy_state import page_episodes
from pipeline.replay import Recording
from pipeline.schema import MICROSECONDS_PER_DAY, MICROSECONDS_PER_HOUR, FloatN

MOST_SETTINGS = 60
MOST_HOURS = 10 * 365 * 24  # of a window or a cool-down: ten years
GRID_PERCENTILES = (98.0, 99.0, 99.5, 99.8, 99.9, 99.95, 99.98, 99.99)
GRID_PAIRS = ((1, 1), (2, 3), (3, 5), (6, 10), (12, 20))  # k of n
CHOSEN = "These failures judge the release: a setting that is chosen by them is judged by nothing any more."
NO_LOG = (
    "No maintenance log was given (--data-set): nothing says which alerts were false and which failures there were."
)


@dataclass(frozen=True)
class Setting:
    """A percentile, the level that a row must exceed for it, and the policy; `present` is what serves now.

    A row above `low_limit`, the low tier's level, keeps a page standing.
    """

    percentile: float
    limit: float
    low_limit: float
    policy: AlertPolicy
    present: bool = False

    def to_json(self) -> dict[str, Any]:
        """The numbers, times in minutes and hours."""
        return {
            "percentile": self.percentile,
            "k": self.policy.k,
            "n": self.policy.n,
            "window_minutes": round(self.policy.window_us / MINUTE, 6),
            "gap_minutes": round(self.policy.gap_us / MINUTE, 6),
            "cool_down_hours": round(self.policy.cool_down_us / MICROSECONDS_PER_HOUR, 6),
            "present": self.present,
        }


@dataclass(frozen=True)
class Wanted:
    """Settings to try: each percentile with each k of n. Nothing given: the present ones.

    Raises:
        UserError: a percentile that is not above 50 and below 100, a number below 1 or too large, a k above every n.

    >>> Wanted(percentiles=(99.5, 99.9), k=(2,), n=(3, 5)).pairs(3, 5)
    [(2, 3), (2, 5)]
    """

    percentiles: tuple[float, ...] = ()
    k: tuple[int, ...] = ()
    n: tuple[int, ...] = ()
    window_minutes: float | None = None
    cool_down_hours: float | None = None

    def __post_init__(self) -> None:
        for percentile in self.percentiles:
            if not 50 < percentile < 100:
                raise UserError(f"--percentile: got {percentile:g}, expected above 50 and below 100.")
        for name, values in (("k", self.k), ("n", self.n)):
            for value in values:
                if value < 1:
                    raise UserError(f"--{name}: got {value}, expected at least 1.")
                if value > MOST_ROWS:
                    raise UserError(f"--{name}: got {value}, expected at most {MOST_ROWS:,}.")
        if self.window_minutes is not None and not 0 < self.window_minutes <= 60 * MOST_HOURS:
            expected = f"minutes above 0, at most {60 * MOST_HOURS:,}"
            raise UserError(f"--window: got {self.window_minutes:g}, expected {expected}.")
        if self.cool_down_hours is not None and not 0 <= self.cool_down_hours <= MOST_HOURS:
            expected = f"hours from 0 on, at most {MOST_HOURS:,}"
            raise UserError(f"--cool-down: got {self.cool_down_hours:g}, expected {expected}.")

    def pairs(self, present_k: int, present_n: int) -> list[tuple[int, int]]:
        """Every k with every n that it fits into.

        Raises:
            UserError: a k is above every n.
        """
        ks, ns = self.k or (present_k,), self.n or (present_n,)
        if max(ks) > max(ns):
            raise UserError(f"--k: got {max(ks)}, expected at most n, which is {max(ns)}.")
        return [(k, n) for k, n in product(dict.fromkeys(ks), dict.fromkeys(ns)) if k <= n]


def limits_of(
    scores_N: FloatN, percentiles: Iterable[float], tail: ParetoTail | None, present: tuple[float, float]
) -> tuple[dict[float, float], list[str]]:
    """The score above which a row exceeds each percentile of calibration scores, and what a person must know of them.

    Args:
        scores_N: healthy calibration scores.
        percentiles: that are asked for.
        tail: of the scores.
        present: the percentile and threshold that serve now.
    """
    limits = dict([present])
    for percentile in percentiles:
        limits.setdefault(percentile, tier_threshold(scores_N, percentile, tail))
    return limits, beyond_the_rows(limits, len(scores_N), tail)


def beyond_the_rows(percentiles: Iterable[float], rows: int, tail: ParetoTail | None) -> list[str]:
    """What is said of percentiles that calibration rows are too few for.

    >>> beyond_the_rows([99.0, 99.9], 5000, None)
    ['Percentile 99.9 needs 10,000 calibration rows, there are 5,000: its threshold is among the largest scores.']
    """
    found = "extrapolated" if tail is not None else "among the largest scores"
    return [
        f"Percentile {percentile:g} needs {rows_needed(percentile):,} calibration rows, there are {rows:,}: its "
        f"threshold is {found}."
        for percentile in sorted(set(percentiles))
        if rows < rows_needed(percentile)
    ]


def settings_of(
    present: Setting, wanted: Wanted, limits: Mapping[float, float], interval_us: int
) -> tuple[list[Setting], list[str]]:
    """The present setting, then every other that is wanted, and notes where a window had to be widened.

    Raises:
        UserError: see `Wanted`; more than 60 settings.
    """
    pairs = wanted.pairs(present.policy.k, present.policy.n)
    percentiles = tuple(dict.fromkeys(wanted.percentiles)) or (present.percentile,)
    if len(pairs) * len(percentiles) > MOST_SETTINGS:
        got = f"{len(percentiles)} percentiles and {len(pairs)} pairs of k and n"
        raise UserError(f"settings: got {got}, expected at most {MOST_SETTINGS} combinations.")
    cool_down = present.policy.cool_down_us
    if wanted.cool_down_hours is not None:
        cool_down = round(wanted.cool_down_hours * MICROSECONDS_PER_HOUR)
    settings, notes = [present], list[str]()
    for k, n in pairs:
        policy = policy_like(present.policy, k, n, wanted.window_minutes, interval_us)
        notes += policy.notes
        for percentile in percentiles:
            quiet = replace(policy, cool_down_us=cool_down, notes=())
            one = Setting(percentile, limits[percentile], present.low_limit, quiet)
            if replace(one, present=True) != present:
                settings.append(one)
    return settings, list(dict.fromkeys(notes))


def policy_like(present: AlertPolicy, k: int, n: int, window_minutes: float | None, interval_us: int) -> AlertPolicy:
    """The present policy with another k of n, and a window that n rows fit into, as calibration would widen it."""
    if (k, n) == (present.k, present.n) and window_minutes is None:
        return replace(present, notes=())
    window = present.window_us / MINUTE if window_minutes is None else window_minutes
    params = PolicyParams(k=k, n=n, window_minutes=window, gap_minutes=present.gap_us / MINUTE)
    return AlertPolicy.fitted_to(params, interval_us)


def what_if(
    recording: Recording,
    settings: Sequence[Setting],
    *,
    detector: str,
    budget: float,
    shifts: int,
    seed: int,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """What each setting would have done, as plain JSON.

    Args:
        recording: that is replayed.
        settings: the first is the present one.
        detector: whose levels they are.
        budget: false pages a day for the fleet.
        shifts: draws of what chance catches.
        seed: of them.
        notes: sentences for people.

    Returns:
        `failures` (failure_id, machine_id, failure_mode, time), `settings` (a row each, `lead_time_hours` by failure
        that it catches, `missed`), and what was replayed. A figure that the data cannot tell is null, with its reason.
    """
    nulls: dict[str, str] = {}
    rows = [replay(recording, setting, budget, shifts, seed, nulls) for setting in settings]
    told = list(dict.fromkeys([*notes, *([CHOSEN] if recording.events else [])]))
    return {
        "detector": detector,
        "rows": recording.rows,
        "machines": recording.machine_count,
        "machine_days": round(recording.machine_days, 3),
        "healthy_machine_days": None if recording.healthy_rows is None else round(recording.healthy_days, 3),
        "budget_per_day": budget,
        "failures": [_failure(event, recording.machines) for event in recording.events],
        "settings": rows,
        "null_reasons": nulls,
        "notes": told,
    }


def _failure(event: Event, machines: Sequence[str]) -> dict[str, Any]:
    return {
        "failure_id": event.failure_id,
        "machine_id": machines[event.machine],
        "failure_mode": event.failure_mode,
        "time": iso(event.end_us),
    }


def replay(
    recording: Recording, setting: Setting, budget: float, shifts: int, seed: int, nulls: dict[str, str]
) -> dict[str, Any]:
    """The figures of one setting; reasons of null ones are added to `nulls`."""
    low_E, page_E = (recording.level_E > limit for limit in (setting.low_limit, setting.limit))
    episodes = page_episodes(recording.line(setting.policy), low_E, page_E)
    outcome = outcome_of(episodes, recording.events)
    outcome.by_chance = recording.caught_by_chance(episodes, shifts, seed)
    machines, days = recording.machine_count, recording.machine_days
    figures = event_metrics(outcome, recording.events, recording.healthy_days, machines, nulls, recording.calendar)
    if recording.healthy_rows is None:
        figures = dict.fromkeys(figures)
        nulls.update(dict.fromkeys(figures, NO_LOG))
    dispersion = overdispersion_among(episodes.machine, np.ones(len(episodes)), machines)
    per_day = [value * machines / days for value in (len(episodes), *mean_interval(len(episodes), dispersion))]
    if not recording.calendar:
        nulls["alerts_per_day"] = "Dates are synthetic (--time relative): rates per day mean nothing."
    return {
        **setting.to_json(),
        "alerts": len(episodes),
        "alerts_per_day": round(per_day[0], 6) if recording.calendar else None,
        **figures,
        "machine_days_with_alert": round(min(1.0, _dates(episodes) / recording.machine_dates), 6),
        "budget_kept": _kept(figures, per_day, budget, recording, nulls),
        "lead_time_hours": {name: round(lead, 3) for name, (_, lead) in sorted(outcome.caught.items())},
        "missed": sorted({event.failure_id for event in recording.events} - set(outcome.caught)),
    }


def _dates(episodes: Episodes) -> int:
    """Pairs of a machine and a day (UTC) on which one of its alerts stands."""
    first = episodes.opened_us // MICROSECONDS_PER_DAY
    last = episodes.closed_us // MICROSECONDS_PER_DAY
    # the day on which the machine's alert before ended is counted with that one
    again = np.r_[False, (episodes.machine[1:] == episodes.machine[:-1]) & (first[1:] == last[:-1])][: len(first)]
    return int((last - first + 1 - again).sum())


def _kept(
    figures: Mapping[str, Any],
    alerts_per_day: Sequence[float],
    budget: float,
    recording: Recording,
    nulls: dict[str, str],
) -> str | None:
    """`yes`: the interval's upper end keeps the budget; `no`: the rate does not; `unsure`: between them."""
    if not recording.calendar:
        nulls["budget_kept"] = "Dates are synthetic (--time relative): rates per day mean nothing."
        return None
    if recording.healthy_rows is None:
        if alerts_per_day[2] <= budget:  # even if all of them were false
            return "yes"
        nulls["budget_kept"] = NO_LOG
        return None
    rate, interval = figures["false_episodes_per_day"], figures["false_episodes_per_day_ci"]
    if rate is None or interval is None:
        nulls["budget_kept"] = nulls.get("false_episodes_per_day", "The rate of false pages is not known.")
        return None
    return "yes" if interval[1] <= budget else "no" if rate > budget else "unsure"


def present_setting(figures: Mapping[str, Any], policy: AlertPolicy) -> Setting:
    """What serves now: the page tier of a detector's entry in calibration.json, and the policy."""
    page, low = figures["page"], float(figures["low"]["threshold"])
    return Setting(float(page["percentile"]), float(page["threshold"]), low, replace(policy, notes=()), present=True)


def tail_of(figures: Mapping[str, Any]) -> ParetoTail | None:
    """The tail in a detector's entry in calibration.json."""
    tail = (figures.get("tail") or {}).get("tail")
    return None if tail is None else ParetoTail(**tail)


def grid(
    test: JudgedRows,
    events: Sequence[Event],
    machines: Sequence[str],
    calibration_scores_N: FloatN,
    figures: Mapping[str, Any],
    policy: AlertPolicy,
    *,
    detector: str,
    budget_per_machine_day: float,
    shifts: int,
    seed: int,
    calendar: bool = True,
) -> dict[str, Any]:
    """`what_if` of a grid of percentiles and k of n, for the report.

    Args:
        test: rows that fitted and tuned nothing, later than calibration.
        events: failures to be judged.
        machines: names of the machine codes.
        calibration_scores_N: healthy calibration scores of the detector.
        figures: its entry in calibration.json.
        policy: the present one.
        detector: whose scores are replayed.
        budget_per_machine_day: false pages.
        shifts: draws of what chance catches.
        seed: of them.
        calendar: False where dates are synthetic.
    """
    present = present_setting(figures, policy)
    percentiles = tuple(sorted({*GRID_PERCENTILES, present.percentile}))
    pairs = sorted({*GRID_PAIRS, (policy.k, policy.n)}, key=lambda pair: (pair[1], pair[0]))
    limits, notes = limits_of(calibration_scores_N, percentiles, tail_of(figures), (present.percentile, present.limit))
    lowest = min(present.low_limit, *limits.values())
    recording = Recording.of_rows(test, detector, lowest, events, machines, calendar)
    settings = [present]
    for k, n in pairs:
        wanted = Wanted(percentiles, (k,), (n,))
        more, widened = settings_of(present, wanted, limits, recording.interval_us)
        settings, notes = [*settings, *more[1:]], [*notes, *widened]
    budget = budget_per_machine_day * recording.machine_count
    return what_if(recording, settings, detector=detector, budget=budget, shifts=shifts, seed=seed, notes=notes)
