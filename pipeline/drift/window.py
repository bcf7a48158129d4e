"""The newest rows of a service, a fair sample of bounded size: keys from its score log, spectra from the landing zone.

Shape legend: N rows of the window, F bins.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.drift.columns import SPEEDS
from pipeline.drift.log_sample import sampled_keys
from pipeline.errors import ContractError
from pipeline.history_spectra import wanted_rows
from pipeline.landing import Source, SourceFile, open_source
from pipeline.landing.places import list_files
from pipeline.params import MonitorParams
from pipeline.rows import ONE_CONDITION, Codes, Rows
from pipeline.schema import (
    BoolN,
    FloatN,
    FloatNF,
    IntN,
    codes_and_names,
    energy_is_finite,
    spectra_view,
    times_us,
)
from pipeline.store import context_text
from pipeline.uploads import LandingZone

if TYPE_CHECKING:
    from pipeline.release import Release

MIN_ROWS = 50
READERS = 2
PART_ROWS = 5_000
MOST_KINDS = 50  # values of a context column that may name a group


@dataclass(frozen=True)
class Window:
    """A sample of the usable rows of a span, with their spectra, speed (NaN: not known) and context as text.

    `found` counts the usable rows of the span in the log (in whole hours), `gone` those of the sample whose uploads are
    not there now.
    """

    rows: Rows
    speed_N: FloatN
    context: Mapping[str, npt.NDArray[np.object_]]
    start_us: int
    end_us: int
    found: int
    gone: int = 0


def service_window(
    release: Release,
    log: Path,
    zone: LandingZone,
    params: MonitorParams,
    seed: int,
    until: dt.datetime | None = None,
) -> Window:
    """A sample of the scored rows of the newest `params.days`, the same number of each machine and hour where it can.

    Args:
        release: whose baseline epochs describe the rows.
        log: folder of the score log, of the service or of `score_data_set`.
        zone: where the uploads of the log lie.
        params: section `monitor`.
        seed: of the sample.
        until: rows before this (UTC); None: up to the newest row that no wrong clock explains.

    Raises:
        ContractError: no such log, fewer than 50 usable rows, a damaged file of the log, or no landing zone.
    """
    keys = sampled_keys(log, params.days, params.max_rows, seed, until)
    spectra = _read_spectra(release, zone, keys.table)
    table = keys.table.filter(pa.array(spectra.known_N))
    if table.num_rows < MIN_ROWS:
        got = f"{table.num_rows} ({int((~spectra.known_N).sum())} whose uploads are gone{spectra.why})"
        raise ContractError.of("rows to compare", got=got, expected=f"at least {MIN_ROWS}", where=zone.place.label)
    machine_N, machines = codes_and_names(table["machine_id"])
    time_us_N, known = times_us(table["timestamp"]), spectra.known_N
    told = pc.equal(table["release"].cast(pa.string()), release.id).to_numpy(zero_copy_only=False)
    # another release may count other epochs
    epoch_N = np.where(told, table["epoch"].to_numpy(), release.epochs.of_rows(machine_N, time_us_N, machines))
    conditions: tuple[str, ...] = ONE_CONDITION
    condition_N: Codes = np.zeros(len(machine_N), np.int32)
    if release.condition_column is not None:
        condition_N, names = codes_and_names(pa.array(spectra.context[release.condition_column][known], pa.string()))
        conditions = tuple(names)
    rows = Rows(
        spectra=spectra.spectra_NF[known],
        machine=machine_N,
        machines=machines,
        epoch=epoch_N.astype(np.int32),
        condition=condition_N,
        conditions=conditions,
        time_us=time_us_N,
        status=table,
    )
    context = {
        name: values[known]
        for name, values in spectra.context.items()
        if len(set(values[known].tolist()) - {""}) in range(1, MOST_KINDS + 1)
    }
    return Window(rows, spectra.speed_N[known], context, keys.start_us, keys.end_us, keys.found, int((~known).sum()))


def contract_window(
    release: Release,
    data_set: Path,
    log: Path,
    params: MonitorParams,
    seed: int,
    until: dt.datetime | None = None,
) -> Window:
    """As `service_window`, of a data set of the contract and the log that `score_data_set` wrote of it."""
    return service_window(release, log, LandingZone.at(data_set), params, seed, until)


@dataclass
class _Heard:
    """Spectra, speed and context of drawn rows, in their order; and why uploads are gone."""

    spectra_NF: FloatNF
    speed_N: FloatN
    context: dict[str, npt.NDArray[np.object_]]
    known_N: BoolN
    reasons: list[str] = field(default_factory=list)

    @property
    def why(self) -> str:
        """The first reason, in words."""
        return f": {self.reasons[0]}" if self.reasons else ""


def _read_spectra(release: Release, zone: LandingZone, keys: pa.Table) -> _Heard:
    """What the landing zone holds of drawn rows; an upload that is gone, damaged or other now leaves its rows out."""
    code_N, names = codes_and_names(keys["file"])
    row_N = keys["row"].to_numpy()
    used = {names[code]: np.flatnonzero(code_N == code) for code in np.unique(code_N).tolist()}
    # parts of a large upload are read side by side
    parts = [
        (name, part)
        for name, places in used.items()
        for part in np.array_split(places[np.argsort(row_N[places], kind="stable")], 1 + len(places) // PART_ROWS)
    ]
    bins, rows = int(release.manifest["bins"]), keys.num_rows
    found = _Heard(np.zeros((rows, bins), np.float32), np.full(rows, np.nan), {}, np.zeros(rows, bool))
    if release.condition_column is not None:
        found.context[release.condition_column] = np.full(rows, "", object)
    listed = [file for file in list_files(zone.place)[0] if file.name in used or file.below in used]
    if not listed:
        return found
    source = open_source(zone.place, timezone=zone.timezone, only=listed)
    by_name = {name: file for file in source.files for name in (file.below, file.name)}

    def read(item: tuple[str, IntN]) -> tuple[IntN, _Heard | str]:
        name, places = item
        file = by_name.get(name)
        if file is None:
            return places, source.problems.get(name, f"no such file as {name}")
        try:
            return places, _of_upload(source, file, keys.take(pa.array(places)), bins, release.condition_column)
        except ContractError as error:
            return places, str(error)

    with ThreadPoolExecutor(READERS) as pool:
        for places, part in pool.map(read, parts):
            if isinstance(part, str):
                found.reasons.append(part)
                continue
            found.spectra_NF[places], found.speed_N[places] = part.spectra_NF, part.speed_N
            found.known_N[places] = part.known_N
            for name, values in part.context.items():
                found.context.setdefault(name, np.full(rows, "", object))[places] = values
    return found


def _of_upload(source: Source, file: SourceFile, keys: pa.Table, bins: int, condition: str | None) -> _Heard:
    """Some rows of one upload.

    Raises:
        ContractError: it is damaged, or other rows stand there now.
    """
    row_N, where = keys["row"].to_numpy().astype(np.int64), source.place.where(file.name)
    code_N, names = codes_and_names(keys["machine_id"])
    wanted, wanted_us = np.array(names, object)[code_N], times_us(keys["timestamp"])
    found = _Heard(
        np.zeros((len(row_N), bins), np.float32), np.full(len(row_N), np.nan), {}, np.zeros(len(row_N), bool)
    )
    for mine, own in wanted_rows(source, file, row_N):
        same = np.array_equal(np.array(own["machine_id"].cast(pa.string()).to_pylist(), object), wanted[mine])
        if not same or not np.array_equal(times_us(own["timestamp"]), wanted_us[mine]):
            got = "other rows than when it was scored"
            raise ContractError.of("upload", got=got, expected="the same", where=where)
        spectra_NF = spectra_view(own["spectrum"], bins, where)
        found.spectra_NF[mine], found.known_N[mine] = spectra_NF, energy_is_finite(spectra_NF)
        for name in _context_names(own, condition):
            found.context.setdefault(name, np.full(len(row_N), "", object))[mine] = context_text(
                own, name, where
            ).to_pylist()
        speed = next((name for name in SPEEDS if name in own.column_names and _is_number(own, name)), None)
        if speed is not None:
            found.speed_N[mine] = own[speed].cast(pa.float64()).to_numpy(zero_copy_only=False)
    return found


def _context_names(table: pa.Table, condition: str | None) -> list[str]:
    """Context columns of words: the condition's, and others that may name a group of machines."""
    keys = ("machine_id", "timestamp", "spectrum", "axis")
    words = [name for name in table.column_names if name not in keys and _is_text(table.schema.field(name).type)]
    return [*words, *([condition] if condition in table.column_names and condition not in words else [])]


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value))


def _is_number(table: pa.Table, name: str) -> bool:
    kind = table.schema.field(name).type
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
