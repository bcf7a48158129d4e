"""The spectra behind rows of a score log, read from the uploads that still lie in the landing zone.

Shape legend: N rows of the log, F frequency bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import ContractError
from pipeline.landing import Source, SourceFile, open_source
from pipeline.landing.contract import Counts, TableReader
from pipeline.landing.parquet_tables import batch_rows, open_parquet
from pipeline.landing.places import first_line, list_files, place_of
from pipeline.schema import BoolN, FleetSpec, FloatNF, IntN, codes_and_names, spectra_view, times_us
from pipeline.store import context_text


@dataclass(frozen=True)
class HeardSpectra:
    """Spectra of rows of the log (N, F), NaN where an upload is gone, and why; and the fleet.yaml beside them."""

    spectra_NF: FloatNF
    condition_N: npt.NDArray[np.object_]  # empty where it is not known
    gone: Mapping[str, str]  # upload: why
    spec: FleetSpec | None

    @property
    def known_N(self) -> BoolN:
        """Rows whose spectrum was found."""
        return np.asarray(~np.isnan(self.spectra_NF).all(axis=1))


def read_uploads(landing: str | Path, rows: pa.Table, condition_column: str | None = None) -> HeardSpectra:
    """Read the spectra of rows of a score log.

    Only what the landing zone itself lists is opened, whatever names the log holds; of Parquet files only row groups
    with a wanted row. An upload that is gone, damaged, or holds other rows now leaves its rows empty.

    Args:
        landing: folder or URI; the log has the names of uploads below it, or below its folder `spectra`.
        rows: of one machine, with the log's columns `file`, `row`, `machine_id` and `timestamp`.
        condition_column: context column to read too.
    """
    code_N, names = codes_and_names(rows["file"])
    used = {names[code]: np.flatnonzero(code_N == code) for code in np.unique(code_N).tolist()}
    condition_N = np.full(rows.num_rows, "", object)
    try:
        place = place_of(landing)
        listed = [file for file in list_files(place)[0] if file.name in used or file.below in used]
        source = open_source(place, only=listed)
    except ContractError as error:
        gone = dict.fromkeys(used, str(error))
        return HeardSpectra(np.full((rows.num_rows, 1), np.nan, np.float32), condition_N, gone, None)
    by_name = {name: file for file in source.files for name in (file.below, file.name)}
    bins = max(form.bins for form in source.forms.values())
    spectra_NF, gone = np.full((rows.num_rows, bins), np.nan, np.float32), dict[str, str]()
    for name, places in used.items():
        file = by_name.get(name)
        if file is None:
            wrong = source.problems.get(name) or source.problems.get(f"spectra/{name}")
            gone[name] = wrong or f"no such file in {source.place.label}"
            continue
        try:
            found = _spectra(source, file, rows.take(pa.array(places)), bins, condition_column)
            spectra_NF[places], condition_N[places] = found
        except ContractError as error:
            gone[name] = str(error)
    return HeardSpectra(spectra_NF, condition_N, gone, source.spec)


def _spectra(
    source: Source, file: SourceFile, rows: pa.Table, bins: int, condition_column: str | None
) -> tuple[FloatNF, npt.NDArray[np.object_]]:
    """The spectra of some rows of one upload and their conditions, in their order.

    Raises:
        ContractError: it is damaged, or other rows stand there now.
    """
    row_N, where = rows["row"].to_numpy().astype(np.int64), source.place.where(file.name)
    if source.axis_by_row:
        got = "a file whose rows hold one axis each"
        raise ContractError.of("upload", got=got, expected="whole spectra in its rows", where=where)
    found_NF, condition_N, seen = np.empty((len(row_N), bins), np.float32), np.full(len(row_N), "", object), 0
    wanted_us, wanted_name = times_us(rows["timestamp"]), rows["machine_id"][0].as_py()
    for mine, own in wanted_rows(source, file, row_N):
        same = own["machine_id"].cast(pa.string()).to_pylist() == [wanted_name] * len(mine)
        if not same or not (source.times_are_counted or np.array_equal(times_us(own["timestamp"]), wanted_us[mine])):
            raise _others(where)
        found_NF[mine] = spectra_view(own["spectrum"], bins, where)
        if condition_column is not None:
            condition_N[mine] = context_text(own, condition_column, where).to_pylist()
        seen += len(mine)
    if seen < len(row_N):
        raise _others(where)
    return found_NF, condition_N


def _others(where: str) -> ContractError:
    return ContractError.of("upload", got="other rows than when it was scored", expected="the same", where=where)


def wanted_rows(source: Source, file: SourceFile, row_N: IntN) -> Iterator[tuple[IntN, pa.Table]]:
    """Some rows of an upload as tables of the contract, each with the places of its rows in `row_N`.

    Of Parquet only row groups with a wanted row are read, and only wanted rows become what the contract wants.

    Raises:
        ContractError: it is damaged, or too short for a wanted row.
    """
    form, place, order = source.forms[file.name], source.place, np.argsort(row_N, kind="stable")
    sorted_N = row_N[order]
    if form.csv is not None or form.channels:
        begin = 0
        for table in source.tables(file):
            mine = order[slice(*np.searchsorted(sorted_N, [begin, begin + table.num_rows]))]
            if len(mine):
                yield mine, table.take(pa.array(row_N[mine] - begin))
            begin += table.num_rows
        return
    where = place.where(file.name)
    reader = TableReader(form, source.layout, source.clock, source.unit, where, str, Counts())
    counted = source.times_are_counted  # then each row counts, wanted or not
    with place.open_arrow(file.name) as stream:
        parquet = open_parquet(stream, where, place)
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
        bounds = np.cumsum([0, *sizes])
        for group in np.unique(np.searchsorted(bounds, row_N, side="right") - 1).tolist():
            if group >= len(sizes):
                raise _others(where)
            begin = int(bounds[group])
            try:
                for batch in parquet.iter_batches(batch_rows(form.bins), [group], reader.columns(None)):
                    mine = order[slice(*np.searchsorted(sorted_N, [begin, begin + batch.num_rows]))]
                    raw, index = pa.Table.from_batches([batch]), pa.array(row_N[mine] - begin)
                    begin += batch.num_rows
                    if counted:
                        yield mine, reader.read(raw).take(index)
                    elif len(mine):
                        yield mine, reader.read(raw.take(index))
            except (pa.ArrowException, OSError) as error:
                got = first_line(error)
                raise ContractError.of("Parquet", got=got, expected="a whole Parquet file", where=where) from None
