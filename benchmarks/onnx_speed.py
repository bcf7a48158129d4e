"""Scoring by torch and by onnxruntime on the same rows and threads, per detector: rows per second, and one row alone.

Whole scorers, raw spectra to scores, in the batches of service. The repeats of all ways are interleaved, so that a busy
machine slows all alike. `onnx_vs_torch` compares with torch in the precision that `train.precision: auto` chooses here,
`onnx_vs_torch_float32` with float32, `onnx_vs_torch_cpu` by the time that all threads compute, which other processes
move less. `difference` is that of scores from float32's, median and largest. The isolation forest is also measured as
it is in service (`onnx_trees`: torch, but onnxruntime walks the trees), beside torch alone.
Usage: python benchmarks/onnx_speed.py [--rows 100000] [--repeats 7] [--threads 2] [--detector NAME ...]
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from pipeline.detectors import CLASSES, Fitting, NeuralDetector, TrainingRows, fit_baselines, make_detector
from pipeline.detectors.forest import ForestDetector
from pipeline.engine import choose_precision
from pipeline.onnx_export import as_float32, open_scorer, run_scorer, scorer_bytes, scorer_model
from pipeline.params import WINDOW_DETECTORS, TrainParams
from pipeline.rows import RowKeys
from pipeline.schema import FleetSpec, FloatN, FloatNF, LimitSpec
from pipeline.train import use_threads

NAMES = [name for name in CLASSES if name not in WINDOW_DETECTORS]
BINS, MACHINES, LOADS, TRAINING_ROWS, EPOCHS, ALONE = 64, 50, 6, 20_000, 3, 20
CPU = torch.device("cpu")
LIMITS = LimitSpec(zones=(1.4, 2.8, 4.5), amplitude="rms")
FLEET = FleetSpec(bins=BINS, unit="m/s2", band_edges_hz=tuple(range(0, 20 * BINS + 20, 20)), limits=LIMITS)


def fleet_rows(rows: int) -> tuple[FloatNF, RowKeys]:
    """Spectra of machines that differ, each moved by a few loads and noise."""
    generator = np.random.default_rng(1)
    machine_N = np.arange(rows) * MACHINES // rows
    logs_NF = generator.normal(0, 0.5, (MACHINES, BINS))[machine_N]
    logs_NF += generator.normal(0, 0.2, (rows, LOADS)) @ generator.normal(0, 1, (LOADS, BINS))
    logs_NF += generator.normal(0, 0.15, (rows, BINS))
    names = [f"machine-{number:03d}" for number in range(MACHINES)]
    return np.exp(logs_NF).astype(np.float32), RowKeys.of(names, machine_N, np.zeros(rows, np.int64))


def walked_by_torch(detector: ForestDetector) -> ForestDetector:
    """The same forest as it scores where there is no onnxruntime for the device."""
    walked = copy.copy(detector)
    walked.path_lengths = detector.walked_lengths  # type: ignore[method-assign]
    return walked


def onnx_scores(content: bytes, batch_rows: int, threads: int) -> Callable[[FloatNF, np.ndarray], FloatN]:
    """Scoring by onnxruntime in batches."""
    session = open_scorer(content, threads)

    def score(spectra_NF: FloatNF, row_N: np.ndarray) -> FloatN:
        starts = range(0, len(spectra_NF), batch_rows)
        parts = [slice(begin, begin + batch_rows) for begin in starts]
        return np.concatenate([run_scorer(session, spectra_NF[part], row_N[part])[0] for part in parts])

    return score


def seconds(score: Callable[[FloatNF, np.ndarray], FloatN], spectra_NF: FloatNF, row_N: np.ndarray) -> FloatN:
    """How long scoring takes, and how long all its threads compute."""
    begin = np.array([time.perf_counter(), time.process_time()])
    score(spectra_NF, row_N)
    return np.array([time.perf_counter(), time.process_time()]) - begin


def measure(name: str, rows: int, repeats: int, threads: int) -> dict[str, object]:
    """Figures of one detector."""
    epochs = {"optimiser": {"max_epochs": EPOCHS}, "restarts": 0}
    params = TrainParams.model_validate({"autoencoder": epochs, "vae": epochs})
    spectra_NF, keys = fleet_rows(rows)
    table = fit_baselines(spectra_NF, keys)
    row_N = table.codes(keys)
    healthy = np.random.default_rng(2).permutation(rows)[: TRAINING_ROWS + 2_000]
    train, validation = healthy[:TRAINING_ROWS], healthy[TRAINING_ROWS:]
    detector = make_detector(name, table, params, CPU, FLEET)
    if isinstance(detector, NeuralDetector):
        detector.precision = choose_precision("auto", CPU)
    detector.fit(
        TrainingRows(spectra_NF[train], row_N[train], spectra_NF[validation], row_N[validation]), Fitting(3, CPU)
    )
    content = scorer_bytes(scorer_model(detector))
    ways = {"torch_float32": as_float32(detector).score}
    if isinstance(detector, ForestDetector):
        ways = {"torch_float32": walked_by_torch(detector).score, "onnx_trees": detector.score}
    elif detector.precision != "float32":
        ways["torch_bfloat16"] = detector.score
    ways["onnx"] = onnx_scores(content, detector.batch_rows, threads)
    scores = {way: score(spectra_NF, row_N) for way, score in ways.items()}
    reference = scores["torch_float32"]
    times = {way: np.empty((repeats, 2)) for way in ways}
    alone = {way: np.empty(repeats) for way in ways}
    for repeat in range(repeats):
        for way, score in ways.items():
            times[way][repeat] = seconds(score, spectra_NF, row_N)
            alone[way][repeat] = sum(seconds(score, spectra_NF[[i]], row_N[[i]])[0] for i in range(ALONE)) / ALONE
    in_service = times.get("torch_bfloat16", times["torch_float32"])
    result: dict[str, object] = {
        "kilobytes": len(content) / 1000,
        **{f"{way}_rows_per_s": quartiles(rows / times[way][:, 0]) for way in ways},
        **{f"{way}_one_row_ms": quartiles(1000 * alone[way]) for way in ways},
        "onnx_vs_torch": quartiles((in_service / times["onnx"])[:, 0]),
        "onnx_vs_torch_cpu": quartiles((in_service / times["onnx"])[:, 1]),
        "onnx_vs_torch_float32": quartiles((times["torch_float32"] / times["onnx"])[:, 0]),
    }
    if "onnx_trees" in times:
        result["onnx_trees_vs_torch"] = quartiles((times["torch_float32"] / times["onnx_trees"])[:, 0])
    for way in (way for way in ways if way != "torch_float32"):
        away = np.abs(scores[way] - reference) / np.maximum(np.abs(reference), 1.0)
        result[f"{way}_difference"] = [float(np.median(away)), float(away.max())]
    return result


def quartiles(values: FloatN) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [float(f"{value:.4g}") for value in np.percentile(values, [25, 50, 75])]


def main() -> None:
    """Print a table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--detector", action="append", choices=NAMES)
    options = parser.parse_args()
    use_threads(options.threads)
    names = options.detector or NAMES
    results = {name: measure(name, options.rows, options.repeats, options.threads) for name in names}
    table = Table(title=f"{options.rows:,} x {BINS}, {options.threads} threads: median (quartiles)")
    for heading in ("detector", "torch, rows/s", "onnx, rows/s", "onnx / torch", "by CPU time"):
        table.add_column(heading, justify="left" if heading == "detector" else "right")
    for name, result in results.items():
        torch_way = "torch_bfloat16" if "torch_bfloat16_rows_per_s" in result else "torch_float32"
        keys = (f"{torch_way}_rows_per_s", "onnx_rows_per_s", "onnx_vs_torch", "onnx_vs_torch_cpu")
        table.add_row(name, *(_shown(result[key]) for key in keys))
    Console(width=130).print(table)
    print(json.dumps({"rows": options.rows, "bins": BINS, "threads": options.threads, "detectors": results}))


def _shown(figures: object) -> str:
    low, middle, high = (f"{figure:,.{2 * (figure < 100)}f}" for figure in figures)  # type: ignore[attr-defined]
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
