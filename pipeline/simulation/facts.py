"""What a simulated fleet is, in figures that stand beside it: the hash of its physics, its faults, its mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.params import SimulateParams
from pipeline.simulation import physics
from pipeline.simulation.growth import snr_of_amplitude
from pipeline.simulation.history import Fault, FleetHistory
from pipeline.store import sha256_file

QUANTILES = (0.1, 0.5, 0.9)


def simulation_facts(params: SimulateParams, history: FleetHistory) -> dict[str, Any]:
    """Figures of the whole plan, whatever stretch of it is simulated.

    A signal-to-noise ratio is the fault's power over the healthy machine's in the state and bin that show the fault
    most; of a resonance that moves, the power that has moved over what has stayed.
    """
    failures = [fault for fault in history.faults if fault.fails]
    unlogged = [fault for fault in history.faults if not fault.fails]
    told = [work for work in history.works if work.broke is not None and work.told_of is not None]
    return {
        "physics_sha256": sha256_file(Path(physics.__file__)),
        "seed": params.seed,
        "simulate": params.model_dump(mode="json"),
        "modes": {mode: _mode_facts([fault for fault in failures if fault.mode == mode]) for mode in params.modes},
        "failures": {
            "happened": len(failures),
            "logged_right": sum(fault.logged for fault in failures),
            "logged_late": sum(work.late > 0 for work in told),
            "logged_under_another_name": sum(work.told_of != work.machine for work in told),
            "not_logged": len(failures) - len(told),
            "logged_but_never_happened": len(history.never_done),
        },
        "never_well": sum(bool(np.isinf(fault.end)) for fault in unlogged),
        "episodes_that_nobody_noticed": sum(bool(np.isfinite(fault.end)) for fault in unlogged),
        "mislabelled_share": round(history.mislabelled_share, 6),
        "works": {tag: _count(history, tag) for tag in ("repair", "sensor", "off")},
        "firmware_machines": len(history.firmware),
    }


def _mode_facts(faults: Sequence[Fault]) -> dict[str, Any]:
    return {
        "failures": len(faults),
        "snr_at_onset_db": _quantiles([snr_of_amplitude(fault.start) for fault in faults]),
        "snr_at_failure_db": _quantiles([snr_of_amplitude(fault.peak) for fault in faults]),
        "days_from_onset_to_failure": _quantiles([fault.end - fault.onset for fault in faults]),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {f"{share:g}": round(float(np.quantile(values, share)), 2) for share in QUANTILES}


def _count(history: FleetHistory, tag: str) -> dict[str, int]:
    works = [work for work in history.works if work.tag == tag]
    return {"done": len(works), "logged": sum(work.told_of is not None for work in works)}
