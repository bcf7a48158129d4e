"""What sensor noise does to a trained detector, and how wide its bottleneck should be: simulated fleets, two plots.

Fleets of 60 machines over 75 days, a spectrum an hour, 36 failures, a log without mistakes; seeds 42001 and 42002, used
for nothing else. Roles are those of stage `split`; rows that the simulation knows to be faulty train and calibrate
nothing. Settings are those of params.yaml unless a variant says otherwise; at most 8,000 rows train, in whole hours.

- Jitter: noise is added to the log magnitudes of the test rows only, in units of the bin's usual healthy deviation.
  The threshold stays where clean calibration rows put it: the budget of false episodes of params.yaml. Variants train
  with and without denoising (`noise`); the squared distance stands beside.
- Bottleneck: the autoencoder with 2 to 48 latent dimensions.

Figures: AUROC of rows, share of failures caught and false episodes per machine-day at the budget, share of healthy rows
above the low tier's percentile; means over the fleets. `--out` is a page with both plots that opens offline.
Usage: python benchmarks/robustness.py [--seeds 42001 42002] [--machines 60] [--out .hearken/robustness.html]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from plotly.graph_objects import Figure, Scatter
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from pipeline.alerts import AlertPolicy, Timeline, typical_interval_us
from pipeline.calibrate import machine_days, score_scale, tail_table
from pipeline.detectors import Detector
from pipeline.ensemble import TailTables
from pipeline.evaluate import events_of, label_codes, truly_faulty
from pipeline.judging.judged import FAULTY, HEALTHY, Event
from pipeline.judging.outcomes import budget_threshold, outcome_at
from pipeline.maintenance import failures_of
from pipeline.measure import measure_rows, score_rows
from pipeline.params import DirtParams, LogParams, Params, UpkeepParams, load_params
from pipeline.rows import Rows, load_rows
from pipeline.schema import (
    KEY_FIELDS,
    MAINTENANCE_SCHEMA,
    MICROSECONDS_PER_DAY,
    TEXT,
    TRUTH_SCHEMA,
    BoolN,
    FleetSpec,
    FloatNF,
    Role,
    dictionary_column,
    load_fleet_spec,
)
from pipeline.simulate import simulate
from pipeline.split import split
from pipeline.store import day_files, read_table
from pipeline.tails import TailTable
from pipeline.train import train_detector, use_threads

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (42_001, 42_002)
INTERVAL_SECONDS, MAX_TRAINING_ROWS = 3600, 8_000
FAILURES_PER_MACHINE = 0.6  # more, and every machine has been repaired before the test: none has its own baseline
LEVELS = (0.0, 0.25, 0.5, 1.0, 2.0)  # healthy deviations, the median over the rows that fit
LATENTS = (2, 4, 8, 12, 16, 24, 32, 48)
VARIANTS: dict[str, dict[str, float]] = {
    "plain": {},
    "gaussian 0.5": {"gaussian": 0.5},
    "masking 0.2": {"masking": 0.2},
}
BESIDE = "squared distance"
FIGURES = ("auroc", "caught_share", "false_episodes_per_machine_day", "healthy_above_low_tier")


@dataclass(frozen=True)
class SimulatedPlant:
    """A simulated fleet, split: rows that fit, healthy later rows that calibrate, rows and failures that judge."""

    spec: FleetSpec
    fitting: Rows
    fitting_role: np.ndarray
    calibration: Rows
    test: Rows
    label: np.ndarray  # of the test rows: 0 healthy, 1 faulty, -1 unknown
    events: Sequence[Event]


@dataclass(frozen=True)
class SimulatedFleet:
    """A simulated fleet: every row with what stage `split` says of it, the failures of its log, and the truth."""

    spec: FleetSpec
    rows: Rows
    failures: pa.Table  # FAILURE_SCHEMA
    truth: pa.Table  # TRUTH_SCHEMA


def simulated_fleet(params: Params, seed: int, machines: int, days: float) -> SimulatedFleet:
    """Simulate a fleet and let stage `split` say who trains and who judges."""
    settings = params.simulate.model_copy(
        update={
            "machines": machines,
            "days": days,
            "interval_seconds": INTERVAL_SECONDS,
            "failures": round(FAILURES_PER_MACHINE * machines),
            "mislabelled_share": 0.0,
            "seed": seed,
            "log": LogParams(late=0.0),
            "upkeep": UpkeepParams(),
            "dirt": DirtParams(),
        }
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(settings, folder)
        log = read_table(folder / "maintenance.parquet", schema=MAINTENANCE_SCHEMA)
        truth = read_table(folder / "truth.parquet", schema=TRUTH_SCHEMA)
        horizon = params.split.horizon_hours
        failures = failures_of(log, None, horizon_hours=horizon, tune_share=0.0, unseen_share=0.0)
        table = split(
            _keys(folder),
            log,
            failures,
            params.split.model_copy(update={"unseen_machine_share": 0.0, "tune_failure_share": 0.0}),
        ).table
        spec = load_fleet_spec(folder / "fleet.yaml")
        column = params.train.baseline.conditions_from
        rows = load_rows(folder, table, np.ones(table.num_rows, bool), spec.bins, column)
    return SimulatedFleet(spec, rows, failures, truth)


def simulated_plant(params: Params, seed: int, machines: int, days: float) -> SimulatedPlant:
    """A simulated fleet, by what its rows are for."""
    return plant_of(simulated_fleet(params, seed, machines, days), params)


def plant_of(fleet: SimulatedFleet, params: Params) -> SimulatedPlant:
    """The rows of a fleet by what they are for; those that the truth knows to be faulty fit and calibrate nothing."""
    rows = fleet.rows
    role_N, label_N = rows.column("role"), label_codes(rows.column("label"))
    faulty_N = truly_faulty(rows, fleet.truth)
    fits_N = np.isin(role_N, [str(Role.TRAIN), str(Role.VALIDATION), str(Role.BASELINE)]) & ~faulty_N
    test_N = role_N == Role.TEST
    label_N = np.where((label_N == HEALTHY) & faulty_N | (label_N == FAULTY) & ~faulty_N, -1, label_N)
    test = taken(rows, test_N)
    events, _ = events_of(fleet.failures, test, params.split.horizon_hours, fleet.truth)
    return SimulatedPlant(
        fleet.spec,
        taken(rows, fits_N),
        role_N[fits_N],
        taken(rows, (role_N == Role.CALIBRATION) & ~faulty_N),
        test,
        label_N[test_N],
        events,
    )


def _keys(folder: Path) -> pa.Table:
    """Every row of the day files as the table that `validate` would write, all of them in order."""
    parts = []
    for path in day_files(folder):
        table = read_table(path, ["machine_id", "timestamp"])
        count = table.num_rows
        file, ok = (dictionary_column(np.zeros(count, np.int16), [text]) for text in (path.name, "ok"))
        columns = [file, pa.array(np.arange(count, dtype=np.int32)), table["machine_id"], table["timestamp"], ok]
        parts.append(pa.table(columns, names=[*(key.name for key in KEY_FIELDS), "status"]))
    keys = pa.concat_tables(parts).unify_dictionaries()
    return keys.set_column(4, "status", keys["status"].cast(TEXT))


def taken(rows: Rows, mask_N: BoolN, spectra_NF: FloatNF | None = None) -> Rows:
    """Some rows, or with other spectra in their place."""
    kept = rows.take(mask_N)
    return kept if spectra_NF is None else replace(kept, spectra=spectra_NF)


def jittered(spectra_NF: FloatNF, scale_NF: FloatNF, level: float, seed: int) -> FloatNF:
    """Spectra whose log magnitudes are moved at random by `level` healthy deviations (N, F) of their bin.

    >>> ones = np.ones((20_000, 2), np.float32)
    >>> np.log(jittered(ones, np.array([[0.1, 0.3]], np.float32), 2.0, 1)).std(0).round(2).tolist()
    [0.2, 0.6]
    """
    noise_NF = np.random.default_rng(seed).standard_normal(spectra_NF.shape, np.float32)
    return np.asarray(spectra_NF * np.exp(level * scale_NF * noise_NF), np.float32)


@dataclass(frozen=True)
class Calibrated:
    """What clean calibration rows say of a detector: its tail, its thresholds; and the policy that makes alerts."""

    tail: TailTable
    budget: float
    low: float
    policy: AlertPolicy


def calibrated(detector: Detector, plant: SimulatedPlant, params: Params) -> Calibrated:
    """The lowest threshold within the budget of false episodes, and the low tier's percentile."""
    rows, name = plant.calibration, detector.name
    first = measure_rows({name: detector}, rows)
    scale = score_scale(name, first, params.calibrate.levels)
    scores = scale.comparable(first.raw[name], first.baseline, first.code)
    tail, _ = tail_table(name, scores, machine_days(rows), scale)
    interval_us = typical_interval_us(rows.machine, rows.time_us)
    policy = AlertPolicy.fitted_to(params.calibrate.policy, interval_us)
    days = len(rows) * interval_us / MICROSECONDS_PER_DAY
    allowed = params.evaluate.false_episodes_per_machine_day * days
    line = Timeline.of(rows.machine, rows.time_us, policy)
    low = float(np.percentile(scores, params.calibrate.low_percentile))
    return Calibrated(tail, budget_threshold(scores, line, allowed), low, policy)


