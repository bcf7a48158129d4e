"""Wishes for new releases: none is lost, none is worked on twice, one at a time, with pauses."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from service_rows import shard_of
from sqlalchemy.orm import Session

from flows.database import open_database
from flows.service import retrainings
from flows.service.drifts import Found, dismiss_drift, enter_drift
from flows.service.retrainings import Waits, Wish, ask, claim, due, end, list_retrainings, renew, try_again, widen
from flows.service.tables import Retraining, RetrainingState, ShardState
from pipeline.params import RetrainParams

PARAMS = RetrainParams()
NOW = dt.datetime(2025, 3, 1, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the present to so many hours after NOW."""
    present = {"is": NOW}
    monkeypatch.setattr(retrainings, "utc_now", lambda: present["is"])

    def to(hours: float) -> None:
        present["is"] = NOW + hours * HOUR

    return to


def drift_of(engine: sa.Engine, hours: float = 0.0) -> int:
    return enter_drift(engine, Found("0123456789abcdef", "fleet", ("a",), NOW + hours * HOUR, 1.0, {})).drift.id


def wished(engine: sa.Engine, **values: Any) -> Wish:
    return Wish("monitor", "it changed", drift_of(engine), **values)


def taken(engine: sa.Engine, owner: str = "me", params: RetrainParams = PARAMS) -> Retraining:
    found = claim(engine, params, owner)
    assert isinstance(found, Retraining), found
    return found


def finish(engine: sa.Engine, wish: Retraining, state: RetrainingState = RetrainingState.REFUSED) -> None:
    assert end(engine, wish.id, str(wish.owner), state)


def test_a_second_wish_is_merged_into_the_one_that_waits(engine: sa.Engine, clock: Callable[[float], None]) -> None:
    first = ask(engine, wished(engine, changed_at=NOW, machines=("a", "b")))
    merged = ask(engine, Wish("ann", "the season", None, NOW + 5 * HOUR, ("c",)))
    ask(engine, Wish("bob", "please"))
    assert merged.id == first.id
    mine = taken(engine)
    assert (mine.why, mine.changed_at, mine.machines) == (
        "it changed; the season; please",
        NOW + 5 * HOUR,
        ["a", "b", "c"],
    )
    assert mine.drift_id == first.drift_id
    states = [(each.state, each.merged_into) for each in list_retrainings(engine)]
    assert states == [("merged", first.id), ("merged", first.id), ("running", None)]


def test_one_at_a_time_and_the_other_waits(engine: sa.Engine, clock: Callable[[float], None]) -> None:
    ask(engine, wished(engine))
    mine = taken(engine)
    ask(engine, Wish("ann", "more"))
    found = claim(engine, PARAMS, "you")
    assert isinstance(found, Waits)
    assert "at work" in found.why
    assert not due(engine, PARAMS)
    finish(engine, mine)
    assert taken(engine, "you").why == "more", "a person need not wait for the pause"


def test_drifts_wait_for_the_pause_and_for_the_next_day(engine: sa.Engine, clock: Callable[[float], None]) -> None:
    params = RetrainParams(cool_down_hours=2, most_per_day=2)
    for hours in (0.0, 3.0):
        clock(hours)
        ask(engine, wished(engine))
        finish(engine, taken(engine, params=params))
    ask(engine, wished(engine))
    clock(4.0)
    found = claim(engine, params, "me")
    assert isinstance(found, Waits)
    assert found.until == NOW + 5 * HOUR
    clock(6.0)
    found = claim(engine, params, "me")
    assert isinstance(found, Waits)
    assert found.until == NOW + 24 * HOUR
    assert not due(engine, params)
    clock(24.1)
    assert due(engine, params)
    assert taken(engine, params=params).state is RetrainingState.RUNNING


def test_one_that_was_cut_off_is_taken_over_until_it_was_tried_enough(
    engine: sa.Engine, clock: Callable[[float], None]
) -> None:
    params = RetrainParams(attempts=2, lease_minutes=10)
    wish = ask(engine, wished(engine))
    taken(engine, params=params)
    assert renew(engine, wish.id, params, "me")
    clock(0.2)
    assert due(engine, params)
    assert (taken(engine, "you", params).id, taken_attempts(engine)) == (wish.id, 2)
    assert not renew(engine, wish.id, params, "me"), "the first owner has lost it"
    assert not end(engine, wish.id, "me", RetrainingState.PROMOTED)
    clock(0.5)
    assert isinstance(claim(engine, params, "they"), Waits)
    (failed,) = list_retrainings(engine)
    assert failed.state is RetrainingState.FAILED
    assert "cut off" in str(failed.error)


