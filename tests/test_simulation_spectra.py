"""Spectra: what each fault changes and what it does not, what the sensor does to it, and the law of the noise."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
from scipy import stats

from pipeline.params import FAULT_MODES
from pipeline.schema import FloatNF, Tag
from pipeline.simulation import physics
from pipeline.simulation.growth import amplitude_of_snr
from pipeline.simulation.history import Fault, History, Work
from pipeline.simulation.machine import Machine, make_machine
from pipeline.simulation.operation import HEAVY, IDLE, LIGHT, OFF, Day, instants_us, live_day
from pipeline.simulation.spectra import clipped, draw_normal, fill_spectra, new_firmware, received_power

START = dt.date(2025, 1, 1)


def machine_around_the_clock(seed: int = 3) -> Machine:
    machines = (make_machine(seed, index, 64, 12_800.0) for index in range(99))
    return next(machine for machine in machines if machine.shift_hours == 24)


MACHINE = machine_around_the_clock()


def lived(history: History, day: int = 10, interval: float = 60.0) -> Day:
    time_us = instants_us(MACHINE, interval, day)
    return live_day(MACHINE, history, START, day, time_us, np.random.default_rng(1))


def constant(mode: str, amplitude: float, machine: Machine = MACHINE) -> History:
    return History(faults=(Fault(machine.index, mode, 0.0, np.inf, amplitude, amplitude),))


def change(mode: str, amplitude: float) -> tuple[FloatNF, FloatNF, Day]:
    """Expected power without and with a fault, of the same runs."""
    day = lived(History())
    return (
        received_power(MACHINE, History(), day, "rescale"),
        received_power(MACHINE, constant(mode, amplitude), day, "rescale"),
        day,
    )


def test_energy_changes_only_energy() -> None:
    healthy, faulty, day = change("energy", 2.0)
    assert np.allclose(faulty[day.running_R], 5 * healthy[day.running_R])
    assert np.array_equal(faulty[~day.running_R], healthy[~day.running_R])


def test_a_resonance_that_moves_changes_only_the_shape() -> None:
    day = lived(History())
    flat = make_machine(3, MACHINE.index, 64, 12_800.0)
    object.__setattr__(flat, "roll_off_hz", 1e9)  # a sensor that hears all frequencies alike
    healthy = received_power(flat, History(), day, "rescale")
    faulty = received_power(flat, constant("resonance_shift", 4.0), day, "rescale")
    assert np.allclose(faulty.sum(axis=1), healthy.sum(axis=1), rtol=1e-6)
    assert (np.abs(faulty / healthy - 1).max(axis=1)[day.running_R] > 0.02).all()
    assert (faulty > 0).all()


@pytest.mark.parametrize(
    "mode", [mode for mode in FAULT_MODES if mode not in ("energy", "resonance_shift", "saturation")]
)
def test_other_faults_add_power_while_the_machine_turns(mode: str) -> None:
    healthy, faulty, day = change(mode, 3.0)
    ratio = faulty / healthy
    assert (ratio > 1 - 1e-9).all()
    assert (ratio.max(axis=1)[day.running_R] > 1.01).all()
    assert ratio.max() > 4
    assert np.array_equal(faulty[day.regime_R == OFF], healthy[day.regime_R == OFF])
    assert (ratio.max(axis=1) > 1.05 * ratio.min(axis=1))[day.running_R].mean() > 0.7  # not everything grows alike


@pytest.mark.parametrize("mode", [mode for mode in FAULT_MODES if mode != "saturation"])
def test_at_onset_a_fault_is_far_below_the_noise(mode: str) -> None:
    healthy, faulty, _ = change(mode, amplitude_of_snr(physics.ONSET_DB[1]))
    noise = 2 * physics.BIN_SIGMA[0]  # of the power of one bin of one row
    assert np.abs(faulty / healthy - 1).max() < 0.5 * noise


def test_a_saturating_sensor_hears_less_and_less_of_a_louder_machine() -> None:
    healthy, slightly, day = change("saturation", 0.1)
    _, badly, _ = change("saturation", 6.0)
    _, loose, _ = change("looseness", 6.0)
    heavy = day.regime_R == HEAVY
    assert np.allclose(slightly[heavy].sum(axis=1), healthy[heavy].sum(axis=1), rtol=0.1)
    assert (badly[heavy].sum(axis=1) < 0.2 * loose[heavy].sum(axis=1)).all()
    limit = physics.HEADROOM * MACHINE.gain * MACHINE.loudness / 7
    assert (badly.sum(axis=1) <= limit**2 * 1.0001).all()


def test_clipping_agrees_with_a_clipped_signal() -> None:
    rng = np.random.default_rng(0)
    for limit in (0.3, 1.0, 2.5):
        signal = rng.normal(size=400_000)
        assert clipped(np.full((1, 8), 1 / 8), np.array([limit])).sum() == pytest.approx(
            (np.clip(signal, -limit, limit) ** 2).mean(), rel=0.01
        )


def test_a_moved_sensor_and_another_bearing_change_the_baseline_for_good() -> None:
    moved = Work(MACHINE.index, 5.0, 5.1, Tag.SENSOR, None, gain=1.4, tilt=0.3, ripple=0.2)
    swapped = Work(MACHINE.index, 5.0, 5.1, Tag.REPAIR, None, swap=True)
    before, after = lived(History(), day=3), lived(History(), day=10)
    for work in (moved, swapped):
        history = History(works=(work,))
        assert np.array_equal(
            received_power(MACHINE, history, before, "rescale"), received_power(MACHINE, History(), before, "rescale")
        )
        there, gone = (received_power(MACHINE, one, after, "rescale") for one in (history, History()))
        assert (np.abs(there / gone - 1).max(axis=1)[after.running_R] > 0.01).all()


def test_an_ageing_sensor_loses_the_high_frequencies_and_a_new_place_renews_it() -> None:
    young, old = lived(History(), day=1), lived(History(), day=701)
    shape = [
        received_power(MACHINE, History(), day, "rescale")[day.regime_R == HEAVY].mean(axis=0) for day in (young, old)
    ]
    ratio = shape[1] / shape[0]
    assert ratio[-8:].mean() < 0.9 * ratio[:8].mean()
    renewed = History(works=(Work(MACHINE.index, 700.0, 700.1, Tag.SENSOR, None),))
    fresh = received_power(MACHINE, renewed, old, "rescale")[old.regime_R == HEAVY].mean(axis=0)
    assert (fresh / shape[1])[-8:].mean() > 1.1


def test_moved_band_edges_put_a_line_into_a_lower_bin() -> None:
    power = np.full((1, 64), 1e-6)
    power[0, 50] = 1.0
    moved = new_firmware(power, "edges")
    assert moved[0].argmax() == 47  # 50 / 1.06
    assert moved.sum() == pytest.approx(1.0, rel=1e-3)


def test_the_noise_is_normal_independent_and_as_wide_as_the_machine_says() -> None:
    sample = np.empty((400, 500), np.float32)
    draw_normal(sample, np.random.default_rng(1))
    assert stats.kstest(sample.reshape(-1), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(sample[:-1].reshape(-1), sample[1:].reshape(-1))[0, 1]) < 0.01
    day = lived(History(), interval=5.0)
    spectra = np.empty((len(day.run_N), 64), np.float32)
    fill_spectra(spectra, MACHINE, History(), day, "rescale", np.random.default_rng(2))
    power = received_power(MACHINE, History(), day, "rescale")
    relative = (spectra / np.sqrt(power)[day.run_N])[day.regime_R[day.run_N] == IDLE]
    expected = np.hypot(MACHINE.bin_sigma, physics.ROW_SIGMA)
    assert np.std(relative) == pytest.approx(expected, rel=0.1)
    assert (spectra > 0).all()


def test_shocks_are_rare_and_only_under_load() -> None:
    day = lived(History(), interval=1.0)
    spectra = np.empty((len(day.run_N), 64), np.float32)
    fill_spectra(spectra, MACHINE, History(), day, "rescale", np.random.default_rng(5))
    level = np.median(spectra / np.sqrt(received_power(MACHINE, History(), day, "rescale"))[day.run_N], axis=1)
    cutting = day.regime_R[day.run_N] >= LIGHT
    assert (level[~cutting] < 1.3).all()
    assert 0.3 * physics.SHOCK_RATE < (level[cutting] > 1.3).mean() < 1.5 * physics.SHOCK_RATE
