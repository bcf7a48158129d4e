"""The training hours through the project's own stages, up to trained detectors."""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from harbor_fleet.plant import DAY, HORIZON, ROOT, Plant, Setup, Stretch, in_order
from pipeline.clean import clean
from pipeline.epochs import epoch_of_rows
from pipeline.errors import ContractError
from pipeline.ingest import ingest
from pipeline.log_status import LOG_STATUSES, Intervals, LogStatus, log_status
from pipeline.log_status import Timeline as LogTimeline
from pipeline.params import Params, load_params
from pipeline.roles import ROLE, ROLES, validation_rows
from pipeline.rows import has_role
from pipeline.schema import (
    FAILURE_SCHEMA,
    KEY_FIELDS,
    MAINTENANCE_SCHEMA,
    SPLIT_SCHEMA,
    VALIDATE_SCHEMA,
    BoolN,
    Label,
    Role,
    codes_and_names,
    dictionary_column,
    load_fleet_spec,
    times_us,
)
from pipeline.simulation.log import maintenance_table
from pipeline.store import read_table, write_fleet_spec, write_table
from pipeline.train import run as train
from pipeline.validate import validate


def write_training(plant: Plant, stretches: Sequence[Stretch], folder: Path) -> int:
    """The data set of the training hours, with the log as it stood a horizon after them; returns its rows."""
    ordered = sorted(stretches, key=lambda stretch: (int(stretch.begin), stretch.machine, stretch.begin))
    rows, day, tables = 0, -1, list[pa.Table]()

    def write() -> None:
        if tables:
            path = folder / "spectra" / f"{plant.params.start + dt.timedelta(days=day)}.parquet"
            write_table(path, pa.concat_tables(tables))

    for stretch, made in zip(ordered, in_order(ordered, plant.tables), strict=True):
        if int(stretch.begin) != day:
            write()
            day, tables = int(stretch.begin), []
        tables += made
        rows += sum(table.num_rows for table in made)
    write()
    write_fleet_spec(folder / "fleet.yaml", plant.spec)
    until = plant.setup.train_days + HORIZON
    write_table(folder / "maintenance.parquet", maintenance_table(plant.history, plant.params.start, until))
    return rows


def training_split(raw: Path, status: pa.Table, params: Params, newest_us: int) -> pa.Table:
    """SPLIT_SCHEMA of rows that all lie in the training span: what the log calls healthy trains, whole days validate.

    Args:
        raw: the snapshot.
        status: VALIDATE_SCHEMA.
        params: section `split` is read.
        newest_us: the moment of the build: a failure up to then has been written down.
    """
    machine_N, machines = codes_and_names(status["machine_id"])
    time_us_N = times_us(status["timestamp"])
    log = read_table(raw / "maintenance.parquet", schema=MAINTENANCE_SCHEMA)
    failures = read_table(raw / "failures.parquet", schema=FAILURE_SCHEMA)
    quality_N = np.array(status["status"].cast(pa.string()).to_pylist())
    timeline = LogTimeline(machine_N, time_us_N, len(machines))
    usable_N = np.isin(quality_N, ("ok", "suspect"))
    status_N, owner_N = log_status(timeline, time_us_N, usable_N, newest_us, machines, log, failures, params.split)
    train_N = (status_N == LogStatus.HEALTHY) & (quality_N == "ok")
    first = int(time_us_N.min())
    span_N = np.full(len(time_us_N), int(time_us_N.max()) - first)
    start_N = np.full(len(time_us_N), first)
    validation_N, _ = validation_rows(time_us_N, start_N, span_N, train_N, params.split.validation_share)
    role_N = np.full(len(train_N), ROLE[Role.NONE], np.int8)
    role_N[train_N], role_N[validation_N] = ROLE[Role.TRAIN], ROLE[Role.VALIDATION]
    labels = tuple(str(label) for label in Label)
    label_N = np.where(train_N, labels.index(Label.HEALTHY), labels.index(Label.UNKNOWN)).astype(np.int8)
    columns = [
        *(status[name.name].cast(name.type) for name in KEY_FIELDS),
        dictionary_column(status_N, LOG_STATUSES),
        pa.array(epoch_of_rows(machine_N, time_us_N, machines, log)),
        dictionary_column(role_N, ROLES),
        dictionary_column(label_N, labels),
        dictionary_column(owner_N, failures["failure_id"].to_pylist()),
    ]
    return pa.Table.from_arrays(columns, schema=SPLIT_SCHEMA)


