"""Growth of faults: every law starts and ends where it should and never shrinks; decibels there and back."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.simulation import physics
from pipeline.simulation.growth import amplitude_of_rise, amplitude_of_snr, grown, snr_of_amplitude

SHAPES = {"exponential": 1.0, "power_law": 3.0, "two_stage": 0.7, "linear": 1.0}


@pytest.mark.parametrize("law", physics.LAWS)
def test_a_law_goes_from_start_to_peak_without_shrinking(law: str) -> None:
    amplitude = grown(law, SHAPES[law], 0.08, 5.0, np.linspace(0, 1, 500))
    assert amplitude[0] == pytest.approx(0.08)
    assert amplitude[-1] == pytest.approx(5.0)
    assert (np.diff(amplitude) > 0).all()


def test_the_laws_differ_in_how_late_they_show() -> None:
    halfway = {law: float(grown(law, SHAPES[law], 0.08, 5.0, np.array([0.5]))[0]) for law in physics.LAWS}
    assert halfway["two_stage"] < halfway["power_law"] < halfway["exponential"] < halfway["linear"]
    assert halfway["two_stage"] < 0.16


def test_the_power_law_solves_its_equation() -> None:
    """Li and others 2000: the growth per time is a power of the size."""
    share = np.linspace(0, 0.99, 2000)
    size = grown("power_law", 3.0, 0.08, 5.0, share)
    rate = np.gradient(size, share)
    slope = np.polyfit(np.log(size[5:-5]), np.log(rate[5:-5]), 1)[0]
    assert slope == pytest.approx(1.5, abs=0.02)


@pytest.mark.parametrize("decibels", [-24.0, 0.0, 12.0])
def test_decibels_there_and_back(decibels: float) -> None:
    assert snr_of_amplitude(amplitude_of_snr(decibels)) == pytest.approx(decibels)
    assert 10 * np.log10(1 + amplitude_of_rise(abs(decibels) + 1) ** 2) == pytest.approx(abs(decibels) + 1)


def test_every_mode_has_days_and_laws() -> None:
    from pipeline.params import FAULT_MODES

    assert set(physics.GROWTH_DAYS) == set(physics.GROWTH_LAWS) == set(FAULT_MODES)
    assert {law for laws in physics.GROWTH_LAWS.values() for law in laws} == set(physics.LAWS)
