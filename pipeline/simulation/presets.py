"""Fleets with a name."""

from __future__ import annotations

from pipeline.errors import ParamsError
from pipeline.params import DirtParams, LogParams, SimulateParams, UpkeepParams

PRESETS = {
    # 600 machines, one spectrum every ten seconds: 5,184,000 rows and 1.04 GB a day, 28 failures in its 60 days (62 GB)
    "harbor": SimulateParams(
        machines=600,
        days=60,
        interval_seconds=10,
        bins=64,
        failures=28,
        mislabelled_share=0.02,
        log=LogParams(late=0.15, missing=0.05, wrong=0.05),
        upkeep=UpkeepParams(never_well=0.005, bearing_swaps=0.1, moved_sensors=0.1, planned_stops=0.2),
        dirt=DirtParams(
            nan=2e-4,
            infinite=5e-5,
            negative=1e-4,
            flat=2e-4,
            stuck=5e-4,
            duplicate=5e-4,
            future=5e-5,
            unordered=1e-3,
            missing=5e-3,
        ),
    ),
}


def preset_of(name: str) -> SimulateParams:
    """The settings of a fleet with a name.

    Raises:
        ParamsError: there is none of that name.

    >>> preset_of("harbor").machines
    600
    """
    if name not in PRESETS:
        raise ParamsError(f"preset: got {name!r}, expected one of {', '.join(PRESETS)}.")
    return PRESETS[name]
