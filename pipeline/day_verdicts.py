"""From broken rules of machine-days to what follows: a table of days, changes of the plant, rows that are set aside.

A finding that most machines have on one day is the plant's (a new unit everywhere, a shutdown): it is told once, and no
row is set aside for it.

Shape legend: E machine-days, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.day_checks import DayFacts, plant_events
from pipeline.expectations import BitsN, Rule
from pipeline.quarantine import GivenBack, released
from pipeline.schema import (
    DAYS_SCHEMA,
    MACHINE,
    MICROSECONDS_PER_DAY,
    BoolN,
    codes_and_names,
    dictionary_column,
    times_us,
)


@dataclass(frozen=True)
class DayVerdict:
    """Rows of one machine on one day that are set aside: those with an energy in [low, high]."""

    machine_id: str
    day: int  # since 1970
    reason: str
    status: str  # quarantined | suspect
    low: float
    high: float


def plant_share(broken_E: BitsN, facts: DayFacts, rules: int, share: float) -> BitsN:
    """The bits of `broken_E` (E,) that are the plant's; see `plant_events`."""
    plant_E = np.zeros_like(broken_E)
    for bit in range(rules):
        found_E = (broken_E >> bit & 1) == 1
        if found_E.any():
            plant_E[plant_events(found_E, facts.day, share)] |= 1 << bit
    return plant_E


def days_table(
    facts: DayFacts, machines: Sequence[str], broken_E: BitsN, plant_E: BitsN, rules: Sequence[Rule]
) -> pa.Table:
    """DAYS_SCHEMA, by machine and day."""
    columns = {
        "machine_id": dictionary_column(facts.machine, machines, MACHINE),
        "day": pa.array(facts.day.astype(np.int32)).cast(pa.date32()),
        "findings": pa.array([_reasons(bits, rules) for bits in broken_E.tolist()], pa.string()),
        "of_the_plant": pa.array([_reasons(bits, rules) for bits in plant_E.tolist()], pa.string()),
    }
    for name in DAYS_SCHEMA.names:
        if name not in columns:
            columns[name] = pa.array(getattr(facts, name), from_pandas=True)
    return pa.table([columns[name] for name in DAYS_SCHEMA.names], schema=DAYS_SCHEMA)


def _reasons(bits: int, rules: Sequence[Rule]) -> str:
    return "+".join(dict.fromkeys(rule.reason for bit, rule in enumerate(rules) if bits >> bit & 1)) if bits else ""


def set_aside_days(
    facts: DayFacts, machines: Sequence[str], broken_E: BitsN, rules: Sequence[Rule]
) -> list[DayVerdict]:
    """What rules that quarantine or suspect say of machine-days.

    On a day in another unit only the rows nearer to that unit than to the usual one are meant: the unit may have
    changed at noon.
    """
    verdicts = []
    for bit, rule in enumerate(rules):
        if rule.action not in ("quarantine", "suspect"):
            continue
        status = "quarantined" if rule.action == "quarantine" else "suspect"
        for index in np.flatnonzero(broken_E >> bit & 1).tolist():
            factor, usual = float(facts.unit_factor[index]), float(facts.usual_energy[index])
            middle = usual * np.sqrt(factor)
            low, high = (-np.inf, np.inf) if factor == 1 else ((middle, np.inf) if factor > 1 else (-np.inf, middle))
            machine, day = machines[facts.machine[index]], int(facts.day[index])
            verdicts.append(DayVerdict(machine, day, rule.reason, status, low, high))
    return verdicts


def verdicts_of_rows(table: pa.Table, verdicts: Sequence[DayVerdict], releases: Sequence[GivenBack]) -> pa.Table:
    """A piece of the status table with the verdicts of days added to status and reason; releases count here too."""
    machine_N, machines = codes_and_names(table["machine_id"])
    time_us_N, energy_N = times_us(table["timestamp"]), table["energy"].to_numpy()
    day_N = time_us_N // MICROSECONDS_PER_DAY
    days, codes = set(np.unique(day_N).tolist()), {name: code for code, name in enumerate(machines)}
    given_back: dict[str, BoolN] = {}
    statuses, reasons = None, None
    for verdict in verdicts:
        if verdict.day not in days or verdict.machine_id not in codes:
            continue
        meant_N = (machine_N == codes[verdict.machine_id]) & (day_N == verdict.day)
        meant_N &= ~((energy_N < verdict.low) | (energy_N > verdict.high))
        if verdict.reason not in given_back:
            given_back[verdict.reason] = released(releases, verdict.reason, machine_N, machines, time_us_N)
        meant_N &= ~given_back[verdict.reason]
        if statuses is None or reasons is None:
            statuses, reasons = (np.array(table[name].to_pylist(), object) for name in ("status", "reason"))
        worse_N = meant_N if verdict.status == "quarantined" else meant_N & (statuses == "ok")
        statuses[worse_N] = verdict.status
        for row in np.flatnonzero(meant_N).tolist():
            reasons[row] = f"{reasons[row]}+{verdict.reason}" if reasons[row] else verdict.reason
    if statuses is None or reasons is None:
        return table
    schema = table.schema
    for name, values in (("status", statuses), ("reason", reasons)):
        column = pa.array(values.tolist(), pa.string()).dictionary_encode().cast(schema.field(name).type)
        table = table.set_column(schema.get_field_index(name), schema.field(name), column)
    return table
