"""A replay keeps only rows that exceed: what it says must be what all rows say, row for row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.alerts import AlertPolicy, Timeline, typical_interval_us
from pipeline.errors import ContractError
from pipeline.judging.judged import FAULTY, HEALTHY, UNKNOWN, Event, JudgedRows
from pipeline.judging.outcomes import caught_by_chance, forgiven_rows
from pipeline.policy_state import page_episodes
from pipeline.replay import Recorder, Recording
from pipeline.schema import MICROSECONDS_PER_DAY

HOUR = 3_600_000_000
MACHINES = ["pump", "fan", "mill", "press"]
EVENTS = [
    Event("F1", 0, 40 * HOUR, 60 * HOUR, 30 * HOUR),
    Event("F2", 2, 100 * HOUR, 150 * HOUR, 100 * HOUR),
]
POLICIES = [
    AlertPolicy(1, 1, HOUR, HOUR),
    AlertPolicy(2, 3, 2 * HOUR, 3 * HOUR),
    AlertPolicy(3, 5, 3 * HOUR, HOUR // 2),
    AlertPolicy(7, 12, 1000 * HOUR, 30 * HOUR),
]


def fleet(seed: int, rows: int = 900) -> JudgedRows:
    """Rows in no order, with gaps, rows at one time, machines of different length, runs of high scores."""
    rng = np.random.default_rng(seed)
    machine = rng.choice(len(MACHINES), rows, p=[0.5, 0.3, 0.15, 0.05]).astype(np.int32)
    time_us = rng.integers(0, 200 * 6, rows) * (HOUR // 6)
    level = rng.exponential(size=rows) + 3 * ((time_us // (20 * HOUR)) % 4 == machine)
    label = rng.choice(np.array([HEALTHY, UNKNOWN, FAULTY], np.int8), rows)
    return JudgedRows(machine, time_us, label, {"pca": level})


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(5))
def test_alerts_and_episodes_are_those_of_all_rows(policy: AlertPolicy, seed: int) -> None:
    rows = fleet(seed)
    line, kept = Timeline.of(rows.machine, rows.time_us, policy), Recording.of_rows(rows, "pca", 1.0, EVENTS, MACHINES)
    found = 0
    for limit in (1.0, 2.5, 4.0):
        exceeds = rows.scores["pca"] > limit
        whole = line.episodes(line.alert_rows(exceeds))
        sparse = kept.line(policy)
        episodes = sparse.episodes(sparse.alert_rows(kept.level_E > limit))
        for name in ("machine", "opened_us", "closed_us"):
            np.testing.assert_array_equal(getattr(episodes, name), getattr(whole, name))
        assert kept.caught_by_chance(episodes, 50, 3) == caught_by_chance(exceeds, line, EVENTS, 50, 3)
        found += len(whole)
    assert found > 3


def test_time_and_days_are_those_of_all_rows() -> None:
    rows = fleet(1)
    kept = Recording.of_rows(rows, "pca", 2.0, EVENTS, [*MACHINES, "idle"])
    assert kept.interval_us == typical_interval_us(rows.machine, rows.time_us)
    assert (kept.rows, kept.machine_count) == (len(rows), 4)
    assert kept.machine_days == rows.machine_days(kept.interval_us)
    healthy = (rows.label != FAULTY) & ~forgiven_rows(rows, EVENTS)
    assert kept.healthy_days == rows.machine_days(kept.interval_us, healthy)
    pairs = set(zip(rows.machine.tolist(), (rows.time_us // MICROSECONDS_PER_DAY).tolist(), strict=True))
    assert kept.machine_dates == len(pairs)
    assert len(kept.level_E) == int((rows.scores["pca"] > 2.0).sum())


@pytest.mark.parametrize("hours", [24, 7])
def test_days_that_come_one_by_one_give_what_all_at_once_give(hours: int) -> None:
    rows, part = fleet(2), fleet(2).time_us // (hours * HOUR)
    recorder = Recorder(1.0, EVENTS)
    for index in range(int(part.max()) + 1):
        mine = part == index
        recorder.add(rows.machine[mine], rows.time_us[mine], rows.scores["pca"][mine], rows.label[mine])
    pieces, whole = recorder.finish(MACHINES), Recording.of_rows(rows, "pca", 1.0, EVENTS, MACHINES)
    for name in ("machine_E", "position_E", "time_us_E", "rows_M", "places_K3"):
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name))
    # rows of one machine at one time have no order of their own
    np.testing.assert_array_equal(np.sort(pieces.level_E), np.sort(whole.level_E))
    assert (pieces.machine_dates, pieces.healthy_rows) == (whole.machine_dates, whole.healthy_rows)


def test_a_row_a_day_has_an_interval_of_a_day() -> None:
    recorder = Recorder(0.0, [])
    for day in range(4):
        recorder.add(np.array([0, 1], np.int32), np.full(2, day * 24 * HOUR), np.ones(2), np.zeros(2, np.int8))
    assert recorder.finish(["a", "b"]).interval_us == 24 * HOUR


def by_hand(
    machine: np.ndarray, time: np.ndarray, alert: np.ndarray, gap: int, cool_down: int
) -> list[tuple[int, int]]:
    """Alerts as a person would tell them, row by row: (opened, closed)."""
    found: list[list[int]] = []
    of: list[int] = []
    for m, t in zip(machine[alert].tolist(), time[alert].tolist(), strict=True):
        mine = bool(of) and of[-1] == m
        if mine and t - found[-1][1] <= gap:
            found[-1][1] = t
        elif not mine or t >= found[-1][1] + cool_down:
            found.append([t, t])
            of.append(m)
    return [(opened, closed) for opened, closed in found]


@pytest.mark.parametrize("seed", range(4))
def test_a_cool_down_is_kept_after_every_alert(seed: int) -> None:
    rows, policy = fleet(seed), POLICIES[1]
    kept = Recording.of_rows(rows, "pca", 1.0, EVENTS, MACHINES)
    counts = []
    for cool_down in (0, 6 * HOUR, 30 * HOUR):
        line, exceeds = kept.line(replace(policy, cool_down_us=cool_down)), kept.level_E > 1.5
        alerts, episodes = line.alert_rows(exceeds), page_episodes(line, exceeds, exceeds)
        told = by_hand(line.machine, line.time_us, alerts, policy.gap_us, cool_down)
        assert list(zip(episodes.opened_us.tolist(), episodes.closed_us.tolist(), strict=True)) == told
        counts.append(len(told))
    assert counts[0] > counts[-1] > 0


def test_an_alert_that_stands_when_the_cool_down_ends_opens_then() -> None:
    time = np.r_[0, np.arange(5, 40)] * HOUR  # an alert, then one that stands for long
    line = Recording.of_rows(
        JudgedRows(np.zeros(len(time), np.int32), time, np.zeros(len(time), np.int8), {"pca": np.ones(len(time))}),
        "pca", 0.5, [], ["pump"],
    ).line(AlertPolicy(1, 1, HOUR, 2 * HOUR, 24 * HOUR))  # fmt: skip
    every = np.ones(len(time), bool)
    episodes = page_episodes(line, every, every)
    assert (episodes.opened_us // HOUR).tolist() == [0, 24]
    assert (episodes.closed_us // HOUR).tolist() == [0, 39]


def test_fewer_exceedances_than_k_raise_nothing() -> None:
    rows = JudgedRows(np.zeros(5, np.int32), np.arange(5) * HOUR, np.zeros(5, np.int8), {"pca": np.ones(5)})
    line = Recording.of_rows(rows, "pca", 0.5, [], ["pump"]).line(AlertPolicy(8, 9, 99 * HOUR, HOUR))
    assert not line.alert_rows(np.ones(5, bool)).any()
    assert not len(line.episodes(line.alert_rows(np.zeros(5, bool))))


def test_a_row_without_a_score_takes_no_place() -> None:
    level = np.array([9.0, np.nan, 9.0])
    rows = JudgedRows(np.zeros(3, np.int32), np.arange(3) * HOUR, np.zeros(3, np.int8), {"pca": level})
    kept = Recording.of_rows(rows, "pca", 1.0, [], ["pump"])
    assert kept.position_E.tolist() == [0, 1]
    assert kept.line(AlertPolicy(2, 2, 99 * HOUR, HOUR)).alert_rows(np.ones(2, bool)).tolist() == [False, True]


def test_a_clock_that_steps_back_between_days_is_refused() -> None:
    recorder = Recorder(0.0, [])
    day = (np.zeros(2, np.int32), np.array([5, 6]) * HOUR, np.ones(2), np.zeros(2, np.int8))
    recorder.add(*day)
    message = "rows: got a row of 1970-01-01T05:00:00Z after one of 1970-01-01T06:00:00Z, expected days in their order"
    with pytest.raises(ContractError, match=message):
        recorder.add(*day)


def test_nothing_to_replay_is_refused() -> None:
    with pytest.raises(ContractError, match="rows: got none, expected scored rows"):
        Recorder(0.0, []).finish([])
