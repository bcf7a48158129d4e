"""What a release keeps of how its fleet has sounded: rows of every machine and day, and the limits that they calibrate.

Rows are healthy ones that no network's weights were fitted on: validation days, which are spread over the whole train
span and its seasons, and calibration rows.

Shape legend: N rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.drift.columns import SPEEDS, Heard, Judge, describe
from pipeline.drift.limits import Limits, calibrate
from pipeline.drift.sampling import fair_sample, mixed
from pipeline.errors import ContractError
from pipeline.rows import load_rows
from pipeline.schema import MICROSECONDS_PER_DAY, BoolN, FloatN, codes_and_names, times_us
from pipeline.store import column_names, day_files, read_context, read_json, read_table, write_json, write_table

REFERENCE, LIMITS = "reference.parquet", "drift.json"


def pick_reference(table: pa.Table, healthy_N: BoolN, max_rows: int, seed: int) -> BoolN:
    """At most `max_rows` of the healthy rows (N,) of a table, the same number of each machine and day where it can."""
    places = np.flatnonzero(healthy_N)
    machine_N, _ = codes_and_names(table["machine_id"])
    time_us_N = times_us(table["timestamp"])[places]
    day_N = time_us_N // MICROSECONDS_PER_DAY
    days = int(np.ptp(day_N)) + 1 if len(day_N) else 1
    stretch_N = machine_N[places].astype(np.int64) * days + (day_N - day_N.min(initial=day_N[0] if len(day_N) else 0))
    random_N = mixed(time_us_N, machine_N[places].astype(np.uint64), seed)
    chosen_N = np.zeros(len(healthy_N), bool)
    chosen_N[places[fair_sample(stretch_N, np.zeros(len(places), np.int64), random_N, max_rows)]] = True
    return chosen_N


def describe_reference(
    data_set: Path, table: pa.Table, chosen_N: BoolN, judge: Judge, bins: int, condition_column: str | None
) -> Heard:
    """The compared quantities of the chosen rows of a data set of the contract; `table` has keys and epochs."""
    rows = load_rows(data_set, table, chosen_N, bins, condition_column)
    return describe(rows, judge, _speeds(data_set, table, chosen_N))


def _speeds(data_set: Path, table: pa.Table, chosen_N: BoolN) -> FloatN | None:
    names = {name for path in day_files(data_set) for name in column_names(path)}
    speed = next((name for name in SPEEDS if name in names), None)
    if speed is None:
        return None
    text = read_context(data_set, table, chosen_N, speed).cast(pa.string())
    try:
        return np.asarray(pc.if_else(pc.equal(text, ""), None, text).cast(pa.float64()).to_numpy())
    except pa.ArrowException:  # words: no number to compare
        return None


def write_reference(folder: Path, reference: Heard, days: float, seed: int) -> None:
    """reference.parquet and drift.json of a release."""
    write_table(folder / REFERENCE, reference.table())
    # from the rows as they will be read again: single precision
    write_json(folder / LIMITS, calibrate(Heard.of_table(reference.table()), days, seed).to_json())


def read_reference(folder: Path) -> tuple[Heard, Limits]:
    """The reference and the limits of a release, from its folder.

    Raises:
        ContractError: a release that was made before there were such files.
    """
    if not (folder / LIMITS).is_file():
        got, expected = f"no {LIMITS}", "a release with limits of drift (build or recalibrate it anew)"
        raise ContractError.of("drift", got=got, expected=expected, where=folder)
    limits = Limits.from_json(read_json(folder / LIMITS))
    return Heard.of_table(read_table(folder / REFERENCE)), limits
