"""Failures caught and false pages in a simulated plant of 600 machines, a spectrum every ten seconds (preset Harbor).

A fleet is 300 days of the preset with failures enough for a fair count, its mistakes of the log, season and dirt. The
first 180 days train, sampled as `ingest.max_rows` samples a plant that is too large: whole hours spread over all
months, and single minutes (`--looks-share` of the rows), through the project's own stages (ingest, validate, clean,
train); then 35 days calibrate and the last 71 judge, a horizon of seven days between them. Everything after training
is streamed: spectra are made by machine and day, scored by every detector, and dropped.

- `calibration`: single minutes of some days of every machine that the log calls healthy; levels, tail tables and
  percentiles.
- `budget`: other whole machine-days of the same weeks; thresholds and policies keep their budget here (12 false page
  episodes a day for 600 machines), and rates of exchangeable weeks are counted here.
- `tune`: the seven days before failures that choose each detector's policy.
- `test`: the seven days before other failures, positive from the true onset, and whole machine-days that are healthy in
  truth, spread over machines and weeks. Nothing here sets anything.

A policy and a threshold belong together: for each k of n (with `--levels fleet machine` also for scores brought to one
level by machines, as `calibrate.levels: machine` does) the lowest threshold whose 90 % upper bound of false episodes
on `budget` stays within the budget; of these the one that catches the most tune failures. Bounds are exact Poisson, in
quasi-Poisson form where the counts of machines vary more than that. Some machine-days that the log calls healthy are
not, and pages there use up the budget; `--confirmed` leaves them out, as where a crew has confirmed each such page. An
episode that stands at midnight counts in both days, as one that stands for days counts each day. Chance: a failure's
week and the healthy days dealt to it make one circle, in which pages are shifted. With `--cache` scores are kept, and
judging alone can be repeated; a run that was stopped goes on behind the last part that it finished.

The seeds from 7304 on were not used in development (that used 1 to 99); 7301 to 7303 were looked at while the harbor
benchmark was written.
Usage: python benchmarks/harbor.py [--seeds 7304 7305 7306] [--full] [--cache FOLDER] [--confirmed]; a twentieth of a
fleet: --machines 30 --train-rows 90000 --calibration-hours 120 --budget-days 45 --healthy-days 90 --tune-failures 4
--test-failures 4
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import math
import resource
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from pipeline.alerts import MINUTE, AlertPolicy, Episodes, Timeline, chains, enough_of_last
from pipeline.calibrate import crossed_statistic, ensemble_rule, matched_scale, tail_table
from pipeline.clean import clean
from pipeline.detectors import Detector
from pipeline.ensemble import TailTables
from pipeline.epochs import EpochStarts, epoch_of_rows
from pipeline.errors import ContractError, UserError, run_reporting_errors
from pipeline.ingest import ingest
from pipeline.intervals import rate_with_interval, wilson
from pipeline.judging.judged import Event, Outcome
from pipeline.judging.outcomes import caught_by_chance, only_caught, outcome_at
from pipeline.levels import group_levels
from pipeline.log_status import LOG_STATUSES, Intervals, LogStatus, log_status
from pipeline.log_status import Timeline as LogTimeline
from pipeline.measure import load_detectors, measure
from pipeline.params import IngestParams, Params, SimulateParams, load_params
from pipeline.pareto import TailFit
from pipeline.policy_choice import bound_of_mean
from pipeline.roles import ROLE, ROLES, validation_rows
from pipeline.rows import RowKeys, Rows, conditions_of, has_role
from pipeline.schema import (
    ENSEMBLE,
    FAILURE_SCHEMA,
    KEY_FIELDS,
    MAINTENANCE_SCHEMA,
    MICROSECONDS_PER_DAY,
    SPLIT_SCHEMA,
    VALIDATE_SCHEMA,
    Baseline,
    BoolN,
    FleetSpec,
    FloatN,
    FloatNF,
    IntN,
    Label,
    Role,
    Tag,
    codes_and_names,
    dictionary_column,
    energy_is_finite,
    load_fleet_spec,
    spectra_view,
    times_us,
)
from pipeline.simulation import physics
from pipeline.simulation.days import Fleet, day_table
from pipeline.simulation.history import FleetHistory
from pipeline.simulation.hours import kept_hours
from pipeline.simulation.log import maintenance_table
from pipeline.simulation.plan import plan_fleet
from pipeline.simulation.presets import preset_of
from pipeline.store import atomic_folder, read_json, read_table, sha256_file, write_fleet_spec, write_json, write_table
from pipeline.train import run as train
from pipeline.train import use_threads
from pipeline.validate import validate

ROOT = Path(__file__).resolve().parents[1]
PHYSICS = "12de3dbb018eed40242e221cb400a5d943c5d4d3bdf6a85a7d65ceb60bbfcdf4"  # the simulator was finished with these
DETECTORS = ("autoencoder", "vae", "pca", "energy_zscore", "squared_distance", "isolation_forest")
HORIZON, RUN_IN = 7.0, 1.0  # days
FLEET, BUDGET = 600, 12.0  # machines, and false page episodes a day of so many: 0.02 per machine-day
CONFIDENCE = 0.9
FAILURES_PER_JUDGED, SPARE_FAILURES = 3, 6  # of the plan, for each that tunes or tests: others lie before or between
POLICIES = ((1, 1), (3, 5), (12, 20), (60, 120), (180, 360))  # k of n rows
GAP_MINUTES, WINDOW_SLACK = 30.0, 1.5  # rows are lost: a window holds half as many again as it needs
LEVELS_OF = ("fleet", "machine")  # as `calibrate.levels`
CANDIDATES = np.r_[np.linspace(0.5, 0.99, 50), 1 - np.geomspace(0.01, 1e-7, 100)]  # at which thresholds are looked for
FEW = 1  # false episodes that count as within a budget too small to be shown
LOOK_DAYS = 60  # of each machine that single minutes are heard on: a day's rows are made whole to hear one of them
CALIBRATION_LOOK_DAYS = 12  # of those that calibrate
PIECE_ROWS = 200_000
THREADS = 2
DAY = MICROSECONDS_PER_DAY
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Setup:
    """What is measured; the same setup gives the same figures."""

    seed: int
    machines: int = FLEET
    interval_seconds: float = 10.0
    days: float = 300.0
    train_days: float = 180.0
    calibration_days: float = 35.0
    train_rows: int = 1_800_000
    looks_share: float = IngestParams().looks_share  # of the rows that train, in single minutes
    hours: str = "machine"  # whole ones that train: each machine's own, or the same of all (`fleet`)
    calibration_hours: int = 2_400  # as many rows, in single minutes
    budget_days: int = 900
    healthy_days: int = 1_800
    tune_failures: int = 28
    test_failures: int = 28
    epochs: int | None = None  # of the networks, at most; None: what params.yaml says
    levels: tuple[str, ...] = LEVELS_OF[:1]  # whose healthy scores are brought to one level; tune failures choose
    detectors: tuple[str, ...] = DETECTORS

    @property
    def simulation(self) -> SimulateParams:
        """The preset, as long and with as many failures as this needs."""
        failures = FAILURES_PER_JUDGED * (self.tune_failures + self.test_failures) + SPARE_FAILURES
        changed = {"seed": self.seed, "machines": self.machines, "days": self.days, "failures": failures}
        return preset_of("harbor").model_copy(update=changed | {"interval_seconds": self.interval_seconds})

    @property
    def calibration(self) -> tuple[float, float]:
        """First and past-the-last day."""
        begin = self.train_days + HORIZON
        return begin, begin + self.calibration_days

    @property
    def test(self) -> tuple[float, float]:
        """First and past-the-last day."""
        return self.calibration[1] + HORIZON, self.days

    @property
    def rows_per_hour(self) -> int:
        """Of one machine."""
        return max(1, round(3600 / self.interval_seconds))

    @property
    def rows_per_day(self) -> float:
        """Of one machine."""
        return 86_400 / self.interval_seconds

    def key(self) -> str:
        """What scores depend on, with the settings of params.yaml that they depend on, as a short hash."""
        params = load_params(ROOT / "params.yaml")
        parts: list[Any] = [
            {name: value for name, value in asdict(self).items() if name != "levels"},
            *(section.model_dump(mode="json") for section in (params.train, params.clean)),
        ]
        parts += [params.seed, physics_hash()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def physics_hash() -> str:
    """SHA-256 of the constants of the simulated physics."""
    return sha256_file(Path(physics.__file__))


@dataclass(frozen=True)
class Stretch:
    """Time of one machine that is streamed, in days since the fleet's start, and its place in its circle."""

    machine: int
    begin: float
    end: float
    circle: int
    offset: float = 0.0  # days
    ill: bool = False  # faulty in truth at some time
    window: bool = False  # before a failure
    minutes: tuple[float, ...] = ()  # begin of each that is heard, in days since the fleet's start; none: all is


