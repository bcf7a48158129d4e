"""A simulated fleet with its log, heard a stretch at a time, and what is measured of it."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.alerts import MINUTE
from pipeline.epochs import EpochStarts
from pipeline.params import IngestParams, SimulateParams, load_params
from pipeline.rows import conditions_of
from pipeline.schema import (
    MICROSECONDS_PER_DAY,
    FleetSpec,
    FloatNF,
    IntN,
    Tag,
    spectra_view,
    times_us,
)
from pipeline.score import usable_rows
from pipeline.simulation import physics
from pipeline.simulation.days import Fleet, day_table
from pipeline.simulation.history import FleetHistory
from pipeline.simulation.log import maintenance_table
from pipeline.simulation.plan import plan_fleet
from pipeline.simulation.presets import preset_of
from pipeline.store import sha256_file

ROOT = Path(__file__).resolve().parents[2]
DETECTORS = ("autoencoder", "vae", "pca", "energy_zscore", "squared_distance", "isolation_forest")
HORIZON, RUN_IN = 7.0, 1.0  # days
FLEET = 600  # machines
FAILURES_PER_JUDGED, SPARE_FAILURES = 3, 6  # of the plan, for each that tunes or tests: others lie before or between
LEVELS_OF = ("fleet", "machine")  # as `calibrate.levels`
THREADS = 2
DAY = MICROSECONDS_PER_DAY


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
    levels: tuple[str, ...] = LEVELS_OF  # whose healthy scores are brought to one level; tune failures choose
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
        kept &= usable_rows(spectra, "spectrum")
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
