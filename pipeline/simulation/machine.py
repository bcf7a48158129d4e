"""What each machine of a simulated fleet is: facts drawn from (seed, machine), and the power spectra of its parts.

A template is the power per bin of one part (shaft, hiss, tool, gear mesh, bearing, a fault) in each operating state.
Nothing here knows time: `spectra` weights the templates.

Shape legend: K lines, S operating states, F frequency bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.schema import FloatN
from pipeline.simulation import physics
from pipeline.simulation.bearings import Bearing, make_bearing

IDLE = physics.REGIME_SPEED[physics.REGIMES.index("idle")][0]
SPEEDS = np.r_[IDLE, np.linspace(0.8, 1.2, 9)]  # templates stand at these; rows lie between
NOMINAL = 5  # the state at nominal speed
PARTS = ("shaft", "hiss", "tool", "mesh")  # of a healthy machine; its bearings come and go
LINES_AT_ONCE = 64
# uses of a machine's uniform numbers
SHAFT, FLOOR, LINE, BROADBAND, GAIN, BIN, SHIFT, START, PHASE, WARMTH, WEAR, WEAR_PHASE, TEETH, GEAR = range(14)
ROLL_OFF, AGEING, TOOL_DAYS, TOOL_WEAR, TOOL_PHASE, EXCITED, CRACKED, TURNING, JOB_DAYS, JOB_PHASE = range(14, 24)
MODES, DAMPING, WEIGHTS, SHAFT_LINES, TOOL_LINES = 24, 28, 32, 36, 48
DRAWS = 56

Power = npt.NDArray[np.float32]
NumberK = npt.NDArray[np.float64] | npt.NDArray[np.integer]


@dataclass(frozen=True)
class Machine:
    """One machine; powers are in g squared per bin."""

    index: int
    shaft_hz: float
    gain: float  # of the sensor
    bin_sigma: float
    shift_start: float  # hour of the day
    shift_hours: float
    phase: float  # when in the sampling interval, 0 to 1
    warmth_phase: float
    wear_days: float
    wear_phase: float
    roll_off_hz: float  # corner of the new sensor
    ageing: float  # per year, log
    tool_days: float
    tool_wear: float
    tool_phase: float
    job_days: float
    job_phase: float
    centres_F: FloatN
    parts_PSF: Power  # of PARTS
    floor_F: Power
    shock_F: Power  # power of a shock of amplitude 1
    background_SF: FloatN  # healthy, at mean load
    excited_F: FloatN  # response of the mode that a bearing fault rings
    cracked_SF: FloatN  # power that leaves a resonance and power that comes back lower: sums to nothing
    seed: int
    _made: dict[tuple[str, int], Power] = field(default_factory=dict, compare=False, repr=False)

    @property
    def loudness(self) -> float:
        """Root of the power of a heavy cut at nominal speed."""
        load = physics.REGIME_LOAD[-1]
        return float(np.sqrt(self.background_SF[NOMINAL].sum()) * load)

    def bearing(self, generation: int) -> Bearing:
        """Its bearing after so many swaps."""
        return make_bearing(self.seed, self.index, generation)

    def sound_bearing(self, generation: int) -> Power:
        """Template (S, F) of a good bearing: the waviness of both races."""
        return self._kept("sound", generation)

    def fault(self, mode: str, generation: int) -> Power:
        """Template (S, F) of a fault of amplitude 1; of a resonance that moves, what is moved at share 1."""
        return self._kept(mode, generation if mode in physics.BEARING_MODES else 0)

    def _kept(self, name: str, generation: int) -> Power:
        made = self._made.get((name, generation))
        if made is None:
            made = self._made[name, generation] = self._make(name, generation).astype(np.float32)
        return made

    def _make(self, name: str, generation: int) -> FloatN:
        if name == "resonance_shift":
            return self.cracked_SF
        if name == "sound":
            races = (self._rolling(mode, generation) for mode in ("outer_race", "inner_race"))
            return np.asarray(
                self.bearing(generation).waviness ** 2 * _scaled(sum(races, np.zeros(1)), self.background_SF)
            )
        if name in physics.BEARING_MODES:
            return _scaled(self._rolling(name, generation), self.background_SF)
        return _scaled(self._shaft_fault(name), self.background_SF)

    def _rolling(self, mode: str, generation: int) -> FloatN:
        order, distance, sideband = self.bearing(generation).lines(mode)
        k_K = np.arange(1, physics.BEARING_LINES + 1)
        orders_K = np.concatenate([order * k_K + side * distance for side in (0, -1, 1)])
        power_K = np.repeat([1.0, sideband, sideband], len(k_K))
        comb_SF = _lines(self.shaft_hz, orders_K, power_K, SPEEDS**2, self.centres_F, physics.SLIP)
        low_F = 0.1 * np.exp(-self.centres_F / (0.08 * self.centres_F[-1]))
        return np.asarray(_idle_quieter(comb_SF * (self.excited_F + low_F)))  # a race rings with the load on it

    def _shaft_fault(self, mode: str) -> FloatN:
        force_S = SPEEDS**4  # an unbalanced mass pulls with the square of speed: power with the fourth
        centres_F, width = self.centres_F, physics.LINE_WIDTH
        if mode == "imbalance":
            return _lines(self.shaft_hz, np.array([1.0, 2.0]), np.array([1.0, 0.1]), force_S, centres_F, width)
        if mode == "misalignment":
            power_K = np.array(physics.MISALIGNMENT_LINES)
            return _lines(self.shaft_hz, np.arange(1.0, len(power_K) + 1), power_K, SPEEDS**2, centres_F, width)
        rubbing_F = 1 / (1 + (physics.RUBBING_CORNER * centres_F[-1] / centres_F) ** 4)
        hiss_SF = self.parts_PSF[PARTS.index("hiss")].astype(np.float64)
        if mode == "lubrication":
            return np.asarray(hiss_SF * rubbing_F)
        orders_K = np.arange(1, 2 * physics.LOOSE_LINES + 1) / 2
        power_K = np.where(orders_K % 1 == 0, 1.0, physics.LOOSE_HALVES) / orders_K**physics.LOOSE_DECAY
        lines_SF = _lines(self.shaft_hz, orders_K, power_K, SPEEDS**2, centres_F, width)
        rattle_SF = hiss_SF / hiss_SF[NOMINAL].max() * lines_SF[NOMINAL].max()
        return np.asarray(lines_SF + physics.RATTLE * rattle_SF)


def make_machine(seed: int, index: int, bins: int, max_hz: float) -> Machine:
    """Machine `index` of the fleet of this seed.

    >>> machine = make_machine(1, 0, 8, 1000.0)
    >>> machine.parts_PSF.shape, bool((machine.parts_PSF == make_machine(1, 0, 8, 1000.0).parts_PSF).all())
    ((4, 10, 8), True)
    """
    u = _draws(seed, index)
    width = max_hz / bins
    centres_F: FloatN = ((np.arange(bins) + 0.5) * width).astype(np.float64)
    shaft_hz = _between(u[SHAFT], physics.SHAFT_HZ)
    drive_S = SPEEDS**2  # of the power of a line
    cutting_S = np.where(SPEEDS == IDLE, 0.0, 1.0)
    peaks_RF = _resonances(u, centres_F, max_hz)
    weights_R = physics.RESONANCE_FLOOR + u[WEIGHTS : WEIGHTS + physics.RESONANCES]
    between_F = physics.HISS_POWER / (1 + centres_F / (physics.HISS_CORNER * max_hz))
    hiss_F = _between(u[BROADBAND], physics.BROADBAND_AMPLITUDE) ** 2 * (weights_R @ peaks_RF + between_F)
    turning = _between(u[TURNING], physics.SHAFT_AMPLITUDE) ** 2
    line = _between(u[LINE], physics.TOOL_AMPLITUDE) ** 2

    k_K = np.arange(1, physics.SHAFT_LINES + 1)
    power_K = turning * (0.3 + u[SHAFT_LINES : SHAFT_LINES + len(k_K)]) / k_K**physics.SHAFT_DECAY
    shaft_SF = _lines(shaft_hz, k_K, power_K, drive_S, centres_F, physics.LINE_WIDTH)
    teeth = np.floor(_between(u[TEETH], (physics.TEETH[0], physics.TEETH[1] + 1)))
    k_K = np.arange(1, physics.TOOL_LINES + 1)
    power_K = line * u[TOOL_LINES : TOOL_LINES + len(k_K)] / k_K**physics.TOOL_DECAY
    tool_SF = _lines(shaft_hz, k_K * teeth, power_K, drive_S * cutting_S, centres_F, physics.LINE_WIDTH)
    mesh = np.floor(_between(u[GEAR], physics.GEAR_TEETH))
    k_K = np.arange(1, physics.MESH_LINES + 1)
    orders_K = np.concatenate([k_K * mesh + side for side in (0, -1, 1)])
    power_K = np.repeat([1.0, physics.MESH_SIDEBAND, physics.MESH_SIDEBAND], len(k_K))
    power_K *= physics.MESH_POWER * line / np.tile(k_K, 3) ** physics.MESH_DECAY
    mesh_SF = _lines(shaft_hz, orders_K, power_K, drive_S * cutting_S, centres_F, physics.LINE_WIDTH)
    parts_PSF = np.stack([shaft_SF, _idle_quieter(np.tile(hiss_F, (len(SPEEDS), 1))), tool_SF, mesh_SF])

    floor_F = _between(u[FLOOR], physics.FLOOR_AMPLITUDE) ** 2 * (1 + physics.FLOOR_PINK * max_hz / centres_F)
    background_SF = parts_PSF.sum(axis=0) + floor_F
    cracked = int(u[CRACKED] * physics.RESONANCES)
    sound_F = weights_R[cracked] * peaks_RF[cracked] * _between(u[BROADBAND], physics.BROADBAND_AMPLITUDE) ** 2
    soft_F = np.interp(centres_F / physics.SOFTENING, centres_F, sound_F)
    moved_F = soft_F * (sound_F.sum() / soft_F.sum()) - sound_F
    shift_start, shift_hours = _shift(u)
    return Machine(
        index=index,
        shaft_hz=shaft_hz,
        gain=float(np.exp(physics.SENSOR_GAIN_SIGMA * 2 * np.sqrt(3) * (u[GAIN] - 0.5))),
        bin_sigma=_between(u[BIN], physics.BIN_SIGMA),
        shift_start=shift_start,
        shift_hours=shift_hours,
        phase=float(u[PHASE]),
        warmth_phase=float(2 * np.pi * u[WARMTH]),
        wear_days=_between(u[WEAR], physics.SLOW_WEAR_DAYS),
        wear_phase=float(2 * np.pi * u[WEAR_PHASE]),
        roll_off_hz=_between(u[ROLL_OFF], physics.ROLL_OFF) * max_hz,
        ageing=_between(u[AGEING], physics.AGEING_PER_YEAR),
        tool_days=_between(u[TOOL_DAYS], physics.TOOL_DAYS),
        tool_wear=_between(u[TOOL_WEAR], physics.TOOL_WEAR),
        tool_phase=float(u[TOOL_PHASE]),
        job_days=_between(u[JOB_DAYS], physics.JOB_DAYS),
        job_phase=float(u[JOB_PHASE]),
        centres_F=centres_F,
        parts_PSF=parts_PSF.astype(np.float32),
        floor_F=floor_F.astype(np.float32),
        shock_F=(hiss_F / (hiss_F / background_SF[NOMINAL]).max()).astype(np.float32),
        background_SF=background_SF,
        excited_F=peaks_RF[int(u[EXCITED] * physics.RESONANCES)],
        cracked_SF=_idle_quieter(np.tile(moved_F, (len(SPEEDS), 1))),
        seed=seed,
    )


def working_hours(seed: int, machine: int) -> tuple[float, float]:
    """First hour of the day and number of hours that a machine of the fleet works.

    >>> sum(working_hours(1, 0)) <= 24
    True
    """
    return _shift(_draws(seed, machine))


def tilted(gain: float, tilt: float, bins: int) -> FloatN:
    """A change of the signal path as a factor of amplitude per bin (F,): a gain, and a log tilt from first to last bin.

    >>> tilted(2.0, 0.0, 3).tolist()
    [2.0, 2.0, 2.0]
    """
    return np.asarray(gain * np.exp(tilt * np.linspace(-0.5, 0.5, bins)))


def _draws(seed: int, index: int) -> FloatN:
    """Uniform numbers of a machine; each has one use."""
    return np.random.default_rng([seed, 0, index]).random(DRAWS)


def _shift(u: FloatN) -> tuple[float, float]:
    kind = int(np.searchsorted(np.cumsum(physics.SHIFT_SHARES[:-1]), u[SHIFT], side="right"))
    hours = physics.SHIFT_HOURS[kind]
    return (0.0 if hours >= 24 else _between(u[START], physics.SHIFT_START)), hours


def _idle_quieter(power_SF: FloatN) -> FloatN:
    """Power (S, F) of what little load leaves of it when idle."""
    return np.asarray(power_SF * np.where(SPEEDS == IDLE, physics.IDLE_BROADBAND, 1.0)[:, None] ** 2)


def _between(u: float, bounds: Sequence[float]) -> float:
    return float(bounds[0] + (bounds[1] - bounds[0]) * u)


def _resonances(u: FloatN, centres_F: FloatN, max_hz: float) -> FloatN:
    """Power response (R, F) of each mode of the structure, 1 at its natural frequency."""
    low, high = np.log(physics.RESONANCE_SPAN)
    natural_R = max_hz * np.exp(low + (high - low) * u[MODES : MODES + physics.RESONANCES])
    least, most = physics.DAMPING
    damping_R = least + (most - least) * u[DAMPING : DAMPING + physics.RESONANCES]
    ratio_RF, double_R1 = centres_F / natural_R[:, None], 2 * damping_R[:, None]
    return np.asarray(double_R1**2 / ((1 - ratio_RF**2) ** 2 + (double_R1 * ratio_RF) ** 2))


def _lines(
    shaft_hz: float, orders_K: NumberK, power_K: FloatN, drive_S: FloatN, centres_F: FloatN, smear: float
) -> FloatN:
    """Power (S, F) of lines at multiples of the shaft's frequency, smeared by wandering speed, slip and leakage."""
    width = centres_F[0] * 2
    power_SF = np.zeros((len(SPEEDS), len(centres_F)))
    for state, speed in enumerate(SPEEDS):
        hz_K = shaft_hz * speed * orders_K
        heard_K = hz_K < 1.1 * centres_F[-1]
        for first in range(0, int(heard_K.sum()), LINES_AT_ONCE):
            hz, power = hz_K[heard_K][first:][:LINES_AT_ONCE], power_K[heard_K][first:][:LINES_AT_ONCE]
            sigma = np.maximum(physics.LEAKAGE_BINS * width, smear * hz)
            shape_KF = np.exp(-0.5 * ((centres_F - hz[:, None]) / sigma[:, None]) ** 2)
            power_SF[state] += (power * width / (sigma * np.sqrt(2 * np.pi))) @ shape_KF
    return power_SF * drive_S[:, None]


def _scaled(fault_SF: FloatN, background_SF: FloatN) -> FloatN:
    """A fault's power such that amplitude 1 equals the healthy level in the state and bin that show it most."""
    visible = float((fault_SF / background_SF).max())
    return np.asarray(fault_SF / max(visible, 1e-30))
