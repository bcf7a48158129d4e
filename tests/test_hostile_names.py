"""Machines with names that nobody should be given: nothing is written elsewhere or obeyed, every name comes back."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import cli
from pipeline.epochs import EpochStarts
from pipeline.errors import printable
from pipeline.params import load_params
from pipeline.schema import spectra_column, time_column
from pipeline.train import run as train

NAMES = [
    "../../outside",
    "..",
    "/tmp/hearken-hostile/absolute",
    "C:\\windows\\nul",
    "a'b\"c; DROP TABLE machines; --",
    "<img src=x onerror=alert(1)><script>alert(2)</script>",
    "long " + "x" * 295,
    "насос №7 ポンプ",
    "مضخة ٣ \u202eabc",
    "line\nbreak\ttab\rreturn",
    "\x1b[2J\x1b[31mcleared\x07",
    "[red]markup[/red] [link=file:///etc]x[/link]",
    "=cmd|' /C calc'!A0",
    "-5+@SUM(1)",
    "{{7*7}} ${HOME} $(id) %s {0}",
    " blanks around ",
    "nul\x00byte",
    "# no comment",
]
BINS, DAYS, HOUR = 8, 30, 3_600_000_000
FIRST = 1_735_689_600_000_000  # 2025-01-01
PARAMS = """
seed: 3
source: {path: plant}
detectors: [pca, energy_zscore, squared_distance]
split: {horizon_hours: 48, train_share: 0.4, calibration_share: 0.2, unseen_machine_share: 0.2, run_in_hours: 0}
train: {score_batch_rows: 256, pca: {max_components: 3}}
calibrate: {draws: 50, policy: {k: 2, n: 3, window_minutes: 300, gap_minutes: 150}}
evaluate: {chance_shifts: 20}
release: {detector: pca, reference_rows: 400}
"""


def make_plant(folder: Path) -> None:
    """One file of hourly rows of all machines, and a log in which every third machine fails."""
    generator = np.random.default_rng(4)
    hours = np.arange(DAYS * 24)
    machines, times, spectra, entries = [], [], [], []
    for number, name in enumerate(NAMES):
        shape_F = generator.uniform(0.5, 2, BINS)
        spectra_NF = shape_F * generator.lognormal(0, 0.1, (len(hours), BINS))
        if number % 3 == 0:
            failed = (22 + number % 6) * 24
            spectra_NF[failed - 40 : failed] *= 5
            entries.append((name, FIRST + failed * HOUR, FIRST + (failed + 3) * HOUR, "failure", name, name))
        machines += [name] * len(hours)
        times.append(FIRST + hours * HOUR)
        spectra.append(spectra_NF.astype(np.float32))
    (folder / "spectra").mkdir(parents=True)
    columns = {"machine_id": machines, "timestamp": time_column(np.concatenate(times))}
    columns |= {"spectrum": spectra_column(np.concatenate(spectra)), "condition": machines}
    pq.write_table(pa.table(columns), folder / "spectra" / "all.parquet")
    names = ("machine_id", "start", "end", "tag", "failure_mode", "note")
    log = dict(zip(names, map(list, zip(*entries, strict=True)), strict=True))
    for name in ("start", "end"):
        log[name] = time_column(np.array(log[name]))
    pq.write_table(pa.table(log), folder / "maintenance.parquet")
    (folder / "fleet.yaml").write_text("unit: g\ninterval_seconds: 3600\nbins: 8\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders around a folder in which every stage has run."""
    root = tmp_path_factory.mktemp("hostile")
    work = root / "a" / "b" / "work"
    make_plant(work / "plant")
    (work / "params.yaml").write_text(PARAMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        for stage in ("ingest", "validate", "split", "clean"):
            import_module(f"pipeline.{stage}").main()
        settings = load_params()
        for detector in settings.detectors:
            train(detector, settings, Path())
        for stage in ("calibrate", "evaluate", "release"):
            import_module(f"pipeline.{stage}").main()
    return root


@pytest.fixture
def work(root: Path) -> Path:
    return root / "a" / "b" / "work"


def names_in(table: pa.Table) -> set[str]:
    return set(table["machine_id"].cast(pa.string()).to_pylist())


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["hearken", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def is_plain(text: str) -> bool:
    return all(letter.isprintable() or letter == "\n" for letter in text)


def test_nothing_is_written_outside_and_no_path_holds_a_name(root: Path, work: Path) -> None:
    assert [path.relative_to(root).as_posix() for path in root.rglob("*") if work not in (path, *path.parents)] == [
        "a",
        "a/b",
    ]
    assert not Path("/tmp/hearken-hostile").exists()
    assert sorted(path.name for path in work.iterdir()) == ["data", "metrics", "params.yaml", "plant", "reports"]
    for path in work.rglob("*"):
        assert path.name.isascii(), path
        assert not any(part in path.name for part in ("outside", "absolute", "script", "xxx", "cmd", "markup")), path


def test_every_name_comes_back_exact(work: Path) -> None:
    everyone = set(NAMES)
    for path in (work / "data/raw/spectra").glob("*.parquet"):
        table = pq.read_table(path)
        assert names_in(table) == everyone
        assert table["condition"].to_pylist() == table["machine_id"].to_pylist()
    for stage in ("validate", "split", "clean"):
        assert names_in(pq.read_table(work / f"data/status/{stage}.parquet")) == everyone
    failed = pq.read_table(work / "data/raw/failures.parquet")
    assert names_in(failed) == set(NAMES[::3]) == set(failed["failure_mode"].to_pylist())
    logged = pq.read_table(work / "data/raw/maintenance.parquet")
    assert logged["note"].to_pylist() == logged["machine_id"].to_pylist()
    events = json.loads((work / "data/evaluation/events.json").read_text())
    assert events
    assert {event["machine_id"] for event in events} <= everyone


def test_scores_of_every_machine_are_known_by_its_name(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--release", str(work / "data/release"), "--input", str(work / "plant"), "--output", str(tmp_path)]
    assert run_cli(monkeypatch, "score", *arguments) == 0
    assert is_plain("".join(capsys.readouterr()))
    told = json.loads((tmp_path / "_alerts.json").read_text(encoding="utf-8"))
    assert {alert["machine_id"] for alert in told} <= names_in(pq.read_table(tmp_path)), "a folder of Parquet for all"
    for path in tmp_path.glob("*.parquet"):
        table = pq.read_table(path)
        assert names_in(table) == set(NAMES)
        assert table["score_pca"].null_count == 0


def test_the_terminal_shows_names_and_obeys_none(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant = tmp_path / "plant"
    (plant / "spectra").mkdir(parents=True)
    source = pq.read_table(work / "plant/spectra/all.parquet")
    pq.write_table(source, plant / "spectra" / "a.parquet")
    pq.write_table(source.slice(0, 3), plant / "spectra" / "\x1b[2J[red]x[\\red].parquet")
    (plant / "spectra" / "[bold]\u202ebroken.csv").write_text("machine_id,timestamp,bin_0\n")
    log = "machine_id,start,end,tag\n" + "".join(f'"{name} ?",2025-01-01,,off\n' for name in ("[red]x", "\x1b[2J"))
    (plant / "maintenance.csv").write_text(log)
    assert run_cli(monkeypatch, "check", str(plant)) == 2
    shown = "".join(capsys.readouterr())
    assert is_plain(shown)
    assert "[red]x ?" in shown
    assert "\\x1b[2J ?" in shown
    assert run_cli(monkeypatch, "check", str(plant), "--json") == 2
    said = json.loads(capsys.readouterr().out)["findings"]
    assert any(repr("\x1b[2J ?") in finding["got"] for finding in said)
    assert run_cli(monkeypatch, "ingest", str(plant), "--out", str(tmp_path / "raw")) == 0
    shown = "".join(capsys.readouterr())
    assert is_plain(shown)
    assert "[bold]\\u202ebroken.csv" in shown
    (plant / "maintenance.csv").write_text("machine_id,start,end,tag\n[red]m[/red],2025-01-01,,\x1b[2J[/]\n")
    assert run_cli(monkeypatch, "ingest", str(plant), "--out", str(tmp_path / "other")) == 2
    shown = "".join(capsys.readouterr())
    assert is_plain(shown)
    assert "\\x1b[2J[/]" in shown


@pytest.mark.parametrize("name", NAMES)
def test_an_escaped_name_is_plain_and_a_plain_one_stays(name: str) -> None:
    assert is_plain(printable(name))
    assert (printable(name) == name) == is_plain(name)


def test_names_survive_a_manifest() -> None:
    starts = EpochStarts({name: np.array([1, 2]) for name in NAMES})
    assert set(EpochStarts.from_json(json.loads(json.dumps(starts.to_json()))).machines) == set(NAMES)