def figures(detector: Detector, plant: SimulatedPlant, at: Calibrated, spectra_NF: FloatNF) -> dict[str, float]:
    """What the detector makes of the test rows, with the spectra given in their place."""
    rows = taken(plant.test, np.ones(len(plant.test), bool), spectra_NF)
    scores = score_rows({detector.name: detector}, rows, TailTables({detector.name: at.tail})).scores[detector.name]
    known, healthy = plant.label >= 0, plant.label == HEALTHY
    outcome = outcome_at(scores > at.budget, Timeline.of(rows.machine, rows.time_us, at.policy), plant.events)
    days = float(healthy.sum()) * typical_interval_us(rows.machine, rows.time_us) / MICROSECONDS_PER_DAY
    return {
        "auroc": float(roc_auc_score(plant.label[known], scores[known])),
        "caught_share": len(outcome.caught) / len(plant.events),
        "false_episodes_per_machine_day": outcome.false_episodes / days,
        "healthy_above_low_tier": float((scores[healthy] > at.low).mean()),
    }


def with_autoencoder(params: Params, **changes: Any) -> Params:
    """The same settings with another autoencoder, checked again."""
    values = params.model_dump(mode="json", by_alias=True)
    values["train"]["autoencoder"] |= changes
    values["train"]["max_rows"] = MAX_TRAINING_ROWS
    return Params.model_validate(values)


