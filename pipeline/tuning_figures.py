"""Figures to choose settings by: rows before tune failures against healthy calibration rows, and validation losses.

Nothing here judges a release: what chose a setting flatters it. `metrics/evaluation.json` has the figures of rows that
chose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.intervals import rankable
from pipeline.schema import FloatN


def tuning_figures(
    healthy: Mapping[str, FloatN],
    tune: Mapping[str, FloatN],
    calibrated: Mapping[str, Any],
    histories: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What `metrics/tuning.json` holds: for each detector how it ranks tune rows, and tune failures caught by tier.

    Args:
        healthy: comparable scores of calibration rows (N,) by detector.
        tune: those of rows before tune failures (M,); without any the figures are null.
        calibrated: `detectors` of calibration.json.
        histories: history.json by detector.

    >>> tiers = {"low": {"tune_caught": ["a"], "tune_failures": 2}, "page": {"tune_caught": [], "tune_failures": 2}}
    >>> found = tuning_figures({"pca": np.array([1.0, 2.0])}, {"pca": np.array([2.5, 1.5])}, {"pca": tiers}, {})
    >>> found["detectors"]["pca"]["auroc"], found["detectors"]["pca"]["caught_low"]
    (0.75, 1)
    """
    detectors: dict[str, Any] = {}
    for name, healthy_N in healthy.items():
        tune_M, tiers = tune[name], calibrated[name]
        figures: dict[str, Any] = {"auroc": None, "average_precision": None}
        if len(tune_M):
            label = np.r_[np.zeros(len(healthy_N), np.int8), np.ones(len(tune_M), np.int8)]
            score = rankable(np.r_[healthy_N, tune_M])
            figures["auroc"] = round(float(roc_auc_score(label, score)), 6)
            figures["average_precision"] = round(float(average_precision_score(label, score)), 6)
        figures |= {f"caught_{tier}": len(tiers[tier]["tune_caught"]) for tier in ("low", "page")}
        losses = [entry["validation_loss"] for entry in histories.get(name, {}).get("epochs") or []]
        if losses:
            figures["validation_loss"] = round(float(min(losses)), 6)
        detectors[name] = figures
    first = next(iter(calibrated.values()))
    failures = int(first["low"]["tune_failures"])
    reasons = (
        {} if failures else {"auroc": "No failure is for tuning.", "average_precision": "No failure is for tuning."}
    )
    return {"detectors": detectors, "tune_failures": failures, "null_reasons": reasons}
