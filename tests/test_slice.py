"""The whole graph in one process, on fleets that lack something; and the messages for settings that are wrong."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_fleet import SMALL_PARAMS, run_stages

from flows import cli
from pipeline.params import DEFAULT_DETECTORS


def small(**changes: str) -> str:
    text = SMALL_PARAMS
    for old, new in changes.items():
        key, value = old.replace("_dot_", ": "), new
        assert key in text, key
        text = text.replace(key, value)
    return text


def test_every_row_has_one_part_and_nothing_that_fits_is_judged(built: Path) -> None:
    split = pq.read_table(built / "data/status/split.parquet").to_pandas()
    raw = json.loads((built / "data/raw/snapshot.json").read_text())
    assert len(split) == raw["rows"]
    fits = split["role"].isin(["train", "validation", "calibration", "baseline"])
    assert split.loc[fits, "log_status"].eq("healthy").all()
    assert split.loc[fits, "failure_id"].isna().all()
    seen = split[split["role"].isin(["train", "validation"])]
    calibration, test = (split[split["role"] == role] for role in ("calibration", "test"))
    assert seen["timestamp"].max() < calibration["timestamp"].min()
    assert calibration["timestamp"].max() < test.loc[test["failure_id"].isna(), "timestamp"].min()


def test_the_figures_of_the_build_have_the_published_form(built: Path) -> None:
    figures = json.loads((built / "metrics/evaluation.json").read_text())
    assert {"dataset", "budget", "detectors", "tiers", "null_reasons"} <= figures.keys()
    assert set(figures["detectors"]) == {*DEFAULT_DETECTORS, "ensemble"}
    assert figures["dataset"]["failures"] >= 1
    assert (built / "reports/index.html").stat().st_size > 1_000_000


def test_a_fleet_without_failures_still_gets_tiers_a_release_and_a_report(tmp_path: Path) -> None:
    params = small(failures_dot_10="failures: 0").replace("mislabelled_share: 0.02", "mislabelled_share: 0.0")
    run_stages(tmp_path, params.replace("machines: 10, days: 40", "machines: 4, days: 20"))
    figures = json.loads((tmp_path / "metrics/evaluation.json").read_text())
    assert figures["dataset"]["failures"] == 0
    assert figures["tiers"]["page"]["false_positive_rate"] is not None
    assert figures["detectors"]["autoencoder"]["events_caught"] is None
    assert "events_caught" in figures["null_reasons"]
    calibration = json.loads((tmp_path / "data/calibration/calibration.json").read_text())
    assert any("no tune failure" in note for note in calibration["notes"])
    assert (tmp_path / "data/release/manifest.json").exists()


def test_one_machine_is_a_fleet(tmp_path: Path) -> None:
    run_stages(tmp_path, small(machines_dot_10="machines: 1").replace("failures: 10", "failures: 1"))
    manifest = json.loads((tmp_path / "data/release/manifest.json").read_text())
    assert manifest["bins"] == 32


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["hearken", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("simulate:\n  machnes: 3\n", "line 2, simulate.machnes: got an unknown key, expected one of machines"),
        ("calibrate:\n  page_percentile: 101\n", "line 2, calibrate.page_percentile: got 101, expected less than 100"),
        ("detectors: [oracle]\n", "got 'oracle', expected one of autoencoder"),
        ("split: [\n", "not YAML"),
    ],
)
def test_a_wrong_setting_names_its_line_and_what_is_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, "simulate", "--out", "fleet") == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "fleet").exists()


def test_commands_outside_a_checkout_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, "releases", "list") == 2
    assert "expected a folder with dvc.yaml" in capsys.readouterr().err


def test_scoring_with_the_command_line_and_the_library_agree(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--release", str(built / "data/release"), "--input", str(built / "data/raw"), "--output", "log"]
    monkeypatch.setattr("sys.argv", ["hearken", "score", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    rows = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "log").glob("*.parquet"))
    assert rows == json.loads((built / "data/raw/snapshot.json").read_text())["rows"]


def test_machines_never_seen_are_judged_apart(built: Path) -> None:
    figures = json.loads((built / "metrics/evaluation.json").read_text())
    split = pq.read_table(built / "data/status/split.parquet").to_pandas()
    unseen = set(split.loc[split["role"] == "baseline", "machine_id"])
    assert unseen
    assert figures["unseen_machines"]["dataset"]["machine_days"] > 0
    events = json.loads((built / "data/evaluation/events.json").read_text())
    assert not unseen & {event["machine_id"] for event in events}


def test_an_option_out_of_range_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, "simulate", "--out", "fleet", "--machines", "0") == 2
    assert "--machines: got 0" in capsys.readouterr().err
