"""The whole graph in one process, on a fleet small enough for a test."""

from __future__ import annotations

import os
from pathlib import Path

SMALL_PARAMS = """
seed: 5
simulate: {machines: 10, days: 40, interval_seconds: 3600, bins: 32, failures: 10, mislabelled_share: 0.02, seed: 12}
split: {horizon_hours: 48, train_share: 0.4, calibration_share: 0.2, unseen_machine_share: 0.3, tune_failure_share: 0.5}
train:
  score_batch_rows: 256
  autoencoder: {latent: 4, channels: [4, 8], optimiser: {max_epochs: 3, batch_rows: 256}}
  vae: {latent: 4, channels: [4, 8], optimiser: {max_epochs: 3, batch_rows: 256}}
calibrate: {draws: 60, policy: {k: 2, n: 3, window_minutes: 300, gap_minutes: 150}}
evaluate: {chance_shifts: 20}
release: {reference_rows: 1000}
monitor: {days: 3, max_rows: 600}
"""


def run_stages(folder: Path, params: str) -> None:
    """Every stage from simulate to the report, in this process, in a folder of its own."""
    from importlib import import_module

    from pipeline.params import load_params
    from pipeline.train import run as train

    (folder / "params.yaml").write_text(params)
    before = Path.cwd()
    os.chdir(folder)
    try:
        for stage in ("simulate", "ingest", "validate", "split", "clean"):
            import_module(f"pipeline.{stage}").main()
        settings = load_params()
        for detector in settings.detectors:
            train(detector, settings, Path())
        for stage in ("calibrate", "evaluate", "release", "report"):
            import_module(f"pipeline.{stage}").main()
    finally:
        os.chdir(before)
