"""The report: escaped, self-contained, deterministic, and honest where something is missing."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from plotly.offline import get_plotlyjs

from pipeline.errors import ContractError
from pipeline.params import Params
from pipeline.report import ReportData, gather, json_for_script, render_report
from pipeline.report_blocks import PALETTES
from pipeline.report_charts import band_centres, downsample_max, score_histogram
from pipeline.report_judgement import baseline_sentence, cautions, winners
from pipeline.schema import time_column
from pipeline.store import write_json, write_table

HOSTILE = "</script><script>alert('m\"1')</script>"
DETECTORS = ("autoencoder", "vae", "pca", "energy_zscore", "squared_distance")
START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
BINS, DAYS, ROWS_A_DAY, FAILURES = 64, 30, 48, 5


def machine_name(index: int) -> str:
    return HOSTILE if index == 0 else f"press-{index:02d}"


def iso(day: float) -> str:
    return (START + dt.timedelta(days=day)).isoformat()


def failure_days() -> list[float]:
    return [14.0 + 3.5 * index for index in range(FAILURES)]


def scores_table(machines: int = 6) -> pa.Table:
    """Scores of every machine over the days; machine i fails on its day, and its score rises for five days before."""
    random = np.random.default_rng(3)
    days = np.arange(DAYS * ROWS_A_DAY) / ROWS_A_DAY
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("time", "machine", "faulty", *DETECTORS)}
    for machine in range(machines):
        failure = failure_days()[machine] if machine < FAILURES else np.inf
        shown = days[(days < failure) & ~((days > 9) & (days < 9.6))]
        before = np.clip(1 - (failure - shown) / 5, 0, 1)
        columns["time"].append((START.timestamp() * 1e6 + shown * 86_400e6).astype(np.int64))
        columns["machine"].append(np.full(len(shown), machine))
        columns["faulty"].append(failure - shown <= 7)
        for index, name in enumerate(DETECTORS):
            noise = np.exp(0.35 * random.standard_normal(len(shown)))
            columns[name].append((1 + index) * noise * np.exp((2.6 - 0.45 * index) * before**2 * (machine != 3)))
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    n = len(joined["time"])
    machine_names = [machine_name(index) for index in joined["machine"]]
    failure_ids = [f"F{index:03d}" if faulty else None for index, faulty in zip(joined["machine"], joined["faulty"], strict=True)]
    return pa.table(
        {
            "file": ["2025-01-01.parquet"] * n,
            "row": pa.array(np.arange(n)),
            "machine_id": pa.array(machine_names).dictionary_encode(),
            "timestamp": time_column(joined["time"]),
            "role": pa.array(["test"] * n).dictionary_encode(),
            "label": pa.array(np.where(joined["faulty"], "faulty", "healthy")).dictionary_encode(),
            "failure_id": pa.array(failure_ids),
            **{f"score_{name}": pa.array(joined[name]) for name in DETECTORS},
        }
    )


def evaluation() -> dict[str, Any]:
    detectors: dict[str, dict[str, Any]] = {}
    figures = {
        "autoencoder": (0.912, 0.641, 0.742, 4, 0.31, 62.0),
        "vae": (0.899, 0.615, 0.731, 4, 0.34, 60.5),
        "pca": (0.874, 0.552, 0.702, 3, 0.36, 41.0),
        "energy_zscore": (0.701, 0.233, 0.551, 1, 0.29, 12.25),
        "squared_distance": (0.927, 0.630, None, 4, 0.33, 58.0),
    }
    keys = ("auroc", "average_precision", "partial_auroc", "events_caught", "false_episodes_per_day", "median_lead_time_hours")
    for index, (name, values) in enumerate(figures.items()):
        detectors[name] = {**dict(zip(keys, values, strict=True)), "events": 5, "events_by_chance": 0.7 + 0.1 * index}
    return {
        "dataset": {"name": "press line <4> & co", "rows": 207360, "machines": 24, "bins": BINS, "failures": 11},
        "budget": {"false_episodes_per_machine_day": 0.02},
        "release_detector": "autoencoder",
        "detectors": detectors,
        "tiers": {
            "low": {"percentile": 99.5, "threshold": 2.9, "false_positive_rate": 0.0061, "ci_low": 0.0038, "ci_high": 0.0093},
            "page": {"percentile": 99.95, "threshold": 4.4, "false_positive_rate": 0.00071, "ci_low": 0.00022, "ci_high": 0.0014},
        },
        "pairs": {"only": {"autoencoder": ["F001"], "squared_distance": ["F003"], "pca": []}},
        "at_false_episodes": {name: {"0": 1, "1": 2, "3": 3} for name in DETECTORS},
        "null_reasons": {"detectors.squared_distance.partial_auroc": "fewer than 2,000 healthy rows"},
        "notes": ["Purge gaps were capped at 10 % of the span (72 h instead of 168 h)."],
    }


def history(name: str) -> dict[str, Any]:
    epochs: list[dict[str, Any]] = []
    for epoch in range(1, 19):
        fall = float(np.exp(-epoch / 4))
        entry = {"epoch": epoch, "train_loss": 0.41 + 0.6 * fall, "validation_loss": 0.43 + 0.58 * fall + 0.002 * max(0, epoch - 13)}
        if name == "vae":
            entry |= {"reconstruction": 0.38 + 0.62 * fall, "kl": 6.0 * (1 - float(np.exp(-epoch / 3)))}
        epochs.append(entry)
    return {"epochs": epochs, "best_epoch": 14, "cap_hit": name == "vae", "warnings": [], "rows_per_s": 61000}


def events() -> list[dict[str, Any]]:
    found = []
    for index, day in enumerate(failure_days()):
        caught = index != 3
        verdicts = {}
        for place, name in enumerate(DETECTORS):
            own = caught and (index + place) % 5 != 4
            lead = 70.0 - 6 * place - 3 * index
            verdicts[name] = {"caught": own, "first_alert": iso(day - lead / 24) if own else None, "lead_time_hours": lead if own else None}
        found.append(
            {
                "failure_id": f"F{index:03d}",
                "machine_id": machine_name(index),
                "failure_mode": ["outer_race", "imbalance", "energy_rise"][index % 3],
                "time": iso(day),
                "window_start": iso(day - 7),
                "role": "test",
                "detectors": verdicts,
            }
        )
    return found


def episodes() -> list[dict[str, Any]]:
    found = []
    for event in events():
        verdict = event["detectors"]["autoencoder"]
        end = dt.datetime.fromisoformat(event["time"])
        if verdict["caught"]:
            kind = {"kind": "caught", "failure_id": event["failure_id"]}
            found.append({"machine_id": event["machine_id"], "start": verdict["first_alert"], "end": end.isoformat(), **kind})
        false = end - dt.timedelta(days=7.9)
        found.append({"machine_id": event["machine_id"], "start": false.isoformat(), "end": (false + dt.timedelta(hours=3)).isoformat(), "kind": "false", "failure_id": None})
    return found


def reconstructions() -> list[dict[str, Any]]:
    random = np.random.default_rng(5)
    bands = [f"{200 * index}-{200 * (index + 1)} Hz" for index in range(BINS)]
    found = []
    for index, kind in enumerate(["alert", "healthy", "healthy", "alert"]):
        base = np.cumsum(random.standard_normal(BINS)) * 0.15
        original = base + 0.35 * random.standard_normal(BINS)
        if kind == "alert":
            original[[18, 19, 37]] += (5.5, 3.0, 4.0)
        error = (original - base) ** 2
        row = {"original": original.tolist(), "reconstruction": base.tolist(), "share": (error / error.sum()).tolist()}
        found.append({"machine_id": machine_name(index), "timestamp": iso(12 + index), "kind": kind, "bands": bands, **row})
    return found


def roc() -> list[dict[str, Any]]:
    rates = np.geomspace(1e-4, 1, 60)
    return [
        {"detector": name, "false_positive_rate": float(rate), "true_positive_rate": float(rate ** (0.16 + 0.09 * index))}
        for index, name in enumerate(DETECTORS)
        for rate in rates
    ]


def calibration() -> dict[str, Any]:
    def tier(percentile: float, threshold: float) -> dict[str, Any]:
        caught = {"tune_caught": ["F007", "F009"], "tune_failures": 4}
        return {"percentile": percentile, "threshold": threshold, "rate_low": (100 - percentile) / 250, "rate_high": (100 - percentile) / 55, **caught}

    tiers = {name: {"low": tier(99.5, 2.9 * (1 + index)), "page": tier(99.95, 4.4 * (1 + index))} for index, name in enumerate(DETECTORS)}
    return {"detectors": tiers, "policy": {"k": 3, "n": 5, "window_us": 7_200_000_000}, "rows": 41200, "machines": 21, "notes": []}


@pytest.fixture(scope="module")
def data() -> ReportData:
    return ReportData(
        evaluation=evaluation(),
        release_id="3f9a1c0be27d4415",
        fleet={"name": "press-line", "interval_seconds": 600},
        source="data/demo",
        validation={"rows": 207360, "quarantined": 412, "reasons": {"not_finite": 210, "stuck": 160, HOSTILE: 42}, "notes": []},
        split={
            "rows": 207360,
            "log_status": {"healthy": 171_000, "horizon": 14_100, "repair": 3_800, "run_in": 6_300, "unconfirmed": 12_160},
            "roles": {"train": 62_000, "validation": 15_000, "calibration": 41_200, "tune": 5_200, "test": 58_000, "baseline": 9_900, "none": 16_060},
            "start": iso(0),
            "end": iso(60),
        },
        cleaning={
            "rows": 77_000,
            "removed": 934,
            "reasons": {"episode": 934},
            "worst_episodes": [{"machine_id": machine_name(i), "start": iso(3 + i), "end": iso(3.4 + i), "rows": 58 - i, "error": 21.4 - i} for i in range(4)],
        },
        calibration=calibration(),
        histories={name: history(name) for name in ("autoencoder", "vae")},
        scores=scores_table(),
        events=events(),
        episodes=episodes(),
        roc=roc(),
        reconstructions=reconstructions(),
        params=Params().model_dump(mode="json", by_alias=True),
    )


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    return render_report(data)
