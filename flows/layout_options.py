"""Options of `ingest` and `backtest` that say how files hold their data, in place of fleet.yaml's `source:` section."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.layout import SourceLayout

PANEL = "How the files hold the data (in place of fleet.yaml's `source`)"

Machine = Annotated[
    str | None, typer.Option("--machine", help="Name for all rows where files tell none.", rich_help_panel=PANEL)
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="new=old, repeated: machine_id=Asset, timestamp=Time, spectrum=amp_*, spectrum.x=x_*, axis=Axis, "
        "or any context.",
        rich_help_panel=PANEL,
    ),
]
PathPattern = Annotated[
    str | None, typer.Option(help="What paths tell: {machine_id}/{timestamp}.csv", rich_help_panel=PANEL)
]
TimestampFormat = Annotated[
    str | None, typer.Option(help="strptime, or epoch_s, epoch_ms, epoch_us.", rich_help_panel=PANEL)
]
Files = Annotated[
    str | None, typer.Option(help="Which files below the folder, such as **/*.csv", rich_help_panel=PANEL)
]
Format = Annotated[str | None, typer.Option("--format", help="auto, table or waveform.", rich_help_panel=PANEL)]
Kind = Annotated[
    str | None, typer.Option(help="spectrum, or features: any numbers, all numeric columns.", rich_help_panel=PANEL)
]
Start = Annotated[
    str | None, typer.Option(help="First time of rows or records without times (ISO 8601).", rich_help_panel=PANEL)
]
Interval = Annotated[float | None, typer.Option(help="Seconds from each such row to the next.", rich_help_panel=PANEL)]
UnitIn = Annotated[str | None, typer.Option(help="Unit that the files hold.", rich_help_panel=PANEL)]
Unit = Annotated[str | None, typer.Option(help="Unit to convert to; default: fleet.yaml's.", rich_help_panel=PANEL)]
Decimal = Annotated[str | None, typer.Option(help="Decimal mark of CSV: . or ,", rich_help_panel=PANEL)]
SampleRate = Annotated[float | None, typer.Option(help="Hz, of waveforms that do not tell it.", rich_help_panel=PANEL)]
Window = Annotated[int | None, typer.Option(help="Samples of a window.", rich_help_panel=PANEL)]
Overlap = Annotated[float | None, typer.Option(help="Of windows, 0 to below 1.", rich_help_panel=PANEL)]
Bands = Annotated[int | None, typer.Option(help="Bands of each spectrum, 8 to 4096.", rich_help_panel=PANEL)]
Band = Annotated[str | None, typer.Option(help="rms or peak of the lines in a band.", rich_help_panel=PANEL)]
Channel = Annotated[
    list[str] | None,
    typer.Option("--channel", help="Of waveforms, repeated: a name, a pattern or axis=name.", rich_help_panel=PANEL),
]


# the command's parameter, what SourceLayout or WaveformLayout calls it, and its option
OPTIONS: dict[str, tuple[str | None, Any]] = {
    "machine": ("machine_id", Machine),
    "map_": (None, Map),
    "path_pattern": ("path", PathPattern),
    "timestamp_format": ("timestamp_format", TimestampFormat),
    "files": ("files", Files),
    "format_": ("format", Format),
    "kind": (None, Kind),
    "start": ("start", Start),
    "interval": ("interval_seconds", Interval),
    "unit_in": ("unit", UnitIn),
    "unit": (None, Unit),
    "decimal": ("decimal", Decimal),
    "sample_rate": ("sample_rate_hz", SampleRate),
    "window": ("window_samples", Window),
    "overlap": ("overlap", Overlap),
    "bands": ("bands", Bands),
    "band": ("band", Band),
    "channel": (None, Channel),
}


@dataclass(frozen=True)
class GivenLayout:
    """What these options were given as."""

    values: dict[str, Any]

    def layout(self, source: str | Path) -> SourceLayout | None:
        """See `layout_of`."""
        named = {name: self.values[option] for option, (name, _) in OPTIONS.items() if name is not None}
        return layout_of(source, self.values["map_"], self.values["channel"], **named)

    @property
    def unit(self) -> str | None:
        """Unit to convert to."""
        unit: str | None = self.values["unit"]
        return unit

    @property
    def kind(self) -> Literal["spectrum", "features"] | None:
        """See `checked_kind`."""
        return checked_kind(self.values["kind"])


def takes_layout(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options; it takes them as one, `given`."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "given"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    ours = [inspect.Parameter(name, keyword, default=None, annotation=kind) for name, (_, kind) in OPTIONS.items()]

    @functools.wraps(command)
    def taking(**values: Any) -> None:
        given = GivenLayout({name: values.pop(name) for name in OPTIONS})
        command(**values, given=given)

    every = [*own, *ours]
    taking.__signature__ = signature.replace(parameters=every)  # type: ignore[attr-defined]
    taking.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
    return taking


def layout_of(
    source: str | Path, mapped: Sequence[str] | None, channels: Sequence[str] | None, **given: Any
) -> SourceLayout | None:
    """What fleet.yaml says of the source's files with what the options say instead; None where neither says anything.

    Raises:
        UserError: an option that cannot be understood.
    """
    from pipeline.landing import source_spec
    from pipeline.layout import SourceLayout, WaveformLayout

    stated = {name: value for name, value in given.items() if value is not None}
    waveform = {name: stated.pop(name) for name in list(stated) if name in WaveformLayout.model_fields}
    if channels:
        waveform["channels"] = _channels(channels)
    if not stated and not waveform and not mapped:
        return None
    spec = source_spec(source)
    base = SourceLayout() if spec is None or spec.source is None else spec.source
    values = base.model_dump(exclude_unset=True) | stated
    if waveform:
        values["waveform"] = (values.get("waveform") or {}) | waveform
    if mapped:
        values["columns"] = _columns(values.get("columns", {}), mapped)
    return _checked(values)


def checked_kind(kind: str | None) -> Literal["spectrum", "features"] | None:
    """The option `--kind`.

    Raises:
        UserError: another word.
    """
    known: dict[str | None, Literal["spectrum", "features"] | None]
    known = {"spectrum": "spectrum", "features": "features", None: None}
    if kind in known:
        return known[kind]
    raise UserError(f"--kind: got {kind!r}, expected spectrum or features.")


def _checked(values: dict[str, Any]) -> SourceLayout:
    from pydantic import ValidationError

    from pipeline.layout import SourceLayout

    options = {"machine_id": "machine", "path": "path-pattern", "unit": "unit-in", "interval_seconds": "interval"}
    options |= {"sample_rate_hz": "sample-rate", "window_samples": "window", "columns": "map", "channels": "channel"}
    try:
        return SourceLayout.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = next((str(part) for part in reversed(first["loc"]) if str(part) in options), None)
        option = options[name] if name else str(first["loc"][-1] if first["loc"] else "source").replace("_", "-")
        message = str(first["msg"]).removeprefix("Value error, ")
        raise UserError(f"--{option}: got {first['input']!r}, expected: {message}.") from None


def _pairs(option: str, items: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for item in items:
        new, equals, old = item.partition("=")
        if not (new and equals and old):
            raise UserError(f"--{option}: got {item!r}, expected new=old, such as machine_id=Asset.")
        pairs.append((new, old))
    return pairs


def _columns(stated: dict[str, Any], mapped: Sequence[str]) -> dict[str, Any]:
    from pipeline.layout import ALL_OTHERS, ColumnLayout

    columns = dict(stated)
    for new, old in _pairs("map", mapped):
        if new.startswith("spectrum."):
            known = columns.get("spectrum")
            columns["spectrum"] = (known if isinstance(known, dict) else {}) | {new.removeprefix("spectrum."): old}
        elif new in ColumnLayout.model_fields and new != "context":
            columns[new] = old
        else:
            columns["context"] = (columns.get("context") or {ALL_OTHERS: ALL_OTHERS}) | {new: old}
    return columns


def _channels(items: Sequence[str]) -> tuple[str, ...] | dict[str, str]:
    if any("=" in item for item in items):
        return dict(_pairs("channel", items))
    return tuple(items)
