"""Waveform files as tables of the contract: a row per window, its time that of its first sample.

Shape legend: S samples, C channels, W windows, F bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.bands import BandPlan, band_plan, windowed_bands
from pipeline.clock import Clock, is_text
from pipeline.errors import ContractError
from pipeline.landing.contract import context_facts, raise_if_swapped, record_start
from pipeline.landing.csv_tables import csv_tables, look_at_csv
from pipeline.landing.forms import Form, is_number
from pipeline.landing.places import Place, SourceFile
from pipeline.landing.signals import (
    Signal,
    chosen_channels,
    looks_like_time,
    mat_signal,
    npy_signal,
    wav_signal,
)
from pipeline.layout import SourceLayout, WaveformLayout
from pipeline.schema import FloatNF, spectra_column, time_column
from pipeline.units import Conversion

WAVEFORM_SUFFIXES = (".wav", ".mat", ".npy")


@dataclass(frozen=True)
class Record:
    """A waveform file that has been looked at."""

    signal: Signal
    machine: str | None  # what a column tells
    first_time: pa.Array | None


def look_at_record(place: Place, file: SourceFile, layout: SourceLayout) -> Record:
    """Channels and rate of a waveform file, and what its first row tells.

    Raises:
        ContractError: the file is of no known kind, damaged or empty.
    """
    where, name = place.where(file.name), file.name.lower()
    if name.endswith(".wav"):
        return Record(wav_signal(lambda: place.open(file.name), where), None, None)
    if name.endswith(".npy"):
        return Record(npy_signal(lambda: place.open(file.name), file.size, where), None, None)
    if name.endswith(".mat"):
        return Record(mat_signal(lambda: place.open(file.name), file.size, where), None, None)
    return _csv_record(place, file, layout, where)


def _csv_record(place: Place, file: SourceFile, layout: SourceLayout, where: str) -> Record:
    form = look_at_csv(place, file.name, layout.delimiter, layout.decimal, header=None)
    columns = layout.columns
    keys = {columns.machine_id, columns.timestamp}
    asked = _names(layout.waveform)
    names = [name for name in form.names if name not in keys]
    if asked is None:
        names = [name for name in names if not (form.header and looks_like_time(name))]
        names = [name for name in names if form.types.get(name) is None or is_number(form.types[name])]
    if not names:
        got = f"columns {', '.join(form.names)[:200]}"
        raise ContractError.of("CSV", got=got, expected="samples", where=where)
    facts = [name for name in form.names if name in keys]
    first = next(csv_tables(place, file.name, form, dict.fromkeys(facts, pa.string()), facts, layout.decimal), None)
    machine = first[columns.machine_id][0].as_py() if first is not None and columns.machine_id in facts else None
    times = first[columns.timestamp].slice(0, 1) if first is not None and columns.timestamp in facts else None
    types = dict.fromkeys(names, pa.float32())

    def blocks(wanted: Sequence[int]) -> Iterator[FloatNF]:
        chosen = [names[channel] for channel in wanted]
        for table in csv_tables(place, file.name, form, types, chosen, layout.decimal):
            yield np.stack([np.asarray(table[name].to_numpy()) for name in chosen], axis=1)

    return Record(Signal(tuple(names), None, blocks), machine or None, times)


def _names(layout: WaveformLayout | None) -> tuple[str, ...] | None:
    channels = layout.channels if layout is not None else None
    return tuple(channels.values()) if isinstance(channels, dict) else channels


def waveform_form(
    place: Place, file: SourceFile, layout: SourceLayout, facts: Mapping[str, str], sequence: int
) -> Form:
    """How a waveform file becomes band spectra.

    Raises:
        ContractError: see look_at_record; no machine, no time, no rate, a channel that is not there.
    """
    where, waveform = place.where(file.name), layout.waveform or WaveformLayout()
    record = look_at_record(place, file, layout)
    if record.machine is None and "machine_id" not in facts and layout.machine_id is None:
        expected = "a machine: --path-pattern with {machine_id}, or --machine NAME"
        raise ContractError.of("machine_id", got="no name", expected=expected, where=where)
    if record.first_time is None and "timestamp" not in facts and layout.start is None:
        expected = "times: --path-pattern with {timestamp}, or --start and --interval"
        raise ContractError.of("timestamp", got="no time of the record", expected=expected, where=where)
    chosen = chosen_channels(record.signal.channels, _names(waveform), where)
    plan = _plan(record.signal, waveform, where)
    several = len(chosen) > 1
    names = tuple(waveform.channels) if isinstance(waveform.channels, dict) else None
    if names is None and several:
        names = tuple(record.signal.channels[channel] for channel in chosen)
    return Form(
        kind="spectrum",
        bins=waveform.bands * len(chosen),
        axes=names if several or isinstance(waveform.channels, dict) else None,
        edges_hz=plan.edges_hz,
        facts=facts,
        channels=tuple(chosen),
        sequence=sequence,
    )


def _plan(signal: Signal, layout: WaveformLayout, where: str) -> BandPlan:
    rate = layout.sample_rate_hz or signal.rate_hz
    if rate is None:
        expected = "waveform.sample_rate_hz (--sample-rate)"
        raise ContractError.of("sample rate", got="none", expected=expected, where=where)
    return band_plan(layout, rate, where)


def waveform_tables(
    place: Place,
    file: SourceFile,
    form: Form,
    layout: SourceLayout,
    clock: Clock,
    unit: Conversion,
    context: Sequence[str] | None,
) -> Iterator[pa.Table]:
    """The windows of a waveform file as tables of the contract.

    Raises:
        ContractError: the file is damaged, or shorter than one window.
    """
    where, waveform = place.where(file.name), layout.waveform or WaveformLayout()
    record = look_at_record(place, file, layout)
    machine = form.facts.get("machine_id") or record.machine or layout.machine_id
    start_us = _start(record, form, layout, clock, where, machine)
    rate = waveform.sample_rate_hz or record.signal.rate_hz or 1.0
    plan = _plan(record.signal, waveform, where)
    begin = 0
    names = context_facts(form) if context is None else [name for name in context if name in context_facts(form)]
    names = ["axis", *names] if "axis" in form.facts else names
    blocks = record.signal.blocks(form.channels)
    for part in windowed_bands(blocks, waveform, plan) if context is None else _window_counts(blocks, waveform):
        count = part if isinstance(part, int) else len(part)
        window_W = np.arange(begin, begin + count)
        time_W = start_us + np.rint(window_W * (waveform.hop_samples / rate * 1e6)).astype(np.int64)
        arrays = {"machine_id": pa.repeat(pa.scalar(machine, pa.string()), count), "timestamp": time_column(time_W)}
        if not isinstance(part, int):
            arrays["spectrum"] = spectra_column(unit.apply(part))
        for name in names:
            arrays[name] = pa.repeat(pa.scalar(form.facts[name], pa.string()), count)
        yield pa.table(arrays)
        begin += count
    if not begin:
        expected = f"at least one window of {waveform.window_samples} samples (--window)"
        raise ContractError.of("waveform", got="fewer samples", expected=expected, where=where)


def _window_counts(blocks: Iterable[FloatNF], layout: WaveformLayout) -> Iterator[int]:
    """How many windows a signal holds: keys need no spectra."""
    samples = sum(len(block_SC) for block_SC in blocks)
    if samples >= layout.window_samples:
        yield (samples - layout.window_samples) // layout.hop_samples + 1


def _start(record: Record, form: Form, layout: SourceLayout, clock: Clock, where: str, machine: str | None) -> int:
    if record.first_time is None or "timestamp" in form.facts:
        return record_start(form, layout, clock, where)
    names = pa.array([machine or ""])
    try:
        found = clock.to_utc_us(record.first_time, where, form=layout.timestamp_format, at=lambda _: "the first row")
    except ContractError:
        if is_text(record.first_time.type):
            raise_if_swapped(record.first_time, names, where)
        raise
    return int(found[0])


def is_waveform(name: str, layout: SourceLayout) -> bool:
    """Whether a file is read as a waveform; a CSV is one where the layout gives its sample rate.

    >>> is_waveform("a/1.WAV", SourceLayout()), is_waveform("a/1.csv", SourceLayout())
    (True, False)
    """
    if name.lower().endswith(WAVEFORM_SUFFIXES):
        return True
    if name.lower().endswith((".parquet", ".pq")):
        return False
    stated = layout.waveform is not None and layout.waveform.sample_rate_hz is not None
    return layout.format == "waveform" or (layout.format == "auto" and stated)
