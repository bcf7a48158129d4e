"""Simulate a fleet: day files of spectra, a maintenance log, and the truth that only evaluation reads.

Everything follows from the seed: what a machine is from (seed, machine), what it does and sounds like on a day from
(seed, machine, day), and which faults it gets from the plan, which depends on the parameters alone. So any stretch of
days can be simulated alone and is the same, byte for byte, as in a longer run.

Shape legend: B machines of a batch, N rows (here: instants of a machine's day), S states, F frequency bins.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import simulated_machine as physics
from pipeline.errors import ParamsError, run_reporting_errors
from pipeline.fault_plan import FaultPlan, machine_names, plan_faults
from pipeline.params import SimulateParams, load_params
from pipeline.schema import (
    MACHINE,
    MICROSECONDS_PER_DAY,
    TEXT,
    FleetSpec,
    IntN,
    dictionary_column,
    spectra_column,
    spectra_schema,
    time_column,
)
from pipeline.simulated_machine import IDLE_STATE, Machines, make_machines
from pipeline.store import atomic_folder, write_fleet_spec, write_table, write_tables

BATCH_ROWS = 65_536  # 16 MB of spectra at 64 bins; three such arrays live at once
CACHED_MACHINES = 4096  # templates of more are made again every day, so that memory does not grow with the fleet
SEGMENTS = 96  # dwells drawn for a day; more than three times the mean
OFF, IDLE, CUT = range(3)
CONDITIONS = ("off", "idle", "cut")
CONTEXT = (pa.field("condition", TEXT), pa.field("speed_rpm", pa.float32()), pa.field("firmware", TEXT))

Float32 = npt.NDArray[np.float32]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SimulationSummary:
    """What was written."""

    folder: Path
    rows: int
    machines: int
    days: int  # day files
    failures: int  # of the maintenance log
    mislabelled_share: float  # of the machine-days of the plan: faulty, and the log knows nothing of it at that time


@dataclass(frozen=True)
class Day:
    """What a batch of machines does on one day; row (b, n) is machine b at its n-th instant."""

    days_BN: Float  # days since the start of the fleet
    regime_BN: npt.NDArray[np.int8]
    speed_BN: Float32  # of nominal
    load_BN: Float32  # amplitude factor of the dwell
    shock_BN: Float32  # amplitude of a shock, mostly 0
    level_BN: Float32  # amplitude factor of the row
    noise_BNF: Float32  # standard normal


def simulate(
    params: SimulateParams,
    out: Path | str,
    *,
    from_day: float = 0.0,
    days: float | None = None,
    plan: FaultPlan | None = None,
) -> SimulationSummary:
    """Write the data set of days `from_day` to `from_day + days` (default: up to the planned end) into `out`.

    Day files that `out` already holds stay, or are replaced where they are simulated again; logs are written up to the
    end of the stretch. Days beyond the plan bring no new failures. `plan` replaces the faults that the parameters plan.

    Raises:
        ParamsError: the stretch is empty or begins before the first day.
    """
    out = Path(out)
    end_day = (from_day + days) if days is not None else params.days
    if not 0 <= from_day < end_day:
        raise ParamsError(f"simulate: got days {from_day:g} to {end_day:g}, expected 0 <= from_day < end.")
    plan, rows, files, batches = plan or plan_faults(params), 0, 0, MachineBatches(params)
    for day in range(int(from_day), int(np.ceil(end_day))):
        path = out / "spectra" / f"{params.start + dt.timedelta(days=day)}.parquet"
        begin = day if path.exists() else max(from_day, day)  # a day begun earlier is completed, not cut
        tables = _day_tables(params, plan, batches, day, begin, min(end_day, day + 1))
        first = next(tables, None)
        if first is not None:
            counted = _Counted(first, tables)
            write_tables(path, first.schema, counted)
            rows, files = rows + counted.rows, files + 1
    write_table(out / "maintenance.parquet", plan.maintenance(params.start, end_day))
    write_table(out / "truth.parquet", plan.truth(params.start, end_day))
    edges = tuple(float(edge) for edge in np.linspace(0, params.max_hz, params.bins + 1))
    spec = FleetSpec(bins=params.bins, band_edges_hz=edges, interval_seconds=params.interval_seconds, name="demo")
    write_fleet_spec(out / "fleet.yaml", spec)
    failures = plan.logged_failures(end_day)
    return SimulationSummary(out, rows, params.machines, files, failures, plan.mislabelled_share)


class _Counted:
    """A stream of tables, the first given again, that counts its rows."""

    def __init__(self, first: pa.Table, rest: Iterator[pa.Table]) -> None:
        self.first, self.rest, self.rows = first, rest, 0

    def __iter__(self) -> Iterator[pa.Table]:
        yield from self._count(self.first)
        for table in self.rest:
            yield from self._count(table)

    def _count(self, table: pa.Table) -> Iterator[pa.Table]:
        self.rows += table.num_rows
        yield table


class MachineBatches:
    """Batches of machines as (first, Machines); kept in memory up to a fixed number of machines."""

    def __init__(self, params: SimulateParams) -> None:
        self.params, self.kept = params, dict[int, Machines]()
        rows_per_day = max(1, int(86_400 / params.interval_seconds))
        self.size = min(params.machines, max(1, BATCH_ROWS // rows_per_day), CACHED_MACHINES)

    def __iter__(self) -> Iterator[tuple[int, Machines]]:
        for first in range(0, self.params.machines, self.size):
            machines = self.kept.get(first)
            if machines is None:
                count = min(self.size, self.params.machines - first)
                machines = make_machines(self.params.seed, first, count, self.params.bins, self.params.max_hz)
                if first + count <= CACHED_MACHINES:
                    self.kept[first] = machines
            yield first, machines


def _day_tables(
    params: SimulateParams, plan: FaultPlan, batches: MachineBatches, day: int, begin: float, end: float
) -> Iterator[pa.Table]:
    """The rows of one day between `begin` and `end` (days), one table per batch, by machine and time."""
    names = machine_names(params.machines)
    for first, machines in batches:
        times_BN = _times_us(params, machines, day)
        count = len(machines.gain)
        act = _act(params, machines, first, day, times_BN, plan)
        spectra_BNF = _spectra(params, machines, first, act, plan)
        low, high = round(begin * MICROSECONDS_PER_DAY), round(end * MICROSECONDS_PER_DAY)
        wanted_BN = (times_BN >= low) & (times_BN < high)
        if not wanted_BN.any():
            continue
        updated_BN = _updated(params, machines, act.days_BN)
        rpm_BN = act.speed_BN * (60 * machines.shaft_hz[:, None])
        spectra = spectra_BNF.reshape(-1, params.bins)
        spectra = spectra if wanted_BN.all() else spectra[wanted_BN.reshape(-1)]
        codes_BN = np.broadcast_to(np.arange(first, first + count)[:, None], wanted_BN.shape)
        epoch_us = MICROSECONDS_PER_DAY * (params.start - dt.date(1970, 1, 1)).days
        columns = [
            dictionary_column(codes_BN[wanted_BN], names, MACHINE),
            time_column(times_BN[wanted_BN] + epoch_us),
            spectra_column(spectra),
            dictionary_column(act.regime_BN[wanted_BN], CONDITIONS),
            pa.array(rpm_BN[wanted_BN].astype(np.float32)),
            dictionary_column(updated_BN[wanted_BN].astype(np.int16), physics.FIRMWARE_NAMES),
        ]
        yield pa.Table.from_arrays(columns, schema=spectra_schema(params.bins, CONTEXT))


def _times_us(params: SimulateParams, machines: Machines, day: int) -> IntN:
    """(B, N) microseconds since the fleet's start; N covers the day for every phase, so some lie just outside it."""
    step = max(1, round(params.interval_seconds * 1e6))
    phase_B = np.minimum((machines.phase * step).astype(np.int64), step - 1)
    exact = MICROSECONDS_PER_DAY % step == 0
    low = day * MICROSECONDS_PER_DAY // step - (0 if exact else 1)
    high = -(-(day + 1) * MICROSECONDS_PER_DAY // step)
    times_BN = np.arange(low, high, dtype=np.int64)[None, :] * step + phase_B[:, None]
    outside = (times_BN < day * MICROSECONDS_PER_DAY) | (times_BN >= (day + 1) * MICROSECONDS_PER_DAY)
    return np.asarray(np.where(outside, -1, times_BN))


def _act(params: SimulateParams, machines: Machines, first: int, day: int, times_BN: IntN, plan: FaultPlan) -> Day:
    """What each machine does: drawn per machine and day, so that it never depends on who else is simulated."""
    count, rows = times_BN.shape
    dwells = np.empty((count, SEGMENTS // 2, 2))
    segment = np.empty((2, count, SEGMENTS), np.float32)
    row = np.empty((3, count, rows), np.float32)
    noise_BNF = np.empty((count, rows, params.bins), np.float32)
    jitter = np.empty(count)
    for b in range(count):
        rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence([params.seed, 1, first + b, day])))
        dwells[b] = rng.gamma(3.0, 1 / 3.0, (SEGMENTS // 2, 2))
        rng.random(out=segment[0, b], dtype=np.float32)
        rng.standard_normal(out=segment[1, b], dtype=np.float32)
        jitter[b] = rng.normal()
        rng.random(out=row[0, b], dtype=np.float32)
        rng.random(out=row[1, b], dtype=np.float32)
        rng.standard_normal(out=row[2, b], dtype=np.float32)
        rng.standard_normal(out=noise_BNF[b], dtype=np.float32)
    days_BN = times_BN / MICROSECONDS_PER_DAY
    hour_BN = (days_BN - day) * 24
    dwells *= np.array([physics.CUT_DWELL_MINUTES, physics.IDLE_DWELL_MINUTES]) / 60
    begin_B = np.where(machines.shift_hours >= 24, 0.0, machines.shift_start + 0.3 * jitter)
    edges = begin_B[:, None] + np.cumsum(dwells.reshape(count, SEGMENTS), axis=1)
    offset = 1000.0 * np.arange(count)[:, None]  # one sorted search for all machines
    index_BN = np.searchsorted((edges + offset).reshape(-1), (hour_BN + offset).reshape(-1)).reshape(hour_BN.shape)
    index_BN = np.clip(index_BN - SEGMENTS * np.arange(count)[:, None], 0, SEGMENTS - 1)
    on_BN = (hour_BN >= begin_B[:, None]) & (hour_BN < (begin_B + machines.shift_hours)[:, None])
    on_BN &= ~plan.down(first, days_BN)
    regime_BN = np.where(on_BN, np.where(index_BN % 2 == 0, CUT, IDLE), OFF).astype(np.int8)
    cut_BN = regime_BN == CUT
    low, high = physics.CUT_SPEEDS[0], physics.CUT_SPEEDS[-1]
    cut_speed_BN = low + (high - low) * np.take_along_axis(segment[0], index_BN, axis=1)
    load_BN = np.where(cut_BN, np.exp(physics.LOAD_SIGMA * np.take_along_axis(segment[1], index_BN, axis=1)), 1.0)
    least, most = physics.SHOCK_AMPLITUDE
    shock_BN = np.where(cut_BN & (row[0] < physics.SHOCK_RATE), least + (most - least) * row[1], 0.0)
    return Day(
        days_BN=days_BN,
        regime_BN=regime_BN,
        speed_BN=np.select([cut_BN, on_BN], [cut_speed_BN, physics.IDLE_SPEED], 0.0).astype(np.float32),
        load_BN=load_BN.astype(np.float32),
        shock_BN=shock_BN.astype(np.float32),
        level_BN=_level(machines, days_BN, row[2]),
        noise_BNF=noise_BNF,
    )


def _level(machines: Machines, days_BN: Float, normal_BN: Float32) -> Float32:
    """Amplitude factor of each row: the hour's warmth, weeks of wear, and chance."""
    warmth = physics.WARMTH * np.sin(2 * np.pi * days_BN + machines.warmth_phase[:, None])
    wear = np.sin(2 * np.pi * days_BN / machines.wear_days[:, None] + machines.wear_phase[:, None])
    return np.asarray(np.exp(warmth + physics.WEAR * wear + physics.ROW_SIGMA * normal_BN), dtype=np.float32)


def _spectra(params: SimulateParams, machines: Machines, first: int, act: Day, plan: FaultPlan) -> Float32:
    """(B, N, F) magnitudes: the root of templates weighted by what each row does, times chance and the signal path."""
    fault_BN = plan.amplitudes(first, act.days_BN)  # (3, B, N)
    power = np.square(act.level_BN * act.load_BN)
    parts = (power * (1 + fault_BN[physics.ENERGY] ** 2), fault_BN[0] ** 2, fault_BN[1] ** 2)
    state_BNS = _state_shares(act)
    weights = np.concatenate([part[..., None].astype(np.float32) * state_BNS for part in parts], axis=2)
    spectra_BNF = np.matmul(weights, machines.templates)
    hit = np.nonzero(act.shock_BN)
    spectra_BNF[hit] += np.square(act.shock_BN[hit])[:, None] * machines.shock[hit[0]]
    spectra_BNF += machines.floor[:, None, :]
    np.sqrt(spectra_BNF, out=spectra_BNF)
    noise_BNF = act.noise_BNF
    noise_BNF *= machines.bin_sigma[:, None, None].astype(np.float32)
    noise_BNF += np.log(machines.gain)[:, None, None].astype(np.float32)
    spectra_BNF *= np.exp(noise_BNF, out=noise_BNF)
    for machine, time, response_F in plan.repairs(first, first + len(machines.gain), params.bins):
        spectra_BNF[machine - first, act.days_BN[machine - first] >= time] *= response_F
    updated_BN = _updated(params, machines, act.days_BN)
    if updated_BN.any():
        spectra_BNF[updated_BN] *= physics.tilted(physics.FIRMWARE_GAIN, physics.FIRMWARE_TILT, params.bins)
    return np.asarray(spectra_BNF)


def _updated(params: SimulateParams, machines: Machines, days_BN: Float) -> npt.NDArray[np.bool_]:
    """(B, N): the machine has the new firmware; nothing in the log says so."""
    if params.firmware_day is None:
        return np.zeros(days_BN.shape, np.bool_)
    chosen_B = machines.firmware_draw < params.firmware_share
    return np.asarray(chosen_B[:, None] & (days_BN >= params.firmware_day))


def _state_shares(act: Day) -> Float32:
    """(B, N, S) weight of each state's templates: linear between the two nearest cutting speeds; zero when off."""
    speeds = np.array(physics.CUT_SPEEDS, np.float32)
    distance = np.abs(act.speed_BN[..., None] - speeds) / (speeds[1] - speeds[0])
    shares = np.zeros((*act.speed_BN.shape, len(physics.STATES)), np.float32)
    shares[..., :IDLE_STATE] = np.maximum(0, 1 - distance) * (act.regime_BN == CUT)[..., None]
    shares[..., IDLE_STATE] = act.regime_BN == IDLE
    return shares


def main() -> None:
    """Write data/demo from params.simulate."""
    params = load_params().simulate
    with atomic_folder("data/demo") as folder:
        summary = simulate(params, folder)
    print(f"simulated {summary.rows:,} spectra of {summary.machines} machines, {summary.failures} failures")


if __name__ == "__main__":
    run_reporting_errors(main)
