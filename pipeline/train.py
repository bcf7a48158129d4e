"""Stage `train`: one detector on cleaned healthy rows, with the machine baselines it needs.

`python -m pipeline.train DETECTOR` fits one item of the matrix in dvc.yaml.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.detectors import Detector, Fitting, TrainingRows, choose_device, fit_baselines, make_detector
from pipeline.detectors.base import write_history
from pipeline.errors import ContractError, UserError, run_reporting_errors
from pipeline.params import Params, TrainParams, load_params
from pipeline.rows import Rows, has_role, load_rows
from pipeline.schema import MICROSECONDS_PER_HOUR, BoolN, FleetSpec, Role, load_fleet_spec
from pipeline.store import atomic_folder, read_table

MIN_TRAINING_ROWS = 10
FEW_OWN = 0.5  # of the training rows: below it baselines describe little, and somebody should know


def use_threads(threads: int) -> None:
    """Fix the number of threads: it decides the last bits of sums."""
    torch.set_num_threads(threads)


def sample_hours(machine_N: np.ndarray, time_us_N: np.ndarray, max_rows: int, seed: int) -> BoolN:
    """Which rows to keep so that at most about `max_rows` remain: whole machine-hours, never single rows.

    >>> hours = np.repeat(np.arange(100), 6) * MICROSECONDS_PER_HOUR
    >>> kept = sample_hours(np.zeros(600, int), hours, 300, seed=1)
    >>> 200 < kept.sum() < 400 and set(np.add.reduceat(kept, np.arange(0, 600, 6))) == {0, 6}
    True
    """
    if len(machine_N) <= max_rows:
        return np.ones(len(machine_N), bool)
    hour_N = time_us_N // MICROSECONDS_PER_HOUR
    key_N = (hour_N.astype(np.uint64) * np.uint64(1_000_003) + machine_N.astype(np.uint64)) ^ np.uint64(seed)
    mixed_N = key_N * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing (Knuth, TAOCP 3, 6.4)
    mixed_N ^= mixed_N >> np.uint64(32)
    share_N = (mixed_N * np.uint64(0xD6E8FEB86659FD93) >> np.uint64(40)).astype(np.float64) / 2**24
    return np.asarray(share_N < max_rows / len(machine_N))


def train_detector(
    name: str,
    rows: Rows,
    role_N: np.ndarray,
    fleet: FleetSpec,
    params: TrainParams,
    *,
    seed: int,
    say: Any = lambda _line: None,
) -> tuple[Detector, dict[str, Any]]:
    """Fit baselines and one detector.

    Args:
        name: detector.
        rows: rows of the roles train, validation and baseline.
        role_N: role of each.
        fleet: what the numbers mean.
        params: section `train`.
        seed: of the weights, the order of rows and the noise.
        say: told lines of progress.

    Raises:
        ContractError: no training rows.
    """
    is_train, is_validation = role_N == Role.TRAIN, role_N == Role.VALIDATION
    if not is_train.any():
        raise ContractError.of("training rows", got=0, expected="at least one healthy row", where="role train")
    # a machine with rows that only describe it is described by those alone, as its test rows will be
    is_baseline = role_N == Role.BASELINE
    described = np.bincount(rows.machine[is_baseline], minlength=len(rows.machines)) >= params.baseline.min_rows
    describes = np.where(described[rows.machine], is_baseline, is_train | is_baseline)
    settings = params.baseline
    baselines = fit_baselines(
        rows.spectra[describes],
        rows.keys.take(describes),
        scope=settings.scope,
        condition_column=settings.condition_column,
        shrink_rows=settings.shrink_rows,
        min_rows=settings.min_rows,
        log=fleet.kind == "spectrum",
    )
    code_N = baselines.codes(rows.keys)
    own_share = float(baselines.is_own(code_N[is_train]).mean())
    if settings.scope != "global" and own_share < FEW_OWN:
        say(
            f"only {own_share:.0%} of the training rows have a baseline of their own: each machine, epoch and "
            f"{settings.condition_column} needs {settings.min_rows} rows (train.baseline)"
        )
    kept = is_train.copy()
    kept[is_train] = sample_hours(rows.machine[is_train], rows.time_us[is_train], params.max_rows, seed)
    if not is_validation.any():  # too short to set days apart: the last tenth of the training rows, in time
        late = np.argsort(rows.time_us + np.where(kept, 0, np.iinfo(np.int64).min // 2), kind="stable")
        is_validation = np.zeros(len(kept), bool)
        is_validation[late[-max(1, int(kept.sum()) // 10) :]] = True
        if kept.sum() > is_validation.sum():
            kept &= ~is_validation
    if kept.sum() < MIN_TRAINING_ROWS:
        expected = f"at least {MIN_TRAINING_ROWS} healthy rows"
        raise ContractError.of("training rows", got=int(kept.sum()), expected=expected, where="role train")
    device = choose_device(params.device)
    detector = make_detector(name, baselines, params, device)
    training = TrainingRows(rows.spectra[kept], code_N[kept], rows.spectra[is_validation], code_N[is_validation])
    start = time.perf_counter()
    history = detector.fit(training, Fitting(seed, device, say))
    seconds = time.perf_counter() - start
    epochs = len(history.get("epochs", [])) or 1
    say(
        f"fitted on {kept.sum():,} rows in {seconds:.1f} s, {epochs * int(kept.sum()) / max(seconds, 1e-9):,.0f} rows/s"
    )
    history |= {"rows": int(kept.sum()), "validation_rows": int(is_validation.sum()), "device": device.type}
    history["baselines"] = {
        "scope": settings.scope,
        "machines": len({machine for machine, _, _ in baselines.keys}),
        "keys": len(baselines.keys),
        "fleet_conditions": len(baselines.conditions),
        "own_share": round(own_share, 4),  # of the training rows
    }
    return detector, history


def training_table(folder: Path) -> tuple[pa.Table, BoolN]:
    """The split table, and which rows the statistics have not removed."""
    split = read_table(folder / "split.parquet")
    removed = read_table(folder / "clean.parquet", ["removed"])["removed"].to_numpy()
    if len(removed) != split.num_rows:
        raise ContractError.of("rows of clean", got=len(removed), expected=split.num_rows, where=folder)
    return split, ~removed


def run(name: str, params: Params, root: Path) -> None:
    """The stage: read, fit, write `data/models/<name>`."""
    if name not in params.detectors:
        raise UserError(f"train: got {name!r}, expected one of {', '.join(params.detectors)} (params.yaml, detectors).")
    use_threads(params.train.threads)
    raw, fleet = root / "data/raw", load_fleet_spec(root / "data/raw/fleet.yaml")
    split, kept = training_table(root / "data/status")
    selected = has_role(split, Role.TRAIN, Role.VALIDATION, Role.BASELINE) & kept
    rows = load_rows(raw, split, selected, fleet.bins, params.train.baseline.conditions_from)

    def say(line: str) -> None:
        print(f"progress train@{name}: {line}", flush=True)

    detector, history = train_detector(name, rows, rows.column("role"), fleet, params.train, seed=params.seed, say=say)
    with atomic_folder(root / "data/models" / name) as folder:
        detector.save(folder)
        write_history(folder, history)


def main() -> None:
    """Command line of the stage."""
    if len(sys.argv) != 2:
        raise UserError("train: got no detector, expected: python -m pipeline.train DETECTOR")
    run(sys.argv[1], load_params(), Path())


if __name__ == "__main__":
    run_reporting_errors(main)
