"""How a plant's files hold its data: fleet.yaml's `source:` and `maintenance:`, or options that stand in for them.

Nothing here reads a file: names of columns, the form of waveforms, what paths tell, and how times are written.
"""

from __future__ import annotations

import datetime as dt
import re
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

Columns = str | tuple[str, ...]  # a name, a pattern such as "amp_*", or names in order
Name = Annotated[str, Field(min_length=1)]
Hertz = Annotated[float, Field(ge=0)]

ALL_OTHERS = "*"  # as a new name of `context`: every other scalar column, under its own name
EPOCHS = {"epoch_s": 1_000_000.0, "epoch_ms": 1_000.0, "epoch_us": 1.0}  # microseconds per unit
PATH_NAME = re.compile(r"\{([^{}]*)\}")


class Tag(StrEnum):
    """Tags of a maintenance log."""

    HEALTHY = "healthy"
    FAILURE = "failure"
    REPAIR = "repair"
    SENSOR = "sensor"
    FIRMWARE = "firmware"
    OFF = "off"


class _Layout(BaseModel):
    """Frozen, no unknown keys, no infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ColumnLayout(_Layout):
    """The names that a plant's tables give to the contract's columns.

    >>> ColumnLayout(machine_id="Asset", spectrum="amp_*").timestamp
    'timestamp'
    """

    machine_id: Name = "machine_id"
    timestamp: Name = "timestamp"
    spectrum: Columns | dict[str, Columns] | None = None  # None: `spectrum` lists, bin_00.. or f_000..; or per axis
    axis: Name | None = None  # files hold a row per axis: the column that names it
    context: dict[Name, Name] | None = None  # new name: name in the files; None: every other scalar column


class WaveformLayout(_Layout):
    """How raw vibration becomes band spectra.

    >>> WaveformLayout(window_samples=1024, overlap=0.5).hop_samples
    512
    """

    sample_rate_hz: Annotated[float, Field(gt=0)] | None = None  # None: the file tells (WAV)
    window_samples: Annotated[int, Field(ge=16, le=1 << 22)] = 2048
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.0
    bands: Annotated[int, Field(ge=8, le=4096)] = 64
    band: Literal["rms", "peak"] = "rms"
    min_hz: Hertz = 0.0
    max_hz: Hertz | None = None  # None: half the sample rate
    channels: tuple[Name, ...] | dict[Name, Name] | None = None  # names, numbers or patterns; None: all

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> WaveformLayout:
        if self.max_hz is not None and self.max_hz <= self.min_hz:
            raise ValueError(f"got min_hz {self.min_hz:g} and max_hz {self.max_hz:g}, expected min_hz < max_hz")
        return self

    @property
    def hop_samples(self) -> int:
        """Samples from the start of one window to that of the next."""
        return max(1, round(self.window_samples * (1 - self.overlap)))


class SourceLayout(_Layout):
    """All that Hearken has to be told to read a plant's files; most plants need two or three lines of it."""

    files: Name = "**/*"  # which files below the folder
    format: Literal["auto", "table", "waveform"] = "auto"
    path: str | None = None  # what paths tell: "{machine_id}/{timestamp}.csv"
    timestamp_format: str | None = None  # strptime, epoch_s, epoch_ms or epoch_us; None: ISO 8601
    machine_id: Name | None = None  # of all rows, where the files tell none
    start: dt.datetime | None = None  # of rows without times: start + index * interval
    interval_seconds: Annotated[float, Field(gt=0)] | None = None
    unit: str | None = None  # what the files hold; converted to fleet.yaml's `unit`
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None  # of CSV; None: looked at
    decimal: Literal[".", ","] = "."
    columns: ColumnLayout = ColumnLayout()
    waveform: WaveformLayout | None = None

    @field_validator("path")
    @classmethod
    def _path_can_be_read(cls, path: str | None) -> str | None:
        if path is not None:
            path_pattern(path)
        return path

    def facts_of(self, path: str) -> dict[str, str] | None:
        """What a path below the source tells; None where it does not fit the pattern.

        >>> layout = SourceLayout(path="{machine_id}/{timestamp}.csv", timestamp_format="%Y-%m-%d")
        >>> layout.facts_of("pump 7/2024-03-01.csv")
        {'machine_id': 'pump 7', 'timestamp': '2024-03-01'}
        """
        if self.path is None:
            return {}
        slashes = (self.timestamp_format or "").count("/")
        found = path_pattern(self.path, slashes).fullmatch(path)
        return None if found is None else found.groupdict()


class MaintenanceColumns(_Layout):
    """The names that a plant's own log gives to the columns of the contract."""

    machine_id: Name = "machine_id"
    start: Name = "start"
    end: Name = "end"
    tag: Name = "tag"
    failure_mode: Name = "failure_mode"
    note: Name = "note"


def _yaml_off(tag: object) -> object:
    return Tag.OFF if tag is False else tag  # YAML reads a bare `off` so


class MaintenanceLayout(_Layout):
    """fleet.yaml's `maintenance:` section: how a plant's own log is written.

    >>> MaintenanceLayout(tags={"breakdown": "failure"}).tags["breakdown"].value
    'failure'
    """

    columns: MaintenanceColumns = MaintenanceColumns()
    tags: dict[str, Annotated[Tag, BeforeValidator(_yaml_off)]] = {}  # the log's own word: what it means
    timestamp_format: str | None = None  # strptime; None: ISO 8601
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = (
        None  # None: , ; or tab, as the first line has
    )


def path_pattern(template: str, slashes_in_timestamp: int = 0) -> re.Pattern[str]:
    """A template of paths as a regular expression; `{_}` is ignored.

    Raises:
        ValueError: a name twice, or one that is no plain word.
    """
    parts, seen, end = list[str](), set[str](), 0
    for found in PATH_NAME.finditer(template):
        name = found.group(1)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name in seen:
            raise ValueError(f"got {{{name}}} in the path, expected each name once, of letters, digits and _")
        parts.append(re.escape(template[end : found.start()]))
        any_part = r"\d+" if name == "sequence" else "[^/]+?"
        if name == "timestamp":
            any_part += "/[^/]+?" * slashes_in_timestamp
        parts.append(f"(?:{any_part})" if name == "_" else f"(?P<{name}>{any_part})")
        seen |= {name} - {"_"}
        end = found.end()
    parts.append(re.escape(template[end:]))
    if "{" in template[end:] or "}" in template[end:]:
        raise ValueError(f"got {template!r}, expected names in pairs of braces")
    return re.compile("".join(parts), re.DOTALL)
