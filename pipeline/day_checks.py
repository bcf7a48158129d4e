"""What a whole day of one machine says: missing rows, another unit, moved band edges, a step of gain, switched off.

Each day is compared with the machine's own other days. In a log spectrum a unit or a gain is one offset of all bins,
and a moved band edge is a shift or stretch along the bins: that tells them from a fault, which changes some bins.

Shape legend: D machine-days, E the same with days without rows, F frequency bins, W warps of the frequency axis,
Q quantiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.day_tally import FloatDF, MachineDays
from pipeline.params import ValidateParams
from pipeline.schema import MICROSECONDS_PER_DAY, BoolN, FloatN, IntN

UNIT_FACTORS = (1000.0, 0.001)  # g and mg, m and mm
UNIT_DECADES = 0.3  # a factor of 500 to 2,000 is a change of unit
SAME_SHAPE = 0.35  # nepers: typical distance of two log spectra, after one offset, that are of one machine
LONGEST_GAP_DAYS = 31  # days without any row are listed up to this many in a row
OUTLYING = 4.0  # times the machine's usual day-to-day distance
EXPLAINED = 0.4  # of the distance to the usual day is left when a warp explains it
MOST_WARPED_DAYS = 200  # per machine; more of them say the same
SHIFTS = np.arange(-4, 4.5, 0.5)  # bins
STRETCHES = np.exp(np.linspace(-np.log(2), np.log(2), 81))


@dataclass(frozen=True)
class DayFacts:
    """Facts of E machine-days, days without rows among them: one array (E,) each, NaN where nothing can be said."""

    machine: npt.NDArray[np.int32]
    day: IntN
    rows: IntN
    expected_rows: FloatN
    missing_share: FloatN
    energy: FloatN  # median
    usual_energy: FloatN  # median of the machine's days
    usual_share: FloatN  # energy over usual energy; NaN on days in another unit, whose energy means nothing
    unit_factor: FloatN  # 1, 1000 or 0.001
    gain_step: FloatN  # factor at the day on which it begins; 1: none
    band_shift: FloatN  # bins; 0: none
    band_stretch: FloatN  # factor; 1: none


def day_facts(days: MachineDays, interval_seconds: float | None, params: ValidateParams) -> DayFacts:
    """Compare each machine-day with the other days of its machine."""
    count = len(days.day_D)
    usual_D, unit_D, step_D = np.full(count, np.nan), np.ones(count), np.ones(count)
    shift_D, stretch_D = np.zeros(count), np.ones(count)
    bounds = np.flatnonzero(np.r_[True, days.machine_D[1:] != days.machine_D[:-1], True]) if count else np.zeros(1, int)
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        mine = slice(start, end)
        medians = days.energy_DQ[mine, 1]
        usual_D[mine] = usual = _lower_median(medians)
        logs = days.log_DF[mine]
        if not logs.shape[1] or not np.isfinite(usual):
            continue
        unit_D[mine] = unit = unit_factors(logs, days.energy_DQ[mine], usual)
        running = np.isfinite(logs).all(axis=1) & (unit == 1) & (medians >= params.off_share * usual)
        step_D[mine] = gain_steps(logs, running, params)
        shift_D[mine], stretch_D[mine] = moved_bands(logs, running)
    energy_D = days.energy_DQ[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        share_D = np.where(unit_D == 1, energy_D / usual_D, np.nan)
    expected_D = _expected_rows(days, interval_seconds)
    known = DayFacts(
        days.machine_D,
        days.day_D,
        days.rows_D,
        expected_D,
        np.clip(1 - days.rows_D / expected_D, 0, 1),
        energy_D,
        usual_D,
        share_D,
        unit_D,
        step_D,
        shift_D,
        stretch_D,
    )
    return _with_absent_days(known, interval_seconds)


def _lower_median(values: FloatN) -> float:
    """The lower of the middle two: of two equal halves, one is usual and the other is not; NaN of nothing."""
    values = np.sort(values[np.isfinite(values)])
    return float(values[(len(values) - 1) // 2]) if len(values) else float("nan")


def unit_factors(log_DF: FloatDF, energy_DQ: FloatN, usual: float) -> FloatN:
    """Factor (D,) by which the days' numbers are too large: 1000, 0.001, or 1.

    Some of the day's energies (its .1, .5 or .9 quantile) are the usual energy times the factor, and the mean spectrum
    is the usual one but for an offset: a machine that stands still has another spectrum, not the same one divided.

    >>> shape = np.array([1.0, 3.0, 2.0], np.float32)
    >>> logs = shape + np.log(np.array([1, 1, 1, 1000], np.float32))[:, None]
    >>> unit_factors(logs, np.array([1.0, 1.0, 1.0, 1000.0])[:, None].repeat(3, axis=1), 1.0).tolist()
    [1.0, 1.0, 1.0, 1000.0]
    """
    factor_D = np.ones(len(log_DF))
    with np.errstate(divide="ignore", invalid="ignore"):
        decades_DQ = np.log10(energy_DQ / usual)
        near = [(np.abs(decades_DQ - np.log10(factor)) < UNIT_DECADES).any(axis=1) for factor in UNIT_FACTORS]
    if not np.any(near):
        return factor_D
    usual_days = (np.abs(decades_DQ[:, 1]) < UNIT_DECADES) & np.isfinite(log_DF).all(axis=1)
    if not usual_days.any():
        return factor_D
    delta_DF = log_DF - np.median(log_DF[usual_days], axis=0)
    same_D = _spread(delta_DF) < SAME_SHAPE
    for factor, near_D in zip(UNIT_FACTORS, near, strict=True):
        factor_D[near_D & same_D] = factor
    return factor_D


def _spread(delta_DF: npt.NDArray[np.floating]) -> FloatN:
    """Root mean square (D,) of differences of log spectra after their offset."""
    return np.asarray((delta_DF - np.median(delta_DF, axis=1, keepdims=True)).std(axis=1), np.float64)


def gain_steps(log_DF: FloatDF, running_D: BoolN, params: ValidateParams) -> FloatN:
    """Factor (D,) by which all bins step at a day and stay, 1 elsewhere.

    The median of `step_days` days before is compared with that of as many from the day on: the offset is at least
    `gain_step` and four times what days usually differ by, and what it leaves is a quarter of it at most.

    >>> logs = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (10, 1))
    >>> logs[6:] += np.log(2)
    >>> gain_steps(logs, np.ones(10, bool), ValidateParams(step_days=3)).round(3).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0]
    """
    factor_D, width = np.ones(len(log_DF)), params.step_days
    days = np.flatnonzero(running_D)
    if len(days) < 2 * width:
        return factor_D
    logs = log_DF[days]
    level = np.median(logs, axis=1)
    usual = float(np.median(np.abs(np.diff(level))))
    blocks = np.median(np.lib.stride_tricks.sliding_window_view(logs, width, axis=0), axis=-1)
    delta_KF = blocks[width:] - blocks[:-width]  # K days that have `width` days before and from them on
    offset_K = np.median(delta_KF, axis=1)
    sudden_K = np.diff(level)[width - 1 : width - 1 + len(offset_K)] / np.where(offset_K == 0, 1, offset_K)
    step_K = (
        (np.abs(offset_K) >= max(np.log1p(params.gain_step), OUTLYING * usual))
        & ((delta_KF - offset_K[:, None]).std(axis=1) <= np.abs(offset_K) / 4)
        & (sudden_K > 0.7)
    )
    factor_D[days[width:][: len(offset_K)][step_K]] = np.exp(offset_K[step_K])
    return factor_D


def moved_bands(log_DF: FloatDF, running_D: BoolN) -> tuple[FloatN, FloatN]:
    """Shift (D,) in bins and stretch (D,) that the days' spectra have against the machine's usual one; 0 and 1: none.

    A day counts where it is far from the usual spectrum (four times the machine's usual distance), and near to it once
    the frequency axis is moved.

    >>> usual = np.sin(np.arange(32) / 2.0).astype(np.float32)
    >>> logs = np.stack([usual] * 6 + [np.roll(usual, 2)])
    >>> logs += 0.01 * np.random.default_rng(0).normal(size=logs.shape).astype(np.float32)
    >>> [found[-1].item() for found in moved_bands(logs, np.ones(7, bool))]
    [2.0, 1.0]
    """
    shift_D, stretch_D = np.zeros(len(log_DF)), np.ones(len(log_DF))
    bins, days = log_DF.shape[1], np.flatnonzero(running_D)
    if len(days) < 3 or bins < 8:
        return shift_D, stretch_D
    logs_DF = log_DF[days] - np.median(log_DF[days], axis=1, keepdims=True)
    usual_F = np.median(logs_DF, axis=0)
    distance_D = _spread(logs_DF - usual_F)
    typical = float(np.median(distance_D))
    # a spectrum without shape looks the same however it is moved
    far = np.flatnonzero(distance_D > max(OUTLYING * typical, EXPLAINED * float(usual_F.std()) / 2))[:MOST_WARPED_DAYS]
    if not len(far):
        return shift_D, stretch_D
    warps = np.array([(shift, stretch) for stretch in STRETCHES for shift in SHIFTS])
    place_WF = (np.arange(bins) - warps[:, :1]) / warps[:, 1:]
    warped_WF = np.interp(place_WF, np.arange(bins), usual_F)
    inside_WF = (place_WF >= 0) & (place_WF <= bins - 1)
    kept_W = inside_WF.sum(axis=1)
    effort_W = np.abs(np.log(warps[:, 1])) * bins + np.abs(warps[:, 0])
    for index in far.tolist():
        with np.errstate(invalid="ignore"):
            delta_WF = np.where(inside_WF, logs_DF[index] - warped_WF, np.nan)
        centre_W1 = np.nansum(delta_WF, axis=1, keepdims=True) / kept_W[:, None]
        left_W = np.sqrt(np.nansum((delta_WF - centre_W1) ** 2, axis=1) / kept_W)
        left_W[kept_W < bins / 2] = np.inf
        best = float(left_W.min())
        if best <= EXPLAINED * distance_D[index] and best <= 2 * typical + 0.1 * float(usual_F.std()):
            # of moves that explain it equally well, the smallest
            choice = int(np.argmin(np.where(left_W <= 1.05 * best, effort_W, np.inf)))
            shift_D[days[index]], stretch_D[days[index]] = warps[choice]
    return shift_D, stretch_D


def _expected_rows(days: MachineDays, interval_seconds: float | None) -> FloatN:
    """Rows (D,) that a whole day has, or what is left of it on a machine's first and last day; NaN: nobody knows."""
    if interval_seconds is None or not len(days.day_D):
        return np.full(len(days.day_D), np.nan)
    interval = interval_seconds * 1e6
    start_D, first_D, last_D = days.day_D * MICROSECONDS_PER_DAY, days.first_us_D, days.last_us_D
    new_D = np.r_[True, days.machine_D[1:] != days.machine_D[:-1]]
    end_D = np.r_[new_D[1:], True]
    begin_D = np.where(new_D, first_D, start_D)
    until_D = np.where(end_D, last_D + interval, start_D + MICROSECONDS_PER_DAY)
    return np.maximum(1.0, np.round((until_D - begin_D) / interval))


def _with_absent_days(facts: DayFacts, interval_seconds: float | None) -> DayFacts:
    """The same with the days between a machine's days that have no row at all."""
    gap_D = np.where(facts.machine[1:] == facts.machine[:-1], np.diff(facts.day) - 1, 0)
    gap_D = np.where(gap_D <= LONGEST_GAP_DAYS, gap_D, 0)
    before = np.repeat(np.arange(len(gap_D)), gap_D)
    if not len(before) or interval_seconds is None:
        return facts
    place = np.arange(len(before)) - np.repeat(np.cumsum(gap_D) - gap_D, gap_D)
    nan, zero, one = (np.full(len(before), value) for value in (np.nan, 0.0, 1.0))
    whole_day = np.full(len(before), max(1.0, round(86_400 / interval_seconds)))
    absent = DayFacts(
        facts.machine[before],
        facts.day[before] + 1 + place,
        zero.astype(np.int64),
        whole_day,
        one,
        nan,
        facts.usual_energy[before],
        nan,
        one,
        one,
        zero,
        one,
    )
    names = DayFacts.__dataclass_fields__
    both = {name: np.concatenate([getattr(facts, name), getattr(absent, name)]) for name in names}
    rank = np.empty(int(both["machine"].max()) + 1, np.int64)
    order_of_machines = facts.machine[np.r_[True, facts.machine[1:] != facts.machine[:-1]]]
    rank[order_of_machines] = np.arange(len(order_of_machines))
    order = np.lexsort((both["day"], rank[both["machine"]]))
    return DayFacts(**{name: values[order] for name, values in both.items()})


def plant_events(finding_E: BoolN, day_E: IntN, share: float) -> BoolN:
    """Which findings (E,) are on days on which more than `share` of the machines with that day have it: the plant's.

    One machine alone is never the plant.

    >>> plant_events(np.array([True, True, True, True, False, False]), np.array([5, 5, 5, 6, 6, 6]), 0.5).tolist()
    [True, True, True, False, False, False]
    """
    _, index_E = np.unique(day_E, return_inverse=True)
    machines, found = np.bincount(index_E), np.bincount(index_E, weights=finding_E)
    of_all = (found > share * machines) & (found > 1)
    return np.asarray(finding_E & of_all[index_E])
