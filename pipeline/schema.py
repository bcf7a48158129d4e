"""The data contract: what a data set, a status table and a score log look like.

Shape legend: N rows, F frequency bins, M members of a release, L latent dimensions.

A data set is a folder with `spectra/*.parquet` (one file per UTC day, rows sorted by machine and time),
`maintenance.parquet`, `fleet.yaml`, and in a simulation `truth.parquet`. Rows are known by (file, row): the day file's
name and the position in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.errors import ContractError
from pipeline.findings import nearest
from pipeline.layout import MaintenanceLayout, SourceLayout
from pipeline.layout import Tag as Tag  # every module takes the contract's words from here
from pipeline.yaml_model import checked_model

FloatNF = npt.NDArray[np.float32]
FloatN = npt.NDArray[np.float64]
IntN = npt.NDArray[np.int64]
BoolN = npt.NDArray[np.bool_]

MACHINE = pa.dictionary(pa.int32(), pa.string())
TEXT = pa.dictionary(pa.int16(), pa.string())
TIME = pa.timestamp("us", tz="UTC")
MICROSECONDS_PER_MINUTE = 60_000_000
MICROSECONDS_PER_HOUR = 60 * MICROSECONDS_PER_MINUTE
MICROSECONDS_PER_DAY = 24 * MICROSECONDS_PER_HOUR


class Role(StrEnum):
    """What a row is used for; NONE rows are used for nothing but scoring."""

    NONE = "none"
    BASELINE = "baseline"  # describes its machine, fits and judges nothing
    TRAIN = "train"
    VALIDATION = "validation"
    CALIBRATION = "calibration"
    TUNE = "tune"  # the horizon of a tune failure
    TEACH = "teach"  # the horizon of a tune failure whose mode networks learn; it chooses nothing
    TEST = "test"


class Label(StrEnum):
    """What is known of a row, for judging."""

    HEALTHY = "healthy"
    FAULTY = "faulty"
    UNKNOWN = "unknown"


class Baseline(IntEnum):
    """Whose baseline describes a row, from the widest to the narrowest."""

    FLEET = 0  # the machine is not known
    SHRUNK = (
        1  # its epoch or condition has too few looks: wider, and leaning on what is known of the machine and the fleet
    )
    OWN = 2


BASELINE_NAMES = tuple(state.name.lower() for state in Baseline)


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        likely = nearest(name, sorted(available_timezones()))
        raise ValueError(f"got {name!r}, expected an IANA name such as {likely or 'Europe/Berlin'}") from None
    return name


def _increasing(edges_hz: tuple[float, ...]) -> tuple[float, ...]:
    for low, high in pairwise(edges_hz):
        if not 0 <= low < high < float("inf"):
            raise ValueError(f"got {low:g} before {high:g}, expected frequencies from 0 on that increase")
    return edges_hz


# Boundaries A/B, B/C, C/D of the RMS velocity on non-rotating parts, mm/s: ISO 20816-3:2022, tables A.1 and A.2.
# Group 1: above 300 kW, or electrical machines with shafts 315 mm high or more; group 2: above 15 kW, from 160 mm.
ISO_ZONES = {
    "iso20816-3-group1-rigid": (2.3, 4.5, 7.1),
    "iso20816-3-group1-flexible": (3.5, 7.1, 11.0),
    "iso20816-3-group2-rigid": (1.4, 2.8, 4.5),
    "iso20816-3-group2-flexible": (2.3, 4.5, 7.1),
}


def _boundaries(zones: Any) -> Any:
    """The boundaries of a group of machines by its name."""
    if isinstance(zones, str) and zones not in ISO_ZONES:
        expected = f"{', '.join(ISO_ZONES)}, or the boundaries [A/B, B/C, C/D] in mm/s"
        raise ValueError(f"got {zones!r}, expected {expected}")
    return ISO_ZONES.get(zones, zones) if isinstance(zones, str) else zones


def _rising(zones: tuple[float, float, float]) -> tuple[float, float, float]:
    if not 0 < zones[0] < zones[1] < zones[2] < float("inf"):
        raise ValueError(f"got {list(zones)}, expected boundaries [A/B, B/C, C/D] in mm/s that increase")
    return zones


Zones = Annotated[tuple[float, float, float], BeforeValidator(_boundaries), AfterValidator(_rising)]


class LimitSpec(BaseModel):
    """fleet.yaml's `limits:`: absolute limits of vibration, as ISO 20816 evaluates it.

    >>> limits = LimitSpec(amplitude="rms", machines={"pump 7": "iso20816-3-group2-rigid"})
    >>> limits.boundary_of("pump 7"), limits.boundary_of("fan 2")
    (4.5, inf)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    amplitude: Literal["rms", "peak"]  # what a band's number is: the RMS of the signal in it, or a sine's amplitude
    lines_per_band: Annotated[float, Field(ge=1)] | None = None  # peak: of which the number is the root mean square
    zones: Zones | None = None  # of all machines that have none of their own; None: no limit
    machines: dict[str, Zones] = {}
    lowest_hz: Annotated[float, Field(gt=0)] = 10.0
    highest_hz: Annotated[float, Field(gt=0)] = 1000.0

    @model_validator(mode="after")
    def _somebody_has_limits(self) -> LimitSpec:
        if self.zones is None and not self.machines:
            raise ValueError("got neither zones nor machines, expected limits for all machines or for some")
        if self.lowest_hz >= self.highest_hz:
            raise ValueError(f"got {self.lowest_hz:g} to {self.highest_hz:g} Hz, expected lowest_hz < highest_hz")
        if self.lines_per_band is not None and self.amplitude == "rms":
            raise ValueError("got lines_per_band with amplitude rms, expected it with peak only")
        return self

    def boundary_of(self, machine: str | None) -> float:
        """Boundary of zones C and D in mm/s; infinite where there is no limit. None: a machine that is not known."""
        zones = self.zones if machine is None else self.machines.get(machine, self.zones)
        return float("inf") if zones is None else zones[2]


