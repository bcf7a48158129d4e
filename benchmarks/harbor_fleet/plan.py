"""Which hours train, and which machine-days and failures calibrate, tune and test."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harbor_fleet.plant import DAY, HORIZON, Plant, Stretch
from pipeline.errors import UserError
from pipeline.judging.judged import Event
from pipeline.schema import (
    BoolN,
)
from pipeline.simulation.hours import kept_hours

LOOK_DAYS = 60  # of each machine that single minutes are heard on: a day's rows are made whole to hear one of them
CALIBRATION_LOOK_DAYS = 12  # of those that calibrate


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
    weeks = [(failure.machine, failure.end - HORIZON, failure.end) for failure in (*tunes, *tests)]
    apart = days_without(weeks, setup.machines, 0, int(np.ceil(setup.days)))  # from the rows before failures
    in_truth = plant.true_trouble() + plant.true_work() + plant.known_work(horizons=False)
    free = days_without(in_truth, setup.machines, int(np.ceil(setup.test[0])), int(setup.days))
    healthy = spread(free, setup.healthy_days, rng, "healthy test days")
    healthy = [(machine, int(np.ceil(setup.test[0])) + day) for machine, day in healthy]
    healthy = [(machine, day) for machine, day in healthy if apart[machine, day]]

    ill = ~days_without(plant.true_trouble(), setup.machines, int(begin), int(end))
    minutes, days = [], []
    for index, (machine, day) in enumerate(early):
        faulty, at = bool(ill[machine, day]), int(begin) + day
        if not apart[machine, at]:
            continue
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
