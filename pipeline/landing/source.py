"""A source that has been looked at: its files, how each holds its spectra, and all of it as tables of the contract.

Shape legend: N rows, F frequency bins.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from pipeline.clock import Clock, row_place
from pipeline.errors import ContractError
from pipeline.landing.common import of_one_fleet, settled_types
from pipeline.landing.contract import Counts, TableReader
from pipeline.landing.csv_tables import CsvForm, csv_line, csv_tables, look_at_csv
from pipeline.landing.forms import Form, Kind, table_form
from pipeline.landing.parquet_tables import batch_rows, first_list_size, open_parquet, parquet_tables
from pipeline.landing.places import Place, SourceFile, list_files, natural_order, place_of
from pipeline.landing.waveforms import WAVEFORM_SUFFIXES, is_waveform, waveform_form, waveform_tables
from pipeline.layout import SourceLayout
from pipeline.schema import FleetSpec, parse_fleet_spec
from pipeline.units import Conversion, conversion

PARQUET_SUFFIXES = (".parquet", ".pq")
CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
LOOKERS = 8  # files that are looked at side by side: an object store answers slowly


@dataclass
class Source:
    """A landing zone that has been looked at."""

    place: Place
    files: list[SourceFile]  # that are read, in natural order of their names
    forms: dict[str, Form]
    layout: SourceLayout
    spec: FleetSpec | None
    clock: Clock
    unit: Conversion
    unit_name: str
    problems: dict[str, str]  # files whose form is wrong: name, and what is wrong
    left_out: list[str] = field(default_factory=list)  # files of other kinds
    _counts: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def axis_by_row(self) -> bool:
        """Whether rows hold one axis each, to be joined by machine and time."""
        return any(form.axis is not None or "axis" in form.facts for form in self.forms.values())

    @property
    def times_are_counted(self) -> bool:
        """Whether times come from a start and an interval, since neither columns nor paths tell them."""
        told = (form.timestamp is not None or "timestamp" in form.facts for form in self.forms.values())
        return self.layout.start is not None and not all(told)

    def tables(
        self, file: SourceFile, context: Sequence[str] | None = None, clock: Clock | None = None
    ) -> Iterator[pa.Table]:
        """A file as tables of the contract: machine_id (text), timestamp (UTC), spectrum, context; rows in file order.

        Where rows hold one axis each there is a column `axis`, and spectra of one axis.

        Args:
            file: one of `files`.
            context: names of the context to read, without spectra; None: all of it and the spectra.
            clock: instead of the source's own, which remembers what it had to assume.

        Raises:
            ContractError: nulls in the keys, text in a number, ragged lists, a damaged file.
        """
        form = self.forms[file.name]
        counted = self._is_counted(form)
        counts = Counts(self._counts_before(file) if counted else {})
        yield from self._read(file, form, context, clock or self.clock, counts)
        if counted:
            self._counts[file.name] = counts.rows

    def _read(
        self, file: SourceFile, form: Form, context: Sequence[str] | None, clock: Clock, counts: Counts
    ) -> Iterator[pa.Table]:
        if form.channels:
            yield from waveform_tables(self.place, file, form, self.layout, clock, self.unit, context)
            return
        csv, where = form.csv, self.place.where(file.name)

        def line(row: int) -> str:
            return row_place(row) if csv is None else f"line {csv_line(self.place, file.name, csv, row)}"

        reader = TableReader(form, self.layout, clock, self.unit, where, line, counts)
        wanted = reader.columns(context)
        if csv is None:
            raw = parquet_tables(self.place, file, wanted, batch_rows(form.bins))
        else:
            types = _csv_types(form, csv)
            raw = csv_tables(self.place, file.name, csv, types, wanted or [csv.names[0]], self.layout.decimal)
        for table in raw:
            yield reader.read(table, context)

    def _is_counted(self, form: Form) -> bool:
        told = form.channels or form.timestamp is not None or "timestamp" in form.facts or "sequence" in form.facts
        return not told

    def _counts_before(self, file: SourceFile) -> dict[str, int]:
        """Rows per machine in the files before this one; a file that cannot be read has none."""
        place = bisect_left(self.files, natural_order(file.name), key=lambda other: natural_order(other.name))
        unknown, known = list[SourceFile](), dict[str, int]()
        for other in reversed(self.files[:place]):
            if other.name in self._counts:
                known = self._counts[other.name]
                break
            unknown.append(other)
        for other in reversed(unknown):
            counts = Counts(dict(known))
            try:
                for _ in self._read(other, self.forms[other.name], (), Clock(self.clock.zone), counts):
                    pass
                known = counts.rows
            except ContractError:  # said when it is its turn
                pass
            self._counts[other.name] = known
        return dict(known)


def source_clock(timezone: str | None, spec: FleetSpec | None) -> Clock:
    """The zone of times without one: the setting's, else that which fleet.yaml states, else UTC is assumed."""
    stated = spec.timezone if spec is not None and "timezone" in spec.model_fields_set else None
    return Clock(timezone or stated)


