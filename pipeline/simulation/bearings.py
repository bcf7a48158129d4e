"""Rolling element bearings: their geometry, and the frequencies at which their parts meet a defect.

Shape legend: K harmonics, S operating states.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.simulation import physics


@dataclass(frozen=True)
class Bearing:
    """A bearing whose outer race stands still; frequencies are orders: multiples of the shaft's.

    The formulas are those of Randall and Antoni 2011, equations 1 to 4; the example is the SKF 6205.

    >>> bearing = Bearing(rollers=9, diameter_ratio=7.94 / 39.04, contact_angle=0.0)
    >>> [round(order, 2) for order in (bearing.bpfo, bearing.bpfi, 2 * bearing.bsf, bearing.ftf)]
    [3.58, 5.42, 4.71, 0.4]
    """

    rollers: int
    diameter_ratio: float  # of rolling element to pitch circle
    contact_angle: float  # degrees
    waviness: float = 0.0  # amplitude of the sound that it makes when it is good

    @property
    def _ratio(self) -> float:
        return float(self.diameter_ratio * np.cos(np.radians(self.contact_angle)))

    @property
    def bpfo(self) -> float:
        """Ball pass frequency, outer race."""
        return self.rollers / 2 * (1 - self._ratio)

    @property
    def bpfi(self) -> float:
        """Ball pass frequency, inner race."""
        return self.rollers / 2 * (1 + self._ratio)

    @property
    def ftf(self) -> float:
        """Fundamental train frequency: how fast the cage turns."""
        return (1 - self._ratio) / 2

    @property
    def bsf(self) -> float:
        """Ball spin frequency; a defect on a ball strikes twice per spin."""
        return (1 - self._ratio**2) / (2 * self.diameter_ratio)

    def lines(self, mode: str) -> tuple[float, float, float]:
        """Order of a mode's first harmonic, order of its sidebands' distance, power of a sideband of its line.

        A defect of the inner race passes the load zone once per turn, one of a rolling element once per turn of its
        cage.

        >>> Bearing(9, 0.2, 0.0).lines("inner_race")[1]
        1.0
        """
        if mode == "outer_race":
            return self.bpfo, 1.0, physics.SLOW_SIDEBAND
        if mode == "inner_race":
            return self.bpfi, 1.0, physics.LOAD_ZONE_SIDEBAND
        return 2 * self.bsf, self.ftf, physics.CAGE_SIDEBAND


def make_bearing(seed: int, machine: int, generation: int) -> Bearing:
    """The bearing that a machine has after so many swaps."""
    rng = np.random.default_rng([seed, 7, machine, generation])
    least, most = physics.ROLLERS
    return Bearing(
        int(rng.integers(least, most + 1)),
        float(rng.uniform(*physics.DIAMETER_RATIO)),
        float(rng.uniform(*physics.CONTACT_ANGLE)),
        float(rng.uniform(*physics.WAVINESS)),
    )