@dataclass(frozen=True)
class Part:
    """Stretches of one use, in the order of circles, and the failures that end some of them, in the circles' time."""

    stretches: tuple[Stretch, ...]
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything that is heard of a fleet."""

    training: tuple[Stretch, ...]
    parts: Mapping[str, Part]  # calibration, budget, tune, test


@dataclass(frozen=True)
class Heard:
    """Rows of one stretch that a scorer would take: sorted, finite, none twice, none of a wrong clock."""

    spectra_NF: FloatNF
    time_us_N: IntN  # since 1970
    epoch_N: npt.NDArray[np.int32]
    condition_N: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.time_us_N)


class Plant:
    """A simulated fleet with its log, heard a stretch at a time."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.params = setup, setup.simulation
        self.history: FleetHistory = plan_fleet(self.params)
        self.fleet = Fleet(self.params, self.history)
        self.zero_us = DAY * (self.params.start - dt.date(1970, 1, 1)).days
        self.log = maintenance_table(self.history, self.params.start, setup.days)
        self.epochs = EpochStarts.of_log(self.log)

    @property
    def spec(self) -> FleetSpec:
        """fleet.yaml."""
        edges = tuple(float(edge) for edge in np.linspace(0, self.params.max_hz, self.params.bins + 1))
        interval = self.params.interval_seconds
        return FleetSpec(bins=self.params.bins, band_edges_hz=edges, interval_seconds=interval, name="harbor")

    @cached_property
    def entries(self) -> list[tuple[int, float, float, str]]:
        """The log: machine, first and last day, tag."""
        codes = {name: code for code, name in enumerate(self.history.names)}
        starts, ends = ((times_us(self.log[name]) - self.zero_us) / DAY for name in ("start", "end"))
        rows = zip(self.log["machine_id"].to_pylist(), starts, ends, self.log["tag"].to_pylist(), strict=True)
        return [(codes[name], float(start), float(end), str(tag)) for name, start, end, tag in rows]

    def known_work(self, *, horizons: bool) -> list[tuple[int, float, float]]:
        """Machine, begin and end of what the log says of work, with the run-in after a repair, and with horizons."""
        found = []
        for machine, start, end, tag in self.entries:
            before = HORIZON if horizons and tag == Tag.FAILURE else 0.0
            found.append((machine, start - before, end + (RUN_IN if tag in (Tag.FAILURE, Tag.REPAIR) else 0.0)))
        return found

    def true_trouble(self) -> list[tuple[int, float, float]]:
        """Machine, begin and end of every fault, noticed or not."""
        return [(fault.machine, fault.onset, fault.end) for fault in self.history.faults]

    def true_work(self) -> list[tuple[int, float, float]]:
        """Machine, begin and end of all time that it stands still for work."""
        return [(work.machine, work.stops, work.end) for work in self.history.works]

    def tables(self, stretch: Stretch) -> list[pa.Table]:
        """The files' rows of a stretch, a table a day."""
        machines = range(stretch.machine, stretch.machine + 1)
        days = range(int(stretch.begin), int(np.ceil(stretch.end)))
        made = (day_table(self.fleet, machines, day, stretch.begin, stretch.end) for day in days)
        tables = [table for table in made if table is not None]
        return [self._minutes_of(table, stretch) for table in tables] if stretch.minutes else tables

    def _minutes_of(self, table: pa.Table, stretch: Stretch) -> pa.Table:
        """The rows of a stretch's minutes alone; where rows are further apart, the next one of each."""
        length_us = max(MINUTE, round(self.setup.interval_seconds * 1e6))
        begin_us = self.zero_us + np.round(np.array(stretch.minutes) * DAY).astype(np.int64)
        time_us_N = times_us(table["timestamp"])
        place_N = np.searchsorted(begin_us, time_us_N, side="right") - 1
        kept_N = (place_N >= 0) & (time_us_N - begin_us[np.maximum(place_N, 0)] < length_us)
        return table.filter(pa.array(kept_N)).combine_chunks()

    def hear(self, stretch: Stretch) -> Heard:
        """The rows of a stretch without those that validation would set aside, and without known work."""
        first_us, last_us = (self.zero_us + round(day * DAY) for day in (stretch.begin, stretch.end))
        heard = [self._heard(table) for table in self.tables(stretch)]
        spectra = np.concatenate([np.empty((0, self.params.bins), np.float32), *(part.spectra_NF for part in heard)])
        time_us = np.concatenate([np.empty(0, np.int64), *(part.time_us_N for part in heard)])
        condition = np.concatenate([np.empty(0, np.int32), *(part.condition_N for part in heard)])
        kept = (time_us >= first_us) & (time_us < last_us)
        for begin_us, end_us in self.work_of.get(stretch.machine, ()):
            kept &= (time_us < begin_us) | (time_us >= end_us)
        kept &= energy_is_finite(spectra) & (spectra >= 0).all(axis=1)
        order = np.flatnonzero(kept)[np.argsort(time_us[kept], kind="stable")]
        order = order[np.r_[True, np.diff(time_us[order]) > 0][: len(order)]]
        starts = self.epochs.of_machine(self.history.names[stretch.machine])
        epoch = np.searchsorted(starts, time_us[order], side="right").astype(np.int32)
        return Heard(spectra[order], time_us[order], epoch, condition[order])

    @cached_property
    def work_of(self) -> dict[int, list[tuple[int, int]]]:
        """Per machine begin and end (microseconds since 1970) of what the log knows of work."""
        found: dict[int, list[tuple[int, int]]] = {}
        for machine, begin, end in self.known_work(horizons=False):
            found.setdefault(machine, []).append((self.zero_us + round(begin * DAY), self.zero_us + round(end * DAY)))
        return found

    def _heard(self, table: pa.Table) -> Heard:
        code, names = conditions_of(table, "condition", "the simulation")
        known = np.array([physics.REGIMES.index(name) for name in names], np.int32)
        spectra = spectra_view(table["spectrum"], self.params.bins)
        empty = np.empty(0, np.int32)
        return Heard(spectra, times_us(table["timestamp"]), empty, known[code])


