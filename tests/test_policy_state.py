"""The state machine of the alert policy, against a row-by-row reference and in any batches."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.alerts import MINUTE, AlertPolicy, Timeline
from pipeline.errors import ContractError
from pipeline.log_status import Intervals
from pipeline.policy_state import NO_ROWS, Alerts, Cause, PolicyRows, PolicyState, advance
from pipeline.schema import MICROSECONDS_PER_HOUR

# ---- the state machine ----

HOUR = MICROSECONDS_PER_HOUR
COLUMNS = ("machine", "cause", "opened_us", "paged_us", "last_us", "closed_us", "peak_us", "peak_score")
Spans = dict[int, list[tuple[int, int]]]


def told(alerts: Alerts) -> list[tuple]:
    """Alerts as tuples; a no-data alert has no peak."""
    columns = [getattr(alerts, name).tolist() for name in COLUMNS]
    return sorted((*alert[:7], -1.0 if np.isnan(alert[7]) else alert[7]) for alert in zip(*columns, strict=True))


def by_hand(rows: PolicyRows, policy: AlertPolicy, now: int | None = None, off: Spans | None = None) -> list[tuple]:
    """What the policy says, row by row and slowly."""
    found = []
    for machine in sorted(set(rows.machine.tolist())):
        mine = rows.take(np.flatnonzero(rows.machine == machine))
        mine = mine.take(np.argsort(mine.time_us, kind="stable"))
        usable = mine.take(np.flatnonzero(mine.usable))
        clock = int(mine.time_us[-1]) if now is None else max(now, *usable.time_us.tolist(), 0)
        found += [(machine, Cause.VIBRATION, *alert) for alert in alerts_by_hand(usable, policy, clock)]
        if policy.no_data_us is not None:
            heard = [int(mine.time_us[0]), *usable.time_us.tolist()]
            spans = (off or {}).get(machine, [])
            found += [(machine, Cause.NO_DATA, *alert) for alert in silences_by_hand(heard, policy, clock, spans)]
    return sorted(found)


def alerts_by_hand(rows: PolicyRows, policy: AlertPolicy, clock: int) -> list[tuple]:
    """Vibration alerts of one machine: opened, paged, last, closed, peak, its score."""
    alerts, opened, paged, last, peak, score = [], -1, -1, -1, -1, -np.inf
    closed, closed_paged = -1, False
    for i, time in enumerate(rows.time_us.tolist()):
        recent = [j for j in range(i + 1)[-policy.n :] if rows.time_us[j] >= time - policy.window_us]
        low, page = (flag[i] and sum(flag[recent]) >= policy.k for flag in (rows.low, rows.page))
        if opened >= 0 and time - last > policy.gap_us:
            alerts.append((opened, paged, last, last, peak, score))
            closed, closed_paged, opened = last, paged >= 0, -1
        may_open = closed < 0 or time - closed >= policy.cool_down_us or (page and not closed_paged)
        if low and opened < 0 and may_open:
            opened, paged, peak, score = time, -1, -1, -np.inf
        if low and opened >= 0:
            last = time
            paged = time if page and paged < 0 else paged
            if rows.score[i] > score:
                peak, score = time, float(rows.score[i])
    if opened >= 0:
        alerts.append((opened, paged, last, last if clock - last > policy.gap_us else -1, peak, score))
    return alerts


def silences_by_hand(heard: list[int], policy: AlertPolicy, clock: int, off: list[tuple[int, int]]) -> list[tuple]:
    """No-data alerts of one machine, minute by minute; heard: its first row, then its usable ones."""
    alerts = []
    for i, since in enumerate(heard):
        until, on = (heard[i + 1], 0) if i + 1 < len(heard) else (clock, 0)
        for minute in range(since, until, MINUTE):
            if any(start <= minute < end for start, end in off):
                continue
            if on == policy.no_data_us:
                alerts.append((minute, -1, since, until if i + 1 < len(heard) else -1, -1, -1.0))
                break
            on += MINUTE
    return alerts


def random_fleet(rng: np.random.Generator, ties: bool = False) -> PolicyRows:
    """Four machines with bursts, gaps and nulls, their rows mixed but each machine's in order."""
    parts = []
    for machine in range(4):
        count = int(rng.integers(1, 90))
        steps = rng.choice([0 if ties else 1, 1, 2, 3, 10, 45, 900], count, p=[0.1, 0.4, 0.2, 0.15, 0.07, 0.06, 0.02])
        time_us = (100 + machine + np.cumsum(steps)) * MINUTE
        loud = np.repeat(rng.random(count // 8 + 1) < 0.4, 8)[:count]
        score = np.round(rng.exponential(1, count) + 1.5 * loud, 1)
        score[np.repeat(rng.random(count // 5 + 1) < 0.15, 5)[:count]] = np.nan
        parts.append(PolicyRows.above(np.full(count, machine, np.int32), time_us, score, 1.5, 3.0))
    rows = PolicyRows.joined(*parts)
    mixed, index = rng.permutation(rows.machine), np.empty(len(rows), np.int64)
    for machine in range(4):
        index[mixed == machine] = np.flatnonzero(rows.machine == machine)
    return rows.take(index)


def random_policy(rng: np.random.Generator) -> AlertPolicy:
    k = int(rng.integers(1, 5))
    return AlertPolicy(
        k,
        k + int(rng.integers(0, 4)),
        int(rng.integers(2, 40)) * MINUTE,
        int(rng.integers(2, 50)) * MINUTE,
        int(rng.choice([0, 30, 90, 600, 3000])) * MINUTE,
        [None, 30 * MINUTE, 5 * HOUR][int(rng.integers(0, 3))],
    )


def random_off(rng: np.random.Generator) -> Spans:
    """When machines were off, overlaps included."""
    starts = rng.integers(0, 600, (4, 3)) * MINUTE
    spans = {m: [(int(s), int(s) + int(rng.integers(1, 900)) * MINUTE) for s in starts[m]] for m in range(3)}
    return spans | {9: [(0, 10 * HOUR)]}


def intervals(spans: Spans) -> Intervals:
    listed = [(machine, *span) for machine, mine in spans.items() for span in mine]
    machine, start, end = (np.array(column) for column in zip(*listed, strict=True))
    return Intervals(machine.astype(np.int32), start, end)


def in_batches(
    batches: list[PolicyRows], policy: AlertPolicy, now: int | None, off: Intervals, rng: np.random.Generator
) -> tuple[list[tuple], int]:
    """Alerts of many calls, the state written and read between them, and how many rows came too late."""
    state, final, late = None, [], 0
    names = [f"m{code}" for code in range(12)]
    for i, batch in enumerate(batches):
        at = now if i == len(batches) - 1 else [None, int(rng.integers(0, 4000)) * MINUTE][int(rng.integers(0, 2))]
        state, alerts = advance(state, batch, policy, at, off)
        state = PolicyState.from_json(json.loads(json.dumps(state.to_json(names), allow_nan=False)), names)
        final.append(alerts.take(alerts.final))
        late += alerts.late_rows
    return told(Alerts.joined(*final, alerts.take(~alerts.final))), late


@pytest.mark.parametrize("seed", range(60))
def test_the_alerts_are_what_a_person_would_say_whatever_the_batches(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, policy, off = random_fleet(rng, ties=True), random_policy(rng), random_off(rng)
    now = None if seed % 3 == 0 else int(rng.integers(0, 4000)) * MINUTE
    _, alerts = advance(None, rows, policy, now, intervals(off))
    assert alerts.late_rows == 0
    assert told(alerts) == by_hand(rows, policy, now, off)
    # every machine's rows in order, in batches of their own sizes
    batch_N = np.empty(len(rows), np.int64)
    for machine in range(4):
        mine = np.flatnonzero(rows.machine == machine)
        batch_N[mine] = np.sort(rng.integers(0, 8, len(mine)))
    batches = [rows.take(np.flatnonzero(batch_N == batch)) for batch in range(9)]
    assert in_batches(batches, policy, now, intervals(off), rng) == (told(alerts), 0)


@pytest.mark.parametrize("seed", range(60))
def test_late_rows_within_the_last_n_take_their_place(seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    rows, policy, off = random_fleet(rng), random_policy(rng), random_off(rng)
    now = None if seed % 3 == 0 else int(rng.integers(0, 4000)) * MINUTE
    # each row comes before at most n - 1 older ones of its machine
    rank = np.empty(len(rows))
    for machine in range(4):
        mine = np.flatnonzero(rows.machine == machine)
        rank[mine] = np.arange(len(mine))
    arrival = np.argsort(rank + rng.random(len(rows)) * policy.n)
    batches = [rows.take(part) for part in np.array_split(arrival, 7)]
    expected = by_hand(rows, policy, now, off)
    assert in_batches(batches, policy, now, intervals(off), rng) == (expected, 0)


def series(minutes: list[float], scores: list[float], machine: int = 0) -> PolicyRows:
    """Rows of one machine; above 1 is low, above 2 a page, NaN null."""
    time_us = (np.array(minutes) * MINUTE).astype(np.int64)
    return PolicyRows.above(np.full(len(minutes), machine, np.int32), time_us, np.array(scores, float), 1.0, 2.0)


def minutes_of(alerts: Alerts) -> list[tuple[int, ...]]:
    """Opened, paged, last, closed in minutes; -1 for none."""
    columns = (alerts.opened_us, alerts.paged_us, alerts.last_us, alerts.closed_us)
    return [
        tuple(t // MINUTE if t >= 0 else -1 for t in alert)
        for alert in zip(*map(np.ndarray.tolist, columns), strict=True)
    ]


ONE = AlertPolicy(1, 1, MINUTE, 10 * MINUTE)


def test_an_alert_opens_low_escalates_stays_open_on_low_and_closes_after_quiet() -> None:
    rows = series([0, 5, 10, 15, 25, 36, 50], [0, 1.5, 2.5, 1.5, 1.9, 0, 0])
    _, alerts = advance(None, rows, ONE)
    assert minutes_of(alerts) == [(5, 10, 25, 25)]
    assert (alerts.peak_us[0] // MINUTE, alerts.peak_score[0], alerts.peak_row[0]) == (10, 2.5, 2)


def test_an_alert_is_open_until_the_gap_has_passed_by_the_newest_row_or_by_now() -> None:
    rows = series([0, 5, 15], [0, 1.5, np.nan])
    assert minutes_of(advance(None, rows, ONE)[1]) == [(5, -1, 5, -1)]
    assert minutes_of(advance(None, rows, ONE, now_us=15 * MINUTE + 1)[1]) == [(5, -1, 5, 5)]
    assert minutes_of(advance(None, series([0, 5, 16], [0, 1.5, np.nan]), ONE)[1]) == [(5, -1, 5, 5)]


def test_no_alert_opens_within_the_cool_down_and_what_goes_on_beyond_it_opens_there() -> None:
    policy = replace(ONE, cool_down_us=60 * MINUTE)
    # a page closes at 10; until 70 nothing opens, page or not; the rows from 60 on go on beyond it
    rows = series([10, 30, 60, 65, 70, 75, 200], [2.5, 2.5, 1.5, 2.5, 1.5, 1.5, 0])
    assert minutes_of(advance(None, rows, policy)[1]) == [(10, 10, 10, 10), (70, -1, 75, 75)]
    # what the cool-down held back does not lengthen it
    rows = series([10, 30, 68, 90, 200], [2.5, 1.5, 1.5, 1.5, 0])
    assert minutes_of(advance(None, rows, policy)[1]) == [(10, 10, 10, 10), (90, -1, 90, 90)]


def test_a_first_page_within_the_cool_down_of_a_low_alert_opens_one() -> None:
    policy = replace(ONE, cool_down_us=60 * MINUTE)
    rows = series([10, 30, 35, 40, 55, 200], [1.5, 1.5, 2.5, 1.5, 2.5, 0])
    # the low row at 30 is held back; the page at 35 is not; the one at 55 is, after an alert that was a page
    assert minutes_of(advance(None, rows, policy)[1]) == [(10, -1, 10, 10), (35, 35, 40, 40)]


def test_machines_do_not_share_a_cool_down() -> None:
    rows = PolicyRows.joined(series([10, 30], [2.5, 2.5]), series([30, 50], [2.5, 0], machine=1))
    alerts = advance(None, rows, replace(ONE, cool_down_us=60 * MINUTE))[1]
    assert alerts.machine.tolist() == [0, 1]
    assert minutes_of(alerts) == [(10, 10, 10, 10), (30, 30, 30, 30)]


class TestNoData:
    policy = replace(ONE, no_data_us=HOUR)

    def test_silence_opens_an_alert_that_the_next_usable_row_closes(self) -> None:
        alerts = advance(None, series([0, 60, 121, 300], [0, 0, 0, 0]), self.policy)[1]
        assert alerts.cause.tolist() == [Cause.NO_DATA] * 2
        assert minutes_of(alerts) == [(120, -1, 60, 121), (181, -1, 121, 300)]

    def test_rows_without_a_score_are_silence(self) -> None:
        rows = series([0, 30, 60, 90, 100], [0, np.nan, np.nan, np.nan, np.nan])
        assert minutes_of(advance(None, rows, self.policy)[1]) == [(60, -1, 0, -1)]

    def test_a_machine_that_never_had_a_usable_row_is_silent_from_its_first(self) -> None:
        state, alerts = advance(None, series([10, 40], [np.nan, np.nan]), self.policy)
        assert len(alerts) == 0
        assert minutes_of(advance(state, NO_ROWS, self.policy, now_us=90 * MINUTE)[1]) == [(70, -1, 10, -1)]
        assert minutes_of(advance(state, series([95], [0.0]), self.policy)[1]) == [(70, -1, 10, 95)]

    def test_time_logged_off_does_not_count(self) -> None:
        rows = series([0, 100], [0, 0])
        off = intervals({0: [(20 * MINUTE, 40 * MINUTE), (30 * MINUTE, 50 * MINUTE)], 7: [(0, HOUR)]})
        assert minutes_of(advance(None, rows, self.policy, off=off)[1]) == [(90, -1, 0, 100)]
        longer = intervals({0: [(20 * MINUTE, 60 * MINUTE)]})
        assert len(advance(None, rows, self.policy, off=longer)[1]) == 0
        for_ever = intervals({0: [(20 * MINUTE, 10**15)]})
        assert len(advance(None, rows, self.policy, 10**14, for_ever)[1]) == 0

    def test_a_machine_has_one_open_alert_per_cause(self) -> None:
        policy = replace(self.policy, gap_us=3 * HOUR)
        alerts = advance(None, series([0, 10], [1.5, 1.5]), policy, now_us=120 * MINUTE)[1]
        assert alerts.cause.tolist() == [Cause.VIBRATION, Cause.NO_DATA]
        assert minutes_of(alerts) == [(0, -1, 10, -1), (70, -1, 10, -1)]

    def test_rows_that_come_after_all_withdraw_it(self) -> None:
        state, alerts = advance(None, series([0], [0]), self.policy, now_us=90 * MINUTE)
        assert minutes_of(alerts) == [(60, -1, 0, -1)]
        assert not alerts.final.any()
        _, alerts = advance(state, series([30, 60, 90], [0, 0, 0]), self.policy, now_us=91 * MINUTE)
        assert len(alerts) == 0

    def test_without_the_setting_there_is_none(self) -> None:
        assert len(advance(None, series([0, 10_000], [0, 0]), ONE)[1]) == 0


def test_a_row_that_comes_too_late_does_not_count_and_is_counted() -> None:
    policy = AlertPolicy(2, 2, HOUR, 10 * MINUTE)
    state, _ = advance(None, series([0, 10, 20, 30], [0, 0, 0, 1.5]), policy)
    # 10 is settled, 20 and 30 are the last two: 25 comes between them, 5 is too late, a null row is never late
    _, alerts = advance(state, series([25, 5, 6], [1.5, 9.0, np.nan]), policy)
    assert minutes_of(alerts) == [(30, -1, 30, -1)]
    assert alerts.late_rows == 1
    assert advance(state, series([10], [9.0]), policy)[1].late_rows == 0


def test_a_clock_that_steps_back_makes_late_rows_until_it_has_caught_up() -> None:
    state, _ = advance(None, series(list(range(100, 160)), [0] * 60), ONE)
    state, alerts = advance(state, series(list(range(100, 165)), [5.0] * 65), ONE)
    # 158 is settled; what comes at 158 or later counts
    assert alerts.late_rows == 58
    assert minutes_of(alerts) == [(158, 158, 164, -1)]


def test_a_settled_alert_is_told_once_and_the_others_by_every_call() -> None:
    state, alerts = advance(None, series([0, 20, 40, 60], [1.5, 0, 1.5, 0]), ONE)
    assert minutes_of(alerts) == [(0, -1, 0, 0), (40, -1, 40, 40)]
    assert alerts.final.tolist() == [True, False]
    state, alerts = advance(state, NO_ROWS, ONE)
    assert minutes_of(alerts) == [(40, -1, 40, 40)]
    state, alerts = advance(state, series([70, 80], [0, 0]), ONE)
    assert alerts.final.tolist() == [True]
    assert len(advance(state, NO_ROWS, ONE)[1]) == 0


def test_the_peak_is_the_loudest_alert_row_of_whichever_call() -> None:
    state, _ = advance(None, series([0, 5, 10, 15], [1.5, np.inf, 1.5, 1.5]), ONE)
    state = PolicyState.from_json(json.loads(json.dumps(state.to_json(["a"]), allow_nan=False)), ["a"])
    _, alerts = advance(state, series([20, 25], [3.0, np.inf]), ONE)
    assert (alerts.peak_us[0] // MINUTE, alerts.peak_score[0], alerts.peak_row[0]) == (5, np.inf, -1)
    assert minutes_of(alerts) == [(0, 5, 25, -1)]


def test_a_null_row_takes_no_place_among_the_last_n() -> None:
    policy = AlertPolicy(2, 2, HOUR, HOUR)
    assert len(advance(None, series([0, 1, 2], [1.5, np.nan, 1.5]), policy)[1]) == 1
    assert len(advance(None, series([0, 1, 2], [1.5, 0.0, 1.5]), policy)[1]) == 0


@pytest.mark.parametrize("seed", range(10))
def test_with_one_tier_and_no_cool_down_alerts_are_the_protocols_episodes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = random_fleet(rng)
    rows = rows.take(np.flatnonzero(rows.usable))
    policy = replace(random_policy(rng), cool_down_us=0, no_data_us=None)
    line = Timeline.of(rows.machine, rows.time_us, policy)
    episodes = line.episodes(line.alert_rows(rows.low))
    alerts = advance(None, replace(rows, page=rows.low), policy, now_us=10**13)[1]
    assert len(alerts) == len(episodes) > 0
    assert alerts.machine.tolist() == episodes.machine.tolist()
    assert alerts.opened_us.tolist() == alerts.paged_us.tolist() == episodes.opened_us.tolist()
    assert alerts.closed_us.tolist() == episodes.closed_us.tolist()
    assert alerts.page_weight().tolist() == episodes.weight().tolist()


def test_a_page_counts_again_for_each_day_that_it_stays_open_and_a_low_alert_never() -> None:
    step = 10
    minutes = list(range(0, 4 * 1440, step))
    scores = [2.5 if minute == 1440 else 1.5 for minute in minutes]
    rows = PolicyRows.joined(series(minutes, scores), series([0, 5], [1.5, 1.5], machine=1))
    assert advance(None, rows, ONE)[1].page_weight().tolist() == [3, 0]


def test_the_state_of_a_fleet_is_small_and_says_what_is_wrong_with_it() -> None:
    rng = np.random.default_rng(3)
    rows = PolicyRows.above(
        np.tile(np.arange(5, dtype=np.int32), 2000),
        np.repeat(np.arange(2000), 5) * MINUTE,
        rng.random(10_000),
        0.5,
        0.9,
    )
    state, _ = advance(None, rows, AlertPolicy(3, 5, HOUR, HOUR))
    assert len(state.rows) == 5 * 9
    values = state.to_json(list("abcde"))
    with pytest.raises(ContractError, match=r"machine: got 'e', expected one of the 4 machines"):
        PolicyState.from_json(values, list("abcd"))
    values["a"]["rows"][0] = [1, 2]
    with pytest.raises(ContractError, match="expected what to_json wrote"):
        PolicyState.from_json(values, list("abcde"))


def test_no_rows_at_all_give_no_alerts() -> None:
    state, alerts = advance(None, NO_ROWS, replace(ONE, no_data_us=HOUR), now_us=10**15)
    assert len(alerts) == 0
    assert PolicyState.from_json(state.to_json([]), []).to_json([]) == {}


def test_rows_that_make_no_sense_are_refused() -> None:
    rows = series([0, 1], [1.5, 2.5])
    with pytest.raises(ContractError, match="times: got some before 1970"):
        advance(None, replace(rows, time_us=rows.time_us - 1), ONE)
    with pytest.raises(ValueError, match="above the page tier and not above the low tier"):
        advance(None, replace(rows, low=rows.page, page=rows.low), ONE)
