"""The options of `ingest` and `backtest` stand in for fleet.yaml; every recording comes in with one command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat, wavfile

from flows.cli import main
from flows.layout_options import layout_of
from pipeline.errors import UserError
from pipeline.schema import load_fleet_spec


def hearken(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of the command, run in this process outside a checkout."""
    monkeypatch.setattr(sys, "argv", ["hearken", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_options_are_laid_over_what_fleet_yaml_says(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(
        "source:\n  path: '{machine_id}.csv'\n  columns: {timestamp: Time, context: {load: Load}}\n"
        "  waveform: {bands: 32, overlap: 0.5}\n"
    )
    assert layout_of(tmp_path, None, None, unit=None) is None  # fleet.yaml is read by whoever opens the source
    found = layout_of(tmp_path, ["spectrum.x=x_*", "spectrum.y=y_*", "rpm=Speed"], ["a", "b"], bands=16, unit="mm/s")
    assert found is not None
    assert found.waveform is not None
    assert (found.path, found.unit, found.waveform.bands, found.waveform.overlap) == (
        "{machine_id}.csv",
        "mm/s",
        16,
        0.5,
    )
    assert found.columns.timestamp == "Time"
    assert found.columns.spectrum == {"x": "x_*", "y": "y_*"}
    assert found.columns.context == {"load": "Load", "rpm": "Speed"}
    assert found.waveform.channels == ("a", "b")
    other = layout_of(tmp_path, ["machine_id=Asset"], ["x=1", "y=*_FE"])
    assert other is not None
    assert other.waveform is not None
    assert other.waveform.channels == {"x": "1", "y": "*_FE"}
    (tmp_path / "fleet.yaml").unlink()
    renamed = layout_of(tmp_path, ["label=fault"], None)
    assert renamed is not None
    assert renamed.columns.context == {"*": "*", "label": "fault"}  # all other context stays


@pytest.mark.parametrize(
    ("mapped", "channels", "given", "message"),
    [
        (["machine_id"], None, {}, "--map: got 'machine_id', expected new=old"),
        (None, ["x=1", "2"], {}, "--channel: got '2'"),
        (None, None, {"bands": 7}, "--bands: got 7, expected: .*greater than or equal to 8"),
        (None, None, {"sample_rate_hz": -1.0}, "--sample-rate: got -1.0"),
        (None, None, {"band": "mean"}, "--band: got 'mean'"),
        (None, None, {"path": "{a}{a}"}, "--path-pattern: got '{a}{a}'"),
        (None, None, {"start": "soon"}, "--start: got 'soon'"),
        (None, None, {"interval_seconds": 0.0}, "--interval: got 0.0"),
    ],
)
def test_options_that_cannot_be_are_named(
    tmp_path: Path, mapped: list[str] | None, channels: list[str] | None, given: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        layout_of(tmp_path, mapped, channels, **given)


def test_one_command_per_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    signal = np.random.default_rng(1).standard_normal(8192).astype(np.float32) / 10
    wave = ["--path-pattern", "{machine_id}_{timestamp}.{_}", "--timestamp-format", "%Y%m%d%H%M", "--timezone", "UTC"]
    folder = tmp_path / "records"
    folder.mkdir()
    wavfile.write(folder / "p1_202401010000.wav", 8000, signal)
    np.save(folder / "p1_202401010100.npy", signal)
    savemat(folder / "p1_202401010200.mat", {"X1_DE_time": signal, "RPM": 1797})
    pd.DataFrame({"t": np.arange(8192), "acc": signal}).to_csv(folder / "p1_202401010300.csv", index=False)
    settings = ["--sample-rate", 8000, "--window", 1024, "--overlap", 0.5, "--bands", 32, "--band", "peak"]
    assert hearken(monkeypatch, "ingest", folder, "--out", "waves", *wave, *settings) == 0
    spec = load_fleet_spec(tmp_path / "waves" / "fleet.yaml")
    assert spec.band_edges_hz is not None
    assert (spec.bins, spec.band_edges_hz[-1]) == (32, 4000)
    assert json.loads((tmp_path / "waves" / "snapshot.json").read_text())["rows"] == 4 * 15
    table = pd.DataFrame({"Asset": "a", "When": [1_704_067_200, 1_704_067_260], "degC": [20.5, -3], "bar": [1, 2]})
    table.to_csv("pumps.csv", index=False, sep=";", decimal=",")
    names = ["--map", "machine_id=Asset", "--map", "timestamp=When", "--timestamp-format", "epoch_s"]
    assert (
        hearken(monkeypatch, "ingest", "pumps.csv", "--out", "pumps", "--kind", "features", "--decimal", ",", *names)
        == 0
    )
    assert load_fleet_spec(tmp_path / "pumps" / "fleet.yaml").feature_names == ("degC", "bar")
    capsys.readouterr()
    (tmp_path / "two").mkdir()
    table.to_csv("two/a.csv", index=False)
    (tmp_path / "two" / "broken.csv").write_text("Asset,When\n")
    arguments = ["ingest", (tmp_path / "two").as_uri(), "--out", "again", "--kind", "features", *names]
    assert hearken(monkeypatch, *arguments) == 0
    assert "1 files set aside" in capsys.readouterr().out
    assert hearken(monkeypatch, "ingest", "pumps.csv", "--out", "no", "--kind", "sound") == 2
    assert hearken(monkeypatch, "ingest", "s3://k:secret@", "--out", "no") == 2
    assert "secret" not in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


RELATIVE = ["--time", "relative", "--timezone", "UTC"]
LABELLED = [*RELATIVE, "--label-column", "label"]
RECORDINGS = {
    **{f"{name}.parquet": LABELLED for name in ("cooling_fan", "cwru_0hp_48k", "cwru_12k_loads", "femto_h", "femto_v")},
    **{f"{name}.parquet": LABELLED for name in ("motor45kw", "skab", "nab_temperature", "pipeline_drift")},
    "mnist.parquet": ["--machine", "mnist", "--start", "2020-01-01", "--interval", 1, *RELATIVE],
}


def test_every_recording_comes_in_with_one_command(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = sorted(path.relative_to(real_data).as_posix() for path in real_data.rglob("*.parquet"))
    for name in files:
        options = RECORDINGS.get(name, LABELLED)  # those of adbench are all alike
        assert hearken(monkeypatch, "ingest", real_data / name, "--out", tmp_path / "raw" / name, *options) == 0, name
        facts = json.loads((tmp_path / "raw" / name / "snapshot.json").read_text())
        columns = pd.read_parquet(real_data / name, columns=None if name.startswith("adbench") else ["f_000"][:0])
        assert facts["rows"] == len(columns)
        assert facts["set_aside"] == []