def source_spec(source: str | Path) -> FleetSpec | None:
    """The fleet.yaml of a source, if it has one.

    Raises:
        ContractError: no such place, or a fleet.yaml that is wrong.
    """
    return _spec_of(place_of(source))


def _spec_of(place: Place) -> FleetSpec | None:
    found = place.beside("fleet.yaml")
    return None if found is None else parse_fleet_spec(found[1], place.where("fleet.yaml"))


def open_source(
    source: str | Path | Place,
    *,
    timezone: str | None = None,
    layout: SourceLayout | None = None,
    unit: str | None = None,
    kind: Kind | None = None,
    only: Sequence[SourceFile] | None = None,
) -> Source:
    """Look at a folder, a file or a place in an object store.

    Args:
        source: a path, a URI, or a place that has been found.
        timezone: of times without one; None: as fleet.yaml says.
        layout: how the files hold their data; None: as fleet.yaml's `source` says.
        unit: what spectra are converted to; None: fleet.yaml's, else as they are.
        kind: None: as fleet.yaml says, else as the names of columns say.
        only: files of the place to look at, as `list_files` lists them; None: all of them.

    Raises:
        ContractError: no such place, no file that may hold spectra, or none whose form is right.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.csv").write_text("machine_id,timestamp,bin_0,bin_1\\nm,2024-01-01T00:00Z,1,2\\n")
    >>> found = open_source(folder)
    >>> [table["spectrum"].to_pylist() for table in found.tables(found.files[0])]
    [[[1.0, 2.0]]]
    """
    place = source if isinstance(source, Place) else place_of(source)
    spec = _spec_of(place)
    layout = layout or (spec.source if spec is not None else None) or SourceLayout()
    stated = spec.model_fields_set if spec is not None else set()
    kind = kind or (spec.kind if spec is not None and "kind" in stated else None)
    target = unit or (spec.unit if spec is not None and "unit" in stated else None) or layout.unit
    convert = conversion(layout.unit or target or "g", target or "g", "unit")
    if convert.offset and kind != "features":
        expected = "kind: features, since a magnitude has no zero to move"
        raise ContractError.of("unit", got=f"{layout.unit} to {target}", expected=expected, where=place.label)
    listed, problems = list_files(place) if only is None else (list(only), dict[str, str]())
    files, left_out = _readable(listed, layout, place)
    features = spec.feature_names if spec is not None else None
    forms, wrong = _forms(place, files, layout, kind, features)
    if forms:
        forms = settled_types(forms)
        forms, differing = of_one_fleet(forms, spec, place)
        wrong |= differing
    problems |= wrong
    if not forms:
        raise nothing_whole(problems, place.label)
    return Source(
        place=place,
        files=[file for file in files if file.name in forms],
        forms=forms,
        layout=layout,
        spec=spec,
        clock=source_clock(timezone, spec),
        unit=convert,
        unit_name=target or (spec.unit if spec is not None else "g"),
        problems=problems,
        left_out=left_out,
    )


def nothing_whole(problems: Mapping[str, str], label: str) -> ContractError:
    """The error where every file is broken: the one file's own, or the first with their number."""
    first = next(iter(problems.values()), "spectra: got no file, expected at least one.")
    if len(problems) <= 1:
        return ContractError(first)
    return ContractError(f"{first} All {len(problems)} files of {label} are wrong; this is the first.")


