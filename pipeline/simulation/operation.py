"""What a machine does on a day: regimes and their dwells, speed, load, the state of its tool.

A day is cut into runs: instants of one dwell within one quarter of an hour. Everything but chance is constant in a run,
so physics is computed once per run and not once per row.

Shape legend: N instants of a machine's day, R runs, D dwells, P parts of a machine.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.schema import MICROSECONDS_PER_DAY, BoolN, FloatN, IntN
from pipeline.simulation import physics
from pipeline.simulation.history import History
from pipeline.simulation.machine import Machine

OFF, IDLE, LIGHT, HEAVY = range(len(physics.REGIMES))
TOOL, JOB = 5, 6  # streams of chance
DWELLS = 96  # drawn for a day: more than three times the mean
QUARTER = 1 / 96  # of a day
WARMEST_DAY = 200.0  # of the year


@dataclass(frozen=True)
class Day:
    """A machine's day: the run of each instant, and what holds in each run."""

    run_N: IntN
    day_R: FloatN  # days since the fleet's start
    regime_R: npt.NDArray[np.int8]
    speed_R: FloatN  # of nominal
    level_R: FloatN  # factor of every amplitude: warmth and slow wear
    force_PR: FloatN  # factor of the amplitude of each of machine.PARTS

    @property
    def running_R(self) -> BoolN:
        """The machine turns."""
        return np.asarray(self.regime_R != OFF)


def instants_us(machine: Machine, interval_seconds: float, day: int) -> IntN:
    """Microseconds (N,) since the fleet's start at which a machine is heard on a day."""
    step = max(1, round(interval_seconds * 1e6))
    phase = min(int(machine.phase * step), step - 1)
    first, last = (-((phase - moment * MICROSECONDS_PER_DAY) // step) for moment in (day, day + 1))
    return np.arange(first, last, dtype=np.int64) * step + phase


def live_day(
    machine: Machine, history: History, start: dt.date, day: int, time_us_N: IntN, rng: np.random.Generator
) -> Day:
    """What a machine does at the instants (N,) of one day, drawn from `rng`."""
    dwell_D = rng.gamma(3.0, 1 / 3.0, DWELLS)
    kind_D, speed_D = rng.random((2, DWELLS))
    load_D, jitter = rng.normal(size=DWELLS), rng.normal()
    regime_D = np.where(np.arange(DWELLS) % 2 == 1, IDLE, np.where(kind_D < physics.HEAVY_SHARE, HEAVY, LIGHT))
    dwell_D *= np.array(physics.DWELL_MINUTES)[regime_D] / 60
    around = machine.shift_hours >= 24
    begin = 0.0 if around else machine.shift_start + physics.SHIFT_JITTER * jitter
    day_N = time_us_N / MICROSECONDS_PER_DAY
    hour_N = (day_N - day) * 24
    dwell_N = np.minimum(np.searchsorted(begin + np.cumsum(dwell_D), hour_N, side="right"), DWELLS - 1)
    on_N = (hour_N >= begin) & (hour_N < begin + machine.shift_hours) & ~history.down(day_N)
    regime_N = np.where(on_N, regime_D[dwell_N], OFF)

    cell_N = np.floor(day_N / QUARTER).astype(np.int64)
    epoch_N = np.searchsorted(history.changes, day_N, side="right")
    new_N = np.ones(len(day_N), np.bool_)
    new_N[1:] = np.any([np.diff(keys) != 0 for keys in (dwell_N, regime_N, cell_N, epoch_N)], axis=0)
    first_R = np.flatnonzero(new_N)
    regime_R, dwell_R, day_R = regime_N[first_R], dwell_N[first_R], day_N[first_R]
    bounds_R2 = np.array(physics.REGIME_SPEED)[regime_R]
    worn_R, tool_R = _since_change(machine, TOOL, machine.tool_days, machine.tool_phase, day_R)
    _, job_R = _since_change(machine, JOB, machine.job_days, machine.job_phase, day_R)
    tooth_R = np.exp(physics.TOOL_SIGMA * tool_R) * (1 + machine.tool_wear * worn_R)
    load_R = np.array(physics.REGIME_LOAD)[regime_R]
    load_R = load_R * np.exp(physics.LOAD_SIGMA * load_D[dwell_R] + physics.JOB_SIGMA * job_R)
    load_R *= _swing(day_R, start, physics.LOAD_DAILY, physics.LOAD_SEASONAL, 0.0)
    level_R = _swing(day_R, start, physics.LEVEL_DAILY, physics.LEVEL_SEASONAL, machine.warmth_phase)
    level_R *= 1 + physics.SLOW_WEAR * np.sin(2 * np.pi * day_R / machine.wear_days + machine.wear_phase)
    idle_R, one_R = regime_R == IDLE, np.ones(len(day_R))
    force_PR = np.stack([one_R, np.where(idle_R, 1.0, load_R), load_R * tooth_R, load_R])
    return Day(
        run_N=np.cumsum(new_N) - 1,
        day_R=day_R,
        regime_R=regime_R.astype(np.int8),
        speed_R=bounds_R2[:, 0] + (bounds_R2[:, 1] - bounds_R2[:, 0]) * speed_D[dwell_R],
        level_R=level_R,
        force_PR=force_PR * (regime_R != OFF),
    )


def _swing(day_R: FloatN, start: dt.date, daily: float, seasonal: float, phase: float) -> FloatN:
    """Factor (R,) of the hour of the day and of the day of the year; the season is the same for the whole fleet."""
    of_year_R = day_R + start.timetuple().tm_yday
    season_R = np.cos(2 * np.pi * (of_year_R - WARMEST_DAY) / 365.25)
    return np.asarray((1 + daily * np.sin(2 * np.pi * day_R + phase)) * (1 + seasonal * season_R))


def _since_change(machine: Machine, stream: int, every: float, phase: float, day_R: FloatN) -> tuple[FloatN, FloatN]:
    """Age (R,) of the tool or job in hand, as a share of the time between changes, and its own normal number (R,).

    The k-th change of a machine is drawn from (seed, machine, k), so that it is the same on whatever day it is met.
    """
    turn_R = day_R / every + phase
    first, last = (int(np.floor(turn)) for turn in (turn_R.min() - 1, turn_R.max() + 1))
    streams = [np.random.default_rng([machine.seed, stream, machine.index, k + 2]) for k in range(first, last + 1)]
    draw_K2 = np.array([(rng.uniform(-0.5, 0.5), rng.normal()) for rng in streams])
    changed_K = np.arange(first, last + 1) + physics.CHANGE_JITTER * draw_K2[:, 0]
    which_R = np.searchsorted(changed_K, turn_R, side="right") - 1
    return np.clip(turn_R - changed_K[which_R], 0, 1), draw_K2[which_R, 1]
