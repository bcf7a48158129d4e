"""Which machine of a simulated fleet fails when, how, and what the maintenance log says of it.

Times are days since the start of the fleet. The plan depends on the parameters only, never on the stretch simulated.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import simulated_machine as physics
from pipeline.params import SimulateParams
from pipeline.schema import MAINTENANCE_SCHEMA, MICROSECONDS_PER_DAY, TRUTH_SCHEMA, FloatNF, Tag

FIRST_FAILURE = 0.08  # of the planned days: before it there is a time when all are well
ROOM_DAYS = 0.5  # between two faults of a machine, at least
WORKED = (0.3, 0.95)  # of the shift, when a machine breaks: none breaks standing still
TRIES = 60  # to find room for an episode


@dataclass(frozen=True)
class Fault:
    """A fault that grows from `onset` to `end`; a logged one ends in a failure, then repair until `well`."""

    machine: int
    mode: int
    onset: float
    end: float
    peak: float  # amplitude at the end, see simulated_machine
    logged: bool
    repaired_from: float  # = end + down time
    well: float  # the machine runs again
    late: float  # days by which the log's entries are late
    gain: float  # of the signal path, and its tilt, after the repair
    tilt: float


@dataclass(frozen=True)
class FaultPlan:
    """All faults of a fleet, by time of their end."""

    faults: tuple[Fault, ...]
    names: Sequence[str]
    mislabelled_share: float

    def amplitudes(self, first: int, days_BN: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """(3, B, N) amplitude of each kind of fault for machines from `first` on, over the healthy level."""
        amplitude = np.zeros((len(physics.FAULT_NAMES), *days_BN.shape), np.float32)
        for fault in self._of(first, first + len(days_BN)):
            days_N = days_BN[fault.machine - first]
            grown = (days_N - fault.onset) / (fault.end - fault.onset)
            active = (grown >= 0) & (grown < 1)
            if active.any():
                growth = physics.FAULT_START * (fault.peak / physics.FAULT_START) ** grown[active]
                amplitude[fault.mode, fault.machine - first, active] = growth
        return amplitude

    def down(self, first: int, days_BN: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """(B, N): the machine stands still, from its failure until it is repaired."""
        down = np.zeros(days_BN.shape, np.bool_)
        for fault in self._of(first, first + len(days_BN)):
            days_N = days_BN[fault.machine - first]
            down[fault.machine - first] |= (days_N >= fault.end) & (days_N < fault.well)
        return down

    def repairs(self, first: int, last: int, bins: int) -> Iterator[tuple[int, float, FloatNF]]:
        """Machine, day, and factor per bin (F,) of each repair of machines `first` to `last`, in order."""
        for fault in self._of(first, last):
            if fault.logged:
                yield fault.machine, fault.well, physics.tilted(fault.gain, fault.tilt, bins)

    def maintenance(self, start: dt.date, until: float) -> pa.Table:
        """The log as it stands on day `until`: a failure and a repair for each logged fault, nothing for others."""
        entries = []
        for fault in self.faults:
            if fault.logged:
                mode, name = physics.FAULT_NAMES[fault.mode], self.names[fault.machine]
                broken, mended, well = (t + fault.late for t in (fault.end, fault.repaired_from, fault.well))
                entries.append((name, broken, mended, Tag.FAILURE.value, mode, None))
                entries.append((name, mended, well, Tag.REPAIR.value, mode, None))
        entries = sorted((entry for entry in entries if entry[1] < until), key=lambda entry: (entry[1], entry[0]))
        return _table(entries, MAINTENANCE_SCHEMA, start)

    def truth(self, start: dt.date, until: float) -> pa.Table:
        """What really happened up to day `until`."""
        entries = [
            (self.names[fault.machine], fault.onset, fault.end, physics.FAULT_NAMES[fault.mode], fault.logged)
            for fault in self.faults
            if fault.onset < until
        ]
        return _table(sorted(entries, key=lambda entry: (entry[1], entry[0])), TRUTH_SCHEMA, start)

    def logged_failures(self, until: float) -> int:
        """Failures that the log of day `until` knows."""
        return sum(fault.logged and fault.end + fault.late < until for fault in self.faults)

    def _of(self, first: int, last: int) -> Iterator[Fault]:
        return (fault for fault in self.faults if first <= fault.machine < last)


def plan_faults(params: SimulateParams) -> FaultPlan:
    """The plan: failures evenly spread over time, modes and machines; late entries and unlogged episodes by chance.

    A machine fails again only after all others had their turn; failures that find no machine with room are left out.
    """
    rng = np.random.default_rng([params.seed, 2])
    failures = _failures(params, rng)
    budget = params.mislabelled_share * params.machines * params.days  # machine-days that the log calls fine
    rng = np.random.default_rng([params.seed, 3])
    failures, spent = _delay_some(failures, budget, rng)
    episodes = _episodes(params, failures, budget - spent, rng)
    spent += sum(episode.end - episode.onset for episode in episodes)
    names = machine_names(params.machines)
    faults = tuple(sorted([*failures, *episodes], key=lambda fault: (fault.end, fault.machine)))
    return FaultPlan(faults, names, spent / (params.machines * params.days))


def _failures(params: SimulateParams, rng: np.random.Generator) -> list[Fault]:
    order = rng.permutation(params.machines)
    free_from = np.zeros(params.machines)  # when the machine was last made well
    turns = np.zeros(params.machines, np.int64)
    rank = np.empty(params.machines, np.int64)
    rank[order] = np.arange(params.machines)
    modes = rng.permutation(np.arange(params.failures) % len(physics.FAULT_NAMES))
    faults = []
    for index in range(params.failures):
        share = FIRST_FAILURE + (1 - FIRST_FAILURE) * (index + 0.1 + 0.8 * rng.random()) / params.failures
        end, mode = share * params.days, int(modes[index])
        growth = min(rng.uniform(*physics.GROWTH_DAYS), 0.75 * end)  # every machine starts well
        peak = rng.uniform(*physics.FAULT_PEAK[mode])
        down, repair = rng.uniform(*physics.DOWN_HOURS) / 24, rng.uniform(*physics.REPAIR_HOURS) / 24
        gain, tilt = np.exp(physics.REPAIR_GAIN_SIGMA * rng.normal()), physics.REPAIR_TILT_SIGMA * rng.normal()
        machine = int(np.lexsort((rank, turns, free_from > end - 0.5 * growth - ROOM_DAYS))[0])
        end = _at_work(params, machine, end, rng.uniform(*WORKED))
        onset = max(end - growth, free_from[machine] + ROOM_DAYS)
        if onset > end - min(ROOM_DAYS, 0.5 * growth):
            continue
        well = end + down + repair
        fault = Fault(machine, mode, onset, end, peak, True, end + down, well, 0.0, float(gain), float(tilt))
        faults.append(fault)
        free_from[machine], turns[machine] = well, turns[machine] + 1
    return faults


def _at_work(params: SimulateParams, machine: int, moment: float, worked: float) -> float:
    """A moment of the same day when the machine works, if that day is not beyond the plan."""
    start, hours = physics.working_hours(params.seed, machine)
    during = np.floor(moment) + (start + worked * hours) / 24
    return float(during) if during < params.days else moment


def _delay_some(failures: list[Fault], budget: float, rng: np.random.Generator) -> tuple[list[Fault], float]:
    """A share of the failures with entries written down late, and the machine-days that it costs of the budget."""
    spent, delayed = 0.0, []
    for fault in failures:
        chosen, late = rng.random() < physics.LATE_SHARE, rng.uniform(*physics.LATE_HOURS) / 24
        if not (chosen and spent + late <= 0.5 * budget):
            late = 0.0
        spent += late
        delayed.append(replace(fault, late=late))
    return delayed, spent


def _episodes(params: SimulateParams, failures: list[Fault], budget: float, rng: np.random.Generator) -> list[Fault]:
    """Mild faults that come and go without a word, about `budget` machine-days of them, where machines have room."""
    busy: dict[int, list[tuple[float, float]]] = {}
    for fault in failures:
        busy.setdefault(fault.machine, []).append((fault.onset, fault.well + fault.late))
    episodes: list[Fault] = []
    least = min(physics.MILD_DAYS[0], 0.1 * params.days)
    tries = TRIES + 20 * int(budget)
    while budget >= 0.5 * least and tries > 0:
        tries -= 1
        machine, mode = int(rng.integers(params.machines)), int(rng.integers(len(physics.FAULT_NAMES)))
        length = min(rng.uniform(*physics.MILD_DAYS), 0.2 * params.days, max(budget, least))
        onset = rng.uniform(0, params.days - length)
        peak = rng.uniform(*physics.MILD_PEAK)
        taken = busy.setdefault(machine, [])
        if any(onset < end + ROOM_DAYS and onset + length > begin - ROOM_DAYS for begin, end in taken):
            continue
        taken.append((onset, onset + length))
        end = onset + length
        episodes.append(Fault(machine, mode, onset, end, peak, False, end, end, 0.0, 1.0, 0.0))
        budget -= length
    return episodes


def machine_names(machines: int) -> list[str]:
    """Names of a fleet, in the order of its machines.

    >>> machine_names(2)
    ['machine-000', 'machine-001']
    """
    width = max(3, len(str(machines - 1)))
    return [f"machine-{index:0{width}d}" for index in range(machines)]


def _table(entries: Sequence[tuple[object, ...]], schema: pa.Schema, start: dt.date) -> pa.Table:
    """Entries as a table; numbers in its time columns are days since `start`."""
    zero = (start - dt.date(1970, 1, 1)).days
    columns = []
    for index, field in enumerate(schema):
        values = [entry[index] for entry in entries]
        if pa.types.is_timestamp(field.type):
            days = np.array(values, np.float64) + zero
            columns.append(pa.array(np.round(days * MICROSECONDS_PER_DAY).astype(np.int64)).cast(field.type))
        else:
            columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=schema)
