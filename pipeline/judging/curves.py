"""The curve that a plant chooses from: failures caught against false episodes, one threshold after the other.

Descriptive: thresholds are swept over the test rows themselves, and none of them is a setting. The point that a
threshold from calibration rows reaches stands among them. Only the rows above the lowest threshold are held while
sweeping, their windows counted among themselves: that is exact, for a row that does not exceed counts in no window.

Shape legend: N rows, H held rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.alerts import Episodes, Timeline
from pipeline.intervals import LARGEST
from pipeline.judging.judged import Event, Outcome
from pipeline.judging.outcomes import outcome_at
from pipeline.schema import BoolN, FloatN

MOST_POINTS = 60
TIMES_BUDGET = 5.0  # how far the curve goes
LEAST_FALSE = 5.0  # false episodes, where the budget allows hardly any
CANDIDATES = 160  # thresholds that are tried
DENSER = 1.5  # power by which steps grow along the curve
FIRST_ROWS, MORE_ROWS = 64, 4  # healthy rows above the lowest threshold: at first, and by how many times more


@dataclass(frozen=True)
class CurvePoint:
    """What one threshold comes to."""

    threshold: float
    false_episodes: int
    caught: int


def swept(
    scores_N: FloatN, line: Timeline, events: Sequence[Event], healthy_N: BoolN, most_false: float
) -> list[CurvePoint]:
    """Points of rising false episodes, from none to `most_false`: for each count the lowest threshold that reaches it.

    As with `budget_threshold`, no higher threshold raises more false episodes than a point does.

    Args:
        scores_N: of the test rows, higher is more anomalous.
        line: their timeline.
        events: failures to be judged.
        healthy_N: rows in which an alert can be false.
        most_false: where the curve ends.

    Returns:
        At most `MOST_POINTS`; none where no row is healthy.

    >>> from pipeline.alerts import AlertPolicy
    >>> hour = 3_600_000_000
    >>> line = Timeline.of(np.zeros(5, np.int32), np.arange(5) * hour, AlertPolicy(1, 1, 1, 1))
    >>> failure = Event("f", 0, 4 * hour, 4 * hour, 4 * hour)
    >>> healthy = np.array([True, True, True, True, False])
    >>> points = swept(np.array([1.0, 5.0, 2.0, 3.0, 4.0]), line, [failure], healthy, 2.0)
    >>> [(point.false_episodes, point.caught) for point in points]
    [(0, 0), (1, 1), (2, 1)]
    """
    healthy = scores_N[healthy_N]
    if not len(healthy):
        return []
    held, scores_H, floor = _held(scores_N, line, events, healthy, most_false)
    points: list[CurvePoint] = []
    highest = -1
    for threshold in _candidates(scores_H, held, floor):
        outcome = outcome_at(scores_H > threshold, held, events)
        if outcome.false_episodes > most_false:
            break
        if outcome.false_episodes < highest:
            continue  # two episodes have become one
        if outcome.false_episodes == highest:
            points.pop()
        highest = outcome.false_episodes
        points.append(CurvePoint(threshold, highest, len(outcome.caught)))
    if len(points) <= MOST_POINTS:
        return points
    # dense where episodes are few: that is where a plant chooses
    places = np.unique(np.round(np.linspace(0, 1, MOST_POINTS) ** DENSER * (len(points) - 1)).astype(int))
    return [points[place] for place in places]


def _held(
    scores_N: FloatN, line: Timeline, events: Sequence[Event], healthy: FloatN, most_false: float
) -> tuple[Timeline, FloatN, float]:
    """Timeline and scores of the rows above a threshold that raises more than `most_false` false episodes, if any."""
    sorted_N = scores_N[line.order]
    rows = FIRST_ROWS + math.ceil(most_false) * line.policy.k
    while True:
        rows = min(rows, len(healthy) - 1)
        floor = float(np.partition(healthy, len(healthy) - 1 - rows)[len(healthy) - 1 - rows])
        kept = np.flatnonzero(sorted_N > floor)
        held = line.only(kept)
        if rows == len(healthy) - 1 or outcome_at(np.ones(len(kept), bool), held, events).false_episodes > most_false:
            return held, sorted_N[kept], floor
        rows *= MORE_ROWS


def alert_levels(scores_H: FloatN, line: Timeline) -> FloatN:
    """Below which threshold each row (H,) of a timeline is an alert row: its score, or the k-th largest of its window.

    >>> from pipeline.alerts import AlertPolicy
    >>> line = Timeline.of(np.zeros(4, np.int32), np.arange(4), AlertPolicy(2, 3, 10, 5))
    >>> alert_levels(np.array([4.0, 1.0, 3.0, 2.0]), line).tolist()
    [-inf, 1.0, 3.0, 2.0]
    """
    k, index = line.policy.k, np.arange(len(scores_H))
    highest_HK = np.full((len(scores_H), k), -np.inf)  # the k largest of each window
    for back in range(min(line.policy.n, len(scores_H))):
        place = index - back
        inside = (place >= 0) & (line.machine == line.machine[place]) & (line.place - line.place[place] < line.policy.n)
        inside &= line.time_us - line.time_us[place] <= line.policy.window_us
        if not inside.any():
            break
        value_H = np.where(inside, scores_H[place], -np.inf)
        smallest = highest_HK.argmin(axis=1)
        highest_HK[index, smallest] = np.maximum(highest_HK[index, smallest], value_H)
    levels_H: FloatN = np.minimum(scores_H, highest_HK.min(axis=1))
    return levels_H


def _candidates(scores_H: FloatN, held: Timeline, floor: float) -> list[float]:
    """Thresholds at which an episode is about to open, the highest first, and the lowest that is looked at."""
    levels_H = alert_levels(scores_H, held)
    episodes = held.episodes(levels_H > floor)
    peaks = _peaks(levels_H, episodes) if len(episodes) else np.empty(0)
    spread = _thinned(levels_H[levels_H > floor])
    return [float(value) for value in np.unique(np.r_[floor, _thinned(peaks), spread])[::-1]]


def _thinned(values: FloatN) -> FloatN:
    if len(values) <= CANDIDATES // 2:
        return values
    levels = 1 - np.linspace(0, 1, CANDIDATES // 2) ** DENSER  # dense at the top, where episodes are few
    found: FloatN = np.quantile(values, levels, method="nearest")
    return found


def _peaks(levels_H: FloatN, episodes: Episodes) -> FloatN:
    """The largest level of each episode."""
    edges = np.c_[episodes.first, episodes.last + 1].ravel()
    return np.maximum.reduceat(np.r_[levels_H, -np.inf], edges)[::2]


def curve_rows(
    detector: str,
    points: Sequence[CurvePoint],
    operating: Outcome,
    threshold: float,
    events: int,
    per_day: float | None,
) -> list[dict[str, object]]:
    """The curve of one detector as published, with the point of its calibrated threshold in its place.

    Args:
        detector: its name.
        points: see `swept`.
        operating: what the threshold from calibration rows came to.
        threshold: that threshold.
        events: failures that were judged; where there is none, nothing could be caught.
        per_day: false episodes of the fleet a day per false episode in all; None where days mean nothing.
    """
    reached = CurvePoint(threshold, operating.false_episodes, len(operating.caught))
    kinds = [("sweep", point) for point in points] + [("operating", reached)]
    kinds.sort(key=lambda item: (item[1].false_episodes, -item[1].threshold))
    return [
        {
            "detector": detector,
            "kind": kind,
            "threshold": min(point.threshold, LARGEST),
            "false_episodes": point.false_episodes,
            "false_episodes_per_day": None if per_day is None else round(point.false_episodes * per_day, 6),
            "events_caught": point.caught if events else None,
            "events": events,
        }
        for kind, point in kinds
    ]