def _readable(listed: Sequence[SourceFile], layout: SourceLayout, place: Place) -> tuple[list[SourceFile], list[str]]:
    """Files that fit the glob and are of a known kind, and those that only fit the glob."""
    pattern = _glob(layout.files)
    fitting = [file for file in listed if place.is_file or pattern.fullmatch(file.below)]
    known = [file for file in fitting if place.is_file or _is_known(file.name.lower(), layout)]
    if not known:
        got = "no Parquet file, CSV or waveform" if not fitting else f"only {fitting[0].name} and the like"
        got = f"{got} that fits {layout.files!r}" if layout.files != "**/*" else got
        raise ContractError.of("spectra", got=got, expected="at least one file", where=place.label)
    chosen = {file.name for file in known}
    return known, [file.name for file in fitting if file.name not in chosen]


def _is_known(name: str, layout: SourceLayout) -> bool:
    if layout.format == "table":
        return not name.endswith(WAVEFORM_SUFFIXES)
    if layout.format == "waveform":
        return not name.endswith(PARQUET_SUFFIXES)
    return name.endswith((*PARQUET_SUFFIXES, *CSV_SUFFIXES, *WAVEFORM_SUFFIXES))


def _glob(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression: `**/` is any folders, `*` and `?` stay within one name."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(known.get(part, re.escape(part)) for part in parts), re.DOTALL)


def _forms(
    place: Place,
    files: Sequence[SourceFile],
    layout: SourceLayout,
    kind: Kind | None,
    features: tuple[str, ...] | None,
) -> tuple[dict[str, Form], dict[str, str]]:
    """The form of each file, and what is wrong with those that have none."""
    facts = {file.name: layout.facts_of(file.below) for file in files}
    sequences = _sequences(files, facts)

    def look(file: SourceFile) -> Form | str:
        told = facts[file.name]
        where = place.where(file.name)
        try:
            if told is None:
                raise ContractError.of("path", got=repr(file.below), expected=layout.path, where=where)
            number = told.get("sequence", "0")
            if not re.fullmatch(r"\d{1,15}", number):
                raise ContractError.of("sequence", got=repr(number), expected="a number in the path", where=where)
            if is_waveform(file.name, layout):
                counted = "timestamp" not in told and "sequence" not in told
                sequence = sequences[file.name] if counted else int(number)
                return waveform_form(place, file, layout, told, sequence)
            form = _table_form(place, file, layout, told, kind, features)
            return replace(form, sequence=int(number))
        except ContractError as error:
            return str(error)

    with ThreadPoolExecutor(LOOKERS) as pool:
        found = list(pool.map(look, files))
    forms = {file.name: form for file, form in zip(files, found, strict=True) if isinstance(form, Form)}
    wrong = {file.name: form for file, form in zip(files, found, strict=True) if isinstance(form, str)}
    return forms, wrong


def _sequences(files: Iterable[SourceFile], facts: Mapping[str, Mapping[str, str] | None]) -> dict[str, int]:
    """Each file's number among those of its machine; files come in natural order."""
    counts: Counter[str] = Counter()
    found = {}
    for file in files:
        told = facts[file.name] or {}
        key = f"{told.get('machine_id', '')}\0{told.get('axis', '')}"
        found[file.name] = counts[key]
        counts[key] += 1
    return found


def _table_form(
    place: Place,
    file: SourceFile,
    layout: SourceLayout,
    facts: Mapping[str, str],
    kind: Kind | None,
    features: tuple[str, ...] | None,
) -> Form:
    where = place.where(file.name)
    if not file.name.lower().endswith(PARQUET_SUFFIXES):
        look = look_at_csv(place, file.name, layout.delimiter, layout.decimal)
        schema = pa.schema([(name, look.types.get(name, pa.null())) for name in look.names])
        return replace(table_form(schema, layout, facts, where, kind, features), csv=look)
    with place.open_arrow(file.name) as stream:
        parquet = open_parquet(stream, where, place)
        form = table_form(parquet.schema_arrow, layout, facts, where, kind, features)
        rows = parquet.metadata.num_rows
    bins = form.bins or (first_list_size(place, file, form.columns) if rows else 0)
    return replace(form, bins=bins, rows=rows)


def _csv_types(form: Form, csv: CsvForm) -> dict[str, pa.DataType]:
    """What a CSV's columns are read as."""
    keys = {name: pa.string() for name in (form.machine, form.timestamp, form.axis) if name is not None}
    spectra = dict.fromkeys(form.columns, pa.float32())
    return {**{name: csv.types[name] for name in form.context.values()}, **spectra, **keys}
