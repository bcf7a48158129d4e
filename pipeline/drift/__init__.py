"""Drift or fault: whether a fleet has left the reference of its release together, or single machines their peers.

`service_window` draws recent rows, `check_drift` decides on them and writes Evidently's page.
"""

from pipeline.drift.check import ColumnDrift, DriftDecision, check_drift, decide
from pipeline.drift.window import Window, contract_window, service_window

__all__ = [
    "ColumnDrift",
    "DriftDecision",
    "Window",
    "check_drift",
    "contract_window",
    "decide",
    "service_window",
]
