"""Stage `train`: one detector on cleaned healthy rows, with the machine baselines it needs.

`python -m pipeline.train DETECTOR` fits one item of the matrix in dvc.yaml.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.base_release import base_network
from pipeline.detectors import Detector, Fitting, RowOrder, TrainingRows, choose_device, fit_baselines, make_detector
from pipeline.detectors.base import write_history
from pipeline.engine import Processes, choose_precision, discard, joined
from pipeline.errors import ContractError, UserError, run_reporting_errors
from pipeline.params import NEURAL_DETECTORS, Params, TrainParams, load_params
from pipeline.rows import RowKeys, Rows, has_role, load_conditions
from pipeline.schema import FAILURE_SCHEMA, BoolN, FleetSpec, IntN, Role, codes_and_names, load_fleet_spec, times_us
from pipeline.store import atomic_folder, read_table
from pipeline.training_rows import Material, Teaching, divide, material_in, material_of, teaching_in

FEW_OWN = 0.5  # of the training rows: below it baselines describe little, and somebody should know
CODE = ("engine", "detectors")  # folders whose bytes decide what a checkpoint is worth


def use_threads(threads: int) -> None:
    """Fix the number of threads: it decides the last bits of sums."""
    torch.set_num_threads(threads)


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
    """Fit baselines and one detector on rows that are in memory.

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
    parts = divide(rows.keys, rows.time_us, role_N, params, seed)
    return fit_detector(name, material_of(rows, parts), fleet, params, fitting_of(params, seed, say))


def fitting_of(params: TrainParams, seed: int, say: Any) -> Fitting:
    """How to fit, with nothing kept on disk.

    Raises:
        UserError: a device is asked for and absent.
    """
    return Fitting(seed, choose_device(params.device), say, compile=params.compile == "auto")


def fit_detector(
    name: str,
    material: Material,
    fleet: FleetSpec,
    params: TrainParams,
    fitting: Fitting,
    teaching: Teaching | None = None,
) -> tuple[Detector, dict[str, Any]]:
    """Fit baselines and one detector; see train_detector. A network may learn the modes of failures that teach."""
    parts, settings, say = material.parts, params.baseline, fitting.say
    baselines = fit_baselines(
        material.read(parts.describes_N),
        material.keys.take(parts.describes_N),
        material.time_us_N[parts.describes_N],
        scope=settings.scope,
        condition_column=settings.condition_column,
        shrink_rows=settings.shrink_rows,
        min_rows=settings.min_rows,
        log=fleet.kind == "spectrum",
    )
    code_N = baselines.codes(material.keys)
    own_N = baselines.is_own(code_N)
    own_share = float(own_N[parts.train_N].mean())
    in_newest_N = parts.describes_N & in_newest_epoch(material.keys)
    if settings.scope != "global" and own_share < FEW_OWN:
        say(
            f"only {own_share:.0%} of the training rows have a baseline of their own: each machine, epoch and "
            f"{settings.condition_column} needs {settings.min_rows} independent looks (train.baseline)"
        )
    detector = make_detector(name, baselines, params, fitting.device, fleet)
    if name in NEURAL_DETECTORS:
        detector.precision = choose_precision(params.precision, fitting.device)
    train_code, validation_code = code_N[parts.train_N], code_N[parts.validation_N]
    train, validation = material.read(parts.train_N), material.read(parts.validation_N)
    taught = None if teaching is None else teaching.taught(baselines.codes(teaching.keys))
    orders = [
        RowOrder(material.keys.take(mask_N), material.time_us_N[mask_N])
        for mask_N in (parts.train_N, parts.validation_N)
    ]
    training = TrainingRows(train, train_code, validation, validation_code, material.train_hour, taught, *orders)
    start = time.perf_counter()
    history = detector.fit(training, fitting)
    seconds, count = time.perf_counter() - start, len(train_code)
    speed = history.pop("rows_per_s", 0.0)  # of networks; a time: not for the history, which is an output
    say(f"fitted on {count:,} rows in {seconds:.1f} s" + (f", {speed:,.0f} rows/s" if speed else ""))
    history |= {"rows": count, "validation_rows": len(validation_code), "device": fitting.device.type}
    history |= {"precision": detector.precision}
    history["baselines"] = {
        "scope": settings.scope,
        "machines": len({machine for machine, _, _ in baselines.keys}),
        "keys": baselines.own,
        "fleet_conditions": len(baselines.conditions),
        "own_share": round(own_share, 4),  # of the training rows
        # after a change of the fleet the newest epochs are short, and the training rows are of older ones
        "own_share_newest_epochs": round(float(own_N[in_newest_N].mean()), 4) if in_newest_N.any() else None,
    }
    return detector, history


