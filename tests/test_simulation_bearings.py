"""Bearings: published frequencies of known bearings, and sound ones for every machine."""

from __future__ import annotations

import pytest

from pipeline.simulation import physics
from pipeline.simulation.bearings import Bearing, make_bearing


@pytest.mark.parametrize(
    ("bearing", "bpfo", "bpfi", "ftf", "twice_bsf"),
    [
        (Bearing(9, 7.94 / 39.04, 0.0), 3.585, 5.415, 0.398, 4.714),  # SKF 6205, of the Case Western recordings
        (Bearing(8, 6.746 / 28.5, 0.0), 3.053, 4.947, 0.382, 3.988),  # SKF 6203, of the same rig's fan end
    ],
)
def test_published_frequencies(bearing: Bearing, bpfo: float, bpfi: float, ftf: float, twice_bsf: float) -> None:
    found = (bearing.bpfo, bearing.bpfi, bearing.ftf, 2 * bearing.bsf)
    assert found == pytest.approx((bpfo, bpfi, ftf, twice_bsf), rel=0.01)


def test_the_races_share_the_rollers_between_them() -> None:
    for machine in range(50):
        bearing = make_bearing(1, machine, 0)
        assert bearing.bpfo + bearing.bpfi == pytest.approx(bearing.rollers)
        assert bearing.bpfo == pytest.approx(bearing.rollers * bearing.ftf)
        assert physics.ROLLERS[0] <= bearing.rollers <= physics.ROLLERS[1]


def test_a_swap_puts_another_bearing_in() -> None:
    assert make_bearing(1, 0, 0) == make_bearing(1, 0, 0)
    assert len({make_bearing(1, 0, generation).bpfo for generation in range(5)}) == 5
    assert make_bearing(1, 0, 1) != make_bearing(1, 1, 1)