def trained(name: str, plant: SimulatedPlant, params: Params, seed: int) -> tuple[Detector, dict[str, Any]]:
    """One detector on the rows that fit."""
    return train_detector(name, plant.fitting, plant.fitting_role, plant.spec, params.train, seed=seed)


def jitter(plant: SimulatedPlant, params: Params, seed: int) -> dict[str, list[dict[str, float]]]:
    """Figures of each variant at each level of noise."""
    found: dict[str, list[dict[str, float]]] = {}
    for variant, noise in {**VARIANTS, BESIDE: {}}.items():
        name = "squared_distance" if variant == BESIDE else "autoencoder"
        detector, _ = trained(name, plant, with_autoencoder(params, noise=noise), seed)
        at = calibrated(detector, plant, params)
        # the same noise for all: a repaired machine stands on the fleet's baseline, whose scale is wider than it is
        scale_1F = np.median(detector.baselines.scale[detector.baselines.codes(plant.fitting.keys), :-1], axis=0)[None]
        found[variant] = [
            {"level": level} | figures(detector, plant, at, jittered(plant.test.spectra, scale_1F, level, seed))
            for level in LEVELS
        ]
    return found


def bottleneck(plant: SimulatedPlant, params: Params, seed: int) -> list[dict[str, float]]:
    """Validation error and figures of each width."""
    found = []
    for latent in LATENTS:
        detector, history = trained("autoencoder", plant, with_autoencoder(params, latent=latent), seed)
        error = min(epoch["validation_loss"] for epoch in history["epochs"])
        at = calibrated(detector, plant, params)
        found.append(
            {"latent": latent, "validation_error": error, "epochs": len(history["epochs"])}
            | figures(detector, plant, at, plant.test.spectra)
        )
    return found