def in_newest_epoch(keys: RowKeys) -> BoolN:
    """Which rows (N,) are of the newest baseline epoch of their machine, as far as the rows show.

    >>> in_newest_epoch(RowKeys.of(["a", "b"], np.array([0, 0, 1]), np.array([0, 1, 0])))
    array([False,  True,  True])
    """
    newest_M = np.zeros(len(keys.machines), np.int64)
    np.maximum.at(newest_M, keys.machine_N, keys.epoch_N)
    return np.asarray(keys.epoch_N == newest_M[keys.machine_N])


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
    keys, time_us_N, role_N = _keys(raw, split, selected, params.train.baseline.conditions_from)
    parts = divide(keys, time_us_N, role_N, params.train, params.seed)
    home = root / ".hearken"  # beside what DVC removes before a run
    material = material_in(raw, split, selected, fleet.bins, keys, time_us_N, parts, home / "scratch")

    processes = Processes.here()

    def say(line: str) -> None:
        if processes.leads:
            print(f"progress train@{name}: {line}", flush=True)

    traces = home / "training" / name
    fitting = replace(
        fitting_of(params.train, params.seed, say),
        checkpoint=traces / "checkpoints",
        live=traces / "live",
        scratch=home / "scratch",
        key=_key(name, params.train),
        base=base_network(root, params.base_release, name) if name in NEURAL_DETECTORS else None,
        fine_tune=params.train.fine_tune,
    )
    if name in NEURAL_DETECTORS and params.base_release is not None:
        weights = "its weights" if fitting.base else "random weights, since it has no such network"
        say(f"base release {params.base_release}: training starts from {weights}")
    teaching = None
    if getattr(getattr(params.train, name), "supervised", None) is not None:
        failures = read_table(raw / "failures.parquet", schema=FAILURE_SCHEMA)
        teaching = teaching_in(raw, split, failures, fleet.bins, params.train.baseline.conditions_from)
    detector, history = fit_detector(name, material, fleet, params.train, fitting, teaching)
    if not processes.leads:
        return
    with atomic_folder(root / "data/models" / name) as folder:
        detector.save(folder)
        write_history(folder, history)
        if (traces / "live").is_dir():
            shutil.copytree(traces / "live", folder / "live")
    discard(traces)


def _keys(
    raw: Path, split: pa.Table, selected: BoolN, condition_column: str | None
) -> tuple[RowKeys, IntN, np.ndarray]:
    """Keys, times and roles of the selected rows, without their spectra."""
    rows = split.filter(pa.array(selected))
    machine_N, machines = codes_and_names(rows["machine_id"])
    condition_N, conditions = load_conditions(raw, split, selected, condition_column)
    role_code, roles = codes_and_names(rows["role"])
    keys = RowKeys(machines, machine_N, rows["epoch"].to_numpy(), conditions, condition_N)
    return keys, times_us(rows["timestamp"]), np.array([*roles, ""], dtype=object)[role_code]


def _key(name: str, params: TrainParams) -> str:
    """What decides the weights beside rows, seed and optimiser: the detector's parameters, and the code."""
    digest = hashlib.sha256(getattr(params, name).model_dump_json().encode())
    for folder in CODE:
        for path in sorted((Path(__file__).parent / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    """Command line of the stage."""
    if len(sys.argv) != 2:
        raise UserError("train: got no detector, expected: python -m pipeline.train DETECTOR")
    with joined():
        run(sys.argv[1], load_params(), Path())


if __name__ == "__main__":
    run_reporting_errors(main)
