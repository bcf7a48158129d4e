"""Six bearings run to failure, each judged by models that never heard it: what each detector would have told.

Five bearings describe themselves (first 15 % of life), train (15 to 30 %) and calibrate (30 to 40 %); the sixth
describes itself and is judged from 15 % on. A threshold is the lowest at which the five's calibration rows raise one
false episode. A failure is caught by an alert that opens in the last tenth of life, or opened after half of life and
stands then; alerts that open before half of life are false; between the two nobody knows. Beside the failures caught
stands what chance catches: the same alerts shifted in a circle within each bearing.

The recordings are found in HEARKEN_REAL_DATA or ../shared/data.
Usage: python benchmarks/femto.py [--sets femto_h femto_v] [--params params.yaml]
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.alerts import Timeline
from pipeline.backtest import BacktestRequest, Fold, LabelledRecording, across_machines, read_recording
from pipeline.judging.judged import Judgement
from pipeline.params import load_params
from pipeline.train import use_threads

ROOT = Path(__file__).resolve().parent.parent


def false_before_half(recording: LabelledRecording, fold: Fold) -> dict[str, dict[str, int]]:
    """Alert episodes of each detector and bearing that open in the first half of life; thresholds are 1."""
    rows = fold.test.rows
    line = Timeline.of(rows.machine, rows.time_us, fold.calibration.policy)
    healthy = (fold.label == 0)[line.order]
    found = {}
    for name, scores in fold.test.scores.items():
        episodes = line.episodes(line.alert_rows(scores > 1.0))
        false = healthy[episodes.first]
        machines = episodes.machine[false]
        found[name] = {bearing: int((machines == code).sum()) for code, bearing in enumerate(recording.rows.machines)}
    return found


def by_bearing(judgement: Judgement, false: dict[str, dict[str, int]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Detector, then bearing: was its failure caught, lead time in hours, false episodes before half of life."""
    return {
        name: {
            event["machine_id"]: {
                "caught": event["detectors"][name]["caught"],
                "lead_hours": event["detectors"][name]["lead_time_hours"],
                "false_before_half": counts[event["machine_id"]],
            }
            for event in judgement.events
        }
        for name, counts in false.items()
    }


def table_of(title: str, found: dict[str, dict[str, dict[str, Any]]], judgement: Judgement) -> Table:
    """A line per detector, a column per bearing."""
    bearings = [event["machine_id"] for event in judgement.events]
    table = Table("detector", "caught", "chance", "false before half", *bearings, title=title)
    for name, of_bearings in found.items():
        figures = judgement.figures["detectors"][name]
        told = []
        for bearing in bearings:
            one = of_bearings[bearing]
            lead = f"{60 * one['lead_hours']:.0f} min" if one["caught"] else "missed"
            told.append(f"{lead}, {one['false_before_half']} false" if one["false_before_half"] else lead)
        false = sum(one["false_before_half"] for one in of_bearings.values())
        caught = f"{figures['events_caught']} of {figures['events']}"
        table.add_row(name, caught, str(figures["events_by_chance"]), str(false), *told)
    return table


def main() -> None:
    """Print a table per accelerometer, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", default=["femto_h", "femto_v"])
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml")
    arguments = parser.parse_args()
    params, console = load_params(arguments.params), Console()
    use_threads(params.train.threads)
    folder = Path(os.environ.get("HEARKEN_REAL_DATA", ROOT / "../shared/data"))
    last: dict[str, Any] = {}
    for name in arguments.sets:
        request = BacktestRequest(
            folder / f"{name}.parquet",
            timezone="UTC",
            time="relative",
            across_machines=True,
            baseline_query="life_frac < 0.15",
            train_query="life_frac >= 0.15 and life_frac < 0.4",
            test_query="life_frac >= 0.15",
        )
        recording = read_recording(request, params.train.baseline.conditions_from)
        judgement, fold = across_machines(recording, request, params, lambda _line: None)
        found = by_bearing(judgement, false_before_half(recording, fold))
        console.print(table_of(name, found, judgement))
        totals = {
            detector: {
                "caught": judgement.figures["detectors"][detector]["events_caught"],
                "by_chance": judgement.figures["detectors"][detector]["events_by_chance"],
                "false_before_half": sum(one["false_before_half"] for one in of_bearings.values()),
                "median_lead_hours": _median([one["lead_hours"] for one in of_bearings.values() if one["caught"]]),
                "bearings": of_bearings,
            }
            for detector, of_bearings in found.items()
        }
        last[name] = {"events": judgement.figures["dataset"]["failures"], "detectors": totals}
    print(json.dumps(last))


def _median(values: list[float]) -> float | None:
    return round(float(np.median(values)), 3) if values else None


if __name__ == "__main__":
    main()
