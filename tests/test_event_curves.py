"""The curve of failures caught against false episodes: exact at every point, rising, and clear about what it lacks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline.alerts import MINUTE, AlertPolicy, Timeline
from pipeline.judging.curves import MOST_POINTS, CurvePoint, alert_levels, curve_rows, swept
from pipeline.judging.judged import Event, Outcome
from pipeline.judging.outcomes import outcome_at

HOUR = 60 * MINUTE
MACHINES, HOURS = 8, 600
POLICIES = [AlertPolicy(1, 1, HOUR, 2 * HOUR), AlertPolicy(2, 3, 4 * HOUR, 2 * HOUR), AlertPolicy(3, 8, 5 * HOUR, HOUR)]


def line_of(policy: AlertPolicy, rng: np.random.Generator) -> Timeline:
    """Eight machines, a row an hour with gaps, in no order."""
    machine = np.repeat(np.arange(MACHINES, dtype=np.int32), HOURS)
    time = np.tile(np.arange(HOURS) * HOUR, MACHINES)
    kept = rng.permutation(len(machine))[: int(0.9 * len(machine))]
    return Timeline.of(machine[kept], time[kept], policy)


def fleet(policy: AlertPolicy, rng: np.random.Generator) -> tuple[Timeline, np.ndarray, list[Event], np.ndarray]:
    """A timeline, scores that rise before three failures, the failures, and the rows where an alert can be false."""
    line = line_of(policy, rng)
    scores = rng.normal(size=len(line.machine))
    events = [Event(f"f{m}", m, 400 * HOUR, 500 * HOUR, (400 - 30 * m) * HOUR) for m in range(3)]
    scores += (line.machine < 3) * (line.time_us > 380 * HOUR) * (line.time_us < 500 * HOUR) * 1.5
    forgiven = np.zeros(len(scores), bool)
    for event in events:
        forgiven |= (line.machine == event.machine) & (line.time_us >= event.grace_us) & (line.time_us <= event.end_us)
    given, healthy = np.empty_like(scores), np.empty(len(scores), bool)
    given[line.order], healthy[line.order] = scores, ~forgiven
    return line, given, events, healthy


@pytest.mark.parametrize("policy", POLICIES)
def test_every_point_is_what_its_threshold_comes_to_on_all_rows(rng, policy: AlertPolicy) -> None:
    line, scores, events, healthy = fleet(policy, rng)
    points = swept(scores, line, events, healthy, 25.0)
    assert len(points) > 5
    for point in points:
        outcome = outcome_at(scores > point.threshold, line, events)
        assert (point.false_episodes, point.caught) == (outcome.false_episodes, len(outcome.caught))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_curve_rises_from_none_to_its_end_and_no_higher_threshold_is_worse(rng, policy: AlertPolicy) -> None:
    line, scores, events, healthy = fleet(policy, rng)
    points = swept(scores, line, events, healthy, 25.0)
    false = [point.false_episodes for point in points]
    assert false[0] == 0
    assert 15 < false[-1] <= 25
    assert all(earlier < later for earlier, later in itertools.pairwise(false))
    assert max(point.caught for point in points) == 3
    for point in points[:: len(points) // 4]:
        higher = np.unique(scores[scores >= point.threshold])
        assert max(outcome_at(scores > value, line, events).false_episodes for value in higher) <= point.false_episodes


def test_a_point_is_the_lowest_threshold_of_its_count(rng) -> None:
    line, scores, events, healthy = fleet(POLICIES[0], rng)
    first = swept(scores, line, events, healthy, 25.0)[0]
    below = float(scores[scores <= first.threshold].max())
    lower = np.sort(np.unique(scores[scores < first.threshold]))[::-1][:1]
    assert outcome_at(scores > below, line, events).false_episodes == 0
    assert outcome_at(scores > float(lower[0]), line, events).false_episodes > 0


def test_a_perfect_detector_catches_all_without_a_false_episode(rng) -> None:
    line, scores, events, healthy = fleet(POLICIES[1], rng)
    given = scores.copy()
    given[~healthy] += 100
    first = swept(given, line, events, healthy, 5.0)[0]
    # an alert that opens where nothing is known and still stands catches as well
    assert (first.false_episodes, first.caught) == (0, 3)


@pytest.mark.parametrize("policy", POLICIES)
def test_alert_levels_are_the_alert_rows_of_every_threshold(rng, policy: AlertPolicy) -> None:
    line = line_of(policy, rng)
    scores = rng.normal(size=len(line.machine)).round(1)  # with ties
    levels = alert_levels(scores[line.order], line)
    for threshold in np.unique(scores):
        assert np.array_equal(levels > threshold, line.alert_rows(scores > threshold))


def test_some_rows_of_a_timeline_keep_their_windows(rng) -> None:
    line = line_of(POLICIES[1], rng)
    scores = rng.normal(size=len(line.machine))[line.order]
    kept = np.flatnonzero(scores > 0.5)
    part = line.only(kept)
    back = np.empty(len(scores))
    back[line.order] = scores
    assert np.array_equal(kept[part.alert_rows(scores[kept] > 1)], np.flatnonzero(line.alert_rows(back > 1)))


def test_long_curves_are_thinned_and_dense_where_episodes_are_few(rng) -> None:
    machine, time = np.repeat(np.arange(40, dtype=np.int32), 500), np.tile(np.arange(500) * HOUR, 40)
    line = Timeline.of(machine, time, POLICIES[0])
    points = swept(rng.normal(size=len(machine)), line, [], np.ones(len(machine), bool), 400.0)
    assert 30 < len(points) <= MOST_POINTS
    middle = points[len(points) // 2].false_episodes
    assert middle < points[-1].false_episodes / 2


@pytest.mark.parametrize("scores", [np.full(200, 3.0), np.r_[np.full(199, 0.0), 9.0]])
def test_equal_scores_have_one_point_or_two(scores: np.ndarray) -> None:
    line = Timeline.of(np.zeros(200, np.int32), np.arange(200) * HOUR, POLICIES[0])
    points = swept(scores, line, [], np.ones(200, bool), 5.0)
    assert [point.false_episodes for point in points] == ([0] if scores[0] == 3 else [0, 1])


def test_without_healthy_rows_there_is_no_curve() -> None:
    line = Timeline.of(np.zeros(3, np.int32), np.arange(3) * HOUR, POLICIES[0])
    assert swept(np.arange(3.0), line, [], np.zeros(3, bool), 5.0) == []


def test_the_calibrated_point_stands_in_its_place_and_what_nobody_can_tell_is_null() -> None:
    points = [CurvePoint(9.0, 0, 1), CurvePoint(7.0, 2, 2), CurvePoint(5.0, 4, 2)]
    reached = Outcome(caught={"a": (0, 1.0)}, false_episodes=3)
    rows = curve_rows("pca", points, reached, 6.0, events=2, per_day=0.5)
    assert [row["kind"] for row in rows] == ["sweep", "sweep", "operating", "sweep"]
    assert rows[2] == {
        "detector": "pca", "kind": "operating", "threshold": 6.0, "false_episodes": 3, "false_episodes_per_day": 1.5,
        "events_caught": 1, "events": 2,
    }  # fmt: skip
    without = curve_rows("pca", points, Outcome(), 9.5, events=0, per_day=None)
    assert {(row["events_caught"], row["false_episodes_per_day"]) for row in without} == {(None, None)}