class BearingSpec(BaseModel):
    """fleet.yaml's `bearings:`: geometry and speed of a machine's bearing, from which its fault frequencies follow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rolling_elements: Annotated[int, Field(ge=3, le=500)]
    diameter_ratio: Annotated[float, Field(gt=0, lt=1)]  # of a rolling element to the pitch circle
    contact_degrees: Annotated[float, Field(ge=0, lt=90)] = 0.0
    speed_rpm: Annotated[float, Field(gt=0)]  # of the shaft


class FleetSpec(BaseModel):
    """fleet.yaml: what the numbers of a data set mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["spectrum", "features"] = "spectrum"  # linear magnitudes, never negative; or any numbers
    bins: Annotated[int, Field(ge=1, le=65_536)] = 64
    band_edges_hz: Annotated[tuple[float, ...], AfterValidator(_increasing)] | None = (
        None  # one more than the bands of an axis
    )
    axes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None  # F = bands x axes, axis by axis
    feature_names: tuple[str, ...] | None = None  # of kind features: F names
    unit: str = "g"
    interval_seconds: Annotated[float, Field(gt=0)] | None = None
    timezone: Annotated[str, AfterValidator(_known_zone)] = "UTC"
    time: Literal["absolute", "relative"] = "absolute"
    limits: LimitSpec | None = None  # of vibration, for the detector absolute_limit
    bearings: dict[str, BearingSpec] | None = None  # by machine; "*": of all others
    maintenance: MaintenanceLayout | None = None  # of the source; a snapshot has none
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = "fleet"
    source: SourceLayout | None = None  # how the files hold it; None: in the form of the contract

    @model_validator(mode="before")
    @classmethod
    def _names_tell_the_bins(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "bins" in values:
            return values
        edges, names, axes = (values.get(key) for key in ("band_edges_hz", "feature_names", "axes"))
        if isinstance(edges, list | tuple) and len(edges) > 1:
            return values | {"bins": (len(edges) - 1) * len(axes if isinstance(axes, list | tuple) and axes else ("",))}
        return values | {"bins": len(names)} if isinstance(names, list | tuple) and names else values

    @model_validator(mode="after")
    def _names_fit_the_bins(self) -> FleetSpec:
        if self.axes is not None and (self.bins % len(self.axes) or len(set(self.axes)) < len(self.axes)):
            got = f"{self.bins} bins of axes {', '.join(self.axes)}"
            raise ValueError(f"got {got}, expected different axes with the same number of bands")
        edges, wanted = self.band_edges_hz, self.bins // len(self.axes or ("",)) + 1
        if edges is not None and len(edges) != wanted:
            raise ValueError(f"got {len(edges)} band_edges_hz, expected {wanted}: one more than an axis has bins")
        if self.feature_names is not None and len(self.feature_names) != self.bins:
            raise ValueError(f"got {len(self.feature_names)} feature_names, expected one per bin ({self.bins})")
        return self

    def band_hz(self, index: int) -> tuple[float, float] | None:
        """The band of a bin in Hz, where the edges are known."""
        bands = self.bins // len(self.axes or ("",))
        edges = self.band_edges_hz
        return None if edges is None or self.feature_names else (edges[index % bands], edges[index % bands + 1])

    def bearing_of(self, machine: str) -> BearingSpec | None:
        """The bearing of a machine, where it is known."""
        known = self.bearings or {}
        return known.get(machine, known.get("*"))

    def band_name(self, index: int) -> str:
        """A bin's name for people: the feature's name, or its band in Hz where the edges are known; and the axis.

        >>> FleetSpec(bins=2, band_edges_hz=(0, 100, 200)).band_name(1)
        '100-200 Hz'
        >>> FleetSpec(bins=4, band_edges_hz=(0, 100, 200), axes=("x", "y")).band_name(3)
        'y 100-200 Hz'
        """
        if self.feature_names:
            return self.feature_names[index]
        bands = self.bins // len(self.axes or ("",))
        axis, band = (f"{self.axes[index // bands]} ", index % bands) if self.axes else ("", index)
        if self.band_edges_hz and band + 1 < len(self.band_edges_hz):
            return f"{axis}{self.band_edges_hz[band]:.0f}-{self.band_edges_hz[band + 1]:.0f} Hz"
        return f"{axis}bin {band}"


def load_fleet_spec(path: Path) -> FleetSpec:
    """Read fleet.yaml.

    Raises:
        ContractError: no such file, or a key or value that the contract does not know; with the line.
    """
    try:
        data = path.read_bytes()
    except OSError:
        raise ContractError.of("fleet.yaml", got="no file", expected="a description of the fleet", where=path) from None
    return parse_fleet_spec(data, path)


def parse_fleet_spec(data: bytes, where: object) -> FleetSpec:
    """The bytes of a fleet.yaml as a checked object.

    Raises:
        ContractError: no YAML, or a key or value that the contract does not know; with the line.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ContractError.of("fleet.yaml", got="text that is not UTF-8", expected="UTF-8", where=where) from None
    spec, findings = checked_model(text, FleetSpec, str(where))
    if spec is None:
        raise findings[0].error()
    return spec


def spectra_schema(bins: int, context: Sequence[pa.Field] = ()) -> pa.Schema:
    """Schema of a day file: keys, one fixed-size list of float32 per row, then context columns."""
    return pa.schema(
        [
            pa.field("machine_id", MACHINE, nullable=False),
            pa.field("timestamp", TIME, nullable=False),
            pa.field("spectrum", pa.list_(pa.float32(), bins), nullable=False),
            *context,
        ]
    )


MAINTENANCE_SCHEMA = pa.schema(
    [
        pa.field("machine_id", pa.string(), nullable=False),
        pa.field("start", TIME, nullable=False),
        pa.field("end", TIME, nullable=False),
        pa.field("tag", pa.string(), nullable=False),
        pa.field("failure_mode", pa.string()),
        pa.field("note", pa.string()),
    ]
)
# What a simulation knows and only evaluation reads: from onset to end the machine is faulty, logged or not.
TRUTH_SCHEMA = pa.schema(
    [
        pa.field("machine_id", pa.string(), nullable=False),
        pa.field("onset", TIME, nullable=False),
        pa.field("end", TIME, nullable=False),
        pa.field("failure_mode", pa.string(), nullable=False),
        pa.field("logged", pa.bool_(), nullable=False),
    ]
)
# One row per failure of the log, its id and role kept for ever (data/raw/failures.parquet, written by ingest).
FAILURE_SCHEMA = pa.schema(
    [
        pa.field("failure_id", pa.string(), nullable=False),
        pa.field("machine_id", pa.string(), nullable=False),
        pa.field("time", TIME, nullable=False),
        pa.field("end", TIME, nullable=False),
        pa.field("failure_mode", pa.string()),
        pa.field("role", pa.string(), nullable=False),  # tune | test
    ]
)

# What people answered to alerts (feedback.parquet of a data set); one that nobody closed lasts until the newest row.
FEEDBACK_SCHEMA = pa.schema(
    [
        pa.field("machine_id", pa.string(), nullable=False),
        pa.field("opened", TIME, nullable=False),
        pa.field("closed", TIME),
        pa.field("state", pa.string(), nullable=False),  # open | confirmed | dismissed
    ]
)

KEY_FIELDS = (
    pa.field("file", TEXT, nullable=False),
    pa.field("row", pa.int32(), nullable=False),
    pa.field("machine_id", MACHINE, nullable=False),
    pa.field("timestamp", TIME, nullable=False),
)
# data/status/validate.parquet: facts per row, and why a row is set aside. A quarantined row is used for nothing: its
# numbers, time or unit are wrong. A suspect row may show a failing sensor, or the failure: no model learns from it, and
# it is scored and judged as any other.
VALIDATE_SCHEMA = pa.schema(
    [
        *KEY_FIELDS,
        pa.field("nonfinite", pa.int32()),  # bins that are NaN or infinite
        pa.field("negative", pa.int32()),  # bins below zero
        pa.field("energy", pa.float32()),  # root of the sum of squares, in the sensor's unit
        pa.field("peak", pa.float32()),  # largest magnitude
        pa.field("centroid", pa.float32()),  # mean bin number weighted by magnitude
        pa.field("top_share", pa.float32()),  # of the largest bin in the sum
        pa.field("relative_range", pa.float32()),  # (max - min) / max
        pa.field("clipped", pa.int32()),  # bins that share the largest magnitude, where several do and not all
        pa.field("repeats", pa.int32()),  # spectra before this one, of the same machine, that are equal to it
        pa.field("seconds_since_previous", pa.float64()),
        pa.field("status", TEXT, nullable=False),  # ok | suspect | quarantined
        pa.field("reason", TEXT, nullable=False),  # empty, or the expectations that failed, joined by "+"
    ]
)
# data/validation/days.parquet: every day of every machine against the machine's other days.
DAYS_SCHEMA = pa.schema(
    [
        pa.field("machine_id", MACHINE, nullable=False),
        pa.field("day", pa.date32(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("expected_rows", pa.float64()),  # by the interval of fleet.yaml
        pa.field("missing_share", pa.float64()),
        pa.field("energy", pa.float64()),  # median
        pa.field("usual_energy", pa.float64()),  # median of the machine's days
        pa.field("usual_share", pa.float64()),  # energy over usual energy
        pa.field("unit_factor", pa.float64()),  # 1, or 1000 or 0.001 where the day is in another unit
        pa.field("gain_step", pa.float64()),  # factor of all bins from this day on; 1: none
        pa.field("band_shift", pa.float64()),  # bins; 0: none
        pa.field("band_stretch", pa.float64()),  # 1: none
        pa.field("findings", pa.string(), nullable=False),  # rules of the suite `days` that fail, joined by "+"
        pa.field("of_the_plant", pa.string(), nullable=False),  # those of them that most machines have on this day
    ]
)
# data/status/split.parquet
SPLIT_SCHEMA = pa.schema(
    [
        *KEY_FIELDS,
        pa.field("log_status", TEXT, nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("role", TEXT, nullable=False),
        pa.field("label", TEXT, nullable=False),
        pa.field("failure_id", TEXT),  # of the horizon that the row lies in
    ]
)
# data/status/clean.parquet: the same keys, then what the statistics removed.
CLEAN_SCHEMA = pa.schema(
    [
        *KEY_FIELDS,
        pa.field("evidence", pa.float32()),  # of the row's episode, robust deviations; null where nothing can be told
        pa.field("removed", pa.bool_(), nullable=False),
        pa.field("reason", TEXT, nullable=False),  # empty, residual (the statistics) or correction (a person)
    ]
)


ENSEMBLE = "ensemble"  # stands beside the names of detectors wherever there are scores


def score_log_schema(members: Sequence[str]) -> pa.Schema:
    """A row per spectrum: score (float64, higher is more anomalous) and tail probability per member and ensemble."""
    fields = [*KEY_FIELDS, pa.field("epoch", pa.int32(), nullable=False), pa.field("baseline", TEXT)]
    for member in (*members, ENSEMBLE):
        fields += [pa.field(f"score_{member}", pa.float64()), pa.field(f"tail_{member}", pa.float64())]
    fields += [
        pa.field("tier", TEXT, nullable=False),  # none | low | page, of the release's own detector
        pa.field("top_bins", pa.list_(pa.int32())),  # largest shares first; null below tier low
        pa.field("release", TEXT, nullable=False),
    ]
    return pa.schema(fields)


def spectra_view(column: pa.Array | pa.ChunkedArray, bins: int, where: object = "spectrum") -> FloatNF:
    """The (N, F) float32 array inside a spectrum column: a view for one chunk, never a loop over rows.

    Raises:
        ContractError: null rows, or another number of bins.

    >>> flat = pa.array(np.arange(6, dtype=np.float32))
    >>> spectra_view(pa.FixedSizeListArray.from_arrays(flat, 3), 3).shape
    (2, 3)
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # no chunk at all
            return np.empty((0, bins), np.float32)
    if column.null_count:
        raise ContractError.of("spectrum", got=f"{column.null_count} null rows", expected="none", where=where)
    kind = column.type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32() or kind.list_size != bins:
        expected = f"fixed_size_list<float>[{bins}]"
        raise ContractError.of("type of spectrum", got=kind, expected=expected, where=where)
    # flatten, not values: it honours the offset of a slice
    flat = column.flatten()
    return np.asarray(flat.to_numpy(zero_copy_only=flat.null_count == 0)).reshape(-1, bins)


def energy_is_finite(spectra_NF: FloatNF) -> BoolN:
    """Rows (N,) without NaN, infinity, or magnitudes whose energy float32 cannot hold (an error code, say).

    >>> energy_is_finite(np.array([[1, 2], [np.nan, 1], [3.4e38, 1]], np.float32)).tolist()
    [True, False, False]
    """
    with np.errstate(over="ignore"):
        return np.asarray(np.isfinite(np.einsum("nf,nf->n", spectra_NF, spectra_NF)))


def spectra_column(spectra_NF: FloatNF) -> pa.FixedSizeListArray:
    """A spectrum column over the array's own memory."""
    contiguous = np.ascontiguousarray(spectra_NF, dtype=np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(contiguous.reshape(-1)), contiguous.shape[1])


def dictionary_column(codes_N: npt.NDArray[np.integer], names: Sequence[str], kind: pa.DataType = TEXT) -> pa.Array:
    """A dictionary-encoded text column from integer codes; a negative code is null.

    Raises:
        ContractError: more names than the codes of this kind can tell apart.
    """
    most = np.iinfo(kind.index_type.to_pandas_dtype()).max + 1
    if len(names) > most:  # a cast would wrap, and give rows other names
        raise ContractError.of("names of a text column", got=len(names), expected=f"at most {most}", where=kind)
    codes = pa.array(codes_N.astype(kind.index_type.to_pandas_dtype()), mask=codes_N < 0)
    return pa.DictionaryArray.from_arrays(codes, pa.array(list(names), pa.string())).cast(kind)


def codes_and_names(column: pa.Array | pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Integer codes (null: -1) and names of a text column, dictionary-encoded or not.

    >>> codes_and_names(pa.chunked_array([pa.array(["a", "b"]), pa.array(["b", None])]))
    (array([ 0,  1,  1, -1], dtype=int32), ['a', 'b'])
    """
    column = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    if pa.types.is_dictionary(column.type):
        combined = column.unify_dictionaries().combine_chunks()  # codes differ between files until unified
    else:
        combined = column.dictionary_encode().combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        if combined.num_chunks == 0:
            return np.empty(0, np.int32), []
        combined = combined.chunk(0)
    codes = combined.indices.cast(pa.int32()).fill_null(-1).to_numpy(zero_copy_only=False)
    return codes, [str(name) for name in combined.dictionary.to_pylist()]


def times_us(column: pa.Array | pa.ChunkedArray) -> IntN:
    """Microseconds since 1970 (UTC) as int64."""
    return np.asarray(column.cast(TIME).cast(pa.int64()).to_numpy())


def time_column(times_us_N: npt.NDArray[np.int64]) -> pa.Array:
    """A timestamp column from microseconds since 1970 (UTC)."""
    return pa.array(times_us_N, pa.int64()).cast(TIME)
