"""What an alert tells a crew: when, how rare, which detectors agree, where in the spectrum, and what turns there.

Shape legend: N rows of a scoring run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.moments import iso
from pipeline.policy_state import CAUSES, Alerts, Cause
from pipeline.schema import BearingSpec, FleetSpec

HARMONICS = 5
SHAFT_HARMONICS = 3
NOT_A_DIAGNOSIS = "A high score says that something changed, never why: it is correlation and not a diagnosis."


def fault_orders(bearing: BearingSpec) -> dict[str, float]:
    """Fault frequencies of a bearing with a turning inner race, in multiples of the shaft's speed.

    Ball pass frequency of the outer and the inner race, ball spin frequency, and the cage's (Randall and Antoni,
    Mechanical Systems and Signal Processing 25 (2011) 485, equations 1 to 4); `shaft` is the speed itself.

    >>> spec = BearingSpec(rolling_elements=9, diameter_ratio=0.2, speed_rpm=1800)
    >>> {name: round(order, 2) for name, order in fault_orders(spec).items()}
    {'shaft': 1.0, 'BPFO': 3.6, 'BPFI': 5.4, 'BSF': 2.4, 'FTF': 0.4}
    """
    ratio = bearing.diameter_ratio * float(np.cos(np.radians(bearing.contact_degrees)))
    count = bearing.rolling_elements
    return {
        "shaft": 1.0,
        "BPFO": count / 2 * (1 - ratio),
        "BPFI": count / 2 * (1 + ratio),
        "BSF": (1 - ratio**2) / (2 * bearing.diameter_ratio),
        "FTF": (1 - ratio) / 2,
    }


def frequencies_within(low_hz: float, high_hz: float, bearing: BearingSpec) -> list[str]:
    """Harmonics of the fault frequencies that lie in a band; the shaft's first three, the others' first five.

    >>> spec = BearingSpec(rolling_elements=9, diameter_ratio=0.2, speed_rpm=1800)
    >>> frequencies_within(100, 200, spec)
    ['BPFO (108 Hz)', 'BPFI (162 Hz)', '2 x BSF (144 Hz)']
    """
    found = []
    for name, order in fault_orders(bearing).items():
        for harmonic in range(1, (SHAFT_HARMONICS if name == "shaft" else HARMONICS) + 1):
            frequency = harmonic * order * bearing.speed_rpm / 60
            if low_hz <= frequency < high_hz:
                times = f"{harmonic} x " if harmonic > 1 else ""
                found.append(f"{times}{name} ({frequency:.0f} Hz)")
    return found


def described(
    alerts: Alerts,
    machines: Sequence[str],
    fleet: FleetSpec,
    first_rows: Sequence[Mapping[str, Any] | None],
    peaks: Sequence[Mapping[str, Any] | None],
    agree_below: float,
) -> list[dict[str, Any]]:
    """Alerts as JSON, in the order in which they opened.

    Args:
        alerts: of the policy.
        machines: names of the machine codes.
        fleet: bands, and bearings where they are known.
        first_rows: of each alert its first row (`file`, `row`); None: an earlier run scored it, or there is no data.
        peaks: of each alert its peak row: `file`, `row`, `tail` (by detector, the release's first), `top_bins`.
        agree_below: tail probability below which a detector agrees.
    """
    told = []
    for at in np.argsort(alerts.opened_us, kind="stable").tolist():
        machine, cause, peak = machines[int(alerts.machine[at])], Cause(int(alerts.cause[at])), peaks[at]
        alert: dict[str, Any] = {
            "machine_id": machine,
            "cause": CAUSES[cause],
            "tier": "page" if alerts.paged_us[at] >= 0 else ("low" if cause == Cause.VIBRATION else None),
            "opened": iso(int(alerts.opened_us[at])),
            "paged": iso(int(alerts.paged_us[at])) if alerts.paged_us[at] >= 0 else None,
            "last": iso(int(alerts.last_us[at])),
            "closed": iso(int(alerts.closed_us[at])) if alerts.closed_us[at] >= 0 else None,
            "first_row": first_rows[at],
            "peak": None,
            "agreed": [],
            "top_bins": [],
            "note": NOT_A_DIAGNOSIS if cause == Cause.VIBRATION else "No usable spectrum: sensor, cable, or off.",
        }
        if peak is not None:
            tails = dict(peak["tail"])
            alert["peak"] = {
                "time": iso(int(alerts.peak_us[at])),
                "file": peak["file"],
                "row": peak["row"],
                "tail_probability": next(iter(tails.values())),
            }
            alert["agreed"] = [name for name, tail in tails.items() if tail <= agree_below]
            alert["top_bins"] = [_bin(index, machine, fleet) for index in peak["top_bins"]]
        told.append(alert)
    return told


def _bin(index: int, machine: str, fleet: FleetSpec) -> dict[str, Any]:
    band, bearing = fleet.band_hz(index), fleet.bearing_of(machine)
    near = frequencies_within(*band, bearing) if band is not None and bearing is not None else []
    return {"bin": index, "band": fleet.band_name(index), "near": near}
