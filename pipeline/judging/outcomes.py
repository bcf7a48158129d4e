"""What alerts at one threshold come to: failures caught, false episodes, what chance catches; a budget's threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.alerts import Episodes, Timeline
from pipeline.counts import mean_interval
from pipeline.intervals import wilson
from pipeline.judging.judged import Event, JudgedRows, Outcome, rounded
from pipeline.moments import iso
from pipeline.schema import ENSEMBLE, MICROSECONDS_PER_HOUR, FloatN


def candidate_thresholds(scores_N: FloatN) -> FloatN:
    """Scores (at most 86, rising) above which ever fewer of N >= 1 healthy rows lie: half of them, then down to none.

    >>> candidate_thresholds(np.arange(1000.0))[[0, -1]].tolist()
    [500.0, 999.0]
    """
    ordered = np.sort(scores_N)
    levels = np.unique(np.r_[np.linspace(0.5, 0.99, 25), 1 - np.geomspace(0.01, 0.5 / max(2, len(ordered)), 60)])
    return np.unique(np.r_[np.quantile(ordered, levels, method="higher"), ordered[-1]])


def budget_threshold(scores_N: FloatN, line: Timeline, allowed: float) -> float:
    """The lowest threshold at which healthy rows raise no more than `allowed` episodes, and every higher one too."""
    candidates = candidate_thresholds(scores_N)
    best = float(candidates[-1])
    for candidate in candidates[::-1]:
        episodes = line.episodes(line.alert_rows(scores_N > candidate))
        if episodes.weight().sum() > allowed:
            break
        best = float(candidate)
    return best


def forgiven_rows(test: JudgedRows, events: Sequence[Event]) -> npt.NDArray[np.bool_]:
    """Rows of the judged failures' windows, the unknown stretch before them included."""
    forgiven = np.zeros(len(test), bool)
    for event in events:
        inside = (test.time_us >= event.grace_us) & (test.time_us <= event.end_us)
        forgiven |= inside & (test.machine == event.machine)
    return forgiven


def outcome_at(exceeds_N: npt.NDArray[np.bool_], line: Timeline, events: Sequence[Event]) -> Outcome:
    """Caught failures and false episodes of alerts at one threshold."""
    return outcome_of(line.episodes(line.alert_rows(exceeds_N)), events)


def outcome_of(episodes: Episodes, events: Sequence[Event]) -> Outcome:
    """Caught failures and false ones among alert episodes."""
    outcome = Outcome(episodes=episodes)
    kind = np.full(len(episodes), "false", dtype=object)
    opened, closed, machine = episodes.opened_us, episodes.closed_us, episodes.machine
    for event in events:
        mine = machine == event.machine
        inside = mine & (opened >= event.start_us) & (opened <= event.end_us)
        before = mine & (opened >= event.grace_us) & (opened < event.start_us)
        standing = before & (closed >= event.start_us)
        kind[before & (kind == "false")] = "ignored"
        kind[inside | standing] = "caught"
        hits = np.flatnonzero(inside | standing)
        if len(hits):
            first = max(int(opened[hits].min()), event.start_us)
            outcome.caught[event.failure_id] = (first, (event.end_us - first) / MICROSECONDS_PER_HOUR)
    outcome.kinds = [str(value) for value in kind]
    outcome.false_episodes = int(episodes.weight()[kind == "false"].sum()) if len(episodes) else 0
    return outcome


def caught_by_chance(
    exceeds_N: npt.NDArray[np.bool_], line: Timeline, events: Sequence[Event], shifts: int, seed: int
) -> float | None:
    """Mean number of failures caught when each machine's alerts are shifted in a circle by a random number of rows.

    The rule is that of `outcome_of`: an alert opens in the window, or opened in the stretch before it and still stands.
    """
    if not events:
        return None
    return shifted_catches(line.episodes(line.alert_rows(exceeds_N)), events, shifts, seed)


def shifted_catches(episodes: Episodes, events: Sequence[Event], shifts: int, seed: int) -> float:
    """Mean number of failures caught by alerts that are shifted in a circle within each machine."""
    line = episodes.line
    rng, total = np.random.default_rng(seed), 0.0
    for event in events:
        low, high = np.searchsorted(line.machine, [event.machine, event.machine + 1])
        length = int(high - low)
        mine = (episodes.first >= low) & (episodes.first < high)
        opened, lasts = episodes.first[mine] - low, (episodes.last - episodes.first)[mine]
        if not length or not len(opened):
            continue
        times = line.time_us[low:high]
        before, first, last = np.searchsorted(times, [event.grace_us, event.start_us, event.end_us + 1])
        moved = (opened[None, :] + rng.integers(0, length, size=(shifts, 1))) % length
        standing = (moved >= before) & (moved < first) & (moved + lasts[None, :] >= first)
        total += float((((moved >= first) & (moved < last)) | standing).any(1).mean())
    return round(total, 3)


