"""Spectra as codes of a release's network and back: a few numbers per spectrum, and what is needed to decode them.

A codes file is one Parquet file. Its rows hold the keys of the spectra, the rows of the release's baseline table that
described them, and their codes; its footer (`hearken.codes`, JSON) names release and detector, and says what was lost.

Shape legend: N rows, F bins, L latent.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from pipeline.detectors import NeuralDetector
from pipeline.detectors.objectives import INPUT_LIMIT
from pipeline.epochs import EpochStarts
from pipeline.errors import ContractError, ReleaseError, UserError
from pipeline.release import Release
from pipeline.rows import RowKeys, conditions_of
from pipeline.schema import (
    KEY_FIELDS,
    MACHINE,
    MAINTENANCE_SCHEMA,
    TEXT,
    FloatNF,
    IntN,
    codes_and_names,
    dictionary_column,
    load_fleet_spec,
    spectra_column,
    spectra_schema,
    spectra_view,
    time_column,
    times_us,
)
from pipeline.score import usable_rows
from pipeline.store import (
    atomic_folder,
    column_names,
    day_files,
    read_batches,
    read_footer,
    read_table,
    write_fleet_spec,
    write_tables,
)
from pipeline.train import use_threads

FOOTER = "hearken.codes"
FORMAT = 1
DAY_FILE = re.compile(r"[0-9A-Za-z][\w.-]*\.parquet")
STEP, MOST = 0.01, 200.0  # of the histogram of row errors: dB or robust deviations


@dataclass(frozen=True)
class Fidelity:
    """What coding kept: the share of the movement about the baselines, and the error of a row (root mean square).

    `unit` is that of the errors: dB for magnitudes, robust deviations for features. Figures are null without rows.
    """

    unit: str
    explained: float | None
    median_error: float | None
    error_95: float | None
    largest_error: float | None


@dataclass(frozen=True)
class CodesHeader:
    """What the footer of a codes file says: whose codes they are, what decodes them, and what they kept."""

    release: str
    detector: str
    bins: int
    latent: int
    baselines: int  # rows of the release's baseline table
    condition_column: str | None
    rows: int
    unusable: int  # rows of the source that no code can hold, left out
    fidelity: Fidelity

    def to_text(self) -> str:
        """JSON."""
        return json.dumps({"format": FORMAT} | asdict(self), sort_keys=True)

    @classmethod
    def of(cls, path: Path) -> CodesHeader:
        """The header of a codes file.

        Raises:
            ContractError: no Parquet file, or one that holds no codes.
        """
        text = read_footer(path, FOOTER)
        try:
            values = json.loads(text or "null")
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']}")
            return TypeAdapter(cls).validate_json(text or "null", strict=True)
        except (KeyError, TypeError, ValueError) as error:
            got = "none" if text is None else f"one that cannot be read ({error})"
            expected = f"that of a file that `hearken encode` wrote, format {FORMAT}"
            raise ContractError.of(f"footer {FOOTER}", got=got, expected=expected, where=path) from None


@dataclass(frozen=True)
class CodesSummary:
    """What was written: the header of the codes file, and the bytes before and after."""

    header: CodesHeader
    source_bytes: int
    written_bytes: int


def codes_schema(latent: int) -> pa.Schema:
    """Schema of a codes file: keys, epoch and condition, the row of the baseline table, and the code (L float32)."""
    return pa.schema(
        [
            *KEY_FIELDS,
            pa.field("epoch", pa.int32(), nullable=False),
            pa.field("condition", TEXT, nullable=False),
            pa.field("baseline", pa.int32(), nullable=False),
            pa.field("code", pa.list_(pa.float32(), latent), nullable=False),
        ]
    )


def coding_detector(release: Release, name: str | None) -> NeuralDetector:
    """The network of a release that codes spectra: the one named, else the first.

    Raises:
        UserError: the release has no such detector, or one that has no codes.
    """
    networks = {known: each for known, each in release.detectors.items() if isinstance(each, NeuralDetector)}
    expected = ", ".join(networks) or "a release with an autoencoder or a vae: it has none"
    chosen = next(iter(networks), None) if name is None else name
    if chosen is None or chosen not in networks:
        has = f"{name}, which has no codes" if name in release.detectors else name or "none"
        raise UserError(f"--detector: got {has}, expected {expected}, in release {release.id}.")
    return networks[chosen]


@dataclass
class _Tally:
    """Fidelity of rows that stream by: sums, and a histogram of row errors."""

    detector: NeuralDetector
    moved: float = 0.0
    missed: float = 0.0
    largest: float = 0.0
    errors: IntN = field(default_factory=lambda: np.zeros(int(MOST / STEP) + 1, np.int64))

    def add(self, spectra_NF: FloatNF, baseline_N: np.ndarray, codes_NL: FloatNF) -> None:
        """Look at rows and at what their codes say of them."""
        made_NF = self.detector.decode_to_spectra(codes_NL, baseline_N)
        level_NF = self._levels(spectra_NF, baseline_N)
        off_NF = self._levels(made_NF, baseline_N) - level_NF
        self.moved += float(np.square(level_NF).sum(dtype=np.float64))
        self.missed += float(np.square(off_NF).sum(dtype=np.float64))
        if self.detector.baselines.log:
            floor = np.float32(self.detector.baselines.floor)
            off_NF = 20 * np.log10(np.maximum(made_NF, floor) / np.maximum(spectra_NF, floor))
        error_N = np.sqrt(np.square(off_NF).mean(axis=1))
        self.largest = max(self.largest, float(error_N.max(initial=0.0)))
        self.errors += np.bincount((np.minimum(error_N, MOST) / STEP).astype(np.int64), minlength=len(self.errors))

    def _levels(self, spectra_NF: FloatNF, baseline_N: np.ndarray) -> FloatNF:
        """(N, F) robust deviations, held within what a network is shown."""
        level_NF: FloatNF = self.detector.relative(spectra_NF, baseline_N)[:, :-1].cpu().numpy()
        return level_NF.clip(-INPUT_LIMIT, INPUT_LIMIT)

    def fidelity(self) -> Fidelity:
        """What the rows so far say."""
        unit = "dB" if self.detector.baselines.log else "robust deviations"
        rows = int(self.errors.sum())
        if not rows:
            return Fidelity(unit, None, None, None, None)
        reached = np.cumsum(self.errors)
        median, high = (float(np.searchsorted(reached, share * rows) * STEP) for share in (0.5, 0.95))
        explained = 1 - self.missed / self.moved if self.moved else None
        return Fidelity(unit, explained, round(median, 2), round(high, 2), self.largest)


def encode_data_set(release: Release, data_set: Path, output: Path, detector: str | None = None) -> CodesSummary:
    """Write the codes of a data set's spectra as one Parquet file, atomically; memory is that of one batch of rows.

    Rows that are not finite, or negative where magnitudes are meant, have no code: they are left out and counted.

    Args:
        release: whose network codes, and whose baselines describe the machines.
        data_set: folder with `spectra/`, `fleet.yaml` and, where there is one, a maintenance log.
        output: the file.
        detector: `autoencoder` or `vae`; None: the first that the release has.

    Raises:
        UserError: see coding_detector; a place where no file can be written.
        ContractError: another number of bins than the release, or damaged files. Nothing is written then.
    """
    network = coding_detector(release, detector)
    fleet_file = data_set / "fleet.yaml"
    bins = load_fleet_spec(fleet_file).bins if fleet_file.exists() else network.baselines.bins
    if bins != network.baselines.bins:
        raise ContractError.of("bins", got=bins, expected=network.baselines.bins, where=fleet_file)
    for place in (data_set, release.folder):
        if output.resolve().is_relative_to(place.resolve()):
            raise UserError(f"--out: got {output}, expected a file that is not below {place}.")
    if output.is_dir():
        raise UserError(f"--out: got the folder {output}, expected a file.")
    use_threads(int(release.manifest["threads"]))
    log_file = data_set / "maintenance.parquet"
    epochs = release.epochs_with(read_table(log_file, schema=MAINTENANCE_SCHEMA) if log_file.exists() else None)
    encoder, files = _Encoder(release, network, epochs), day_files(data_set)
    tables = itertools.chain.from_iterable(map(encoder.coded, files))
    write_tables(
        output, codes_schema(network.params.latent), tables, footer=lambda: {FOOTER: encoder.header().to_text()}
    )
    read = sum(path.stat().st_size for path in files)
    return CodesSummary(encoder.header(), read, output.stat().st_size)


@dataclass
class _Encoder:
    """One pass over the day files of a data set."""

    release: Release
    network: NeuralDetector
    epochs: EpochStarts
    rows: int = 0
    unusable: int = 0

    def __post_init__(self) -> None:
        self.tally = _Tally(self.network)

    def coded(self, path: Path) -> Iterator[pa.Table]:
        """The rows of one day file as parts of a codes file."""
        column, begin = self.release.condition_column, 0
        wanted = ["machine_id", "timestamp", "spectrum"]
        wanted += [column] if column is not None and column in column_names(path) else []
        for table in read_batches(path, wanted):
            yield self._coded(path, table, begin)
            begin += table.num_rows

    def _coded(self, path: Path, table: pa.Table, begin: int) -> pa.Table:
        network, column = self.network, self.release.condition_column
        spectra_NF = spectra_view(table["spectrum"], network.baselines.bins, path)
        good = np.flatnonzero(usable_rows(spectra_NF, self.release.fleet.kind))
        spectra_NF = spectra_NF if len(good) == len(spectra_NF) else spectra_NF[good]
        machine_N, machines = codes_and_names(table["machine_id"])
        condition_N, conditions = conditions_of(table, column, path)
        machine_N, condition_N, time_us_N = machine_N[good], condition_N[good], times_us(table["timestamp"])[good]
        epoch_N = self.epochs.of_rows(machine_N, time_us_N, machines)
        baseline_N = network.baselines.codes(RowKeys(machines, machine_N, epoch_N, conditions, condition_N))
        codes_NL = network.encode(spectra_NF, baseline_N)
        self.tally.add(spectra_NF, baseline_N, codes_NL)
        self.rows, self.unusable = self.rows + len(good), self.unusable + table.num_rows - len(good)
        return pa.table(
            [
                dictionary_column(np.zeros(len(good), np.int16), [path.name]),
                pa.array((begin + good).astype(np.int32)),
                dictionary_column(machine_N, machines, MACHINE),
                time_column(time_us_N),
                pa.array(epoch_N),
                dictionary_column(condition_N, list(conditions), TEXT),
                pa.array(baseline_N),
                spectra_column(codes_NL),
            ],
            schema=codes_schema(network.params.latent),
        )

    def header(self) -> CodesHeader:
        """Of the rows so far."""
        return CodesHeader(
            release=self.release.id,
            detector=self.network.name,
            bins=self.network.baselines.bins,
            latent=self.network.params.latent,
            baselines=len(self.network.baselines.location),
            condition_column=self.release.condition_column,
            rows=self.rows,
            unusable=self.unusable,
            fidelity=self.tally.fidelity(),
        )


def decode_codes(release: Release, codes: Path, output: Path) -> CodesHeader:
    """Write what codes say that spectra were: a data set of day files with their keys, and the release's fleet.yaml.

    Args:
        release: that made the codes.
        codes: the file.
        output: a new or an empty folder; memory is that of one batch of rows.

    Raises:
        ReleaseError: codes of another release.
        UserError: the release has not their detector; something is at `output`.
        ContractError: no file of codes, or one that is damaged. Nothing is written then.
    """
    header = CodesHeader.of(codes)
    if header.release != release.id:
        raise ReleaseError(f"release: got {release.id}, expected {header.release}, which wrote {codes}.")
    network = coding_detector(release, header.detector)
    table = network.baselines
    for name, expected in {
        "bins": table.bins,
        "latent": network.params.latent,
        "baselines": len(table.location),
        "condition_column": release.condition_column,
    }.items():
        if getattr(header, name) != expected:
            raise ContractError.of(name, got=getattr(header, name), expected=expected, where=codes)
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise UserError(f"--out: got {output}, where something is already, expected a new or an empty folder.")
    if output.resolve() == Path.cwd():
        raise UserError(f"--out: got {output}, the current folder, expected another one: it is put in place whole.")
    use_threads(int(release.manifest["threads"]))
    with atomic_folder(output) as folder:
        (folder / "spectra").mkdir()
        write_fleet_spec(folder / "fleet.yaml", release.fleet)
        seen = set[str]()
        for name, parts in itertools.groupby(_file_parts(codes, header), key=lambda part: part[0]):
            if name in seen or not DAY_FILE.fullmatch(name):
                got = f"{name!r} twice, apart" if name in seen else repr(name)
                raise ContractError.of("file", got=got, expected="names of day files, in order", where=codes)
            seen.add(name)
            schema = _decoded_schema(header)
            tables = (_decoded(network, header, table, codes) for _, table in parts)
            write_tables(folder / "spectra" / name, schema, tables)
    return header


def _file_parts(codes: Path, header: CodesHeader) -> Iterator[tuple[str, pa.Table]]:
    """The rows of a codes file in parts of one day file each, in their order."""
    schema = codes_schema(header.latent)
    if missing := [name for name in schema.names if name not in column_names(codes)]:
        expected = ", ".join(schema.names)
        raise ContractError.of("columns", got=f"no column {', '.join(missing)}", expected=expected, where=codes)
    for batch in read_batches(codes, schema.names):
        try:
            table = batch.cast(schema)
        except (pa.ArrowException, ValueError) as error:
            got = str(error).splitlines()[0]
            raise ContractError.of("columns", got=got, expected="those of a codes file", where=codes) from None
        file_N, names = codes_and_names(table["file"])
        edges = [0, *(np.flatnonzero(np.diff(file_N)) + 1).tolist(), len(file_N)]
        for begin, end in itertools.pairwise(edges):
            if end > begin:
                yield names[file_N[begin]], table.slice(begin, end - begin)


def _decoded_schema(header: CodesHeader) -> pa.Schema:
    column = header.condition_column
    return spectra_schema(header.bins, [] if column is None else [pa.field(column, TEXT)])


def _decoded(network: NeuralDetector, header: CodesHeader, table: pa.Table, codes: Path) -> pa.Table:
    """Some rows of a codes file as rows of a day file."""
    codes_NL = spectra_view(table["code"], header.latent, codes)
    baseline_N = table["baseline"].to_numpy()
    strange = ~np.isfinite(codes_NL).all(axis=1) | (baseline_N < 0) | (baseline_N >= header.baselines)
    if strange.any():
        got = f"{int(strange.sum())} rows with codes that are not finite or baselines beyond the release's"
        raise ContractError.of("codes", got=got, expected="those that `hearken encode` wrote", where=codes)
    columns: dict[str, Any] = {
        "machine_id": table["machine_id"],
        "timestamp": table["timestamp"],
        "spectrum": spectra_column(network.decode_to_spectra(codes_NL, baseline_N)),
    }
    if header.condition_column is not None:
        columns[header.condition_column] = table["condition"]
    return pa.table(columns, schema=_decoded_schema(header))


def ratio(header: CodesHeader) -> float:
    """How many numbers of a spectrum stand in one of its code."""
    return header.bins / header.latent


def fidelity_words(header: CodesHeader) -> str:
    """What coding kept, in a sentence for people.

    >>> figures = Fidelity("dB", 0.8312, 1.21, 4.4, 20.31)
    >>> fidelity_words(CodesHeader("r", "vae", 128, 16, 3, None, 9, 0, figures))
    'kept 83.1 % of what moves about the baselines; error of a row: median 1.21 dB, 95th percentile 4.40, largest 20.3'
    """
    figures = header.fidelity
    if figures.median_error is None or figures.error_95 is None or figures.largest_error is None:
        return "no row: nothing is known of what is kept"
    kept = "" if figures.explained is None else f"kept {figures.explained:.1%} of what moves about the baselines; "
    return (
        f"{kept.replace('%', ' %')}error of a row: median {figures.median_error:.2f} {figures.unit}, "
        f"95th percentile {figures.error_95:.2f}, largest {figures.largest_error:.3g}"
    )
