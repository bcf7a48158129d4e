"""Fleets as compared quantities, made of numbers alone: what drift decides on, without models and files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.drift import DriftDecision
from pipeline.drift.check import decide_on
from pipeline.drift.columns import SHAPE, Heard
from pipeline.drift.limits import Limits, calibrate
from pipeline.params import MonitorParams
from pipeline.schema import MICROSECONDS_PER_DAY, MICROSECONDS_PER_HOUR

COLUMNS = (*SHAPE, "log_score_ensemble", "alert_rate")
CONDITIONS = ("idle", "cut", "deep cut")
PARAMS = MonitorParams()
WAYS = {"louder": np.r_[np.full(7, 1.0), 0, 0], "brighter": np.r_[np.linspace(-1, 1, 6), 0, 1.0, 0.3]}


def heard(
    machines: int,
    days: Sequence[int],
    seed: int,
    *,
    per_day: int = 48,
    mix: Sequence[float] = (0.3, 0.5, 0.2),
    season: float = 0.0,
    firmware: Sequence[int] = (),
) -> Heard:
    """Rows of machines on days: row noise, a level of each machine and day, and a season of the whole fleet.

    Bands depend on the condition in no way, as they are relative to a baseline per condition. `season` is the size of a
    yearly swing; `firmware` names machines whose context says 2.
    """
    rng = np.random.default_rng(seed)
    day_N = np.repeat(np.asarray(days), machines * per_day)
    machine_N = np.tile(np.repeat(np.arange(machines), per_day), len(days)).astype(np.int32)
    time_us_N = day_N * MICROSECONDS_PER_DAY + np.tile(np.arange(per_day), len(days) * machines) * (
        MICROSECONDS_PER_DAY // per_day
    )
    condition_N = rng.choice(len(CONDITIONS), size=len(day_N), p=mix).astype(np.int32)
    level = {day: rng.normal(scale=0.25, size=(machines, len(SHAPE))) for day in days}
    values = rng.normal(size=(len(day_N), len(SHAPE)))
    values += np.stack([level[day] for day in days])[np.repeat(np.arange(len(days)), machines * per_day), machine_N]
    values += season * np.sin(2 * np.pi * day_N / 365.25)[:, None] * WAYS["louder"]
    score = 0.3 * np.abs(values).sum(axis=1)
    everything = np.column_stack([values, score, score > np.quantile(score, 0.99)])
    version = np.where(np.isin(machine_N, list(firmware)), "2", "1").astype(object)
    return Heard(
        machines=tuple(f"m{index:02d}" for index in range(machines)),
        machine_N=machine_N,
        time_us_N=time_us_N,
        epoch_N=np.zeros(len(day_N), np.int32),
        conditions=CONDITIONS,
        condition_N=condition_N,
        columns=COLUMNS,
        values_NC=everything.astype(np.float32),
        context={"firmware": version},
    )


def moved(rows: Heard, machines: Sequence[int], way: str, size: float, from_hour: float = 0.0) -> Heard:
    """The same rows, of which some machines' shape has moved by `size` from an hour of the first day on."""
    first = rows.time_us_N.min() + from_hour * MICROSECONDS_PER_HOUR
    here = np.isin(rows.machine_N, list(machines)) & (rows.time_us_N >= first)
    rows.values_NC[here, : len(SHAPE)] += (size * WAYS[way]).astype(np.float32)
    rows.values_NC[here, len(SHAPE)] += size
    return rows


def past(machines: int = 20, days: int = 16, season: float = 0.0, per_day: int = 48) -> tuple[Heard, Limits]:
    """A reference and its limits."""
    reference = heard(machines, range(days), seed=1, season=season, per_day=per_day)
    return reference, calibrate(reference, 1.0, seed=2)


def decided(window: Heard, reference: Heard, limits: Limits, params: MonitorParams = PARAMS) -> DriftDecision:
    """The decision on a window."""
    start_us = int(window.time_us_N.min()) // MICROSECONDS_PER_HOUR * MICROSECONDS_PER_HOUR
    return decide_on(window, reference, limits, params, 3, start_us)[0]