def event_metrics(
    outcome: Outcome, events: Sequence[Event], days: float, machines: int, nulls: dict[str, str], calendar: bool
) -> dict[str, Any]:
    """Failures caught with a Wilson interval, false episodes per fleet-day with a quasi-Poisson interval, lead time.

    Args:
        outcome: of alerts at one setting.
        events: that there were.
        days: healthy machine-days.
        machines: of the fleet; the interval widens where they differ.
        nulls: gets the reasons of null figures.
        calendar: whether dates are real.
    """
    caught, leads = len(outcome.caught), [lead for _, lead in outcome.caught.values()]
    figures: dict[str, Any] = {
        "events": len(events),
        "events_caught": caught if events else None,
        "events_caught_ci": [rounded(value) for value in wilson(caught, len(events), 0.9)] if events else None,
        "events_by_chance": outcome.by_chance,
        "false_episodes": outcome.false_episodes,
        "false_episodes_per_day": None,
        "false_episodes_per_day_ci": None,
        "median_lead_time_hours": rounded(np.median(leads)) if leads else None,
    }
    if not events:
        for key in ("events_caught", "events_caught_ci", "events_by_chance"):
            nulls[key] = "There is no failure to judge in the test rows."
    if not leads:
        nulls.setdefault("median_lead_time_hours", "Where no failure was caught there is no lead time.")
    if not calendar:
        nulls["false_episodes_per_day_ci"] = "Dates are synthetic (--time relative): rates per day mean nothing."
        nulls["false_episodes_per_day"] = "Dates are synthetic (--time relative): rates per day mean nothing."
    elif days <= 0:
        nulls["false_episodes_per_day"] = nulls["false_episodes_per_day_ci"] = "There are no healthy test rows."
    else:
        scale = machines / days
        low, high = mean_interval(outcome.false_episodes, outcome.dispersion(machines))
        figures["false_episodes_per_day"] = rounded(outcome.false_episodes * scale)
        figures["false_episodes_per_day_ci"] = [rounded(low * scale), rounded(high * scale)]
    return figures


def only_caught(outcomes: Mapping[str, Outcome]) -> dict[str, list[str]]:
    """Failures that only one detector caught; the ensemble is no rival of its members, and of the ensemble: that none
    of them caught.

    >>> found = {"pca": Outcome({"a": (0, 1.0)}), "vae": Outcome(), "ensemble": Outcome({"a": (0, 1.0), "b": (0, 1.0)})}
    >>> only_caught(found)
    {'pca': ['a'], 'vae': [], 'ensemble': ['b']}
    """
    return {
        name: sorted(
            failure
            for failure in outcome.caught
            if all(failure not in other.caught for rival, other in outcomes.items() if rival not in (name, ENSEMBLE))
        )
        for name, outcome in outcomes.items()
    }


def event_list(
    events: Sequence[Event], outcomes: Mapping[str, Outcome], machines: Sequence[str]
) -> list[dict[str, Any]]:
    """Each failure with every detector's verdict, as published."""
    listed = []
    for event in events:
        detectors = {}
        for name, outcome in outcomes.items():
            found = outcome.caught.get(event.failure_id)
            detectors[name] = {
                "caught": found is not None,
                "first_alert": iso(found[0]) if found else None,
                "lead_time_hours": round(found[1], 3) if found else None,
            }
        listed.append(
            {
                "failure_id": event.failure_id,
                "machine_id": machines[event.machine],
                "failure_mode": event.failure_mode,
                "window_start": iso(event.start_us),
                "time": iso(event.end_us),
                "role": "test",
                "detectors": detectors,
            }
        )
    return listed


def failure_of(machine: int, opened: int, closed: int, events: Sequence[Event]) -> str | None:
    """The failure in whose window an episode stands, if any."""
    for event in events:
        if event.machine == machine and opened <= event.end_us and closed >= event.start_us:
            return event.failure_id
    return None
