"""waveforms: WAV, .npy, .mat and CSV of the same signal give the same spectra, at the times of their windows."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat, wavfile

from pipeline.errors import ContractError
from pipeline.ingest import IngestSummary, ingest
from pipeline.landing import open_source
from pipeline.landing.signals import wav_signal
from pipeline.layout import SourceLayout
from pipeline.params import IngestParams
from pipeline.schema import load_fleet_spec, spectra_view
from pipeline.store import day_files, read_table

RATE, SAMPLES = 12_800, 5000
SIGNAL = (np.random.default_rng(1).standard_normal((SAMPLES, 2)) * [1, 3]).astype(np.float32) / 20
WINDOWS = {"window_samples": 1024, "bands": 16, "overlap": 0.5}
PATH = "{machine_id}/{timestamp}.{_}"


def layout(**given: object) -> SourceLayout:
    waveform = {**WINDOWS, "sample_rate_hz": RATE, **given.pop("waveform", {})}
    values = {"path": PATH, "timestamp_format": "%Y%m%d_%H%M%S", "waveform": waveform} | given
    return SourceLayout.model_validate({key: value for key, value in values.items() if value is not None})


def spectra_of(source: Path, stated: SourceLayout | None = None) -> tuple[pd.DataFrame, np.ndarray]:
    opened = open_source(source, timezone="UTC", layout=stated or layout())
    assert opened.problems == {}
    tables = [table for file in opened.files for table in opened.tables(file)]
    frame = pd.concat([table.drop_columns(["spectrum"]).to_pandas() for table in tables], ignore_index=True)
    kinds = [table.schema.field("spectrum").type.list_size for table in tables]
    return frame, np.concatenate([spectra_view(t["spectrum"], k) for t, k in zip(tables, kinds, strict=True)])


def save(kind: str, folder: Path, signal: np.ndarray = SIGNAL) -> Path:
    """The signal in a file of a kind, in a folder of its own."""
    path = folder / kind.replace(" ", "_") / "pump 1" / "20240301_060000.x"
    path.parent.mkdir(parents=True)
    if kind.startswith("wav"):
        path = path.with_suffix(".wav")
        values = {"float": signal, "int16": (signal * 2**15).round().astype(np.int16)}
        values |= {"int32": (signal.astype(float) * 2**31).astype(np.int32), "double": signal.astype(np.float64)}
        values |= {"uint8": (signal * 128 + 128).round().astype(np.uint8)}
        wavfile.write(path, RATE, values[kind.split()[1]])
    elif kind.startswith("npy"):
        path = path.with_suffix(".npy")
        np.save(path, {"rows": signal, "columns": np.asfortranarray(signal), "double": signal.astype(float)}[kind[4:]])
    elif kind.startswith("mat"):
        path = path.with_suffix(".mat")
        names = {"X097_DE_time": signal[:, :1], "X097_FE_time": signal[:, 1:], "X097RPM": 1797, "who": "me"}
        savemat(path, names, do_compression=kind == "mat zip", format="4" if kind == "mat 4" else "5")
    else:
        path = path.with_suffix(".csv")
        frame = pd.DataFrame(signal, columns=["acc_x", "acc_y"])
        if kind == "csv time":
            frame.insert(0, "Time (s)", np.arange(len(signal)) / RATE)
        frame.to_csv(path, index=False, header=kind != "csv bare", sep=" " if kind == "csv bare" else ",")
    return path.parents[1]


KINDS = ["wav float", "wav double", "wav int32", "npy rows", "npy columns", "npy double", "mat 5", "mat zip", "mat 4"]
KINDS += ["csv plain", "csv bare", "csv time", "wav int16", "wav uint8"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_spectra(tmp_path: Path, kind: str) -> None:
    expected = spectra_of(save("npy rows", tmp_path / "expected"))
    frame, spectra = spectra_of(
        save(kind, tmp_path), layout(waveform={"sample_rate_hz": None if "wav" in kind else RATE})
    )
    assert spectra.shape == (8, 32)
    coarse = {"wav uint8": 1e-2, "wav int16": 1e-4}.get(kind, 1e-6)
    assert np.allclose(spectra, expected[1], atol=coarse)
    assert set(frame.machine_id) == {"pump 1"}
    first = pd.Timestamp("2024-03-01T06:00:00Z")
    assert frame.timestamp.tolist() == [first + pd.Timedelta(microseconds=n * 40_000) for n in range(8)]


def test_24_bit_and_extensible_wav_as_other_programmes_write_it(tmp_path: Path) -> None:
    counts = np.array([0, 1, -1, 2**23 - 1, -(2**23)], np.int32)
    data = b"".join(int(count).to_bytes(3, "little", signed=True) for count in counts)
    guid = struct.pack("<H", 1) + bytes(14)
    form = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 8000, 24_000, 3, 24, 22, 24, 0) + guid
    chunks = b"LIST" + struct.pack("<I", 3) + b"abc\0" + b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"data" + struct.pack("<I", len(data)) + data
    content = b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks
    signal = wav_signal(lambda: io.BytesIO(content), "test")
    assert (signal.channels, signal.rate_hz) == (("0",), 8000.0)
    assert np.concatenate(list(signal.blocks([0])))[:, 0].tolist() == (counts / 2**23).astype(np.float32).tolist()


def test_channels_are_chosen_by_name_pattern_or_number_and_may_be_axes(tmp_path: Path) -> None:
    both = spectra_of(save("npy rows", tmp_path / "both"))[1]
    mat = save("mat 5", tmp_path)
    one = spectra_of(mat, layout(waveform={"channels": ["*_FE_time"]}))[1]
    assert np.allclose(one, both[:, 16:])
    swapped = layout(waveform={"channels": {"drive": "*_FE_time", "fan": "X097_DE_time"}})
    assert np.allclose(spectra_of(mat, swapped)[1], np.concatenate([both[:, 16:], both[:, :16]], axis=1))
    ingest(mat, tmp_path / "raw", IngestParams(timezone="UTC"), horizon_hours=1, tune_share=0.5, layout=swapped)
    spec = load_fleet_spec(tmp_path / "raw" / "fleet.yaml")
    assert (spec.axes, spec.bins, spec.band_name(17)) == (("drive", "fan"), 32, "fan 400-800 Hz")
    npy = save("npy columns", tmp_path)
    assert np.allclose(spectra_of(npy, layout(waveform={"channels": ["1"]}))[1], both[:, 16:])
    with pytest.raises(ContractError, match=r"no channels that fit 'DE'.*X097_DE_time"):
        spectra_of(mat, layout(waveform={"channels": ["DE"]}))
    with pytest.raises(ContractError, match="2 channels that fit"):
        spectra_of(mat, layout(waveform={"channels": ["X*"]}))


def test_a_csv_may_tell_its_machine_and_its_time(tmp_path: Path) -> None:
    frame = pd.DataFrame({"timestamp": "2024-05-01T00:00:00Z", "machine_id": "fan", "a": SIGNAL[:, 0]})
    frame.to_csv(tmp_path / "any.csv", index=False)
    found, spectra = spectra_of(tmp_path, layout(path=None, timestamp_format=None))
    assert spectra.shape == (8, 16)
    assert set(found.machine_id) == {"fan"}
    assert found.timestamp[0] == pd.Timestamp("2024-05-01T00:00Z")


def test_records_without_times_are_counted_from_a_start(tmp_path: Path) -> None:
    for machine in ("a", "b"):
        for number in (1, 2, 10):
            path = tmp_path / machine / f"rec{number}.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, SIGNAL[:1024, 0])
    stated = {"timestamp_format": None, "start": "2024-01-01T00:00:00Z", "interval_seconds": 600}
    found, _ = spectra_of(tmp_path, layout(path="{machine_id}/{_}.npy", **stated))
    assert found.timestamp.dt.minute.tolist() == [0, 10, 20] * 2
    found, _ = spectra_of(tmp_path, layout(path="{machine_id}/rec{sequence}.npy", **stated))
    assert (found.timestamp - pd.Timestamp("2024-01-01T00:00Z")).dt.total_seconds().tolist() == [600, 1200, 6000] * 2


BAD: dict[str, tuple[str, bytes | None, dict, str]] = {
    "no rate": ("npy", None, {"waveform": {"sample_rate_hz": None}}, "sample rate: got none.*--sample-rate"),
    "no machine": ("npy", None, {"path": None}, "machine_id: got no name.*--machine NAME"),
    "no time": ("npy", None, {"path": "{machine_id}/{_}.npy"}, "timestamp: got no time of the record.*--start"),
    "too short": ("npy", None, {"waveform": {"window_samples": 8192}}, "fewer samples, expected at least one window"),
    "cut npy": ("npy", b"-100", {}, "expected a whole file"),
    "pickle": ("npy", b"object", {}, "expected numbers"),
    "no npy": ("npy", b"x" * 100, {}, "cut off or no .npy"),
    "cut wav": ("wav", b"-100", {}, "ends .* bytes early"),
    "no wav": ("wav", b"RIFFxxxxAVI ", {}, "no WAV"),
    "a compressed wav": ("wav", b"mp3", {}, "format 85 of 16 bits"),
    "cut mat": ("mat", b"-100", {}, "cut off or no MATLAB file"),
    "mat 7.3": ("mat", b"MATLAB 7.3 MAT-file, Platform" + bytes(500), {}, r"version 7.3 \(HDF5\).*-v7"),
    "mat of text": ("mat", b"text", {}, "a vector of samples"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(tmp_path: Path, name: str) -> None:
    kind, content, given, message = BAD[name]
    folder = save({"npy": "npy rows", "wav": "wav int16", "mat": "mat 5"}[kind], tmp_path)
    (path,) = [path for path in folder.rglob("*") if path.is_file()]
    if content == b"-100":
        path.write_bytes(path.read_bytes()[:-100])
    elif content == b"object":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif content == b"mp3":
        whole = bytearray(path.read_bytes())
        whole[20:22] = struct.pack("<H", 85)
        path.write_bytes(bytes(whole))
    elif content == b"text":
        savemat(path, {"note": "nothing", "rpm": 3})
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ContractError, match=message):
        spectra_of(folder, layout(**given))


def run(source: Path, out: Path, stated: SourceLayout) -> IngestSummary:
    return ingest(source, out, IngestParams(timezone="UTC"), horizon_hours=1, tune_share=0.5, layout=stated)


def test_one_broken_record_among_good_ones_and_a_record_of_another_rate(tmp_path: Path) -> None:
    source = save("wav int16", tmp_path)
    good = next(source.rglob("*.wav"))
    for minute in range(1, 5):
        (good.parent / f"20240301_06{minute:02d}00.wav").write_bytes(good.read_bytes())
    broken = good.parent / "20240301_060300.wav"
    broken.write_bytes(good.read_bytes()[:-1000])
    wavfile.write(good.parent / "20240301_060400.wav", 2 * RATE, (SIGNAL * 2**15).astype(np.int16))
    stated = layout(waveform={"sample_rate_hz": None})
    summary = run(source, tmp_path / "raw", stated)
    assert summary.rows == 3 * 8
    assert sorted(summary.set_aside) == ["pump 1/20240301_060300.wav", "pump 1/20240301_060400.wav"]
    assert (
        "0 to 12800 Hz, expected 32 bins of kind spectrum, 0 to 6400 Hz"
        in summary.set_aside["pump 1/20240301_060400.wav"]
    )
    spec = load_fleet_spec(tmp_path / "raw" / "fleet.yaml")
    assert spec.band_edges_hz is not None
    assert (spec.band_edges_hz[-1], len(spec.band_edges_hz)) == (RATE / 2, 17)
    assert run(source, tmp_path / "raw", stated).written == 0


def test_labels_and_sampling_read_waveforms_too(tmp_path: Path) -> None:
    for hour in range(20):
        folder = tmp_path / "in" / ("1" if hour > 15 else "0")
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"20240301_{hour:02d}0000.npy", SIGNAL[:, 0])
    stated = layout(path="{label}/{timestamp}.npy", machine_id="m")
    params = IngestParams(timezone="UTC", label_column="label")
    with pytest.raises(ContractError, match="type of label"):  # what a path tells is text
        ingest(tmp_path / "in", tmp_path / "raw", params, horizon_hours=1, tune_share=0.5, layout=stated)
    params = IngestParams(timezone="UTC", max_rows=60)
    summary = ingest(tmp_path / "in", tmp_path / "raw", params, horizon_hours=1, tune_share=0.5, layout=stated)
    assert 40 <= summary.rows <= 60
    table = read_table(day_files(tmp_path / "raw")[0])
    assert set(table["label"].to_pylist()) <= {"0", "1"}
    assert summary.rows % 8 == 0
