"""Machines: lines where the physics puts them, faults of amplitude 1, and parts that never go below nothing."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.params import FAULT_MODES
from pipeline.simulation import physics
from pipeline.simulation.machine import IDLE, NOMINAL, PARTS, SPEEDS, make_machine, working_hours

TEMPLATES = [mode for mode in FAULT_MODES if mode not in ("energy", "saturation", "resonance_shift")]


@pytest.fixture(scope="module")
def fine():
    """A machine heard in bands of 10 Hz up to 4 kHz."""
    return make_machine(3, 0, 400, 4000.0)


@pytest.mark.parametrize("mode", TEMPLATES)
def test_a_fault_of_amplitude_one_doubles_the_power_where_it_shows_most(mode: str) -> None:
    for index in range(5):
        machine = make_machine(1, index, 64, 12_800.0)
        ratio = machine.fault(mode, 0) / machine.background_SF
        assert ratio.max() == pytest.approx(1.0, rel=1e-5)
        assert (machine.fault(mode, 0) >= 0).all()


@pytest.mark.parametrize("mode", physics.BEARING_MODES)
def test_a_bearing_fault_has_lines_at_its_own_frequency(fine, mode: str) -> None:
    order, _, _ = fine.bearing(0).lines(mode)
    power_F = fine.fault(mode, 0)[NOMINAL]
    for k in (1, 2, 3):
        near = np.abs(fine.centres_F - k * order * fine.shaft_hz) < 0.2 * order * fine.shaft_hz
        between = np.abs(fine.centres_F - (k + 0.5) * order * fine.shaft_hz) < 0.08 * order * fine.shaft_hz
        assert power_F[near].max() > 2 * power_F[between].mean()


def test_lines_move_with_the_speed(fine) -> None:
    shaft = fine.fault("imbalance", 0)
    for state in (1, NOMINAL, len(SPEEDS) - 1):
        assert abs(fine.centres_F[shaft[state].argmax()] - fine.shaft_hz * SPEEDS[state]) < 10


def test_another_bearing_sounds_different_and_shaft_faults_do_not(fine) -> None:
    assert not np.array_equal(fine.sound_bearing(0), fine.sound_bearing(1))
    assert not np.array_equal(fine.fault("outer_race", 0), fine.fault("outer_race", 1))
    assert fine.fault("imbalance", 0) is fine.fault("imbalance", 1)


def test_a_resonance_that_moves_takes_no_power_and_leaves_none() -> None:
    for index in range(20):
        machine = make_machine(2, index, 64, 12_800.0)
        moved_SF = machine.cracked_SF
        assert np.abs(moved_SF.sum(axis=1)).max() < 1e-9 * np.abs(moved_SF).sum(axis=1).max()
        hiss_SF = machine.parts_PSF[PARTS.index("hiss")]
        assert (hiss_SF + moved_SF > 0).all()
        centre = (machine.centres_F * np.maximum(moved_SF[NOMINAL], 0)).sum() / np.maximum(moved_SF[NOMINAL], 0).sum()
        left = (machine.centres_F * np.maximum(-moved_SF[NOMINAL], 0)).sum() / np.maximum(-moved_SF[NOMINAL], 0).sum()
        assert centre < left  # what is softer rings lower


def test_tool_and_mesh_are_silent_when_idle() -> None:
    machine = make_machine(2, 0, 64, 12_800.0)
    idle = int(np.flatnonzero(SPEEDS == IDLE)[0])
    assert machine.parts_PSF[PARTS.index("tool"), idle].max() == 0
    assert machine.parts_PSF[PARTS.index("mesh"), idle].max() == 0
    assert machine.parts_PSF[PARTS.index("shaft"), idle].max() > 0


@pytest.mark.parametrize(("bins", "max_hz"), [(8, 100.0), (64, 12_800.0), (1024, 25_600.0)])
def test_any_resolution_gives_finite_powers(bins: int, max_hz: float) -> None:
    machine = make_machine(5, 1, bins, max_hz)
    assert np.isfinite(machine.parts_PSF).all()
    assert all(np.isfinite(machine.fault(mode, 0)).all() for mode in TEMPLATES)
    assert machine.loudness > 0


def test_working_hours_are_those_of_the_machine() -> None:
    machine = make_machine(5, 1, 8, 100.0)
    assert working_hours(5, 1) == (machine.shift_start, machine.shift_hours)
    kinds = {working_hours(5, index)[1] for index in range(60)}
    assert kinds == set(physics.SHIFT_HOURS)