class Clock:
    """Seconds of each phase, all its turns together."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


def train_all(plant: Plant, training: Sequence[Stretch], params: Params, root: Path, clock: Clock) -> dict[str, Any]:
    """Simulate the training hours and run the project's stages on them below `root`; what came of it."""
    given, raw, status = root / "given", root / "data/raw", root / "data/status"
    with clock.phase("simulate training"):
        simulated = write_training(plant, training, given)
    say("training: simulated", clock.seconds["simulate training"], simulated)
    with clock.phase("ingest"):
        ingest(given, raw, params.ingest, horizon_hours=params.split.horizon_hours, tune_share=0.5)
    with clock.phase("validate"):
        validate(raw, status / "validate.parquet", params.validate_)
    facts = read_table(status / "validate.parquet", schema=VALIDATE_SCHEMA)
    newest_us = plant.zero_us + round((plant.setup.train_days + HORIZON) * DAY)
    split = training_split(raw, facts, params, newest_us)
    write_table(status / "split.parquet", split)
    roles = Counter(split["role"].to_pylist())
    found: dict[str, Any] = {"rows": split.num_rows, "train_rows": roles["train"], "cleaned": True}
    found["validation_rows"] = roles["validation"]
    spec = load_fleet_spec(raw / "fleet.yaml")
    baseline = params.train.baseline
    try:
        with threadpool_limits(1, user_api="blas"), clock.phase("clean"):
            cleaned = clean(raw, split, spec, params.clean, params.seed, baseline).table
        found["removed_rows"] = int(cleaned["removed"].to_numpy().sum())
    except ContractError as error:
        found |= {"cleaned": False, "not_cleaned_because": str(error)}
        cleaned = pa.table({"removed": np.zeros(split.num_rows, bool)})
    write_table(status / "clean.parquet", cleaned)
    found["ill_share"], found["ill_share_cleaned"] = ill_shares(plant, split, ~cleaned["removed"].to_numpy())
    for name in plant.setup.detectors:
        with clock.phase(f"train {name}"):
            train(name, params, root)
    return found


def ill_shares(plant: Plant, split: pa.Table, kept_N: BoolN) -> tuple[float, float]:
    """Share of the rows that train or validate that are faulty in truth, before cleaning and after; for the record."""
    machine_N, machines = codes_and_names(split["machine_id"])
    codes = {plant.history.names.index(name): code for code, name in enumerate(machines)}
    faults = [(codes[machine], onset, end) for machine, onset, end in plant.true_trouble() if machine in codes]
    last = plant.setup.days
    spans = np.array([(onset, min(end, last)) for _, onset, end in faults]).reshape(-1, 2) * DAY
    start_K, end_K = plant.zero_us + np.round(spans).astype(np.int64).T
    trouble = Intervals(np.array([machine for machine, _, _ in faults], np.int32), start_K, end_K)
    ill_N = LogTimeline(machine_N, times_us(split["timestamp"]), len(machines)).covered(trouble)
    used_N = has_role(split, Role.TRAIN, Role.VALIDATION)
    before, after = (float(ill_N[mask_N].mean()) for mask_N in (used_N, used_N & kept_N))
    return round(before, 5), round(after, 5)


def settings_of(setup: Setup) -> Params:
    """params.yaml, with no cap on training rows below what is asked for, and with what the setup changes."""
    params = load_params(ROOT / "params.yaml")
    changed: dict[str, Any] = {"max_rows": max(params.train.max_rows, 2 * setup.train_rows)}
    if setup.epochs is not None:
        for name in ("autoencoder", "vae"):
            section = getattr(params.train, name)
            optimiser = section.optimiser.model_copy(update={"max_epochs": setup.epochs})
            changed[name] = section.model_copy(update={"optimiser": optimiser})
        warmup = min(params.train.vae.warmup_epochs, -(-setup.epochs // 3))  # as many of 16 epochs are 5
        changed["vae"] = changed["vae"].model_copy(update={"warmup_epochs": warmup})
    train_section = params.train.model_copy(update=changed)
    return params.model_copy(update={"detectors": setup.detectors, "train": train_section})


def say(what: str, seconds: float, rows: int) -> None:
    """A line of progress."""
    print(f"progress {what}, {seconds:.0f} s, {rows / max(seconds, 1e-9):,.0f} rows/s", flush=True)