def days_without(trouble: Sequence[tuple[int, float, float]], machines: int, first: int, last: int) -> BoolN:
    """Which whole days (machines, days) from `first` on lie outside all intervals (machine, begin, end).

    >>> days_without([(0, 1.5, 2.5)], 2, 0, 4).astype(int).tolist()
    [[1, 0, 0, 1], [1, 1, 1, 1]]
    """
    free_MD = np.ones((machines, last - first), bool)
    for machine, begin, end in trouble:
        low, high = max(begin, first), min(end, last)
        if low < high:
            free_MD[machine, int(low) - first : int(np.ceil(high)) - first] = False
    return free_MD


def spread(free_MD: BoolN, count: int, rng: np.random.Generator, what: str) -> list[tuple[int, int]]:
    """`count` machine-days, the same number of every machine and the machine's ones spread over the span.

    Raises:
        UserError: there are fewer.
    """
    free_MD, chosen = free_MD.copy(), list[tuple[int, int]]()
    machines, days = free_MD.shape
    rounds = max(1, -(-count // machines))
    while len(chosen) < count:
        before = len(chosen)
        for part in np.array_split(np.arange(days), rounds):
            for machine in rng.permutation(machines)[: count - len(chosen)].tolist():
                free = (
                    part[free_MD[machine, part]] if free_MD[machine, part].any() else np.flatnonzero(free_MD[machine])
                )
                if len(free):
                    day = int(rng.choice(free))
                    free_MD[machine, day] = False
                    chosen.append((machine, day))
        if len(chosen) == before:
            raise UserError(f"{what}: got {before} machine-days without trouble, expected {count}.")
    return chosen


@dataclass(frozen=True)
class Failure:
    """A failure that happened."""

    machine: int
    mode: str
    onset: float
    end: float
    logged: bool


def taken_in_turn(pool: Sequence[Failure], count: int, rng: np.random.Generator, what: str) -> list[Failure]:
    """`count` failures at random, every mode in its turn.

    Raises:
        UserError: there are fewer.
    """
    if len(pool) < count:
        raise UserError(f"{what}: got {len(pool)} failures, expected {count}; more days or more failures give more.")
    by_mode: dict[str, list[Failure]] = {}
    for index in rng.permutation(len(pool)).tolist():
        by_mode.setdefault(pool[index].mode, []).append(pool[index])
    modes = [sorted(by_mode)[index] for index in rng.permutation(len(by_mode))]
    turns = [(turn, place) for place, mode in enumerate(modes) for turn in range(len(by_mode[mode]))]
    return [by_mode[modes[place]][turn] for turn, place in sorted(turns)[:count]]


def plan(plant: Plant) -> Plan:
    """Which hours train, which machine-days and failures calibrate, tune and test.

    A tune failure lies as early after training as there are enough, and the log has it; test failures and machine-days
    come after calibration.
    """
    setup, rng = plant.setup, np.random.default_rng([plant.setup.seed, 606])
    begin, end = setup.calibration
    failures = [
        Failure(fault.machine, fault.mode, fault.onset, fault.end, fault.logged)
        for fault in plant.history.faults
        if fault.fails and fault.end - HORIZON >= begin and fault.end <= setup.days
    ]
    late = [failure for failure in failures if failure.end - HORIZON >= setup.test[0]]
    tests = taken_in_turn(late, setup.test_failures, rng, "test failures")
    rest = [failure for failure in failures if failure not in tests and failure.logged]
    tunes = taken_in_turn(rest, setup.tune_failures, rng, "tune failures")

    by_log = days_without(plant.known_work(horizons=True), setup.machines, int(begin), int(end))
    looks = CALIBRATION_LOOK_DAYS * setup.machines
    early = spread(by_log, looks + setup.budget_days, rng, "calibration")
    early = [early[index] for index in rng.permutation(len(early))]
    in_truth = plant.true_trouble() + plant.true_work() + plant.known_work(horizons=False)
    free = days_without(in_truth, setup.machines, int(np.ceil(setup.test[0])), int(setup.days))
    healthy = spread(free, setup.healthy_days, rng, "healthy test days")
    healthy = [(machine, int(np.ceil(setup.test[0])) + day) for machine, day in healthy]

    ill = ~days_without(plant.true_trouble(), setup.machines, int(begin), int(end))
    minutes, days = [], []
    for index, (machine, day) in enumerate(early):
        faulty, at = bool(ill[machine, day]), int(begin) + day
        if index < looks:
            heard = _minutes_of_day(at, max(1, round(setup.calibration_hours * 60 / looks)), rng)
            minutes.append(Stretch(machine, at, at + 1, index, ill=faulty, minutes=heard))
        else:
            days.append(Stretch(machine, at, at + 1, index, ill=faulty))
    return Plan(
        training=_training(plant, rng),
        parts={
            "calibration": Part(tuple(minutes)),
            "budget": Part(tuple(days)),
            "tune": _circles(plant, tunes, [], from_onset=False),
            "test": _circles(plant, tests, healthy, from_onset=True),
        },
    )


def _training(plant: Plant, rng: np.random.Generator) -> tuple[Stretch, ...]:
    """Whole hours and single minutes of the training days."""
    setup = plant.setup
    minutes = setup.looks_share * setup.train_rows
    return (*_whole_hours(plant, rng, setup.train_rows - minutes), *_single_minutes(plant, rng, minutes))


def _whole_hours(plant: Plant, rng: np.random.Generator, rows: float) -> Iterator[Stretch]:
    """Hours of the training days: each machine's own, one of every slice of the span, or the same of all."""
    setup, last = plant.setup, int(plant.setup.train_days * 24)
    count = min(last, max(1, math.ceil(rows / (setup.machines * setup.rows_per_hour))))
    if setup.hours == "fleet":
        rows = count * setup.machines * setup.rows_per_hour
        kept = kept_hours(plant.params, [], 0.0, setup.train_days, rows, 0.0)
        hours = np.arange(last) if kept is None else kept.hours
        hour_MH = np.tile(hours, (setup.machines, 1))
    else:
        edges = np.linspace(0, last, count + 1).astype(np.int64)
        hour_MH = rng.integers(edges[:-1], edges[1:], size=(setup.machines, count))
    for machine in range(setup.machines):
        for hour in np.unique(hour_MH[machine]).tolist():
            yield Stretch(machine, hour / 24, (hour + 1) / 24, 0)


def _single_minutes(plant: Plant, rng: np.random.Generator, rows: float) -> Iterator[Stretch]:
    """Minutes of each machine, on a day of every slice of the training days, one in every slice of the day."""
    setup = plant.setup
    of_machine = int(rows / setup.machines / max(1.0, setup.rows_per_hour / 60))
    days = min(LOOK_DAYS, int(setup.train_days), of_machine)
    if not days:
        return
    edges = np.linspace(0, int(setup.train_days), days + 1).astype(np.int64)
    counts = np.diff(np.linspace(0, of_machine, days + 1).astype(np.int64)).tolist()
    for machine in range(setup.machines):
        for day, count in zip(rng.integers(edges[:-1], edges[1:]).tolist(), counts, strict=True):
            yield Stretch(machine, day, day + 1, 0, minutes=_minutes_of_day(day, count, rng))


def _minutes_of_day(day: int, count: int, rng: np.random.Generator) -> tuple[float, ...]:
    """Begin of minutes of a day (days since the fleet's start), one in each of so many slices of it."""
    of_day = (np.arange(count) + rng.random(count) * (1 - count / 1440)) / count
    return tuple((day + of_day).tolist())


def _circles(
    plant: Plant, failures: Sequence[Failure], healthy: Sequence[tuple[int, int]], *, from_onset: bool
) -> Part:
    """Each failure's week, then the healthy days dealt to it, a day apart: one time line per failure."""
    stretches, events = [], []
    names, deal = plant.history.names, max(1, len(failures))
    for circle in range(deal):
        if circle < len(failures):
            failure = failures[circle]
            begin = failure.end - HORIZON
            start = round((failure.onset - begin) * DAY) if from_onset and failure.onset > begin else 0
            identity = f"{names[failure.machine]} day {failure.end:.2f}"
            events.append(Event(identity, circle, start, round(HORIZON * DAY), start, failure.mode))
            stretches.append(Stretch(failure.machine, begin, failure.end, circle, 0.0, ill=True, window=True))
        for place, (machine, day) in enumerate(healthy[circle::deal]):
            stretches.append(Stretch(machine, day, day + 1, circle, HORIZON + 1 + 2 * place))
    return Part(tuple(stretches), tuple(events))


def in_order(stretches: Sequence[Stretch], make: Callable[[Stretch], Any]) -> Iterator[Any]:
    """What is made of each stretch, in their order, a few of them ahead."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[Any]] = deque()
        for stretch in stretches:
            waiting.append(pool.submit(make, stretch))
            if len(waiting) > 2 * THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


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


@dataclass(frozen=True)
class Scores:
    """Raw scores per detector of N rows, and which stretch and `Baseline` each row has; time is the circle's.

    `wider` is as in `Measured`, of calibration rows alone.
    """

    stretch_N: npt.NDArray[np.int32]
    time_us_N: IntN
    state_N: npt.NDArray[np.int8]
    raw: Mapping[str, Float32]
    wider: Mapping[str, FloatNF] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write a file per array into a folder."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "stretch": self.stretch_N,
            "time_us": self.time_us_N,
            "state": self.state_N,
        }
        arrays |= {f"raw.{name}": values for name, values in self.raw.items()}
        arrays |= {f"wider.{name}": values for name, values in self.wider.items()}
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)

    @classmethod
    def load(cls, folder: Path) -> Scores:
        """The inverse of `save`."""
        arrays = {path.stem: np.load(path) for path in sorted(folder.glob("*.npy"))}
        groups = {
            group: {name.removeprefix(group): values for name, values in arrays.items() if name.startswith(group)}
            for group in ("raw.", "wider.")
        }
        return cls(arrays["stretch"], arrays["time_us"], arrays["state"], groups["raw."], groups["wider."])


def keys_of(plant: Plant, heard: Sequence[Heard], stretches: Sequence[Stretch]) -> RowKeys:
    """Keys of the rows of some stretches."""
    machine = np.repeat([stretch.machine for stretch in stretches], [len(rows) for rows in heard]).astype(np.int32)
    epoch = np.concatenate([rows.epoch_N for rows in heard])
    condition = np.concatenate([rows.condition_N for rows in heard])
    return RowKeys(plant.history.names, machine, epoch, physics.REGIMES, condition)


def circle_time(plant: Plant, rows: Heard, stretch: Stretch) -> IntN:
    """Times (N,) of a stretch's rows in its circle."""
    return np.asarray(rows.time_us_N - plant.zero_us - round(stretch.begin * DAY) + round(stretch.offset * DAY))


def score_part(plant: Plant, detectors: Mapping[str, Detector], what: str, part: Part, clock: Clock) -> Scores:
    """Stream a part through all detectors; spectra are dropped piece by piece."""
    begin, done, last_said = time.perf_counter(), 0, time.perf_counter()
    stretch_parts, time_parts, state_parts = list[Any](), list[Any](), list[Any]()
    raw_parts: dict[str, list[Float32]] = {name: [] for name in detectors}
    heard, places = list[Heard](), list[int]()

    def flush() -> None:
        nonlocal done
        if not sum(map(len, heard)):
            return
        mine = [part.stretches[place] for place in places]
        keys = keys_of(plant, heard, mine)
        spectra = np.concatenate([rows.spectra_NF for rows in heard])
        code = next(iter(detectors.values())).baselines.codes(keys)  # the baselines of one build are all the same
        stretch_parts.append(np.repeat(np.array(places, np.int32), [len(rows) for rows in heard]))
        time_parts.extend(circle_time(plant, rows, stretch) for rows, stretch in zip(heard, mine, strict=True))
        state_parts.append(next(iter(detectors.values())).baselines.states(code))
        for name, detector in detectors.items():
            with clock.phase(f"score {name}"):
                raw_parts[name].append(detector.score(spectra, code).astype(np.float32))
        done += len(spectra)
        heard.clear()
        places.clear()

    for place, rows in enumerate(in_order(part.stretches, plant.hear)):
        heard.append(rows)
        places.append(place)
        if sum(map(len, heard)) >= PIECE_ROWS:
            flush()
            if time.perf_counter() - last_said > 10:
                last_said = time.perf_counter()
                say(f"{what}: {place + 1} of {len(part.stretches)} stretches", last_said - begin, done)
    flush()
    seconds = time.perf_counter() - begin
    clock.seconds[f"stream {what}"] = seconds
    say(f"{what}: {done:,} rows", seconds, done)
    if not done:
        raise UserError(f"{what}: got no rows, expected some; more stretches or a shorter interval give some.")
    raw = {name: np.concatenate(parts) for name, parts in raw_parts.items()}
    return Scores(np.concatenate(stretch_parts), np.concatenate(time_parts), np.concatenate(state_parts), raw)


def score_calibration(plant: Plant, detectors: Mapping[str, Detector], what: str, part: Part, clock: Clock) -> Scores:
    """Score the calibration rows, some of them also against wider baselines, as a build does."""
    begin = time.perf_counter()
    heard: list[Heard] = list(in_order(part.stretches, plant.hear))
    keys = keys_of(plant, heard, part.stretches)
    spectra = np.concatenate([rows.spectra_NF for rows in heard])
    time_us = np.concatenate([rows.time_us_N for rows in heard])
    empty, status = np.empty((len(spectra), 0), np.float32), pa.table({})
    rows = Rows(
        empty, np.asarray(keys.machine_N), keys.machines, np.asarray(keys.epoch_N), np.asarray(keys.condition_N),
        keys.conditions, time_us, status,
    )  # fmt: skip
    places = (slice(first, min(first + PIECE_ROWS, len(spectra))) for first in range(0, len(spectra), PIECE_ROWS))
    measured = measure(detectors, rows, ((place, spectra[place]) for place in places))
    clock.seconds[f"stream {what}"] = time.perf_counter() - begin
    say(f"{what}: {len(spectra):,} rows", clock.seconds[f"stream {what}"], len(spectra))
    stretch = np.repeat(np.arange(len(heard), dtype=np.int32), [len(each) for each in heard])
    raw = {name: values.astype(np.float32) for name, values in measured.raw.items()}
    return Scores(stretch, time_us, measured.baseline, raw, measured.wider)


def say(what: str, seconds: float, rows: int) -> None:
    """A line of progress."""
    print(f"progress {what}, {seconds:.0f} s, {rows / max(seconds, 1e-9):,.0f} rows/s", flush=True)


@dataclass(frozen=True)
class ScoredFleet:
    """A fleet's plan and the scores of its parts, and how they came about."""

    setup: Setup
    plan: Plan
    scores: Mapping[str, Scores]
    facts: Mapping[str, Any]


def scored_fleet(setup: Setup, cache: Path | None) -> ScoredFleet:
    """Simulate, train and score a fleet; what the cache already holds of it is not made again."""
    plant = Plant(setup)
    planned = plan(plant)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        home = Path(scratch) / "fleet" if cache is None else cache / f"fleet-{setup.seed}-{setup.key()}"
        trained, params = home / "trained", settings_of(setup)
        if not trained.exists():
            clock, build = Clock(), Path(scratch) / "build"
            facts = train_all(plant, planned.training, params, build, clock)
            with atomic_folder(trained) as folder:
                shutil.copytree(build / "data/models", folder / "data/models")
                write_json(folder / "facts.json", facts | {"seconds": clock.seconds})
            shutil.rmtree(build)
        detectors: dict[str, Detector] = {}
        for what, part in planned.parts.items():
            if not (home / what).exists():
                clock, detectors = Clock(), detectors or load_detectors(trained, setup.detectors, params.train.device)
                score = score_calibration if what == "calibration" else score_part
                scored = score(plant, detectors, what, part, clock)
                with atomic_folder(home / what) as folder:
                    scored.save(folder)
                    write_json(folder / "facts.json", clock.seconds)
        scores = {what: Scores.load(home / what) for what in planned.parts}
        facts = read_json(trained / "facts.json")
        for what in planned.parts:
            for phase, seconds in read_json(home / what / "facts.json").items():
                facts["seconds"][phase] = facts["seconds"].get(phase, 0.0) + seconds
    rows = sum(len(part.time_us_N) for what, part in scores.items() if what != "calibration")
    facts["scored_rows_per_s"] = {name: round(rows / facts["seconds"][f"score {name}"]) for name in setup.detectors}
    facts["seconds"] = {phase: round(seconds, 1) for phase, seconds in facts["seconds"].items()}
    return ScoredFleet(setup, planned, scores, facts)


# From here on nothing but scores, times and machines is known.


def dispersion(count_M: FloatN, days_M: FloatN) -> float:
    """Pearson's chi-squared of machines' counts over its degrees of freedom; at least 1.

    >>> dispersion(np.array([1.0, 1, 1, 1]), np.ones(4)), dispersion(np.array([4.0, 0, 0, 0]), np.ones(4))
    (1.0, 4.0)
    """
    watched = days_M > 0
    count_M, days_M = count_M[watched], days_M[watched]
    if len(days_M) < 2 or not count_M.sum():
        return 1.0
    expected_M = count_M.sum() * days_M / days_M.sum()
    return max(1.0, float(((count_M - expected_M) ** 2 / expected_M).sum() / (len(days_M) - 1)))


@dataclass(frozen=True)
class Judged:
    """Rows of a part in the order of circles and time, with comparable scores per detector; higher is odder."""

    part: Part
    stretch_N: npt.NDArray[np.int32]
    time_us_N: IntN
    scores: Mapping[str, Float32]
    interval_us: int

    @cached_property
    def machine_S(self) -> IntN:
        """Machine of each stretch."""
        return np.array([stretch.machine for stretch in self.part.stretches], np.int64)

    @cached_property
    def day_S(self) -> IntN:
        """Day of each stretch."""
        return np.array([int(stretch.begin) for stretch in self.part.stretches], np.int64)

    @cached_property
    def ill_S(self) -> BoolN:
        """Stretches in which the machine is faulty in truth."""
        return np.array([stretch.ill for stretch in self.part.stretches])

    @cached_property
    def healthy_N(self) -> BoolN:
        """Rows at which a page is false: healthy days, and a failure's week before its onset."""
        window_S = np.array([stretch.window for stretch in self.part.stretches])
        healthy_N = ~window_S[self.stretch_N]
        onset_us = {event.machine: event.start_us for event in self.part.events}
        for place in np.flatnonzero(window_S).tolist():
            low, high = np.searchsorted(self.stretch_N, [place, place + 1])
            healthy_N[low:high] = self.time_us_N[low:high] < onset_us[self.part.stretches[place].circle]
        return healthy_N

    @cached_property
    def days_M(self) -> FloatN:
        """Healthy days heard of each machine."""
        rows_S = np.bincount(self.stretch_N[self.healthy_N], minlength=len(self.machine_S))
        return np.asarray(np.bincount(self.machine_S, rows_S) * (self.interval_us / DAY), np.float64)

    @property
    def days(self) -> float:
        """Healthy machine-days."""
        return float(self.days_M.sum())

    @property
    def blocks(self) -> tuple[IntN, IntN]:
        """Machine and day of each healthy row, as intervals want them."""
        mine_N = self.stretch_N[self.healthy_N]
        return self.machine_S[mine_N], self.day_S[mine_N]

    def without_ill(self) -> Judged:
        """The same without stretches that are ill in truth."""
        kept_N = ~self.ill_S[self.stretch_N]
        scores = {name: values[kept_N] for name, values in self.scores.items()}
        return Judged(self.part, self.stretch_N[kept_N], self.time_us_N[kept_N], scores, self.interval_us)

    def line(self, policy: AlertPolicy) -> Timeline:
        """The time line of all circles, as a policy looks back on it."""
        circle_S = np.array([stretch.circle for stretch in self.part.stretches], np.int32)
        return Timeline.of(circle_S[self.stretch_N], self.time_us_N, policy)

    def false_pages(self, episodes: Episodes, false_E: BoolN) -> tuple[float, float, float]:
        """Their number, the dispersion over machines, and the upper bound of the number."""
        stretch_E = self.stretch_N[episodes.first[false_E]]
        weight_E = episodes.weight()[false_E].astype(np.float64)
        count_M = np.asarray(np.bincount(self.machine_S[stretch_E], weight_E, len(self.days_M)), np.float64)
        spread_out = dispersion(count_M, self.days_M)
        return float(weight_E.sum()), spread_out, bound_of_mean(float(weight_E.sum()), spread_out, CONFIDENCE)


@dataclass(frozen=True)
class Reference:
    """Calibration rows of one detector: scores (n,) and the machines and days they come from; their tail, if fitted."""

    scores: FloatN
    blocks: tuple[IntN, IntN]
    tail: TailFit | None = None


@dataclass(frozen=True)
class Calibrated:
    """Comparable scores of every detector and of the ensemble: calibration rows, and the parts that are judged."""

    references: Mapping[str, Reference]
    judged: Mapping[str, Judged]

    def confirmed(self) -> Calibrated:
        """The same, without budget days that are ill in truth."""
        return Calibrated(self.references, {**self.judged, "budget": self.judged["budget"].without_ill()})


def calibrated(fleet: ScoredFleet, interval_us: int, params: Params, levels: str) -> Calibrated:
    """Tails from the calibration rows, and every part brought to them.

    Args:
        fleet: with raw scores.
        interval_us: between rows.
        params: section `calibrate` is read, but for its levels.
        levels: `fleet`, or `machine`: each machine's healthy scores are brought to the fleet's level.
    """
    scores, part = fleet.scores["calibration"], fleet.plan.parts["calibration"]
    machine_N = machine_of_rows(part, scores)
    day_N = np.array([int(stretch.begin) for stretch in part.stretches], np.int64)[scores.stretch_N]
    machine_day_N = machine_N * (int(day_N.max()) + 1) + day_N
    references, tables, comparable = {}, {}, {}
    for name, raw in scores.raw.items():
        scale = matched_scale(scores.wider[name])
        comparable[name] = scale.comparable(raw.astype(np.float64), scores.state_N, machine_N)
        if levels == "machine":  # here a row's code is its machine: a level has no other key
            found = group_levels(comparable[name], machine_N, scores.time_us_N)
            level_M = np.array([found.get(machine, 1.0) for machine in range(fleet.setup.machines)])
            scale = replace(scale, level=level_M)
            comparable[name] /= level_M[machine_N]
        tables[name], fit = tail_table(name, comparable[name], machine_day_N, scale)
        references[name] = Reference(comparable[name], (machine_N, day_N), fit)
    tails = TailTables(tables)
    rule = ensemble_rule(params.calibrate.ensemble, tuple(scores.raw))
    statistic_N = None if rule is None else crossed_statistic(rule, comparable, machine_N, machine_day_N)
    if statistic_N is not None:
        table, fit = tail_table(ENSEMBLE, statistic_N, machine_day_N)
        tails = TailTables(tables, rule, table)
        references[ENSEMBLE] = Reference(statistic_N, (machine_N, day_N), fit)
    judged = {}
    for what in ("budget", "tune", "test"):
        given = fleet.scores[what]
        found = comparable_scores(tails, given, machine_of_rows(fleet.plan.parts[what], given))
        judged[what] = Judged(fleet.plan.parts[what], given.stretch_N, given.time_us_N, found, interval_us)
    return Calibrated(references, judged)


def machine_of_rows(part: Part, scores: Scores) -> IntN:
    """The machine (N,) of each row of a part."""
    return np.array([stretch.machine for stretch in part.stretches], np.int64)[scores.stretch_N]


def comparable_scores(tails: TailTables, given: Scores, machine_N: IntN) -> dict[str, Float32]:
    """Comparable scores (N,) of every detector and of the ensemble, made in pieces."""
    rows = len(given.state_N)
    found = {name: np.empty(rows, np.float32) for name in tails.names}
    for first in range(0, rows, 1 << 20):
        piece = slice(first, first + (1 << 20))
        raw = {name: values[piece].astype(np.float64) for name, values in given.raw.items()}
        for name, values in tails.comparable(raw, given.state_N[piece], machine_N[piece]).items():
            found[name][piece] = values
    return found


def policies(interval_us: int) -> list[AlertPolicy]:
    """The grid: k of the last n rows, where a machine-day holds several such windows."""
    gap_us = max(round(GAP_MINUTES * 60e6), round(2.5 * interval_us))
    return [
        AlertPolicy(k, n, round(WINDOW_SLACK * n * interval_us), gap_us)
        for k, n in POLICIES
        if n * interval_us <= DAY / 8
    ]


def episodes_above(line: Timeline, score_N: Float32, threshold: float) -> Episodes:
    """As `line.episodes(line.alert_rows(score_N > threshold))`, with work only where rows exceed.

    Rows stand in the line's order.
    """
    hit = np.flatnonzero(score_N > threshold)
    alert = hit[enough_of_last(line.place[hit], line.machine[hit], line.time_us[hit], line.policy)]
    first, stop = chains(line.machine[alert], line.time_us[alert], line.policy.gap_us)
    return Episodes(alert[first], alert[stop - 1], line)


def threshold_within(budget: Judged, line: Timeline, score_N: Float32, candidates: FloatN) -> float:
    """The lowest of the candidates whose upper bound of false episodes stays within the budget, as do all higher ones.

    A budget that few machine-days cannot show allows FEW.
    """
    allowed = max(BUDGET / FLEET * budget.days, bound_of_mean(FEW, confidence=CONFIDENCE))
    best = float(candidates[-1])
    for candidate in candidates[::-1].tolist():
        episodes = episodes_above(line, score_N, candidate)
        if budget.false_pages(episodes, np.ones(len(episodes), bool))[2] > allowed:
            break
        best = candidate
    return best


@dataclass(frozen=True)
class Choice:
    """Levels and a policy with its threshold, and what they came to on the rows that chose them."""

    levels: str
    policy: AlertPolicy
    threshold: float
    tune_caught: int
    lead_hours: float
    budget_pages: int
    budget_pages_ill: int  # in machine-days that only the log calls healthy

    @property
    def rank(self) -> tuple[int, float, int, bool]:
        """Larger is better: failures caught, then lead time, then the simpler policy and levels."""
        return self.tune_caught, round(self.lead_hours, 1), -self.policy.n, self.levels == LEVELS_OF[0]

    @property
    def name(self) -> str:
        """For the record."""
        return f"{self.policy.k} of {self.policy.n}, {self.levels}"


def choices_of(judged: Mapping[str, Judged], interval_us: int, levels: str) -> dict[str, list[Choice]]:
    """Every detector's policies: thresholds from budget rows, what they catch of the tune failures."""
    budget, tune = judged["budget"], judged["tune"]
    found: dict[str, list[Choice]] = {name: [] for name in budget.scores}
    candidates = {}
    for name, score_N in budget.scores.items():
        place = np.unique(np.ceil(CANDIDATES * (len(score_N) - 1)).astype(np.int64))
        candidates[name] = np.unique(np.r_[np.partition(score_N, place)[place], score_N.max()]).astype(np.float64)
    for policy in policies(interval_us):
        lines = budget.line(policy), tune.line(policy)
        for name, choices in found.items():
            threshold = threshold_within(budget, lines[0], budget.scores[name], candidates[name])
            outcome = outcome_at(tune.scores[name] > threshold, lines[1], tune.part.events)
            leads = [lead for _, lead in outcome.caught.values()]
            lead = float(np.median(leads)) if leads else 0.0
            pages = episodes_above(lines[0], budget.scores[name], threshold)
            ill = int(budget.ill_S[budget.stretch_N[pages.first]].sum())
            choices.append(Choice(levels, policy, threshold, len(leads), lead, len(pages), ill))
    return found


def choose(by_levels: Mapping[str, Calibrated], interval_us: int) -> dict[str, list[Choice]]:
    """Every detector's levels and policies, the best on the tune failures first."""
    found: dict[str, list[Choice]] = {}
    for levels, each in by_levels.items():
        for name, choices in choices_of(each.judged, interval_us, levels).items():
            found.setdefault(name, []).extend(choices)
    return {name: sorted(choices, key=lambda choice: choice.rank, reverse=True) for name, choices in found.items()}


def judge_fleet(fleet: ScoredFleet, params: Params, *, confirmed: bool = False) -> dict[str, Any]:
    """All figures of one fleet; `confirmed`: budget days that are ill in truth are left out."""
    setup = fleet.setup
    interval_us = round(setup.interval_seconds * 1e6)
    by_levels = {levels: calibrated(fleet, interval_us, params, levels) for levels in setup.levels}
    if confirmed:
        by_levels = {levels: each.confirmed() for levels, each in by_levels.items()}
    chosen, shifts = choose(by_levels, interval_us), params.evaluate.chance_shifts
    detectors: dict[str, Any] = {}
    outcomes: dict[str, Outcome] = {}
    by_policy: dict[AlertPolicy, list[str]] = {}
    for name, choices in chosen.items():
        by_policy.setdefault(choices[0].policy, []).append(name)
    for policy, names in by_policy.items():
        line = by_levels[setup.levels[0]].judged["test"].line(policy)
        for name in names:
            test = by_levels[chosen[name][0].levels].judged["test"]
            exceeds = test.scores[name] > chosen[name][0].threshold
            outcomes[name] = outcome_at(exceeds, line, test.part.events)
            outcomes[name].by_chance = caught_by_chance(exceeds, line, test.part.events, shifts, setup.seed)
            episodes = line.episodes(line.alert_rows(exceeds))
            detectors[name] = _pages(outcomes[name], episodes, test) | _chosen(chosen[name])
    for name in detectors:
        mine = by_levels[chosen[name][0].levels]
        detectors[name] |= _rates(mine.references[name], mine.judged, name, setup, params)
    judged = by_levels[setup.levels[0]].judged
    test = judged["test"]
    return {
        "seed": setup.seed,
        "events": len(test.part.events),
        "tune_events": len(judged["tune"].part.events),
        "modes": dict(sorted(Counter(event.failure_mode for event in test.part.events).items())),
        "machine_days": round(test.days, 1),
        "rows": {what: len(scores.time_us_N) for what, scores in fleet.scores.items()},
        "own_baseline_share": round(float((fleet.scores["test"].state_N == Baseline.OWN).mean()), 4),
        "budget_days_ill_in_truth": sum(stretch.ill for stretch in fleet.plan.parts["budget"].stretches),
        "only_caught_by": only_caught(outcomes),
        "missed_by_ensemble": [
            f"{event.failure_id} {event.failure_mode}"
            for event in test.part.events
            if event.failure_id not in outcomes[ENSEMBLE].caught
        ],
        "training": dict(fleet.facts),
        "detectors": detectors,
    }


def _pages(outcome: Outcome, episodes: Episodes, test: Judged) -> dict[str, Any]:
    """Failures caught and false pages at the chosen policy."""
    events = test.part.events
    kind = np.array(outcome.kinds, object)
    false_E = kind == "false"
    count, spread_out, upper = test.false_pages(episodes, false_E)
    scale = FLEET / test.days
    paged = len(np.unique(test.stretch_N[episodes.first[false_E]]))
    leads = [lead for _, lead in outcome.caught.values()]
    return {
        "events_caught": len(outcome.caught),
        "events_caught_ci": [round(end, 4) for end in wilson(len(outcome.caught), len(events), CONFIDENCE)],
        "events_by_chance": outcome.by_chance,
        "by_mode": {
            mode: [sum(event.failure_id in outcome.caught for event in events if event.failure_mode == mode), total]
            for mode, total in sorted(Counter(event.failure_mode for event in events).items())
        },
        "median_lead_time_hours": round(float(np.median(leads)), 2) if leads else None,
        "false_pages": count,
        "false_pages_per_day": round(count * scale, 3),
        "false_pages_upper": round(upper * scale, 3),
        "dispersion": round(spread_out, 3),
        "paged_share_of_healthy_days": round(paged / max(1, sum(not s.window for s in test.part.stretches)), 5),
    }


def _chosen(choices: Sequence[Choice]) -> dict[str, Any]:
    """The policy, and what the others came to on the tune failures."""
    best = choices[0]
    return {
        "policy": [best.policy.k, best.policy.n],
        "levels": best.levels,
        "threshold": best.threshold,
        "tune_caught": best.tune_caught,
        "budget_pages": best.budget_pages,
        "budget_pages_ill_in_truth": best.budget_pages_ill,
        "policies": {each.name: each.tune_caught for each in choices},
    }


def _rates(
    reference: Reference, judged: Mapping[str, Judged], name: str, setup: Setup, params: Params
) -> dict[str, Any]:
    """Share of healthy rows above each tier's percentile, on exchangeable weeks and later; pages of the bare one."""
    found: dict[str, Any] = {}
    section = params.calibrate
    for tier, percentile in (("low", section.low_percentile), ("page", section.page_percentile)):
        for what, suffix in (("budget", ""), ("test", "_later")):
            part = judged[what]
            later = part.scores[name][part.healthy_N].astype(np.float64)
            rate = rate_with_interval(
                reference.scores, reference.blocks, later, part.blocks, percentile,
                draws=section.draws, confidence=section.confidence, seed=setup.seed, tail=reference.tail,
            )  # fmt: skip
            found[f"{tier}_fpr{suffix}"] = None if rate.rate is None else float(f"{rate.rate:.3g}")
            ends = None if rate.low is None or rate.high is None else [float(f"{e:.3g}") for e in (rate.low, rate.high)]
            found[f"{tier}_fpr{suffix}_ci"] = ends
            if rate.note:
                found[f"{tier}_fpr{suffix}_note"] = rate.note
    later_rate = found["page_fpr_later"] or 0.0
    found["naive_pages_per_day"] = round(later_rate * FLEET * setup.rows_per_day, 1)
    return found


NAMES = {"energy_zscore": "energy"}  # in the names of figures
OF_ENSEMBLE = ("events_by_chance", "false_pages_per_day", "median_lead_time_hours", "low_fpr", "page_fpr")


def summary(fleets: Sequence[dict[str, Any]], release_detector: str) -> dict[str, Any]:
    """All fleets together: counts are sums, rates and times means; the bound and the intervals are the widest."""
    detectors = list(fleets[0]["detectors"])
    found: dict[str, Any] = {"fleets": len(fleets), "events": sum(fleet["events"] for fleet in fleets)}
    for name in detectors:
        caught = sum(fleet["detectors"][name]["events_caught"] for fleet in fleets)
        found[f"events_caught_{NAMES.get(name, name)}"] = caught
    of_ensemble = [fleet["detectors"][ENSEMBLE] for fleet in fleets]
    for key in OF_ENSEMBLE:
        values = [figures[key] for figures in of_ensemble if figures[key] is not None]
        total = sum(values) if key == "events_by_chance" else float(np.mean(values)) if values else None
        found[key] = None if total is None else float(f"{total:.4g}")
    found["false_pages_upper"] = max(figures["false_pages_upper"] for figures in of_ensemble)
    for key in ("low_fpr_ci", "page_fpr_ci"):
        ends = [figures[key] for figures in of_ensemble if figures[key] is not None]
        found[key] = [min(low for low, _ in ends), max(high for _, high in ends)] if ends else None
    bare = release_detector if release_detector in detectors else detectors[0]
    naive = [fleet["detectors"][bare]["naive_pages_per_day"] for fleet in fleets]
    return found | {"naive_detector": bare, "naive_pages_per_day": round(float(np.mean(naive)), 1)}


def goals(fleets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was aimed at, for each fleet."""
    listed = []
    for fleet in fleets:
        mine = fleet["detectors"][ENSEMBLE]
        nominal = {"low_fpr_ci": 0.005, "page_fpr_ci": 0.0005}
        inside = {
            key: None if mine[key] is None else bool(mine[key][0] <= rate <= mine[key][1] <= 3 * mine[key][0])
            for key, rate in nominal.items()
        }
        caught = mine["events_caught"] >= round(27 / 28 * fleet["events"])
        pages = mine["false_pages_upper"] <= BUDGET
        listed.append({"seed": fleet["seed"], "caught": caught, "false_pages": pages} | inside)
    return listed


def show(fleets: Sequence[dict[str, Any]]) -> None:
    """A table per fleet."""
    console = Console(width=150)
    for fleet in fleets:
        title = f"seed {fleet['seed']}: {fleet['events']} failures, {fleet['machine_days']:,.0f} healthy machine-days"
        table = Table(title=title)
        headings = (
            "",
            "caught",
            "chance",
            "tune",
            "k of n",
            "levels",
            "lead h",
            "false/day",
            "upper",
            "naive/day",
            "low",
            "page",
        )
        for heading in headings:
            table.add_column(heading, justify="left" if not heading else "right")
        for name, found in fleet["detectors"].items():
            lead = found["median_lead_time_hours"]
            table.add_row(
                name,
                f"{found['events_caught']} of {fleet['events']}",
                f"{found['events_by_chance']:.1f}",
                str(found["tune_caught"]),
                "{} of {}".format(*found["policy"]),
                found["levels"],
                "—" if lead is None else f"{lead:.1f}",
                f"{found['false_pages_per_day']:.1f}",
                f"{found['false_pages_upper']:.1f}",
                f"{found['naive_pages_per_day']:,.0f}",
                f"{found['low_fpr']:.2%}",
                f"{found['page_fpr']:.3%}",
            )
        console.print(table)


def setups(options: argparse.Namespace) -> list[Setup]:
    """A setup for each seed."""
    names = [name for name in Setup.__dataclass_fields__ if name not in ("seed", "detectors", "levels")]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.full:
        given["train_rows"] = 18_000_000
    given |= {"detectors": tuple(options.detectors), "levels": tuple(options.levels)}
    return [Setup(seed=seed, **given) for seed in options.seeds]


def measured(fleets: Sequence[Setup], cache: Path | None, *, confirmed: bool = False) -> dict[str, Any]:
    """Every fleet, one after another, and all together."""
    begin, found = time.perf_counter(), []
    params = settings_of(fleets[0])
    use_threads(params.train.threads)
    for setup in fleets:
        started = time.perf_counter()
        scored = scored_fleet(setup, cache)
        figures = judge_fleet(scored, params, confirmed=confirmed)
        figures["wall_s"] = round(time.perf_counter() - started, 1)
        found.append(figures)
        print(f"fleet {json.dumps(figures)}", flush=True)
    hashed = physics_hash()
    result: dict[str, Any] = {
        "seeds": [setup.seed for setup in fleets],
        "setup": asdict(fleets[0]),
        "confirmed": confirmed,
    }
    result |= {"physics": hashed, "physics_as_closed": hashed == PHYSICS, **summary(found, params.release.detector)}
    result |= {"goals": goals(found), "by_fleet": found, "wall_s": round(time.perf_counter() - begin, 1)}
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return result | {"peak_rss_gib": round(peak / 2**20, 2)}


def main() -> None:
    """Print a table per fleet, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7304, 7305, 7306])
    parser.add_argument("--full", action="store_true", help="18,000,000 training rows")
    parser.add_argument("--cache", type=Path, help="folder in which scores are kept")
    parser.add_argument("--confirmed", action="store_true", help="no budget day that is ill in truth")
    parser.add_argument("--detectors", nargs="+", default=DETECTORS, choices=DETECTORS)
    parser.add_argument("--hours", choices=("machine", "fleet"), help="that train: each machine's own, or the same")
    parser.add_argument("--levels", nargs="+", default=LEVELS_OF[:1], choices=LEVELS_OF, help="that are chosen from")
    for name, kind in (
        ("machines", int), ("interval-seconds", float), ("days", float), ("train-days", float),
        ("calibration-days", float), ("train-rows", int), ("looks-share", float),
        ("calibration-hours", int), ("budget-days", int),
        ("healthy-days", int), ("tune-failures", int), ("test-failures", int), ("epochs", int),
    ):  # fmt: skip
        default = Setup.__dataclass_fields__[name.replace("-", "_")].default
        parser.add_argument(f"--{name}", type=kind, help=f"default {default or 'as in params.yaml'}")
    options = parser.parse_args()
    if options.cache is not None:
        options.cache.mkdir(parents=True, exist_ok=True)
    result = measured(setups(options), options.cache, confirmed=options.confirmed)
    show(result["by_fleet"])
    print(json.dumps(result))


if __name__ == "__main__":
    run_reporting_errors(main)
