"""How a fault grows from its onset to the failure, and how its size is told in decibels."""

from __future__ import annotations

import numpy as np

from pipeline.schema import FloatN
from pipeline.simulation import physics


def amplitude_of_snr(decibels: float) -> float:
    """Amplitude of a fault over the healthy level, from its signal-to-noise ratio in the bin that shows it most.

    >>> round(amplitude_of_snr(-20), 3)
    0.1
    """
    return float(10 ** (decibels / 20))


def snr_of_amplitude(amplitude: float) -> float:
    """The inverse of `amplitude_of_snr`.

    >>> snr_of_amplitude(0.1)
    -20.0
    """
    return float(20 * np.log10(amplitude))


def amplitude_of_rise(decibels: float) -> float:
    """Amplitude of a fault that lifts the level of that bin by so many decibels.

    >>> round(amplitude_of_rise(3.0103), 3)
    1.0
    """
    return float(np.sqrt(10 ** (decibels / 10) - 1))


def grown(law: str, shape: float, start: float, peak: float, share_N: FloatN) -> FloatN:
    """Amplitude (N,) after a share of the time from onset (0: `start`) to failure (1: `peak`).

    Exponential: Gebraeel and others 2005. Power law: the closed form of Paris and Erdogan 1963 (growth with the power
    `shape` / 2 of the size, as Li and others 2000 found for spalls). Two stages: slow until the share `shape`, then
    exponential, as the lives of Nectoux and others 2012. Linear: wear and dirt.

    >>> [round(float(grown(law, 0.7, 0.1, 5.0, np.array([1.0]))[0]), 6) for law in ("exponential", "two_stage")]
    [5.0, 5.0]
    """
    if law == "exponential":
        return np.asarray(start * (peak / start) ** share_N)
    if law == "power_law":
        power = shape / 2 - 1
        return np.asarray(start * (1 - share_N * (1 - (start / peak) ** power)) ** (-1 / power))
    if law == "two_stage":
        slow = start * physics.KNEE_GROWTH ** (share_N / shape)
        knee = start * physics.KNEE_GROWTH
        fast = knee * (peak / knee) ** ((share_N - shape) / (1 - shape))
        return np.where(share_N < shape, slow, fast)
    return np.asarray(start + (peak - start) * share_N)
