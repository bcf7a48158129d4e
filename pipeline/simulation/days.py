"""Rows of some machines on one day, as a table of the contract; the only place where all parts of a fleet meet.

Everything follows from the seed: what a machine is from (seed, machine), what it does and sounds like on a day from
(seed, machine, day), and what happens to it from the plan. So any stretch of days can be simulated alone and is the
same, byte for byte, as in a longer run.

Shape legend: N rows, F frequency bins.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.params import SimulateParams
from pipeline.schema import (
    MACHINE,
    MICROSECONDS_PER_DAY,
    TEXT,
    BoolN,
    FloatNF,
    IntN,
    dictionary_column,
    spectra_column,
    spectra_schema,
    time_column,
)
from pipeline.simulation import physics
from pipeline.simulation.dirt import soil
from pipeline.simulation.history import FleetHistory
from pipeline.simulation.hours import KeptHours
from pipeline.simulation.machine import Machine, make_machine
from pipeline.simulation.operation import instants_us, live_day
from pipeline.simulation.spectra import fill_spectra

CACHE_BYTES = 64 << 20  # machines beyond this are made again every day, so that memory does not grow with the fleet
MACHINE_BYTES = 400  # per bin
CONTEXT = (pa.field("condition", TEXT), pa.field("speed_rpm", pa.float32()), pa.field("firmware", TEXT))
OPERATION, DIRT = 1, 4  # streams of chance


@dataclass(frozen=True)
class Fleet:
    """A fleet ready to be heard: its machines are made when first asked for."""

    params: SimulateParams
    history: FleetHistory
    kept: KeptHours | None = None
    _machines: dict[int, Machine] = field(default_factory=dict, compare=False, repr=False)

    @property
    def schema(self) -> pa.Schema:
        """Of its day files."""
        return spectra_schema(self.params.bins, CONTEXT)

    def machine(self, index: int) -> Machine:
        """One machine."""
        machine = self._machines.get(index)
        if machine is None:
            machine = make_machine(self.params.seed, index, self.params.bins, self.params.max_hz)
            if len(self._machines) * MACHINE_BYTES * self.params.bins < CACHE_BYTES:
                self._machines[index] = machine
        return machine


@dataclass(frozen=True)
class Rows:
    """Some rows of one machine, in the order of the file; their spectra stand in the table's array."""

    machine: int
    time_us_N: IntN  # since the fleet's start
    regime_N: npt.NDArray[np.int8]
    rpm_N: npt.NDArray[np.float32]
    updated_N: BoolN


def day_table(fleet: Fleet, machines: range, day: int, begin: float, end: float) -> pa.Table | None:
    """The rows of some machines on one day between `begin` and `end` (days), by machine and time; None without any."""
    per_day = int(86_400 / fleet.params.interval_seconds) + 2
    bins = fleet.params.bins
    # one array for all, and one that every machine uses again: fresh memory costs as much as filling it. Twice as large
    # as needed where no row is there twice; memory that nobody touches costs nothing
    spectra_NF = np.empty((2 * per_day * len(machines), bins), np.float32)
    scratch_NF = np.empty((per_day, bins), np.float32)
    parts, used = [], 0
    for index in machines:
        rows = _rows_of(fleet, index, day, begin, end, scratch_NF, spectra_NF[used:])
        if rows is not None:
            parts.append(rows)
            used += len(rows.time_us_N)
    if not used:
        return None
    zero_us = MICROSECONDS_PER_DAY * (fleet.params.start - dt.date(1970, 1, 1)).days
    code_N = np.repeat([rows.machine for rows in parts], [len(rows.time_us_N) for rows in parts])
    columns = [
        dictionary_column(code_N, fleet.history.names, MACHINE),
        time_column(np.concatenate([rows.time_us_N for rows in parts]) + zero_us),
        spectra_column(spectra_NF[:used]),
        dictionary_column(np.concatenate([rows.regime_N for rows in parts]), physics.REGIMES),
        pa.array(np.concatenate([rows.rpm_N for rows in parts])),
        dictionary_column(np.concatenate([rows.updated_N for rows in parts]).astype(np.int16), physics.FIRMWARE_NAMES),
    ]
    return pa.Table.from_arrays(columns, schema=fleet.schema)


def _rows_of(
    fleet: Fleet, index: int, day: int, begin: float, end: float, scratch_NF: FloatNF, out_NF: FloatNF
) -> Rows | None:
    """The wanted rows of one machine's day, their spectra in the first rows of `out_NF`.

    The whole day is always drawn, so that a row does not depend on which others are wanted.
    """
    params, machine, history = fleet.params, fleet.machine(index), fleet.history.of(index)
    time_us_N = instants_us(machine, params.interval_seconds, day)
    wanted_N = (time_us_N >= round(begin * MICROSECONDS_PER_DAY)) & (time_us_N < round(end * MICROSECONDS_PER_DAY))
    if fleet.kept is not None:
        wanted_N &= fleet.kept.select(index, time_us_N)
    if not wanted_N.any():
        return None
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence([params.seed, OPERATION, index, day])))
    lived = live_day(machine, history, params.start, day, time_us_N, rng)
    drawn_NF = scratch_NF[: len(time_us_N)]
    fill_spectra(drawn_NF, machine, history, lived, params.firmware_effect, rng)
    updated_N = history.updated(time_us_N / MICROSECONDS_PER_DAY)
    chance = np.random.default_rng([params.seed, DIRT, index, day])
    order_N = soil(drawn_NF, time_us_N, params.dirt, chance)
    order_N = order_N[wanted_N[order_N]]
    np.take(drawn_NF, order_N, axis=0, out=out_NF[: len(order_N)], mode="clip")  # clip: without a copy between
    run_N = lived.run_N[order_N]
    rpm_N = (60 * machine.shaft_hz * lived.speed_R).astype(np.float32)[run_N]
    return Rows(index, time_us_N[order_N], lived.regime_R[run_N], rpm_N, updated_N[order_N])