def test_a_change_waits_for_rows_to_learn_from(engine: sa.Engine, clock: Callable[[float], None]) -> None:
    ask(engine, wished(engine, changed_at=NOW))
    with Session(engine) as session, session.begin():
        shard = shard_of("000000001-aa", ShardState.DONE, NOW + 5 * HOUR)
        shard.last_at, shard.planned_at = NOW + 5 * HOUR, NOW + 99 * HOUR
        session.add(shard)
    found = claim(engine, PARAMS, "me")
    assert isinstance(found, Waits)
    assert "rows of 5.0 h since the change, 48 are wanted" in found.why
    assert not due(engine, PARAMS)
    taken(engine, params=RetrainParams(hours_after_change=4))


def taken_attempts(engine: sa.Engine) -> int:
    return list_retrainings(engine)[0].attempts


def test_what_could_not_be_reached_is_tried_again_without_a_pause(
    engine: sa.Engine, clock: Callable[[float], None]
) -> None:
    params = RetrainParams(attempts=2)
    ask(engine, wished(engine))
    mine = taken(engine, params=params)
    assert try_again(engine, mine.id, "me", params, "the remote is away") is RetrainingState.WAITING
    mine = taken(engine, params=params)
    assert mine.error == "the remote is away"
    assert try_again(engine, mine.id, "me", params, "x" * 9999) is RetrainingState.FAILED
    assert isinstance(claim(engine, params, "me"), Waits)
    assert len(str(list_retrainings(engine)[0].error)) == 2000


def test_of_many_that_claim_at_once_one_gets_it(url: str) -> None:
    engines = [open_database(url) for _ in range(6)]
    ask(engines[0], Wish("ann", "why"))
    got: list[object] = []

    def work(number: int) -> None:
        got.append(claim(engines[number], PARAMS, f"worker {number}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for engine in engines:
        engine.dispose()
    assert sum(isinstance(each, Retraining) for each in got) == 1
    assert len(got) == 6


def test_wishes_at_once_become_one(url: str) -> None:
    engines = [open_database(url) for _ in range(5)]
    threads = [
        threading.Thread(target=ask, args=(engine, Wish("ann", f"reason {number}")))
        for number, engine in enumerate(engines)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = list_retrainings(engines[0])
    assert sorted(each.state for each in found) == ["merged"] * 4 + ["waiting"]
    (waiting,) = (each for each in found if each.state is RetrainingState.WAITING)
    assert all(f"reason {number}" in waiting.why for number in range(5))
    for engine in engines:
        engine.dispose()


def test_a_dismissed_drift_asks_for_nothing_more(engine: sa.Engine, clock: Callable[[float], None]) -> None:
    wish = ask(engine, wished(engine, changed_at=NOW))
    dismiss_drift(engine, drift_of(engine), "ann", "the pump")
    (mine,) = list_retrainings(engine)
    assert (mine.id, mine.state) == (wish.id, RetrainingState.CANCELLED)
    other = ask(engine, Wish("monitor", "again", drift_of(engine), NOW))
    ask(engine, Wish("ann", "new spindles"))
    dismiss_drift(engine, drift_of(engine), "ann", "the pump")
    assert taken(engine).id == other.id, "what a person asked for is not lost"


def test_a_wish_that_waits_grows_and_shrinks_with_its_drift(engine: sa.Engine, clock: Callable[[float], None]) -> None:
    number = drift_of(engine)
    ask(engine, Wish("monitor", "a group", number, NOW, ("a", "b")))
    widen(engine, number, ("b", "c"))
    assert list_retrainings(engine)[0].machines == ["b", "c"]
    ask(engine, Wish("ann", "one more", None, NOW, ("d",)))
    widen(engine, number, ("e",))
    assert list_retrainings(engine, [RetrainingState.WAITING])[0].machines == ["b", "c", "d", "e"]
    widen(engine, number, None)
    assert list_retrainings(engine, [RetrainingState.WAITING])[0].machines is None


def test_reasons_that_are_merged_stay_short_and_none_is_lost(engine: sa.Engine, clock: Callable[[float], None]) -> None:
    first = ask(engine, Wish("ann", "new spindles"))
    for number in range(300):
        ask(engine, Wish("monitor", f"drift {number}: they moved"))
    ask(engine, Wish("bob", "x" * 9999))
    merged = list_retrainings(engine, [RetrainingState.MERGED])
    assert len({each.why for each in merged}) == 301
    (waiting,) = list_retrainings(engine, [RetrainingState.WAITING])
    assert waiting.id == first.id
    assert waiting.why.startswith("new spindles; drift 0: they moved; ")
    assert waiting.why.endswith("; and more")
    assert max(len(each.why) for each in [waiting, *merged]) <= retrainings.MOST_WHY
