"""Releases of one simulated plant at several days of its life, for tests of the gate: built by the real stages."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.params import load_params
from pipeline.schema import MAINTENANCE_SCHEMA, codes_and_names, times_us
from pipeline.simulate import simulate
from pipeline.store import day_files, read_table, write_table

START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
PARAMS = """
seed: {seed}
source: {{path: landing}}
simulate: {{machines: 20, days: 60, interval_seconds: 3600, bins: 32, failures: 26, mislabelled_share: 0.0, seed: 31,
  firmware_day: {firmware}, firmware_logged: 0.0, modes: [outer_race, inner_race, rolling_element, energy, looseness],
  upkeep: {{never_well: 0, bearing_swaps: 0, moved_sensors: 0, planned_stops: 0}}}}
split: {{horizon_hours: 48, train_share: 0.4, calibration_share: 0.25, unseen_machine_share: 0.1,
  tune_failure_share: 0.5{changed}}}
clean: {{method: none}}
detectors: [pca, energy_zscore, squared_distance]
train: {{score_batch_rows: 256}}
calibrate:
  draws: 100
  ensemble: {{members: [pca, energy_zscore]}}
  policy: {{k: 2, n: 3, window_minutes: 300, gap_minutes: 150}}
evaluate: {{chance_shifts: 20, false_episodes_per_machine_day: 0.05}}
release: {{reference_rows: 1000}}
"""


def day(number: float) -> dt.datetime:
    """So many days after the simulation's start."""
    return START + dt.timedelta(days=number)


def params_of(seed: int = 5, firmware: float | None = None, changed: float | None = None, clean: str = "refine") -> str:
    """A params.yaml."""
    told = "" if changed is None else f', changed_at: "{day(changed).isoformat()}", purge_hours: 6'
    return PARAMS.format(seed=seed, firmware="null" if firmware is None else firmware, changed=told)


def whole_life(folder: Path, params: str) -> Path:
    """Everything that ever happens to the plant, as a landing zone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(params)
    simulate(load_params(folder / "params.yaml").simulate, folder / "all")
    return folder / "all"


def until(whole: Path, folder: Path, days: float) -> Path:
    """The landing zone as it stood at the end of a day."""
    shutil.copytree(whole, folder)
    (folder / "truth.parquet").unlink(missing_ok=True)
    last = day(days)
    for path in day_files(folder):
        if path.stem >= f"{last:%Y-%m-%d}":
            path.unlink()
    entries = read_table(folder / "maintenance.parquet", schema=MAINTENANCE_SCHEMA)
    entries = entries.filter(pc.less(entries["start"], pa.scalar(last, entries["start"].type)))
    write_table(folder / "maintenance.parquet", entries)
    return folder


READING = ("ingest", "validate", "split")
LEARNING = ("clean", "train", "calibrate", "evaluate", "release")


def build(folder: Path, params: str, stages: tuple[str, ...] = READING + LEARNING) -> Path:
    """Some stages in a folder whose landing zone is `landing`; the folder."""
    (folder / "params.yaml").write_text(params)
    before = Path.cwd()
    os.chdir(folder)
    try:
        for stage in stages:
            if stage == "train":
                settings = load_params()
                for detector in settings.detectors:
                    import_module("pipeline.train").run(detector, settings, Path())
            else:
                import_module(f"pipeline.{stage}").main()
    finally:
        os.chdir(before)
    return folder


def contaminate(folder: Path) -> int:
    """Call rows before failures healthy, and let them train and calibrate; how many there were."""
    path = folder / "data/status/split.parquet"
    table = read_table(path)
    role, label, failure, status = (
        np.array(table[name].cast(pa.string()).to_pylist(), dtype=object)
        for name in ("role", "label", "failure_id", "log_status")
    )
    # each takes the role of the healthy row before it: the phases of a machine follow each other
    before = (status == "horizon") & np.isin(role, ["tune", "none"])
    order = np.lexsort((times_us(table["timestamp"]), codes_and_names(table["machine_id"])[0]))
    known = np.where(np.isin(role[order], ["train", "calibration"]), np.arange(len(order)), -1)
    role[order] = np.where(before[order], role[order][np.maximum.accumulate(known)], role[order])
    label[before], failure[before], status[before] = "healthy", None, "healthy"
    for name, values in (("role", role), ("label", label), ("failure_id", failure), ("log_status", status)):
        field = table.schema.field(name)
        index = table.schema.get_field_index(name)
        table = table.set_column(index, field, pa.array(values, pa.string()).cast(field.type))
    write_table(path, table)
    return int(before.sum())