def averaged(runs: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Means over the fleets, point by point, with the range where there are several.

    >>> averaged([[{"level": 1, "auroc": 0.5}], [{"level": 1, "auroc": 0.75}]])
    [{'level': 1.0, 'auroc': 0.625, 'auroc_range': [0.5, 0.75]}]
    """
    points = []
    for parts in zip(*runs, strict=True):
        point: dict[str, Any] = {}
        for key in parts[0]:
            values = [float(part[key]) for part in parts]
            point[key] = round(float(np.mean(values)), 5)
            if key in FIGURES and len(values) > 1:
                point[f"{key}_range"] = [round(min(values), 5), round(max(values), 5)]
        points.append(point)
    return points


def drawn(result: dict[str, Any]) -> Figure:
    """Four panels of jitter, two of the bottleneck; the range over the fleets as bars."""
    titles = {
        "auroc": "AUROC of rows",
        "caught_share": "failures caught",
        "false_episodes_per_machine_day": "false episodes per machine-day",
        "healthy_above_low_tier": "healthy rows above the low tier",
    }
    figure = make_subplots(
        rows=3,
        cols=2,
        subplot_titles=[f"Jitter: {title}" for title in titles.values()]
        + ["Bottleneck: validation error", "Bottleneck: detection"],
    )
    colours = ("#0b6b7a", "#6f5aa8", "#c08a2b", "#a8503f")
    for colour, (variant, points) in zip(colours, result["jitter"].items(), strict=True):
        for place, key in enumerate(titles):
            line = _line(points, "level", key, variant, colour)
            figure.add_trace(line.update(showlegend=place == 0), row=place // 2 + 1, col=place % 2 + 1)
    sweep = result["bottleneck"]
    figure.add_trace(_line(sweep, "latent", "validation_error", "validation error", colours[0]), row=3, col=1)
    figure.add_trace(_line(sweep, "latent", "auroc", "AUROC of rows", colours[0]), row=3, col=2)
    figure.add_trace(_line(sweep, "latent", "caught_share", "failures caught", colours[3]), row=3, col=2)
    for row, text in ((1, "noise, healthy deviations"), (2, "noise, healthy deviations"), (3, "latent dimensions")):
        figure.update_xaxes(title_text=text, row=row)
    return figure.update_layout(template="plotly_white", height=1000, title="Robustness on simulated fleets")


def _line(points: Sequence[Mapping[str, Any]], x: str, y: str, name: str, colour: str) -> Scatter:
    values = [point[y] for point in points]
    ranges = [point.get(f"{y}_range", [point[y], point[y]]) for point in points]
    bars = {
        "array": [high - value for (_, high), value in zip(ranges, values, strict=True)],
        "arrayminus": [value - low for (low, _), value in zip(ranges, values, strict=True)],
    }
    return Scatter(x=[point[x] for point in points], y=values, error_y=bars, name=name, line={"color": colour})


def show(result: dict[str, Any]) -> None:
    """Both sweeps as tables."""
    console = Console(width=140)
    for title, key, points in [
        *((f"jitter, {variant}", "level", points) for variant, points in result["jitter"].items()),
        ("bottleneck", "latent", result["bottleneck"]),
    ]:
        columns = [name for name in points[0] if name == key or not name.endswith("_range")]
        table = Table(title=title)
        for name in columns:
            table.add_column(name, justify="right")
        for point in points:
            table.add_row(*(f"{point[name]:.4g}" for name in columns))
        console.print(table)


def main() -> None:
    """Print tables, write the plots, and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--machines", type=int, default=60)
    parser.add_argument("--days", type=float, default=75)
    parser.add_argument("--out", type=Path, default=ROOT / ".hearken/robustness.html")
    parser.add_argument("--threads", type=int, default=1, help="small batches gain nothing from a second")
    options = parser.parse_args()
    params, begin = load_params(ROOT / "params.yaml"), time.perf_counter()
    use_threads(options.threads)
    noisy, narrow = [], []
    for seed in options.seeds:
        plant = simulated_plant(params, seed, options.machines, options.days)
        print(f"fleet {seed}: {len(plant.fitting):,} rows may train, {len(plant.events)} failures", flush=True)
        noisy.append(jitter(plant, params, seed))
        narrow.append(bottleneck(plant, params, seed))
        print(f"fleet {seed}: {json.dumps({'jitter': noisy[-1], 'bottleneck': narrow[-1]})}", flush=True)
    result: dict[str, Any] = {"seeds": list(options.seeds), "machines": options.machines, "days": options.days}
    result["jitter"] = {variant: averaged([run[variant] for run in noisy]) for variant in noisy[0]}
    result["bottleneck"] = averaged(narrow)
    result["seconds"] = round(time.perf_counter() - begin)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    drawn(result).write_html(options.out, include_plotlyjs=True)
    show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
