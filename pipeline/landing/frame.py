"""A whole source in memory, rows in their original order: what a backtest reads.

Shape legend: N rows, F frequency bins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa

from pipeline.errors import ContractError
from pipeline.landing.axes import join_axes
from pipeline.landing.plausible import Energies
from pipeline.landing.source import Source, nothing_whole, open_source
from pipeline.layout import SourceLayout
from pipeline.schema import FleetSpec, FloatNF, spectra_view

MOST_NAMED = 5  # files in a warning


@dataclass(frozen=True)
class WideFrame:
    """A whole source in memory, rows in their original order."""

    context: pd.DataFrame  # machine_id, timestamp (UTC), and every other scalar column; one row per spectrum
    spectra_NF: FloatNF
    fleet: FleetSpec
    warnings: tuple[str, ...]

    @property
    def kind(self) -> Literal["spectrum", "features"]:
        """Magnitudes, or any numbers."""
        return self.fleet.kind

    @property
    def bins(self) -> int:
        """Values in each spectrum."""
        return self.fleet.bins


def load_frame(
    source: Path | str,
    timezone: str | None = None,
    *,
    layout: SourceLayout | None = None,
    unit: str | None = None,
    kind: Literal["spectrum", "features"] | None = None,
) -> WideFrame:
    """Read a file, a folder of them, or a data set, whole; arguments are those of open_source.

    Raises:
        ContractError: see open_source and Source.tables; an unknown zone; no rows; no whole file.
    """
    opened = open_source(source, timezone=timezone, layout=layout, unit=unit, kind=kind)
    set_aside, energies = dict(opened.problems), Energies()
    tables: list[pa.Table] = []
    for file in opened.files:
        try:
            read = list(opened.tables(file))
        except ContractError as error:
            set_aside[file.name] = str(error)
            continue
        for table in read:
            energies.add(file.name, table)
        tables += read
    if not tables or not sum(table.num_rows for table in tables):
        if set_aside:
            raise nothing_whole(set_aside, opened.place.label)
        raise ContractError.of("spectra", got="no rows", expected="at least one", where=opened.place.label)
    table, warnings = _joined(tables), list[str]()
    axes = row_axes(opened, table["axis"].unique().to_pylist()) if "axis" in table.column_names else None
    if axes is not None:
        table, lacking = join_axes(table, axes, opened.place.label)
        warnings += axis_warning(lacking)
    bins = table.schema.field("spectrum").type.list_size
    warnings += [*opened.clock.warnings(), *source_warnings(opened, set_aside), *energies.warnings(opened.unit_name)]
    spectra_NF = spectra_view(table["spectrum"], bins)
    context = table.drop_columns(["spectrum"]).to_pandas()
    return WideFrame(context, spectra_NF, fleet_of(opened, bins, axes), tuple(warnings))


def _joined(tables: list[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        got = f"columns that differ between files ({str(error).splitlines()[0]})"
        raise ContractError.of("context", got=got, expected="one type per column", where="the source") from None


def row_axes(source: Source, seen: Iterable[str]) -> tuple[str, ...]:
    """The axes that rows hold one of: those that fleet.yaml states, else all that were seen, by name."""
    return source.spec.axes if source.spec is not None and source.spec.axes else tuple(sorted(set(seen)))


def axis_warning(lacking: int) -> list[str]:
    """What is said of rows without one of their axes."""
    return [f"{lacking:,} spectra lack an axis: NaN stands there"] if lacking else []


def source_warnings(source: Source, set_aside: dict[str, str]) -> list[str]:
    """Files that were set aside or left out, and columns that are no plain values."""
    found = []
    if set_aside:
        errors = [f"{name}: {error}" for name, error in list(set_aside.items())[:MOST_NAMED]]
        more = f" ... and {len(set_aside) - MOST_NAMED} more" if len(set_aside) > MOST_NAMED else ""
        found.append(f"{len(set_aside)} files were set aside, with all of their rows: {' | '.join(errors)}{more}")
    if source.left_out:
        names = ", ".join(source.left_out[:MOST_NAMED]) + (" ..." if len(source.left_out) > MOST_NAMED else "")
        found.append(f"{len(source.left_out)} files of other kinds were left out: {names}")
    dropped = sorted({name for form in source.forms.values() for name in form.dropped})
    if dropped:
        found.append(
            f"columns that are no plain values, or have a name of the contract, were left out: {', '.join(dropped)}"
        )
    return found


def fleet_of(source: Source, bins: int, axes: tuple[str, ...] | None) -> FleetSpec:
    """What fleet.yaml says of the source once it is in contract form: what was stated, and what the files tell."""
    form = next(iter(source.forms.values()))
    stated = (
        {} if source.spec is None else source.spec.model_dump(exclude_unset=True, exclude={"source", "maintenance"})
    )
    told = {"axes": axes or form.axes, "feature_names": form.features, "band_edges_hz": form.edges_hz}
    known = {key: value for key, value in told.items() if value is not None and stated.get(key) is None}
    settled = {"kind": form.kind, "bins": bins, "unit": source.unit_name}
    if source.clock.zone is not None:
        settled["timezone"] = source.clock.zone
    return FleetSpec.model_validate(stated | known | settled)
