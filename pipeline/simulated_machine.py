"""The physics of a simulated fleet: constants in one place, and each machine's expected power spectra.

A spectrum is the root of a power: sensor noise floor, lines of the shaft and of the tool, broadband noise through the
resonances of the structure, and what a fault adds. Nothing here knows time: `simulate` weights these templates.

Shape legend: B machines of a batch, S operating states, C components, F frequency bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.schema import FloatNF

Float = npt.NDArray[np.float64]

# Operation
SHAFT_HZ = (20.0, 60.0)  # 1,200 to 3,600 rpm when cutting at nominal speed
CUT_SPEEDS = (0.8, 1.0, 1.2)  # of nominal: templates stand at these, rows lie between
IDLE_SPEED = 0.5
CUT_DWELL_MINUTES, IDLE_DWELL_MINUTES = 55.0, 14.0  # means; gamma distributed, shape 3
SHIFT_HOURS = (24.0, 16.0, 9.0)  # around the clock, two shifts, one shift ...
SHIFT_SHARES = (0.4, 0.35, 0.25)  # ... and how many machines work so

# What a healthy machine sounds like, in g
SHAFT_LINES = 12  # harmonics of the shaft, falling with their order
TOOL_LINES = 8  # harmonics of the tooth-passing frequency, under load only
LINE_AMPLITUDE = (0.02, 0.12)
BROADBAND_AMPLITUDE = (0.01, 0.05)  # at the resonances, when cutting
IDLE_BROADBAND = 0.35  # of that in amplitude, when idle
RESONANCES, RESONANCE_SPAN, DAMPING = 4, (0.04, 0.85), (0.02, 0.07)  # span: of the highest frequency
FLOOR_AMPLITUDE = (0.001, 0.003)  # of the sensor and its amplifier
SENSOR_GAIN_SIGMA = 0.15  # log; mounting and calibration differ
LINE_WIDTH = 0.01  # speed wanders by 1 % within a record
LEAKAGE_BINS = 0.35  # a line is never sharper than this

# How rows of one machine differ
BIN_SIGMA = (0.08, 0.16)  # log amplitude of one bin: a record is short
ROW_SIGMA = 0.04  # log amplitude of a whole row
LOAD_SIGMA = 0.12  # log amplitude of a dwell: material, depth of cut
WARMTH = 0.02  # amplitude moves with the hour of the day ...
WEAR, WEAR_DAYS = 0.03, (25.0, 90.0)  # ... and slowly, over weeks
SHOCK_RATE, SHOCK_AMPLITUDE = 8e-4, (1.0, 4.0)  # of cutting rows: a chip, a tool change, a fork lift

# Faults: amplitude over the healthy level of the bin that shows the fault most
OUTER_RACE, IMBALANCE, ENERGY = range(3)
FAULT_NAMES = ("outer_race", "imbalance", "energy")
FAULT_START = 0.08  # power 0.6 % of the healthy level
FAULT_PEAK = ((2.5, 7.0), (2.0, 6.0), (1.2, 3.0))  # at the moment of failure
MILD_PEAK = (0.7, 1.6)  # of an episode that nobody logs
BPFO_ORDER = (3.0, 5.5)  # outer-race passes per turn of the shaft
BPFO_LINES, SIDEBAND_POWER = 160, 0.15
GROWTH_DAYS = (3.0, 12.0)
MILD_DAYS = (1.0, 5.0)
DOWN_HOURS, REPAIR_HOURS = (2.0, 16.0), (2.0, 10.0)
LATE_HOURS = (12.0, 96.0)  # an entry that was written down late
LATE_SHARE = 0.15  # of failures, as far as the mislabelled share allows
REPAIR_GAIN_SIGMA, REPAIR_TILT_SIGMA = 0.06, 0.06  # log; another bearing, another mounting

# Firmware: another gain and an anti-aliasing filter that lets the upper bins through
FIRMWARE_GAIN, FIRMWARE_TILT = 1.6, 0.25
FIRMWARE_NAMES = ("1.0", "2.0")

STATES = (*CUT_SPEEDS, IDLE_SPEED)
IDLE_STATE = len(CUT_SPEEDS)


@dataclass(frozen=True)
class Machines:
    """Facts of a batch of machines; every array has one row per machine."""

    shaft_hz: Float  # (B,)
    gain: Float  # (B,)
    bin_sigma: Float  # (B,)
    shift_hours: Float  # (B,)
    shift_start: Float  # (B,) hour of the day
    phase: Float  # (B,) when in the sampling interval, 0 to 1
    warmth_phase: Float  # (B,)
    wear_days: Float  # (B,)
    wear_phase: Float  # (B,)
    firmware_draw: Float  # (B,) below the share: gets the new firmware
    templates: npt.NDArray[np.float32]  # (B, S * 3, F) power of healthy, outer race, imbalance in each state
    shock: npt.NDArray[np.float32]  # (B, F) power of a shock of amplitude 1
    floor: npt.NDArray[np.float32]  # (B, F) power of the sensor's noise


def make_machines(seed: int, first: int, count: int, bins: int, max_hz: float) -> Machines:
    """Machines `first` to `first + count` of the fleet of this seed; a machine is the same in every batch.

    >>> pair, one = make_machines(1, 0, 2, 8, 1000.0), make_machines(1, 1, 1, 8, 1000.0)
    >>> bool((pair.templates[1] == one.templates[0]).all())
    True
    """
    u = _draws(seed, first, count)
    width = max_hz / bins
    centres_F: Float = ((np.arange(bins) + 0.5) * width).astype(np.float64)
    shaft_hz = _between(u[:, 0], SHAFT_HZ)
    state_hz = shaft_hz[:, None] * np.array(STATES)  # (B, S)
    drive = np.array(STATES) ** 2  # forces grow with the square of speed

    modes_BR = max_hz * np.exp(_between(u[:, 8 : 8 + RESONANCES], tuple(np.log(RESONANCE_SPAN))))
    damping_BR = _between(u[:, 16 : 16 + RESONANCES], DAMPING)
    ratio = centres_F / modes_BR[..., None]
    peaks_BRF = (2 * damping_BR[..., None]) ** 2 / ((1 - ratio**2) ** 2 + (2 * damping_BR[..., None] * ratio) ** 2)
    response_BF = (peaks_BRF * (0.3 + u[:, 24 : 24 + RESONANCES, None])).sum(axis=1)
    broadband = _between(u[:, 1], BROADBAND_AMPLITUDE) ** 2
    level = np.where(np.arange(len(STATES)) == IDLE_STATE, IDLE_BROADBAND, 1.0) ** 2  # (S,)
    hiss_BF = broadband[:, None] * (response_BF + 0.3 / (1 + centres_F / (0.1 * max_hz)))
    healthy = level[:, None] * hiss_BF[:, None, :]  # (B, S, F)

    line = _between(u[:, 2], LINE_AMPLITUDE) ** 2
    teeth = 3 + np.floor(u[:, 3] * 8)
    for k in range(1, SHAFT_LINES + 1):
        power = line * (0.3 + u[:, 32 + k]) / k**2.4
        healthy += _line(state_hz * k, power[:, None] * drive**2, centres_F, width)
    for k in range(1, TOOL_LINES + 1):
        power = line * u[:, 46 + k] / k**1.5
        cutting = np.where(np.arange(len(STATES)) == IDLE_STATE, 0.0, drive**2)
        healthy += _line(state_hz * teeth[:, None] * k, power[:, None] * cutting, centres_F, width)
    floor = (_between(u[:, 4], FLOOR_AMPLITUDE) ** 2)[:, None] * (1 + 0.5 * max_hz / 50 / (centres_F + width))
    background = healthy[:, 1] + floor  # cutting at nominal speed

    order = _between(u[:, 5], BPFO_ORDER)
    excited = peaks_BRF[np.arange(count), np.floor(u[:, 6] * RESONANCES).astype(int)]  # (B, F) one mode rings
    outer = np.zeros_like(healthy)
    for k in range(1, BPFO_LINES + 1):
        centre = state_hz * order[:, None] * k
        if centre.min() > max_hz:
            break
        audible = np.where(centre <= max_hz, drive, 0.0)  # of each machine alone, whoever shares its batch
        for side, share in ((0, 1.0), (-1, SIDEBAND_POWER), (1, SIDEBAND_POWER)):
            outer += _line(centre + side * state_hz, share * audible, centres_F, width)
    outer *= (excited + 0.1 * np.exp(-centres_F / (0.08 * max_hz)))[:, None, :]
    imbalance = _line(state_hz, drive[None, :] ** 2, centres_F, width)
    imbalance += _line(2 * state_hz, 0.1 * drive[None, :] ** 2, centres_F, width)

    shift_start, shift_hours = _shifts(u)
    parts = [healthy, _scaled(outer, background), _scaled(imbalance, background)]
    templates = np.concatenate(parts, axis=1)
    return Machines(
        shaft_hz=shaft_hz,
        gain=np.exp(SENSOR_GAIN_SIGMA * 2 * np.sqrt(3) * (u[:, 7] - 0.5)),
        bin_sigma=_between(u[:, 12], BIN_SIGMA),
        shift_hours=shift_hours,
        shift_start=shift_start,
        phase=u[:, 15],
        warmth_phase=2 * np.pi * u[:, 20],
        wear_days=_between(u[:, 21], WEAR_DAYS),
        wear_phase=2 * np.pi * u[:, 22],
        firmware_draw=u[:, 23],
        templates=templates.astype(np.float32),
        shock=(hiss_BF / (hiss_BF / background).max(axis=1, keepdims=True)).astype(np.float32),
        floor=floor.astype(np.float32),
    )


def working_hours(seed: int, machine: int) -> tuple[float, float]:
    """First hour of the day and number of hours that a machine of the fleet works.

    >>> sum(working_hours(1, 0)) <= 24
    True
    """
    start_B, hours_B = _shifts(_draws(seed, machine, 1))
    return float(start_B[0]), float(hours_B[0])


def _draws(seed: int, first: int, count: int) -> Float:
    """(B, 64) uniform numbers, one row per machine; each number has one use."""
    return np.stack([np.random.default_rng([seed, 0, first + i]).random(64) for i in range(count)])


def _shifts(u: Float) -> tuple[Float, Float]:
    hours_B = np.array(SHIFT_HOURS)[np.searchsorted(np.cumsum(SHIFT_SHARES[:-1]), u[:, 13], side="right")]
    return np.where(hours_B >= 24, 0.0, 5 + 3 * u[:, 14]), hours_B


def tilted(gain: float, tilt: float, bins: int) -> FloatNF:
    """A change of the signal path as a factor per bin (F,): a gain, and a log tilt from the lowest bin to the highest.

    >>> tilted(2.0, 0.0, 3).tolist()
    [2.0, 2.0, 2.0]
    """
    return np.asarray(gain * np.exp(tilt * np.linspace(-0.5, 0.5, bins)), dtype=np.float32)


def _between(u: Float, bounds: tuple[float, ...]) -> Float:
    return np.asarray(bounds[0] + (bounds[1] - bounds[0]) * u)


def _line(hz: Float, power: Float, centres_F: Float, width: float) -> Float:
    """Power (B, S, F) of spectral lines at `hz` (B, S), smeared by wandering speed and leakage."""
    sigma = np.maximum(LEAKAGE_BINS * width, LINE_WIDTH * hz)[..., None]
    shape = np.exp(-0.5 * ((centres_F - hz[..., None]) / sigma) ** 2)
    return np.asarray(power[..., None] * shape * (width / (sigma * np.sqrt(2 * np.pi))))


def _scaled(fault: Float, background: Float) -> Float:
    """A fault's power such that amplitude 1 equals the healthy level in the bin that shows it most."""
    visible = (fault[:, 1] / background).max(axis=1)
    return np.asarray(fault / np.maximum(visible, 1e-30)[:, None, None])
