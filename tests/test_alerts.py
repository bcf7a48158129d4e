import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.alerts import MINUTE, AlertPolicy, Timeline, typical_interval_us
from pipeline.params import PolicyParams
from pipeline.schema import MICROSECONDS_PER_DAY


def slow(machine, time, exceeds, policy) -> list[bool]:
    """The policy as a person would say it, row by row."""
    alerts = []
    for i in range(len(machine)):
        mine = [j for j in range(i + 1) if machine[j] == machine[i]][-policy.n :]
        recent = [j for j in mine if time[j] >= time[i] - policy.window_us]
        alerts.append(bool(exceeds[i]) and sum(bool(exceeds[j]) for j in recent) >= policy.k)
    return alerts


@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.booleans()), min_size=1, max_size=40),
    k=st.integers(1, 3),
    extra=st.integers(0, 3),
    window=st.integers(1, 30),
)
def test_alert_rows_are_what_a_person_would_say(rows, k, extra, window) -> None:
    rows = sorted(rows, key=lambda row: (row[0], row[1]))
    machine = np.array([row[0] for row in rows], np.int32)
    time = np.array([row[1] for row in rows], np.int64)
    exceeds = np.array([row[2] for row in rows])
    policy = AlertPolicy(k, k + extra, window, 10)
    line = Timeline.of(machine, time, policy)
    assert line.alert_rows(exceeds).tolist() == slow(machine, time, exceeds, policy)


def test_rows_in_any_order_give_the_same_episodes(rng) -> None:
    machine = np.repeat(np.arange(3, dtype=np.int32), 50)
    time = np.tile(np.arange(50) * MINUTE, 3)
    exceeds = rng.random(150) < 0.3
    policy = AlertPolicy(2, 4, 10 * MINUTE, 5 * MINUTE)
    shuffled = rng.permutation(150)
    one = Timeline.of(machine, time, policy)
    two = Timeline.of(machine[shuffled], time[shuffled], policy)
    first, second = one.episodes(one.alert_rows(exceeds)), two.episodes(two.alert_rows(exceeds[shuffled]))
    assert first.opened_us.tolist() == second.opened_us.tolist()
    assert first.machine.tolist() == second.machine.tolist()


def test_an_episode_that_stays_open_counts_again_each_day() -> None:
    time = np.arange(0, 3 * MICROSECONDS_PER_DAY, 10 * MINUTE)
    line = Timeline.of(np.zeros(len(time), np.int32), time, AlertPolicy(1, 1, MINUTE, 30 * MINUTE))
    episodes = line.episodes(np.ones(len(time), bool))
    assert len(episodes) == 1
    assert episodes.weight().tolist() == [3]


def test_machines_never_share_an_episode_or_a_window() -> None:
    line = Timeline.of(np.array([0, 1], np.int32), np.array([0, 0]), AlertPolicy(2, 2, MINUTE, MINUTE))
    assert not line.alert_rows(np.array([True, True])).any()
    assert len(line.episodes(np.array([True, True]))) == 2


def test_the_window_follows_the_real_cadence() -> None:
    policy = AlertPolicy.fitted_to(PolicyParams(k=3, n=5, window_minutes=60, gap_minutes=30), 30 * MINUTE)
    assert policy.window_us >= 4 * 30 * MINUTE
    assert policy.gap_us == 75 * MINUTE
    assert len(policy.notes) == 2
    assert AlertPolicy.from_json(policy.to_json()).window_us == policy.window_us


def test_nothing_gives_nothing() -> None:
    line = Timeline.of(np.empty(0, np.int32), np.empty(0, np.int64), AlertPolicy(1, 1, 1, 1))
    assert len(line.episodes(line.alert_rows(np.empty(0, bool)))) == 0
    assert typical_interval_us(np.zeros(1, np.int32), np.zeros(1, np.int64)) == 60_000_000


def test_k_above_n_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at most n=2"):
        PolicyParams(k=3, n=2)


def test_the_notes_say_what_was_widened_and_what_never_counts() -> None:
    params = PolicyParams(k=3, n=5, window_minutes=60, gap_minutes=30, cool_down_hours=0.5, no_data_hours=1)
    half_hourly = AlertPolicy.fitted_to(params, 30 * MINUTE)
    assert half_hourly.no_data_us == 75 * MINUTE
    assert half_hourly.notes == (
        "window widened from 60 to 151.5 minutes: rows are 30 minutes apart, and it holds 3 of them, fewer than n=5",
        "episode gap widened from 30 to 75 minutes: rows are 30 minutes apart",
        "cool-down of 30 minutes never counts: the gap is 75",
        "no-data time widened from 60 to 75 minutes: rows are 30 minutes apart",
    )
    # it holds five rows, with no room for one that is a little late
    assert AlertPolicy.fitted_to(PolicyParams(), 30 * MINUTE).notes[0] == (
        "window widened from 120 to 151.5 minutes: rows are 30 minutes apart"
    )
    assert AlertPolicy.fitted_to(PolicyParams(cool_down_hours=24), MINUTE).notes == ()


def test_a_policy_that_was_written_without_cool_down_has_none() -> None:
    old = AlertPolicy.from_json({"k": 3, "n": 5, "window_us": 7, "gap_us": 8})
    assert old == AlertPolicy(3, 5, 7, 8)
    new = AlertPolicy(3, 5, 7, 8, cool_down_us=9, no_data_us=10)
    assert AlertPolicy.from_json(json.loads(json.dumps(new.to_json()))) == new
