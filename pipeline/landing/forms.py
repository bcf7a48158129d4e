"""How one file holds its spectra, and what else it holds: from its column names, or from a plant's own names for them.

Unless a plant says otherwise, spectra are a column `spectrum` of lists, columns `bin_00, bin_01 ...` (magnitudes) or
`f_000, f_001 ...` (any numbers); of kind features they may be any numeric columns.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import pyarrow as pa

from pipeline.clock import is_text
from pipeline.errors import ContractError
from pipeline.landing.csv_tables import CsvForm
from pipeline.landing.places import natural_order
from pipeline.layout import ALL_OTHERS, Columns, SourceLayout

Kind = Literal["spectrum", "features"]
KEYS = ("machine_id", "timestamp")
RESERVED = (*KEYS, "spectrum", "axis")
WIDE_FORMS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("spectrum", re.compile(r"bin_(\d+)")),
    ("features", re.compile(r"f_(\d+)")),
)
LABELS = {"label", "labels"}  # never a feature by itself


class FleetFacts(NamedTuple):
    """What all files of a fleet have in common."""

    kind: Kind
    bins: int
    features: tuple[str, ...] | None
    edges_hz: tuple[float, ...] | None

    def __str__(self) -> str:
        names = f" ({', '.join(self.features)[:120]})" if self.features else ""
        band = f", {self.edges_hz[0]:g} to {self.edges_hz[-1]:g} Hz" if self.edges_hz else ""
        return f"{self.bins} bins of kind {self.kind}{names}{band}"


@dataclass(frozen=True)
class Form:
    """How one file holds its spectra, and what else it holds; names are those of the file."""

    kind: Kind
    bins: int  # of one row; 0 where only the rows can tell
    columns: tuple[str, ...] = ()  # of the spectra, in order: lists, or one per bin
    listed: bool = False
    machine: str | None = None  # None: the path or the layout tells
    timestamp: str | None = None
    axis: str | None = None  # the column that names a row's axis
    axes: tuple[str, ...] | None = None  # of one row, side by side
    features: tuple[str, ...] | None = None
    edges_hz: tuple[float, ...] | None = None
    context: Mapping[str, str] = field(default_factory=dict)  # name in the contract: name in the file
    dropped: tuple[str, ...] = ()  # neither key nor spectrum nor scalar
    facts: Mapping[str, str] = field(default_factory=dict)  # what the path tells
    csv: CsvForm | None = None
    channels: tuple[int, ...] = ()  # of a waveform
    rate_hz: float | None = None
    rows: int | None = None  # where it is known without reading
    sequence: int = 0  # of records whose times are counted

    @property
    def fleet_facts(self) -> FleetFacts:
        """What all files of a fleet have in common."""
        edges = None if self.edges_hz is None else tuple(round(edge, 3) for edge in self.edges_hz)
        return FleetFacts(self.kind, self.bins, self.features, edges)


def table_form(
    schema: pa.Schema,
    layout: SourceLayout,
    facts: Mapping[str, str],
    where: object,
    kind: Kind | None = None,
    features: Sequence[str] | None = None,
) -> Form:
    """How a file of this schema holds its spectra.

    Args:
        schema: of the file.
        layout: a plant's own names.
        facts: what the path tells.
        where: the file, for messages.
        kind: what fleet.yaml says; None: the names of the columns say it.
        features: names of columns that fleet.yaml states; None: of kind features all numeric columns.

    Raises:
        ContractError: a key or the spectra are missing, bins are not numbered 0, 1, 2 ..., or hold no numbers.

    >>> schema = pa.schema({"machine_id": "string", "timestamp": "date32", "bin_0": "float32"})
    >>> table_form(schema, SourceLayout(), {}, "example").bins
    1
    """
    names, columns = schema.names, layout.columns
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ContractError.of("columns", got=f"{duplicates[0]!r} twice", expected="each name once", where=where)
    machine = None if "machine_id" in facts or columns.machine_id not in names else columns.machine_id
    timestamp = None if "timestamp" in facts or columns.timestamp not in names else columns.timestamp
    missing = []
    if machine is None and "machine_id" not in facts and layout.machine_id is None:
        missing.append((columns.machine_id, "--map machine_id=COLUMN or --machine NAME"))
    if timestamp is None and "timestamp" not in facts and layout.start is None:
        missing.append((columns.timestamp, "--map timestamp=COLUMN, or --start with --interval"))
    if missing:
        got = " and ".join(f"no {name}" for name, _ in missing)
        expected = f"{' and '.join(KEYS)} ({'; '.join(option for _, option in missing)})"
        raise ContractError.of("columns", got=got, expected=expected, where=where)
    if machine is not None and _is_time(schema.field(machine).type):
        got = f"times in {machine!r}"
        expected = "names; if columns are swapped: --map machine_id=COLUMN --map timestamp=COLUMN"
        raise ContractError.of("machine_id", got=got, expected=expected, where=where)
    axis = None if "axis" in facts or columns.axis is None else columns.axis
    if axis is not None and axis not in names:
        raise ContractError.of("columns", got=f"no {axis}", expected="the column of axes", where=where)
    keys = {name for name in (machine, timestamp, axis) if name is not None}
    found, chosen, listed, axes = _spectra(schema, layout, keys, kind, features, where)
    bins = _bins(schema, chosen, listed, axes, where)
    context, dropped = _context(schema, layout, {*keys, *chosen}, facts, where)
    features = None
    if (kind or found) == "features" and not listed and not WIDE_FORMS[1][1].fullmatch(chosen[0]):
        features = chosen
    return Form(
        kind=kind or found,
        bins=bins,
        columns=chosen,
        listed=listed,
        machine=machine,
        timestamp=timestamp,
        axis=axis,
        axes=axes,
        features=features,
        context=context,
        dropped=dropped,
        facts=facts,
    )


def _spectra(
    schema: pa.Schema,
    layout: SourceLayout,
    keys: set[str],
    kind: Kind | None,
    features: Sequence[str] | None,
    where: object,
) -> tuple[Kind, tuple[str, ...], bool, tuple[str, ...] | None]:
    """Kind, columns, whether they are lists, and axes."""
    stated = layout.columns.spectrum
    if isinstance(stated, dict):
        groups = {axis: _matching(schema.names, names, where) for axis, names in stated.items()}
        sizes = {len(group) for group in groups.values()}
        if len(sizes) != 1:
            got = ", ".join(f"{len(group)} columns for {axis}" for axis, group in groups.items()) or "no axis"
            raise ContractError.of("axes", got=got, expected="the same number for each", where=where)
        flat = tuple(name for group in groups.values() for name in group)
        return "spectrum", flat, _are_lists(schema, flat, where), tuple(groups)
    if stated is not None:
        chosen = _matching(schema.names, stated, where)
        return "spectrum", chosen, _are_lists(schema, chosen, where), None
    if "spectrum" in schema.names:
        return "spectrum", ("spectrum",), _are_lists(schema, ("spectrum",), where), None
    for found, pattern in WIDE_FORMS:
        numbered = {int(match.group(1)): name for name in schema.names if (match := pattern.fullmatch(name))}
        if numbered:
            gaps = set(range(max(numbered) + 1)) - set(numbered) if max(numbered) < 1 << 20 else {len(numbered)}
            if gaps:
                got = f"no column for bin {min(gaps)}"
                raise ContractError.of("bins", got=got, expected=f"0 to {max(numbered)}", where=where)
            return found, tuple(numbered[number] for number in sorted(numbered)), False, None
    if kind == "features" and features:
        return "features", _matching(schema.names, tuple(features), where), False, None
    if kind == "features":
        taken = keys | LABELS | set((layout.columns.context or {}).values())
        chosen = tuple(entry.name for entry in schema if entry.name not in taken and is_number(entry.type))
        if chosen:
            return "features", chosen, False, None
    expected = "spectrum (lists), bin_00 ... or f_000 ..., or --map spectrum=PATTERN"
    raise ContractError.of("columns", got="no spectra", expected=expected, where=where)


def _matching(names: Sequence[str], wanted: Columns, where: object) -> tuple[str, ...]:
    found: list[str] = []
    for item in (wanted,) if isinstance(wanted, str) else wanted:
        if item in names:
            found.append(item)
        else:
            found += sorted((name for name in names if fnmatch.fnmatchcase(name, item)), key=natural_order)
        if not found:
            raise ContractError.of("columns", got=f"none that fit {item!r}", expected="spectra", where=where)
    if len(set(found)) < len(found):
        raise ContractError.of("columns", got=f"{wanted!r}, a column twice", expected="each once", where=where)
    return tuple(found)


def _are_lists(schema: pa.Schema, names: Iterable[str], where: object) -> bool:
    kinds = {name: _is_list(schema.field(name).type) for name in names}
    if len(set(kinds.values())) > 1:
        raise ContractError.of("spectra", got="lists and numbers", expected="one or the other", where=where)
    if (
        "spectrum" in kinds
        and not kinds["spectrum"]
        and len(kinds) == 1
        and not is_number(schema.field("spectrum").type)
    ):
        got = schema.field("spectrum").type
        raise ContractError.of("type of spectrum", got=got, expected="lists of numbers", where=where)
    return next(iter(kinds.values()))


def _bins(schema: pa.Schema, chosen: Sequence[str], listed: bool, axes: tuple[str, ...] | None, where: object) -> int:
    if not listed:
        return len(chosen)
    if len(chosen) != len(axes or ("",)):
        raise ContractError.of("spectra", got=f"{len(chosen)} columns of lists", expected="one per axis", where=where)
    kinds = [schema.field(name).type for name in chosen]
    fixed = [int(kind.list_size) if pa.types.is_fixed_size_list(kind) else 0 for kind in kinds]
    return sum(fixed) if all(fixed) else 0


def _context(
    schema: pa.Schema, layout: SourceLayout, taken: set[str], facts: Mapping[str, str], where: object
) -> tuple[dict[str, str], tuple[str, ...]]:
    """New name: name in the file, of every context column; and what is no plain value."""
    stated = layout.columns.context
    asked = {new: old for new, old in (stated or {}).items() if new != ALL_OTHERS}
    for new, old in asked.items():
        if old not in schema.names or new in RESERVED:
            got = f"no column {old}" if old not in schema.names else f"context {new}"
            raise ContractError.of("columns", got=got, expected=f"some of {', '.join(schema.names)[:200]}", where=where)
    dropped = list[str]()
    if stated is None or ALL_OTHERS in stated:
        for entry in schema:
            if entry.name in taken or entry.name in asked or entry.name in asked.values():
                continue
            if _is_scalar(entry.type) and entry.name not in (*RESERVED, *facts):
                asked[entry.name] = entry.name
            elif entry.name not in facts and not pa.types.is_null(entry.type):
                dropped.append(entry.name)
    return asked, tuple(dropped)


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type holds numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind))


def _is_scalar(kind: pa.DataType) -> bool:
    known = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_timestamp, pa.types.is_date)
    return is_text(kind) or any(test(kind) for test in known)
