"""The engine that trains networks: it knows rows, a loss and an optimiser, and nothing of detectors."""

from __future__ import annotations

from pipeline.engine.checkpoint import discard
from pipeline.engine.loop import train_network
from pipeline.engine.precision import Precision, autocast, choose_precision
from pipeline.engine.processes import Processes, joined
from pipeline.engine.rows import FeatureRows
from pipeline.engine.run import Loss, Run

__all__ = [
    "FeatureRows",
    "Loss",
    "Precision",
    "Processes",
    "Run",
    "autocast",
    "choose_precision",
    "discard",
    "joined",
    "train_network",
]
