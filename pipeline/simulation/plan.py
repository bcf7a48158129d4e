"""What happens to which machine of a simulated fleet, and when: failures, works, and faults that nobody notices.

The plan follows from the parameters alone, never from the stretch that is simulated. Times are days since the start.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.params import SimulateParams
from pipeline.schema import Tag
from pipeline.simulation import physics
from pipeline.simulation.growth import amplitude_of_rise, amplitude_of_snr
from pipeline.simulation.history import Fault, FleetHistory, Work
from pipeline.simulation.machine import working_hours

FIRST_FAILURE = 0.08  # of the planned days: before it there is a time when all are well
ROOM_DAYS = 0.5  # between two faults of a machine, at least
WORKED = (0.3, 0.95)  # of the shift, when a machine breaks: none breaks standing still
TRIES = 60  # to find room
MISTAKES = 0.5  # of the mislabelled share, at most, for what the log gets wrong of real failures
FAILURES, MISTAKEN, EPISODES, UPKEEP, FIRMWARE, ILL = 2, 3, 8, 9, 10, 11  # one stream of chance each


def plan_fleet(params: SimulateParams) -> FleetHistory:
    """The plan: failures evenly spread over time, modes and machines; all else by chance, where there is room.

    A machine fails again only after all others had their turn; failures that find no machine with room are left out.
    The mislabelled share is a budget: machines that were never well take from it first, then what the log gets wrong,
    then faults that come and go without a word. Other shares do not move the failures.
    """
    machine_days = params.machines * params.days
    budget = params.mislabelled_share * machine_days
    ill = _never_well(params, budget)
    spent = len(ill) * params.days
    faults, works = _failures(params, {fault.machine for fault in ill})
    faults, works, never_done, cost = _mistakes(params, faults, works, MISTAKES * (budget - spent))
    calendar = _Calendar([*faults, *ill], works)
    works += _upkeep(params, calendar)
    episodes = _episodes(params, calendar, budget - spent - cost)
    spent += cost + sum(episode.end - episode.onset for episode in episodes)
    return FleetHistory(
        names=machine_names(params.machines),
        faults=tuple(sorted([*faults, *ill, *episodes], key=lambda fault: (fault.end, fault.machine))),
        works=tuple(sorted(works, key=lambda work: (work.end, work.machine))),
        never_done=tuple(never_done),
        firmware_day=params.firmware_day,
        firmware=_firmware(params),
        mislabelled_share=spent / machine_days,
    )


def machine_names(machines: int) -> tuple[str, ...]:
    """Names of a fleet, in the order of its machines.

    >>> machine_names(2)
    ('machine-000', 'machine-001')
    """
    width = max(3, len(str(machines - 1)))
    return tuple(f"machine-{index:0{width}d}" for index in range(machines))


class _Calendar:
    """When each machine is taken, by a fault, its repair or other work."""

    def __init__(self, faults: list[Fault], works: list[Work]) -> None:
        self.taken: dict[int, list[tuple[float, float]]] = {}
        for fault in faults:
            self.take(fault.machine, fault.onset, fault.end)
        for work in works:
            self.take(work.machine, work.stops, work.end + work.late)

    def take(self, machine: int, begin: float, end: float) -> None:
        self.taken.setdefault(machine, []).append((begin, end))

    def has_room(self, machine: int, begin: float, end: float) -> bool:
        taken = self.taken.get(machine, ())
        return all(end + ROOM_DAYS <= first or begin - ROOM_DAYS >= last for first, last in taken)


def _never_well(params: SimulateParams, budget: float) -> list[Fault]:
    """Machines that are ill from the first day on, as many as the budget holds."""
    rng = np.random.default_rng([params.seed, ILL])
    count = min(round(params.upkeep.never_well * params.machines), int(budget / params.days))
    faults = []
    for machine in rng.permutation(params.machines)[:count]:
        mode = params.modes[int(rng.integers(len(params.modes)))]
        peak = amplitude_of_rise(rng.uniform(*physics.MILD_DB))
        faults.append(Fault(int(machine), mode, 0.0, np.inf, peak, peak))
    return faults


def _failures(params: SimulateParams, ill: set[int]) -> tuple[list[Fault], list[Work]]:
    rng = np.random.default_rng([params.seed, FAILURES])
    order = rng.permutation(params.machines)
    free_from = np.zeros(params.machines)  # when the machine was last made well
    turns = np.zeros(params.machines, np.int64)
    turns[list(ill)] = params.failures + 1
    rank = np.empty(params.machines, np.int64)
    rank[order] = np.arange(params.machines)
    modes = rng.permutation(np.arange(params.failures) % len(params.modes))
    faults: list[Fault] = []
    works: list[Work] = []
    for index in range(params.failures):
        share = FIRST_FAILURE + (1 - FIRST_FAILURE) * (index + 0.1 + 0.8 * rng.random()) / params.failures
        end, mode = share * params.days, params.modes[int(modes[index])]
        growth = min(rng.uniform(*physics.GROWTH_DAYS[mode]), 0.75 * end)  # every machine starts well
        law, shape = _law(mode, rng)
        start, peak = (
            amplitude_of_snr(rng.uniform(*physics.ONSET_DB)),
            amplitude_of_rise(rng.uniform(*physics.FAILURE_DB)),
        )
        down, repair = rng.uniform(*physics.DOWN_HOURS) / 24, rng.uniform(*physics.REPAIR_HOURS) / 24
        gain, tilt = np.exp(physics.REPAIR_GAIN_SIGMA * rng.normal()), physics.REPAIR_TILT_SIGMA * rng.normal()
        machine = int(np.lexsort((rank, turns, free_from > end - 0.5 * growth - ROOM_DAYS))[0])
        end = _at_work(params, machine, end, rng.uniform(*WORKED))
        onset = max(end - growth, free_from[machine] + ROOM_DAYS)
        if onset > end - min(ROOM_DAYS, 0.5 * growth) or machine in ill:
            continue
        faults.append(Fault(machine, mode, onset, end, start, peak, law, shape, fails=True, logged=True))
        well, swap = end + down + repair, mode in physics.SWAPPED_MODES
        repaired = Work(machine, end + down, well, Tag.REPAIR, machine, end, mode, swap=swap)
        works.append(replace(repaired, gain=float(gain), tilt=float(tilt)))
        free_from[machine], turns[machine] = well, turns[machine] + 1
    return faults, works


def _law(mode: str, rng: np.random.Generator) -> tuple[str, float]:
    laws = physics.GROWTH_LAWS[mode]
    law = laws[int(rng.integers(len(laws)))]
    bounds = {"power_law": physics.PARIS_EXPONENT, "two_stage": physics.KNEE}.get(law, (1.0, 1.0))
    return law, float(rng.uniform(*bounds))


def _at_work(params: SimulateParams, machine: int, moment: float, worked: float) -> float:
    """A moment of the same day when the machine works, if that day is not beyond the plan."""
    start, hours = working_hours(params.seed, machine)
    during = np.floor(moment) + (start + worked * hours) / 24
    return float(during) if during < params.days else moment


def _mistakes(
    params: SimulateParams, faults: list[Fault], works: list[Work], budget: float
) -> tuple[list[Fault], list[Work], list[Work], float]:
    """Failures and repairs as the log has them, repairs that it has by mistake, and the machine-days that it costs.

    Which failures are missing, under another machine's name, or late is drawn, as many as their shares say and as the
    budget allows.
    """
    rng = np.random.default_rng([params.seed, MISTAKEN])
    shares = {"missing": params.log.missing, "wrong": params.log.wrong, "late": params.log.late}
    kinds = [kind for kind, share in shares.items() for _ in range(round(share * len(faults)))][: len(faults)]
    chosen = dict(zip(rng.permutation(len(faults)).tolist(), kinds, strict=False))
    told, repairs, never_done, spent = [], [], list[Work](), 0.0
    for index, (fault, work) in enumerate(zip(faults, works, strict=True)):
        late = rng.uniform(*physics.LATE_HOURS) / 24
        other, when = int(rng.integers(params.machines)), rng.uniform(0.1, 0.9) * params.days
        kind = chosen.get(index)
        cost = {None: 0.0, "late": late}.get(kind, fault.end - fault.onset)
        if kind is not None and spent + cost <= budget:
            spent += cost
            if kind == "late":
                work = replace(work, late=late)
            else:
                named = other if kind == "wrong" and other != fault.machine else None
                fault, work = replace(fault, logged=False), replace(work, told_of=named)
        if kind == "wrong":  # and somewhere else a failure that never was
            length = work.end - work.begin
            never = Work(other, when, when + length, Tag.REPAIR, other, when - length, fault.mode)
            never_done.append(replace(never, note="no fault found"))
        told.append(fault)
        repairs.append(work)
    return told, repairs, never_done, spent


def _upkeep(params: SimulateParams, calendar: _Calendar) -> list[Work]:
    """Planned bearing swaps, moved sensors and stops, each where its machine has room."""
    rng = np.random.default_rng([params.seed, UPKEEP])
    upkeep = params.upkeep
    works = []
    for share, hours, kind in (
        (upkeep.bearing_swaps, physics.SWAP_HOURS, Tag.REPAIR),
        (upkeep.moved_sensors, physics.SENSOR_HOURS, Tag.SENSOR),
        (upkeep.planned_stops, physics.STOP_HOURS, Tag.OFF),
    ):
        for machine in rng.permutation(params.machines)[: round(share * params.machines)]:
            for _ in range(TRIES):
                begin = rng.uniform(0.05, 0.95) * params.days
                end = begin + min(rng.uniform(hours[0], hours[1]) / 24, 0.05 * params.days)
                if calendar.has_room(int(machine), begin, end):
                    work = Work(int(machine), begin, end, kind, int(machine), note="planned")
                    works.append(_changed(work, rng, upkeep.moves_logged))
                    calendar.take(int(machine), begin, end)
                    break
    return works


def _changed(work: Work, rng: np.random.Generator, moves_logged: float) -> Work:
    """What the work does to the signal."""
    normal, phase, draw = rng.normal(size=2), rng.uniform(0, 2 * np.pi), rng.random()
    if work.tag == Tag.SENSOR:
        gain, tilt = np.exp(physics.MOVED_GAIN_SIGMA * normal[0]), physics.MOVED_TILT_SIGMA * normal[1]
        moved = replace(work, gain=float(gain), tilt=float(tilt), ripple=physics.MOVED_RIPPLE, ripple_phase=phase)
        return replace(moved, told_of=work.machine if draw < moves_logged else None)
    if work.tag == Tag.REPAIR:
        gain, tilt = np.exp(physics.REPAIR_GAIN_SIGMA * normal[0]), physics.REPAIR_TILT_SIGMA * normal[1]
        return replace(work, gain=float(gain), tilt=float(tilt), swap=True)
    return work


def _episodes(params: SimulateParams, calendar: _Calendar, budget: float) -> list[Fault]:
    """Mild faults that come and go without a word, about `budget` machine-days of them, where machines have room."""
    rng = np.random.default_rng([params.seed, EPISODES])
    episodes: list[Fault] = []
    least = min(physics.MILD_DAYS[0], 0.1 * params.days)
    tries = TRIES + 20 * int(budget)
    while budget >= 0.5 * least and tries > 0:
        tries -= 1
        machine, mode = int(rng.integers(params.machines)), params.modes[int(rng.integers(len(params.modes)))]
        length = min(rng.uniform(*physics.MILD_DAYS), 0.2 * params.days, max(budget, least))
        onset = rng.uniform(0, params.days - length)
        start, peak = (
            amplitude_of_snr(rng.uniform(*physics.ONSET_DB)),
            amplitude_of_rise(rng.uniform(*physics.MILD_DB)),
        )
        if calendar.has_room(machine, onset, onset + length):
            calendar.take(machine, onset, onset + length)
            episodes.append(Fault(machine, mode, onset, onset + length, start, peak))
            budget -= length
    return episodes


def _firmware(params: SimulateParams) -> dict[int, bool]:
    """Machines that get the new firmware, and whether the log says so."""
    if params.firmware_day is None:
        return {}
    draws = np.random.default_rng([params.seed, FIRMWARE]).random((2, params.machines))
    chosen = np.flatnonzero(draws[0] < params.firmware_share)
    return {int(machine): bool(draws[1, machine] < params.firmware_logged) for machine in chosen}
